"""Cuts a stream into records by blocks: lines here, quoted records with the splitter of `csv.py`.

    file    ──[ block ][ block ][ block ]──▶       a block is read into one buffer; what follows its last complete record
    batch     r r r r|r r r r r|r r r r            is carried into the next

A batch's `_raw` is the block's own memory plus offsets: no byte is copied. Therefore a record's `_raw` ends in its line
terminator, and blank lines belong to the tail of the record before them. `_position` is the byte offset of the record's
first byte (in a transcoded file: of the UTF-8 text).

Byte ranges: the range [start, end) owns the records that start in it, so ranges that cover a file give every record once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_pipelines.arrow.schema import POSITION, RAW
from beam_pipelines.formats.encoding import MARK_BYTES, Utf8Stream, detect
from beam_pipelines.formats.reader import DECODE, FILE, RAW_PREFIX_BYTES, TOO_LARGE, Broken, DamagedStream, Limits

Bytes = npt.NDArray[np.uint8]
Indexes = npt.NDArray[np.int64]
_NEWLINE, _RETURN = 10, 13
_PIECE_BYTES = 256 * 2**10
_SLACK_BYTES = 64 * 2**10  # read beyond a range's end, so that its last line mostly ends in the same block


class Cut(NamedTuple):
    """Where records end in a buffer (exclusive, ascending), and whether the rest lies inside a quoted field."""

    ends: Indexes
    open: bool = False


Splitter = Callable[[Bytes], Cut]


def read_lines(
    stream: BinaryIO,
    *,
    start: int = 0,
    end: int | None = None,
    limits: Limits = Limits(),
    encoding: str = "utf-8",
    skip_empty: bool = True,
) -> Iterator[pa.RecordBatch | Broken]:
    """Batches (`_position` int64, `_raw` binary) of the lines that start in [start, end).

    A line ends in ``\\n`` or ``\\r\\n`` or with the stream. A line longer than `limits.max_record_bytes` is a Broken(TOO_LARGE) and
    never held whole. A byte-order mark wins over `encoding`; a file that is not UTF-8 is transcoded and belongs, whole, to
    the range that starts at 0. With `skip_empty`, blank lines are no records.
    """
    window, end = open_window(stream, start=start, end=end, encoding=encoding)
    if window is not None and window.first_line(start, limits):
        yield from read_records(window, line_ends, end=end, limits=limits, skip_empty=skip_empty)


def line_ends(data: Bytes) -> Cut:
    """The Splitter of plain lines."""
    return Cut(positions(data, _NEWLINE) + 1)


def positions(data: Bytes, byte: int) -> Indexes:
    """Where a byte stands. In pieces, so that what is compared stays in the cache and costs no fresh pages."""
    found = [np.flatnonzero(data[at : at + _PIECE_BYTES] == byte) + at for at in range(0, len(data), _PIECE_BYTES)]
    return np.concatenate(found) if found else np.empty(0, np.int64)


@dataclass
class Window:
    """The bytes of a stream that are held: `data` begins at offset `base` and ends where nothing was read yet.

    `ended`: the stream has no more bytes, or, with `damage`, cannot give them.
    """

    stream: BinaryIO
    base: int = 0
    data: Bytes = field(default_factory=lambda: np.empty(0, np.uint8))
    ended: bool = False
    damage: str | None = None

    def grow(self, size: int) -> None:
        """Reads up to `size` bytes more behind `data`, in fresh memory: batches keep the old."""
        held = len(self.data)
        room = np.frombuffer(pa.allocate_buffer(held + size), np.uint8)  # Arrow's pool keeps pages: a block costs no page faults
        room[:held] = self.data
        got = 0
        try:
            while got < size and not self.ended:
                n = _read_into(self.stream, room[held + got :].data)
                self.ended = n == 0
                got += n
        except DamagedStream as error:
            self.ended, self.damage = True, str(error)
        self.data = room[: held + got]

    def hold(self, size: int, step: int) -> bool:
        """Reads until `data` has `size` bytes or the stream ends; whether it has any."""
        while len(self.data) < size and not self.ended:
            self.grow(max(step, size - len(self.data)))
        return len(self.data) > 0

    def drop(self, size: int) -> None:
        self.data = self.data[size:]
        self.base += size

    def first_line(self, start: int, limits: Limits) -> bool:
        """Moves to the first line that starts at `start` or later; False where there is none."""
        if start <= 0:
            return True
        self.stream.seek(start - 1)
        self.base, self.data, self.ended = start - 1, self.data[:0], False
        return self.drop_line(limits)

    def drop_line(self, limits: Limits) -> bool:
        """Drops everything up to and including the next line feed; False where there is none."""
        while True:
            if len(self.data):
                found = self.line_end()
                self.drop(found or len(self.data))
                if found:
                    return True
            if self.ended:
                return False
            self.grow(limits.block_bytes)

    def line_end(self) -> int:
        """Length of the first line with its line feed; 0 where `data` has no line feed."""
        for at in range(0, len(self.data), 2**16):
            found = np.flatnonzero(self.data[at : at + 2**16] == _NEWLINE)
            if len(found):
                return at + int(found[0]) + 1
        return 0


def open_window(stream: BinaryIO, *, start: int, end: int | None, encoding: str) -> tuple[Window | None, int | None]:
    """A window at the first byte behind a byte-order mark, and the range's end in it; None where the range owns nothing."""
    if end is not None and start >= end:
        return None, end
    if start > 0:
        stream.seek(0)
    peek = Window(stream)
    peek.grow(MARK_BYTES)
    head = peek.data.tobytes()
    codec, mark = detect(head, encoding)
    if codec == "utf-8":
        peek.drop(mark)  # the first line starts at 0 for the ranges, its bytes behind the mark
        return peek, end if end is None else max(end, mark + 1)
    if start > 0:
        return None, end
    return Window(Utf8Stream(stream, head=head[mark:], encoding=codec), damage=peek.damage, ended=peek.damage is not None), None  # type: ignore[arg-type]  # a RawIOBase reads like a BinaryIO


