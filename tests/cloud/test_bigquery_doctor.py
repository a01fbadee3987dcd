"""`doctor` and Google's services, on local servers: tables, queries, datasets and buckets are looked at; nothing is read, and no query is run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from beam_pipelines.errors import SinkError
from beam_pipelines.runners.doctor import Examination, examine
from beam_pipelines.runners.findings import Finding
from beam_pipelines.runners.writable import expect_writable
from beam_pipelines.spec.load import load_spec
from tests.cloud.bigquery_orders import orders, spec
from tests.cloud.bigquery_server import BigQueryServer
from tests.cloud.gcs_server import GcsServer
from tests.pubsub_servers import PubsubServer

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


def test_a_lookup_is_opened_and_not_read_and_a_query_of_one_only_planned(bigquery: BigQueryServer, tmp_path: Path) -> None:
    table = f"{bigquery.dataset()}.shops"
    bigquery.load(table, pa.table({"shop": ["a", "b", "c"]}))
    source = f"{{bigquery: {table}}}"
    lookups = 'lookups:\n  shops: {bigquery: %s, key: shop}\n  asked: {bigquery: %s, query: "SELECT shop FROM `%s`", key: shop}'
    looked = found(tmp_path, source, lookups=lookups % (table, bigquery.project, table))
    assert looked["lookups.shops"].found == f"{table}: a table of 1 columns"
    assert looked["lookups.asked"].found.endswith(": BigQuery understands the query")
    looked = found(tmp_path, source, lookups=f"lookups: {{shops: {{bigquery: {table}, key: shoq}}}}")
    assert (looked["lookups.shops"].state, "unknown column 'shoq'" in looked["lookups.shops"].found) == ("bad", True)


def test_the_dataset_of_a_table_that_a_stream_appends_to_must_be_there(
    bigquery: BigQueryServer, tmp_path: Path, broker: PubsubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.address)
    path = Path(spec(tmp_path, "{files: none.csv, format: csv}").path)
    stream = path.read_text().replace("batch: [{files: none.csv, format: csv}]", f"stream: [{{pubsub: {broker.pair()[1]}, format: json}}]")
    looked = {}
    for dataset in (bigquery.dataset(), f"{bigquery.project}.nowhere"):
        path.write_text(stream + f"  - {{from: rows, bigquery: {{table: {dataset}.orders, path: lake/loaded}}}}\n")
        looked |= {dataset: {finding.check: finding for finding in examine(Examination(load_spec(path), "stream"))}}
    [good, bad] = [next(finding for name, finding in found.items() if "bigquery" in name) for found in looked.values()]
    assert (good.state, ", and dataset of " in good.found) == ("good", True)
    assert (bad.state, "the dataset cannot be reached" in bad.found) == ("bad", True)


def test_a_bucket_whose_files_cannot_be_deleted_is_bad_and_the_file_is_named(own_gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in own_gcs.environment.items():
        monkeypatch.setenv(name, value)
    bucket = own_gcs.bucket()
    expect_writable(f"gs://{bucket}/lake")
    assert own_gcs.gate is not None
    own_gcs.gate.answer(403, when=lambda method, _: method == "DELETE")
    with pytest.raises(SinkError, match=rf"gs://{bucket}/lake/writable-\w+: cannot delete: permission denied \(403\)"):
        expect_writable(f"gs://{bucket}/lake")
