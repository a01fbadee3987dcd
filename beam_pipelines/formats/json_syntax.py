"""Which records of a batch are valid JSON objects, for a block at a time, with the GIL's help only for what is in doubt.

UTF-8 is checked by Arrow; the grammar by msgspec, which reads many lines in one call when it is given a type without fields. What one
call on many lines may overlook is excluded by three facts: every line begins with `{` and ends with `}`, a string cannot hold
a line break, and there are as many objects as lines. So no line can borrow from its neighbour.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.schema import Rejected
from beam_pipelines.formats.json_bits import Bytes, Indexes, Mask, skip_space
from beam_pipelines.formats.json_strict import parse

_LINES_PER_CALL = 64
_OPEN, _CLOSE, _NEWLINE = 123, 125, 10


class _Object(msgspec.Struct, gc=False):
    """Any object: msgspec checks the grammar of members it has no field for, and skips them."""


_DECODER = msgspec.json.Decoder(_Object)


class Text(NamedTuple):
    """Records as one piece of memory: record i is `data[offsets[i]:offsets[i + 1]]`; `lines` is the same as an Arrow array."""

    data: Bytes
    offsets: Indexes
    lines: pa.Array


class Checked(NamedTuple):
    """`text.lines` is NULL for the records that `verdicts` rejects; all others are valid JSON objects in UTF-8."""

    text: Text
    valid: Mask
    verdicts: dict[int, Rejected]


def check_syntax(raw: pa.Array) -> Checked:
    """Decides for each record whether it is one JSON object. `raw` is binary, of any offset, NULL and empty records included."""
    raw = _separated(raw)
    text = text_of(raw)
    good = _utf8(raw, text)
    good &= _shaped(text)
    _proven(text, good)
    verdicts: dict[int, Rejected] = {}
    valid = good
    for row in np.flatnonzero(~good).tolist():  # one by one: only what is bad or looks unusual
        record = parse(text.data[text.offsets[row] : text.offsets[row + 1]].tobytes())
        if isinstance(record, Rejected):
            verdicts[row] = record
        else:
            valid[row] = True
    lines = text.lines if not verdicts else _with_nulls(text.lines, valid)
    return Checked(text._replace(lines=lines), valid, verdicts)


def text_of(array: pa.Array) -> Text:
    """The memory of a binary or string array without copying its bytes."""
    rows = len(array)
    large = pa.types.is_large_binary(array.type) or pa.types.is_large_string(array.type)
    _, offset_buffer, data_buffer = array.buffers()
    if rows == 0 or data_buffer is None:
        data = np.empty(0, np.uint8)
        return Text(data, np.zeros(rows + 1, np.int64), pa.array([""] * rows, pa.string()))
    raw_offsets = np.frombuffer(offset_buffer, np.int64 if large else np.int32)[array.offset : array.offset + rows + 1]
    first, last = int(raw_offsets[0]), int(raw_offsets[-1])
    data = np.frombuffer(data_buffer, np.uint8)[first:last]
    lines = pa.Array.from_buffers(
        pa.large_string() if large else pa.string(), rows, [None, offset_buffer, data_buffer], offset=array.offset
    )
    return Text(data, raw_offsets.astype(np.int64) - first, lines)


def _separated(raw: pa.Array) -> pa.Array:
    """`raw` with a line break behind every record: lines of a file as they are, messages as a copy."""
    if raw.null_count:
        raw = pc.fill_null(raw, b"")
    if len(raw) == 0:
        return raw
    text = text_of(raw)
    ends = text.offsets[1:]
    if len(text.data) and ends[0] and (text.data[ends - 1] == _NEWLINE).all() and (np.diff(text.offsets) > 0).all():
        return raw
    if len(text.data) and ends[0] and (text.data[ends[:-1] - 1] == _NEWLINE).all() and (np.diff(text.offsets) > 0).all():
        return raw  # the last line of a file may end with the file
    return pc.binary_join_element_wise(raw, pa.scalar(b"\n", raw.type), pa.scalar(b"", raw.type))


def _utf8(raw: pa.Array, text: Text) -> Mask:
    good = np.ones(len(raw), bool)
    try:
        text.lines.validate(full=True)
    except pa.ArrowInvalid:
        for row in np.flatnonzero(_has_high_bytes(text)).tolist():  # only in a block that holds a bad byte
            try:
                text.data[text.offsets[row] : text.offsets[row + 1]].tobytes().decode("utf-8")
            except UnicodeDecodeError:
                good[row] = False
    return good


def _has_high_bytes(text: Text) -> Mask:
    return np.add.reduceat(text.data >= 128, np.minimum(text.offsets[:-1], len(text.data) - 1), dtype=np.int32) > 0


def _shaped(text: Text) -> Mask:
    """Records that begin with `{` and end with `}` and white space."""
    starts, ends = text.offsets[:-1], text.offsets[1:]
    if not len(text.data):
        return np.zeros(len(starts), bool)
    last = np.maximum(skip_space(text.data, ends - 1, back=True), starts)
    good: Mask = (ends - starts >= 2) & (text.data[np.minimum(starts, len(text.data) - 1)] == _OPEN) & (text.data[last] == _CLOSE)
    return good


def _proven(text: Text, good: Mask) -> None:
    """Clears `good` where msgspec finds a fault, and where it cannot be seen which of two neighbours has it."""
    view = text.data.data
    offsets = text.offsets.tolist() if len(text.offsets) < 4096 else text.offsets
    edges = np.flatnonzero(np.diff(np.concatenate(([False], good, [False])).view(np.int8))).tolist()
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        for row in range(start, end, _LINES_PER_CALL):
            _prove(view, offsets, row, min(row + _LINES_PER_CALL, end), good)


def _prove(view: memoryview, offsets: Indexes | list[int], start: int, end: int, good: Mask) -> None:
    while start < end:
        base = offsets[start]
        try:
            if len(_DECODER.decode_lines(view[base : offsets[end]])) == end - start:
                return
            fault = None
        except msgspec.DecodeError as error:
            fault = _byte(str(error))
        except RecursionError:
            fault = None
        if fault is None:
            _prove_singly(view, offsets, start, end, good)
            return
        row = int(np.searchsorted(offsets[start : end + 1], base + fault, side="right")) - 1 + start  # one past the fault, at most
        row = min(max(row, start), end - 1)
        _prove(view, offsets, start, row - 1, good)  # without a fault now: only counts the objects
        _prove_singly(view, offsets, max(row - 1, start), row + 1, good)
        start = row + 1


def _prove_singly(view: memoryview, offsets: Indexes | list[int], start: int, end: int, good: Mask) -> None:
    for row in range(start, end):
        try:
            _DECODER.decode(view[offsets[row] : offsets[row + 1]])
        except (msgspec.DecodeError, RecursionError):
            good[row] = False


def _byte(message: str) -> int | None:
    """The offset in `JSON is malformed: ... (byte 123)`."""
    _, found, rest = message.rpartition("(byte ")
    return int(rest[:-1]) if found and rest[:-1].isdigit() else None


def _with_nulls(lines: pa.Array, valid: Mask) -> pa.Array:
    _, offsets, data = lines.buffers()
    bits = np.concatenate((np.zeros(lines.offset, bool), valid))
    return pa.Array.from_buffers(
        lines.type, len(lines), [pa.py_buffer(np.packbits(bits, bitorder="little")), offsets, data], offset=lines.offset
    )
