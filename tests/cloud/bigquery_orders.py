"""Orders in BigQuery and specs over them, for the tests of the source: the same rows as a pyarrow.Table and as a table of the local server."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.formats.reader import Broken
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.sources.bigquery import Opened, open_source, pieces
from beam_pipelines.sources.bigquery_session import reader
from beam_pipelines.spec.load import LoadedSpec, load_spec
from beam_pipelines.spec.sources import BigQuerySource
from tests.cloud.bigquery_server import BigQueryServer

ROWS = 250_000  # three streams: the local server makes one for each 100,000 rows
SPEC = """
spec: 1
pipeline: orders
contract:
  key: [id]
  event_time: at
  unknown_columns: {unknown}
  columns:
    id:     {{type: int64, required: true}}
    at:     {{type: timestamp, required: true}}
    amount: {{type: "decimal(12,2)", min: 0}}
    place:  {{type: string}}
    zip:    {{type: string, path: address.zip}}
    tags:   {{type: list<string>}}
{lookups}
sources: {{batch: [{source}]}}
{more}
sinks:
  - {{from: rows, parquet: {{path: lake/rows, partition_by: [day(at)]}}}}
  - {{from: dead_letters, parquet: {{path: lake/dead_letters}}}}
"""
TYPES = pa.schema(
    [
        ("id", pa.int64()), ("at", pa.timestamp("us", "UTC")), ("amount", pa.decimal128(12, 2)), ("place", pa.string()),
        ("address", pa.struct([("zip", pa.string()), ("floor", pa.int64())])), ("tags", pa.list_(pa.string())), ("extra", pa.float64()),
    ]
)  # fmt: skip
NAMES = 'id, "at", amount, place, zip, tags'


@pytest.fixture
def google_here(bigquery: BigQueryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product finds the local server where Google's clients look for one."""
    for name, value in bigquery.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def orders_table(bigquery: BigQueryServer) -> str:
    """A table of 250,000 orders, of which 10 are bad."""
    name = f"{bigquery.dataset()}.orders"
    bigquery.load(name, orders(ROWS, bad=10))
    return name


@pytest.fixture(scope="session")
def wide_table(bigquery: BigQueryServer) -> str:
    """A table of one stream of nine messages, 36 MB."""
    name = f"{bigquery.dataset()}.wide"
    bigquery.load(name, pa.table({"id": range(90_000), "text": [f"{i:0400d}" for i in range(90_000)]}))
    return name


def orders(count: int, *, bad: int = 0) -> pa.Table:
    """Rows of two days; the first `bad` of them have a negative amount, which the contract refuses."""
    numbers = range(count)
    first = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)
    columns = {
        "id": list(numbers),
        "at": [first + dt.timedelta(hours=12 * (i % 2), microseconds=i) for i in numbers],
        "amount": [Decimal(-1 if i < bad else i % 1000) + Decimal("0.25") for i in numbers],
        "place": [None if i % 7 == 0 else f"place {i % 11}" for i in numbers],
        "address": [{"zip": f"{i % 100:05d}", "floor": i % 9} for i in numbers],
        "tags": [[] if i % 3 == 0 else ["a", f"{i % 5}"] for i in numbers],
        "extra": [i / 8 for i in numbers],
    }
    return pa.table(columns, TYPES)


def spec(folder: Path, source: str, *, lookups: str = "", more: str = "", unknown: str = "keep") -> LoadedSpec:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "p.yaml"
    path.write_text(SPEC.format(source=source, lookups=lookups, more=more, unknown=unknown))
    return load_spec(path)


def rows(loaded: LoadedSpec, select: str = NAMES) -> list[tuple[Any, ...]]:
    found = ask(open_tables(loaded.state), f"SELECT {select} FROM rows ORDER BY id")
    return [tuple(row.values()) for row in found.to_pylist()]


def read_by_source(record: RunResults) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in record.ledger:
        counts[line.source] = counts.get(line.source, 0) + line.read
    return counts


def rows_of(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    for row in table.to_pylist():
        yield row["id"], row["at"], row["amount"], row["place"], row["address"]["zip"], row["tags"]


def narrow(table: str, **more: Any) -> Opened:
    return open_source(BigQuerySource(bigquery=table, **more), Contract(columns={"id": Column(type="int64")}), number=0, run_id="r")


def ids_by_position(part: Opened, ordinal: int, *, patience_s: float = 60.0) -> dict[int, int]:
    read = reader(part.session, patience_s=patience_s)
    found: dict[int, int] = {}
    try:
        for piece in pieces(read, part, ordinal):
            assert not isinstance(piece, Broken)
            found |= dict(zip(piece.column("_position").to_pylist(), piece.column("id").to_pylist(), strict=True))
    finally:
        read.connection.close()
    return found
