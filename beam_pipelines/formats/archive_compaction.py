"""Compaction of an archive: 32 files of bundles ─▶ one .1, 16 of those ─▶ one .2, 32 of those ─▶ one .2; what is left in a quiet hour ─▶ one .2.

After a pass an hour has at most 31 + 15 + 31 live files, whatever the rate. A message is written three times at most, once by its bundle and
twice here, unless an hour gets more than 32 * 16 * 32 = 16,384 files (two a second are 7,200).

How it is done, and why it is safe at every moment: `compaction`. A position that is stored twice is dropped by the merge of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, MutableMapping

from beam_pipelines.formats import compaction
from beam_pipelines.formats.archive import Positions
from beam_pipelines.formats.archive_files import hours, notes, replaced_by, stored, stored_ms, write_file
from beam_pipelines.formats.compaction import GRACE_S, QUIET_S, Files, Merge, Step
from beam_pipelines.formats.named_files import named

__all__ = ["FAN_IN", "GRACE_S", "QUIET_S", "Step", "compact_steps"]

FAN_IN = (32, 16, 32)
"""How many live files of each level are merged at least."""


def compact_steps(
    folder: str, *, epoch: int = 0, now: Callable[[], float] = time.time, at_rest: MutableMapping[str, int] | None = None,
    fan_in: tuple[int, int, int] = FAN_IN, quiet_s: float = QUIET_S,
) -> Generator[Step, None, None]:  # fmt: skip
    """One pass over all hours of an archive, or of the folder of one source, step by step: merges what is due and deletes what was merged a minute ago.

    Call it every 10 s or so; `now`, `at_rest` and `quiet_s` as in `compaction.compact_steps`. Sealed messages are merged without the key. `epoch` is the
    caller's, by default the latest in the hour: what earlier epochs left unfinished is deleted, and a process of one that still writes fails with SinkError.
    """
    folders = (hour.folder for hour in hours(folder))
    return compaction.compact_steps(folders, archive_kind(fan_in), epoch=epoch, now=now, at_rest=at_rest, quiet_s=quiet_s)


def archive_kind(fan_in: tuple[int, int, int] = FAN_IN) -> Files:
    """What a compaction must know of an archive's files."""
    return Files(replaced_by, _alike, stored, _write, fan_in, top=2, fresh=lambda: Positions().fresh)


def _alike(path: str) -> str | None:
    """Files that are not sealed, or sealed under the same key."""
    found = notes(path)
    return None if found.broken else found.seal


def _write(merge: Merge) -> str:
    seal = notes(merge.like).seal
    there = {file.path.rpartition("/")[2]: stored_ms(file) for file in named(merge.folder)}

    def newest() -> int:
        return max((there[name] for name in merge.replaces if name in there), default=0)

    return write_file(
        merge.folder,
        merge.batches,
        epoch=merge.epoch,
        level=merge.level,
        seal=seal,
        replaces=merge.replaces,
        stored_ms=newest,
        now=merge.now,
    )
