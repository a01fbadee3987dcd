"""Conform: what a type's own text says comes back; what would lose something is refused; no text makes it raise."""

from __future__ import annotations

import base64
import json
import math
import pickle
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.conform import civil_paths, conform_batch, conform_steps
from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.program import Program, Split, row_json
from beam_pipelines.arrow.schema import UNKNOWN
from beam_pipelines.arrow.types import INTEGERS, DataType, parse_type
from beam_pipelines.errors import RunError, SpecError
from tests.arrow.batches import assert_one_door, with_provenance
from tests.laws import share

instants = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda t: t.replace(tzinfo=UTC))
scalars: dict[str, st.SearchStrategy[Any]] = {
    **{kind: st.integers(low, high) for kind, (low, high) in INTEGERS.items()},
    "string": st.text(),
    "boolean": st.booleans(),
    "float32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "float64": st.floats(allow_nan=False, allow_infinity=False),
    "decimal(12,2)": st.decimals(-9_999_999_999, 9_999_999_999, places=2),
    "decimal(38,10)": st.decimals(-(10**28) + 1, 10**28 - 1, places=10),
    "decimal(5,0)": st.integers(-99999, 99999).map(Decimal),
    "date": st.dates(),
    "time": st.times(),
    "timestamp": instants,
    "datetime": st.datetimes(),
    "binary": st.binary(),
    "uuid": st.uuids().map(str),
    "json": st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), lambda x: st.lists(x, max_size=2), max_leaves=4).map(json.dumps),
}  # fmt: skip


