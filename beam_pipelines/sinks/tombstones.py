"""Tombstones: rows in other partitions that a run over a range has found to be duplicates of rows it read.

    day=2013-12-01   row, version 1          its key comes again, newer, with another event time
    day=2013-12-02   row, version 2     ◀──  a run over this day alone does not write the day before: it leaves a tombstone there

{state}/tombstones/run_id=…/part-….parquet: source, position and event time of the row, and `as_of` of the run. A later run that computes the row's own
partition anew decides again, and the tombstone says nothing any more. Aggregates that counted the row are stale until then.
"""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.arrow.partition import parse_partition
from beam_pipelines.arrow.schema import POSITION, SOURCE, UTC_MICROS
from beam_pipelines.places import join
from beam_pipelines.sinks.parquet import ParquetEncoder
from beam_pipelines.sinks.run import TOMBSTONES, Output, RunInfo
from beam_pipelines.sinks.write import Write, Written, layout_of

_SCHEMA = pa.schema(
    [("source", pa.string()), ("position", pa.int64()), ("event_time", UTC_MICROS), ("as_of", pa.int64()), ("run_id", pa.string())]
)


def tombstones_of(run: RunInfo) -> Output:
    """Where a run's tombstones go."""
    return Output(TOMBSTONES, TOMBSTONES, join(run.state, TOMBSTONES), "parquet", ("run_id",), "runs")


class WriteTombstones(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Stages a tombstone for each of the duplicates (RecordBatches with provenance) whose `time` lies outside the run's range; gives `Written`."""

    def __init__(self, run: RunInfo, time: str) -> None:
        super().__init__()
        self._run, self._time = run, time

    def expand(self, duplicates: beam.PCollection) -> Written:
        output = tombstones_of(self._run)
        layout = layout_of(output, self._run, by=(parse_partition("run_id"),), provenance=False)
        made = duplicates | "Bury" >> beam.ParDo(_Bury(self._run, self._time)).with_output_types(pa.RecordBatch)
        written: Written = made | "Write" >> Write(output, layout=layout, encoder=ParquetEncoder(useful=("position",)))
        return written


class _Bury(beam.DoFn):  # type: ignore[misc]
    def __init__(self, run: RunInfo, time: str) -> None:
        assert run.range is not None
        self._range, self._as_of, self._run_id, self._time = run.range, run.as_of, run.run_id, time

    def process(self, rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        times = rows.column(self._time).cast(UTC_MICROS)
        micros = (
            times.cast(pa.int64()).fill_null(self._range.start).to_numpy()
        )  # a row without an event time is in no partition that a range leaves
        outside = pa.array((micros < self._range.start) | (micros >= self._range.end))
        gone, at = rows.filter(outside), times.filter(outside)
        if not gone.num_rows:
            return
        n = gone.num_rows
        columns = [gone.column(SOURCE).cast(pa.string()), gone.column(POSITION), at, pa.repeat(self._as_of, n), pa.repeat(self._run_id, n)]
        yield pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)
