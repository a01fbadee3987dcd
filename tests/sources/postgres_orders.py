"""Rows of ten types in PostgreSQL and as Python values, and what the source makes of a table, for the tests of the source."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.formats.reader import Broken
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.sources.database import open_database, pieces
from beam_pipelines.sources.database_opened import Opened
from beam_pipelines.spec.load import LoadedSpec, load_spec
from beam_pipelines.spec.sources import DatabaseSource
from tests.postgres_server import Database

COLUMNS = "id int8, small int2, amount numeric(12,2), at timestamptz, civil timestamp, day date, f float8, yes boolean, name text, raw bytea, tags text[], doc jsonb"
TYPES = {
    "id": "int64", "small": "int16", "amount": "decimal(12,2)", "at": "timestamp", "civil": "datetime", "day": "date", "f": "float64", "yes": "boolean",
    "name": "string", "raw": "binary", "tags": "list<string>", "doc": "json",
}  # fmt: skip
START = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
Row = tuple[Any, ...]


def order(i: int) -> Row:
    """Row `i`: every seventh value is NULL somewhere, texts hold what CSV and SQL must escape."""
    row: list[Any] = [
        i, i % 30_000 - 15_000, Decimal(i) / 100, START + dt.timedelta(seconds=i, microseconds=i % 1000), dt.datetime(2026, 1, 1) + dt.timedelta(minutes=i),
        dt.date(1900, 1, 1) + dt.timedelta(days=i % 90_000), i / 7, i % 2 == 0, f'ü "{i}", \\n\n\'', i.to_bytes(4, "big"), ["a", None, f"b{i},"], {"n": i, "s": "ß"},
    ]  # fmt: skip
    if i % 7 == 0:
        row[1 + i // 7 % 11] = None
    return tuple(row)


def orders(count: int, first: int = 0) -> list[Row]:
    return [order(i) for i in range(first, first + count)]


def fill(database: Database, table: str, rows: Iterable[Row]) -> None:
    """Copies the rows into the table by the server's own reader of CSV."""
    path = database.server.folder / "data" / f"{database.name}.csv"
    written = io.StringIO()
    csv.writer(written, quoting=csv.QUOTE_MINIMAL).writerows([_text(value) for value in row] for row in rows)
    path.write_text(written.getvalue(), "utf-8")
    database.run(f"COPY {table} FROM '{path}' (FORMAT csv, NULL '~')")
    path.unlink()


def _text(value: Any) -> str:
    if value is None:
        return "~"
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list):
        return "{" + ",".join("NULL" if item is None else f'"{item}"' for item in value) + "}"
    return repr(value) if isinstance(value, float) else str(value)


def passworded(database: Database, table: str, secret: str) -> str:
    """A URL of a user who may read the table, and needs the password."""
    user = f"careful_{database.name}"
    database.run(
        "DO $$ BEGIN CREATE ROLE with_password; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        f"CREATE ROLE {user} LOGIN PASSWORD '{secret}' IN ROLE with_password", f"GRANT SELECT ON {table} TO {user}",
    )  # fmt: skip
    return database.server.url(database.name, user)


def contract(**columns: str) -> Contract:
    return Contract(columns={name: Column(type=kind) for name, kind in (columns or TYPES).items()})


def source(database: Database, table: str | None = "orders", **more: Any) -> DatabaseSource:
    return DatabaseSource(database=database.url, table=table, **more)


def opened(given: DatabaseSource, **columns: str) -> Opened:
    return open_database(given, contract(**columns), number=0)


def read(part: Opened, splits: Sequence[int] | None = None) -> tuple[pa.Table, list[Broken]]:
    """The raw rows of the splits, and what cannot be read."""
    found = [piece for split in (range(len(part.splits)) if splits is None else splits) for piece in pieces(part, split)]
    batches = [piece for piece in found if isinstance(piece, pa.RecordBatch)]
    nothing = pa.table({"_source": [], "_position": [], "id": []})
    return pa.Table.from_batches(batches) if batches else nothing, [piece for piece in found if isinstance(piece, Broken)]


def names_of(table: pa.Table) -> list[tuple[str, int]]:
    return list(zip(table["_source"].to_pylist(), table["_position"].to_pylist(), strict=True))


SPEC = """spec: 1
pipeline: orders
contract:
  key: [id]
  event_time: at
  unknown_columns: {unknown}
  columns:
{columns}
sources: {{batch: [{source}]}}
{more}
sinks:
  - {{from: rows, parquet: {{path: rows, partition_by: [day(at)]}}}}
  - {{from: dead_letters, parquet: {{path: dead}}}}
"""


def spec(folder: Path, source: str, *, unknown: str = "drop", more: str = "", **columns: str) -> LoadedSpec:
    """A spec over `source` (YAML) in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(f"    {name}: {{type: '{kind}'}}" for name, kind in (columns or TYPES).items())
    path = folder / "pipeline.yaml"
    path.write_text(SPEC.format(source=source, unknown=unknown, columns=lines, more=more), "utf-8")
    return load_spec(path)


def stored(loaded: LoadedSpec, names: str = ", ".join(f'"{name}"' for name in TYPES), table: str = "rows") -> list[Row]:
    """Rows of an output, in order."""
    rows = ask(open_tables(loaded.state), f"SELECT {names} FROM {table}").to_pylist()
    return sorted((tuple(row.values()) for row in rows), key=repr)
