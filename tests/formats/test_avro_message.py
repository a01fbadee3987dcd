"""Laws of Avro messages: what was written is read, whatever says the schema; a bad message costs itself; the newest schema reads them all."""

from __future__ import annotations

import datetime as dt
import decimal
import io
import json
import pickle
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from fastavro.schema import fingerprint, to_parsing_canonical_form
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.conform import conform_steps
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.program import Program, Split
from beam_pipelines.arrow.schema import provenance
from beam_pipelines.errors import SourceError, SpecError
from beam_pipelines.formats.avro_message_schemas import forget
from beam_pipelines.formats.options import AvroFormat
from beam_pipelines.formats.registry import message_steps
from tests.laws import share
from tests.pubsub_servers import PubsubServer

FLIGHT: dict[str, Any] = {
    "type": "record", "name": "Flight", "namespace": "tests",
    "fields": [{"name": "id", "type": "long"}, {"name": "carrier", "type": "string"}, {"name": "delay", "type": ["null", "int"], "default": None}],
}  # fmt: skip
CONTRACT = Contract(columns={"id": {"type": "int64", "required": True}, "carrier": {"type": "string"}, "delay": {"type": "int32"}})
MARK = b"\xc3\x01"


def encoded(record: Any, schema: Any = FLIGHT) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return out.getvalue()


def framed(record: Any, schema: Any = FLIGHT) -> bytes:
    return MARK + bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")) + encoded(record, schema)


def flights(count: int) -> list[dict[str, Any]]:
    return [{"id": i, "carrier": f"C{i % 7}", "delay": None if i % 3 else i} for i in range(count)]


def messages(raw: Sequence[bytes | None], attributes: Sequence[Mapping[str, str]] | None = None) -> pa.RecordBatch:
    columns = [*provenance("projects/p/subscriptions/s", pa.array(range(len(raw)), pa.int64())), pa.array(raw, pa.binary())]
    names = ["_source", "_position", "_arrival_time", "_raw"]
    if attributes is not None:
        columns.append(pa.array([list(a.items()) for a in attributes], pa.map_(pa.string(), pa.string())))
        names.append("_attributes")
    return pa.RecordBatch.from_arrays(columns, names=names)


def decode(batch: pa.RecordBatch, fmt: AvroFormat, contract: Contract = CONTRACT) -> Split:
    """Decoded and conformed, by a program that went to a worker."""
    steps = (*message_steps(fmt, contract), *conform_steps(contract, text=False))
    program: Program = pickle.loads(pickle.dumps(Program(steps, raw_format="avro")))
    split = program(batch)
    assert split.rows.num_rows + split.dead.num_rows == batch.num_rows
    return split


def rows(split: Split) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in split.rows.to_pylist()]


def dead(split: Split) -> dict[int, str]:
    assert set(split.dead["stage"].to_pylist()) <= {"decode"}
    return dict(zip(split.dead["position"].to_pylist(), split.dead["message"].to_pylist(), strict=True))


@share(30)
@given(
    st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.text(max_size=5), st.none() | st.integers(-(2**31), 2**31 - 1)), max_size=20)
)
def test_what_was_written_is_read(records: list[tuple[int, str, int | None]]) -> None:
    named = [{"id": i, "carrier": c, "delay": d} for i, c, d in records]
    assert rows(decode(messages([encoded(r) for r in named]), AvroFormat(schema=FLIGHT))) == named
    assert rows(decode(messages([framed(r) for r in named]), AvroFormat(schema=FLIGHT))) == named


@given(st.lists(st.binary(max_size=12), max_size=20))
def test_any_bytes_are_a_row_or_a_letter_with_these_bytes_and_cost_no_other(broken: list[bytes]) -> None:
    good = flights(len(broken) + 1)
    mixed = [m for pair in zip([encoded(r) for r in good], [*broken, b""], strict=True) for m in pair]
    split = decode(messages(mixed), AvroFormat(schema=FLIGHT))
    found = {row["_position"]: row["id"] for row in split.rows.to_pylist()}
    assert [found[2 * i] for i in range(len(good))] == [r["id"] for r in good]
    for letter in split.dead.to_pylist():
        assert letter["raw"] == mixed[letter["position"]], "also bytes that look like a line break at the end"


