"""The watermark: never back, never past what waits, still while nobody answers, on while there is nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.sources.pubsub_watermark import Patience, Watermark

SECOND = 1_000_000
START = 1_700_000_000 * SECOND


class Clock:
    """Seconds that a test turns; the time of day goes with it."""

    def __init__(self) -> None:
        self.now = 100.0

    def wall_micros(self) -> int:
        return START + round(self.now * SECOND)

    def watermark(self, **options: Any) -> Watermark:
        return Watermark(**options, now_s=lambda: self.now, wall_micros=self.wall_micros)

    def idle(self, watermark: Watermark, seconds: float) -> int | None:
        for _ in range(round(seconds * 2)):
            self.now += 0.5
            watermark.nothing()
            watermark.read()
        return watermark.read()


def told(watermark: Watermark, *arrivals: int) -> None:
    watermark.pulled(np.array(arrivals, np.int64))


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("pulled"), st.lists(st.integers(-(10**6), 10**9), max_size=5)),
        st.tuples(st.just("handed out"), st.none()),
        st.tuples(st.just("nothing"), st.none()),
        st.tuples(st.just("failed"), st.none()),
        st.tuples(st.just("begin"), st.none()),
        st.tuples(st.just("passed"), st.floats(0.01, 5)),
    ),
    max_size=60,
)


@given(EVENTS, st.booleans())
def test_it_never_goes_back_and_never_passes_what_waits(events: list[tuple[str, Any]], publish_clock: bool) -> None:
    clock = Clock()
    watermark = clock.watermark(publish_clock=publish_clock)
    waiting: list[int] = []
    before: int | None = None
    for event, value in events:
        if event == "pulled":
            told(watermark, *value)
            waiting += value
        elif event == "handed out":
            waiting = waiting[1:]
        elif event == "passed":
            clock.now += value
        else:
            getattr(watermark, event)()
        now = watermark.read(min(waiting, default=None))
        assert now == watermark.reported
        if before is not None:
            assert now is not None
            assert now >= before
        if now is not None and now != before and waiting:
            assert now <= min(waiting)
        before = now


@given(st.integers(1, 400), st.integers(1, 40), st.integers(0, 2**32), st.integers(0, 45))
def test_a_backlog_nearly_in_the_order_of_arrival_has_no_row_behind_the_watermark(
    rows: int, together: int, seed: int, displaced: int
) -> None:
    """Each row may come `displaced` answers later than its place, which is less than the second that is looked back."""
    clock = Clock()
    watermark = clock.watermark(publish_clock=True)
    late = np.random.default_rng(seed).integers(0, displaced * together + 1, rows)
    backlog = np.argsort(np.arange(rows) + late, kind="stable") * SECOND  # an answer holds many seconds of arrivals
    for start in range(0, rows, together):
        part = backlog[start : start + together]
        assert watermark.reported is None or part.min() >= watermark.reported
        told(watermark, *part.tolist())
        watermark.read()  # as if it was handed out at once
        clock.now += 0.02


@given(st.permutations(range(50)))
def test_what_is_pulled_within_a_second_may_come_in_any_order(order: list[int]) -> None:
    clock = Clock()
    watermark = clock.watermark(publish_clock=True)
    for arrival in order:
        clock.now += 0.015
        told(watermark, arrival)
        assert watermark.read() is None
    clock.now += 1
    told(watermark, 50)
    assert watermark.read() == 49


def test_in_a_slow_stream_it_follows_each_message_a_second_later() -> None:
    clock = Clock()
    watermark = clock.watermark(publish_clock=True)
    for second in range(10):
        told(watermark, second)
        clock.now += 1.2
        watermark.nothing()
        assert watermark.read() == second


def test_an_outage_stops_it_and_an_answer_lets_it_go_on() -> None:
    clock = Clock()
    watermark = clock.watermark(publish_clock=True)
    told(watermark, clock.wall_micros())
    stands = clock.idle(watermark, 1.5)
    told(watermark, clock.wall_micros())
    for _ in range(100):
        clock.now += 1
        watermark.failed()
        assert watermark.read() == stands
    clock.now += 1
    assert watermark.read() == stands  # nobody answered yet
    after = clock.idle(watermark, 5)
    assert after == clock.wall_micros() - SECOND


def test_pulls_that_nobody_answers_do_not_move_it() -> None:
    clock = Clock()
    watermark = clock.watermark(publish_clock=True)
    stands = clock.idle(watermark, 5)
    clock.now += 3_600
    assert watermark.read() == stands


def test_the_publish_clock_runs_with_the_time_of_day_even_if_nothing_was_ever_pulled() -> None:
    clock = Clock()
    watermark = clock.watermark(publish_clock=True, patience=Patience(idle_s=2, grace_s=1))
    assert watermark.read() is None
    assert clock.idle(watermark, 1) is None
    assert clock.idle(watermark, 10) == clock.wall_micros() - SECOND


def test_a_clock_of_an_attribute_is_unknown_until_a_message_says_it_and_then_runs_on() -> None:
    clock = Clock()
    watermark = clock.watermark(publish_clock=False)
    assert clock.idle(watermark, 100) is None
    told(watermark, 5 * SECOND, 7 * SECOND)
    assert clock.idle(watermark, 10) == (7 + 10 - 1) * SECOND


def test_a_message_from_the_future_moves_neither_a_busy_nor_an_idle_stream() -> None:
    clock = Clock()
    watermark = clock.watermark(publish_clock=False)
    for second in range(300):
        clock.now += 1.5
        told(watermark, second * SECOND)
        watermark.read()
    clock.now += 1.5
    told(watermark, 10**6 * SECOND)
    ahead = watermark.read()
    assert ahead is not None
    assert ahead < 300 * SECOND
    after = clock.idle(watermark, 10)
    assert after is not None
    assert after < 310 * SECOND


def test_while_the_archive_is_replayed_it_is_held_and_then_follows_the_live_messages() -> None:
    clock = Clock()
    watermark = clock.watermark(publish_clock=False, start=100, held=True)
    watermark.replayed(np.array([500, 900]))
    told(watermark, 800)
    assert clock.idle(watermark, 10) == 100
    watermark.release()
    assert watermark.read(800) == 100  # idle counts from now on
    told(watermark, 850)
    clock.now += 1
    told(watermark, 870)
    assert watermark.read(800) == 800
    assert watermark.read() == 870


def test_after_a_replay_an_idle_stream_runs_on_from_the_newest_archived_arrival() -> None:
    clock = Clock()
    watermark = clock.watermark(publish_clock=False, start=100, held=True)
    watermark.replayed(np.array([5 * SECOND]))
    watermark.release()
    assert watermark.read() == 100
    assert clock.idle(watermark, 10) == 14 * SECOND


@given(st.floats(-20, 9), st.lists(st.floats(0, 0.5), min_size=1, max_size=20), st.floats(3, 60))
def test_the_publish_clock_of_an_idle_stream_never_passes_the_service_s_even_if_ours_is_fast(
    fast_s: float, on_their_way: list[float], idle_s: float
) -> None:
    clock = Clock()
    watermark = clock.watermark(publish_clock=True)
    for seconds in on_their_way:
        clock.now += 1.5
        told(watermark, clock.wall_micros() - round((fast_s + seconds) * SECOND))
    found = clock.idle(watermark, idle_s)
    service = clock.wall_micros() - round(fast_s * SECOND)
    assert found is not None
    assert service - SECOND - 600_000 <= found <= service - SECOND


def test_after_an_old_backlog_an_idle_stream_is_ten_seconds_more_behind_and_no_longer() -> None:
    """What of the age of a backlog is a clock that is fast nobody knows."""
    clock = Clock()
    watermark = clock.watermark(publish_clock=True)
    told(watermark, clock.wall_micros() - 3_600 * SECOND)
    assert clock.idle(watermark, 5) == clock.wall_micros() - 11 * SECOND
    told(watermark, clock.wall_micros())
    assert clock.idle(watermark, 5) == clock.wall_micros() - SECOND


def test_while_it_is_idle_it_follows_another_process_that_reads_the_subscription() -> None:
    clock = Clock()
    watermark = clock.watermark(publish_clock=False)
    assert clock.idle(watermark, 5) is None
    assert watermark.read(None, 70 * SECOND) == 70 * SECOND
    assert watermark.read(65 * SECOND, 80 * SECOND) == 70 * SECOND, "what waits here is handed out first"
    told(watermark, 75 * SECOND)
    clock.now += 1
    assert watermark.read(None, 90 * SECOND) == 70 * SECOND, "with messages it knows better"
