"""Transform steps as layers and kernels: filter, set, rename, drop are SQL; apply and lookup are Python on the whole batch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from beam_pipelines.arrow.apply import ApplyFunction, Function, load
from beam_pipelines.arrow.engine import quote
from beam_pipelines.arrow.enrich import Enrich, Lookup, LookupTable, matched, taken
from beam_pipelines.arrow.expressions import ExpressionError, check_expression
from beam_pipelines.arrow.layers import Define, Layer
from beam_pipelines.arrow.program import Program, Split, Step
from beam_pipelines.arrow.schema import CHANGE, KEY_HASH, PROVENANCE_NAMES, RAW, RESERVED_PREFIX, UNKNOWN
from beam_pipelines.arrow.transform import Apply, LookupStep, TransformStep
from beam_pipelines.arrow.types import parse_type
from beam_pipelines.errors import SpecError, nearest

_STAGE = "transform"


def transform_batch(batch: pa.RecordBatch, steps: Sequence[TransformStep], *, lookups: Mapping[str, Lookup] | None = None) -> Split:
    """`batch` after `steps`: the rows that go on, dead letters for rows on which an expression or function fails, the number filtered.

    rows + dead + filtered = input rows.

    >>> batch = pa.RecordBatch.from_pydict({'miles': [100, 0, 50], 'hours': [2, 1, 0]})
    >>> steps = [TransformStep(filter='miles > 0'), TransformStep(set={'mph': 'miles // hours'})]
    >>> split = transform_batch(batch, steps)
    >>> split.rows.to_pylist(), split.filtered, split.dead['reason'].to_pylist()
    ([{'miles': 100, 'hours': 2, 'mph': 50}], 1, ['EXPRESSION'])
    """
    civil = civil_columns(batch.schema)
    program = Program(
        transform_steps(steps, lookups=lookups or {}, columns=batch.schema.names), civil=civil_after(steps, civil), keep_raw=True
    )
    return program(batch)


def transform_steps(
    steps: Sequence[TransformStep],
    *,
    lookups: Mapping[str, Lookup],
    columns: Iterable[str],
    functions: Mapping[int, Function] | None = None,
) -> tuple[Step, ...]:
    """The steps' layers and kernels, for rows with the given columns (provenance goes without saying). Reserved columns among them go on.

    `functions` gives the function of an `apply` step by the step's number, where it is not to be imported by its name. Raises SpecError for a
    column or lookup that does not exist, a name that is taken, and expressions that cannot be.
    """
    state = _Columns.of(columns)
    made: list[Step] = []
    for number, step in enumerate(steps):
        added, state = _step(step, state, lookups, f"transform[{number}]", (functions or {}).get(number))
        made += added
    return tuple(made)


def correction_steps(steps: Sequence[TransformStep], *, columns: Iterable[str], held: Iterable[str]) -> tuple[Layer, ...]:
    """What `steps` make of rows that take rows back (`_change` -1), which have only the columns `held` of `columns`, and reserved ones.

    A column is renamed or dropped as in the rows themselves, and computed where `held` says all that its expression reads; every other column is
    absent afterwards. Nothing is filtered and no function is called.
    """
    state, known = _Columns.of(columns), dict.fromkeys(held)
    made: list[Layer] = []
    for number, step in enumerate(steps):
        for name, sql in (step.set or {}).items():
            reads = [c for c in _references(sql, state) if c not in PROVENANCE_NAMES]
            state = state.with_names([name])
            if known.keys() >= set(reads):
                known[name] = None
                made.append(Layer(_STAGE, define=(Define(name, f"TRY({sql}\n)"),), columns=(*known, *state.reserved)))
            else:
                known.pop(name, None)
        if step.rename is not None:
            new_names = {old: new for new, old in step.rename.items() if old in known}
            known = dict.fromkeys(new_names.get(n, n) for n in known)
            made.append(
                Layer(_STAGE, define=tuple(Define(new, quote(old)) for old, new in new_names.items()), columns=(*known, *state.reserved))
            )
        if step.set is None:
            _, state = _step(step, state, None, f"transform[{number}]")
        gone = step.drop or (step.apply.columns if step.apply else step.lookup.take if step.lookup else ())
        known = {name: None for name in known if name not in gone}
    return (*made, Layer(_STAGE, columns=(*known, *state.reserved)))


def check_steps_alone(
    steps: Sequence[TransformStep], *, lookups: Mapping[str, Lookup], functions: Mapping[int, Function] | None = None
) -> None:
    """What is wrong with `steps` whatever columns rows have: expressions that cannot be, functions that cannot be imported, lookups.

    Raises SpecError.
    """
    for number, step in enumerate(steps):
        where = f"transform[{number}]"
        for sql in (step.filter,) if step.filter is not None else (step.set or {}).values():
            check_syntax(sql, where)
        _free([*(step.set or {}), *(step.rename or {})], where)
        if step.apply is not None and number not in (functions or {}):
            load(step.apply.function)
        if step.lookup is not None:
            _check_lookup(step.lookup, lookups, where)


def check_syntax(sql: str, where: str) -> None:
    """Raises SpecError for what is wrong with an expression whatever columns there are."""
    try:
        check_expression(sql, {})
    except ExpressionError as error:
        unknown = [fault.column for fault in error.faults if fault.column is not None]
        try:
            check_expression(sql, dict.fromkeys(unknown))
        except ExpressionError as still:
            raise SpecError(f"{where}: {still.message}", hint=still.hint) from None


def columns_after(steps: Sequence[TransformStep], columns: Iterable[str]) -> tuple[str, ...]:
    """The columns that rows have after `steps`, in order, without reserved ones."""
    state = _Columns.of(columns)
    for number, step in enumerate(steps):
        _, state = _step(step, state, None, f"transform[{number}]")
    return state.names


def civil_columns(schema: pa.Schema) -> frozenset[str]:
    """The timestamp columns without a zone: civil times."""
    return frozenset(f.name for f in schema if pa.types.is_timestamp(f.type) and f.type.tz is None)


def civil_after(steps: Sequence[TransformStep], civil: frozenset[str]) -> frozenset[str]:
    """The columns that are civil times during and after `steps`, for `Program.civil`: a column set from a civil one is civil."""
    known = set(civil)
    for step in steps:
        for new, old in (step.rename or {}).items():
            known |= {new} if old in known else set()
        for name, sql in (step.set or {}).items():
            known |= {name} if any(_names(sql, c) for c in known) else set()
        for name, kind in (step.apply.columns if step.apply else {}).items():
            known |= {name} if parse_type(kind).kind == "datetime" else set()
    return frozenset(known)


@dataclass(frozen=True)
class _Columns:
    """The row's columns on their way through the steps: its own, whether `_unknown` is still there, and the other reserved ones.

    Provenance and `_raw` go on by themselves; `_key_hash` does not, for the key may change.
    """

    names: tuple[str, ...]
    unknown: bool
    reserved: tuple[str, ...]

    @staticmethod
    def of(columns: Iterable[str]) -> _Columns:
        given = tuple(columns)
        apart = {*PROVENANCE_NAMES, RAW, UNKNOWN, KEY_HASH}
        own = tuple(n for n in given if not n.startswith(RESERVED_PREFIX))
        return _Columns(own, True, tuple(n for n in given if n.startswith(RESERVED_PREFIX) and n not in apart))

    @property
    def listed(self) -> tuple[str, ...]:
        return (*self.names, *((UNKNOWN,) if self.unknown else ()), *self.reserved)

    @property
    def seen(self) -> tuple[str, ...]:
        """What expressions and `drop` may name: not `_change`, which says what a row is for."""
        return tuple(n for n in self.listed if n != CHANGE)

    def with_names(self, names: Iterable[str]) -> _Columns:
        return replace(self, names=tuple(dict.fromkeys((*self.names, *names))))

    def without(self, names: Iterable[str]) -> _Columns:
        gone = set(names)
        kept, reserved = (tuple(n for n in some if n not in gone) for some in (self.names, self.reserved))
        return _Columns(kept, self.unknown and UNKNOWN not in gone, reserved)

    def need(self, names: Iterable[str], where: str) -> None:
        for name in names:
            if name not in self.seen:
                raise SpecError(f"{where}: no column {name!r};", hint=nearest(name, self.names))


def _step(
    step: TransformStep, columns: _Columns, lookups: Mapping[str, Lookup] | None, where: str, function: Function | None = None
) -> tuple[list[Step], _Columns]:
    """One step's layers or kernel, and the columns after it; without `lookups` a lookup is taken to exist."""
    if step.filter is not None:
        _references(step.filter, columns)
        return [Layer(_STAGE, keep=step.filter)], columns
    if step.set is not None:
        _free(step.set, where)
        return _set(step.set, columns)
    if step.rename is not None:
        return _rename(step.rename, columns, where)
    if step.drop is not None:
        return _drop(step.drop, columns, where)
    if step.apply is not None:
        return _apply(step.apply, columns, where, function)
    assert step.lookup is not None
    return _lookup(step.lookup, columns, lookups, where)


