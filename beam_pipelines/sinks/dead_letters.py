"""Dead letters: who rejected which record and why, kept by run, fit to be stored.

A run's letters replace those of earlier runs for the sources it read again; letters of other sources stay. Files lie in `run_id=.../`; the
exact view, which leaves out what a later run read again, is `views.select_sql`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.masking import mask_letters, parse_key
from beam_pipelines.arrow.partition import parse_partition
from beam_pipelines.arrow.schema import DEAD_LETTERS
from beam_pipelines.errors import SpecError
from beam_pipelines.places import join
from beam_pipelines.sinks.loads import Table
from beam_pipelines.sinks.parquet import LoadedEncoder, ParquetEncoder
from beam_pipelines.sinks.run import Output, RunInfo
from beam_pipelines.sinks.text import TextEncoder
from beam_pipelines.sinks.write import Write, Written, layout_of
from beam_pipelines.spec.sinks import LETTERS, ParquetSink, TextSink


class WriteDeadLetters(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Completes, masks and stages dead letters; without a `sink` they go to `{state}/dead_letters`: no reject is ever lost.

    Takes a PCollection of RecordBatch in DEAD_LETTERS' schema; gives `Written(files, dead, counts)`, whose `dead` is empty. With sensitive columns
    in the `contract`, raw bytes are sealed under the key that `raw_key` gives (called on the worker), or left out.
    """

    def __init__(
        self, sink: ParquetSink | TextSink | None = None, *, run: RunInfo, contract: Contract, raw_key: Callable[[], str | bytes | None] | None = None,
        text_format: Literal["csv", "jsonl"] = "jsonl", label: str = LETTERS, table: Table | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        sink = sink or ParquetSink(path=join(run.state, LETTERS))
        self.complete = CompleteLetters(run, contract, raw_key)
        self.write = _parquet(sink, run, label, table) if isinstance(sink, ParquetSink) else _text(sink, run, label, text_format)
        self.output: Output = self.write.output

    def expand(self, letters: beam.PCollection) -> Written:
        complete = letters | "Complete" >> beam.ParDo(self.complete).with_output_types(pa.RecordBatch)
        written: Written = complete | "Write" >> self.write
        return written


def _parquet(sink: ParquetSink, run: RunInfo, label: str, table: Table | None) -> Write:
    if sink.partition_by:
        raise SpecError(
            f"sink '{label}': dead letters are partitioned by run_id; got partition_by {list(sink.partition_by)}.",
            hint="Leave partition_by out.",
        )
    by = (parse_partition("run_id"),)
    output = Output(label, LETTERS, sink.path, "parquet", ("run_id",), "runs", table=table)
    how = (sink.compression, sink.compression_level, sink.dictionary, sink.statistics, ("event_time", "arrival_time"))
    layout = layout_of(output, run, by=by, provenance=False, target_file_bytes=sink.target_file_bytes)
    if table is None:
        return Write(output, layout=layout, encoder=ParquetEncoder(*how))
    layout = replace(layout, constants=(("run_id", run.run_id),))  # a table has no folders that could say it
    return Write(output, layout=layout, encoder=LoadedEncoder(*how, takes_all=True))


def _text(sink: TextSink, run: RunInfo, label: str, text_format: Literal["csv", "jsonl"]) -> Write:
    zipped = sink.compression == "gzip" or sink.path.endswith(".gz")
    output = Output(label, LETTERS, sink.path, text_format, gzip=zipped)
    return Write(output, layout=layout_of(output, run, provenance=False), encoder=TextEncoder(output.format, zipped, not output.single))  # type: ignore[arg-type]


class CompleteLetters(beam.DoFn):  # type: ignore[misc]
    """Fills what only the run knows (pipeline, version, contract, run id), then masks."""

    def __init__(self, run: RunInfo, contract: Contract, raw_key: Callable[[], str | bytes | None] | None) -> None:
        self._known = {"pipeline": run.pipeline, "pipeline_version": run.pipeline_version, "contract": run.contract, "run_id": run.run_id}
        self._contract, self._raw_key = contract, raw_key
        self._key: bytes | None = None

    def setup(self) -> None:
        secret = self._raw_key() if self._raw_key is not None and self._contract.sensitive else None
        self._key = parse_key(secret) if secret else None

    def process(self, letters: pa.RecordBatch) -> Iterator[Any]:
        if not letters.num_rows:
            return
        columns = [
            pa.repeat(pa.scalar(self._known[f.name], f.type), letters.num_rows) if f.name in self._known else letters.column(f.name)
            for f in DEAD_LETTERS
        ]
        yield mask_letters(pa.RecordBatch.from_arrays(columns, schema=DEAD_LETTERS), self._contract, raw_key=self._key)
