"""The element's coder: any batch comes back, and a slice travels as a slice."""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.coders import RecordBatchCoder

CODER = RecordBatchCoder()


@given(
    st.lists(st.tuples(st.integers(-5, 5) | st.none(), st.text(max_size=5) | st.none()), max_size=20),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_any_slice_of_a_batch_comes_back(rows: list[tuple[int | None, str | None]], start: int, length: int) -> None:
    batch = pa.record_batch(
        {
            "n": pa.array([r[0] for r in rows], pa.int64()),
            "text": pa.array([r[1] for r in rows], pa.string()),
            "code": pa.array([r[1] for r in rows], pa.string()).dictionary_encode(),
            "nested": pa.array([[{"a": r[0]}] for r in rows], pa.list_(pa.struct([("a", pa.int64())]))),
        }
    ).slice(start, length)
    back = CODER.decode(CODER.encode(batch))
    assert back.schema == batch.schema
    assert back.to_pylist() == batch.to_pylist()


def test_a_slice_does_not_ship_its_parent() -> None:
    parent = pa.record_batch({"n": pa.array(range(100_000), pa.int64())})
    assert len(CODER.encode(parent.slice(500, 100))) < 2_000


def test_schema_metadata_travels() -> None:
    batch = pa.record_batch({"n": [1]}).replace_schema_metadata({"columns": '["n"]'})
    assert CODER.decode(CODER.encode(batch)).schema.metadata == {b"columns": b'["n"]'}


def test_beam_uses_it_for_record_batches() -> None:
    assert beam.coders.registry.get_coder(pa.RecordBatch) == CODER
    assert CODER.is_deterministic()


@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_the_estimated_size_is_the_memory_of_the_batch(rows: int) -> None:
    batch = pa.record_batch({"n": pa.array(range(rows), pa.int64())})
    assert CODER.get_impl().estimate_size(batch) == batch.nbytes