def test_bad_messages_say_why() -> None:
    record = encoded({"id": 5, "carrier": "AA", "delay": None})
    bad = [
        b"",
        record[:-1],
        record + b"\n",
        b"\x0a\x80\x80\x80\x80\x80\x80",
        encoded({"id": 1, "carrier": "A", "delay": None}).replace(b"A", b"\xff"),
        None,
    ]
    split = decode(messages([*bad, record]), AvroFormat(schema=FLIGHT))
    assert rows(split) == [{"id": 5, "carrier": "AA", "delay": None}]
    why = dead(split)
    assert list(why) == list(range(6))
    assert "middle of a value" in why[0]
    assert "1 of its 6 bytes follow the record" in why[2]
    assert why[5] == "no bytes"
    assert set(split.dead["reason"].to_pylist()) == {"DECODE"}


def test_logical_types_and_nested_values() -> None:
    schema = {
        "type": "record", "name": "r", "fields": [
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "day", "type": ["null", {"type": "int", "logicalType": "date"}]},
            {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": 2}},
            {"name": "key", "type": {"type": "string", "logicalType": "uuid"}},
            {"name": "place", "type": {"type": "record", "name": "place", "fields": [{"name": "city", "type": "string"}]}},
            {"name": "tags", "type": {"type": "array", "items": "long"}},
            {"name": "more", "type": {"type": "map", "values": "int"}},
        ],
    }  # fmt: skip
    contract = Contract(
        columns={
            "at": {"type": "timestamp"}, "day": {"type": "date"}, "price": {"type": "decimal(8,2)"}, "key": {"type": "uuid"},
            "city": {"type": "string", "path": "place.city"}, "tags": {"type": "list<int64>"}, "seats": {"type": "int32", "path": "more.seats"},
        }
    )  # fmt: skip
    key = uuid.UUID(int=7)
    at = dt.datetime(2013, 12, 1, 5, 0, 0, 17, tzinfo=dt.UTC)
    record = {"at": at, "day": dt.date(2013, 12, 1), "price": decimal.Decimal("12.50"), "key": key, "place": {"city": "Ithaca"}, "tags": [1, 2],
              "more": {"seats": 9}}  # fmt: skip
    split = decode(messages([encoded(record, schema), b"\x00"]), AvroFormat(schema=schema), contract)
    [row] = rows(split)
    assert row == {
        "at": at,
        "day": dt.date(2013, 12, 1),
        "price": decimal.Decimal("12.50"),
        "key": str(key),
        "city": "Ithaca",
        "tags": [1, 2],
        "seats": 9,
    }
    assert list(dead(split)) == [1]


OLD: dict[str, Any] = {"type": "record", "name": "Flight", "fields": [{"name": "number", "type": "int"}, {"name": "airline", "type": "string"},
                       {"name": "gone", "type": "double"}]}  # fmt: skip
NEW: dict[str, Any] = {
    "type": "record", "name": "Flight", "fields": [
        {"name": "id", "type": "long", "aliases": ["number"]}, {"name": "carrier", "type": "string", "aliases": ["airline"]},
        {"name": "delay", "type": ["null", "int"], "default": None}, {"name": "seal", "type": "bytes", "default": "\u00ff\u0001"},
    ],
}  # fmt: skip


def files(folder: Path, *schemas: Any) -> tuple[str, ...]:
    paths = [folder / f"{number}.avsc" for number in range(len(schemas))]
    for path, schema in zip(paths, schemas, strict=True):
        path.write_text(json.dumps(schema))
    return tuple(map(str, paths))


