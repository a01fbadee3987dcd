"""Compaction of the speed layer: 24 files of bundles in a folder ─▶ one .1, 12 of those ─▶ one .2, 12 of those ─▶ one .3, and so on.

After a pass a folder has at most 23 + 11 per further level of files that are not full, and the full ones (`target_file_bytes` of the sink): 56 as long as
bundles made 41,000 files in it, 67 up to half a million. Each row is written once per level. How it is done, and why it is safe at
every moment: `compaction`. Merged files have the columns, types and settings of what they were merged from; files whose columns differ, because another
version of the contract wrote them, are not merged with each other.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipelines.formats import compaction
from beam_pipelines.formats.compaction import Compacted, Files, Merge, Step
from beam_pipelines.formats.named_files import unfinished, write_new
from beam_pipelines.formats.reader import FILE, Broken
from beam_pipelines.places import is_local, join, list_folders, local, open_read
from beam_pipelines.sinks.parquet import ParquetEncoder
from beam_pipelines.sinks.plan import letter_writes_of, writes_of
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sinks.speed import WriteDoors, WriteSpeed, WriteSpeedLetters
from beam_pipelines.sinks.write import Writing
from beam_pipelines.spec.models import PipelineSpec

FAN_IN = (24, 12)
"""How many live files of each level are merged at least; the last entry also for all higher levels."""
_BATCH_ROWS = 65_536
_NOTES = b"beam_pipelines.speed"
_UNFINISHED = re.compile(r"(?:\.|part-[0-9a-f]{32}\.)(\d{6,})(?:-[0-9a-f]{20}|\.parquet)\.inprogress")


def writings_of(spec: PipelineSpec, run: RunInfo) -> list[Writing]:
    """What the stream of a spec stores in its speed layer, doors included."""
    rows = [WriteSpeed(write, run).writing for write in writes_of(spec, run)]
    letters = [WriteSpeedLetters(write, run).writing for write in letter_writes_of(spec, run)]
    return [*rows, *letters, WriteDoors(run).writing]


def compact(
    writing: Writing, *, epoch: int, now: Callable[[], float] = time.time, at_rest: MutableMapping[str, int] | None = None
) -> Compacted:
    """One pass over all folders of one output: merges what is due and deletes what was merged a minute ago.

    `at_rest` and `now` as in `compaction.compact_steps`. Files that starts before `epoch` left unfinished are deleted.
    """
    return Compacted.of(compact_steps(writing, epoch=epoch, now=now, at_rest=at_rest))


def compact_steps(
    writing: Writing, *, epoch: int, now: Callable[[], float] = time.time, at_rest: MutableMapping[str, int] | None = None,
    fan_in: Sequence[int] = FAN_IN,
) -> Generator[Step, None, None]:  # fmt: skip
    """`compact`, step by step: after each one the process may die."""
    layout, encoder = writing.layout, writing.encoder
    assert isinstance(encoder, ParquetEncoder)
    files = Files(
        _replaces, _alike, _stored, partial(_write, encoder), fan_in,
        full_bytes=layout.target_file_bytes, swept=partial(unfinished, pattern=_UNFINISHED),
    )  # fmt: skip
    folders = _folders(layout.folder, len(layout.by))
    return compaction.compact_steps(folders, files, epoch=epoch, now=now, at_rest=at_rest)


def _folders(folder: str, depth: int) -> Iterator[str]:
    """The folders of all partitions."""
    if not depth:
        yield folder
        return
    for name in list_folders(folder):
        if "=" in name:
            yield from _folders(join(folder, name), depth - 1)


@dataclass(frozen=True)
class _Notes:
    """What a file says about itself; `columns` are names and types, as text ("": it cannot be read)."""

    columns: str = ""
    replaces: tuple[str, ...] = ()


@lru_cache(16_384)  # a name is never used for another content
def _notes(path: str) -> _Notes:
    """Raises FileNotFoundError, and any of pyarrow's exceptions where bytes are damaged."""
    with _open(path) as file:
        said = (file.metadata.metadata or {}).get(_NOTES)
        columns = file.schema_arrow.to_string(show_field_metadata=False, show_schema_metadata=False)
        return _Notes(columns, msgspec.json.decode(said, type=tuple[str, ...]) if said else ())


def _said(path: str) -> _Notes:
    try:
        return _notes(path)
    except FileNotFoundError:
        raise
    except Exception:  # corrupt bytes surface as any of pyarrow's exceptions
        return _Notes()


def _replaces(path: str) -> tuple[str, ...]:
    return _said(path).replaces


def _alike(path: str) -> str | None:
    return _said(path).columns or None


def _stored(path: str) -> Iterator[pa.RecordBatch | Broken]:
    """The rows of a file, or why they cannot be read."""
    try:
        with _open(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                yield batch.replace_schema_metadata(None)
    except FileNotFoundError:
        raise
    except Exception as error:
        yield Broken(0, FILE, f"{path}: cannot be read: {error}")


def _write(encoder: ParquetEncoder, merge: Merge) -> str:
    def write(out: BinaryIO) -> None:
        first = next(merge.batches, None)
        if first is None:  # nothing could be read: an empty file replaces nothing
            first = pa.RecordBatch.from_pylist([], schema=_columns(merge.like))
        with pq.ParquetWriter(out, first.schema, **encoder.settings(pa.Table.from_batches([first]))) as writer:
            for batch in chain([first], merge.batches):
                writer.write_batch(batch, row_group_size=max(1, batch.num_rows))
            writer.add_key_value_metadata({_NOTES: msgspec.json.encode(tuple(merge.replaces))})

    return write_new(merge.folder, write, epoch=merge.epoch, level=merge.level, now=merge.now)


def _columns(path: str) -> pa.Schema:
    with _open(path) as file:
        return file.schema_arrow.remove_metadata()


def _open(path: str) -> Any:
    return pq.ParquetFile(local(path) if is_local(path) else pa.PythonFile(open_read(path), mode="r"), pre_buffer=False)
