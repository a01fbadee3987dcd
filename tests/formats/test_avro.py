"""Laws of Avro: what was written is read; a corrupt block costs itself; every row keeps its ordinal."""

from __future__ import annotations

import datetime as dt
import decimal
import gzip
import io
import uuid
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.formats.avro import AvroReader, count_records
from beam_pipelines.formats.compression import decompress
from beam_pipelines.formats.reader import DECODE, FILE, TOO_LARGE, Broken, Limits

UTC = dt.UTC
SIMPLE = {"type": "record", "name": "r", "fields": [{"name": "id", "type": "long"}, {"name": "text", "type": ["null", "string"]}]}
CODECS = ["null", "deflate", "bzip2", "snappy", "zstandard", "xz"]


def written(records: list[Any], schema: Any = SIMPLE, **options: Any) -> bytes:
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(schema), records, **options)
    return out.getvalue()


def read(content: bytes, **options: Any) -> tuple[list[tuple[int, dict[str, Any]]], list[Broken]]:
    rows: list[tuple[int, dict[str, Any]]] = []
    broken: list[Broken] = []
    for item in AvroReader().read(io.BytesIO(content), **options):
        if isinstance(item, Broken):
            broken.append(item)
        else:
            item.validate(full=True)
            columns = item.drop_columns(["_position"])
            rows += zip(item["_position"].to_pylist(), columns.to_pylist(), strict=True)
    return rows, broken


def simple(n: int) -> list[dict[str, Any]]:
    return [{"id": i, "text": None if i % 7 == 0 else f"text {i}"} for i in range(n)]


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec(codec: str) -> None:
    rows, broken = read(written(simple(5000), codec=codec, sync_interval=1000))
    assert rows == list(enumerate(simple(5000)))
    assert not broken


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.none() | st.text(max_size=5)), max_size=30), st.sampled_from(CODECS))
def test_any_records(records: list[tuple[int, str | None]], codec: str) -> None:
    named = [{"id": i, "text": t} for i, t in records]
    assert read(written(named, codec=codec, sync_interval=20)) == (list(enumerate(named)), [])


def test_nested_records_unions_and_logical_types() -> None:
    fields = {
        "nested": {
            "type": "record",
            "name": "n",
            "namespace": "x",
            "fields": [
                {"name": "a", "type": "int"},
                {"name": "when", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}]},
            ],
        },
        "again": ["null", "x.n"],
        "list": {"type": "array", "items": "x.n"},
        "map": {"type": "map", "values": {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 2}},
        "millis": {"type": "long", "logicalType": "timestamp-millis"},
        "micros": {"type": "long", "logicalType": "timestamp-micros"},
        "civil": {"type": "long", "logicalType": "local-timestamp-micros"},
        "day": {"type": "int", "logicalType": "date"},
        "time": {"type": "int", "logicalType": "time-millis"},
        "price": {"type": "fixed", "name": "dec", "size": 8, "logicalType": "decimal", "precision": 12, "scale": 3},
        "big": {"type": "bytes", "logicalType": "decimal", "precision": 50, "scale": 10},
        "id": {"type": "string", "logicalType": "uuid"},
        "enum": {"type": "enum", "name": "e", "symbols": ["A", "B"]},
        "fixed": {"type": "fixed", "name": "f", "size": 2},
        "bytes": "bytes",
        "wide": ["null", "int", "long"],
        "mixed": ["null", "string", "long", "double", "x.n"],
        "nothing": "null",
        "flag": "boolean",
        "real": "double",
    }
    schema = {"type": "record", "name": "r", "fields": [{"name": n, "type": t} for n, t in fields.items()]}
    moment = dt.datetime(2024, 2, 29, 12, 30, 15, 123000, UTC)
    number = uuid.uuid5(uuid.NAMESPACE_DNS, "a")
    inner = {"a": 1, "when": moment}
    record = {
        "nested": inner, "again": inner, "list": [inner, {"a": 2, "when": None}], "map": {"k": decimal.Decimal("-1.25")}, "millis": moment,
        "micros": moment, "civil": moment.replace(tzinfo=None), "day": dt.date(2024, 2, 29), "time": dt.time(1, 2, 3), "price": decimal.Decimal("-12.345"),
        "big": decimal.Decimal("12345678901234567890123456789.0123456789"), "id": number, "enum": "B", "fixed": b"xy", "bytes": b"\x00\xff",
        "wide": 2**40, "mixed": "a text", "nothing": None, "flag": True, "real": 1.5,
    }  # fmt: skip
    other = record | {"again": None, "list": [], "map": {}, "wide": None, "mixed": {"a": 1, "when": None}}
    third = record | {"mixed": 5}
    rows, broken = read(written([record, other, third], schema))
    assert not broken
    expected = record | {"id": str(number), "map": [("k", decimal.Decimal("-1.25"))]}
    assert rows[0][1] == expected
    assert rows[1][1] == expected | {"again": None, "list": [], "map": [], "wide": None, "mixed": '{"a":1,"when":null}'}
    assert rows[2][1]["mixed"] == "5"


