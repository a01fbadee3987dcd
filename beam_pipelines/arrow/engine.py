"""DuckDB on one RecordBatch at a time: a SELECT is prepared once and executed over a slot whose batch is swapped.

A plain query over a batch costs 4 ms before the first row; a prepared one 0.5 ms. One connection belongs to one thread;
it uses one thread, reads no files and no network, and its configuration is locked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa

_LOCAL = threading.local()
_SHARING: list[object] = []  # one for each `engines_shared` under way, in any thread
_MANY = 20_000  # rows from which a relation is cheaper than EXECUTE


def quote(name: str) -> str:
    """`name` as a SQL identifier: quotes, dots, spaces and keywords are safe."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """`text` as a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


class _Slot:
    """An Arrow stream whose one batch is swapped between executions (the Arrow PyCapsule interface)."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.batch: pa.RecordBatch | None = None

    def __arrow_c_schema__(self) -> object:
        return self.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        batches = [] if self.batch is None else [self.batch]
        return pa.RecordBatchReader.from_batches(self.schema, batches).__arrow_c_stream__(requested_schema)


class Select:
    """A prepared SELECT over one slot. Call it with a batch of the slot's schema; rows come back in the same order."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, number: int, sql: str, schema: pa.Schema) -> None:
        self._connection = connection
        self._slot = _Slot(schema)
        self._name = f"s{number}"
        self._sql = sql.replace("$slot", f"slot{number}")
        self._relation: duckdb.DuckDBPyRelation | None = None
        connection.register(f"slot{number}", self._slot)
        connection.execute(f"PREPARE {self._name} AS {self._sql}")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The SELECT's answer on `batch`. Raises duckdb.Error where an expression fails on any row."""
        self._slot.batch = batch
        try:
            table = self._answer(batch.num_rows).to_arrow_table(max(batch.num_rows, 1))  # in one piece: to join pieces is a copy
        finally:
            self._slot.batch = None  # the batch's memory must not outlive its turn
        return as_batch(table)

    def _answer(self, rows: int) -> duckdb.DuckDBPyRelation:
        """EXECUTE lays the whole answer aside before it is turned into Arrow; a relation does not, but takes 1.5 ms longer to begin."""
        if rows < _MANY:
            return self._connection.sql(f"EXECUTE {self._name}")
        if self._relation is None:
            self._relation = self._connection.sql(self._sql)
        return self._relation


class Engine:
    """Private DuckDB connections with the SELECTs prepared on them: one that optimizes queries, one that does not."""

    def __init__(self) -> None:
        self._connections: dict[bool, duckdb.DuckDBPyConnection] = {}
        self._selects: dict[tuple[str, pa.Schema, bool], Select] = {}

    def select(self, sql: str, schema: pa.Schema, *, optimize: bool = True) -> Select:
        """The prepared form of `sql`, which reads from `$slot`, over batches of `schema`; prepared once, then reused.

        DuckDB plans a prepared SELECT anew at each execution. For projections alone there is nothing to optimize: without, 40 expressions
        cost 1 ms a batch instead of 3, and no more per row.
        """
        key, owner = (sql, schema, optimize), local_engine() if _SHARING else self
        found = owner._selects.get(key)
        if found is None:
            connection = owner._connections.get(optimize)
            if connection is None:
                connection = owner._connections[optimize] = connect(optimize=optimize)
            found = owner._selects[key] = Select(connection, len(owner._selects), sql, schema)
        return found


def connect(*, optimize: bool = True, **config: Any) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection that can compute and nothing else."""
    settings: dict[str, Any] = {"threads": 1, "preserve_insertion_order": True, "enable_external_access": False,
                                "autoload_known_extensions": False, "autoinstall_known_extensions": False,
                                **config}  # fmt: skip
    connection = duckdb.connect(":memory:", config=settings)
    connection.execute("SET TimeZone = 'UTC'")
    if not optimize:
        connection.execute("PRAGMA disable_optimizer")
    connection.execute("SET lock_configuration = true")
    return connection


def local_engine() -> Engine:
    """This thread's engine: for the pure functions; a DoFn keeps its own."""
    engine = getattr(_LOCAL, "engine", None)
    if engine is None:
        engine = _LOCAL.engine = Engine()
    return engine


@contextmanager
def engines_shared() -> Iterator[None]:
    """Within it all engines of a thread are one: for runners that run a graph in one thread, where each connection would only be opened (17 ms), never used beside another."""
    one = object()
    _SHARING.append(one)
    try:
        yield
    finally:
        _SHARING.remove(one)


def as_batch(table: pa.Table) -> pa.RecordBatch:
    """`table` as one RecordBatch (zero rows included)."""
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def naive_utc(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch` with zoned timestamps as plain UTC ones (no copy): DuckDB must see no zone. Dictionary columns pass unchanged."""
    kinds = [_naive(f.type) for f in batch.schema]
    if all(new == old.type for new, old in zip(kinds, batch.schema, strict=True)):
        return batch
    arrays = [c if c.type is kind or c.type == kind else c.cast(kind) for c, kind in zip(batch.columns, kinds, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _naive(kind: pa.DataType) -> pa.DataType:
    """`kind` without time zones, at any depth of lists and structs; the same object where it has none."""
    if pa.types.is_timestamp(kind):
        return pa.timestamp(kind.unit) if kind.tz else kind
    if pa.types.is_list(kind):
        inner = _naive(kind.value_type)
        return kind if inner == kind.value_type else pa.list_(inner)
    if pa.types.is_struct(kind):
        fields = [pa.field(f.name, _naive(f.type)) for f in kind]
        return kind if all(new.type == old.type for new, old in zip(fields, kind, strict=True)) else pa.struct(fields)
    return kind
