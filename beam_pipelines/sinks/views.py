"""SQL that reads an output exactly as committed, for DuckDB. Loads no Beam."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from beam_pipelines.places import local
from beam_pipelines.sinks.manifest import Snapshot

BASE64 = "base64:"
"""Prefix, in text files, of bytes that are no UTF-8."""


def select_sql(snapshot: Snapshot) -> str:
    """A SELECT over the live files of the output, with its columns in order and their types; zero rows if it has no files.

    Dead letters that a later run superseded are left out.
    """
    if not snapshot.files or not snapshot.schema:  # without a schema no row was ever written
        return _empty(snapshot.schema)
    columns = ", ".join(_name(n) if snapshot.format == "parquet" else _value(n, kind) for n, kind in snapshot.schema)
    return f"SELECT {columns} FROM {_scan(snapshot)}{_where(snapshot.superseded)}"


def _empty(schema: Sequence[tuple[str, str]]) -> str:
    columns = ", ".join(f"NULL::{kind} AS {_name(name)}" for name, kind in schema)
    return f"SELECT {columns or 'NULL AS nothing'} WHERE FALSE"


def _scan(snapshot: Snapshot) -> str:
    files = "[" + ", ".join(_text(local(p)) for p in snapshot.paths) + "]"
    types = dict(snapshot.schema)
    if snapshot.format == "parquet":
        hive = {p: types[p] for p in snapshot.partitions if p in types}
        options = f", hive_partitioning = true, hive_types = {_struct(hive)}" if hive else ", hive_partitioning = false"
        return f"read_parquet({files}, union_by_name = true{options})"
    if snapshot.format == "csv":
        return f"read_csv({files}, header = true, delim = ',', quote = '\"', escape = '\"', auto_detect = false, allow_quoted_nulls = false, columns = {_struct(_texts(types), quoted=True)})"
    return f"read_json({files}, format = 'newline_delimited', columns = {_struct(_bytes_as_text(types), quoted=True)})"


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


def _where(superseded: Mapping[str, Sequence[str]]) -> str:
    clauses = [
        f"NOT (run_id = {_text(run)} AND source IN ({', '.join(map(_text, sources))}))" for run, sources in superseded.items() if sources
    ]
    return f" WHERE {' AND '.join(clauses)}" if clauses else ""


def _struct(types: Mapping[str, str], *, quoted: bool = False) -> str:
    return "{" + ", ".join(f"{_text(n)}: {_text(k) if quoted else k}" for n, k in types.items()) + "}"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
