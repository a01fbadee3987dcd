"""Transform: filter, set, rename, drop, apply, lookup, in the order they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.enrich import Lookup
from beam_pipelines.arrow.program import Program, Split
from beam_pipelines.arrow.steps import civil_after, civil_columns, transform_steps
from beam_pipelines.arrow.transform import TransformStep
from beam_pipelines.transforms.stage import run_program


class Transformed(NamedTuple):
    """Transformed rows; dead letters of rows on which an expression or a function fails; ledger counts with filtered rows."""

    rows: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection


class Transform(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Applies steps such as `{'filter': 'dep_time IS NOT NULL'}` or `TransformStep(set={'speed': 'distance / hours'})` to row batches.

    Each row goes on, is filtered, or is a dead letter (EXPRESSION, APPLY).
    """

    def __init__(self, *steps: TransformStep | Mapping[str, Any], lookups: Mapping[str, Lookup] | None = None) -> None:
        super().__init__()
        self.steps: Sequence[TransformStep] = [s if isinstance(s, TransformStep) else TransformStep.model_validate(s) for s in steps]
        self.lookups = dict(lookups or {})

    def expand(self, rows: Any) -> Transformed:
        return Transformed(*run_program(rows, _Steps(tuple(self.steps), self.lookups)))


@dataclass(frozen=True)
class _Steps:
    """The program of the steps for the columns that a batch turns out to have."""

    steps: tuple[TransformStep, ...]
    lookups: Mapping[str, Lookup]
    _programs: dict[pa.Schema, Program] = field(default_factory=dict, compare=False)

    def __call__(self, batch: pa.RecordBatch, engine: Engine | None = None) -> Split:
        program = self._programs.get(batch.schema)
        if program is None:
            steps = transform_steps(self.steps, lookups=self.lookups, columns=batch.schema.names)
            program = self._programs[batch.schema] = Program(
                steps, civil=civil_after(self.steps, civil_columns(batch.schema)), keep_raw=True
            )
        return program(batch, engine)
