"""Rows as BigQuery takes them: their types, their limits, and as messages of an upsert."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.errors import SinkError
from beam_pipelines.sinks.bigquery_encoding import cut, rows_bytes, schema_bytes, wire
from beam_pipelines.sinks.bigquery_limits import ROW_BYTES, in_known_years, limits
from beam_pipelines.sinks.bigquery_rows import CHANGE_TYPE, PSEUDO, SEQUENCE, changes, message_class, proto_rows, sequence_numbers
from beam_pipelines.sinks.bigquery_schema import Field, fields_of
from beam_pipelines.sinks.write import sql_schema
from tests.laws import share

UTC = dt.UTC
times = st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999_999))
COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "small": (pa.int8(), st.integers(-128, 127)),
    "whole": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "unsigned": (pa.uint32(), st.integers(0, 2**32 - 1)),
    "huge": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "single": (pa.float32(), st.floats(width=32, allow_nan=False)),
    "double": (pa.float64(), st.floats(allow_nan=False)),
    "money": (pa.decimal128(12, 2), st.decimals(-(10**9), 10**9, places=2)),
    "fine": (pa.decimal128(38, 20), st.decimals(-(10**9), 10**9, places=20)),
    "text": (pa.string(), st.text(max_size=9)),
    "coded": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "b", ""])),
    "large": (pa.large_string(), st.text(max_size=9)),
    "bytes": (pa.binary(), st.binary(max_size=9)),
    "truth": (pa.bool_(), st.booleans()),
    "day": (pa.date32(), st.dates()),
    "clock": (pa.time64("us"), st.times()),
    "at": (pa.timestamp("us", "UTC"), times.map(lambda t: t.replace(tzinfo=UTC))),
    "zoned": (pa.timestamp("us", "America/New_York"), st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1)).map(lambda t: t.replace(tzinfo=UTC))),
    "civil": (pa.timestamp("us"), times),
    "tags": (pa.list_(pa.string()), st.lists(st.text(max_size=3), max_size=3)),
    "codes": (pa.list_(pa.dictionary(pa.int8(), pa.string())), st.lists(st.sampled_from("xyz"), max_size=3)),
    "place": (pa.struct([("zip", pa.string()), ("n", pa.int16())]), st.fixed_dictionaries({"zip": st.none() | st.text(max_size=3), "n": st.none() | st.integers(0, 9)})),
    "stops": (
        pa.list_(pa.struct([("at", pa.timestamp("us", "UTC")), ("ns", pa.list_(pa.uint8()))])),
        st.lists(st.fixed_dictionaries({"at": times.map(lambda t: t.replace(tzinfo=UTC)), "ns": st.lists(st.integers(0, 255), max_size=2)}), max_size=2),
    ),
}  # fmt: skip


@st.composite
def batches(draw: st.DrawFn) -> pa.RecordBatch:
    names = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=6, unique=True))
    rows, before = draw(st.integers(0, 6)), draw(st.integers(0, 2))
    columns = []
    for name in names:
        kind, values = COLUMNS[name]
        columns.append(pa.array(draw(st.lists(st.none() | values, min_size=rows + before, max_size=rows + before)), kind))
    return pa.RecordBatch.from_arrays(columns, names=names).slice(before)


def emptied(value: Any, kind: pa.DataType) -> Any:
    """A list that is NULL is an empty one in BigQuery."""
    if pa.types.is_list(kind):
        return [emptied(v, kind.value_type) for v in value or []]
    if pa.types.is_struct(kind) and value is not None:
        return {f.name: emptied(value[f.name], f.type) for f in kind}
    return value


def received(batch: pa.RecordBatch) -> pa.RecordBatch:
    """What arrives of a batch: written without its schema, and read with that of the connection."""
    schema = pa.ipc.read_schema(pa.py_buffer(schema_bytes(batch.schema)))
    return pa.ipc.read_record_batch(pa.py_buffer(rows_bytes(batch)), schema)


@share(50)
@given(batches())
def test_values_arrive_as_they_are_in_types_that_the_service_takes(batch: pa.RecordBatch) -> None:
    sent = received(wire(batch, fields_of(sql_schema(batch.schema))))
    assert sent.schema.names == batch.schema.names
    for field, column in zip(batch.schema, sent.columns, strict=True):
        assert column.to_pylist() == [emptied(v, field.type) for v in batch.column(field.name).to_pylist()]
        check_type(column.type)


def check_type(kind: pa.DataType) -> None:
    """Google's "Supported Apache Arrow data types"; TIME as the Storage Read API gives it."""
    if pa.types.is_list(kind):
        return check_type(kind.value_type)
    if pa.types.is_struct(kind):
        return [check_type(f.type) for f in kind] and None
    known = {
        pa.bool_(),
        pa.binary(),
        pa.date32(),
        pa.timestamp("us"),
        pa.timestamp("us", "UTC"),
        pa.float64(),
        pa.int64(),
        pa.string(),
        pa.time64("us"),
    }
    assert kind in known or pa.types.is_decimal(kind)
    return None


