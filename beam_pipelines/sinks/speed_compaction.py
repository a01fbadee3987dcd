"""Compaction of the speed layer: 24 files of bundles in a folder ─▶ one .1, 12 of those ─▶ one .2, 12 of those ─▶ one .3, and so on.

After a pass a folder has at most 23 + 11 per further level of files that are not full, and the full ones (`target_file_bytes` of the sink): 56 as long as
bundles made 41,000 files in it, 67 up to half a million. Each row is written once per level. How it is done, and why it is safe at
every moment: `compaction`. Merged files have the columns, types and settings of what they were merged from; files whose columns differ, because another
version of the contract wrote them, are not merged with each other. Quiet partitions of rows are settled instead: `settling`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipelines.formats import compaction
from beam_pipelines.formats.compaction import QUIET_S, Files, Merge, Step
from beam_pipelines.formats.named_files import unfinished, write_new
from beam_pipelines.sinks.parquet import ParquetEncoder
from beam_pipelines.sinks.plan import letter_writes_of, writes_of
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sinks.settling import Settling
from beam_pipelines.sinks.speed import WriteDoors, WriteSpeed, WriteSpeedLetters
from beam_pipelines.sinks.speed_files import NOTES, alike, columns_of, folders_of, replaces, stored
from beam_pipelines.sinks.write import WriteSettings
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sinks import ROWS

FAN_IN = (24, 12)
"""How many live files of each level are merged at least; the last entry also for all higher levels."""
_UNFINISHED = re.compile(r"(?:\.|part-[0-9a-f]{32}\.)(\d{6,})(?:-[0-9a-f]{20}|\.parquet)\.inprogress")


def writings_of(spec: PipelineSpec, run: RunInfo) -> list[WriteSettings]:
    """What the stream of a spec stores in its speed layer, doors included."""
    rows = [WriteSpeed(write, run).writing for write in writes_of(spec, run)]
    letters = [WriteSpeedLetters(write, run).writing for write in letter_writes_of(spec, run)]
    return [*rows, *letters, WriteDoors(run).writing]


def compact_steps(
    writing: WriteSettings, *, epoch: int, now: Callable[[], float] = time.time, at_rest: MutableMapping[str, int] | None = None,
    fan_in: Sequence[int] = FAN_IN, quiet_s: float = QUIET_S, state: str | None = None,
) -> Generator[Step, None, None]:  # fmt: skip
    """One pass over all folders of one output, step by step: merges what is due and deletes what was merged a minute ago.

    `now`, `at_rest` and `quiet_s` as in `compaction.compact_steps`. Files that starts before `epoch` left unfinished are deleted. Partitions of rows that are
    quiet are settled (`settling`) where it is known of which `state` the stream is.
    """
    folders = folders_of(writing.layout.folder, len(writing.layout.by))
    kind = speed_kind(writing, fan_in, state=state)
    return compaction.compact_steps(folders, kind, epoch=epoch, now=now, at_rest=at_rest, quiet_s=quiet_s)


def speed_kind(writing: WriteSettings, fan_in: Sequence[int] = FAN_IN, *, state: str | None = None) -> Files:
    """What a compaction must know of the files of one output, for one pass."""
    assert isinstance(writing.encoder, ParquetEncoder)
    write, full = partial(_write, writing.encoder), writing.layout.target_file_bytes
    kind = Files(replaces, alike, stored, write, fan_in, full_bytes=full, swept=partial(unfinished, pattern=_UNFINISHED))
    if state is None or writing.output.of != ROWS or not writing.layout.by:
        return kind
    return replace(kind, settling=Settling(state, writing.layout.folder, write, full))


def _write(encoder: ParquetEncoder, merge: Merge) -> str:
    def write(out: BinaryIO) -> None:
        first = next(merge.batches, None)
        if first is None:  # nothing to write
            first = pa.RecordBatch.from_pylist([], schema=columns_of(merge.like))
        with pq.ParquetWriter(out, first.schema, **encoder.settings(pa.Table.from_batches([first]))) as writer:
            for batch in chain([first], merge.batches):
                writer.write_batch(batch, row_group_size=max(1, batch.num_rows))
            writer.add_key_value_metadata({NOTES: msgspec.json.encode(tuple(merge.replaces)), **merge.more})

    return write_new(merge.folder, write, epoch=merge.epoch, level=merge.level, now=merge.now)
