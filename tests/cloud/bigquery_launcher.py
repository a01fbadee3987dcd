"""The local BigQuery server with partition decorators; run by the server's own Python, with the arguments of `local-bigquery`.

Alone it takes `table$20261101` for the name of another table. Here, as in BigQuery, a load job, a query or a copy with such a
destination appends to, fills or replaces that partition and no other, and is refused where a row belongs elsewhere:

    $2026 $202611 $20261101 $2026110113    years, months, days, hours of the table's time partitioning
    $12                                    the integer range that begins with 12
    $__NULL__                              rows whose partition column is NULL
    $__UNPARTITIONED__                     rows outside of the ranges, or of the years 1960 to 2159

Bytes in Parquet are taken as they are; alone the server takes them for base64, as in JSON.

Reading a single partition by decorator is not built and is refused, so that nobody reads a whole table by mistake.

A stream of the Storage Read API is answered in messages of 10,000 rows, where the server alone sends 100,000 in one: so a connection can break between two.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import datetime
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from local_bigquery.catalog import tables  # type: ignore[import-not-found]  # of the server's environment
from local_bigquery.engine.database import quote  # type: ignore[import-not-found]
from local_bigquery.errors import BigQueryError  # type: ignore[import-not-found]
from local_bigquery.grpc import read  # type: ignore[import-not-found]
from local_bigquery.jobs import load, runner  # type: ignore[import-not-found]

DECORATED = re.compile(r"^(?P<table>.+)\$(?P<partition>-?\d+|__NULL__|__UNPARTITIONED__)$")
NULL, OUTSIDE = "__NULL__", "__UNPARTITIONED__"
ANSWER_ROWS = 10_000
CONNECTIONS = 512
FORMATS = {"YEAR": "%Y", "MONTH": "%Y%m", "DAY": "%Y%m%d", "HOUR": "%Y%m%d%H"}

_reference, _write, _read_rows = tables.reference, tables.write, read.read_rows
_projection, _decoded = load._projection, load._decoded
_one_at_a_time = threading.RLock()
_binary = contextvars.ContextVar("binary", default=False)
_copy, _extract = runner.HANDLERS["copy"], runner.HANDLERS["extract"]


class Partition(str):
    """The id of a table, which the server treats as any other, with the partition that was asked for."""

    partition: str

    def __new__(cls, table: str, partition: str) -> Partition:
        made = super().__new__(cls, table)
        made.partition = partition
        return made


@dataclass(frozen=True)
class Place:
    """Where in a table rows go: `belongs` is the SQL condition of rows that are there already or may come."""

    table: tuple[str, str, str]
    partition: str
    belongs: str

    @property
    def label(self) -> str:
        return f"{self.table[2]}${self.partition}"


def reference(table: Any) -> tuple[str, str, str]:
    """In place of the server's own: a decorator becomes a property of the table's id."""
    project, dataset, name = _reference(table)
    found = DECORATED.match(name)
    return (project, dataset, Partition(found["table"], found["partition"]) if found else name)


def write(
    cur: Any, query: str, params: Any, ref: tuple[str, str, str], config: Any,
    default: str = "WRITE_EMPTY", prefix: str = "Invalid schema update. ", isolated: bool = False,
) -> bool:  # fmt: skip
    """In place of the server's own: what goes to a partition replaces, fills or extends that one. One job at a time: two of one table would both commit, and one be refused."""
    with _one_at_a_time:
        return _written(cur, query, params, ref, config, default, prefix, isolated)


def _written(cur: Any, query: str, params: Any, ref: tuple[str, str, str], config: Any, default: str, prefix: str, isolated: bool) -> bool:
    if not isinstance(ref[2], Partition):
        return bool(_write(cur, query, params, ref, config, default, prefix, isolated))
    table = (ref[0], ref[1], str(ref[2]))
    if not tables.exists(*table):
        raise BigQueryError("notFound", f"Not found: Table {':'.join(table[:2])}.{table[2]}; this server makes none for a decorator")
    place = _place(table, ref[2].partition)
    cur.execute(f"CREATE OR REPLACE TEMP TABLE _to_partition AS {query}", params or None)
    disposition = config.writeDisposition or default
    _only_of(place, cur)
    if disposition == "WRITE_EMPTY" and cur.sql(f"SELECT 1 FROM {tables.name(*table)} WHERE {place.belongs} LIMIT 1").fetchall():
        raise BigQueryError("duplicate", f"Already Exists: Partition {place.label}")
    appending = config.replace(writeDisposition="WRITE_APPEND", createDisposition=None)
    with _transaction(cur):
        if disposition == "WRITE_TRUNCATE":
            cur.execute(f"DELETE FROM {tables.name(*table)} WHERE {place.belongs}")
        return bool(_write(cur, "SELECT * FROM _to_partition", None, table, appending, default, prefix, False))


def _place(table: tuple[str, str, str], partition: str) -> Place:
    layout = tables.load(*table)
    time, integers = layout.timePartitioning, layout.rangePartitioning
    if time and time.field:
        return Place(table, partition, _in_time(table, partition, time.field, time.type or "DAY"))
    if integers:
        return Place(table, partition, _in_range(partition, integers, table))
    raise BigQueryError("invalid", f"Cannot write to partition decorator ${partition}: table {table[2]} is not partitioned by a column")


