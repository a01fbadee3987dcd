"""The element's coder: any batch comes back, and a slice travels as a slice."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.typehints.native_type_compatibility import convert_to_beam_type
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.coders import HandedCoder, RecordBatchCoder, _table
from beam_pipelines.errors import RunError
from beam_pipelines.transforms.keyed_state import keyed_batches, resident

CODER = RecordBatchCoder()


@pytest.fixture
def handing_over() -> Iterator[None]:
    resident(True)
    yield
    resident(False)


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


def test_a_batch_that_is_handed_over_is_the_same_one_and_there_once(handing_over: None) -> None:
    batch = pa.record_batch({"n": pa.array(range(1_000), pa.int64())}).slice(10, 100)
    coder = beam.coders.registry.get_coder(convert_to_beam_type(keyed_batches()))
    encoded = coder.encode((3, batch))
    assert len(encoded) < 20
    assert len(_table) == 1
    assert coder.decode(encoded)[1] is batch
    assert len(_table) == 0
    with pytest.raises(RunError, match="twice"):
        coder.decode(encoded)


def test_no_graph_hands_batches_over_unless_it_is_asked_for(request: pytest.FixtureRequest) -> None:
    def coder() -> object:
        return beam.coders.registry.get_coder(convert_to_beam_type(keyed_batches())).coders()[1]

    assert coder() == RecordBatchCoder()
    request.getfixturevalue("handing_over")
    assert coder() == HandedCoder()
