"""Validate: what must hold of a row, as one layer: the columns' own rules and the checks that look at one row.

SQL CHECK semantics: NULL passes, unless the column is `required`. A rejected row carries every check that it fails. Checks of severity
`warn` and `fail` reject nothing: they are counted in `Split.warned`, and `severities` says which of them fail the run.
Checks over many rows: run_checks.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.casts import shown
from beam_pipelines.arrow.conform import value_sql
from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.enrich import Lookup, matched, resolved
from beam_pipelines.arrow.expressions import check_expression, regex_fault
from beam_pipelines.arrow.layers import KernelResult, Layer, Reject, Warn
from beam_pipelines.arrow.program import Program, Split, Step
from beam_pipelines.arrow.run_checks import CheckResult, RunChecks, State
from beam_pipelines.arrow.schema import PROVENANCE_NAMES, UNKNOWN
from beam_pipelines.arrow.steps import civil_columns
from beam_pipelines.arrow.validate import Check, Severity
from beam_pipelines.errors import SpecError, nearest

__all__ = ["CheckResult", "RunChecks", "State", "check_steps", "severities", "validate_batch"]

REQUIRED, CHECK = "REQUIRED", "CHECK"
_STAGE = "validate"
_MISSING = "_missing_"
_COMMA = " || ', ' || "


def validate_batch(
    batch: pa.RecordBatch,
    contract: Contract,
    checks: Sequence[Check] = (),
    *,
    lookups: Mapping[str, Lookup] | None = None,
    time_zone: str = "UTC",
) -> Split:
    """The rows of a conformed `batch` that pass, dead letters for the others with all that each fails, and counts of warnings.

    >>> contract = Contract(columns={'id': Column(type='int64', required=True), 'n': Column(type='int64', min=1)})
    >>> batch = pa.RecordBatch.from_pydict({'id': [1, None, 3], 'n': [1, 0, None]})
    >>> split = validate_batch(batch, contract, [Check(name='small', expr='n < 1', severity='warn')])
    >>> split.rows.to_pylist(), split.dead['message'].to_pylist(), split.warned
    ([{'id': 1, 'n': 1}, {'id': 3, 'n': None}], ['id: got NULL; expected a value; n: got 0; expected at least 1'], {'small': 1})
    """
    steps = check_steps(contract, checks, lookups=lookups or {}, columns=batch.schema.names, time_zone=time_zone)
    return Program(steps, civil=civil_columns(batch.schema), event_time=contract.event_time or "", keep_raw=True)(batch)


def check_steps(
    contract: Contract,
    checks: Sequence[Check],
    *,
    lookups: Mapping[str, Lookup],
    columns: Iterable[str] | None = None,
    time_zone: str = "UTC",
) -> tuple[Step, ...]:
    """The rules of the contract's columns and the per-row checks; checks over many rows are left to RunChecks.

    `columns` are those that rows have here, if they are others than the contract's: the rules of a column that a transform step has
    dropped or renamed do not apply. Raises SpecError for bounds, patterns and lookups that cannot be.
    """
    present = tuple(columns) if columns is not None else None
    ruled = {n: c for n, c in contract.columns.items() if present is None or n in present}
    rejects = [rule for name, column in ruled.items() for rule in _column_rules(name, column, time_zone)]
    warns: list[Warn] = []
    kernels: list[Step] = []
    for check in checks:
        if check.expr is not None:
            reject = _expression(check, contract, present)
        elif check.references is not None:
            kernels.append(_References.of(check, lookups))
            reject = _unfound(check, contract)
        else:
            continue
        if check.severity == "dead_letter":
            rejects.append(reject)
        else:
            warns.append(Warn(check.name, reject.when, reject.fallible))
    flags = tuple(_MISSING + c.name for c in checks if c.references is not None)
    return (*kernels, Layer(_STAGE, rejects=tuple(rejects), warns=tuple(warns), drop=flags))


def severities(checks: Sequence[Check]) -> dict[str, Severity]:
    """What becomes of the rows, or the run, that fails each check: `warn` and `fail` are counted, `dead_letter` rejects."""
    return {check.name: check.severity for check in checks}


def _column_rules(name: str, column: Column, time_zone: str) -> list[Reject]:
    x = quote(name)
    rules = (
        [Reject(REQUIRED, f"{name}.required", name, f"{x} IS NULL", literal(f"{name}: got NULL; expected a value"))]
        if column.required
        else []
    )

    def rule(kind: str, when: str, expected: str) -> None:
        rules.append(Reject(CHECK, f"{name}.{kind}", name, when, _message(name, x, column, expected)))

    if column.min is not None:
        rule("min", f"{x} < {_bound(name, column.min, column, time_zone)}", f"at least {column.min}")
    if column.max is not None:
        rule("max", f"{x} > {_bound(name, column.max, column, time_zone)}", f"at most {column.max}")
    if column.in_ is not None:
        allowed = [_bound(name, v, column, time_zone) for v in column.in_]
        rule("in", f"{x} NOT IN ({', '.join(allowed)})" if allowed else f"{x} IS NOT NULL", f"one of {', '.join(map(str, column.in_))}")
    if column.regex is not None:
        fault = regex_fault(column.regex)
        if fault is not None:
            raise SpecError(f"column {name!r}: regex {column.regex!r} is no RE2 pattern: {fault}")
        rule("regex", f"NOT regexp_full_match({x}, {literal(column.regex)})", f"a text that matches {column.regex}")
    if column.min_length is not None:
        rule("min_length", f"length({x}) < {column.min_length}", f"a length of at least {column.min_length}")
    if column.max_length is not None:
        rule("max_length", f"length({x}) > {column.max_length}", f"a length of at most {column.max_length}")
    return rules


def _bound(name: str, value: object, column: Column, time_zone: str) -> str:
    """SQL for a bound. Numbers compare exactly as they are written, whatever the column's numeric type."""
    if column.dtype.kind == "boolean" and isinstance(value, bool):
        return str(value).upper()
    if column.dtype.numeric and isinstance(value, int | float) and not isinstance(value, bool):
        return f"({value!r})"
    return value_sql(name, value, column, time_zone=time_zone)


