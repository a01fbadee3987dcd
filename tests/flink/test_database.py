"""A PostgreSQL table on a Flink cluster: the workers read the snapshot that the launcher holds, and nobody holds it when the run has ended."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.runners.flink.cluster import Cluster
from beam_pipelines.runners.options import Flink
from tests.postgres_server import Database, database, postgres
from tests.sources.postgres_orders import spec, stored

__all__ = ["database", "postgres"]
pytestmark = pytest.mark.flink


def test_the_workers_of_a_cluster_read_one_snapshot_whoever_writes(database: Database, flink_cluster: Cluster, tmp_path: Path) -> None:
    database.run(
        "CREATE TABLE orders AS SELECT i AS id, timestamptz '2026-11-01' AS at, repeat('x', 500) AS f FROM generate_series(1, 30000) i"
    )
    loaded = spec(tmp_path, f'{{database: "{database.url}", table: orders, max_splits: 3}}', id="int64", at="timestamp")
    ended = threading.Event()
    # Whose transactions are open, each time that any are: the launcher's, and for a moment a worker's before it reads.
    held: list[set[int]] = []

    def write() -> None:
        while not ended.wait(0.05):
            if found := {connection["pid"] for connection in database.connections()}:
                held.append(found)
                database.run("UPDATE orders SET id = -id", "DELETE FROM orders WHERE random() < 0.3")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        record = run_batch(loaded, Call("flink", flink=Flink(flink_cluster.rest, flink_cluster.workers)))
    finally:
        ended.set()
        writer.join()
    assert (record.status, record.metadata.engine) == ("success", "FlinkRunner")
    assert stored(loaded, "id") == sorted(((i,) for i in range(1, 30_001)), key=repr)
    assert len(set.intersection(*held)) == 1
    assert not database.connections()
    assert database.run("SELECT count(*) AS n FROM orders")[0]["n"] < 30_000
