"""`assert_rows` fails where it should: names that no row has, values that are not there, numbers that are not near."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import math
import random
from decimal import Decimal
from typing import Any, NamedTuple

import apache_beam as beam
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.errors import SpecError
from beam_pipelines.spec.tests import ExpectedDeadLetter
from beam_pipelines.testing import assert_rows, compare, row_differences, run_spec
from beam_pipelines.testing.compare import same
from beam_pipelines.testing.matching import matched


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


# ---------------------------------------------------------------------------------------- which row is whose

DAY, NOON = dt.date(2024, 5, 1), dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
VALUES: list[Any] = [
    None, True, False, 0, 1, 1.0, 1 + 1e-12, math.nan, math.inf, -0.0, 2**63, Decimal("1.0"), Decimal("0.1"), Decimal("0.1000000000000000055511151231257827021181583404541015625"), 0.1, Decimal("NaN"), "1",
    "1.0", "NaN", "a", b"a", DAY, NOON, NOON.replace(tzinfo=None), NOON.astimezone(dt.timezone(dt.timedelta(hours=2))), dt.time(12), "2024-05-01",
    "2024-05-01T12:00:00Z", "2024-05-01 14:00:00+02:00", "12:00:00", "soon", {"x": 1}, {"x": 1.0, "y": None}, '{"x": 1}', [1, None], (1.0, None),
    "[1, null]", [math.nan], {}, Order(1, "a"), {"id": 1, "shop": "a"}, pd.Timestamp(NOON),
]  # fmt: skip
KINDS = [[v for v in VALUES if v is None or type(v) is kind] for kind in dict.fromkeys(map(type, VALUES))]
COLUMNS = [*KINDS, VALUES, *([value] for value in VALUES)]


@pytest.mark.parametrize("column", COLUMNS, ids=repr)
def test_keys_say_no_more_of_values_than_comparing_them_does(column: list[Any]) -> None:
    keys = compare._keys([{"v": have} for have in column])
    for value in VALUES:
        key, decides = keys.want("v", value)
        for have in column:
            alike = keys.have("v", have) == key
            assert alike == same(have, value) or (not alike and not decides), (have, value)


@pytest.mark.parametrize("column", COLUMNS, ids=repr)
def test_values_with_equal_keys_fit_the_same(column: list[Any]) -> None:
    keys = compare._keys([{"v": have} for have in column])
    for one, other in itertools.combinations(VALUES, 2):
        if keys.want("v", one) == keys.want("v", other):
            assert [same(have, one) for have in column] == [same(have, other) for have in column], (one, other)


@given(st.data())
def test_as_many_rows_are_paired_as_can_be(data: st.DataObject) -> None:
    values = data.draw(st.sampled_from([[0, 1, None], [1.0, 1 + 1e-12, math.nan], ["a", "b"]]))
    value = st.sampled_from(values)
    actual = data.draw(st.lists(st.dictionaries(st.sampled_from("abc"), value), max_size=5))
    expected = data.draw(st.lists(st.dictionaries(st.sampled_from("abc"), value), max_size=5))

    def fits(row: Any, want: Any) -> bool:
        return all(compare._same_value(row.get(n, compare._MISSING), v, compare.TOLERANCE) for n, v in want.items())

    pairs = matched(actual, expected, fits=fits, keys=compare._keys(actual))
    assert all(fits(actual[j], expected[i]) for i, j in pairs.items())
    assert len(set(pairs.values())) == len(pairs) == most(actual, expected, fits)


def most(actual: list[Any], expected: list[Any], fits: Any) -> int:
    """How many can be paired, by trying all there is."""
    if not expected:
        return 0
    rest = [most([*actual[:j], *actual[j + 1 :]], expected[1:], fits) for j, row in enumerate(actual) if fits(row, expected[0])]
    return max([most(actual, expected[1:], fits), *[1 + n for n in rest]])


MANY = 5_000
FORMATS: dict[str, tuple[Any, Any]] = {
    "equal": (lambda n: {"id": n, "x": n / 3, "t": [n]}, lambda n: {"id": n, "x": n / 3, "t": [n]}),
    "as texts": (lambda n: {"paid": Decimal(n) / 4, "at": NOON}, lambda n: {"paid": f"{n / 4}", "at": "2024-05-01T12:00Z"}),
    "floats that are near": (lambda n: {"id": n, "x": float(n)}, lambda n: {"id": n, "x": n * (1 + 1e-12)}),
    "few columns": (lambda n: {"id": n, "shop": f"s{n % 3}"}, lambda n: {"shop": f"s{n % 3}"}),
    "columns that differ": (lambda n: {"id": n, "shop": "s"}, lambda n: {"id": n} if n % 2 else {"shop": "s"}),
    "all alike": (lambda n: {"shop": "s", "x": math.nan}, lambda n: {"shop": "s", "x": math.nan}),
}


@pytest.mark.parametrize("form", FORMATS)
def test_thousands_of_rows_are_not_each_compared_with_each(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def counted(*values: Any, **how: Any) -> bool:
        nonlocal compared
        compared += 1
        return same(*values, **how)

    monkeypatch.setattr(compare, "same", counted)
    have, want = FORMATS[form]
    actual, expected = [have(n) for n in range(MANY)], [want(n) for n in range(MANY)]
    random.Random(1).shuffle(actual)
    assert row_differences(actual, expected) == []
    assert compared <= 4 * MANY
    twice = [*expected, expected[0]]
    assert len(row_differences(actual, twice)) == 1
    assert len(row_differences([*actual, actual[0]], expected)) == 1


def test_thousands_of_dead_letters_are_not_each_compared_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    fits = compare._fits

    def counted(*values: Any) -> bool:
        nonlocal compared
        compared += 1
        return fits(*values)

    monkeypatch.setattr(compare, "_fits", counted)
    letters = [
        {"reason": "CHECK", "stage": "validate", "message": f"a{n}", "failures": [{"name": "a.min", "column": "a", "message": ""}]}
        for n in range(MANY)
    ]
    by_reason, by_column = ExpectedDeadLetter(reason="CHECK"), ExpectedDeadLetter(reason="CHECK", failures=("a",), message="a")
    assert compare._letters(letters, [by_reason] * (MANY - 1) + [by_column]) == []
    assert len(compare._letters(letters, [by_reason] * (MANY + 1))) == 1
    assert compared <= 4 * MANY


def test_a_long_chain_of_rows_that_make_room_for_each_other_is_followed_to_its_end() -> None:
    actual = [{"a": n, "b": n + 1} for n in range(1_500)]
    expected = [{"a": 0, "b": 1.0 + 1e-12}, *({"b": float(n)} for n in range(2, 1_501))]
    assert_rows([{name: float(v) for name, v in row.items()} for row in actual], expected)
    assert "missing: a=99" in failure(actual, [{"a": 99_999}, *actual[1:]]).replace("differs", "missing")


@pytest.mark.parametrize(("wrong", "more"), [(10, ""), (11, "\n... and 1 more"), (MANY, "\n... and 4990 more")])
def test_of_many_differences_ten_are_shown_and_the_others_counted(wrong: int, more: str) -> None:
    actual = [{"id": n, "shop": "a"} for n in range(MANY)]
    said = failure(actual, [{"id": n, "shop": "b"} if n < wrong else row for n, row in enumerate(actual)])
    assert said.count("differs: ") == 10
    assert said.endswith(f"but got shop='a'{more}")


def test_a_row_that_is_there_twice_is_too_many_twice() -> None:
    assert (
        failure([ROWS[0]] * 2, [{"id": 1, "shop": "x"}])
        == "differs: id=1 shop='x'\n    but got shop='north'\nnot expected: id=1 shop='north'"
    )
