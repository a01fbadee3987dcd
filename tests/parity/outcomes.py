"""What came of a timeline: the form in which a batch, a stream and the rules are compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

Window = tuple[int, int]
"""Start and end in microseconds since 1970."""
Pane = tuple[Window, str | None]
"""A window and a group."""

QUANTILE = "middle"
_ACCURACY = 0.01  # of quantiles, against plain Python


@dataclass(frozen=True)
class Ledger:
    """Numbers of messages by door; dead letters by `stage:REASON`."""

    read: int
    written: int
    dead: int
    duplicate: int
    filtered: int
    late: int
    reasons: Mapping[str, int]


@dataclass
class Outcome:
    """`rows` and `letters` by number of the message; `panes` the final one of each group and window."""

    rows: dict[int, tuple[Any, ...]]
    letters: dict[int, tuple[str, ...]]
    panes: dict[Pane, dict[str, Any]]
    ledger: Ledger
    spoken: dict[int, tuple[Any, ...]] = field(default_factory=dict)  # letters whole: message, failures, raw; the rules do not know them
    wrong: list[str] = field(default_factory=list)  # a run that failed, a ledger that does not balance, what stands there twice
    stale: Counter[int] = field(default_factory=Counter)  # rows for closed windows, by their start in microseconds: of a stream

    def door(self, number: int) -> str:
        """Where a message left, in a word or two."""
        letters = self.letters.get(number, ())
        if number in self.rows:
            return " ".join(["written", *(text.partition(":")[2] for text in letters)])
        return " ".join(letters) or "dropped"


def same_measures(mine: Mapping[str, Any], other: Mapping[str, Any], *, roughly: bool = False) -> bool:
    """Whether two panes show the same; floats to nine digits, because sums depend on their order. `roughly`: quantiles within their accuracy."""
    return mine.keys() == other.keys() and all(_same(mine[n], other[n], _ACCURACY if roughly and n == QUANTILE else 1e-9) for n in mine)


def _same(mine: Any, other: Any, accuracy: float) -> bool:
    if isinstance(mine, float) or isinstance(other, float):
        return mine is not None and other is not None and math.isclose(mine, other, rel_tol=accuracy, abs_tol=1e-9)
    if isinstance(mine, Decimal) or isinstance(other, Decimal):
        return mine is not None and other is not None and Decimal(mine) == Decimal(other)
    return bool(mine == other)
