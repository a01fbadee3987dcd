"""Conform: decoded columns to the contract's types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.arrow.conform import civil_paths, conform_steps
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.program import Program, Split
from beam_pipelines.arrow.schema import CHANGE
from beam_pipelines.errors import SpecError
from beam_pipelines.transforms.given import batches, contract_of, piped
from beam_pipelines.transforms.stage import run_program


class Conformed(NamedTuple):
    """Row batches with the contract's types; dead letters of rows that do not fit; ledger counts."""

    rows: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection

    def __or__(self, transform: Any) -> Any:
        return piped(self, transform)


class Conform(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Casts, defaults, null texts, dates and zones as the contract says; computes its `expr` columns.

    Takes decoded batches, or any RecordBatch with the contract's columns. Each row goes on or is a dead letter (CAST, TIME, EXPRESSION, DECODE)
    that names every failing column. `contract` may be the mapping that a spec has. Raises SpecError for rows of `Deduplicate` in a stream.
    """

    def __init__(self, contract: Contract | Mapping[str, Any], *, time_zone: str = "UTC") -> None:
        super().__init__()
        self.contract = contract_of(contract, "Conform")
        self.time_zone = time_zone

    def expand(self, rows: Any) -> Conformed:
        steps = conform_steps(self.contract, text=False, time_zone=self.time_zone)
        program = Program(steps, civil=civil_paths(self.contract), event_time=self.contract.event_time or "", keep_raw=True)
        return Conformed(*run_program(batches(rows, "Conform"), _Unchanged(program)))


@dataclass(frozen=True)
class _Unchanged:
    """A program that refuses rows with `_change`: what takes a row back has no values that could be cast."""

    program: Program

    def __call__(self, batch: pa.RecordBatch, engine: Engine | None = None) -> Split:
        if CHANGE in batch.schema.names:
            raise SpecError(f"conform: got rows with {CHANGE}, which Deduplicate gives.", hint="Put Conform before Deduplicate.")
        return self.program(batch, engine)
