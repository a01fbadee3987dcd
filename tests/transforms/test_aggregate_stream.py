"""Aggregate over an endless collection: what is shown when, on a runner's own clock; the laws themselves are in tests/arrow/test_open_windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines import arrival_clock, draining, durable
from beam_pipelines.arrow.aggregate import AggregateSpec, Trigger
from beam_pipelines.arrow.schema import CHANGE, provenance
from beam_pipelines.arrow.windowing import instants
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.errors import SpecError
from beam_pipelines.transforms import aggregate_stream, keyed_state
from beam_pipelines.transforms.aggregate import Aggregate
from tests.prism import prism_program, run_on_prism
from tests.runners.prism_source import See, numbers, reset

MINUTE = 60_000_000
MEASURES = {"n": "count()", "s": "sum(x)", "hi": "max(x)", "d": "count_distinct(x)", "sd": "stddev(x)"}
HOURLY = WindowSpec(size="1h", allowed_lateness="2h")
Row = tuple[int, str, float, int]
"""(position, group, event minute, x), or a negative x for a row that is taken back"""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    draining.reset()
    yield
    draining.reset()
    arrival_clock.reset()
    durable.reset()
    keyed_state.forget()


def batch(arrival: float, *rows: Row) -> pa.RecordBatch:
    """Rows that arrive together, at this minute; what is taken back had arrived when it happened."""
    plus = [r[3] >= 0 for r in rows]
    columns = dict(
        zip(
            ("_source", "_position", "_arrival_time"),
            provenance("s", pa.array([r[0] for r in rows], pa.int64()), at([arrival if r[3] >= 0 else r[2] for r in rows])),
            strict=True,
        )
    )
    columns |= {
        "g": pa.array([r[1] if ok else None for r, ok in zip(rows, plus, strict=True)], pa.string()),
        "t": at([r[2] for r in rows]),
        "x": pa.array([r[3] if ok else None for r, ok in zip(rows, plus, strict=True)], pa.int64()),
        CHANGE: pa.array([1 if ok else -1 for ok in plus], pa.int8()),
    }
    return pa.record_batch(columns)


def at(minutes: Sequence[float]) -> pa.Array:
    return instants(pa.array([round(m * MINUTE) for m in minutes], pa.int64()).to_numpy())


class Timeline:
    """Rows and watermarks, in minutes of the arrival clock."""

    def __init__(self) -> None:
        self.stream = test_stream.TestStream(coder=beam.coders.registry.get_coder(pa.RecordBatch))

    def rows(self, arrival: float, *rows: Row) -> Timeline:
        self.stream.add_elements([TimestampedValue(batch(arrival, *rows), Timestamp(micros=round(arrival * MINUTE)))])
        return self

    def watermark(self, minute: float) -> Timeline:
        self.stream.advance_watermark_to(Timestamp(micros=round(minute * MINUTE)))
        return self


Judge = Callable[[list[Any]], None]


def run(
    timeline: Timeline, windowing: WindowSpec | None = HOURLY, *, trigger: Trigger = Trigger(), judges: dict[str, Judge], **more: Any
) -> None:
    spec = AggregateSpec(windowing=windowing, group_by=["g"], measures=MEASURES, trigger=trigger)
    timeline.watermark(10_000).stream.advance_watermark_to_infinity()  # this runner fires no timers at infinity
    with beam.Pipeline("BundleBasedDirectRunner", options=PipelineOptions(["--streaming"])) as pipeline:
        out = pipeline | timeline.stream | Aggregate(spec, name="agg", time="t", **more)
        for name, judge in judges.items():
            assert_that(getattr(out, name), lambda found, judge=judge: judge(list(found)), label=name)


def shown(panes: list[pa.RecordBatch]) -> list[tuple[Any, ...]]:
    """(window start and end in minutes, group, kind, index, n, sum), in order of version."""
    rows = [r for b in panes for r in b.to_pylist()]
    minute = lambda t: round(t.timestamp() / 60, 3)  # noqa: E731
    found = [(minute(r["_window_start"]), minute(r["_window_end"]), r["g"], r["_pane"], r["_pane_index"], r["n"], r["s"]) for r in rows]
    return sorted(found, key=lambda r: (r[0], r[1], r[2], r[4]))


def showing(*expected: tuple[Any, ...]) -> Judge:
    def judge(panes: list[pa.RecordBatch]) -> None:
        assert shown(panes) == list(expected), shown(panes)

    return judge


def counted(**expected: int) -> Judge:
    def judge(counts: list[tuple[Any, ...]]) -> None:
        found: dict[str, int] = {}
        for _, _, outcome, _, n in counts:
            found[outcome] = found.get(outcome, 0) + n
        assert found == expected, counts

    return judge


def test_a_window_is_shown_once_the_watermark_has_passed_its_end_and_again_for_late_rows() -> None:
    timeline = Timeline().rows(10, (1, "a", 5, 1)).rows(50, (2, "a", 45, 2), (3, "b", 50, 5)).watermark(61)
    timeline.rows(70, (4, "a", 59, 4)).watermark(120).rows(130, (5, "c", 0, 7)).watermark(200)
    expected = [
        (0, 60, "a", "on_time", 0, 2, 3),
        (0, 60, "a", "late", 1, 3, 7),
        (0, 60, "b", "on_time", 0, 1, 5),
        (0, 60, "c", "late", 1, 1, 7),
    ]
    by_shard = sorted(expected, key=lambda r: (r[0], r[1], r[2], r[4]))

    def judge(panes: list[pa.RecordBatch]) -> None:
        found = shown(panes)
        assert [r[:4] + r[5:] for r in found] == [r[:4] + r[5:] for r in by_shard]
        assert all(a[4] < b[4] for a, b in zip(found, found[1:], strict=False) if a[2] == b[2])

    run(timeline, judges={"panes": judge, "counts": counted(aggregated=5)})


def test_one_event_two_hours_ahead_does_not_make_real_data_late() -> None:
    """Time is the arrival: what a row says about itself moves no clock."""
    timeline = Timeline().rows(5, (1, "a", 125, 1)).watermark(6).rows(10, (2, "a", 8, 2)).watermark(11).rows(30, (3, "a", 29, 3))
    run(
        timeline,
        judges={
            "panes": showing((0, 60, "a", "on_time", 0, 2, 5), (120, 180, "a", "on_time", 0, 1, 1)),
            "dead": lambda dead: None if not dead else pytest.fail(str(dead)),
            "counts": counted(aggregated=3),
        },
    )


def test_a_row_later_than_allowed_is_a_dead_letter_that_names_the_aggregate() -> None:
    timeline = Timeline().rows(10, (1, "a", 5, 1)).watermark(180).rows(181, (2, "a", 6, 2)).watermark(200)

    def judge(dead: list[pa.RecordBatch]) -> None:
        [letter] = [r for b in dead for r in b.to_pylist()]
        assert (letter["reason"], letter["position"]) == ("LATE", 2)
        assert letter["message"].startswith("agg: arrived at 1970-01-01 03:01")

    run(timeline, judges={"panes": showing((0, 60, "a", "on_time", 0, 1, 1)), "dead": judge, "counts": counted(aggregated=1, late=1)})


def test_early_panes_come_with_the_arrival_clock_while_there_is_news() -> None:
    timeline = (
        Timeline().rows(1, (1, "a", 1, 1)).watermark(9).watermark(21).watermark(35).rows(36, (2, "a", 34, 2)).watermark(59).watermark(61)
    )
    expected = showing((0, 60, "a", "early", 0, 1, 1), (0, 60, "a", "early", 1, 2, 3), (0, 60, "a", "on_time", 2, 2, 3))
    run(timeline, trigger=Trigger(early="10m"), judges={"panes": expected})


def test_late_rows_are_shown_once_at_the_close_where_the_trigger_says_never() -> None:
    timeline = (
        Timeline().rows(10, (1, "a", 5, 1)).watermark(61).rows(70, (2, "a", 6, 2)).watermark(90).rows(95, (3, "a", 7, 4)).watermark(200)
    )
    expected = showing((0, 60, "a", "on_time", 0, 1, 1), (0, 60, "a", "late", 1, 3, 7))
    run(timeline, trigger=Trigger(late="never"), judges={"panes": expected})


def test_a_drained_stream_shows_open_windows_as_drained() -> None:
    timeline = Timeline().rows(10, (1, "a", 5, 1)).watermark(61).rows(70, (2, "a", 65, 2), (3, "a", 7, 3)).watermark(75)
    draining.end(75 * MINUTE)  # the stream's end: the watermark goes to infinity from here
    expected = showing((0, 60, "a", "on_time", 0, 1, 1), (0, 60, "a", "late", 1, 2, 4), (60, 120, "a", "drained", 0, 1, 2))
    run(timeline, judges={"panes": expected})


def test_sessions_join_over_a_late_row_and_take_back_what_they_were() -> None:
    timeline = Timeline().rows(1, (1, "a", 0, 1)).rows(16, (2, "a", 15, 2)).watermark(40).rows(41, (3, "a", 8, 4)).watermark(100)
    expected = showing(
        (0, 10, "a", "on_time", 0, 1, 1),
        (0, 10, "a", "retracted", 2, None, None),
        (0, 25, "a", "late", 3, 3, 7),
        (15, 25, "a", "on_time", 1, 1, 2),
        (15, 25, "a", "retracted", 2, None, None),
    )
    run(timeline, WindowSpec(type="sessions", gap="10m", allowed_lateness="1h"), judges={"panes": expected})


@pytest.mark.parametrize("order", ["old first", "new first"])
def test_a_better_copy_moves_a_row_to_another_group_with_another_measure(order: str) -> None:
    """Version 1 is counted and shown; then version 2 comes, with another measure in another group."""
    change: list[Row] = [(1, "a", 5, -1), (9, "b", 5, 6)]
    timeline = Timeline().rows(10, (1, "a", 5, 1), (2, "a", 6, 3), (3, "b", 7, 2), (4, "c", 8, 1)).watermark(61)
    timeline.rows(70, *(change if order == "old first" else change[::-1])).watermark(80).rows(81, (4, "c", 8, -1)).watermark(200)

    def judge(panes: list[pa.RecordBatch]) -> None:
        rows = sorted((r for b in panes for r in b.to_pylist()), key=lambda r: r["_pane_index"])
        last = {r["g"]: tuple(r[m] for m in (*MEASURES, "_pane")) for r in rows}
        assert last == {"a": (1, 3, 3, 1, None, "late"), "b": (2, 8, 6, 2, 2.8284271247461903, "late"), "c": (None,) * 5 + ("retracted",)}

    run(timeline, judges={"panes": judge, "counts": counted(aggregated=5, superseded=2)})


def test_a_correction_of_a_closed_window_is_counted_as_stale_with_its_window() -> None:
    timeline = Timeline().rows(10, (1, "a", 5, 1)).watermark(300).rows(301, (1, "a", 5, -1), (2, "a", 290, 1)).watermark(400)

    def judge(counts: list[tuple[Any, ...]]) -> None:
        assert ("", "stale", "agg@1970-01-01 00:00:00.000000Z", 1) in [c[1:] for c in counts], counts

    run(timeline, judges={"counts": judge})


def test_state_alone_gives_the_same_panes() -> None:
    """A worker that remembers nothing reads its log again."""
    timeline = Timeline().rows(10, (1, "a", 5, 1), (2, "b", 6, 1)).watermark(30).rows(31, (3, "a", 7, 2), (2, "b", 6, -1)).watermark(61)
    timeline.rows(70, (4, "a", 8, 4), (3, "a", 7, 2)).watermark(200)

    class Forgetful(dict):  # type: ignore[type-arg]
        def __setitem__(self, key: Any, value: Any) -> None:
            pass

        def move_to_end(self, key: Any) -> None:
            pass

    known, keyed_state._known = keyed_state._known, Forgetful()  # type: ignore[assignment]
    try:
        run(timeline, judges={"panes": showing((0, 60, "a", "on_time", 0, 2, 3), (0, 60, "a", "late", 1, 3, 7))})
    finally:
        keyed_state._known = known


def test_memory_alone_gives_the_same_panes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is the state, nothing else is written."""
    timeline = Timeline().rows(10, (1, "a", 5, 1), (2, "b", 6, 1)).watermark(30).rows(31, (3, "a", 7, 2), (2, "b", 6, -1)).watermark(61)
    timeline.rows(70, (4, "a", 8, 4), (3, "a", 7, 2)).watermark(200)
    monkeypatch.setattr(aggregate_stream, "_blob", lambda *written: pytest.fail("written to state"))
    keyed_state.resident(True)
    try:
        run(timeline, judges={"panes": showing((0, 60, "a", "on_time", 0, 2, 3), (0, 60, "a", "late", 1, 3, 7))})
    finally:
        keyed_state.resident(False)


