"""The newest start's account counts, whatever an older process still writes down; and what it says holds what is not stored back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines import arrival_clock, durable
from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.sinks.reached import Reached, begin, starts, write_progress
from beam_pipelines.transforms.aggregate_stream import ShowWindows, Streaming


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    durable.reset()
    yield
    durable.reset()


def test_the_first_start_knows_nothing(tmp_path: Path) -> None:
    assert begin(str(tmp_path), 1) == Reached()


def test_a_start_goes_on_where_the_one_before_had_come(tmp_path: Path) -> None:
    begin(str(tmp_path), 1)
    write_progress(str(tmp_path), 1, Reached(700, None, 5))
    assert begin(str(tmp_path), 2) == Reached(700, None, 5)
    assert starts(str(tmp_path))[2] == Reached(700, 700, 5)


def test_a_start_that_died_before_its_account_is_passed_over(tmp_path: Path) -> None:
    begin(str(tmp_path), 1)
    write_progress(str(tmp_path), 1, Reached(700))
    assert begin(str(tmp_path), 3).watermark_micros == 700


def test_what_an_older_process_writes_down_after_it_was_taken_over_does_not_count(tmp_path: Path) -> None:
    begin(str(tmp_path), 1)
    write_progress(str(tmp_path), 1, Reached(700))
    begin(str(tmp_path), 2)
    write_progress(str(tmp_path), 1, Reached(90_000))  # windows that closed there are the second's to show
    assert begin(str(tmp_path), 3).watermark_micros == 700


def test_a_start_that_came_nowhere_hides_nothing_of_what_the_one_before_knew(tmp_path: Path) -> None:
    write_progress(str(tmp_path), 1, Reached(700, through_ms=3))
    begin(str(tmp_path), 2)
    assert begin(str(tmp_path), 3) == Reached(700, 700, 3)


def test_half_a_file_of_a_dead_process_is_not_read(tmp_path: Path) -> None:
    write_progress(str(tmp_path), 1, Reached(700))
    (tmp_path / "stream" / "progress" / "000002.json.0123.tmp").write_text('{"watermark_mi')
    assert list(starts(str(tmp_path))) == [1]


def test_what_was_stored_is_through_when_the_watermark_behind_the_sinks_has_passed_it() -> None:
    before = durable.all_through(0)
    durable.archiving(1_000)
    assert before <= durable.all_through(1_000) <= durable.all_through(500)
    held = durable.all_through(1_000)
    durable.archiving(5_000)
    assert durable.all_through(1_000) == held, "the first is not through yet"
    assert durable.all_through(1_001) >= held


def test_a_window_whose_timer_is_later_than_it_was_due_holds_progress_at_its_time() -> None:
    durable.owe(timer_micros=9_000, due_micros=4_000)
    assert durable.all_shown(3_000) == 3_000
    assert durable.all_shown(6_000) == 4_000
    assert durable.all_shown(9_000) == 4_000, "at its own time the pane may be on its way still"
    assert durable.all_shown(9_001) == 9_001


def test_an_aggregate_that_sets_one_timer_for_many_windows_says_which_was_due_first() -> None:
    arrival_clock.tell("subscription", 9_000_000)
    spec = AggregateSpec.model_validate({"measures": {"n": "count()"}, "windowing": {"type": "fixed", "size": "1s"}})
    timers: list[Timestamp] = []
    show = ShowWindows(spec, Streaming(ahead=True), "by_second")
    show._wake(SimpleNamespace(timer=None), SimpleNamespace(set=timers.append), 4_000_000)  # type: ignore[arg-type]
    arrival_clock.reset()
    assert timers == [Timestamp(9)]
    assert durable.all_shown(6_000_000) == 4_000_000


def test_a_start_after_one_that_was_carried_into_the_future_begins_at_the_time_of_day(tmp_path: Path) -> None:
    ahead = 4_000_000_000_000_000
    write_progress(str(tmp_path), 1, Reached(ahead, 500, 3))
    before = begin(str(tmp_path), 2).watermark_micros
    assert before is not None
    assert abs(before - time.time() * 1e6) < 60e6
    assert starts(str(tmp_path))[2] == Reached(before, before, 3)
    assert starts(str(tmp_path))[1] == Reached(ahead, 500, 3), "what a start said of itself stays"
