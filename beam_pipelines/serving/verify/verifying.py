"""Comparing the batch layer with the speed layer: what both hold, where they differ, and why. Bounded memory: DuckDB lays aside on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from beam_pipelines.arrow.ranges import Range, widened
from beam_pipelines.errors import SpecError
from beam_pipelines.places.sql import reading
from beam_pipelines.serving.verify.compare import COMPARED_ROWS, KINDS, differences
from beam_pipelines.serving.verify.evidence import Case, gather
from beam_pipelines.serving.verify.findings import CAUSES, UNEXPLAINED, Compared, Difference, Kind, Part, Verification
from beam_pipelines.serving.verify.layers import UNDATED, Layers, layers_of
from beam_pipelines.serving.verify.retrying import retry
from beam_pipelines.serving.verify.rows import explain_rows
from beam_pipelines.serving.verify.windows import explain_windows
from beam_pipelines.sinks.labels import places_of
from beam_pipelines.sinks.outputs import read_outputs
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sinks import ROWS

TOLERANCE = 1e-9
MEMORY = "1GB"


def verify(
    spec: PipelineSpec, state: str, asked: Range | None = None, *, tolerance: float = TOLERANCE, samples: int = 20, memory: str = MEMORY, rows: int = COMPARED_ROWS,
    watch: Callable[[str], object] = lambda _: None,
) -> Verification:  # fmt: skip
    """Batch layer against speed layer over `asked` (event time, or start of the window; None: all that a batch run has committed).

    Floats are equal within `tolerance` of the larger one; everything else exactly. `samples` differences are kept of each output, of every cause some,
    those without one first. DuckDB holds at most `memory`, and compares about `rows` rows at a time; `watch` is told the output before each piece.

    Raises SpecError where there is nothing to compare, RunError where files cannot be read or the temporary folder is full.
    """
    stream, places = read_outputs(state), places_of(spec)
    with _connection(memory) as connection:
        reading(connection, state, *places.values(), *(output.folder for output in (stream.outputs if stream else ())))
        each, left = layers_of(connection, spec, state, places, asked)
        assert stream is not None  # layers_of says so where there is none
        cases = [Case(connection, spec, state, stream, layers) for layers in each]
        equal = {case.layers.number: differences(connection, case.layers, tolerance=tolerance, rows=rows, watch=watch) for case in cases}
        if any(case.open() for case in cases):
            gather(connection, state, stream, places, each)
            _explain(cases, places)
        found = [_compared(case, equal[case.layers.number], samples) for case in cases]
    found += [
        Compared(name, of, notes=(f"not compared: {why}",), missing=() if asked is None else (asked,), compared=False)
        for name, of, why in left
    ]
    return Verification(asked, tuple(found), tolerance)


@contextmanager
def _connection(memory: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in a folder of its own, where it lays aside what does not fit."""
    with tempfile.TemporaryDirectory(prefix="beam-pipelines-verify-") as folder:
        try:
            config: dict[str, Any] = {"memory_limit": memory, "temp_directory": folder, "preserve_insertion_order": False}
            connection = duckdb.connect(str(Path(folder) / "verify.duckdb"), config=config)
        except duckdb.Error:
            raise SpecError(f"verify: memory {memory!r} is no size.", hint="Write 500MB or 2GB.") from None
        with connection:
            connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
            yield connection


def _explain(cases: Sequence[Case], places: Mapping[str, str]) -> None:
    """Rows first: what is in a window differs because of them."""
    of_rows = [case for case in cases if case.layers.output.of == ROWS]
    for case in of_rows:
        if case.open():
            explain_rows(case, dict(places))
        _without_cause(case)
    for case in cases:
        if case not in of_rows:
            if case.open():
                explain_windows(case, of_rows[0] if of_rows else None)
            _without_cause(case)


def _without_cause(case: Case) -> None:
    case.connection.execute(f"UPDATE {case.table} SET cause = '{UNEXPLAINED}', detail = '' WHERE cause IS NULL")


def _compared(case: Case, equal: Mapping[int, int], samples: int) -> Compared:
    layers, ask = case.layers, case.connection.execute
    causes: dict[int, dict[str, int]] = {}
    for part, cause, n in ask(f"SELECT part, cause, count(*) FROM {case.table} GROUP BY ALL").fetchall():
        causes.setdefault(part, {})[cause] = n
    kinds = dict(ask(f"SELECT kind, count(*) FROM {case.table} GROUP BY ALL").fetchall())
    parts = [_part(layers, part, equal.get(part, 0), causes.get(part, {})) for part in sorted({*equal, *causes})]
    notes = [*layers.notes, *([] if layers.clock is not None else ["it is not partitioned by time: all of it was compared"])]
    return Compared(
        layers.name, layers.output.of, layers.match, tuple(parts), {kind: kinds[kind] for kind in KINDS if kind in kinds},
        tuple(_samples(case, samples)), tuple(notes), layers.missing,
    )  # fmt: skip


def _part(layers: Layers, part: int, equal: int, causes: Mapping[str, int]) -> Part:
    run = next((r.run_id for r in layers.committed if r.start <= part < r.end), "")
    where = None if part == UNDATED or layers.clock is None else widened((part, part + 1), layers.clock.unit)
    start, end = where or (None, None)
    return Part(start, end, run, equal, {cause: causes[cause] for cause in CAUSES if cause in causes})


def _samples(case: Case, most: int) -> Iterator[Difference]:
    """Some of every cause, those without one first; then by time."""
    layers = case.layers
    turn = "row_number() OVER (PARTITION BY cause ORDER BY moment, id)"
    order = f"cause <> '{UNEXPLAINED}', turn, list_position([{', '.join(repr(c) for c in CAUSES)}], cause)"
    ids = case.connection.execute(
        f"SELECT id FROM (SELECT id, cause, {turn} AS turn FROM {case.table}) ORDER BY {order} LIMIT {most:d}"
    ).fetchall()
    listed = ", ".join(str(id_) for (id_,) in ids)
    if not ids:
        return
    found = retry(
        partial(_taken, case.connection, f"SELECT * FROM {case.table} WHERE id IN ({listed}) ORDER BY list_position([{listed}], id)")
    )
    for row in found:
        yield _difference(layers, row)


def _taken(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = connection.sql(sql).to_arrow_table().to_pylist()
    return found


def _difference(layers: Layers, row: Mapping[str, Any]) -> Difference:
    kind: Kind = row["kind"]
    shown = row["columns"] if kind == "other values" else [n for n in layers.columns if n not in layers.match]
    places = layers.places

    def side(letter: str, absent: Kind) -> dict[str, Any] | None:
        return None if kind == absent else {n: row[f"{letter}_{places[n]}"] for n in shown}

    here = "s" if kind == "only speed" else "b"
    key = {n: row[f"{here}_{places[n]}"] for n in layers.match}
    return Difference(
        layers.name,
        kind,
        row["cause"],
        row["detail"] or "",
        key,
        tuple(row["columns"] or ()),
        side("b", "only speed"),
        side("s", "only batch"),
    )
