"""All sources of the batch path: in one PCollection, or one after the other."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Sequence

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.formats.archive import Key
from beam_pipelines.formats.reader import Broken
from beam_pipelines.sources.archive import ReadArchive, file_pieces, hour_folders, raw_pieces, written_files
from beam_pipelines.sources.bigquery import ReadBigQuery, first_pieces
from beam_pipelines.sources.bigquery_range import Near
from beam_pipelines.sources.database import ReadDatabase
from beam_pipelines.sources.database import first_pieces as first_database_pieces
from beam_pipelines.sources.files import ReadFiles, ReadRows, file_ranges, read_range
from beam_pipelines.spec.sources import ArchiveSource, BatchSource, BigQuerySource, DatabaseSource, FileSource


def read_batch(
    pipeline: beam.Pipeline, sources: Sequence[BatchSource], contract: Contract, *, key: Key | None = None, since: int | None = None,
    only: Collection[str] | None = None, run_id: str = "", near: Near | None = None,
) -> ReadRows:  # fmt: skip
    """Adds what reads `sources` to `pipeline`: `ReadFiles` if there are files, `ReadArchive` if there are archives, `ReadBigQuery` and `ReadDatabase` if there are tables.

    `key` gives, on the worker, the key of sealed messages. Of archives, hours before the arrival `since` (microseconds) are not read, of files all but
    `only`, where it is given; of tables (BigQuery's by the run `run_id`), only rows that are `near`, where that is known. Raises SourceError where a source has nothing to read.
    """
    parts: list[ReadRows] = []
    if any(isinstance(source, FileSource) for source in sources):
        parts.append(pipeline | ReadFiles(sources, contract, only=only))
    if any(isinstance(source, ArchiveSource) for source in sources):
        parts.append(pipeline | ReadArchive(sources, key=key, since=since))
    if any(isinstance(source, BigQuerySource) for source in sources):
        parts.append(pipeline | ReadBigQuery(sources, contract, run_id=run_id, near=near))
    if any(isinstance(source, DatabaseSource) for source in sources):
        parts.append(pipeline | ReadDatabase(sources, contract, near=near))
    if len(parts) == 1:
        return parts[0]  # a Flatten would have its input stored between two stages
    return ReadRows(
        *(door | f"All{name.title()}" >> beam.Flatten() for name, door in zip(ReadRows._fields, zip(*parts, strict=True), strict=True))
    )


def read_pieces(source: BatchSource, contract: Contract, *, key: Key | None = None) -> Iterator[tuple[str, pa.RecordBatch | Broken]]:
    """The raw batches of one source, or what cannot be read, each with the path of its file; without Beam, for a look at the first."""
    if isinstance(source, ArchiveSource):
        files = written_files(source)
        for path in files:
            yield from file_pieces(path, source)
        for folder in [] if files else hour_folders(source):
            yield from raw_pieces(folder, source.format, key)
        return
    if isinstance(source, BigQuerySource):
        yield from first_pieces(source, contract, job=f"look-{uuid.uuid4().hex}")
        return
    if isinstance(source, DatabaseSource):
        yield from first_database_pieces(source, contract)
        return
    for part in file_ranges(source, contract):
        for piece in read_range(part, source, contract, at_once=True):
            yield part.path, piece