@share(30)
@given(batches())
def test_rows_within_the_types_are_within_the_limits(batch: pa.RecordBatch) -> None:
    assert limits(batch, fields_of(sql_schema(batch.schema))) == {}


@given(st.lists(st.none() | st.integers(-(2**62), 2**62), max_size=8))
def test_moments_are_refused_exactly_outside_the_years_1_to_9999(micros: list[int | None]) -> None:
    low, high = -62_135_596_800_000_000, 253_402_300_799_999_999
    batch = pa.RecordBatch.from_arrays([pa.array(micros, pa.timestamp("us", "UTC"))], names=["at"])
    assert set(limits(batch, [Field("at", "TIMESTAMP")])) == {n for n, m in enumerate(micros) if m is not None and not low <= m <= high}


def test_every_limit_names_its_column_and_a_row_hears_of_all() -> None:
    far = pa.array([0, 2_932_897, -719_163], pa.int32()).cast(pa.date32())
    batch = pa.RecordBatch.from_arrays(
        [
            far,
            pa.array([[1], [None], []], pa.list_(pa.int64())),
            pa.array([{"on": d} for d in (0, 2_932_897, 0)], pa.struct([("on", pa.int32())])).cast(pa.struct([("on", pa.date32())])),
            pa.array([Decimal("1.5"), Decimal("123.0"), Decimal("0.25")], pa.decimal128(10, 2)),
            pa.array(["a", None, "c"]),
        ],
        names=["day", "ns", "place", "money", "name"],
    )
    fields = [
        Field("day", "DATE"), Field("ns", "INTEGER", "REPEATED"), Field("place", "RECORD", fields=(Field("on", "DATE"),)),
        Field("money", "NUMERIC", precision=3, scale=1), Field("name", "STRING", "REQUIRED"),
    ]  # fmt: skip
    found = limits(batch, fields)
    assert sorted(found) == [1, 2]
    assert all(word in found[1] for word in ("'day'", "NULL in a list", "place.on", "2 digits before", "requires a value"))
    assert all(word in found[2] for word in ("'day'", "1 digits behind"))


def test_a_row_that_no_request_holds_is_refused() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array(["x", "y" * (ROW_BYTES + 1), "z"]), pa.array([["a"], [], ["b"]])], names=["text", "tags"])
    assert list(limits(batch, [Field("text", "STRING"), Field("tags", "STRING", "REPEATED")])) == [1]
    nested = pa.RecordBatch.from_arrays([pa.array([[{"t": "y" * 5_000_000}] * 2, []])], names=["l"])
    assert list(limits(nested, [Field("l", "RECORD", "REPEATED", (Field("t", "STRING"),))])) == [0]


def test_nan_is_a_value() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([float("nan"), float("inf")])], names=["x"])
    fields = [Field("x", "FLOAT")]
    assert limits(batch, fields) == {}
    assert np.isnan(received(wire(batch, fields)).column("x")[0].as_py())


def test_names_are_spelled_as_the_table_does() -> None:
    batch = pa.RecordBatch.from_pydict({"Id": [1], "s": [{"A": 1}]})
    sent = wire(batch, [Field("ID", "INTEGER"), Field("S", "RECORD", fields=(Field("a", "INTEGER"),))])
    assert sent.schema.names == ["ID", "S"]
    assert sent.column("S").to_pylist() == [{"a": 1}]


@pytest.mark.parametrize(
    ("batch", "fields", "said"),
    [
        ({"x": [1]}, [Field("y", "INTEGER")], "has no column 'x'"),
        ({"x": [{"a": 1}]}, [Field("x", "RECORD", fields=(Field("b", "INTEGER"),))], "no field 'a'"),
        ({"x": ["a"]}, [Field("x", "INTEGER")], "'x' is INTEGER"),
    ],
)
def test_what_the_table_does_not_take_is_an_error_that_names_the_column(batch: dict[str, Any], fields: list[Field], said: str) -> None:
    with pytest.raises(SinkError) as caught:
        wire(pa.RecordBatch.from_pydict(batch), fields)
    assert said in str(caught.value)


@given(st.integers(0, 5_000), st.integers(1, 100_000), st.integers(1, 700))
def test_cuts_hold_every_row_once_in_order(rows: int, most_bytes: int, most_rows: int) -> None:
    batch = pa.RecordBatch.from_pydict({"x": list(range(rows))})
    found = list(cut(batch, most_bytes=most_bytes, most_rows=most_rows))
    assert [r for first, n in found for r in range(first, first + n)] == list(range(rows))
    assert all(0 < n <= most_rows for _, n in found)


# Upserts


@share(30)
@given(batches())
def test_messages_hold_the_rows(batch: pa.RecordBatch) -> None:
    fields = fields_of(sql_schema(batch.schema))
    rows = proto_rows(wire(batch, fields), fields)
    make = message_class(tuple(fields))
    for message, row in zip(rows.messages, wire(batch, fields).to_pylist(), strict=True):
        found = make.FromString(message)
        for field in fields:
            assert said(found, field) == told(row[field.name], field)


