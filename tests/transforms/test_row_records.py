"""A Python row becomes a JSON record that means the same, or is unreadable."""

from __future__ import annotations

import datetime as dt
import enum
import json
import uuid
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.transforms.row_records import Unreadable, members_of, record

KINDS = {"b": "binary", "s": "string", "tags": "list<string>", "addr": "struct<city: string, mark: binary>", "more": "list<binary>"}
MEMBERS = members_of(Contract(columns={n: Column(type=t) for n, t in KINDS.items()} | {"deep": Column(type="binary", path="a.b")}))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)


class City(NamedTuple):
    """A NamedTuple inside a row."""

    city: str
    zip: int


@dataclass
class Place:
    """A dataclass inside a row, with something inside."""

    city: str
    at: City | None = None


class Colour(enum.Enum):
    """A word."""

    RED = "red"


class Own:
    """A type of somebody's own."""


def read(row: Any) -> Any:
    return json.loads(record(row, MEMBERS))


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_what_json_has_stays_as_it_is(row: dict[str, Any]) -> None:
    assert read(row) == row


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(4), 4),
        (np.float64(1.5), 1.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([]), []),
        (np.datetime64("2026-01-02T12:00:00.123456789"), "2026-01-02T12:00:00.123456"),
        (np.datetime64("NaT"), None),
        (Timestamp.of(NOON.timestamp()), "2026-01-02T12:00:00Z"),
        (NOON, "2026-01-02T12:00:00Z"),
        (City("z", 3), {"city": "z", "zip": 3}),
        (beam.Row(city="z", zip=3), {"city": "z", "zip": 3}),
        (Place("z", City("y", 4)), {"city": "z", "at": {"city": "y", "zip": 4}}),
        ([City("z", 3)], [{"city": "z", "zip": 3}]),
        ({"in": {"deep": np.int8(1)}}, {"in": {"deep": 1}}),
        (("a", None), ["a", None]),
        ({"a"}, ["a"]),
        (uuid.UUID(int=5), str(uuid.UUID(int=5))),
        (Colour.RED, "red"),
        (2**70, 2**70),
    ],
    ids=repr,
)
def test_other_values_keep_their_meaning(value: Any, expected: Any) -> None:
    assert read({"id": 1, "x": value}) == {"id": 1, "x": expected}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"x": float("nan")}, "column 'x': nan is no number"),
        ({"x": float("-inf"), "y": None}, "column 'x': -inf is no number"),
        ({"x": [1.5, float("nan")]}, "column 'x': nan is no number"),
        ({"x": [{"y": ["a", float("nan")]}, None]}, r"column 'x\.y': nan is no number"),
        ({"x": {"y": [{"z": float("inf")}]}}, r"column 'x\.y\.z': inf is no number"),
        ({"x": np.float32("nan")}, "column 'x': nan is no number"),
        ({"s": b"abc"}, "column 's': a value of type bytes; expected string"),
        ({"tags": ["a", b"b"]}, "column 'tags': a value of type bytes; expected string"),
        ({"addr": {"city": bytearray(b"c")}}, r"column 'addr\.city': a value of type bytearray; expected string"),
        ({"x": Path("a")}, "column 'x': a value of type PosixPath"),
        ({"x": [Own()]}, "column 'x': a value of type Own"),
        ({"x": "\ud800"}, "no JSON form"),
        ({(1, 2): 3}, "no JSON form"),
        ((1, {"id": 2}), r"type tuple is no row.*beam\.Values"),
        (None, "type NoneType is no row"),
        (3, "type int is no row: FromRows takes dicts"),
        (Place, "type type is no row"),
    ],
)
def test_what_has_no_json_form_says_where_and_what(row: Any, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        record(row, MEMBERS)


def test_the_missing_values_of_pandas_are_null() -> None:
    pandas = pytest.importorskip("pandas")
    assert read({"x": pandas.NaT, "y": [pandas.NA], "z": pandas.Timestamp(NOON)}) == {"x": None, "y": [None], "z": "2026-01-02T12:00:00Z"}


def test_a_list_within_itself_is_unreadable() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(Unreadable, match="RecursionError"):
        record({"x": endless}, MEMBERS)


def test_bytes_are_for_binary_columns() -> None:
    row = {"b": b"\x00", "addr": {"city": "c", "mark": b"\x01"}, "more": [b"\x02", None], "a": {"b": b"\x03"}}
    assert read(row) == {"b": "AA==", "addr": {"city": "c", "mark": "AQ=="}, "more": ["Ag==", None], "a": {"b": "Aw=="}}


@pytest.mark.parametrize("row", [City("z", 3), beam.Row(city="z", zip=3), {"city": "z", "zip": 3}])
def test_rows_with_names_are_objects(row: Any) -> None:
    assert read(row) == {"city": "z", "zip": 3}


def test_a_decimal_keeps_its_digits() -> None:
    assert record({"x": Decimal("1.10")}, MEMBERS) == b'{"x":1.10}'
