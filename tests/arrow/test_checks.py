"""Checks: SQL CHECK semantics, every failing check on the row, and accumulators that do not care for order."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.checks import RunChecks, check_steps, severities, validate_batch
from beam_pipelines.arrow.conform import conform_steps
from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.enrich import lookup_table
from beam_pipelines.arrow.layers import Layer
from beam_pipelines.arrow.program import Program
from beam_pipelines.arrow.run_checks import STATE
from beam_pipelines.arrow.validate import Check
from beam_pipelines.errors import SpecError
from tests.arrow.batches import assert_one_door, with_provenance
from tests.laws import share


def failing(column: Column, values: pa.Array | list[Any], **given: Any) -> list[list[str]]:
    """The names of the checks that each value of column `x` fails."""
    contract = Contract(columns={"x": column})
    array = values if isinstance(values, pa.Array) else pa.array(values, column.dtype.arrow())
    batch = with_provenance({"x": array})
    split = validate_batch(batch, contract, **given)
    assert_one_door(split, batch)
    names = {
        p: [f["name"] for f in fs] for p, fs in zip(split.dead["position"].to_pylist(), split.dead["failures"].to_pylist(), strict=True)
    }
    return [names.get(i, []) for i in range(batch.num_rows)]


RULES: list[tuple[Column, list[Any], list[list[str]]]] = [
    (Column(type="int32", required=True), [1, None], [[], ["x.required"]]),
    (Column(type="int32", min=1, max=3), [0, 1, 3, 4, None], [["x.min"], [], [], ["x.max"], []]),
    (Column(type="decimal(5,2)", min=0.1), [Decimal("0.10"), Decimal("0.09")], [[], ["x.min"]]),
    (Column(type="float64", max=0.1), [0.1, 0.2, float("nan")], [[], ["x.max"], ["x.max"]]),
    (Column(type="date", min="2026-01-01"), [date(2025, 12, 31), date(2026, 1, 1)], [["x.min"], []]),
    (Column(type="timestamp", max="2026-01-01T00:00:00+01:00"), [datetime(2025, 12, 31, 23, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)], [[], ["x.max"]]),
    (Column(type="datetime", min="2026-01-01 12:00"), [datetime(2026, 1, 1, 11), datetime(2026, 1, 1, 12)], [["x.min"], []]),
    (Column(type="string", in_=("a", "it's")), ["a", "it's", "b", None], [[], [], ["x.in"], []]),
    (Column(type="int16", in_=(1, 2)), [1, 3], [[], ["x.in"]]),
    (Column(type="boolean", in_=(True,)), [True, False], [[], ["x.in"]]),
    (Column(type="date", in_=("2026-01-01",)), [date(2026, 1, 1), date(2026, 1, 2)], [[], ["x.in"]]),
    (Column(type="string", regex="[a-z]+"), ["abc", "abc1", "", None], [[], ["x.regex"], ["x.regex"], []]),
    (Column(type="string", min_length=2, max_length=3), ["a", "🙂🙂", "abcd"], [["x.min_length"], [], ["x.max_length"]]),
    (Column(type="string", required=True, in_=("a",), regex="b"), ["c", None], [["x.in", "x.regex"], ["x.required"]]),
]  # fmt: skip


@pytest.mark.parametrize(("column", "values", "expected"), RULES, ids=[str(c.model_dump(exclude_defaults=True)) for c, _, _ in RULES])
def test_rules_of_columns(column: Column, values: list[Any], expected: list[list[str]]) -> None:
    assert failing(column, values) == expected


def test_bounds_of_local_times_are_local() -> None:
    column = Column(type="timestamp", min="2026-07-01")
    assert failing(column, [datetime(2026, 7, 1, 3, tzinfo=UTC), datetime(2026, 7, 1, 4, tzinfo=UTC)], time_zone="America/New_York") == [
        ["x.min"],
        [],
    ]


def test_a_dead_letter_carries_all_failing_checks_columns_and_expressions_and_references() -> None:
    contract = Contract(
        columns={
            "a": Column(type="int64", required=True),
            "b": Column(type="int64", max=5),
            "pin": Column(type="int64", sensitive="redact", max=5),
        }
    )
    checks = [
        Check(name="less", expr="b < pin"),
        Check(name="known", references={"columns": ["b"], "lookup": "bs"}),
        Check(name="odd", expr="b % 2 = 1", severity="warn"),
        Check(name="never", expr="false", severity="fail"),
    ]
    lookups = {"bs": lookup_table(pa.table({"b": [1, 2]}), name="bs", key="b")}
    batch = with_provenance({"a": [1, None, 3], "b": [1, 9, None], "pin": [2, 7, None]})
    split = validate_batch(batch, contract, checks, lookups=lookups)
    assert_one_door(split, batch)
    assert split.rows.schema == batch.schema
    assert split.dead["reason"].to_pylist() == ["REQUIRED"]
    assert [tuple(f.values()) for f in split.dead["failures"][0].as_py()] == [
        ("a.required", "a", "a: got NULL; expected a value"),
        ("b.max", "b", "b: got 9; expected at most 5"),
        ("pin.max", "pin", "pin: got a value that is not shown (sensitive); expected at most 5"),
        ("less", "", "less: got b=9, pin=(sensitive); expected b < pin"),
        ("known", "b", "known: got b=9; expected a key of lookup bs"),
    ]
    assert split.warned == {"odd": 0, "never": 2}
    assert severities(checks) == {"less": "dead_letter", "known": "dead_letter", "odd": "warn", "never": "fail"}


def test_a_check_that_raises_on_a_row_rejects_it_and_no_other() -> None:
    contract = Contract(columns={"a": Column(type="int64")})
    batch = with_provenance({"a": [0, 1, 20, None]})
    split = validate_batch(batch, contract, [Check(name="share", expr="10 // a > 0")])
    assert dict(zip(split.dead["position"].to_pylist(), split.dead["reason"].to_pylist(), strict=True)) == {0: "EXPRESSION", 2: "CHECK"}


def test_checks_see_computed_columns_and_rules_of_dropped_ones_do_not_apply() -> None:
    contract = Contract(columns={"a": Column(type="int64", required=True)})
    split = validate_batch(with_provenance({"speed": [1, 2]}), contract, [Check(name="slow", expr="speed < 2")])
    assert split.dead["message"].to_pylist() == ["slow: got speed='2'; expected speed < 2"]


def test_conform_and_checks_are_one_query() -> None:
    contract = Contract(columns={"a": Column(type="int8", min=1), "t": Column(type="timestamp", required=True)})
    steps = (*conform_steps(contract, text=True), *check_steps(contract, [Check(name="c", expr="a < 9")], lookups={}))
    assert all(isinstance(s, Layer) for s in steps)
    batch = with_provenance({"a": ["0", "x", "5"], "t": [None, "2026-01-01", "2026-01-01"]})
    split = Program(steps)(batch)
    assert_one_door(split, batch)
    assert [[f["name"] for f in fs] for fs in split.dead["failures"].to_pylist()] == [["a.min", "t.required"], ["a"]]


@pytest.mark.parametrize(
    ("column", "message"),
    [(Column.model_construct(type="date", min="soon"), "got 'soon'"), (Column.model_construct(type="string", regex="("), "RE2")],
)
def test_rules_that_cannot_be_are_refused(column: Column, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_steps(Contract.model_construct(columns={"x": column}), [], lookups={})


def test_unknown_lookups_and_columns_are_refused() -> None:
    contract = Contract(columns={"a": Column(type="int64")})
    with pytest.raises(SpecError, match="no lookup 'bs'"):
        check_steps(contract, [Check(name="known", references={"columns": ["a"], "lookup": "bs"})], lookups={})
    with pytest.raises(SpecError, match="b"):
        validate_batch(with_provenance({"a": [1]}), contract, [Check(name="c", expr="b > 1")])


MANY = RunChecks(
    (
        Check(name="ids", unique=("id", "kind")),
        Check(name="rows", row_count={"min": 2, "max": 3}),
        Check(name="per_row", expr="id > 0"),
        Check(name="nulls", null_rate={"column": "id", "max": 0.5}, severity="warn"),
        Check(name="fresh", freshness={"column": "at", "max_age": "1h"}),
    )
)
rows = st.lists(
    st.tuples(st.none() | st.integers(0, 5), st.sampled_from("ab"), st.none() | st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 3)))
)
NOW = int(datetime(2026, 1, 2, tzinfo=UTC).timestamp()) * 1_000_000


def as_rows(found: list[tuple[int | None, str, datetime | None]]) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "id": pa.array([r[0] for r in found], pa.int64()),
            "kind": pa.array([r[1] for r in found], pa.string()),
            "at": pa.array([r[2] for r in found], pa.timestamp("us", "UTC")),
        }
    )


@share(30)
@given(st.lists(rows, max_size=5), st.randoms(use_true_random=False))
def test_states_merge_in_any_order_and_grouping_to_the_state_of_all_rows(parts: list[list[Any]], order: random.Random) -> None:
    states = [MANY.observe(as_rows(part)) for part in parts]
    whole = MANY.observe(as_rows([row for part in parts for row in part]))
    order.shuffle(states)
    cut = order.randint(0, len(states))
    grouped = MANY.merge([MANY.merge(states[cut:]), MANY.merge(states[:cut])])
    assert MANY.merge([whole, MANY.merge([])]).equals(whole)
    assert MANY.judge(grouped, now_micros=NOW) == MANY.judge(whole, now_micros=NOW)
    if parts:
        assert grouped.equals(whole)
    assert whole.schema == STATE


@given(rows)
def test_results_say_what_the_rows_say(found: list[tuple[int | None, str, datetime | None]]) -> None:
    results = {r.name: r for r in MANY.judge(MANY.observe(as_rows(found)), now_micros=NOW)}
    keys = [(i, k) for i, k, _ in found if i is not None]
    assert list(results) == ["ids", "rows", "nulls", "fresh"]
    assert results["ids"].failures == len(keys) - len(set(keys))
    assert results["ids"].passed == (len(keys) == len(set(keys)))
    assert results["rows"].passed == (2 <= len(found) <= 3)
    assert results["nulls"].passed == (len(found) - len(keys) <= len(found) / 2)
    newest = max((t for _, _, t in found if t is not None), default=None)
    assert results["fresh"].passed == (newest is not None and newest >= datetime(2026, 1, 1, 23))
    assert [r.severity for r in results.values()] == ["fail", "fail", "warn", "fail"]


def test_run_checks_refuse_what_they_cannot_judge() -> None:
    batch = pa.record_batch({"id": [1]})
    with pytest.raises(SpecError, match="check 'c': no column 'ident'; did you mean 'id'"):
        RunChecks((Check(name="c", unique=("ident",)),)).observe(batch)
    with pytest.raises(SpecError, match="needs a timestamp or date column; got int64"):
        RunChecks((Check(name="c", freshness={"column": "id", "max_age": "1d"}),)).observe(batch)
