"""A process that outlives the one that starts it, and is ended later by whoever knows its number: never another that got the number since."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beam_pipelines.sinks.owners import started

_MARK = "BEAM_PIPELINES_PART"
_POLL_S = 0.02
_LINUX = Path("/proc/self/stat").exists()  # not sys.platform: mypy would take the rest for unreachable
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class LastingProcess:
    """A process by its number and when it began (in what unit, only this module knows); `mark` is in its environment and its children's."""

    pid: int
    began: str
    mark: str


def start(command: Sequence[str], *, folder: Path, log: Path, mark: str, environment: Mapping[str, str] = os.environ) -> LastingProcess:
    """Starts `command` in `folder` as a session of its own: no terminal, no Ctrl-C, no pipe ends it. What it prints is added to `log`.

    Raises OSError where the log cannot be written.
    """
    shell = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', str(folder), *command]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    log.touch()  # posix_spawn reports no failing open
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    ignored_by_python = [number for number in (signal.SIGPIPE, signal.SIGXFSZ) if signal.getsignal(number) == signal.SIG_IGN]
    pid = os.posix_spawn(
        shell[0], shell, {**environment, _MARK: mark}, file_actions=files, setsid=True, setsigdef=ignored_by_python
    )  # fmt: skip
    return LastingProcess(pid, _began(pid) or "", mark)


def alive(process: LastingProcess) -> bool:
    """Whether that very process still runs."""
    with contextlib.suppress(ChildProcessError):  # not our child, or gathered before
        os.waitpid(process.pid, os.WNOHANG)
    return bool(process.began) and _began(process.pid) == process.began


def members(process: LastingProcess) -> list[int]:
    """The numbers of the process, if it runs, and of all that it started. Elsewhere than on Linux: of the process alone."""
    own = [process.pid] if alive(process) else []
    return own + [pid for pid in _marked(process.mark) if pid != process.pid]


def kill(process: LastingProcess) -> None:
    """kill -9, of the process alone; returns when it is gone."""
    if alive(process):
        _signal(process.pid, signal.SIGKILL)
        _wait_until_gone(process, 10.0)


def end(process: LastingProcess, *, grace_s: float = 10.0) -> None:
    """Ends the process and all that it started: asks it to end, and after `grace_s` ends what is left. Returns when nothing is."""
    if alive(process):
        _signal(process.pid, signal.SIGTERM)
        _wait_until_gone(process, grace_s)
    deadline = time.monotonic() + grace_s
    while (left := members(process)) and time.monotonic() < deadline:
        for pid in left:
            _signal(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait_until_gone(process: LastingProcess, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while alive(process) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _began(pid: int) -> str | None:
    """When a process began; None where there is none, or only its zombie."""
    if _LINUX:
        ticks = started(pid)
        return None if ticks is None else f"{_BOOT.read_text().strip()} {ticks}"
    asked = ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)]
    state, _, began = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip().partition(" ")  # noqa: S603  (ps)
    return None if not state or state.startswith("Z") else began.strip()


def _marked(mark: str) -> Iterator[int]:
    wanted = f"{_MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)
