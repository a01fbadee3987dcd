"""SQL that reads an output exactly as committed, for DuckDB. Loads no Beam."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from beam_pipelines.places import local
from beam_pipelines.sinks.manifest import Snapshot

BASE64 = "base64:"
"""Prefix, in text files, of bytes that are no UTF-8."""
NO_ROWS = "SELECT NULL AS nothing WHERE FALSE"
"""An output that never had a row: its columns are not known."""


def select_sql(snapshot: Snapshot) -> str:
    """A SELECT over the live files of the output, with its columns in order and their types; zero rows if it has no files.

    Dead letters that a later run superseded are left out.
    """
    if not snapshot.files or not snapshot.schema:  # without a schema no row was ever written
        return _empty(snapshot.schema)
    columns = ", ".join(_name(n) if snapshot.format == "parquet" else _value(n, kind) for n, kind in snapshot.schema)
    return f"SELECT {columns} FROM {_scan(snapshot)}{_where(snapshot) if snapshot.of == 'dead_letters' else ''}"


def _empty(schema: Sequence[tuple[str, str]]) -> str:
    columns = ", ".join(f"NULL::{kind} AS {_name(name)}" for name, kind in schema)
    return f"SELECT {columns} WHERE FALSE" if columns else NO_ROWS


def _scan(snapshot: Snapshot) -> str:
    files = "[" + ", ".join(_text(local(p)) for p in snapshot.paths) + "]"
    types = dict(snapshot.schema)
    if snapshot.format == "parquet":
        hive = {p: types[p] for p in snapshot.partitions if p in types}
        joined = "" if snapshot.alike else ", union_by_name = true"  # which opens every file to learn its columns
        return read_hive(files + joined, snapshot.folder, hive)
    if snapshot.format == "csv":
        return f"read_csv({files}, header = true, delim = ',', quote = '\"', escape = '\"', auto_detect = false, allow_quoted_nulls = false, hive_partitioning = false, columns = {_struct(_texts(types), quoted=True)})"
    return f"read_json({files}, format = 'newline_delimited', hive_partitioning = false, columns = {_struct(_bytes_as_text(types), quoted=True)})"


def read_hive(files: str, folder: str, partitions: Mapping[str, str]) -> str:
    """`read_parquet(files)`, and as columns the `partitions`, name and SQL type, that the folders below `folder` stand for.

    DuckDB takes every `name=value` of a path for a column, which then hides that of the files. So where `folder` itself lies below such a one, partitions
    are taken from the files' names, which costs looking into all of them.
    """
    if not partitions:
        return f"read_parquet({files}, hive_partitioning = false)"
    if not any("=" in name for name in local(folder).split("/")):
        return f"read_parquet({files}, hive_partitioning = true, hive_types = {_struct(partitions)})"
    own = f"COLUMNS(lambda c: c NOT IN ({', '.join(map(_text, ('$path', *partitions)))}))"
    said = ", ".join(f"{_said(name)}::{kind} AS {_name(name)}" for name, kind in partitions.items())
    return f"(SELECT {own}, {said} FROM read_parquet({files}, hive_partitioning = false, filename = '$path'))"


def _said(partition: str) -> str:
    """What the last folder of this name says."""
    last = _text(rf".*/\Q{partition}\E=([^/]*)/")
    return f"nullif(url_decode(regexp_extract(\"$path\", {last}, 1)), '__HIVE_DEFAULT_PARTITION__')"


def _value(name: str, kind: str) -> str:
    """A column of a text file; bytes were written as text, or as base64 where they are none."""
    column = _name(name)
    if kind != "BLOB":
        return column
    start = len(BASE64) + 1
    return f"CASE WHEN starts_with({column}, {_text(BASE64)}) THEN from_base64(substr({column}, {start})) ELSE encode({column}) END AS {column}"


def _bytes_as_text(types: Mapping[str, str]) -> dict[str, str]:
    """JSON holds no bytes, also not inside structs and lists."""
    return {n: re.sub(r"\bBLOB\b", "VARCHAR", k) for n, k in types.items()}


def _texts(types: Mapping[str, str]) -> dict[str, str]:
    """Types a CSV field can be read as; what is nested or binary stays text."""
    return {n: "VARCHAR" if k.endswith("]") or k.startswith(("STRUCT", "MAP")) or k == "BLOB" else k for n, k in types.items()}


def _where(snapshot: Snapshot) -> str:
    """Leaves out letters that later runs have superseded."""
    clauses = [
        f"NOT (run_id = {_text(run)} AND source IN ({', '.join(map(_text, sources))}))"
        for run, sources in snapshot.superseded.items()
        if sources
    ]
    versions = ", ".join(f"({_text(run)}, {version})" for run, version in snapshot.said_in.items())
    if versions and any(s.version > min(snapshot.said_in.values()) for s in snapshot.settled):
        joined = f"JOIN (VALUES {versions}) AS said(by_run, said_in) ON said_in < in_version"
        clauses.append(f"NOT {superseded_sql(snapshot, joined, 'by_run = run_id')}")
    return f" WHERE {' AND '.join(clauses)}" if clauses else ""


def superseded_sql(snapshot: Snapshot, joined: str, earlier: str) -> str:
    """A condition on a dead letter: a run has read its record again since. `earlier` says what "since" means, over settled(…, in_version, as_of)."""
    if not snapshot.settled:
        return "FALSE"
    sources = ", ".join(f"({_text(key)}, {_text(source)})" for key, listed in snapshot.source_sets.items() for source in listed)
    known = (
        f"JOIN (VALUES {sources}) AS known(key, known_source) ON key = read"
        if sources
        else "JOIN (SELECT NULL AS key, NULL AS known_source WHERE FALSE) ON TRUE"
    )
    ranges = ", ".join(
        f"({s.version}, {s.as_of}, {_text(s.sources)}, {_bigint(s.start)}, {s.end}, {'NULL::BIGINT' if s.since is None else s.since})"
        for s in snapshot.settled
    )
    return (
        f"EXISTS (SELECT 1 FROM (VALUES {ranges}) AS settled(in_version, as_of, read, from_time, to_time, since) {joined} {known}"
        f" WHERE {earlier} AND known_source = source AND (since IS NULL OR epoch_us(arrival_time) >= since)"
        " AND (event_time IS NULL OR epoch_us(event_time) >= from_time AND epoch_us(event_time) < to_time))"
    )


def _bigint(number: int) -> str:
    """As SQL: the smallest one has no literal."""
    return f"({number + 1} - 1)::BIGINT" if number == -(2**63) else f"{number}::BIGINT"


def _struct(types: Mapping[str, str], *, quoted: bool = False) -> str:
    return "{" + ", ".join(f"{_text(n)}: {_text(k) if quoted else k}" for n, k in types.items()) + "}"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
