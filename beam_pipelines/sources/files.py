"""Files as raw batches: paths, globs, directories and URLs, compressed or not, split by byte ranges where the format allows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from beam_pipelines import metrics
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.counts import Count
from beam_pipelines.arrow.schema import POSITION, PROVENANCE, RAW, Failure, Rejected, dead_letters, of_source, provenance
from beam_pipelines.coders import RecordBatchCoder  # noqa: F401  (registers the element's coder)
from beam_pipelines.errors import SourceError
from beam_pipelines.formats.compression import CHECKED_LATE, codec_of, decompress, sound_bytes
from beam_pipelines.formats.reader import Broken, Limits
from beam_pipelines.formats.registry import reader
from beam_pipelines.places import gcs, open_read
from beam_pipelines.places.refusing import advice
from beam_pipelines.spec.sources import BatchSource, FileSource

DEAD, COUNTS = "dead", "counts"
_LETTERS = 10_000  # letters of one row group in one batch


class FileRange(NamedTuple):
    """A part of a file: bytes [start, end); `end` is -1 for a file read whole. `size` is the file's size in bytes."""

    path: str
    start: int
    end: int
    size: int


class ReadRows(NamedTuple):
    """What a source gives: raw batches, dead letters of what could not be read, ledger counts."""

    rows: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection


