"""Archive: nothing is said to be stored before it is, and nothing by a process that another has followed."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines import durable, metrics
from beam_pipelines.arrow.schema import as_archived, of_source, source_number
from beam_pipelines.errors import SinkError
from beam_pipelines.formats.archive import live_files
from beam_pipelines.sinks.archive import Archive
from tests.formats.archived import NOON, SOURCE, everything, messages


@dataclass(frozen=True)
class Open:
    """A fence that lets everybody pass who has written first."""

    folder: str

    def __call__(self) -> None:
        assert live_files(self.folder), "the fence was asked before the file was there"
        assert not _stored([1]), "messages were registered before the fence was asked"


def fenced() -> None:
    raise SinkError("this stream was taken over by a later start.")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    durable.reset()
    yield
    durable.reset()


def _stored(positions: list[int]) -> list[int]:
    asked = np.array(positions, np.int64)
    return asked[durable.take_stored(SOURCE, asked)].tolist()  # type: ignore[no-any-return]


class _Stamps(beam.DoFn):  # type: ignore[misc]  # Beam ships no types
    def process(self, batch: pa.RecordBatch, timestamp: object = beam.DoFn.TimestampParam) -> Iterator[object]:
        yield source_number(batch), batch.schema.names, batch["_position"].to_pylist(), int(timestamp)  # type: ignore[call-overload]


def test_messages_are_stored_then_registered_then_given_on_as_they_came(tmp_path: Path) -> None:
    batch = of_source(messages([(1, NOON), (2, NOON + 1)]), 3)

    def check(found: list[tuple[int, list[str], list[int], int]]) -> None:
        assert found == [(3, ["_source", "_position", "_arrival_time", "_raw"], [1, 2], 77)]

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        given = pipeline | beam.Create([TimestampedValue(batch, 77)]) | beam.Map(lambda b: TimestampedValue(b, 77))
        done = given | Archive(str(tmp_path), epoch=4, fence=Open(str(tmp_path)))
        assert_that(done | beam.ParDo(_Stamps()), check)
    assert everything(tmp_path) == [(1, NOON), (2, NOON + 1)]
    assert _stored([1, 2, 3]) == [1, 2]
    assert Path(live_files(str(tmp_path))[0]).name.startswith("000004-")


def process(transform: Archive, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    store = pickle.loads(pickle.dumps(transform))._store
    store.setup()
    return list(store.process(batch, Timestamp(micros=NOON)))


def test_replayed_messages_pass_without_being_stored_again(tmp_path: Path) -> None:
    (found,) = process(Archive(str(tmp_path), epoch=1, fence=fenced), as_archived(messages([(1, NOON)])))
    assert found["_position"].to_pylist() == [1]
    assert live_files(str(tmp_path)) == []
    assert _stored([1]) == []


def test_a_fenced_process_registers_and_gives_on_nothing(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="taken over"):
        process(Archive(str(tmp_path), epoch=1, fence=fenced), messages([(1, NOON)]))
    assert _stored([1]) == []
    assert everything(tmp_path) == [(1, NOON)], "what it wrote is read by the later one, once"


def test_where_the_place_refuses_nothing_is_registered(tmp_path: Path) -> None:
    (tmp_path / "archive").write_text("a file is in the way")
    with pytest.raises(SinkError, match=f"{tmp_path}/archive"):
        process(Archive(str(tmp_path / "archive"), epoch=1, fence=fenced), messages([(1, NOON)]))
    assert _stored([1]) == []


def test_sources_of_one_batch_are_registered_each_under_its_name(tmp_path: Path) -> None:
    other = "projects/p/subscriptions/other"
    both = pa.concat_batches([messages([(1, NOON), (2, NOON)]), messages([(2, NOON), (9, NOON)], source=other)])
    process(Archive(str(tmp_path), epoch=1, fence=Open(str(tmp_path))), both)
    assert _stored([1, 2, 9]) == [1, 2]
    assert durable.take_stored(other, np.array([1, 2, 9])).tolist() == [False, True, True]


def test_attributes_are_kept_where_the_format_needs_them_and_the_key_seals_only_what_is_stored(tmp_path: Path) -> None:
    metrics.reset()
    archive = Archive(str(tmp_path), epoch=1, fence=Open(str(tmp_path)), raw_key=_key, keep_attributes=True)
    (found,) = process(archive, messages([(1, NOON)]))
    assert found.select(["_raw", "_attributes"]).to_pylist() == messages([(1, NOON)]).select(["_raw", "_attributes"]).to_pylist()
    assert b'"id": 1' not in Path(live_files(str(tmp_path))[0]).read_bytes()
    assert metrics.snapshot()["messages_archived"] == 1


def _key() -> bytes:
    return b"k" * 32
