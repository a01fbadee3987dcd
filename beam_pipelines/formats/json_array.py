"""Cuts one JSON array into its elements: a record each, by blocks, however large the file.

    [{"a":1}, {"a":2},\\n {"a":3}]      records   {"a":1}\\n_   {"a":2}\\n\\n_   {"a":3}\\n

The comma behind an element is overwritten by a line break, so that records are slices of the block, as lines are. An element that is
malformed but closes its quotes and brackets costs itself alone; one that does not leaves no way to tell where it ends.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from beam_pipelines.arrow.schema import POSITION, RAW
from beam_pipelines.formats.json_bits import SPACE, Bytes, Indexes, skip_space, structure, unpack
from beam_pipelines.formats.lines import Window, open_window
from beam_pipelines.formats.reader import DECODE, FILE, RAW_PREFIX_BYTES, TOO_LARGE, Broken, Limits

_QUOTE, _COMMA, _BACKSLASH, _OPEN, _CLOSE, _NEWLINE = 34, 44, 92, 91, 93, 10


class _State(NamedTuple):
    """Where a text begins: inside a string, and how many brackets deep in an element."""

    inside: bool = False
    depth: int = 0


def read_array(
    stream: BinaryIO, *, start: int = 0, end: int | None = None, limits: Limits = Limits(), encoding: str = "utf-8"
) -> Iterator[pa.RecordBatch | Broken]:
    """Batches (`_position` int64, `_raw` binary) of the elements of the array that the stream holds.

    The array belongs, whole, to the range that starts at 0. Gives Broken(FILE) where it is no array, is not closed, or is followed by
    something, and Broken(TOO_LARGE) for an element of more than `limits.max_record_bytes`, which is never held whole.
    """
    if start > 0:
        return
    window, _ = open_window(stream, start=0, end=None, encoding=encoding)
    if window is None or not _skip_space(window, limits):
        if window is not None and window.damage is not None:
            yield Broken(window.base, FILE, window.damage)
        return
    if window.data[0] != _OPEN:
        yield Broken(window.base, FILE, f"got {chr(window.data[0])!r}; expected '[' (layout: array)", _shown(window.data))
        return
    window.drop(1)
    yield from _elements(window, limits)


def _elements(window: Window, limits: Limits) -> Iterator[pa.RecordBatch | Broken]:
    first = True
    while True:
        commas, close, _ = _scan(window.data, _State())
        ends = commas if close is None else np.append(commas, close)
        if len(ends):
            yield from _records(window, ends, closed=close is not None, lone=first, limits=limits)
            window.drop(int(ends[-1]) + 1)
            first = False
        if close is not None:
            yield from _after(window, limits)
            return
        if window.ended:
            yield Broken(window.base, FILE, window.damage or "the array is not closed", _shown(window.data))
            return
        if len(window.data) > limits.max_record_bytes:
            skipped = yield from _skip_element(window, limits)
            if skipped:
                yield from _after(window, limits)
                return
            first = False
            continue
        window.grow(max(limits.block_bytes, len(window.data)))


def _scan(text: Bytes, state: _State) -> tuple[Indexes, int | None, _State]:
    """Commas between elements, the array's closing bracket, and the state at the end of a text that begins in `state`."""
    if not len(text):
        return np.empty(0, np.int64), None, state
    lead = np.array([_QUOTE] if state.inside else [], np.uint8)
    whole = np.concatenate((lead, text)) if state.inside else text
    marks = structure(whole, bool((whole == _BACKSLASH).any()))
    inside = unpack(marks.inside, len(whole))[len(lead) :]
    token = np.flatnonzero((((text & 0xD9) == 0x59) | (text == _COMMA)) & ~inside)
    char = text[token]
    opens = (char == _OPEN) | (char == 123)
    closes = (char == _CLOSE) | (char == 125)
    depth = state.depth + np.cumsum(opens.astype(np.int64) - closes)
    end = np.flatnonzero(depth < 0)
    close = int(token[end[0]]) if len(end) else None
    commas = token[(char == _COMMA) & (depth == 0)]
    if close is not None:
        commas = commas[commas < close]
    quotes = int(np.bitwise_count(marks.quotes).sum())
    return commas, close, _State(quotes % 2 == 1, int(depth[-1]) if len(depth) else state.depth)


