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

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from beam_pipelines.arrow.types import DataType
from beam_pipelines.formats.json_bits import (
    Bytes,
    Indexes,
    Mask,
    Ranks,
    Structure,
    between,
    chunks,
    pack,
    runs_of_16,
    skip_space,
    structure,
    unpack,
)
from beam_pipelines.formats.json_learn import shape_of
from beam_pipelines.formats.json_names import ANY_NODE, NAME_WORDS, ROOT, Ints, Names, Nodes
from beam_pipelines.formats.json_plan import KIND_OF_BYTE, Member, Plan
from beam_pipelines.formats.json_shapes import Chunk, Segments, Shape, Shapes, Spans
from beam_pipelines.formats.json_syntax import Text
from beam_pipelines.formats.json_tokens import LEVELS, Analysis, Bad, Keys, Tokens
from beam_pipelines.formats.json_views import Columns

_COLON, _COMMA, _OPEN, _SHUT, _BRACKET, _BACKSLASH, _MINUS = 58, 44, 123, 125, 91, 92, 45
_DENSE_PAIRS = 2**24
_LONGEST_NUMBER = 64


class Proof(NamedTuple):
    """Rows that are proven, and the unknown members of those that have any, as JSON text (NULL: none)."""

    good: Mask
    unknown: pa.Array


class Extracted(NamedTuple):
    """`good` rows have a known shape; the text of their columns, and their unknown members. `wrong` rows have values that do not fit it."""

    good: Mask
    wrong: Mask
    columns: Columns
    unknown: pa.Array


