"""What is held: every message once, its newest ack id, its lease; and when marks may be acknowledged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.sources.pubsub_calls import requests
from beam_pipelines.sources.pubsub_held import Held, extend
from beam_pipelines.sources.pubsub_marks import Marks

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.lists(st.integers(0, 12), min_size=1, max_size=6)),
        st.tuples(st.just("settle"), st.lists(st.integers(0, 12), max_size=6, unique=True)),
        st.tuples(st.just("give back"), st.lists(st.integers(0, 12), max_size=6, unique=True)),
    ),
    max_size=30,
)


@given(STEPS)
def test_a_held_message_is_given_once_and_its_newest_ack_id_counts(steps: list[tuple[str, list[int]]]) -> None:
    held = Held()
    newest: dict[int, str] = {}
    settled: set[int] = set()
    for number, (step, positions) in enumerate(steps):
        if step == "admit":
            ack_ids = [f"{number}.{i}" for i in range(len(positions))]
            fresh, again = held.admit(positions, ack_ids, now=number, lease_s=10, size=100 * len(positions))
            given_now = [p for i, p in enumerate(positions) if fresh is None or fresh[i]]
            assert len(set(given_now)) == len(given_now)
            assert set(given_now) == set(positions) - set(newest) - settled
            assert again == [a for p, a in zip(positions, ack_ids, strict=True) if p in settled]
            newest.update({p: a for p, a in zip(positions, ack_ids, strict=True) if p not in settled})
        else:
            ended = held.release(positions, settled=step == "settle")
            assert sorted(ended) == sorted(newest.pop(p) for p in positions if p in newest)
            settled |= set(positions) if step == "settle" else set()
        assert len(held) == len(newest)
        assert held.bytes == pytest.approx(100 * len(newest))
        due = [a for _, ack_ids in held.due(10**9) for a in ack_ids]
        assert sorted(due) == sorted(newest.values())


@given(st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(1, 3))), min_size=1, max_size=20), st.booleans())
def test_a_message_that_is_sent_again_is_given_once_for_each_that_brings_it(came: list[tuple[int, int | None]], settled: bool) -> None:
    """Each is done with before the next comes; one that was handed back is not known."""
    held, known = Held(), set[int]()
    for number, (position, carrier) in enumerate(came):
        brought = position if carrier is None else 100 * carrier + position
        held.sent_again([position], [brought])
        fresh, again = held.admit([position], [str(number)], now=number, lease_s=10, size=1)
        given_now = fresh is None or bool(fresh[0])
        assert given_now == (brought not in known)
        assert again == ([] if given_now else [str(number)])
        held.release([position], settled=settled)
        known |= {position, brought} if settled else set()


def test_messages_that_bring_one_message_meanwhile_are_all_known_when_it_is_settled() -> None:
    held = Held()
    for carrier in (100, 101):
        held.sent_again([1], [carrier])
        held.admit([1], [f"by {carrier}"], now=0, lease_s=10, size=1)
    assert held.release([1], settled=True) == ["by 101"]
    for carrier in (100, 101):  # 100 was never acknowledged: the service gives it again
        held.sent_again([1], [carrier])
        assert held.admit([1], [f"again by {carrier}"], now=1, lease_s=10, size=1)[1] == [f"again by {carrier}"]


def test_a_lease_is_due_at_its_half_and_ends_at_the_maximum_counted_from_the_first_delivery() -> None:
    held = Held()
    held.admit([1, 2], ["a", "b"], now=0, lease_s=10, size=2)
    assert held.due(4.9) == []
    [(lease, ack_ids)] = held.due(5)
    assert ack_ids == ["a", "b"]
    extend([lease], now=5, lease_s=60)
    assert held.due(34.9) == []
    assert [ids for _, ids in held.due(35)] == [["a", "b"]]
    held.admit([2], ["c"], now=40, lease_s=10, size=1)  # redelivered: its lease begins anew, its age does not
    assert sorted(i for _, ids in held.due(45) for i in ids) == ["a", "c"]
    assert held.oldest() == 0
    assert held.expire(before=1) == 2
    assert (len(held), held.bytes, held.oldest()) == (0, pytest.approx(0), None)


@given(st.lists(st.text("abc", max_size=300_000 // 10), max_size=5), st.integers(0, 2_500))
def test_every_ack_id_is_in_one_request_and_no_request_is_too_large(long: list[str], short: int) -> None:
    ids = [*long, *("x" * 180 for _ in range(short)), *(["y" * 500_000] * (short % 2))]
    parts = list(requests(ids))
    assert [i for part in parts for i in part] == ids
    assert all(len(p) <= 1_000 and (sum(map(len, p)) <= 400_000 or len(p) == 1) for p in parts)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.permutations(range(8)), st.sets(st.integers(0, 7)))
def test_without_lag_each_finalized_mark_is_ripe_once_in_any_order(order: list[int], never: set[int]) -> None:
    marks = Marks()
    tokens = [marks.cut([2 * i, 2 * i + 1]) for i in range(8)]
    for number in order:
        if number not in never:
            assert marks.finalize(tokens[number]) == [2 * number, 2 * number + 1]
            assert marks.finalize(tokens[number]) == []
    assert len(marks) == len(never)
    marks.forget(before=float("inf"))
    assert len(marks) == 0
    assert marks.finalize("a mark of another process") == []


@given(st.lists(st.integers(1, 4), min_size=2, max_size=8))
def test_with_lag_a_mark_waits_until_a_later_checkpoint_than_one_after_its_cut(bundles: list[int]) -> None:
    """Each checkpoint finalizes the marks cut since the one before it; those are ripe at the next, and not before."""
    clock = Clock()
    marks = Marks(lag=1, now_s=clock)
    number = 0
    before: list[int] = []
    for count in bundles:
        cut = list(range(number, number + count))
        number += count
        clock.now += 1
        tokens = [marks.cut([position]) for position in cut]
        clock.now += 1
        ripe = []
        for token in tokens:
            clock.now += 0.01
            ripe += marks.finalize(token)
        assert ripe == before
        before = cut
    assert marks.rest() == before
