"""A whole table of a database, or the answer of a query, as lookups and `init` read it: by one reader, in one transaction. Loads no Beam."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pyarrow as pa

from beam_pipelines.errors import RunError
from beam_pipelines.sources.database_opened import PLACE, REFUSED, Opened, as_source
from beam_pipelines.sources.postgres import open_postgres, read_postgres, schema_of
from beam_pipelines.sources.sqlite import open_sqlite, read_sqlite
from beam_pipelines.spec.sources import DatabaseTable


def open_whole(table: DatabaseTable, at: str) -> Opened:
    """All columns of the table or answer, looked up and not read. Raises as `ReadDatabase`."""
    source = as_source(table)
    return open_sqlite(source, None, at) if source.sqlite is not None else open_postgres(source, None, at, splits=1)


def read_split(part: Opened, ordinal: int) -> Iterator[pa.RecordBatch]:
    """The rows of one split, in batches that begin with PLACE and REFUSED."""
    return (read_sqlite if part.source.sqlite is not None else read_postgres)(part, ordinal)


def batches_of(part: Opened) -> Generator[pa.RecordBatch, None, None]:
    """All rows of what `open_whole` opened, in batches that begin with REFUSED; where there is no row, one without rows. Raises as `ReadDatabase`."""
    some = False
    for batch in read_split(part, 0):
        some = True
        yield batch.drop_columns([PLACE])
    if not some:
        texts = pa.schema([(name, pa.string()) for name in (REFUSED, *(column.name for column in part.shown))])
        yield pa.RecordBatch.from_pylist([], schema=texts if part.source.sqlite is not None else schema_of(part))


def read_whole(part: Opened) -> pa.Table:
    """All rows of what `open_whole` opened. Raises RunError where Arrow cannot hold a value, else as `ReadDatabase`."""
    table = pa.Table.from_batches(list(batches_of(part)))
    refused = table.column(REFUSED).drop_null()
    if len(refused):
        raise RunError(
            f"{part.at}: {len(refused):,} rows have values that cannot be read; the first: {refused[0]}.",
            hint="A lookup is read whole or not at all: repair them, or leave out rows by 'where' and columns by 'query'.",
        )
    return table.drop_columns([REFUSED])
