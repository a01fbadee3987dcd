"""Columns in BigQuery: types, names, and how a table grows."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from beam_pipelines.errors import SinkError, SpecError
from beam_pipelines.sinks import bigquery_tables
from beam_pipelines.sinks.bigquery_schema import RESERVED, Field, evolved, fields_of, read_fields
from beam_pipelines.sinks.bigquery_tables import Partitions, ensure_table
from tests.laws import share

SCALARS = "BOOLEAN TINYINT SMALLINT INTEGER BIGINT UTINYINT USMALLINT UINTEGER UBIGINT HUGEINT FLOAT DOUBLE VARCHAR BLOB DATE TIME TIMESTAMP UUID JSON".split()
names = st.text(string.ascii_letters + "_", min_size=1, max_size=8).filter(lambda n: not n.upper().startswith(RESERVED))
decimals = st.integers(1, 38).flatmap(lambda p: st.integers(0, p).map(lambda s: f"DECIMAL({p},{s})"))
scalars = st.sampled_from([*SCALARS, "TIMESTAMP WITH TIME ZONE"]) | decimals


def named(fields: Sequence[Field], prefix: str = "") -> Iterator[tuple[str, Field]]:
    """All fields, those of records too, by their dotted names."""
    for one in fields:
        yield prefix + one.name, one
        yield from named(one.fields, f"{prefix}{one.name}.")


def unique(values: list[tuple[str, Any]]) -> bool:
    return len({n.lower() for n, _ in values}) == len(values)


def structs(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.lists(st.tuples(names, inner), min_size=1, max_size=3).filter(unique)
    return members.map(lambda found: "STRUCT({})".format(", ".join(f'"{n}" {t}' for n, t in found)))


plain = st.recursive(scalars, structs, max_leaves=4)
types = plain | plain.map(lambda t: f"{t}[]")
columns = st.lists(st.tuples(names, types), min_size=1, max_size=6).filter(unique)


@share(30)
@given(columns)
def test_fields_survive_the_rest_api(wanted: list[tuple[str, str]]) -> None:
    fields = fields_of(wanted)
    assert read_fields([f.api() for f in fields]) == fields


@share(30)
@given(columns, st.data())
def test_required_columns_are_required_unless_repeated(wanted: list[tuple[str, str]], data: st.DataObject) -> None:
    required = data.draw(st.sets(st.sampled_from([n for n, _ in wanted])))
    for field, (name, kind) in zip(fields_of(wanted, required=required), wanted, strict=True):
        assert field.mode == ("REPEATED" if kind.endswith("[]") else "REQUIRED" if name in required else "NULLABLE")


@share(30)
@given(columns, columns)
def test_a_grown_table_keeps_every_column_takes_the_rows_and_grows_once(has: list[tuple[str, str]], wanted: list[tuple[str, str]]) -> None:
    table, rows = fields_of(has, required=[has[0][0]]), fields_of(wanted, required=[wanted[0][0]])
    try:
        grown = evolved(table, rows)
    except SinkError:  # a column of both has two types
        assume(False)
    assert [(f.name, f.type) for f in grown[: len(table)]] == [(f.name, f.type) for f in table]
    assert {f.name.lower() for f in rows} <= {f.name.lower() for f in grown}
    assert evolved(grown, rows) == grown
    ours, theirs = ({f.name.lower() for f in fields if f.mode == "REQUIRED"} for fields in (rows, table))
    assert {f.name.lower() for f in grown if f.mode == "REQUIRED"} == ours & theirs


@share(30)
@given(columns)
def test_a_table_that_was_made_for_the_rows_needs_nothing(wanted: list[tuple[str, str]]) -> None:
    fields = fields_of(wanted, required=[n for n, _ in wanted])
    assert evolved(fields, fields) == fields


@given(st.integers(1, 38), st.integers(0, 38))
def test_a_decimal_fits_into_its_field(precision: int, scale: int) -> None:
    if scale > precision:
        return
    [field] = fields_of([("x", f"DECIMAL({precision},{scale})")])
    most = {"NUMERIC": (29, 9), "BIGNUMERIC": (38, 38)}[field.type]
    assert precision - scale <= most[0]
    assert scale <= most[1]
    assert field.digits == (precision - scale, scale)
    assert field.type == "NUMERIC" or not (precision - scale <= 29 and scale <= 9)


@pytest.mark.parametrize(
    ("kind", "sql"),
    [
        ("TIMESTAMP WITH TIME ZONE", "TIMESTAMP"), ("TIMESTAMP", "DATETIME"), ("TIME", "TIME"), ("BLOB", "BYTES"), ("UBIGINT", "NUMERIC(20)"),
        ("HUGEINT", "BIGNUMERIC"), ("DECIMAL(38,9)", "NUMERIC(38,9)"), ("DECIMAL(38,10)", "BIGNUMERIC(38,10)"), ("UINTEGER", "INTEGER"),
        ("STRUCT(a INTEGER)[]", "RECORD REPEATED"), ("UUID", "STRING"), ("JSON", "JSON"), ("FLOAT", "FLOAT"), ("VARCHAR[3]", "STRING REPEATED"),
    ],
)  # fmt: skip
def test_types(kind: str, sql: str) -> None:
    [field] = fields_of([("x", kind)])
    assert field.sql == sql


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ([("a", "INTEGER[][]")], "list of lists"),
        ([("s", "STRUCT(a STRUCT(b INTEGER[][]))")], "'s.a.b'"),
        ([("a", "MAP(VARCHAR, INTEGER)")], "list of structs"),
        ([("a", "INTERVAL")], "INTERVAL"),
        ([("a", "DECIMAL(76,2)")], "DECIMAL(76,2)"),
        ([("wind speed", "DOUBLE")], "'wind speed'"),
        ([("größe", "DOUBLE")], "'größe'"),
        ([("2nd", "DOUBLE")], "no digit first"),
        ([("x" * 301, "DOUBLE")], "300"),
        ([("_PARTITIONTIME", "DOUBLE")], "_PARTITION"),
        ([("_change_type", "DOUBLE")], "_CHANGE_TYPE"),
        ([("Id", "INTEGER"), ("id", "INTEGER")], "'Id' and 'id'"),
        ([("s", "STRUCT(a INTEGER, \"b-c\" INTEGER)")], "'s.b-c'"),
        ([(f"c{n}", "INTEGER") for n in range(10_001)], "10,001 columns"),
    ],
)  # fmt: skip
def test_what_bigquery_has_not_is_an_error_that_names_the_column(wanted: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        fields_of(wanted)
    assert said in str(caught.value)


def test_records_deeper_than_15_levels_are_an_error() -> None:
    kind = "INTEGER"
    for _ in range(15):
        kind = f"STRUCT(a {kind})"
    with pytest.raises(SpecError, match="15 levels"):
        fields_of([("s", kind)])


def test_what_others_said_of_a_column_is_kept_when_the_table_grows() -> None:
    table = read_fields([{"name": "Mail", "type": "STRING", "mode": "REQUIRED", "policyTags": {"names": ["pii"]}, "maxLength": "20"}])
    grown = evolved(table, [Field("mail", "STRING"), Field("age", "INTEGER", "REQUIRED")])
    assert [f.api() for f in grown] == [
        {"name": "Mail", "type": "STRING", "mode": "NULLABLE", "policyTags": {"names": ["pii"]}, "maxLength": "20"},
        {"name": "age", "type": "INTEGER", "mode": "NULLABLE"},
    ]


def test_a_record_grows_inside() -> None:
    table = fields_of([("s", "STRUCT(a INTEGER)[]")])
    grown = evolved(table, fields_of([("s", "STRUCT(a INTEGER, b VARCHAR)[]")]))
    assert [path for path, _ in named(grown)] == ["s", "s.a", "s.b"]


@pytest.mark.parametrize(
    ("has", "wants", "said"),
    [
        ("INTEGER", "VARCHAR", "column 'x' is INTEGER; the rows have STRING"),
        ("INTEGER", "INTEGER[]", "INTEGER REPEATED"),
        ("TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "DATETIME; the rows have TIMESTAMP"),
        ("DECIMAL(10,2)", "DECIMAL(12,2)", "SET DATA TYPE NUMERIC(12,2)"),
        ("STRUCT(a INTEGER)", "STRUCT(a VARCHAR)", "column 'x.a'"),
    ],
)
def test_a_column_of_another_type_is_an_error_that_names_it(has: str, wants: str, said: str) -> None:
    with pytest.raises(SinkError) as caught:
        evolved(fields_of([("x", has)]), fields_of([("x", wants)]), where="p.d.t")
    assert said in str(caught.value)


def test_a_decimal_that_fits_needs_no_change() -> None:
    table = fields_of([("x", "DECIMAL(12,4)")])
    assert evolved(table, fields_of([("x", "DECIMAL(10,2)")])) == table
    whole = (replace(table[0], precision=0, scale=0),)
    assert evolved(whole, table) == whole


@pytest.mark.parametrize("text", ["day(at)", "hour(at)", "month(at)", "year(at)", "range(n, 0, 100, 10)", "day()", ""])
def test_partitions_survive_the_rest_api(text: str) -> None:
    parsed = Partitions.parse(text)
    assert Partitions.read(parsed.api(None)).same_as == parsed.same_as
    assert str(parsed) == (text or "nothing")


@pytest.mark.parametrize(
    ("micros", "text"),
    [(600_000_000, "0-0 0 0:10:0"), (90_061_000_000, "0-0 1 1:1:1"), (1_500_000, "0-0 0 0:0:1.500000"), (3_600_000_000, "0-0 0 1:0:0")],
)
def test_a_staleness_is_told_and_read_as_an_interval(micros: int, text: str) -> None:
    assert bigquery_tables._interval(micros) == text
    assert bigquery_tables._staleness({"maxStaleness": text}) == micros
    assert bigquery_tables._staleness({"maxStaleness": "1-1 0 0:0:0"}) == 390 * 86_400_000_000
    assert bigquery_tables._staleness({}) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"partition_by": "day(when)"}, "no column 'when'"),
        ({"partition_by": "day(name)"}, "'name' is STRING"),
        ({"partition_by": "hour(day)"}, "DATETIME or TIMESTAMP"),
        ({"partition_by": "range(n, 10, 10, 1)"}, "start < end"),
        ({"cluster_by": ["amount"]}, "'amount' is FLOAT"),
        ({"cluster_by": ["a", "b", "c", "d", "e"]}, "takes 4"),
        ({"primary_key": ["tags"]}, "'tags' is STRING REPEATED"),
    ],
)
def test_partitions_clusters_and_keys_that_no_table_has_are_refused_before_any_call(options: dict[str, Any], said: str) -> None:
    fields = fields_of([("day", "DATE"), ("name", "VARCHAR"), ("n", "BIGINT"), ("amount", "DOUBLE"), ("tags", "VARCHAR[]")])
    with pytest.raises(SpecError) as caught:
        ensure_table(None, "p.d.t", fields, **options)
    assert said in str(caught.value)