class Members:
    """The prover of one plan. It remembers names it has seen, which changes its speed and nothing else."""

    def __init__(self, plan: Plan, **shapes: int) -> None:
        self._keep = plan.unknown == "keep"
        self._refuse = plan.unknown in ("dead_letter", "fail")
        self._nodes = Nodes(plan)
        self._names = Names(self._nodes.names)
        self._exact = needs_exact_numbers(plan)
        self._plain = np.array([not member.nested for _, member in plan.leaves], bool)
        self._doubles = np.array([name.decode("utf-8", "surrogatepass") in doubles(plan) for name in self._nodes.names], bool)
        self._shapes = Shapes(**shapes)

    def prove(self, data: Bytes, offsets: Indexes) -> Proof:
        """Judges the records `data[offsets[i]:offsets[i + 1]]`, each a valid JSON object."""
        rows = len(offsets) - 1
        good = np.ones(rows, bool)
        texts = [self._chunk(data, offsets[a : b + 1], good[a:b]) for a, b in chunks(offsets)]
        found = [t for t in texts if t is not None]
        if not any(t.null_count < len(t) for t in found):
            return Proof(good, pa.nulls(rows, pa.string()))
        return Proof(good, pa.concat_arrays(found))

    def extract(self, text: Text, valid: Mask) -> Extracted:
        """Takes the `valid` records apart by their shapes, without a parser; the others are passed over."""
        rows = len(valid)
        good, wrong = np.zeros(rows, bool), np.zeros(rows, bool)
        columns = Columns(text.data, rows, len(self._plain))
        unknown: list[pa.Array] = []
        escaped: list[tuple[Indexes, Indexes, list[bytes]]] = []
        for a, b in chunks(text.offsets):
            base = int(text.offsets[a])
            part, local = padded(text.data[base : int(text.offsets[b])], text.offsets[a : b + 1] - base)
            broken = [(int(local[r]), int(local[r + 1])) for r in np.flatnonzero(~valid[a:b]).tolist()]
            chunk = Chunk(part, local, blank=broken)
            spans = Spans.none(len(self._plain), b - a)
            matched = self._shapes.match(chunk, self._shape, spans)
            good[a:b], wrong[a:b], segments = matched.proven, matched.named & ~matched.proven, matched.segments
            columns.fill(a, part, base, spans)
            if chunk.escapes:
                escaped.append(self._escaped(chunk, spans, a))
            unknown.append(_texts(part, segments, b - a) if segments else pa.nulls(b - a, pa.string()))
        for at, column, texts in escaped:
            columns.unescape(at, column, texts)
        return Extracted(good, wrong, columns, pa.concat_arrays(unknown))

    def _escaped(self, chunk: Chunk, spans: Spans, first: int) -> tuple[Indexes, Indexes, list[bytes]]:
        """Row, column and text of the strings that hold a backslash."""
        marks = chunk.text[: chunk.size] == _BACKSLASH
        rows = np.unique(np.searchsorted(chunk.offsets, np.flatnonzero(marks), side="right") - 1)
        start, stop = spans.start[:, rows], spans.stop[:, rows]
        ranks = Ranks(pack(marks))
        column, row = np.nonzero((ranks.below(start) < ranks.below(stop)) & self._plain[:, None])
        edges = zip(start[column, row].tolist(), stop[column, row].tolist(), strict=True)
        view = chunk.text.data
        return rows[row] + first, column, [bytes(view[a:b]) for a, b in edges]

    def _chunk(self, data: Bytes, offsets: Indexes, good: Mask) -> pa.Array | None:
        text, offsets = padded(data[offsets[0] : offsets[-1]], offsets - offsets[0])
        chunk = Chunk(text, offsets)
        found = self._shapes.match(chunk, self._shape)
        good[:], unknown = found.proven, found.segments
        rest = np.flatnonzero(~good)
        if len(rest):
            part, part_offsets = _gathered(text, offsets, rest)
            analysis = self._analyse(part, part_offsets)
            good[rest] = analysis.bad.good
            moved = offsets[rest] - part_offsets[:-1]
            unknown += [Segments(u.start + moved[u.row], u.end + moved[u.row], rest[u.row]) for u in self._kept(analysis)]
        if self._exact:
            Bad(offsets, good).at(self._delicate(text, int(offsets[-1]), chunk.marks))
        return _texts(text, unknown, len(good))

    def _delicate(self, text: Bytes, size: int, marks: Structure) -> Indexes:
        """Where numbers stand that a double may change, but for members that are doubles themselves."""
        found = inexact(text[:size], marks)
        if not len(found) or not self._doubles.any():
            return found
        quotes = np.flatnonzero(unpack(marks.quotes, size))
        closing = np.searchsorted(quotes, found) - 1  # a number of a member: `"name": 1.5`, and nothing but these stands between
        first, last = quotes[closing - 1], quotes[closing]
        colon = skip_space(text, last + 1)
        value = skip_space(text, colon + 1)
        minus = value + (text[value] == _MINUS)
        member = (text[colon] == _COLON) & (minus <= found) & (found - minus < _LONGEST_NUMBER) & (text[minus] - np.uint8(48) < 10)
        near = np.flatnonzero(member)
        near = near[self._one_number(text, minus[near], found[near])]
        ids, _ = self._names.ids(text, first[near] + 1, np.minimum(last[near] - first[near] - 1, 8 * NAME_WORDS))
        double = np.append(self._doubles, False)[np.minimum(ids, len(self._doubles))]
        return np.delete(found, near[double])

    @staticmethod
    def _one_number(text: Bytes, start: Indexes, end: Indexes) -> Mask:
        """Whether nothing but digits, points, signs and exponents stands from `start` to `end`, which are near each other."""
        width = int((end - start).max(initial=0)) + 1
        window = text[np.minimum(start[:, None] + np.arange(width), len(text) - 1)]
        digit = ((window - np.uint8(43)) < 15) & (window != _COMMA) | ((window | 32) == 101)
        one: Mask = (digit | (np.arange(width) > (end - start)[:, None])).all(axis=1)
        return one

    def _analyse(self, text: Bytes, offsets: Indexes) -> Analysis:
        """Tells of each record whether its members fit, by the place of each in the contract."""
        size = int(offsets[-1])
        escapes = bool((text == _BACKSLASH).any())
        bad = Bad(offsets, np.ones(len(offsets) - 1, bool))
        tokens = Tokens.of(text, size, structure(text[:size], escapes))
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
        return Analysis(bad, tokens, keys, nodes, places, unknown, shapely)

    def _kept(self, found: Analysis) -> list[Segments]:
        """The unknown members of proven records."""
        kept = np.flatnonzero(found.unknown) if self._keep else np.empty(0, np.int64)
        kept = kept[found.tokens.level[found.keys.where[kept]] == 1]
        if not len(kept):
            return []
        where = found.keys.where[kept]
        ends = found.tokens.position[where + 1]  # the next token of this level: a comma or the end
        apart = np.diff(where) != 2  # neighbours have one comma between their colons: they are kept in one piece
        head, tail = np.append(True, apart), np.append(apart, True)
        start = found.keys.start[kept][head]
        return [Segments(start, ends[tail], found.bad.rows(start))]

    def _shape(self, record: Bytes) -> Shape | None:
        """The shape of a record, where it is regular and all records of its shape may pass."""
        text, offsets = padded(record, np.array([0, len(record)], np.int64))
        found = self._analyse(text, offsets)
        return shape_of(text, found, self._nodes, keep=self._keep) if found.shapely else None

    def _keys(self, text: Bytes, tokens: Tokens, bad: Bad, *, escapes: bool) -> Keys:
        where = np.flatnonzero(tokens.char == _COLON)
        at = tokens.position[where]
        before = skip_space(text, tokens.position_before(where) + 1)
        close = skip_space(text, at - 1, back=True)
        length = close - before - 1
        long = length > 8 * NAME_WORDS
        if long.any():
            bad.at(at[long])
            length = np.minimum(length, 8 * NAME_WORDS)
        if escapes:
            backslash = np.flatnonzero(text == _BACKSLASH)
            behind = tokens.char_in_text[np.searchsorted(tokens.position_in_text, backslash)]
            bad.at(backslash[behind == _COLON])
        ids, count = self._names.ids(text, before + 1, length)
        return Keys(where, at, before, tokens.container[where], ids, count)

    def _places(self, tokens: Tokens, keys: Keys) -> tuple[Ints, Mask, Ints]:
        """The node of each member, whether the contract names it, and the node of each container."""
        n = self._nodes
        nodes = np.full(len(keys.at), ANY_NODE, np.int32)
        known = np.ones(len(keys.at), bool)
        containers = np.full(len(tokens.opens), ANY_NODE, np.int32)
        levels = tokens.level[tokens.opens]
        bounds = np.searchsorted(levels, np.arange(1, LEVELS + 3)).tolist()
        key_bounds = np.searchsorted(tokens.level[keys.where], np.arange(1, LEVELS + 3)).tolist()
        ordinal = np.zeros(len(tokens.char), np.int32)
        ordinal[tokens.order[keys.where]] = np.arange(len(keys.at), dtype=np.int32)
        containers[: bounds[1]] = ROOT
        for level in range(1, LEVELS + 1):
            a, b = key_bounds[level - 1], key_bounds[level]
            child = n.child[containers[keys.container[a:b]], keys.ids[a:b]] if b > a else nodes[a:b]
            known[a:b] = child >= 0
            nodes[a:b] = np.where(child >= 0, child, ANY_NODE)
            a, b = bounds[level], bounds[level + 1]
            if a == b:
                break
            index = tokens.order[tokens.opens[a:b]] - 1  # the token before: the member's colon, or the bracket or comma of an array
            member = tokens.char_in_text[index] == _COLON
            outer = containers[tokens.container_in_text(index)]
            containers[a:b] = np.where(member, nodes[ordinal[index]], n.item[outer])
        return nodes, known, containers

    def _elements(self, text: Bytes, tokens: Tokens, places: Ints, bad: Bad) -> None:
        """Values in arrays that have a type."""
        if not self._nodes.lists:
            return
        typed = (tokens.char[tokens.opens] == _BRACKET) & (self._nodes.item[places] != ANY_NODE)
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


