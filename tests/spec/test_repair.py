"""All that is wrong is said at once: a wrong part hides no other, and makes nothing look wrong that is right."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from beam_pipelines.spec.document import read_document, walk
from beam_pipelines.spec.load import parse_spec
from beam_pipelines.spec.problems import Problem, SpecErrors, show_path

SPEC = """
spec: 1
pipeline: orders
time_zone: Europe/Berlin
parameters: {lake: {type: path, default: lake}}
contract:
  key: [id]
  event_time: placed_at
  unknown_columns: drop
  columns:
    id:        {type: int64, required: true, min: 0}
    placed_at: {type: timestamp, format: ["%Y"], null_values: [NA]}
    shop:      {type: string, in: [north, south], sensitive: redact}
    amount:    {type: "decimal(12,2)", path: a.amount, coerce: true}
    cents:     {type: int64, expr: "CAST(amount * 100 AS BIGINT)"}
sources:
  batch: [{files: [a.csv, b.csv], format: {type: csv, delimiter: ";"}, arrival: {column: placed_at}}]
lookups:
  shops: {files: shops.csv, format: csv, key: code, columns: {code: string, town: string}}
transform:
  - filter: "shop <> 'closed'"
  - set: {euros: "cents / 100", dear: "cents > 1000"}
  - lookup: {from: shops, on: shop, take: {town: town}}
  - rename: {place: town}
  - drop: [dear]
checks:
  - {name: small, expr: "euros < 1000", severity: warn}
  - {name: known, references: {columns: [shop], lookup: shops}}
  - {name: enough, row_count: {min: 1, max: 10}}
  - {name: full, null_rate: {column: place, max: 0.5}}
  - {name: fresh, freshness: {column: placed_at, max_age: 1d}}
thresholds: {dead_letters: 0.5, per_check: {small: 0.5}}
deduplicate: {within: 2d, order_by: cents}
aggregates:
  by_hour:
    windowing: {type: fixed, size: 1h}
    trigger: {early: 30s}
    group_by: [shop, place]
    measures: {orders: count(), turnover: "sum(euros) where cents > 0"}
sinks:
  - {from: rows, parquet: {path: "${lake}/rows", partition_by: [day(placed_at), place], statistics: [euros]}}
  - {from: by_hour, parquet: {path: "${lake}/by_hour", partition_by: [shop], dictionary: [place]}, provenance: "off"}
  - {from: dead_letters, jsonl: {path: "${lake}/dead.jsonl"}}
"""
VALUE = read_document(SPEC, file="orders.yaml").value
PLACES = [path for path, _ in walk(VALUE) if path]
WRONG: list[Any] = [12345, "-? wrong", {"zz": 1}]


def edited(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, tuple):
        return tuple(edited(v, path[1:], new) if i == path[0] else v for i, v in enumerate(value))
    return {k: edited(v, path[1:], new) if k == path[0] else v for k, v in value.items()}


def given(path: tuple[str | int, ...]) -> Any:
    return next(value for at, value in walk(VALUE) if at == path)


def all_problems(text: str) -> tuple[Problem, ...]:
    try:
        parse_spec(text, path="orders.yaml")
    except SpecErrors as errors:
        return errors.problems
    return ()


def problems(text: str) -> list[str]:
    return [f"{p.path}: {p.message}" for p in all_problems(text)]


def test_the_specs_of_this_file_are_good() -> None:
    parse_spec(SPEC, path="orders.yaml")


@pytest.mark.parametrize("path", PLACES, ids=show_path)
def test_a_part_of_the_wrong_kind_makes_no_other_part_look_wrong(path: tuple[str | int, ...]) -> None:
    for wrong in WRONG:
        if isinstance(wrong, dict) and isinstance(given(path), dict):
            continue  # other names are given
        found = all_problems(json.dumps(edited(VALUE, path, wrong)))
        of_shape = [p for p in found if p.path.startswith(show_path(path)) and re.search("expected|needs|unknown field", p.message)]
        if of_shape:
            assert [p for p in found if not p.path.startswith(show_path(path[:-1]))] == [], wrong


NAMES = {
    "amount * 100": ("amont * 100", "contract.columns.cents.expr: unknown column 'amont'"),
    "euros < 1000": ("euroz < 1000", "checks[0].expr: unknown column 'euroz'"),
    "sum(euros)": ("sum(eurs)", "aggregates.by_hour.measures.turnover: unknown column 'eurs'"),
    "statistics: [euros]": ("statistics: [eurox]", "sinks[0].parquet.statistics[0]: unknown column 'eurox'"),
}
"""Names that are wrong, and what is said of them."""
HIDING = [
    path
    for path in PLACES
    if path[0] not in ("transform", "aggregates") and path not in [("contract",), ("contract", "columns"), ("checks",), ("sinks",)]
    and path[:2] not in [("checks", 0), ("sinks", 0)] and path[:3] != ("contract", "columns", "cents")
]  # fmt: skip


@pytest.mark.parametrize("path", HIDING, ids=show_path)
def test_a_part_of_the_wrong_kind_hides_no_wrong_name_elsewhere(path: tuple[str | int, ...]) -> None:
    text = SPEC
    for right, (wrong, _) in NAMES.items():
        text = text.replace(right, wrong)
    value = edited(read_document(text, file="orders.yaml").value, path, 12345)
    found = problems(json.dumps(value))
    for _, says in NAMES.values():
        assert any(problem.startswith(says) for problem in found), found


def test_problems_of_shape_and_of_names_come_together() -> None:
    text = SPEC.replace("type: int64, required: true", "type: int46, required: yes").replace("key: [id]", "key: [idd]")
    text = text.replace("type: fixed", "type: fixd").replace("count()", "cont()").replace("format: csv, key", "format: csvv, key")
    text = text.replace("euros < 1000", "euroz < 1000").replace("shop <> 'closed'", "shp <> 'closed'")
    found = problems(text)
    for says in (
        "contract.columns.id.type: type 'int46': unknown type",
        "contract.columns.id.required: got the text 'yes'",
        "contract.key[0]: 'idd' is not a column of the contract; did you mean 'id'?",
        "aggregates.by_hour.windowing.type: got the text 'fixd'",
        "aggregates.by_hour.measures.orders: measure 'cont()': unknown function 'cont'",
        "lookups.shops.format: got the text 'csvv'",
        "checks[0].expr: unknown column 'euroz'",
        "transform[0].filter: unknown column 'shp'",
    ):
        assert any(problem.startswith(says) for problem in found), (says, found)
    assert len(found) == 8


def test_a_lookups_wrong_type_hides_nothing() -> None:
    found = problems(SPEC.replace("code: string", "code: strng").replace("euros < 1000", "euroz < 1000"))
    assert [problem.partition(":")[0] for problem in found] == ["lookups.shops.columns.code", "checks[0].expr"]
