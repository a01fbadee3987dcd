"""Proves records of valid JSON to fit a contract, all members of a block at once.

Brackets, colons and commas outside of strings are the tokens. Sorted by nesting level (stable, so by position within it), the tokens of
one object or array lie together behind its opening bracket:

    text      {"a":1,"b":{"c":2}} {"a":3}        level 1   { : , : }  { : }
                                                 level 2   { : }

So a running count of opening brackets tells each member's object, and level by level each object's place in the contract follows
from the member it is the value of. A record is proven when every member is declared (or unknown ones may pass), every value begins
like its type, and no object has two members of one name. What cannot be told here (escapes in names, deep nesting, numbers that
a double would change) is left to the strict decoder.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_pipelines.arrow.types import DataType
from beam_pipelines.formats.json_bits import SPACE, Bytes, Indexes, Mask, Structure, chunks, pack, runs_of_16, structure, unpack
from beam_pipelines.formats.json_plan import ANY, ARRAY, KIND_OF_BYTE, NULL, NUMBER, OBJECT, STRING, Member, Plan, kinds_of
from beam_pipelines.formats.json_shapes import Array, Segments, Shape, Shapes, names_as_words

_LEVELS = 16  # deeper records are left to the strict decoder
_NAME_WORDS = 16  # longer names too
_LEARNT_NAMES = 1024
_SLOT_BITS = 14
_ROOT, _ANY_NODE = 0, 1
_COLON, _COMMA, _OPEN, _BRACKET, _BACKSLASH, _MINUS = 58, 44, 123, 91, 92, 45
_DENSE_PAIRS = 2**24

_STEP = np.zeros(256, np.int8)
_STEP[[123, 91]], _STEP[[125, 93]] = 1, -1
_LONGEST_SHAPED_NAME = 80

Ints = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]


class Proof(NamedTuple):
    """Rows that are proven, and the unknown members of those that have any, as JSON text (NULL: none)."""

    good: Mask
    unknown: pa.Array


class Members:
    """The prover of one plan. It remembers names it has seen, which changes its speed and nothing else."""

    def __init__(self, plan: Plan) -> None:
        self._keep = plan.unknown == "keep"
        self._refuse = plan.unknown in ("dead_letter", "fail")
        self._nodes = _Nodes(plan)
        self._names = _Names(self._nodes.names)
        self._exact = needs_exact_numbers(plan)
        self._shapes = Shapes()

    def prove(self, data: Bytes, offsets: Indexes) -> Proof:
        """Judges the records `data[offsets[i]:offsets[i + 1]]`, each a valid JSON object."""
        rows = len(offsets) - 1
        good = np.ones(rows, bool)
        texts = [self._chunk(data, offsets[a : b + 1], good[a:b]) for a, b in chunks(offsets)]
        found = [t for t in texts if t is not None]
        if not any(t.null_count < len(t) for t in found):
            return Proof(good, pa.nulls(rows, pa.string()))
        return Proof(good, pa.concat_arrays(found))

    def _chunk(self, data: Bytes, offsets: Indexes, good: Mask) -> pa.Array | None:
        text, offsets = _padded(data[offsets[0] : offsets[-1]], offsets - offsets[0])
        escapes = bool((text == _BACKSLASH).any())
        marks = structure(text[: offsets[-1]], escapes)
        good[:], unknown = self._shapes.match(text, offsets, marks, escapes=escapes, judge=self._shape)
        rest = np.flatnonzero(~good)
        if len(rest):
            part, part_offsets = _gathered(text, offsets, rest)
            found = self._analyse(part, part_offsets)
            good[rest] = found.bad.good
            moved = offsets[rest] - part_offsets[:-1]
            unknown += [Segments(u.start + moved[u.row], u.end + moved[u.row], rest[u.row]) for u in self._kept(found)]
        if self._exact:
            _Bad(offsets, good).at(inexact(text[: offsets[-1]], marks))
        return _texts(text, unknown, len(good))

    def _analyse(self, text: Bytes, offsets: Indexes) -> _Analysis:
        """Tells of each record whether its members fit, by the place of each in the contract."""
        size = int(offsets[-1])
        escapes = bool((text == _BACKSLASH).any())
        bad = _Bad(offsets, np.ones(len(offsets) - 1, bool))
        tokens = _Tokens.of(text, size, structure(text[:size], escapes))
        bad.at(tokens.too_deep())
        keys = self._keys(text, tokens, bad, escapes=escapes)
        nodes, known, places = self._places(tokens, keys)
        bad.at(keys.at[_repeated(keys, len(tokens.opens))])
        unknown = ~known
        if self._refuse:
            bad.at(keys.at[unknown])
        elif self._keep:
            bad.at(keys.at[unknown & (tokens.level[keys.where] > 1)])
        shapely = bool(bad.good.all())
        bad.at(keys.at[(self._nodes.kinds[nodes] & KIND_OF_BYTE[text[_value(text, keys.at)]]) == 0])
        self._elements(text, tokens, places, bad)
        return _Analysis(bad, tokens, keys, nodes, places, unknown, shapely)

    def _kept(self, found: _Analysis) -> list[Segments]:
        """The unknown members of proven records."""
        kept = np.flatnonzero(found.unknown) if self._keep else np.empty(0, np.int64)
        kept = kept[found.tokens.level[found.keys.where[kept]] == 1]
        if not len(kept):
            return []
        ends = found.tokens.position[found.keys.where[kept] + 1]  # the next token of this level: a comma or the end
        return [Segments(found.keys.start[kept].astype(np.int64), ends.astype(np.int64), found.bad.rows(found.keys.at[kept]))]

    def _shape(self, record: Bytes) -> Shape | None:
        """The shape of a record, where it is regular and all records of its shape may pass."""
        text, offsets = _padded(record, np.array([0, len(record)], np.int64))
        found = self._analyse(text, offsets)
        return _shape_of(text, found, self._nodes, keep=self._keep) if found.shapely else None

    def _keys(self, text: Bytes, tokens: _Tokens, bad: _Bad, *, escapes: bool) -> _Keys:
        where = np.flatnonzero(tokens.char == _COLON)
        at = tokens.position[where]
        before = tokens.position_before(where) + 1
        while (space := SPACE[text[before]]).any():
            before = before + space
        close = at - 1
        while (space := SPACE[text[close]]).any():
            close = close - space
        length = close - before - 1
        long = length > 8 * _NAME_WORDS
        if long.any():
            bad.at(at[long])
            length = np.minimum(length, 8 * _NAME_WORDS)
        if escapes:
            backslash = np.flatnonzero(text == _BACKSLASH)
            behind = tokens.char_in_text[np.searchsorted(tokens.position_in_text, backslash)]
            bad.at(backslash[behind == _COLON])
        ids, count = self._names.ids(text, before + 1, length)
        return _Keys(where, at, before, tokens.container[where], ids, count)

    def _places(self, tokens: _Tokens, keys: _Keys) -> tuple[Ints, Mask, Ints]:
        """The node of each member, whether the contract names it, and the node of each container."""
        n = self._nodes
        nodes = np.full(len(keys.at), _ANY_NODE, np.int32)
        known = np.ones(len(keys.at), bool)
        containers = np.full(len(tokens.opens), _ANY_NODE, np.int32)
        levels = tokens.level[tokens.opens]
        bounds = np.searchsorted(levels, np.arange(1, _LEVELS + 3)).tolist()
        key_bounds = np.searchsorted(tokens.level[keys.where], np.arange(1, _LEVELS + 3)).tolist()
        ordinal = np.zeros(len(tokens.char), np.int32)
        ordinal[tokens.order[keys.where]] = np.arange(len(keys.at), dtype=np.int32)
        containers[: bounds[1]] = _ROOT
        for level in range(1, _LEVELS + 1):
            a, b = key_bounds[level - 1], key_bounds[level]
            child = n.child[containers[keys.container[a:b]], keys.ids[a:b]] if b > a else nodes[a:b]
            known[a:b] = child >= 0
            nodes[a:b] = np.where(child >= 0, child, _ANY_NODE)
            a, b = bounds[level], bounds[level + 1]
            if a == b:
                break
            index = tokens.order[tokens.opens[a:b]] - 1  # the token before: the member's colon, or the bracket or comma of an array
            member = tokens.char_in_text[index] == _COLON
            outer = containers[tokens.container_in_text(index)]
            containers[a:b] = np.where(member, nodes[ordinal[index]], n.item[outer])
        return nodes, known, containers

    def _elements(self, text: Bytes, tokens: _Tokens, places: Ints, bad: _Bad) -> None:
        """Values in arrays that have a type."""
        if not self._nodes.lists:
            return
        typed = (tokens.char[tokens.opens] == _BRACKET) & (self._nodes.item[places] != _ANY_NODE)
        if not typed.any():
            return
        where = np.flatnonzero(typed[tokens.container] & ((tokens.char == _BRACKET) | (tokens.char == _COMMA)))
        first = text[_value(text, tokens.position[where])]
        kinds = self._nodes.kinds[self._nodes.item[places[tokens.container[where]]]]
        wrong = ((kinds & KIND_OF_BYTE[first]) == 0) & ~((first == 93) & (tokens.char[where] == _BRACKET))
        bad.at(tokens.position[where[wrong]])


def needs_exact_numbers(plan: Plan) -> bool:
    """Whether a number may not pass through a double: it is a decimal, or part of a JSON text."""

    def exact(dtype: DataType) -> bool:
        return dtype.kind in ("decimal", "json") or (dtype.item is not None and exact(dtype.item)) or any(exact(t) for _, t in dtype.fields)

    return any(exact(plan.column(name).dtype) for name, _ in plan.leaves)


def inexact(text: Bytes, marks: Structure) -> Indexes:
    """Positions in numbers that a double may change: more than 15 digits, or a negative exponent.

    DuckDB reads a number with a fraction or exponent as a double and writes the shortest text that gives the same double: for
    up to 15 digits that is the same number.
    """
    digits = (text - np.uint8(46)) < 12  # . / 0-9
    words = pack(digits) & ~marks.inside
    long = runs_of_16(words)
    found = [_fractions(text, np.flatnonzero(unpack(long, len(text))))] if long.any() else []
    minus = pack(text == _MINUS) & ~marks.inside
    if minus.any():
        at = np.flatnonzero(unpack(minus, len(text)))
        found.append(at[(text[at - 1] | 32) == 101])
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _fractions(text: Bytes, inside: Indexes) -> Indexes:
    """Of the long runs of digits and points in which `inside` lie, those that are no integers."""
    end = inside + 16
    while (more := (end < len(text)) & (text[np.minimum(end, len(text) - 1)] - np.uint8(46) < 12)).any():
        end = end + more
    points = np.flatnonzero(text == 46)
    fraction = np.searchsorted(points, inside - 16) < np.searchsorted(points, end)  # a point just before the run's end part counts too
    exponent = (text[np.minimum(end, len(text) - 1)] | 32) == 101
    return inside[fraction | exponent]


class _Bad:
    """Marks rows as not proven by positions in the text."""

    def __init__(self, offsets: Indexes, good: Mask) -> None:
        self.offsets, self.good = offsets, good

    def at(self, positions: npt.NDArray[np.integer]) -> None:
        if len(positions):
            self.good[self.rows(positions)] = False

    def rows(self, positions: npt.NDArray[np.integer]) -> Indexes:
        return np.searchsorted(self.offsets, positions, side="right") - 1


class _Tokens:
    """Structural characters by level, then position. `opens` indexes the opening brackets: container c opened at `opens[c]`."""

    def __init__(self, text: Bytes, position: Ints) -> None:
        self.position_in_text = position
        self.char_in_text = text[position]
        step = _STEP[self.char_in_text]
        depth = np.cumsum(step, dtype=np.int32) + (step < 0)
        self.deep = depth > _LEVELS
        level = np.minimum(depth, _LEVELS + 1).astype(np.uint8)
        self.order = np.argsort(level, kind="stable")
        self.level = level[self.order]
        self.position = position[self.order]
        self.char = self.char_in_text[self.order]
        opening = step[self.order] > 0
        self.opens = np.flatnonzero(opening)
        self.container = np.cumsum(opening, dtype=np.int32) - 1

    @classmethod
    def of(cls, text: Bytes, size: int, marks: Structure) -> _Tokens:
        part = text[:size]
        token = (part & 0xD9) == 0x59  # brackets; the other bytes like that (Y _ y DEL) occur in strings only
        token |= part == _COLON
        token |= part == _COMMA
        token &= ~unpack(marks.inside, size)
        return cls(text, np.flatnonzero(token).astype(np.int32))

    def too_deep(self) -> Ints:
        return self.position_in_text[self.deep]

    def position_before(self, where: Indexes) -> Ints:
        """Position of the token in front of each token, in the text's order."""
        return self.position_in_text[self.order[where] - 1]

    def container_in_text(self, index: Indexes) -> Ints:
        """The container of tokens by their index in the text's order."""
        inverse = np.empty(len(self.order), np.int32)
        inverse[self.order] = self.container
        return inverse[index]