def test_a_record_inside_itself_is_json_text() -> None:
    schema = {
        "type": "record",
        "name": "tree",
        "fields": [{"name": "v", "type": "int"}, {"name": "kids", "type": {"type": "array", "items": "tree"}}],
    }
    rows, _ = read(written([{"v": 1, "kids": [{"v": 2, "kids": []}]}], schema))
    assert rows == [(0, {"v": 1, "kids": ['{"v":2,"kids":[]}']})]


def test_a_schema_that_is_no_record_gives_one_column() -> None:
    assert read(written(["a", "b"], "string"))[0] == [(0, {"value": "a"}), (1, {"value": "b"})]


@pytest.mark.parametrize("codec", CODECS)
def test_a_corrupt_block_costs_itself_and_later_blocks_are_read(codec: str) -> None:
    content = bytearray(written(simple(3000), codec=codec, sync_interval=2000))
    offset = [b.offset for b in fastavro.block_reader(io.BytesIO(bytes(content)))][3]
    counts = [b.num_records for b in fastavro.block_reader(io.BytesIO(bytes(content)))]
    for at in range(offset + 100, offset + 140):
        content[at] ^= 0xFF
    rows, broken = read(bytes(content))
    assert [(b.position, b.reason) for b in broken] == [(sum(counts[:3]), FILE)]
    assert f"corrupt block at byte {offset}" in broken[0].message
    lost = range(sum(counts[:3]), sum(counts[:4]))
    assert rows == [(i, r) for i, r in enumerate(simple(3000)) if i not in lost]


@pytest.mark.parametrize(("claimed", "counted"), [(5, 5), (10**12, 10_000_000)])
def test_a_block_is_believed_up_to_a_bound_when_records_are_counted(claimed: int, counted: int) -> None:
    content = written(simple(3000), sync_interval=2000)
    first = next(iter(fastavro.block_reader(io.BytesIO(content))))
    frame, sync = io.BytesIO(), content[-16:]
    for number in (claimed, 3):
        fastavro.schemaless_writer(frame, "long", number)
    assert count_records(io.BytesIO(content)) == 3000
    assert count_records(io.BytesIO(content[: first.offset] + frame.getvalue() + b"abc" + sync + content[first.offset :])) == 3000 + counted


@pytest.mark.parametrize("damage", [b"\xff" * 10, b"\x02\xff\xff\xff\xff\x0f", b"\x02\x80\x80\x08"])
def test_a_lost_frame_is_found_again_at_the_next_sync_marker(damage: bytes) -> None:
    content = bytearray(written(simple(3000), sync_interval=2000))
    blocks = list(fastavro.block_reader(io.BytesIO(bytes(content))))
    content[blocks[3].offset : blocks[3].offset + len(damage)] = damage
    rows, broken = read(bytes(content))
    assert len(broken) == 1
    lost = sum(b.num_records for b in blocks[:3]), sum(b.num_records for b in blocks[:4])
    assert [r["id"] for _, r in rows] == [*range(lost[0]), *range(lost[1], 3000)]
    assert broken[0].position == lost[0]
    positions = [p for p, _ in rows]
    assert len({*positions, broken[0].position}) == len(positions) + 1