def test_single_object_messages_of_all_known_schemas_are_read_as_the_newest(tmp_path: Path) -> None:
    contract = Contract(columns={**CONTRACT.columns, "seal": {"type": "binary"}})
    sent = [framed({"number": 1, "airline": "AA", "gone": 0.5}, OLD), framed({"id": 2, "carrier": "UA", "delay": 3, "seal": b"x"}, NEW),
            framed({"id": 3, "carrier": "DL", "delay": None}), encoded({"number": 4, "airline": "AA", "gone": 0.5}, OLD)]  # fmt: skip
    split = decode(messages(sent), AvroFormat(schemas=files(tmp_path, OLD, NEW)), contract)
    assert rows(split) == [
        {"id": 1, "carrier": "AA", "delay": None, "seal": b"\xff\x01"}, {"id": 2, "carrier": "UA", "delay": 3, "seal": b"x"},
    ]  # fmt: skip
    why = dead(split)
    assert "fingerprint" in why[2]
    assert why[3] == "no single-object header (C3 01)"


def test_a_schema_beside_the_known_ones_is_what_rows_are_read_as(tmp_path: Path) -> None:
    fmt = AvroFormat(schema=NEW, schemas=files(tmp_path, OLD))
    split = decode(messages([framed({"number": 1, "airline": "AA", "gone": 0.5}, OLD)]), fmt)
    assert rows(split) == [{"id": 1, "carrier": "AA", "delay": None}]


def test_a_bare_record_may_begin_as_a_header_does() -> None:
    record = {"id": -98, "carrier": "AA", "delay": None}
    assert encoded(record)[:2] == MARK
    assert rows(decode(messages([encoded(record)]), AvroFormat(schema=FLIGHT))) == [record]


def test_without_any_schema_each_message_is_a_letter() -> None:
    split = decode(messages([encoded(r) for r in flights(3)]), AvroFormat())
    assert len(dead(split)) == 3
    assert "the spec names none" in dead(split)[0]


def test_a_record_that_claims_a_million_levels_is_a_letter_and_no_crash() -> None:
    schema = {"type": "record", "name": "L", "fields": [{"name": "id", "type": "long"}, {"name": "next", "type": ["null", "L"]}]}
    contract = Contract(columns={"id": {"type": "int64"}}, unknown_columns="drop")
    deep = b"\x02\x02" * 1_000_000 + b"\x02\x00"
    split = decode(messages([deep, encoded({"id": 2, "next": {"id": 3, "next": None}}, schema)]), AvroFormat(schema=schema), contract)
    assert rows(split) == [{"id": 2}]
    assert list(dead(split)) == [0]


def test_an_array_of_nothings_is_no_schema() -> None:
    with pytest.raises(SpecError, match="take no bytes"):
        message_steps(AvroFormat(schema={"type": "array", "items": "null"}), CONTRACT)


def test_unknown_fields_are_judged_by_the_contract_schema_by_schema(tmp_path: Path) -> None:
    wide = {**FLIGHT, "fields": [*FLIGHT["fields"], {"name": "gate", "type": "string"}]}
    kept = decode(messages([encoded({**flights(1)[0], "gate": "B7"}, wide)]), AvroFormat(schema=wide))
    assert kept.rows["_unknown"].to_pylist() == ['{"gate":"B7"}']
    strict = Contract(columns=CONTRACT.columns, unknown_columns="dead_letter")
    split = decode(messages([encoded({**flights(1)[0], "gate": "B7"}, wide)]), AvroFormat(schema=wide), strict)
    assert split.dead["reason"].to_pylist() == ["UNKNOWN_COLUMN"]


def create(server: PubsubServer, schema: Any) -> tuple[str, str]:
    """A new schema of the server: its name, and its first revision."""
    from google.pubsub_v1.types import Schema

    made = server.schemas.create_schema(
        parent=f"projects/{server.project}", schema=Schema(type_=Schema.Type.AVRO, definition=json.dumps(schema)),
        schema_id=server.path("schemas", "flight").rpartition("/")[2],
    )  # fmt: skip
    return made.name, made.revision_id


