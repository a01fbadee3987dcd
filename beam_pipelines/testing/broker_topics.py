"""Topics, subscriptions and snapshots: made, listed, deleted, published to and seeked."""

from __future__ import annotations

import itertools
import secrets
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import empty_pb2, timestamp_pb2

from beam_pipelines.testing.broker_backlog import Backlog, Stored
from beam_pipelines.testing.broker_protocol import nanoseconds, page, raw, rfc3339, set_timestamp
from beam_pipelines.testing.broker_rules import (
    DEFAULT_RETENTION_S,
    Refused,
    already_exists,
    check_messages,
    check_name,
    check_project,
    check_retention,
    check_size,
    check_subscription,
    invalid,
    not_done,
    not_found,
)

_SECOND_NS = 10**9
_MUTABLE = ("ack_deadline_seconds", "retain_acked_messages", "message_retention_duration", "labels", "dead_letter_policy",
            "retry_policy", "expiration_policy")  # fmt: skip


@dataclass(eq=False)
class Snapshot:
    """What a seek to it makes wait again: what was not acked when it was made, and all that its topic got since."""

    settings: Any  # google.pubsub.v1.Snapshot
    topic: Topic
    messages: list[Stored]


@dataclass(eq=False)
class Subscription:
    """One subscription. Its `changed` is notified when there may be something to deliver, or when it is gone."""

    settings: Any  # google.pubsub.v1.Subscription
    topic: Topic | None
    backlog: Backlog
    changed: threading.Condition
    kept: deque[Stored] = field(default_factory=deque)  # acked or not, for a seek back
    gone: bool = False

    @property
    def name(self) -> str:
        return str(self.settings.name)


@dataclass(eq=False)
class Topic:
    """One topic. `settings` of a deleted one stay with its snapshots."""

    settings: Any  # google.pubsub.v1.Topic
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    kept: deque[Stored] = field(default_factory=deque)

    @property
    def name(self) -> str:
        return str(self.settings.name)


Validate = Callable[[Any, list[Any]], None]  # (topic settings, messages): refuses, or adds the schema's attributes


