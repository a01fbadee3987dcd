"""Tables by ranges of integers and by the time of ingestion: what a run replaces is what the files hold, and nothing is there twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.cloud.bigquery_server import BigQueryServer

pytestmark = pytest.mark.cloud

SPEC = """spec: 1
pipeline: orders
contract:
  key: [id]
  event_time: at
  columns:
    id: {{type: int64, required: true}}
    at: {{type: timestamp}}
    shop: {{type: int32}}
sources: {{batch: [{{files: "data/*.csv", format: csv}}]}}
sinks:
  - {{from: rows, bigquery: {{table: {table}, partition_by: "{by}"}}}}
"""
BY_SHOP = "range(shop, -10, 30, 10)"


@pytest.fixture
def table(google_here: None, bigquery: BigQueryServer) -> str:
    return f"{bigquery.dataset()}.orders"


def spec(folder: Path, table: str, by: str) -> LoadedSpec:
    (folder / "spec.yaml").write_text(SPEC.format(table=table, by=by), "utf-8")
    return load_spec(folder / "spec.yaml")


def written(folder: Path, rows: list[tuple[int, int | None]], *, year: int = 2026) -> None:
    (folder / "data").mkdir(exist_ok=True)
    lines = [f"{n},{year}-01-01T00:00:00Z,{'' if shop is None else shop}\n" for n, shop in rows]
    (folder / "data" / "a.csv").write_text("id,at,shop\n" + "".join(lines), "utf-8")


def run(loaded: LoadedSpec, **call: Any) -> None:
    done = run_batch(loaded, Call(**call))
    assert done.status == "success", done.failures


def jobs(bigquery: BigQueryServer, table: str) -> list[str]:
    """The partition of each load job, in order."""
    name = table.rpartition(".")[2]
    found = [
        job
        for job in bigquery.client().list_jobs()
        if job.job_type == "load" and job.destination.table_id.partition("$")[0] == name and job.destination.dataset_id in table
    ]
    return [job.destination.table_id.partition("$")[2] for job in sorted(found, key=lambda job: job.created)]


def held(bigquery: BigQueryServer, table: str) -> list[tuple[int, int | None]]:
    return [(r["id"], r["shop"]) for r in bigquery.rows(f"SELECT id, shop FROM `{table}` ORDER BY id")]


def test_a_range_of_integers_is_replaced_as_a_partition(tmp_path: Path, table: str, bigquery: BigQueryServer) -> None:
    loaded = spec(tmp_path, table, BY_SHOP)
    first = [(1, -10), (2, -1), (3, 0), (4, 29), (5, 30), (6, -11), (7, None)]
    written(tmp_path, first)
    run(loaded)
    api = bigquery.client().get_table(table).to_api_repr()
    assert api["rangePartitioning"] == {"field": "shop", "range": {"start": "-10", "end": "30", "interval": "10"}}
    assert {f["name"] for f in api["schema"]["fields"]} >= {"id", "shop"}
    assert not any(f["name"] == "shop_range_m10_30_10" for f in api["schema"]["fields"])
    assert sorted(jobs(bigquery, table)) == ["-10", "0", "20", "__NULL__", "__UNPARTITIONED__"]
    assert held(bigquery, table) == first

    second = [(11, -5), (12, 40)]
    written(tmp_path, second)
    run(loaded)
    assert sorted(jobs(bigquery, table)[5:]) == ["-10", "__UNPARTITIONED__"]
    assert held(bigquery, table) == sorted([(3, 0), (4, 29), (7, None), *second])
    with open_tables(loaded.state) as lake:
        there = ask(lake, "SELECT id, shop, shop_range_m10_30_10 AS shop_range FROM rows ORDER BY id").to_pylist()
    assert [(r["id"], r["shop"]) for r in there] == held(bigquery, table)
    assert [r["shop_range"] for r in there] == ["0", "20", None, "-10", "__UNPARTITIONED__"]


def test_a_run_that_is_repeated_loads_each_range_once(tmp_path: Path, table: str, bigquery: BigQueryServer) -> None:
    loaded = spec(tmp_path, table, BY_SHOP)
    written(tmp_path, [(1, 1), (2, 11)])
    run(loaded, run_id="one")
    run(loaded, run_id="one")
    assert sorted(jobs(bigquery, table)) == ["0", "10"]
    run(loaded, run_id="two")
    assert held(bigquery, table) == [(1, 1), (2, 11)]


def test_a_table_by_the_time_of_ingestion_is_replaced_whole(tmp_path: Path, table: str, bigquery: BigQueryServer) -> None:
    """A row's partition is when it was loaded: by nothing else could a later run find it again."""
    loaded = spec(tmp_path, table, "month()")
    written(tmp_path, [(1, 1), (2, 2)])
    run(loaded, run_id="one")
    run(loaded, run_id="one")
    assert jobs(bigquery, table) == [""]
    assert bigquery.client().get_table(table).to_api_repr()["timePartitioning"] == {"type": "MONTH"}
    written(tmp_path, [(3, 3)])
    run(loaded, run_id="two")
    assert jobs(bigquery, table) == ["", ""]
    assert held(bigquery, table) == [(3, 3)]
    assert bigquery.client().get_table(table).to_api_repr()["timePartitioning"] == {"type": "MONTH"}


def test_years_that_no_partition_of_time_has_lie_beside_them(tmp_path: Path, table: str, bigquery: BigQueryServer) -> None:
    loaded = spec(tmp_path, table, "day(at)")
    written(tmp_path, [(1, 1)], year=1959)
    run(loaded)
    written(tmp_path, [(2, 1)], year=2160)
    run(loaded)
    assert jobs(bigquery, table) == ["__UNPARTITIONED__", "__UNPARTITIONED__"]
    assert held(bigquery, table) == [(1, 1), (2, 1)], "the second run adds a day to the partition, and takes none away"
