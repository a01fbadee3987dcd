"""Checks that are made before a job, and what each has found: all at once, and none for longer than its patience."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NoReturn

from beam_pipelines.errors import BeamPipelinesError

State = Literal["good", "warning", "bad", "not looked at"]
PATIENCE_S = 10.0
Late = Literal["bad", "not looked at"]
LATE: dict[Late, str] = {
    "bad": "Check the network, the endpoint and the credentials.",
    "not looked at": "There may be much to read; else check the network, the endpoint and the credentials.",
}
"""What to do about a check that is not done in time, by its state."""
_THREAD = "check "


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, what was seen, and what to do about it."""

    check: str
    state: State
    found: str
    do: str = ""


@dataclass(frozen=True)
class DoctorCheck:
    """`look` gives findings, one after the other; what it raises is a finding, too. `late` is the state where it is not done in time: "bad" where somebody should have
    answered, "not looked at" where there may just be much to read."""

    name: str
    look: Callable[[], Iterable[Finding]]
    late: Late = "bad"


def checks_of(name: str, make: Callable[[], Iterable[DoctorCheck]]) -> list[DoctorCheck]:
    """The checks that `make` gives; where it raises, one called `name` that says so."""
    try:
        return list(make())
    except Exception as error:
        return [DoctorCheck(name, partial(_raise, error))]


def _raise(error: Exception) -> NoReturn:
    raise error


@dataclass
class _Look:
    check: DoctorCheck
    found: list[Finding] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        try:
            for finding in self.check.look():
                self.found.append(finding)
        except BeamPipelinesError as error:
            self.found.append(Finding(self.check.name, "bad", error.message, error.hint))
        except Exception as error:  # one check that breaks says so, and ends no other
            self.found.append(Finding(self.check.name, "bad", f"{type(error).__name__}: {error}"))
        self.done.set()


def look_at(checks: Sequence[DoctorCheck], *, patience_s: float = PATIENCE_S) -> list[Finding]:
    """The findings of all checks, in their order; all begin at once, and what is not done after `patience_s` is left behind."""
    looks = [_Look(check) for check in checks]
    deadline = time.monotonic() + patience_s
    for look in looks:
        threading.Thread(target=look, name=f"{_THREAD}{look.check.name}", daemon=True).start()
    found: list[Finding] = []
    for look in looks:
        in_time = look.done.wait(max(0.0, deadline - time.monotonic()))
        found += tuple(look.found)
        if not in_time:
            late = look.check.late
            found.append(Finding(look.check.name, late, f"not done within {patience_s:g} s", LATE[late]))
    return found


def left_behind() -> bool:
    """Whether a check is still under way in this process."""
    return any(thread.name.startswith(_THREAD) for thread in threading.enumerate())
