"""J1's events as an endless source inside the process: message batches made beforehand, handed out as the Pub/Sub source hands out pulls.

answers of N messages ─▶ joined to elements of 60,000 (what `sources.pubsub_waiting` does) ─▶ bundles of 8 elements or half a second
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.coders import Coder, PickleCoder
from apache_beam.io.unbounded_source import CheckpointMark, ReadFromUnboundedSource, UnboundedReader, UnboundedSource
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from beam_pipelines import arrival_clock, back_pressure, draining
from beam_pipelines.arrow.schema import MESSAGES, UTC_MICROS, as_archived, of_source, provenance
from beam_pipelines.coders import RecordBatchCoder
from beam_pipelines.sources import split_progress
from beam_pipelines.sources.pubsub import BUNDLE_S, ELEMENTS_OF_A_BUNDLE
from beam_pipelines.sources.pubsub_waiting import Parcel, Waiting, merged
from beam_pipelines.spec.sources import PubsubSource

split_progress.install()

BEGIN = 1_793_491_200_000_000  # 2026-11-01, where J1's event times begin
SPAN = 2 * 86_400_000_000
JITTER = 60_000_000  # of event times; arrivals have none, so the watermark is the next arrival
_FIRST_POSITION = 2**41


@dataclass
class Feed:
    """What readers of this process hand out; `answer`: messages of one pull."""

    messages: pa.RecordBatch
    arrivals: Any
    answer: int


FEED: list[Feed] = []


def messages_of(lines: pa.Array, arrivals: Any, *, archived: bool) -> pa.RecordBatch:
    """One batch of messages; `archived`: marked as coming from the archive, so that none is stored there."""
    n = len(lines)
    positions = pa.array(np.arange(n) + _FIRST_POSITION)
    times = pa.array(arrivals).view(UTC_MICROS)
    attributes = pa.MapArray.from_arrays(pa.array(np.zeros(n + 1, np.int32)), pa.array([], pa.string()), pa.array([], pa.string()))
    columns = [
        *provenance("projects/bench/subscriptions/events", positions, times), lines, positions.cast(pa.string()), pa.nulls(n, pa.string()),
        times, attributes,
    ]  # fmt: skip
    batch = of_source(pa.RecordBatch.from_arrays(columns, schema=MESSAGES), 0)
    return as_archived(batch) if archived else batch


def lines_of(folder: Path, rows: int) -> pa.Array:
    """The first `rows` lines of J1's files as binary, without their ends."""
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("*.jsonl")))
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == 10)[:rows]
    if len(ends) < rows:
        raise SystemExit(f"{folder} has {len(ends)} lines; expected {rows}")
    offsets = np.concatenate(([0], ends + 1)).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(content)])


class _Mark(CheckpointMark):  # type: ignore[misc]
    def __init__(self, at: int) -> None:
        self.at = at

    def finalize_checkpoint(self) -> None:
        pass


class _Reader(UnboundedReader):  # type: ignore[misc]
    def __init__(self, at: int) -> None:
        self._feed, self._at = FEED[0], at
        self._current: pa.RecordBatch | None = None

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        if back_pressure.full():
            return False
        ready = len(self._feed.arrivals)
        begin, waiting = self._at, Waiting()
        while self._at < ready and not waiting.enough():
            n = min(self._feed.answer, ready - self._at)
            waiting.add(Parcel(self._feed.messages.slice(self._at, n), [], 0, 0.0, None))
            self._at += n
        if self._at == begin:
            return False
        self._current, _ = merged(waiting.take())
        self._begin = begin
        return True

    def get_current(self) -> pa.RecordBatch:
        return self._current

    def get_current_timestamp(self) -> Timestamp:
        return Timestamp(micros=int(self._feed.arrivals[self._begin]))

    def get_watermark(self) -> Timestamp:
        if self._at == len(self._feed.arrivals):
            draining.end(int(self._feed.arrivals[-1]))  # windows that are open then are `drained`
            return MAX_TIMESTAMP
        micros = int(self._feed.arrivals[self._at])
        arrival_clock.tell("bench", micros)  # as the Pub/Sub source does
        return Timestamp(micros=micros)

    def get_checkpoint_mark(self) -> _Mark:
        return _Mark(self._at)


class _Endless(UnboundedSource):  # type: ignore[misc]
    def split(self, desired_num_splits: int, options: Any = None) -> list[UnboundedSource]:
        return [self]

    def create_reader(self, options: Any, checkpoint_mark: _Mark | None) -> _Reader:
        return _Reader(checkpoint_mark.at if checkpoint_mark else 0)

    def get_checkpoint_mark_coder(self) -> Coder:
        return PickleCoder()

    def default_output_coder(self) -> Coder:
        return RecordBatchCoder()


def reading(poll_s: float) -> Callable[[PubsubSource, int], beam.PTransform]:
    """What takes the place of Pub/Sub (`StreamCall.make`)."""

    def make(source: PubsubSource, number: int) -> beam.PTransform:
        return ReadFromUnboundedSource(
            _Endless(), poll_interval=poll_s, max_records_per_bundle=ELEMENTS_OF_A_BUNDLE, max_read_time_seconds=BUNDLE_S
        )

    return make
