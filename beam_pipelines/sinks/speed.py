"""The speed layer: what a stream stores, file by file, as its bundles end. Every file is complete and in place before anybody hears of it.

    {path}.speed/{partition}/000001-….parquet   rows, panes or dead letters, beside the sink's own folder, which belongs to the batch
    {path}.speed/.columns.json                  types of the partition columns, which stand in names of folders only
    {state}/stream/doors/000001-….parquet       rows that left otherwise: (source, position, door, arrival time)
    {state}/stream/doors/none.parquet           none: SQL that is kept before the first of them reads this folder, and sees it

A bundle that is repeated stores its rows again under other names. So the files hold every row at least once, and a reader takes each row once
(`speed_views`): one per (`_source`, `_position`), without those that `doors` says are duplicates; the newest pane per group and window.
Small files are merged meanwhile (`speed_compaction`).
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow, WindowedValue

from beam_pipelines import metrics
from beam_pipelines.arrow.doors import DUPLICATE, doors_of
from beam_pipelines.arrow.schema import CHANGE, CONTRACT, DOORS, PROVENANCE_NAMES, RUN_ID, STORED_AT, UTC_MICROS
from beam_pipelines.formats.named_files import new_name
from beam_pipelines.places import create_new, exists, join, parent, publish
from beam_pipelines.sinks.dead_letters import WriteDeadLetters
from beam_pipelines.sinks.epochs import doors_folder
from beam_pipelines.sinks.files import Closed, Layout
from beam_pipelines.sinks.outputs import write_columns
from beam_pipelines.sinks.parquet import ParquetEncoder
from beam_pipelines.sinks.run import Output, RunInfo
from beam_pipelines.sinks.write import DEAD, FILES, StageFiles, Write, WriteSettings, sql_schema
from beam_pipelines.spec.sinks import LETTERS, ROWS

DOOR = "doors"
_STAMPED = frozenset({ROWS, LETTERS, DOOR})


class Stored(NamedTuple):
    """`files` that are in place, for `Progress`; `dead` letters for rows that could not be written; `doors` of rows that are duplicates."""

    files: beam.PCollection
    dead: beam.PCollection
    doors: beam.PCollection


class WriteSpeed(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Stores what a batch sink would stage, as Parquet in the speed layer. `write` is that batch sink; its format does not matter here."""

    def __init__(self, write: Write, run: RunInfo) -> None:
        super().__init__()
        self.output: Output = write.output
        self.writing = _speeding(write.writing, run)

    def expand(self, rows: beam.PCollection) -> Stored:
        store = beam.ParDo(StoreFiles(self.writing)).with_output_types(Any, dead=pa.RecordBatch, doors=pa.RecordBatch)
        done = rows | "Store" >> store.with_outputs(DEAD, DOOR, main=FILES)
        return Stored(done[FILES], done[DEAD], done[DOOR])


class WriteSpeedLetters(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Completes, masks and stores dead letters in the speed layer, as `letters` would stage them for a batch."""

    def __init__(self, letters: WriteDeadLetters, run: RunInfo) -> None:
        super().__init__()
        self._complete = letters.complete
        self._write = WriteSpeed(letters.write, run)
        self.output, self.writing = letters.output, self._write.writing

    def expand(self, letters: beam.PCollection) -> Stored:
        complete = letters | "Complete" >> beam.ParDo(self._complete).with_output_types(pa.RecordBatch)
        stored: Stored = complete | "Write" >> self._write
        return stored


class WriteDoors(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Stores batches of DOORS: rows that left a stream as duplicates or filtered. Gives what was stored, for `Progress`."""

    def __init__(self, run: RunInfo) -> None:
        super().__init__()
        folder = doors_folder(run.state)
        output = Output(DOOR, DOOR, folder)
        self.writing = WriteSettings(output, Layout(DOOR, folder, _ending(run)), ParquetEncoder(useful=("position",)), None, None)

    def expand(self, doors: beam.PCollection) -> beam.PCollection:
        done = doors | "Store" >> beam.ParDo(StoreFiles(self.writing)).with_outputs(DEAD, DOOR, main=FILES)
        return done[FILES]


def write_no_doors(state: str) -> None:
    """A file of doors without a row, once. It is never merged, and never deleted."""
    path = join(doors_folder(state), "none.parquet")
    if not exists(path):
        out = io.BytesIO()
        pq.write_table(DOORS.append(pa.field(STORED_AT, UTC_MICROS)).empty_table(), out)
        create_new(path, out.getvalue())


def _speeding(writing: WriteSettings, run: RunInfo) -> WriteSettings:
    encoder = writing.encoder if isinstance(writing.encoder, ParquetEncoder) else ParquetEncoder()
    drop = writing.layout.drop - PROVENANCE_NAMES | {CHANGE}  # a reader tells rows apart by their provenance
    constants = ((RUN_ID, run.run_id), (CONTRACT, run.contract)) if writing.output.of == ROWS else writing.layout.constants
    layout = replace(writing.layout, folder=writing.output.speed, ending=_ending(run), drop=drop, constants=constants)
    output = replace(writing.output, table=None)  # what that refuses was taken out where it is appended
    return replace(writing, output=output, layout=layout, encoder=encoder)


def _ending(run: RunInfo) -> str:
    """Of files in work: it says whose they are, so that a later start may delete what a dead process left."""
    return f".{run.epoch:06d}.parquet"


class StoreFiles(StageFiles):
    """Batches to files that are in place when the bundle ends; rows of change -1 to doors."""

    def start_bundle(self) -> None:
        super().start_bundle()
        self._earliest: Any = None

    def setup(self) -> None:
        super().setup()
        self._columns: Any = None

    def process(self, batch: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        self._earliest = timestamp if self._earliest is None else min(self._earliest, timestamp)
        stay = batch
        if CHANGE in batch.schema.names:
            gone = pc.less(batch.column(CHANGE), 0)
            if pc.any(gone).as_py():
                stay, left = batch.filter(pc.invert(gone)), batch.filter(gone)
                yield TaggedOutput(DOOR, doors_of(left, DUPLICATE))
        for output in super().process(_stamped(stay) if self._writing.output.of in _STAMPED else stay):
            if output.tag == DEAD:  # counts belong to a batch's ledger; a stream's is taken from what is stored
                yield output

    def finish_bundle(self) -> Iterator[Any]:
        layout, columns = self._writing.layout, self._files.columns
        if layout.by and columns is not None and columns != self._columns:
            write_columns(layout.folder, {n: kind for n, kind in sql_schema(columns) if n in {p.name for p in layout.by}})
            self._columns = columns
        for closed in self._files.close():
            path = put_in_place(closed)
            metrics.count("rows_written" if self._writing.output.of == ROWS else f"{self._writing.output.of}_written", closed.rows)
            yield WindowedValue(path, self._earliest, [GlobalWindow()])


def _stamped(batch: pa.RecordBatch) -> pa.RecordBatch:
    """With the moment: what a batch run had read by then is not newer than what it committed."""
    now = pa.scalar(time.time_ns() // 1000, pa.int64()).cast(UTC_MICROS)
    return batch.append_column(STORED_AT, pa.repeat(now, batch.num_rows))


def put_in_place(closed: Closed) -> str:
    """Makes a closed file visible under a name of its own; on disk before it is. Gives its path."""
    epoch = int(closed.path.rsplit(".", 3)[1])  # ….000001.parquet.inprogress
    path = join(parent(closed.path), new_name(epoch))
    publish(closed.path, path)
    return path
