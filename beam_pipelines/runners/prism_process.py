"""The Prism process: started for one launcher, found again by nobody else, and gone when the launcher is, however that dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from beam_pipelines.errors import RunError

_START_TIMEOUT_S = 30.0
_LONGEST_ERROR = 500
# Prism runs up to 8 bundles at once and spins while it waits for each one's answer. With a Go thread per core (its default) two of
# them keep a small machine's threads busy, and what reads the answer waits for Go's 10 ms pre-emption: 30 ms of CPU per bundle, not 6.
_GO_THREADS = str((os.cpu_count() or 1) + 8)
# Prism and a watcher are a process group of their own. The watcher reads a pipe whose other end only the launcher holds: when the
# launcher ends, in whatever way, the read ends and the watcher kills the group, itself included. So no process is ever killed that is
# not of the group, and Ctrl-C in a terminal reaches the launcher alone, which decides what to do. (PR_SET_PDEATHSIG would fire when the
# *thread* that started Prism ends, and exists on Linux only.) A background job of a shell has no standard input, hence file 3.
_OWNED = 'exec 3<&0 0</dev/null; (read -r _ <&3; kill -9 0) & exec 3<&-; exec "$@"'


@dataclass(frozen=True)
class PrismServer:
    """A running Prism: where jobs are handed in (`host:port`), its process id and its log."""

    endpoint: str
    pid: int
    log: Path
    process: subprocess.Popen[bytes]

    def ended(self, *, grace_s: float = 0.0) -> int | None:
        """The exit code if Prism has ended (negative: the signal) or does within `grace_s`, else None."""
        try:
            return self.process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            return None

    def last_errors(self, count: int = 3) -> str:
        """The last errors in Prism's log in one line; empty where there are none."""
        return last_errors(self.log, count)


@contextlib.contextmanager
def prism_server(program: Path, *, keep_logs: bool = False, debug: bool = False) -> Iterator[PrismServer]:
    """Prism on a free port for as long as the block lasts.

    The process ends with the block, and also when this process is killed. Its log goes to a file that is removed unless `keep_logs`
    or unless the exception that ends the block names it. Raises RunError where Prism does not start.
    """
    handle, name = tempfile.mkstemp(prefix="beam-pipelines-prism-", suffix=".log")
    named = False
    try:
        with open(handle, "wb") as out, _process(program, out.fileno(), debug) as process:
            yield _ready(process, Path(name))
    except BaseException as error:
        named = name in str(error)
        raise
    finally:
        if not (named or keep_logs):
            os.unlink(name)


@contextlib.contextmanager
def _process(program: Path, log: int, debug: bool) -> Iterator[subprocess.Popen[bytes]]:
    # Port 0: the kernel chooses one that is free, and there is no moment in which another process could take it.
    arguments = ["--job_port=0", "--serve_http=false", "--log_kind=json", f"--log_level={'debug' if debug else 'info'}"]
    process = subprocess.Popen(  # noqa: S603  (a program that the user chose or that we made)
        ["/bin/sh", "-c", _OWNED, "sh", str(program), *arguments],
        stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "GOMAXPROCS": _GO_THREADS},
    )  # fmt: skip
    try:
        yield process
    finally:
        # Not reaped before its group is killed, so the number is still this group's.
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says PermissionError of a group of zombies
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _ready(process: subprocess.Popen[bytes], log: Path) -> PrismServer:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        endpoint = _endpoint(log)
        if endpoint is not None:
            return _connected(PrismServer(endpoint, process.pid, log, process), deadline)
        try:
            process.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        raise _not_started(log, f"it ended with code {process.returncode}")
    raise _not_started(log, f"it named no port within {_START_TIMEOUT_S:.0f} s")


def _connected(server: PrismServer, deadline: float) -> PrismServer:
    host, _, port = server.endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=max(1.0, deadline - time.monotonic())).close()
    except OSError as error:
        raise _not_started(server.log, f"nothing answers at {server.endpoint}: {error}") from None
    return server


def _endpoint(log: Path) -> str | None:
    for entry in _entries(log):
        if entry.get("msg") == "Serving JobManagement":
            return str(entry["endpoint"]).replace("localhost", "127.0.0.1")
    return None


def _not_started(log: Path, why: str) -> RunError:
    return RunError(f"Prism does not start: {why}. {last_errors(log)}".rstrip(), hint=f"Prism's log: {log}")


def last_errors(log: Path, count: int = 3) -> str:
    """The last errors in a log of Prism in one line; empty where there are none."""
    errors = (entry for entry in _entries(log) if str(entry.get("level", "")).startswith("ERROR"))
    return " | ".join(_sentence(entry) for entry in deque(errors, maxlen=count))


def _sentence(entry: dict[str, object]) -> str:
    rest = [f"{k}={v}" for k, v in entry.items() if k not in ("time", "level", "source", "msg", "worker")]
    return " ".join([str(entry.get("msg", "")), *rest]).strip()[:_LONGEST_ERROR]


def _entries(log: Path) -> Iterator[dict[str, object]]:
    """What the log says, line by line; what is no JSON (a panic of Go) as a message of its own."""
    with open(log, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"msg": line.rstrip(), "level": "ERROR"}
            if isinstance(entry, dict):
                yield entry
