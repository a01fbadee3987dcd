"""The aggregate once more, row by row in plain Python: the independent answer that the kernels are compared with."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from beam_pipelines.arrow.windows import WindowSpec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STEP = timedelta(minutes=15)  # no zone has changed its clock off this grid since 1985, but for St. John's
Row = dict[str, Any]


def windows_of(t: int, spec: WindowSpec, zone: str) -> list[tuple[int, int]]:
    """Windows [start, end) of an instant, in microseconds."""
    if spec.type == "fixed":
        start = spec.offset + (t - spec.offset) // spec.size * spec.size
        return [(start, start + spec.size)]
    if spec.type == "sliding":
        first = spec.offset + (t - spec.offset) // spec.period * spec.period
        starts = range(first, t - spec.size, -spec.period)
        return [(s, s + spec.size) for s in starts if s + spec.size > t]
    return [_clock_hour(t, zone) if spec.unit == "hour" else _calendar(t, spec.unit, zone)]


def _at(t: int) -> datetime:
    return EPOCH + timedelta(microseconds=t)


def _micros(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def _calendar(t: int, unit: str, zone: str) -> tuple[int, int]:
    day = _at(t).astimezone(ZoneInfo(zone)).replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
    first = _first(day - timedelta(days=1), unit)
    while True:
        following = _next(first, unit)
        start, end = _begins(first, zone), _begins(following, zone)
        if start <= t < end:
            return start, end
        first = following


def _first(day: datetime, unit: str) -> datetime:
    return {
        "day": day,
        "week": day - timedelta(days=day.weekday()),
        "month": day.replace(day=1),
        "quarter": day.replace(day=1, month=(day.month - 1) // 3 * 3 + 1),
        "year": day.replace(day=1, month=1),
    }[unit]


def _next(first: datetime, unit: str) -> datetime:
    return _first(first + timedelta(days={"day": 1, "week": 7, "month": 32, "quarter": 95, "year": 370}[unit]), unit)


@lru_cache(maxsize=100_000)
def _begins(midnight: datetime, zone: str) -> int:
    """The first instant at which the clock shows `midnight` or later."""
    at = midnight.replace(tzinfo=UTC) - timedelta(hours=26)
    while at.astimezone(ZoneInfo(zone)).replace(tzinfo=None) < midnight:
        at += STEP
    return _micros(at)


def _clock_hour(t: int, zone: str) -> tuple[int, int]:
    def shown(at: datetime) -> tuple[object, ...]:
        local = at.astimezone(ZoneInfo(zone))
        return (local.replace(minute=0, second=0, microsecond=0, tzinfo=None), local.utcoffset())

    start = _at(t - t % (15 * 60_000_000))
    end, here = start + STEP, shown(_at(t))
    while shown(start - STEP) == here:
        start -= STEP
    while shown(end) == here:
        end += STEP
    return _micros(start), _micros(end)


def sessions_of(times: list[int], spec: WindowSpec) -> dict[int, tuple[int, int]]:
    """The session window of each instant of one group."""
    runs: list[list[int]] = []
    for t in sorted(times):
        if runs and t - runs[-1][-1] < spec.gap:
            runs[-1].append(t)
        else:
            runs.append([t])
    return {t: window for run in runs for t, window in _pieces(run, spec).items()}


def _pieces(run: list[int], spec: WindowSpec) -> dict[int, tuple[int, int]]:
    length = spec.max_length or 86_400_000_000
    if run[-1] - run[0] < length:
        return dict.fromkeys(run, (run[0], run[-1] + spec.gap))
    found = {}
    for t in run:
        piece = [u for u in run if u // length == t // length]
        end = piece[-1] + spec.gap
        found[t] = (piece[0], end if piece[-1] == run[-1] else min(end, (t // length + 1) * length))
    return found


def panes_of(rows: list[Row], spec: WindowSpec | None, group_by: list[str], zone: str = "UTC") -> dict[tuple[Any, ...], list[Row]]:
    """Rows by (group values…, window start, window end)."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(plain(row[g]) for g in group_by), []).append(row)
    panes: dict[tuple[Any, ...], list[Row]] = {}
    for group, members in groups.items():
        sessions = sessions_of([r["t"] for r in members], spec) if spec is not None and spec.type == "sessions" else {}
        for row in members:
            if spec is None:
                found = [(None, None)]
            else:
                found = [sessions[row["t"]]] if sessions else windows_of(row["t"], spec, spec.time_zone or zone)
            for window in found:
                panes.setdefault((*group, *window), []).append(row)
    return panes


def plain(x: Any) -> Any:
    """Equal for equal group values: one NaN, one zero."""
    if isinstance(x, float):
        return "NaN" if math.isnan(x) else x + 0.0
    return x


def order(x: Any) -> Any:
    """A sort key under which NaN is the largest number."""
    return (1, 0.0) if isinstance(x, float) and math.isnan(x) else (0, x)


def measured(function: str, values: list[Any], times: list[int] | None = None, q: float = 0.5) -> Any:
    """The measure over values that are not NULL."""
    if function == "count":
        return len(values)
    if function == "count_distinct":
        return len({plain(v) for v in values})
    if not values:
        return None
    if function in ("min", "max"):
        return (min if function == "min" else max)(values, key=order)
    if function in ("first", "last"):
        return (min if function == "first" else max)(zip(times or [], values, strict=True), key=lambda p: (p[0], order(p[1])))[1]
    if function == "quantile":
        return float(sorted(values, key=order)[int(q * (len(values) - 1))])
    if function == "stddev":
        return stddev(values)
    total = _sum(values)
    return total if function == "sum" else float(Fraction(total) / len(values)) if _finite(total) else total


def _finite(x: Any) -> bool:
    return not isinstance(x, float) or math.isfinite(x)


def _sum(values: list[Any]) -> Any:
    if not isinstance(values[0], float):
        total = sum(Fraction(v) for v in values)
        return total.numerator if isinstance(values[0], int) else total
    odd = [v for v in values if not math.isfinite(v)]
    return sum(odd) if odd else math.fsum(values)


def stddev(values: list[Any]) -> float | None:
    """Of the sample; exact up to the last step. NaN where a value cannot be squared."""
    if any(isinstance(v, float) and not abs(v) < 1e150 for v in values):
        return math.nan
    n = len(values)
    if n < 2:
        return None
    exact = [Fraction(v) for v in values]
    mean = sum(exact) / n
    return math.sqrt(sum((v - mean) ** 2 for v in exact) / (n - 1))
