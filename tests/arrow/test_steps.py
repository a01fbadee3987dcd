"""Transform steps: what each does to columns, and that a row on which one fails leaves alone."""

from __future__ import annotations

from datetime import datetime
from math import ceil, log2
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.enrich import lookup_table
from beam_pipelines.arrow.layers import Layer
from beam_pipelines.arrow.program import Program
from beam_pipelines.arrow.schema import RAW, UNKNOWN
from beam_pipelines.arrow.steps import civil_after, columns_after, transform_batch, transform_steps
from beam_pipelines.arrow.transform import TransformStep
from beam_pipelines.arrow.types import parse_type
from beam_pipelines.errors import RunError, SpecError, TransientError
from tests.arrow import user_functions
from tests.arrow.batches import assert_one_door, with_provenance

HERE = "tests.arrow.user_functions"


def step(**given: Any) -> TransformStep:
    return TransformStep.model_validate(given)


def apply(function: str, **columns: str) -> TransformStep:
    return step(apply={"function": f"{HERE}:{function}", "columns": columns})


def own(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    return batch.select([n for n in batch.schema.names if not n.startswith("_")]).to_pylist()


def test_set_uses_earlier_entries_and_the_new_value_of_a_column() -> None:
    steps = [step(set={"a": "a + 1", "b": "a * 10", "c": "b + a"})]
    split = transform_batch(with_provenance({"a": [1]}), steps)
    assert own(split.rows) == [{"a": 2, "b": 20, "c": 22}]


def test_independent_entries_are_one_layer() -> None:
    made = transform_steps([step(set={"b": "a + 1", "c": "a + 2", "d": "b + c"})], lookups={}, columns=["a"])
    assert [[d.name for d in layer.define] for layer in made if isinstance(layer, Layer)] == [["b", "c"], ["d"]]


def test_rename_keeps_the_place_and_can_swap() -> None:
    split = transform_batch(with_provenance({"a": [1], "b": [2], "c": [3]}), [step(rename={"b": "a", "a": "b"}), step(rename={"z": "c"})])
    assert list(own(split.rows)[0].items()) == [("b", 1), ("a", 2), ("z", 3)]


def test_drop_leaves_columns_out_and_unknown_too_if_named() -> None:
    batch = with_provenance({"a": [1], "b": [2], UNKNOWN: ["{}"]})
    assert UNKNOWN in transform_batch(batch, [step(drop=["a"])]).rows.schema.names
    split = transform_batch(batch, [step(drop=["a", UNKNOWN])])
    assert UNKNOWN not in split.rows.schema.names
    assert own(split.rows) == [{"b": 2}]


def test_new_columns_stand_before_the_reserved_ones() -> None:
    lookup = lookup_table(pa.table({"k": [1], "v": ["one"]}), name="l", key="k")
    batch = with_provenance({"a": [1], UNKNOWN: ["{}"], "x": [1]})
    steps = [step(set={"s": "a"}), step(lookup={"from": "l", "on": "a", "take": {"t": "v"}}), apply("sees", seen="string")]
    split = transform_batch(batch, steps, lookups={"l": lookup})
    assert split.rows.schema.names[:6] == ["a", "x", "s", "t", "seen", UNKNOWN]
    assert columns_after(steps, batch.schema.names) == ("a", "x", "s", "t", "seen")
    assert split.rows["seen"].to_pylist() == ["a,x,s,t"]
    assert RAW in split.rows.schema.names


def test_filter_keeps_what_is_true() -> None:
    split = transform_batch(with_provenance({"a": [1, None, 3]}), [step(filter="a > 1")])
    assert (own(split.rows), split.filtered) == ([{"a": 3}], 2)


def test_an_expression_fails_on_its_rows_only() -> None:
    batch = with_provenance({"a": [1, 0, 2**62]})
    split = transform_batch(batch, [step(set={"b": "10 // a"}), step(filter="a * 4 > 0")])
    assert_one_door(split, batch)
    assert own(split.rows) == [{"a": 1, "b": 10}]
    assert dict(zip(split.dead["position"].to_pylist(), split.dead["reason"].to_pylist(), strict=True)) == {
        1: "EXPRESSION",
        2: "EXPRESSION",
    }


@settings(max_examples=50)
@given(st.lists(st.integers(-3, 3) | st.none(), max_size=30))
def test_apply_rejects_exactly_the_rows_on_which_the_function_raises(xs: list[int | None]) -> None:
    batch = with_provenance({"x": pa.array(xs, pa.int64())})
    split = transform_batch(batch, [apply("invert", inverse="int64")])
    assert_one_door(split, batch)
    good = {i: x for i, x in enumerate(xs) if x}
    assert dict(zip(split.rows["_position"].to_pylist(), split.rows["inverse"].to_pylist(), strict=True)) == {
        i: 100 // x for i, x in good.items()
    }
    assert set(split.dead["reason"].to_pylist()) <= {"APPLY"}
    assert all("ZeroDivisionError" in m or "TypeError" in m for m in split.dead["message"].to_pylist())


@pytest.mark.parametrize(("function", "kind"), [("text_as_it_is", "string"), ("texts_as_they_are", "list<string>")])
def test_a_text_that_is_not_utf8_is_the_fault_of_its_row(function: str, kind: str) -> None:
    split = transform_batch(with_provenance({"x": [b"a", b"\xff", None, b"c"]}), [apply(function, y=kind)])
    assert (split.dead["position"].to_pylist(), split.dead["reason"].to_pylist()) == ([1], ["APPLY"])
    assert "y: got a text that is not UTF-8" in split.dead["message"][0].as_py()
    assert split.rows["x"].to_pylist() == [b"a", None, b"c"]


def test_apply_finds_one_bad_row_in_logarithmic_calls() -> None:
    user_functions.CALLS.clear()
    batch = with_provenance({"x": [1] * 700 + [0] + [1] * 299})
    assert transform_batch(batch, [apply("invert", inverse="int64")]).dead["position"].to_pylist() == [700]
    assert len(user_functions.CALLS) <= 2 * ceil(log2(1000)) + 1


def test_apply_gets_live_rows_only_and_is_not_called_without_rows() -> None:
    user_functions.CALLS.clear()
    batch = with_provenance({"x": [0, 5]})
    split = transform_batch(batch, [step(set={"y": "1 // x"}), apply("invert", inverse="int64")])
    assert (user_functions.CALLS, split.dead["reason"].to_pylist()) == ([1], ["EXPRESSION"])
    empty = transform_batch(batch.slice(0, 0), [apply("invert", inverse="int64")])
    assert (user_functions.CALLS, empty.rows.schema.field("inverse").type) == ([1], pa.int64())


def test_apply_may_change_its_input_and_is_cast_to_what_is_declared() -> None:
    batch = with_provenance({"x": [1, 2]})
    assert own(transform_batch(batch, [step(apply=f"{HERE}:double")]).rows) == [{"x": 2}, {"x": 4}]
    split = transform_batch(batch, [apply("narrow", y="int8")])
    assert own(split.rows) == [{"x": 1, "y": 100}]
    assert "ArrowInvalid" in split.dead["message"][0].as_py()
    assert own(transform_batch(batch, [apply("list_of_nothing", y="list<int64>")]).rows) == [{"x": 1, "y": []}, {"x": 2, "y": []}]


def test_a_world_that_says_no_fails_the_bundle_at_the_first_call() -> None:
    user_functions.CALLS.clear()
    with pytest.raises(TransientError, match="ConnectionRefusedError: port 80") as told:
        transform_batch(with_provenance({"x": [1, 2, 3]}), [apply("offline")])
    assert (told.value.retryable, user_functions.CALLS) == (True, [3])


@pytest.mark.parametrize("kind", ["int8", "float64", "decimal(9,2)"])
def test_numbers_become_the_declared_numbers(kind: str) -> None:
    split = transform_batch(with_provenance({"x": [1, 2]}), [apply("double", x=kind)])
    assert split.rows.schema.field("x").type == parse_type(kind).arrow()
    assert [int(row["x"]) for row in own(split.rows)] == [2, 4]


@pytest.mark.parametrize(
    ("transform", "error", "message"),
    [
        (apply("too_short"), RunError, "got 1 rows for 2"),
        (apply("undeclared"), RunError, "'surprise', which is not declared"),
        (apply("nothing"), RunError, "got a NoneType"),
        (apply("double", y="int8"), RunError, "got no column 'y'"),
        (apply("double", x="list<int8>"), RunError, "expected list<"),
        (apply("text_of", y="int64"), RunError, "got column 'y' as string; expected int64"),
        (apply("list_of_texts", y="list<int64>"), RunError, "got column 'y' as list<.*string>; expected list<.*int64>"),
        (apply("of_another_kind"), RunError, "got column 'x' as bool; expected int64"),
        (apply("not_installed"), RunError, "ModuleNotFoundError: No module named 'no_such_package'"),
        (apply("stops"), RunError, "the table of rates is empty"),
        (apply("absent"), SpecError, "cannot be imported"),
        (step(apply="no_such_package:f"), SpecError, "cannot be imported"),
        (apply("NOT_A_FUNCTION"), SpecError, "expected a function"),
        (step(drop=["y"]), SpecError, r"transform\[0\]: no column 'y'; Known: a, x."),
        (step(rename={"z": "nope"}), SpecError, "no column 'nope'"),
        (step(rename={"x": "a"}), SpecError, "a column has that name"),
        (step(set={"_x": "1"}), SpecError, "'_x' is reserved"),
        (step(set={"y$": "1"}), SpecError, "is reserved"),
        (step(set={"y": "xx + 1"}), SpecError, "xx"),
        (step(filter="random() > 0"), SpecError, "random"),
        (step(lookup={"from": "l", "on": "x", "take": {"y": "v"}}), SpecError, "no lookup 'l'"),
        (step(lookup={"from": "t", "on": "nope", "take": {"y": "v"}}), SpecError, "no column 'nope'"),
        (step(lookup={"from": "t", "on": "x", "take": {"y": "vv"}}), SpecError, "no column 'vv' to take; did you mean 'v'"),
    ],
)
def test_what_cannot_be_is_an_error_that_says_so(transform: TransformStep, error: type[Exception], message: str) -> None:
    table = lookup_table(pa.table({"k": [1], "v": ["one"]}), name="t", key="k")
    with pytest.raises(error, match=message):
        transform_batch(with_provenance({"x": [1, 2], "a": [1, 2]}), [transform], lookups={"t": table})


def test_renamed_and_derived_civil_times_stay_civil() -> None:
    steps = [step(rename={"moment": "at"}), step(set={"later": "moment + INTERVAL 1 DAY"})]
    assert civil_after(steps, frozenset({"at"})) == {"at", "moment", "later"}
    split = transform_batch(pa.record_batch({"at": pa.array([datetime(2026, 1, 1)], pa.timestamp("us"))}), steps)
    assert split.rows.to_pylist() == [{"moment": datetime(2026, 1, 1), "later": datetime(2026, 1, 2)}]


def test_a_lookup_is_asked_for_at_each_batch() -> None:
    tables = iter([lookup_table(pa.table({"k": [1], "v": [v]}), name="t", key="k") for v in ("old", "new")])
    program = Program(
        transform_steps([step(lookup={"from": "t", "on": "x", "take": {"v": "v"}})], lookups={"t": lambda: next(tables)}, columns=["x"])
    )
    assert [program(with_provenance({"x": [1]})).rows["v"].to_pylist() for _ in range(2)] == [["old"], ["new"]]