class _Keys(NamedTuple):
    """Members in the order of their tokens: `where` in the tokens, `at` the colon, `start` the name's quote, `ids` of `names` names."""

    where: Indexes
    at: Ints
    start: Ints
    container: Ints
    ids: Ints
    names: int


def _value(text: Bytes, at: Ints) -> Ints:
    """Where the value behind a colon, comma or bracket begins."""
    at = at + 1
    while (space := SPACE[text[at]]).any():
        at = at + space
    return at


def _repeated(keys: _Keys, containers: int) -> Mask:
    """Members of a name that their object has more than once."""
    pair = keys.container.astype(np.int64) * keys.names + keys.ids
    if containers * keys.names <= _DENSE_PAIRS:
        seen = np.zeros(containers * keys.names, np.uint8)
        seen[pair] = 1
        if np.count_nonzero(seen) == len(pair):
            return np.zeros(len(pair), bool)
        return np.bincount(pair, minlength=len(seen))[pair] > 1
    _, inverse, count = np.unique(pair, return_inverse=True, return_counts=True)
    return count[inverse] > 1


def _padded(text: Bytes, offsets: Indexes) -> tuple[Bytes, Indexes]:
    """A copy of the text with room to read words beyond its end."""
    out = np.zeros(len(text) + 8 * _NAME_WORDS, np.uint8)
    out[: len(text)] = text
    return out, offsets


