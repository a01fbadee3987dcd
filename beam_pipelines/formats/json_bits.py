"""The structure of a block of JSON records as bits, one per byte: 64 bytes of text per word.

    text     {"a":"x,y","b":1}\\n
    quotes    1 1 1   1 1 1          unescaped
    inside    11  1111  11           from an opening quote up to, not including, the closing one

Everything here is exact for records that are valid JSON; bytes of other records must be masked out first (`blank`), or they
would turn the inside of later records out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Indexes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_QUOTE, _COLON, _BACKSLASH = 34, 58, 92
_CHUNK_BYTES = 2**20  # the masks of a chunk fit the processor's cache
_ONE = np.uint64(1)
WINDOW = 16
"""Bytes that are looked at together."""
SPACE: Mask = np.zeros(256, bool)
SPACE[[9, 10, 13, 32]] = True
"""Which bytes are JSON white space."""
_SPACES = b" \t\n\r"
_SHORT_SPACE = 8


class Structure(NamedTuple):
    """Unescaped quotes and the inside of strings."""

    quotes: Words
    inside: Words


def chunks(offsets: Indexes, size: int = _CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """Row ranges of about `size` bytes each."""
    row, rows = 0, len(offsets) - 1
    while row < rows:
        end = int(np.searchsorted(offsets, offsets[row] + size, side="right")) - 1
        end = min(max(end, row + 1), rows)
        yield row, end
        row = end


def structure(text: Bytes, escapes: bool, blank: list[tuple[int, int]] | None = None) -> Structure:
    """Quotes and strings of a text. `escapes`: whether it may hold a backslash; `blank`: byte ranges to pass over."""
    quotes = text == _QUOTE
    if escapes:
        _drop_escaped(text, quotes)
    for start, end in blank or ():
        quotes[start:end] = False
    words = pack(quotes)
    return Structure(words, between(words))


def pack(mask: Mask) -> Words:
    """One bit per element, with one empty word behind."""
    packed = np.packbits(mask, bitorder="little")
    room = np.zeros((len(packed) + 7) // 8 * 8 + 8, np.uint8)
    room[: len(packed)] = packed
    return room.view("<u8")


def unpack(words: Words, size: int) -> Mask:
    """The mask again."""
    return np.unpackbits(words.view(np.uint8), count=size, bitorder="little").view(np.bool_)


def words_of(text: Bytes) -> Words:
    """The 8 bytes that begin at each position as a number, without a copy."""
    return np.ndarray((len(text) - 7,), "<u8", buffer=text.data, strides=(1,))


def windows_of(text: Bytes) -> npt.NDArray[np.void]:
    """The WINDOW bytes that begin at each position, without a copy."""
    return np.ndarray((len(text) - WINDOW + 1,), f"V{WINDOW}", buffer=text.data, strides=(1,))


class Ranks:
    """How many bits are set before a position."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._before = np.zeros(len(words) + 1, np.int32)
        np.cumsum(np.bitwise_count(words), out=self._before[1:])

    def below(self, position: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        word = position >> 6
        part = self._words[word] & ((_ONE << (position & 63).astype(np.uint64)) - _ONE)
        out: npt.NDArray[np.int32] = self._before[word] + np.bitwise_count(part)
        return out


def skip_space(text: Bytes, at: Indexes, *, back: bool = False) -> Indexes:
    """The first positions at or behind (`back`: before) each of `at` that hold no white space."""
    step = -1 if back else 1
    for _ in range(_SHORT_SPACE):
        space = SPACE[text[at]]
        if not space.any():
            return at
        at = np.maximum(at + step * space, 0)
    at = at.copy()
    for i in np.flatnonzero(SPACE[text[at]]).tolist():  # one by one: unusually long white space
        at[i] = _skip_long(text, int(at[i]), back=back)
    return at


def _skip_long(text: Bytes, at: int, *, back: bool) -> int:
    size = 64
    while True:
        piece = (text[max(at + 1 - size, 0) : at + 1] if back else text[at : at + size]).tobytes()
        skipped = len(piece) - len(piece.rstrip(_SPACES) if back else piece.lstrip(_SPACES))
        at += -skipped if back else skipped
        if skipped < len(piece) or not piece:
            return at
        size *= 4


def count_per_row(words: Words, offsets: Indexes) -> npt.NDArray[np.int32]:
    """How many bits are set between each two offsets."""
    return np.diff(Ranks(words).below(offsets))


def runs_of_16(words: Words) -> Words:
    """Bits at which 16 or more set bits begin."""
    for step in (1, 2, 4, 8):
        words = words & _later(words, step)
    return words


def _later(words: Words, by: int) -> Words:
    """At each bit the bit `by` places behind it."""
    out = words >> np.uint64(by)
    out[:-1] |= words[1:] << np.uint64(64 - by)
    return out


def between(edges: Words) -> Words:
    """From each first of two set bits up to, not including, the second: running parity, by doubling inside a word, then over the words."""
    inside = edges.copy()
    for step in (1, 2, 4, 8, 16, 32):
        inside ^= inside << np.uint64(step)
    odd = np.bitwise_xor.accumulate(np.bitwise_count(edges) & 1)
    inside[1:] ^= np.uint64(0) - odd[:-1].astype(np.uint64)
    return inside


def _drop_escaped(text: Bytes, quotes: Mask) -> None:
    """Clears quotes that a backslash escapes. Backslashes of one run escape each other in pairs."""
    at = np.flatnonzero(text == _BACKSLASH)
    if not len(at):
        return
    first = np.ones(len(at), bool)
    first[1:] = np.diff(at) != 1
    number = np.arange(len(at))
    in_run = number - np.maximum.accumulate(np.where(first, number, 0))
    escaped = at[in_run % 2 == 0] + 1
    quotes[escaped[escaped < len(quotes)]] = False
