"""Which process holds something, so that anybody can tell later whether that very process still runs. Loads no Beam."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """A process that can be told from another one with the same pid: `machine` names host, boot and pid namespace."""

    machine: str
    pid: int
    started: str

    @property
    def host(self) -> str:
        """The name of its machine."""
        return self.machine.split("/")[0]

    @property
    def text(self) -> str:
        """For people."""
        return f"process {self.pid} on {self.host}"


def this_process() -> Process:
    """The process that calls."""
    boot = namespace = ""
    with suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return Process(f"{platform.node()}/{boot}/{namespace}", os.getpid(), started(os.getpid()) or "")


def alive(process: Process) -> bool | None:
    """Whether that very process runs; None where it ran on another machine, or before this one was started anew."""
    if process.machine != this_process().machine:
        return None
    return started(process.pid) == process.started


def started(pid: int) -> str | None:
    """When the process started, in ticks since boot; "" where the system does not tell; None if there is no such process."""
    try:
        # proc(5): the name in brackets may hold spaces and brackets; behind it are the state and, as number 22 of all, the start.
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
