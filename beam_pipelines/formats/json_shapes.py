"""Proves records that look like one already judged: the same names in the same order, whatever the values.

A shape is a record's brackets and colons in order, and the name in front of each colon. It is judged once, by `Members`; then a record
of that shape needs a comparison per name and a look at the first byte of each value. Most batches have a handful of shapes. Since a
shape's tokens also tell where each column's value begins and ends, its records need no parser (`json_views`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from beam_pipelines.formats.json_bits import WINDOW, Bytes, Indexes, Mask, Ranks, pack, skip_space, structure, unpack, windows_of
from beam_pipelines.formats.json_plan import KIND_OF_BYTE, STRING

_COLON, _COMMA, _BACKSLASH, _MINUS = 58, 44, 92, 45
_NEWLINE = 10
_SPACE = 32  # outside of strings no other byte up to it is JSON
_LEAST_ROWS = 16  # fewer rows with one number of tokens are not worth a comparison of their own
_MOST_SHAPES = 8  # of one number of tokens
_TRIALS, _TRIALS_ALIKE = 256, 16  # shapes judged in vain before no more are looked for: in all, and of one number of tokens
NOWHERE = 4  # no value begins before byte 4; a view is read from 4 bytes before it

Judge = Callable[[Bytes], "Shape | None"]
Columns = npt.NDArray[np.intp]


class Array(NamedTuple):
    """An array of scalars of one kind: the tokens that open and close it."""

    open: int
    close: int
    kind: int


class Values(NamedTuple):
    """Where the values of columns lie. Per value: its `column`, its `member`; it ends `shift` behind the token `end`.

    With `comma`, that is where the next member's name begins, and a comma stands between.
    """

    column: Columns
    member: Columns
    end: Columns
    shift: npt.NDArray[np.int64]
    comma: Mask


class Spans(NamedTuple):
    """Where each row's values lie in a text, by column and row; without a value both are NOWHERE."""

    start: Indexes
    stop: Indexes

    @classmethod
    def none(cls, columns: int, rows: int) -> Spans:
        return cls(*(np.full((columns, rows), NOWHERE, np.int64) for _ in cls._fields))


