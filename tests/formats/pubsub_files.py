"""Files as a Pub/Sub Cloud Storage subscription writes them, with metadata, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fastavro

SCHEMA = {
    "type": "record", "namespace": "com.google.pubsub", "name": "PubsubMessageWithMetadata",
    "fields": [
        {"name": "subscription_name", "type": "string"},
        {"name": "message_id", "type": "string"},
        {"name": "publish_time", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "attributes", "type": {"type": "map", "values": "string"}},
        {"name": "data", "type": "bytes"},
    ],
}  # fmt: skip
ARCHIVING = "projects/p/subscriptions/flights-archive"


class Message(NamedTuple):
    """A message as the topic had it."""

    message_id: str
    published: int  # microseconds
    data: bytes
    attributes: Mapping[str, str] = {}


def write_file(path: Path, messages: list[Message], *, schema: Any = None, **settings: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [
        {
            "subscription_name": ARCHIVING,
            "message_id": m.message_id,
            "publish_time": m.published,
            "attributes": dict(m.attributes),
            "data": m.data,
        }
        for m in messages
    ]
    with path.open("wb") as out:
        fastavro.writer(out, schema or SCHEMA, records, **settings)
    return path
