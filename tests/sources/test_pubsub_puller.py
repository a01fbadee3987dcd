"""The puller against a broker: nothing lost, nothing acknowledged too early, and every failure seen."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from beam_pipelines import draining, durable
from beam_pipelines.arrow.schema import ARRIVAL, POSITION, RAW, is_archived, source_number
from beam_pipelines.errors import SourceError
from beam_pipelines.sources.pubsub_messages import pulled
from beam_pipelines.sources.pubsub_puller import Puller
from beam_pipelines.sources.pubsub_pulling import Delivery, PullSettings
from beam_pipelines.sources.pubsub_watermark import Patience
from beam_pipelines.testing.broker import Broker
from tests.sources.pubsub_topic import Topic
from tests.sources.test_pubsub_messages import received

TIMEOUT_S = 20.0
Make = Callable[..., Puller]


def until(holds: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    """Waits for a truth, or fails."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (found := holds()):
        assert time.monotonic() < deadline, "waited too long"
        pause.wait(0.02)
    return found


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as running:
        yield running


@pytest.fixture
def topic(broker: Broker) -> Topic:
    return Topic(broker.address)


@pytest.fixture
def make(topic: Topic) -> Iterator[Make]:
    """Makes pullers of the topic's subscription; they are closed after the test, and leave no thread."""
    durable.reset()
    draining.reset()
    made: list[Puller] = []

    def make(*, replay: Any = None, replay_from: int | None = None, now_s: Callable[[], float] = time.monotonic, **settings: Any) -> Puller:
        chosen = replace(PullSettings(topic.subscription, f"http://{topic.address}", pulls=2, linger_s=0.05), **settings)
        made.append(Puller(chosen, replay=replay, replay_from=replay_from, now_s=now_s))
        return made[-1]

    yield make
    for puller in made:
        puller.close()
    draining.reset()
    assert [t.name for t in threading.enumerate() if t.name.startswith("pubsub-s")] == []


def take(puller: Puller, rows: int) -> list[Delivery]:
    """Elements until there are so many rows."""
    taken: list[Delivery] = []

    def enough() -> bool:
        one = puller.take()
        taken.extend([] if one is None else [one])
        return sum(d.batch.num_rows for d in taken) >= rows

    until(enough)
    return taken


def stored(puller: Puller, taken: list[Delivery]) -> None:
    for delivery in taken:
        durable.register(puller.settings.subscription, np.array(delivery.positions, np.int64))


def bodies(taken: list[Delivery]) -> list[bytes]:
    return [body for d in taken for body in d.batch[RAW].to_pylist()]


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % i for i in range(start, start + count)]


def test_every_message_comes_as_one_row_and_is_acknowledged_after_it_is_stored_and_finalized(
    broker: Broker, topic: Topic, make: Make
) -> None:
    topic.publish(numbered(5_000))
    puller = make(number=3)
    taken = take(puller, 5_000)
    assert Counter(bodies(taken)) == Counter(numbered(5_000))
    assert len({p for d in taken for p in d.positions}) == 5_000
    assert all(d.positions == d.batch[POSITION].to_pylist() and source_number(d.batch) == 3 for d in taken)
    stored(puller, taken)
    assert broker.unacked(topic.subscription) == 5_000
    tokens = [puller.cut(d.positions) for d in taken]
    for token in [*reversed(tokens), *tokens, "of another process"]:
        puller.finalize(token)
    assert broker.wait_acked(topic.subscription, timeout_s=TIMEOUT_S)
    until(lambda: puller.status().acked == 5_000)
    assert puller.status().held == 0


def test_a_finalized_message_is_not_acknowledged_before_it_is_stored(broker: Broker, topic: Topic, make: Make) -> None:
    topic.publish(numbered(100))
    puller = make()
    taken = take(puller, 100)
    for delivery in taken:
        puller.finalize(puller.cut(delivery.positions))
    asked = broker.calls["Pull"]
    until(lambda: broker.calls["Pull"] > asked + 2)  # the keeper had its turns
    assert broker.acked(topic.subscription) == 0
    stored(puller, taken)
    assert broker.wait_acked(topic.subscription, timeout_s=TIMEOUT_S)


