"""Enrich: columns from a lookup table that every worker holds. A miss is NULL; what that means is for the checks to say.

A table is indexed once by a 64-bit hash of its key. A batch costs one hash per row, a binary search and a comparison of the keys
themselves, whatever the size of the table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.engine import as_batch, local_engine, naive_utc, quote
from beam_pipelines.arrow.layers import KernelResult
from beam_pipelines.arrow.layouts import plain
from beam_pipelines.arrow.schema import RESERVED_PREFIX
from beam_pipelines.errors import RunError, SpecError, nearest


@dataclass(frozen=True)
class LookupTable:
    """Rows found by a key. No two rows have the same key and no key is NULL: `lookup_table` sees to that."""

    name: str
    rows: pa.RecordBatch
    keys: tuple[str, ...]

    @cached_property
    def version(self) -> str:
        """16 hex digits of SHA-256 over the content, the same in whatever order the rows were read."""
        order = pc.sort_indices(pa.Table.from_batches([self.rows]), sort_keys=[(k, "ascending") for k in self.keys])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.rows.schema) as writer:
            writer.write_batch(self.rows.take(order))
        return hashlib.sha256(sink.getvalue()).hexdigest()[:16]

    @cached_property
    def _index(self) -> _Index:
        return _indexed(self)

    def find(self, batch: pa.RecordBatch, on: Mapping[str, str]) -> pa.Array:
        """For each row of `batch` the matching row of the table, NULL for a miss; `on` maps row columns to key columns.

        A value is compared in the key's type; one that does not convert there and back is a miss, and so is NULL.
        """
        sources = [next(r for r, k in on.items() if k == key) for key in self.keys]
        return self._index.find(batch.select(sources))

    def __getstate__(self) -> dict[str, object]:
        return {"name": self.name, "rows": self.rows, "keys": self.keys}


Lookup = LookupTable | Callable[[], LookupTable]
"""A lookup table, or what gives it: a loader that caches and refreshes."""


def lookup_table(
    rows: pa.RecordBatch | pa.Table,
    *,
    name: str,
    key: str | Iterable[str],
    duplicates: Literal["fail", "first", "last"] = "fail",
) -> LookupTable:
    """A lookup table of `rows` by `key`; rows with a NULL key are left out, for nothing matches them.

    Raises RunError if a key occurs twice and `duplicates` is fail, SpecError if there is no such column.

    >>> airports = lookup_table(pa.table({'faa': ['JFK', 'LGA'], 'name': ['Kennedy', 'La Guardia']}), name='airports', key='faa')
    >>> airports.keys, len(airports.version)
    (('faa',), 16)
    """
    batch = as_batch(rows) if isinstance(rows, pa.Table) else rows
    batch = pa.RecordBatch.from_arrays([plain(c) for c in batch.columns], names=batch.schema.names)
    keys = (key,) if isinstance(key, str) else tuple(key)
    for column in keys:
        if column not in batch.schema.names:
            raise SpecError(f"lookup {name!r}: no column {column!r} for its key;", hint=nearest(column, batch.schema.names))
    valid = np.logical_and.reduce([batch[k].is_valid().to_numpy(zero_copy_only=False) for k in keys])
    batch = batch if valid.all() else batch.filter(pa.array(valid))
    return LookupTable(name, _unique(batch, keys, name, duplicates), keys)


def enrich_batch(
    batch: pa.RecordBatch, table: LookupTable, *, on: str | Iterable[str] | Mapping[str, str], take: Mapping[str, str]
) -> pa.RecordBatch:
    """`batch` with columns `take` (new name to lookup column) of the row of `table` whose key equals the row's `on`; NULL where none does.

    `on` names the row's columns in the order of the key, or maps them to the key's columns.

    >>> airports = lookup_table(pa.table({'faa': ['JFK', 'LGA'], 'name': ['Kennedy', 'La Guardia']}), name='airports', key='faa')
    >>> flights = pa.RecordBatch.from_pydict({'dest': ['LGA', 'XXX', None]})
    >>> enrich_batch(flights, airports, on='dest', take={'dest_name': 'name'})['dest_name'].to_pylist()
    ['La Guardia', None, None]
    """
    found = table.find(batch, matched(table, on, batch.schema.names))
    taken(table, take)
    return with_columns(batch, {new: table.rows[old].take(found) for new, old in take.items()})


@dataclass(frozen=True)
class Enrich:
    """Kernel: `enrich_batch` with a table that is resolved for each batch, so that a loader may refresh it."""

    table: Lookup
    on: str | tuple[str, ...] | dict[str, str]
    take: dict[str, str]
    stage: ClassVar[str] = "enrich"
    sees_rejected: ClassVar[bool] = True

    def __call__(self, batch: pa.RecordBatch) -> KernelResult:
        return enrich_batch(batch, resolved(self.table), on=self.on, take=self.take), {}


def resolved(table: Lookup) -> LookupTable:
    return table if isinstance(table, LookupTable) else table()


def matched(table: LookupTable, on: str | Iterable[str] | Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Row column to key column. Raises SpecError unless each column of the key is matched once by a column in `names`."""
    if isinstance(on, Mapping):
        pairs = dict(on)
    else:
        columns = (on,) if isinstance(on, str) else tuple(on)
        pairs = dict(zip(columns, table.keys, strict=False)) if len(columns) == len(table.keys) else {}
    if sorted(pairs.values()) != sorted(table.keys):
        raise SpecError(
            f"lookup {table.name!r}: 'on' does not match its key; got {on!r}; expected a column for each of {', '.join(table.keys)}."
        )
    have = set(names)
    for column in pairs:
        if column not in have:
            raise SpecError(f"lookup {table.name!r}: no column {column!r} to match;", hint=nearest(column, have))
    return pairs


