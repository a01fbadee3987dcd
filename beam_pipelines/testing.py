"""The testing kit: run a real spec, whole, on rows given in a test, and look at what comes out.

    result = run_spec("flights.yaml", rows=[{"origin": "JFK", ...}])
    assert [r["origin"] for r in result.rows] == ["JFK"]
    assert result.dead_letters[0]["reason"] == "CAST"

The graph is the one of production, on a real runner; its files are in a temporary folder that is gone when the call returns.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from beam_pipelines.errors import SpecError
from beam_pipelines.formats.options import CsvFormat, Format, JsonFormat
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.spec.load import LoadedSpec, load_spec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sinks import ParquetSink, Sink
from beam_pipelines.spec.sources import FileSource, Sources

Record = Mapping[str, Any] | str | bytes
"""A row: a mapping, or the text or bytes of one record as it would stand in the file."""


@dataclass(frozen=True)
class SpecResult:
    """What a spec made of the given rows. Rows carry no provenance columns; dead letters are whole; times are datetimes in UTC."""

    rows: list[dict[str, Any]]
    dead_letters: list[dict[str, Any]]
    aggregates: dict[str, list[dict[str, Any]]]
    run: RunResults

    @property
    def reasons(self) -> dict[str, int]:
        """Dead letters by `stage:REASON`."""
        return dict(self.run.dead_letters)


def run_spec(
    spec: str | os.PathLike[str] | LoadedSpec, rows: Iterable[Record], *, source: int = 0, set_: Mapping[str, str] | None = None, apply_lateness: bool = False
) -> SpecResult:  # fmt: skip
    """Runs `spec` on `rows` instead of its files and gives everything it would have written.

    `rows` stand in for the batch source number `source` and are written in its format (CSV values as text, NULL as an empty field). Lookups are read
    from where the spec says. Raises SpecError for a wrong spec; a run that fails by a threshold or check is a result with `run.status == "failed"`
    and nothing written.
    """
    found = spec if isinstance(spec, LoadedSpec) else load_spec(spec, set_=set_ or {})
    if not 0 <= source < len(found.spec.sources.batch):
        raise SpecError(f"run_spec: source {source}: the spec has {len(found.spec.sources.batch)} batch sources.")
    with tempfile.TemporaryDirectory(prefix="beam-pipelines-test-") as folder:
        return _run_in(folder, found, list(rows), source, apply_lateness)


def assert_rows(actual: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], *, columns: Iterable[str] | None = None) -> None:
    """Asserts that both hold the same rows, in any order, compared on `columns` (default: those that expected rows name).

    Raises AssertionError that lists the rows that are missing and those that are too many.
    """
    names = list(columns) if columns is not None else list(dict.fromkeys(n for row in expected for n in row))
    have, want = [_key(r, names) for r in actual], [_key(r, names) for r in expected]
    missing, extra = _without(want, have), _without(have, want)
    if missing or extra:
        lines = [f"  missing: {text}" for text in missing] + [f"  not expected: {text}" for text in extra]
        raise AssertionError("rows differ on " + ", ".join(names) + ":\n" + "\n".join(lines))


def _key(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return json.dumps({n: row.get(n) for n in names}, default=str, ensure_ascii=False)


def _without(rows: Sequence[str], others: Sequence[str]) -> list[str]:
    left = list(others)
    found = []
    for row in rows:
        if row in left:
            left.remove(row)
        else:
            found.append(row)
    return found


def _run_in(folder: str, found: LoadedSpec, rows: list[Record], number: int, apply_lateness: bool) -> SpecResult:
    given = found.spec.sources.batch[number]
    path = os.path.join(folder, "given")
    with open(path, "wb") as out:
        out.write(encode(rows, given.format, names=list(found.spec.contract.read)))
    spec = _redirected(found.spec, given.model_copy(update={"files": path, "compression": "none"}), folder)
    loaded = replace(found, spec=spec)
    record = run_batch(loaded, Call(apply_lateness=apply_lateness))
    tables = open_tables(loaded.state)
    names = {str(r[0]) for r in tables.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()}

    def content(name: str, columns: str = "*") -> list[dict[str, Any]]:
        return ask(tables, f'SELECT {columns} FROM "{name}"').to_pylist() if name in names else []

    provenance = "* EXCLUDE (_source, _position, _arrival_time, _run_id, _contract)"
    return SpecResult(content("rows", provenance), content("dead_letters"), {name: content(name) for name in spec.aggregates}, record)


def _redirected(spec: PipelineSpec, source: FileSource, folder: str) -> PipelineSpec:
    """The spec with one source, and every output as Parquet in `folder`."""
    outputs = ["rows", "dead_letters", *spec.aggregates]
    sinks = tuple(Sink(from_=name, parquet=ParquetSink(path=os.path.join(folder, "out", name))) for name in outputs)
    sources = Sources(batch=(source,))
    return spec.model_copy(update={"sources": sources, "sinks": sinks, "state": os.path.join(folder, "state"), "provenance": "on"})


def encode(rows: Sequence[Record], fmt: Format, *, names: Sequence[str] = ()) -> bytes:
    """Rows as the bytes of one file in `fmt`; texts and bytes are records as they stand."""
    if isinstance(fmt, CsvFormat):
        return _as_csv(rows, fmt, names)
    if fmt.type in ("json", "text"):
        lines = [r if isinstance(r, bytes) else r.encode() if isinstance(r, str) else json.dumps(r, default=str).encode() for r in rows]
        if isinstance(fmt, JsonFormat) and fmt.layout == "array":
            return b"[" + b",".join(lines) + b"]"
        return b"".join(line + b"\n" for line in lines)
    return _as_columns(rows, fmt.type)


def _as_csv(rows: Sequence[Record], fmt: CsvFormat, names: Sequence[str]) -> bytes:
    out = io.StringIO()
    columns = list(fmt.columns or dict.fromkeys([*(n for r in rows if isinstance(r, Mapping) for n in r)] or names))
    style: Any = {"delimiter": fmt.delimiter, "lineterminator": "\n"}
    style |= {"quotechar": fmt.quote} if fmt.quote else {"quoting": csv.QUOTE_NONE}
    style |= {"escapechar": fmt.escape, "doublequote": False} if fmt.escape else {}
    writer = csv.writer(out, **style)
    if fmt.header:
        writer.writerow(columns)
    for row in rows:
        if isinstance(row, Mapping):
            writer.writerow([_text(row.get(c)) for c in columns])
        else:
            out.write((row.decode() if isinstance(row, bytes) else row) + "\n")
    return out.getvalue().encode(fmt.encoding)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)


def _as_columns(rows: Sequence[Record], kind: str) -> bytes:
    dicts = [dict(r) for r in rows if isinstance(r, Mapping)]
    if len(dicts) != len(rows):
        raise SpecError(f"run_spec: rows of a {kind} source are mappings; got a text or bytes.")
    table, sink = pa.Table.from_pylist(dicts), pa.BufferOutputStream()
    if kind == "parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, sink)
    elif kind == "orc":
        import pyarrow.orc

        pyarrow.orc.write_table(table, sink)
    else:
        raise SpecError(f"run_spec: rows cannot be given for a {kind} source; give a file in the spec instead.")
    return bytes(sink.getvalue())