def test_windows_that_an_earlier_process_closed_are_not_shown_again() -> None:
    timeline = Timeline().rows(10, (1, "a", 5, 1), (2, "a", 70, 2), (1, "a", 5, -1)).watermark(400)
    run(
        timeline,
        closed_before=200 * MINUTE,
        judges={"panes": showing((60, 120, "a", "on_time", 0, 1, 2)), "counts": counted(aggregated=2, superseded=1)},
    )


def test_a_timer_is_late_for_the_sources_sake_and_where_they_are_in_several_processes_by_so_much_at_most() -> None:
    """One timer for all windows up to where the sources are; what it is late for is owed, or reckoned with."""

    class Due:
        def set(self, timestamp: Timestamp) -> None:
            self.at = timestamp.micros

    arrival_clock.tell("source", 10 * MINUTE)
    owed = []
    for most in (None, 3 * MINUTE):
        durable.reset()
        held, due = aggregate_stream._Held(None, {}), Due()  # type: ignore[arg-type]
        spec = AggregateSpec(windowing=WindowSpec(size="1m"), measures={"n": "count()"})
        show = aggregate_stream.ShowWindows(spec, aggregate_stream.Streaming(ahead=True, most_ahead=most), "n")
        show._wake(held, due, MINUTE)
        owed.append((due.at, durable.all_shown(2 * MINUTE)))
    assert owed == [(10 * MINUTE, MINUTE), (4 * MINUTE, 2 * MINUTE)]


