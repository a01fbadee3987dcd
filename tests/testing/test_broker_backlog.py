"""The state of one subscription against a model of it that scans everything."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.pubsub_v1.types import PubsubMessage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from beam_pipelines.testing.broker_backlog import Backlog, Flow, Stored

RAW = PubsubMessage.meta.pb


def stored(number: int, *, key: str = "", size: int = 10) -> Stored:
    return Stored(number, number, size, RAW(ordering_key=key))


@dataclass
class Out:
    """A delivery as the model knows it."""

    message: Stored
    deadline: float


@dataclass
class Model:
    published: list[Stored] = field(default_factory=list)
    acked: set[int] = field(default_factory=set)  # numbers
    dead: set[int] = field(default_factory=set)
    out: dict[str, Out] = field(default_factory=dict)  # by ack id
    attempts: dict[int, int] = field(default_factory=dict)  # that ended without an ack


class Unordered(RuleBasedStateMachine):
    """Published = waiting + out + acked + dead, each message in exactly one of them, whatever is called in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.numbers = itertools.count()
        self.now = 0.0

    @initialize(max_attempts=st.sampled_from([0, 3]))
    def start(self, max_attempts: int) -> None:
        self.backlog = Backlog("p:", max_attempts=max_attempts)

    @rule(count=st.integers(1, 5))
    def publish(self, count: int) -> None:
        new = [stored(next(self.numbers)) for _ in range(count)]
        self.model.published += new
        self.backlog.add(new)

    @rule(count=st.integers(1, 6), seconds=st.integers(1, 5))
    def lease(self, count: int, seconds: int) -> None:
        waiting = self.waiting()
        granted = self.backlog.lease(self.now, max_messages=count, max_bytes=10**6, deadline_s=seconds)
        assert len(granted) == min(count, len(waiting))
        for ack_id, lease in granted:
            number = lease.stored.number
            assert number in waiting
            assert ack_id not in self.model.out
            assert lease.attempt == self.model.attempts.get(number, 0) + 1
            self.model.out[ack_id] = Out(lease.stored, self.now + seconds)
        assert len({lease.stored.number for _, lease in granted}) == len(granted)

    @precondition(lambda self: self.model.out)
    @rule(pick=st.data())
    def ack(self, pick: Any) -> None:
        ids = self.some(pick)
        assert self.backlog.ack([*ids, *ids, "p:unknown"]) == len(ids)
        self.model.acked |= {self.model.out.pop(i).message.number for i in ids}

    @precondition(lambda self: self.model.out)
    @rule(pick=st.data())
    def nack(self, pick: Any) -> None:
        ids = self.some(pick)
        assert self.backlog.nack([*ids, *ids]) == len(ids)
        self.back(ids)

    @precondition(lambda self: self.model.out)
    @rule(pick=st.data(), seconds=st.integers(1, 9))
    def extend(self, pick: Any, seconds: int) -> None:
        ids = self.some(pick)
        self.backlog.extend([*ids, "p:unknown"], self.now + seconds)
        for i in ids:
            self.model.out[i].deadline = self.now + seconds

    @rule(seconds=st.integers(1, 4))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        late = [i for i, out in self.model.out.items() if out.deadline <= self.now]
        assert self.backlog.expire(self.now) == len(late)
        self.back(late)

    @rule(pick=st.data())
    def seek(self, pick: Any) -> None:
        again = pick.draw(st.lists(st.sampled_from(self.model.published), unique_by=lambda s: s.number)) if self.model.published else []
        self.backlog.reset(again)
        numbers = {s.number for s in again}
        self.model.acked = {s.number for s in self.model.published} - numbers - self.model.dead
        self.model.dead -= numbers
        self.model.out.clear()
        self.model.attempts.clear()

    @invariant()
    def balance(self) -> None:
        if not hasattr(self, "backlog"):
            return
        waiting = self.waiting()
        assert self.backlog.waiting == len(waiting)
        assert self.backlog.leased == len(self.model.out)
        assert len(self.backlog) == len(waiting) + len(self.model.out)
        assert [s.number for s in self.backlog.unacked()] == sorted(waiting | {o.message.number for o in self.model.out.values()})
        earliest = min((o.deadline for o in self.model.out.values()), default=math.inf)
        assert (self.backlog.next_deadline() or 0) <= earliest  # nobody sleeps past a deadline

    def waiting(self) -> set[int]:
        out = {o.message.number for o in self.model.out.values()}
        return {s.number for s in self.model.published} - self.model.acked - self.model.dead - out

    def some(self, pick: Any) -> list[str]:
        chosen: list[str] = pick.draw(st.lists(st.sampled_from(sorted(self.model.out)), unique=True, min_size=1))
        return chosen

    def back(self, ids: list[str]) -> None:
        exhausted = {s.number for s, _ in self.backlog.exhausted}
        self.backlog.exhausted.clear()
        for i in ids:
            number = self.model.out.pop(i).message.number
            self.model.attempts[number] = self.model.attempts.get(number, 0) + 1
            spent = 0 < self.backlog.max_attempts <= self.model.attempts[number]
            assert (number in exhausted) is spent
            if spent:
                self.model.dead.add(number)


TestUnordered = Unordered.TestCase
TestUnordered.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

