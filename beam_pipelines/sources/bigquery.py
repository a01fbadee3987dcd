"""Tables of BigQuery as a bounded source: Arrow batches by the Storage Read API, one split per stream.

    graph is built ─▶ session over one version of the table ─▶ streams 0, 1, … ─▶ each read by one worker ─▶ raw batches

**What a row is.** A table has no order, and no row of it a name. So by default a row's identity holds within a run: `_source` is the table and the moment at
which its session was opened, `_position` the number of the row's stream and its offset there. A bundle that is read again gives the same rows at the same
positions; two runs give the same rows under other names. With `row_id`, a column that is different in every row, `_source` is the table alone and `_position`
the column's value, and names last from run to run: a run over a range of time that deduplicates needs that, to bury duplicates in partitions it does not write.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.concat import coalesce, slices
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.counts import Count
from beam_pipelines.arrow.ranges import show_instant
from beam_pipelines.arrow.schema import POSITION
from beam_pipelines.errors import SpecError
from beam_pipelines.formats.columnar import positioned, roots
from beam_pipelines.formats.reader import DECODE, Broken
from beam_pipelines.sources.bigquery_range import Near
from beam_pipelines.sources.bigquery_session import (
    PATIENCE_S,
    Asked,
    Reader,
    Session,
    as_read,
    check_columns,
    lasting_name,
    named,
    open_session,
    reader,
)
from beam_pipelines.sources.files import COUNTS, DEAD, ReadRows, part_read, with_provenance
from beam_pipelines.spec.sources import BatchSource, BigQuerySource

_AT_ONCE = 5_000  # numbers in one condition, which takes at most 1 MB
_OFFSET_BITS = 40  # of a position: the rest is the number of the stream


class ReadBigQuery(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Raw batches of the BigQuery tables among `sources`: provenance and the table's own columns; what `ReadFiles` gives for files.

    Sources of other kinds are left alone, but counted in the numbers. Sessions are opened, and queries run, when the graph is built; `run_id` names the query's
    job, so a run that is begun again under its id gets the same answer. Rows that are not `near` need not come. A row whose `row_id` is NULL is a dead letter.

    Raises SpecError where BigQuery refuses what the spec says, SourceError where there is no such table or no permission, TransientError where it does not answer.
    """

    def __init__(self, sources: Sequence[BatchSource], contract: Contract, *, run_id: str, near: Near | None = None) -> None:
        super().__init__()
        self.sources = {number: source for number, source in enumerate(sources) if isinstance(source, BigQuerySource)}
        self.contract, self.run_id, self.near = contract, run_id, near

    def expand(self, begin: beam.pvalue.PBegin) -> ReadRows:
        opened = {n: open_source(s, self.contract, number=n, run_id=self.run_id, near=self.near) for n, s in self.sources.items()}
        streams = [(number, ordinal) for number, part in opened.items() for ordinal in range(len(part.session.streams))]
        read_stream = beam.ParDo(_ReadStream(opened)).with_output_types(pa.RecordBatch, dead=pa.RecordBatch, counts=Count)
        read = (
            begin
            | "Streams" >> beam.Create(streams, reshuffle=False).with_output_types(tuple[int, int])
            | "Spread" >> beam.Reshuffle()
            | "Read" >> read_stream.with_outputs(DEAD, COUNTS, main="rows")
        )
        return ReadRows(read.rows, read.dead, read.counts)


class Opened(NamedTuple):
    """A source and its session; `name` is the `_source` of its rows."""

    session: Session
    name: str
    row_id: str | None


def open_source(
    source: BigQuerySource, contract: Contract, *, number: int, run_id: str, near: Near | None = None, streams: int | None = None,
    patience_s: float = PATIENCE_S,
) -> Opened:  # fmt: skip
    """A session over what the contract needs of the source; `streams`: at most so many, in place of the spec's. Raises as `open_session`."""
    who = f"sources.batch[{number}]"
    most = source.max_streams if streams is None else streams

    def asked(schema: pa.Schema) -> Asked:
        check_columns(schema, (*(source.columns or ()), *((source.row_id,) if source.row_id else ())), f"{who}: {source.name}")
        return Asked(_columns(source, contract, schema), _conditions(near, schema), most or 0)

    plain = source.columns is None and contract.unknown_columns != "drop" and near is None and source.row_id is None
    session = open_session(source, Asked(streams=most or 0) if plain else asked, who=who, job=f"{run_id}:{number}", patience_s=patience_s)
    if source.row_id is not None and session.schema.field(source.row_id).type != pa.int64():
        kind = session.schema.field(source.row_id).type
        raise SpecError(f"{session.who}: row_id {source.row_id!r} has type {kind}; expected INT64, different in every row.")
    return Opened(session, named(source, session.opened), source.row_id)


