"""SQLite as a bounded source: one file, one split, one read transaction. Loads no Beam.

A column of SQLite holds values of any type. So each is looked at first, in the same transaction: integers alone come as integers, numbers alone as floats where
none loses by it, texts as texts, blobs as blobs, and any mixture of them as texts, which the contract casts; only a blob beside others cannot be a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.errors import SourceError, SpecError, nearest
from beam_pipelines.sources.database_connection import Connection, quoted, text
from beam_pipelines.sources.database_opened import PLACE, REFUSED, Opened, Part, Placed, Shown, named, wanted
from beam_pipelines.spec.sources import DatabaseSource

_EXACT = 2**53  # integers up to here are floats without loss
_FIRST = "$first"
_NUMBERED = ("rowid", "_rowid_", "oid")  # SQLite's names of a row's number, of which a column may take one or two


def open_sqlite(source: DatabaseSource, contract: Contract | None, at: str) -> Opened:
    """What is to be read; without a contract all columns of all rows, which need no place.

    Raises SpecError where SQLite does not understand what the spec says, SourceError where there is no such file or table.
    """
    connection = Connection(source, at)
    try:
        [server] = connection.ask("SELECT sqlite_version() AS version")
        relation, kinds, numbered = relation_of(connection, source, at)
        if contract is not None and numbered is None and source.row_id is None:
            raise SpecError(
                f"{at}: rows of a view, a query or a table WITHOUT ROWID have no place; got no row_id.",
                hint="Say which integer column is different in every row: row_id: id.",
            )
        columns = wanted(source, contract, list(kinds), at)
        conditions = (f"({source.where}\n)",) if source.where is not None else ()
        if conditions:
            connection.ask(f"SELECT 1 AS tried FROM {relation} AS q WHERE {conditions[0]} LIMIT 0")
        shown = tuple(Shown(name, "", None, kinds[name].upper()) for name in columns)
        name = named(source, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
        placed: Placed = "row_id" if numbered is None else "pages"
        splits = ((Part(relation),),)
        return Opened(source, at, name, f"SQLite {server['version']}", shown, splits, placed, conditions, number=numbered or "")
    finally:
        connection.close()


def relation_of(connection: Connection, source: DatabaseSource, at: str) -> tuple[str, dict[str, str], str | None]:
    """What FROM has, the declared type of each column, and the name of the row's number, if it has one."""
    if source.query is not None:
        sql = f"(\n{source.query.strip().rstrip(';')}\n)"
        return sql, dict.fromkeys(connection.schema(f"SELECT * FROM {sql} AS q LIMIT 0").names, ""), None
    found = tables_of(connection)
    one = next((row for row in found if str(source.table).lower() in (row["name"].lower(), quoted(row["name"]).lower())), None)
    if one is None:
        raise SourceError(f"{at}: there is no table {source.table}; {nearest(str(source.table), [row['name'] for row in found])}")
    columns = connection.ask(f"SELECT name, type FROM pragma_table_xinfo({text(one['name'])}) WHERE hidden <> 1")
    taken = {row["name"].lower() for row in columns}
    free = next((name for name in _NUMBERED if name not in taken), None)
    has_number = one["type"] == "table" and not one["wr"]
    return quoted(one["name"]), {row["name"]: row["type"] for row in columns}, free if has_number else None


def tables_of(connection: Connection) -> list[dict[str, Any]]:
    """Name and kind of each table and view; `wr`: it is WITHOUT ROWID."""
    return connection.ask("SELECT name, type, wr FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite_%' ORDER BY name")


def read_sqlite(opened: Opened, split: int) -> Iterator[pa.RecordBatch]:
    """All rows, in batches that begin with PLACE (int64) and REFUSED."""
    [part] = opened.splits[split]
    connection = Connection(opened.source, opened.at)
    rows = 0
    try:
        connection.ask("BEGIN")
        where = f" WHERE {' AND '.join(opened.conditions)}" if opened.conditions else ""
        columns = [
            _shown(column, found, opened.source.row_id)
            for column, found in zip(opened.shown, _looks(connection, opened, part, where), strict=True)
        ]
        for batch in connection.stream(_select(part, opened.number, columns, where)):
            some = batch.filter(pa.compute.equal(batch.column(_FIRST), 0)).drop_columns([_FIRST])
            if not opened.number:
                places = pa.array(np.arange(rows, rows + some.num_rows, dtype=np.int64))
                some = some.set_column(0, PLACE, places)
                rows += some.num_rows
            if some.num_rows:
                yield _booleans(some, opened.shown)
    finally:
        connection.close()