STEP = st.tuples(st.sampled_from(["publish", "lease", "ack", "nack", "time"]), st.integers(0, 9), st.sampled_from("ab"))


@dataclass
class Key:
    """An ordering key as the model knows it: what was published, how much of it was given out, what of that is not settled."""

    published: list[int] = field(default_factory=list)
    given: int = 0
    out: dict[int, str] = field(default_factory=dict)  # place in published -> ack id

    def take_back(self, place: int) -> None:
        self.given = place
        self.out = {p: i for p, i in self.out.items() if p < place}


@given(st.lists(STEP, max_size=60))
@settings(max_examples=200, deadline=None)
def test_a_key_comes_in_order_and_only_while_nothing_of_it_is_out(steps: list[tuple[str, int, str]]) -> None:
    backlog = Backlog("p:", ordered=True)
    numbers = itertools.count()
    keys = {"a": Key(), "b": Key()}
    now = 0.0
    for action, n, name in steps:
        key = keys[name]
        if action == "publish":
            key.published.append(next(numbers))
            backlog.add([stored(key.published[-1], key=name)])
        elif action == "lease":
            busy = {k for k in keys if keys[k].out}
            for ack_id, lease in backlog.lease(now, max_messages=n, max_bytes=10**6, deadline_s=3):
                k = lease.stored.message.ordering_key
                assert k not in busy
                assert lease.stored.number == keys[k].published[keys[k].given]
                keys[k].out[keys[k].given] = ack_id
                keys[k].given += 1
        elif action == "time":
            now += n % 3
            backlog.expire(now)
            for each in keys.values():
                each.take_back(min((p for p, i in each.out.items() if not backlog.holds(i)), default=each.given))
        elif key.out:
            place, ack_id = sorted(key.out.items())[n % len(key.out)]
            if action == "ack":
                backlog.ack([ack_id])
                del key.out[place]
            else:
                backlog.nack([ack_id])
                key.take_back(place)
        assert backlog.leased == sum(len(each.out) for each in keys.values())
        assert backlog.waiting == sum(len(each.published) - each.given for each in keys.values())
    backlog.ack(ack_id for each in keys.values() for ack_id in each.out.values())
    rest = [lease.stored.number for _, lease in drained(backlog)]  # nothing is stuck
    assert sorted(rest) == sorted(number for each in keys.values() for number in each.published[each.given :])
    assert not backlog


def drained(backlog: Backlog) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    while granted := backlog.lease(0, max_messages=3, max_bytes=10**6, deadline_s=3):
        backlog.ack([ack_id for ack_id, _ in granted])
        found += granted
    return found


def test_a_run_taken_back_brings_back_what_was_acked_behind_it() -> None:
    backlog = Backlog("p:", ordered=True)
    backlog.add(stored(n, key="k") for n in range(4))
    ids = [ack_id for ack_id, _ in backlog.lease(0, max_messages=3, max_bytes=100, deadline_s=1)]
    backlog.ack(ids[2:])
    backlog.nack(ids[1:2])
    assert backlog.lease(0, max_messages=9, max_bytes=100, deadline_s=1) == []  # 0 is still out
    backlog.ack(ids[:1])
    assert [lease.stored.number for _, lease in backlog.lease(0, max_messages=9, max_bytes=100, deadline_s=1)] == [1, 2, 3]


@pytest.mark.parametrize(("max_bytes", "count"), [(1, 1), (10, 1), (11, 2), (25, 3), (1000, 5)])
def test_bytes_bound_what_is_given_out_but_one_message_always_fits(max_bytes: int, count: int) -> None:
    backlog = Backlog("p:")
    backlog.add(stored(n) for n in range(5))
    assert len(backlog.lease(0, max_messages=9, max_bytes=max_bytes, deadline_s=1)) == count


def test_a_stream_holds_no_more_than_it_asked_for_until_something_is_settled() -> None:
    backlog = Backlog("p:")
    backlog.add(stored(n) for n in range(20))
    flow = Flow(max_messages=5, max_bytes=0)
    take = {"max_messages": 100, "max_bytes": 10**6, "deadline_s": 10, "flow": flow}
    first = [ack_id for ack_id, _ in backlog.lease(0, **take)]
    assert (len(first), len(backlog.lease(0, **take))) == (5, 0)
    backlog.ack(first[:2])
    backlog.nack(first[2:3])
    assert len(backlog.lease(0, **take)) == 3
    backlog.expire(100)
    assert (flow.messages, flow.bytes) == (0, 0)
    narrow = Flow(max_messages=0, max_bytes=35)
    assert len(backlog.lease(0, **{**take, "flow": narrow})) == 4
    backlog.reset([])
    assert (narrow.messages, narrow.bytes) == (0, 0)


def test_extending_for_ever_does_not_fill_memory() -> None:
    backlog = Backlog("p:")
    backlog.add(stored(n) for n in range(1_000))
    ids = [ack_id for ack_id, _ in backlog.lease(0, max_messages=1_000, max_bytes=10**6, deadline_s=10)]
    for second in range(1_000):
        backlog.extend(ids, second + 10.0)
    assert backlog._noted <= 20_000
    assert sum(len(entry[2]) for entry in backlog._deadlines) == backlog._noted
    assert backlog.expire(1_008) == 0
    assert backlog.expire(1_009) == 1_000
