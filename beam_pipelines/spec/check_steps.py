"""How the columns change from step to step, and whether each step fits the columns it meets."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from beam_pipelines.arrow.transform import Apply, LookupStep, TransformStep
from beam_pipelines.arrow.types import parse_type
from beam_pipelines.errors import SpecError, nearest
from beam_pipelines.spec.problems import Path
from beam_pipelines.spec.scope import Scope
from beam_pipelines.spec.sources import AnyLookup


def check_step(scope: Scope, path: Path, step: TransformStep, lookups: Mapping[str, AnyLookup]) -> None:
    """Checks one step against the columns before it; afterwards the scope holds those after it."""
    if step.filter is not None:
        scope.expression((*path, "filter"), step.filter, kind="boolean")
    for name, sql in (step.set or {}).items():
        at = (*path, "set", name)
        scope.add(at, name, scope.value(at, sql, what=f"column {name!r}"), replace=True)
    if step.rename is not None:
        _rename(scope, (*path, "rename"), step.rename)
    if step.drop is not None:
        scope.all_known((*path, "drop"), step.drop)
        for name in step.drop:
            scope.remove(name, "dropped by a transform step")
    if step.apply is not None:
        _apply(scope, (*path, "apply"), step.apply)
    if step.lookup is not None:
        _lookup(scope, (*path, "lookup"), step.lookup, lookups)


def _rename(scope: Scope, path: Path, names: Mapping[str, str]) -> None:
    before = dict(scope.columns)
    olds = [old for new, old in names.items() if scope.known((*path, new), old)]
    for i, old in enumerate(olds):
        if old in olds[:i]:
            scope.document.problem(path, f"column {old!r} is renamed twice")
    new_of = {old: new for new, old in names.items() if old in olds}
    scope.columns = {}
    for name, kind in before.items():
        new = new_of.get(name, name)
        at = (*path, new) if name in new_of else path
        scope.add(at, new, kind)
        if new != name:
            scope.gone[name] = f"renamed to {new!r} by a transform step"
    for new, old in names.items():
        if new not in scope.columns and scope.doubtful(old):
            scope.add((*path, new), new, None)


def _apply(scope: Scope, path: Path, apply: Apply) -> None:
    for name, kind in apply.columns.items():
        scope.add((*path, "columns", name), name, parse_type(kind).sql, replace=True)
    from beam_pipelines.spec.functions import missing_function  # parses Python: few specs need it

    why = missing_function(apply.function)
    if why is not None:
        scope.document.problem((*path, "function"), why)


def _lookup(scope: Scope, path: Path, step: LookupStep, lookups: Mapping[str, AnyLookup]) -> None:
    doubtful = step.from_ in scope.document.doubtful
    source = None if doubtful else lookups.get(step.from_)
    if source is None and not doubtful:
        hint = nearest(step.from_, lookups) if lookups else "the spec has no lookups"
        scope.document.problem((*path, "from"), f"unknown lookup {step.from_!r}; {hint}")
    check_on(scope, (*path, "on"), step, source)
    types = lookup_types(source) if source is not None else {}
    for name, column in step.take.items():
        unknown = None if source is None or source.format.type in ("parquet", "avro", "orc", "json") else "VARCHAR"
        scope.add((*path, "take", name), name, types.get(column, unknown))


def check_on(scope: Scope, path: Path, step: LookupStep, source: AnyLookup | None) -> None:
    """The columns a lookup is matched on: there, and as many as its key has."""
    if isinstance(step.on, dict):
        for name in step.on:
            scope.known((*path, name), name)
        if source is not None and sorted(step.on.values()) != sorted(source.keys):
            message = f"got the lookup's columns {', '.join(step.on.values())}; expected its key, {', '.join(source.keys)}"
            scope.document.problem(path, message, key=True)
        return
    names = (step.on,) if isinstance(step.on, str) else step.on
    for i, name in enumerate(names):
        scope.known(path if isinstance(step.on, str) else (*path, i), name)
    if source is not None and source.keys and len(names) != len(source.keys):
        message = f"got {len(names)} columns; the key of lookup {step.from_!r} has {len(source.keys)}: {', '.join(source.keys)}"
        scope.document.problem(path, message, key=True)


def lookup_types(source: AnyLookup) -> dict[str, str]:
    """DuckDB types of the lookup's columns that are declared well."""
    found = {}
    for name, kind in (source.columns or {}).items():
        with suppress(SpecError):  # reported where it stands
            found[name] = parse_type(kind).sql
    return found
