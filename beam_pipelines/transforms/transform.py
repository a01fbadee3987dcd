"""Transform: filter, set, rename, drop, apply, lookup, in the order they are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.arrow.apply import Function
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.corrections import around, held, timed
from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.enrich import Lookup
from beam_pipelines.arrow.program import Program, Split
from beam_pipelines.arrow.schema import RESERVED_PREFIX
from beam_pipelines.arrow.steps import check_steps_alone, civil_after, civil_columns, correction_steps, transform_steps
from beam_pipelines.arrow.transform import TransformStep
from beam_pipelines.transforms.given import batches, contract_of, piped
from beam_pipelines.transforms.stage import run_program


class Transformed(NamedTuple):
    """Transformed rows; dead letters of rows on which an expression or a function fails; ledger counts with filtered rows."""

    rows: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection

    def __or__(self, transform: Any) -> Any:
        return piped(self, transform)


class Transform(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Applies steps such as `{'filter': 'dep_time IS NOT NULL'}` or `TransformStep(set={'speed': 'distance / hours'})` to row batches.

    Each row goes on, is filtered, or is a dead letter (EXPRESSION, APPLY). `apply` takes `package.module:function`, or a function itself, which
    travels with the job: `{'apply': f}`, `{'apply': {'function': f, 'columns': {'cents': 'int64'}}}`. Reserved columns go on. In a stream, rows of
    `_change` -1 pass as `arrow/corrections.py` says: filters and functions do not see them.

    Syntax, functions and lookups are judged at once, names of columns when the first batch comes, or at once given the `contract` of the rows.
    Raises SpecError.
    """

    def __init__(
        self,
        *steps: TransformStep | Mapping[str, Any],
        lookups: Mapping[str, Lookup] | None = None,
        contract: Contract | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.functions: dict[int, Function] = {}
        self.steps: Sequence[TransformStep] = [self._step(number, step) for number, step in enumerate(steps)]
        self.lookups = dict(lookups or {})
        check_steps_alone(self.steps, lookups=self.lookups, functions=self.functions)
        if contract is not None:
            transform_steps(self.steps, lookups=self.lookups, columns=contract_of(contract, "Transform").columns, functions=self.functions)

    def expand(self, rows: Any) -> Transformed:
        steps = _Steps(tuple(self.steps), self.lookups, self.functions)
        return Transformed(*run_program(batches(rows, "Transform"), steps))

    def _step(self, number: int, step: TransformStep | Mapping[str, Any]) -> TransformStep:
        if isinstance(step, TransformStep):
            return step
        apply = step.get("apply")
        given = apply.get("function") if isinstance(apply, Mapping) else apply
        if callable(given):
            self.functions[number] = given
            step = {**step, "apply": {"columns": {}, **(apply if isinstance(apply, Mapping) else {}), "function": _name_of(given)}}
        return TransformStep.model_validate(step)


def _name_of(function: Callable[..., Any]) -> str:
    """What letters and errors call a function."""
    name = re.sub(r"\W", "_", getattr(function, "__name__", type(function).__name__))
    return f"{getattr(function, '__module__', None) or 'builtins'}:{name}"


@dataclass(frozen=True)
class _Steps:
    """The program of the steps for the columns that a batch turns out to have."""

    steps: tuple[TransformStep, ...]
    lookups: Mapping[str, Lookup]
    functions: Mapping[int, Function] = field(default_factory=dict, compare=False)
    _programs: dict[Any, Program] = field(default_factory=dict, compare=False)

    def __call__(self, batch: pa.RecordBatch, engine: Engine | None = None) -> Split:
        return around(self._rows, batch, engine, correct=self._corrections)

    def _rows(self, batch: pa.RecordBatch, engine: Engine | None) -> Split:
        program = self._programs.get(batch.schema)
        if program is None:
            steps = transform_steps(self.steps, lookups=self.lookups, columns=batch.schema.names, functions=self.functions)
            program = self._programs[batch.schema] = Program(
                steps, civil=civil_after(self.steps, civil_columns(batch.schema)), keep_raw=True
            )
        return program(batch, engine)

    def _corrections(self, batch: pa.RecordBatch, engine: Engine | None) -> pa.RecordBatch:
        told = held(batch)
        program = self._programs.get((batch.schema, told))
        if program is None:
            steps = correction_steps(self.steps, columns=batch.schema.names, held=told)
            civil = civil_after(self.steps, civil_columns(batch.schema))
            program = self._programs[batch.schema, told] = Program(steps, civil=civil, keep_raw=True)
        bare = batch.select([n for n in batch.schema.names if n in told or n.startswith(RESERVED_PREFIX)])
        return timed(program(bare, engine).rows, batch)