def _message(name: str, x: str, column: Column, expected: str) -> str:
    if column.sensitive is not None:
        return literal(f"{name}: got a value that is not shown (sensitive); expected {expected}")
    quoted = not (column.dtype.numeric or column.dtype.kind == "boolean")
    return f"{literal(f'{name}: got ')} || {shown(x, quoted=quoted)} || {literal(f'; expected {expected}')}"


def _expression(check: Check, contract: Contract, present: tuple[str, ...] | None) -> Reject:
    assert check.expr is not None
    names = [*contract.columns, *(present or ()), UNKNOWN, *sorted(PROVENANCE_NAMES)]
    references: tuple[str, ...] = ()
    try:
        references = check_expression(check.expr, dict.fromkeys(names)).references
    except SpecError:
        if present is not None:
            raise
        # columns that transform steps compute are not known here; DuckDB checks the names when the query is prepared
    message = f"{literal(f'{check.name}: ')} || {_got(references, contract)} || {literal(f'expected {check.expr}')}"
    column = references[0] if len(references) == 1 else ""
    return Reject(CHECK, check.name, column, f"NOT ({check.expr}\n)", message, fallible=True)


def _got(names: Sequence[str], contract: Contract) -> str:
    """SQL for `got a=1, b='x'; `, or for nothing where no column is named."""
    if not names:
        return "''"
    values = [f"{literal(f'{n}=')} || {_value(n, contract)}" for n in names]
    return f"'got ' || {_COMMA.join(values)} || '; '"


def _value(name: str, contract: Contract) -> str:
    column = contract.columns.get(name)
    if column is not None and column.sensitive is not None:
        return literal("(sensitive)")
    return shown(quote(name), quoted=column is None or not column.dtype.numeric)


def _unfound(check: Check, contract: Contract) -> Reject:
    assert check.references is not None
    names = check.references.columns
    expected = literal(f"expected a key of lookup {check.references.lookup}")
    message = f"{literal(f'{check.name}: ')} || {_got(names, contract)} || {expected}"
    return Reject(CHECK, check.name, names[0] if len(names) == 1 else "", quote(_MISSING + check.name), message)


@dataclass(frozen=True)
class _References:
    """Kernel: a flag column that says where `columns` are not NULL and not a key of the lookup."""

    name: str
    columns: tuple[str, ...]
    table: Lookup
    stage: ClassVar[str] = _STAGE
    sees_rejected: ClassVar[bool] = True

    @staticmethod
    def of(check: Check, lookups: Mapping[str, Lookup]) -> _References:
        assert check.references is not None
        name = check.references.lookup
        if name not in lookups:
            raise SpecError(f"check {check.name!r}: no lookup {name!r};", hint=nearest(name, lookups))
        return _References(check.name, check.references.columns, lookups[name])

    def __call__(self, batch: pa.RecordBatch) -> KernelResult:
        table = resolved(self.table)
        found = table.find(batch, matched(table, self.columns, batch.schema.names))
        missing = pc.invert(found.is_valid())
        for column in self.columns:
            missing = pc.and_(missing, batch[column].is_valid())
        return batch.append_column(_MISSING + self.name, missing), {}
