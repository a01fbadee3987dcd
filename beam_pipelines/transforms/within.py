"""A run over a range of event time: what lies outside leaves by a door of its own.

rows before duplicates are sought     those too far away to matter                     outside
rows to sinks, panes, dead letters    those that only helped to get the range right    beside, of a letter its stage and reason
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa

from beam_pipelines.arrow.counts import Count, rows_by_source, unit_of
from beam_pipelines.arrow.ranges import Range
from beam_pipelines.coders import RecordBatchCoder  # noqa: F401  (registers the element's coder)
from beam_pipelines.transforms.stage import COUNTS, failed

OUTSIDE, BESIDE, UNWRITTEN = "outside", "beside", "unwritten"


class Inside(NamedTuple):
    """`rows` whose time lies in the range; `counts` of the others."""

    rows: beam.PCollection
    counts: beam.PCollection


class Within(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Rows whose `column` (a timestamp) lies in `where`, half-open, and with `undated` those without one. The others are counted as `outcome`."""

    def __init__(self, where: Range, column: str, outcome: str, *, undated: bool = False) -> None:
        super().__init__()
        self._drop = _Drop(where, column, outcome, undated)

    def expand(self, rows: beam.PCollection) -> Inside:
        return _inside(rows, self._drop)


class LettersWithin(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Dead letters of one stage whose event time lies in the range, or is not known. The others are counted as `unwritten`, with stage and reason,
    and the `aggregate` they are of."""

    def __init__(self, where: Range, aggregate: str = "") -> None:
        super().__init__()
        self._drop = _DropLetters(where, aggregate)

    def expand(self, letters: beam.PCollection) -> Inside:
        return _inside(letters, self._drop)


def _inside(batches: beam.PCollection, drop: beam.DoFn) -> Inside:
    done = batches | "Drop" >> beam.ParDo(drop).with_output_types(pa.RecordBatch, counts=Count).with_outputs(COUNTS, main="rows")
    return Inside(done.rows, done[COUNTS])


class _Drop(beam.DoFn):  # type: ignore[misc]
    def __init__(self, where: Range, column: str, outcome: str, undated: bool) -> None:
        self._where, self._column, self._outcome, self._undated = where, column, outcome, undated

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        inside = lies_in(batch.column(self._column), self._where)
        if self._undated:
            inside |= batch.column(self._column).is_null().to_numpy(zero_copy_only=False)
        if inside.all():
            yield batch
            return
        gone = batch.filter(pa.array(~inside))
        for source, rows in rows_by_source(gone).items():
            yield beam.pvalue.TaggedOutput(COUNTS, (f"{self._outcome}:{unit_of(gone)}", source, self._outcome, "", rows))
        if inside.any():
            yield batch.filter(pa.array(inside)).replace_schema_metadata(batch.schema.metadata)


class _DropLetters(beam.DoFn):  # type: ignore[misc]
    def __init__(self, where: Range, aggregate: str) -> None:
        self._where, self._of = where, f"@{aggregate}" if aggregate else ""

    def process(self, letters: pa.RecordBatch) -> Iterator[Any]:
        times = letters.column("event_time")
        inside = lies_in(times, self._where) | times.is_null().to_numpy(zero_copy_only=False)
        if not inside.all():
            gone = letters.filter(pa.array(~inside))
            unit = f"{UNWRITTEN}:{gone['source'][0]}@{gone['position'][0]}+{gone.num_rows}"
            for of in pa.Table.from_batches([gone]).group_by(["source", "stage", "reason"]).aggregate([([], "count_all")]).to_pylist():
                detail = f"{of['stage']}:{of['reason']}{self._of}"
                yield beam.pvalue.TaggedOutput(COUNTS, (unit, of["source"] or "", UNWRITTEN, detail, of["count_all"]))
            for of in failed(pa.Table.from_batches([gone])) if not self._of else ():  # whoever counted them did not know where they lie
                yield beam.pvalue.TaggedOutput(COUNTS, (unit, of["source"] or "", "failed", of["name"], -of["row_count_distinct"]))
        if inside.any():
            yield letters.filter(pa.array(inside))


def lies_in(times: pa.Array, where: Range) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of the timestamps lie in [start, end); NULL does not."""
    known = times.is_valid().to_numpy(zero_copy_only=False)
    micros = times.cast(pa.timestamp("us", times.type.tz)).cast(pa.int64()).fill_null(0).to_numpy()
    found: np.ndarray[Any, np.dtype[np.bool_]] = known & (micros >= where.start) & (micros < where.end)
    return found
