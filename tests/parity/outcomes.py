"""What came of a timeline: the form in which a batch, a stream and the rules are compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from beam_pipelines.testing.outcomes import DoorCounts
from beam_pipelines.testing.outcomes import Outcome as Stored

__all__ = ["DoorCounts", "Outcome", "Pane", "Window", "same_measures"]

Window = tuple[int, int]
"""Start and end in microseconds since 1970."""
Pane = tuple[Window, str | None]
"""A window and a group."""

QUANTILE = "middle"
_ACCURACY = 0.01  # of quantiles, against plain Python


@dataclass
class Outcome(Stored):
    """Also what a stream says of itself: rows for closed windows, by their start in microseconds."""

    stale: Counter[int] = field(default_factory=Counter)


def same_measures(mine: Mapping[str, Any], other: Mapping[str, Any], *, roughly: bool = False) -> bool:
    """Whether two panes show the same; floats to nine digits, because sums depend on their order. `roughly`: quantiles within their accuracy."""
    return mine.keys() == other.keys() and all(_same(mine[n], other[n], _ACCURACY if roughly and n == QUANTILE else 1e-9) for n in mine)


def _same(mine: Any, other: Any, accuracy: float) -> bool:
    if isinstance(mine, float) or isinstance(other, float):
        return mine is not None and other is not None and math.isclose(mine, other, rel_tol=accuracy, abs_tol=1e-9)
    if isinstance(mine, Decimal) or isinstance(other, Decimal):
        return mine is not None and other is not None and Decimal(mine) == Decimal(other)
    return bool(mine == other)
