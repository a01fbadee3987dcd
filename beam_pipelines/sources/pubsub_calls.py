"""The calls for a subscription: pull, acknowledge, change a lease, look at it. Where the service is, and which errors pass: `pubsub_service`.

Calls are made on the bare gRPC stubs: google's client wraps every message in Python objects, which costs more than all the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import quote

import grpc

from beam_pipelines.errors import SourceError
from beam_pipelines.pubsub_service import EMULATOR, LOG_IN, back_off_s, call, code, connect, is_transient, types_for, where

__all__ = ["EMULATOR", "Subscription", "back_off_s", "code", "is_transient", "refused", "requests", "where"]

# A request may have 512 KiB; an ack id of the service has about 200 bytes.
_IDS_OF_A_REQUEST, _BYTES_OF_A_REQUEST = 1_000, 400_000
_DO = {
    "NOT_FOUND": "Create it, or correct the name.",
    "PERMISSION_DENIED": "Give this account the role roles/pubsub.subscriber on it.",
    "UNAUTHENTICATED": LOG_IN,
    "INVALID_ARGUMENT": "Correct the name: 3 to 255 letters, digits and -._~+%, the first a letter, and not goog in front.",
}


class Subscription:
    """The calls for one subscription. Errors of calls are `grpc.RpcError`; the connection itself is made by the first call.

    Raises SpecError where google-cloud-pubsub is not installed, SourceError where there are no credentials.
    """

    def __init__(self, path: str, endpoint: str | None = None) -> None:
        self.path = path
        self.endpoint = endpoint or where()
        self._types = types_for("sources.stream")
        self._channel = connect(self.endpoint, who="sources.stream", error=SourceError)
        self._metadata = (("x-goog-request-params", f"subscription={quote(path, safe='')}"),)

    def pull(self, most: int, *, timeout_s: float, at_once: bool = False) -> Any:
        """A pull under way: a gRPC future whose result has `received_messages`. `at_once`: the service answers even with none."""
        request = self._types.PullRequest.pb()(subscription=self.path, max_messages=most, return_immediately=at_once)
        return self._pull.future(request, timeout=timeout_s, metadata=self._metadata)

    def acknowledge(self, ack_ids: Sequence[str], *, timeout_s: float = 30.0) -> None:
        """Acknowledges the messages with these ack ids; the service does not give them again. One request (see `requests`)."""
        request = self._types.AcknowledgeRequest.pb()(subscription=self.path, ack_ids=ack_ids)
        self._acknowledge(request, timeout=timeout_s, metadata=self._metadata)

    def lease(self, ack_ids: Sequence[str], seconds: int, *, timeout_s: float = 10.0) -> None:
        """Leases the messages for so many seconds from now; 0 hands them back. One request."""
        request = self._types.ModifyAckDeadlineRequest.pb()(subscription=self.path, ack_ids=ack_ids, ack_deadline_seconds=seconds)
        self._lease(request, timeout=timeout_s, metadata=self._metadata)

    def describe(self, *, timeout_s: float = 10.0) -> Any:
        """The subscription as the service describes it; needs more rights than pulling."""
        request = self._types.GetSubscriptionRequest.pb()(subscription=self.path)
        return self._describe(request, timeout=timeout_s, metadata=self._metadata)

    def close(self) -> None:
        """Ends the connection and all calls under way."""
        self._channel.close()

    @cached_property
    def _pull(self) -> Any:
        return self._call("Pull", self._types.PullResponse.pb().FromString)

    @cached_property
    def _acknowledge(self) -> Any:
        return self._call("Acknowledge", _ignored)

    @cached_property
    def _lease(self) -> Any:
        return self._call("ModifyAckDeadline", _ignored)

    @cached_property
    def _describe(self) -> Any:
        return self._call("GetSubscription", self._types.Subscription.pb().FromString)

    def _call(self, method: str, read: Callable[[bytes], Any]) -> Any:
        return call(self._channel, f"Subscriber/{method}", read)


def requests(ack_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """`ack_ids` in parts that fit into one request each."""
    start = size = 0
    for at, ack_id in enumerate(ack_ids):
        if at - start == _IDS_OF_A_REQUEST or (size + len(ack_id) > _BYTES_OF_A_REQUEST and at > start):
            yield ack_ids[start:at]
            start, size = at, 0
        size += len(ack_id) + 4
    if start < len(ack_ids):
        yield ack_ids[start:]


def refused(path: str, error: grpc.RpcError) -> SourceError:
    """What to tell the user about an error that does not pass."""
    name = code(error)
    what = "there is no such subscription" if name == "NOT_FOUND" else f"{name}: {error.details()}"
    return SourceError(f"sources.stream: {path}: {what}; expected a subscription that can be pulled.", hint=_DO.get(name, ""))


def _ignored(_: bytes) -> bool:
    return True  # to gRPC, None would be an answer that cannot be read
