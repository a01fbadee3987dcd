"""Schemas with revisions, and messages that must fit them: the embedded broker and the official emulator agree, but where it says so."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import pytest
from google.api_core import exceptions
from google.pubsub_v1.types import Schema, SchemaView

from tests.pubsub_servers import PubsubServer

FIRST = {"type": "record", "name": "R", "fields": [{"name": "id", "type": "long"}, {"name": "s", "type": ["null", "string"]}]}
SECOND = {**FIRST, "fields": [*FIRST["fields"], {"name": "x", "type": "long", "default": 1}]}


def avro(definition: object) -> Schema:
    return Schema(type_=Schema.Type.AVRO, definition=json.dumps(definition))


def make(server: PubsubServer, *definitions: object) -> tuple[str, list[str]]:
    """A schema with these revisions: its name and their ids."""
    name = server.path("schemas", "schema")
    parent, _, schema_id = name.partition("/schemas/")
    made = [server.schemas.create_schema(parent=parent, schema_id=schema_id, schema=avro(definitions[0]))]
    made += [server.schemas.commit_schema(name=name, schema=avro(definition)) for definition in definitions[1:]]
    return name, [revision.revision_id for revision in made]


def binary(definition: Any, datum: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(definition), datum)
    return out.getvalue()


def fitting(server: PubsubServer, topic: str, payloads: list[bytes]) -> list[dict[str, str]]:
    """The attributes that each payload, published in turn, arrives with."""
    subscription = server.subscription(topic)
    found = []
    for payload in payloads:
        server.publish(topic, payload)
        [received] = server.take(subscription, 1)
        assert received.message.data == payload
        server.ack(subscription, [received])
        found.append(dict(received.message.attributes))
    return found


def test_every_revision_can_be_read_and_the_newest_is_the_default(pubsub_server: PubsubServer) -> None:
    name, (first, second) = make(pubsub_server, FIRST, SECOND)
    assert first != second
    assert len(first) == 8
    newest = pubsub_server.schemas.get_schema(name=name)
    assert (newest.revision_id, json.loads(newest.definition)) == (second, SECOND)
    oldest = pubsub_server.schemas.get_schema(name=f"{name}@{first}")
    assert (oldest.revision_id, json.loads(oldest.definition)) == (first, FIRST)
    revisions = list(pubsub_server.schemas.list_schema_revisions(name=name))
    assert sorted(r.revision_id for r in revisions) == sorted([first, second])
    brief = pubsub_server.schemas.get_schema(request={"name": name, "view": SchemaView.BASIC})
    assert (brief.revision_id, brief.definition) == (second, "")
    assert name in {s.name for s in pubsub_server.schemas.list_schemas(parent=f"projects/{pubsub_server.project}")}


def test_schemas_that_cannot_be_are_refused(pubsub_server: PubsubServer) -> None:
    name, _ = make(pubsub_server, FIRST)
    parent, _, taken = name.partition("/schemas/")
    schemas = pubsub_server.schemas
    with pytest.raises(exceptions.AlreadyExists):
        schemas.create_schema(parent=parent, schema_id=taken, schema=avro(FIRST))
    for schema_id, schema in (("b", avro(FIRST)), ("good", Schema(type_="AVRO", definition="{")), ("good", Schema(definition='"long"'))):
        with pytest.raises(exceptions.InvalidArgument):
            schemas.create_schema(parent=parent, schema_id=schema_id, schema=schema)
    for missing in (f"{parent}/schemas/missing", f"{name}@00000000"):
        with pytest.raises(exceptions.NotFound):
            schemas.get_schema(name=missing)
    with pytest.raises(exceptions.InvalidArgument):
        schemas.validate_schema(parent=parent, schema=Schema(type_="AVRO", definition='{"type": "recor"}'))
    schemas.validate_schema(parent=parent, schema=avro(FIRST))


def test_a_topic_names_a_schema_and_revisions_that_exist(pubsub_server: PubsubServer) -> None:
    name, (revision,) = make(pubsub_server, FIRST)
    missing = f"projects/{pubsub_server.project}/schemas/missing"
    with pytest.raises(exceptions.NotFound):
        pubsub_server.topic(schema_settings={"schema": missing, "encoding": "JSON"})
    with pytest.raises(exceptions.InvalidArgument):
        pubsub_server.topic(schema_settings={"schema": name})
    with pytest.raises(exceptions.NotFound):
        pubsub_server.topic(schema_settings={"schema": name, "encoding": "JSON", "first_revision_id": "00000000"})
    topic = pubsub_server.topic(schema_settings={"schema": name, "encoding": "BINARY", "first_revision_id": revision})
    assert pubsub_server.publisher.get_topic(topic=topic).schema_settings.schema == name


def test_binary_messages_say_which_revision_they_fit(pubsub_server: PubsubServer) -> None:
    name, (first, second) = make(pubsub_server, FIRST, SECOND)
    topic = pubsub_server.topic(schema_settings={"schema": name, "encoding": "BINARY"})
    old, new = binary(FIRST, {"id": 1, "s": "q"}), binary(SECOND, {"id": 1, "s": None, "x": 5})
    for attributes, revision in zip(fitting(pubsub_server, topic, [old, new]), [first, second], strict=True):
        assert attributes == {
            "googclient_schemaname": name, "googclient_schemarevisionid": revision, "googclient_schemaencoding": "BINARY",
        }  # fmt: skip


def test_json_messages_say_which_revision_they_fit(pubsub_server: PubsubServer) -> None:
    name, (first, second) = make(pubsub_server, FIRST, SECOND)
    topic = pubsub_server.topic(schema_settings={"schema": name, "encoding": "JSON"})
    payloads = [b'{"id":1,"s":null}', b'{"id":1,"s":{"string":"q"}}', b'{"id":1,"s":null,"x":3}']
    found = fitting(pubsub_server, topic, payloads)
    assert [a["googclient_schemarevisionid"] for a in found] == [first, first, second]
    assert {a["googclient_schemaencoding"] for a in found} == {"JSON"}


BAD_JSON = [b'{"id":1,"s":"q"}', b'{"id":1}', b"{", b'{"id":"one","s":null}', b"[]"]
BAD_BINARY = [b"\xff\xff", b"zzzzzz"]


@pytest.mark.parametrize(("encoding", "bad"), [("JSON", BAD_JSON), ("BINARY", BAD_BINARY)])
def test_a_request_with_a_message_that_fits_no_revision_is_refused_whole(
    pubsub_server: PubsubServer, encoding: str, bad: list[bytes]
) -> None:
    name, _ = make(pubsub_server, FIRST, SECOND)
    topic = pubsub_server.topic(schema_settings={"schema": name, "encoding": encoding})
    subscription = pubsub_server.subscription(topic)
    good = b'{"id":1,"s":null}' if encoding == "JSON" else binary(FIRST, {"id": 1, "s": None})
    for payload in bad:
        with pytest.raises(exceptions.InvalidArgument):
            pubsub_server.publish_all(topic, [good, payload])
    assert pubsub_server.pull(subscription) == []


def test_a_topic_may_allow_a_range_of_revisions(broker: PubsubServer) -> None:
    """The emulator takes a message of a newer revision for an older one with bytes left over."""
    name, (first, second, third) = make(broker, FIRST, SECOND, {**FIRST, "fields": [{"name": "q", "type": "string"}]})
    old, new, newest = binary(FIRST, {"id": 7, "s": "q"}), binary(SECOND, {"id": 7, "s": "q", "x": 5}), binary({"type": "string"}, "text")
    for settings, good, bad in (
        ({"last_revision_id": first}, {old: first}, [new, newest]),
        ({"first_revision_id": second, "last_revision_id": second}, {new: second}, [old, newest]),
        ({"first_revision_id": second}, {new: second, newest: third}, [old]),
    ):
        topic = broker.topic(schema_settings={"schema": name, "encoding": "BINARY", **settings})
        found = fitting(broker, topic, list(good))
        assert [a["googclient_schemarevisionid"] for a in found] == list(good.values())
        for payload in bad:
            with pytest.raises(exceptions.InvalidArgument):
                broker.publish(topic, payload)


def test_bytes_after_a_message_and_a_fraction_for_a_long_fit_nothing(broker: PubsubServer) -> None:
    """The emulator lets both pass."""
    name, _ = make(broker, FIRST)
    for encoding, payload in (("BINARY", binary(FIRST, {"id": 1, "s": None}) + b"\x00"), ("JSON", b'{"id":1.5,"s":null}')):
        topic = broker.topic(schema_settings={"schema": name, "encoding": encoding})
        with pytest.raises(exceptions.InvalidArgument):
            broker.publish(topic, payload)


def test_publishing_under_a_deleted_schema_is_refused(pubsub_server: PubsubServer) -> None:
    name, _ = make(pubsub_server, FIRST)
    topic = pubsub_server.topic(schema_settings={"schema": name, "encoding": "JSON"})
    pubsub_server.schemas.delete_schema(name=name)
    with pytest.raises(exceptions.NotFound):
        pubsub_server.publish(topic, b'{"id":1,"s":null}')


def test_schemas_of_protocol_buffers_are_refused(broker: PubsubServer) -> None:
    proto = Schema(type_=Schema.Type.PROTOCOL_BUFFER, definition='syntax = "proto3"; message M {}')
    with pytest.raises(exceptions.MethodNotImplemented):
        broker.schemas.create_schema(parent=f"projects/{broker.project}", schema_id="proto", schema=proto)
