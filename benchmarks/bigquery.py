"""The BigQuery benchmark: rows per CPU second from RecordBatch to the requests of the Storage Write API, and into a server that speaks as BigQuery does.

    make bench-bigquery                     a million rows encoded, 40,000 appended, 200,000 loaded, three runs each
    python benchmarks/bigquery.py --quick   a tenth of it, to see that everything runs

    encode     our DoFn up to the serialized request, no network: Arrow, and protobuf with one message a row (as upserts need it)
    append     whole Beam jobs on the same runner and the same local server: ours, and Beam's WriteToBigQuery with STREAMING_INSERTS
    load       the same by way of files in a local Cloud Storage and load jobs: ours into Parquet and committed, and Beam's with FILE_LOADS (JSON)

CPU seconds (user + system) of the client alone, without imports; medians of interleaved runs. Beam's path begins with the same RecordBatches: `dicts` says how much of it
is making dicts of them. The rows of both are counted in the server before a figure counts. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
BATCH = 20_000
WAYS = ("arrow", "protobuf", "ours", "beam", "ours-load", "beam-load")
SCHEMA = (
    "id:INTEGER,carrier:STRING,flight:INTEGER,origin:STRING,dest:STRING,tailnum:STRING,dep_delay:INTEGER,distance:FLOAT,price:NUMERIC,"
    "scheduled:TIMESTAMP,day:DATE,cancelled:BOOLEAN"
)


def batches(rows: int) -> Iterator[Any]:
    """Flights: 12 columns, about 110 bytes a row in JSON; with provenance, as a stream's rows have it."""
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng(7)
    texts = {"carrier": ["UA", "AA", "DL", "B6", "EV"], "origin": ["EWR", "JFK", "LGA"], "dest": ["BOS", "ORD", "ATL", "LAX", "MCO", "SFO"]}
    for first in range(0, rows, BATCH):
        n = min(BATCH, rows - first)
        ids = np.arange(first, first + n)
        moments = pa.array(1_767_225_600_000_000 + ids * 1_000_000).cast(pa.timestamp("us", "UTC"))
        chosen = {name: pa.array(np.array(values)[random.integers(0, len(values), n)]) for name, values in texts.items()}
        numbers = random.integers(0, 100_000, n)
        yield pa.RecordBatch.from_pydict(
            {
                "id": pa.array(ids), "carrier": chosen["carrier"], "flight": pa.array(numbers % 9_000, pa.int32()), "origin": chosen["origin"],
                "dest": chosen["dest"], "tailnum": pa.array([f"N{k:05d}" for k in numbers]), "dep_delay": pa.array(numbers % 500 - 60, pa.int16()),
                "distance": pa.array(numbers / 7), "price": pa.array([Decimal(int(k)).scaleb(-2) for k in numbers], pa.decimal128(12, 2)),
                "scheduled": moments, "day": moments.cast(pa.date32()), "cancelled": pa.array(numbers % 50 == 0),
                "_source": pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), ["projects/p/subscriptions/s"]),
                "_position": pa.array(ids), "_arrival_time": moments,
            }
        )  # fmt: skip


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def encoded(rows: int, mode: str) -> dict[str, float]:
    """CPU seconds of our DoFn with a service that takes everything and does nothing."""
    import apache_beam as beam

    from beam_pipelines.bigquery_service import storage_types
    from beam_pipelines.sinks import bigquery_append
    from beam_pipelines.sinks.bigquery_append import AppendToBigQuery
    from beam_pipelines.sinks.bigquery_calls import Answer
    from beam_pipelines.sinks.bigquery_tables import TableState
    from beam_pipelines.sinks.run import RunInfo
    from beam_pipelines.spec.sinks import BigQuerySink

    class Connection:
        sent = 0

        def send(self, request: bytes) -> None:
            Connection.sent += len(request)

        def receive(self) -> Answer:
            return Answer()

    class Writing:
        default, endpoint, types = "s", "", storage_types("benchmark")
        request = types.AppendRowsRequest.pb()

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def open(self, _: str) -> Connection:
            return Connection()

    bigquery_append.Writing = Writing  # type: ignore[assignment,misc]
    bigquery_append.client = lambda *_, **__: io.BytesIO()  # whoever asks closes it
    bigquery_append.ensure_table = lambda _, __, fields, **___: TableState(tuple(fields))
    sink = BigQuerySink(table="bench-project.d.t", mode=mode)
    transform = AppendToBigQuery(sink, label="rows", run=RunInfo("run-1", "bench", "/nowhere", contract="c"), key=("id",))
    fn = bigquery_append._Append(transform.settings)
    made = list(batches(rows))
    fn.setup()
    begun = cpu_s()
    for batch in made:
        fn.start_bundle()
        fn.process(batch, timestamp=beam.utils.timestamp.Timestamp(0))
        assert len(list(fn.finish_bundle())) == 2  # the batch is taken, the bundle stored
    return {"cpu_s": cpu_s() - begun, "bytes": float(Connection.sent)}


