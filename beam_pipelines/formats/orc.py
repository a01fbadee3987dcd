"""ORC files, by stripes. A row's position is its ordinal in the file.

A stripe that cannot be read is one Broken; the others are read. A file may be split: a stripe belongs to the byte range in which it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.orc as pa_orc

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.formats.columnar import BATCH_ROWS, WatchedStream, positioned, roots, seekable
from beam_pipelines.formats.reader import FILE, Broken, DamagedStream, Limits

_TAIL_FOOTER, _FOOTER_STRIPES, _STRIPE_OFFSET, _STRIPE_ROWS = 2, 3, 1, 5  # field numbers of orc_proto.proto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Stripe(NamedTuple):
    """Where a stripe begins in the file, and how many rows it holds."""

    offset: int
    rows: int


@dataclass(frozen=True)
class OrcReader:
    """Reads all columns, or where the contract drops unknown ones, those that its paths begin with."""

    contract: Contract

    def splittable(self) -> bool:
        return True

    def read(
        self, stream: BinaryIO, *, start: int = 0, end: int | None = None, limits: Limits = Limits()
    ) -> Iterator[pa.RecordBatch | Broken]:  # a stripe is read whole
        opened = _open(stream)
        if isinstance(opened, Broken):
            if start == 0:  # of all ranges, the first tells it
                yield opened
            return
        file, watched, stripes = opened
        first = 0
        for number, stripe in enumerate(stripes):
            if start <= stripe.offset and (end is None or stripe.offset < end):
                yield from self._stripe(file, watched, number, first, stripe.rows)
            first += stripe.rows

    def _stripe(
        self, file: pa_orc.ORCFile, watched: WatchedStream, number: int, first: int, rows: int
    ) -> Iterator[pa.RecordBatch | Broken]:
        try:
            batch = file.read_stripe(number, columns=self._columns(file))
            why = "" if batch.num_rows == rows else f"only {batch.num_rows} of {rows} rows came"
        except Exception as error:  # corrupt bytes surface as any of pyarrow's exceptions, OSError among them
            watched.raise_own()
            why = str(error)
        if why:
            yield Broken(first, FILE, f"stripe {number}: rows {first} to {first + rows - 1} cannot be read: {why}", rows=max(1, rows))
            return
        for at in range(0, rows, BATCH_ROWS):
            yield from positioned(batch.slice(at, BATCH_ROWS), first + at)

    def _columns(self, file: pa_orc.ORCFile) -> list[str] | None:
        names = file.schema.names
        if self.contract.unknown_columns != "drop" or any("." in n for n in names):  # a dotted name would be taken for a path
            return None
        return [n for n in names if n in roots(self.contract)] or names[:1]


def _open(stream: BinaryIO) -> tuple[pa_orc.ORCFile, WatchedStream, list[Stripe]] | Broken:
    watched = None
    try:
        watched = WatchedStream(seekable(stream))
        file = pa_orc.ORCFile(pa.PythonFile(watched, mode="r"))
        twice = sorted({n for n in file.schema.names if file.schema.names.count(n) > 1})
        stripes = _stripes(file.reader.serialized_file_tail())
    except DamagedStream as error:
        return Broken(0, FILE, str(error))
    except Exception as error:
        if watched is None:
            raise  # while spooling: the stream's own
        watched.raise_own()
        return Broken(0, FILE, f"not a readable ORC file: {error}")
    return Broken(0, FILE, f"got the column {twice[0]!r} twice; expected each name once") if twice else (file, watched, stripes)


def _stripes(tail: bytes) -> list[Stripe]:
    """The stripes that a file's tail (protobuf message FileTail) lists. pyarrow does not tell the rows of a stripe it cannot read."""
    footer = next(value for number, value in _fields(tail) if number == _TAIL_FOOTER)
    assert isinstance(footer, bytes)
    listed = [dict(_fields(value)) for number, value in _fields(footer) if number == _FOOTER_STRIPES and isinstance(value, bytes)]
    return [Stripe(_number(s.get(_STRIPE_OFFSET, 0)), _number(s.get(_STRIPE_ROWS, 0))) for s in listed]


def _number(value: int | bytes) -> int:
    assert isinstance(value, int)
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protobuf message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value: int | bytes
        if key & 7 == _VARINT:
            value, at = _varint(message, at)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}.get(key & 7)
            if length is None:
                length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