def doubles(plan: Plan) -> frozenset[str]:
    """Names that only members of a floating type have; none where a JSON column may hold members of any name."""
    floating: set[str] = set()
    other: set[str] = set()

    def visit(name: str, dtype: DataType) -> None:
        (floating if dtype.floating else other).add(name)
        if dtype.item is not None:
            visit(name + "[]", dtype.item)
        for below, kind in dtype.fields:
            visit(below, kind)

    def descend(member: Member, name: str) -> None:
        for column in member.columns:
            visit(name, plan.column(column).dtype)
        for below, child in member.children.items():
            descend(child, below)

    for name, member in plan.root.children.items():
        descend(member, name)
    loose = any(plan.column(name).dtype.kind == "json" for name, _ in plan.leaves) or "json" in str(
        [plan.column(n).type for n, _ in plan.leaves]
    )
    return frozenset() if loose else frozenset(floating - other)


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
    """Where long runs of digits and points begin that are no integers; `inside`: all positions with 15 more of them behind."""
    edge = np.diff(inside) != 1
    begin, end = inside[np.append(True, edge)], inside[np.append(edge, True)] + 16
    points = np.flatnonzero(text == 46)
    fraction = np.searchsorted(points, begin) < np.searchsorted(points, end)
    exponent = (text[np.minimum(end, len(text) - 1)] | 32) == 101
    found: Indexes = begin[fraction | exponent]
    return found


