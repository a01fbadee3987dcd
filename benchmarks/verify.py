"""`verify` of many rows: seconds, CPU and peak memory where both layers are equal, and where a thousand rows differ.

    python benchmarks/verify.py                           10 million rows in 10 days, at most 1 GB held by DuckDB
    python benchmarks/verify.py --rows 1000000 --days 1

Rows of 10 columns, about 100 bytes. The speed layer has 1 % of its rows twice (bundles that were repeated) and 3 % more that `doors` says are duplicates. Of
the thousand, 400 have another value by hand, 300 are dead letters of the stream, 300 were told duplicates. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import duckdb
from batch import measure

from beam_pipelines.arrow.engine import literal
from beam_pipelines.formats.named_files import new_name
from beam_pipelines.sinks.epochs import doors_folder
from beam_pipelines.sinks.manifest import CommitEntry, Committed, LiveFile, Snapshot, decide, mark_done
from beam_pipelines.sinks.outputs import SpeedOutput, StreamOutputs, write_columns, write_outputs
from beam_pipelines.sinks.results import RunResults, metadata
from beam_pipelines.sinks.run import Clock, RunInfo, utc_now
from beam_pipelines.spec.load import LoadedSpec, load_spec

DAY = 86_400_000_000
START = 19_000 * DAY
CAUSES = {"dead letter": 300, "duplicate": 300, "unexplained": 400}
DIFFERENT = sum(CAUSES.values())
SOURCE = "projects/p/subscriptions/s"
SPEC = """
spec: 1
pipeline: bench
contract:
  key: [id]
  event_time: t
  columns:
    id: {type: int64}
    t: {type: timestamp}
    origin: {type: string}
    carrier: {type: string}
    tail: {type: string}
    note: {type: string}
    delay: {type: int32}
    distance: {type: int32}
    speed: {type: float64}
    price: {type: "decimal(12,2)"}
sources: {stream: [{pubsub: projects/p/subscriptions/s, format: json}]}
deduplicate: {within: 1h}
sinks:
  - {from: rows, parquet: {path: lake/rows, partition_by: [day(t)]}}
  - {from: dead_letters, parquet: {path: lake/dead_letters}}
"""


def main() -> None:
    """Makes the layers, then verifies them in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--memory", default="1GB")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "beam-pipelines-bench-verify")
    options = parser.parse_args()
    figures: dict[str, object] = {"rows": options.rows, "days": options.days, "memory": options.memory}
    for different in (0, DIFFERENT):
        shutil.rmtree(options.work, ignore_errors=True)
        loaded = make(options.work, options.rows, options.days, different)
        figures["equal" if not different else f"{different}_differ"] = measured(loaded, options.memory, different)
    shutil.rmtree(options.work, ignore_errors=True)
    print(json.dumps(figures))


