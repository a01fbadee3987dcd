"""Messages and leases with the embedded broker and with the official emulator: every test runs with each."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from google.api_core import exceptions
from google.protobuf.timestamp_pb2 import Timestamp

from tests.pubsub_servers import PubsubServer, texts


def test_a_message_comes_as_it_was_published(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair()
    before = dt.datetime.now(dt.UTC)
    message_id = pubsub_server.publish(topic, b"\x00\xff", {"a": "1", "empty": ""}, ordering_key="k")
    [received] = pubsub_server.take(subscription, 1)
    after = dt.datetime.now(dt.UTC)
    message = received.message
    assert (message.data, dict(message.attributes), message.ordering_key) == (b"\x00\xff", {"a": "1", "empty": ""}, "k")
    assert message.message_id == message_id
    published = message.publish_time.ToDatetime(dt.UTC)
    assert before - dt.timedelta(milliseconds=2) <= published <= after
    assert received.delivery_attempt == 0  # counted only under a dead-letter policy


def test_every_subscription_gets_every_message_published_after_it_was_made(pubsub_server: PubsubServer) -> None:
    topic, early = pubsub_server.pair()
    pubsub_server.publish(topic, b"a")
    late = pubsub_server.subscription(topic)
    pubsub_server.publish(topic, b"b")
    assert texts(pubsub_server.take(early, 2)) == ["a", "b"]
    assert texts(pubsub_server.take(late, 1)) == ["b"]


def test_ids_are_unique_and_the_same_in_every_delivery(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair()
    other = pubsub_server.topic()
    ids = pubsub_server.publish_all(topic, [b"x"] * 1_500) + pubsub_server.publish_all(other, [b"x"] * 10)
    assert len(set(ids)) == 1_510
    first = pubsub_server.take(subscription, 1_500)
    assert sorted(m.message.message_id for m in first) == sorted(ids[:1_500])
    assert len({m.ack_id for m in first}) == 1_500
    pubsub_server.nack(subscription, first)
    again = pubsub_server.take(subscription, 1_500)
    assert sorted(m.message.message_id for m in again) == sorted(ids[:1_500])


def test_an_acked_message_never_comes_again(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair()
    pubsub_server.publish_all(topic, [b"a", b"b"])
    received = pubsub_server.take(subscription, 2)
    pubsub_server.ack(subscription, received[:1])
    pubsub_server.ack(subscription, received[:1])  # a second ack is no error
    pubsub_server.nack(subscription, received)
    assert texts(pubsub_server.take(subscription, 1)) == texts(received[1:])
    assert pubsub_server.pull(subscription) == []


def test_a_leased_message_does_not_come_again(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair()
    pubsub_server.publish(topic, b"a")
    pubsub_server.take(subscription, 1)
    assert pubsub_server.pull(subscription) == []


def test_a_pull_gives_at_most_max_messages(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair()
    pubsub_server.publish_all(topic, [b"x"] * 20)
    assert len(pubsub_server.pull(subscription, 7)) == 7
    assert len(pubsub_server.pull(subscription, 1)) == 1
    assert len(pubsub_server.pull(subscription, 1_000)) == 12


def test_a_nacked_message_comes_again_at_once_under_a_new_ack_id(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair(ack_deadline_seconds=600)
    pubsub_server.publish(topic, b"a")
    first = pubsub_server.take(subscription, 1)
    pubsub_server.nack(subscription, first)
    second = pubsub_server.take(subscription, 1)
    assert first[0].ack_id != second[0].ack_id
    pubsub_server.ack(subscription, first)  # of a delivery that has ended: no error and no effect
    pubsub_server.nack(subscription, second)
    assert texts(pubsub_server.take(subscription, 1)) == ["a"]


def test_a_message_comes_again_when_its_lease_expires(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair(ack_deadline_seconds=600)
    pubsub_server.publish_all(topic, [b"acked", b"kept", b"lost"])
    received = pubsub_server.take(subscription, 3)
    pubsub_server.modify(subscription, received[2:], 1)
    pubsub_server.ack(subscription, received[:1])
    pubsub_server.advance(1.5)
    assert texts(pubsub_server.take(subscription, 1)) == texts(received[2:])
    assert pubsub_server.pull(subscription) == []


@pytest.mark.slow
def test_the_deadline_of_the_subscription_is_that_of_its_leases(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair(ack_deadline_seconds=10)
    pubsub_server.publish_all(topic, [b"a", b"b"])
    received = pubsub_server.take(subscription, 2)
    pubsub_server.modify(subscription, received[:1], 60)
    pubsub_server.advance(10.5)
    assert texts(pubsub_server.take(subscription, 1)) == texts(received[1:])


def test_a_late_ack_counts_if_the_message_was_not_given_out_again(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair()
    pubsub_server.publish_all(topic, [b"late", b"probe"])
    late, probe = pubsub_server.take(subscription, 2)
    pubsub_server.modify(subscription, [probe], 1)
    pubsub_server.modify(subscription, [late], 2)  # ends after the probe's: a take of one message shows time has passed
    pubsub_server.advance(1.5)
    pubsub_server.take(subscription, 1)
    pubsub_server.ack(subscription, [late])
    pubsub_server.advance(2)
    assert pubsub_server.pull(subscription) == []


@pytest.mark.parametrize("seconds", [10, 600])
def test_settings_of_a_subscription_are_kept(pubsub_server: PubsubServer, seconds: int) -> None:
    topic, subscription = pubsub_server.pair(ack_deadline_seconds=seconds, labels={"a": "b"}, enable_message_ordering=True)
    settings = pubsub_server.subscriber.get_subscription(subscription=subscription)
    assert (settings.topic, settings.ack_deadline_seconds, dict(settings.labels)) == (topic, seconds, {"a": "b"})
    assert settings.enable_message_ordering
    assert settings.message_retention_duration == dt.timedelta(days=7)


def test_a_subscription_can_be_updated_in_what_may_change(pubsub_server: PubsubServer) -> None:
    _, name = pubsub_server.pair()

    def update(path: str, **fields: Any) -> Any:
        request = {"subscription": {"name": name, **fields}, "update_mask": {"paths": [path]}}
        return pubsub_server.subscriber.update_subscription(request=request)

    assert update("ack_deadline_seconds", ack_deadline_seconds=33, retain_acked_messages=True).ack_deadline_seconds == 33
    assert not pubsub_server.subscriber.get_subscription(subscription=name).retain_acked_messages  # given, but not named
    assert update("retain_acked_messages", retain_acked_messages=True).retain_acked_messages
    after = pubsub_server.subscriber.get_subscription(subscription=name)
    assert (after.ack_deadline_seconds, after.retain_acked_messages) == (33, True)
    for path in ("topic", "enable_message_ordering", "nothing"):
        with pytest.raises(exceptions.InvalidArgument):
            update(path)


def test_listings_come_in_pages(pubsub_server: PubsubServer) -> None:
    topic = pubsub_server.topic()
    made = sorted(pubsub_server.subscription(topic) for _ in range(5))
    pages = list(pubsub_server.publisher.list_topic_subscriptions(request={"topic": topic, "page_size": 2}).pages)
    assert [len(page.subscriptions) for page in pages] == [2, 2, 1]
    assert sorted(name for page in pages for name in page.subscriptions) == made
    project = f"projects/{pubsub_server.project}"
    assert topic in {t.name for t in pubsub_server.publisher.list_topics(project=project)}
    assert set(made) <= {s.name for s in pubsub_server.subscriber.list_subscriptions(project=project)}
    assert list(pubsub_server.publisher.list_topics(project="projects/somebody-elses")) == []


def test_a_message_needs_data_or_an_attribute(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair()
    pubsub_server.publish(topic, b"", {"a": "1"})
    [received] = pubsub_server.take(subscription, 1)
    assert (received.message.data, dict(received.message.attributes)) == (b"", {"a": "1"})


def test_an_ack_id_of_another_subscription_is_invalid(pubsub_server: PubsubServer) -> None:
    topic, one = pubsub_server.pair()
    other = pubsub_server.subscription(topic)
    pubsub_server.publish(topic, b"x")
    received = pubsub_server.take(one, 1)
    with pytest.raises(exceptions.InvalidArgument):
        pubsub_server.ack(other, received)


def test_a_subscription_made_anew_forgets_the_old_one(pubsub_server: PubsubServer) -> None:
    topic, name = pubsub_server.pair()
    pubsub_server.publish(topic, b"old")
    old = pubsub_server.take(name, 1)
    pubsub_server.subscriber.delete_subscription(subscription=name)
    pubsub_server.subscriber.create_subscription(name=name, topic=topic)
    pubsub_server.publish(topic, b"new")
    new = pubsub_server.take(name, 1)
    pubsub_server.ack(name, old)
    pubsub_server.nack(name, new)
    assert texts(pubsub_server.take(name, 1)) == ["new"]


def test_a_deleted_topic_leaves_its_subscriptions_what_they_had(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair()
    pubsub_server.publish(topic, b"x")
    pubsub_server.publisher.delete_topic(topic=topic)
    assert pubsub_server.subscriber.get_subscription(subscription=subscription).topic == "_deleted-topic_"
    assert texts(pubsub_server.take(subscription, 1)) == ["x"]


# Ordering


def test_messages_of_a_key_come_in_order_and_others_beside_them(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair(enable_message_ordering=True)
    for i in range(5):
        for key in ("a", "b", ""):
            pubsub_server.publish(topic, f"{key}{i}".encode(), ordering_key=key)
    by_key: dict[str, list[str]] = {}
    for _ in range(15):
        for received in pubsub_server.pull(subscription, 4):
            by_key.setdefault(received.message.ordering_key, []).append(received.message.data.decode())
            pubsub_server.ack(subscription, [received])
    assert {key: sorted(found) for key, found in by_key.items()} == {key: [f"{key}{i}" for i in range(5)] for key in ("a", "b", "")}
    assert [by_key[key] for key in ("a", "b")] == [sorted(by_key[key]) for key in ("a", "b")]


def test_nothing_of_a_key_comes_while_something_of_it_is_out(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair(enable_message_ordering=True)
    pubsub_server.publish_all(topic, [{"data": b"%d" % i, "ordering_key": "k"} for i in range(4)])
    first = pubsub_server.pull(subscription, 2)
    assert texts(first) == ["0", "1"]
    pubsub_server.ack(subscription, first[1:])
    assert pubsub_server.pull(subscription) == []
    pubsub_server.ack(subscription, first[:1])
    assert texts(pubsub_server.take(subscription, 2)) == ["2", "3"]


# Dead letters


def test_a_message_nacked_too_often_goes_to_the_dead_letter_topic(pubsub_server: PubsubServer) -> None:
    dead_topic, dead = pubsub_server.pair()
    topic, subscription = pubsub_server.pair(dead_letter_policy={"dead_letter_topic": dead_topic, "max_delivery_attempts": 5})
    pubsub_server.publish(topic, b"poison", {"a": "1"})
    attempts = []
    for _ in range(5):
        received = pubsub_server.take(subscription, 1)
        attempts.append(received[0].delivery_attempt)
        pubsub_server.nack(subscription, received)
    assert attempts == [1, 2, 3, 4, 5]
    assert pubsub_server.pull(subscription) == []  # the emulator forwards at the pull that would have been the sixth delivery
    [letter] = pubsub_server.take(dead, 1)
    assert letter.message.data == b"poison"
    attributes = dict(letter.message.attributes)
    assert attributes["a"] == "1"
    assert attributes["CloudPubSubDeadLetterSourceDeliveryCount"] == "5"
    assert attributes["CloudPubSubDeadLetterSourceSubscription"] == subscription.rpartition("/")[2]
    assert attributes["CloudPubSubDeadLetterSourceSubscriptionProject"] == pubsub_server.project
    assert dt.datetime.fromisoformat(attributes["CloudPubSubDeadLetterSourceTopicPublishTime"])


# Seeking


def test_seeking_back_makes_acked_messages_come_again_if_they_are_retained(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair(retain_acked_messages=True)
    for text in (b"a", b"b", b"c", b"d", b"e"):
        pubsub_server.publish(topic, text)
    received = pubsub_server.take(subscription, 5)
    pubsub_server.ack(subscription, received)
    times = sorted(m.message.publish_time.ToNanoseconds() for m in received)
    for moment in (times[2], times[0], times[4]):
        expected = [m.message.data.decode() for m in received if m.message.publish_time.ToNanoseconds() >= moment]
        seconds, nanos = divmod(moment, 10**9)
        pubsub_server.subscriber.seek(request={"subscription": subscription, "time": Timestamp(seconds=seconds, nanos=nanos)})
        assert sorted(texts(pubsub_server.take(subscription, len(expected)))) == sorted(expected)


def test_seeking_back_brings_nothing_acked_if_nothing_is_retained(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair()
    pubsub_server.publish_all(topic, [b"a", b"b"])
    received = pubsub_server.take(subscription, 2)
    pubsub_server.ack(subscription, received[:1])
    hour_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    pubsub_server.subscriber.seek(request={"subscription": subscription, "time": hour_ago})
    assert texts(pubsub_server.take(subscription, 1)) == texts(received[1:])


def test_seeking_forward_acks_everything(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair()
    pubsub_server.publish_all(topic, [b"a", b"b"])
    pubsub_server.take(subscription, 2)
    ahead = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    pubsub_server.subscriber.seek(request={"subscription": subscription, "time": ahead})
    assert pubsub_server.pull(subscription) == []
    pubsub_server.publish(topic, b"later")
    assert texts(pubsub_server.take(subscription, 1)) == ["later"]


def test_a_topic_can_retain_for_its_subscriptions(pubsub_server: PubsubServer) -> None:
    topic = pubsub_server.topic(message_retention_duration={"seconds": 600})
    subscription = pubsub_server.subscription(topic)
    pubsub_server.publish(topic, b"a")
    pubsub_server.ack(subscription, pubsub_server.take(subscription, 1))
    hour_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    pubsub_server.subscriber.seek(request={"subscription": subscription, "time": hour_ago})
    assert texts(pubsub_server.take(subscription, 1)) == ["a"]


def test_seeking_to_a_snapshot_brings_back_what_was_unacked_then_and_all_since(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair()
    pubsub_server.publish_all(topic, [b"a", b"b", b"c"])
    received = pubsub_server.take(subscription, 3)
    pubsub_server.ack(subscription, received[:1])
    name = pubsub_server.path("snapshots", "snapshot")
    snapshot = pubsub_server.subscriber.create_snapshot(name=name, subscription=subscription)
    assert (snapshot.name, snapshot.topic) == (name, topic)
    pubsub_server.ack(subscription, received[1:])
    pubsub_server.publish(topic, b"d")
    pubsub_server.ack(subscription, pubsub_server.take(subscription, 1))
    pubsub_server.subscriber.seek(request={"subscription": subscription, "snapshot": name})
    assert sorted(texts(pubsub_server.take(subscription, 3))) == sorted([*texts(received[1:]), "d"])
    assert name in {s.name for s in pubsub_server.subscriber.list_snapshots(project=f"projects/{pubsub_server.project}")}
    pubsub_server.subscriber.delete_snapshot(snapshot=name)
