"""Files of one output on one worker: rows buffered by partition, written in groups, closed near a size. No Beam.

    batch ─▶ split by partition ─▶ buffer ─▶ row group ─▶ file ─▶ Closed
                └─ RefusedRows (a value that is no directory name)

Bounds: bytes buffered over all partitions, files open at once (the least recently used is closed), bytes per file. Names are unique to
the attempt, so a retried bundle never meets its first attempt's files.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import pyarrow as pa

from beam_pipelines.arrow.counts import rows_by_source
from beam_pipelines.arrow.partition import Partition
from beam_pipelines.arrow.partitioning import check_partitions, directory, refusal, split
from beam_pipelines.errors import SinkError
from beam_pipelines.places import join, refused
from beam_pipelines.sinks.changes import INPROGRESS

GROUP_ROWS = 122_880  # DuckDB's own row group: its readers parallelise over them
GROUP_BYTES = 32 << 20
BUFFERED_BYTES = 96 << 20
_DIRECTORY_TYPES = {"day": pa.date32(), "hour": pa.string(), "month": pa.string(), "year": pa.int64(), "range": pa.string()}
"""What readers make of a directory's value: `2013-01-01` is a date, `2013-01` and `2013-01-01-05` stay text, as ranges do, of which one may be a word."""


class FileWriter(Protocol):
    """An open file of some format."""

    def write(self, table: pa.Table) -> None: ...
    def tell(self) -> int: ...
    def close(self) -> int:
        """Finishes the file; its bytes."""
        ...


class Encoder(Protocol):
    """A file format; picklable."""

    def open(self, path: str, first: pa.Table) -> FileWriter:
        """A new file for tables with the schema of `first`."""
        ...


@dataclass(frozen=True)
class Layout:
    """Where and how one output's files are staged. `constants` are columns with one value for the
    whole run, `drop` columns that are not written."""

    output: str
    folder: str
    ending: str
    by: tuple[Partition, ...] = ()
    target_file_bytes: int = 128 << 20
    max_open_files: int = 64
    constants: tuple[tuple[str, str], ...] = ()
    drop: frozenset[str] = frozenset()
    group_rows: int = GROUP_ROWS
    group_bytes: int = GROUP_BYTES
    buffered_bytes: int = BUFFERED_BYTES


class Closed(NamedTuple):
    """A finished staged file; `sources` counts its rows by `_source`."""

    partition: str
    path: str
    rows: int
    bytes: int
    sources: dict[str, int]


class RefusedRows(NamedTuple):
    """Rows that cannot be written, and why."""

    rows: pa.RecordBatch
    message: str


@dataclass
class _Part:
    """One partition: what is buffered, and its open file if any; `buffered` and `sources` count the rows of each by source."""

    partition: str
    pieces: list[pa.RecordBatch] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    writer: FileWriter | None = None
    path: str = ""
    file_rows: int = 0
    buffered: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)