class ReadFiles(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Raw batches of the files of all `sources`, in one PCollection; each batch's schema metadata says which source it is of.

    Sources of other kinds are left alone, but counted in the numbers. Files are listed when the graph is built. Every record is in a batch or, where it cannot be read, a dead letter with its byte
    offset; a file that has vanished or cannot be opened is one dead letter (reason FILE). `only`: no other files are read.

    Raises SourceError where a pattern matches no file.
    """

    def __init__(self, sources: Sequence[BatchSource], contract: Contract, *, only: Collection[str] | None = None) -> None:
        super().__init__()
        self.only = only
        self.sources = {number: source for number, source in enumerate(sources) if isinstance(source, FileSource)}
        self.contract = contract

    def expand(self, begin: beam.pvalue.PBegin) -> ReadRows:
        parts = ((number, part) for number, source in self.sources.items() for part in file_ranges(source, self.contract))
        ranges = [(number, *part) for number, part in parts if self.only is None or part.path in self.only]
        read_range = beam.ParDo(_ReadRange(self.sources, self.contract)).with_output_types(
            pa.RecordBatch, dead=pa.RecordBatch, counts=Count
        )
        read = (
            begin
            | "FileRanges" >> beam.Create(ranges, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> read_range.with_outputs(DEAD, COUNTS, main="rows")
        )
        return ReadRows(read.rows, read.dead, read.counts)


class _ReadRange(beam.DoFn):  # type: ignore[misc]
    def __init__(self, sources: dict[int, FileSource], contract: Contract) -> None:
        self.sources = sources
        self.contract = contract

    def process(self, element: tuple[int, str, int, int, int]) -> Iterator[Any]:
        number, part = element[0], FileRange(*element[1:])
        yield from part_read(read_range(part, self.sources[number], self.contract), number, part.path, f"@{part.start}")
        metrics.count("files_read", int(part.start == 0))
        metrics.count("bytes_read", (part.end if part.end >= 0 else part.size) - part.start)


def part_read(pieces: Iterable[pa.RecordBatch | Broken], number: int, name: str, part: str) -> Iterator[Any]:
    """What a DoFn gives for one `part` of `name` in the source of that number: its batches, dead letters of what is broken, and the counts of both."""
    rows = 0
    broken: Counter[str] = Counter()
    for piece in pieces:
        if isinstance(piece, Broken):
            broken[piece.reason] += piece.rows
            yield from (beam.pvalue.TaggedOutput(DEAD, letters) for letters in broken_letters(name, piece))
        else:
            rows += piece.num_rows
            metrics.count("rows_read", piece.num_rows)
            yield of_source(piece, number)
    metrics.count("rows_read", broken.total())
    unit = f"{number}:{name}{part}"
    yield beam.pvalue.TaggedOutput(COUNTS, (unit, name, "read", "", rows + broken.total()))
    for reason, letters in broken.items():
        yield beam.pvalue.TaggedOutput(COUNTS, (unit, name, "dead", f"read:{reason}", letters))


def read_range(part: FileRange, source: FileSource, contract: Contract, *, at_once: bool = False) -> Iterator[pa.RecordBatch | Broken]:
    """The raw batches of one range, with provenance; what cannot be read as Broken. Never raises for the file's sake.

    No record comes of a gzip member or zstd frame that its checksum does not fit, unless they are wanted `at_once`: then a compressed file is
    read once, not twice, and what is wrong in it is told behind the wrong records.
    """
    limits = Limits(max_record_bytes=source.max_record_bytes, block_bytes=source.block_bytes)
    position = part.start
    try:
        with _open(part, source, at_once) as stream:
            for piece in reader(source.format, contract).read(
                stream, start=part.start, end=None if part.end < 0 else part.end, limits=limits
            ):
                if isinstance(piece, Broken):
                    yield piece
                elif piece.num_rows:
                    position = int(piece.column(POSITION)[-1].as_py())
                    yield with_provenance(piece, part.path)
    except OSError as error:
        yield Broken(position, "FILE", f"{part.path}: cannot be read after position {position}: {error}", None)


def with_provenance(batch: pa.RecordBatch, source: str) -> pa.RecordBatch:
    """A reader's batch with the three provenance columns in front; schema metadata is kept."""
    columns = provenance(source, batch.column(POSITION))
    rest = [n for n in batch.schema.names if n != POSITION]
    fields = [*PROVENANCE, *(batch.schema.field(n) for n in rest)]
    return pa.RecordBatch.from_arrays([*columns, *(batch.column(n) for n in rest)], schema=pa.schema(fields, batch.schema.metadata))


def broken_letters(path: str, broken: Broken) -> Iterator[pa.RecordBatch]:
    """A dead letter for each record that cannot be read, at its own position."""
    letter = _letter(path, broken)
    for at in range(0, broken.rows, _LETTERS):
        rows = min(_LETTERS, broken.rows - at)
        positions = pa.array(np.arange(broken.position + at, broken.position + at + rows))
        letters = letter.take(pa.array(np.zeros(rows, np.int64)))
        yield letters.set_column(letters.schema.get_field_index("position"), "position", positions)


def _letter(path: str, broken: Broken) -> pa.RecordBatch:
    row = pa.RecordBatch.from_arrays(
        [*provenance(path, pa.array([broken.position], pa.int64())), pa.array([broken.raw], pa.binary())], names=[*PROVENANCE.names, RAW]
    )
    verdict = Rejected("read", broken.reason, (Failure(broken.reason.lower(), "", broken.message),))
    return dead_letters(row, [verdict], raw_format="bytes")


def file_ranges(source: FileSource, contract: Contract) -> list[FileRange]:
    """All parts of all files of `source`, in path order."""
    ranges: list[FileRange] = []
    for path, size in list_files(source.patterns):
        whole = codec_of(path, source.compression) is not None or not reader(source.format, contract).splittable()
        if whole or size <= source.block_bytes:
            ranges.append(FileRange(path, 0, -1, size))
        else:
            cuts = [*range(0, size, source.block_bytes), size]
            ranges += [FileRange(path, a, b, size) for a, b in pairwise(cuts)]
    return ranges


class FileVersion(NamedTuple):
    """What a listing says of a file: bytes, and when it was last changed (seconds since 1970; 0 where the file system does not tell)."""

    size: int
    modified: float


def list_files(patterns: Sequence[str]) -> list[tuple[str, int]]:
    """Path and size of every file that a pattern matches: a path, a glob, or a directory (its files, not those with hidden names or in folders with such).

    Raises SourceError where a pattern matches nothing.
    """
    return [(path, version.size) for path, version in list_versions(patterns).items()]


def list_versions(patterns: Sequence[str]) -> dict[str, FileVersion]:
    """Every file that a pattern matches, in path order, and which version of it is there. Raises SourceError where a pattern matches nothing."""
    found: dict[str, FileVersion] = {}
    for pattern in patterns:
        matched = matching(pattern)
        if not matched:
            raise SourceError(f"sources: {pattern}: matches no file.", hint="Check the path; relative paths start at the spec's folder.")
        found.update(matched)
    return dict(sorted(found.items()))


def matching(pattern: str) -> dict[str, FileVersion]:
    """Every file that a pattern matches, which may be none. Raises SourceError where the place cannot be listed."""
    return dict(_match(pattern))


def _match(pattern: str) -> Iterable[tuple[str, FileVersion]]:
    directory = os.path.isdir(pattern) or pattern.endswith("/")
    glob = pattern.rstrip("/") + "/**" if directory else pattern
    if glob.startswith(gcs.SCHEME):
        yield from _match_in_cloud(glob, directory)
        return
    try:
        results = FileSystems.match([glob])
    except Exception as error:  # Beam wraps every filesystem's errors in its own classes
        raise SourceError(f"sources: {pattern}: cannot be listed: {error}") from error
    for metadata in results[0].metadata_list:
        if not (directory and _hidden(metadata.path, glob)):
            yield metadata.path, FileVersion(metadata.size_in_bytes, metadata.last_updated_in_seconds or 0.0)


def _match_in_cloud(glob: str, directory: bool) -> Iterator[tuple[str, FileVersion]]:
    try:
        found = gcs.matching(glob)
    except OSError as error:
        raise SourceError(f"sources: {glob}: cannot be listed: {error}.", hint=advice(error)) from error
    for listed in found:
        if not listed.path.endswith("/") and not (directory and _hidden(listed.path, glob)):
            yield listed.path, FileVersion(listed.size, listed.updated)


def _hidden(path: str, glob: str) -> bool:
    """Whether a file that `glob` (`folder/**`) names, or a folder between, has a hidden name. `_name=value` is a partition and none."""
    below = path[len(glob) - 2 :].split("/")
    return any(name.startswith(".") or (name.startswith("_") and "=" not in name) for name in below)


def _open(part: FileRange, source: FileSource, at_once: bool) -> BinaryIO:
    codec = codec_of(part.path, source.compression)
    if codec is None:
        return _open_raw(part.path)
    bounds = {"max_expansion": source.max_expansion, "compressed_size": part.size}
    sound = None
    if not at_once and codec in CHECKED_LATE:
        with _open_raw(part.path) as looked_at:
            sound = sound_bytes(looked_at, codec, **bounds)
    return decompress(_open_raw(part.path), codec, sound=sound, **bounds)


def _open_raw(path: str) -> BinaryIO:
    stream: BinaryIO
    if path.startswith(gcs.SCHEME):
        return open_read(path)
    if "://" in path:
        stream = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
        return stream
    return open(path, "rb", buffering=0)