def _gathered(text: Bytes, offsets: Indexes, rows: Indexes) -> tuple[Bytes, Indexes]:
    """Some records behind each other, padded."""
    if len(rows) == len(offsets) - 1:
        return text, offsets
    edges = list(zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True))
    out = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(offsets[rows + 1] - offsets[rows], out=out[1:])
    return _padded(np.concatenate([text[a:b] for a, b in edges]), out)


def _texts(text: Bytes, segments: list[Segments], rows: int) -> pa.Array | None:
    """Members as one JSON object per row; NULL for rows without any. A segment may end in white space and a comma."""
    if not segments:
        return pa.nulls(rows, pa.string())
    start, end, row = (np.concatenate(parts) for parts in zip(*segments, strict=True))
    order = np.argsort(start, kind="stable")
    start, end, row = start[order], _trimmed(text, end[order]), row[order]
    length = end - start
    first, last = np.ones(len(row), bool), np.ones(len(row), bool)
    first[1:] = last[:-1] = row[1:] != row[:-1]
    size = length + 1 + last
    begin = np.cumsum(size) - size
    out = np.empty(int(size.sum()), np.uint8)
    within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    out[within + np.repeat(begin + 1, length)] = text[within + np.repeat(start, length)]
    out[begin] = np.where(first, _OPEN, _COMMA)
    out[(begin + size - 1)[last]] = 125
    per_row = np.bincount(row, weights=size, minlength=rows).astype(np.int64)
    offsets = np.zeros(rows + 1, np.int32)
    np.cumsum(per_row, out=offsets[1:])
    has = np.packbits(per_row > 0, bitorder="little")
    return pa.Array.from_buffers(pa.string(), rows, [pa.py_buffer(has), pa.py_buffer(offsets), pa.py_buffer(out)])


