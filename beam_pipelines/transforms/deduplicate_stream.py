"""`Deduplicate` of an endless input: copies are compared in keyed state, and what turns out to be a duplicate later is taken back.

    rows ─▶ DigestRows ──(bucket of the key digest: rows + digests)──▶ Remember(ByRule) ─▶ rows with `_change`
                └──── (bucket: rows that nothing can be compared with any more) ──▶ ┘ unjudged: they pass as they are

    `_change`  +1  the row stays, as far as known          -1  this row_id is a duplicate: told of every duplicate, whether its +1 was ever told
Consumers treat both as sets of row_ids: (+1) − (−1) are the rows that stay, after any replay too. A row told again in one process tells nothing.

`changes=False` (`FirstWins`): the first copy passes without `_change`, later ones are dropped.

Two clocks: timestamps and the watermark are arrival, `within` is event time.

    event time  ├ within ┤├ lateness ┤        a row that arrives now is judged if its event time is at most `lateness` ago;
                         ▲           ▲ now    what it is compared with lies `within` further back. Older slices are forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow, TimestampedValue, WindowedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

from beam_pipelines import metrics
from beam_pipelines.arrow.concat import Pending, concat, slices
from beam_pipelines.arrow.copies import Copies, Judged
from beam_pipelines.arrow.counts import Count, rows_by_source, unit_of
from beam_pipelines.arrow.duplicates import CONTENT, KEY, ORDER, TIME, Comparison, digests, first_byte
from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.held import CELLS
from beam_pipelines.arrow.schema import ARRIVAL, CHANGE, KEY_HASH, POSITION, PROVENANCE_NAMES, SOURCE, UTC_MICROS
from beam_pipelines.errors import SpecError
from beam_pipelines.transforms.keyed_state import KEYED_ROWS, keyed_batches
from beam_pipelines.transforms.sliced_state import BUCKETS, Remember, by_bucket, identified
from beam_pipelines.transforms.stage import COUNTS

UNJUDGED = "unjudged"
BEYOND_HORIZON = "beyond_horizon"
_KEY, _CONTENT, _TIME = "_key_digest", "_content_digest", "_event_micros"
_CARRIED = (_KEY, _CONTENT, _TIME)
_LEAST = -(2**63)


def unbounded(
    rows: beam.PCollection, how: Comparison, lateness: int, *, changes: bool = True, shards: int = BUCKETS
) -> tuple[beam.PCollection, beam.PCollection]:
    """(rows with `_change`, counts) of an endless PCollection of batches; `how.within` is set. `lateness` in microseconds.

    Without `changes` the rows are those that come first of their copies, and have no `_change`.
    """
    rule: ByRule = ByRule(how, lateness) if changes else FirstWins(how, lateness)
    digested = rows | "Digest" >> beam.ParDo(DigestRows(how, lateness, shards=shards)).with_output_types(keyed_batches())
    judged = digested | "Judge" >> beam.ParDo(Remember(rule)).with_output_types(pa.RecordBatch, counts=Count).with_outputs(
        COUNTS, main="rows"
    )
    return judged.rows, judged[COUNTS]


class DigestRows(beam.DoFn):  # type: ignore[misc]  # Beam ships no types
    """Batches -> (bucket, rows with what is compared of them), and (bucket, rows without it) of those that are too late or timeless.

    They go the same way: a Flatten behind the state would be a stage of its own, and ship every row once more to the runner and back.
    """

    def __init__(self, how: Comparison, lateness: int, *, shards: int = BUCKETS) -> None:
        self._how, self._lateness, self._shards = how, lateness, shards

    def setup(self) -> None:
        self._engine = Engine()

    def start_bundle(self) -> None:
        self._waiting = Waiting()

    def process(self, batch: pa.RecordBatch, timestamp: Timestamp = beam.DoFn.TimestampParam) -> Iterator[Any]:
        for ready, since in self._waiting.add(batch, timestamp.micros):
            yield from stamped(self._digest(ready, since), since)

    def finish_bundle(self) -> Iterator[Any]:
        for ready, since in self._waiting.rest():
            yield from in_global_window(self._digest(ready, since), since)

    def _digest(self, rows: pa.RecordBatch, since: int) -> Iterator[Any]:
        rows = rows.drop_columns([KEY_HASH]) if KEY_HASH in rows.schema.names else rows
        identified(rows, (SOURCE, POSITION))
        if CHANGE in rows.schema.names:
            raise SpecError(f"deduplicate: got rows with {CHANGE}, which an earlier Deduplicate gave.", hint="Deduplicate a stream once.")
        copies = digests(rows, self._how, engine=self._engine)
        late = _beyond(copies.column(TIME), arrivals(rows, since), self._lateness)
        bucket = first_byte(copies.column(KEY)).astype(np.uint16) * self._shards >> 8
        if late.any():
            yield from by_bucket(rows.filter(pa.array(late)), bucket[late])
            bucket, stay = bucket[~late], pa.array(~late)
            rows, copies = rows.filter(stay), copies.filter(stay)
        for name, column in zip(_CARRIED, (KEY, CONTENT, TIME), strict=True):
            rows = rows.append_column(name, copies.column(column))
        yield from by_bucket(rows, bucket) if rows.num_rows else ()


@dataclass(frozen=True)
class ByRule:
    """Judges rows against the copies that `how` compares and that may still matter."""

    how: Comparison
    lateness: int

    @property
    def within(self) -> int:
        return self.how.within or 0

    @property
    def horizon(self) -> int:
        return self.within + self.lateness

    def load(self, cells: Any) -> Any:
        slice_micros = max(1, -(-self.horizon // (CELLS - 2)))  # the slice being filled and the one being left are live too
        return Copies.load(cells, within=self.within, keep=self.how.keep, slice_micros=slice_micros)

    def judge(self, held: Any, rows: pa.RecordBatch) -> Iterator[Any]:
        if _KEY not in rows.schema.names:
            yield from self._unjudged(rows)
            return
        judged = held.add(self._copies(rows))
        rows = rows.drop_columns(list(_CARRIED))
        yield from self._tell(rows if judged.stays.all() else rows.filter(pa.array(judged.stays)), +1)
        taken_back = concat(
            [_bare(rows.filter(pa.array(judged.duplicate)), self.how.event_time), self._earlier(judged.superseded, rows.schema)]
        )
        yield from self._tell(taken_back, -1)
        metrics.count("rows_redelivered", int(judged.redelivered.sum()))
        metrics.count("rows_duplicate", taken_back.num_rows)
        for source, n in rows_by_source(taken_back).items():
            yield TaggedOutput(COUNTS, (f"deduplicate:{unit_of(rows)}", source, "duplicate", "", n))

    def _unjudged(self, rows: pa.RecordBatch) -> Iterator[Any]:
        metrics.count("rows_beyond_horizon", rows.num_rows)
        yield from self._tell(rows, +1)
        for source, n in rows_by_source(rows).items():
            yield TaggedOutput(COUNTS, (f"deduplicate:{unit_of(rows)}", source, UNJUDGED, BEYOND_HORIZON, n))

    def _tell(self, rows: pa.RecordBatch, change: int) -> Iterator[pa.RecordBatch]:
        if rows.num_rows:
            yield rows.append_column(CHANGE, pa.array(np.full(rows.num_rows, change, np.int8)))

    def _copies(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        names, by = rows.schema.names, self.how.order_by
        columns = {KEY: rows.column(_KEY), CONTENT: rows.column(_CONTENT), TIME: rows.column(_TIME)}
        columns[ORDER] = rows.column(by) if by in names else pa.nulls(rows.num_rows, UTC_MICROS)
        provenance = {n: rows.column(n) for n in (SOURCE, POSITION, ARRIVAL) if n in names}
        return pa.record_batch({**columns, **provenance})

    def _earlier(self, superseded: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
        """Rows told before that are duplicates now, as rows of `schema`."""
        known = {n: superseded.column(n) for n in PROVENANCE_NAMES}
        if self.how.event_time is not None:
            known[self.how.event_time] = _time(superseded.column(TIME), schema.field(self.how.event_time).type)
        columns = [known[f.name].cast(f.type) if f.name in known else pa.nulls(superseded.num_rows, f.type) for f in schema]
        return pa.RecordBatch.from_arrays(columns, schema=schema)


class FirstWins(ByRule):
    """Lets the first copy of each key pass, and drops what comes later within reach of any copy: nothing is taken back.

    A row beyond the horizon passes unjudged, and so again when its message is delivered again: `DropRedelivered` before it lets it pass once.
    """

    def load(self, cells: Any) -> Any:
        return Numbered.of(super().load(cells), cells)

    def _tell(self, rows: pa.RecordBatch, change: int) -> Iterator[pa.RecordBatch]:
        if rows.num_rows and change > 0:
            yield rows


@dataclass
class Numbered:
    """Copies whose `order` is when they came: a number per batch and arrival time in it, above all that are held."""

    copies: Copies
    next: int = 0

    @staticmethod
    def of(copies: Copies, cells: Any) -> Numbered:
        last = [pc.max(piece.column(ORDER)).as_py() for cell in cells for piece in cell]
        return Numbered(copies, 1 + max((n for n in last if n is not None), default=-1))

    @property
    def first_end(self) -> int | None:
        return self.copies.first_end

    def expire(self, before_micros: int) -> None:
        self.copies.expire(before_micros)

    def add(self, rows: pa.RecordBatch) -> Judged:
        return self.copies.add(rows.set_column(rows.schema.names.index(ORDER), ORDER, self.numbers(rows)))

    def save(self) -> Iterator[tuple[int, bool, pa.RecordBatch | None]]:
        return self.copies.save()

    def numbers(self, rows: pa.RecordBatch) -> pa.Array:
        """The numbers of a batch that comes now; unknown arrival times last."""
        arrival = rows.column(ARRIVAL) if ARRIVAL in rows.schema.names else pa.nulls(rows.num_rows, UTC_MICROS)
        _, rank = np.unique(arrival.cast(UTC_MICROS).cast(pa.int64()).fill_null(2**63 - 1).to_numpy(), return_inverse=True)
        first, self.next = self.next, self.next + int(rank.max(initial=-1)) + 1
        return pa.array(first + rank.astype(np.int64))


class Waiting:
    """Batches of a bundle until they are worth their fixed cost: about KEYED_ROWS, with the earliest of their timestamps."""

    def __init__(self) -> None:
        self._pending, self._since = Pending(target_rows=2 * KEYED_ROWS), MAX_TIMESTAMP.micros

    def add(self, batch: pa.RecordBatch, micros: int) -> Iterator[tuple[pa.RecordBatch, int]]:
        for piece in slices(batch, target_rows=2 * KEYED_ROWS):
            if not self._pending.fits(piece):
                yield self._take()
            if piece.num_rows:
                self._pending.add(piece)
                self._since = min(self._since, micros)
            if self._pending and self._pending.ripe:
                yield self._take()

    def rest(self) -> Iterator[tuple[pa.RecordBatch, int]]:
        if self._pending:
            yield self._take()

    def _take(self) -> tuple[pa.RecordBatch, int]:
        since, self._since = self._since, MAX_TIMESTAMP.micros
        return self._pending.take(), since


class _Outputs(Protocol):
    def __iter__(self) -> Iterator[Any]: ...


def stamped(outputs: _Outputs, micros: int) -> Iterator[Any]:
    """Outputs of `process` with a timestamp of their own."""
    for output in outputs:
        if isinstance(output, TaggedOutput):
            yield TaggedOutput(output.tag, TimestampedValue(output.value, Timestamp(micros=micros)))
        else:
            yield TimestampedValue(output, Timestamp(micros=micros))


def in_global_window(outputs: _Outputs, micros: int) -> Iterator[Any]:
    """Outputs of `finish_bundle` in the global window."""
    for output in outputs:
        tagged = isinstance(output, TaggedOutput)
        value = WindowedValue(output.value if tagged else output, Timestamp(micros=micros), [GlobalWindow()])
        yield TaggedOutput(output.tag, value) if tagged else value


def arrivals(rows: pa.RecordBatch, since: int) -> npt.NDArray[np.int64]:
    """When each row arrived, in microseconds: its arrival time, else the element's timestamp, else -2**63."""
    unknown = since if MIN_TIMESTAMP.micros < since < MAX_TIMESTAMP.micros else _LEAST
    if ARRIVAL not in rows.schema.names:
        return np.full(rows.num_rows, unknown, np.int64)
    return np.asarray(rows.column(ARRIVAL).cast(UTC_MICROS).cast(pa.int64()).fill_null(unknown).to_numpy())


def _beyond(times: pa.Array, arrived: npt.NDArray[np.int64], lateness: int) -> npt.NDArray[np.bool_]:
    """Rows whose event time is unknown or more than `lateness` before their arrival."""
    limit = np.maximum(arrived, _LEAST + lateness) - lateness
    late: npt.NDArray[np.bool_] = times.fill_null(_LEAST).to_numpy() < limit
    late |= times.is_null().to_numpy(zero_copy_only=False)
    return late


def _bare(rows: pa.RecordBatch, event_time: str | None) -> pa.RecordBatch:
    """Rows of which only identity, arrival and event time are left."""
    stay = {*PROVENANCE_NAMES, event_time}
    columns = [c if f.name in stay else pa.nulls(rows.num_rows, f.type) for f, c in zip(rows.schema, rows.columns, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)


def _time(micros: pa.Array, kind: pa.DataType) -> pa.Array:
    """Microseconds of UTC as the event-time column's type."""
    return micros.cast(pa.timestamp("us", kind.tz if pa.types.is_timestamp(kind) else None)).cast(kind)