def _looks(connection: Connection, opened: Opened, part: Part, where: str) -> list[dict[str, Any]]:
    """Which types of values each column holds."""
    asked = []
    for number, column in enumerate(opened.shown):
        name = quoted(column.name)
        each = {kind: f"typeof({name}) = '{kind}'" for kind in ("integer", "real", "text", "blob")}
        each["large"] = f"typeof({name}) = 'integer' AND ({name} > {_EXACT} OR {name} < -{_EXACT})"
        asked += [f"coalesce(max({condition}), 0) AS {quoted(f'{kind}{number}')}" for kind, condition in each.items()]
    found: list[dict[str, Any]] = []
    for first in range(0, len(asked), 1000):  # of at most 2,000 columns
        [row] = connection.ask(f"SELECT {', '.join(asked[first : first + 1000])} FROM {part.relation} AS q{where}")
        found.append(row)
    flags = {key: bool(value) for row in found for key, value in row.items()}
    kinds = ("integer", "real", "text", "blob", "large")
    return [{kind: flags[f"{kind}{number}"] for kind in kinds} for number in range(len(opened.shown))]


def _shown(column: Shown, found: dict[str, Any], row_id: str | None) -> tuple[str, str, str, str | None]:
    """Name, SQL, a value of its type, and what is wrong in which rows."""
    name = quoted(column.name)
    if column.name == row_id:
        whole = f"CASE WHEN typeof({name}) = 'integer' THEN {name} END"
        other = f"typeof({name}) NOT IN ('integer', 'null')"
        return column.name, whole, "0", _wrong(column, other, "an integer that no other row has", blob=found["blob"])
    if column.kind.startswith("BOOL") and found["integer"] and not (found["real"] or found["text"] or found["blob"]):
        return column.name, name, "0", _wrong(column, f"{name} NOT IN (0, 1)", "0 or 1")
    if found["blob"]:
        if not (found["integer"] or found["real"] or found["text"]):
            return column.name, name, "x'00'", None
        wrong = _wrong(column, f"typeof({name}) = 'blob'", "a text or a number, as in other rows", blob=True)
        return column.name, f"CASE WHEN typeof({name}) <> 'blob' THEN {_as_text(name)} END", "''", wrong
    if found["text"] or not (found["integer"] or found["real"]):
        return column.name, _as_text(name), "''", None
    if not found["real"]:
        return column.name, name, "0", None
    return (column.name, _as_text(name), "''", None) if found["large"] else (column.name, f"CAST({name} AS REAL)", "0.5", None)


def _as_text(name: str) -> str:
    """A float with all its digits: CAST would give 15 of 17."""
    return f"CASE typeof({name}) WHEN 'real' THEN printf('%!.17g', {name}) ELSE CAST({name} AS TEXT) END"


def _wrong(column: Shown, condition: str, expected: str, *, blob: bool = False) -> str:
    name = quoted(column.name)
    value = f"{text(f'{column.name}: got ')} || substr({name}, 1, 100)" if not blob else text(f"{column.name}: got a blob")
    return f"WHEN {condition} THEN {value} || {text(f'; expected {expected}')}"


def _select(part: Part, number: str, columns: Sequence[tuple[str, str, str, str | None]], where: str) -> str:
    """A first row that is none of the table's, by which the driver learns the types, and the rows behind it."""
    place = f"q.{number}" if number else "0"
    wrong = " ".join(found for *_, found in columns if found is not None)
    named_ = ", ".join(f"{value} AS {quoted(name)}" for name, _, value, _ in columns)
    values = ", ".join(sql for _, sql, _, _ in columns)
    return (
        f"SELECT 0 AS {quoted(PLACE)}, 1 AS {quoted(_FIRST)}, '' AS {quoted(REFUSED)}, {named_} UNION ALL "
        f"SELECT {place}, 0, {f'CASE {wrong} END' if wrong else 'NULL'}, {values} FROM {part.relation} AS q{where}"
    )


def _booleans(batch: pa.RecordBatch, shown: Sequence[Shown]) -> pa.RecordBatch:
    """Columns that are declared as booleans, whose values are 0 and 1, as such; rows with others are refused."""
    for number, column in enumerate(shown, start=2):
        if column.kind.startswith("BOOL") and pa.types.is_integer(batch.schema.field(number).type):
            batch = batch.set_column(number, column.name, batch.column(number).cast(pa.bool_()))
    return batch
