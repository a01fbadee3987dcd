"""What a comparison of the batch layer with the speed layer has found. Frozen values; times are microseconds since 1970 UTC."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from beam_pipelines.arrow.ranges import Range, show_range, union
from beam_pipelines.serving.report.agreement import Agreement

OPEN, LATE, DEAD_LETTER, DUPLICATE, SUPERSEDED, STALE = "open", "late", "dead letter", "duplicate", "superseded", "stale"
DELETED, NOT_READ, LOOKUP, CONTRACT, CODE, UNEXPLAINED = "deleted by retention", "not read", "lookup", "contract", "code", "unexplained"
CAUSES = (OPEN, LATE, DEAD_LETTER, DUPLICATE, SUPERSEDED, STALE, DELETED, NOT_READ, LOOKUP, CONTRACT, CODE, UNEXPLAINED)
"""In the order in which they are looked for; the first with evidence is the cause."""

_GAPS = 3  # that are told one by one

Kind = Literal["only batch", "only speed", "other values"]


@dataclass(frozen=True)
class Difference:
    """One row, or group of a window, on which the layers do not agree. `key` are the columns by which it was matched, `columns` those that differ;
    `batch` and `speed` hold the values of these, or all values of a row that is in one layer alone (None: it is not in that layer)."""

    output: str
    kind: Kind
    cause: str
    detail: str
    key: Mapping[str, Any]
    columns: tuple[str, ...] = ()
    batch: Mapping[str, Any] | None = None
    speed: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Part:
    """A partition [start, end) of an output, whose batch answer is that of `run_id`; None for rows without a time, and outputs without partitions."""

    start: int | None
    end: int | None
    run_id: str
    equal: int
    causes: Mapping[str, int] = field(default_factory=dict)

    @property
    def differ(self) -> int:
        """Rows on which the layers do not agree."""
        return sum(self.causes.values())


@dataclass(frozen=True)
class Compared:
    """One output: its parts, the differences by kind, samples of them, and what is worth knowing.

    `matched_by` are the columns by which rows were paired. `missing`: of the range asked for, what no batch run has committed.
    """

    output: str
    of: str
    matched_by: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    kinds: Mapping[str, int] = field(default_factory=dict)
    samples: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[Range, ...] = ()
    compared: bool = True

    @property
    def gaps(self) -> tuple[str, ...]:
        """A sentence for each gap of the range asked for, three at most and one for the others."""
        if not self.compared:  # the note says it
            return ()
        more = len(self.missing) - _GAPS
        rest = (f"not compared: {more} more ranges that no batch run has committed",) if more > 0 else ()
        return (*(f"not compared: {show_range(gap)}, which no batch run has committed" for gap in self.missing[:_GAPS]), *rest)

    @property
    def equal(self) -> int:
        """Rows that both layers have alike."""
        return sum(part.equal for part in self.parts)

    @property
    def causes(self) -> dict[str, int]:
        """Differing rows by cause, in the order of CAUSES."""
        return _sum(part.causes for part in self.parts)

    @property
    def differ(self) -> int:
        """Rows on which the layers do not agree."""
        return sum(self.causes.values())

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The times of the partitions that hold anything."""
        return union((part.start, part.end) for part in self.parts if part.start is not None and part.end is not None)


@dataclass(frozen=True)
class Verification:
    """All outputs over `range`, None: over everything that a batch run has committed."""

    range: Range | None
    outputs: tuple[Compared, ...]
    tolerance: float = 0.0

    @property
    def equal(self) -> int:
        """Rows that both layers have alike."""
        return sum(output.equal for output in self.outputs)

    @property
    def differ(self) -> int:
        """Rows on which the layers do not agree."""
        return sum(output.differ for output in self.outputs)

    @property
    def causes(self) -> dict[str, int]:
        """Differing rows by cause, in the order of CAUSES."""
        return _sum(output.causes for output in self.outputs)

    @property
    def unexplained(self) -> int:
        """Differing rows for which nothing says why."""
        return self.causes.get(UNEXPLAINED, 0)


def agreements(found: Verification) -> list[Agreement]:
    """The same for the report of a run: one line per output."""
    return [
        Agreement(
            each.output, _over(each, found.range), each.equal, each.kinds.get("other values", 0), each.kinds.get("only batch", 0),
            each.kinds.get("only speed", 0), "; ".join([*([count_causes(each.causes)] if each.differ else []), *each.notes]),
        )
        for each in found.outputs
    ]  # fmt: skip


def verdict(found: Verification) -> str:
    """`3 outputs over [..): 1,204,311 rows equal, 12 differ: 9 late, 3 duplicate; 0 unexplained`."""
    compared = [each for each in found.outputs if each.compared]
    over = "everything a batch run has committed" if found.range is None else show_range(found.range)
    said = f"{len(compared)} output{'s' * (len(compared) != 1)} over {over}: {found.equal:,} rows equal, "
    return said + (f"{found.differ:,} differ: {count_causes(found.causes)}" if found.differ else "none differ")


def count_causes(causes: Mapping[str, int]) -> str:
    """`9 late, 3 duplicate; 0 unexplained`."""
    known = ", ".join(f"{n:,} {cause}" for cause, n in causes.items() if cause != UNEXPLAINED)
    unexplained = f"{causes.get(UNEXPLAINED, 0):,} unexplained"
    return f"{known}; {unexplained}" if known else unexplained


def _over(each: Compared, asked: Range | None) -> str:
    where = asked or (Range(each.ranges[0].start, each.ranges[-1].end) if each.ranges else None)
    return "everything committed" if where is None else show_range(where)


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return {cause: total[cause] for cause in CAUSES if total[cause]}
