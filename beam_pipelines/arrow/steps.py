"""Transform steps as layers and kernels: filter, set, rename, drop are SQL; apply and lookup are Python on the whole batch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from beam_pipelines.arrow.apply import ApplyFunction
from beam_pipelines.arrow.engine import quote
from beam_pipelines.arrow.enrich import Enrich, Lookup
from beam_pipelines.arrow.expressions import check_expression
from beam_pipelines.arrow.layers import Define, Layer
from beam_pipelines.arrow.program import Program, Split, Step
from beam_pipelines.arrow.schema import PROVENANCE_NAMES, RESERVED_PREFIX, UNKNOWN
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


def transform_steps(steps: Sequence[TransformStep], *, lookups: Mapping[str, Lookup], columns: Iterable[str]) -> tuple[Step, ...]:
    """The steps' layers and kernels, for rows with the given columns (provenance goes without saying).

    Raises SpecError for a column or lookup that does not exist, a name that is taken, and expressions that cannot be.
    """
    names = tuple(columns)
    state = _Columns(tuple(n for n in names if not n.startswith(RESERVED_PREFIX)), unknown=True)
    made: list[Step] = []
    for number, step in enumerate(steps):
        added, state = _step(step, state, lookups, f"transform[{number}]")
        made += added
    return tuple(made)


def columns_after(steps: Sequence[TransformStep], columns: Iterable[str]) -> tuple[str, ...]:
    """The columns that rows have after `steps`, in order, without reserved ones."""
    state = _Columns(tuple(n for n in columns if not n.startswith(RESERVED_PREFIX)), unknown=True)
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
    """The row's own columns on their way through the steps, and whether `_unknown` is still there."""

    names: tuple[str, ...]
    unknown: bool

    @property
    def listed(self) -> tuple[str, ...]:
        return (*self.names, UNKNOWN) if self.unknown else self.names

    def with_names(self, names: Iterable[str]) -> _Columns:
        return _Columns(tuple(dict.fromkeys((*self.names, *names))), self.unknown)

    def need(self, names: Iterable[str], where: str) -> None:
        for name in names:
            if name not in self.listed:
                raise SpecError(f"{where}: no column {name!r};", hint=nearest(name, self.names))


def _step(step: TransformStep, columns: _Columns, lookups: Mapping[str, Lookup] | None, where: str) -> tuple[list[Step], _Columns]:
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
        return _apply(step.apply, columns, where)
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
    after = _Columns(tuple(new_names.get(n, n) for n in columns.names), columns.unknown)
    return [Layer(_STAGE, define=tuple(Define(new, quote(old)) for new, old in new_to_old.items()), columns=after.listed)], after


def _drop(names: Sequence[str], columns: _Columns, where: str) -> tuple[list[Step], _Columns]:
    columns.need(names, where)
    after = _Columns(tuple(n for n in columns.names if n not in names), columns.unknown and UNKNOWN not in names)
    return [Layer(_STAGE, columns=after.listed)], after


def _apply(step: Apply, columns: _Columns, where: str) -> tuple[list[Step], _Columns]:
    _free(step.columns, where)
    declared = tuple((name, parse_type(kind)) for name, kind in step.columns.items())
    return [ApplyFunction(step.function, declared)], columns.with_names(step.columns)


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
    known: dict[str, str | None] = dict.fromkeys([*columns.listed, *sorted(PROVENANCE_NAMES)])
    return check_expression(sql, known).references


def _names(sql: str, column: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(column)}(?!\w)", sql, re.IGNORECASE) is not None


def _free(names: Iterable[str], where: str) -> None:
    for name in names:
        if not name or name.startswith(RESERVED_PREFIX) or "$" in name:
            raise SpecError(f"{where}: column name {name!r} is reserved or empty;", hint="Names must not start with '_' or contain '$'.")
