"""Schemas with revisions, and the check of messages against them (AVRO definitions; encodings BINARY and JSON)."""

from __future__ import annotations

import io
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fastavro
from google.protobuf import empty_pb2

from beam_pipelines.testing.broker_protocol import page, raw, set_timestamp
from beam_pipelines.testing.broker_rules import already_exists, check_name, check_project, invalid, not_done, not_found

_BASIC = 1  # of google.pubsub.v1.SchemaView
_ENCODINGS = {1: "JSON", 2: "BINARY"}


class Schemas:
    """The methods of google.pubsub.v1.SchemaService, named in snake case."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._schemas: dict[str, list[Any]] = {}  # name -> revisions, oldest first
        self._parsed: dict[str, Any] = {}  # definition -> fastavro schema

    def create_schema(self, request: Any, context: Any) -> Any:
        check_project(request.parent)
        name = check_name(f"{request.parent}/schemas/{request.schema_id}", "schemas")
        with self._lock:
            if name in self._schemas:
                raise already_exists("Schema already exists")
            revision = self._revision(name, request.schema)
            self._schemas[name] = [revision]
        return revision

    def commit_schema(self, request: Any, context: Any) -> Any:
        with self._lock:
            revisions = self._revisions(request.name)
            revision = self._revision(request.name, request.schema)
            revisions.append(revision)
        return revision

    def get_schema(self, request: Any, context: Any) -> Any:
        name, _, revision = request.name.partition("@")
        with self._lock:
            found = [r for r in self._revisions(name) if revision in ("", r.revision_id)]
        if not found:
            raise not_found("Schema revision not found")
        return _viewed(found[-1], request.view)

    def list_schemas(self, request: Any, context: Any) -> Any:
        check_project(request.parent)
        with self._lock:
            own = {name: revisions[-1] for name, revisions in self._schemas.items() if name.startswith(f"{request.parent}/")}
        found, token = page(own, request)
        return raw("ListSchemasResponse")(schemas=[_viewed(s, request.view or _BASIC) for s in found], next_page_token=token)

    def list_schema_revisions(self, request: Any, context: Any) -> Any:
        with self._lock:
            found = [_viewed(revision, request.view) for revision in self._revisions(request.name)]
        return raw("ListSchemaRevisionsResponse")(schemas=found)

    def delete_schema(self, request: Any, context: Any) -> Any:
        with self._lock:
            self._revisions(request.name)
            del self._schemas[request.name]
        return empty_pb2.Empty()

    def validate_schema(self, request: Any, context: Any) -> Any:
        self._check_definition(request.schema)
        return raw("ValidateSchemaResponse")()

    def check_settings(self, settings: Any) -> None:
        """Refuses a topic's schema settings if they name what is not there."""
        if settings.encoding not in _ENCODINGS:
            raise invalid("Invalid schema encoding provided")
        with self._lock:
            known = {revision.revision_id for revision in self._revisions(settings.schema, "Schema could not be found")}
        for which, revision in (("First", settings.first_revision_id), ("Last", settings.last_revision_id)):
            if revision and revision not in known:
                raise not_found(f"{which} revision could not be found")

    def validate(self, topic: Any, messages: list[Any]) -> None:
        """Refuses messages that fit no revision the topic allows; tells the others, as attributes, which revision they fit."""
        settings = topic.schema_settings
        with self._lock:
            allowed = list(self._allowed(settings))
        encoding = _ENCODINGS[settings.encoding]
        for message in messages:
            fitting = next((r for r in allowed if _fits(self._schema(r), encoding, message.data)), None)
            if fitting is None:
                raise invalid("Could not parse message")
            message.attributes["googclient_schemaname"] = fitting.name
            message.attributes["googclient_schemarevisionid"] = fitting.revision_id
            message.attributes["googclient_schemaencoding"] = encoding

    def _allowed(self, settings: Any) -> Iterator[Any]:
        """From the last allowed revision to the first, the order in which messages are tried."""
        reached = not settings.last_revision_id
        for revision in reversed(self._revisions(settings.schema, "Schema associated with topic deleted.")):
            reached = reached or revision.revision_id == settings.last_revision_id
            if reached:
                yield revision
            if revision.revision_id == settings.first_revision_id:
                return

    def _revisions(self, name: str, missing: str = "Schema not found") -> list[Any]:
        found = self._schemas.get(check_name(name, "schemas"))
        if found is None:
            raise not_found(missing)
        return found

    def _revision(self, name: str, schema: Any) -> Any:
        self._check_definition(schema)
        revision = raw("Schema")(name=name, type_=schema.type_, definition=schema.definition, revision_id=secrets.token_hex(4))
        set_timestamp(revision.revision_create_time, round(self._clock() * 1_000_000) * 1_000)
        return revision

    def _check_definition(self, schema: Any) -> None:
        if schema.type_ == schema.Type.PROTOCOL_BUFFER:
            raise not_done("schemas of protocol buffers")
        if schema.type_ != schema.Type.AVRO:
            raise invalid("Invalid schema type")
        self._schema(schema)

    def _schema(self, schema: Any) -> Any:
        if schema.definition not in self._parsed:
            try:
                self._parsed[schema.definition] = fastavro.parse_schema(_bare(json.loads(schema.definition)))
            except (ValueError, KeyError, TypeError, fastavro.schema.SchemaParseException, fastavro.schema.UnknownType) as error:
                raise invalid("Could not parse schema definition") from error
        return self._parsed[schema.definition]


def _viewed(revision: Any, view: int) -> Any:
    if view != _BASIC:
        return revision
    basic = type(revision)()
    basic.CopyFrom(revision)
    basic.ClearField("definition")
    return basic


def _bare(schema: Any) -> Any:
    """The schema without defaults, which a writer never uses, and logical types, which do not change what is written."""
    if isinstance(schema, list):
        return [_bare(part) for part in schema]
    if isinstance(schema, dict):
        return {name: _bare(part) for name, part in schema.items() if name not in ("default", "logicalType")}
    return schema


def _fits(schema: Any, encoding: str, payload: bytes) -> bool:
    """Whether the whole of `payload` is one datum of `schema`."""
    try:
        if encoding == "JSON":
            data = list(fastavro.json_reader(io.StringIO(payload.decode()), schema))
            return len(data) == 1 and bool(fastavro.validate(data[0], schema, raise_errors=False))
        stream = io.BytesIO(payload)
        fastavro.schemaless_reader(stream, schema, None)
        return stream.tell() == len(payload)
    except Exception:
        return False