def test_without_corrections_only_accumulators_are_kept_and_rows_that_are_taken_back_are_refused() -> None:
    timeline = Timeline().rows(10, (1, "a", 5, 1), (1, "a", 5, 1)).watermark(61)
    run(timeline, corrections=False, judges={"panes": showing((0, 60, "a", "on_time", 0, 2, 2))})
    with pytest.raises(RuntimeError, match=r"RunError: agg: rows are taken back \(_change -1\)"):
        run(Timeline().rows(10, (1, "a", 5, -1)), corrections=False, judges={})


def test_a_stream_without_windows_is_refused() -> None:
    with pytest.raises(SpecError, match="agg: a stream has no end, and without windows this aggregate waits for it"):
        run(Timeline(), None, judges={})


def _one(number: int) -> pa.RecordBatch:
    return batch(number / 60, (number, "ab"[number % 2], number / 60, number))


def _told(panes: pa.RecordBatch) -> list[tuple[Any, ...]]:
    return [(*row[:4], *row[5:]) for row in shown([panes])]


def test_on_prism_a_stream_shows_every_window_on_time_and_all_rows() -> None:
    """Number n arrives at second n; windows of ten seconds."""
    seen = reset()
    spec = AggregateSpec(windowing=WindowSpec(size="10s"), group_by=["g"], measures=MEASURES)

    def build(pipeline: beam.Pipeline) -> None:
        rows = numbers(pipeline, 47) | "Row" >> beam.Map(_one).with_output_types(pa.RecordBatch)
        panes = (rows | Aggregate(spec, name="agg", time="t")).panes
        _ = panes | "Told" >> beam.FlatMap(_told) | "See" >> beam.ParDo(See())

    run_on_prism(build, flags=[f"--prism_location={prism_program()}"])
    expected = []
    for start in range(0, 47, 10):
        for g in (0, 1):
            mine = [n for n in range(start, min(start + 10, 47)) if n % 2 == g]
            expected.append((round(start / 60, 3), round((start + 10) / 60, 3), "ab"[g], "on_time", len(mine), sum(mine)))
    assert sorted(seen.numbers) == sorted(expected)
