"""J1 in row-wise Beam Python, as Beam's own examples teach it: one dict per element, Map, ParDo, GroupByKey, CombinePerKey, fileio, counters.

Rows keep their file and run, as ours do; their place in it Beam's reader of text does not tell. The last line says what became of the rows.

python benchmarks/j1/rowwise_beam.py INPUT_DIRECTORY OUTPUT_DIRECTORY
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io import fileio
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions

TYPES = {"view", "click", "cart", "purchase"}
CURRENCIES = {"EUR", "USD", "GBP", "SEK"}
SCHEMA = pa.schema(
    [("event_id", pa.string()), ("event_time", pa.timestamp("us", "UTC")), ("user_id", pa.string()), ("country", pa.string()), ("type", pa.string()),
     ("amount", pa.decimal128(12, 2)), ("currency", pa.string()), ("url", pa.string()), ("quantity", pa.int64()), ("_source", pa.string()),
     ("_run_id", pa.string())]
)  # fmt: skip


def counter(name: str) -> Any:
    """What the last line tells of the rows."""
    return Metrics.counter("j1", name)


class Decode(beam.DoFn):  # type: ignore[misc]
    """One line, with its file, to one dict, or a dead letter with its reasons."""

    def __init__(self) -> None:
        self.read, self.dead = counter("read"), counter("dead")

    def process(self, found: tuple[str, str]) -> Iterator[Any]:
        source, line = found
        self.read.inc()
        try:
            event = json.loads(line, parse_float=Decimal, parse_constant=_refuse, object_pairs_hook=_unique)
            row = {
                "event_id": event["event_id"], "event_time": datetime.fromisoformat(event["event_time"]),
                "user_id": event["user"]["id"], "country": event["user"]["country"], "type": event["type"], "amount": event["amount"],
                "currency": event["currency"], "url": event["url"], "quantity": event["quantity"], "_source": source, "_run_id": "run",
            }  # fmt: skip
        except Exception as error:
            self.dead.inc()
            yield beam.pvalue.TaggedOutput("dead", {"source": source, "raw": line, "reasons": [f"json: {error}"]})
            return
        reasons = list(_failing(row))
        if reasons:
            self.dead.inc()
            yield beam.pvalue.TaggedOutput("dead", {"source": source, "raw": line, "reasons": reasons})
        else:
            yield row


def _failing(row: dict[str, Any]) -> Iterator[str]:
    if not isinstance(row["event_id"], str) or len(row["event_id"]) != 32:
        yield "event_id"
    if not isinstance(row["user_id"], str):
        yield "user_id"
    if not isinstance(row["country"], str):
        yield "country"
    if row["type"] not in TYPES:
        yield "type"
    if not isinstance(row["amount"], Decimal | int) or row["amount"] < 0:
        yield "amount"
    if row["currency"] not in CURRENCIES:
        yield "currency"
    if not isinstance(row["quantity"], int) or isinstance(row["quantity"], bool) or row["quantity"] <= 0:
        yield "quantity"


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({k for k, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


class First(beam.DoFn):  # type: ignore[misc]
    """One row of each id; the others are counted."""

    def __init__(self) -> None:
        self.written, self.duplicates = counter("written"), counter("duplicates")

    def process(self, group: tuple[str, Any]) -> Iterator[dict[str, Any]]:
        rows = iter(group[1])
        yield next(rows)
        self.written.inc()
        self.duplicates.inc(sum(1 for _ in rows))


class ParquetRows(fileio.FileSink):  # type: ignore[misc]
    """Rows of one day to one Parquet file."""

    def open(self, handle: Any) -> None:
        self.rows: list[dict[str, Any]] = []
        self.writer = pq.ParquetWriter(handle, SCHEMA, compression="zstd", compression_level=1)

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) >= 50_000:
            self.write_group()

    def write_group(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, SCHEMA))
            self.rows = []

    def flush(self) -> None:  # Beam calls this once, before it closes the file
        self.write_group()
        self.writer.close()


class Total(beam.CombineFn):  # type: ignore[misc]
    """Count and sum of amounts."""

    def create_accumulator(self) -> tuple[int, Decimal]:
        return 0, Decimal(0)

    def add_input(self, total: tuple[int, Decimal], amount: Decimal) -> tuple[int, Decimal]:
        return total[0] + 1, total[1] + amount

    def merge_accumulators(self, totals: Any) -> tuple[int, Decimal]:
        counts, sums = zip(*totals, strict=True)
        return sum(counts), sum(sums, Decimal(0))

    def extract_output(self, total: tuple[int, Decimal]) -> tuple[int, Decimal]:
        return total


def hour(time: datetime) -> str:
    """The start of the hour, as text: keys need a deterministic coder."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:00:00Z")


def run(source: Path, out: Path) -> None:
    """Reads `source/*.jsonl`, writes rows by day, dead letters and the hourly aggregate to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([])) as p:
        lines = p | beam.io.ReadFromTextWithFilename(f"{source}/*.jsonl", validate=False)
        decoded = lines | beam.ParDo(Decode()).with_outputs("dead", main="good")
        unique = decoded.good | beam.Map(lambda r: (r["event_id"], r)) | beam.GroupByKey() | beam.ParDo(First())
        unique | fileio.WriteToFiles(
            path=str(out / "rows"), destination=lambda r: r["event_time"].date().isoformat(), sink=lambda _: ParquetRows(),
            file_naming=fileio.destination_prefix_naming(".parquet"),
        )  # fmt: skip
        totals = (
            unique
            | "Keyed" >> beam.Map(lambda r: ((hour(r["event_time"]), r["country"], r["type"]), r["amount"]))
            | beam.CombinePerKey(Total())
        )
        totals | "Lines" >> beam.Map(lambda kv: f"{kv[0]},{kv[1]}") | "WriteTotals" >> beam.io.WriteToText(str(out / "hourly"))
        decoded.dead | "Text" >> beam.Map(json.dumps) | "WriteDead" >> beam.io.WriteToText(str(out / "dead"))
    counted = p.result.metrics().query()["counters"]
    print(json.dumps({found.key.metric.name: found.committed for found in counted if found.key.metric.namespace == "j1"}))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