class Topics:
    """All state but schemas, under one lock; the methods are those of google.pubsub.v1, named in snake case."""

    def __init__(self, clock: Callable[[], float], *, check_schema: Callable[[Any], None], validate: Validate) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.subscriptions: dict[str, Subscription] = {}
        self._topics: dict[str, Topic] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._check_schema = check_schema
        self._validate = validate
        # Ids must not come again when a broker is started anew beside outputs that know the old ones.
        self._numbers = itertools.count(time.time_ns() // 1_000)
        self._births = itertools.count(1)
        self._nonce = secrets.token_hex(3)

    def now_ns(self) -> int:
        return round(self.clock() * 1_000_000) * 1_000

    def find(self, name: str) -> Subscription:
        """The subscription of that name; INVALID_ARGUMENT or NOT_FOUND."""
        found = self.subscriptions.get(check_name(name, "subscriptions"))
        if found is None:
            raise not_found("Subscription does not exist")
        return found

    def _topic(self, name: str, missing: str = "Topic not found") -> Topic:
        found = self._topics.get(check_name(name, "topics"))
        if found is None:
            raise not_found(missing)
        return found

    def _snapshot(self, name: str) -> Snapshot:
        found = self._snapshots.get(check_name(name, "snapshots"))
        if found is None or nanoseconds(found.settings.expire_time) <= self.now_ns():
            raise not_found("Snapshot does not exist")
        return found

    # Publisher

    def create_topic(self, request: Any, context: Any) -> Any:
        check_name(request.name, "topics")
        if request.HasField("message_retention_duration"):
            check_retention(request)
        if request.HasField("ingestion_data_source_settings") or request.message_transforms:
            raise not_done("ingestion or message transforms")
        if request.HasField("schema_settings"):
            self._check_schema(request.schema_settings)
        with self.lock:
            if request.name in self._topics:
                raise already_exists("Topic already exists")
            self._topics[request.name] = Topic(request)
        return request

    def get_topic(self, request: Any, context: Any) -> Any:
        with self.lock:
            return self._topic(request.topic).settings

    def update_topic(self, request: Any, context: Any) -> Any:
        with self.lock:
            topic = self._topic(request.topic.name)
            topic.settings = _updated(topic.settings, request.topic, request.update_mask.paths, ("labels", "message_retention_duration"))
            return topic.settings

    def list_topics(self, request: Any, context: Any) -> Any:
        with self.lock:
            topics, token = page(_of(self._topics, request.project), request)
            return raw("ListTopicsResponse")(topics=[t.settings for t in topics], next_page_token=token)

    def list_topic_subscriptions(self, request: Any, context: Any) -> Any:
        with self.lock:
            found, token = page(self._topic(request.topic).subscriptions, request)
            return raw("ListTopicSubscriptionsResponse")(subscriptions=[s.name for s in found], next_page_token=token)

    def list_topic_snapshots(self, request: Any, context: Any) -> Any:
        with self.lock:
            found, token = page(self._topic(request.topic).snapshots, request)
            return raw("ListTopicSnapshotsResponse")(snapshots=[s.settings.name for s in found], next_page_token=token)

    def delete_topic(self, request: Any, context: Any) -> Any:
        with self.lock:
            topic = self._topic(request.topic)
            del self._topics[request.topic]
            for subscription in topic.subscriptions.values():
                subscription.topic = None
                subscription.settings.topic = "_deleted-topic_"
        return empty_pb2.Empty()

    def publish(self, request: Any, context: Any) -> Any:
        check_name(request.topic, "topics")
        messages = list(request.messages)
        check_size(request.ByteSize())
        check_messages(messages)
        with self.lock:
            topic = self._topic(request.topic)
            if topic.settings.HasField("schema_settings"):
                self._validate(topic.settings, messages)
            return raw("PublishResponse")(message_ids=self._append(topic, messages))

    def _append(self, topic: Topic, messages: Iterable[Any]) -> list[str]:
        now = self.now_ns()
        time_ = timestamp_pb2.Timestamp()
        set_timestamp(time_, now)
        stored = []
        for message in messages:
            number = next(self._numbers)
            message.message_id = str(number)
            message.publish_time.CopyFrom(time_)
            stored.append(Stored(number, now, message.ByteSize(), message))
        for subscription in topic.subscriptions.values():
            self._deliver(subscription, stored, now)
        self._keep(topic, stored, now)
        return [s.message.message_id for s in stored]

    def _deliver(self, subscription: Subscription, stored: list[Stored], now: int) -> None:
        subscription.backlog.add(stored)
        if subscription.settings.retain_acked_messages:
            subscription.kept.extend(stored)
            _trim(subscription.kept, now, subscription.settings)
        subscription.changed.notify_all()

    def _keep(self, topic: Topic, stored: list[Stored], now: int) -> None:
        if topic.settings.HasField("message_retention_duration"):
            topic.kept.extend(stored)
            _trim(topic.kept, now, topic.settings)
        for snapshot in list(topic.snapshots.values()):
            if nanoseconds(snapshot.settings.expire_time) <= now:
                self._forget(snapshot)
            snapshot.messages.extend(stored)

    # Subscriber

    def create_subscription(self, request: Any, context: Any) -> Any:
        check_name(request.name, "subscriptions")
        check_name(request.topic, "topics")
        check_subscription(request)
        with self.lock:
            if request.name in self.subscriptions:
                raise already_exists("Subscription already exists")
            topic = self._topic(request.topic, "Subscription topic does not exist")
            self._check_dead_letter_topic(request)
            request.ack_deadline_seconds = request.ack_deadline_seconds or 10
            if not request.HasField("message_retention_duration"):
                request.message_retention_duration.seconds = DEFAULT_RETENTION_S
            request.state = request.State.ACTIVE
            prefix = f"{_fingerprint(request.name)}-{self._nonce}{next(self._births)}:"
            backlog = Backlog(prefix, ordered=request.enable_message_ordering, max_attempts=_max_attempts(request))
            subscription = Subscription(request, topic, backlog, threading.Condition(self.lock))
            self.subscriptions[request.name] = topic.subscriptions[request.name] = subscription
        return request

    def _check_dead_letter_topic(self, settings: Any) -> None:
        if settings.HasField("dead_letter_policy"):
            self._topic(settings.dead_letter_policy.dead_letter_topic, "Dead letter topic not found")

    def get_subscription(self, request: Any, context: Any) -> Any:
        with self.lock:
            return self.find(request.subscription).settings

    def update_subscription(self, request: Any, context: Any) -> Any:
        with self.lock:
            subscription = self.find(request.subscription.name)
            settings = _updated(subscription.settings, request.subscription, request.update_mask.paths, _MUTABLE)
            check_subscription(settings)
            self._check_dead_letter_topic(settings)
            subscription.settings = settings
            subscription.backlog.max_attempts = _max_attempts(settings)
            if not settings.retain_acked_messages:
                subscription.kept.clear()
            return settings

    def list_subscriptions(self, request: Any, context: Any) -> Any:
        with self.lock:
            found, token = page(_of(self.subscriptions, request.project), request)
            return raw("ListSubscriptionsResponse")(subscriptions=[s.settings for s in found], next_page_token=token)

    def delete_subscription(self, request: Any, context: Any) -> Any:
        with self.lock:
            subscription = self.find(request.subscription)
            del self.subscriptions[request.subscription]
            if subscription.topic is not None:
                del subscription.topic.subscriptions[request.subscription]
            subscription.gone = True
            subscription.changed.notify_all()
        return empty_pb2.Empty()

    def forward_exhausted(self, subscription: Subscription) -> None:
        """Publishes what used up its attempts to the dead-letter topic, with the attributes of the real service."""
        exhausted, subscription.backlog.exhausted = subscription.backlog.exhausted, []
        topic = self._topics.get(subscription.settings.dead_letter_policy.dead_letter_topic)
        if topic is None:  # deleted: nothing is lost for that
            subscription.backlog.add(stored for stored, _ in exhausted)
        elif exhausted:
            self._append(topic, [_dead_letter(subscription, stored, attempts) for stored, attempts in exhausted])

    # Snapshots and seeking

    def create_snapshot(self, request: Any, context: Any) -> Any:
        check_name(request.name, "snapshots")
        with self.lock:
            subscription = self.find(request.subscription)
            if request.name in self._snapshots:
                raise already_exists("Snapshot already exists")
            if subscription.topic is None:
                raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "The subscription's topic is deleted")
            unacked = subscription.backlog.unacked()
            oldest = min((stored.published_ns for stored in unacked), default=self.now_ns())
            settings = raw("Snapshot")(name=request.name, topic=subscription.topic.name, labels=request.labels)
            set_timestamp(settings.expire_time, oldest + DEFAULT_RETENTION_S * _SECOND_NS)
            snapshot = Snapshot(settings, subscription.topic, unacked)
            self._snapshots[request.name] = subscription.topic.snapshots[request.name] = snapshot
            return settings

    def get_snapshot(self, request: Any, context: Any) -> Any:
        with self.lock:
            return self._snapshot(request.snapshot).settings

    def list_snapshots(self, request: Any, context: Any) -> Any:
        with self.lock:
            found, token = page(_of(self._snapshots, request.project), request)
            return raw("ListSnapshotsResponse")(snapshots=[s.settings for s in found], next_page_token=token)

    def delete_snapshot(self, request: Any, context: Any) -> Any:
        with self.lock:
            self._forget(self._snapshot(request.snapshot))
        return empty_pb2.Empty()

    def _forget(self, snapshot: Snapshot) -> None:
        del self._snapshots[snapshot.settings.name], snapshot.topic.snapshots[snapshot.settings.name]

    def seek(self, request: Any, context: Any) -> Any:
        with self.lock:
            subscription = self.find(request.subscription)
            if request.HasField("time"):
                self._seek_to_time(subscription, nanoseconds(request.time))
            elif request.HasField("snapshot"):
                self._seek_to_snapshot(subscription, self._snapshot(request.snapshot))
            else:
                raise invalid("No target was specified in the SeekRequest. Must specify either a time or a snapshot")
            subscription.changed.notify_all()
        return raw("SeekResponse")()

    def _seek_to_time(self, subscription: Subscription, ns: int) -> None:
        known = [*subscription.backlog.unacked(), *subscription.kept, *(subscription.topic.kept if subscription.topic else ())]
        later = {stored.number: stored for stored in known if stored.published_ns >= ns}
        subscription.backlog.reset(later.values())

    def _seek_to_snapshot(self, subscription: Subscription, snapshot: Snapshot) -> None:
        if subscription.topic is not snapshot.topic:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "The subscription's topic is different from that of the snapshot")
        subscription.backlog.reset(snapshot.messages)


