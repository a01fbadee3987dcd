"""How much waits between the bundles of the source and the first keyed stage: what the source asks before it hands out more.

    source ─▶ prepare ─▶ left(rows) ═══ the runner's memory ═══▶ taken(rows) ─▶ keyed state
       ▲                                                                │
       └────────────── full(): nothing more for the moment ◀────────────┘

Prism takes from a source whatever it gives, however far behind the keyed stages are, and holds the rest in memory. So a local stream bounds it here.
Process-wide, and off until `limit` is called: where source and keyed stages run in different processes nobody would see what is taken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MOST_BYTES = 256 << 20
# Rows may wait for the watermark, and the watermark for a message that the source has not handed out yet: then one element goes all the same.
PATIENCE_S = 1.0


class BackPressure:
    """The account. Rows are counted exactly; bytes are the rows that wait, at the average size of all that left. For any thread."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self.limit(None)

    def limit(self, most_bytes: int | None) -> None:
        """Begins anew; more than `most_bytes` shall not wait. None: no bound, nothing is full."""
        with self._lock:
            self._most = most_bytes
            self._rows = self._left_rows = self._left_bytes = 0
            self._moved_s = self._now_s()

    def left(self, rows: int, size: int) -> None:
        """Rows of `size` bytes were handed to the runner on their way to keyed state."""
        with self._lock:
            self._rows += rows
            self._left_rows += rows
            self._left_bytes += size

    def taken(self, rows: int) -> None:
        """A keyed stage has got these rows from the runner."""
        with self._lock:
            self._rows = max(0, self._rows - rows)
            self._moved_s = self._now_s()

    @property
    def waiting_bytes(self) -> int:
        """What waits, about."""
        return self._rows * self._left_bytes // max(1, self._left_rows)

    def full(self) -> bool:
        """Whether a source should give nothing for the moment. Now and then False although nothing moves: see PATIENCE_S."""
        with self._lock:
            if self._most is None or self.waiting_bytes <= self._most:
                return False
            if self._now_s() - self._moved_s < PATIENCE_S:
                return True
            self._moved_s = self._now_s()
            return False


_here = BackPressure()
limit, left, taken, full = _here.limit, _here.left, _here.taken, _here.full
