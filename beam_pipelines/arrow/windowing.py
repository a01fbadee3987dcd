"""Which window a row belongs to, and whether it came in time: pure functions of the row.

    fixed      size 1h               ├────┼────┼────┤      start = offset + k · size, before 1970 as well
    sliding    size 1h, period 30m   ├────┤
                                        ├────┤             a row is in every window that covers it
    calendar   day in New York       ├──23h──┼───24h───┤   what the clock on the wall says

A calendar day, week, month, quarter or year begins at the first instant at which the clock shows its first moment or, where that moment is skipped,
a later one. A calendar hour is one hour of the clock under one UTC offset: the hour that a clock change repeats is two windows, and a change
within an hour cuts it. Windows are half-open, in microseconds since 1970-01-01 UTC. Session windows depend on other rows: see `sessions`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.program import row_json
from beam_pipelines.arrow.schema import ARRIVAL, RAW, UTC_MICROS, Failure, Rejected, dead_letters
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.errors import SpecError, nearest

WINDOW_START, WINDOW_END = "_window_start", "_window_end"
STAGE, TIME, LATE = "aggregate", "TIME", "LATE"
ON_TIME, LATE_PANE, TOO_LATE = "on_time", "late", "too_late"
_HOUR, _DAY = 3_600_000_000, 86_400_000_000
_FURTHEST = 2**59  # microseconds, about 18,000 years: within it the calendar and every window's end can be computed
_DENSE_CELLS = 1 << 14


class Windowed(NamedTuple):
    """`rows` with their windows; `dead` letters (reason TIME) for the rows that have no time."""

    rows: pa.RecordBatch
    dead: pa.RecordBatch


def assign_windows(
    batch: pa.RecordBatch, spec: WindowSpec | None, *, time: str | None, time_zone: str = "UTC", name: str = "aggregate"
) -> Windowed:
    """`batch` with `_window_start` and `_window_end` (timestamp[us, UTC]); with sliding windows a row appears once per window.

    Without a spec there is one window over everything: both columns are NULL. Each input row is in `rows` or in `dead`.
    """
    if spec is None:
        nothing = pa.nulls(batch.num_rows, UTC_MICROS)
        return Windowed(_with_windows(batch, nothing, nothing), _no_letters(batch))
    if spec.type == "sessions":
        raise SpecError(f"{name}: session windows depend on other rows; assign_windows cannot know them.", hint="Use aggregate_batch.")
    timed = split_untimed(batch, event_micros(batch, time, time_zone, name=name), name=name)
    rows, micros = timed.rows, timed.micros
    if spec.type == "sliding":
        index, start = sliding_windows(micros, spec)
        rows, end = rows.take(pa.array(index)), start + _known(spec.size)
    else:
        start, end = window_bounds(micros, spec, time_zone)
    return Windowed(_with_windows(rows, instants(start), instants(end)), timed.dead)


def instants(micros: np.ndarray) -> pa.Array:
    """Microseconds as timestamp[us, UTC]."""
    return pa.array(micros, pa.int64()).cast(UTC_MICROS)


def _with_windows(batch: pa.RecordBatch, start: pa.Array, end: pa.Array) -> pa.RecordBatch:
    return batch.append_column(WINDOW_START, start).append_column(WINDOW_END, end)


class Timed(NamedTuple):
    """`rows` that have a time, their `micros` (int64, no NULLs), and `dead` letters for the others."""

    rows: pa.RecordBatch
    micros: np.ndarray
    dead: pa.RecordBatch


def event_micros(batch: pa.RecordBatch, time: str | None, time_zone: str, *, name: str = "aggregate") -> pa.Array:
    """The time column as int64 microseconds UTC; NULL where it is NULL or too far away to have a window.

    Dates and civil times are taken by the clock of `time_zone`: the earlier of two, and the end of the gap where there is none.
    """
    if time is None:
        raise SpecError(f"{name}: windows need a time column.", hint="Set `time`, or the contract's event_time.")
    if time not in batch.schema.names:
        raise SpecError(f"{name}: unknown time column {time!r};", hint=nearest(time, batch.schema.names))
    column = batch.column(time)
    kind = column.type
    if pa.types.is_timestamp(kind):
        micros = _to_micros(column)
    elif pa.types.is_date(kind):
        micros = column.cast(pa.date32()).cast(pa.int32()).cast(pa.int64())
        micros = pc.multiply(micros, _DAY) if kind == pa.date32() else micros
    else:
        raise SpecError(f"{name}: time column {time!r} has type {kind}; expected a timestamp or a date.")
    far = pc.or_(pc.greater(micros, _FURTHEST), pc.less(micros, -_FURTHEST))
    if pc.any(far).as_py():
        micros = pc.if_else(far, pa.scalar(None, pa.int64()), micros)
    civil = pa.types.is_date(kind) or kind.tz is None
    return _clock_to_utc(micros, time_zone) if civil else micros


def _to_micros(column: pa.Array) -> pa.Array:
    unit = column.type.unit
    values = column.cast(pa.int64())
    if unit == "us":
        return values
    if unit == "ns":
        numbers = np.floor_divide(values.fill_null(0).to_numpy(), 1000)
        return pa.array(numbers, mask=~values.is_valid().to_numpy(zero_copy_only=False))
    scale = {"s": 1_000_000, "ms": 1_000}[unit]
    near = pc.and_(pc.less(values, _FURTHEST // scale), pc.greater(values, -_FURTHEST // scale))
    return pc.multiply(pc.if_else(near, values, pa.scalar(None, pa.int64())), scale)


def _clock_to_utc(micros: pa.Array, zone: str) -> pa.Array:
    if zone == "UTC":
        return micros
    return pc.assume_timezone(micros.cast(pa.timestamp("us")), zone, ambiguous="earliest", nonexistent="latest").cast(pa.int64())


def split_untimed(batch: pa.RecordBatch, micros: pa.Array, *, name: str) -> Timed:
    """Rows without a time leave as dead letters: no window could hold them."""
    if not micros.null_count:
        return Timed(batch, micros.to_numpy(), _no_letters(batch))
    valid = micros.is_valid()
    gone = batch.filter(pc.invert(valid))
    verdict = Rejected(STAGE, TIME, (Failure(name, "", f"{name}: the row has no usable event time, so it belongs to no window"),))
    return Timed(batch.filter(valid), micros.filter(valid).to_numpy(), letters(gone, [verdict] * gone.num_rows))


def letters(rows: pa.RecordBatch, verdicts: list[Rejected], event_time: pa.Array | None = None) -> pa.RecordBatch:
    """Dead letters for rows that have been conformed: their own columns as JSON stand in for raw bytes that are gone."""
    kept_raw = RAW in rows.schema.names
    rows = rows if kept_raw else rows.append_column(RAW, row_json(rows))
    return dead_letters(rows, verdicts, event_time=event_time, raw_format="" if kept_raw else "row")


def _no_letters(batch: pa.RecordBatch) -> pa.RecordBatch:
    return letters(batch.slice(0, 0), [])


def window_bounds(micros: np.ndarray, spec: WindowSpec, time_zone: str) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of the fixed or calendar window of each instant."""
    if spec.type == "calendar":
        unit, zone = spec.unit or "day", spec.time_zone or time_zone
        if not len(micros):
            return micros, micros
        edges = _hour_edges(micros, zone) if unit == "hour" else _date_edges(micros, unit, zone)
        after = np.searchsorted(edges, micros, side="right")
        return edges[after - 1], edges[after]
    size = _known(spec.size)
    start = np.floor_divide(micros - spec.offset, size) * size + spec.offset
    return start, start + size


