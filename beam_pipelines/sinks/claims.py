"""Claims: one run at a time writes an output. Loads no Beam.

The launcher claims the outputs before the job starts, so that the second of two runs fails at once and not after an hour; the commit
claims again, which costs nothing for the same attempt of the same run and covers a launcher that is gone. A claim is a file in the
output's staging folder, naming the run and the process.

A claim is *stale*, and taken over, if its process ran on this machine and is dead, or if it is from elsewhere and was not renewed for
six hours. A claim of a living run is never taken: `SinkError`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec

from beam_pipelines.errors import SinkError
from beam_pipelines.places import create_new, delete, join, locked, prune_folders, read_bytes, write_bytes
from beam_pipelines.sinks.run import Output, RunInfo, utc_now

STALE_AFTER = timedelta(hours=6)
CLAIM = "claim.json"


@dataclass(frozen=True)
class Process:
    """A process that can be told from another one with the same pid: `machine` names host, boot and pid namespace."""

    machine: str
    pid: int
    started: str

    @property
    def text(self) -> str:
        return f"process {self.pid} on {self.machine.split('/')[0]}"


@dataclass(frozen=True)
class Claim:
    """Who writes an output."""

    run_id: str
    attempt: str
    owner: Process
    taken_at: str
    renewed_at: str


def claim(outputs: Sequence[Output], run: RunInfo) -> None:
    """Takes all outputs for this attempt of the run, or none of them.

    Raises SinkError where a living run holds one. Claiming again renews.
    """
    taken: list[Output] = []
    try:
        for output in outputs:
            if _take(output, run):
                taken.append(output)  # noqa: PERF401  (what is taken must be known when one is refused)
    except BaseException:
        release(taken, run)
        raise


def release(outputs: Sequence[Output], run: RunInfo) -> None:
    """Gives the outputs back, where this attempt of the run holds them."""
    for output in outputs:
        held = holder(output)
        if held is not None and _same(held, run):
            delete(_path(output))
            prune_folders(output.staging, output.folder)


def holder(output: Output) -> Claim | None:
    """The claim on an output, stale or not; None if nobody holds it."""
    content = read_bytes(_path(output))
    if content is None:
        return None
    try:
        return msgspec.json.decode(content, type=Claim)
    except msgspec.DecodeError:  # not ours, or from a future version: treat as taken by an unknown run
        return Claim("(unreadable)", "", Process("?", 0, ""), "", utc_now())


def stale(held: Claim) -> bool:
    """Whether the claim's run is certainly dead, or long silent."""
    here = this_process()
    if held.owner.machine == here.machine:
        return _started(held.owner.pid) != held.owner.started
    return datetime.now(UTC) - datetime.fromisoformat(held.renewed_at) > STALE_AFTER


def this_process() -> Process:
    """The process that calls."""
    boot = namespace = ""
    with suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return Process(f"{platform.node()}/{boot}/{namespace}", os.getpid(), _started(os.getpid()) or "")


def _take(output: Output, run: RunInfo) -> bool:
    """True if the claim is new, False if it was ours."""
    now = utc_now()
    mine = Claim(run.run_id, run.attempt, this_process(), now, now)
    with locked(output.folder):
        held = holder(output)
        if held is not None and _same(held, run):
            write_bytes(_path(output), msgspec.json.encode(replace(held, renewed_at=now)))
            return False
        if held is not None and not stale(held):
            raise _busy(output, held)
        if held is not None:
            delete(_path(output))
        if not create_new(_path(output), msgspec.json.encode(mine)):
            other = holder(output)
            raise _busy(output, other or mine)
    return True


def _busy(output: Output, held: Claim) -> SinkError:
    return SinkError(
        f"output '{output.name}' ({output.path}): run '{held.run_id}' writes it ({held.owner.text}, since {held.taken_at}); expected no other run.",
        hint=f"Wait until it has ended. If you know that it is dead, delete {_path(output)}.",
    )


def _same(held: Claim, run: RunInfo) -> bool:
    return (held.run_id, held.attempt) == (run.run_id, run.attempt)


def _path(output: Output) -> str:
    return join(output.staging, CLAIM)


def _started(pid: int) -> str | None:
    """When the process started, in ticks since boot; "" where the system does not tell; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie writes nothing any more
    except (FileNotFoundError, ProcessLookupError):
        if os.path.exists("/proc/self/stat"):
            return None
    try:
        os.kill(pid, 0)  # no /proc: signal 0 asks only whether the process exists
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""
