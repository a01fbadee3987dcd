"""A process that is ours alone: its own group, its output in a log, and gone when this process is, however that ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beam_pipelines.errors import RunError

_LOOK_S = 0.02
# The program and a watcher are a process group of their own. The watcher reads a pipe whose other end only the launcher holds: when the
# launcher ends, in whatever way, the read ends and the watcher kills the group, itself included. So no process is ever killed that is
# not of the group, and Ctrl-C in a terminal reaches the launcher alone, which decides what to do. (PR_SET_PDEATHSIG would fire when the
# *thread* that started the program ends, and exists on Linux only.) A background job of a shell has no standard input, hence file 3.
_OWNED = 'exec 3<&0 0</dev/null; (read -r _ <&3; kill -9 0) & exec 3<&-; exec "$@"'


@dataclass(frozen=True)
class OwnedProcess:
    """A running process and the file that holds what it prints."""

    process: subprocess.Popen[bytes]
    log: Path

    def ended(self, *, grace_s: float = 0.0) -> int | None:
        """The exit code if it has ended (negative: the signal) or does within `grace_s`, else None."""
        try:
            return self.process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            return None


def endpoint_of(
    owned: OwnedProcess, named: Callable[[Path], str | None], *, what: str, errors: Callable[[Path], str], timeout_s: float
) -> str:
    """`host:port` that `named` finds in the log of a server that starts, once somebody answers there.

    Raises RunError, with the last `errors` of the log, where `what` ends, names no port within `timeout_s`, or does not answer.
    """
    deadline = time.monotonic() + timeout_s
    why = f"it named no port within {timeout_s:.0f} s"
    while time.monotonic() < deadline:
        endpoint = named(owned.log)
        if endpoint is not None:
            host, _, port = endpoint.rpartition(":")
            try:
                socket.create_connection((host, int(port)), timeout=max(1.0, deadline - time.monotonic())).close()
                return endpoint
            except OSError as error:
                why = f"nothing answers at {endpoint}: {error}"
                break
        code = owned.ended(grace_s=_LOOK_S)
        if code is not None:
            why = f"it ended with code {code}"
            break
    raise RunError(f"{what} does not start: {why}. {errors(owned.log)}".rstrip(), hint=f"{what}'s log: {owned.log}")


@contextlib.contextmanager
def owned_process(
    command: Sequence[str], *, name: str, environment: Mapping[str, str] | None = None, keep_log: bool = False
) -> Iterator[OwnedProcess]:
    """`command` for as long as the block lasts. Its log is removed with the block unless `keep_log`, or the exception that ends the block names it."""
    handle, log = tempfile.mkstemp(prefix=f"beam-pipelines-{name}-", suffix=".log")
    named = False
    try:
        with open(handle, "wb") as out, _group(command, out.fileno(), {**os.environ, **(environment or {})}) as process:
            yield OwnedProcess(process, Path(log))
    except BaseException as error:
        named = log in str(error)
        raise
    finally:
        if not (named or keep_log):
            os.unlink(log)


@contextlib.contextmanager
def _group(command: Sequence[str], log: int, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(  # noqa: S603  (a program that the user chose or that we made)
        ["/bin/sh", "-c", _OWNED, "sh", *command],
        stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, env=dict(environment),
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
