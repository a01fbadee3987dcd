"""The verdicts of a run's checks: those counted row by row, and those over many rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from beam_pipelines.arrow.run_checks import RunChecks
from beam_pipelines.arrow.validate import Check
from beam_pipelines.sinks.ledger import Ledger
from beam_pipelines.sinks.results import CheckResult


@dataclass(frozen=True)
class JudgeRun:
    """Judges `checks`: severity `fail` fails the run where a row breaks it, `warn` says so, `dead_letter` has rejected the rows already.

    `started_at` is the run's start, ISO 8601: freshness is measured against it.
    """

    checks: tuple[Check, ...]
    started_at: str

    def __call__(self, states: Sequence[bytes], ledger: Ledger) -> list[CheckResult]:
        rows = [_by_row(check, ledger) for check in self.checks if check.per_row]
        return rows + self._over_many(states)

    def _over_many(self, states: Sequence[bytes]) -> list[CheckResult]:
        checks = RunChecks(tuple(c for c in self.checks if not c.per_row))
        if not checks.over_many:
            return []
        merged = checks.merge([pa.ipc.open_stream(s).read_next_batch() for s in states])
        started = datetime.fromisoformat(self.started_at)
        results = checks.judge(merged, now_micros=int(started.timestamp() * 1_000_000))
        return [
            CheckResult(
                r.name,
                "pass" if r.passed else "fail" if r.severity == "fail" else "warn",
                r.severity,
                r.failures,
                observed=r.observed,
                expected=r.expected,
            )
            for r in results
        ]


def _by_row(check: Check, ledger: Ledger) -> CheckResult:
    failing = ledger.failing.get(check.name, 0)
    status = "pass" if not failing else "fail" if check.severity == "fail" else "warn"
    observed = f"{failing:,} of {ledger.read:,} rows read fail it" if failing else ""
    expected = check.expr or (f"a key of lookup {check.references.lookup}" if check.references else "")
    return CheckResult(check.name, status, check.severity, failing, ledger.read, observed, expected)  # type: ignore[arg-type]  # a Literal
