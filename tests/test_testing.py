"""The testing kit: a spec on given rows in every format, and comparisons that say what differs."""

from __future__ import annotations

import datetime as dt
import doctest
import itertools
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import beam_pipelines.testing.compare
import beam_pipelines.testing.run
from beam_pipelines.errors import SpecError
from beam_pipelines.spec.tests import ExpectedDeadLetter
from beam_pipelines.testing import assert_rows, row_differences, run_spec
from beam_pipelines.testing.compare import _letters, same

UTC = dt.UTC
SPEC = """spec: 1
pipeline: shop
contract:
  key: [id]
  event_time: at
  columns:
    id:     {type: int64, required: true}
    at:     {type: timestamp}
    amount: {type: "decimal(8,2)", min: 0}
    tags:   {type: "list<string>"}
sources:
  batch: [{files: nowhere, format: FORMAT}]
checks:
  - {name: many, row_count: {min: 100}}
  - {name: round, expr: "amount = floor(amount)", severity: fail}
thresholds: {dead_letters: 0.01}
deduplicate: {}
aggregates:
  total: {measures: {n: count(), sum: sum(amount)}}
sinks:
  - {from: rows, csv: {path: out/rows.csv}}
"""
ROWS: list[dict[str, Any]] = [
    {"id": 1, "at": dt.datetime(2024, 5, 1, 10, tzinfo=UTC), "amount": Decimal("9.50"), "tags": ["a", "b"]},
    {"id": 2, "at": dt.datetime(2024, 5, 1, 11, tzinfo=UTC), "amount": Decimal("-1.00"), "tags": []},
    {"id": 1, "at": dt.datetime(2024, 5, 1, 10, tzinfo=UTC), "amount": Decimal("9.50"), "tags": ["a", "b"]},
]
FORMATS = ["csv", '{type: csv, delimiter: ";", header: false}', "{type: csv, encoding: utf-16, skip_rows: 2}", "json", "{type: json, layout: array}",
           "parquet", "avro", "orc"]  # fmt: skip


def spec_in(folder: Path, fmt: str, text: str = SPEC) -> Path:
    path = folder / "shop.yaml"
    path.write_text(text.replace("FORMAT", fmt))
    return path


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_same_rows_come_out_whatever_the_format(tmp_path: Path, fmt: str) -> None:
    result = run_spec(spec_in(tmp_path, fmt), ROWS)
    assert_rows(result.rows, [{"id": 1, "at": "2024-05-01T10:00:00Z", "amount": "9.50", "tags": ["a", "b"]}])
    assert (result.reasons, result.duplicates, result.filtered) == ({"validate:CHECK": 1}, 1, 0)
    assert_rows(result.aggregates["total"], [{"n": 1, "sum": "9.5"}])
    assert [letter["failures"][0]["name"] for letter in result.dead_letters] == ["amount.min"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shop.yaml"]


def test_rows_may_be_lines_as_they_stand_in_the_file(tmp_path: Path) -> None:
    result = run_spec(spec_in(tmp_path, "json"), ['{"id": 1}', b'{"id": "x"}', '{"id": '])
    assert [r["id"] for r in result.rows] == [1]
    assert result.reasons == {"decode:DECODE": 1, "decode:TYPE": 1}


def test_rows_of_a_text_source_are_lines(tmp_path: Path) -> None:
    spec = spec_in(tmp_path, '{type: text, pattern: "(?P<id>[0-9]+) (?P<amount>[^ ]*)(?P<at>@.*)?(?P<tags>!.*)?"}')
    assert_rows(run_spec(spec, ["1 5.00", "no"]).rows, [{"id": 1, "amount": 5, "at": None}])
    with pytest.raises(SpecError, match="are lines"):
        run_spec(spec, [{"id": 1}])


@pytest.mark.parametrize("fmt", ["csv", "json", "{type: json, layout: array}", "parquet", "avro", "orc"])
def test_no_rows_give_no_rows(tmp_path: Path, fmt: str) -> None:
    result = run_spec(spec_in(tmp_path, fmt), [])
    assert (result.rows, result.dead_letters, result.run.status) == ([], [], "success")


def test_shares_and_counts_are_judged_on_request_only(tmp_path: Path) -> None:
    spec = spec_in(tmp_path, "csv")
    assert run_spec(spec, ROWS).run.status == "success"
    judged = run_spec(spec, ROWS, judge=True)
    assert (judged.run.status, judged.rows) == ("failed", [])
    assert len(judged.run.failures) == 3


def test_a_wrong_call_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="1 batch sources"):
        run_spec(spec_in(tmp_path, "csv"), [], source=1)
    with pytest.raises(SpecError, match="are mappings"):
        run_spec(spec_in(tmp_path, "parquet"), ["x"])
    with pytest.raises(SpecError, match="column 'id'"):
        run_spec(spec_in(tmp_path, "parquet"), [{"id": 1}, {"id": "x"}])