def said(message: Any, field: Field) -> Any:
    value = getattr(message, field.name)
    if field.mode == "REPEATED":
        return [{f.name: said(v, f) for f in field.fields} if field.type == "RECORD" else v for v in value]
    if not message.HasField(field.name):
        return None
    return {f.name: said(value, f) for f in field.fields} if field.type == "RECORD" else value


def told(value: Any, field: Field) -> Any:
    """Google's "Supported protocol buffer data types"."""
    if field.mode == "REPEATED":
        return [told(v, Field(field.name, field.type, fields=field.fields)) for v in value]
    if value is None or field.type == "RECORD":
        return value and {f.name: told(value[f.name], f) for f in field.fields}
    if field.type == "DATE":
        return (value - dt.date(1970, 1, 1)).days
    if field.type == "TIMESTAMP":
        return (value - dt.datetime(1970, 1, 1, tzinfo=UTC)) // dt.timedelta(microseconds=1)
    if field.type == "DATETIME":
        return value.isoformat(" ", "microseconds")
    if field.type == "TIME":
        return value.isoformat("microseconds")
    return format(value, "f") if field.type in ("NUMERIC", "BIGNUMERIC") else value


numbers = st.none() | st.integers(1 - 2**63, 2**63 - 1)  # the least integer counts as NULL does
floats = st.none() | st.floats(allow_nan=False).map(lambda f: f + 0.0)


def by_bigquery(text: str) -> list[int]:
    """The documented order: unsigned numbers, section by section."""
    sections = [int(s, 16) for s in text.split("/")]
    assert len(sections) <= 4
    assert all(len(s) <= 16 for s in text.split("/"))
    return sections


@given(st.lists(st.tuples(floats, numbers), min_size=2, max_size=8), st.booleans())
def test_sequence_numbers_order_versions_as_their_values_do(versions: list[tuple[float | None, int | None]], oldest: bool) -> None:
    texts = sequence_numbers(
        [pa.array([v[0] for v in versions], pa.float64()), pa.array([v[1] for v in versions], pa.int64())], oldest=oldest
    )

    def value(version: tuple[float | None, int | None]) -> tuple[Any, ...]:
        first, second = version
        return (first is not None, (-first if oldest else first) if first is not None else 0, second is not None, second or 0)

    for one, one_text in zip(versions, texts.to_pylist(), strict=True):
        for other, other_text in zip(versions, texts.to_pylist(), strict=True):
            if value(one) < value(other):
                assert by_bigquery(one_text) < by_bigquery(other_text)


def test_nan_and_then_null_are_the_oldest_versions() -> None:
    texts = sequence_numbers([pa.array([None, float("nan"), float("-inf"), -0.5, 0.5])])
    ranks = [by_bigquery(t) for t in texts.to_pylist()]
    assert ranks == sorted(ranks)
    assert len(set(map(tuple, ranks))) == 5
    moments = sequence_numbers(
        [pa.array([None, dt.datetime(1969, 1, 1, tzinfo=UTC), dt.datetime(2026, 1, 1, tzinfo=UTC)], pa.timestamp("us", "UTC"))]
    )
    assert moments.to_pylist() == sorted(moments.to_pylist())


def test_a_retraction_is_a_delete() -> None:
    batch = pa.RecordBatch.from_pydict({"id": [1, 2]})
    fields = (Field("id", "INTEGER"), *PSEUDO)
    rows = proto_rows(changes(batch, pa.array([False, True]), sequence_numbers([pa.array([7, 8])])), fields)
    found = [message_class(fields).FromString(m) for m in rows.messages]
    assert [(m.id, getattr(m, CHANGE_TYPE), getattr(m, SEQUENCE)) for m in found] == [
        (1, "UPSERT", "8000000000000007"),
        (2, "DELETE", "8000000000000008"),
    ]


def test_moments_that_bigquery_does_not_know_become_null_and_no_others() -> None:
    last = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z
    known, unknown = [0, last, -62_135_596_800_000_000], [last + 1, -62_135_596_800_000_001]
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        column = pa.array([*known, None, *unknown], pa.int64()).cast(kind)
        assert in_known_years(column).cast(pa.int64()).to_pylist() == [*known, None, None, None]
        whole = pa.array(known, pa.int64()).cast(kind)
        assert in_known_years(whole) is whole
    assert in_known_years(pa.array([0, 2_932_896, 2_932_897], pa.int32()).cast(pa.date32())).null_count == 1


def test_fields_of_a_record_go_by_their_names_whatever_the_order_in_the_table() -> None:
    column = pa.array([{"a": "A", "b": "B", "c": "C"}])
    for order in ("abc", "acb", "cabx"):
        table = Field("s", "RECORD", fields=tuple(Field(name, "STRING") for name in order))
        rows = proto_rows(pa.RecordBatch.from_arrays([column], ["s"]), [table])
        [message] = [message_class((table,)).FromString(m) for m in rows.messages]
        assert (message.s.a, message.s.b, message.s.c) == ("A", "B", "C")
