"""Text columns as views: each value is where it lies in its record, and hardly a byte is copied.

Arrow's `string_view` holds 16 bytes per value: its length, and either the bytes themselves (up to 12) or their place in a buffer.

    [ length | b y t e s . . . . . . ]        [ length | 4 bytes | buffer | offset ]

Both are had from the 16 bytes that begin 4 before the value: the length is written over the first four.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_pipelines.formats.json_bits import WINDOW, Bytes, Indexes, windows_of
from beam_pipelines.formats.json_shapes import NOWHERE, Spans

_QUOTE, _NULL = 34, 110
_INLINE = 12
_STRINGS = msgspec.json.Decoder(list[str])

_SHORT = np.array([256**n - 1 for n in range(5)], np.uint64) << np.uint64(32) | np.uint64(2**32 - 1)
_LOW = _SHORT[np.minimum(np.arange(_INLINE + 2), 4)]  # by length, up to one beyond: what is kept of a view's halves
_HIGH = np.array([256 ** max(n - 4, 0) - 1 for n in range(_INLINE + 1)] + [0], np.uint64)
Views = npt.NDArray[np.uint64]


class Columns:
    """Text columns under way, for rows of one batch: `data` is the memory in which most values lie."""

    def __init__(self, data: Bytes, rows: int, columns: int) -> None:
        self._views: Views = np.empty((columns, rows, 2), np.uint64)
        self._valid = np.zeros((columns, rows), bool)
        self._buffers = [[pa.py_buffer(data)] for _ in range(columns)]

    def fill(self, first: int, text: Bytes, base: int, spans: Spans) -> None:
        """Takes the rows from `first` on: JSON values in `text`, which begins at `base` of the data. What begins with n is NULL."""
        head, there = text[spans.start], spans.stop > spans.start
        valid = there & (head != _NULL)
        quoted = there & (head == _QUOTE)
        start, stop = spans.start + quoted, spans.stop - quoted
        rows = slice(first, first + start.shape[1])
        self._views[:, rows] = _views(text, start, stop, base, 0)
        self._valid[:, rows] = valid

    def unescape(self, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], texts: list[bytes]) -> None:
        """JSON strings, quotes included, that hold escapes: replaces the values at `rows` and `columns`."""
        values = pa.array(_STRINGS.decode(b"[" + b",".join(texts) + b"]"), pa.string())
        for column in np.unique(columns).tolist():
            own = np.flatnonzero(columns == column)
            self.put(column, rows[own], values.take(pa.array(own)))

    def put(self, column: int, rows: npt.NDArray[np.intp], values: pa.Array) -> None:
        """Sets the values of one column at `rows` to the strings `values`."""
        if not len(values):
            return
        _, offsets, data = values.buffers()
        edges = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1].astype(np.int64)
        text = np.zeros(int(edges[-1]) + NOWHERE + WINDOW, np.uint8)
        text[NOWHERE : NOWHERE + int(edges[-1])] = np.frombuffer(data, np.uint8)[: int(edges[-1])] if data is not None else 0
        self._buffers[column].append(pa.py_buffer(text))
        self._views[column, rows] = _views(text, edges[:-1] + NOWHERE, edges[1:] + NOWHERE, 0, len(self._buffers[column]) - 1)
        self._valid[column, rows] = values.is_valid().to_numpy(zero_copy_only=False)

    def arrays(self) -> list[pa.Array]:
        """The columns as `string_view` arrays."""
        rows = self._valid.shape[1]
        bits = np.packbits(self._valid, axis=1, bitorder="little")
        return [
            pa.Array.from_buffers(pa.string_view(), rows, [pa.py_buffer(valid), pa.py_buffer(views), *buffers])
            for valid, views, buffers in zip(bits, self._views, self._buffers, strict=True)
        ]


def _views(text: Bytes, start: Indexes, stop: Indexes, base: int, buffer: int) -> Views:
    """Views of `text[start:stop]`, where `text` is what begins at `base` of the buffer of that number."""
    size = stop - start
    words = windows_of(text)[start - NOWHERE].view(np.uint64).reshape(*start.shape, 2)
    kept = np.minimum(size, _INLINE + 1)
    words[..., 0] &= _LOW[kept]
    words[..., 1] &= _HIGH[kept]
    words.view(np.uint32)[..., 0] = size
    words[..., 1] |= ((start + base << 32 | buffer) * (size > _INLINE)).view(np.uint64)
    return words