def _in_time(table: tuple[str, str, str], partition: str, column: str, unit: str) -> str:
    if partition == NULL:
        return f"{quote(column)} IS NULL"
    if partition == OUTSIDE:
        return f"coalesce(year({quote(column)}) NOT BETWEEN 1960 AND 2159, false)"
    pattern = FORMATS[unit]
    try:
        well_formed = datetime.datetime.strptime(partition, pattern).strftime(pattern) == partition
    except ValueError:
        well_formed = False
    if not (well_formed and 1960 <= int(partition[:4]) <= 2159):
        raise BigQueryError("invalid", f"Invalid {unit} partition id: {table[2]}${partition}")
    kind = next(str(field.type) for field in tables.columns(*table) if field.name.casefold() == column.casefold())
    value = f"({quote(column)} AT TIME ZONE 'UTC')::TIMESTAMP" if kind == "TIMESTAMP" else quote(column)
    return f"coalesce(strftime({value}, '{pattern}') = '{partition}', false)"


def _in_range(partition: str, integers: Any, table: tuple[str, str, str]) -> str:
    column = quote(integers.field)
    if partition == NULL:
        return f"{column} IS NULL"
    start, end, step = (int(getattr(integers.range, name)) for name in ("start", "end", "interval"))
    if partition == OUTSIDE:
        return f"coalesce(NOT ({column} >= {start} AND {column} < {end}), false)"
    first = int(partition)
    if not start <= first < end or (first - start) % step:
        raise BigQueryError("invalid", f"Invalid range partition id: {table[2]}${partition}")
    return f"coalesce({column} >= {first} AND {column} < {min(first + step, end)}, false)"


def _only_of(place: Place, cur: Any) -> None:
    [(elsewhere,)] = cur.sql(f"SELECT count(*) FROM _to_partition WHERE NOT ({place.belongs})").fetchall()
    if elsewhere:
        raise BigQueryError("invalid", f"Some rows belong to different partitions rather than destination partition {place.label}")


@contextlib.contextmanager
def _transaction(cur: Any) -> Iterator[None]:
    """All or nothing: a job that is refused leaves the partition as it was."""
    try:
        cur.execute("BEGIN")
    except Exception:  # a query job may be in a transaction of its own, which then decides
        yield
        return
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            cur.execute("ROLLBACK")
        raise
    cur.execute("COMMIT")


def projection(config: Any, *rest: Any) -> Any:
    """In place of the server's own: the columns of a load job."""
    token = _binary.set(config.sourceFormat == "PARQUET")
    try:
        return _projection(config, *rest)
    finally:
        _binary.reset(token)


def decoded(expression: str, *rest: Any) -> Any:
    """In place of the server's own: a column's value; texts are bytes in base64."""
    return expression if _binary.get() else _decoded(expression, *rest)


def read_rows(request: Any) -> Iterator[Any]:
    """In place of the server's own: the same rows in smaller messages."""
    import pyarrow as pa
    from google.cloud.bigquery_storage_v1 import types

    position = request.offset
    for answer in _read_rows(request):
        if not answer.arrow_schema.serialized_schema:
            yield answer
            continue
        schema = pa.ipc.read_schema(pa.py_buffer(answer.arrow_schema.serialized_schema))
        batch = pa.ipc.read_record_batch(pa.py_buffer(answer.arrow_record_batch.serialized_record_batch), schema)
        for start in range(0, batch.num_rows, ANSWER_ROWS):
            part = batch.slice(start, ANSWER_ROWS)
            position += part.num_rows
            stream = read._streams[request.read_stream]
            stream.allocated = max(stream.allocated, position)  # what was sent may be asked for again
            rows = types.ArrowRecordBatch(serialized_record_batch=part.serialize().to_pybytes())
            yield types.ReadRowsResponse(row_count=part.num_rows, arrow_record_batch=rows, arrow_schema=answer.arrow_schema)


def _whole_tables_only(run: Callable[..., Any]) -> Callable[..., Any]:
    def checked(cur: Any, config: Any, upload: Any) -> Any:
        for source in [*(getattr(config, "sourceTables", None) or []), config.sourceTable]:
            if source is not None and isinstance(tables.reference(source)[2], Partition):
                raise BigQueryError("notImplemented", f"This local server reads no single partition: {source.tableId}")
        return run(cur, config, upload)

    return checked


def start(host: str, port: int) -> tuple[Any, int]:
    """In place of the server's own, whose 16 threads would be the number of connections that it can have at all: an idle one keeps its thread."""

    from local_bigquery.grpc import server  # type: ignore[import-not-found]  # takes its handlers when it is imported: after they were replaced

    made = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=CONNECTIONS))
    made.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, handlers) for name, handlers in server.SERVICES.items()])
    port = made.add_insecure_port(f"{host}:{port}")
    made.start()
    return made, port


def main() -> None:
    from local_bigquery.cli import main as serve  # type: ignore[import-not-found]

    tables.reference, tables.write, read.read_rows = reference, write, read_rows
    load._projection, load._decoded = projection, decoded

    from local_bigquery.grpc import server  # type: ignore[import-not-found]

    server.start = start
    runner.HANDLERS.update(copy=_whole_tables_only(_copy), extract=_whole_tables_only(_extract))
    serve()


if __name__ == "__main__":
    main()
