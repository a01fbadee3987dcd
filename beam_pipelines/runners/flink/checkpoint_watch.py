"""Whether a stream's checkpoints are completed: said where they are not for long, and when they are again. Messages are acknowledged by them alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from beam_pipelines.errors import RunError
from beam_pipelines.runners.flink.rest import Checkpoints, FlinkRest

LOOK_EVERY_S = 5.0
QUIET_S = 30.0
"""So long, and for three intervals, and three times as long as the last one took, nothing is said; then again after twice, four times … as long."""
_WAITS = "INITIALIZING"
LOST_S = 1_800.0
"""After that the stream is to be started anew: something may hang that a new job does not have, and in as long again leases end."""

_NONE = Checkpoints(0, 0, 0, 0, None, None)

Say = Callable[[str], None]


@dataclass
class CheckpointWatch:
    """Call it now and then with the job's id and state. `clock` is monotonic, in seconds."""

    rest: FlinkRest
    say: Say
    clock: Callable[[], float] = time.monotonic
    _interval_s: float | None = None
    _look_at: float = 0.0
    _seen: Checkpoints | None = None
    _since: float = 0.0
    _told: int = 0

    def __call__(self, job: str, state: str = "RUNNING") -> str | None:
        """Why the stream is to be started anew, if it is."""
        now = self.clock()
        if now < self._look_at:
            return None
        self._look_at = now + LOOK_EVERY_S
        try:
            found = _NONE if state == _WAITS else self.rest.checkpoints(job)
            if self._interval_s is None and state != _WAITS:
                self._interval_s = (self.rest.checkpoint_interval_ms(job) or 0) / 1000
        except RunError:  # a job manager that is away or has just come back
            return None
        if self._seen is None or found.completed != self._seen.completed:
            if self._told and self._seen is not None and found.completed > self._seen.completed:  # less: a job manager that counts anew
                self.say(f"a checkpoint is complete again, after {now - self._since:.0f} s.")
            self._seen, self._since, self._told = found, now, 0
        return self._waited(now - self._since, found, state)

    def _waited(self, seconds: float, found: Checkpoints, state: str) -> str | None:
        last_s = 0.0 if found.latest is None else found.latest.duration_ms / 1000
        quiet_s = max(QUIET_S, 3 * (self._interval_s or 0.0), 3 * last_s)
        if seconds >= max(LOST_S, 2 * quiet_s):
            return f"no checkpoint was complete for {seconds / 60:.0f} minutes: {self._why(found, state)}"
        if seconds >= quiet_s * 2**self._told:
            self._told += 1
            self.say(f"no checkpoint is complete for {seconds:.0f} s: {self._why(found, state)}. Messages are held until one is.")
        return None

    def _why(self, found: Checkpoints, state: str) -> str:
        """What became of those since the last complete one."""
        if state == _WAITS:
            return "Flink has not begun the job, for it makes their folders first"
        assert self._seen is not None
        failed = found.failed - self._seen.failed if found.failure else 0  # those that could not be begun are counted, without a reason
        parts = [f"{failed} failed, the last with '{(found.failure or '').rstrip('.')}'"] if failed > 0 else []
        parts += ["one is under way"] if found.in_progress else []
        return ", ".join(parts) or "none was begun"