@pytest.mark.parametrize(
    ("actual", "wanted", "equal"),
    [
        (None, None, True), (None, 0, False), (0, None, False), (True, True, True), (True, 1, False), (1, True, False), (1, 1.0, True),
        (0.1 + 0.2, 0.3, True), (0.3, 0.31, False), (float("nan"), float("nan"), True), (Decimal("1.50"), "1.5", True),
        (Decimal("1.50"), 1.5, True), (Decimal("1.50"), "x", False), ("a", "a", True), ("1", 1, False),
        (dt.datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01T00:00:00Z", True), (dt.datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01T01:00:00+01:00", True),
        (dt.datetime(2024, 1, 1), "2024-01-01 00:00:00", True), (dt.datetime(2024, 1, 1), "soon", False), (dt.date(2024, 1, 1), "2024-01-01", True),
        (b"a", "a", True), ([1, None], [1, None], True), ([1], [1, 2], False), ({"a": 1, "b": 2}, {"a": 1}, True), ({"a": 1}, {"b": None}, False),
        ('{"a": [1]}', {"a": [1]}, True), ("{", {"a": 1}, False),
    ],
)  # fmt: skip
def test_texts_stand_for_times_decimals_and_json(actual: Any, wanted: Any, equal: bool) -> None:
    assert same(actual, wanted) is equal


ROW = st.fixed_dictionaries({"a": st.integers(0, 2), "b": st.integers(0, 2)})


@given(st.lists(ROW, max_size=6), st.randoms())
def test_rows_equal_themselves_in_any_order(rows: list[dict[str, int]], random: Any) -> None:
    shuffled = random.sample(rows, len(rows))
    assert row_differences(shuffled, rows) == []


@given(st.lists(ROW, max_size=4), st.lists(st.dictionaries(st.sampled_from("ab"), st.integers(0, 2)), max_size=4))
def test_expected_rows_fit_exactly_where_some_pairing_fits_them(actual: list[dict[str, int]], expected: list[dict[str, int]]) -> None:
    pairings = itertools.permutations(actual)
    fits = len(actual) == len(expected) and any(all(w.items() <= a.items() for a, w in zip(p, expected, strict=True)) for p in pairings)
    assert (row_differences(actual, expected) == []) is fits


def test_a_difference_names_the_closest_row() -> None:
    with pytest.raises(AssertionError) as raised:
        assert_rows([{"id": 1, "v": "x"}, {"id": 9, "v": "y"}], [{"id": 1, "v": "z"}, {"id": 2, "v": "w"}])
    assert str(raised.value) == "differs: id=1 v='z'\n    but got v='x'\nmissing: id=2 v='w'\nnot expected: id=9 v='y'"
    assert_rows([{"id": 1, "v": "x"}], [{"id": 1, "v": "z"}], columns=["id"])


@pytest.mark.parametrize("module", [beam_pipelines.testing.compare, beam_pipelines.testing.run])
def test_the_examples_in_its_docstrings_run(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize(
    ("failures", "same"),
    [(["a.x"], True), (["a.x.required"], True), (["a"], False), (["a.y"], False), ([], False), (["a.x", "b"], False)],
)
def test_failures_name_columns_whole_also_those_with_dots(failures: list[str], same: bool) -> None:
    letter = {
        "reason": "REQUIRED",
        "stage": "validate",
        "message": "",
        "failures": [{"name": "a.x.required", "column": "a.x", "message": ""}],
    }
    assert (_letters([letter], [ExpectedDeadLetter(reason="REQUIRED", failures=tuple(failures))]) == []) is same