def _trimmed(text: Bytes, end: Indexes) -> Indexes:
    """Where members end without white space, one comma and white space."""
    for comma in (True, False):
        while (space := SPACE[text[end - 1]]).any():
            end = end - space
        if comma:
            end = end - (text[end - 1] == _COMMA)
    return end


def _shape_of(text: Bytes, found: _Analysis, nodes: _Nodes, *, keep: bool) -> Shape | None:
    tokens, keys = found.tokens, found.keys
    shaped = tokens.char_in_text != _COMMA
    number = np.cumsum(shaped) - 1  # of each token in the text's order among those of the shape
    by_text = np.argsort(keys.at, kind="stable")
    at, back = keys.at[by_text].astype(np.int64), (keys.at - keys.start)[by_text].astype(np.int64)
    if len(at) == 0 or (back > _LONGEST_SHAPED_NAME).any() or (text[at - 1] != 34).any():
        return None
    colons = number[tokens.order[keys.where[by_text]]]
    arrays, steps = _array_parts(found, nodes, number)
    if arrays is None:
        return None
    kinds = nodes.kinds[found.nodes[by_text]]
    unknown = _unknown_parts(found, by_text, colons, back, int(number[-1])) if keep else ()
    words = names_as_words(text, colons, at, back)
    return Shape(tokens.char_in_text[shaped], colons, back, kinds, words, arrays, steps, unknown)


