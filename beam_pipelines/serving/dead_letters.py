"""Dead letters that are open, grouped: how many for which reason, with samples of the records as they were read; and what became of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import duckdb
import pyarrow as pa

from beam_pipelines.arrow.engine import literal
from beam_pipelines.arrow.schema import DEAD_LETTERS
from beam_pipelines.errors import SpecError, nearest
from beam_pipelines.places.sql import reading
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.sinks.failed_letters import KEPT_FAILED_RUNS, kept_sql, kept_there
from beam_pipelines.sinks.resolutions import NO_HISTORY, NO_LETTERS, history_sql, open_sql, with_failures
from beam_pipelines.sinks.results import RunResults

TABLE = "dead_letters"
OPEN, HISTORY = "open_dead_letters", "dead_letter_history"
"""Tables of `open_letters`: the letters that nothing has become of yet, and those that are resolved (`resolutions.RESOLVED`)."""
_SEALED = "+sealed"
_RAW_BYTES = 400


@dataclass(frozen=True)
class Sample:
    """One dead letter: where the record lies, why it was refused, and the record (None: not kept, or sealed)."""

    source: str
    position: int | None
    message: str
    raw: str | None
    run_id: str


@dataclass(frozen=True)
class Group:
    """Dead letters of one stage and reason. `rows` counts records, (source, position), not letters; `checks` those failing each check or rule."""

    stage: str
    reason: str
    rows: int
    share: float
    checks: dict[str, int] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """All groups, the largest first; `rows` is the number of rejected records in them together."""

    rows: int
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Past:
    """Letters that are resolved alike: `rows` records, `how` (replayed, discarded, read again), by which run or whom, and why; when, the last of them."""

    stage: str
    reason: str
    how: str
    rows: int
    run: str
    who: str
    why: str
    at: datetime | None


def open_letters(state: str, places: Mapping[str, str] | None = None) -> duckdb.DuckDBPyConnection:
    """`open_tables` with two tables more: `open_dead_letters`, and `dead_letter_history`. Raises SpecError where no letters were ever written."""
    connection = open_tables(state, places)
    columns = ask(connection, f"DESCRIBE SELECT * FROM {TABLE}", expected=[TABLE]).to_pylist()
    kinds = {column["column_name"]: column["column_type"] for column in columns}
    letters = f"SELECT * FROM {TABLE}" if set(DEAD_LETTERS.names) <= kinds.keys() else NO_LETTERS
    if kinds.get("failures") == "VARCHAR":
        letters = with_failures(letters)
    connection.execute(f"CREATE VIEW {OPEN} AS {open_sql(state, letters)}")
    if HISTORY not in (row[0] for row in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()):
        connection.execute(f"CREATE VIEW {HISTORY} AS {history_sql(state)}")
    return connection


def failed_letters(run: RunResults) -> duckdb.DuckDBPyConnection:
    """A connection whose `open_dead_letters` are those of a batch that failed; none of them is resolved. Raises SpecError where they are gone, or were never kept."""
    connection = duckdb.connect(":memory:")
    connection.execute("SET TimeZone = 'UTC'")
    kept = run.kept_letters
    if kept is None and run.dead_letters:
        raise SpecError(f"dlq: no letters of run '{run.metadata.run_id}' were kept.", hint=f"It failed: {'; '.join(run.failures)}.")
    if kept is not None and not kept_there(kept):
        raise SpecError(
            f"dlq: the letters of run '{run.metadata.run_id}' are no longer in {kept.folder}.",
            hint=f"Those of the newest {KEPT_FAILED_RUNS} runs that failed are kept, and as long as `retention` says.",
        )
    letters = NO_LETTERS if kept is None else kept_sql(kept)
    reading(connection, letters)
    connection.execute(f"CREATE VIEW {OPEN} AS {letters}")
    connection.execute(f"CREATE VIEW {HISTORY} AS {NO_HISTORY}")
    return connection


def has_letters(connection: duckdb.DuckDBPyConnection, *, where: str) -> bool:
    """Whether a letter of `open_letters` fits the SQL condition, resolved or not."""
    return any(ask(connection, f"SELECT 1 FROM {_selected(where, None, table)} LIMIT 1").num_rows for table in (OPEN, HISTORY))


def select_letters(
    connection: duckdb.DuckDBPyConnection, *, where: str | None = None, reason: str | None = None, limit: int | None = None
) -> pa.Table:
    """The open letters (DEAD_LETTERS) that fit the SQL condition and the reason code, by source and position, at most `limit` records.

    `connection` is that of `open_letters`. Raises SpecError for a wrong condition, and for a reason that no open letter has.
    """
    if reason is not None:
        _check_reason(connection, reason, OPEN)
    most = "" if limit is None else f" QUALIFY dense_rank() OVER (ORDER BY source, position) <= {limit:d}"
    names = ", ".join(DEAD_LETTERS.names)
    return _asked(
        connection, f"SELECT {names} FROM {_selected(where, reason, OPEN)}{most} ORDER BY source, position, stage, reason", where
    ).cast(DEAD_LETTERS)


def past_letters(connection: duckdb.DuckDBPyConnection, *, where: str | None = None, reason: str | None = None) -> tuple[Past, ...]:
    """What became of letters that fit and are resolved, the newest first. Raises SpecError for a wrong condition."""
    sql = (
        'SELECT stage, reason, how, count(DISTINCT (source, position)) AS "rows", max(resolved_at) AS "at", '
        "coalesce(resolved_by, '') AS run, coalesce(who, '') AS who, coalesce(why, '') AS why "
        f"FROM {_selected(where, reason, HISTORY)} GROUP BY ALL ORDER BY max(resolved_at) DESC, stage, reason, how"
    )
    return tuple(Past(**row) for row in _asked(connection, sql, where).to_pylist())


def _asked(connection: duckdb.DuckDBPyConnection, sql: str, where: str | None) -> pa.Table:
    """As `ask`; what is wrong is wrong with the condition, where there is one."""
    try:
        return ask(connection, sql)
    except SpecError as error:
        if where is None:
            raise
        hint = error.hint or f"Its columns are those of a dead letter: {', '.join(DEAD_LETTERS.names)}."
        raise SpecError(f"--where: {error.message.removeprefix('query: ')}", hint=hint) from None


def inspect_letters(
    connection: duckdb.DuckDBPyConnection, *, where: str | None = None, reason: str | None = None, samples: int = 2, table: str = TABLE,
    known: Sequence[str] = (),
) -> Inspection:  # fmt: skip
    """The dead letters of `table` in `connection` (see `open_letters`) that fit the SQL condition `where` and the reason code, grouped.

    Raises SpecError for a wrong condition, and for a reason that does not occur and is not among the `known`.
    """
    if reason is not None and reason.upper() not in known:
        _check_reason(connection, reason, table)
    letters = _selected(where, reason, table)
    total = int(_asked(connection, f"SELECT count(DISTINCT (source, position)) AS n FROM {letters}", where)["n"][0].as_py())
    found = ask(
        connection,
        f"SELECT stage, reason, count(DISTINCT (source, position)) AS n FROM {letters} GROUP BY ALL ORDER BY n DESC, stage, reason",
    )
    checks = _checks(connection, letters)
    groups = (
        Group(row["stage"], row["reason"], row["n"], row["n"] / total, checks.get((row["stage"], row["reason"]), {}),
              _samples(connection, letters, row["stage"], row["reason"], samples))
        for row in found.to_pylist()
    )  # fmt: skip
    return Inspection(total, tuple(groups))


def _selected(where: str | None, reason: str | None, table: str) -> str:
    conditions = [f"({where}\n)"] if where else []  # the line break ends a comment in it
    conditions += [f"reason = {literal(reason.upper())}"] if reason else []
    return f"(SELECT * FROM {table} WHERE {' AND '.join(conditions) or 'TRUE'})"


def _check_reason(connection: duckdb.DuckDBPyConnection, reason: str, table: str) -> None:
    known = [str(r) for r in ask(connection, f"SELECT DISTINCT reason FROM {table}", expected=[table])["reason"].to_pylist()]
    if reason.upper() not in known:
        hint = nearest(reason.upper(), known) if known else "There are no open ones."
        raise SpecError(f"dlq: no open dead letter has the reason {reason!r};", hint=hint)


def _checks(connection: duckdb.DuckDBPyConnection, letters: str) -> dict[tuple[str, str], dict[str, int]]:
    sql = (
        f"SELECT stage, reason, failure.name AS name, count(DISTINCT (source, position)) AS n FROM "
        f"(SELECT stage, reason, source, position, unnest(failures) AS failure FROM {letters}) GROUP BY ALL ORDER BY n DESC, name"
    )
    found: dict[tuple[str, str], dict[str, int]] = {}
    for row in ask(connection, sql).to_pylist():
        found.setdefault((row["stage"], row["reason"]), {})[str(row["name"])] = row["n"]
    return found


def _samples(connection: duckdb.DuckDBPyConnection, letters: str, stage: str, reason: str, most: int) -> tuple[Sample, ...]:
    """The first letters of a group, one of each message's kind before a second of the same (kinds: the names of all that failed)."""
    columns = f"source, position, message, octet_length(raw) AS bytes, raw[:{_RAW_BYTES}] AS raw, raw_format, run_id"
    sql = (
        f"SELECT {columns} FROM (SELECT *, row_number() OVER (PARTITION BY list_sort([f.name for f in failures]) ORDER BY source, position) AS turn "
        f"FROM {letters} WHERE stage = {literal(stage)} AND reason = {literal(reason)}) ORDER BY turn, source, position LIMIT {most:d}"
    )
    return tuple(
        Sample(r["source"], r["position"], r["message"] or "", _raw(r["raw"], r["raw_format"], r["bytes"]), r["run_id"] or "")
        for r in ask(connection, sql).to_pylist()
    )


def _raw(raw: bytes | None, raw_format: str | None, size: int | None) -> str | None:
    if raw is None:
        return None
    if (raw_format or "").endswith(_SEALED):
        return f"({size:,} bytes, encrypted)"
    text = raw.hex(" ") if raw_format == "avro" and not _readable(raw) else raw.decode("utf-8", "backslashreplace")
    return text + (f"… ({size:,} bytes)" if size and size > _RAW_BYTES else "")


def _readable(raw: bytes) -> bool:
    try:
        return raw.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False
