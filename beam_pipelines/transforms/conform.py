"""Conform: decoded columns to the contract's types."""

from __future__ import annotations

from typing import Any, NamedTuple

import apache_beam as beam

from beam_pipelines.arrow.conform import civil_paths, conform_steps
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.program import Program
from beam_pipelines.transforms.stage import run_program


class Conformed(NamedTuple):
    """Row batches with the contract's types; dead letters of rows that do not fit; ledger counts."""

    rows: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection


class Conform(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Casts, defaults, null texts, dates and zones as the contract says; computes its `expr` columns.

    Takes decoded batches, or any RecordBatch with the contract's columns. Each row goes on or is a dead letter (CAST, TIME, EXPRESSION)
    that names every failing column.
    """

    def __init__(self, contract: Contract, *, time_zone: str = "UTC") -> None:
        super().__init__()
        self.contract = contract
        self.time_zone = time_zone

    def expand(self, rows: Any) -> Conformed:
        steps = conform_steps(self.contract, text=False, time_zone=self.time_zone)
        program = Program(steps, civil=civil_paths(self.contract), event_time=self.contract.event_time or "", keep_raw=True)
        return Conformed(*run_program(rows, program))
