"""DuckDB over gs://: which files a pattern matches, that threads share a file, that a new version is seen, and what a query asks for."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_pipelines import places
from beam_pipelines.places.gcs import matching
from beam_pipelines.places.sql import gone, reading, said
from tests.cloud.gcs_server import GcsServer

pytestmark = pytest.mark.cloud


@pytest.fixture
def top(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    return f"gs://{gcs.bucket()}/t"


def put(path: str, first: int, rows: int, *, group: int = 1 << 20) -> None:
    numbers = np.arange(first, first + rows)
    table = pa.table({"n": numbers, "noise": np.random.default_rng(first).integers(0, 1 << 62, rows)})
    with places.open_new(path) as out:
        pq.write_table(table, out, row_group_size=group)


def test_patterns_match_as_on_a_disk(top: str) -> None:
    for name in ("a.x", "b.x", "b.y", "d=1/a.x", "d=1/e=2/a.x", "0001.json", "z[1].x"):
        places.write_bytes(f"{top}/{name}", b"1")

    def found(pattern: str) -> list[str]:
        return [listed.path.removeprefix(f"{top}/") for listed in matching(f"{top}/{pattern}")]

    assert found("*.x") == ["a.x", "b.x", "z[1].x"]
    assert found("?.x") == ["a.x", "b.x"]
    assert found("**/*.x") == ["a.x", "b.x", "d=1/a.x", "d=1/e=2/a.x", "z[1].x"]
    assert found("**") == ["0001.json", "a.x", "b.x", "b.y", "d=1/a.x", "d=1/e=2/a.x", "z[1].x"]
    assert found("*/*.x") == found("d=*/a.x") == ["d=1/a.x"]
    assert found("[0-9]*.json") == ["0001.json"]
    assert found("[!a].x") == ["b.x"]
    assert found("z[1].x") == ["z[1].x"]
    assert found("none.x") == found("none/*.x") == []


def test_threads_that_share_a_large_file_read_every_row_once(top: str) -> None:
    put(f"{top}/large.parquet", 0, 1_000_000, group=20_000)
    connection = reading(duckdb.connect(config={"threads": 8}), top)
    sql = f"SELECT count(*), sum(n), count(DISTINCT n), bit_xor(noise) FROM read_parquet('{top}/large.parquet')"
    expected = pq.read_table(places.open_read(f"{top}/large.parquet")).column("noise").to_numpy()
    assert connection.sql(sql).fetchall() == [(1_000_000, 999_999 * 500_000, 1_000_000, int(np.bitwise_xor.reduce(expected)))]


def test_a_query_sees_the_files_and_versions_that_are_there_when_it_begins(top: str) -> None:
    connection = reading(duckdb.connect(), top)
    sql = f"SELECT sum(n) FROM read_parquet('{top}/*.parquet')"
    for rows in (10, 20):
        put(f"{top}/a.parquet", 0, rows)
        assert connection.sql(sql).fetchall() == [(sum(range(rows)),)]
    put(f"{top}/b.parquet", 100, 1)
    assert connection.sql(sql).fetchall() == [(sum(range(20)) + 100,)]


def test_small_files_cost_a_request_each_and_files_of_other_partitions_none(top: str, gcs: GcsServer) -> None:
    for day in range(5):
        put(f"{top}/d={day}/a.parquet", day, 100)
    sql = f"SELECT sum(n), sum(noise) FROM read_parquet('{top}/**/*.parquet', hive_partitioning = true)"
    with gcs.counted() as every:
        reading(duckdb.connect(), top).sql(sql).fetchall()
    with gcs.counted() as one:
        reading(duckdb.connect(), top).sql(f"{sql} WHERE d = 3").fetchall()
    assert every["GET media"] == 5
    assert one["GET media"] <= 2  # the first file tells the columns
    assert one["LIST"] <= 2


def test_of_a_large_file_only_the_columns_that_are_wanted_are_fetched(top: str, gcs: GcsServer) -> None:
    put(f"{top}/large.parquet", 0, 2_000_000)
    sent = gcs.names(top.split("/")[2])
    assert sent == ["t/large.parquet"]
    connection = reading(duckdb.connect(), top)
    with gcs.counted() as requests:
        assert connection.sql(f"SELECT count(*) FROM read_parquet('{top}/large.parquet')").fetchall() == [(2_000_000,)]
    assert requests["GET media"] <= 3  # the start, the footer


def test_what_cannot_be_read_says_so_in_one_line(top: str) -> None:
    connection = reading(duckdb.connect(), top)
    for path in (f"{top}/none.parquet", f"{top}/*.none", "gs://no-such-lake/*.parquet"):
        with pytest.raises(duckdb.Error) as caught:
            connection.sql(f"SELECT * FROM read_parquet('{path}')").fetchall()
        assert gone(caught.value)
        assert "Traceback" not in said(caught.value)
    assert "no such" in said(caught.value) or "there is no bucket" in said(caught.value)


def test_without_a_gs_path_a_connection_stays_as_it_is() -> None:
    assert reading(duckdb.connect(), "/a/path", "SELECT 1").list_filesystems() == []
