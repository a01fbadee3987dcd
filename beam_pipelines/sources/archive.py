"""The archive of a stream as a bounded source: the batch path computes from it what the stream computed live, and more exactly.

hours of our own archive                  ─▶ each read by one worker, every position once ──────────▶ raw batches
files that a Cloud Storage subscription   ─▶ each read by one worker ─▶ by position ─▶ each once ─┘
wrote (`formats.pubsub_avro`)                 (Pub/Sub may have delivered a message to two of them)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from beam_pipelines import metrics
from beam_pipelines.arrow.concat import coalesce
from beam_pipelines.arrow.counts import Count, rows_by_source
from beam_pipelines.arrow.schema import ATTRIBUTES, POSITION, RAW_BATCH, of_source
from beam_pipelines.coders import RecordBatchCoder  # noqa: F401  (registers the element's coder)
from beam_pipelines.errors import SourceError
from beam_pipelines.formats import pubsub_avro
from beam_pipelines.formats.archive import Key, Positions, by_source, hours, raw_batch, read_hour
from beam_pipelines.formats.archive_files import HOUR_MICROS
from beam_pipelines.formats.options import Format
from beam_pipelines.formats.reader import Broken
from beam_pipelines.places import size
from beam_pipelines.sources.files import COUNTS, DEAD, ReadRows, broken_letters, matching
from beam_pipelines.sources.pubsub_messages import AHEAD_MICROS, rows_of
from beam_pipelines.spec.sources import ArchiveSource, BatchSource

_BATCH_ROWS = 20_000
_BUCKETS = 16  # of positions: where copies of a message meet


class ReadArchive(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Raw batches of the archives among `sources`: provenance as the stream had it, and `_raw`; what `ReadFiles` gives for files.

    A batch's schema metadata holds the number of its source in `sources`; sources of other kinds are left alone. The hours and files of an archive are listed
    when the graph is built, and each is read by one worker, every position once. What cannot be read is a dead letter (reason FILE) whose source
    is the file. `key` gives the key of sealed messages, on the worker. Hours and files that end before `since` (microseconds of arrival) are left out.

    Raises SourceError where there is no archive, or a Cloud Storage subscription wrote it and no `subscription` is named, and SpecError on the worker where sealed
    messages have no key.
    """

    def __init__(self, sources: Sequence[BatchSource], *, key: Key | None = None, since: int | None = None) -> None:
        super().__init__()
        self.since = since
        self.sources = {number: source for number, source in enumerate(sources) if isinstance(source, ArchiveSource)}
        self.key = key

    def expand(self, begin: beam.pvalue.PBegin) -> ReadRows:
        written = {number: found for number, source in self.sources.items() if (found := written_files(source, self.since))}
        alone = {number: source for number, source in self.sources.items() if number not in written}
        reads = [] if written and not alone else [self._hours(begin, alone)]
        if written:
            # an archive may hold both: the stream ran here before
            hours_too = {number: _hours_since(self.sources[number], self.since) for number in written}
            listed = [(number, path) for number, files in written.items() for path in (*hours_too[number], *files)]
            reads.append(begin | "Written" >> _ReadOnce({n: self.sources[n] for n in written}, listed, self.key))
        if len(reads) == 1:
            return reads[0]
        return ReadRows(
            *(door | f"Both{name.title()}" >> beam.Flatten() for name, door in zip(ReadRows._fields, zip(*reads, strict=True), strict=True))
        )

    def _hours(self, begin: beam.pvalue.PBegin, sources: dict[int, ArchiveSource]) -> ReadRows:
        listed = [(number, folder) for number, source in sources.items() for folder in hour_folders(source, self.since)]
        formats = {number: source.format for number, source in sources.items()}
        read_hours = beam.ParDo(_ReadHour(formats, self.key)).with_output_types(pa.RecordBatch, dead=pa.RecordBatch, counts=Count)
        read = (
            begin
            | "Hours" >> beam.Create(listed, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> read_hours.with_outputs(DEAD, COUNTS, main="rows")
        )
        return ReadRows(read.rows, read.dead, read.counts)


class _ReadOnce(beam.PTransform):  # type: ignore[misc]
    """Files and hours in which a message may lie twice."""

    def __init__(self, sources: dict[int, ArchiveSource], listed: Sequence[tuple[int, str]], key: Key | None) -> None:
        super().__init__()
        self.sources, self.listed, self.key = sources, list(listed), key

    def expand(self, begin: beam.pvalue.PBegin) -> ReadRows:
        read_files = beam.ParDo(_ReadWritten(self.sources, self.key)).with_output_types(
            tuple[int, pa.RecordBatch], dead=pa.RecordBatch, counts=Count
        )
        once = beam.ParDo(_Once()).with_output_types(pa.RecordBatch, counts=Count)
        read = (
            begin
            | "Files" >> beam.Create(self.listed, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> read_files.with_outputs(DEAD, COUNTS, main="rows")
        )
        first = read.rows | "ByPosition" >> beam.GroupByKey() | "Once" >> once.with_outputs(COUNTS, main="rows")
        return ReadRows(first.rows, read.dead, (read.counts, first.counts) | "Counts" >> beam.Flatten())


class _ReadWritten(beam.DoFn):  # type: ignore[misc]
    """A file of a Cloud Storage subscription, or an hour's folder -> (number of the source and bucket of the position, raw batch)."""

    def __init__(self, sources: dict[int, ArchiveSource], key: Key | None) -> None:
        self.sources, self.key = sources, key

    def process(self, element: tuple[int, str]) -> Iterator[Any]:
        number, place = element
        source = self.sources[number]
        pieces = file_pieces(place, source) if place.endswith(pubsub_avro.SUFFIX) else raw_pieces(place, source.format, self.key)
        broken: Counter[str] = Counter()
        files: set[str] = set()
        for path, piece in pieces:
            _watched(path, files, piece)
            if isinstance(piece, Broken):
                broken[path] += piece.rows
                yield from (beam.pvalue.TaggedOutput(DEAD, letters) for letters in broken_letters(path, piece))
            else:
                yield from _by_bucket(piece, number)
        for path, letters in broken.items():
            yield beam.pvalue.TaggedOutput(COUNTS, (f"{number}:{place}", path, "read", "", letters))
            yield beam.pvalue.TaggedOutput(COUNTS, (f"{number}:{place}", path, "dead", "read:FILE", letters))


def _by_bucket(rows: pa.RecordBatch, number: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    buckets = rows.column(POSITION).to_numpy() % _BUCKETS
    for bucket in np.unique(buckets).tolist():
        yield number * _BUCKETS + bucket, rows.filter(pa.array(buckets == bucket))


class _Once(beam.DoFn):  # type: ignore[misc]
    """The batches of a bucket -> each position once. Memory: 8 bytes a position."""

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[Any]:
        bucket, batches = element
        seen: defaultdict[str, Positions] = defaultdict(Positions)
        read: Counter[str] = Counter()
        fresh = (seen[source].fresh(part) for batch in batches for source, part in by_source(batch))
        for rows in coalesce(fresh, target_rows=_BATCH_ROWS):
            read.update(rows_by_source(rows))
            yield of_source(rows, bucket // _BUCKETS)
        for source, count in read.items():
            yield beam.pvalue.TaggedOutput(COUNTS, (f"{bucket // _BUCKETS}:positions {bucket % _BUCKETS}", source, "read", "", count))


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


def file_pieces(path: str, source: ArchiveSource) -> Iterator[tuple[str, pa.RecordBatch | Broken]]:
    """The raw batches of a file that a Cloud Storage subscription wrote, or what of it cannot be read. Rows are those of the subscription that the stream reads."""
    attribute = None if source.arrival is None else source.arrival.attribute
    for piece in pubsub_avro.read_file(path):
        if isinstance(piece, Broken):
            yield path, piece
            continue
        assert source.subscription is not None  # `written_files` refuses others
        published = piece.published.cast(pa.int64()).to_numpy()
        orders = pa.nulls(len(piece.ids), pa.string())  # an attribute here, and no part of a row
        known = rows_of(piece.data, piece.ids, orders, published, piece.attributes, source=source.subscription, attribute=attribute)
        yield path, raw_batch(known.rows, keep_attributes=source.format.type == "avro")


def written_files(source: ArchiveSource, since: int | None = None) -> list[str]:
    """The files in an archive that a Cloud Storage subscription wrote; those that were closed before `since` (microseconds of arrival) left out.

    Raises SourceError where there are some and the source does not say whose they are.
    """
    found = sorted(path for path in matching(source.archive.rstrip("/") + "/") if path.endswith(pubsub_avro.SUFFIX))
    if found and source.subscription is None:
        raise SourceError(
            f"sources: {source.archive}: a Cloud Storage subscription wrote it, and its rows are those of the subscription that the stream reads; got none.",
            hint="Say which: subscription: projects/P/subscriptions/S.",
        )
    published = since if since is None or source.arrival is None else since - AHEAD_MICROS  # an arrival may lie ahead of it
    return [path for path in found if published is None or pubsub_avro.may_hold(path, published)]


def hour_folders(source: ArchiveSource, since: int | None = None) -> list[str]:
    """The folders of all hours in an archive, in order; those that end before `since` (microseconds) left out. Raises SourceError where there is no archive."""
    found = _hours_since(source, None)
    if not found:
        raise SourceError(
            f"sources: {source.archive}: is no archive of a stream; expected folders arrival_hour=…, or files of a Cloud Storage subscription.",
            hint="Name the folder in which the stream archives.",
        )
    return found if since is None else _hours_since(source, since)


def _hours_since(source: ArchiveSource, since: int | None) -> list[str]:
    return [hour.folder for hour in hours(source.archive) if since is None or (hour.number + 1) * HOUR_MICROS > since]
