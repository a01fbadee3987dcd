"""Messages on their way: pull, streaming pull, acknowledge and leases, on the subscriptions of `Topics`."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import empty_pb2

from beam_pipelines.testing.broker_backlog import Flow, Lease
from beam_pipelines.testing.broker_protocol import raw
from beam_pipelines.testing.broker_rules import (
    MAX_BYTES,
    Refused,
    check_lease,
    check_stream_deadline,
    invalid,
    not_found,
)
from beam_pipelines.testing.broker_topics import Subscription, Topics, meant_for

Granted = Sequence[tuple[str, Lease]]


@dataclass(eq=False)
class Stream:
    """One open StreamingPull."""

    subscription: Subscription
    deadline_s: int
    flow: Flow = field(default_factory=Flow)
    ended: bool = False
    refused: Refused | None = None


class Delivery:
    """The delivering methods of google.pubsub.v1.Subscriber, named in snake case.

    A pull waits at most `pull_wait_s` for a first message; every response holds at most `max_pull` messages.
    """

    def __init__(self, topics: Topics, *, pull_wait_s: float, max_pull: int) -> None:
        self._topics = topics
        self._pull_wait_s = pull_wait_s
        self._max_pull = max_pull

    def pull(self, request: Any, context: Any) -> Any:
        if request.max_messages <= 0:
            raise invalid("No max_messages specified")
        until = time.monotonic() + (0.0 if request.return_immediately else self._pull_wait_s)
        with self._topics.lock:
            subscription = self._topics.find(request.subscription)
            granted: Granted = ()
            while not granted and context.is_active():
                _check_there(subscription)
                granted = self._lease(subscription, request.max_messages, subscription.settings.ack_deadline_seconds)
                left = until - time.monotonic()
                if granted or left <= 0:
                    break
                self._wait(subscription, left)
        response = raw("PullResponse")()
        _fill(response, granted, subscription)
        return response

    def acknowledge(self, request: Any, context: Any) -> Any:
        if not request.ack_ids:
            raise invalid("No ack ids specified.")
        with self._topics.lock:
            self._ack(self._topics.find(request.subscription), request.ack_ids)
        return empty_pb2.Empty()

    def modify_ack_deadline(self, request: Any, context: Any) -> Any:
        if not request.ack_ids:
            raise invalid("No ack ids specified")
        with self._topics.lock:
            self._modify(self._topics.find(request.subscription), request.ack_ids, request.ack_deadline_seconds)
        return empty_pb2.Empty()

    def streaming_pull(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        first = next(requests, None)
        if first is None:
            return
        stream = self._open(first)
        if not context.add_callback(lambda: self._end(stream)):
            return
        threading.Thread(target=self._listen, args=(stream, requests), name="pubsub-broker-stream", daemon=True).start()
        while granted := self._next(stream):
            response = raw("StreamingPullResponse")()
            response.subscription_properties.message_ordering_enabled = stream.subscription.backlog.ordered
            _fill(response, granted, stream.subscription)
            yield response

    def expire(self, name: str) -> int:
        """Ends every lease of a subscription as if its deadline had passed, and says how many there were."""
        with self._topics.lock:
            subscription = self._topics.find(name)
            ended = subscription.backlog.expire(math.inf)
            self._given_back(subscription)
        return ended

    def wake(self) -> None:
        """Makes everybody who waits look at the clock again."""
        with self._topics.lock:
            for subscription in self._topics.subscriptions.values():
                subscription.changed.notify_all()

    def wait_acked(self, name: str, *, timeout_s: float) -> bool:
        """Whether nothing unacked is left in a subscription within `timeout_s`."""
        with self._topics.lock:
            subscription = self._topics.find(name)
            return subscription.changed.wait_for(lambda: not subscription.backlog, timeout_s)

    def _lease(self, subscription: Subscription, max_messages: int, deadline_s: int, flow: Flow | None = None) -> Granted:
        now = self._topics.clock()
        if subscription.backlog.expire(now):
            self._given_back(subscription)
        room = min(max_messages, self._max_pull)
        return subscription.backlog.lease(now, max_messages=room, max_bytes=MAX_BYTES, deadline_s=deadline_s, flow=flow)

    def _wait(self, subscription: Subscription, timeout_s: float | None) -> None:
        """Waits until something may have changed or the next lease may expire."""
        deadline = subscription.backlog.next_deadline()
        until_then = math.inf if deadline is None else max(deadline - self._topics.clock(), 0.001)
        wait_s = min(until_then, math.inf if timeout_s is None else timeout_s)
        subscription.changed.wait(None if math.isinf(wait_s) else wait_s)

    def _ack(self, subscription: Subscription, ack_ids: Sequence[str]) -> None:
        _check_ack_ids(subscription, ack_ids)
        subscription.backlog.ack(ack_ids)
        subscription.changed.notify_all()

    def _modify(self, subscription: Subscription, ack_ids: Sequence[str], seconds: int) -> None:
        check_lease(seconds)
        _check_ack_ids(subscription, ack_ids)
        if seconds:
            subscription.backlog.extend(ack_ids, self._topics.clock() + seconds)
            subscription.changed.notify_all()
        else:
            subscription.backlog.nack(ack_ids)
            self._given_back(subscription)

    def _given_back(self, subscription: Subscription) -> None:
        self._topics.forward_exhausted(subscription)
        subscription.changed.notify_all()

    def _open(self, first: Any) -> Stream:
        if not first.subscription:
            raise invalid("first message must set subscription")
        if not first.stream_ack_deadline_seconds:
            raise invalid("first message must set stream_ack_deadline_seconds")
        check_stream_deadline(first.stream_ack_deadline_seconds)
        with self._topics.lock:
            subscription = self._topics.find(first.subscription)
            flow = Flow(max(first.max_outstanding_messages, 0), max(first.max_outstanding_bytes, 0))
            stream = Stream(subscription, first.stream_ack_deadline_seconds, flow)
            self._apply(stream, first)
        return stream

    def _listen(self, stream: Stream, requests: Iterator[Any]) -> None:
        try:
            for request in requests:
                with self._topics.lock:
                    self._apply(stream, request)
        except Refused as refused:
            stream.refused = refused
        except grpc.RpcError:
            pass  # the client is gone
        self._end(stream)

    def _apply(self, stream: Stream, request: Any) -> None:
        if len(request.modify_deadline_ack_ids) != len(request.modify_deadline_seconds):
            raise invalid("ack IDs and deadlines must have the same size")
        if request.stream_ack_deadline_seconds:
            check_stream_deadline(request.stream_ack_deadline_seconds)
            stream.deadline_s = request.stream_ack_deadline_seconds
        if request.ack_ids:
            self._ack(stream.subscription, request.ack_ids)
        by_seconds: dict[int, list[str]] = {}
        for ack_id, seconds in zip(request.modify_deadline_ack_ids, request.modify_deadline_seconds, strict=True):
            by_seconds.setdefault(seconds, []).append(ack_id)
        for seconds, ack_ids in by_seconds.items():
            self._modify(stream.subscription, ack_ids, seconds)

    def _end(self, stream: Stream) -> None:
        with self._topics.lock:
            stream.ended = True
            stream.subscription.changed.notify_all()

    def _next(self, stream: Stream) -> Granted:
        """What the stream is to send next, as soon as there is something; nothing: the stream has ended."""
        with self._topics.lock:
            while not stream.ended:
                _check_there(stream.subscription)
                granted = self._lease(stream.subscription, self._max_pull, stream.deadline_s, stream.flow)
                if granted:
                    return granted
                self._wait(stream.subscription, None)
        if stream.refused is not None:
            raise stream.refused
        return ()


def _check_there(subscription: Subscription) -> None:
    if subscription.gone:
        raise not_found("Subscription does not exist")


def _check_ack_ids(subscription: Subscription, ack_ids: Sequence[str]) -> None:
    backlog = subscription.backlog
    for ack_id in ack_ids:
        if not (backlog.holds(ack_id) or meant_for(subscription, ack_id)):
            raise invalid(f"Invalid ack id (ack_id={ack_id})")


def _fill(response: Any, granted: Granted, subscription: Subscription) -> None:
    counts = subscription.backlog.max_attempts > 0  # only then the service counts
    add = response.received_messages.add
    for ack_id, lease in granted:
        add(ack_id=ack_id, message=lease.stored.message, delivery_attempt=lease.attempt if counts else 0)
