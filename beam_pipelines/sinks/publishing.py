"""Messages into a topic: in chunks that the service takes, several requests in flight, again where an error passes. Loads no Beam.

add ─▶ chunk (1,000 messages, 9 MB) ─▶ request in flight ─┬▶ published
                                                          ├▶ an error that passes: again, with back-off
                                                          ├▶ INVALID_ARGUMENT: by halves, until the message at fault is alone: refused
                                                          └▶ any other: SinkError
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import grpc

from beam_pipelines.errors import SinkError, TransientError
from beam_pipelines.pubsub_service import LOG_IN, Topic, back_off_s, code, is_transient

T = TypeVar("T")
CALL_MESSAGES = 1_000
CALL_BYTES = 9 << 20  # the service takes 10 MB, with the request's own bytes
MESSAGE_BYTES = 9_900_000
IN_FLIGHT = 8
PATIENCE_S = 300.0
_DO = {
    "NOT_FOUND": "Create the topic, or correct its name.",
    "PERMISSION_DENIED": "Give this account the role roles/pubsub.publisher on the topic.",
    "UNAUTHENTICATED": LOG_IN,
}


class _Chunk(Generic[T]):
    """Messages of one request, and what the caller knows them by."""

    def __init__(self, messages: Sequence[Any], tags: Sequence[T]) -> None:
        self.messages, self.tags = messages, tags
        self.failures, self.waited_s = 0, 0.0
        self.call: Any = None


@dataclass
class Publisher(Generic[T]):
    """Publishes to one topic. `ordered` keeps one request in flight at a time. Not for several threads.

    `finish` waits for everything and gives what was refused: tags, and why. Both raise SinkError where the topic is missing or closed to us,
    TransientError where the service did not answer for `patience_s`; what was added may then be published or not.
    """

    topic: Topic
    ordered: bool = False
    patience_s: float = PATIENCE_S
    wait: Callable[[float], Any] = field(default_factory=lambda: threading.Event().wait)
    _waiting: list[Any] = field(default_factory=list)
    _tags: list[T] = field(default_factory=list)
    _bytes: int = 0
    _flying: deque[_Chunk[T]] = field(default_factory=deque)
    _refused: list[tuple[T, str]] = field(default_factory=list)

    def add(self, data: bytes, attributes: Mapping[str, str], tag: T, *, ordering_key: str = "") -> None:
        """Takes a message; it goes out with others, soon or at `finish`."""
        message = self.topic.message(data=data, attributes=attributes, ordering_key=ordering_key)
        size = message.ByteSize() + 8
        if size > MESSAGE_BYTES:
            self._refused.append((tag, f"a message of {size:,} bytes; a topic takes {MESSAGE_BYTES:,}"))
            return
        if self._waiting and (len(self._waiting) >= CALL_MESSAGES or self._bytes + size > CALL_BYTES):
            self.flush()
        self._waiting.append(message)
        self._tags.append(tag)
        self._bytes += size

    def flush(self) -> None:
        """Sends what waits for company."""
        if self._waiting:
            chunk = _Chunk(self._waiting, self._tags)
            self._waiting, self._tags, self._bytes = [], [], 0
            while len(self._flying) >= (1 if self.ordered else IN_FLIGHT):
                self._land(self._flying.popleft())
            self._send(chunk)

    def finish(self) -> list[tuple[T, str]]:
        """Waits until everything is published or refused; gives what was refused since the last time."""
        self.flush()
        while self._flying:
            self._land(self._flying.popleft())
        refused, self._refused = self._refused, []
        return refused

    def drop(self) -> None:
        """Forgets what is under way; a failed bundle comes again."""
        for chunk in self._flying:
            chunk.call.cancel()
        self._flying.clear()
        self._waiting, self._tags, self._bytes, self._refused = [], [], 0, []

    def _send(self, chunk: _Chunk[T]) -> None:
        chunk.call = self.topic.publish(chunk.messages)
        self._flying.append(chunk)

    def _land(self, chunk: _Chunk[T]) -> None:
        """Waits for a request, and deals with its error where the request is: so a retry keeps the order."""
        while True:
            try:
                chunk.call.result()
            except grpc.RpcError as error:
                if code(error) == "INVALID_ARGUMENT":
                    self._halve(chunk, error)
                    return
                self._pause(chunk, error)
                chunk.call = self.topic.publish(chunk.messages)
            else:
                return

    def _halve(self, chunk: _Chunk[T], error: grpc.RpcError) -> None:
        if len(chunk.messages) == 1:
            self._refused.append((chunk.tags[0], f"{self.topic.path} refuses it: {error.details()}"))
            return
        middle = len(chunk.messages) // 2
        for part in (slice(None, middle), slice(middle, None)):
            half = _Chunk(chunk.messages[part], chunk.tags[part])
            half.call = self.topic.publish(half.messages)
            self._land(half)

    def _pause(self, chunk: _Chunk[T], error: grpc.RpcError) -> None:
        if not is_transient(error):
            raise self.refusal(error) from None
        chunk.failures += 1
        pause = back_off_s(chunk.failures)
        if chunk.waited_s + pause > self.patience_s:
            raise TransientError(
                f"{self.topic.path}: {self.topic.endpoint} does not take messages: {error.details()}.",
                hint="Check the network, the endpoint and PUBSUB_EMULATOR_HOST.",
            ) from None
        self.wait(pause)
        chunk.waited_s += pause

    def refusal(self, error: grpc.RpcError) -> SinkError:
        """What to tell the user about an error that does not pass."""
        name = code(error)
        what = "there is no such topic" if name == "NOT_FOUND" else f"{name}: {error.details()}"
        return SinkError(f"{self.topic.path}: {what}; expected a topic to publish to.", hint=_DO.get(name, ""))