def test_without_an_archive_finalization_is_enough(broker: Broker, topic: Topic, make: Make) -> None:
    topic.publish(numbered(10))
    puller = make(ack="finalized")
    [first, *rest] = take(puller, 10)
    puller.finalize(puller.cut([p for d in [first, *rest] for p in d.positions]))
    assert broker.wait_acked(topic.subscription, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("done", [False, True])
def test_an_acknowledgement_that_fails_is_said_again(broker: Broker, topic: Topic, make: Make, done: bool) -> None:
    topic.publish(numbered(50))
    puller = make()
    taken = take(puller, 50)
    stored(puller, taken)
    broker.fail("Acknowledge", "UNAVAILABLE", times=3, done=done)
    puller.finalize(puller.cut([p for d in taken for p in d.positions]))
    assert broker.wait_acked(topic.subscription, timeout_s=TIMEOUT_S)
    until(lambda: puller.status().acked == 50)


def test_a_redelivered_message_is_not_given_again_and_its_newest_ack_id_is_used(broker: Broker, topic: Topic, make: Make) -> None:
    topic.publish(numbered(500))
    puller = make()
    taken = take(puller, 500)
    assert broker.expire(topic.subscription) == 500
    until(lambda: puller.take() is None and puller.status().redelivered == 500)
    stored(puller, taken)
    puller.finalize(puller.cut([p for d in taken for p in d.positions]))
    assert broker.wait_acked(topic.subscription, timeout_s=TIMEOUT_S)
    assert puller.status().delivered == 500


def test_a_message_that_comes_again_after_it_was_acknowledged_is_acknowledged_again(broker: Broker, topic: Topic, make: Make) -> None:
    topic.publish(numbered(20))
    puller = make()
    taken = take(puller, 20)
    stored(puller, taken)
    broker.fail("Acknowledge", "UNAVAILABLE", times=4)
    broker.expire(topic.subscription)
    puller.finalize(puller.cut([p for d in taken for p in d.positions]))  # on its way, and given again meanwhile
    assert broker.wait_acked(topic.subscription, timeout_s=TIMEOUT_S)
    assert puller.take() is None
    assert puller.status().delivered == 20


def test_leases_are_extended_while_a_message_is_in_work_and_end_at_the_maximum() -> None:
    now = [1_000.0]
    with Broker(clock=lambda: 1_700_000_000 + now[0]) as broker:
        topic = Topic(broker.address)
        topic.publish(numbered(30))
        settings = PullSettings(topic.subscription, f"http://{topic.address}", lease_s=60, lease_most_s=200, pulls=1, linger_s=0.0)
        puller = Puller(settings, now_s=lambda: now[0])
        try:
            take(puller, 30)
            for passed in (6, 45, 45, 45):  # the first lease is the subscription's own, 10 s
                extended = broker.calls["ModifyAckDeadline"]
                now[0] += passed
                broker.wake()
                until(lambda: broker.calls["ModifyAckDeadline"] > extended)  # noqa: B023  (called at once)
                assert broker.leased(topic.subscription) == 30
            assert puller.status().redelivered == 0
            now[0] += 100
            until(lambda: puller.status().held == 0)
            now[0] += 61
            broker.wake()
            assert len(bodies(take(puller, 30))) == 30
        finally:
            puller.close()


def test_no_more_is_held_than_allowed(broker: Broker, topic: Topic, make: Make) -> None:
    topic.publish([b"x" * 1_000] * 5_000)
    puller = make(most_messages=1_500, pulls=1)
    first = take(puller, 1_500)
    asked = broker.calls["Pull"]
    assert puller.take() is None
    assert puller.status().held == broker.leased(topic.subscription) == 1_500
    assert broker.calls["Pull"] == asked
    stored(puller, first)
    puller.finalize(puller.cut([p for d in first for p in d.positions]))
    assert sum(d.batch.num_rows for d in take(puller, 1_500)) == 1_500


def test_bytes_are_bounded_by_what_messages_have_weighed(topic: Topic, make: Make) -> None:
    puller = make(most_bytes=1 << 20, pulls=1)
    topic.publish([b"x" * 10_000] * 10)
    take(puller, 10)
    topic.publish([b"x" * 10_000] * 900)
    taken = take(puller, 90)
    assert puller.take() is None
    assert (1 << 20) <= puller.status().held_bytes < (1 << 20) + 2 * 10_100
    assert taken


def test_when_nobody_reads_messages_are_handed_back_and_reading_again_finds_them(broker: Broker, topic: Topic, make: Make) -> None:
    topic.publish(numbered(200))
    puller = make(rest_after_s=0.3, linger_s=3_600)
    assert puller.take() is None  # it pulls, and nobody asks again
    until(lambda: puller.status().handed_back == 200)
    until(lambda: not [t for t in threading.enumerate() if topic.subscription.rsplit("/", 1)[-1] in t.name])
    assert (broker.leased(topic.subscription), puller.status().held) == (0, 0)
    puller.settings = replace(puller.settings, rest_after_s=60, linger_s=0.05)
    assert len(bodies(take(puller, 200))) == 200


def test_a_reader_that_fails_gives_back_what_it_had(broker: Broker, topic: Topic, make: Make) -> None:
    topic.publish(numbered(10))
    puller = make()
    puller.give_back([p for d in take(puller, 10) for p in d.positions])
    again = take(puller, 10)
    assert len(bodies(again)) == 10


def test_closing_acknowledges_what_is_stored_and_hands_back_the_rest_at_once(broker: Broker, topic: Topic, make: Make) -> None:
    topic.publish(numbered(300))
    puller = make()
    taken = take(puller, 300)
    durable.register(topic.subscription, np.array([p for d in taken for p in d.positions][:100], np.int64))
    puller.close()
    assert (broker.acked(topic.subscription), broker.leased(topic.subscription), broker.unacked(topic.subscription)) == (100, 0, 200)
    assert len(topic.pull()) == 200
    puller.close()


def test_an_outage_is_said_once_stops_the_watermark_and_is_survived(
    broker: Broker, topic: Topic, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    puller = make(patience=Patience(lookback_s=0.1, idle_s=0.2, grace_s=0.0))
    topic.publish(numbered(10))
    take(puller, 10)
    until(puller.watermark)
    with caplog.at_level(logging.WARNING, "beam_pipelines"):
        broker.stop()
        until(lambda: puller.status().outage)
        stands = puller.watermark()
        assert puller.take() is None
        assert puller.watermark() == stands
        broker.start()
        Topic(broker.address).channel.close()
        topic.publish(numbered(10, 10))
        take(puller, 10)
    assert puller.status().outage is None
    assert [r.message for r in caplog.records if "pulls fail" in r.message] != []
    assert len([r for r in caplog.records if "pulls fail" in r.message]) == len([r for r in caplog.records if "succeed again" in r.message])


@pytest.mark.parametrize("status", ["DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED"])
def test_errors_that_pass_are_tried_again(broker: Broker, topic: Topic, make: Make, status: str) -> None:
    topic.publish(numbered(10))
    broker.fail("Pull", status, times=3)
    assert len(bodies(take(make(pulls=1), 10))) == 10


@pytest.mark.parametrize(("status", "hint"), [("PERMISSION_DENIED", "roles/pubsub.subscriber"), ("UNAUTHENTICATED", "gcloud auth")])
def test_an_error_that_does_not_pass_is_raised_by_the_reader(broker: Broker, topic: Topic, make: Make, status: str, hint: str) -> None:
    puller = make(pulls=1)
    until(lambda: puller.take() is None and puller.status().idle_s > 0)
    broker.fail("Pull", status)
    with pytest.raises(SourceError, match=hint):
        until(puller.take)


def test_a_subscription_that_is_deleted_fails_the_reader(topic: Topic, make: Make) -> None:
    puller = make()
    topic.publish(numbered(1))
    take(puller, 1)
    topic.delete()
    with pytest.raises(SourceError, match=rf"{topic.subscription}: there is no such subscription; .* Create it"):
        until(puller.take)
    assert "no such subscription" in str(puller.status().error)


def archived(*micros: int) -> pa.RecordBatch:
    return pulled(received(*({"data": b"old", "message_id": f"{t}", "micros": t} for t in micros)), source="s", attribute=None).rows


def test_the_archive_comes_first_with_the_watermark_held_then_what_was_pulled_meanwhile(topic: Topic, make: Make) -> None:
    topic.publish(numbered(10))
    gate = threading.Event()

    def replay() -> Iterator[pa.RecordBatch]:
        yield archived(500, 600)
        assert gate.wait(TIMEOUT_S)
        yield archived()
        yield archived(700)

    puller = make(replay=replay, replay_from=400, number=2)
    [first] = take(puller, 2)
    assert (is_archived(first.batch), source_number(first.batch), first.positions, first.timestamp) == (True, 2, [], 500)
    until(lambda: puller.status().pulled == 10)
    assert (puller.take(), puller.watermark()) == (None, 400)
    gate.set()
    later = take(puller, 11)
    assert [is_archived(d.batch) for d in later] == [True] + [False] * (len(later) - 1)
    assert puller.status().replayed == 3
    moved = until(lambda: (puller.watermark() or 0) > 400)
    assert moved


def test_an_archive_that_cannot_be_read_fails_the_reader(make: Make) -> None:
    def replay() -> Iterator[pa.RecordBatch]:
        raise SourceError("archive: gone")
        yield archived()

    puller = make(replay=replay, replay_from=1)
    with pytest.raises(SourceError, match="archive: gone"):
        until(puller.take)


def test_a_drained_stream_gives_what_it_pulled_and_says_where_it_ended(broker: Broker, topic: Topic, make: Make) -> None:
    topic.publish(numbered(1_000))
    puller = make(linger_s=3_600)
    assert puller.take() is None
    until(lambda: puller.status().pulled == 1_000)
    draining.request()
    assert len(bodies(take(puller, 1_000))) == 1_000
    until(lambda: puller.take() is None and puller.ended)
    assert draining.ended_at() is not None
    topic.publish(numbered(1))
    assert puller.take() is None
    assert broker.unacked(topic.subscription) == 1_001


def test_a_source_does_not_end_while_messages_lie_between_answer_and_batch(
    topic: Topic, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic.publish(numbered(10))
    puller, ended = make(), list[bool]()

    def slowly(*given_: Any, **options: Any) -> Any:
        with puller._lock:
            puller._stop_pulling("draining")
        until(lambda: not (puller._pulling or puller._beat))
        with puller._lock:  # as a reader that looked for answers just before
            puller._end_if_drained()
        ended.append(puller.ended)
        return pulled(*given_, **options)

    monkeypatch.setattr("beam_pipelines.sources.pubsub_puller.pulled", slowly)
    assert len(bodies(take(puller, 10))) == 10
    assert ended == [False]
    until(lambda: puller.take() is None and puller.ended)


def test_the_arrival_clock_is_the_attribute_and_what_has_none_does_not_move_it(topic: Topic, make: Make) -> None:
    topic.publish(numbered(3), [{"at": "2013-12-01T05:00:00Z"}, {"at": "2013-12-01T06:00:00Z"}, {"at": "yesterday"}])
    puller = make(attribute="at", patience=Patience(lookback_s=0.1, idle_s=0.2, grace_s=0.0))
    taken = take(puller, 3)
    assert sorted(t for d in taken for t in d.batch[ARRIVAL].cast(pa.int64()).to_pylist())[:2] == [
        1_385_874_000_000_000,
        1_385_877_600_000_000,
    ]
    moved = until(puller.watermark)
    assert 1_385_874_000_000_000 <= moved < 1_385_877_600_000_000 + 60_000_000
    assert puller.status().unreadable == 1


def test_one_message_from_the_future_moves_no_clock_and_arrives_when_it_was_published(topic: Topic, make: Make) -> None:
    good, hour = 1_385_874_000, 3_600
    times = [*(str(good + n) for n in range(50)), "2098-01-01T00:00:00Z"]
    topic.publish(numbered(51), [{"at": at} for at in times])
    puller = make(attribute="at", patience=Patience(lookback_s=0.1, idle_s=0.2, grace_s=0.0))
    taken = take(puller, 51)
    moved = until(puller.watermark)
    assert (good + 40) * 10**6 <= moved < (good + hour) * 10**6
    assert puller.status().unreadable == 1
    arrived = {b: a for d in taken for b, a in zip(d.batch[RAW].to_pylist(), d.batch[ARRIVAL].cast(pa.int64()).to_pylist(), strict=True)}
    assert abs(arrived[b"50"] / 1e6 - time.time()) < hour
    assert all(arrived[b"%d" % n] == (good + n) * 10**6 for n in range(50))


def test_what_an_earlier_version_archived_from_the_future_moves_no_clock(make: Make) -> None:
    old = archived(*range(10**15, 10**15 + 50))
    at = old.schema.get_field_index(ARRIVAL)
    believed = pa.array([*(10**15 - 1 - n for n in range(49)), 4 * 10**15]).cast(old.schema.field(at).type)
    puller = make(
        replay=lambda: iter([old.set_column(at, old.schema.field(at), believed)]), replay_from=5, attribute="at",
        patience=Patience(lookback_s=0.1, idle_s=0.2, grace_s=0.0),
    )  # fmt: skip
    take(puller, 50)
    moved = until(lambda: puller.take() is None and (puller.watermark() or 0) > 5 and puller.watermark())
    assert moved < 10**15 + 3_600 * 10**6


KILLED = """
import sys, threading
from beam_pipelines.sources.pubsub_puller import Puller
from beam_pipelines.sources.pubsub_pulling import PullSettings
puller = Puller(PullSettings(sys.argv[1], sys.argv[2], linger_s=0.05, most_messages=400))  # then no pull is under way when it dies
rows = 0
while rows < 400:
    delivery = puller.take()
    rows += delivery.batch.num_rows if delivery else 0
    threading.Event().wait(0.01)
print("taken", flush=True)
threading.Event().wait()
"""


@pytest.mark.slow
def test_what_a_killed_process_had_comes_again(broker: Broker, topic: Topic, make: Make) -> None:
    topic.publish(numbered(400))
    with subprocess.Popen([sys.executable, "-c", KILLED, topic.subscription, f"http://{topic.address}"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"taken\n"
        finally:
            process.kill()
    assert broker.leased(topic.subscription) == 400
    broker.expire(topic.subscription)  # what ten seconds would do
    assert Counter(bodies(take(make(), 400))) == Counter(numbered(400))


def test_the_watermark_waits_for_messages_whose_answer_was_lost(broker: Broker, topic: Topic, make: Make) -> None:
    """A connection that falls leaves messages leased to nobody: they come again when their lease ends, and must not be late then."""
    at = [1_000.0]
    puller = make(now_s=lambda: at[0], pulls=1, patience=Patience(lookback_s=0.1, idle_s=0.2, grace_s=0.0))
    broker.fail("Pull", "UNAVAILABLE", done=True)
    topic.publish([b"lost"])
    puller.take()
    until(lambda: puller.status().out_s)
    at[0] += 5.0
    topic.publish([b"newer"])

    def newer() -> list[Delivery]:
        at[0] += 0.01
        one = puller.take()
        return [] if one is None else [one]

    assert bodies(until(newer)) == [b"newer"]
    at[0] += 5.0
    until(lambda: broker.calls["Pull"] > 3)
    assert puller.watermark() is None, "it does not pass what may be out"
    assert puller.status().idle_s == 0.0, "nor is this idleness"
    broker.expire(topic.subscription)
    assert b"lost" in bodies(until(newer))
    at[0] += 5.0

    def runs() -> int | None:
        at[0] += 0.1
        puller.take()
        return puller.watermark()

    until(runs)
    assert puller.status().out_s == 0.0
