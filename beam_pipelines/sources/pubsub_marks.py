"""Checkpoint marks of a subscription: what was handed out up to each, and when a finalized one may be acknowledged.

A coded mark is a token. What it stands for stays in this process: ack ids are worth nothing elsewhere, and a mark of another process
has nothing to say here.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_TOGETHER_S = 0.5  # finalizations with less than this between them follow from one checkpoint


@dataclass(frozen=True)
class _Mark:
    cut_at: float
    positions: list[int]


class Marks:
    """The marks of one subscription in this process. Not for several threads at once.

    `lag` 0: a finalized mark is ripe. `lag` 1: a mark is ripe when finalizations come that follow from a later checkpoint than one that
    came after it was cut. Flink needs this: with a checkpoint it also finalizes bundles that ended after the checkpoint's barrier, which
    are not in the checkpoint. Marks finalized out of order, twice, or never do no harm.
    """

    def __init__(self, *, lag: int = 0, now_s: Callable[[], float] = time.monotonic) -> None:
        self._lag = lag
        self._now_s = now_s
        self._open: dict[str, _Mark] = {}
        self._finalized: list[_Mark] = []
        self._checkpoints: deque[float] = deque(maxlen=lag + 1)
        self._last = float("-inf")
        self.last: str | None = None
        """The newest token."""

    def __len__(self) -> int:
        return len(self._open) + len(self._finalized)

    def cut(self, positions: list[int]) -> str:
        """A token for what was handed out since the last mark."""
        token = uuid.uuid4().hex
        self._open[token] = _Mark(self._now_s(), positions)
        self.last = token
        return token

    def finalize(self, token: str) -> list[int]:
        """The positions that are ripe now that the runner has committed the bundle of `token`."""
        mark = self._open.pop(token, None)
        if mark is None:
            return []
        now = self._now_s()
        if now - self._last >= _TOGETHER_S:
            self._checkpoints.append(now)
        self._last = now
        self._finalized.append(mark)
        return self._ripe()

    def _ripe(self) -> list[int]:
        if not self._lag:
            limit = float("inf")
        elif len(self._checkpoints) <= self._lag:
            return []
        else:
            limit = self._checkpoints[0]
        ripe = [p for mark in self._finalized if mark.cut_at < limit for p in mark.positions]
        self._finalized = [mark for mark in self._finalized if mark.cut_at >= limit]
        return ripe

    def rest(self) -> list[int]:
        """The positions that are finalized and not yet ripe; the last question of all."""
        finalized, self._finalized = self._finalized, []
        return [p for mark in finalized for p in mark.positions]

    def forget(self, before: float) -> None:
        """Forgets marks cut before then that were never finalized; what they stood for comes again."""
        for token in [t for t, mark in self._open.items() if mark.cut_at < before]:
            del self._open[token]
