"""How far back a stream must remember, in microseconds: what its open windows and its comparison of copies can still need."""

from __future__ import annotations

from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.spec.models import PipelineSpec

EVERYTHING = 2**62
"""Longer than any two event times are apart."""
_HOUR = 3_600_000_000
_LONGEST = {
    "hour": 1,
    "day": 25,
    "week": 7 * 24 + 1,
    "month": 31 * 24 + 1,
    "quarter": 92 * 24 + 1,
    "year": 366 * 24 + 1,
}  # hours, with a clock change


def horizon(spec: PipelineSpec) -> int:
    """How long before a moment of the arrival clock a row may have arrived that a window or copy after that moment still needs.

    row arrives            its window ends         closes
    ───●─────────────────────────●─────────────────────●──▶ arrival clock
       ├── window's length ──────┼── allowed lateness ──┤
    """
    spans = [_window(a) for a in spec.aggregates.values()]
    rule = spec.deduplicate
    if rule is not None and rule.within is not None:
        spans.append(rule.within + compared_late(spec))
    return max(spans, default=0) + spec.contract.allowed_skew


def compared_late(spec: PipelineSpec) -> int:
    """How late, arrival after event time, a row may be and still be compared with copies of its key.

    At least as late as any window takes it: so a row that is not compared is too late for every window, and none counts it twice.
    """
    within = spec.deduplicate.within if spec.deduplicate is not None else None
    return max([within or 0, *(_window(a) for a in spec.aggregates.values())])


def reach(spec: PipelineSpec) -> tuple[int, int]:
    """How far before the start of a range of event time, and after its end, rows must be read so that what lies in the range comes out right.

    A copy of a row lies within `within` of it; rows of a window that starts in the range reach as far as the window is long; a session that does may
    have begun before it and go on after it. A duplicate rule without `within` compares all rows: then both are `EVERYTHING`.
    """
    rule = spec.deduplicate
    if rule is not None and rule.within is None:
        return EVERYTHING, EVERYTHING
    windows = [a.windowing for a in spec.aggregates.values() if a.windowing is not None]
    within = 0 if rule is None or rule.within is None else rule.within
    before = max((_length(w) for w in windows if w.type == "sessions"), default=0)
    return within + before, within + max((_length(w) for w in windows), default=0)


def _length(windowing: WindowSpec) -> int:
    """How far apart, in event time, two rows may be of which one decides in which window the other is, or both are in one."""
    if windowing.type == "sessions":  # a session joins the one before it, and where it is cut depends on both
        return 2 * (windowing.longest + (windowing.gap or 0))
    if windowing.type == "calendar":
        return _LONGEST[windowing.unit or "year"] * _HOUR
    return windowing.size or 0


def _window(aggregate: AggregateSpec) -> int:
    windowing = aggregate.windowing
    if windowing is None:
        return 0
    return _length(windowing) + max(windowing.watermark_delay, windowing.allowed_lateness)
