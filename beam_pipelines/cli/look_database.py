"""Looking at a table of a database: its columns as the catalog and a sample of rows show them, and the source that reads it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from beam_pipelines.cli.choose import seen_from
from beam_pipelines.cli.look import Look, Seen, typed
from beam_pipelines.cli.proposal import flow
from beam_pipelines.cli.propose import TIME_NAMES, Proposal
from beam_pipelines.cli.types_of import type_of
from beam_pipelines.errors import SpecError
from beam_pipelines.sources.database_columns import Described, describe, tables_there
from beam_pipelines.sources.database_opened import REFUSED
from beam_pipelines.sources.database_whole import batches_of, open_whole
from beam_pipelines.spec.sources import DatabaseTable

_NUMERIC = re.compile(r"(?:numeric|decimal)\((\d+)(?:, ?(\d+))?\)", re.IGNORECASE)
_SCALE = 9  # of a numeric that has none of its own
_KINDS = {"uuid": "uuid", "json": "json", "jsonb": "json", "money": "decimal(19,2)"}
_DECLARED = (("int", "int64"), ("real", "float64"), ("floa", "float64"), ("doub", "float64"), ("bool", "boolean"), ("blob", "binary"))


def locate(source: str, table: str | None, password: str | None) -> DatabaseTable:
    """The table that is meant, or the only one there is. Raises SpecError, which repeats no password, and what a connection raises."""
    url = f"sqlite:///{source}" if os.path.isfile(source) else source
    try:
        found = DatabaseTable(database=url, table="?" if table is None else table, password=password)
    except ValidationError as error:
        [fault, *_] = error.errors(include_url=False, include_input=False)
        option = {"database": "--from: the URL", "password": "--password:"}.get(str(next(iter(fault["loc"]), "")), "--from:")
        hint = "Say it as --password env:NAME: the reference stands in the spec." if "holds a password" in fault["msg"] else ""
        raise SpecError(f"{option} {fault['msg'].removeprefix('Value error, ')}.", hint=hint) from None
    if table is not None:
        return found
    there = tables_there(found, f"--from {found.place}")
    if len(there) != 1:
        listed = f"there are {', '.join(there)}" if there else "there is none"
        raise SpecError(f"--from {found.place}: got no --table; {listed}.", hint="Say which: --table NAME.")
    return found.model_copy(update={"table": there[0]})


def look_at_table(table: DatabaseTable, *, rows: int) -> tuple[Look, bool]:
    """The first `rows` rows of the table as its catalog describes them, and whether rows have a place. Raises what a run would raise that begins to read it."""
    at = f"--from {table.name}"
    catalog = describe(table, at)
    with contextlib.closing(batches_of(open_whole(table, at))) as batches:
        sample, whole = _sample(batches, rows)
    good = sample.filter(pc.is_null(sample.column(REFUSED)))
    columns = [_seen(column, good.column(column.name), of_file=table.sqlite is not None) for column in catalog.columns]
    _tell_time(columns)
    broken = sample.num_rows - good.num_rows
    return Look(table.name, {"type": "database"}, None, tuple(columns), good.num_rows, broken, whole, key=catalog.key), catalog.placed


def _sample(batches: Iterator[pa.RecordBatch], rows: int) -> tuple[pa.Table, bool]:
    """The first rows, and whether these are all."""
    found = [next(batches)]
    while sum(batch.num_rows for batch in found) <= rows and (batch := next(batches, None)) is not None:
        found.append(batch)
    table = pa.Table.from_batches(found)
    return table.slice(0, rows), table.num_rows <= rows


def _seen(column: Described, values: pa.ChunkedArray, *, of_file: bool) -> Seen:
    kind, note = _declared(column, values) if of_file else _known(column, values)
    found = typed(column.name, kind, note, values) if kind != "?" else Seen((column.name,), values.to_pylist())
    found.required = column.required
    return found


def _known(column: Described, values: pa.ChunkedArray) -> tuple[str | None, str]:
    """The contract type of a column of PostgreSQL, and a note."""
    if not pa.types.is_string(values.type):
        return type_of(values.type)
    if column.composite:
        return "json", ""
    if column.plain == "numeric":
        return _decimal(column.words) or _any_decimal(values), "" if _decimal(column.words) else "numeric, of any precision"
    texts = ("text", "character varying", "character", "name", "citext")
    note = "" if column.plain in _KINDS or column.plain in texts else f"{column.plain}, as text"
    return _KINDS.get(column.plain, "string"), note


def _declared(column: Described, values: pa.ChunkedArray) -> tuple[str | None, str]:
    """The contract type of a column of SQLite, whose values have types of their own; `?` where texts say what they are."""
    declared = _decimal(column.words)
    if declared is not None:
        return declared, ""
    if values.null_count == len(values):
        return next((kind for word, kind in _DECLARED if word in column.words.lower()), "string"), "no value was seen"
    return ("?", "") if pa.types.is_string(values.type) else type_of(values.type)


def _decimal(words: str) -> str | None:
    """That of `numeric(p,s)`, where a contract has it."""
    found = _NUMERIC.fullmatch(words)
    precision, scale = (int(found[1]), int(found[2] or 0)) if found else (0, 0)
    return f"decimal({precision},{scale})" if 0 < precision <= 38 and scale <= precision else None


def _any_decimal(values: pa.ChunkedArray) -> str:
    scale = max((len(value.partition(".")[2]) for value in values.to_pylist() if value is not None), default=0)
    return f"decimal(38,{min(max(scale, _SCALE), 38)})"


def _tell_time(columns: Sequence[Seen]) -> None:
    """Where no column is an instant, civil times whose names say when a thing happened are taken to be."""
    if any(column.kind == "timestamp" for column in columns):
        return
    for column in columns:
        if column.kind == "datetime" and TIME_NAMES.search(column.keys[-1]):
            column.kind, column.note = "timestamp", "no offset: read as time_zone says"


def table_source(table: DatabaseTable, proposal: Proposal, *, placed: bool, folder: str) -> str:
    """The source that reads the table, as YAML of a spec in `folder`. Raises SpecError where rows have neither a place nor a number."""
    database, password = table.database, table.password
    if table.sqlite is not None:
        database = f"sqlite:///{seen_from(table.sqlite, folder)}"
    if password is not None and password.startswith("file:"):
        password = f"file:{seen_from(password.removeprefix('file:'), folder)}"
    entry = {"database": database, "table": table.table, "row_id": _row_id(proposal, placed=placed), "password": password}
    return flow({name: value for name, value in entry.items() if value is not None})


def _row_id(proposal: Proposal, *, placed: bool) -> str | None:
    """The primary key where it is one integer; of rows without a place else the column that tells those of the sample apart."""
    numbers = {c.name: c for c in proposal.good if c.kind in ("int16", "int32", "int64")}
    of_key = [numbers[name] for name in proposal.key if name in numbers and len(proposal.key) == 1]
    if of_key and (proposal.primary or not placed):
        return of_key[0].seen.keys[-1]
    if placed:
        return None
    apart = (c for c in numbers.values() if c.values and None not in c.values and len(set(c.values)) == len(c.values))
    found = next(apart, None)
    if found is None:
        raise SpecError(
            f"--from {proposal.look.path}: its rows have no place, as those of a view, and no integer column is different in every row of the sample.",
            hint="Give the view such a column, or name a table.",
        )
    return found.seen.keys[-1]
