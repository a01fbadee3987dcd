"""PostgreSQL as a bounded source: one snapshot, read by ranges of pages. Loads no Beam.

    launcher  BEGIN … REPEATABLE READ ─▶ catalog ─▶ pg_export_snapshot ─────────── stays open until the run ends
    worker                                          SET TRANSACTION SNAPSHOT ─▶ COPY of pages [a, b) ─▶ Arrow batches

Within the snapshot a row has one place, (table, page, number in the page), however often it is read. While the launcher's transaction is open the tables are
locked as a SELECT locks them: rows may be written, tables may not be truncated, rewritten or dropped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.ranges import show_instant
from beam_pipelines.errors import BeamPipelinesError, SourceError, SpecError, TransientError, nearest
from beam_pipelines.formats.columnar import plain
from beam_pipelines.pubsub_service import back_off_s
from beam_pipelines.sources.bigquery_range import Near
from beam_pipelines.sources.database_connection import Connection, ConnectionLost, can_hold, hold, quoted, text
from beam_pipelines.sources.database_opened import LEAF, PLACE, REFUSED, Opened, Part, Placed, Shown, named, wanted
from beam_pipelines.spec.sources import DatabaseSource

_LOG = logging.getLogger(__name__)
_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_SETTINGS = {
    "TimeZone": "UTC", "DateStyle": "ISO, YMD", "IntervalStyle": "postgres", "extra_float_digits": "1", "bytea_output": "hex",
    "standard_conforming_strings": "on", "synchronize_seqscans": "off", "max_parallel_workers_per_gather": "0", "constraint_exclusion": "on",
    "lock_timeout": "10s",
}  # fmt: skip
"""Texts that do not depend on who asks; rows in the order of their pages; the range of a run leaves out whole partitions; no worker waits for long behind
somebody who changes the table, for he may wait for the launcher."""
_TIMEOUTS = ("idle_in_transaction_session_timeout", "transaction_timeout")  # who holds a snapshot only waits; the second is known since 17
_LEAST_PAGES = 512  # of a split: 4 MB
_MOST_LEAVES = 1 << 15  # what a position has room for, beside 32 bits of the page and 16 in it
_PATIENCE_S = 60.0  # how long the server may be away in the middle of a table
_REMEMBERED = 4_000_000  # places of rows that came, where their order is not known: 32 MB
_SNAPSHOT_OVER = "Its snapshot lasts as long as the run that opened it, and the server's connection to it. Run again."

_INT2, _INT4, _INT8 = 21, 23, 20
_NATIVE = frozenset({16, 17, 19, 25, 1042, 1043, 700, 701, _INT2, _INT4, _INT8})  # bool, bytea, texts, floats, integers
_DATE, _TIME, _TIMESTAMP, _TIMESTAMPTZ = 1082, 1083, 1114, 1184
_MONEY, _RECORD = 790, 2249
_BOUNDS = {
    _DATE: ("{0} >= DATE '0001-01-01' AND {0} < DATE '10000-01-01'", "a date of the years 1 to 9999"),
    _TIME: ("{0} < TIME '24:00'", "a time before 24:00"),
    _TIMESTAMP: ("{0} >= TIMESTAMP '0001-01-01' AND {0} < TIMESTAMP '10000-01-01'", "a time of the years 1 to 9999"),
    _TIMESTAMPTZ: ("{0} >= TIMESTAMPTZ '0001-01-01 00:00Z' AND {0} < TIMESTAMPTZ '10000-01-01 00:00Z'", "a time of the years 1 to 9999"),
}


class _Relation(NamedTuple):
    """What the source names: `sql` as FROM has it, its columns' names, its tables with their pages; `placeless`: why its rows have no place."""

    sql: str
    names: list[str]
    leaves: list[dict[str, Any]]
    placeless: str = ""
    together: bool = False


