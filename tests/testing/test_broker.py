"""The embedded broker's own promises: a clock to turn, faults on demand, restarts, its command, and how it ends."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import pubsub_v1

from beam_pipelines.errors import RunError
from beam_pipelines.testing import Broker
from tests.pubsub_servers import PubsubServer, connected, texts


def the_broker(server: PubsubServer) -> Broker:
    assert server.broker is not None
    return server.broker


class StandingClock:
    """A time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


# Clock


def test_leases_end_by_the_given_clock_alone() -> None:
    clock = StandingClock()
    with Broker(clock=clock, pull_wait_s=0.01) as broker:
        for server in connected(broker.address, broker=broker):
            topic, subscription = server.pair(ack_deadline_seconds=30)
            server.publish(topic, b"x")
            [received] = server.take(subscription, 1)
            assert received.message.publish_time.ToSeconds() == 1_700_000_000
            clock.now += 29.999
            assert server.pull(subscription) == []
            server.modify(subscription, [received], 30)
            clock.now += 29.999
            assert server.pull(subscription) == []
            clock.now += 0.001
            assert texts(server.pull(subscription)) == ["x"]


def test_a_waiting_pull_gets_what_expires_while_it_waits() -> None:
    with Broker(pull_wait_s=3_600) as broker:
        for server in connected(broker.address, broker=broker):
            topic, subscription = server.pair()
            server.publish(topic, b"x")
            server.modify(subscription, server.take(subscription, 1), 1)
            assert texts(server.pull(subscription, wait=True)) == ["x"]


def test_a_waiting_pull_gets_what_is_published_while_it_waits() -> None:
    with Broker(pull_wait_s=3_600) as broker, ThreadPoolExecutor(1) as threads:
        for server in connected(broker.address, broker=broker):
            topic, subscription = server.pair()
            waiting = threads.submit(server.pull, subscription, wait=True)
            assert broker.wait_called("Pull", timeout_s=30)
            server.publish(topic, b"x")
            assert texts(waiting.result(30)) == ["x"]


def test_turning_the_clock_and_waking_the_broker_ends_waits(broker: PubsubServer) -> None:
    topic, subscription = broker.pair(ack_deadline_seconds=600)
    broker.publish(topic, b"x")
    broker.take(subscription, 1)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(broker.take, subscription, 1)
        broker.advance(601)
        assert texts(waiting.result(30)) == ["x"]


def test_what_is_retained_or_snapshotted_is_so_for_a_bounded_time(broker: PubsubServer) -> None:
    topic, subscription = broker.pair(retain_acked_messages=True, message_retention_duration={"seconds": 600})
    broker.publish(topic, b"old")
    snapshot = broker.path("snapshots", "snapshot")
    broker.subscriber.create_snapshot(name=snapshot, subscription=subscription)
    broker.advance(601)
    broker.publish(topic, b"new")
    broker.ack(subscription, broker.take(subscription, 2))
    broker.subscriber.seek(request={"subscription": subscription, "time": {"seconds": 0}})
    assert texts(broker.take(subscription, 1)) == ["new"]
    broker.advance(7 * 86_400)
    with pytest.raises(exceptions.NotFound):
        broker.subscriber.seek(request={"subscription": subscription, "snapshot": snapshot})
    broker.publish(topic, b"later")
    assert list(broker.publisher.list_topic_snapshots(topic=topic)) == []


# Knobs and figures


def test_leases_can_be_ended_at_once(broker: PubsubServer) -> None:
    topic, subscription = broker.pair()
    broker.publish_all(topic, [b"a", b"b", b"c"])
    broker.ack(subscription, broker.take(subscription, 3)[:1])
    assert the_broker(broker).expire(subscription) == 2
    assert len(broker.take(subscription, 2)) == 2


def test_the_broker_tells_what_is_unacked_out_and_acked(broker: PubsubServer) -> None:
    topic, subscription = broker.pair()
    server = the_broker(broker)
    broker.publish_all(topic, [b"x"] * 10)
    received = broker.pull(subscription, 4)
    broker.ack(subscription, received[:3])
    assert (server.unacked(subscription), server.leased(subscription), server.acked(subscription)) == (7, 1, 3)
    assert server.calls["Acknowledge"] == 1
    assert not server.wait_acked(subscription, timeout_s=0.01)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(server.wait_acked, subscription, timeout_s=30)
        broker.ack(subscription, [*broker.take(subscription, 6), *received])
        assert waiting.result(30)


