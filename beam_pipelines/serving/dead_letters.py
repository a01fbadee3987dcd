"""Dead letters, grouped: how many for which reason, and samples with the record as it was read."""

from __future__ import annotations

from dataclasses import dataclass, field

import duckdb

from beam_pipelines.arrow.engine import literal
from beam_pipelines.errors import SpecError, nearest
from beam_pipelines.serving.tables import ask

TABLE = "dead_letters"
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


def inspect_letters(
    connection: duckdb.DuckDBPyConnection, *, where: str | None = None, reason: str | None = None, samples: int = 2
) -> Inspection:
    """The dead letters in `connection` (see `open_tables`) that fit the SQL condition `where` and the reason code, grouped.

    Raises SpecError where nothing was committed yet, for a wrong condition, and for a reason that does not occur.
    """
    if reason is not None:
        _check_reason(connection, reason)
    letters = _selected(where, reason)
    total = int(ask(connection, f"SELECT count(DISTINCT (source, position)) AS n FROM {letters}", expected=[TABLE])["n"][0].as_py())
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


def _selected(where: str | None, reason: str | None) -> str:
    conditions = [f"({where}\n)"] if where else []  # the line break ends a comment in it
    conditions += [f"reason = {literal(reason.upper())}"] if reason else []
    return f"(SELECT * FROM {TABLE} WHERE {' AND '.join(conditions) or 'TRUE'})"


def _check_reason(connection: duckdb.DuckDBPyConnection, reason: str) -> None:
    known = [str(r) for r in ask(connection, f"SELECT DISTINCT reason FROM {TABLE}", expected=[TABLE])["reason"].to_pylist()]
    if reason.upper() not in known:
        hint = nearest(reason.upper(), known) if known else "There are no dead letters."
        raise SpecError(f"dlq: no dead letter has the reason {reason!r};", hint=hint)


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
