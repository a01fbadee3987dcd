"""A topic with one subscription on any server that speaks Pub/Sub, and what tests do with it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.pubsub_v1 import types


class Topic:
    """`subscription` is new and empty; its leases last 10 s, as is the service's default."""

    def __init__(self, address: str, *, push: str = "") -> None:
        self.address = address
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        name = uuid.uuid4().hex[:12]
        self.topic = f"projects/demo-project/topics/t{name}"
        self.subscription = f"projects/demo-project/subscriptions/s{name}"
        self.call("Publisher", "CreateTopic", types.Topic, types.Topic, name=self.topic)
        described = {"name": self.subscription, "topic": self.topic, "ack_deadline_seconds": 10}
        self.call(
            "Subscriber", "CreateSubscription", types.Subscription, types.Subscription, **described, push_config={"push_endpoint": push}
        )

    def call(self, service: str, method: str, request: Any, response: Any, **fields: Any) -> Any:
        read = Empty.FromString if response is Empty else response.pb().FromString
        stub = self.channel.unary_unary(
            f"/google.pubsub.v1.{service}/{method}", request_serializer=lambda m: m.SerializeToString(), response_deserializer=read
        )
        return stub(request.pb()(**fields), timeout=20)

    def publish(self, bodies: Sequence[bytes], attributes: Sequence[Mapping[str, str]] | None = None) -> list[str]:
        """The ids of the messages."""
        ids: list[str] = []
        for start in range(0, len(bodies), 1_000):
            messages = [
                {"data": body, "attributes": attributes[start + i] if attributes else {}}
                for i, body in enumerate(bodies[start : start + 1_000])
            ]
            ids += self.call(
                "Publisher", "Publish", types.PublishRequest, types.PublishResponse, topic=self.topic, messages=messages
            ).message_ids
        return ids

    def delete(self) -> None:
        self.call("Subscriber", "DeleteSubscription", types.DeleteSubscriptionRequest, Empty, subscription=self.subscription)

    def pull(self) -> list[bytes]:
        """The bodies of what the service gives right now."""
        request = {"subscription": self.subscription, "max_messages": 1_000, "return_immediately": True}
        answer = self.call("Subscriber", "Pull", types.PullRequest, types.PullResponse, **request)
        return [m.message.data for m in answer.received_messages]