def _columns(source: BigQuerySource, contract: Contract, schema: pa.Schema) -> Sequence[str]:
    if source.columns is not None:
        return source.columns
    if contract.unknown_columns != "drop":
        return ()
    wanted = roots(contract) | ({source.row_id} if source.row_id else set())
    return [name for name in schema.names if name in wanted] or schema.names[:1]


def _conditions(near: Near | None, schema: pa.Schema) -> Sequence[str]:
    """The range as a condition, where the column is an instant in the table too: of other types their reading decides."""
    if near is None or near.column not in schema.names or schema.field(near.column).type != pa.timestamp("us", "UTC"):
        return ()
    column = f"`{near.column}`"
    start, end = (f"TIMESTAMP '{show_instant(at)}'" for at in near.range)
    return (f"{column} >= {start} AND {column} < {end} OR {column} IS NULL",)


class _ReadStream(beam.DoFn):  # type: ignore[misc]
    def __init__(self, opened: Mapping[int, Opened]) -> None:
        self.opened = dict(opened)
        self._readers: dict[int, Reader] = {}

    def process(self, element: tuple[int, int]) -> Iterator[Any]:
        number, ordinal = element
        part = self.opened[number]
        yield from part_read(pieces(self._reader(number), part, ordinal), number, part.name, f"#{ordinal}")

    def teardown(self) -> None:
        while self._readers:
            self._readers.popitem()[1].connection.close()

    def _reader(self, number: int) -> Reader:
        if number not in self._readers:
            self._readers[number] = reader(self.opened[number].session)
        return self._readers[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}  # a connection belongs to its process


def pieces(read: Reader, part: Opened, ordinal: int) -> Iterator[pa.RecordBatch | Broken]:
    """The raw batches of one stream, with provenance; rows without a `row_id` as Broken."""
    first = ordinal << _OFFSET_BITS
    for batch in _sized(read.read(part.session.streams[ordinal])):
        for piece in positioned(batch, first):
            if isinstance(piece, Broken):
                yield piece
            elif part.row_id is None:
                yield with_provenance(piece, part.name)
            else:
                yield from _by_row_id(piece, part, part.row_id)
        first += batch.num_rows


def _sized(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """BigQuery answers in a few thousand rows or a few hundred thousand."""
    return coalesce(part for batch in batches for part in slices(as_read(batch)))


def _by_row_id(piece: pa.RecordBatch, part: Opened, row_id: str) -> Iterator[pa.RecordBatch | Broken]:
    ids = piece.column(row_id)
    for at in np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False)).tolist():
        place = piece.column(POSITION)[at].as_py()
        yield Broken(-1 - place, DECODE, f"row_id {row_id!r} is NULL; expected a number that no other row has")
    known = piece.set_column(0, POSITION, ids).filter(pc.is_valid(ids))
    if known.num_rows:
        yield with_provenance(known, part.name)


def rows_at(source: BigQuerySource, contract: Contract, positions: Sequence[int]) -> Iterator[pa.RecordBatch]:
    """The raw batches of the rows with these numbers in the column `row_id` that are still there; of a source without one, none."""
    for at in range(0, len(positions) if source.row_id is not None else 0, _AT_ONCE):
        numbers = ", ".join(str(int(position)) for position in positions[at : at + _AT_ONCE])
        some = source.model_copy(update=_only(source, numbers))
        part = open_source(some, contract, number=0, run_id=f"rows-{uuid.uuid4().hex}", streams=1)
        yield from (piece for piece in _all(part._replace(name=lasting_name(source))) if not isinstance(piece, Broken))


def _only(source: BigQuerySource, numbers: str) -> dict[str, str]:
    condition = f"`{source.row_id}` IN ({numbers})"
    if source.query is not None:
        return {"query": f"SELECT * FROM (\n{source.query.strip().rstrip(';')}\n) WHERE {condition}"}
    return {"where": f"({source.where}) AND {condition}" if source.where is not None else condition}


def first_pieces(source: BigQuerySource, contract: Contract, *, job: str) -> Iterator[tuple[str, pa.RecordBatch | Broken]]:
    """All rows of the source in one stream, each batch with the `_source` of its rows; without Beam, for a look at the first."""
    part = open_source(source, contract, number=0, run_id=job, streams=1)
    yield from ((part.name, piece) for piece in _all(part))


def _all(part: Opened) -> Iterator[pa.RecordBatch | Broken]:
    read = reader(part.session)
    try:
        for ordinal in range(len(part.session.streams)):
            yield from pieces(read, part, ordinal)
    finally:
        read.connection.close()
