"""Pub/Sub servers for tests, as a pytest plugin: the official emulator, the embedded broker, and both in turn.

    def test_something(broker): ...           # the embedded broker, new for each test
    def test_something(emulator): ...         # the official emulator, one per test run
    def test_something(pubsub_server): ...    # runs twice, once with each

    topic, subscription = pubsub_server.pair()
    pubsub_server.publish(topic, b"...", {"departed_at": "..."})
    [message] = pubsub_server.take(subscription, 1)

`server.environment` points google-cloud-pubsub, in this process or another, at the server.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.pubsub_emulator import running_emulator

if TYPE_CHECKING:
    from beam_pipelines.testing.broker import Broker

PUBLISH_AT_ONCE = 1_000
TAKE_TIMEOUT_S = 30.0
LEASE_S = 60  # longer than a busy machine pauses a test


class ShiftedClock:
    """The time of day, moved forward at will."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self._ahead_s

    def advance(self, seconds: float) -> None:
        self._ahead_s += seconds


@dataclass(frozen=True, eq=False)
class PubsubServer:
    """A running server and clients of it. Names are made new, so that tests can share a server."""

    address: str
    project: str
    publisher: Any  # google.pubsub_v1.PublisherClient, as are the two below
    subscriber: Any
    schemas: Any
    broker: Broker | None = None
    clock: ShiftedClock | None = None
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def environment(self) -> dict[str, str]:
        return {"PUBSUB_EMULATOR_HOST": self.address, "PUBSUB_PROJECT_ID": self.project}

    def path(self, kind: str, name: str) -> str:
        """`projects/.../kind/name-N`, a name nobody has yet."""
        return f"projects/{self.project}/{kind}/{name}-{next(self._numbers)}"

    def topic(self, name: str = "topic", **options: Any) -> str:
        path = self.path("topics", name)
        self.publisher.create_topic(request={"name": path, **options})
        return path

    def subscription(self, topic: str, name: str = "subscription", **options: Any) -> str:
        path = self.path("subscriptions", name)
        self.subscriber.create_subscription(request={"ack_deadline_seconds": LEASE_S, **options, "name": path, "topic": topic})
        return path

    def pair(self, **options: Any) -> tuple[str, str]:
        """A new topic and a new subscription of it."""
        topic = self.topic()
        return topic, self.subscription(topic, **options)

    def publish(self, topic: str, data: bytes, attributes: Mapping[str, str] | None = None, ordering_key: str = "") -> str:
        """Publishes one message and gives its id."""
        message = {"data": data, "attributes": dict(attributes or {}), "ordering_key": ordering_key}
        return self.publish_all(topic, [message])[0]

    def publish_all(self, topic: str, messages: Iterable[Mapping[str, Any] | bytes]) -> list[str]:
        """Publishes messages, 1000 per request, and gives their ids."""
        rest = [{"data": message} if isinstance(message, bytes) else dict(message) for message in messages]
        ids: list[str] = []
        for start in range(0, len(rest), PUBLISH_AT_ONCE):
            chunk = rest[start : start + PUBLISH_AT_ONCE]
            ids += self.publisher.publish(request={"topic": topic, "messages": chunk}).message_ids
        return ids

    def pull(self, subscription: str, max_messages: int = 1_000, *, wait: bool = False) -> list[Any]:
        """One response's messages; with `wait` the server may wait for a first one as long as it likes to."""
        from google.pubsub_v1.types import PullRequest, PullResponse

        request = PullRequest(subscription=subscription, max_messages=max_messages, return_immediately=not wait)
        response = self.subscriber.pull(request=request, timeout=TAKE_TIMEOUT_S)
        return list(PullResponse.pb(response).received_messages)

    def take(self, subscription: str, count: int, *, max_messages: int = 1_000) -> list[Any]:
        """Exactly `count` messages, in the order in which they came. Fails if more come, or fewer within 30 s."""
        found: list[Any] = []
        deadline = time.monotonic() + TAKE_TIMEOUT_S
        while len(found) < count and time.monotonic() < deadline:
            found += self.pull(subscription, max_messages, wait=True)
        assert len(found) == count, f"{len(found)} messages came within {TAKE_TIMEOUT_S} s; expected {count}"
        return found

    def ack(self, subscription: str, received: Sequence[Any]) -> None:
        self.subscriber.acknowledge(subscription=subscription, ack_ids=[message.ack_id for message in received])

    def modify(self, subscription: str, received: Sequence[Any], seconds: int) -> None:
        ack_ids = [message.ack_id for message in received]
        self.subscriber.modify_ack_deadline(subscription=subscription, ack_ids=ack_ids, ack_deadline_seconds=seconds)

    def nack(self, subscription: str, received: Sequence[Any]) -> None:
        self.modify(subscription, received, 0)

    def advance(self, seconds: float) -> None:
        """Moves the broker's clock. The emulator has none to move: there a `take` waits until time has passed."""
        if self.clock is not None and self.broker is not None:
            self.clock.advance(seconds)
            self.broker.wake()


def texts(received: Iterable[Any]) -> list[str]:
    """The data of received messages as texts."""
    return [message.message.data.decode() for message in received]


def connected(
    address: str, *, project: str | None = None, broker: Broker | None = None, clock: ShiftedClock | None = None
) -> Iterator[PubsubServer]:
    """A server at an address with its clients, which are closed in the end."""
    import grpc
    from google.pubsub_v1 import PublisherClient, SchemaServiceClient, SubscriberClient

    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        clients = [client(transport=client.get_transport_class("grpc")(channel=channel)) for client in
                   (PublisherClient, SubscriberClient, SchemaServiceClient)]  # fmt: skip
        yield PubsubServer(address, project or f"test-{uuid.uuid4().hex[:12]}", *clients, broker=broker, clock=clock)


@contextmanager
def broker_process() -> Iterator[PubsubServer]:
    """The embedded broker in a process of its own, which is ended when the block is left."""
    process = subprocess.Popen([sys.executable, "-m", "beam_pipelines.testing.broker"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield from connected(process.stdout.readline().strip(), project="demo-project")
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.fixture(scope="session")
def emulator_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the official emulator answers; skips, in CI fails, where it is not installed."""
    with running_emulator(tmp_path_factory.mktemp("pubsub") / "emulator.log") as address:
        yield address


@pytest.fixture(scope="session")
def emulator(emulator_address: str) -> Iterator[PubsubServer]:
    """The official emulator, shared by all tests of this process."""
    yield from connected(emulator_address)


@pytest.fixture
def broker() -> Iterator[PubsubServer]:
    """An embedded broker of this test's own; `advance` moves its clock."""
    from beam_pipelines.testing.broker import Broker

    clock = ShiftedClock()
    with Broker(clock=clock) as started:
        yield from connected(started.address, project=started.project, broker=started, clock=clock)


@pytest.fixture(params=["broker", "emulator"])
def pubsub_server(request: pytest.FixtureRequest) -> PubsubServer:
    """Each server in turn: what holds with both can be relied on with either."""
    server: PubsubServer = request.getfixturevalue(request.param)
    return server