def open_postgres(
    source: DatabaseSource, contract: Contract | None, at: str, *, near: Near | None = None, splits: int | None = None
) -> Opened:  # fmt: skip
    """What is to be read, looked up in the catalog; `splits`: at most so many, in place of the spec's. In a run, the connection stays open until the run ends.
    Without a contract all columns of all rows are read by one, at once: rows need no place, and no connection stays.

    Raises SpecError where the server does not understand what the spec says, SourceError where there is no such table or no permission, TransientError where no
    server answers.
    """
    connection = Connection(source, at)
    held = False
    try:
        begin(connection)
        opened = _looked_up(connection, source, contract, at, near, splits)
        held = opened.snapshot is not None
        if held:
            hold(connection)
        return opened
    finally:
        if not held:
            connection.close()


def _looked_up(
    connection: Connection, source: DatabaseSource, contract: Contract | None, at: str, near: Near | None, splits: int | None
) -> Opened:
    """What is to be read, as the connection's transaction sees it; with a snapshot for the workers where the connection can stay."""
    snapshot = _exported(connection, at) if contract is not None and can_hold() else None
    [server] = connection.ask(
        "SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int4 AS number, "
        """to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS moment"""
    )
    found = relation_of(connection, source, at)
    if contract is None:
        found = found._replace(placeless="nobody asks where rows lie")
    elif found.placeless and source.row_id is None:
        raise SpecError(f"{at}: {found.placeless}; got no row_id.", hint="Say which integer column is different in every row: row_id: id.")
    columns = wanted(source, contract, found.names, at)
    types = types_of(connection, found.sql, columns)
    _check_row_id(source, dict(zip(columns, types, strict=True)), at)
    conditions = _conditions(connection, source, found, near)
    many = (splits or source.max_splits) if not found.placeless and not found.together and server["number"] >= 140_000 else 1
    cut = _cut(found.leaves, many)
    if snapshot is None:
        if splits is None and len(cut) > 1 and not can_hold():
            _LOG.warning(
                "%s: one worker reads it all: nobody stays until the job has ended, to hold a snapshot that several could share.", at
            )
        found = found._replace(together=not found.placeless)
    shown = tuple(_shown(name, kind) for name, kind in zip(columns, types, strict=True))
    placed: Placed = "row_id" if found.placeless else "together" if found.together else "pages"
    parts = ((Part(found.sql),),) if placed != "pages" else cut
    name = named(source, server["moment"])
    return Opened(source, at, name, f"PostgreSQL {server['version'].split()[0]}", shown, parts, placed, conditions, snapshot)


def begin(connection: Connection, snapshot: str | None = None) -> None:
    """Opens a transaction that only reads, in the snapshot, whose texts do not depend on the server's settings."""
    connection.ask(_BEGIN)
    if snapshot is not None:
        connection.ask(f"SET TRANSACTION SNAPSHOT {text(snapshot)}")
    connection.ask("SELECT " + ", ".join(f"set_config({text(name)}, {text(value)}, true)" for name, value in _SETTINGS.items()))
    connection.ask(f"SELECT set_config(name, '0', true) AS never FROM pg_settings WHERE name IN ({', '.join(map(text, _TIMEOUTS))})")


def _exported(connection: Connection, at: str) -> str | None:
    """The name by which other connections see the same; None, with a warning, where the server has none to give: then the transaction has been begun anew."""
    try:
        return str(connection.ask("SELECT pg_export_snapshot() AS snapshot")[0]["snapshot"])
    except TransientError:
        raise
    except BeamPipelinesError as error:
        _LOG.warning("%s: the server exports no snapshot, so one worker reads it all: %s", at, error.message.removeprefix(f"{at}: "))
        connection.ask("ROLLBACK")
        begin(connection)
        return None


