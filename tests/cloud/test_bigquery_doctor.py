"""`doctor` and BigQuery, on the local server: tables, queries and datasets are looked at; nothing is read, and no query is run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from beam_pipelines.runners.doctor import Examination, examine
from beam_pipelines.runners.findings import Finding
from tests.cloud.bigquery_orders import orders, spec
from tests.cloud.bigquery_server import BigQueryServer

pytestmark = [pytest.mark.cloud, pytest.mark.usefixtures("google_here")]


def found(folder: Path, source: str, *, lookups: str = "") -> dict[str, Finding]:
    loaded = spec(folder, source, lookups=lookups)
    return {finding.check: finding for finding in examine(Examination(loaded, "batch"))}


def test_tables_and_queries_are_looked_at_and_what_is_wrong_of_them_is_named(bigquery: BigQueryServer, tmp_path: Path) -> None:
    table = f"{bigquery.dataset()}.orders"
    bigquery.load(table, orders(10))
    looked = found(tmp_path, f"{{bigquery: {table}}}")["sources.batch[0]"]
    assert (looked.state, looked.found) == ("good", f"{table}: a table of {len(orders(1).column_names)} columns")
    assert "no such table" in found(tmp_path, f"{{bigquery: {table}_2}}")["sources.batch[0]"].found
    query = f'{{bigquery: {bigquery.project}, query: "SELECT %s FROM `{table}`"}}'
    assert found(tmp_path, query % "id")["sources.batch[0]"].state == "good"
    wrong = found(tmp_path, query % "nothing_of_this_name")["sources.batch[0]"]
    assert (wrong.state, "does not understand the query" in wrong.found) == ("bad", True)
    assert bigquery.rows(f"SELECT COUNT(*) AS n FROM `{table}`") == [{"n": 10}]


def test_a_lookup_is_read_and_a_query_of_one_only_planned(bigquery: BigQueryServer, tmp_path: Path) -> None:
    table = f"{bigquery.dataset()}.shops"
    bigquery.load(table, pa.table({"shop": ["a", "b", "c"]}))
    source = f"{{bigquery: {table}}}"
    lookups = 'lookups:\n  shops: {bigquery: %s, key: shop}\n  asked: {bigquery: %s, query: "SELECT shop FROM `%s`", key: shop}'
    looked = found(tmp_path, source, lookups=lookups % (table, bigquery.project, table))
    assert looked["lookups.shops"].found == "3 rows by shop"
    assert looked["lookups.asked"].found.endswith(": BigQuery understands the query")
