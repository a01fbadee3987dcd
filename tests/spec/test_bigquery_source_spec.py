"""BigQuery as a source of the batch path and as a lookup: what a spec may say about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.errors import SpecError
from beam_pipelines.sources.bigquery_range import near_of
from beam_pipelines.spec.load import load_spec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sources import BigQueryLookup, BigQuerySource, LookupSource

SPEC = """
spec: 1
pipeline: p
parameters: {{table: {{type: string, default: my-project.lake.orders}}}}
contract: {{event_time: at, columns: {{id: {{type: int64}}, at: {{type: timestamp{column}}}}}}}
sources: {{batch: [{source}]}}
lookups: {{{lookups}}}
{more}
sinks: [{{from: rows, parquet: {{path: lake/rows}}}}]
"""
TABLE = "{bigquery: my-project.lake.orders}"


def load(folder: Path, source: str = TABLE, *, lookups: str = "", more: str = "", column: str = "") -> PipelineSpec:
    path = folder / "p.yaml"
    path.write_text(SPEC.format(source=source, lookups=lookups, more=more, column=column))
    return load_spec(path).spec


def test_a_table_and_a_query_are_sources_beside_files(tmp_path: Path) -> None:
    sources = '{files: a.csv, format: csv}, {bigquery: "${table}", where: "id > 5"}, {bigquery: my-project, query: "SELECT 1 AS id"}'
    _, table, query = load(tmp_path, sources).sources.batch
    assert isinstance(table, BigQuerySource)
    assert isinstance(query, BigQuerySource)
    assert (table.bigquery, table.payer, table.name) == ("my-project.lake.orders", "my-project", "my-project.lake.orders")
    assert query.payer == "my-project"
    assert query.name.startswith("my-project.query-")


def test_the_names_of_two_queries_differ_and_another_project_may_pay(tmp_path: Path) -> None:
    one, other = load(
        tmp_path, '{bigquery: my-project, query: "SELECT 1"}, {bigquery: my-project, query: "SELECT 2", project: payer-1}'
    ).sources.batch
    assert isinstance(one, BigQuerySource)
    assert isinstance(other, BigQuerySource)
    assert one.name != other.name
    assert other.payer == "payer-1"


@pytest.mark.parametrize("name", ["my-project.lake.orders", "example.com:my-project.lake.orders", "my-project.lake.Bestellungen-2026 neu"])
def test_names_that_bigquery_has_are_taken(tmp_path: Path, name: str) -> None:
    load(tmp_path, f"{{bigquery: '{name}'}}")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{bigquery: lake.orders}", "got 'lake.orders'; expected PROJECT.DATASET.TABLE"),
        ("{bigquery: 'my-project.lake.orders$20261101'}", "expected PROJECT.DATASET.TABLE"),
        ("{bigquery: 'my-project.lake.orders_*'}", "expected PROJECT.DATASET.TABLE"),
        ("{bigquery: my-project.lake.orders, query: SELECT 1}", "expected PROJECT, as there is a query"),
        ("{bigquery: my-project, query: ' '}", "query is empty"),
        ("{bigquery: my-project, query: SELECT 1, where: a = 1}", "'where' is for a table; write it into the query"),
        ("{bigquery: my-project, query: SELECT 1, columns: [a]}", "'columns' is for a table; name them in the query"),
        ("{bigquery: my-project.lake.orders, location: EU}", "'location' is for a query"),
        ("{bigquery: my-project.lake.orders, columns: [id], row_id: number}", "row_id 'number' is not among 'columns'"),
        ("{bigquery: my-project.lake.orders, columns: []}", "columns"),
        ("{bigqery: my-project.lake.orders}", r"unknown field 'bigqery'; did you mean 'bigquery'\? Fields of a bigquery source"),
        ("{bigquery: my-project.lake.orders, wehre: a = 1}", r"unknown field 'wehre'; did you mean 'where'\?"),
        ("{bigquery: my-project.lake.orders, format: parquet}", "unknown field 'format'"),
        ("{bigquery: my-project.lake.orders, arrival: {column: id}}", "column 'id' has type BIGINT; expected timestamp"),
        ("{bigquery: my-project.lake.orders, arrival: {attribute: a}}", "name a column"),
        ("{bigquery: my-project.lake.orders, max_streams: 0}", "max_streams"),
    ],
)
def test_what_is_wrong_is_said_at_its_place(tmp_path: Path, source: str, problem: str) -> None:
    with pytest.raises(SpecError, match=rf"(?s)sources\.batch\[0\].*{problem}"):
        load(tmp_path, source)


def test_a_lookup_may_be_a_table_or_a_query(tmp_path: Path) -> None:
    lookups = "a: {bigquery: my-project.lake.a, key: id}, b: {bigquery: my-project, query: SELECT 1 AS id, key: [id]}, c: {files: c.csv, format: csv, key: id}"
    found = load(tmp_path, lookups=lookups).lookups
    assert {name: type(lookup) for name, lookup in found.items()} == {"a": BigQueryLookup, "b": BigQueryLookup, "c": LookupSource}
    assert [found[name].keys for name in "abc"] == [("id",)] * 3


@pytest.mark.parametrize(
    ("lookup", "problem"),
    [
        ("{bigquery: my-project.lake.a}", "needs 'key'"),
        ("{bigqury: my-project.lake.a, key: id}", r"unknown field 'bigqury'; did you mean 'bigquery'\?"),
        ("{bigquery: a, key: id}", "expected PROJECT.DATASET.TABLE"),
        ("{bigquery: my-project.lake.a, key: []}", "the list is empty"),
        ("{bigquery: my-project.lake.a, key: id, columns: {id: int46}}", "int64"),
        ("{files: a.csv, format: csv, bigquery: my-project.lake.a, key: id}", "unknown field 'bigquery'"),
    ],
)
def test_what_is_wrong_in_a_lookup_is_said_at_its_place(tmp_path: Path, lookup: str, problem: str) -> None:
    with pytest.raises(SpecError, match=rf"(?s)lookups\.a.*{problem}"):
        load(tmp_path, lookups=f"a: {lookup}")


def test_columns_taken_from_a_table_have_the_types_that_are_declared(tmp_path: Path) -> None:
    more = "transform: [{lookup: {from: a, on: id, take: {size: size}}}, {filter: 'size > 5'}]"
    load(tmp_path, lookups="a: {bigquery: my-project.lake.a, key: id}", more=more)
    load(tmp_path, lookups="a: {bigquery: my-project.lake.a, key: id, columns: {size: int64}}", more=more)
    with pytest.raises(SpecError, match="compares BOOLEAN with INTEGER"):
        load(tmp_path, lookups="a: {bigquery: my-project.lake.a, key: id, columns: {size: boolean}}", more=more)


HOUR = 3_600_000_000


@pytest.mark.parametrize(
    ("more", "column", "expected"),
    [
        ("", "", Range(10 * HOUR, 20 * HOUR)),
        ("deduplicate: {key: [id], within: 2h}", "", Range(8 * HOUR, 22 * HOUR)),
        ("deduplicate: {key: [id]}", "", None),
        ("aggregates: {a: {windowing: {type: fixed, size: 1h}, measures: {n: count()}}}", "", Range(10 * HOUR, 21 * HOUR)),
        ("transform: [{set: {at: 'now_ish'}}]".replace("now_ish", "make_timestamp(0)"), "", None),
        ("transform: [{set: {other: 'id + 1'}}, {filter: 'other > 1'}]", "", Range(10 * HOUR, 20 * HOUR)),
        ("", ", default: '2026-01-01T00:00:00Z'", None),
        ("", ", path: created", Range(10 * HOUR, 20 * HOUR)),
        ("", ", path: meta.created", None),
        ("", ", expr: 'make_timestamp(id)'", None),
    ],
)
def test_a_range_is_pushed_down_only_where_the_tables_column_decides(
    tmp_path: Path, more: str, column: str, expected: Range | None
) -> None:
    found = near_of(load(tmp_path, "{bigquery: my-project.lake.orders, row_id: id}", more=more, column=column), Range(10 * HOUR, 20 * HOUR))
    assert (None if found is None else found.range) == expected
    if found is not None:
        assert found.column == ("created" if "created" in column else "at")


def test_a_run_over_everything_pushes_nothing_down(tmp_path: Path) -> None:
    assert near_of(load(tmp_path), None) is None
