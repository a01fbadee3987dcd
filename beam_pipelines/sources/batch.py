"""All sources of the batch path: in one PCollection, or one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.formats.archive import Key
from beam_pipelines.formats.reader import Broken
from beam_pipelines.sources.archive import ReadArchive, hour_folders, raw_pieces
from beam_pipelines.sources.files import ReadFiles, ReadRows, file_ranges, read_range
from beam_pipelines.spec.sources import ArchiveSource, BatchSource


def read_batch(pipeline: beam.Pipeline, sources: Sequence[BatchSource], contract: Contract, *, key: Key | None = None) -> ReadRows:
    """Adds what reads `sources` to `pipeline`: `ReadFiles` if there are files, `ReadArchive` if there are archives.

    `key` gives, on the worker, the key of sealed messages. Raises SourceError where a source has nothing to read.
    """
    parts: list[ReadRows] = []
    if not all(isinstance(source, ArchiveSource) for source in sources):
        parts.append(pipeline | ReadFiles(sources, contract))
    if any(isinstance(source, ArchiveSource) for source in sources):
        parts.append(pipeline | ReadArchive(sources, key=key))
    if len(parts) == 1:
        return parts[0]  # a Flatten would have its input stored between two stages
    return ReadRows(
        *(door | f"All{name.title()}" >> beam.Flatten() for name, door in zip(ReadRows._fields, zip(*parts, strict=True), strict=True))
    )


def read_pieces(source: BatchSource, contract: Contract, *, key: Key | None = None) -> Iterator[tuple[str, pa.RecordBatch | Broken]]:
    """The raw batches of one source, or what cannot be read, each with the path of its file; without Beam, for a look at the first."""
    if isinstance(source, ArchiveSource):
        for folder in hour_folders(source):
            yield from raw_pieces(folder, source.format, key)
        return
    for part in file_ranges(source, contract):
        for piece in read_range(part, source, contract):
            yield part.path, piece
