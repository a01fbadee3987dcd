"""The transform all file sinks share: rows in; staged files, refused rows and ledger counts out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import apache_beam as beam
import duckdb
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow, WindowedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP

from beam_pipelines import metrics
from beam_pipelines.arrow.counts import rows_by_source, unit_of
from beam_pipelines.arrow.masking import mask_columns
from beam_pipelines.arrow.partition import Partition
from beam_pipelines.arrow.program import row_json
from beam_pipelines.arrow.schema import CONTRACT, KEY_HASH, PROVENANCE_NAMES, RAW, RUN_ID, Failure, Rejected, dead_letters
from beam_pipelines.coders import RecordBatchCoder  # noqa: F401  (registers the element's coder)
from beam_pipelines.commit_elements import Columns, Staged
from beam_pipelines.errors import SpecError
from beam_pipelines.sinks.bigquery_limits import limits
from beam_pipelines.sinks.bigquery_schema import Field
from beam_pipelines.sinks.files import Encoder, Files, Layout, RefusedRows
from beam_pipelines.sinks.ledger import DEAD_AT_SINK
from beam_pipelines.sinks.run import Output, RunInfo, staging_of
from beam_pipelines.spec.sinks import LETTERS
from beam_pipelines.stage_results import arriving, joined

DEAD, COUNTS = "dead", "counts"
FILES = "file"


class Written(NamedTuple):
    """The three doors of a sink. `files` and `counts` are for `Commit`; `dead` are letters for rows the sink refused."""

    files: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection


@dataclass(frozen=True)
class Masking:
    """How sensitive columns are masked, by name. `key` gives the secret for `hmac`; it is called on the worker, never stored in the graph."""

    how: Mapping[str, str]
    key: Callable[[], bytes | None] | None = None

    def secret(self) -> bytes | None:
        return self.key() if self.key is not None else None


class Write(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Stages an output's rows; the base of the file sinks.

    Takes a PCollection of RecordBatches, or a stage's result: then the dead letters and counts of the stages before come with its own, so that
    `counts` is all that `Commit` must know. Files lie in a folder `.staging` until `Commit` moves them.

    Raises SpecError for an unbounded PCollection: it has no end at which to commit.
    """

    def __init__(
        self, output: Output, *, layout: Layout, encoder: Encoder, masking: Masking | None = None, event_time: str | None = None
    ) -> None:
        super().__init__()
        self.output = output
        self.writing = WriteSettings(output, layout, encoder, masking, event_time)

    def expand(self, given: Any) -> Written:
        rows, dead, counts = arriving(given) if isinstance(given, beam.PCollection | tuple) else (None, [], [])
        if not isinstance(rows, beam.PCollection):
            raise SpecError(
                f"{type(self).__name__} '{self.output.name}': got {type(given).__name__}; expected a PCollection of RecordBatches or a stage's result."
            )
        if not rows.is_bounded:
            raise SpecError(
                f"{type(self).__name__} '{self.output.name}': the rows have no end, and files become visible when a run has ended; "
                "expected a bounded PCollection.",
                hint="`beam-pipelines run SPEC --mode stream` writes files of a stream; in a job of your own write ToRows() with a sink of Beam's.",
            )
        done = rows | "Stage" >> beam.ParDo(StageFiles(self.writing)).with_outputs(DEAD, COUNTS, main=FILES)
        done.dead.element_type = pa.RecordBatch
        return Written(done[FILES], joined([*dead, done[DEAD]], "Dead"), joined([*counts, done[COUNTS]], "Counts"))


@dataclass(frozen=True)
class WriteSettings:
    """All a worker needs to write an output."""

    output: Output
    layout: Layout
    encoder: Encoder
    masking: Masking | None
    event_time: str | None


