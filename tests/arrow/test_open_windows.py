"""The last panes of a stream are a batch's panes: whatever the order, the batches, the progress of time, and what is taken back."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.aggregate import AggregateSpec, Trigger
from beam_pipelines.arrow.open_sessions import OpenSessions
from beam_pipelines.arrow.open_windows import OpenWindows
from beam_pipelines.arrow.panes import aggregate_batch
from beam_pipelines.arrow.schema import CHANGE, provenance
from beam_pipelines.arrow.stream_partials import Arrivals, arrivals
from beam_pipelines.arrow.window_panes import Fired, Shard
from beam_pipelines.arrow.windowing import instants, late_rank
from beam_pipelines.arrow.windows import WindowSpec

HOUR, MINUTE = 3_600_000_000, 60_000_000
LATENESS = {"watermark_delay": "10m", "allowed_lateness": "2h"}
WINDOWINGS = {
    "fixed": WindowSpec(size="1h", offset="10m", **LATENESS),
    "sliding": WindowSpec(type="sliding", size="90m", period="40m", **LATENESS),
    "day": WindowSpec(type="calendar", unit="day", time_zone="America/New_York", **LATENESS),
    "sessions": WindowSpec(type="sessions", gap="45m", max_length="4h", **LATENESS),
}
MEASURES = {
    "n": "count()",
    "s": "sum(x)",
    "hi": "max(f)",
    "first": "first(x)",
    "last": "last(x) where x <> 3",
    "d": "count_distinct(x)",
    "sd": "stddev(x)",
    "mean": "avg(f)",
    "q": "quantile(x, 0.5)",
    "wide": "sum(x::HUGEINT) where x > 0",
}
SHARDS = 2


@dataclass(frozen=True)
class Event:
    """A row that comes, or (`change` -1) one that is taken back."""

    position: int
    g: str | None
    t: int
    x: int | None
    arrival: int | None
    change: int = 1

    @property
    def clock(self) -> int:
        return self.t if self.arrival is None else self.arrival


def batch_of(events: Sequence[Event]) -> pa.RecordBatch:
    arrival = pa.array([e.arrival for e in events], pa.int64()).cast(pa.timestamp("us", "UTC"))
    plus = [e if e.change > 0 else None for e in events]
    columns = dict(
        zip(
            ("_source", "_position", "_arrival_time"),
            provenance("s", pa.array([e.position for e in events], pa.int64()), arrival),
            strict=True,
        )
    )
    columns |= {
        "g": pa.array([e and e.g for e in plus], pa.string()),
        "t": instants(np.array([e.t for e in events], np.int64)),
        "x": pa.array([e and e.x for e in plus], pa.int32()),
        "f": pa.array([None if e is None or e.x is None else e.x / 4 for e in plus], pa.float64()),
        CHANGE: pa.array([e.change for e in events], pa.int8()),
    }
    return pa.record_batch(columns)


def spec_of(
    windowing: str, *, group_by: Sequence[str] = ("g",), trigger: Trigger = Trigger(), measures: dict[str, str] = MEASURES
) -> AggregateSpec:
    return AggregateSpec(windowing=WINDOWINGS[windowing], group_by=group_by, measures=measures, trigger=trigger)


@dataclass
class Stream:
    """The shards of an aggregate with a clock turned by hand, and all panes that came of them."""

    spec: AggregateSpec
    corrections: bool = True
    closed_before: int | None = None
    reload: bool = False
    panes: list[dict[str, Any]] = field(default_factory=list)
    dead: list[dict[str, Any]] = field(default_factory=list)
    stale: dict[int, int] = field(default_factory=dict)
    watermark: int = -(2**60)

    def __post_init__(self) -> None:
        self.arrive = _arrivals(self.spec)
        self.shards = [self._new(i) for i in range(SHARDS)]

    def _new(self, number: int) -> Any:
        sessions = self.spec.windowing is not None and self.spec.windowing.type == "sessions"
        return (OpenSessions if sessions else OpenWindows)(self._shard(number))

    def _shard(self, number: int) -> Shard:
        types = self.arrive.types if self.corrections else ()
        return Shard(self.spec, self.arrive.kept, types, self.corrections, 7, self.closed_before, number, SHARDS)

    def add(self, events: Sequence[Event]) -> None:
        batch = batch_of(events)
        at = min((e.clock for e in events), default=None)
        if self.corrections:
            arrived = self.arrive.inputs(batch)
            shard = arrived.kept.column(self.arrive.kept.groups[-1]).to_numpy() % SHARDS
            everywhere = arrived.kept.column(CHANGE).to_numpy() < 0
        else:
            arrived = self.arrive.partials(batch)
            shard = arrived.kept.column(self.arrive.kept.groups[-1]).to_numpy() % SHARDS
            everywhere = np.zeros(len(shard), bool)
        self.dead += arrived.dead.to_pylist()
        for i in range(SHARDS):
            mine = arrived.kept.filter(pa.array(everywhere | (shard == i)))
            if mine.num_rows:
                self._take(i, self.shards[i].add(mine, at=at))

    def advance(self, watermark: int) -> None:
        """The watermark passes; timers fire as a runner fires them, each at the time it was set for."""
        self.watermark = max(watermark, self.watermark)
        for i in range(SHARDS):
            for _ in range(10_000):
                due = self.shards[i].due()
                if due is None or due > self.watermark:
                    break
                self._take(i, self.shards[i].advance(due))
            else:
                raise AssertionError("timers never end")
        if self.reload:
            for i, shard in enumerate(self.shards):
                self.shards[i] = self._new(i)
                self.shards[i].load(shard.dump())

    def drain(self) -> None:
        for i, shard in enumerate(self.shards):
            self._take(i, shard.advance(shard.due() or 0, drained=True))

    def _take(self, number: int, fired: Fired) -> None:
        for batch in fired.panes:
            self.panes += batch.to_pylist()
            assert batch.num_rows
            assert batch.column("_epoch").unique().to_pylist() == [7]
        for start, n in fired.stale.items():
            self.stale[start] = self.stale.get(start, 0) + n

    def last(self) -> list[dict[str, Any]]:
        """The newest pane of each group and window, as a view takes them. Versions never go back."""
        newest: dict[Any, dict[str, Any]] = {}
        for pane in self.panes:
            key = (pane.get("g"), pane["_window_start"], pane["_window_end"])
            if key in newest:
                assert pane["_pane_index"] > newest[key]["_pane_index"]
            newest[key] = pane
        return [p for p in newest.values() if p["_pane"] != "retracted"]


@cache
def _planned(spec: str) -> Arrivals:
    made = AggregateSpec.model_validate_json(spec)
    return arrivals(made, batch_of([]).schema, name="agg", time="t", time_zone="UTC")


def _arrivals(spec: AggregateSpec) -> Arrivals:
    return _planned(spec.model_dump_json(exclude_unset=True))


VERSION = ("_pane", "_pane_index", "_epoch")


def comparable(panes: Iterable[dict[str, Any]]) -> list[Any]:
    found = [{k: v if not isinstance(v, float) else round(v, 9) for k, v in p.items() if k not in VERSION} for p in panes]
    return sorted(found, key=lambda p: (p["_window_start"], p["_window_end"], str(p.get("g"))))


def batch_panes(events: Iterable[Event], spec: AggregateSpec) -> list[Any]:
    gone = {e.position for e in events if e.change < 0}
    rows = list({e.position: e for e in events if e.change > 0 and e.position not in gone}.values())
    return comparable(aggregate_batch(batch_of(rows), spec, time="t", apply_lateness=True).panes.to_pylist()) if rows else []


times = st.one_of(st.integers(-8, 8).map(lambda i: i * HOUR // 2), st.integers(-6 * HOUR, 6 * HOUR))
delays = st.one_of(
    st.integers(-HOUR, 20 * MINUTE), st.integers(0, 4 * HOUR), st.none(), st.sampled_from([10 * MINUTE, HOUR, 2 * HOUR, 3 * HOUR])
)
row = st.builds(
    lambda g, t, x, delay: Event(0, g, t, x, None if delay is None else t + delay),
    st.sampled_from(["a", "b", None]), times, st.one_of(st.none(), st.integers(-9, 9)), delays,
)  # fmt: skip


triggers = st.builds(Trigger, early=st.sampled_from([None, "7m"]), late=st.sampled_from(["every_batch", "never"]))


def numbered(rows: Sequence[Event]) -> list[Event]:
    return [Event(i, r.g, r.t, r.x, r.arrival) for i, r in enumerate(rows)]


def micros(instant: Any) -> int:
    return int(pa.scalar(instant, pa.timestamp("us", "UTC")).cast(pa.int64()).as_py())


def by_end(panes: Sequence[dict[str, Any]], kind: str) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for pane in panes:
        if pane["_pane"] == kind:
            found.setdefault(micros(pane["_window_end"]), []).append(pane)
    return found


def play(stream: Stream, events: Sequence[Event], data: st.DataObject) -> None:
    """Events in a drawn order and in drawn batches, under any watermark that does not promise too much."""
    order = data.draw(st.permutations(events))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=5)))
    for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True):
        stream.add(order[a:b])
        most = min((e.clock for e in order[b:]), default=10 * HOUR)
        stream.advance(most - data.draw(st.sampled_from([0, 1, HOUR, 3 * HOUR])))
    stream.advance(100 * HOUR)


FEW, MANY = 100 if os.environ.get("LAWS") == "deep" else 3, 25
examples = pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


def hypothetically(examples: int, law: Any) -> None:
    """Runs a law on this many examples: few each time, many where there is time, most in the nightly run."""
    settings(max_examples=examples)(law)()


@examples
@pytest.mark.parametrize("corrections", [False, True])
@pytest.mark.parametrize("windowing", WINDOWINGS)
def test_the_last_panes_are_those_of_a_batch_with_the_streams_lateness(windowing: str, corrections: bool, examples: int) -> None:
    @given(rows=st.lists(row, max_size=20), data=st.data())
    def law(rows: list[Event], data: st.DataObject) -> None:
        events = numbered(rows)
        spec = spec_of(windowing, group_by=data.draw(st.sampled_from([(), ("g",)])), trigger=data.draw(triggers))
        stream = Stream(spec, corrections, reload=data.draw(st.booleans()))
        play(stream, events, data)
        assert comparable(stream.last()) == batch_panes(events, spec)
        assert not stream.stale
        assert all(shard.empty and shard.due() is None for shard in stream.shards)

    hypothetically(examples, law)


@examples
@pytest.mark.parametrize("windowing", WINDOWINGS)
def test_what_is_taken_back_and_what_comes_twice_leaves_no_trace(windowing: str, examples: int) -> None:
    @given(rows=st.lists(row, max_size=16), data=st.data())
    def law(rows: list[Event], data: st.DataObject) -> None:
        came = numbered(rows)
        again = data.draw(st.lists(st.sampled_from(came), max_size=4)) if came else []
        back = data.draw(st.lists(st.sampled_from(came), max_size=6)) if came else []
        events = [*came, *again, *(Event(e.position, None, e.t, None, e.arrival, -1) for e in back)]
        spec = spec_of(windowing, trigger=data.draw(triggers))
        stream = Stream(spec, reload=data.draw(st.booleans()))
        play(stream, events, data)
        assert comparable(stream.last()) == batch_panes(events, spec)
        assert all(shard.empty and shard.due() is None for shard in stream.shards)

    hypothetically(examples, law)


@examples
@pytest.mark.parametrize("windowing", ["fixed", "sliding", "day"])
def test_a_pane_on_time_holds_the_rows_that_arrived_in_time_for_its_window(windowing: str, examples: int) -> None:
    @given(rows=st.lists(row, max_size=16), data=st.data())
    def law(rows: list[Event], data: st.DataObject) -> None:
        events, spec = numbered(rows), spec_of(windowing, trigger=data.draw(triggers))
        stream = Stream(spec, data.draw(st.booleans()))
        play(stream, events, data)
        for end, panes in by_end(stream.panes, "on_time").items():
            in_time = [e for e in events if e.arrival is None or e.arrival <= end + 10 * MINUTE]
            expected = [p for p in batch_panes(in_time, spec) if micros(p["_window_end"]) == end]
            assert comparable(panes) == expected

    hypothetically(examples, law)


@examples
@pytest.mark.parametrize("corrections", [False, True])
def test_sessions_without_end_are_cut_as_a_batch_cuts_them_though_their_beginning_is_forgotten(corrections: bool, examples: int) -> None:
    spec = AggregateSpec(
        windowing=WindowSpec(type="sessions", gap="10m", max_length="30m", allowed_lateness="15m"),
        group_by=["g"],
        measures={"n": "count()", "s": "sum(x)"},
    )

    @given(
        pauses=st.lists(st.sampled_from([3, 7, 8, 9, 9, 9, 10, 25]), min_size=10, max_size=30),
        lates=st.lists(st.integers(0, 24), min_size=40, max_size=40),
        data=st.data(),
    )
    def law(pauses: list[int], lates: list[int], data: st.DataObject) -> None:
        times = np.cumsum(pauses).tolist()
        events = [
            Event(i, "ab"[i % 7 == 3], t * MINUTE, i, (t + late) * MINUTE) for i, (t, late) in enumerate(zip(times, lates, strict=False))
        ]
        stream = Stream(spec, corrections, reload=data.draw(st.booleans()))
        order = sorted(events, key=lambda e: e.clock)
        for i, e in enumerate(order):
            stream.add([e])
            stream.advance(order[min(i + 1, len(order) - 1)].clock)
        stream.advance(1_000 * HOUR)
        assert comparable(stream.last()) == batch_panes(events, spec)
        assert all(shard.empty and shard.due() is None for shard in stream.shards)

    hypothetically(examples, law)


@pytest.mark.parametrize("windowing", WINDOWINGS)
def test_state_does_not_grow_with_the_age_of_a_stream(windowing: str) -> None:
    stream = Stream(spec_of(windowing, measures={"n": "count()"}))
    sizes = []
    for hour in range(60):
        stream.add([Event(60 * hour + i, "ab"[i % 2], hour * HOUR + i * MINUTE, i, hour * HOUR + i * MINUTE) for i in range(0, 60, 3)])
        stream.advance((hour + 1) * HOUR)
        sizes.append(sum(shard.nbytes for shard in stream.shards))
    assert max(sizes[40:]) <= 1.5 * max(sizes[20:40])


def test_what_comes_for_a_closed_window_changes_no_pane_and_is_counted_with_the_windows_start() -> None:
    for corrections in (True, False):
        stream = Stream(spec_of("fixed", measures={"n": "count()"}), corrections)
        stream.add([Event(1, "a", 15 * MINUTE, 1, 20 * MINUTE)])
        stream.advance(10 * HOUR)
        before = list(stream.panes)
        stream.add([Event(2, "a", 15 * MINUTE, 1, 30 * MINUTE)])  # in time, but behind the watermark
        if corrections:
            stream.add([Event(1, None, 15 * MINUTE, None, 20 * MINUTE, -1)])
        stream.advance(20 * HOUR)
        assert stream.panes == before
        assert stream.stale == {10 * MINUTE: 2 if corrections else 1}


@pytest.mark.parametrize("reload", [False, True])
@pytest.mark.parametrize("windowing", WINDOWINGS)
def test_a_row_of_a_closed_window_that_is_taken_back_is_stale_once_whichever_shard_had_it(windowing: str, reload: bool) -> None:
    """And what never was in it is not: a copy that came for it later, and was the worse."""
    for number, group in itertools.product((1, 2), "abcd"):
        stream = Stream(spec_of(windowing, measures={"n": "count()"}), reload=reload)
        stream.add([Event(number, group, 15 * MINUTE, 1, 20 * MINUTE)])
        stream.advance(10 * HOUR)
        before = list(stream.panes)
        for _ in range(2):
            stream.add(
                [Event(number, None, 15 * MINUTE, None, 20 * MINUTE, -1), Event(number + 2, None, 15 * MINUTE, None, 30 * MINUTE, -1)]
            )
            stream.advance(11 * HOUR)
        assert set(stream.stale.values()) == {1}
        assert set(stream.stale) == {p["_window_start"].timestamp() * 1_000_000 for p in before}
        assert stream.panes == before


@pytest.mark.parametrize("windowing", WINDOWINGS)
def test_a_restarted_stream_shows_again_the_windows_that_were_open_and_no_others(windowing: str) -> None:
    spec = spec_of(windowing, measures={"n": "count()"})
    events = [Event(i, "a", i * 17 * MINUTE, i, i * 17 * MINUTE) for i in range(120)]
    before = 22 * HOUR
    stream = Stream(spec, closed_before=before)
    for e in events:
        stream.add([e])
        stream.advance(e.clock)
    stream.advance(1_000 * HOUR)
    expected = batch_panes(events, spec)
    shown = comparable(stream.last())
    assert shown == [p for p in expected if p in shown]
    closes = 2 * HOUR + (45 * MINUTE if windowing == "sessions" else 0)
    assert {micros(p["_window_end"]) for p in shown} >= {
        micros(p["_window_end"]) for p in expected if micros(p["_window_end"]) + closes >= before
    }
    if windowing != "sessions":
        assert all(micros(p["_window_end"]) + closes >= before for p in shown)


def test_a_drained_stream_shows_each_open_window_once_with_all_its_rows() -> None:
    for windowing in WINDOWINGS:
        stream = Stream(spec_of(windowing, measures={"n": "count()"}, trigger=Trigger(early="7m")))
        stream.add([Event(i, "a", i * 10 * MINUTE, i, i * 10 * MINUTE) for i in range(12)])
        stream.advance(2 * HOUR)
        before = len(stream.panes)
        stream.drain()
        assert {p["_pane"] for p in stream.panes[before:]} <= {"drained", "retracted"}
        assert any(p["_pane"] == "drained" for p in stream.panes[before:])
        assert comparable(stream.last()) == batch_panes([Event(i, "a", i * 10 * MINUTE, i, None) for i in range(12)], stream.spec)
        assert all(shard.empty and shard.due() is None for shard in stream.shards)


def test_a_row_whose_expression_fails_is_a_dead_letter_and_taking_it_back_is_harmless() -> None:
    spec = spec_of("fixed", measures={"n": "count()", "s": "sum(x / (x - 3) + (x - 3)::UTINYINT)"})
    stream = Stream(spec)
    stream.add([Event(1, "a", 15 * MINUTE, 5, 0), Event(2, "a", 15 * MINUTE, 1, 0)])
    stream.add([Event(2, None, 15 * MINUTE, None, 0, -1)])
    stream.advance(10 * HOUR)
    assert [p["n"] for p in stream.panes] == [1]
    assert [(d["reason"], d["position"]) for d in stream.dead] == [("EXPRESSION", 2)]


def test_integers_of_128_bits_come_back_whole_from_rows_that_are_kept() -> None:
    spec = spec_of("fixed", measures={"hi": "max(x::HUGEINT * 100000000000000000)", "w": "sum(x::DECIMAL(38,2))"})
    stream = Stream(spec)
    events = [Event(i, "a", 15 * MINUTE, 10**6 + i, 0) for i in range(5)]
    stream.add([*events, Event(9, "a", 15 * MINUTE, 7, 0)])
    stream.add([Event(9, None, 15 * MINUTE, None, 0, -1)])
    stream.advance(10 * HOUR)
    assert comparable(stream.last()) == batch_panes(events, spec)


def test_the_pieces_of_a_session_stay_pieces_though_its_beginning_has_closed() -> None:
    """Rows at 0, 9, … 63: what is left when [0, 30) has closed is shorter than `max_length`, and is cut all the same."""
    windowing = WindowSpec(type="sessions", gap="10m", max_length="30m", allowed_lateness="15m")
    spec = AggregateSpec(windowing=windowing, group_by=["g"], measures={"n": "count()"})
    events = [Event(i, "a", 9 * i * MINUTE, i, 9 * i * MINUTE) for i in range(8)]
    for corrections in (True, False):
        stream = Stream(spec, corrections)
        for e in events:
            stream.add([e])
            stream.advance(e.clock)
        stream.advance(1_000 * HOUR)
        assert [p["n"] for p in comparable(stream.last())] == [4, 3, 1]
        assert comparable(stream.last()) == batch_panes(events, spec)


def test_a_row_is_on_time_to_the_microsecond_for_each_of_its_windows() -> None:
    spec = WindowSpec(type="sliding", size="2h", period="1h", watermark_delay="10m")
    end, delay = 2 * HOUR, 10 * MINUTE  # of the first window over 01:30
    arrivals = [end + delay, end + delay + 1, end + HOUR + delay, end + HOUR + delay + 1]
    times = np.full(4, 90 * MINUTE)
    assert late_rank(instants(np.array(arrivals)), times, times, spec).tolist() == [0, 1, 1, 2]
    fixed = WindowSpec(size="2h", watermark_delay="10m")
    assert late_rank(instants(np.array(arrivals)), times, np.full(4, end), fixed).tolist() == [0, 1, 1, 1]
    assert late_rank(pa.array([None], pa.timestamp("us", "UTC")), times[:1], times[:1], fixed).tolist() == [0]


def test_a_watermark_that_stands_at_the_last_moment_of_a_window_does_not_show_it_yet() -> None:
    """Rows of that moment may still come; and runners' clocks have milliseconds only."""
    stream = Stream(spec_of("fixed", measures={"n": "count()"}), corrections=False)
    last = 80 * MINUTE  # end of [00:10, 01:10) and the delay
    stream.add([Event(1, "a", 15 * MINUTE, 1, 20 * MINUTE)])
    for shard in stream.shards:
        assert not shard.advance(last).panes
    assert {shard.due() for shard in stream.shards} == {None, last + 1_000}
    stream.add([Event(2, "a", 16 * MINUTE, 1, last)])
    stream.advance(last + 1_000)
    assert [(p["_pane"], p["n"]) for p in stream.panes] == [("on_time", 2)]
