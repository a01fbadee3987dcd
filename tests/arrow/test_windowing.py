"""A window is a pure function of the row's instant, the spec and a clock."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.windowing import (
    assign_windows,
    classify,
    instants,
    own_window_end,
    slice_size,
    window_bounds,
)
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.errors import SpecError
from tests.arrow.slow_aggregate import windows_of

HOUR, DAY = 3_600_000_000, 86_400_000_000
ZONES = ["UTC", "America/New_York", "Europe/Berlin", "America/Sao_Paulo", "Asia/Beirut", "Australia/Lord_Howe", "Asia/Kathmandu",
         "America/Havana", "Pacific/Apia", "Pacific/Chatham"]  # fmt: skip
MODERN = st.integers(int(datetime(1985, 1, 2, tzinfo=UTC).timestamp()), int(datetime(2036, 12, 30, tzinfo=UTC).timestamp()))


def micros(*at: object) -> int:
    return int(datetime(*at, tzinfo=UTC).timestamp()) * 1_000_000  # type: ignore[arg-type]


def near_changes(zone: str) -> st.SearchStrategy[int]:
    """Instants, half of them within a day of a change of the zone's clock."""
    changes = {
        "America/New_York": [micros(2013, 3, 10, 7), micros(2013, 11, 3, 6)],
        "America/Sao_Paulo": [micros(2018, 11, 4, 3), micros(2018, 2, 18, 2)],
        "Asia/Beirut": [micros(2023, 3, 25, 22), micros(2022, 10, 29, 21)],
        "Australia/Lord_Howe": [micros(2023, 10, 1, 15) - DAY, micros(2023, 4, 1, 15)],
        "America/Havana": [micros(2023, 11, 5, 5), micros(2023, 3, 12, 5)],
        "Pacific/Apia": [micros(2011, 12, 30, 10)],
    }.get(zone, [micros(2020, 3, 29, 1), micros(2020, 10, 25, 1)])
    close = st.builds(lambda c, d: c + d, st.sampled_from(changes), st.integers(-DAY, DAY))
    return st.one_of(close, MODERN.map(lambda s: s * 1_000_000))


def bounds(t: list[int], spec: WindowSpec, zone: str = "UTC") -> list[tuple[int, int]]:
    start, end = window_bounds(np.array(t, np.int64), spec, zone)
    return list(zip(start.tolist(), end.tolist(), strict=True))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_calendar_windows_agree_with_a_clock_read_row_by_row(data: st.DataObject) -> None:
    zone = data.draw(st.sampled_from(ZONES))
    unit = data.draw(st.sampled_from(["hour", "day", "week", "month", "quarter", "year"]))
    t = data.draw(st.lists(near_changes(zone), min_size=1, max_size=8))
    spec = WindowSpec(type="calendar", unit=unit)
    assert bounds(t, spec, zone) == [windows_of(x, spec, zone)[0] for x in t]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(-(2**50), 2**50), max_size=20), st.integers(1, 10**12), st.integers(0, 10**13))
def test_a_fixed_window_holds_its_instant_and_starts_on_the_grid(t: list[int], size: int, offset: int) -> None:
    for x, (start, end) in zip(t, bounds(t, WindowSpec(size=size, offset=offset)), strict=True):
        assert start <= x < end == start + size
        assert (start - offset) % size == 0


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(-(10**6), 10**6), max_size=10), st.integers(1, 1000), st.integers(0, 1000), st.integers(0, 5000))
def test_a_row_is_in_every_sliding_window_that_covers_it_and_in_no_other(t: list[int], period: int, more: int, offset: int) -> None:
    spec = WindowSpec(type="sliding", size=period + more, period=period, offset=offset)
    out = assign_windows(pa.record_batch({"t": instants(np.array(t, np.int64)), "i": pa.array(range(len(t)), pa.int64())}), spec, time="t")
    found = out.rows.select(["i", "_window_start", "_window_end"])
    got = sorted(zip(*(found.column(i).cast(pa.int64()).to_pylist() for i in range(3)), strict=True))
    assert got == sorted((i, s, e) for i, x in enumerate(t) for s, e in windows_of(x, spec, "UTC"))
    assert all((s - offset) % slice_size(spec) == 0 for _, s, _ in got)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("America/New_York", date(2013, 3, 10), 23),
        ("America/New_York", date(2013, 11, 3), 25),
        ("America/Sao_Paulo", date(2018, 11, 4), 23),  # midnight does not exist
        ("America/Sao_Paulo", date(2018, 2, 17), 25),  # 23:00 to 24:00 comes twice
        ("Asia/Beirut", date(2023, 3, 26), 23),
        ("America/Havana", date(2023, 11, 5), 25),  # midnight comes twice
        ("Australia/Lord_Howe", date(2023, 10, 1), 23.5),
    ],
)
def test_a_calendar_day_is_as_long_as_the_clock_says(zone: str, day: date, hours: float) -> None:
    noon = micros(day.year, day.month, day.day, 12) - {"Australia/Lord_Howe": 10 * HOUR}.get(zone, 0)
    [(start, end)] = bounds([noon], WindowSpec(type="calendar", unit="day"), zone)
    assert end - start == hours * HOUR