def _of(found: dict[str, Any], project: str) -> dict[str, Any]:
    check_project(project)
    return {name: value for name, value in found.items() if name.startswith(f"{project}/")}


def _updated(settings: Any, changes: Any, paths: Iterable[str], mutable: tuple[str, ...]) -> Any:
    """A copy of `settings` with the named fields of `changes`; INVALID_ARGUMENT for no field, an unknown one, one that stays."""
    if not paths:
        raise invalid("The update_mask must be set, and must contain a non-empty paths list.")
    updated = type(settings)()
    updated.CopyFrom(settings)
    for path in paths:
        if path not in mutable:
            raise invalid(f"Invalid update_mask: {path} is not a field that can change; those are {', '.join(mutable)}")
        updated.ClearField(path)
        chosen = type(settings)(**{path: getattr(changes, path)}) if _is_set(changes, path) else type(settings)()
        updated.MergeFrom(chosen)
    return updated


def _is_set(message: Any, name: str) -> bool:
    """Whether a field was given; a number, a text or a map always counts as given."""
    try:
        return bool(message.HasField(name))
    except ValueError:  # no presence in proto3
        return True


def _max_attempts(settings: Any) -> int:
    return settings.dead_letter_policy.max_delivery_attempts or 5 if settings.HasField("dead_letter_policy") else 0


