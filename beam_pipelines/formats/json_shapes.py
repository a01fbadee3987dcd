"""Proves records that look like one already judged: the same names in the same order, whatever the values.

A shape is a record's brackets and colons in order, and the name in front of each colon. It is judged once, by `Members`; then a record
of that shape needs a comparison per name and a look at the first byte of each value. Most batches have a handful of shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from beam_pipelines.formats.json_bits import SPACE, Bytes, Indexes, Mask, Ranks, Structure, pack, unpack
from beam_pipelines.formats.json_plan import KIND_OF_BYTE, STRING

_COLON, _COMMA, _BACKSLASH, _MINUS = 58, 44, 92, 45
_LEAST_ROWS = 8  # so many rows of a new look are worth a new shape
_TRIES = 8  # new shapes per count of tokens in a chunk
_MOST_SHAPES = 512

Judge = Callable[[Bytes], "Shape | None"]
Columns = npt.NDArray[np.intp]


class Array(NamedTuple):
    """An array of scalars of one kind: the tokens that open and close it."""

    open: int
    close: int
    kind: int


class Shape(NamedTuple):
    """`chars`: the tokens. Per member: `colons` (its token), `back` (from colon to the name's quote), `kinds` its type accepts.

    `words` are the names with their quotes in pieces of 8 bytes: token, distance back from the colon, mask and bytes. `steps` are
    tokens behind which nothing but a comma may stand before the next (arrays of objects); `unknown` are members to be kept: their
    number, the token that ends them and how far before it they end.
    """

    chars: Bytes
    colons: Columns
    back: npt.NDArray[np.int64]
    kinds: Bytes
    words: tuple[Columns, npt.NDArray[np.int64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]
    arrays: tuple[Array, ...]
    steps: Columns
    unknown: tuple[tuple[int, int, int], ...]


class Segments(NamedTuple):
    """Unknown members as ranges of the text, and the rows they belong to."""

    start: Indexes
    end: Indexes
    row: Indexes


def names_as_words(text: Bytes, colons: Columns, at: Indexes, back: Indexes) -> tuple[Columns, npt.NDArray[np.int64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """`Shape.words` of the names that begin `back` before the colons `at`."""
    column: list[int] = []
    distance: list[int] = []
    masks: list[int] = []
    words: list[int] = []
    for token, colon, size in zip(colons.tolist(), at.tolist(), back.tolist(), strict=True):
        name = text[colon - size : colon].tobytes()
        for first in range(0, size, 8):
            piece = name[first : first + 8]
            column.append(token)
            distance.append(size - first)
            masks.append((1 << (8 * len(piece))) - 1)
            words.append(int.from_bytes(piece, "little"))
    return np.array(column, np.intp), np.array(distance, np.int64), np.array(masks, np.uint64), np.array(words, np.uint64)


class Shapes:
    """The shapes known so far, by their number of tokens."""

    def __init__(self) -> None:
        self._known: dict[int, list[Shape]] = {}
        self._count = 0

    def match(self, text: Bytes, offsets: Indexes, marks: Structure, *, escapes: bool, judge: Judge) -> tuple[Mask, list[Segments]]:
        """Rows proven by a shape, and the unknown members to keep. `judge` gives the shape of a record, or None where it has none.

        `text` goes on behind the last record by at least 8 bytes.
        """
        chunk = _Chunk(text, int(offsets[-1]), marks, escapes)
        first = np.searchsorted(chunk.position, offsets)
        counts = np.diff(first)
        proven = np.zeros(len(counts), bool)
        segments: list[Segments] = []
        order = np.argsort(counts, kind="stable")
        edges = np.flatnonzero(np.diff(counts[order])) + 1
        for rows in np.split(order, edges):
            tokens = int(counts[rows[0]]) if len(rows) else 0
            left = rows
            for shape in self._known.get(tokens, ()):
                left = self._try(chunk, shape, first, left, proven, segments)
                if not len(left):
                    break
            for _ in range(_TRIES):
                if len(left) < _LEAST_ROWS or self._count >= _MOST_SHAPES:
                    break
                row = int(left[0])
                found = judge(text[int(offsets[row]) : int(offsets[row + 1])])
                if found is None or any(_alike(found, shape) for shape in self._known.get(tokens, ())):
                    left = left[1:]
                    continue
                self._known.setdefault(tokens, []).append(found)
                self._count += 1
                left = self._try(chunk, found, first, left, proven, segments)
        return proven, segments

    def _try(self, chunk: _Chunk, shape: Shape, first: Indexes, rows: Indexes, proven: Mask, segments: list[Segments]) -> Indexes:
        """Proves the rows that have the shape; gives the others."""
        index = first[rows][:, None] + np.arange(len(shape.chars))
        fits = (chunk.char[index] == shape.chars).all(axis=1)
        position = chunk.position[index[fits]]
        good = chunk.agrees(shape, position)
        done = rows[fits][good]
        proven[done] = True
        for member, end, before in shape.unknown:
            start = position[good, shape.colons[member]] - shape.back[member]
            segments.append(Segments(start, position[good, end] - before, done))
        return rows[~proven[rows]]


def _alike(one: Shape, other: Shape) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.words, other.words, strict=True)) and np.array_equal(one.chars, other.chars)


class _Chunk:
    """A text's brackets and colons, and what is asked about the bytes around them."""

    def __init__(self, text: Bytes, size: int, marks: Structure, escapes: bool) -> None:
        self.text, self.size, self.marks, self.escapes = text, size, marks, escapes
        part = text[:size]
        token = (part & 0xD9) == 0x59  # brackets; the other bytes like that (Y _ y DEL) occur in strings only
        token |= part == _COLON
        token &= ~unpack(marks.inside, size)
        self.position = np.flatnonzero(token).astype(np.int32)
        self.char = text[self.position]
        self.windows = np.lib.stride_tricks.as_strided(text, (len(text) - 7, 8), (1, 1), writeable=False)
        self._ranks: dict[int, Ranks] = {}

    def agrees(self, shape: Shape, position: npt.NDArray[np.int32]) -> Mask:
        """Rows (of tokens at `position`) whose names are the shape's and whose values are of its kinds."""
        column, distance, mask, word = shape.words
        good = ((self.windows[position[:, column] - distance].view("<u8")[..., 0] & mask) == word).all(axis=1)
        at = position[:, shape.colons]
        if self.escapes:
            before = at - shape.back - 1
            good &= (self.text[before] != _BACKSLASH).all(axis=1)
        first = self.text[at + 1]
        spaced = SPACE[first]
        if spaced.any():
            first = np.where(spaced, self.text[at + 2], first) if not spaced.all() else self.text[at + 2]
        good &= ((KIND_OF_BYTE[first] & shape.kinds) != 0).all(axis=1)
        for array in shape.arrays:
            start, end = position[:, array.open] + 1, position[:, array.close]
            ranks = self._of_kind(array.kind)
            good &= ranks.below(end) - ranks.below(start) == end - start
        if len(shape.steps):
            here, there = position[:, shape.steps], position[:, shape.steps + 1]
            gap = there - here
            comma = self.text[here + 1] == _COMMA
            good &= ((gap == 1) | (comma & ((gap == 2) | ((gap == 3) & SPACE[self.text[here + 2]])))).all(axis=1)
        return good

    def _of_kind(self, kind: int) -> Ranks:
        """Counts the bytes that an array of strings, or of numbers, may hold."""
        found = self._ranks.get(kind)
        if found is None:
            text = self.text[: self.size]
            between = pack((text == _COMMA) | SPACE[text]) & ~self.marks.inside
            if kind == STRING:
                allowed = between | self.marks.inside | self.marks.quotes
            else:
                allowed = between | (pack(((text - np.uint8(46)) < 12) | (text == _MINUS)) & ~self.marks.inside)
            found = self._ranks[kind] = Ranks(allowed)
        return found