def test_a_truncated_file_keeps_its_whole_blocks() -> None:
    content = written(simple(3000), sync_interval=2000)
    blocks = list(fastavro.block_reader(io.BytesIO(content)))
    rows, broken = read(content[: blocks[5].offset + 50])
    kept = sum(b.num_records for b in blocks[:5])
    assert [p for p, _ in rows] == list(range(kept))
    assert [(b.position, b.reason) for b in broken] == [(kept, FILE)]
    assert f"truncated: the block at byte {blocks[5].offset}" in broken[0].message


def test_a_truncated_gzip_of_avro_keeps_its_whole_blocks() -> None:
    packed = gzip.compress(written(simple(20_000), sync_interval=2000), 1)
    items = list(AvroReader().read(decompress(io.BytesIO(packed[:-100]), "gzip")))
    assert sum(i.num_rows for i in items if isinstance(i, pa.RecordBatch)) > 15_000
    assert isinstance(items[-1], Broken)
    assert "truncated gzip" in items[-1].message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n", "not an Avro file: got b'a,b\\n'"),
        (b"Obj", "not an Avro file"),
        (written(simple(1))[:30], "the header cannot be read"),
        (written(simple(1)).replace(b"null", b"nu11", 1), "codec 'nu11' is unknown"),
        (written(simple(1)).replace(b'"record"', b'"rekord"'), "the schema cannot be read"),
    ],
)
def test_what_is_no_avro_file_costs_its_file(content: bytes, message: str) -> None:
    [broken] = read(content)[1]
    assert (broken.position, broken.reason) == (0, FILE)
    assert message in broken.message


def test_an_empty_file_has_no_rows() -> None:
    assert read(b"") == ([], [])
    assert read(written([])) == ([], [])


def test_a_value_that_fits_no_column_costs_its_record() -> None:
    content = written(simple(10)).replace(b"text 5", b"te\xfft 5")
    rows, broken = read(content)
    assert [p for p, _ in rows] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert [(b.position, b.reason) for b in broken] == [(5, DECODE)]


def test_times_beyond_pythons_calendar_cost_nothing() -> None:
    schema = {"type": "record", "name": "r", "fields": [{"name": "t", "type": {"type": "long", "logicalType": "timestamp-micros"}}]}
    [batch] = AvroReader().read(io.BytesIO(written([{"t": 2**62}, {"t": 1}], schema)))
    assert isinstance(batch, pa.RecordBatch)
    assert batch["t"].type == pa.timestamp("us", "UTC")
    assert batch["t"].cast(pa.int64()).to_pylist() == [2**62, 1]


@pytest.mark.parametrize("codec", CODECS)
def test_a_block_beyond_the_limits_costs_itself(codec: str) -> None:
    content = written([{"id": 1, "text": "x" * 50_000}, {"id": 2, "text": "y"}], codec=codec, sync_interval=1000)
    rows, broken = read(content, limits=Limits(max_record_bytes=10_000, block_bytes=10_000))
    assert [(b.position, b.reason) for b in broken] == [(0, TOO_LARGE)]
    assert [r["id"] for _, r in rows] == [2]


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=5), st.integers(0, 10**6), st.sampled_from(CODECS)
)
def test_no_bytes_raise(flips: list[tuple[int, int]], cut: int, codec: str) -> None:
    content = bytearray(written(simple(60), codec=codec, sync_interval=200))
    for at, value in flips:
        content[at % len(content)] = value
    rows, broken = read(bytes(content[: max(1, cut % (2 * len(content)))]))
    positions = [p for p, _ in rows] + [b.position for b in broken]
    assert len(set(positions)) == len(positions)