def Loaded(table: str, bucket: str, rows: int) -> Any:  # noqa: N802  (a transform)
    """What a batch run does behind its last stage: Parquet files, and a commit that loads them."""
    import apache_beam as beam

    from beam_pipelines.sinks.commit import Commit
    from beam_pipelines.sinks.loads import Table
    from beam_pipelines.sinks.parquet import WriteParquet
    from beam_pipelines.sinks.run import RunInfo
    from beam_pipelines.spec.sinks import ParquetSink

    run = RunInfo("run-1", "bench", f"gs://{bucket}/{table}/state", contract="c")
    write = WriteParquet(ParquetSink(path=f"gs://{bucket}/{table}/rows"), label="rows", run=run, table=Table(table))

    def expand(found: Any) -> Any:
        written = found | "Stage" >> write
        read = found.pipeline | "Counted" >> beam.Create([("all", "projects/p/subscriptions/s", "read", "", rows)])
        return (written.files, written.counts, read) | Commit(run, [write.output])

    return beam.ptransform_fn(expand)()


def with_content_ids() -> None:
    """Google's client sends the parts of a batch request without Content-ID, which the service takes and the local server drops."""
    from google.cloud.storage import batch

    class WithId(batch.MIMEApplicationHTTP):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            if "Content-ID" not in self:
                self["Content-ID"] = f"<{id(self)}>"

    batch.MIMEApplicationHTTP = WithId


def appended(rows: int, way: str, table: str, bucket: str) -> dict[str, float]:
    """CPU seconds of a whole Beam job, from RecordBatches to rows in the local server."""
    import apache_beam as beam
    import google.auth
    import pyarrow as pa
    from apache_beam.io.gcp.internal.clients.bigquery import BigqueryV2
    from apache_beam.options.pipeline_options import PipelineOptions
    from google.auth.credentials import AnonymousCredentials

    from beam_pipelines.sinks.bigquery_append import AppendToBigQuery
    from beam_pipelines.sinks.run import RunInfo
    from beam_pipelines.spec.sinks import BigQuerySink

    project, dataset, name = table.split(".")
    google.auth.default = lambda *_, **__: (AnonymousCredentials(), project)
    BigqueryV2.BASE_URL = f"{os.environ['BIGQUERY_EMULATOR_HOST']}/bigquery/v2/"
    made = list(batches(rows))
    file = tempfile.NamedTemporaryFile(suffix=".arrow")  # noqa: SIM115  (until the process ends)
    with pa.ipc.new_file(file.name, made[0].schema) as writer:
        for batch in made:
            writer.write_batch(batch)
    write: Any
    if way == "ours":
        sink = BigQuerySink(table=table, mode="at_least_once")
        write = AppendToBigQuery(sink, label="rows", run=RunInfo("run-1", "bench", "/nowhere", contract="c"), key=("id",))
    elif way == "ours-load":
        write = Loaded(table, bucket, rows)
    elif way == "beam":
        write = beam.io.WriteToBigQuery(f"{project}:{dataset}.{name}", schema=SCHEMA, method="STREAMING_INSERTS")
    else:
        with_content_ids()
        write = beam.io.WriteToBigQuery(
            f"{project}:{dataset}.{name}", schema=SCHEMA, method="FILE_LOADS", custom_gcs_temp_location=f"gs://{bucket}/beam"
        )
    begun = cpu_s()
    with beam.Pipeline("FnApiRunner", options=PipelineOptions(["--runner=FnApiRunner", f"--project={project}"])) as pipeline:
        found = (
            pipeline | beam.Create([file.name], reshuffle=False) | "Read" >> beam.FlatMap(read)
        )  # Create would compress the rows into the graph
        if way.startswith("beam"):
            found = found | "Dicts" >> beam.FlatMap(dicts)
        found | "Write" >> write
    used = cpu_s() - begun
    begun = cpu_s()
    for batch in made:
        dicts(batch)
    return {"cpu_s": used, "dicts_cpu_s": cpu_s() - begun}


