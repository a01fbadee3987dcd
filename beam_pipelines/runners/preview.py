"""A look at a spec at work: the first rows, stage by stage, with the functions that the job runs. Starts no job and writes nothing.

first rows ─▶ decode ─▶ conform ─▶ transform ─▶ validate ─▶ deduplicate ─▶ aggregates
                each with what came in and went out, what it refused, and what it did to the columns
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from beam_pipelines.arrow.concat import concat
from beam_pipelines.arrow.duplicates import comparison, deduplicate_batch
from beam_pipelines.arrow.masking import mask_columns, mask_letters
from beam_pipelines.arrow.panes import aggregate_batch
from beam_pipelines.arrow.program import Program, Split, Step
from beam_pipelines.arrow.schema import DEAD_LETTERS, PROVENANCE_NAMES, RAW
from beam_pipelines.arrow.sensitive import for_letters, sensitive_anywhere, sensitive_columns, sensitive_panes
from beam_pipelines.arrow.steps import civil_after
from beam_pipelines.edges import raw_key
from beam_pipelines.formats.reader import Broken
from beam_pipelines.sources.batch import read_pieces
from beam_pipelines.sources.files import broken_letters
from beam_pipelines.sources.lookups import lookups_of
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sources import BatchSource, FileSource, TableSource
from beam_pipelines.transforms.prepare import row_stages

_BLOCK_BYTES = 2**20  # the first rows do not need a whole block of a run
_CARRIER = "_"


@dataclass(frozen=True)
class Refused:
    """Rows that one stage refused for one reason; `sample` is the first message."""

    reason: str
    rows: int
    sample: str


@dataclass(frozen=True)
class StageView:
    """What one stage did. `columns`: name to "new TYPE", "OLD -> NEW" or "gone"; `rows` are its first rows, sensitive columns masked;
    `empty` are columns of the contract that are NULL in every row."""

    name: str
    rows_in: int
    rows_out: int
    rows: pa.RecordBatch
    filtered: int = 0
    duplicates: int = 0
    refused: tuple[Refused, ...] = ()
    warned: Mapping[str, int] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    empty: tuple[str, ...] = ()

    @property
    def dead(self) -> int:
        return sum(r.rows for r in self.refused)


def preview(loaded: LoadedSpec, *, rows: int = 1000, show: int = 5) -> list[StageView]:
    """What each stage does to the first `rows` rows of the batch sources, one view per stage, source after source.

    Deduplication and aggregates see these rows only. Raises SourceError where a source has no files.
    """
    views: list[StageView] = []
    valid: list[pa.RecordBatch] = []
    sys.path.insert(0, loaded.directory)  # `apply` finds a package beside the spec
    try:
        for number, source in enumerate(loaded.spec.sources.batch):
            found = list(_source_views(loaded.spec, number, source, rows, show))
            views += [view for view, _ in found]
            valid.append(found[-1][1])
        views += _joint_views(loaded.spec, valid, show)
    finally:
        sys.path.remove(loaded.directory)
    return views


def _source_views(spec: PipelineSpec, number: int, source: BatchSource, most: int, show: int) -> Iterator[tuple[StageView, pa.RecordBatch]]:
    batch, letters = _first_rows(spec, source, most)
    several = len(spec.sources.batch) > 1
    name = (
        f"read {', '.join(os.path.basename(p.rstrip('/')) or p for p in ((source.name,) if isinstance(source, TableSource) else source.patterns))}"
        if several
        else "read"
    )
    refused = _refused(letters, spec)
    hidden = sensitive_anywhere(spec.contract, spec.transform)
    as_named = {c.keys(n)[0] for n, c in spec.contract.columns.items() if n in hidden}  # whole where it is nested
    shown = _shown(batch, {*hidden, *as_named}, show)
    yield StageView(name, batch.num_rows + letters.num_rows, batch.num_rows, shown, refused=refused), batch
    for stage, steps in row_stages(spec, source, lookups_of(spec)):
        if not steps:
            continue
        before, split = batch, _run(spec, source, stage, steps, batch)
        batch = split.rows
        view = StageView(
            f"{stage} [{number}]" if several else stage, before.num_rows, batch.num_rows, _shown(batch, hidden, show),
            filtered=split.filtered, refused=_refused(split.dead, spec), warned={n: c for n, c in split.warned.items() if c},
            columns=_changes(before.schema, batch.schema), empty=_empty(batch, spec) if stage == "conform" else (),
        )  # fmt: skip
        yield view, batch


def _first_rows(spec: PipelineSpec, source: BatchSource, most: int) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The first records of the first files as one raw batch, and letters for those that cannot be read."""
    small = source.model_copy(update={"block_bytes": min(source.block_bytes, _BLOCK_BYTES)}) if isinstance(source, FileSource) else source
    batches: list[pa.RecordBatch] = []
    letters: list[pa.RecordBatch] = []
    missing = most
    for path, piece in read_pieces(small, spec.contract, key=raw_key(spec)):
        if isinstance(piece, Broken):
            letters += broken_letters(path, piece)
            missing -= piece.rows
        elif not batches or piece.schema.equals(batches[0].schema):
            batches.append(piece.slice(0, missing))
            missing -= batches[-1].num_rows
        if missing <= 0:
            break
    raw = concat(batches) if batches else pa.RecordBatch.from_pylist([], schema=pa.schema([]))
    return raw, concat(letters) if letters else pa.RecordBatch.from_pylist([], schema=DEAD_LETTERS)