def sliding_windows(micros: np.ndarray, spec: WindowSpec) -> tuple[np.ndarray, np.ndarray]:
    """(row index, window start) for every pair of a row and a window that covers it, rows in order."""
    return covering(micros, micros, spec)


def covering(first: np.ndarray, last: np.ndarray, spec: WindowSpec) -> tuple[np.ndarray, np.ndarray]:
    """(index, window start) for every sliding window that covers all of [first[i], last[i]]."""
    size, period = _known(spec.size), _known(spec.period)
    newest = np.floor_divide(first - spec.offset, period) * period + spec.offset
    back = np.arange(math.ceil(size / period), dtype=np.int64) * period
    starts = newest[:, None] - back[None, :]
    index, column = np.nonzero(starts + size > last[:, None])
    return index, starts[index, column]


def slice_size(spec: WindowSpec) -> int:
    """The longest fixed slices of which every sliding window is a union: aggregate those first, then the windows out of them."""
    return math.gcd(_known(spec.size), _known(spec.period))


def _known(duration: int | None) -> int:
    assert duration is not None, "WindowSpec checks that the type's durations are set"
    return duration


# ── the calendar: the edges around the instants at hand, then a binary search ───────────────────────────────────────────────────────────────


def _cells(micros: np.ndarray, width: int) -> np.ndarray:
    """Starts of the UTC cells of `width` that hold instants: a run of them where they lie close, else the distinct ones."""
    first, last = int(micros.min()) // width, int(micros.max()) // width
    if last - first < _DENSE_CELLS:
        return np.arange(first, last + 1, dtype=np.int64) * width
    cells: np.ndarray = np.unique(np.floor_divide(micros, width)) * width
    return cells