def _array_parts(found: _Analysis, nodes: _Nodes, number: Indexes) -> tuple[tuple[Array, ...] | None, Indexes]:
    """The typed arrays of a record: those of scalars, and the tokens between which an array of objects holds nothing else."""
    tokens = found.tokens
    arrays: list[Array] = []
    steps: list[int] = []
    typed = (tokens.char[tokens.opens] == _BRACKET) & (nodes.item[found.places] != _ANY_NODE)
    for container in np.flatnonzero(typed).tolist():
        kinds = int(nodes.kinds[nodes.item[found.places[container]]]) & ~NULL
        own = np.flatnonzero(tokens.container == container)
        opening, closing = int(tokens.order[own[0]]), int(tokens.order[own[-1]])
        if kinds in (STRING, NUMBER):
            arrays.append(Array(int(number[opening]), int(number[closing]), kinds))
        elif kinds in (OBJECT, ARRAY):
            inside = np.arange(opening, closing)
            depth = np.cumsum(_STEP[tokens.char_in_text[inside]])
            shaped = tokens.char_in_text[inside] != _COMMA
            steps += number[inside[(depth == 1) & shaped]].tolist()  # behind the array's bracket and behind each element
        else:
            return None, np.empty(0, np.intp)
    return tuple(arrays), np.array(steps, np.intp)


def _unknown_parts(found: _Analysis, by_text: Indexes, colons: Indexes, back: Indexes, last: int) -> tuple[tuple[int, int, int], ...]:
    """`Shape.unknown`: a top member ends where the name of the next begins, or with the record."""
    top = np.flatnonzero(found.tokens.level[found.keys.where[by_text]] == 1)
    parts = []
    for here, there in zip(top.tolist(), [*top[1:].tolist(), -1], strict=True):
        if found.unknown[by_text[here]]:
            parts.append((here, last, 0) if there < 0 else (here, int(colons[there]), int(back[there])))
    return tuple(parts)


