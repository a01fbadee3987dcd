"""Enrich: a row finds the row of the table with its key, whatever types and layouts; everything else is a miss."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.enrich import Enrich, LookupTable, enrich_batch, lookup_table
from beam_pipelines.errors import RunError, SpecError

AIRPORTS = lookup_table(pa.table({"faa": ["JFK", "LGA", None], "name": ["Kennedy", "La Guardia", "nowhere"]}), name="airports", key="faa")


def found(keys: pa.Array | list[Any], rows: pa.Array | list[Any]) -> list[Any]:
    """The index of the key that each row finds."""
    keys = keys if isinstance(keys, pa.Array) else pa.array(keys)
    table = lookup_table(pa.table({"k": keys, "i": range(len(keys))}), name="t", key="k")
    return list(enrich_batch(pa.record_batch({"r": rows}), table, on="r", take={"i": "i"})["i"].to_pylist())


@given(
    st.dictionaries(st.tuples(st.text(max_size=3), st.integers(0, 4)), st.integers()),
    st.lists(st.tuples(st.none() | st.text(max_size=3), st.none() | st.integers(0, 4))),
)
def test_enrich_is_what_a_dictionary_gives(table: dict[tuple[str, int], int], rows: list[tuple[str | None, int | None]]) -> None:
    columns = {
        "a": pa.array([a for a, _ in table], pa.string()),
        "b": pa.array([b for _, b in table], pa.int64()),
        "v": pa.array(table.values(), pa.int64())
        if abs(max(table.values(), default=0)) < 2**63 and abs(min(table.values(), default=0)) < 2**63
        else pa.array(range(len(table)), pa.int64()),
    }
    lookup = lookup_table(pa.table(columns), name="t", key=("a", "b"))
    expected = dict(zip(table, columns["v"].to_pylist(), strict=True))
    batch = pa.record_batch({"x": pa.array([a for a, _ in rows], pa.string()), "y": pa.array([b for _, b in rows], pa.int64())})
    out = enrich_batch(batch, lookup, on={"y": "b", "x": "a"}, take={"v": "v"})
    assert out["v"].to_pylist() == [expected.get(r) for r in rows]  # type: ignore[call-overload]


def test_keys_are_compared_in_the_type_of_the_key() -> None:
    assert found(["5", "05"], [5, 7]) == [0, None]
    assert found([5, 7], ["5", "05", "x", "3.7", None]) == [0, None, None, None, None]
    assert found(pa.array([5], pa.int8()), pa.array([5, 300], pa.int64())) == [0, None]
    assert found([5], [5.0, 5.5]) == [0, None]
    assert found([Decimal("1.50")], [1.5, 1.25]) == [0, None]
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert found(pa.array([noon], pa.timestamp("ms", "UTC")), pa.array([noon], pa.timestamp("ns", "Asia/Tokyo"))) == [0]


def test_layouts_do_not_matter() -> None:
    keys, rows = pa.array(["a", "b"]), pa.array(["b", None, "c", "a"])
    for layout in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        assert found(keys.cast(layout) if layout != pa.dictionary(pa.int8(), pa.string()) else keys.dictionary_encode(), rows) == [
            1,
            None,
            None,
            0,
        ]
    assert found(keys, rows.dictionary_encode().slice(1)) == [None, None, 0]


def test_empty_tables_and_batches() -> None:
    assert found(pa.array([], pa.string()), ["a"]) == [None]
    assert found(["a"], pa.array([], pa.string())) == []
    assert found(["a"], pa.nulls(2)) == [None, None]


def test_a_repeated_key_fails_or_one_row_is_chosen() -> None:
    rows = pa.table({"k": ["a", "b", "a", "a", "b"], "v": range(5)})
    with pytest.raises(RunError, match=r"lookup 't': its key must be unique; got k='a' 3 times \(2 keys occur more than once\)"):
        lookup_table(rows, name="t", key="k")
    assert lookup_table(rows, name="t", key="k", duplicates="first").rows["v"].to_pylist() == [0, 1]
    assert lookup_table(rows, name="t", key="k", duplicates="last").rows["v"].to_pylist() == [3, 4]


def test_the_version_is_the_content_in_whatever_order_and_layout() -> None:
    one = pa.table({"k": ["a", "b"], "v": [1, 2]})
    versions = {
        lookup_table(t, name="t", key="k").version
        for t in (
            one,
            one.take([1, 0]),
            pa.concat_tables([one.slice(1), one.slice(0, 1)]),
            pa.table({"k": one["k"].dictionary_encode(), "v": one["v"]}),
        )
    }
    assert len(versions) == 1
    assert lookup_table(pa.table({"k": ["a", "b"], "v": [1, 3]}), name="t", key="k").version not in versions


def test_a_table_travels_without_its_index() -> None:
    AIRPORTS.find(pa.record_batch({"d": ["JFK"]}), {"d": "faa"})
    again: LookupTable = pickle.loads(pickle.dumps(AIRPORTS))
    assert "_index" not in vars(again)
    assert again.find(pa.record_batch({"d": ["LGA", "X"]}), {"d": "faa"}).to_pylist() == [1, None]
    assert again.version == AIRPORTS.version


def test_the_kernel_rejects_nothing_and_replaces_in_place() -> None:
    batch = pa.record_batch({"name": ["LGA", "X"], "n": [1, 2], "_source": ["f", "f"]})
    out, verdicts = Enrich(AIRPORTS, "name", {"name": "name", "again": "name"})(batch)
    assert verdicts == {}
    assert out.to_pydict() == {"name": ["La Guardia", None], "n": [1, 2], "again": ["La Guardia", None], "_source": ["f", "f"]}


@pytest.mark.parametrize(
    ("on", "message"),
    [("nope", "no column 'nope' to match"), (("d", "d2"), "'on' does not match its key"), ({"d": "name"}, "'on' does not match its key")],
)
def test_a_match_that_cannot_be_is_refused(on: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        enrich_batch(pa.record_batch({"d": ["JFK"], "d2": ["x"]}), AIRPORTS, on=on, take={"n": "name"})


def test_a_key_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(SpecError, match="no column 'fa' for its key; did you mean 'faa'"):
        lookup_table(pa.table({"faa": ["a"]}), name="t", key="fa")
