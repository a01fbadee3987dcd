"""Prepare: decode, conform, transform, enrich and validate of a spec, fused into one row program per source of the job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.arrow.checks import check_steps
from beam_pipelines.arrow.conform import civil_paths, conform_steps
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.duplicates import key_hash_sql
from beam_pipelines.arrow.durations import format_duration
from beam_pipelines.arrow.engine import Engine, literal, quote
from beam_pipelines.arrow.layers import Define, Layer, Reject
from beam_pipelines.arrow.program import Program, Split, Step
from beam_pipelines.arrow.schema import ARRIVAL, KEY_HASH, source_number
from beam_pipelines.arrow.steps import civil_after, columns_after, transform_steps
from beam_pipelines.formats.registry import TEXT_FORMATS, decode_steps, message_steps
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sources import BatchSource, FileSource, PubsubSource, TableSource
from beam_pipelines.transforms.guard import Guard, guarded
from beam_pipelines.transforms.stage import RowProgram, run_program, run_program_endlessly

FUTURE = "FUTURE"


class Prepared(NamedTuple):
    """Valid rows of all sources; dead letters of every stage up to validation; ledger counts."""

    rows: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection


class PreparedStream(NamedTuple):
    """`Prepared` of an unbounded source: also `doors`, a line for each row that was filtered."""

    rows: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection
    doors: beam.PCollection


class Prepare(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Raw batches of `sources` to valid rows: the row stages of `spec` as one prepared SELECT per source where they are SQL.

    `lookups` gives a table (or what opens one) for each lookup that steps and checks name. An unbounded input gives `PreparedStream`:
    bundles of a stream come again in other parts, so its ledger needs the rows that were filtered, not how many there were. With a `guard`,
    a stream survives records that crash the process.
    """

    def __init__(
        self, spec: PipelineSpec, sources: Sequence[BatchSource | PubsubSource], lookups: Mapping[str, Any], *, guard: Guard | None = None
    ) -> None:
        super().__init__()
        programs = [row_program(spec, source, lookups) for source in sources]
        self.programs = _BySource(guarded(programs, guard, [source.format.type for source in sources]))

    def expand(self, raw: Any) -> Prepared | PreparedStream:
        if isinstance(raw, beam.PCollection) and not raw.is_bounded:
            return PreparedStream(*run_program_endlessly(raw, self.programs))
        return Prepared(*run_program(raw, self.programs))


@dataclass(frozen=True)
class _BySource:
    """The program of the source that a batch says it is of."""

    programs: tuple[RowProgram, ...]

    def __call__(self, batch: pa.RecordBatch, engine: Engine | None = None) -> Split:
        return self.programs[source_number(batch)](batch, engine)


def row_program(spec: PipelineSpec, source: BatchSource | PubsubSource, lookups: Mapping[str, Any], *, keep_raw: bool = False) -> Program:
    """The row stages of `spec` for the records of `source`."""
    return Program(
        (*(step for _, steps in row_stages(spec, source, lookups) for step in steps), *_key_hash(spec)),
        civil=civil_after(spec.transform, civil_paths(spec.contract)),
        raw_format=source.format.type,
        event_time=spec.contract.event_time or "",
        keep_raw=keep_raw,
    )


def row_stages(spec: PipelineSpec, source: BatchSource | PubsubSource, lookups: Mapping[str, Any]) -> list[tuple[str, tuple[Step, ...]]]:
    """The row stages in order, each with its name and steps: what `Prepare` fuses, and `preview` shows one by one."""
    contract = spec.contract
    row_checks = [c for c in spec.checks if c.per_row]
    columns = columns_after(spec.transform, contract.columns)
    return [
        ("decode", _decode(source, contract)),
        ("conform", conform_steps(contract, text=source.format.type in TEXT_FORMATS, time_zone=spec.time_zone)),
        ("arrival", _arrival(source)),
        ("transform", transform_steps(spec.transform, lookups=lookups, columns=contract.columns)),
        (
            "validate",
            (*check_steps(contract, row_checks, lookups=lookups, columns=columns, time_zone=spec.time_zone), *_future(spec, source)),
        ),
    ]


def _decode(source: BatchSource | PubsubSource, contract: Contract) -> tuple[Step, ...]:
    if isinstance(source, FileSource | TableSource):
        return decode_steps(source.format, contract)
    return message_steps(source.format, contract, endpoint=source.endpoint if isinstance(source, PubsubSource) else None)


def _future(spec: PipelineSpec, source: BatchSource | PubsubSource) -> tuple[Step, ...]:
    """Rows whose event time lies further ahead of their arrival than the contract allows leave as FUTURE."""
    time, skew = spec.contract.event_time, spec.contract.allowed_skew
    if time is None or (isinstance(source, FileSource | TableSource) and source.arrival is None):
        return ()
    at, arrival = f"{quote(time)}::TIMESTAMP", f"{quote(ARRIVAL)}::TIMESTAMP"
    message = f"{literal(f'{time}: got ')} || {at}::VARCHAR || ', which is ' || ({at} - {arrival})::VARCHAR || ' after the arrival; expected at most {format_duration(skew)} (contract.allowed_skew)'"
    reject = Reject(FUTURE, f"{time}.future", time, f"epoch_us({at}) - epoch_us({arrival}) > {skew}", message)
    return (Layer("validate", rejects=(reject,)),)


def _key_hash(spec: PipelineSpec) -> tuple[Step, ...]:
    """The hash by which duplicates are sought, computed in the same SELECT."""
    rule = spec.deduplicate
    key = () if rule is None else rule.key or spec.contract.key
    if not key or not set(key) <= set(columns_after(spec.transform, spec.contract.columns)):
        return ()
    return (Layer("validate", define=(Define(KEY_HASH, key_hash_sql(key)),)),)


def _arrival(source: BatchSource | PubsubSource) -> tuple[Step, ...]:
    """`arrival: {column: c}`: that column is the arrival time."""
    if source.arrival is None or source.arrival.column is None:
        return ()
    return (Layer("conform", define=(Define(ARRIVAL, quote(source.arrival.column)),)),)
