"""ORC decoded in a child process: damaged bytes may bring Arrow's ORC reader down (SIGSEGV), or make it take all memory.

    IsolatedOrc ── ["open", size] · ["stripe", number, columns, rows] ──▶ child
                ◀── ["read", offset, size] ── bytes ──▶                    the stream stays here, with its credentials and its errors
                ◀── ["opened", names, n] and the file's tail · ["batches"] and an Arrow IPC stream · ["failed", why]

A child has one file at a time and then waits for the next: a process has as many as it ever read ORC files at once, and they end with it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import pyarrow as pa
import pyarrow.orc as pa_orc

from beam_pipelines.errors import RunError
from beam_pipelines.formats.columnar import BATCH_ROWS, names_of

LONGEST_S = 300
"""How long a child may work on one request; the time it waits for bytes, or for who takes its batches, does not count."""
MOST_BYTES = 8 * 2**30
"""How much memory a child may take, of which a stripe is the most: a few bytes may claim lists of any length."""
COMMAND = (sys.executable, "-P", "-m", "beam_pipelines.formats.orc_child")


class UnreadableError(Exception):
    """Bytes that the ORC reader refuses, or that end it."""


class _EndedError(UnreadableError):
    """The child has died over its work."""


class IsolatedOrc:
    """One ORC file, which a child decodes. An OSError of `stream` passes through. Close it: the child is then free for another file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._size = stream.seek(0, os.SEEK_END)
        self._child: _Child | None = None  # at rest, and has the file open

    def open(self) -> tuple[list[str], bytes]:
        """The names of the columns, and the file's tail: a protobuf message FileTail. Raises UnreadableError."""
        _, names, tail = self._asked("open", self._size)
        return names, tail

    def stripe(self, number: int, *, columns: list[str] | None, rows: int) -> Iterator[pa.RecordBatch]:
        """The `rows` rows of a stripe, in batches of up to BATCH_ROWS. Raises UnreadableError, also behind the first batches."""
        self._asked("stripe", number, columns, rows)
        child, self._child = self._child, None
        assert child is not None
        try:
            yield from child.batches()
        except BaseException:
            child.end()
            raise
        self._child = child

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.send("close")
            idle.append(child)

    def _asked(self, *request: Any) -> list[Any]:
        """The answer. A child that died is asked for twice: a kill from outside (out of memory) looks like a crash, but happens once."""
        try:
            return self._ask(*request)
        except _EndedError:
            return self._ask(*request)

    def _ask(self, *request: Any) -> list[Any]:
        if self._child is None and request[0] != "open":
            self._ask("open", self._size)
        child, self._child = self._child or _free(), None
        try:
            child.send(*request)
            while (answer := child.answer())[0] == "read":
                _, offset, size = answer
                self._stream.seek(offset)
                child.give(self._stream.read(size))
        except BaseException:
            child.end()
            raise
        self._child = child
        if answer[0] == "failed":
            raise UnreadableError(answer[1])
        return answer


class _Child:
    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._process = subprocess.Popen(  # noqa: S603  (ourselves)
            COMMAND, env=environment, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._of = self._process.stdin, self._process.stdout
        if not self._of.readline():
            raise RunError(
                f"The process that decodes ORC did not start: it ended with {self._process.wait()}.",
                hint=f"See what it says: {shlex.join(COMMAND)}",
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, *request: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # who waits for the answer learns it
            _tell(self._to, *request)

    def give(self, content: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            _tell(self._to, len(content), content=content)

    def answer(self) -> list[Any]:
        """The next message; that of an opened file ends in the file's tail. Raises UnreadableError."""
        try:
            message: list[Any] = json.loads(self._of.readline())
            return [*message[:-1], self._of.read(message[-1])] if message[0] == "opened" else message
        except ValueError as error:
            raise self._ended() from error

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The batches of an IPC stream. Raises UnreadableError."""
        try:
            yield from pa.ipc.open_stream(pa.PythonFile(self._of, mode="r"))
        except Exception as error:  # any of pyarrow's, OSError among them
            raise self._ended() from error

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._of):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _ended(self) -> UnreadableError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(1)  # its pipe closes before it can be waited for
            if status == -signal.SIGALRM:
                return UnreadableError(f"these bytes keep the ORC reader busy for more than {LONGEST_S} s")
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            return _EndedError(f"these bytes bring the ORC reader down ({how})")
        return UnreadableError("these bytes confuse the ORC reader: what it gives is no batch")


idle: list[_Child] = []
"""Children that wait for a file."""


def _free() -> _Child:
    while True:
        try:
            child = idle.pop()
        except IndexError:
            return _Child()
        if child.alive():
            return child


def end_idle() -> None:
    while idle:
        idle.pop().end()


os.register_at_fork(after_in_child=idle.clear)  # they are the parent's
atexit.register(end_idle)


def _tell(to: IO[bytes], *message: Any, content: bytes = b"") -> None:
    to.write(json.dumps(message).encode() + b"\n")
    to.write(content)
    to.flush()


class _Asked:
    """In the child: the file, whose bytes the parent is asked for."""

    closed = False

    def __init__(self, size: int, given: IO[bytes], told: IO[bytes]) -> None:
        self._size, self._given, self._told = size, given, told
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        left_s = signal.alarm(0)
        _tell(self._told, "read", self._at, left if size < 0 else min(size, left))
        content = self._given.read(json.loads(self._given.readline())[0])
        signal.alarm(left_s)
        self._at += len(content)
        return content

    def close(self) -> None:
        self.closed = True


def serve(longest_s: int = LONGEST_S) -> None:
    """Answers requests on standard input until the parent is gone. Nothing handles the alarm: it ends the process, wherever in the reader it is."""
    given, told = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints, prints elsewhere
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    with contextlib.suppress(OSError):  # Linux: where memory runs out, the parent is not the one to go
        Path("/proc/self/oom_score_adj").write_text("1000")
    _tell(told, "ready")
    file: Any = None
    while line := given.readline():
        word, *rest = json.loads(line)
        if word == "close":
            file = None
            continue
        signal.alarm(longest_s)
        try:
            if word == "open":
                file = pa_orc.ORCFile(pa.PythonFile(_Asked(rest[0], given, told), mode="r"))
                names, tail = names_of(file.schema), file.reader.serialized_file_tail()
            else:
                stripe = _stripe(file, *rest)
        except Exception as error:  # corrupt bytes surface as any of pyarrow's exceptions
            signal.alarm(0)
            _tell(told, "failed", str(error) or type(error).__name__)
            continue
        signal.alarm(0)
        if word == "open":
            _tell(told, "opened", names, len(tail), content=tail)
        else:
            _tell(told, "batches")
            _write(told, stripe)
            del stripe


def _stripe(file: pa_orc.ORCFile, number: int, columns: list[str] | None, rows: int) -> pa.RecordBatch:
    batch = file.read_stripe(number, columns=columns)
    if batch.num_rows != rows:
        raise ValueError(f"only {batch.num_rows} of {rows} rows came")
    return batch


def _write(told: IO[bytes], stripe: pa.RecordBatch) -> None:
    with pa.ipc.new_stream(told, stripe.schema) as out:
        for at in range(0, stripe.num_rows, BATCH_ROWS):
            out.write_batch(stripe.slice(at, BATCH_ROWS))
    told.flush()


if __name__ == "__main__":
    serve()
