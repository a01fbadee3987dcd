"""The Pub/Sub service, for whoever calls it: where it is, the connection, which errors pass, and its calls for schemas and topics. Loads no Beam.

Calls are made on the bare gRPC stubs: google's client wraps every message in Python objects, which costs more than all the rest.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import grpc

from beam_pipelines.errors import RunError, SpecError

EMULATOR = "PUBSUB_EMULATOR_HOST"
SERVICE = "pubsub.googleapis.com:443"
_TRANSIENT = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED", "UNKNOWN", "CANCELLED"}
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),  # gRPC's own two minutes would outlast most outages
    ("grpc.use_local_subchannel_pool", 1),  # a channel that is closed leaves nothing to the next one
)
"""Of every connection to a service of Google's that this package makes itself."""
LOG_IN = "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS."


class Revision(NamedTuple):
    """One revision of a schema: its kind (AVRO, PROTOCOL_BUFFER) and its text."""

    kind: str
    definition: str


def where(endpoint: str | None = None) -> str:
    """Where the service is: PUBSUB_EMULATOR_HOST if set, as in google's clients, else `endpoint`, else the service itself."""
    emulator = os.environ.get(EMULATOR)
    return f"http://{emulator.removeprefix('http://')}" if emulator else endpoint or SERVICE


def connect(endpoint: str, *, who: str, error: type[RunError]) -> grpc.Channel:
    """A connection to the service, made by the first call. `who` begins the sentence of the `error` that is raised without credentials."""
    if endpoint.startswith("http://"):  # an emulator: no encryption, nobody asks who calls
        return grpc.insecure_channel(endpoint.removeprefix("http://").rstrip("/"), options=CHANNEL_OPTIONS)
    from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

    target = endpoint.removeprefix("https://").rstrip("/")
    create: Callable[..., grpc.Channel] = PublisherGrpcTransport.create_channel
    try:
        return create(target if ":" in target else f"{target}:443", options=CHANNEL_OPTIONS)
    except Exception as fault:  # Google's libraries have many classes for "no credentials", "broken file", "expired"
        raise error(
            f"{who}: no credentials for Pub/Sub: {str(fault).splitlines()[0].rstrip('.')}.",
            hint=f"{LOG_IN} For an emulator set {EMULATOR}.",
        ) from fault


def types_for(who: str) -> Any:
    """google.pubsub_v1's messages. Raises SpecError where google-cloud-pubsub is not installed."""
    try:
        from google.pubsub_v1 import types
    except ImportError as error:
        raise SpecError(f"{who}: Pub/Sub needs google-cloud-pubsub: {error}.", hint="Run: pip install 'beam-pipelines[gcp]'") from None
    return types


def back_off_s(failures: int, *, longest_s: float = 5.0) -> float:
    """Seconds to wait after so many failures in a row: doubled from 0.1 s, with jitter, so that many clients do not come together."""
    return float(min(longest_s, 0.1 * 2 ** min(failures, 16)) * random.uniform(0.5, 1.0))  # noqa: S311  (no secret)


def code(error: grpc.RpcError) -> str:
    """The name of the gRPC status: `UNAVAILABLE`, `NOT_FOUND`, ..."""
    return str(error.code().name)


def is_transient(error: grpc.RpcError) -> bool:
    """Whether the same call may succeed later without anybody changing anything."""
    return code(error) in _TRANSIENT


class Topic:
    """The calls for one topic. Errors of calls are `grpc.RpcError`; the connection itself is made by the first call.

    Raises SpecError where google-cloud-pubsub is not installed; `error` where there are no credentials.
    """

    def __init__(self, path: str, endpoint: str, *, who: str, error: type[RunError]) -> None:
        self.path, self.endpoint = path, endpoint
        self.types = types_for(who)
        self._channel = connect(endpoint, who=who, error=error)
        self._routed = (("x-goog-request-params", f"topic={quote(path, safe='')}"),)
        self.message = self.types.PubsubMessage.pb()
        self._request = self.types.PublishRequest.pb()
        self._publish = call(self._channel, "Publisher/Publish", self.types.PublishResponse.pb().FromString)
        self._get = call(self._channel, "Publisher/GetTopic", self.types.Topic.pb().FromString)

    def publish(self, messages: Sequence[Any], *, timeout_s: float = 60.0) -> Any:
        """A call under way: a gRPC future whose result has `message_ids`. `messages` are made by `self.message`."""
        return self._publish.future(self._request(topic=self.path, messages=messages), timeout=timeout_s, metadata=self._routed)

    def describe(self, *, timeout_s: float = 10.0) -> Any:
        """The topic as the service describes it; needs other rights than publishing."""
        return self._get(self.types.GetTopicRequest.pb()(topic=self.path), timeout=timeout_s, metadata=self._routed)

    def create(self, subscription: str | None = None, *, timeout_s: float = 30.0) -> None:
        """Makes the topic, and a `subscription` of it, where they are missing."""
        _unless_there(call(self._channel, "Publisher/CreateTopic", bool), self.types.Topic.pb()(name=self.path), timeout_s)
        if subscription is not None:
            made = self.types.Subscription.pb()(name=subscription, topic=self.path, ack_deadline_seconds=60)
            _unless_there(call(self._channel, "Subscriber/CreateSubscription", bool), made, timeout_s)

    def close(self) -> None:
        """Ends the connection and all calls under way."""
        self._channel.close()


def _unless_there(make: Any, request: Any, timeout_s: float) -> None:
    try:
        make(request, timeout=timeout_s)
    except grpc.RpcError as error:
        if code(error) != "ALREADY_EXISTS":
            raise


class Schemas:
    """The schema service. Errors of calls are `grpc.RpcError`.

    Raises SpecError where google-cloud-pubsub is not installed; `error` where there are no credentials.
    """

    def __init__(self, endpoint: str, *, who: str, error: type[RunError]) -> None:
        self._types = types_for(who)
        self._channel = connect(endpoint, who=who, error=error)
        self._get = call(self._channel, "SchemaService/GetSchema", self._types.Schema.pb().FromString)

    def get(self, name: str, *, timeout_s: float = 10.0) -> Revision:
        """The schema `projects/P/schemas/S`, or with `@REVISION` that revision of it."""
        request = self._types.GetSchemaRequest.pb()(name=name, view=self._types.SchemaView.FULL)
        routed = (("x-goog-request-params", f"name={quote(name, safe='')}"),)
        found = self._get(request, timeout=timeout_s, metadata=routed)
        return Revision(self._types.Schema.Type(found.type_).name, found.definition)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


def call(channel: grpc.Channel, method: str, read: Callable[[bytes], Any]) -> Any:
    """The method `Service/Name` of google.pubsub.v1; `read` makes its result of the answer's bytes, and must not give None."""
    reader = _answered if read is bool else read
    return channel.unary_unary(f"/google.pubsub.v1.{method}", request_serializer=_serialized, response_deserializer=reader)


def patiently(do: Callable[[], Any], *, patience_s: float, wait: Callable[[float], Any] | None = None) -> Any:
    """What `do` gives, tried again with back-off while its errors are transient and for `patience_s` at most; then the last error is raised."""
    wait = wait or threading.Event().wait
    waited, failures = 0.0, 0
    while True:
        try:
            return do()
        except grpc.RpcError as error:
            failures += 1
            pause = back_off_s(failures)
            if not is_transient(error) or waited + pause > patience_s:
                raise
        wait(pause)
        waited += pause


def _serialized(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _answered(_: bytes) -> bool:
    return True  # to gRPC, None would be an answer that cannot be read