def relation_of(connection: Connection, source: DatabaseSource, at: str) -> _Relation:
    """Raises SourceError where there is no such table or no permission, SpecError where it is no table or the query is wrong."""
    if source.query is not None:
        sql = f"(\n{source.query.strip().rstrip(';')}\n)"
        return _Relation(sql, connection.schema(f"SELECT * FROM {sql} AS q LIMIT 0").names, [], "rows of a query have no place")
    table = source.table or ""
    found = connection.ask(
        "SELECT c.oid::int8 AS oid, c.relkind::text AS kind, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, row_security_active(c.oid) AS guarded, has_table_privilege(c.oid, 'SELECT') AS whole "
        f"FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass({text(table)})::oid"
    )
    if not found:
        raise SourceError(f"{at}: there is no table {table}; {nearest(table, tables_of(connection))}")
    [one] = found
    if one["kind"] not in "rpmvf":
        raise SpecError(f"{at}: {table} is no table or view.")
    name, oid = str(one["name"]), int(one["oid"])
    connection.ask(f"SELECT 1 AS locked FROM {name} LIMIT 0")
    rows = connection.ask(
        f"SELECT attname::text AS name FROM pg_attribute WHERE attrelid = {oid} AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    )
    names = [str(row["name"]) for row in rows]
    if not names:
        raise SpecError(f"{at}: {table} has no columns.")
    leaves = _leaves(connection, name)
    strange = one["kind"] in "vf" or any(leaf["kind"] == "f" or leaf["method"] not in ("heap", None) for leaf in leaves)
    why = "rows of a view, or of a table that is kept elsewhere, have no place" if strange else ""
    if not why and not one["whole"]:
        why = "this user may read some columns of it, but not where a row lies"
    if len(leaves) > _MOST_LEAVES:
        why = f"it has {len(leaves):,} partitions, and places are known of {_MOST_LEAVES:,}"
    together = not why and (bool(one["guarded"]) or not all(leaf["mine"] for leaf in leaves))
    return _Relation(name, names, leaves, why, together)


def tables_of(connection: Connection) -> list[str]:
    """What one could have meant: with the schema where the name alone is not found."""
    rows = connection.ask(
        "SELECT CASE WHEN pg_table_is_visible(c.oid) THEN '' ELSE quote_ident(n.nspname) || '.' END || quote_ident(c.relname) AS name "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f') AND NOT c.relispartition "
        "AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_t%' ORDER BY 1 LIMIT 50"
    )
    return [str(row["name"]) for row in rows]


def _leaves(connection: Connection, table: str) -> list[dict[str, Any]]:
    """The tables that hold the rows: itself, its partitions, or those that inherit from it. `mine`: the user may read it, and all rows of it."""
    return connection.ask(
        f"WITH RECURSIVE tree(oid) AS (SELECT {text(table)}::regclass::oid UNION SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid) "
        "SELECT c.oid::int8 AS oid, c.relkind::text AS kind, a.amname::text AS method, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, "
        "has_table_privilege(c.oid, 'SELECT') AND NOT row_security_active(c.oid) AS mine, "
        "CASE WHEN c.relkind IN ('r', 'm') THEN pg_relation_size(c.oid) / current_setting('block_size')::int8 ELSE 0 END AS pages "
        "FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_am a ON a.oid = c.relam "
        "WHERE c.relkind IN ('r', 'm', 'f') ORDER BY c.oid"
    )


def types_of(connection: Connection, relation: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The type of each column, of a domain the type below; `item` is that of an array's items."""
    each = ", ".join(f"pg_typeof(q.{quoted(name)})::oid" for name in names)
    return connection.ask(
        f"WITH RECURSIVE given AS (SELECT u.n, u.t FROM (SELECT ARRAY[{each}] AS types FROM (SELECT 1) AS one LEFT JOIN {relation} AS q ON false) AS x, "
        "unnest(x.types) WITH ORDINALITY AS u(t, n)), base AS (SELECT n, t FROM given UNION ALL SELECT b.n, y.typbasetype FROM base b "
        "JOIN pg_type y ON y.oid = b.t AND y.typtype = 'd') "
        "SELECT y.oid::int8 AS oid, format_type(y.oid, NULL) AS words, y.typtype::text AS kind, coalesce(e.oid::int8, 0) AS item, coalesce(e.typtype::text, '') AS item_kind "
        "FROM base b JOIN pg_type y ON y.oid = b.t AND y.typtype <> 'd' LEFT JOIN pg_type e ON y.typcategory = 'A' AND e.oid = y.typelem ORDER BY b.n"
    )


def _check_row_id(source: DatabaseSource, types: dict[str, dict[str, Any]], at: str) -> None:
    if source.row_id is not None and types[source.row_id]["oid"] not in (_INT2, _INT4, _INT8):
        raise SpecError(
            f"{at}: row_id {source.row_id!r} has type {types[source.row_id]['words']}; expected smallint, integer or bigint, different in every row."
        )


def _conditions(connection: Connection, source: DatabaseSource, found: _Relation, near: Near | None) -> tuple[str, ...]:
    """`where`, which is tried here, and the run's range where the column is an instant in the table too: of other types their reading decides."""
    given = [f"({source.where}\n)"] if source.where is not None else []
    if given:
        connection.ask(f"SELECT 1 AS tried FROM {found.sql} AS q WHERE {given[0]} LIMIT 0")
    if near is None or near.column not in found.names:
        return tuple(given)
    [kind] = types_of(connection, found.sql, [near.column])
    if kind["oid"] != _TIMESTAMPTZ:
        return tuple(given)
    column = quoted(near.column)
    start, end = (f"TIMESTAMPTZ '{show_instant(at)}'" for at in near.range)
    outside = f"{column} < TIMESTAMPTZ '0001-01-01 00:00Z' OR {column} >= TIMESTAMPTZ '10000-01-01 00:00Z'"
    return (*given, f"({column} >= {start} AND {column} < {end} OR {column} IS NULL OR {outside})")


def _cut(leaves: Sequence[dict[str, Any]], most: int) -> tuple[tuple[Part, ...], ...]:
    """All pages of all tables in at most so many splits of about equal size."""
    pages = sum(int(leaf["pages"]) for leaf in leaves)
    count = max(1, min(most, pages // _LEAST_PAGES))
    size = max(1, -(-pages // count))
    splits: list[list[Part]] = [[]]
    room = size
    for number, leaf in enumerate(leaves):
        first, end = 0, int(leaf["pages"])
        while end - first > room:
            if room:
                splits[-1].append(Part(f"ONLY {leaf['name']}", number, first, first + room))
                first += room
            splits.append([])
            room = size
        splits[-1].append(Part(f"ONLY {leaf['name']}", number, first))
        room -= end - first
    return tuple(tuple(split) for split in splits)


def _shown(name: str, kind: dict[str, Any]) -> Shown:
    """What Arrow holds exactly as it is, all else as the server's text."""
    column, oid, item = quoted(name), int(kind["oid"]), int(kind["item"])
    if item:
        return _shown_list(name, kind)
    if oid in _BOUNDS:
        within, expected = _BOUNDS[oid]
        return Shown(name, column, _wrong(name, f"NOT ({within.format(column)})", f"{column}::text", expected), kind["words"])
    if oid in _NATIVE:
        return Shown(name, column, None, kind["words"])
    if kind["kind"] == "c" or oid == _RECORD:
        return Shown(name, f"to_json({column})::text", None, kind["words"])
    return Shown(name, f"{column}::numeric::text" if oid == _MONEY else f"{column}::text", None, kind["words"])


def _shown_list(name: str, kind: dict[str, Any]) -> Shown:
    """A list; of several dimensions it would come flattened, and of a first number other than 1 not at all."""
    column, item = quoted(name), int(kind["item"])
    if kind["item_kind"] == "c" or item == _RECORD:
        return Shown(name, f"to_json({column})::text", None, kind["words"])
    values = column if item in _NATIVE or item in _BOUNDS else f"{column}::text[]"
    sql = f"CASE WHEN array_ndims({column}) > 1 THEN NULL WHEN array_lower({column}, 1) <> 1 THEN ({values})[:] ELSE {values} END"
    wrong = _wrong(name, f"array_ndims({column}) > 1", f"array_ndims({column}) || ' dimensions'", "one")
    if item in _BOUNDS:
        within, expected = _BOUNDS[item]
        beside = f"EXISTS (SELECT FROM unnest({column}) AS item WHERE NOT ({within.format('item')}))"
        wrong += " " + _wrong(name, beside, f"{column}::text", f"items that are each {expected}")
    return Shown(name, sql, wrong, kind["words"])


def _wrong(name: str, condition: str, value: str, expected: str) -> str:
    """What is said of a row, which dead letters hide where the contract has sensitive columns."""
    return f"WHEN {condition} THEN {text(f'{name}: got ')} || left({value}, 100) || {text(f'; expected {expected}')}"


def read_postgres(opened: Opened, split: int) -> Iterator[pa.RecordBatch]:
    """The rows of one split, in batches that begin with PLACE (int64) and REFUSED: all rows, each once.

    Where the connection breaks, reading goes on behind the last row, in the same snapshot. Raises TransientError where there is none any more.
    """
    reading = _Reading(opened)
    try:
        for part in opened.splits[split]:
            yield from reading.rows(part)
    finally:
        reading.close()


class _Reading:
    """A connection in the snapshot, made anew where it breaks."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._connection = self._connected()
        self._numbered = 0  # rows without a place
        self._leaves: pa.Array | None = None  # the numbers of the tables that are read together

    def close(self) -> None:
        self._connection.close()

    def rows(self, part: Part) -> Iterator[pa.RecordBatch]:
        opened = self._opened
        if opened.placed == "together":
            self._leaves = pa.array([leaf["oid"] for leaf in _leaves(self._connection, part.relation)], pa.int64())
        came = _Came(ordered=not opened.conditions)
        failures, since_s = 0, 0.0
        while True:
            try:
                for batch in self._connection.stream(_select(opened, part, came.last)):
                    found = came.new(self._placed(batch, part))
                    if found.num_rows:
                        failures = 0
                        yield found
                return
            except ConnectionLost as lost:
                if opened.snapshot is None or opened.placed != "pages" or not came.known:
                    raise TransientError(f"{opened.at}: the connection broke in the middle: {lost.said}.", hint="Run again.") from None
                came.again()
                since_s = since_s if failures else time.monotonic()
                failures += 1
                self._connection.close()
                self._connection = self._again(lost, failures, since_s)

    def _again(self, lost: ConnectionLost, failures: int, since_s: float) -> Connection:
        while True:
            if time.monotonic() - since_s > _PATIENCE_S or failures > 100:
                raise TransientError(f"{self._opened.at}: the connection breaks again and again: {lost.said}.", hint="Run again later.")
            time.sleep(back_off_s(failures))
            try:
                return self._connected()
            except TransientError as error:
                if error.hint == _SNAPSHOT_OVER:
                    raise
                failures += 1

    def _connected(self) -> Connection:
        opened = self._opened
        connection = Connection(opened.source, opened.at)
        try:
            begin(connection, opened.snapshot)
        except BeamPipelinesError as error:
            connection.close()
            said = error.message.removeprefix(opened.at)  # without the table's name
            if opened.snapshot is not None and ("snapshot" in said or "transaction" in said):
                raise TransientError(
                    f"{opened.at}: what the run reads is over: {error.message.rsplit(': ', 1)[-1]}", hint=_SNAPSHOT_OVER
                ) from None
            raise
        return connection

    def _placed(self, batch: pa.RecordBatch, part: Part) -> pa.RecordBatch:
        """The batch with the place of each row as a number."""
        if self._opened.placed == "row_id":
            places = np.arange(self._numbered, self._numbered + batch.num_rows, dtype=np.int64)
            self._numbered += batch.num_rows
            return batch.add_column(0, PLACE, pa.array(places))
        if self._leaves is None:
            return batch.set_column(0, PLACE, pa.array(_numbers(batch.column(PLACE)) | part.leaf << 48))
        leaves = pc.index_in(batch.column(LEAF), self._leaves)
        if leaves.null_count:  # a partition that was attached since is none of the snapshot's
            batch, leaves = batch.filter(leaves.is_valid()), leaves.drop_null()
        places = _numbers(batch.column(PLACE)) | leaves.to_numpy().astype(np.int64) << 48
        return batch.drop_columns([LEAF]).set_column(0, PLACE, pa.array(places))


class _Came:
    """Which rows of a part have come: up to which place where they come in order, else the places, as far as memory allows."""

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._places: list[npt.NDArray[np.int64]] = []  # of this statement, which gives no row twice
        self._before = np.empty(0, np.int64)  # of those before it, in order
        self._rows = 0
        self.last: int | None = None

    @property
    def known(self) -> bool:
        return self._ordered or self._rows <= _REMEMBERED

    def new(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of the batch that have not come before; they count as come."""
        places = batch.column(0).to_numpy()
        if not len(places):
            return batch
        if self._ordered:
            self.last = int(places[-1])
            return batch
        if len(self._before):
            new = self._before.take(np.searchsorted(self._before, places), mode="clip") != places
            batch, places = batch.filter(pa.array(new)), places[new]
        self._rows += len(places)
        if self.known:
            self._places.append(places)
        else:
            self._places = []
        return batch

    def again(self) -> None:
        """The next statement begins, which gives rows that have come once more."""
        self._before = np.sort(np.concatenate([self._before, *self._places]))
        self._places = []


def _numbers(ctid: pa.Array) -> npt.NDArray[np.int64]:
    """Places in a table as numbers: the page (32 bits) and the row in it (16 bits); the driver gives them as six bytes."""
    stored = plain(ctid)
    offsets = np.frombuffer(stored.buffers()[1], np.int32)[stored.offset : stored.offset + len(stored) + 1]
    pairs = np.frombuffer(
        stored.buffers()[2], np.dtype([("page", ">u4"), ("row", ">u2")]), count=len(stored), offset=int(offsets[0]) if len(stored) else 0
    )
    return (pairs["page"].astype(np.int64) << 16) | pairs["row"].astype(np.int64)


def schema_of(opened: Opened) -> pa.Schema:
    """What batches of it would have, where there is no row."""
    connection = Connection(opened.source, opened.at)
    try:
        return connection.schema(f"{_select(opened, opened.splits[0][0], None)} LIMIT 0")
    finally:
        connection.close()


def _select(opened: Opened, part: Part, after: int | None) -> str:
    """The rows of a part that lie behind the place `after`."""
    columns = [] if opened.placed == "row_id" else [f"q.ctid AS {quoted(PLACE)}"]
    columns += [f"q.tableoid::int8 AS {quoted(LEAF)}"] if opened.placed == "together" else []
    wrong = " ".join(column.wrong for column in opened.shown if column.wrong is not None)
    columns.append(f"{f'CASE {wrong} END' if wrong else 'NULL::text'} AS {quoted(REFUSED)}")
    columns += [f"{column.sql} AS {quoted(column.name)}" for column in opened.shown]
    conditions = list(opened.conditions)
    if after is not None:
        conditions.append(f"q.ctid > '({(after >> 16) & 0xFFFFFFFF},{after & 0xFFFF})'::tid")
    elif part.first:
        conditions.append(f"q.ctid >= '({part.first},0)'::tid")
    if part.end >= 0:
        conditions.append(f"q.ctid < '({part.end},0)'::tid")
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {', '.join(columns)} FROM {part.relation} AS q{where}"
