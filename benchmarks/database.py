"""The database benchmark: CPU seconds of the client per million rows of a PostgreSQL table, by our source and row by row.

    make bench-database                     a million rows, three runs each
    python benchmarks/database.py --quick   a tenth of it, to see that everything runs

    ours    ReadDatabase: Arrow by ADBC, one snapshot, ranges of pages
    rows    psycopg's server-side cursor in a DoFn, a dict a row as an element, FromRows (batches again): what one writes without a source

Both on Beam's FnApiRunner with the same contract, up to conformed batches of 10 columns, over the same local server, whose own CPU does not count. CPU seconds (user +
system) without imports; medians of interleaved runs. Rows, the sum of ids and the sum of amounts must be equal before a figure counts. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WAYS = ("ours", "rows")
RANGES = 8
TYPES = {
    "id": "int64", "small": "int16", "amount": "decimal(12,2)", "at": "timestamp", "civil": "datetime", "day": "date", "f": "float64", "yes": "boolean",
    "name": "string", "place": "string",
}  # fmt: skip
TABLE = """CREATE TABLE orders AS SELECT i::int8 AS id, (i % 30000)::int2 AS small, (i / 100.0)::numeric(12, 2) AS amount,
  timestamptz '2026-11-01' + i * interval '1 second' AS at, timestamp '2026-11-01' + i * interval '1 minute' AS civil, date '2000-01-01' + (i % 9000)::int AS day,
  i / 7.0::float8 AS f, i % 2 = 0 AS yes, 'order ' || i AS name, (ARRAY['Köln', 'Paris', 'Oslo'])[i % 3 + 1] AS place FROM generate_series(1, {rows}) AS i"""


def contract() -> Any:
    from beam_pipelines.arrow.contract import Column, Contract

    return Contract(columns={name: Column(type=kind) for name, kind in TYPES.items()})


def ours(pipeline: Any, url: str, rows: int) -> Any:
    """Decoded batches by our source."""
    from beam_pipelines.sources.database import ReadDatabase
    from beam_pipelines.spec.sources import DatabaseSource
    from beam_pipelines.transforms.decode import Decode

    read = pipeline | ReadDatabase([DatabaseSource(database=url, table="orders", max_splits=RANGES)], contract())
    return (read.rows | Decode(contract(), "parquet")).rows


def row_by_row(pipeline: Any, url: str, rows: int) -> Any:
    """Decoded batches by a DoFn over a driver's rows."""
    import apache_beam as beam

    from beam_pipelines.transforms.rows import FromRows

    def read(part: tuple[int, int]) -> Iterator[dict[str, Any]]:
        import psycopg
        from psycopg.rows import dict_row

        with psycopg.connect(url, row_factory=dict_row) as connection, connection.cursor("orders", binary=True) as cursor:
            cursor.itersize = 10_000
            cursor.execute("SELECT * FROM orders WHERE id > %s AND id <= %s", part)
            yield from cursor

    size = -(-rows // RANGES)
    parts = [(first, first + size) for first in range(0, rows, size)]
    return (pipeline | beam.Create(parts, reshuffle=False) | beam.FlatMap(read) | FromRows(contract())).rows


def measured(way: str, url: str, rows: int) -> dict[str, float]:
    """CPU seconds of one job, and what it read."""
    import apache_beam as beam
    import pyarrow.compute as pc

    from beam_pipelines.sources.database_connection import snapshots_held
    from beam_pipelines.transforms.conform import Conform

    kept = Path(tempfile.mkdtemp()) / "sums"

    def keep(batch: Any) -> None:
        with kept.open("a") as file:
            file.write(json.dumps([batch.num_rows, pc.sum(batch["id"]).as_py(), float(pc.sum(batch["amount"]).as_py())]) + "\n")

    with beam.Pipeline("FnApiRunner") as warm:  # what is imported on first use does not count
        _ = warm | beam.Create([1]) | beam.Map(str)
    used = resource.getrusage(resource.RUSAGE_SELF)
    begun = used.ru_utime + used.ru_stime
    with snapshots_held():
        pipeline = beam.Pipeline("FnApiRunner")
        decoded = (ours if way == "ours" else row_by_row)(pipeline, url, rows)
        _ = (decoded | Conform(contract())).rows | beam.Map(keep)
        pipeline.run().wait_until_finish()
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = [json.loads(line) for line in kept.read_text().splitlines()]
    return {
        "cpu_s": used.ru_utime + used.ru_stime - begun, "peak_mib": used.ru_maxrss / 1024,
        "rows": sum(n for n, _, _ in found), "ids": sum(i for _, i, _ in found), "amounts": round(sum(a for _, _, a in found), 2),
    }  # fmt: skip


def in_process(way: str, url: str, rows: int) -> dict[str, float]:
    """`measured` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", way, "--url", url, "--rows", str(rows)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{way} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def compared(url: str, rows: int, runs: int) -> dict[str, Any]:
    """Medians of both ways, whose answers must be equal."""
    figures: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(runs):
        for way in WAYS:
            figures[way].append(in_process(way, url, rows))
            print(f"run {number + 1}, {way}: {figures[way][-1]}", flush=True)
    answers = {tuple(one[key] for key in ("rows", "ids", "amounts")) for ones in figures.values() for one in ones}
    if len(answers) != 1 or next(iter(answers))[:2] != (rows, rows * (rows + 1) // 2):
        raise SystemExit(f"the answers differ: {answers}")
    cpu = {way: statistics.median(one["cpu_s"] for one in ones) for way, ones in figures.items()}
    return {
        "rows": rows, "runs": runs, "cpu_s_per_million_rows": {way: round(s * 1e6 / rows, 2) for way, s in cpu.items()},
        "peak_mib": {way: round(statistics.median(one["peak_mib"] for one in ones)) for way, ones in figures.items()}, "times": round(cpu["rows"] / cpu["ours"], 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=1_000_000)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measured(asked.one, asked.url, asked.rows)))
        return
    from tests.postgres_server import running_postgres

    rows, runs = (asked.rows // 10, 1) if asked.quick else (asked.rows, 3)
    with tempfile.TemporaryDirectory(prefix="bench-database-") as folder, running_postgres(Path(folder)) as server:
        database = server.database()
        database.run(TABLE.format(rows=rows), "ANALYZE orders", "CREATE INDEX ON orders(id)")
        print(json.dumps(compared(database.url, rows, runs)))


if __name__ == "__main__":
    main()
