"""A source that gives as much as it may, before a slow keyed stage. In a module of its own: workers find it by name, and its globals are the test's."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam import coders
from apache_beam.io.unbounded_source import CheckpointMark, ReadFromUnboundedSource, UnboundedReader, UnboundedSource
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from beam_pipelines import back_pressure
from beam_pipelines.arrow.schema import PROVENANCE, UTC_MICROS, provenance
from beam_pipelines.coders import RecordBatchCoder
from beam_pipelines.transforms import DropRedelivered

ROWS = 1_000
_SLOW_S = 0.01


@dataclass
class Seen:
    """What happened in the workers, which are threads of the test's process. `ahead`: rows given and not yet through, at each element given."""

    refused: int = 0
    given: int = 0
    through: int = 0
    ahead: list[int] = field(default_factory=list)
    positions: set[int] = field(default_factory=set)


SEEN = Seen()
_NEVER = threading.Event()


def reset() -> Seen:
    """Forgets what was seen before; the same object from now on."""
    SEEN.__init__()  # type: ignore[misc]
    return SEEN


class _Mark(CheckpointMark):  # type: ignore[misc]
    def __init__(self, position: int) -> None:
        self.position = position

    def finalize_checkpoint(self) -> None:
        pass


class _Reader(UnboundedReader):  # type: ignore[misc]
    def __init__(self, count: int, position: int) -> None:
        self.count, self.position = count, position

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        if self.position == self.count:
            return False
        if back_pressure.full():
            SEEN.refused += 1
            return False
        self.position += 1
        SEEN.given += ROWS
        SEEN.ahead.append(SEEN.given - SEEN.through)
        return True

    def get_current(self) -> pa.RecordBatch:
        positions = pa.array(range((self.position - 1) * ROWS, self.position * ROWS), pa.int64())
        return pa.record_batch(provenance("s", positions, pa.array([self.position * 1_000_000] * ROWS, UTC_MICROS)), schema=PROVENANCE)

    def get_current_timestamp(self) -> Timestamp:
        return Timestamp(self.position)

    def get_watermark(self) -> Timestamp:
        return MAX_TIMESTAMP if self.position == self.count else Timestamp(self.position)

    def get_checkpoint_mark(self) -> _Mark:
        return _Mark(self.position)


class _Flood(UnboundedSource):  # type: ignore[misc]
    def __init__(self, count: int) -> None:
        self.count = count

    def split(self, desired_num_splits: int, options: Any = None) -> list[_Flood]:
        return [self]

    def create_reader(self, options: Any, checkpoint_mark: _Mark | None) -> _Reader:
        return _Reader(self.count, checkpoint_mark.position if checkpoint_mark else 0)

    def get_checkpoint_mark_coder(self) -> Any:
        return coders.PickleCoder()

    def default_output_coder(self) -> Any:
        return RecordBatchCoder()


def slowly(batch: pa.RecordBatch) -> None:
    """Work behind the keyed stage, in its bundles."""
    _NEVER.wait(_SLOW_S)
    SEEN.through += batch.num_rows
    SEEN.positions.update(batch.column("_position").to_pylist())


def flood(pipeline: beam.Pipeline, count: int) -> Any:
    """`count` batches of ROWS rows through the keyed stage."""
    read = ReadFromUnboundedSource(_Flood(count), poll_interval=0.02, max_records_per_bundle=4, max_read_time_seconds=0.5)
    return pipeline | "Flood" >> read | DropRedelivered() | "Slowly" >> beam.Map(slowly)
