"""What waits before keyed state is bounded, exactly accounted for, and never stops a stream for good."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines import back_pressure
from beam_pipelines.back_pressure import PATIENCE_S, BackPressure
from beam_pipelines.transforms.sliced_state import by_bucket


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _off_again() -> Iterator[None]:
    yield
    back_pressure.limit(None)


@given(st.lists(st.integers(0, 1_000)), st.integers(1, 10_000))
def test_what_left_and_was_taken_waits_no_more(batches: list[int], size: int) -> None:
    pressure = BackPressure(Clock())
    pressure.limit(0)
    for rows in batches:
        pressure.left(rows, rows * size)
    assert pressure.waiting_bytes == sum(batches) * size
    assert pressure.full() == (sum(batches) > 0)
    for rows in reversed(batches):
        pressure.taken(rows)
    assert pressure.waiting_bytes == 0
    assert not pressure.full()


def test_without_a_limit_nothing_is_full() -> None:
    pressure = BackPressure(Clock())
    pressure.left(10**9, 10**12)
    assert not pressure.full()


def test_a_new_limit_begins_anew_and_rows_of_before_do_not_go_below_nothing() -> None:
    pressure = BackPressure(Clock())
    pressure.limit(100)
    pressure.left(10, 1_000)
    assert pressure.full()
    pressure.limit(100)
    assert not pressure.full()
    pressure.taken(10)
    pressure.left(10, 1_000)
    assert pressure.full()


def test_where_nothing_moves_one_element_goes_at_a_time() -> None:
    """Rows wait for the watermark, which waits for a message that the source holds: the stream must come out of this by itself."""
    clock = Clock()
    pressure = BackPressure(clock)
    pressure.limit(100)
    pressure.left(10, 1_000)
    assert pressure.full()
    clock.now += PATIENCE_S
    assert not pressure.full()
    assert pressure.full()
    clock.now += PATIENCE_S / 2
    pressure.taken(1)
    clock.now += PATIENCE_S / 2
    assert pressure.full()  # something moved half a second ago


def test_rows_on_their_way_to_state_are_counted() -> None:
    rows = pa.record_batch({"n": pa.array(range(1_000), pa.int64())})
    back_pressure.limit(1_000)
    assert sum(some.num_rows for _, some in by_bucket(rows, rows.column("n").to_numpy() % 4)) == 1_000
    assert back_pressure.full()
    back_pressure.taken(1_000)
    assert not back_pressure.full()