def _records(window: Window, ends: Indexes, *, closed: bool, lone: bool, limits: Limits) -> Iterator[pa.RecordBatch | Broken]:
    """The elements that end at `ends`, as one batch."""
    data = window.data
    starts = skip_space(data, np.concatenate((np.zeros(1, np.int64), ends[:-1] + 1)))
    data[ends] = _NEWLINE
    empty = starts >= ends
    if empty.any():
        for row in np.flatnonzero(empty).tolist():
            if not (closed and lone and len(ends) == 1):
                yield Broken(int(window.base + ends[row]), DECODE, "an empty element; expected an object", b"")
        starts, ends = starts[~empty], ends[~empty]
    if not len(starts):
        return
    large = ends - starts > limits.max_record_bytes
    offsets = np.append(starts, ends[-1] + 1).astype(np.int32)
    raw = pa.Array.from_buffers(pa.binary(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    batch = pa.RecordBatch.from_arrays([pa.array(starts + window.base), raw], names=[POSITION, RAW])
    if large.any():
        for row in np.flatnonzero(large).tolist():
            size = int(ends[row] - starts[row])
            yield Broken(int(window.base + starts[row]), TOO_LARGE, _too_large(size, limits), _shown(data[starts[row] : ends[row]]))
        batch = batch.filter(pa.array(~large))
    if batch.num_rows:
        yield batch


def _skip_element(window: Window, limits: Limits) -> Generator[Broken, None, bool]:
    """Drops the element at the window's first byte, however long, block by block; returns whether the array closed behind it."""
    position, prefix = window.base, _shown(window.data)
    state = _State()
    while True:
        commas, close, after = _scan(window.data, state)
        end = int(commas[0]) if len(commas) else close
        if end is not None:
            window.drop(end + 1)
            yield Broken(position, TOO_LARGE, _too_large(window.base - 1 - position, limits), prefix)
            return not len(commas)
        if window.ended:
            yield Broken(position, FILE, window.damage or "the array is not closed", prefix)
            return True
        kept = _trailing_backslashes(window.data)
        _, _, state = _scan(window.data[: len(window.data) - kept], state) if kept else (commas, close, after)
        window.drop(len(window.data) - kept)
        window.grow(limits.block_bytes)


def _trailing_backslashes(text: Bytes) -> int:
    """How many backslashes end a text: they belong to what follows."""
    others = np.flatnonzero(text != _BACKSLASH)
    return len(text) - (int(others[-1]) + 1 if len(others) else 0)


def _after(window: Window, limits: Limits) -> Iterator[Broken]:
    """Nothing but white space may follow the array."""
    if _skip_space(window, limits):
        yield Broken(window.base, FILE, "something follows the array", _shown(window.data))
    elif window.damage is not None:
        yield Broken(window.base, FILE, window.damage)


def _skip_space(window: Window, limits: Limits) -> bool:
    """Drops white space; False where the stream ends with it."""
    while True:
        if len(window.data):
            text = np.flatnonzero(~SPACE[window.data])
            if len(text):
                window.drop(int(text[0]))
                return True
        window.drop(len(window.data))
        if window.ended:
            return False
        window.grow(limits.block_bytes)


def _too_large(size: int, limits: Limits) -> str:
    return f"record too large: got {size} bytes; expected at most {limits.max_record_bytes} (max_record_bytes)"


def _shown(data: Bytes) -> bytes:
    return data[:RAW_PREFIX_BYTES].tobytes()
