"""`assert_rows` fails where it should: names that no row has, values that are not there, numbers that are not near."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.errors import SpecError
from beam_pipelines.testing import assert_rows, run_spec
from beam_pipelines.testing.compare import same


class Order(NamedTuple):
    id: int
    shop: str | None


@dataclasses.dataclass
class Sale:
    id: int
    shop: str | None


ROWS: list[dict[str, Any]] = [{"id": 1, "shop": "north"}, {"id": 2, "shop": None}]
BATCH = pa.RecordBatch.from_pylist(ROWS)
FORMS: list[Any] = [
    ROWS, tuple(ROWS), BATCH, pa.Table.from_batches([BATCH]), [BATCH.slice(0, 1), BATCH.slice(1)], [beam.Row(**row) for row in ROWS],
    [Order(**row) for row in ROWS], [Sale(**row) for row in ROWS], [ROWS[0], Order(**ROWS[1])], iter(ROWS),
]  # fmt: skip


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_rows_may_have_any_form_on_both_sides(form: int) -> None:
    given_ = ROWS if form == len(FORMS) - 1 else FORMS[form]
    assert_rows(FORMS[form], ROWS)
    assert_rows(ROWS, given_)
    with pytest.raises(AssertionError, match=r"differs: id=1 shop='south'\n    but got shop='north'"):
        assert_rows(given_, [{"id": 1, "shop": "south"}, {"id": 2, "shop": None}])


def failure(actual: Any, expected: Any, **how: Any) -> str:
    with pytest.raises(AssertionError) as raised:
        assert_rows(actual, expected, **how)
    return str(raised.value)


def test_a_column_by_its_name_alone_is_one_column() -> None:
    assert_rows(ROWS, [{"id": 2, "shop": "?"}, {"id": 1, "shop": "?"}], columns="id")
    assert "differs: id=3" in failure(ROWS, [{"id": 3}, {"id": 1}], columns="id") or "missing: id=3" in failure(
        ROWS, [{"id": 3}, {"id": 1}], columns="id"
    )


@pytest.mark.parametrize("columns", ["idd", ["idd"], ["id", "idd"]])
def test_a_column_that_no_row_has_is_named_with_the_nearest(columns: Any) -> None:
    assert failure(ROWS, ROWS, columns=columns) == "column 'idd' is in no expected row; did you mean 'id'? Known: id, shop."
    known = [{**row, "idd": 1} for row in ROWS]
    assert failure(ROWS, known, columns=columns) == "column 'idd' is in no actual row; did you mean 'id'? Known: id, shop."
    assert failure(ROWS, known) == "column 'idd' is in no actual row; did you mean 'id'? Known: id, shop."


def test_a_value_that_is_not_there_is_not_null() -> None:
    some = [{"id": 1}, {"id": 2, "shop": "north"}]
    assert "but got shop=(no such column)" in failure(some, [{"id": 1, "shop": None}, {"id": 2, "shop": "north"}])
    assert "shop=(no such column)" in failure([{"id": 1, "shop": None}, {"id": 2, "shop": "north"}], some, columns=["id", "shop"])


def test_rows_are_missing_where_there_are_none() -> None:
    assert failure([], ROWS) == "missing: id=1 shop='north'\nmissing: id=2 shop=NULL"
    assert failure(ROWS, []).count("not expected") == 2
    assert_rows([], [], columns="anything")


@given(st.floats(1e-200, 1e200), st.floats(1e-6, 0.1))
def test_the_tolerance_is_relative_whatever_the_size(value: float, tolerance: float) -> None:
    assert_rows([{"x": value}], [{"x": value * (1 + tolerance / 2)}], tolerance=tolerance)
    failure([{"x": value}], [{"x": value * (1 + tolerance * 2)}], tolerance=tolerance)
    failure([{"x": value}], [{"x": 0.0}])


@given(st.floats(-0.5, 0.5))
def test_where_sums_may_cancel_a_difference_is_allowed_at_any_size(share: float) -> None:
    for have, want in ((1e-14, share * 1e-9), ([{"x": 0.0}], [{"x": share * 1e-9}])):
        assert same(have, want, absolute=1e-9)
    assert not same(0.0, 1.1e-9, absolute=1e-9)


@pytest.mark.parametrize("wrong", [None, 1, "rows", {"id": 1}, beam.Row(id=1), [None], ["id"], [1], [[1]], [Order]])
def test_what_is_no_rows_is_refused(wrong: Any) -> None:
    with pytest.raises(SpecError, match=r"assert_rows: actual.*: got .*; expected"):
        assert_rows(wrong, ROWS)
    with pytest.raises(SpecError, match=r"assert_rows: expected.*: got .*; expected"):
        assert_rows(ROWS, wrong)


SPEC: dict[str, Any] = {
    "spec": 1,
    "pipeline": "shop",
    "contract": {"columns": {"id": {"type": "int64"}, "shop": {"type": "string"}}},
    "sources": {"batch": [{"files": "orders.json", "format": "json"}]},
    "sinks": [{"from": "rows", "parquet": {"path": "out"}}],
}


def test_a_spec_may_be_a_mapping_and_its_rows_have_any_form() -> None:
    assert_rows(run_spec(SPEC, [beam.Row(**ROWS[0]), Order(**ROWS[1])]).rows, BATCH)


@pytest.mark.parametrize(
    ("spec", "rows", "says"),
    [
        (None, ROWS, r"run_spec: the spec: got NoneType"),
        (beam.Row(id=1), ROWS, r"run_spec: the spec: got Row"),
        ({"spec": 1, "pipelin": "x"}, ROWS, r"unknown field 'pipelin'"),
        (SPEC, None, r"run_spec: rows: got None; expected a list of rows"),
        (SPEC, [None], r"run_spec: rows\[0\]: got None; expected a mapping"),
        (SPEC, [{"id": 1}, 5], r"run_spec: rows\[1\]: got int 5; expected a mapping"),
        (SPEC, {"id": 1}, r"run_spec: rows: got dict .*Put a single row into a list"),
    ],
)
def test_a_wrong_call_of_run_spec_says_so(spec: Any, rows: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        run_spec(spec, rows)