def _repeated(keys: Keys, containers: int) -> Mask:
    """Members of a name that their object has more than once."""
    pair = keys.container.astype(np.int64) * keys.names + keys.ids
    if containers * keys.names <= _DENSE_PAIRS:
        seen = np.zeros(containers * keys.names, np.uint8)
        seen[pair] = 1
        if np.count_nonzero(seen) == len(pair):
            return np.zeros(len(pair), bool)
        count = np.bincount(pair, minlength=len(seen))[pair]
    else:
        _, inverse, counts = np.unique(pair, return_inverse=True, return_counts=True)
        count = counts[inverse]
    repeated: Mask = count > 1
    return repeated


def padded(text: Bytes, offsets: Indexes) -> tuple[Bytes, Indexes]:
    """A copy of the text with room to read words beyond its end."""
    out = np.zeros(len(text) + 8 * NAME_WORDS, np.uint8)
    out[: len(text)] = text
    return out, offsets


def _gathered(text: Bytes, offsets: Indexes, rows: Indexes) -> tuple[Bytes, Indexes]:
    """Some records behind each other, padded."""
    if len(rows) == len(offsets) - 1:
        return text, offsets
    edges = list(zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True))
    out = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(offsets[rows + 1] - offsets[rows], out=out[1:])
    return padded(np.concatenate([text[a:b] for a, b in edges]), out)


def _texts(text: Bytes, segments: list[Segments], rows: int) -> pa.Array | None:
    """Members as one JSON object per row; NULL for rows without any. A segment may end in white space and a comma."""
    if not segments:
        return pa.nulls(rows, pa.string())
    start, end, row = (np.concatenate(parts) for parts in zip(*segments, strict=True))
    order = np.argsort(start, kind="stable")
    start, end, row = start[order], _trimmed(text, end[order]), row[order]
    first, last = np.ones(len(row), bool), np.ones(len(row), bool)
    first[1:] = last[:-1] = row[1:] != row[:-1]
    text[start - 1] = np.where(first, _OPEN, _COMMA)  # what stands around a member is not needed any more
    text[end[last]] = _SHUT
    edges = np.zeros(len(text), bool)
    edges[start - 1] ^= True
    edges[end + last] ^= True
    out = text[unpack(between(pack(edges)), len(text))]
    per_row = np.bincount(row, weights=end + last - start + 1, minlength=rows).astype(np.int64)
    offsets = np.zeros(rows + 1, np.int32)
    np.cumsum(per_row, out=offsets[1:])
    has = np.packbits(per_row > 0, bitorder="little")
    return pa.Array.from_buffers(pa.string(), rows, [pa.py_buffer(has), pa.py_buffer(offsets), pa.py_buffer(out)])


def _trimmed(text: Bytes, end: Indexes) -> Indexes:
    """Where members end without white space, one comma and white space."""
    last = skip_space(text, end - 1, back=True)
    return skip_space(text, last - (text[last] == _COMMA), back=True) + 1


def _value(text: Bytes, at: Indexes) -> Indexes:
    """Where the value behind a colon, comma or bracket begins."""
    return skip_space(text, at + 1)