def read_records(
    window: Window, split: Splitter, *, end: int | None, limits: Limits, skip_empty: bool = True, comment: str = ""
) -> Iterator[pa.RecordBatch | Broken]:
    """The records from the window's first byte (a record starts there) to the last that starts before `end`.

    Records whose first character is `comment` are left out.
    """
    skips = _Skips(empty=skip_empty, comment=ord(comment) if comment else None)
    while end is None or window.base < end:
        if not window.ended:
            window.grow(_grow_bytes(window, end, limits))
        yield from _complete_records(window, split, end=end, limits=limits, skips=skips)
        if end is not None and window.base >= end:
            return
        if window.ended:
            if window.damage is not None:
                yield Broken(window.base, FILE, window.damage, _shown(window.data))
            return
        if len(window.data) > limits.max_record_bytes:
            yield _skip_record(window, limits)


class _Skips(NamedTuple):
    """What is no record."""

    empty: bool
    comment: int | None


def _complete_records(
    window: Window, split: Splitter, *, end: int | None, limits: Limits, skips: _Skips
) -> Iterator[pa.RecordBatch | Broken]:
    """Gives and drops all records that are complete in the window."""
    while len(window.data) and (end is None or window.base < end):
        cut = split(window.data)
        ends = cut.ends
        whole = window.ended and window.damage is None
        if whole and not cut.open and (len(ends) == 0 or ends[-1] < len(window.data)):
            ends = np.append(ends, len(window.data))
        if len(ends):
            starts = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
            if end is not None:
                owned = int(np.searchsorted(starts, end - window.base))
                starts, ends = starts[:owned], ends[:owned]
            yield from _batches(window, starts, ends, limits=limits, skips=skips)
            window.drop(int(ends[-1]))
        unclosed = cut.open and (whole or len(window.data) > limits.max_record_bytes)
        if not unclosed or (end is not None and window.base >= end):
            return
        line = window.line_end()
        if not line and not whole:
            return  # one long line: skipped as too large
        yield _unclosed(window, line or len(window.data))