def read(path: str) -> Iterator[Any]:
    import pyarrow as pa

    with pa.ipc.open_file(path) as file:
        yield from (file.get_batch(number) for number in range(file.num_record_batches))


def dicts(batch: Any) -> list[dict[str, Any]]:
    """What a row-wise job has: the user's columns."""
    found: list[dict[str, Any]] = batch.select([n for n in batch.schema.names if not n.startswith("_")]).to_pylist()
    return found


def child(way: str, rows: int, *arguments: str, environment: dict[str, str] | None = None) -> dict[str, float]:
    command = [sys.executable, __file__, "--way", way, "--rows", str(rows), *arguments]
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    found["rows_per_cpu_s"] = rows / found["cpu_s"]
    print(f"  {way:9s} {rows:9,d} rows {found['cpu_s']:7.2f} CPU s {found['rows_per_cpu_s']:11,.0f} rows per CPU s", flush=True)
    return found


def into_server(rows: int, runs: int, ours: str, beams: str, *, ending: str = "") -> dict[str, list[dict[str, float]]]:
    """Both jobs in turn, each into a table of its own, counted."""
    from tests.cloud.bigquery_server import running_bigquery
    from tests.cloud.gcs_server import running_gcs

    found: dict[str, list[dict[str, float]]] = {"ours": [], "beam": []}
    with (
        tempfile.TemporaryDirectory() as work,
        running_gcs(Path(work) / "gcs") as storage,
        running_bigquery(Path(work) / "bigquery", storage=storage.url) as server,
    ):
        dataset, bucket = server.dataset(), storage.bucket()
        for number in range(runs):
            for of, way, speed in (("ours", ours, ending), ("beam", beams, "")):
                table = f"{dataset}.{of}{number}"
                environment = {**server.environment, **storage.environment}
                found[of].append(child(way, rows, "--table", table, "--bucket", bucket, environment=environment))
                [row] = server.rows(f"SELECT count(*) AS n, count(DISTINCT id) AS ids FROM `{table}{speed}`")
                if (row["n"], row["ids"]) != (rows, rows):
                    raise SystemExit(f"{way}: {row} of {rows} rows arrived")
    return found


def median(runs: list[dict[str, float]], name: str = "rows_per_cpu_s") -> float:
    return statistics.median(run[name] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--table", default="")
    parser.add_argument("--bucket", default="")
    chosen = parser.parse_args()
    if chosen.way:
        ways: dict[str, Callable[[], dict[str, float]]] = {
            "arrow": lambda: encoded(chosen.rows, "at_least_once"),
            "protobuf": lambda: encoded(chosen.rows, "upsert"),
        }
        print(json.dumps(ways.get(chosen.way, lambda: appended(chosen.rows, chosen.way, chosen.table, chosen.bucket))()))
        return
    part, runs = (10 if chosen.quick else 1), (1 if chosen.quick else chosen.runs)
    print("encode: RecordBatch to serialized AppendRowsRequest", flush=True)
    encodes: dict[str, list[dict[str, float]]] = {"arrow": [], "protobuf": []}
    for _ in range(runs):
        encodes["arrow"].append(child("arrow", 1_000_000 // part))
        encodes["protobuf"].append(child("protobuf", 200_000 // part))
    print("append: a whole Beam job into a local BigQuery server", flush=True)
    appends = into_server(40_000 // part, runs, "ours", "beam", ending="_speed")
    print("load: the same by files in Cloud Storage and load jobs", flush=True)
    loads = into_server(200_000 // part, runs, "ours-load", "beam-load")
    arrow, protobuf = median(encodes["arrow"]), median(encodes["protobuf"])
    ours, beams = median(appends["ours"]), median(appends["beam"])
    share = statistics.median(run["dicts_cpu_s"] / run["cpu_s"] for run in appends["beam"])
    figures = {
        "encode_arrow_rows_per_cpu_s": round(arrow), "encode_protobuf_rows_per_cpu_s": round(protobuf), "ratio_protobuf": round(arrow / protobuf, 1),
        "append_rows_per_cpu_s": round(ours), "beam_streaming_inserts_rows_per_cpu_s": round(beams), "ratio_beam": round(ours / beams, 1),
        "beam_dicts_share": round(share, 2), "goal_ratio_beam": 10, "load_rows_per_cpu_s": round(median(loads["ours"])),
        "beam_file_loads_rows_per_cpu_s": round(median(loads["beam"])), "ratio_file_loads": round(median(loads["ours"]) / median(loads["beam"]), 1),
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