def taken(table: LookupTable, take: Mapping[str, str]) -> None:
    """Raises SpecError unless `table` has the columns to take."""
    for column in take.values():
        if column not in table.rows.schema.names:
            raise SpecError(f"lookup {table.name!r}: no column {column!r} to take;", hint=nearest(column, table.rows.schema.names))


def with_columns(batch: pa.RecordBatch, new: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """`batch` with columns replaced in their place, or added after its own and before the reserved ones."""
    own = {n: batch[n] for n in batch.schema.names if not n.startswith(RESERVED_PREFIX)}
    reserved = {n: batch[n] for n in batch.schema.names if n.startswith(RESERVED_PREFIX)}
    columns = own | dict(new) | reserved
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _unique(batch: pa.RecordBatch, keys: tuple[str, ...], name: str, duplicates: str) -> pa.RecordBatch:
    """One row per key: the first, the last, or an error."""
    rows = pa.table({f"k{i}": batch[k] for i, k in enumerate(keys)} | {"row": pa.array(np.arange(batch.num_rows))})
    names = [f"k{i}" for i in range(len(keys))]
    groups = rows.group_by(names).aggregate([("row", "min"), ("row", "max"), ("row", "count")])
    if groups.num_rows == batch.num_rows:
        return batch
    if duplicates == "fail":
        again = groups.filter(pc.greater(groups["row_count"], 1)).sort_by("row_min")
        values = ", ".join(f"{k}={again[f'k{i}'][0].as_py()!r}" for i, k in enumerate(keys))
        raise RunError(
            f"lookup {name!r}: its key must be unique; got {values} {again['row_count'][0].as_py()} times"
            f" ({again.num_rows} keys occur more than once).",
            hint="Set duplicates: first or last, or name more columns as the key.",
        )
    chosen = np.sort(groups["row_min" if duplicates == "first" else "row_max"].to_numpy())
    return batch.take(pa.array(chosen))


class _Index(NamedTuple):
    """Sorted hashes, the table's row of each, and the keys in the table's order as DuckDB gives them."""

    hashes: np.ndarray
    rows: np.ndarray
    keys: pa.RecordBatch
    salt: int

    def find(self, batch: pa.RecordBatch) -> pa.Array:
        if not len(self.rows):
            return pa.nulls(batch.num_rows, pa.int64())
        given = _hashed(batch, self.keys.schema, self.salt)
        hashes = given["h"].to_numpy(zero_copy_only=False)
        place = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        rows = pa.array(self.rows[place])
        hit = pa.array(self.hashes[place] == hashes)
        for key in self.keys.schema.names:
            same = pc.fill_null(pc.equal(given[key], self.keys[key].take(rows)), False)
            hit = pc.and_(hit, same)
        return pc.if_else(hit, rows, pa.scalar(None, pa.int64()))


def _indexed(table: LookupTable) -> _Index:
    sub = table.rows.select(list(table.keys))
    schema = naive_utc(sub).schema
    schema = pa.schema([(f"k{i}", f.type) for i, f in enumerate(schema)])
    for salt in range(8):  # two keys with one hash: about 1 in 10^7 tables of a million keys
        hashed = _hashed(sub, schema, salt)
        hashes = hashed["h"].to_numpy(zero_copy_only=False)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        if not len(ordered) or not (ordered[1:] == ordered[:-1]).any():
            break
    return _Index(ordered, order.astype(np.int64), hashed.drop_columns(["h"]), salt)


def _hashed(batch: pa.RecordBatch, schema: pa.Schema, salt: int) -> pa.RecordBatch:
    """The columns of `batch` in the types of `schema` (k0, k1, ...), and `h`, their hash."""
    inside = naive_utc(pa.RecordBatch.from_arrays([plain(c) for c in batch.columns], names=[f"c{i}" for i in range(batch.num_columns)]))
    casts = ", ".join(f"{_as_key(f'c{i}', inside.schema.field(i).type, f.type)} AS {quote(f.name)}" for i, f in enumerate(schema))
    names = ", ".join(quote(n) for n in schema.names)
    sql = f"SELECT {names}, hash({names}, {salt}) AS h FROM (SELECT {casts} FROM $slot)"
    return local_engine().select(sql, inside.schema)(inside)


def _as_key(column: str, source: pa.DataType, key: pa.DataType) -> str:
    """The column in the key's type; NULL where it does not come back as it was."""
    if source == key:
        return column
    if pa.types.is_null(source):
        return f"NULL::{_sql(key)}"
    there = f"TRY_CAST({column} AS {_sql(key)})"
    return f"CASE WHEN TRY_CAST({there} AS {_sql(source)}) = {column} THEN {there} END"


def _sql(kind: pa.DataType) -> str:
    if pa.types.is_decimal(kind):
        return f"DECIMAL({kind.precision},{kind.scale})"
    found = _SQL_TYPES.get(str(kind))
    if found is None:
        raise SpecError(f"a lookup's key cannot have type {kind};", hint=f"Expected one of {', '.join(_SQL_TYPES)} or decimal.")
    return found


_SQL_TYPES = {
    "string": "VARCHAR", "bool": "BOOLEAN", "int8": "TINYINT", "int16": "SMALLINT", "int32": "INTEGER", "int64": "BIGINT", "uint8": "UTINYINT",
    "uint16": "USMALLINT", "uint32": "UINTEGER", "uint64": "UBIGINT", "float": "FLOAT", "double": "DOUBLE", "date32[day]": "DATE",
    "time64[us]": "TIME", "timestamp[us]": "TIMESTAMP", "binary": "BLOB",
}  # fmt: skip
