"""The archive of a stream as a bounded source: the batch path computes from it what the stream computed live, and more exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import apache_beam as beam
import pyarrow as pa

from beam_pipelines import metrics
from beam_pipelines.arrow.counts import Count, rows_by_source
from beam_pipelines.arrow.schema import ATTRIBUTES, RAW_BATCH, of_source
from beam_pipelines.errors import SourceError
from beam_pipelines.formats.archive import Key, hours, read_hour
from beam_pipelines.formats.options import Format
from beam_pipelines.formats.reader import Broken
from beam_pipelines.places import size
from beam_pipelines.sources.files import COUNTS, DEAD, ReadRows, broken_letters
from beam_pipelines.spec.sources import ArchiveSource, BatchSource

_BATCH_ROWS = 20_000


class ReadArchive(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Raw batches of the archives among `sources`: provenance as the stream had it, and `_raw`; what `ReadFiles` gives for files.

    A batch's schema metadata holds the number of its source in `sources`; sources of other kinds are left alone. The hours of an archive are listed
    when the graph is built, and each is read by one worker, every position once. What cannot be read is a dead letter (reason FILE) whose source
    is the file. `key` gives the key of sealed messages, on the worker.

    Raises SourceError where there is no archive, and SpecError on the worker where sealed messages have no key.
    """

    def __init__(self, sources: Sequence[BatchSource], *, key: Key | None = None) -> None:
        super().__init__()
        self.sources = {number: source for number, source in enumerate(sources) if isinstance(source, ArchiveSource)}
        self.key = key

    def expand(self, begin: beam.pvalue.PBegin) -> ReadRows:
        listed = [(number, folder) for number, source in self.sources.items() for folder in hour_folders(source)]
        formats = {number: source.format for number, source in self.sources.items()}
        read_hours = beam.ParDo(_ReadHour(formats, self.key)).with_output_types(pa.RecordBatch, dead=pa.RecordBatch, counts=Count)
        read = (
            begin
            | "Hours" >> beam.Create(listed, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> read_hours.with_outputs(DEAD, COUNTS, main="rows")
        )
        return ReadRows(read.rows, read.dead, read.counts)


class _ReadHour(beam.DoFn):  # type: ignore[misc]
    def __init__(self, formats: dict[int, Format], key: Key | None) -> None:
        self.formats = formats
        self.key = key

    def process(self, element: tuple[int, str]) -> Iterator[Any]:
        number, folder = element
        read: Counter[str] = Counter()
        broken: Counter[str] = Counter()
        files: set[str] = set()
        for path, piece in raw_pieces(folder, self.formats[number], self.key):
            _watched(path, files, piece)
            if isinstance(piece, Broken):
                broken[path] += piece.rows
                yield from (beam.pvalue.TaggedOutput(DEAD, letters) for letters in broken_letters(path, piece))
            else:
                read.update(rows_by_source(piece))
                yield of_source(piece, number)
        unit = f"{number}:{folder}"
        for source, rows in (read + broken).items():
            yield beam.pvalue.TaggedOutput(COUNTS, (unit, source, "read", "", rows))
        for path, letters in broken.items():
            yield beam.pvalue.TaggedOutput(COUNTS, (unit, path, "dead", "read:FILE", letters))


def _watched(path: str, files: set[str], piece: pa.RecordBatch | Broken) -> None:
    """Counts for whoever watches the run."""
    metrics.count("rows_read", piece.rows if isinstance(piece, Broken) else piece.num_rows)
    if path not in files:
        files.add(path)
        metrics.count("files_read")
        with suppress(OSError):  # merged and deleted by now
            metrics.count("bytes_read", size([path]))


def raw_pieces(folder: str, fmt: Format, key: Key | None = None) -> Iterator[tuple[str, pa.RecordBatch | Broken]]:
    """The raw batches of an hour's folder, or what cannot be read, each with the path of its file."""
    columns = [*RAW_BATCH.names, *([ATTRIBUTES] if fmt.type == "avro" else [])]
    return read_hour(folder, key=key, columns=columns, batch_rows=_BATCH_ROWS)


def hour_folders(source: ArchiveSource) -> list[str]:
    """The folders of all hours in an archive, in order. Raises SourceError where there is none."""
    found = [hour.folder for hour in hours(source.archive)]
    if not found:
        raise SourceError(
            f"sources: {source.archive}: is no archive of a stream; expected folders arrival_hour=….",
            hint="Name the folder in which the stream archives.",
        )
    return found
