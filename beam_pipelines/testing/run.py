"""A spec on given rows: the production graph between files of a temporary folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from beam_pipelines.arrow.engine import quote
from beam_pipelines.arrow.schema import ARRIVAL, CONTRACT, POSITION, RUN_ID, SOURCE
from beam_pipelines.errors import SpecError
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.sinks.manifest import snapshots
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.spec.load import LoadedSpec, load_spec, parse_spec
from beam_pipelines.spec.models import PipelineSpec, Thresholds
from beam_pipelines.spec.sinks import LETTERS, ROWS, ParquetSink, Sink
from beam_pipelines.spec.sources import FileSource, Sources
from beam_pipelines.testing.encoding import encode
from beam_pipelines.testing.rows import Record, Rows, records_of

Spec = str | os.PathLike[str] | Mapping[str, Any] | LoadedSpec
"""A spec: its path, what its YAML holds as a mapping, or loaded."""
_PROVENANCE = (SOURCE, POSITION, ARRIVAL, RUN_ID, CONTRACT)


@dataclass(frozen=True)
class SpecResult:
    """What a spec made of the given rows, without provenance columns; dead letters are whole. Times are datetimes in UTC.

    `run` is the run's record: ledger, checks, thresholds.
    """

    rows: list[dict[str, Any]]
    dead_letters: list[dict[str, Any]]
    aggregates: dict[str, list[dict[str, Any]]]
    run: RunResults

    @property
    def reasons(self) -> dict[str, int]:
        """Dead letters by `stage:REASON`."""
        return dict(self.run.dead_letters)

    @property
    def filtered(self) -> int:
        """Rows that a `filter` step took out."""
        return sum(line.filtered for line in self.run.ledger)

    @property
    def duplicates(self) -> int:
        """Rows that were duplicates of better ones."""
        return sum(line.duplicate for line in self.run.ledger)


def run_spec(
    spec: Spec, rows: Rows | Iterable[Record], *, source: int = 0, set_: Mapping[str, str] | None = None,
    apply_lateness: bool = False, judge: bool = False,
) -> SpecResult:  # fmt: skip
    """Runs `spec`, a path or the spec itself as a mapping, on `rows` instead of its files and gives everything it would have written.

    `rows` stand in for the batch source number `source` and are written in its format: mappings as records have them (nested where the source
    is), `beam.Row`s, NamedTuples, RecordBatches, a Table, or records as they stand in a file (text, bytes); a CSV has NULL as an empty field.
    Lookups are read from where the spec says.

    A handful of rows says nothing about shares and counts: thresholds are off, and checks of severity `fail` warn. With `judge` they are in
    force; a run that fails by them has `run.status == "failed"`, and nothing was written. Raises SpecError for a wrong spec or call, RunError
    where the job breaks.

    >>> import pathlib, tempfile
    >>> spec = pathlib.Path(tempfile.mkdtemp()) / 'shop.yaml'
    >>> _ = spec.write_text('''
    ... spec: 1
    ... pipeline: shop
    ... contract: {columns: {id: {type: int64}, amount: {type: 'decimal(8,2)', min: 0}}}
    ... sources: {batch: [{files: orders.csv, format: csv}]}
    ... sinks: [{from: rows, parquet: {path: out}}]
    ... ''')
    >>> result = run_spec(spec, rows=[{'id': 1, 'amount': '9.50'}, {'id': 2, 'amount': '-1.00'}, '3'])
    >>> result.rows
    [{'id': 1, 'amount': Decimal('9.50'), '_unknown': None}]
    >>> result.reasons
    {'decode:DECODE': 1, 'validate:CHECK': 1}
    """
    found = loaded_spec(spec, set_, where="run_spec")
    if not 0 <= source < len(found.spec.sources.batch):
        raise SpecError(f"run_spec: source {source}: the spec has {len(found.spec.sources.batch)} batch sources.")
    with tempfile.TemporaryDirectory(prefix="beam-pipelines-test-") as folder:
        given = _given(found.spec, source, records_of(rows, where="run_spec: rows"), folder)
        asked = found.spec if judge else unjudged(found.spec)
        tried = replace(found, spec=redirected(asked, Sources(batch=(given,)), folder))
        record = run_batch(tried, Call(apply_lateness=apply_lateness))
        return _result(tried, record)


def _given(spec: PipelineSpec, number: int, rows: list[Record], folder: str) -> FileSource:
    """The source, reading a file of the given rows."""
    source = spec.sources.batch[number]
    path = os.path.join(folder, "given")
    with open(path, "wb") as out:
        out.write(encode(rows, source.format, contract=spec.contract))
    if not isinstance(source, FileSource):
        by_column = source.arrival if source.arrival is not None and source.arrival.column is not None else None
        return FileSource(files=path, format=source.format, arrival=by_column, compression="none")
    return source.model_copy(update={"files": path, "compression": "none"})


def loaded_spec(spec: Spec, set_: Mapping[str, str] | None, *, where: str) -> LoadedSpec:
    """The spec that a test names or writes down; one that is written down has its relative paths from the working folder."""
    if isinstance(spec, LoadedSpec):
        return spec
    if isinstance(spec, str | os.PathLike):
        return load_spec(spec, set_=set_ or {})
    if isinstance(spec, Mapping):
        return parse_spec(msgspec.json.encode(dict(spec), enc_hook=str), path="(the spec given)", set_=set_ or {})
    raise SpecError(
        f"{where}: the spec: got {type(spec).__name__}; expected a path, a mapping as its YAML holds, or what `load_spec` gave."
    )


def unjudged(spec: PipelineSpec) -> PipelineSpec:
    """The spec without what says nothing of a handful of rows: thresholds, and checks that fail a run."""
    checks = tuple(c.model_copy(update={"severity": "warn"}) if c.severity == "fail" else c for c in spec.checks)
    return spec.model_copy(update={"checks": checks, "thresholds": Thresholds()})


def redirected(spec: PipelineSpec, sources: Sources, folder: str) -> PipelineSpec:
    """The spec with these sources, and every output as Parquet in `folder`."""
    outputs = [ROWS, LETTERS, *spec.aggregates]
    sinks = tuple(Sink(from_=name, parquet=ParquetSink(path=os.path.join(folder, "out", name))) for name in outputs)
    update = {"sources": sources, "sinks": sinks, "state": os.path.join(folder, "state"), "provenance": "on"}
    return spec.model_copy(update=update)


def _result(tried: LoadedSpec, record: RunResults) -> SpecResult:
    written = {name for name, snapshot in snapshots(tried.state).items() if snapshot.files}

    with open_tables(tried.state) as tables:

        def content(name: str) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = ask(tables, f"SELECT * FROM {quote(name)}").to_pylist() if name in written else []
            return found

        return SpecResult(shown(content("rows")), content("dead_letters"), {name: content(name) for name in tried.spec.aggregates}, record)


def shown(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows without their provenance."""
    return [{n: v for n, v in row.items() if n not in _PROVENANCE} for row in rows]
