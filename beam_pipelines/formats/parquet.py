"""Parquet files, by row groups, page checksums verified. A row's position is its ordinal in the file.

A page that cannot be read costs the rest of its row group (one Broken); the other row groups are read. A file may be split: a row group
belongs to the byte range that holds its share of the file, by rows. Where its pages really are nobody asks: pyarrow's metadata of a
column ends the process (SIGABRT) on some damaged bytes, where reading the column raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.formats.columnar import BATCH_ROWS, WatchedStream, names_of, positioned, roots, seekable
from beam_pipelines.formats.reader import FILE, Broken, DamagedStream, Limits

_BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class ParquetReader:
    """Reads all columns, or where the contract drops unknown ones, those that its paths begin with."""

    contract: Contract

    def splittable(self) -> bool:
        return True

    def read(
        self, stream: BinaryIO, *, start: int = 0, end: int | None = None, limits: Limits = Limits()
    ) -> Iterator[pa.RecordBatch | Broken]:
        opened = _open(stream)
        if isinstance(opened, Broken):
            if start == 0:  # of all ranges, the first tells it
                yield opened
            return
        file, watched = opened
        size, total = watched.seek(0, os.SEEK_END), max(1, file.metadata.num_rows)
        position = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if start <= size * position // total and (end is None or size * position // total < end):
                yield from self._row_group(file, watched, group, position, limits)
            position += rows

    def _row_group(
        self, file: pq.ParquetFile, watched: WatchedStream, group: int, first: int, limits: Limits
    ) -> Iterator[pa.RecordBatch | Broken]:
        found = file.metadata.row_group(group)
        position, last = first, first + found.num_rows
        per_row = max(1, found.total_byte_size // max(1, found.num_rows))
        size = min(BATCH_ROWS, max(1024, limits.block_bytes // per_row))
        try:
            for batch in file.iter_batches(size, row_groups=[group], columns=self._columns(file), use_threads=False):
                yield from positioned(batch, position)
                position += batch.num_rows
            why = "" if position == last else f"only {position - first} of {found.num_rows} rows came"
        except Exception as error:  # corrupt bytes surface as any of pyarrow's exceptions, OSError among them
            watched.raise_own()
            why = str(error)
        if why:
            yield Broken(
                position, FILE, f"row group {group}: rows {position} to {last - 1} cannot be read: {why}", rows=max(1, last - position)
            )

    def _columns(self, file: pq.ParquetFile) -> list[str] | None:
        names = file.schema_arrow.names
        if self.contract.unknown_columns != "drop" or any("." in n for n in names):  # a dotted name would be taken for a path
            return None
        return [n for n in names if n in roots(self.contract)] or names[:1]


def _open(stream: BinaryIO) -> tuple[pq.ParquetFile, WatchedStream] | Broken:
    watched = None
    try:
        watched = WatchedStream(seekable(stream))
        file = pq.ParquetFile(
            pa.PythonFile(watched, mode="r"), page_checksum_verification=True, buffer_size=_BUFFER_BYTES, pre_buffer=False
        )
        names = names_of(file.schema_arrow)
        twice = sorted({n for n in names if names.count(n) > 1})
        rows = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        told = file.metadata.num_rows
    except DamagedStream as error:
        return Broken(0, FILE, str(error))
    except Exception as error:
        if watched is None:
            raise  # while spooling: the stream's own
        watched.raise_own()
        return Broken(0, FILE, f"not a readable Parquet file: {error}")
    if sum(rows) != told or min(rows, default=0) < 0:  # no position, and no number of lost rows, can be believed
        return Broken(
            0, FILE, f"not a readable Parquet file: its footer lists {sum(rows)} rows in row groups; expected the {told} of the whole file"
        )
    return Broken(0, FILE, f"got the column {twice[0]!r} twice; expected each name once") if twice else (file, watched)