def _trim(kept: deque[Stored], now: int, settings: Any) -> None:
    horizon = now - settings.message_retention_duration.seconds * _SECOND_NS
    while kept and kept[0].published_ns < horizon:
        kept.popleft()


def _fingerprint(name: str) -> str:
    return f"{zlib.crc32(name.encode()):08x}"


def meant_for(subscription: Subscription, ack_id: str) -> bool:
    """Whether an ack id was given out by a subscription of this name, now or earlier."""
    return ack_id.startswith(f"{_fingerprint(subscription.name)}-") and ack_id.rpartition(":")[2].isdecimal()


def _dead_letter(subscription: Subscription, stored: Stored, attempts: int) -> Any:
    message = raw("PubsubMessage")(data=stored.message.data, attributes=stored.message.attributes, ordering_key=stored.message.ordering_key)
    _, project, _, name = subscription.name.split("/")
    message.attributes["CloudPubSubDeadLetterSourceSubscription"] = name
    message.attributes["CloudPubSubDeadLetterSourceSubscriptionProject"] = project
    message.attributes["CloudPubSubDeadLetterSourceDeliveryCount"] = str(attempts)
    message.attributes["CloudPubSubDeadLetterSourceTopicPublishTime"] = rfc3339(stored.published_ns)
    return message
