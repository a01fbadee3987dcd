"""A small lake in a bucket, and processes that commit to it and are killed."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import duckdb

from beam_pipelines.errors import SinkError
from beam_pipelines.places.sql import reading
from beam_pipelines.sinks.committing import prepare
from beam_pipelines.sinks.manifest import snapshots
from beam_pipelines.sinks.run import Output
from beam_pipelines.sinks.views import select_sql
from tests.sinks.lake import Lake, rows


@dataclass(frozen=True)
class GsLake(Lake):
    """The same as `Lake`; `folder` is a bucket."""

    @classmethod
    def of(cls, bucket: str) -> GsLake:
        return cls(Path(bucket))

    @property
    def top(self) -> str:
        return f"gs://{self.folder}"

    @property
    def state(self) -> str:
        return f"{self.top}/state"

    def output(self, name: str = "out", **more: Any) -> Output:
        return Output(name, "rows", f"{self.top}/{name}", **{"partitions": ("k",), **more})

    def view(self, output: str = "out") -> list[tuple[int, str | None]]:
        found = snapshots(self.state).get(output)
        return [] if found is None else _rows(f"SELECT n, k FROM ({select_sql(found)})")

    def glob(self, output: str = "out") -> list[tuple[int, str | None]]:
        return _rows(
            f"SELECT n, k FROM read_parquet('{self.top}/{output}/k=*/*.parquet', hive_partitioning = true, hive_types = {{'k': VARCHAR}})"
        )


def _rows(sql: str) -> list[tuple[int, str | None]]:
    return sorted(reading(duckdb.connect(), sql).execute(sql).fetchall(), key=repr)


def killed_after(_: Connection, environment: dict[str, str], bucket: str, stop: int) -> None:
    """Stages and commits run r2, dies after `stop` steps."""
    os.environ.update(environment)
    lake = GsLake.of(bucket)
    steps = lake.steps(lake.run("r2"), lake.output(), rows((3, "b"), (4, "c"), (5, None)))
    for _step in range(stop):
        next(steps)
    os.kill(os.getpid(), signal.SIGKILL)


def committing(connection: Connection, environment: dict[str, str], bucket: str, run_id: str, output: str) -> None:
    """Waits for a word, then runs; says what came of it."""
    os.environ.update(environment)
    lake = GsLake.of(bucket)
    assert lake.view() == []  # everything is loaded and connected
    connection.send("ready")
    connection.recv()
    try:
        lake.go(run_id, lake.output(output), rows((1, run_id)))
        connection.send("committed")
    except SinkError as error:
        connection.send(str(error))


def preparing(connection: Connection, environment: dict[str, str], bucket: str, run_id: str) -> None:
    """Waits for a word, prepares a run, says what came of it, and stays alive until the connection closes."""
    os.environ.update(environment)
    lake = GsLake.of(bucket)
    connection.recv()
    try:
        prepare([lake.output()], lake.run(run_id))
        connection.send("held")
    except SinkError:
        connection.send("refused")
    connection.recv()