def _run(spec: PipelineSpec, source: BatchSource, stage: str, steps: tuple[Step, ...], batch: pa.RecordBatch) -> Split:
    contract = spec.contract
    civil = contract.civil if stage in ("decode", "conform", "arrival") else civil_after(spec.transform, contract.civil)
    if not batch.num_rows:
        return Split(batch, pa.RecordBatch.from_pylist([], schema=DEAD_LETTERS), 0, {})
    program = Program(steps, civil=civil, raw_format=source.format.type, event_time=contract.event_time or "", keep_raw=stage != "validate")
    return program(batch)


def _joint_views(spec: PipelineSpec, valid: list[pa.RecordBatch], show: int) -> Iterator[StageView]:
    batches = [b for b in valid if b.num_rows]
    if not batches:
        return
    rows = concat([b.select(batches[0].schema.names) for b in batches])
    hidden = sensitive_columns(spec.contract, spec.transform)
    if spec.deduplicate is not None:
        unique = deduplicate_batch(rows, comparison(spec.deduplicate, contract=spec.contract))
        duplicates = rows.num_rows - unique.num_rows
        yield StageView("deduplicate", rows.num_rows, unique.num_rows, _shown(unique, hidden, show), duplicates=duplicates)
        rows = unique
    for name, aggregate in spec.aggregates.items():
        made = aggregate_batch(rows, aggregate, name=name, time=spec.contract.event_time, time_zone=spec.time_zone)
        shown = _shown(made.panes, sensitive_panes(aggregate, hidden), show)
        yield StageView(f"aggregate {name}", rows.num_rows, made.panes.num_rows, shown, refused=_refused(made.dead, spec))


def _shown(batch: pa.RecordBatch, hidden: Collection[str], show: int) -> pa.RecordBatch:
    """The first rows without provenance and raw bytes, the `hidden` columns redacted."""
    head = batch.slice(0, show)
    head = head.select([n for n in head.schema.names if n not in PROVENANCE_NAMES and n not in (RAW, _CARRIER)])
    return mask_columns(head, dict.fromkeys(hidden, "redact")) if head.num_columns else head


def _refused(letters: pa.RecordBatch, spec: PipelineSpec) -> tuple[Refused, ...]:
    quiet: list[dict[str, Any]] = (
        mask_letters(letters, for_letters(spec.contract, spec.transform)).select(["reason", "message"]).to_pylist()
    )
    counts = Counter(letter["reason"] for letter in quiet)
    first = {letter["reason"]: letter["message"] for letter in reversed(quiet)}
    return tuple(Refused(reason, count, first[reason] or "") for reason, count in counts.most_common())


def _empty(batch: pa.RecordBatch, spec: PipelineSpec) -> tuple[str, ...]:
    """Columns that the source should fill and does not: perhaps they have another name there."""
    names = [n for n in spec.contract.read if n in batch.schema.names]
    return tuple(n for n in names if batch.num_rows and batch.column(n).null_count == batch.num_rows)


def _changes(before: pa.Schema, after: pa.Schema) -> dict[str, str]:
    hidden = PROVENANCE_NAMES | {RAW, _CARRIER}
    old = {f.name: _type(f.type) for f in before if f.name not in hidden}
    new = {f.name: _type(f.type) for f in after if f.name not in hidden}
    changed = {n: f"new {kind}" if n not in old else f"{old[n]} -> {kind}" for n, kind in new.items() if old.get(n) != kind}
    return changed | {n: "gone" for n in old if n not in new}


def _type(kind: pa.DataType) -> str:
    text = str(kind)
    return {"timestamp[us, tz=UTC]": "timestamp", "timestamp[us]": "datetime", "date32[day]": "date", "double": "float64", "float": "float32",
            "time64[us]": "time", "bool": "boolean"}.get(text, text.replace("decimal128", "decimal").replace(", ", ",") if text.startswith("decimal") else text)  # fmt: skip
