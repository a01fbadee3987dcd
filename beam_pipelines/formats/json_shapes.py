"""Proves records that look like one already judged: the same names in the same order, whatever the values.

A shape is a record's brackets and colons in order, and the name in front of each colon. It is judged once, by `Members`; then a record
of that shape needs a comparison per name and a look at the first byte of each value. Most batches have a handful of shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from beam_pipelines.formats.json_bits import Bytes, Indexes, Mask, Ranks, Structure, pack, unpack, words_of
from beam_pipelines.formats.json_plan import KIND_OF_BYTE, STRING

_COLON, _COMMA, _BACKSLASH, _MINUS = 58, 44, 92, 45
_SPACE = 32  # outside of strings no other byte up to it is JSON
_LEAST_ROWS = 16  # fewer rows with one number of tokens are not worth a comparison of their own
_MOST_SHAPES = 8  # of one number of tokens
_TRIALS = 256  # shapes judged in vain before no more are looked for

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


def names_as_words(
    text: Bytes, colons: Columns, at: Indexes, back: Indexes
) -> tuple[Columns, npt.NDArray[np.int64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
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

    def __init__(self, *, least_rows: int = _LEAST_ROWS) -> None:
        self._known: dict[int, list[Shape]] = {}
        self._least_rows = least_rows
        self._trials = _TRIALS

    def match(self, text: Bytes, offsets: Indexes, marks: Structure, *, escapes: bool, judge: Judge) -> tuple[Mask, list[Segments]]:
        """Rows proven by a shape, and the unknown members to keep. `judge` gives the shape of a record, or None where it has none.

        `text` goes on behind the last record by at least 8 bytes.
        """
        chunk = _Chunk(text, offsets, marks, escapes)
        first = np.searchsorted(chunk.position, offsets)
        counts = np.diff(first)
        proven = np.zeros(len(counts), bool)
        segments: list[Segments] = []
        order = np.argsort(counts, kind="stable")
        edges = np.flatnonzero(np.diff(counts[order])) + 1
        for rows in np.split(order, edges):
            if len(rows) >= self._least_rows:
                self._group(chunk, first, rows, int(counts[rows[0]]), proven, segments, judge)
        return proven, segments

    def _group(
        self, chunk: _Chunk, first: Indexes, left: Indexes, tokens: int, proven: Mask, segments: list[Segments], judge: Judge
    ) -> None:
        """Rows that have one number of tokens."""
        known = self._known.setdefault(tokens, [])
        for shape in known:
            left = self._try(chunk, shape, first, left, proven, segments)
        while len(left) >= self._least_rows and len(known) < _MOST_SHAPES and self._trials > 0:
            self._trials -= 1
            row, left = int(left[0]), left[1:]
            found = judge(chunk.record(row))
            if found is None or any(_alike(found, shape) for shape in known):
                continue
            before = len(left)
            left = self._try(chunk, found, first, left, proven, segments)
            if before - len(left) >= self._least_rows // 2:
                known.append(found)
                self._trials += 1

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

    def __init__(self, text: Bytes, offsets: Indexes, marks: Structure, escapes: bool) -> None:
        self.text, self.offsets, self.marks, self.escapes = text, offsets, marks, escapes
        self.size = size = int(offsets[-1])
        part = text[:size]
        token = (part & 0xD9) == 0x59  # brackets; the other bytes like that (Y _ y DEL) occur in strings only
        token |= part == _COLON
        token &= ~unpack(marks.inside, size)
        self.position = np.flatnonzero(token)
        self.char = text[self.position]
        self.words = words_of(text)
        self._ranks: dict[int, Ranks] = {}

    def record(self, row: int) -> Bytes:
        return self.text[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def agrees(self, shape: Shape, position: Indexes) -> Mask:
        """Rows (of tokens at `position`) whose names are the shape's and whose values are of its kinds."""
        column, distance, mask, word = shape.words
        good: Mask = ((self.words[position[:, column] - distance] & mask) == word).all(axis=1)
        at = position[:, shape.colons]
        if self.escapes:
            before = at - shape.back - 1
            good &= (self.text[before] != _BACKSLASH).all(axis=1)
        first = self.text[at + 1]
        spaced = first <= _SPACE
        if spaced.all():
            first = self.text[at + 2]
        elif spaced.any():
            first = np.where(spaced, self.text[at + 2], first)
        good &= ((KIND_OF_BYTE.take(first) & shape.kinds) != 0).all(axis=1)
        for array in shape.arrays:
            start, end = position[:, array.open] + 1, position[:, array.close]
            ranks = self._of_kind(array.kind)
            good &= (ranks.below(end) - ranks.below(start)) == (end - start)
        if len(shape.steps):
            here, there = position[:, shape.steps], position[:, shape.steps + 1]
            gap = there - here
            comma = self.text[here + 1] == _COMMA
            good &= ((gap == 1) | (comma & ((gap == 2) | ((gap == 3) & (self.text[here + 2] <= _SPACE))))).all(axis=1)
        return good

    def _of_kind(self, kind: int) -> Ranks:
        """Counts the bytes that an array of strings, or of numbers, may hold."""
        found = self._ranks.get(kind)
        if found is None:
            text = self.text[: self.size]
            between = pack((text == _COMMA) | (text <= _SPACE)) & ~self.marks.inside
            if kind == STRING:
                allowed = between | self.marks.inside | self.marks.quotes
            else:
                allowed = between | (pack(((text - np.uint8(46)) < 12) | (text == _MINUS)) & ~self.marks.inside)
            found = self._ranks[kind] = Ranks(allowed)
        return found