def make(folder: Path, rows: int, days: int, different: int) -> LoadedSpec:
    """Both layers of a spec in `folder`."""
    folder.mkdir(parents=True)
    (folder / "pipeline.yaml").write_text(SPEC)
    loaded = load_spec(folder / "pipeline.yaml")
    connection = duckdb.connect(config={"memory_limit": "4GB", "temp_directory": str(folder)})
    connection.execute("SET TimeZone = 'UTC'")
    contract, step = loaded.spec.contract.fingerprint, max(1, rows // max(different, 1))
    connection.execute(
        f"CREATE VIEW made AS SELECT i AS id, make_timestamptz({START} + i * ({days * DAY} // {rows})) AS t, chr(65 + (i % 26)::INTEGER) || 'XX' AS origin, "
        "chr(65 + (i % 7)::INTEGER) AS carrier, 'N' || (hash(i) % 5000) AS tail, md5(i::VARCHAR)[:12] AS note, (hash(i, 1) % 300)::INTEGER AS delay, "
        f"(hash(i, 2) % 4000)::INTEGER AS distance, (hash(i, 3) % 1000000) / 7 AS speed, ((hash(i, 4) % 100000) / 100)::DECIMAL(12,2) AS price, "
        f"{literal(SOURCE)} AS _source, i AS _position, make_timestamptz({START}) AS _arrival_time, 'b1' AS _run_id, {literal(contract)} AS _contract "
        f"FROM range({rows}) AS numbers(i)"
    )
    outputs = StreamOutputs((
        SpeedOutput("rows", "rows", str(folder / "lake/rows.speed"), (), True, 0, 0, ("t", "t_day"), ("one",)),
        SpeedOutput("dead_letters", "dead_letters", str(folder / "lake/dead_letters.speed")),
    ))  # fmt: skip
    write_outputs(loaded.state, outputs)
    write_columns(outputs.outputs[0].folder, {"t_day": "DATE"})
    wrong = f"id % {step} = 0 AND id // {step} < {different}" if different else "FALSE"
    turn = f"(id // {step} % 10)"
    stream = f"SELECT * REPLACE ('s1' AS _run_id, delay + ({wrong} AND {turn} < 4)::INTEGER AS delay), make_timestamptz({START}) AS _stored_at FROM made"
    live = []
    for day in range(days):
        name = str(duckdb.sql(f"SELECT strftime(make_timestamp({START + day * DAY}), '%Y-%m-%d')").fetchall()[0][0])
        inside = f"t >= make_timestamptz({START + day * DAY}) AND t < make_timestamptz({START + (day + 1) * DAY})"
        batch = write(connection, f"SELECT * FROM made WHERE {inside}", folder / f"lake/rows/t_day={name}")
        live.append(LiveFile(f"t_day={name}/{batch.name}", f"t_day={name}", rows // days, batch.stat().st_size, "b1"))
        dead = f"({wrong} AND {turn} BETWEEN 4 AND 6)"
        for part in (f"NOT {dead}", "id % 100 = 7"):
            write(connection, f"SELECT * FROM ({stream}) WHERE {inside} AND ({part})", folder / f"lake/rows.speed/t_day={name}")
        told = f"SELECT * REPLACE (_position + {rows} AS _position, 'old' AS note) FROM ({stream}) WHERE {inside} AND id % 33 = 1"
        write(connection, told, folder / f"lake/rows.speed/t_day={name}")
    stored = f"make_timestamptz({START}) AS _stored_at"
    gone = f"SELECT _position + {rows} AS position FROM made WHERE id % 33 = 1 UNION ALL SELECT _position FROM made WHERE {wrong} AND {turn} > 6"
    write(
        connection,
        f"SELECT {literal(SOURCE)} AS source, position, 'duplicate' AS door, {stored} FROM ({gone})",
        Path(doors_folder(loaded.state)),
    )
    letter = (
        "'validate' AS stage, 'CHECK' AS reason, 'no' AS message, [{name: 'n', 'column': '', message: 'no'}] AS failures, NULL::BLOB AS raw"
    )
    letter += f", 'json' AS raw_format, t AS event_time, t AS arrival_time, 's1' AS run_id, {stored}"
    write(
        connection,
        f"SELECT _source AS source, _position AS position, {letter} FROM made WHERE {wrong} AND {turn} BETWEEN 4 AND 6",
        folder / "lake/dead_letters.speed",
    )
    described = connection.execute("DESCRIBE made").fetchall()
    schema = (*((str(n), str(k)) for n, k, *_ in described), ("t_day", "DATE"))
    committed = Committed(START, START + days * DAY, "b1", START + 2 * days * DAY, "archive")
    snapshot = Snapshot(
        "rows", "rows", str(folder / "lake/rows"), str(folder / "lake/rows"), "parquet", 1, ("t_day",), tuple(live), schema,
        clock=Clock("t", "t_day", "day"), ranges=(committed,),
    )  # fmt: skip
    run = RunInfo("b1", "bench", loaded.state, contract=contract)
    decide(loaded.state, CommitEntry(1, "b1", {"rows": snapshot}, {}, RunResults(metadata(run, finished_at=utc_now()), "success")))
    mark_done(loaded.state, 1)
    return loaded


def write(connection: duckdb.DuckDBPyConnection, sql: str, folder: Path) -> Path:
    """A file of the answer."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / new_name(1)
    connection.execute(f"COPY ({sql}) TO {literal(str(path))} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 131072)")
    return path


def measured(loaded: LoadedSpec, memory: str, different: int) -> dict[str, float]:
    """What `beam-pipelines verify` took. Fails where it does not find what was made."""
    code = (
        "import json, sys; from beam_pipelines.serving.verify import verify; from beam_pipelines.spec.load import load_spec; "
        "found = load_spec(sys.argv[1]); done = verify(found.spec, found.state, memory=sys.argv[2]); print(json.dumps(done.causes), file=sys.stderr); "
        f"sys.exit(done.causes != {CAUSES if different else {}})"
    )
    run = measure([sys.executable, "-c", code, loaded.path, memory])
    print(f"  {different:>5} differ: {run.wall_s:6.1f} s {run.cpu_s:6.1f} CPU s {run.peak_mib:6.0f} MiB", flush=True)
    return {"s": round(run.wall_s, 1), "cpu_s": round(run.cpu_s, 1), "peak_mib": round(run.peak_mib)}


if __name__ == "__main__":
    main()
