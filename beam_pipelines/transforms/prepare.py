"""Prepare: decode, conform, transform, enrich and validate of a spec, fused into one row program per source of the job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.arrow.checks import check_steps
from beam_pipelines.arrow.conform import civil_paths, conform_steps
from beam_pipelines.arrow.duplicates import key_hash_sql
from beam_pipelines.arrow.engine import Engine, quote
from beam_pipelines.arrow.layers import Define, Layer
from beam_pipelines.arrow.program import Program, Split, Step
from beam_pipelines.arrow.schema import ARRIVAL, KEY_HASH, source_number
from beam_pipelines.arrow.steps import civil_after, columns_after, transform_steps
from beam_pipelines.formats.registry import TEXT_FORMATS, decode_steps
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sources import FileSource, PubsubSource
from beam_pipelines.transforms.stage import run_program


class Prepared(NamedTuple):
    """Valid rows of all sources; dead letters of every stage up to validation; ledger counts."""

    rows: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection


class Prepare(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Raw batches of `sources` to valid rows: the row stages of `spec` as one prepared SELECT per source where they are SQL.

    `lookups` gives a table (or what opens one) for each lookup that steps and checks name.
    """

    def __init__(self, spec: PipelineSpec, sources: Sequence[FileSource | PubsubSource], lookups: Mapping[str, Any]) -> None:
        super().__init__()
        self.programs = _BySource(tuple(row_program(spec, source, lookups) for source in sources))

    def expand(self, raw: Any) -> Prepared:
        return Prepared(*run_program(raw, self.programs))


@dataclass(frozen=True)
class _BySource:
    """The program of the source that a batch says it is of."""

    programs: tuple[Program, ...]

    def __call__(self, batch: pa.RecordBatch, engine: Engine | None = None) -> Split:
        return self.programs[source_number(batch)](batch, engine)


def row_program(spec: PipelineSpec, source: FileSource | PubsubSource, lookups: Mapping[str, Any], *, keep_raw: bool = False) -> Program:
    """The row stages of `spec` for the records of `source`."""
    return Program(
        (*(step for _, steps in row_stages(spec, source, lookups) for step in steps), *_key_hash(spec)),
        civil=civil_after(spec.transform, civil_paths(spec.contract)),
        raw_format=source.format.type,
        event_time=spec.contract.event_time or "",
        keep_raw=keep_raw,
    )


def row_stages(spec: PipelineSpec, source: FileSource | PubsubSource, lookups: Mapping[str, Any]) -> list[tuple[str, tuple[Step, ...]]]:
    """The row stages in order, each with its name and steps: what `Prepare` fuses, and `preview` shows one by one."""
    contract = spec.contract
    row_checks = [c for c in spec.checks if c.per_row]
    columns = columns_after(spec.transform, contract.columns)
    return [
        ("decode", decode_steps(source.format, contract)),
        ("conform", conform_steps(contract, text=source.format.type in TEXT_FORMATS, time_zone=spec.time_zone)),
        ("arrival", _arrival(source)),
        ("transform", transform_steps(spec.transform, lookups=lookups, columns=contract.columns)),
        ("validate", check_steps(contract, row_checks, lookups=lookups, columns=columns, time_zone=spec.time_zone)),
    ]


def _key_hash(spec: PipelineSpec) -> tuple[Step, ...]:
    """The hash by which duplicates are sought, computed in the same SELECT."""
    rule = spec.deduplicate
    key = () if rule is None else rule.key or spec.contract.key
    if not key or not set(key) <= set(columns_after(spec.transform, spec.contract.columns)):
        return ()
    return (Layer("validate", define=(Define(KEY_HASH, key_hash_sql(key)),)),)


def _arrival(source: FileSource | PubsubSource) -> tuple[Step, ...]:
    """`arrival: {column: c}`: that column is the arrival time."""
    if source.arrival is None or source.arrival.column is None:
        return ()
    return (Layer("conform", define=(Define(ARRIVAL, quote(source.arrival.column)),)),)
