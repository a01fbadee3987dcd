"""StreamingPull, by hand and through the client library: the embedded broker and the official emulator agree."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import pubsub_v1
from google.pubsub_v1.types import StreamingPullRequest

from tests.pubsub_servers import PubsubServer, texts


class Stream:
    """A StreamingPull in the hands of a test: requests go out when it says so, responses are taken from a queue."""

    def __init__(self, server: PubsubServer, **first: Any) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.send(**first)
        self._call = server.subscriber.streaming_pull(requests=iter(self._requests.get, None), retry=None, timeout=60)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for response in self._call:
                self._answers.put(list(type(response).pb(response).received_messages))
        except exceptions.GoogleAPICallError as error:
            self._answers.put(error)
        else:
            self._answers.put(None)

    def send(self, **fields: Any) -> None:
        self._requests.put(StreamingPullRequest(**fields))

    def close(self) -> None:
        self._requests.put(None)

    def take(self, count: int) -> list[Any]:
        found: list[Any] = []
        while len(found) < count:
            found += self._answers.get(timeout=30)
        return found

    def end(self) -> Any:
        """The error that ended the stream; None if it ended well."""
        while isinstance(answer := self._answers.get(timeout=30), list):
            pass
        return answer


def test_a_stream_delivers_and_takes_acks_and_deadlines(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair()
    stream = Stream(pubsub_server, subscription=subscription, stream_ack_deadline_seconds=60)
    pubsub_server.publish_all(topic, [b"acked", b"nacked", b"expired"])
    received = {m.message.data.decode(): m for m in stream.take(3)}
    stream.send(ack_ids=[received["acked"].ack_id])
    stream.send(modify_deadline_ack_ids=[received["nacked"].ack_id], modify_deadline_seconds=[0])
    assert texts(stream.take(1)) == ["nacked"]
    stream.send()  # a sign of life, as the client library sends every half minute
    stream.send(modify_deadline_ack_ids=[received["expired"].ack_id], modify_deadline_seconds=[1])
    pubsub_server.advance(1.5)
    assert texts(stream.take(1)) == ["expired"]
    stream.close()
    assert stream.end() is None
    assert pubsub_server.pull(subscription) == []


def test_a_stream_that_asks_wrongly_is_ended(pubsub_server: PubsubServer) -> None:
    _, subscription = pubsub_server.pair()
    missing = f"projects/{pubsub_server.project}/subscriptions/missing"
    wrong: list[tuple[type[Exception], dict[str, Any]]] = [
        (exceptions.NotFound, {"subscription": missing, "stream_ack_deadline_seconds": 10}),
        (exceptions.InvalidArgument, {"subscription": "missing", "stream_ack_deadline_seconds": 10}),
        (exceptions.InvalidArgument, {"subscription": subscription}),
        (exceptions.InvalidArgument, {"subscription": subscription, "stream_ack_deadline_seconds": 9}),
        (exceptions.InvalidArgument, {"stream_ack_deadline_seconds": 10}),
        (exceptions.InvalidArgument, {"subscription": subscription, "stream_ack_deadline_seconds": 10, "ack_ids": ["x"]}),
    ]
    for error, request in wrong:
        assert isinstance(Stream(pubsub_server, **request).end(), error), request
    later = Stream(pubsub_server, subscription=subscription, stream_ack_deadline_seconds=10)
    later.send(modify_deadline_ack_ids=["a"], modify_deadline_seconds=[])
    assert isinstance(later.end(), exceptions.InvalidArgument)


def test_a_stream_ends_when_its_subscription_is_deleted(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair()
    stream = Stream(pubsub_server, subscription=subscription, stream_ack_deadline_seconds=10)
    pubsub_server.publish(topic, b"x")
    stream.take(1)
    pubsub_server.subscriber.delete_subscription(subscription=subscription)
    assert isinstance(stream.end(), exceptions.NotFound)


def test_the_client_library_publishes_and_subscribes_unmodified(pubsub_server: PubsubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    topic, subscription = pubsub_server.pair(enable_message_ordering=True)
    for name, value in pubsub_server.environment.items():
        monkeypatch.setenv(name, value)
    arrived: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()

    def receive(message: Any) -> None:
        arrived.put((message.ordering_key, message.data.decode()))
        message.ack()

    publisher = pubsub_v1.PublisherClient(publisher_options=pubsub_v1.types.PublisherOptions(enable_message_ordering=True))
    with pubsub_v1.SubscriberClient() as subscriber:
        pulling = subscriber.subscribe(subscription, receive)
        for i in range(50):
            publisher.publish(topic, b"%03d" % i, ordering_key="ab"[i % 2]).result(30)
        found = [arrived.get(timeout=30) for _ in range(50)]
        pulling.cancel()
        pulling.result(30)
    publisher.stop()
    for key in "ab":
        mine = [text for k, text in found if k == key]
        assert mine == sorted(mine)
        assert len(mine) == 25
