"""Joining batches changes their number and nothing else."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.concat import Pending, coalesce, concat, slices
from beam_pipelines.errors import RunError


def batch(words: list[str | None]) -> pa.RecordBatch:
    """Rows with a dictionary of their own, nested too."""
    coded = pa.array(words, pa.string()).dictionary_encode()
    return pa.record_batch(
        {"word": coded, "n": pa.array(range(len(words)), pa.int64()), "nested": pa.StructArray.from_arrays([coded], ["w"])}
    )


words = st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "ä", ""])), max_size=12)
batches = st.lists(words.map(batch), max_size=8)


def rows(of: list[pa.RecordBatch]) -> list[dict[str, object]]:
    return [row for b in of for row in b.to_pylist()]


@given(batches.filter(bool))
def test_concat_keeps_rows_order_and_schema(given_batches: list[pa.RecordBatch]) -> None:
    joined = concat(given_batches)
    joined.validate(full=True)
    assert joined.schema == given_batches[0].schema
    assert joined.to_pylist() == rows(given_batches)


@given(batches.filter(bool), st.data())
def test_concat_of_slices_is_the_batch(given_batches: list[pa.RecordBatch], data: st.DataObject) -> None:
    whole = concat(given_batches)
    cut = data.draw(st.integers(0, whole.num_rows))
    assert concat([whole.slice(0, cut), whole.slice(cut)]).to_pylist() == whole.to_pylist()


@given(batches, st.integers(1, 20))
def test_coalesce_keeps_rows_and_order_within_the_target(given_batches: list[pa.RecordBatch], target: int) -> None:
    joined = list(coalesce(given_batches, target_rows=target))
    assert rows(joined) == rows(given_batches)
    largest = max((b.num_rows for b in given_batches), default=0)
    assert all(0 < b.num_rows <= max(target, largest) for b in joined)
    assert all(2 * max(a.num_rows, b.num_rows) >= target for a, b in zip(joined, joined[1:], strict=False))


@given(words.map(batch), st.integers(1, 20))
def test_slices_are_the_batch_in_equal_pieces(whole: pa.RecordBatch, target: int) -> None:
    pieces = list(slices(whole, target_rows=target))
    assert rows(pieces) == whole.to_pylist()
    assert all(p.num_rows <= target for p in pieces)


def test_slices_obey_bytes() -> None:
    whole = pa.record_batch({"text": ["x" * 1000] * 100})
    assert max(p.nbytes for p in slices(whole, target_bytes=10_000)) < 12_000


def test_coalesce_limits_bytes() -> None:
    wide = pa.record_batch({"text": ["x" * 1000] * 4})
    assert [b.num_rows for b in coalesce([wide] * 6, target_rows=1000, target_bytes=9000)] == [8, 8, 8]


def test_a_batch_of_good_size_passes_without_a_copy() -> None:
    good = pa.record_batch({"n": range(60)})
    assert next(coalesce([good], target_rows=100)) is good


def test_coalesce_starts_anew_where_the_schema_changes() -> None:
    one, other = pa.record_batch({"a": [1]}), pa.record_batch({"b": [1]})
    assert [b.schema.names for b in coalesce([one, one, other], target_rows=10)] == [["a"], ["b"]]


def test_pending_is_empty_after_take() -> None:
    pending = Pending(target_rows=4)
    pending.add(pa.record_batch({"a": [1]}))
    assert pending
    assert not pending.ripe
    assert pending.take().num_rows == 1
    assert not pending


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": [1.0], "b": [2]}, "'a' is double, expected int64"),
        ({"b": [2], "a": [1]}, "another order"),
        ({"a": [1], "c": [2]}, r"missing \['b'\], unexpected \['c'\]"),
    ],
)
def test_concat_names_the_difference_of_schemas(other: dict[str, list[object]], message: str) -> None:
    with pytest.raises(RunError, match=message):
        concat([pa.record_batch({"a": [1], "b": [2]}), pa.record_batch(other)])


def test_concat_of_nothing_says_so() -> None:
    with pytest.raises(RunError, match="no batches"):
        concat([])