@pytest.mark.parametrize("code", ["UNAVAILABLE", grpc.StatusCode.UNAVAILABLE])
def test_the_next_calls_fail_as_told(broker: PubsubServer, code: str | grpc.StatusCode) -> None:
    topic, subscription = broker.pair()
    broker.publish(topic, b"x")
    the_broker(broker).fail("Pull", code, times=2)
    pull = {"request": {"subscription": subscription, "max_messages": 1}, "retry": None}
    for _ in range(2):
        with pytest.raises(exceptions.ServiceUnavailable):
            broker.subscriber.pull(**pull)
    assert len(broker.subscriber.pull(**pull).received_messages) == 1


def test_a_call_can_be_done_and_its_answer_lost(broker: PubsubServer) -> None:
    topic, subscription = broker.pair()
    the_broker(broker).fail("Publish", "DEADLINE_EXCEEDED", done=True)
    request = {"request": {"topic": topic, "messages": [{"data": b"x"}]}, "retry": None}
    with pytest.raises(exceptions.DeadlineExceeded):
        broker.publisher.publish(**request)
    broker.publisher.publish(**request)
    first, second = broker.take(subscription, 2)
    assert first.message.message_id != second.message.message_id


def test_a_fault_that_cannot_be_is_refused(broker: PubsubServer) -> None:
    server = the_broker(broker)
    for wrong in ({"method": "Pul", "code": "UNAVAILABLE"}, {"method": "Pull", "code": "UNAVAILABEL"},
                  {"method": "StreamingPull", "code": "UNAVAILABLE", "done": True}):  # fmt: skip
        with pytest.raises(ValueError, match=r"did you mean|single answer"):
            server.fail(**wrong)


def test_responses_can_be_as_small_as_the_emulators() -> None:
    with Broker(max_pull=100) as broker:
        for server in connected(broker.address, broker=broker):
            topic, subscription = server.pair()
            server.publish_all(topic, [b"x"] * 250)
            assert [len(server.pull(subscription)) for _ in range(3)] == [100, 100, 50]


# Restarts


def test_a_restart_keeps_messages_leases_and_address(broker: PubsubServer) -> None:
    topic, subscription = broker.pair()
    broker.publish_all(topic, [b"a", b"b", b"c"])
    out = broker.pull(subscription, 2)
    server = the_broker(broker)
    address = server.address
    for _ in range(5):
        server.restart()
    assert server.address == address
    for again in connected(address, broker=server):
        again.ack(subscription, out)  # given out before, acked after
        assert texts(again.take(subscription, 1)) == ["c"]
        assert server.acked(subscription) == 2


def test_a_stopped_broker_is_unavailable_and_ends_its_streams() -> None:
    broker = Broker().start()
    for server in connected(broker.address, broker=broker):
        _, subscription = server.pair()
        request = pubsub_v1.types.StreamingPullRequest(subscription=subscription, stream_ack_deadline_seconds=10)
        keep_open = threading.Event()
        responses = server.subscriber.streaming_pull(requests=one_then_wait(request, keep_open), retry=None, timeout=60)
        assert broker.wait_called("StreamingPull", timeout_s=30)
        broker.stop()
        broker.stop()  # a second time does nothing
        with pytest.raises((exceptions.ServiceUnavailable, exceptions.Cancelled)):
            next(iter(responses))
        keep_open.set()
        with pytest.raises(exceptions.ServiceUnavailable):
            server.subscriber.get_subscription(subscription=subscription, retry=None)


def one_then_wait(request: Any, event: threading.Event) -> Any:
    yield request
    event.wait(60)


def test_two_brokers_never_share_a_port() -> None:
    with Broker() as first:
        port = int(first.address.rpartition(":")[2])
        with pytest.raises(RunError, match=f"Port {port} .* taken"):
            Broker(port=port).start()


def test_a_broker_never_started_has_no_address() -> None:
    with pytest.raises(RunError, match="start"):
        assert Broker().address


def test_message_ids_do_not_come_again_with_a_new_broker() -> None:
    ids: list[str] = []
    for _ in range(2):
        with Broker() as broker:
            for server in connected(broker.address):
                ids += server.publish_all(server.topic(), [b"x"] * 10)
    assert len(set(ids)) == 20


