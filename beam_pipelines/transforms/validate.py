"""Validate: the contract's rules and further checks, judged on every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.arrow.apply import fits
from beam_pipelines.arrow.checks import check_steps
from beam_pipelines.arrow.conform import civil_paths
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.corrections import around
from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.enrich import Lookup
from beam_pipelines.arrow.expressions import check_expression
from beam_pipelines.arrow.program import Program, Split
from beam_pipelines.arrow.schema import PROVENANCE_NAMES, UNKNOWN
from beam_pipelines.arrow.steps import check_syntax
from beam_pipelines.arrow.validate import Check
from beam_pipelines.errors import SpecError, nearest
from beam_pipelines.transforms.given import batches, checks_of, contract_of, piped
from beam_pipelines.transforms.stage import run_program


class Validated(NamedTuple):
    """Rows that pass; dead letters that each carry all failing checks; ledger counts with warnings."""

    valid: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection

    def __or__(self, transform: Any) -> Any:
        return piped(self, transform)


class Validate(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Judges conformed rows by the contract (required, min, max, in, regex, length) and by `checks`.

    Each row is valid or a dead letter (REQUIRED, CHECK, EXPRESSION). NULL passes a check unless the column is required. Checks over
    many rows (`unique`, `row_count`, ...) belong to a run and are refused here. `time_zone` is that of bare dates in `min` and `max`.
    `contract` and `checks` may be the mappings that a spec has. In a stream rows of `_change` -1 pass unjudged.

    Raises SpecError: at once for rules, syntax and lookups that cannot be; at the first batch for columns that are missing or of another type.
    """

    def __init__(
        self,
        contract: Contract | Mapping[str, Any],
        checks: Sequence[Check | Mapping[str, Any]] = (),
        *,
        lookups: Mapping[str, Lookup] | None = None,
        time_zone: str = "UTC",
    ) -> None:
        super().__init__()
        self.contract = contract_of(contract, "Validate")
        self.checks = checks_of(checks, "Validate")
        self.lookups = dict(lookups or {})
        self.time_zone = time_zone
        for check in self.checks:
            if not check.per_row:
                raise ValueError(
                    f"Validate: check {check.name!r} looks at many rows; give it to a spec's `checks`, which a run judges as a whole"
                )
            if check.expr is not None:
                check_syntax(check.expr, f"check {check.name!r}")
        check_steps(self.contract, self.checks, lookups=self.lookups, time_zone=time_zone)

    def expand(self, rows: Any) -> Validated:
        rules = _Rules(self.contract, self.checks, self.lookups, self.time_zone)
        return Validated(*run_program(batches(rows, "Validate"), rules))


@dataclass(frozen=True)
class _Rules:
    """The program of the rules for the columns that a batch turns out to have."""

    contract: Contract
    checks: tuple[Check, ...]
    lookups: Mapping[str, Lookup]
    time_zone: str
    _programs: dict[pa.Schema, Program] = field(default_factory=dict, compare=False)

    def __call__(self, batch: pa.RecordBatch, engine: Engine | None = None) -> Split:
        return around(self._rows, batch, engine)

    def _rows(self, batch: pa.RecordBatch, engine: Engine | None) -> Split:
        if batch.schema not in self._programs:
            self._programs[batch.schema] = self._program(batch.schema)
        return self._programs[batch.schema](batch, engine)

    def _program(self, schema: pa.Schema) -> Program:
        self._fit(schema)
        for check in self.checks:
            if check.expr is not None:
                check_expression(check.expr, dict.fromkeys([*schema.names, UNKNOWN, *sorted(PROVENANCE_NAMES)]))
        steps = check_steps(self.contract, self.checks, lookups=self.lookups, columns=schema.names, time_zone=self.time_zone)
        return Program(steps, civil=civil_paths(self.contract), event_time=self.contract.event_time or "")

    def _fit(self, schema: pa.Schema) -> None:
        """Raises SpecError where a column of the contract is missing, or holds another kind of value."""
        for name, column in self.contract.columns.items():
            expected = column.dtype.arrow()
            if name not in schema.names:
                raise SpecError(
                    f"validate: no column {name!r} in the rows;",
                    hint=f"{nearest(name, schema.names)} Conform(contract) gives all of them; Validate before a step that drops or renames one.",
                )
            found = schema.field(name).type
            if not fits(found, expected):
                raise SpecError(
                    f"validate: column {name!r} is {found}; expected {expected}.", hint="Put Conform(contract) before Validate."
                )
