"""Checks over many rows: unique, row_count, null_rate, freshness. Each is an accumulator whose merge does not care for order or grouping.

    observe(batch) ─▶ state ─┐
    observe(batch) ─▶ state ─┼─▶ merge ─▶ judge ─▶ CheckResult per check
    observe(batch) ─▶ state ─┘

A state is a RecordBatch (STATE): one row per check and key, so that it travels as any element does. `unique` keeps a 64-bit hash and a
count per distinct value, the others one or two numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.durations import format_duration, parse_duration
from beam_pipelines.arrow.engine import as_batch, local_engine, naive_utc, quote
from beam_pipelines.arrow.validate import Check, Severity
from beam_pipelines.errors import SpecError, nearest

State: TypeAlias = pa.RecordBatch
STATE = pa.schema([("check", pa.int16()), ("key", pa.uint64()), ("value", pa.int64())])
_ROWS, _NULLS = 0, 1  # keys of the numbers of null_rate


class CheckResult(NamedTuple):
    """How a check over many rows came out. `failures` counts what is wrong: repeated rows, rows short or over, NULLs over, 1 if stale."""

    name: str
    kind: str
    severity: Severity
    passed: bool
    observed: str
    expected: str
    failures: int


@dataclass(frozen=True)
class RunChecks:
    """The checks of `checks` that look at many rows.

    >>> checks = RunChecks((Check(name='ids', unique=('id',)), Check(name='enough', row_count={'min': 5}, severity='warn')))
    >>> one = checks.observe(pa.RecordBatch.from_pydict({'id': [1, 2]}))
    >>> two = checks.observe(pa.RecordBatch.from_pydict({'id': [2, None]}))
    >>> [(r.name, r.passed, r.observed) for r in checks.judge(checks.merge([one, two]))]
    [('ids', False, '1 of 4 rows repeat a value'), ('enough', False, '4 rows')]
    """

    checks: tuple[Check, ...]

    @cached_property
    def over_many(self) -> tuple[Check, ...]:
        """The checks that are judged here, in order; `check` in a state is an index into them."""
        return tuple(check for check in self.checks if not check.per_row)

    def observe(self, batch: pa.RecordBatch) -> State:
        """The state of the rows of one batch."""
        parts = [part for number, check in enumerate(self.over_many) for part in _observed(number, check, batch)]
        return self.merge([pa.RecordBatch.from_arrays(p, schema=STATE) for p in parts])

    def merge(self, states: Iterable[State]) -> State:
        """One state for the rows of all: associative, commutative, with the empty state as its unit. In normal form."""
        table = pa.Table.from_batches(list(states), schema=STATE)
        latest = pa.array([i for i, c in enumerate(self.over_many) if c.freshness is not None], pa.int16())
        groups = table.group_by(["check", "key"]).aggregate([("value", "sum"), ("value", "max")])
        value = pc.if_else(pc.is_in(groups["check"], latest), groups["value_max"], groups["value_sum"])
        merged = pa.table([groups["check"], groups["key"], value.cast(pa.int64())], schema=STATE)
        return as_batch(merged.sort_by([("check", "ascending"), ("key", "ascending")]))

    def judge(self, state: State, *, now_micros: int | None = None) -> list[CheckResult]:
        """The result of every check. `now_micros` is when the run started, microseconds since 1970; freshness needs it."""
        results = []
        for number, check in enumerate(self.over_many):
            mine = state.filter(pc.equal(state["check"], pa.scalar(number, pa.int16())))
            results.append(_judged(check, mine, now_micros))
        return results


def _observed(number: int, check: Check, batch: pa.RecordBatch) -> list[list[pa.Array]]:
    if check.unique is not None:
        hashes = _hashes(check.unique, batch, check.name)
        rows = [_numbers(number, {_ROWS: batch.num_rows})] if batch.num_rows else []
        ones = pa.repeat(pa.scalar(1, pa.int64()), len(hashes))
        return [*rows, [pa.repeat(pa.scalar(number, pa.int16()), len(hashes)), hashes, ones]]
    if check.row_count is not None:
        return [_numbers(number, {_ROWS: batch.num_rows})]
    if check.null_rate is not None:
        column = _column(check.null_rate.column, batch, check.name)
        return [_numbers(number, {_ROWS: batch.num_rows, _NULLS: column.null_count})]
    newest = pc.max(_instants(_column(freshness(check)[0], batch, check.name), check.name)).as_py()
    return [] if newest is None else [_numbers(number, {_ROWS: newest})]


def _numbers(number: int, values: dict[int, int]) -> list[pa.Array]:
    return [
        pa.array([number] * len(values), pa.int16()),
        pa.array(list(values), pa.uint64()),
        pa.array(list(values.values()), pa.int64()),
    ]


def _hashes(columns: Sequence[str], batch: pa.RecordBatch, name: str) -> pa.Array:
    """One hash per row without a NULL among `columns` (as in SQL, NULL is never a repetition); 0 is kept for the row count."""
    for column in columns:
        _column(column, batch, name)
    inside = naive_utc(batch.select(list(columns)))
    listed = ", ".join(quote(c) for c in columns)
    valid = " AND ".join(f"{quote(c)} IS NOT NULL" for c in columns)
    out = local_engine().select(f"SELECT CASE WHEN {valid} THEN greatest(hash({listed}), 1::UBIGINT) END AS h FROM $slot", inside.schema)(
        inside
    )
    return out["h"].drop_null()


def _column(column: str, batch: pa.RecordBatch, name: str) -> pa.Array:
    if column not in batch.schema.names:
        raise SpecError(f"check {name!r}: no column {column!r};", hint=nearest(column, batch.schema.names))
    return batch[column]


def _instants(column: pa.Array, name: str) -> pa.Array:
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        raise SpecError(f"check {name!r}: freshness needs a timestamp or date column; got {column.type}.")
    return column.cast(pa.timestamp("us", column.type.tz if pa.types.is_timestamp(column.type) else None)).cast(pa.int64())


def freshness(check: Check) -> tuple[str, int]:
    """The column and the largest age in microseconds of a freshness check. Raises SpecError if it says anything else."""
    given = check.freshness or {}
    if set(given) != {"column", "max_age"}:
        raise SpecError(f"check {check.name!r}: freshness needs 'column' and 'max_age'; got {', '.join(sorted(given)) or 'nothing'}.")
    return given["column"], parse_duration(given["max_age"])


def _judged(check: Check, state: State, now_micros: int | None) -> CheckResult:
    if check.unique is not None:
        return _judge_unique(check, state)
    if check.row_count is not None:
        return _judge_rows(check, state)
    if check.null_rate is not None:
        return _judge_nulls(check, state)
    return _judge_age(check, state, now_micros)


def _number(state: State, key: int) -> int | None:
    found = state.filter(pc.equal(state["key"], pa.scalar(key, pa.uint64())))
    return int(found["value"][0].as_py()) if found.num_rows else None


def _judge_unique(check: Check, state: State) -> CheckResult:
    assert check.unique is not None
    rows = _number(state, _ROWS) or 0
    counts = state.filter(pc.greater(state["key"], pa.scalar(0, pa.uint64())))["value"]
    repeated = int(pc.sum(counts).as_py() or 0) - len(counts)
    expected = f"no repetition in {', '.join(check.unique)}"
    return CheckResult(
        check.name, "unique", check.severity, repeated == 0, f"{repeated:,} of {rows:,} rows repeat a value", expected, repeated
    )


def _judge_rows(check: Check, state: State) -> CheckResult:
    bounds = check.row_count
    assert bounds is not None
    rows = _number(state, _ROWS) or 0
    short = max((bounds.min or 0) - rows, 0)
    over = max(rows - bounds.max, 0) if bounds.max is not None else 0
    said = [f"{words} {bound:,}" for words, bound in (("at least", bounds.min), ("at most", bounds.max)) if bound is not None]
    return CheckResult(
        check.name, "row_count", check.severity, short + over == 0, f"{rows:,} rows", " and ".join(said) or "any number", short + over
    )


def _judge_nulls(check: Check, state: State) -> CheckResult:
    rule = check.null_rate
    assert rule is not None
    rows, nulls = _number(state, _ROWS) or 0, _number(state, _NULLS) or 0
    passed = nulls <= rule.max * rows
    expected = f"at most {rule.max:.4%} NULL in {rule.column}"
    observed = f"{nulls:,} of {rows:,} rows NULL" + (f" ({nulls / rows:.4%})" if rows else "")
    return CheckResult(check.name, "null_rate", check.severity, passed, observed, expected, 0 if passed else nulls)


def _judge_age(check: Check, state: State, now_micros: int | None) -> CheckResult:
    column, max_age = freshness(check)
    expected = f"newest {column} at most {format_duration(max_age)} before the run"
    newest = _number(state, _ROWS)
    if now_micros is None:
        raise ValueError("freshness is judged against the start of the run: give now_micros")
    if newest is None:
        return CheckResult(check.name, "freshness", check.severity, False, f"no value in {column}", expected, 1)
    age = max(now_micros - newest, 0) // 1_000_000 * 1_000_000
    fresh = now_micros - newest <= max_age
    return CheckResult(
        check.name, "freshness", check.severity, fresh, f"newest {column} {format_duration(age)} before the run", expected, int(not fresh)
    )
