"""google.pubsub.v1 as plain protobuf: its messages, its methods, and a gRPC server's handlers for them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import grpc
from google.protobuf import empty_pb2
from google.pubsub_v1.types import pubsub, schema

from beam_pipelines.testing.broker_rules import Refused


class Method(NamedTuple):
    """One RPC: the messages it takes and gives; `streams`: many of each."""

    service: str
    request: Any
    response: Any
    streams: bool = False


def raw(name: str) -> Any:
    """The protobuf class behind a class of google.pubsub_v1: a hundred times cheaper per message than its proto-plus wrapper."""
    return getattr(pubsub if hasattr(pubsub, name) else schema, name).meta.pb


_NAMES = {
    "Publisher": """
        CreateTopic Topic Topic, UpdateTopic UpdateTopicRequest Topic, GetTopic GetTopicRequest Topic,
        ListTopics ListTopicsRequest ListTopicsResponse, DeleteTopic DeleteTopicRequest Empty,
        ListTopicSubscriptions ListTopicSubscriptionsRequest ListTopicSubscriptionsResponse,
        ListTopicSnapshots ListTopicSnapshotsRequest ListTopicSnapshotsResponse, Publish PublishRequest PublishResponse""",
    "Subscriber": """
        CreateSubscription Subscription Subscription, GetSubscription GetSubscriptionRequest Subscription,
        UpdateSubscription UpdateSubscriptionRequest Subscription, ListSubscriptions ListSubscriptionsRequest ListSubscriptionsResponse,
        DeleteSubscription DeleteSubscriptionRequest Empty, Pull PullRequest PullResponse,
        StreamingPull StreamingPullRequest StreamingPullResponse, Acknowledge AcknowledgeRequest Empty,
        ModifyAckDeadline ModifyAckDeadlineRequest Empty, CreateSnapshot CreateSnapshotRequest Snapshot,
        GetSnapshot GetSnapshotRequest Snapshot, ListSnapshots ListSnapshotsRequest ListSnapshotsResponse,
        DeleteSnapshot DeleteSnapshotRequest Empty, Seek SeekRequest SeekResponse""",
    "SchemaService": """
        CreateSchema CreateSchemaRequest Schema, GetSchema GetSchemaRequest Schema, ListSchemas ListSchemasRequest ListSchemasResponse,
        ListSchemaRevisions ListSchemaRevisionsRequest ListSchemaRevisionsResponse, CommitSchema CommitSchemaRequest Schema,
        DeleteSchema DeleteSchemaRequest Empty, ValidateSchema ValidateSchemaRequest ValidateSchemaResponse""",
}


def _methods() -> Iterator[tuple[str, Method]]:
    for service, text in _NAMES.items():
        for line in text.split(","):
            name, request, response = line.split()
            answer = empty_pb2.Empty if response == "Empty" else raw(response)
            yield name, Method(f"google.pubsub.v1.{service}", raw(request), answer, name == "StreamingPull")


METHODS: Mapping[str, Method] = dict(_methods())

Call = Callable[[Any, Any], Any]  # (request or iterator of requests, grpc.ServicerContext) -> response or iterator of responses


def handlers(implementations: Iterable[object], watch: Callable[[str, Call], Call]) -> list[grpc.GenericRpcHandler]:
    """gRPC handlers of every method, each found under its name in snake case in one of `implementations`.

    `watch` wraps each call. A `Refused` becomes the call's gRPC status.
    """
    found: dict[str, dict[str, Any]] = {}
    parts = list(implementations)
    for name, method in METHODS.items():
        function = next(getattr(part, _snake(name)) for part in parts if hasattr(part, _snake(name)))
        call = watch(name, function)
        make = grpc.stream_stream_rpc_method_handler if method.streams else grpc.unary_unary_rpc_method_handler
        answered = _stream_answered(call) if method.streams else _answered(call)
        handler = make(answered, request_deserializer=method.request.FromString, response_serializer=method.response.SerializeToString)
        found.setdefault(method.service, {})[name] = handler
    return [grpc.method_handlers_generic_handler(service, methods) for service, methods in found.items()]


def _answered(call: Call) -> Call:
    def answered(request: Any, context: Any) -> Any:
        try:
            return call(request, context)
        except Refused as refused:
            context.abort(refused.code, refused.message)

    return answered


def _stream_answered(call: Call) -> Call:
    def answered(requests: Any, context: Any) -> Iterator[Any]:
        try:
            yield from call(requests, context)
        except Refused as refused:
            context.abort(refused.code, refused.message)

    return answered


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def page(found: Mapping[str, Any], request: Any) -> tuple[list[Any], str]:
    """The values of one page of a listing, by name, and the token of the next page ("" if there is none)."""
    names = sorted(name for name in found if name > request.page_token)
    size = request.page_size or len(names)
    return [found[name] for name in names[:size]], names[size - 1] if size < len(names) else ""


def set_timestamp(timestamp: Any, nanoseconds: int) -> None:
    timestamp.seconds, timestamp.nanos = divmod(nanoseconds, 10**9)


def nanoseconds(timestamp: Any) -> int:
    return int(timestamp.seconds) * 10**9 + int(timestamp.nanos)


def rfc3339(ns: int) -> str:
    """
    >>> rfc3339(1_700_000_000_123_000_000)
    '2023-11-14T22:13:20.123Z'
    """
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ns // 10**9)) + f".{ns // 10**6 % 1000:03d}Z"
