"""Validate: the contract's rules and further checks, judged on every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam

from beam_pipelines.arrow.checks import check_steps
from beam_pipelines.arrow.conform import civil_paths
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.enrich import Lookup
from beam_pipelines.arrow.program import Program
from beam_pipelines.arrow.validate import Check
from beam_pipelines.transforms.stage import run_program


class Validated(NamedTuple):
    """Rows that pass; dead letters that each carry all failing checks; ledger counts with warnings."""

    valid: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection


class Validate(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Judges conformed rows by the contract (required, min, max, in, regex, length) and by `checks`.

    Each row is valid or a dead letter (REQUIRED, CHECK, EXPRESSION). NULL passes a check unless the column is required. Checks over
    many rows (`unique`, `row_count`, ...) belong to a run and are refused here. `time_zone` is that of bare dates in `min` and `max`.
    """

    def __init__(self, contract: Contract, checks: Sequence[Check] = (), *, lookups: Mapping[str, Lookup] | None = None,
        time_zone: str = "UTC",
    ) -> None:  # fmt: skip
        super().__init__()
        for check in checks:
            if not check.per_row:
                raise ValueError(
                    f"Validate: check {check.name!r} looks at many rows; give it to a spec's `checks`, which a run judges as a whole"
                )
        self.contract = contract
        self.checks = tuple(checks)
        self.lookups = dict(lookups or {})
        self.time_zone = time_zone

    def expand(self, rows: Any) -> Validated:
        steps = check_steps(self.contract, self.checks, lookups=self.lookups, time_zone=self.time_zone)
        return Validated(*run_program(rows, Program(steps, civil=civil_paths(self.contract), event_time=self.contract.event_time or "")))
