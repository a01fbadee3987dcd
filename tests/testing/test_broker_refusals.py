"""What Pub/Sub refuses, and with which code: the embedded broker and the official emulator agree."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from google.api_core import exceptions

from tests.pubsub_servers import PubsubServer

KNOWN_CODES = {  # how google.api_core names what gRPC says
    "INVALID_ARGUMENT": exceptions.InvalidArgument,
    "NOT_FOUND": exceptions.NotFound,
    "ALREADY_EXISTS": exceptions.AlreadyExists,
    "FAILED_PRECONDITION": exceptions.FailedPrecondition,
    "OUT_OF_RANGE": exceptions.OutOfRange,
}

BAD_NAMES = ["", "flights", "projects/demo-project", "projects/demo-project/topics/ab", "projects/demo-project/topics/1abc",
             "projects/demo-project/topics/googly", "projects/demo-project/topics/a b c", "projects/demo-project/topics/caf\u00e9s",
             "projects/demo-project/subscriptions/abc", f"projects/demo-project/topics/{'a' * 256}"]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=[*map(str, range(len(BAD_NAMES)))])
def test_malformed_names_are_invalid(pubsub_server: PubsubServer, name: str) -> None:
    calls = [
        lambda: pubsub_server.publisher.create_topic(request={"name": name}),
        lambda: pubsub_server.publisher.get_topic(request={"topic": name}),
        lambda: pubsub_server.publisher.publish(request={"topic": name, "messages": [{"data": b"x"}]}),
        lambda: pubsub_server.subscriber.create_subscription(request={"name": name.replace("topics", "subscriptionz"), "topic": name}),
        lambda: pubsub_server.subscriber.pull(request={"subscription": name.replace("subscriptions", "topics"), "max_messages": 1}),
    ]
    for call in calls:
        with pytest.raises(exceptions.InvalidArgument):
            call()


@pytest.mark.parametrize("name", ["a-b", "a.b_c~d+e%f-9", "A" * 255, "goo"])
def test_names_of_the_documented_shape_are_good(pubsub_server: PubsubServer, name: str) -> None:
    path = f"projects/{pubsub_server.project}/topics/{name}"
    assert pubsub_server.publisher.create_topic(name=path).name == path
    pubsub_server.publisher.delete_topic(topic=path)


def refusals(server: PubsubServer) -> Iterator[tuple[str, Any]]:
    """Calls that are refused, and with which code."""
    topic, subscription = server.pair()
    snapshot = server.path("snapshots", "snapshot")
    server.subscriber.create_snapshot(name=snapshot, subscription=subscription)
    publisher, subscriber = server.publisher, server.subscriber
    no_topic, no_subscription, no_snapshot = (
        f"projects/{server.project}/{kind}/missing" for kind in ("topics", "subscriptions", "snapshots")
    )
    yield "ALREADY_EXISTS", lambda: publisher.create_topic(name=topic)
    yield "ALREADY_EXISTS", lambda: subscriber.create_subscription(name=subscription, topic=topic)
    yield "ALREADY_EXISTS", lambda: subscriber.create_snapshot(name=snapshot, subscription=subscription)
    yield "NOT_FOUND", lambda: publisher.get_topic(topic=no_topic)
    yield "NOT_FOUND", lambda: publisher.delete_topic(topic=no_topic)
    yield "NOT_FOUND", lambda: publisher.publish(topic=no_topic, messages=[{"data": b"x"}])
    yield "NOT_FOUND", lambda: subscriber.create_subscription(name=no_subscription, topic=no_topic)
    yield "NOT_FOUND", lambda: subscriber.get_subscription(subscription=no_subscription)
    yield "NOT_FOUND", lambda: subscriber.delete_subscription(subscription=no_subscription)
    yield "NOT_FOUND", lambda: subscriber.pull(subscription=no_subscription, max_messages=1)
    yield "NOT_FOUND", lambda: subscriber.acknowledge(subscription=no_subscription, ack_ids=["x"])
    yield "NOT_FOUND", lambda: subscriber.seek(request={"subscription": no_subscription, "time": dt.datetime.now(dt.UTC)})
    yield "NOT_FOUND", lambda: subscriber.seek(request={"subscription": subscription, "snapshot": no_snapshot})
    yield "NOT_FOUND", lambda: subscriber.delete_snapshot(snapshot=no_snapshot)
    yield "INVALID_ARGUMENT", lambda: subscriber.seek(request={"subscription": subscription})
    yield "INVALID_ARGUMENT", lambda: publisher.publish(topic=topic, messages=[])
    yield "INVALID_ARGUMENT", lambda: publisher.publish(topic=topic, messages=[{"data": b"x"}] * 1_001)
    yield "INVALID_ARGUMENT", lambda: publisher.publish(topic=topic, messages=[{"data": b"x"}, {"data": b""}])
    yield "INVALID_ARGUMENT", lambda: publisher.publish(topic=topic, messages=[{"ordering_key": "k"}])
    yield "INVALID_ARGUMENT", lambda: subscriber.pull(subscription=subscription, max_messages=0)
    yield "INVALID_ARGUMENT", lambda: subscriber.acknowledge(subscription=subscription, ack_ids=[])
    yield "INVALID_ARGUMENT", lambda: subscriber.acknowledge(subscription=subscription, ack_ids=["x"])
    yield "INVALID_ARGUMENT", lambda: subscriber.modify_ack_deadline(subscription=subscription, ack_ids=[], ack_deadline_seconds=10)
    yield "INVALID_ARGUMENT", lambda: server.subscription(topic, ack_deadline_seconds=601)
    yield "INVALID_ARGUMENT", lambda: server.subscription(topic, message_retention_duration={"seconds": 599})
    other = server.subscription(server.topic())
    yield "FAILED_PRECONDITION", lambda: subscriber.seek(request={"subscription": other, "snapshot": snapshot})
    dead = {"dead_letter_topic": topic, "max_delivery_attempts": 4}
    yield "OUT_OF_RANGE", lambda: server.subscription(topic, dead_letter_policy=dead)
    yield (
        "NOT_FOUND",
        lambda: server.subscription(topic, dead_letter_policy={**dead, "dead_letter_topic": no_topic, "max_delivery_attempts": 5}),
    )


def test_refusals_have_the_codes_of_the_service(pubsub_server: PubsubServer) -> None:
    for number, (code, call) in enumerate(refusals(pubsub_server)):
        with pytest.raises(exceptions.GoogleAPICallError) as raised:
            call()
        assert type(raised.value) is KNOWN_CODES[code], f"refusal {number}: {raised.value}"
