"""The law of views: what is taken out of a record by its shape is what the strict decoder takes, text by text."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.layouts import rows_of
from beam_pipelines.formats.json import decode_batch
from beam_pipelines.formats.json_members import Members
from beam_pipelines.formats.json_plan import plan
from beam_pipelines.formats.json_strict import Decoded, decode_record
from beam_pipelines.formats.json_syntax import check_syntax
from beam_pipelines.formats.json_views import Columns
from tests.formats.test_json_law import CONTRACTS, _batches, _check, _fitting, _same

FLAT = Contract(columns={"id": {"type": "string"}, "n": {"type": "int64"}, "x": {"type": "string", "path": "user.id"}})
NESTED = Contract(  # JSON columns are given without white space, and numbers inside are compared by their texts
    columns={n: c for n, c in CONTRACTS["nested"].columns.items() if n not in ("at", "user")}
    | {"user": {"type": "struct<id: string, age: uint8, more: struct<a: boolean>>"}}
)
SHAPELY = CONTRACTS | {"nested": NESTED}
texts = st.text(max_size=20) | st.sampled_from(["", "a" * 12, "a" * 13, "é" * 6, "é" * 7, '"', "\\", "\0", "null", " , "])


def _taken(records: list[bytes], contract: Contract) -> tuple[list[bool], list[dict[str, Any]], list[Any]]:
    checked = check_syntax(pa.array(records, pa.binary()))
    found = Members(plan(contract), least_rows=1).extract(checked.text, checked.valid)
    columns = [c.cast(pa.string()).to_pylist() for c in found.columns.arrays()]
    rows = [dict(zip(contract.read, values, strict=True)) for values in zip(*columns, strict=True)]
    return found.good.tolist(), rows, found.unknown.to_pylist()


@pytest.mark.parametrize("name", list(SHAPELY))
@settings(max_examples=25)
@given(data=st.data())
def test_values_by_shape_are_the_strict_decoders(name: str, data: st.DataObject) -> None:
    contract = SHAPELY[name]
    raw = [r.replace(b"\n", b" ").rstrip() + b"\n" for r in data.draw(_batches(contract))] * 2  # all but the first of a shape are matched
    if not raw:
        return
    good, rows, unknown = _taken(raw, contract)
    for record, proven, row, extra in zip(raw, good, rows, unknown, strict=True):
        if not proven:
            continue
        strict = decode_record(record, plan(contract))
        assert isinstance(strict, Decoded), record
        for column, declared in contract.read.items():
            assert _same(row[column], strict.values[column], declared.dtype), (record, column, row[column], strict.values[column])
        if contract.unknown_columns == "keep":
            assert (extra is None) == (strict.unknown is None), record


def test_regular_records_are_all_taken_by_their_shape() -> None:
    """Speed rests on this."""
    records = [b'{"id": "i%d", "n": %d, "user": {"id": "\\u00e9%s"}, "new": 1}\n' % (i, i, b"x" * (i % 20)) for i in range(300)]
    good, rows, unknown = _taken(records, FLAT)
    assert good == [False, *[True] * 299], "the first is what the shape was learnt from"
    assert rows[17] == {"id": "i17", "n": "17", "x": "é" + "x" * 17}
    assert unknown[17] == '{"new": 1}'


@settings(max_examples=15)
@given(data=st.data(), name=st.sampled_from(["flat", "nested", "soft"]))
def test_odd_records_among_many_alike_leave_by_their_own_door(data: st.DataObject, name: str) -> None:
    contract = SHAPELY[name]
    odd = data.draw(_batches(contract))
    usual = data.draw(_fitting(contract).map(lambda t: t.encode("utf-8", "surrogatepass")))
    records = [usual + b"\n"] * 300
    for i, record in enumerate(odd):
        records.insert((i * 37 + 5) % len(records), record)
    _check(records, contract)


@given(values=st.lists(st.none() | texts, max_size=30), data=st.data())
def test_columns_hold_what_was_put_into_them(values: list[str | None], data: st.DataObject) -> None:
    columns = Columns(np.zeros(64, np.uint8), len(values), 1)
    order = np.array(data.draw(st.permutations(range(len(values)))), np.int64)
    cut = data.draw(st.integers(0, len(values)))
    for rows in (order[:cut], order[cut:]):
        padded = pa.array(["before", *(values[i] for i in rows)], pa.string())
        columns.put(0, rows, padded.slice(1))
    (column,) = columns.arrays()
    column.validate(full=True)
    assert column.cast(pa.string()).to_pylist() == values
    some = np.array(data.draw(st.lists(st.integers(0, max(len(values) - 1, 0)), max_size=5)) if values else [], np.int64)
    taken = rows_of(pa.record_batch({"c": column}), some).column(0)
    taken.validate(full=True)
    assert taken.cast(pa.string()).to_pylist() == [values[i] for i in some]
    if column.null_count == 0 and len(values) > 2:
        assert rows_of(pa.record_batch({"c": column.slice(1)}), np.array([0])).column(0).to_pylist() == values[1:2]


def test_rows_without_a_regular_shape_take_the_other_way_and_come_back() -> None:
    contract = Contract(columns={"id": {"type": "string"}, "n": {"type": "int64"}})
    wild = pa.array([b'{"x%d": 1, "id": "a%d"%s}\n' % (i, i, b', "n": 1' * (i % 2)) for i in range(400)], pa.binary())
    tame = pa.array([b'{"id": "a%d", "n": %d}\n' % (i, i) for i in range(400)], pa.binary())
    for raw in (wild, tame, wild, tame):
        split = decode_batch(pa.record_batch({"_raw": raw}), contract)
        assert split.rows.num_rows == 400
        assert pc.all(pc.starts_with(split.rows["id"], "a")).as_py()
        assert split.rows["id"].type == pa.string()
