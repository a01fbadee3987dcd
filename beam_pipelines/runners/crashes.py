"""Which record brings the process down: found out at a start after the second crash over the same rows, in processes of its own.

    1st crash    what was in work is noted                                    suspects
    2nd crash    the rows both times in work are tried, halved, tried …       poison: dead letters CRASH from now on

A kill from outside looks like a crash, so nobody is found guilty by having been in work: only a record that brings down a process that does
nothing but work on it. Trials are forks of one process that holds the program; none of them can harm the stream.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.schema import POSITION
from beam_pipelines.places import is_local, local, read_bytes, write_bytes
from beam_pipelines.runners.kept import kept_folder
from beam_pipelines.transforms import guard

Positions = npt.NDArray[np.int64]
_TRIAL_TIMEOUT_S = 300


class _Known(msgspec.Struct):
    """`suspects` were in work when a process ended once; `poison` is guilty. Positions by source."""

    suspects: dict[str, list[int]] = {}
    poison: dict[str, list[int]] = {}


def journal_folder(stream: str) -> str:
    """Where the starts of the stream whose folder is `stream` say what they work on: on this machine, whose processes they are."""
    if is_local(stream):
        return f"{local(stream)}/journal"
    of = hashlib.sha256(stream.encode()).hexdigest()[:16]
    return str(kept_folder() / "journal" / of)


def look_back(
    stream: str,
    epoch: int,
    *,
    records: Callable[[str, Positions], Iterable[tuple[pa.RecordBatch, Any]]],
    say: Callable[[str], None] = lambda sentence: None,
) -> guard.Guard:
    """The guard for this start: what earlier ones were at when they ended has been looked at, and what crashes is known.

    `records` gives, for a source and positions, raw batches from the archive, each with the row program that works on it.
    """
    path = f"{stream}/crashes.json"
    content = read_bytes(path)
    known = msgspec.json.decode(content, type=_Known) if content else _Known()
    folder = journal_folder(stream)
    blocks = [(source, positions) for source, positions in guard.in_work(folder, epoch) if len(positions)]
    if blocks:
        again = _both(known.suspects, blocks)
        for source, positions in again.items():
            say(f"{_records(len(positions))} of {source} were in work when the last two processes ended: looking for one that crashes")
            guilty = sorted(_guilty(records(source, np.array(positions, np.int64))))
            known.poison[source] = sorted({*known.poison.get(source, []), *guilty})
            say(
                f"found {_records(len(guilty))} that crash the process: dead letters (CRASH) from now on"
                if guilty
                else "found no record that crashes"
            )
        known.suspects = {} if again else _noted(blocks)
        write_bytes(path, msgspec.json.encode(known))
    guard.clear(folder, epoch)
    return guard.Guard(folder, epoch, tuple((source, tuple(positions)) for source, positions in known.poison.items() if positions))


def known_to_crash(stream: str, *, records: Callable[[str, Positions], Iterable[tuple[pa.RecordBatch, Any]]]) -> guard.Guard | None:
    """The guard for a batch over the archive: what the stream has found to crash, and crashes still. Whatever a repair has helped goes through. None where
    that is nothing, which is known without a look at the archive. `records` as for `look_back`."""
    known = poison_of(stream).items()
    tried = {source: tuple(sorted(_guilty(records(source, np.array(positions, np.int64))))) for source, positions in known if positions}
    poison = tuple((source, guilty) for source, guilty in tried.items() if guilty)
    return guard.Guard("", 0, poison) if poison else None


def poison_of(stream: str) -> dict[str, list[int]]:
    """Positions of the records that the stream has found to crash, by source."""
    content = read_bytes(f"{stream}/crashes.json")
    return msgspec.json.decode(content, type=_Known).poison if content else {}


def _records(count: int) -> str:
    return f"{count:,} record{'' if count == 1 else 's'}"


def _noted(blocks: Iterable[tuple[str, Positions]]) -> dict[str, list[int]]:
    found: dict[str, set[int]] = {}
    for source, positions in blocks:
        found.setdefault(source, set()).update(positions.tolist())
    return {source: sorted(positions) for source, positions in found.items()}


def _both(suspects: dict[str, list[int]], blocks: Iterable[tuple[str, Positions]]) -> dict[str, list[int]]:
    """What was in work at this crash and at the one before."""
    both = {source: sorted(set(suspects.get(source, ())) & set(now)) for source, now in _noted(blocks).items()}
    return {source: positions for source, positions in both.items() if positions}


def _guilty(batches: Iterable[tuple[pa.RecordBatch, Any]]) -> list[int]:
    found: list[int] = []
    for batch, program in batches:
        found += _tried(batch, program)
    return found


def _tried(batch: pa.RecordBatch, program: Any, *, timeout_s: float = _TRIAL_TIMEOUT_S) -> list[int]:
    """Positions in `batch` that bring down a process of their own."""
    with tempfile.TemporaryDirectory(prefix="beam-pipelines-crash-") as folder:
        work, found = Path(folder, "work"), Path(folder, "found")
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        work.write_bytes(pickle.dumps((program, bytes(sink.getvalue()))))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        _run([sys.executable, "-m", __name__, str(work), str(found)], environment, timeout_s)
        rows = msgspec.json.decode(found.read_bytes(), type=list[int]) if found.exists() else []
        return [batch.column(POSITION)[row].as_py() for row in rows]


def _run(command: list[str], environment: dict[str, str], timeout_s: float) -> None:
    """Runs a trial, or ends it with all its forks: a record that takes for ever is no crash, and must not keep the stream from starting."""
    trial = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603  (ourselves)
    try:
        trial.wait(timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(trial.pid, signal.SIGKILL)
        trial.wait()


def _crashing_rows(batch: pa.RecordBatch, program: Any) -> list[int]:
    """Numbers of the rows that crash, by halving; blocks that end well are not looked into."""
    guilty: list[int] = []
    blocks = [(0, batch.num_rows)]
    while blocks:
        start, end = blocks.pop()
        if end - start < 1 or _survives(batch.slice(start, end - start), program):
            continue
        if end - start == 1:
            guilty.append(start)
            continue
        middle = (start + end) // 2
        blocks += [(middle, end), (start, middle)]
    return guilty


def _survives(rows: pa.RecordBatch, program: Any) -> bool:
    """Whether a fork that works on `rows` lives. An exception is no crash: the stream deals with those."""
    child = os.fork()
    if child == 0:
        try:
            program(rows)
        except BaseException:
            os._exit(0)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) == 0


def of_positions(batches: Iterable[pa.RecordBatch], positions: Positions) -> Iterable[pa.RecordBatch]:
    """The rows of `batches` at `positions`."""
    wanted = pa.array(positions)
    for batch in batches:
        rows = batch.filter(pc.is_in(batch.column(POSITION), wanted))
        if rows.num_rows:
            yield rows


def _main(work: str, found: str) -> None:
    program, content = pickle.loads(Path(work).read_bytes())  # noqa: S301  (what `_tried` wrote)
    batch = pa.ipc.open_stream(content).read_next_batch()
    Path(found).write_bytes(msgspec.json.encode(_crashing_rows(batch, program)))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