class _Analysis(NamedTuple):
    """What `_analyse` found. `shapely`: nothing but values can make a record like these bad."""

    bad: _Bad
    tokens: _Tokens
    keys: _Keys
    nodes: Ints
    places: Ints
    unknown: Mask
    shapely: bool


class _Nodes:
    """The contract as a table: `child[node, name]` (-1: not named), `item[node]`, and the JSON kinds each node accepts."""

    def __init__(self, plan: Plan) -> None:
        self._kinds: list[int] = [OBJECT, ANY]
        self._item: list[int] = [_ANY_NODE, _ANY_NODE]
        self._edges: list[tuple[int, str, int]] = []
        self.lists = False
        for key, member in plan.root.children.items():
            self._edges.append((_ROOT, key, self._member(member, plan)))
        texts = sorted({key for _, key, _ in self._edges})
        self.names = [t.encode("utf-8", "surrogatepass") for t in texts]
        number = {t: i for i, t in enumerate(texts)}
        child = np.full((len(self._kinds), len(texts) + 1), -1, np.int32)  # the last column: any other name
        child[_ANY_NODE] = _ANY_NODE
        for node, key, to in self._edges:
            child[node, number[key]] = to
        self.child = _Clipped(child)
        self.kinds = np.array(self._kinds, np.uint8)
        self.item = np.array(self._item, np.int32)

    def _member(self, member: Member, plan: Plan) -> int:
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
        self._item.append(_ANY_NODE)
        return len(self._kinds) - 1


class _Clipped:
    """A table whose last column stands for all further ones."""

    def __init__(self, table: Ints) -> None:
        self._table = table

    def __getitem__(self, at: tuple[Ints, Ints]) -> Ints:
        return self._table[at[0], np.minimum(at[1], self._table.shape[1] - 1)]


class _Names:
    """Names to numbers by a 64-bit hash with secret factors. Declared names come first; others are learnt as they appear."""

    def __init__(self, declared: list[bytes]) -> None:
        self._bits = max(_SLOT_BITS, 2 * len(declared).bit_length() + 1)
        placed = False
        while not placed:  # until no two declared names share a slot
            self._factors = np.array([secrets.randbits(64) | 1 for _ in range(_NAME_WORDS + 1)], np.uint64)
            self._hashes: Hashes = np.empty(0, np.uint64)
            self._slots = np.full(2**self._bits, -1, np.int32)
            hashes = np.array([self._hash_one(name) for name in declared], np.uint64)
            self._learn(hashes)
            placed = not self._known(hashes)[1].any()

    def ids(self, text: Bytes, start: Ints, length: Ints) -> tuple[Ints, int]:
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
        text = np.frombuffer(name + bytes(8 * _NAME_WORDS + 8), np.uint8)
        return int(self._hash(text, np.zeros(1, np.int32), np.array([min(len(name), 8 * _NAME_WORDS)], np.int32))[0])

    def _hash(self, text: Bytes, start: Ints, length: Ints) -> Hashes:
        windows = np.lib.stride_tricks.as_strided(text, (len(text) - 7, 8), (1, 1), writeable=False)
        out = length.astype(np.uint64) * self._factors[_NAME_WORDS]
        out += _word(windows, start, length) * self._factors[0]
        for i in range(1, _NAME_WORDS):
            more = np.flatnonzero(length > 8 * i)
            if not len(more):
                break
            out[more] += _word(windows, start[more] + 8 * i, length[more] - 8 * i) * self._factors[i]
        return out


_KEEP = np.array([(1 << (8 * i)) - 1 for i in range(9)], np.uint64)


def _word(windows: Bytes, start: Ints, length: Ints) -> Hashes:
    """The first 8 bytes of each name as a number, what lies beyond its length as zero."""
    return windows[start].view("<u8")[:, 0] & _KEEP[np.minimum(length, 8)]