def commit(server: PubsubServer, name: str, schema: Any) -> str:
    from google.pubsub_v1.types import Schema

    revision = server.schemas.commit_schema(name=name, schema=Schema(name=name, type_=Schema.Type.AVRO, definition=json.dumps(schema)))
    return str(revision.revision_id)


def told(name: str, revision: str, encoding: str = "BINARY") -> dict[str, str]:
    return {"googclient_schemaname": name, "googclient_schemarevisionid": revision, "googclient_schemaencoding": encoding}


WIDER: dict[str, Any] = {**FLIGHT, "fields": [*FLIGHT["fields"], {"name": "gate", "type": ["null", "string"], "default": None}]}


def test_revisions_are_fetched_from_the_schema_service(pubsub_server: PubsubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub_server.address)
    name, first = create(pubsub_server, FLIGHT)
    second = commit(pubsub_server, name, WIDER)
    contract = Contract(columns={**CONTRACT.columns, "gate": {"type": "string"}})
    one, two = {"id": 1, "carrier": "AA", "delay": 5}, {"id": 2, "carrier": "UA", "delay": None, "gate": "B7"}
    spoken = json.dumps({"id": 3, "carrier": "DL", "delay": {"int": 4}}).encode()
    sent = [encoded(two, WIDER), encoded(one), spoken, encoded(one), spoken[:-1], encoded(one), b"{} {}"]
    attributes = [told(name, second), told(name, first), told(name, first, "JSON"), told(name, "00000000"), told(name, first, "JSON"),
                  told(name, first, "XML"), told(name, first, "JSON")]  # fmt: skip
    split = decode(messages(sent, attributes), AvroFormat(), contract)
    assert rows(split) == [two, {**one, "gate": None}, {"id": 3, "carrier": "DL", "delay": 4, "gate": None}]
    why = dead(split)
    assert list(why) == [3, 4, 5, 6]
    assert why[3] == f"there is no schema {name}@00000000"
    assert "expected BINARY or JSON" in why[5]


def test_a_published_message_says_its_revision(broker: PubsubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish to a topic with a schema, take what comes, decode it."""
    forget()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.address)
    name, _ = create(broker, FLIGHT)
    topic = broker.topic(schema_settings={"schema": name, "encoding": "BINARY"})
    subscription = broker.subscription(topic)
    broker.publish_all(topic, [encoded(r) for r in flights(20)])
    taken = broker.take(subscription, 20)
    batch = messages([m.message.data for m in taken], [dict(m.message.attributes) for m in taken])
    assert sorted(r["id"] for r in rows(decode(batch, AvroFormat()))) == list(range(20))


def test_a_service_that_refuses_fails_the_bundle_and_no_message(monkeypatch: pytest.MonkeyPatch, broker: PubsubServer) -> None:
    """No message is to blame for a permission that is missing."""
    import grpc

    from beam_pipelines.formats import avro_message_schemas as schemas

    class Denied(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.PERMISSION_DENIED

        def details(self) -> str:
            return "not you"

    with pytest.raises(SourceError, match=r"PERMISSION_DENIED: not you. Give this account the role roles/pubsub.viewer"):
        schemas._refused("projects/p/schemas/s@1", Denied())


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"schema": {"type": "record"}}, "format.schema: no Avro schema"),
        ({"schema": "lnog"}, "format.schema: no Avro schema"),
        ({"schema_file": "nowhere.avsc"}, "nowhere.avsc: cannot be read"),
        ({"schemas": ["nowhere.avsc"]}, "nowhere.avsc: cannot be read"),
    ],
)
def test_a_wrong_schema_is_told_when_the_graph_is_built(given_: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpecError, match=expected):
        message_steps(AvroFormat(**given_), CONTRACT)