def _set(entries: Mapping[str, str], columns: _Columns) -> tuple[list[Step], _Columns]:
    """As few layers as the entries allow: one that uses an earlier entry starts a layer."""
    made: list[Step] = []
    group: dict[str, str] = {}
    for name, sql in entries.items():
        if not group.keys().isdisjoint(_references(sql, columns)):
            made.append(_set_layer(group, columns))
            group = {}
        group[name] = sql
        columns = columns.with_names([name])
    return [*made, _set_layer(group, columns)], columns


def _set_layer(group: Mapping[str, str], columns: _Columns) -> Layer:
    return Layer(_STAGE, define=tuple(Define(n, sql, fallible=True) for n, sql in group.items()), columns=columns.listed)


def _rename(new_to_old: Mapping[str, str], columns: _Columns, where: str) -> tuple[list[Step], _Columns]:
    _free(new_to_old, where)
    columns.need(new_to_old.values(), where)
    stay = set(columns.names) - set(new_to_old.values())
    for new in new_to_old:
        if new in stay:
            raise SpecError(f"{where}: cannot rename to {new!r}: a column has that name.", hint="Drop it first.")
    new_names = {old: new for new, old in new_to_old.items()}
    after = replace(columns, names=tuple(new_names.get(n, n) for n in columns.names))
    return [Layer(_STAGE, define=tuple(Define(new, quote(old)) for new, old in new_to_old.items()), columns=after.listed)], after


