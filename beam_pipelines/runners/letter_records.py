"""The records of dead letters where a batch would read them: in the files of the batch sources, in the archive of a stream.

A record is taken from there, not from its letter: so it is seen with its format's header and attributes, bytes that a letter keeps sealed or not at all are no
matter, and it is known whether a run would find it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.layouts import rows_of
from beam_pipelines.arrow.schema import MESSAGES, POSITION, SOURCE
from beam_pipelines.edges import archives_of, raw_key
from beam_pipelines.errors import SourceError
from beam_pipelines.formats.archive import Key, hours, read_hour
from beam_pipelines.formats.archive_files import HOUR_MICROS
from beam_pipelines.formats.reader import Broken
from beam_pipelines.sources.archive import raw_pieces
from beam_pipelines.sources.bigquery import rows_at
from beam_pipelines.sources.bigquery_session import lasting_name
from beam_pipelines.sources.database import rows_at as database_rows_at
from beam_pipelines.sources.database_opened import lasting_name as database_name
from beam_pipelines.sources.files import FileRange, file_ranges, list_versions, read_range
from beam_pipelines.sources.lookups import lookups_of
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sources import ArchiveSource, BatchSource, BigQuerySource, DatabaseSource, FileSource, TableSource
from beam_pipelines.transforms.prepare import row_program

Input = Literal["batch", "archive"]
INPUTS: tuple[Input, ...] = ("batch", "archive")
Id = tuple[str, int]
"""Source and position of a record."""


class Letter(NamedTuple):
    """A dead letter of a record: its number in the table of letters; times in microseconds, None where they are not known."""

    number: int
    source: str
    position: int
    stage: str
    reason: str
    time: int | None
    arrival: int | None

    @property
    def id(self) -> Id:
        return self.source, self.position


def letters_of(table: pa.Table) -> list[Letter]:
    """The letters (DEAD_LETTERS) that stand for a record; those of panes stand for none."""
    times = [table.column(name).cast(pa.int64()).to_pylist() for name in ("event_time", "arrival_time")]
    columns = [table.column(name).to_pylist() for name in ("source", "position", "stage", "reason")]
    rows = enumerate(zip(*columns, *times, strict=True))
    return [
        Letter(number, *row) for number, row in rows if row[0] is not None and row[1] is not None and not row[0].startswith("aggregate:")
    ]


def records(spec: PipelineSpec, state: str, input_: Input, letters: Iterable[Letter]) -> Iterator[tuple[pa.RecordBatch, Any]]:
    """Raw batches of the records that this input of a batch still has, each with the row program that works on it.

    Raises SpecError where an archive is sealed and the key does not open it.
    """
    wanted: dict[str, list[Letter]] = defaultdict(list)
    for letter in letters:
        wanted[letter.source].append(letter)
    sources = spec.sources.batch if input_ == "batch" else archives_of(spec, state)
    lookups = lookups_of(spec)
    for source in sources:
        program = row_program(spec, source, lookups)
        yield from ((batch, program) for batch in _in(source, spec, wanted))


def _in(source: BatchSource, spec: PipelineSpec, wanted: Mapping[str, list[Letter]]) -> Iterator[pa.RecordBatch]:
    if isinstance(source, BigQuerySource):
        return rows_at(source, spec.contract, [letter.position for letter in wanted.get(lasting_name(source), ())])
    if isinstance(source, DatabaseSource):
        return database_rows_at(source, spec.contract, [letter.position for letter in wanted.get(database_name(source), ())])
    return _in_files(spec, source, wanted) if isinstance(source, FileSource) else _in_archive(source, wanted, raw_key(spec))


def _in_files(spec: PipelineSpec, source: FileSource, wanted: Mapping[str, list[Letter]]) -> Iterator[pa.RecordBatch]:
    try:
        listed = list_versions(source.patterns)
    except SourceError:  # a pattern without a match: no record of it is there
        return
    if not wanted.keys() & listed.keys():
        return
    for part in file_ranges(source, spec.contract):
        positions = _positions(wanted.get(part.path, ()), part)
        if not len(positions):
            continue
        for piece in read_range(part, source, spec.contract):
            if not isinstance(piece, Broken):
                yield from _at(piece, positions)


def _positions(letters: Iterable[Letter], part: FileRange) -> npt.NDArray[np.int64]:
    return np.array([p for _, _, p, *_ in letters if part.end < 0 or part.start <= p < part.end], np.int64)


def _in_archive(source: ArchiveSource, wanted: Mapping[str, list[Letter]], key: Key | None) -> Iterator[pa.RecordBatch]:
    for folder, of_hour in _hours(source.archive, wanted).items():
        for _, piece in raw_pieces(folder, source.format, key):
            if not isinstance(piece, Broken):
                yield from _of_source(piece, of_hour)


def messages(spec: PipelineSpec, state: str, letters: Iterable[Letter]) -> Iterator[pa.RecordBatch]:
    """The messages (MESSAGES) of these letters that the stream's archive still has, opened."""
    wanted: dict[str, list[Letter]] = defaultdict(list)
    for letter in letters:
        wanted[letter.source].append(letter)
    for source in archives_of(spec, state):
        for folder, of_hour in _hours(source.archive, wanted).items():
            for _, piece in read_hour(folder, key=raw_key(spec), columns=MESSAGES.names):
                if not isinstance(piece, Broken):
                    yield from _of_source(piece, of_hour)


def _hours(archive: str, wanted: Mapping[str, list[Letter]]) -> dict[str, dict[str, list[int]]]:
    """By folder of an hour the positions to look for, by source. A letter says when its message arrived."""
    listed: dict[int, list[str]] = defaultdict(list)
    for hour in hours(archive):
        listed[hour.number].append(hour.folder)
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for source, letters in wanted.items():
        for letter in letters:
            for folder in listed.get(letter.arrival // HOUR_MICROS, ()) if letter.arrival is not None else ():
                found[folder][source].append(letter.position)
    return found


def _of_source(piece: pa.RecordBatch, wanted: Mapping[str, list[int]]) -> Iterator[pa.RecordBatch]:
    names = piece.column(SOURCE).cast(pa.string())
    for source, positions in wanted.items():
        if source in names.unique().to_pylist():
            mine = np.asarray(pc.equal(names, source).to_numpy(zero_copy_only=False))
            yield from _at(piece, np.array(positions, np.int64), mine)


def _at(piece: pa.RecordBatch, positions: npt.NDArray[np.int64], among: npt.NDArray[np.bool_] | None = None) -> Iterator[pa.RecordBatch]:
    there = np.isin(piece.column(POSITION).to_numpy(), positions)
    rows = np.flatnonzero(there if among is None else there & among)
    if len(rows):
        yield pa.RecordBatch.from_arrays(rows_of(piece, rows).columns, schema=piece.schema)


def inputs_of(spec: PipelineSpec, letter: Letter) -> list[Input]:
    """The inputs of a batch in which a letter's record may lie: the archive, for a message of a stream; the batch sources."""
    found: list[Input] = ["archive"] if any(letter.source == s.pubsub for s in spec.sources.stream) else []
    of_files = not found and any(isinstance(s, FileSource | TableSource) for s in spec.sources.batch)
    return [*found, "batch"] if of_files or any(isinstance(s, ArchiveSource) for s in spec.sources.batch) else found
