"""The serving view against plain Parquet in DuckDB, and commits of many partitions. The last line is one JSON object.

    python benchmarks/serving.py [--rows 100_000_000] [--days 400] [--folder DIRECTORY]

A lake of `--rows` rows in `--days` daily partitions: of each 200 days 150 committed by a batch, 50 stored by a stream in eight files each, with one row in a
hundred known to be a duplicate; all but the newest five are compacted as `compact` does it, which settles them; a tenth of the committed days has speed
files too, which the view must not open. Each query is asked through the view and, in the same process
and turn by turn, of plain Parquet: a `read_parquet` over the folder of the layer that has the day, with the same condition. Medians of CPU and wall seconds, and their ratios.
`…_one_level`: plain Parquet named by `/*/*.parquet` in place of `/**/*.parquet`, which DuckDB lists faster; `…_served`: through the file that `serve` writes.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import pyarrow.parquet as pq

from beam_pipelines.commit_elements import Staged
from beam_pipelines.formats.named_files import new_name
from beam_pipelines.serving.published import write_database
from beam_pipelines.serving.tables import open_tables
from beam_pipelines.sinks.committing import commit, prepare
from beam_pipelines.sinks.epochs import doors_folder
from beam_pipelines.sinks.outputs import SpeedOutput, StreamOutputs, write_columns, write_outputs
from beam_pipelines.sinks.parquet import WriteParquet
from beam_pipelines.sinks.results import RunResults, metadata
from beam_pipelines.sinks.run import Clock, Output, RunInfo, staging_of, utc_now
from beam_pipelines.sinks.speed import WriteSpeed
from beam_pipelines.sinks.speed_compaction import compact_steps
from beam_pipelines.sinks.work import Work
from beam_pipelines.spec.sinks import ParquetSink

TURNS = 15
SPEED_FILES = 8
_COLUMNS = """i AS id, TIMESTAMPTZ '2013-01-01 00:00:00+00' + to_days({day}) + to_microseconds(CAST(86400000000 * i / {rows} AS BIGINT)) AS t,
    CAST(hash(i) % 50 AS INTEGER) AS k, CAST(hash(i + 1) % 100000 AS DOUBLE) / 100 AS v, CAST('{source}' AS VARCHAR) AS _source, {day}::BIGINT * 1000000000 + i AS _position,
    TIMESTAMPTZ '2013-01-01 00:00:00+00' + to_days({day}) AS _arrival_time, '{run}' AS _run_id, 'c' AS _contract"""
_SCHEMA = (
    ("id", "BIGINT"), ("t", "TIMESTAMP WITH TIME ZONE"), ("k", "INTEGER"), ("v", "DOUBLE"), ("_source", "VARCHAR"), ("_position", "BIGINT"),
    ("_arrival_time", "TIMESTAMP WITH TIME ZONE"), ("_run_id", "VARCHAR"), ("_contract", "VARCHAR"), ("t_day", "DATE"),
)  # fmt: skip


class Lake:
    """The lake, and which of its days are whose."""

    def __init__(self, folder: Path, rows: int, days: int) -> None:
        self.folder, self.days, self.rows_a_day = folder, days, rows // days
        self.state = str(folder / "state")
        self.output = Output("rows", "rows", str(folder / "rows"), partitions=("t_day",), clock=Clock("t", "t_day", "day"))
        self.open_days = [day for day in range(days) if day % (days // 2) >= days * 3 // 8]
        self.both_days = [day for day in range(days) if day % 10 == 0]

    def make(self) -> None:
        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = true")
        run = RunInfo("b1", "bench", self.state)
        prepare([self.output], run)
        staged = []
        for day in range(self.days):
            if day not in self.open_days:
                path = f"{staging_of(self.output, run)}/part-{uuid4().hex}.parquet.inprogress"
                self._write(connection, path, day, "b1", "file.csv", 0, self.rows_a_day)
                staged.append(Staged("rows", partition(day), path, self.rows_a_day, Path(path).stat().st_size))
        commit(work(run, self.output, staged))
        self._speed(connection)

    def _speed(self, connection: duckdb.DuckDBPyConnection) -> None:
        output = SpeedOutput("rows", "rows", self.output.speed, placed=("t", "t_day"), placings=("one",))
        write_outputs(self.state, StreamOutputs((output,)))
        write_columns(self.output.speed, {"t_day": "DATE"})
        doors = Path(doors_folder(self.state))
        doors.mkdir(parents=True)
        gone = " UNION ALL ".join(
            f"SELECT {day}::BIGINT * 1000000000 + i * 100 AS position, TIMESTAMPTZ '2013-01-01 00:00:00+00' + to_days({day}) AS arrival_time FROM range({self.rows_a_day // 100}) r(i)"
            for day in self.open_days
        )
        sql = f"SELECT 'subscription' AS source, position, 'duplicate' AS door, arrival_time, now() AS _stored_at FROM ({gone})"
        connection.execute(f"COPY ({sql}) TO '{doors / new_name(1)}' (FORMAT parquet)")
        new = self.open_days[-5:]
        self._store(connection, sorted({*self.open_days, *self.both_days} - {*new}))
        self._compact()
        self._store(connection, new)

    def _store(self, connection: duckdb.DuckDBPyConnection, days: Sequence[int]) -> None:
        each = self.rows_a_day // SPEED_FILES
        for day in days:
            for number in range(SPEED_FILES):
                path = f"{self.output.speed}/{partition(day)}/{new_name(1)}"
                self._write(connection, path, day, "s1", "subscription", number * each, each, more=", now() AS _stored_at")

    def _compact(self) -> None:
        run = RunInfo("s1", "bench", self.state, contract="c", mode="stream", epoch=1)
        sink = ParquetSink(path=self.output.path, partition_by=("t_day",))
        writing = WriteSpeed(WriteParquet(sink, label="rows", run=run, provenance=True, of="rows"), run).writing
        begin = time.process_time()
        for later in (0, 120):  # files that were replaced are deleted a minute later
            for _ in compact_steps(writing, epoch=1, now=lambda later=later: time.time() + later, quiet_s=0, state=self.state):  # type: ignore[misc]
                pass
        self.settle_cpu_s = time.process_time() - begin

    def _write(
        self, connection: duckdb.DuckDBPyConnection, path: str, day: int, run: str, source: str, first: int, rows: int, more: str = ""
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        columns = _COLUMNS.format(day=day, rows=self.rows_a_day, source=source, run=run)
        made = connection.sql(f"SELECT {columns}{more} FROM range({first}, {first + rows}) r(i)").to_arrow_table()
        pq.write_table(made, path, compression="zstd", compression_level=1, row_group_size=131_072)


def partition(day: int) -> str:
    """The directory of a day."""
    return f"t_day={date(day)}"


def date(day: int) -> str:
    """The day as a date."""
    return str(duckdb.sql(f"SELECT DATE '2013-01-01' + {day}").fetchall()[0][0])


def work(run: RunInfo, output: Output, staged: list[Staged]) -> Work:
    """What a run of only these files brings to its commit."""
    return Work(
        run, (output,), tuple(staged), RunResults(metadata(run, finished_at=utc_now()), "success"), ["s"], (), {output.name: _SCHEMA}
    )


def turns(one: Callable[[], Any], other: Callable[[], Any]) -> dict[str, float]:
    """Both, turn by turn: medians and ratios of CPU and wall seconds."""
    seen: dict[str, list[float]] = {name: [] for name in ("cpu", "wall", "plain_cpu", "plain_wall")}
    assert one() == other() is not None
    for _ in range(TURNS):
        for prefix, ask in (("", one), ("plain_", other)):
            cpu, wall = time.process_time(), time.perf_counter()
            ask()
            seen[f"{prefix}cpu"].append(time.process_time() - cpu)
            seen[f"{prefix}wall"].append(time.perf_counter() - wall)
    found = {name: statistics.median(values) for name, values in seen.items()}
    ratios = {name: statistics.median(a / b for a, b in zip(seen[name], seen[f"plain_{name}"], strict=True)) for name in ("cpu", "wall")}
    return {name: round(value, 4) for name, value in found.items()} | {f"{name}_ratio": round(value, 3) for name, value in ratios.items()}


def queries(lake: Lake) -> dict[str, Any]:
    """One-day queries through the view and of the files alone; how many files each opens."""
    begin = time.perf_counter()
    view = open_tables(lake.state, at_once=True)
    found: dict[str, Any] = {"open_tables_s": round(time.perf_counter() - begin, 3)}
    stored = len(lake.open_days) + len(set(lake.both_days) - set(lake.open_days)) - 5
    found["settle_us_a_row"] = round(lake.settle_cpu_s / stored / lake.rows_a_day * 1e6, 2)
    file = str(lake.folder / "served.duckdb")
    write_database(file, lake.state)
    served = duckdb.connect(file, read_only=True)
    served.execute("SET TimeZone = 'UTC'")
    plain = duckdb.connect()
    plain.execute("SET TimeZone = 'UTC'")
    what = "SELECT k, count(*), round(sum(v), 2) FROM {} WHERE {} GROUP BY k ORDER BY k"
    committed, opened = next(d for d in range(lake.days) if d not in lake.open_days and d not in lake.both_days), lake.open_days[-8]
    days = (
        ("committed_day", committed, lake.output.path, "**", view),
        ("committed_day_one_level", committed, lake.output.path, "*", view),
        ("committed_day_served", committed, lake.output.path, "**", served),
        ("both_layers_day", lake.both_days[1], lake.output.path, "**", view),
        ("open_day", opened, lake.output.speed, "**", view),
        ("open_new_day", lake.open_days[-2], lake.output.speed, "**", view),
    )
    for name, day, folder, below, tables in days:
        table = f"read_parquet('{folder}/{below}/*.parquet', hive_partitioning = true, hive_types = {{'t_day': DATE}})"
        for by, condition in (
            ("partition", f"t_day = '{date(day)}'"),
            ("event_time", f"t >= '{date(day)}' AND t < '{date(day + 1)}'"),
        ):
            asked = what.format("rows", condition)
            # plain Parquet has the duplicates, which are every hundredth row of the day
            alone = what.format(table, condition + (" AND (_position % 1000000000) % 100 <> 0" if folder == lake.output.speed else ""))
            figures = turns(partial(answer, tables, asked), partial(answer, plain, alone))
            found[f"{name}_by_{by}"] = figures | {"files": files_opened(tables, asked)}
    whole = "SELECT count(*), round(sum(v), 0) FROM rows"
    begin = time.perf_counter()
    found["rows"] = view.execute(whole).fetchall()[0][0]
    found["whole_s"] = round(time.perf_counter() - begin, 2)
    return found


def answer(connection: duckdb.DuckDBPyConnection, sql: str) -> list[Any]:
    """Its rows."""
    return connection.execute(sql).fetchall()


def files_opened(view: duckdb.DuckDBPyConnection, sql: str) -> int:
    """Files whose rows the engine reads for a query, by its own account."""
    plan = str(view.execute(f"EXPLAIN ANALYZE {sql}").fetchall()[0][1])
    scans = re.findall(r"Total Files Read: (\d+)", plan)
    doors = len(re.findall(r"doors", plan)) and 1  # the list of duplicates is one file here
    return sum(map(int, scans)) - (doors if len(scans) > 1 else 0)


def commits(folder: Path, partitions: int) -> dict[str, float]:
    """Seconds for a commit that makes so many partitions, and for one that replaces them all."""
    output = Output("out", "rows", str(folder / "out"), partitions=("t_day",), clock=Clock("t", "t_day", "day"))
    small = folder / "small.parquet"
    duckdb.execute(f"COPY (SELECT 1 AS id) TO '{small}' (FORMAT parquet)")
    found = {}
    for run_id in ("first", "again"):
        run = RunInfo(run_id, "bench", str(folder / "commits"))
        prepare([output], run)
        staged = []
        for day in range(partitions):
            path = Path(staging_of(output, run)) / f"part-{uuid4().hex}.parquet.inprogress"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(small.read_bytes())
            staged.append(Staged("out", f"t_day={1000 + day}-01-01", str(path), 1, path.stat().st_size))
        begin = time.perf_counter()
        commit(work(run, output, staged))
        found[f"commit_{run_id}_s"] = round(time.perf_counter() - begin, 3)
    return found


@contextmanager
def place(given: str | None) -> Iterator[Path]:
    """The folder given, or one that goes."""
    if given:
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given)
        return
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
        yield Path(folder)


def main() -> None:
    """Makes the lake, asks, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: int(text.replace("_", "")), default=100_000_000)
    parser.add_argument("--days", type=int, default=400)
    parser.add_argument("--folder")
    given = parser.parse_args()
    with place(given.folder) as folder:
        lake = Lake(folder, given.rows, given.days)
        begin = time.perf_counter()
        lake.make()
        print(f"lake of {given.rows:,} rows in {given.days} days made in {time.perf_counter() - begin:.0f} s", flush=True)
        figures = queries(lake) | commits(folder, 1000)
    for name, value in figures.items():
        print(f"{name:37} {value}")
    print(json.dumps({"benchmark": "serving", "rows_asked": given.rows, "days": given.days, **figures}))


if __name__ == "__main__":
    main()
