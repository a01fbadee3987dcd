"""The tokens of a block of JSON records by nesting level, and what `json_members` finds out about them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from beam_pipelines.formats.json_bits import Bytes, Indexes, Mask, Structure, unpack
from beam_pipelines.formats.json_names import Ints

LEVELS = 16  # deeper records are left to the strict decoder
STEP = np.zeros(256, np.int8)
STEP[[123, 91]], STEP[[125, 93]] = 1, -1
_COLON, _COMMA = 58, 44


class Bad:
    """Marks rows as not proven by positions in the text."""

    def __init__(self, offsets: Indexes, good: Mask) -> None:
        self.offsets, self.good = offsets, good

    def at(self, positions: npt.NDArray[np.integer]) -> None:
        if len(positions):
            self.good[self.rows(positions)] = False

    def rows(self, positions: npt.NDArray[np.integer]) -> Indexes:
        return np.searchsorted(self.offsets, positions, side="right") - 1


class Tokens:
    """Structural characters by level, then position. `opens` indexes the opening brackets: container c opened at `opens[c]`."""

    def __init__(self, text: Bytes, position: Indexes) -> None:
        self.position_in_text = position
        self.char_in_text = text[position]
        step = STEP[self.char_in_text]
        depth = np.cumsum(step, dtype=np.int32) + (step < 0)
        self.deep = depth > LEVELS
        level = np.minimum(depth, LEVELS + 1).astype(np.uint8)
        self.order = np.argsort(level, kind="stable")
        self.level = level[self.order]
        self.position = position[self.order]
        self.char = self.char_in_text[self.order]
        opening = step[self.order] > 0
        self.opens = np.flatnonzero(opening)
        self.container = np.cumsum(opening, dtype=np.int32) - 1

    @classmethod
    def of(cls, text: Bytes, size: int, marks: Structure) -> Tokens:
        part = text[:size]
        token = (part & 0xD9) == 0x59  # brackets; the other bytes like that (Y _ y DEL) occur in strings only
        token |= part == _COLON
        token |= part == _COMMA
        token &= ~unpack(marks.inside, size)
        return cls(text, np.flatnonzero(token))

    def too_deep(self) -> Indexes:
        return self.position_in_text[self.deep]

    def position_before(self, where: Indexes) -> Indexes:
        """Position of the token in front of each token, in the text's order."""
        return self.position_in_text[self.order[where] - 1]

    def container_in_text(self, index: Indexes) -> Ints:
        """The container of tokens by their index in the text's order."""
        inverse = np.empty(len(self.order), np.int32)
        inverse[self.order] = self.container
        return inverse[index]


class Keys(NamedTuple):
    """Members in the order of their tokens: `where` in the tokens, `at` the colon, `start` the name's quote, `ids` of `names` names."""

    where: Indexes
    at: Indexes
    start: Indexes
    container: Ints
    ids: Ints
    names: int


class Analysis(NamedTuple):
    """What `_analyse` found. `shapely`: nothing but values can make a record like these bad."""

    bad: Bad
    tokens: Tokens
    keys: Keys
    nodes: Ints
    places: Ints
    unknown: Mask
    shapely: bool