class StageFiles(beam.DoFn):  # type: ignore[misc]
    """Batches to staged files, open across the bundle; emits a file's element when the bundle ends, so a failed bundle emits nothing."""

    def __init__(self, writing: WriteSettings) -> None:
        self._writing = writing
        self._secret: bytes | None = None
        self._fields: tuple[pa.Schema, tuple[Field, ...]] | None = None

    def setup(self) -> None:
        if self._writing.masking is not None:
            self._secret = self._writing.masking.secret()

    def start_bundle(self) -> None:
        self._files = Files(self._writing.layout, self._writing.encoder)

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        if not batch.num_rows:
            return
        name = self._writing.output.name
        taken, back = self._takes(self._masked(batch))
        for refused in [*back, *self._files.write(taken)]:
            yield beam.pvalue.TaggedOutput(DEAD, self._letters(refused))
            first = unit_of(refused.rows)
            for source, rows in rows_by_source(refused.rows).items():
                yield beam.pvalue.TaggedOutput(COUNTS, (f"{name}:{first}", source, "dead", DEAD_AT_SINK + name, rows))

    def finish_bundle(self) -> Iterator[Any]:
        name, columns = self._writing.output.name, self._files.columns
        for closed in self._files.close():
            metrics.count("rows_written", closed.rows)
            yield _global(Staged(name, closed.partition, closed.path, closed.rows, closed.bytes))
            for source, rows in closed.sources.items():
                yield beam.pvalue.TaggedOutput(COUNTS, _global((closed.path, source, "written", name, rows)))
        if columns is not None:
            yield _global(Columns(name, sql_schema(columns)))

    def _masked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        masking = self._writing.masking
        return batch if masking is None else mask_columns(batch, masking.how, key=self._secret)

    def _takes(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[RefusedRows]]:
        """The rows that the output's table takes, and those that it would refuse, by reason. A dead letter is never refused: it has no other door."""
        table = self._writing.output.table
        if table is None or self._writing.output.of == LETTERS:
            return batch, []
        own = batch.select([n for n in batch.schema.names if n not in self._writing.layout.drop])
        if self._fields is None or self._fields[0] != own.schema:
            self._fields = (own.schema, table.fields(sql_schema(own.schema)))
        wrong = limits(own, self._fields[1])
        if not wrong:
            return batch, []
        back = [
            RefusedRows(batch.take([row for row, why in wrong.items() if why == reason]), f"{table.name}: {reason}")
            for reason in dict.fromkeys(wrong.values())
        ]
        return batch.take(pa.array(np.setdiff1d(np.arange(batch.num_rows), list(wrong)))), back

    def _letters(self, refused: RefusedRows) -> pa.RecordBatch:
        """Letters whose raw bytes are the row as JSON: the record itself was dropped after validation."""
        return refused_letters(self._writing.output.name, refused.rows, [refused.message] * refused.rows.num_rows, self._writing.event_time)


def refused_letters(output: str, rows: pa.RecordBatch, messages: Sequence[str], event_time: str | None) -> pa.RecordBatch:
    """Letters of rows that the sink `output` refused, each with its message; their raw bytes are the row as JSON."""
    verdicts = [Rejected("write", "SINK", (Failure(output, "", message),)) for message in messages]
    times = rows.column(event_time).cast(pa.timestamp("us", "UTC")) if event_time in rows.schema.names else None
    plain = rows.select([n for n in rows.schema.names if n != RAW])
    return dead_letters(plain.append_column(RAW, row_json(plain)), verdicts, event_time=times, raw_format="row")


def layout_of(output: Output, run: RunInfo, *, by: Sequence[Partition] = (), provenance: bool = True, **bounds: Any) -> Layout:
    """Where this run stages the output's files, and which columns they have besides the rows' own."""
    constants = ((RUN_ID, run.run_id), (CONTRACT, run.contract)) if provenance else ()
    drop = frozenset({RAW, KEY_HASH, RUN_ID, CONTRACT} | (set() if provenance else PROVENANCE_NAMES))
    return Layout(output.name, staging_of(output, run), output.ending, tuple(by), constants=constants, drop=drop, **bounds)


def sql_schema(schema: pa.Schema) -> tuple[tuple[str, str], ...]:
    """Names and DuckDB types of the columns."""
    plain = pa.schema([pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in schema])
    relation = _types().cursor().from_arrow(plain.empty_table())
    return tuple((name, str(kind)) for name, kind in zip(relation.columns, relation.types, strict=True))


@cache
def _types() -> duckdb.DuckDBPyConnection:
    """One database for all such questions: to open one costs 15 ms."""
    return duckdb.connect()


def _global(value: Any) -> WindowedValue:
    return WindowedValue(value, MIN_TIMESTAMP, [GlobalWindow()])
