"""Tables of PostgreSQL and SQLite as a bounded source: Arrow batches by ADBC, one split per range of pages.

    graph is built ─▶ one snapshot, held until the run ends ─▶ splits 0, 1, … ─▶ each read by one worker ─▶ raw batches

**What a row is.** By default a row's identity holds within a run: `_source` is the table and the moment of its snapshot, `_position` the place in it (in SQLite
the rowid). A bundle that is read again gives the same rows at the same positions. With `row_id`, an integer column that is different in every row, `_source` is the
table alone and `_position` the column's value, and names last from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.concat import coalesce, slices
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.counts import Count
from beam_pipelines.arrow.schema import POSITION
from beam_pipelines.formats.columnar import positioned
from beam_pipelines.formats.reader import DECODE, Broken
from beam_pipelines.sources.bigquery_range import Near
from beam_pipelines.sources.database_opened import Opened, lasting_name
from beam_pipelines.sources.database_whole import read_split
from beam_pipelines.sources.files import COUNTS, DEAD, ReadRows, part_read, with_provenance
from beam_pipelines.sources.postgres import open_postgres
from beam_pipelines.sources.sqlite import open_sqlite
from beam_pipelines.spec.sources import BatchSource, DatabaseSource

_AT_ONCE = 5_000  # numbers in one condition


class ReadDatabase(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Raw batches of the databases among `sources`: provenance and the table's own columns; what `ReadFiles` gives for files.

    Sources of other kinds are left alone, but counted in the numbers. The catalog is read, and a snapshot taken, when the graph is built. Rows that are not `near`
    need not come. A row whose `row_id` is NULL, or with a value that Arrow cannot hold, is a dead letter.

    Raises SpecError where the database refuses what the spec says, SourceError where there is no such table or no permission, TransientError where it does not answer.
    """

    def __init__(self, sources: Sequence[BatchSource], contract: Contract, *, near: Near | None = None) -> None:
        super().__init__()
        self.sources = {number: source for number, source in enumerate(sources) if isinstance(source, DatabaseSource)}
        self.contract, self.near = contract, near

    def expand(self, begin: beam.pvalue.PBegin) -> ReadRows:
        opened = {n: open_database(s, self.contract, number=n, near=self.near) for n, s in self.sources.items()}
        splits = [(number, ordinal) for number, part in opened.items() for ordinal in range(len(part.splits))]
        read_split = beam.ParDo(_ReadSplit(opened)).with_output_types(pa.RecordBatch, dead=pa.RecordBatch, counts=Count)
        read = (
            begin
            | "DatabaseSplits" >> beam.Create(splits, reshuffle=False).with_output_types(tuple[int, int])
            | "Spread" >> beam.Reshuffle()
            | "Read" >> read_split.with_outputs(DEAD, COUNTS, main="rows")
        )
        return ReadRows(read.rows, read.dead, read.counts)


def open_database(
    source: DatabaseSource, contract: Contract, *, number: int, near: Near | None = None, splits: int | None = None
) -> Opened:  # fmt: skip
    """What the contract needs of the source; `splits`: at most so many, in place of the spec's. Raises as `ReadDatabase`."""
    at = f"sources.batch[{number}]: {source.name}"
    if source.sqlite is not None:
        return open_sqlite(source, contract, at)
    return open_postgres(source, contract, at, near=near, splits=splits)


class _ReadSplit(beam.DoFn):  # type: ignore[misc]
    def __init__(self, opened: Mapping[int, Opened]) -> None:
        self.opened = dict(opened)

    def process(self, element: tuple[int, int]) -> Iterator[Any]:
        number, ordinal = element
        part = self.opened[number]
        yield from part_read(pieces(part, ordinal), number, part.name, f"#{ordinal}")


def pieces(part: Opened, ordinal: int) -> Iterator[pa.RecordBatch | Broken]:
    """The raw batches of one split, with provenance; rows without a `row_id`, or with a value that Arrow cannot hold, as Broken."""
    for batch in coalesce(some for whole in read_split(part, ordinal) for some in slices(whole)):
        yield from _named(batch, part)


def _named(batch: pa.RecordBatch, part: Opened) -> Iterator[pa.RecordBatch | Broken]:
    places, refused = batch.column(0), batch.column(1)
    body = batch.select(batch.schema.names[2:])
    row_id = part.source.row_id
    if row_id is not None:
        ids = body.column(row_id).cast(pa.int64())
        unnamed = f"row_id {row_id!r} is NULL; expected a number that no other row has"
        refused = pc.coalesce(refused, pc.if_else(pc.is_null(ids), pa.scalar(unnamed), pa.scalar(None, pa.string())))
        places = pc.coalesce(ids, pc.subtract(-1, places))
    if refused.null_count < len(refused):
        good = pc.is_null(refused)
        bad = pc.invert(good)
        for place, why in zip(places.filter(bad).to_pylist(), refused.filter(bad).to_pylist(), strict=True):
            yield Broken(place, DECODE, why)
        places, body = places.filter(good), body.filter(good)
    for piece in positioned(body, 0):
        if isinstance(piece, Broken):
            yield replace(piece, position=places[piece.position].as_py())
        else:
            yield with_provenance(piece.set_column(0, POSITION, places.take(piece.column(0))), part.name)


def rows_at(source: DatabaseSource, contract: Contract, positions: Sequence[int]) -> Iterator[pa.RecordBatch]:
    """The raw batches of the rows with these numbers in the column `row_id` that are still there; of a source without one, none."""
    for at in range(0, len(positions) if source.row_id is not None else 0, _AT_ONCE):
        numbers = ", ".join(str(int(position)) for position in positions[at : at + _AT_ONCE])
        some = source.model_copy(update=_only(source, numbers))
        part = replace(open_database(some, contract, number=0, splits=1), name=lasting_name(source))
        for ordinal in range(len(part.splits)):
            yield from (piece for piece in pieces(part, ordinal) if not isinstance(piece, Broken))


def _only(source: DatabaseSource, numbers: str) -> dict[str, str]:
    name = str(source.row_id).replace('"', '""')
    condition = f'"{name}" IN ({numbers})'
    if source.query is not None:
        return {"query": f"SELECT * FROM (\n{source.query.strip().rstrip(';')}\n) AS q WHERE {condition}"}
    return {"where": f"({source.where}\n) AND {condition}" if source.where is not None else condition}


def first_pieces(source: DatabaseSource, contract: Contract) -> Iterator[tuple[str, pa.RecordBatch | Broken]]:
    """All rows of the source one after the other, each batch with the `_source` of its rows; without Beam, for a look at the first."""
    part = open_database(source, contract, number=0, splits=1)
    for ordinal in range(len(part.splits)):
        yield from ((part.name, piece) for piece in pieces(part, ordinal))
