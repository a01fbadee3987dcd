"""ORC files, by stripes. A row's position is its ordinal in the file.

A stripe that cannot be read is one Broken; the others are read. A file may be split: a stripe belongs to the byte range in which it begins.
A child process decodes (see `orc_child`): bytes that crash the reader cost their stripe, and not the job.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, TypeVar

import pyarrow as pa

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.formats.columnar import positioned, roots, seekable
from beam_pipelines.formats.orc_child import IsolatedOrc, UnreadableError
from beam_pipelines.formats.reader import FILE, Broken, DamagedStream, Limits

T = TypeVar("T")
_TAIL_FOOTER, _FOOTER_STRIPES, _FOOTER_ROWS, _STRIPE_OFFSET, _STRIPE_ROWS = 2, 3, 6, 1, 5  # field numbers of orc_proto.proto
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
        file, names, stripes = opened
        columns = self._columns(names)
        first = 0
        with closing(file):
            for number, stripe in enumerate(stripes):
                if start <= stripe.offset and (end is None or stripe.offset < end):
                    yield from _read_stripe(file, number, columns, range(first, first + stripe.rows))
                first += stripe.rows

    def _columns(self, names: list[str]) -> list[str] | None:
        if self.contract.unknown_columns != "drop" or any("." in n for n in names):  # a dotted name would be taken for a path
            return None
        return [n for n in names if n in roots(self.contract)] or names[:1]


def _read_stripe(file: IsolatedOrc, number: int, columns: list[str] | None, rows: range) -> Iterator[pa.RecordBatch | Broken]:
    at = rows.start
    try:
        for batch in file.stripe(number, columns=columns, rows=len(rows)):
            yield from positioned(batch, at)
            at += batch.num_rows
    except UnreadableError as error:
        yield Broken(at, FILE, f"stripe {number}: rows {at} to {rows.stop - 1} cannot be read: {error}", rows=max(1, rows.stop - at))


def _open(stream: BinaryIO) -> tuple[IsolatedOrc, list[str], list[Stripe]] | Broken:
    try:
        file = IsolatedOrc(seekable(stream))
    except DamagedStream as error:
        return Broken(0, FILE, str(error))
    try:
        names, tail = file.open()
        stripes = _stripes(tail)
        twice = sorted({n for n in names if names.count(n) > 1})
        if not twice:
            return file, names, stripes
        why = f"got the column {twice[0]!r} twice; expected each name once"
    except UnreadableError as error:
        why = f"not a readable ORC file: {error}"
    file.close()
    return Broken(0, FILE, why)


def _stripes(tail: bytes) -> list[Stripe]:
    """The stripes that a file's tail (protobuf message FileTail) lists. pyarrow does not tell the rows of a stripe it cannot read.

    Raises UnreadableError, also where they are not as many rows as the file says: no position, and no number of lost rows, can be believed.
    """
    try:
        footer = next(value for number, value in _fields(tail) if number == _TAIL_FOOTER)
        fields = list(_fields(_checked(footer, bytes)))
        listed = [dict(_fields(_checked(value, bytes))) for number, value in fields if number == _FOOTER_STRIPES]
        stripes = [Stripe(_checked(s.get(_STRIPE_OFFSET, 0), int), _checked(s.get(_STRIPE_ROWS, 0), int)) for s in listed]
        told = _checked(dict(fields).get(_FOOTER_ROWS, 0), int)
    except (IndexError, StopIteration, TypeError) as error:
        raise UnreadableError(f"its footer does not list its stripes: {error}") from error
    if (rows := sum(s.rows for s in stripes)) != told:
        raise UnreadableError(f"its footer lists stripes of {rows} rows; expected the {told} of the whole file")
    return stripes


def _checked(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"got {type(value).__name__}; expected {kind.__name__}")
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