def _offset(micros: np.ndarray, zone: str) -> np.ndarray:
    local = pc.local_timestamp(pa.array(micros, pa.int64()).cast(pa.timestamp("us", zone)))
    offset: np.ndarray = local.cast(pa.int64()).to_numpy() - micros
    return offset


def _date_edges(micros: np.ndarray, unit: str, zone: str) -> np.ndarray:
    """Every beginning of a `unit` that an instant may lie between."""
    cells = _cells(micros, _DAY)
    local = pa.array(cells + _offset(cells, zone), pa.int64()).cast(pa.timestamp("us"))
    edge = pc.floor_temporal(pc.subtract(local, pa.scalar(_DAY, pa.duration("us"))), unit=unit)
    edges = [edge]
    for _ in range(4):  # from the day before a UTC day to past the day after it
        edge = pc.ceil_temporal(edge, unit=unit, ceil_is_strictly_greater=True)
        edges.append(edge)
    clock = pc.unique(pa.chunked_array(edges)).cast(pa.int64())
    found: np.ndarray = np.unique(_clock_to_utc(clock, zone).to_numpy())
    return found


def _hour_edges(micros: np.ndarray, zone: str) -> np.ndarray:
    """Every full hour of the clock and every change of its offset around the instants."""
    cells = _cells(micros, _HOUR)
    points = np.unique(np.concatenate([cells + k * _HOUR for k in (-1, 0, 1, 2)]))
    offsets = _offset(points, zone)
    tops = np.floor_divide(points + offsets, _HOUR) * _HOUR - offsets
    tops = np.unique(np.concatenate([tops, tops + _HOUR]))
    tops = tops[np.mod(tops + _offset(tops, zone), _HOUR) == 0]
    near = np.flatnonzero((np.diff(offsets) != 0) & (np.diff(points) == _HOUR))
    return np.unique(np.concatenate([tops, _changes(points[near], points[near] + _HOUR, zone)]))


def _changes(low: np.ndarray, high: np.ndarray, zone: str) -> np.ndarray:
    """The first instant in each (low, high] under the offset that holds at `high`, by bisection."""
    if not len(low):
        return low
    after = _offset(high, zone)
    while (high - low > 1).any():
        middle = (low + high) // 2
        changed = _offset(middle, zone) == after
        low, high = np.where(changed, low, middle), np.where(changed, middle, high)
    return high