def _drop(names: Sequence[str], columns: _Columns, where: str) -> tuple[list[Step], _Columns]:
    columns.need(names, where)
    after = columns.without(names)
    return [Layer(_STAGE, columns=after.listed)], after


def _apply(step: Apply, columns: _Columns, where: str, function: Function | None) -> tuple[list[Step], _Columns]:
    _free(step.columns, where)
    declared = tuple((name, parse_type(kind)) for name, kind in step.columns.items())
    return [ApplyFunction(step.function, declared, function)], columns.with_names(step.columns)


def _lookup(step: LookupStep, columns: _Columns, lookups: Mapping[str, Lookup] | None, where: str) -> tuple[list[Step], _Columns]:
    _free(step.take, where)
    on = step.on
    columns.need((on,) if isinstance(on, str) else tuple(on), where)
    after = columns.with_names(step.take)
    if lookups is None:
        return [], after
    if step.from_ not in lookups:
        raise SpecError(f"{where}: no lookup {step.from_!r};", hint=nearest(step.from_, lookups))
    return [Enrich(lookups[step.from_], on, step.take)], after


def _references(sql: str, columns: _Columns) -> tuple[str, ...]:
    """The columns that an expression names. Raises ExpressionError, which says where it is wrong."""
    known: dict[str, str | None] = dict.fromkeys([*columns.seen, *sorted(PROVENANCE_NAMES)])
    return check_expression(sql, known).references


def _check_lookup(step: LookupStep, lookups: Mapping[str, Lookup], where: str) -> None:
    _free(step.take, where)
    if step.from_ not in lookups:
        raise SpecError(f"{where}: no lookup {step.from_!r};", hint=nearest(step.from_, lookups))
    table = lookups[step.from_]
    if isinstance(table, LookupTable):
        matched(table, step.on, (step.on,) if isinstance(step.on, str) else tuple(step.on))
        taken(table, step.take)


def _names(sql: str, column: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(column)}(?!\w)", sql, re.IGNORECASE) is not None


def _free(names: Iterable[str], where: str) -> None:
    for name in names:
        if not name or name.startswith(RESERVED_PREFIX) or "$" in name:
            raise SpecError(f"{where}: column name {name!r} is reserved or empty;", hint="Names must not start with '_' or contain '$'.")
