"""What all row stages share: running a row program over a PCollection of batches, and chaining results with their rejects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import WindowedValue
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines import metrics
from beam_pipelines.arrow.concat import concat
from beam_pipelines.arrow.counts import Count, rows_by_source, unit_of
from beam_pipelines.arrow.doors import filtered_doors
from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.program import Split
from beam_pipelines.coders import RecordBatchCoder  # noqa: F401  (registers the element's coder)
from beam_pipelines.stage_results import arriving, joined

DEAD, COUNTS, DOORS = "dead", "counts", "doors"
WARNED = "warned:"
"""Prefix of the counters of checks that only count, in a stream."""
TARGET_ROWS = 20_000  # a prepared SELECT and a bundle have fixed costs: smaller batches are joined up to this, inside the bundle
TARGET_BYTES = 16 << 20
"""Rows are joined up to this, too: wide ones would not fit the worker's memory, nor one column of bytes (2 GiB)."""


class RowProgram(Protocol):
    """What a stage runs on each batch: a `Program`, or what makes one for the columns it meets. Picklable."""

    def __call__(self, batch: pa.RecordBatch, engine: Engine | None = None) -> Split: ...


class Outputs(NamedTuple):
    """The three doors of a stage."""

    rows: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection


def run_program(stage_input: Any, program: RowProgram) -> Outputs:
    """Applies `program` to a PCollection of batches, or to the result of the stage before, whose rejects then go on."""
    rows, dead, counts = arriving(stage_input)
    run = beam.ParDo(RunProgram(program)).with_output_types(pa.RecordBatch, dead=pa.RecordBatch, counts=Count)
    done = rows | "Run" >> run.with_outputs(DEAD, COUNTS, main="rows")
    return Outputs(done.rows, joined([*dead, done.dead], "Dead"), joined([*counts, done.counts], "Counts"))


class EndlessOutputs(NamedTuple):
    """The doors of a stage of a stream: `doors` lists the rows that were filtered."""

    rows: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection
    doors: beam.PCollection


def run_program_endlessly(rows: beam.PCollection, program: RowProgram) -> EndlessOutputs:
    """`run_program` over an unbounded PCollection, that lists the filtered rows one by one."""
    run = beam.ParDo(RunProgram(program, doors=True))
    run = run.with_output_types(pa.RecordBatch, dead=pa.RecordBatch, counts=Count, doors=pa.RecordBatch)
    done = rows | "Run" >> run.with_outputs(DEAD, COUNTS, DOORS, main="rows")
    return EndlessOutputs(done.rows, done.dead, done.counts, done.doors)


