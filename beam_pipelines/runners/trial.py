"""Records through a row program, in processes of their own: which go through, and of what event time; which are still refused, or crash.

records ─▶ one process that holds the programs ─▶ a fork per block ─┬▶ what became of each record
                                                                    └▶ it died: by halves, until the record that kills is alone
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import pyarrow as pa

from beam_pipelines.arrow.schema import POSITION, SOURCE
from beam_pipelines.errors import RunError

_LONGEST_S = 600
_BLOCK_ROWS = 20_000
Outcome = Literal["good", "filtered", "refused", "crash"]


class Tried(NamedTuple):
    """What became of one record: of a `good` one its event time in microseconds (None: it has none), of a refused one why."""

    outcome: Outcome
    time: int | None = None
    reason: str = ""
    message: str = ""


def tried(batches: Iterable[tuple[pa.RecordBatch, Any]]) -> dict[tuple[str, int], Tried]:
    """What becomes of each record of raw batches, by source and position; each batch comes with its row program (`prepare.row_program`).

    Raises RunError where a program itself fails, or takes more than ten minutes.
    """
    work = [(_bytes(batch), program) for batch, program in batches]
    if not work:
        return {}
    with tempfile.TemporaryDirectory(prefix="beam-pipelines-trial-") as folder:
        given, found = Path(folder, "given"), Path(folder, "found")
        given.write_bytes(pickle.dumps(work))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        _run([sys.executable, "-m", __name__, str(given), str(found)], environment)
        lines = [msgspec.json.decode(line) for path in sorted(Path(folder).glob("found.*")) for line in path.read_bytes().splitlines()]
    failed = next((line["error"] for line in lines if isinstance(line, dict)), None)
    if failed is not None:
        raise RunError(f"dlq replay: trying the records failed: {failed}.", hint="The spec would fail as a whole; `preview` shows where.")
    return {(source, position): Tried(*rest) for source, position, *rest in lines}


def _run(command: list[str], environment: dict[str, str]) -> None:
    trial = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)  # noqa: S603  (ourselves)
    try:
        ended = trial.wait(_LONGEST_S)
    except BaseException as error:  # a record that takes for ever, or somebody who interrupts
        os.killpg(trial.pid, signal.SIGKILL)
        trial.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise RunError(
                f"dlq replay: trying the records took more than {_LONGEST_S} s.", hint="Replay fewer at once: --where, --limit."
            ) from None
        raise
    if ended:
        raise RunError(f"dlq replay: the process that tries the records ended with {ended}.", hint="See what it said above.")


def _bytes(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _try_all(work: list[tuple[bytes, Any]], found: str) -> None:
    number = 0
    for content, program in work:
        batch = pa.ipc.open_stream(content).read_next_batch()
        blocks = [(at, min(at + _BLOCK_ROWS, batch.num_rows)) for at in range(0, batch.num_rows, _BLOCK_ROWS)]
        while blocks:
            start, end = blocks.pop()
            number += 1
            rows = batch.slice(start, end - start)
            if _survives(rows, program, f"{found}.{number:06d}"):
                continue
            if end - start == 1:
                _write(
                    f"{found}.{number:06d}", _identified(rows, Tried("crash", None, "CRASH", "it brings down the process that works on it"))
                )
                continue
            middle = (start + end) // 2
            blocks += [(middle, end), (start, middle)]


def _survives(rows: pa.RecordBatch, program: Any, path: str) -> bool:
    """Whether a fork that works on `rows` lives; what it found is then in the file."""
    child = os.fork()
    if child == 0:
        try:
            _write(path, _outcomes(rows, program))
        except BaseException as error:
            _write(path, [{"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}])
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) == 0


def _outcomes(rows: pa.RecordBatch, program: Any) -> Iterator[tuple[Any, ...]]:
    split = program(rows)
    told: dict[tuple[str, int], Tried] = {}
    times: list[int | None] = [None] * split.rows.num_rows
    if program.event_time in split.rows.schema.names and pa.types.is_timestamp(split.rows.schema.field(program.event_time).type):
        column = split.rows.column(program.event_time)
        times = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64()).to_pylist()
    good = zip(split.rows.column(SOURCE).to_pylist(), split.rows.column(POSITION).to_pylist(), times, strict=True)
    told |= {(source, position): Tried("good", time) for source, position, time in good}
    dead = split.dead.select(["source", "position", "stage", "reason", "message"]).to_pylist()
    told |= {(d["source"], d["position"]): Tried("refused", None, f"{d['stage']}:{d['reason']}", d["message"] or "") for d in dead}
    for source, position in zip(rows.column(SOURCE).to_pylist(), rows.column(POSITION).to_pylist(), strict=True):
        yield source, position, *told.get((source, position), Tried("filtered"))


def _identified(rows: pa.RecordBatch, what: Tried) -> list[tuple[Any, ...]]:
    return [(rows.column(SOURCE)[0].as_py(), rows.column(POSITION)[0].as_py(), *what)]


def _write(path: str, lines: Iterable[Any]) -> None:
    Path(path).write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def _main(given: str, found: str) -> None:
    _try_all(pickle.loads(Path(given).read_bytes()), found)  # noqa: S301  (what `tried` wrote)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
