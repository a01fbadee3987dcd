"""The watermark of a subscription, on the arrival clock: a promise about messages that nobody has seen yet.

    pulls answer with messages     the oldest arrival pulled within the last second, or waiting to be handed out; and not past what
                                   was pulled before that second, for the first answer need not hold the oldest message
    pulls answer with none (idle)  the newest arrival + the time since, minus a grace: the arrival clock runs on; with publish times the time of day,
                                   minus that grace and what our clock may be fast
                                   (of several processes that read, one may get all messages: then another that is idle follows the farthest)
    pulls fail or do not answer    it stands still
    the archive is being replayed  it is held at the time from which on the archive is replayed

"Now minus a lag when my buffer is empty" would make a whole backlog late: between two answers the buffer is empty too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_NEWEST = 1_000  # arrivals the arrival clock is set by
_IGNORED = 100  # of these one in so many, the newest, may be wrong: one that says now must not make all of a replay late
_PULLS = 100  # by which the service's clock is known
_FAST_MOST = 10_000_000  # microseconds our clock is taken to be fast: what is more may as well be a backlog


@dataclass(frozen=True)
class Patience:
    """How long the watermark looks back, when a subscription counts as idle, and how far it then stays behind, in seconds."""

    lookback_s: float = 1.0
    idle_s: float = 2.0
    grace_s: float = 1.0


class Watermark:
    """What is promised, in microseconds of the arrival clock; it never goes back. Not for several threads at once.

    It begins at `start`, and stays there as long as it is `held`. `publish_clock` says that arrivals are publish times: then an idle subscription is as late as it is, whatever came last.
    `now_s` is a monotonic clock, `wall_micros` the time of day; tests crank both by hand.
    """

    def __init__(
        self, *, publish_clock: bool, start: int | None = None, held: bool = False, patience: Patience = Patience(),
        now_s: Callable[[], float] = time.monotonic, wall_micros: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:  # fmt: skip
        self._publish_clock = publish_clock
        self._patience = patience
        self._now_s, self._wall_micros = now_s, wall_micros
        self._reported = start
        self._held = held
        self._quiet_since = self._set_at = self._answered = now_s()  # the last sign that messages may wait; the last message
        self._no_message: float | None = None  # the last answer without one
        self._lately: deque[tuple[float, npt.NDArray[np.int64]]] = deque()  # what was pulled within the last second
        self._newest = np.empty(0, np.int64)  # of what was pulled before
        self._old: deque[int] = deque(maxlen=_PULLS)  # microseconds, by our clock, since the newest message of an answer was published
        self._warm = False

    def begin(self) -> None:
        """Pulling begins (again): what was handed back may come first."""
        self._stirred()
        self._warm = False
        self._lately = deque((self._quiet_since, arrivals) for _, arrivals in self._lately)

    def pulled(self, arrivals: npt.NDArray[np.int64]) -> None:
        """An answer with messages; `arrivals` may leave out those whose time is not of this clock."""
        self._stirred()
        self._answered = self._quiet_since
        if len(arrivals):
            self._lately.append((self._quiet_since, arrivals))
            self._set_at = self._quiet_since
            self._old.append(self._wall_micros() - int(arrivals.max()))

    def replayed(self, arrivals: npt.NDArray[np.int64]) -> None:
        """Messages of the archive: they set the arrival clock, not the watermark."""
        if len(arrivals):
            self._clock(arrivals)
            self._set_at = self._now_s()

    def nothing(self) -> None:
        """An answer without messages: the subscription can be reached and has none."""
        self._no_message = self._answered = self._now_s()

    def failed(self) -> None:
        """A pull failed: nobody knows what waits."""
        self.begin()

    def hold(self) -> None:
        """Messages may be out that nobody knows of: it stays where it is until `release`."""
        self._held = True

    def release(self) -> None:
        """The replay is done, and what was out is back."""
        self._held = False
        self.begin()

    def stamp(self, arrivals: npt.NDArray[np.int64]) -> int:
        """The timestamp of an element with these arrivals: the oldest, or what was reported where that has passed it."""
        oldest = int(arrivals.min())
        return oldest if self._reported is None else max(oldest, self._reported)

    @property
    def reported(self) -> int | None:
        """What `read` gave last."""
        return self._reported

    def read(self, waiting: int | None = None, others: int | None = None) -> int | None:
        """The watermark, if the oldest message that was pulled and not yet handed out arrived at `waiting`; None: nothing is known.

        `others` is what another process that reads the subscription has promised: while it is idle here there is no more to know, and what holds that one back it holds itself.
        """
        if self._held:
            return self._reported
        promised = self._promised(others)
        if promised is not None and waiting is not None:
            promised = min(promised, waiting)
        if promised is not None and (self._reported is None or promised > self._reported):
            self._reported = promised
        return self._reported

    def _promised(self, others: int | None) -> int | None:
        now = self._now_s()
        while self._lately and self._lately[0][0] <= self._answered - self._patience.lookback_s:  # silence proves nothing
            self._clock(self._lately.popleft()[1])
            self._warm = True
        if self._is_idle(now):
            return self._idle(now, others)
        if not self._warm:
            return None
        return min([self._arrival_clock(), *(int(arrivals.min()) for _, arrivals in self._lately)])

    def _is_idle(self, now: float) -> bool:
        quiet = self._patience.idle_s
        return self._no_message is not None and now - self._quiet_since > quiet and now - self._no_message <= 2 * quiet

    def _idle(self, now: float, others: int | None) -> int | None:
        grace = round(self._patience.grace_s * 1e6)
        of_day = [self._wall_micros() - self._fast() - grace] if self._publish_clock else []
        run_on = [self._arrival_clock() + round((now - self._set_at) * 1e6) - grace] if len(self._newest) else []
        return max(of_day + run_on + ([] if others is None else [others]), default=None)

    def _fast(self) -> int:
        """How fast our clock is at most: no message is pulled before it is published."""
        return min(max(0, min(self._old, default=0)), _FAST_MOST)

    def _stirred(self) -> None:
        self._quiet_since, self._no_message = self._now_s(), None

    def _clock(self, arrivals: npt.NDArray[np.int64]) -> None:
        self._newest = np.concatenate((self._newest, arrivals))[-_NEWEST:]

    def _arrival_clock(self) -> int:
        rank = len(self._newest) - 1 - len(self._newest) // _IGNORED
        return int(np.partition(self._newest, rank)[rank])