class Files:
    """The files one worker writes between opening and `close`. Not thread-safe."""

    def __init__(self, layout: Layout, encoder: Encoder) -> None:
        self._layout, self._encoder = layout, encoder
        self._parts: dict[tuple[str | None, ...], _Part] = {}
        self._open: OrderedDict[int, _Part] = OrderedDict()  # by use, oldest first
        self._buffered = 0
        self._closed: list[Closed] = []
        self._checked: pa.Schema | None = None
        self._columns: pa.Schema | None = None

    @property
    def columns(self) -> pa.Schema | None:
        """The columns a reader finds, once a batch was seen: those in the files and those in the directory names."""
        return self._columns

    def write(self, batch: pa.RecordBatch) -> list[RefusedRows]:
        """Takes the rows of `batch`; those that cannot be written come back."""
        self._look(batch)
        back: list[RefusedRows] = []
        for values, rows in split(batch, self._layout.by):
            part = self._parts.get(values)
            if part is None:
                why = refusal(values, self._layout.by)
                if why:
                    back.append(RefusedRows(rows, why))
                    continue
                part = self._parts[values] = _Part(directory(values, self._layout.by))
            self._add(part, rows)
        while self._buffered > self._layout.buffered_bytes:
            self._flush(max(self._parts.values(), key=lambda p: p.bytes))
        return back

    def close(self) -> list[Closed]:
        """Writes what is buffered and closes all files; every row taken is in one of the files returned."""
        for part in self._parts.values():
            self._flush(part)
            self._finish(part)
        self._parts.clear()
        done, self._closed = self._closed, []
        return done

    def _look(self, batch: pa.RecordBatch) -> None:
        if self._checked is not None and (batch.schema is self._checked or batch.schema.equals(self._checked)):
            return
        check_partitions(self._layout.by, batch.schema)
        for part in self._parts.values():  # a file has one schema
            self._flush(part)
            self._finish(part)
        self._checked = batch.schema
        own = [f for f in batch.schema if f.name not in self._layout.drop]
        constants = [pa.field(name, pa.string()) for name, _ in self._layout.constants if name not in {f.name for f in own}]
        self._columns = pa.schema(
            [*own, *constants, *(pa.field(p.name, _DIRECTORY_TYPES[p.transform]) for p in self._layout.by if p.transform)]
        )

    def _add(self, part: _Part, rows: pa.RecordBatch) -> None:
        _count(part.buffered, rows_by_source(rows))
        rows = self._stripped(rows)
        size = rows.nbytes
        part.pieces.append(rows)
        part.rows += rows.num_rows
        part.bytes += size
        self._buffered += size
        if part.rows >= self._layout.group_rows or part.bytes >= self._layout.group_bytes:
            self._flush(part)

    def _stripped(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        gone = self._layout.drop.union(p.column for p in self._layout.by if not p.transform)
        kept = [n for n in rows.schema.names if n not in gone]
        return rows if len(kept) == rows.num_columns else rows.select(kept)

    def _finished(self, rows: pa.RecordBatch | pa.Table, n: int) -> pa.Table:
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows])
        for name, value in self._layout.constants:
            codes = pa.repeat(pa.scalar(0, pa.int32()), n)
            table = table.append_column(name, pa.DictionaryArray.from_arrays(codes, pa.array([value], pa.string())))
        return table

    def _flush(self, part: _Part) -> None:
        if not part.rows:
            return
        table = pa.Table.from_batches(part.pieces)
        if len(part.pieces) > 1 and any(pa.types.is_dictionary(f.type) for f in table.schema):
            table = table.unify_dictionaries()
        table = self._finished(table, part.rows)
        try:
            self._writer(part, table).write(table)
        except OSError as error:
            raise refused(part.path, error) from error
        except pa.ArrowException as error:
            raise SinkError(
                f"output '{self._layout.output}': rows cannot be written as {self._layout.ending.lstrip('.')}: {error}.",
                hint="Change the column's type or drop it.",
            ) from error
        part.file_rows += part.rows
        self._buffered -= part.bytes
        _count(part.sources, part.buffered)
        part.pieces, part.rows, part.bytes, part.buffered = [], 0, 0, {}
        if part.writer is not None and part.writer.tell() >= self._layout.target_file_bytes:
            self._finish(part)

    def _writer(self, part: _Part, table: pa.Table) -> FileWriter:
        if part.writer is None:
            while len(self._open) >= self._layout.max_open_files:
                self._finish(next(iter(self._open.values())))
            part.path = join(self._layout.folder, part.partition, f"part-{uuid.uuid4().hex}{self._layout.ending}{INPROGRESS}")
            part.writer = self._encoder.open(part.path, table)
            self._open[id(part)] = part
        self._open.move_to_end(id(part))
        return part.writer

    def _finish(self, part: _Part) -> None:
        """Closes the part's file; rows still buffered will go to its next file."""
        if part.writer is None:
            return
        try:
            size = part.writer.close()
        except OSError as error:
            raise refused(part.path, error) from error
        self._closed.append(Closed(part.partition, part.path, part.file_rows, size, part.sources))
        self._open.pop(id(part), None)
        part.writer, part.path, part.file_rows, part.sources = None, "", 0, {}


def _count(into: dict[str, int], more: dict[str, int]) -> None:
    for source, n in more.items():
        into[source] = into.get(source, 0) + n