class Shape(NamedTuple):
    """`chars`: the tokens. Per member: `colons` (its token), `back` (from colon to the name's quote), `kinds` its type accepts.

    `words` are the names with their quotes in pieces of WINDOW bytes: token, distance back from the colon, mask and bytes. `steps` are
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
    values: Values


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
    masks: list[bytes] = []
    words: list[bytes] = []
    for token, colon, size in zip(colons.tolist(), at.tolist(), back.tolist(), strict=True):
        name = text[colon - size : colon].tobytes()
        for first in range(0, size, WINDOW):
            piece = name[first : first + WINDOW]
            column.append(token)
            distance.append(size - first)
            masks.append((b"\xff" * len(piece)).ljust(WINDOW, b"\0"))
            words.append(piece.ljust(WINDOW, b"\0"))
    mask, word = (np.frombuffer(b"".join(pieces), np.uint64).reshape(-1, 2) for pieces in (masks, words))
    return np.array(column, np.intp), np.array(distance, np.int64), mask, word


class Matched(NamedTuple):
    """Rows `proven` by a shape, rows that have the tokens and names of one (`named`), and the unknown members to keep."""

    proven: Mask
    named: Mask
    segments: list[Segments]


class Shapes:
    """The shapes known so far, by their number of tokens."""

    def __init__(self, *, least_rows: int = _LEAST_ROWS) -> None:
        self._known: dict[int, list[Shape]] = {}
        self._least_rows = least_rows
        self._trials = _TRIALS
        self._vain: Counter[int] = Counter()

    def match(self, chunk: Chunk, judge: Judge, spans: Spans | None = None) -> Matched:
        """Finds the rows that have a shape. `judge` gives the shape of a record, or None where it has none.

        `spans` is filled with where the values of the proven rows lie.
        """
        first = np.searchsorted(chunk.position, chunk.offsets)
        counts = np.diff(first)
        found = _Found(chunk, first, np.zeros(len(counts), bool), np.zeros(len(counts), bool), [], spans)
        order = np.argsort(counts, kind="stable")
        edges = np.flatnonzero(np.diff(counts[order])) + 1
        for rows in np.split(order, edges):
            if len(rows) >= self._least_rows and counts[rows[0]]:
                self._group(found, rows, int(counts[rows[0]]), judge)
        return Matched(found.proven, found.named, found.segments)

    def _group(self, found: _Found, left: Indexes, tokens: int, judge: Judge) -> None:
        """Rows that have one number of tokens."""
        known = self._known.setdefault(tokens, [])
        for shape in known:
            left = found.try_shape(shape, left)
        while len(left) >= self._least_rows and len(known) < _MOST_SHAPES and self._vain[tokens] < _TRIALS_ALIKE and self._trials > 0:
            self._vain[tokens] += 1
            self._trials -= 1
            row, left = int(left[0]), left[1:]
            learnt = judge(found.chunk.record(row))
            if learnt is None or any(_alike(learnt, shape) for shape in known):
                continue
            before = len(left)
            left = found.try_shape(learnt, left)
            if before - len(left) >= self._least_rows // 2:
                known.append(learnt)
                self._vain[tokens] -= 1
                self._trials += 1


@dataclass
class _Found:
    """What is known of a chunk's rows so far; row i has the tokens `first[i]` up to `first[i + 1]`.

    `named` rows have the tokens and names of a known shape: where they are not proven, no other shape will do it.
    """

    chunk: Chunk
    first: Indexes
    proven: Mask
    named: Mask
    segments: list[Segments]
    spans: Spans | None

    def try_shape(self, shape: Shape, rows: Indexes) -> Indexes:
        """Proves the rows that have the shape; gives those that have another."""
        chunk, tokens = self.chunk, len(shape.chars)
        fits = _runs(chunk.char, tokens)[self.first[rows]] == shape.chars.tobytes()
        tried = rows if fits.all() else rows[fits]
        position = chunk.position[self.first[tried] + np.arange(tokens)[:, None]]
        position, done = _kept(chunk.has_names(shape, position, tried), position, tried)
        self.named[done] = True
        begin = chunk.values(shape, position)
        good = chunk.fits(shape, position, begin)
        begin, _ = _kept(good, begin, done)
        position, done = _kept(good, position, done)
        self.proven[done] = True
        for member, end, before in shape.unknown:
            start = position[shape.colons[member]] - shape.back[member]
            self.segments.append(Segments(start, position[end] - before, done))
        if self.spans is not None:
            where = (shape.values.column[:, None], done)
            self.spans.start[where] = begin[shape.values.member]
            self.spans.stop[where] = chunk.ends(shape.values, position)
        return rows[~self.named[rows]]


def _kept(good: Mask, position: Indexes, rows: Indexes) -> tuple[Indexes, Indexes]:
    return (position, rows) if good.all() else (position[:, good], rows[good])


def _runs(chars: Bytes, size: int) -> npt.NDArray[np.bytes_]:
    """The `size` characters that begin at each place, without a copy."""
    return np.ndarray((len(chars) - size + 1,), f"S{size}", buffer=chars.data, strides=(1,))


def _alike(one: Shape, other: Shape) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.words, other.words, strict=True)) and np.array_equal(one.chars, other.chars)


class Chunk:
    """A text's brackets and colons, and what is asked about the bytes around them.

    The text goes on behind the last record by at least 8 bytes. `blank` are byte ranges of records to pass over.
    """

    def __init__(self, text: Bytes, offsets: Indexes, *, blank: list[tuple[int, int]] | None = None) -> None:
        self.text, self.offsets = text, offsets
        self._blank = blank or []
        self.size = size = int(offsets[-1])
        part = text[:size]
        self.escapes = bool((part == _BACKSLASH).any())
        self.marks = structure(part, self.escapes, blank)
        token = (part & 0xD9) == 0x59  # brackets; the other bytes like that (Y _ y DEL) occur in strings only
        token |= part == _COLON
        token &= ~unpack(self.marks.inside, size)
        for start, end in self._blank:
            token[start:end] = False
        self.position = np.flatnonzero(token)
        self.char = text[self.position]
        self.windows = windows_of(text)
        self._ranks: dict[int, Ranks] = {}

    def record(self, row: int) -> Bytes:
        return self.text[int(self.offsets[row]) : int(self.offsets[row + 1])]

    @cached_property
    def spaced(self) -> bool:
        """Whether white space stands anywhere but in strings and, one line feed each, behind records."""
        space = self.text[: self.size] <= _SPACE
        space[self.offsets[1:] - 1] &= self.text[self.offsets[1:] - 1] != _NEWLINE
        for start, end in self._blank:
            space[start:end] = False
        return bool((pack(space) & ~self.marks.inside).any())

    def values(self, shape: Shape, position: Indexes) -> Indexes:
        """Where the value of each member begins, if at most one space stands in front of it."""
        begin = position[shape.colons] + 1
        if self.spaced:
            begin += self.text[begin] <= _SPACE
        return begin

    def ends(self, values: Values, position: Indexes) -> Indexes:
        """Where each column's value ends."""
        stop, comma = position[values.end] + values.shift[:, None], values.comma[:, None]
        if not self.spaced:
            return stop - comma
        last = stop - 1
        last -= self.text[last] <= _SPACE
        if ((self.text[last] == _COMMA) == comma).all():  # at most one space behind the comma, and mostly none before it
            last -= comma
            if (self.text[last] > _SPACE).all():
                return last + 1
        last = skip_space(self.text, (stop - 1).ravel(), back=True).reshape(stop.shape) - comma
        return skip_space(self.text, last.ravel(), back=True).reshape(stop.shape) + 1

    def has_names(self, shape: Shape, position: Indexes, rows: Indexes) -> Mask:
        """Which of the rows, with tokens at `position`, have the shape's names."""
        column, distance, mask, word = shape.words
        found = self.windows[position[column] - distance[:, None]].view(np.uint64)
        wrong = (found[:, ::2] & mask[:, :1]) ^ word[:, :1]
        wrong |= (found[:, 1::2] & mask[:, 1:]) ^ word[:, 1:]
        good: Mask = np.bitwise_or.reduce(wrong, axis=0) == 0
        if self.escapes:  # a name may be the end of a longer one, cut at an escaped quote
            some = np.flatnonzero(self.escaped_rows[rows])
            before = position[:, some][shape.colons] - shape.back[:, None] - 1
            good[some] &= (self.text[before] != _BACKSLASH).all(axis=0)
        return good

    def fits(self, shape: Shape, position: Indexes, begin: Indexes) -> Mask:
        """Rows whose values, at `begin`, are of the shape's kinds."""
        good: Mask = ((KIND_OF_BYTE.take(self.text[begin]) & shape.kinds[:, None]) != 0).all(axis=0)
        for array in shape.arrays:
            start, end = position[array.open] + 1, position[array.close]
            ranks = self._of_kind(array.kind)
            good &= (ranks.below(end) - ranks.below(start)) == (end - start)
        if len(shape.steps):
            here, there = position[shape.steps], position[shape.steps + 1]
            gap = there - here
            comma = self.text[here + 1] == _COMMA
            good &= ((gap == 1) | (comma & ((gap == 2) | ((gap == 3) & (self.text[here + 2] <= _SPACE))))).all(axis=0)
        return good

    @cached_property
    def escaped_rows(self) -> Mask:
        """Rows that hold a backslash."""
        found = np.zeros(len(self.offsets) - 1, bool)
        found[np.searchsorted(self.offsets, np.flatnonzero(self.text[: self.size] == _BACKSLASH), side="right") - 1] = True
        return found

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