class RunProgram(beam.DoFn):  # type: ignore[misc]  # Beam ships no types
    """A row program over batches; small batches of one window and schema are joined first. With `doors`, filtered rows are listed."""

    def __init__(self, program: RowProgram, *, doors: bool = False) -> None:
        self.program = program
        self.doors = doors
        self._engine: Engine | None = None
        self._waiting: dict[Any, _Waiting] = {}

    def setup(self) -> None:
        self._engine = Engine()

    def start_bundle(self) -> None:
        self._waiting = {}

    def process(
        self, batch: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        size = batch.nbytes  # asked once: it looks at every column's buffers
        if batch.num_rows >= TARGET_ROWS or size >= TARGET_BYTES:
            yield from self._run(batch)
        elif batch.num_rows:
            waiting = self._waiting.setdefault(
                (window, batch.schema, batch.schema.metadata and tuple(batch.schema.metadata.items())), _Waiting(window)
            )
            waiting.add(batch, timestamp, size)
            if waiting.rows >= TARGET_ROWS or waiting.bytes >= TARGET_BYTES:
                yield from self._run_joined(waiting)

    def finish_bundle(self) -> Iterator[Any]:
        for waiting in self._waiting.values():
            if waiting.rows:
                yield from self._run_joined(waiting)
        self._waiting = {}

    def _run_joined(self, waiting: _Waiting) -> Iterator[Any]:
        """Outputs carry the earliest timestamp of what was joined: the watermark must not pass rows that are on their way."""
        stamp = waiting.timestamp
        yield from _stamped(self._run(waiting.take()), stamp, waiting.window)

    def _run(self, batch: pa.RecordBatch) -> Iterator[Any]:
        split = self.program(batch, self._engine)
        if split.rows.num_rows:
            yield split.rows
        if split.dead.num_rows:
            metrics.count("rows_dead", split.dead.num_rows)
            yield beam.pvalue.TaggedOutput(DEAD, split.dead)
        if self.doors:
            yield from _endless_counts(batch, split)
        for entry in counts_of(batch, split):
            yield beam.pvalue.TaggedOutput(COUNTS, entry)


def _endless_counts(batch: pa.RecordBatch, split: Split) -> Iterator[Any]:
    """What a stream tells of a batch: filtered rows one by one; warnings as counters of this process."""
    if split.filtered:
        metrics.count("rows_filtered", split.filtered)
        yield beam.pvalue.TaggedOutput(DOORS, filtered_doors(batch, split.rows, split.dead))
    for name, hits in split.warned.items():
        metrics.count(f"{WARNED}{name}", hits)


class _Waiting:
    """Batches of one window and schema that wait for company; their joint timestamp is the earliest."""

    def __init__(self, window: Any) -> None:
        self.window = window
        self.batches: list[pa.RecordBatch] = []
        self.rows = 0
        self.bytes = 0
        self.timestamp: Timestamp | None = None

    def add(self, batch: pa.RecordBatch, timestamp: Timestamp, size: int) -> None:
        self.batches.append(batch)
        self.rows += batch.num_rows
        self.bytes += size
        self.timestamp = timestamp if self.timestamp is None else min(self.timestamp, timestamp)

    def take(self) -> pa.RecordBatch:
        batch = concat(self.batches)
        self.batches, self.rows, self.bytes, self.timestamp = [], 0, 0, None
        return batch


def _stamped(outputs: Iterable[Any], timestamp: Any, window: Any) -> Iterator[Any]:
    for output in outputs:
        if isinstance(output, beam.pvalue.TaggedOutput):
            yield beam.pvalue.TaggedOutput(output.tag, WindowedValue(output.value, timestamp, [window]))
        else:
            yield WindowedValue(output, timestamp, [window])


def counts_of(batch: pa.RecordBatch, split: Split) -> list[Count]:
    """Ledger counts of what a program did to `batch`: dead by stage and reason, filtered, warnings; each per source."""
    if not (split.dead.num_rows or split.filtered or any(split.warned.values())):
        return []
    unit = unit_of(batch)
    letters = pa.Table.from_batches([split.dead])
    groups = letters.group_by(["source", "stage", "reason"]).aggregate([([], "count_all")]).to_pylist()
    dead = {(e["source"] or "", f"{e['stage']}:{e['reason']}"): e["count_all"] for e in groups}
    before, after = rows_by_source(batch), rows_by_source(split.rows)
    counts: list[Count] = [(unit, source, "dead", detail, rows) for (source, detail), rows in dead.items()]
    counts += [(unit, e["source"] or "", "failed", e["name"], e["row_count_distinct"]) for e in failed(letters)]
    for source, rows in before.items():
        lost = rows - after.get(source, 0) - sum(n for (s, _), n in dead.items() if s == source)
        counts += [(unit, source, "filtered", "", lost)] if lost else []
    first = next(iter(before), "")
    counts += [(unit, first, "warn", name, hits) for name, hits in split.warned.items() if hits]
    return counts


def failed(letters: pa.Table) -> list[dict[str, Any]]:
    """How many letters of each source name each check or column."""
    failures = letters["failures"].combine_chunks()
    rows = pc.list_parent_indices(failures)
    table = pa.table({"source": letters["source"].take(rows), "name": failures.flatten().field("name"), "row": rows})
    groups: list[dict[str, Any]] = table.group_by(["source", "name"]).aggregate([("row", "count_distinct")]).to_pylist()
    return groups
