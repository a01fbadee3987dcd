"""What survives a crash of the process itself: which rows were in work, and which are known to bring a process down.

    rows ─▶ known to crash? ──▶ dead letter CRASH
                  └─▶ their positions into a file ─▶ the program ─▶ the file emptied

An exception costs a row; a fault in a library (a segmentation fault in a decoder, memory used up) costs the process, and after the restart the
same rows come again. So a stream's row program says what it works on in a file that outlives it. `runners.crashes` reads it at the next start and,
where the same rows were in work twice, finds out which of them it was.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.program import Split
from beam_pipelines.arrow.schema import POSITION, SOURCE, Failure, Rejected, dead_letters

CRASH = "CRASH"
_MESSAGE = "this record brought down the process that worked on it, twice, and again when it was tried alone"
_of_thread = threading.local()


@dataclass(frozen=True)
class Guard:
    """`folder` is where this start says what it works on (a local folder; "": it does not, as in a batch); `poison` are the positions by source that must
    not be worked on."""

    folder: str
    epoch: int
    poison: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass
class GuardedProgram:
    """A row program behind a guard; rows in, the same rows out or dead. `raw_format` is the format of the records."""

    program: Callable[[pa.RecordBatch, Engine | None], Split]
    guard: Guard
    raw_format: str = ""
    _poison: dict[str, npt.NDArray[np.int64]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._poison = {source: np.array(positions, np.int64) for source, positions in self.guard.poison}

    def __call__(self, batch: pa.RecordBatch, engine: Engine | None = None) -> Split:
        bad = self._crashing(batch)
        if bad is None:
            return self._journaled(batch, engine)
        letters = _letters(batch.filter(pa.array(bad)), self.raw_format)
        rest = batch.filter(pa.array(~bad))
        split = self._journaled(rest, engine)
        return split._replace(dead=pa.concat_batches([split.dead, letters]))

    def _crashing(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_] | None:
        """Which rows are known to crash; None if none is, which costs nothing where none is known at all."""
        if not self._poison or not batch.num_rows:
            return None
        positions = batch.column(POSITION).to_numpy()
        bad = np.zeros(batch.num_rows, np.bool_)
        for source in set(batch.column(SOURCE).cast(pa.string()).unique().to_pylist()) & set(self._poison):
            of_source = np.asarray(pa.compute.equal(batch.column(SOURCE).cast(pa.string()), source).to_numpy(zero_copy_only=False))
            bad |= of_source & np.isin(positions, self._poison[source])
        return bad if bad.any() else None

    def _journaled(self, batch: pa.RecordBatch, engine: Engine | None) -> Split:
        if not self.guard.folder:
            return self.program(batch, engine)
        journal = _journal(self.guard)
        source = batch.column(SOURCE)[0].as_py() if batch.num_rows else ""
        content = msgspec.msgpack.encode((source, batch.column(POSITION).to_numpy().tobytes()))
        os.pwrite(journal.handle, content, 0)
        try:
            return self.program(batch, engine)
        finally:
            os.ftruncate(journal.handle, 0)  # an exception brings no process down


class _Journal:
    """An open journal, closed with the last reference to it: with its thread, or where the thread takes up another one."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)


def _journal(guard: Guard) -> _Journal:
    """This thread's journal, opened once. Never synced: it must survive the process, not the machine."""
    # Not the number of the process alone: containers that share the folder all count from 1.
    path = Path(guard.folder) / f"{guard.epoch:06d}-{os.uname().nodename}-{os.getpid()}-{threading.get_native_id()}.work"
    journal: _Journal | None = getattr(_of_thread, "journal", None)
    if journal is None or journal.path != path:
        journal = _of_thread.journal = _Journal(path)
    return journal


def in_work(folder: str, before_epoch: int) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """What earlier starts were working on when they ended: source and positions of each block. Empty blocks ended well."""
    found = []
    for path in sorted(Path(folder).glob("*.work")):
        content = path.read_bytes()
        if int(path.name.partition("-")[0]) < before_epoch and content:
            source, positions = _decoded(content)
            found.append((source, positions))
    return found


def clear(folder: str, before_epoch: int) -> None:
    """Removes the journals of earlier starts, once what they said has been taken up."""
    for path in Path(folder).glob("*.work"):
        if int(path.name.partition("-")[0]) < before_epoch:
            path.unlink(missing_ok=True)


def _decoded(content: bytes) -> tuple[str, npt.NDArray[np.int64]]:
    try:
        source, positions = msgspec.msgpack.decode(content, type=tuple[str, bytes])
    except msgspec.MsgspecError:  # the process died in the middle of writing it: nothing was in work yet
        return "", np.empty(0, np.int64)
    return source, np.frombuffer(positions, np.int64)


def _letters(rows: pa.RecordBatch, raw_format: str) -> pa.RecordBatch:
    verdict = Rejected("prepare", CRASH, (Failure("crash", "", _MESSAGE),))
    return dead_letters(rows, [verdict] * rows.num_rows, raw_format=raw_format)


def guarded(programs: Sequence[Any], guard: Guard | None, formats: Sequence[str]) -> tuple[Any, ...]:
    """The programs behind the guard, if there is one."""
    if guard is None:
        return tuple(programs)
    return tuple(GuardedProgram(program, guard, raw_format) for program, raw_format in zip(programs, formats, strict=True))
