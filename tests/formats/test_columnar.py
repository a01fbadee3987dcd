"""Laws of picking columns: by path, renamed, types kept; the rest by policy; rows stay aligned."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import pickle
from typing import Any

import pyarrow as pa
import pytest

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.errors import RunError
from beam_pipelines.formats.columnar import PickColumns


def picked(columns: dict[str, Any], contract: Contract) -> tuple[pa.RecordBatch, dict[int, str]]:
    batch = pa.record_batch({"_position": pa.array(range(len(next(iter(columns.values())))), pa.int64())} | columns)
    out, verdicts = pickle.loads(pickle.dumps(PickColumns(contract)))(batch)
    out.validate(full=True)
    assert out.num_rows == batch.num_rows
    return out, {row: v.reason for row, v in verdicts.items()}


def contract(unknown: str = "drop", **columns: Any) -> Contract:
    return Contract(columns={n: Column(**c) for n, c in columns.items()}, unknown_columns=unknown)


def test_paths_lead_through_structs_and_maps_and_types_are_kept() -> None:
    user = pa.array(
        [{"name": "a", "at": {"x": 1}}, None, {"name": None, "at": None}],
        pa.struct([("name", pa.string()), ("at", pa.struct([("x", pa.int16())]))]),
    )
    tags = pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32()))
    names = contract(
        x={"type": "int32", "path": "user.at.x"}, name={"type": "string", "path": "user.name"}, k={"type": "int32", "path": "tags.k"},
        gone={"type": "string", "path": "user.gone"}, absent={"type": "int8"},
    )  # fmt: skip
    out, dead = picked({"user": user, "tags": tags}, names)
    assert out.schema.names == ["_position", "x", "name", "k", "gone", "absent"]
    assert out.schema.field("x").type == pa.int16()
    assert out.drop_columns(["_position"]).to_pylist() == [
        {"x": 1, "name": "a", "k": 1, "gone": None, "absent": None},
        {"x": None, "name": None, "k": None, "gone": None, "absent": None},
        {"x": None, "name": None, "k": None, "gone": None, "absent": None},
    ]
    assert not dead


def test_a_path_through_a_value_without_members_is_a_dead_letter() -> None:
    out, dead = picked({"user": pa.array(["text", None])}, contract(x={"type": "int32", "path": "user.at"}))
    assert dead == {0: "TYPE"}
    assert out["x"].to_pylist() == [None, None]


def test_encodings_are_undone() -> None:
    codes = pa.array(["a", "b", "a"]).dictionary_encode()
    out, _ = picked({"c": codes, "d": codes}, contract("keep", c={"type": "string"}))
    assert out["c"].type == pa.string()
    assert out["_unknown"].to_pylist() == ['{"d":"a"}', '{"d":"b"}', '{"d":"a"}']


def test_dotted_names_are_one_key() -> None:
    out, _ = picked({"a.b": [1]}, contract(x={"type": "int32", "path": ("a.b",)}))
    assert out["x"].to_pylist() == [1]


def test_what_the_contract_does_not_name_goes_by_policy() -> None:
    columns = {
        "known": [1], "it's": [decimal.Decimal("1.50")], "at": pa.array([dt.datetime(2024, 1, 2, tzinfo=dt.UTC)]),
        "nested": pa.array([{"a": [1, 2], "b": None}]), "map": pa.array([[("k", 1.5)]], pa.map_(pa.string(), pa.float64())), "nothing": pa.nulls(1),
    }  # fmt: skip
    out, _ = picked(columns, contract("keep", known={"type": "int64"}))
    assert json.loads(out["_unknown"][0].as_py()) == {
        "it's": 1.5, "at": "2024-01-02 00:00:00", "nested": {"a": [1, 2], "b": None}, "map": {"k": 1.5}, "nothing": None,
    }  # fmt: skip
    assert picked(columns, contract("drop", known={"type": "int64"}))[0].schema.names == ["_position", "known"]
    assert picked(columns, contract("dead_letter", known={"type": "int64"}))[1] == {0: "UNKNOWN_COLUMN"}
    with pytest.raises(RunError, match='column "it\'s" is not in the contract'):
        picked(columns, contract("fail", known={"type": "int64"}))


def test_unknown_values_of_every_type_are_json() -> None:
    columns = {
        "f": pa.array([float("nan"), float("-inf"), 1.5]), "s": pa.array(["NaN", '"Infinity', "a\0b"]), "l": pa.array([[float("nan"), 1.0], [], None]),
        "b": pa.array([b"\xff", b"", None]), "t": pa.array([2**62, -(2**62), None], pa.timestamp("us", "UTC")), "u": pa.array([2**64 - 1, 0, None], pa.uint64()),
    }  # fmt: skip
    out, _ = picked({"known": [1, 2, 3], **columns}, contract("keep", known={"type": "int64"}))
    rows = [json.loads(t, parse_constant=pytest.fail) for t in out["_unknown"].to_pylist()]
    assert [r["f"] for r in rows] == [None, None, 1.5]
    assert [r["s"] for r in rows] == ["NaN", '"Infinity', "a\0b"]
    assert [r["l"] for r in rows] == [[None, 1.0], [], None]
    wide = {
        "d": pa.array([decimal.Decimal("1" * 45)], pa.decimal256(50, 2)),
        "h": pa.array([1.5], pa.float32()).cast(pa.float16()),
        "n": pa.array([float("nan")]),
    }
    out, _ = picked({"known": [1], **wide}, contract("keep", known={"type": "int64"}))
    assert json.loads(out["_unknown"][0].as_py()) == {"d": "1" * 45 + ".00", "h": 1.5, "n": None}


def test_a_kept_text_that_is_not_utf8_costs_its_own_row() -> None:
    content = pa.array([b"a", b"\xff", None], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, content.buffers(), content.null_count)
    for kept in (broken, broken.cast(pa.large_string()), pa.StructArray.from_arrays([broken], names=["t"])):
        out, dead = picked({"known": [1, 2, 3], "kept": kept}, contract("keep", known={"type": "int64"}))
        assert dead == {1: "DECODE"}
        assert json.loads(out["_unknown"][0].as_py()) == {"kept": kept[0].as_py()}


def test_reserved_names_of_a_file_are_found_under_their_own_names() -> None:
    out, _ = picked(
        {"$_source": ["a"], "$_unknown": ["{}"], "id": [1]},
        contract("keep", src={"type": "string", "path": "_source"}, id={"type": "int64"}),
    )
    assert out["src"].to_pylist() == ["a"]
    assert out["_unknown"].to_pylist() == ['{"_unknown":"{}"}']


def test_an_empty_batch_stays_empty() -> None:
    out, dead = picked({"a": pa.array([], pa.int64())}, contract("keep", a={"type": "int64"}, b={"type": "string"}))
    assert out.schema.names == ["_position", "a", "b", "_unknown"]
    assert not dead
