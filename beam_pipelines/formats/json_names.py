"""A contract as tables for whole blocks of JSON: names as numbers, and places in the contract as rows of a table."""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

from beam_pipelines.arrow.types import DataType
from beam_pipelines.formats.json_bits import Bytes, Indexes, Mask, words_of
from beam_pipelines.formats.json_plan import ANY, NUMBER, OBJECT, STRING, Member, Plan, kinds_of

NAME_WORDS = 16  # longer names (of 8 bytes a word) are left to the strict decoder
ROOT, ANY_NODE = 0, 1
_LEARNT_NAMES = 1024
_SLOT_BITS = 14

Ints = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]


class Nodes:
    """The contract as a table: `child[node, name]` (-1: not named), `item[node]`, and the JSON kinds each node accepts.

    `leaves`: the node of each of the plan's columns.
    """

    def __init__(self, plan: Plan) -> None:
        self._kinds: list[int] = [OBJECT, ANY]
        self._item: list[int] = [ANY_NODE, ANY_NODE]
        self._edges: list[tuple[int, str, int]] = []
        self._of_path: dict[tuple[str, ...], int] = {}
        self.lists = False
        for key, member in plan.root.children.items():
            self._edges.append((ROOT, key, self._member(member, plan)))
        texts = sorted({key for _, key, _ in self._edges})
        self.names = [t.encode("utf-8", "surrogatepass") for t in texts]
        number = {t: i for i, t in enumerate(texts)}
        child = np.full((len(self._kinds), len(texts) + 1), -1, np.int32)  # the last column: any other name
        child[ANY_NODE] = ANY_NODE
        for node, key, to in self._edges:
            child[node, number[key]] = to
        self.child = _Clipped(child)
        self.kinds = np.array(self._kinds, np.uint8)
        self.item = np.array(self._item, np.int32)
        self.leaves = np.array([self._of_path[member.path] for _, member in plan.leaves], np.int32)

    def _member(self, member: Member, plan: Plan) -> int:
        node = self._of_path[member.path] = self._placed(member, plan)
        return node

    def _placed(self, member: Member, plan: Plan) -> int:
        if member.type is not None and (member.nested or not member.coerce):
            columns = [plan.column(name) for name in member.columns]
            node = self._typed(member.type, coerce=member.coerce, unit=any(c.unit is not None for c in columns))
            self._kinds[node] &= member.kinds
            return node
        node = self._new(member.kinds)
        if member.coerce and member.type is not None:
            unit = any(plan.column(name).unit is not None for name in member.columns)
            if kinds_of(member.type) & STRING and not unit:
                self._kinds[node] &= ~NUMBER  # its text is the source's: the strict decoder keeps it
        for key, below in member.children.items():
            self._edges.append((node, key, self._member(below, plan)))
        return node

    def _typed(self, dtype: DataType, *, coerce: bool, unit: bool) -> int:
        if dtype.kind == "json":
            return self._new(ANY)
        node = self._new(kinds_of(dtype, coerce=coerce, unit=unit))
        if dtype.item is not None:
            self.lists = True
            self._item[node] = self._typed(dtype.item, coerce=coerce, unit=unit)
        for name, kind in dtype.fields:
            self._edges.append((node, name, self._typed(kind, coerce=coerce, unit=unit)))
        return node

    def _new(self, kinds: int) -> int:
        self._kinds.append(kinds)
        self._item.append(ANY_NODE)
        return len(self._kinds) - 1


class _Clipped:
    """A table whose last column stands for all further ones."""

    def __init__(self, table: Ints) -> None:
        self._table = table

    def __getitem__(self, at: tuple[Ints, Ints]) -> Ints:
        found: Ints = self._table[at[0], np.minimum(at[1], self._table.shape[1] - 1)]
        return found


class Names:
    """Names to numbers by a 64-bit hash with secret factors. Declared names come first; others are learnt as they appear."""

    def __init__(self, declared: list[bytes]) -> None:
        self._bits = max(_SLOT_BITS, 2 * len(declared).bit_length() + 1)
        placed = False
        while not placed:  # until no two declared names share a slot
            self._factors = np.array([secrets.randbits(64) | 1 for _ in range(NAME_WORDS + 1)], np.uint64)
            self._hashes: Hashes = np.empty(0, np.uint64)
            self._slots = np.full(2**self._bits, -1, np.int32)
            hashes = np.array([self._hash_one(name) for name in declared], np.uint64)
            self._learn(hashes)
            placed = not self._known(hashes)[1].any()

    def ids(self, text: Bytes, start: Indexes, length: Indexes) -> tuple[Ints, int]:
        """A number for each name, equal for equal names, and how many numbers there are."""
        hashes = self._hash(text, start, length)
        ids, missing = self._known(hashes)
        if not missing.any():
            return ids, max(len(self._hashes), 1)
        new = np.unique(hashes[missing])
        fresh = new[self._slots[new >> np.uint64(64 - self._bits)] < 0]
        if len(fresh) and len(self._hashes) + len(fresh) <= _LEARNT_NAMES:
            self._learn(fresh)
            ids, missing = self._known(hashes)
            if not missing.any():
                return ids, len(self._hashes)
            new = np.unique(hashes[missing])
        ids[missing] = len(self._hashes) + np.searchsorted(new, hashes[missing])
        return ids, len(self._hashes) + len(new)

    def _known(self, hashes: Hashes) -> tuple[Ints, Mask]:
        ids = self._slots[hashes >> np.uint64(64 - self._bits)]
        return ids, self._hashes[ids] != hashes if len(self._hashes) else np.ones(len(ids), bool)

    def _learn(self, hashes: Hashes) -> None:
        first = len(self._hashes)
        self._hashes = np.concatenate((self._hashes, hashes))
        slots = hashes >> np.uint64(64 - self._bits)
        free = self._slots[slots] < 0
        self._slots[slots[free]] = np.arange(first, len(self._hashes), dtype=np.int32)[free]

    def _hash_one(self, name: bytes) -> int:
        text = np.frombuffer(name + bytes(8 * NAME_WORDS + 8), np.uint8)
        return int(self._hash(text, np.zeros(1, np.int32), np.array([min(len(name), 8 * NAME_WORDS)], np.int32))[0])

    def _hash(self, text: Bytes, start: Indexes, length: Indexes) -> Hashes:
        windows = words_of(text)
        out: Hashes = length.astype(np.uint64) * self._factors[NAME_WORDS]
        out += _word(windows, start, length) * self._factors[0]
        for i in range(1, NAME_WORDS):
            more = np.flatnonzero(length > 8 * i)
            if not len(more):
                break
            out[more] += _word(windows, start[more] + 8 * i, length[more] - 8 * i) * self._factors[i]
        return out


_KEEP = np.array([(1 << (8 * i)) - 1 for i in range(9)], np.uint64)


def _word(windows: Hashes, start: Indexes, length: Indexes) -> Hashes:
    """The first 8 bytes of each name as a number, what lies beyond its length as zero."""
    return windows[start] & _KEEP[np.minimum(length, 8)]