def _batches(window: Window, starts: Indexes, ends: Indexes, *, limits: Limits, skips: _Skips) -> Iterator[pa.RecordBatch | Broken]:
    data, last = window.data, int(ends[-1])
    lengths = ends - starts
    large = lengths > limits.max_record_bytes
    if large.any():
        large &= _content_lengths(data, starts, ends) > limits.max_record_bytes
    if skips.empty:
        blank = lengths <= 2
        if blank.any():
            blank &= _content_lengths(data, starts, ends) == 0
        if blank.any():
            starts, large = starts[~blank], large[~blank]
    if not len(starts):
        return
    offsets = np.append(starts, last).astype(np.int32)
    raw = pa.Array.from_buffers(pa.binary(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    batch = pa.RecordBatch.from_arrays([pa.array(starts + window.base), raw], names=[POSITION, RAW])
    comment = np.zeros(0, bool) if skips.comment is None else data[starts] == skips.comment
    if comment.any():
        large &= ~comment
    if large.any():
        for row in np.flatnonzero(large).tolist():
            yield _too_large(window.base + offsets[row], data[offsets[row] : offsets[row + 1]], limits)
    if large.any() or comment.any():
        batch = batch.filter(pa.array(~(large | comment) if len(comment) else ~large))
    if batch.num_rows:
        yield batch


def _content_lengths(data: Bytes, starts: Indexes, ends: Indexes) -> Indexes:
    """Lengths without one line terminator; a carriage return that ends the stream counts as one."""
    newline = data[ends - 1] == _NEWLINE
    before = ends - 1 - newline
    lengths: Indexes = ends - starts - newline - ((before >= starts) & (data[before] == _RETURN))
    return lengths


def _grow_bytes(window: Window, end: int | None, limits: Limits) -> int:
    size = max(limits.block_bytes, len(window.data))  # doubles while one record outgrows the block: linear copying
    if end is None:
        return size
    left = end - window.base - len(window.data)
    return min(size, left + _SLACK_BYTES) if left > 0 else max(_SLACK_BYTES, len(window.data))


def _skip_record(window: Window, limits: Limits) -> Broken:
    """Drops the line at the window's first byte, however long, holding no more than a block of it."""
    position, prefix = window.base, window.data[: RAW_PREFIX_BYTES + 2]
    terminated = window.drop_line(limits)
    length = window.base - position - terminated
    return Broken(int(position), TOO_LARGE, _too_large_message(length, limits), _shown(prefix))


def _too_large(position: int, record: Bytes, limits: Limits) -> Broken:
    return Broken(int(position), TOO_LARGE, _too_large_message(len(record.tobytes().rstrip(b"\r\n")), limits), _shown(record))


def _too_large_message(length: int, limits: Limits) -> str:
    return f"record too large: got {length} bytes; expected at most {limits.max_record_bytes} (max_record_bytes)"


def _unclosed(window: Window, line: int) -> Broken:
    """Drops the first line of a record whose quoted field never closes: the lines behind it are read as if it were not there."""
    broken = Broken(window.base, DECODE, "a quoted field is opened and never closed", _shown(window.data[:line]))
    window.drop(line)
    return broken


def _shown(data: Bytes) -> bytes:
    return data[: RAW_PREFIX_BYTES + 2].tobytes().rstrip(b"\r\n")[:RAW_PREFIX_BYTES]


def _read_into(stream: BinaryIO, view: memoryview) -> int:
    readinto = getattr(stream, "readinto", None)
    if readinto is not None:
        return int(readinto(view) or 0)
    chunk = stream.read(len(view))  # Beam's own compressed files only have read()
    view[: len(chunk)] = chunk
    return len(chunk)
