"""Which event times each source has rows of, in whole hours or days: what a later run must read to compute a range anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import GlobalWindow, WindowedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP

from beam_pipelines.arrow.ranges import union
from beam_pipelines.arrow.schema import SOURCE
from beam_pipelines.coders import RecordBatchCoder  # noqa: F401  (registers the element's coder)
from beam_pipelines.commit_elements import SourceSpans


class Spans(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Rows to `SourceSpans` for `Commit`: the units of `unit` microseconds in which the `column` of rows of a source
    lies, and whether some have none; one element per bundle and source. `letters`:
    the batches are dead letters, of which those without a time are of any range."""

    def __init__(self, column: str, unit: int, *, letters: bool = False) -> None:
        super().__init__()
        self._do = _Spans(column, unit, letters)

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        return rows | "Spans" >> beam.ParDo(self._do).with_output_types(Any)


class _Spans(beam.DoFn):  # type: ignore[misc]
    def __init__(self, column: str, unit: int, letters: bool) -> None:
        self._column, self._unit, self._letters = column, unit, letters

    def start_bundle(self) -> None:
        self._units: dict[str, set[int]] = {}
        self._undated: set[str] = set()

    def process(self, batch: pa.RecordBatch) -> None:
        sources = batch.column("source" if self._letters else SOURCE)
        if isinstance(sources, pa.DictionaryArray) and len(sources.dictionary) == 1:
            self._note(str(sources.dictionary[0].as_py()), batch.column(self._column))
            return
        for source in pc.unique(sources).to_pylist():
            self._note(str(source), batch.column(self._column).filter(pc.equal(sources.cast(pa.string()), source)))

    def finish_bundle(self) -> Iterator[Any]:
        for source, units in self._units.items():
            spans = tuple((r.start, r.end) for r in union((u * self._unit, (u + 1) * self._unit) for u in units))
            yield WindowedValue(SourceSpans(source, spans, source in self._undated), MIN_TIMESTAMP, [GlobalWindow()])

    def _note(self, source: str, times: pa.Array) -> None:
        units = self._units.setdefault(source, set())
        if times.null_count:
            if not self._letters:
                self._undated.add(source)
            times = times.drop_null()
        if len(times):
            numbers = times.cast(pa.timestamp("us", times.type.tz)).cast(pa.int64()).to_numpy() // self._unit
            low, high = int(numbers.min()), int(numbers.max())
            units.update((low,) if low == high else np.unique(numbers).tolist())