def test_the_hour_that_comes_twice_is_two_windows_and_the_skipped_one_is_none() -> None:
    spec = WindowSpec(type="calendar", unit="hour", time_zone="America/New_York")
    fall = [micros(2013, 11, 3, 5, 30), micros(2013, 11, 3, 6, 30)]  # 1:30 EDT, 1:30 EST
    assert bounds(fall, spec) == [(micros(2013, 11, 3, h), micros(2013, 11, 3, h + 1)) for h in (5, 6)]
    spring = [micros(2013, 3, 10, 6, 59), micros(2013, 3, 10, 7)]  # 1:59 EST, 3:00 EDT
    assert bounds(spring, spec) == [(micros(2013, 3, 10, h), micros(2013, 3, 10, h + 1)) for h in (6, 7)]


def test_a_change_within_an_hour_cuts_it() -> None:
    """Lord Howe goes back from 2:00 to 1:30: 1:30 to 2:00 comes again, as a window of half an hour."""
    change = micros(2023, 4, 1, 15)
    spec = WindowSpec(type="calendar", unit="hour")
    assert bounds([change - 1, change], spec, "Australia/Lord_Howe") == [(change - HOUR, change), (change, change + HOUR // 2)]


def test_a_day_that_begins_again_a_minute_later_has_begun() -> None:
    """St. John's used to go back from 0:01 to 23:01: the day begins at the first midnight, and the windows still tile time."""
    spec = WindowSpec(type="calendar", unit="day")
    midnight = micros(2010, 11, 7, 2, 30)
    minute = 60_000_000
    got = bounds([midnight - 1, midnight, midnight + 30 * minute, midnight + 70 * minute], spec, "America/St_Johns")
    assert got == [(midnight - DAY, midnight), *[(midnight, midnight + 25 * HOUR)] * 3]


def test_calendar_windows_tile_a_century() -> None:
    t = np.arange(micros(1930, 1, 1), micros(2030, 1, 1), 61 * HOUR + 1234567, dtype=np.int64)
    for zone in ("America/St_Johns", "Europe/Amsterdam", "Africa/Monrovia"):
        for unit in ("hour", "day", "month"):
            start, end = window_bounds(t, WindowSpec(type="calendar", unit=unit), zone)
            assert ((start <= t) & (t < end)).all()
            begins, first = np.unique(start, return_index=True)
            assert (end[first][:-1] <= begins[1:]).all()


def test_a_day_of_the_distant_past_and_scattered_days_have_windows() -> None:
    t = [micros(1, 1, 5), micros(1883, 11, 18, 17), micros(2013, 1, 1), micros(9999, 12, 30)]
    for start, end in bounds(t, WindowSpec(type="calendar", unit="day"), "America/New_York"):
        assert 0.9 * DAY < end - start < 1.1 * DAY


def test_a_row_without_a_time_is_a_dead_letter_not_lost() -> None:
    far = pa.scalar(2**62, pa.int64()).cast(pa.timestamp("us", "UTC"))
    times = pa.array([0, None, 1], pa.int64()).cast(pa.timestamp("us", "UTC"))
    batch = pa.record_batch({"t": pa.concat_arrays([times, pa.array([far.value], pa.int64()).cast(times.type)]), "x": [1, 2, 3, 4]})
    out = assign_windows(batch, WindowSpec(size="1h"), time="t", name="hourly")
    assert out.rows.column("x").to_pylist() == [1, 3]
    assert out.dead.column("reason").to_pylist() == ["TIME", "TIME"]
    assert out.dead.column("stage").to_pylist() == ["aggregate"] * 2
    assert "hourly" in out.dead.column("message")[0].as_py()
    assert b'"x":2' in out.dead.column("raw")[0].as_py()


@pytest.mark.parametrize(
    "kind", [pa.timestamp("s", "UTC"), pa.timestamp("ms", "Asia/Tokyo"), pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC")]
)
def test_instants_of_any_unit_and_zone_are_the_same_instant(kind: pa.DataType) -> None:
    times = pa.array([datetime(1969, 12, 31, 23, 30, tzinfo=UTC), datetime(2020, 1, 1, 5, 30, tzinfo=UTC)], kind)
    rows = assign_windows(pa.record_batch({"t": times}), WindowSpec(size="1h"), time="t").rows
    assert rows.column("_window_start").to_pylist() == [datetime(1969, 12, 31, 23, tzinfo=UTC), datetime(2020, 1, 1, 5, tzinfo=UTC)]


@pytest.mark.parametrize("column", [pa.array([date(2018, 11, 4)]), pa.array([datetime(2018, 11, 4)], pa.timestamp("us"))])
def test_dates_and_civil_times_are_read_on_the_zones_clock(column: pa.Array) -> None:
    rows = assign_windows(
        pa.record_batch({"t": column}), WindowSpec(type="calendar", unit="day"), time="t", time_zone="America/Sao_Paulo"
    ).rows
    assert rows.column("_window_start").to_pylist() == [datetime(2018, 11, 4, 3, tzinfo=UTC)]  # 0:00 is skipped; the day begins at 1:00


def test_without_windowing_there_is_one_window_and_sessions_need_more_than_a_row() -> None:
    batch = pa.record_batch({"x": [1]})
    assert assign_windows(batch, None, time=None).rows.column("_window_start").to_pylist() == [None]
    with pytest.raises(SpecError, match="depend on other rows"):
        assign_windows(batch, WindowSpec(type="sessions", gap="1h"), time="x")


@pytest.mark.parametrize(("time", "message"), [(None, "need a time column"), ("tt", "did you mean 't'"), ("x", "has type int64")])
def test_a_time_column_that_is_none_is_explained(time: str | None, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        assign_windows(pa.record_batch({"x": [1], "t": instants(np.array([0]))}), WindowSpec(size="1h"), time=time)


def test_lateness_is_arrival_against_the_windows_end_and_unknown_arrival_is_on_time() -> None:
    spec = WindowSpec(size="1h", watermark_delay="5s", allowed_lateness="1h")
    end = 7 * HOUR
    arrivals = pa.array([0, end, end + 5_000_000, end + 5_000_001, end + HOUR, end + HOUR + 1, None], pa.int64()).cast(
        pa.timestamp("us", "UTC")
    )
    got = classify(arrivals, instants(np.full(7, end)), spec).to_pylist()
    assert got == ["on_time", "on_time", "on_time", "late", "late", "too_late", "on_time"]
    assert classify(arrivals[3:4], instants(np.array([end])), WindowSpec(size="1h")).to_pylist() == ["too_late"]


@settings(deadline=None, max_examples=100)
@given(st.integers(-(10**6), 10**6), st.integers(1, 1000), st.integers(0, 1000), st.integers(0, 5000))
def test_a_sliding_row_is_judged_by_its_earliest_window(t: int, period: int, more: int, offset: int) -> None:
    spec = WindowSpec(type="sliding", size=period + more, period=period, offset=offset)
    assert own_window_end(np.array([t]), np.array([0]), spec).tolist() == [min(e for _, e in windows_of(t, spec, "UTC"))]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "sliding", "size": "1d", "period": "1s"}, "86400 windows"),
        ({"type": "sliding", "size": "1h", "period": "2h"}, "would vanish"),
        ({"type": "sessions", "gap": "2d"}, "max_length"),
        ({"type": "calendar", "unit": "day", "time_zone": "Mars/Olympus"}, "IANA"),
        ({"size": "9999999w"}, "18,000 years"),
        ({"size": "1h", "gap": "1h"}, "takes no 'gap'"),
    ],
)
def test_a_window_that_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowSpec(**fields)  # type: ignore[arg-type]


def test_a_slice_and_an_empty_batch_keep_their_columns() -> None:
    batch = pa.record_batch({"t": instants(np.arange(5) * HOUR), "x": pa.array(["a", "b", "c", "d", "e"]).dictionary_encode()})
    for spec in (WindowSpec(size="2h"), WindowSpec(type="sliding", size="2h", period="1h"), WindowSpec(type="calendar", unit="hour")):
        assert assign_windows(batch.slice(2, 2), spec, time="t").rows.column("x").to_pylist()[0] == "c"
        assert assign_windows(batch.slice(0, 0), spec, time="t").rows.num_rows == 0
    assert timedelta(microseconds=HOUR) == timedelta(hours=1)
