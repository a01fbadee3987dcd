"""`DropRedelivered`: each message of a stream once, where no rule for duplicates does it already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines import metrics
from beam_pipelines.arrow.copies import Identities, identity_words
from beam_pipelines.arrow.duplicates import TIME
from beam_pipelines.arrow.held import CELLS
from beam_pipelines.arrow.schema import CHANGE, KEY_HASH, POSITION, SOURCE
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.stage_results import arriving
from beam_pipelines.transforms.deduplicate_stream import Waiting, arrivals, in_global_window, stamped
from beam_pipelines.transforms.keyed_state import checked_shards, keyed_batches
from beam_pipelines.transforms.sliced_state import BUCKETS, Remember, by_bucket, identified

HOUR = 3_600_000_000
"""As long as a lease lasts at most: so much later a message may be delivered again."""
_TIME = "_arrival_micros"


class DropRedelivered(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """The rows of a stream, each row_id (`_source`, `_position`) once, however often its message is delivered.

    Takes a PCollection of RecordBatch, or the result of the stage before, and gives the same back with other rows; of a bounded input, which nobody
    delivers twice, just that. A row_id is remembered until the watermark is `horizon` (microseconds) behind its arrival time; a message that is
    delivered again later passes, and views take it once. No `_change` column: nothing is taken back. Memory: 32 bytes a row, in `shards` keys of state,
    which are how many workers can share it.

        validated | DropRedelivered(horizon=parse_duration("6h"))
    """

    def __init__(self, *, horizon: int = HOUR, shards: int = BUCKETS) -> None:
        super().__init__()
        self._shards = checked_shards("DropRedelivered", shards)
        if horizon <= 0:
            raise SpecError(f"DropRedelivered: horizon is {horizon}; expected more than 0 microseconds.")
        self._horizon = horizon

    def expand(self, stage: Any) -> Any:
        rows, _, _ = arriving(stage)
        if rows.is_bounded:
            return stage
        first = (
            rows
            | "Identify" >> beam.ParDo(_Identify(self._shards)).with_output_types(keyed_batches())
            | "Judge" >> beam.ParDo(Remember(_ByIdentity(self._horizon))).with_output_types(pa.RecordBatch)
        )
        if isinstance(stage, beam.PCollection):
            return first
        return stage._replace(**{stage._fields[0]: first}) if hasattr(stage, "_replace") else (first, *stage[1:])


class _Identify(beam.DoFn):  # type: ignore[misc]
    """Batches -> (bucket of the position, rows with their arrival in microseconds)."""

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def start_bundle(self) -> None:
        self._waiting = Waiting()

    def process(self, batch: pa.RecordBatch, timestamp: Timestamp = beam.DoFn.TimestampParam) -> Iterator[Any]:
        for ready, since in self._waiting.add(batch, timestamp.micros):
            yield from stamped(_keyed(ready, since, self._shards), since)

    def finish_bundle(self) -> Iterator[Any]:
        for ready, since in self._waiting.rest():
            yield from in_global_window(_keyed(ready, since, self._shards), since)


def _keyed(rows: pa.RecordBatch, since: int, shards: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    if CHANGE in rows.schema.names:
        raise RunError(
            f"DropRedelivered: rows have {CHANGE}: those that take others back would be dropped.", hint="Put it before Deduplicate."
        )
    rows = rows.drop_columns([KEY_HASH]) if KEY_HASH in rows.schema.names else rows
    identified(rows, (SOURCE, POSITION))
    words = identity_words(rows.column(POSITION).to_numpy())
    timed = rows.append_column(_TIME, pa.array(arrivals(rows, since)))
    yield from by_bucket(timed, (words % shards).astype("u1"))


@dataclass(frozen=True)
class _ByIdentity:
    """Lets a row pass whose identity came for the first time."""

    horizon: int

    def load(self, cells: Any) -> Identities:
        return Identities.load(cells, slice_micros=max(1, -(-self.horizon // (CELLS - 2))))

    def judge(self, held: Identities, rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        known = {SOURCE: rows.column(SOURCE), POSITION: rows.column(POSITION), TIME: rows.column(_TIME)}
        fresh = held.add(pa.record_batch(known))
        rows = rows.drop_columns([_TIME])
        metrics.count("rows_redelivered", len(fresh) - int(fresh.sum()))
        if fresh.any():
            yield rows if fresh.all() else rows.filter(pa.array(fresh))