def canonical(value: Any) -> str:
    """The text of a value, as a CSV file or a decoded JSON scalar has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | time):
        return value.isoformat()
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def text_split(contract: Contract, batch: pa.RecordBatch, *, time_zone: str = "UTC") -> Split:
    return Program(conform_steps(contract, text=True, time_zone=time_zone), civil=civil_paths(contract))(batch)


def outcomes(kind: str, texts: list[str | None], *, time_zone: str = "UTC", **rules: Any) -> list[Any]:
    """What becomes of each text in a column of this type: its value, or its reason code. By both paths, which must agree."""
    contract = Contract(columns={"x": Column(type=kind, **rules)})
    batch = with_provenance({"x": pa.array(texts, pa.string())})
    splits = [text_split(contract, batch, time_zone=time_zone), conform_batch(batch, contract, time_zone=time_zone)]
    found: list[list[Any]] = []
    for split in splits:
        assert_one_door(split, batch)
        assert split.rows.schema.field("x") == contract.arrow_schema().field("x")
        by_row = dict(zip(split.rows["_position"].to_pylist(), split.rows["x"].to_pylist(), strict=True))
        by_row |= dict(zip(split.dead["position"].to_pylist(), split.dead["reason"].to_pylist(), strict=True))
        found.append([by_row[i] for i in range(len(texts))])
    assert found[0] == pytest.approx(found[1], nan_ok=True) if kind.startswith("float") else found[0] == found[1]
    return found[0]


@pytest.mark.parametrize("kind", scalars)
def test_the_text_of_a_value_is_read_back_as_the_value(kind: str) -> None:
    @settings(max_examples=25)
    @given(st.lists(st.none() | scalars[kind], min_size=1, max_size=20))
    def law(values: list[Any]) -> None:
        assert outcomes(kind, [None if v is None else canonical(v) for v in values]) == values

    law()


@pytest.mark.parametrize("text", ['["a", "info"]', '{"b": 1, "a": "nan"}', '[null, "INF"]', '["a\\"", "inf, ]"]'])
def test_strings_of_json_may_hold_what_is_no_json_outside_of_them(text: str) -> None:
    assert outcomes("json", [text]) == [text]


@pytest.mark.parametrize("text", ['["a", "info",]', '["info", NaN]', '{"info": -Infinity}', '["inf" , ]'])
def test_json_with_what_duckdb_takes_and_nobody_else_is_refused(text: str) -> None:
    assert outcomes("json", [text]) == ["CAST"]


nested_kinds = st.sampled_from([
    "list<int16>", "list<decimal(12,2)>", "struct<a: int8, b: string>", "list<struct<t: timestamp, f: list<float64>>>", "struct<s: struct<d: date>>",
])  # fmt: skip


def nested_values(dtype: DataType) -> st.SearchStrategy[Any]:
    if dtype.item is not None:
        return st.lists(st.none() | nested_values(dtype.item), max_size=3)
    if dtype.kind == "struct":
        return st.fixed_dictionaries({n: st.none() | nested_values(t) for n, t in dtype.fields})
    return scalars[str(dtype)]


def as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [as_json(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else canonical(value)


@settings(max_examples=40)
@given(nested_kinds.flatmap(lambda k: st.tuples(st.just(k), st.lists(st.none() | nested_values(parse_type(k)), min_size=1, max_size=5))))
def test_json_text_of_nested_values_is_read_back(case: tuple[str, list[Any]]) -> None:
    kind, values = case
    assert outcomes(kind, [None if v is None else json.dumps(as_json(v)) for v in values]) == values


ALL_KINDS = [*scalars, "list<int8>", "struct<a: decimal(5,2), t: timestamp>", "list<struct<u: uuid, j: json>>"]
EVERYTHING = Contract(
    columns={f"c{i}_{coerce}": Column(type=k, coerce=coerce, trim=coerce) for i, k in enumerate(ALL_KINDS) for coerce in (False, True)}
    | {"f": Column(type="timestamp", format="%d.%m.%Y"), "u": Column(type="timestamp", unit="ms")}
)
EVERY_PROGRAM = {
    zone: Program(conform_steps(EVERYTHING, text=True, time_zone=zone), civil=civil_paths(EVERYTHING)) for zone in ("UTC", "Europe/Berlin")
}
odd_texts = (
    st.text()
    | st.text('0123456789+-.:eETZxX_ naifNI[]{}",\\/\n\t\0', max_size=30)
    | st.sampled_from(["1e999999999", "9" * 400, "\x00", "[" * 500, "-" * 60])
)


@share(12)
@given(st.lists(st.none() | odd_texts, min_size=1, max_size=10), st.sampled_from(["UTC", "Europe/Berlin"]))
def test_no_text_makes_it_raise_and_every_row_has_one_door(texts: list[str | None], zone: str) -> None:
    batch = with_provenance(dict.fromkeys(EVERYTHING.read, pa.array(texts, pa.string())))
    assert_one_door(EVERY_PROGRAM[zone](batch), batch)


@share(25)
@given(st.lists(st.text("0123456789+-.eE_x \n", max_size=6), min_size=1, max_size=30))
def test_an_integer_is_digits_and_nothing_else(texts: list[str]) -> None:
    for kind in ("int8", "uint64"):
        low, high = INTEGERS[kind]
        expected = [int(t) if re.fullmatch(r"[+-]?[0-9]+", t) and low <= int(t) <= high else "CAST" for t in texts]
        assert outcomes(kind, texts) == expected


# DuckDB refuses exponents of five digits, even of zero
decimal_texts = st.text("0123459+-.eE_ ", max_size=8).filter(lambda t: not re.search(r"[eE][+-]?[0-9]{4}", t))


@share(25)
@given(st.lists(decimal_texts, min_size=1, max_size=30))
def test_a_decimal_is_exact_or_refused(texts: list[str]) -> None:
    def exact(text: str) -> Decimal | str:
        if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
            return "CAST"
        try:
            value = Decimal(text)
            return value if value == value.quantize(Decimal("0.01")) and abs(value) < 10**4 else "CAST"
        except InvalidOperation:
            return "CAST"

    assert outcomes("decimal(6,2)", texts) == [exact(t) for t in texts]


@share(25)
@given(st.lists(st.text("0123459+-.eE_ ", max_size=8), min_size=1, max_size=30))
def test_a_float_is_finite_and_a_number(texts: list[str]) -> None:
    pattern = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
    expected = [float(t) if re.fullmatch(pattern, t) and math.isfinite(float(t)) else "CAST" for t in texts]
    assert outcomes("float64", texts) == expected


@st.composite
def almost_timestamps(draw: st.DrawFn) -> str:
    t = draw(st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1)))
    text = t.isoformat(
        sep=draw(st.sampled_from("T ")), timespec=draw(st.sampled_from(["auto", "minutes", "seconds", "milliseconds", "microseconds"]))
    )
    text += draw(st.sampled_from(["Z", "", "+02:00", "-0530", "+01", " UTC", "z", "+25:00"]))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(["", " ", "0", "-", ":", "\t", "9"])) + text[at + draw(st.integers(0, 1)) :]
    return text


@share(30)
@given(st.lists(almost_timestamps(), min_size=1, max_size=30))
def test_a_timestamp_is_iso_8601_to_the_letter(texts: list[str]) -> None:
    def read(text: str) -> datetime | str:
        m = re.fullmatch(
            r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?((?:Z| UTC|[+-]\d\d(?::?\d\d)?))?", text, re.ASCII
        )
        if m is None or (m[4] is None and m[8]):
            return "CAST"
        offset = (m[8] or "Z").strip()
        sign, digits = (0, "0000") if offset in ("Z", "UTC") else ((-1) ** (offset[0] == "-"), offset[1:].replace(":", "").ljust(4, "0"))
        try:
            if int(digits[:2]) > 14 or int(digits[2:]) > 59:
                return "CAST"
            local = datetime(*(int(m[i] or 0) for i in range(1, 7)), int((m[7] or "0").ljust(6, "0")[:6]), UTC)  # type: ignore[arg-type,misc]
        except ValueError:
            return "CAST"
        return local - sign * timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))

    assert outcomes("timestamp", texts) == [read(t) for t in texts]


@share(40)
@given(
    st.lists(
        st.datetimes(datetime(1950, 1, 1), datetime(2035, 1, 1)) | st.datetimes(datetime(2026, 3, 8, 1), datetime(2026, 3, 8, 4)),
        min_size=1,
    )
)
def test_local_times_become_what_the_zone_says(walls: list[datetime]) -> None:
    zone = ZoneInfo("America/New_York")

    def instant(wall: datetime) -> datetime | str:
        aware = wall.replace(tzinfo=zone).astimezone(UTC)
        return aware if aware.astimezone(zone).replace(tzinfo=None) == wall else "TIME"

    assert outcomes("timestamp", [w.isoformat() for w in walls], time_zone="America/New_York") == [instant(w) for w in walls]


def test_ambiguous_and_missing_times_as_the_contract_says() -> None:
    texts: list[str | None] = ["2026-03-08T02:30:00", "2026-11-01T01:30:00", "2026-11-01T01:30:00-05:00", "2026-07-01"]
    at = [datetime(2026, 11, 1, 6, 30, tzinfo=UTC), datetime(2026, 7, 1, 4, tzinfo=UTC)]
    new_york = {"time_zone": "America/New_York"}
    assert outcomes("timestamp", texts, **new_york) == ["TIME", datetime(2026, 11, 1, 5, 30, tzinfo=UTC), *at]
    assert outcomes("timestamp", texts, **new_york, ambiguous="later", missing="later") == [datetime(2026, 3, 8, 7, tzinfo=UTC), at[0], *at]
    assert outcomes("timestamp", texts, **new_york, ambiguous="dead_letter", missing="earlier") == [
        datetime(2026, 3, 8, 6, 59, 59, 999999, tzinfo=UTC), "TIME", *at
    ]  # fmt: skip


D = Decimal
EXAMPLES: list[tuple[str, dict[str, Any], dict[str | None, Any]]] = [
    ("int64", {}, {"5": 5, "+5": 5, "05": 5, "-0": 0, "3.7": "CAST", "1e3": "CAST", "0x1F": "CAST", "1_000": "CAST", " 5 ": "CAST", "5.0": "CAST",
                   "": "CAST", "true": "CAST", "9223372036854775807": 2**63 - 1, "9223372036854775808": "CAST", None: None}),
    ("int64", {"coerce": True}, {"5.0": 5, "5.": 5, "1e3": 1000, "1.5e1": 15, "1.5e0": "CAST", "1e-330": "CAST", "0e5": 0, "5.5": "CAST", "0x1F": "CAST", "true": "CAST",
                                 "9223372036854775807.0": 2**63 - 1, "9007199254740993e0": "CAST"}),
    ("int8", {"trim": True, "null_values": ("", "NA"), "default": 7}, {" 5\t": 5, "NA": 7, "  ": 7, None: 7, "300": "CAST", "x": "CAST"}),
    ("decimal(12,2)", {}, {"34.9": D("34.90"), "34.970": D("34.97"), "34.975": "CAST", "1e2": D(100), "1e-3": "CAST", "1E-330": "CAST", ".5": D("0.50"),
                           "9999999999.99": D("9999999999.99"), "10000000000": "CAST", "12.345678901234567890": "CAST", "nan": "CAST", " 1": "CAST"}),
    ("float64", {}, {"1.5": 1.5, "1e400": "CAST", "nan": "CAST", "inf": "CAST", "1_0": "CAST", " 1": "CAST", "0x1p3": "CAST"}),
    ("float64", {"coerce": True}, {"Infinity": math.inf, "-inf": -math.inf, "1e400": "CAST", "infinit": "CAST"}),
    ("boolean", {}, {"true": True, "FALSE": False, "1": "CAST", "t": "CAST", "yes": "CAST"}),
    ("boolean", {"coerce": True}, {"1": True, "0": False, "t": True, "No": False, "YES": True, "2": "CAST", "on": "CAST"}),
    ("date", {}, {"2026-02-28": date(2026, 2, 28), "2026-02-31": "CAST", "2026-2-1": "CAST", "2026/02/01": "CAST", "infinity": "CAST",
                  "10000-01-01": "CAST", "0000-01-01": "CAST", "2026-01-01T00:00:00": "CAST"}),
    ("date", {"coerce": True}, {"2026-01-01T00:00:00": date(2026, 1, 1), "2026-01-01T00:00:01": "CAST"}),
    ("date", {"format": ("%d.%m.%Y", "%Y%m%d")}, {"01.02.2026": date(2026, 2, 1), "20260201": date(2026, 2, 1), "31.02.2026": "CAST", "2026-02-01": "CAST"}),
    ("time", {}, {"12:34": time(12, 34), "12:34:56.789": time(12, 34, 56, 789000), "24:00:00": "CAST", "1:2:3": "CAST", "12:34:56Z": "CAST"}),
    ("time", {"format": "%I:%M %p"}, {"10:20 PM": time(22, 20), "22:20": "CAST"}),
    ("timestamp", {}, {"2026-11-01T02:00:00+02:00": datetime(2026, 11, 1, tzinfo=UTC), "2026-11-01T02:00:00.1234567Z": datetime(2026, 11, 1, 2, 0, 0, 123456, UTC),
                       "2026-11-01T24:00:00Z": "CAST", "infinity": "CAST", "1700000000": "CAST", "9999-12-31T23:59:59-05:00": "CAST",
                       "0001-01-01T00:00:00+05:00": "CAST", "0000-01-01T00:00:00Z": "CAST", " 2026-1-01T02:00:00.123Z": "CAST"}),
    ("timestamp", {"unit": "s"}, {"1700000000": datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), "-0.5": datetime(1969, 12, 31, 23, 59, 59, 500000, UTC),
                                  "1e9": datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC), "99999999999999": "CAST", "1970-01-01": datetime(1970, 1, 1, tzinfo=UTC)}),
    ("timestamp", {"unit": "ns"}, {"-1": datetime(1969, 12, 31, 23, 59, 59, 999999, UTC), "1700000000123456789": datetime(2023, 11, 14, 22, 13, 20, 123456, UTC)}),
    ("datetime", {}, {"2026-11-01 02:00": datetime(2026, 11, 1, 2), "2026-11-01T02:00:00Z": "CAST"}),
    ("uuid", {}, {"6F9619FF-8B86-D011-B42D-00C04FC964FF": "6f9619ff-8b86-d011-b42d-00c04fc964ff", "6F9619FF8B86D011B42D00C04FC964FF": "CAST"}),
    ("binary", {}, {"aGVsbG8=": b"hello", "": b"", "aGVsbG8": "CAST", "!": "CAST"}),
    ("json", {}, {'{"a":[1]}': '{"a":[1]}', "{": "CAST", "NaN": "CAST", '{"a":-Infinity}': "CAST", "[1,]": "CAST", '["NaN, ]"]': '["NaN, ]"]'}),
    ("list<int8>", {}, {"[1,null]": [1, None], "[1,300]": "CAST", "[1.5]": "CAST", "{}": "CAST", "5": "CAST", "[]": [], "x": "CAST", "[[1]]": "CAST"}),
    ("struct<a: int8, b: list<decimal(5,2)>>", {}, {'{"a":1,"b":[1.5],"c":2}': {"a": 1, "b": [D("1.50")]}, '{"a":300}': "CAST", '{"b":[1.555]}': "CAST",
                                                    "{}": {"a": None, "b": None}, "5": "CAST", "[1]": "CAST"}),
    ("string", {"trim": True, "null_values": ("NA",)}, {" x\n": "x", " NA ": None, "": ""}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "rules", "table"), EXAMPLES, ids=[f"{k} {r}" for k, r, _ in EXAMPLES])
def test_examples(kind: str, rules: dict[str, Any], table: dict[str | None, Any]) -> None:
    assert dict(zip(table, outcomes(kind, list(table), **rules), strict=True)) == table


def test_every_column_that_does_not_fit_is_named_and_secrets_are_not_shown() -> None:
    contract = Contract(
        columns={
            "dep_delay": Column(type="int16"),
            "when": Column(type="date", format="%d.%m.%Y"),
            "pin": Column(type="int32", sensitive="redact"),
        }
    )
    split = text_split(contract, with_provenance({"dep_delay": ["abc"], "when": ["x" * 300], "pin": ["12a4"]}))
    assert [f["message"] for f in split.dead["failures"][0].as_py()] == [
        "dep_delay: got 'abc'; expected int16",
        "when: got '" + "x" * 100 + "...'; expected date as %d.%m.%Y",
        "pin: got a value that is not shown (sensitive); expected int32",
    ]


def test_defaults_are_read_once_by_the_columns_own_rules() -> None:
    assert outcomes("timestamp", [None], default="2026-07-01 12:00", time_zone="America/New_York") == [datetime(2026, 7, 1, 16, tzinfo=UTC)]
    assert outcomes("boolean", [None, "false"], default=True) == [True, False]
    contract = Contract(columns={"x": Column(type="int8", default=3)})
    native = conform_batch(pa.record_batch({"x": pa.array([None, 5], pa.int64())}), contract)
    assert native.rows["x"].to_pylist() == [3, 5]


def test_computed_columns_use_earlier_ones_and_local_parts_become_instants() -> None:
    columns = {
        "day": Column(type="int8"),
        "departure": Column(type="timestamp", expr="make_timestamp(2013, 3, day, hour, 30, 0)"),
        "hour": Column(type="int8"),
        "arrival": Column(type="timestamp", expr="departure + INTERVAL 1 HOUR"),
        "ratio": Column(type="int32", expr="12 // hour"),
    }
    contract = Contract(columns=columns, unknown_columns="keep")
    batch = with_provenance({"day": ["9", "10", "10"], "hour": ["1", "2", "0"], UNKNOWN: pa.array([None, None, "{}"])})
    split = text_split(contract, batch, time_zone="America/New_York")
    assert split.rows.schema.names[:6] == [*columns, UNKNOWN]
    assert split.rows["departure"].to_pylist() == [datetime(2013, 3, 9, 6, 30, tzinfo=UTC)]
    assert split.rows["arrival"].to_pylist() == [datetime(2013, 3, 9, 7, 30, tzinfo=UTC)]
    assert dict(zip(split.dead["position"].to_pylist(), split.dead["reason"].to_pylist(), strict=True)) == {1: "TIME", 2: "EXPRESSION"}


NATIVE: list[tuple[pa.Array, str, dict[str, Any], list[Any]]] = [
    (pa.array([1, 300, None], pa.int64()), "int8", {}, [1, "CAST", None]),
    (pa.array([1, 2**63], pa.uint64()), "int64", {}, [1, "CAST"]),
    (pa.array([1.0, 2.5, math.nan]), "int32", {}, ["CAST", "CAST", "CAST"]),
    (pa.array([1.0, 2.5, math.nan, 1e30]), "int32", {"coerce": True}, [1, "CAST", "CAST", "CAST"]),
    (pa.array([2**53, 2**53 + 1], pa.int64()), "float64", {}, [float(2**53), "CAST"]),
    (pa.array([1.5, 1e300, math.inf]), "float32", {}, [1.5, "CAST", math.inf]),
    (pa.array([12.34, 0.125, 1e20]), "decimal(12,2)", {}, [D("12.34"), "CAST", "CAST"]),
    (pa.array([D("1.10"), D("1.11")]), "decimal(5,1)", {}, [D("1.1"), "CAST"]),
    (pa.array([D("5"), D("500")]), "int8", {}, [5, "CAST"]),
    (pa.array([D("5.0"), D("5.5")]), "int8", {"coerce": True}, [5, "CAST"]),
    (pa.array([True, False]), "int8", {"coerce": True}, ["CAST", "CAST"]),
    (pa.array([1, 2]), "string", {}, ["CAST", "CAST"]),
    (pa.array([1, 2]), "string", {"coerce": True}, ["1", "2"]),
    (pa.array([1, 0, 2]), "boolean", {"coerce": True}, [True, False, "CAST"]),
    (pa.array([1, 0]), "boolean", {}, ["CAST", "CAST"]),
    (pa.array(["5", "3.7"]).dictionary_encode(), "int8", {}, [5, "CAST"]),
    (pa.array(["a", None], pa.large_string()), "string", {}, ["a", None]),
    (pa.array(["a", None], pa.string_view()), "string", {}, ["a", None]),
    (pa.array([b"a"], pa.large_binary()), "binary", {}, [b"a"]),
    (pa.array([None, None]), "date", {}, [None, None]),
    (pa.array([date(2026, 1, 1)]), "timestamp", {"time_zone": "Europe/Berlin"}, [datetime(2025, 12, 31, 23, tzinfo=UTC)]),
    (pa.array([datetime(2026, 7, 1)], pa.timestamp("ms")), "timestamp", {"time_zone": "Europe/Berlin"}, [datetime(2026, 6, 30, 22, tzinfo=UTC)]),
    (pa.array([0], pa.timestamp("ns", "Asia/Tokyo")), "timestamp", {"time_zone": "Europe/Berlin"}, [datetime(1970, 1, 1, tzinfo=UTC)]),
    (pa.array([-1], pa.timestamp("ns")), "datetime", {}, [datetime(1969, 12, 31, 23, 59, 59, 999999)]),
    (pa.array([0, 2**60], pa.timestamp("s")), "datetime", {}, [datetime(1970, 1, 1), "CAST"]),
    (pa.array([0], pa.timestamp("us", "UTC")), "datetime", {}, ["CAST"]),
    (pa.array([datetime(2026, 1, 1), datetime(2026, 1, 1, 1)]), "date", {"coerce": True}, [date(2026, 1, 1), "CAST"]),
    (pa.array([1_700_000_000]), "timestamp", {"unit": "s"}, [datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)]),
    (pa.array([1_700_000_000]), "timestamp", {}, ["CAST"]),
    (pa.array([time(1, 2)], pa.time32("s")), "time", {}, [time(1, 2)]),
    (pa.array([[1, 2], [300]], pa.list_(pa.int64())), "list<int8>", {}, [[1, 2], "CAST"]),
    (pa.array([[1], None], pa.large_list(pa.int8())), "list<int8>", {}, [[1], None]),
    (pa.array([{"a": 1, "z": 9}, None], pa.struct([("a", pa.int64()), ("z", pa.int8())])), "struct<a: int8, b: string>", {}, [{"a": 1, "b": None}, None]),
    (pa.array(["[1]", "[x"]), "list<int8>", {}, [[1], "CAST"]),
    (pa.array([{"a": [1]}]), "json", {}, ['{"a":[1]}']),
    (pa.array([1]), "date", {}, ["CAST"]),
]  # fmt: skip


@pytest.mark.parametrize(("array", "kind", "rules", "expected"), NATIVE, ids=[f"{a.type} to {k} {r}" for a, k, r, _ in NATIVE])
def test_native_columns_convert_without_loss_or_not_at_all(array: pa.Array, kind: str, rules: dict[str, Any], expected: list[Any]) -> None:
    contract = Contract(columns={"x": Column(type=kind, **rules)})
    padded = pa.concat_arrays([array, array]).slice(len(array)) if not pa.types.is_dictionary(array.type) else array
    batch = with_provenance({"x": padded})
    split = conform_batch(batch, contract)
    assert_one_door(split, batch)
    found = dict(zip(split.rows["_position"].to_pylist(), split.rows["x"].to_pylist(), strict=True))
    found |= dict(zip(split.dead["position"].to_pylist(), split.dead["reason"].to_pylist(), strict=True))
    assert [found[i] for i in range(len(array))] == expected
    assert split.rows.schema.field("x") == contract.arrow_schema().field("x")


def test_a_mismatch_says_what_it_got() -> None:
    split = conform_batch(pa.record_batch({"x": [5]}), Contract(columns={"x": Column(type="string")}))
    assert split.dead["message"].to_pylist() == ["x: got 5 (int64); expected string"]


def test_columns_that_fit_are_not_copied() -> None:
    contract = Contract(columns={"x": Column(type="int64"), "s": Column(type="string")})
    batch = pa.record_batch({"x": pa.array(np.arange(5)), "s": ["a"] * 5})
    rows = conform_batch(batch, contract).rows
    assert [c.buffers()[1].address for c in rows.columns] == [c.buffers()[1].address for c in batch.columns]


def test_absent_columns_are_null_and_unknown_ones_follow_the_contract() -> None:
    batch = pa.record_batch({"x": [1, 2], "extra": ["a", None], "more": [None, 1.5]})
    columns = {"x": Column(type="int64"), "y": Column(type="string")}

    def split(policy: Any) -> Split:
        return conform_batch(batch, Contract(columns=columns, unknown_columns=policy))

    assert split("keep").rows.to_pylist() == [{"x": 1, "y": None, UNKNOWN: '{"extra":"a"}'}, {"x": 2, "y": None, UNKNOWN: '{"more":1.5}'}]
    assert split("drop").rows.to_pylist() == [{"x": 1, "y": None}, {"x": 2, "y": None}]
    assert split("dead_letter").dead["reason"].to_pylist() == ["UNKNOWN_COLUMN", "UNKNOWN_COLUMN"]
    with pytest.raises(RunError, match="'extra' is not in the contract"):
        split("fail")


def test_text_that_is_not_utf8_is_a_dead_letter() -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 3], np.int32)), pa.py_buffer(b"a\xff\xfe")])
    batch = with_provenance({"x": broken})
    split = conform_batch(batch, Contract(columns={"x": Column(type="string")}))
    assert_one_door(split, batch)
    assert split.dead["reason"].to_pylist() == ["DECODE"]


def four(*, bad: int | None = 1) -> pa.Array:
    """Four texts; the one at `bad` is not UTF-8, another is NULL."""
    content = pa.array([b"\xff" if i == bad else b"t%d" % i if i != 2 else None for i in range(4)], pa.binary())
    return pa.Array.from_buffers(pa.string(), 4, content.buffers(), content.null_count)


EACH = pa.array([0, 1, 2, 3, 4], pa.int32())
HOLDING_TEXTS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "text": lambda t: t,
    "large text": lambda t: t.cast(pa.large_string()),
    "view": lambda t: t.cast(pa.string_view()),
    "dictionary": lambda t: pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3], pa.int8()), t),
    "list": lambda t: pa.ListArray.from_arrays(EACH, t),
    "struct": lambda t: pa.StructArray.from_arrays([t, pa.array(range(4))], names=["t", "n"]),
    "list of structs": lambda t: pa.ListArray.from_arrays(EACH, pa.StructArray.from_arrays([t], names=["t"])),
    "struct of lists": lambda t: pa.StructArray.from_arrays([pa.LargeListArray.from_arrays(EACH.cast(pa.int64()), t)], names=["l"]),
    "map": lambda t: pa.MapArray.from_arrays(EACH, pa.array(["k"] * 4), t),
    "union": lambda t: pa.UnionArray.from_sparse(pa.array([0, 0, 0, 0], pa.int8()), [t, pa.array(range(4))]),
}


@pytest.mark.parametrize("layout", HOLDING_TEXTS)
@pytest.mark.parametrize("declared", [True, False])
def test_a_text_that_is_not_utf8_at_any_depth_costs_its_own_row(layout: str, declared: bool) -> None:
    columns = {"n": Column(type="int64")} | ({"x": Column(type="json" if layout not in ("map", "union") else "string")} if declared else {})
    contract = Contract(columns=columns, unknown_columns="keep")
    for start, stop in ((0, 4), (1, 4), (2, 4), (0, 1)):  # slices know nothing of what is beside them
        batch = with_provenance({"n": pa.array(range(4)), "x": HOLDING_TEXTS[layout](four())}).slice(start, stop - start)
        split = conform_batch(batch, contract)
        assert_one_door(split, batch)
        broken = dict(zip(split.dead["position"].to_pylist(), split.dead["reason"].to_pylist(), strict=True))
        assert {p for p, reason in broken.items() if reason == "DECODE"} == {1} & set(range(start, stop))
        if not declared:
            assert split.rows["n"].to_pylist() == [n for n in range(start, stop) if n != 1]


@pytest.mark.parametrize("policy", ["keep", "drop", "dead_letter", "fail"])
def test_a_text_that_is_not_utf8_in_a_given_unknown_column_costs_its_own_row(policy: Any) -> None:
    batch = with_provenance({"n": pa.array(range(4)), UNKNOWN: four()})
    split = conform_batch(batch, Contract(columns={"n": Column(type="int64")}, unknown_columns=policy))
    assert_one_door(split, batch)
    assert split.dead["message"].to_pylist() == ["_unknown: got a text that is not UTF-8 (byte 0); expected UTF-8"]
    assert split.rows[UNKNOWN].to_pylist() == ["t0", None, "t3"]


def test_what_null_hides_is_no_text() -> None:
    hidden = pa.array([False, True, False, False])
    listed = pa.ListArray.from_arrays(EACH, four(), mask=hidden)
    struct = pa.StructArray.from_arrays([four()], names=["t"], mask=hidden)
    split = conform_batch(
        pa.record_batch({"l": listed, "s": struct}), Contract(columns={"n": Column(type="int64")}, unknown_columns="keep")
    )
    assert [None if text is None else json.loads(text) for text in split.rows[UNKNOWN].to_pylist()] == [
        {"l": ["t0"], "s": {"t": "t0"}}, None, {"l": [None], "s": {}}, {"l": ["t3"], "s": {"t": "t3"}},
    ]  # fmt: skip


def test_the_raw_form_of_a_row_shows_the_bytes_that_are_no_text() -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 3], np.int32)), pa.py_buffer(b"a\xff\xfe")])
    numbered = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), broken)
    columns = {"x": broken, "y": numbered, "z": pa.StructArray.from_arrays([broken], names=["s"]), "n": pa.array([1, 2])}
    split = conform_batch(pa.record_batch(columns), Contract(columns={"x": Column(type="string")}, unknown_columns="drop"))
    assert split.rows["x"].to_pylist() == ["a"]
    assert split.dead["reason"].to_pylist() == ["DECODE"]
    assert json.loads(split.dead["raw"][0].as_py()) == {"x": "\\xff\\xfe", "y": "\\xff\\xfe", "z": "struct<s: string>", "n": 2}
    assert json.loads(row_json(pa.record_batch(columns))[0].as_py()) == {"x": "a", "y": "a", "z": {"s": "a"}, "n": 1}


def test_columns_come_out_in_the_contracts_order() -> None:
    contract = Contract(
        columns={"b": Column(type="int8"), "a": Column(type="string"), "t": Column(type="timestamp", time_zone="Europe/Berlin")}
    )
    batch = with_provenance({UNKNOWN: ["{}"], "t": ["2026-01-01"], "a": ["x"], "b": ["1"]})
    for split in (text_split(contract, batch), conform_batch(batch, contract)):
        assert split.rows.schema.names == ["b", "a", "t", UNKNOWN, "_source", "_position", "_arrival_time"]


def test_empty_batches_have_the_contracts_schema() -> None:
    split = text_split(EVERYTHING, with_provenance(dict.fromkeys(EVERYTHING.read, pa.array([], pa.string()))))
    assert split.rows.select(list(EVERYTHING.columns)).schema == EVERYTHING.arrow_schema()


@pytest.mark.parametrize(
    ("contract", "zone", "message"),
    [
        (Contract(columns={"x": Column(type="timestamp", time_zone="Mars/Base")}), "UTC", "time zone 'Mars/Base'"),
        (Contract(columns={"x": Column(type="string")}), "Nowhere", "time zone 'Nowhere'"),
        (Contract(columns={"x": Column(type="int8", expr="y + 1")}), "UTC", "y"),
    ],
)
def test_a_contract_that_cannot_work_is_refused_at_once(contract: Contract, zone: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        conform_steps(contract, text=True, time_zone=zone)


def test_steps_travel_to_the_workers() -> None:
    contract = Contract(columns={"x": Column(type="int8"), "t": Column(type="timestamp", time_zone="Europe/Berlin")})
    batch = with_provenance({"x": ["1", "300"], "t": ["2026-01-01", "2026-01-01"]})
    for text in (True, False):
        steps = conform_steps(contract, text=text)
        Program(steps)(batch)
        assert Program(pickle.loads(pickle.dumps(steps)))(batch).rows.equals(Program(steps)(batch).rows)