def test_ack_ids_mean_nothing_to_another_broker() -> None:
    old: list[Any] = []
    for _ in range(2):
        with Broker(project="project-of-both") as broker:
            for server in connected(broker.address, project=broker.project, broker=broker):
                topic, subscription = server.pair()
                server.publish(topic, b"x")
                received = server.take(subscription, 1)
                if old:
                    server.ack(subscription, old)
                    assert broker.unacked(subscription) == 1
                old = received


# Refusals of its own


@pytest.mark.parametrize(
    "message",
    [
        {"attributes": {"": "x"}}, {"attributes": {"a" * 257: "x"}}, {"attributes": {"a": "x" * 1_025}}, {"attributes": {"google": "x"}},
        {"attributes": {f"a{i}": "x" for i in range(101)}}, {"data": b"x", "ordering_key": "k" * 1_025}, {"data": b"x" * 10_000_001},
    ],
)  # fmt: skip
def test_limits_of_messages_are_those_of_the_service(broker: PubsubServer, message: dict[str, Any]) -> None:
    topic = broker.topic()
    with pytest.raises(exceptions.InvalidArgument):
        broker.publish_all(topic, [message])


@pytest.mark.parametrize("message", [{"attributes": {"a" * 256: "x" * 1_024, "googclient_x": ""}}, {"data": b"x" * 9_999_000}])
def test_messages_up_to_the_limits_are_good(broker: PubsubServer, message: dict[str, Any]) -> None:
    topic, subscription = broker.pair()
    broker.publish_all(topic, [message])
    assert len(broker.take(subscription, 1)) == 1


@pytest.mark.parametrize(
    "setting", [{"filter": "attributes:x"}, {"enable_exactly_once_delivery": True}, {"push_config": {"push_endpoint": "https://x.example"}}]
)
def test_what_would_change_deliveries_and_is_not_done_is_refused(broker: PubsubServer, setting: dict[str, Any]) -> None:
    with pytest.raises(exceptions.MethodNotImplemented, match="embedded broker"):
        broker.subscription(broker.topic(), **setting)


def test_a_dead_letter_topic_that_is_gone_loses_nothing(broker: PubsubServer) -> None:
    dead = broker.topic()
    topic, subscription = broker.pair(dead_letter_policy={"dead_letter_topic": dead, "max_delivery_attempts": 5})
    broker.publish(topic, b"x")
    broker.publisher.delete_topic(topic=dead)
    for _ in range(7):
        broker.nack(subscription, broker.take(subscription, 1))
    assert texts(broker.take(subscription, 1)) == ["x"]


# Ways in


def test_a_client_with_an_endpoint_and_anonymous_credentials_works(broker: PubsubServer) -> None:
    topic, subscription = broker.pair()
    channel = grpc.insecure_channel(broker.address)
    transport = pubsub_v1.PublisherClient.get_transport_class("grpc")
    publisher = pubsub_v1.PublisherClient(transport=transport(channel=channel, credentials=AnonymousCredentials()))
    publisher.publish(topic, b"x").result(30)
    publisher.stop()
    channel.close()
    assert texts(broker.take(subscription, 1)) == ["x"]


def test_many_threads_publish_nack_and_ack_and_each_message_arrives_once(broker: PubsubServer) -> None:
    topic, subscription = broker.pair()
    total, acked, nacked, lock = 4_000, Counter[str](), set[str](), threading.Lock()

    def publish(worker: int) -> None:
        for i in range(0, total // 4, 50):
            broker.publish_all(topic, [f"{worker}-{i + j}".encode() for j in range(50)])

    def consume(worker: int) -> None:
        while acked.total() < total:
            received = broker.pull(subscription, 100, wait=True)
            with lock:
                back = [m for m in received if m.message.data.endswith(b"7") and m.message.message_id not in nacked]
                nacked.update(m.message.message_id for m in back)
            kept = [m for m in received if m not in back]
            if back:
                broker.nack(subscription, back)
            if kept:
                broker.ack(subscription, kept)
                with lock:
                    acked.update(texts(kept))

    with ThreadPoolExecutor(8) as threads:
        for work in [threads.submit(task, n) for n in range(4) for task in (publish, consume)]:
            work.result(60)
    assert len(nacked) == total // 10
    assert set(acked.values()) == {1}
    assert the_broker(broker).unacked(subscription) == 0
