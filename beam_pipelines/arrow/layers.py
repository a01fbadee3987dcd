"""Layers: stages in SQL, and the one SELECT that adjacent layers become.

A layer defines columns, names the conditions under which a row is rejected, and may filter. The SELECT gives the columns that go
on, the door each row leaves by, and warnings as bits:

    _door   0 goes on · n > 0 rejected by layer n · n < 0 filtered by layer -n · SUSPECT decided by the layer's `resolve`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.schema import PROVENANCE_NAMES, RAW, RESERVED_PREFIX, Reasons, Rejected

DOOR, WARN, WHY = "_door", "_warn", "_why"
EXPRESSION = "EXPRESSION"
SUSPECT = 32767
WARN_BITS = 62
KernelResult = tuple[pa.RecordBatch, dict[int, Rejected]]


class Define(NamedTuple):
    """A column a layer computes. Inside the layer it is called `name$`; the input column of that name keeps its own.

    `fallible` says that `sql` may raise at run time (a user's expression); casts by TRY_CAST may not.
    """

    name: str
    sql: str
    fallible: bool = False


class Reject(NamedTuple):
    """One way to be rejected: rows for which `when` is TRUE. NULL and FALSE pass, as in SQL CHECK.

    `message` is SQL text, evaluated for rejected rows only; `name` is the check's or column's name.
    """

    reason: str
    name: str
    column: str
    when: str
    message: str
    fallible: bool = False


class Warn(NamedTuple):
    """A check that only counts: rows for which `when` is TRUE stay."""

    name: str
    when: str
    fallible: bool = False


@dataclass(frozen=True)
class Layer:
    """One stage in SQL over the columns of the stage before.

    `let` names intermediate values (`name$`) that several of `define` use; they are computed once and go no further.
    `columns` names what goes on, in order (None: inputs, then new columns); provenance and `_raw` go on unnamed, and a name that
    starts with `_` may be absent. `drop` names what does not go on. Rows for which `keep` is not TRUE are filtered. Rows for which
    `suspect` is TRUE are taken out of the SELECT; `resolve` decides each of them exactly, giving the columns this layer would have given.
    A batch that has a column `unless` has what this layer defines already, for all rows: the layer only picks its `columns`.
    """

    stage: str
    let: tuple[Define, ...] = ()
    define: tuple[Define, ...] = ()
    rejects: tuple[Reject, ...] = ()
    warns: tuple[Warn, ...] = ()
    keep: str | None = None
    columns: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    suspect: str | None = None
    resolve: Callable[[pa.RecordBatch], KernelResult] | None = None
    unless: str | None = None

    def over(self, inputs: tuple[str, ...]) -> Layer:
        """What is left of the layer for a batch with these columns."""
        return self if self.unless is None or self.unless not in inputs else Layer(self.stage, columns=self.columns, drop=self.drop)


@lru_cache(maxsize=1024)
def query(layers: tuple[Layer, ...], inputs: tuple[str, ...]) -> Query:
    """The query of adjacent layers over the given input columns, written once."""
    return Query(layers, inputs)


class Query:
    """The SQL of adjacent layers over the given input columns."""

    def __init__(self, layers: Sequence[Layer], inputs: tuple[str, ...]) -> None:
        self.layers = tuple(layer.over(inputs) for layer in layers)
        self.inputs = inputs
        self.columns = inputs
        for layer in self.layers:
            self.columns = _columns_after(layer, self.columns)
        self.rules = [_rules(layer) for layer in self.layers]
        self._written: dict[tuple[bool, bool], str] = {}

    def sql(self, *, safe: bool = False, why: bool = False) -> str:
        """Fast: columns, door, warnings. Safe: no expression can raise. Why: a list of (reject number, message) per row."""
        if (safe, why) not in self._written:
            self._written[safe, why] = self._write(safe=safe, why=why)
        return self._written[safe, why]

    def _write(self, *, safe: bool, why: bool) -> str:
        carried = f"0::SMALLINT AS {DOOR}" + (f", NULL::STRUCT(i INTEGER, m VARCHAR)[] AS {WHY}" if why else "")
        relation = f"SELECT {_list(self.inputs)}, {carried} FROM $slot"
        columns, warns = self.inputs, 0
        warn_columns: list[str] = []
        for number, layer in enumerate(self.layers, 1):
            relation = _defined(layer, columns, relation, warn_columns, safe=safe, why=why)
            door, reasons = _door(layer, number, safe=safe), (f", {_why(layer)} AS {WHY}" if why else "")
            passed = warn_columns.copy()
            for _ in layer.warns:
                chunk = f"{WARN}{warns // WARN_BITS * WARN_BITS}"
                warn_columns.extend([chunk] if chunk not in warn_columns else [])
                warns += 1
            fresh = _warn_columns(layer, warns - len(layer.warns), passed, safe=safe)
            after = _columns_after(layer, columns)
            new = {d.name for d in layer.define}
            chosen = ", ".join(f"{quote(c + '$')} AS {quote(c)}" if c in new else quote(c) for c in after)
            relation = f"SELECT {chosen}{',' if chosen else ''} {door} AS {DOOR}{reasons}{fresh} FROM ({relation})"
            columns = after
        return relation

    def reasons(self, doors: npt.NDArray[np.integer], why: pa.ListArray) -> Reasons:
        """Why rows left by `doors` (all of them rejected), from what the `why` query says of each."""
        rules = self._table
        lengths = pc.fill_null(pc.list_value_length(why), 0).to_numpy(zero_copy_only=False)
        ends = np.zeros(len(why) + 1, np.int32)
        np.cumsum(lengths, out=ends[1:])
        hits = why.flatten()
        rule = rules.first[np.repeat(doors, lengths) - 1] + hits.field("i").to_numpy()
        chosen = rules.texts.take(pa.array(rule))
        none = pc.binary_join_element_wise(chosen["name"], pa.scalar("no reason can be given"), pa.scalar(": "))
        led = np.where(lengths > 0, np.append(rule, 0)[ends[:-1]], rules.texts.num_rows - 1)
        reason = rules.texts["reason"].take(pa.array(led))
        messages = pc.coalesce(hits.field("m"), none)
        return Reasons.built(rules.stages.take(pa.array(doors - 1)), reason, chosen["name"], chosen["column"], messages, pa.array(ends))

    @cached_property
    def _table(self) -> _Rules:
        rules = [(r.reason, r.name, r.column) for rules in self.rules for r in rules] + [(EXPRESSION, "", "")]
        texts = [pa.array(column, pa.string()) for column in zip(*rules, strict=True)]
        first = np.cumsum([0, *map(len, self.rules)])[:-1]
        stages = pa.array([layer.stage for layer in self.layers], pa.string())
        return _Rules(pa.RecordBatch.from_arrays(texts, names=["reason", "name", "column"]), first, stages)


class _Rules(NamedTuple):
    """The rules of all layers as columns, the last one for rows of which nothing is known; each layer's `first` rule, and its stage."""

    texts: pa.RecordBatch
    first: npt.NDArray[np.int64]
    stages: pa.Array


def _rules(layer: Layer) -> list[Reject]:
    """The layer's rejects, and one more per fallible expression: that it raised."""

    def raised(name: str, column: str, sql: str) -> Reject:
        text = f"{name}: the expression fails on this row (division by zero, overflow, or a value a function refuses): {sql}"
        return Reject(EXPRESSION, name, column, f"{_tried(sql)} IS NULL", literal(text))

    extra = [raised(d.name, d.name, d.sql) for d in layer.define if d.fallible]
    extra += [raised(r.name, r.column, r.when) for r in layer.rejects if r.fallible]
    extra += [raised(w.name, "", w.when) for w in layer.warns if w.fallible]
    extra += [raised("filter", "", layer.keep)] if layer.keep is not None else []
    return [*layer.rejects, *extra]


def _tried(sql: str) -> str:
    """NULL if and only if `sql` raises: a NULL value is a struct with a NULL in it."""
    return f"TRY({{'v': ({sql}\n)}})"  # the line break ends a comment in a user's expression


def _safe(sql: str, fallible: bool, safe: bool) -> str:
    return f"{_tried(sql)}.v" if safe and fallible else f"({sql}\n)"


def _defined(layer: Layer, columns: Sequence[str], relation: str, warns: Sequence[str], *, safe: bool, why: bool) -> str:
    if not layer.define:
        return relation
    carried = [DOOR, *([WHY] if why else []), *warns]
    kept = f"{_list(columns)}, " if columns else ""
    for defines in (layer.let, layer.define):
        new = "".join(f", {_safe(d.sql, d.fallible, safe)} AS {quote(d.name + '$')}" for d in defines)
        relation = f"SELECT {kept}{', '.join(carried)}{new} FROM ({relation})" if new else relation
    return relation


def _door(layer: Layer, number: int, *, safe: bool) -> str:
    cases = [f"WHEN {DOOR} <> 0 THEN {DOOR}"]
    if layer.suspect is not None:
        cases.append(f"WHEN {layer.suspect} THEN {SUSPECT}")
    wrong = [_safe(r.when, r.fallible, safe) for r in layer.rejects]
    if safe:
        wrong += [f"({rule.when}\n)" for rule in _rules(layer)[len(layer.rejects) :]]
    if wrong:
        cases.append(f"WHEN {' OR '.join(wrong)} THEN {number}")
    if layer.keep is not None:
        keep = _safe(layer.keep, True, safe)
        cases.append(f"WHEN {keep} THEN 0 ELSE -{number}")
    return f"(CASE {' '.join(cases)}{'' if layer.keep is not None else ' ELSE 0'} END)::SMALLINT" if len(cases) > 1 else DOOR


def _why(layer: Layer) -> str:
    hits = [
        f"CASE WHEN {_safe(r.when, r.fallible, True)} THEN {{'i': {i}, 'm': {_tried(r.message)}.v}} END"
        for i, r in enumerate(_rules(layer))
    ]
    if not hits:
        return WHY
    return f"CASE WHEN {DOOR} <> 0 THEN {WHY} ELSE list_filter([{', '.join(hits)}], lambda hit: hit IS NOT NULL) END"


def _warn_columns(layer: Layer, first: int, passed: Sequence[str], *, safe: bool) -> str:
    bits: dict[str, list[str]] = {name: [name] for name in passed}
    for i, warn in enumerate(layer.warns, first):
        chunk = f"{WARN}{i // WARN_BITS * WARN_BITS}"
        bit = 1 << (i % WARN_BITS)
        bits.setdefault(chunk, []).append(f"(CASE WHEN {_safe(warn.when, warn.fallible, safe)} THEN {bit}::BIGINT ELSE 0::BIGINT END)")
    return "".join(f", {' | '.join(parts)} AS {chunk}" for chunk, parts in bits.items())


def _columns_after(layer: Layer, columns: tuple[str, ...]) -> tuple[str, ...]:
    after = columns + tuple(d.name for d in layer.define if d.name not in columns)
    if layer.columns is not None:
        listed = tuple(c for c in layer.columns if c in after or not c.startswith(RESERVED_PREFIX))
        after = listed + tuple(c for c in columns if (c in PROVENANCE_NAMES or c == RAW) and c not in listed)
    return tuple(c for c in after if c not in layer.drop)


def _list(columns: Sequence[str]) -> str:
    return ", ".join(quote(c) for c in columns)