# ── lateness ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def classify(arrival: pa.Array, window_end: pa.Array, spec: WindowSpec) -> pa.Array:
    """`on_time`, `late` or `too_late` for each row: arrival against its window's end (both timestamp[us, UTC]).

    On time: arrival ≤ end + `watermark_delay`. Late: ≤ end + `allowed_lateness`. An unknown arrival (NULL) is on time.

    >>> spec = WindowSpec(size='1h', allowed_lateness='6h')
    >>> classify(instants(np.array([0, 7_200_000_001, 10**12])), instants(np.array([0, 7_200_000_000, 0])), spec).to_pylist()
    ['on_time', 'late', 'too_late']
    """
    behind = pc.subtract(arrival.cast(pa.int64()), window_end.cast(pa.int64()))
    late = pc.if_else(pc.less_equal(behind, spec.allowed_lateness), LATE_PANE, TOO_LATE)
    return pc.if_else(pc.fill_null(pc.less_equal(behind, spec.watermark_delay), True), ON_TIME, late)


def own_window_end(micros: np.ndarray, end: np.ndarray, spec: WindowSpec) -> np.ndarray:
    """The window end that decides whether a row is too late for the aggregate, from the row alone.

    Sliding: the earliest window that covers the row, so that a row is in all its windows or a dead letter, never in some. Sessions: the
    session it would be alone. `end` is used for the other types.
    """
    if spec.type == "sliding":
        size, period = _known(spec.size), _known(spec.period)
        end = (np.floor_divide(micros - spec.offset - size, period) + 1) * period + spec.offset + size
    elif spec.type == "sessions":
        end = micros + _known(spec.gap)
    return end


def late_rank(arrival: pa.Array | None, micros: np.ndarray, end: np.ndarray, spec: WindowSpec) -> np.ndarray:
    """For which of its windows each row is on time: 0 for all, k for all but the first k, in the order of their ends (int64).

        sliding, size 2h, period 1h     ├────w0────┤            arrival ≤ end of w0 + watermark_delay: 0
                                             ├────w1────┤       later, but ≤ end of w1 + watermark_delay: 1

    A row has one window (0 or 1), or as many as slide over it; the window of a session is the one the row would be alone.
    """
    if arrival is None or arrival.null_count == len(arrival):
        return np.zeros(len(micros), np.int64)
    unknown = arrival.is_null().to_numpy(zero_copy_only=False)
    behind = arrival.cast(pa.int64()).fill_null(0).to_numpy() - own_window_end(micros, end, spec) - spec.watermark_delay
    step = _known(spec.period) if spec.type == "sliding" else 0
    rank = -np.floor_divide(-behind, step) if step else np.ones(len(micros), np.int64)
    return np.where(unknown | (behind <= 0), 0, rank)


def split_late(
    rows: pa.RecordBatch, micros: np.ndarray, end: np.ndarray, spec: WindowSpec, *, name: str
) -> tuple[np.ndarray, pa.RecordBatch]:
    """(mask of the rows in time, dead letters LATE for the others)."""
    if ARRIVAL not in rows.schema.names or rows.column(ARRIVAL).null_count == rows.num_rows:
        return np.ones(rows.num_rows, bool), _no_letters(rows)
    end = own_window_end(micros, end, spec)
    gone = pc.equal(classify(rows.column(ARRIVAL), instants(end), spec), TOO_LATE).to_numpy(zero_copy_only=False)
    if not gone.any():
        return ~gone, _no_letters(rows)
    out = rows.filter(pa.array(gone))
    verdicts = [_late(name, a, e, spec) for a, e in zip(_text(out.column(ARRIVAL)), _text(instants(end[gone])), strict=True)]
    return ~gone, letters(out, verdicts, instants(micros[gone]))


def _text(instant: pa.Array) -> list[str]:
    texts: list[str] = instant.cast(pa.string()).to_pylist()  # Arrow's text has years that Python's datetime has not
    return texts


def _late(name: str, arrival: str, end: str, spec: WindowSpec) -> Rejected:
    limit = max(spec.allowed_lateness, spec.watermark_delay) // 1_000_000
    text = (
        f"{name}: arrived at {arrival}, more than {limit} s after its window's end {end}; the row itself is in rows, not in this aggregate"
    )
    return Rejected(STAGE, LATE, (Failure(name, "", text),))
