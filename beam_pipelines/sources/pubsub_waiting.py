"""Pulled messages that wait to be handed out: many small answers become one element worth its fixed cost."""

from __future__ import annotations

from collections import deque
from itertools import chain
from typing import NamedTuple

import pyarrow as pa

from beam_pipelines.arrow.concat import concat

ENOUGH_ROWS, ENOUGH_BYTES = 60_000, 16 << 20
LINGER_OF_BEHIND, LINGER_MOST_S = 0.1, 2.0


class Parcel(NamedTuple):
    """Messages sorted in together: `since` when the first waits (seconds), `oldest` its oldest arrival by the stream's clock (microseconds),
    `behind_s` how old its newest message was when it came: so far behind the reader is."""

    rows: pa.RecordBatch
    positions: list[int]
    size: int
    since: float
    oldest: int | None
    behind_s: float = 0.0


class Waiting:
    """Parcels in the order in which they came. Not for several threads at once."""

    def __init__(self) -> None:
        self._parcels: deque[Parcel] = deque()
        self._size = 0
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, parcel: Parcel) -> None:
        """One more."""
        self._parcels.append(parcel)
        self._rows, self._size = self._rows + parcel.rows.num_rows, self._size + parcel.size

    def enough(self) -> bool:
        """Whether what waits makes a full element."""
        return self._rows >= ENOUGH_ROWS or self._size >= ENOUGH_BYTES

    def due(self, now: float, *, linger_s: float, last: float) -> bool:
        """Whether an element is worth handing out: a full one, or one whose first message has waited for `linger_s`; `last`: when messages last came.

        Of a backlog an element waits for a tenth of what the stream is behind, as long as messages come: a slow server gives few in `linger_s`, and every
        element has its fixed cost.
        """
        if not self._parcels:
            return False
        if self.enough():
            return True
        waited = now - self._parcels[0].since
        longer_s = min(LINGER_MOST_S, LINGER_OF_BEHIND * self._parcels[-1].behind_s)
        return waited >= linger_s and (waited >= longer_s or now - last >= linger_s)

    def oldest(self) -> int | None:
        """The oldest arrival."""
        return min((p.oldest for p in self._parcels if p.oldest is not None), default=None)

    def take(self) -> list[Parcel]:
        """The parcels of one element, at most one parcel over what is enough."""
        taken: list[Parcel] = []
        rows = size = 0
        while self._parcels and rows < ENOUGH_ROWS and size < ENOUGH_BYTES:
            parcel = self._parcels.popleft()
            taken.append(parcel)
            rows, size = rows + parcel.rows.num_rows, size + parcel.size
        self._rows, self._size = self._rows - rows, self._size - size
        return taken

    def clear(self) -> list[int]:
        """Lets all of them go and gives their positions."""
        positions = list(chain.from_iterable(p.positions for p in self._parcels))
        self._parcels.clear()
        self._rows = self._size = 0
        return positions


def merged(parcels: list[Parcel]) -> tuple[pa.RecordBatch, list[int]]:
    """The rows and positions of several parcels."""
    return concat([p.rows for p in parcels]), list(chain.from_iterable(p.positions for p in parcels))
