"""Which columns are sensitive further down: what is renamed or computed from a sensitive column is sensitive too."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.measures import parse_measure
from beam_pipelines.arrow.transform import Apply, TransformStep

_SHOWS_VALUES = ("min", "max", "first", "last")


def sensitive_columns(contract: Contract, steps: Sequence[TransformStep] = ()) -> dict[str, str]:
    """Sensitive columns of the rows after `steps`, and how each is masked.

    A column computed from several takes the strictest way: drop before redact before hmac. So does each declared column of an `apply`, itself
    sensitive or not, which sees all columns that are not dropped yet, unless the step says how that one is masked. What the function does to
    columns that it does not declare is not seen here.

    >>> contract = Contract(columns={'email': {'type': 'string', 'sensitive': 'hmac'}, 'n': {'type': 'int64'}})
    >>> sensitive_columns(contract, [TransformStep(set={'host': "split_part(email, '@', 2)"}), TransformStep(rename={'mail': 'email'})])
    {'host': 'hmac', 'mail': 'hmac'}
    """
    found = dict(contract.sensitive)
    for name, column in contract.computed.items():
        _inherit(found, name, str(column.expr))
    for step in steps:
        for name, sql in (step.set or {}).items():
            _inherit(found, name, sql)
        for new, old in (step.rename or {}).items():
            if old in found:
                found[new] = found.pop(old)
        for name in step.drop or ():
            found.pop(name, None)
        if step.apply is not None:
            found = _after_apply(found, step.apply)
    return found


def sensitive_anywhere(contract: Contract, steps: Sequence[TransformStep]) -> dict[str, str]:
    """As `sensitive_columns`, of rows before, between and after the steps: also what a later step renames, drops or shows."""
    found: dict[str, str] = {}
    for number in range(len(steps) + 1):
        found |= sensitive_columns(contract, steps[:number])
    return found


def for_letters(contract: Contract, steps: Sequence[TransformStep]) -> Contract:
    """`contract` as raw bytes and dead letters need it: columns that a step fills from sensitive ones, or that an `apply` declares sensitive, count as
    sensitive, too, and those that an `apply` adds are there. A record that a function makes something sensitive of may hold it."""
    found = {name: how for name, how in sensitive_anywhere(contract, steps).items() if name not in contract.sensitive}
    made = {name: kind for step in steps if step.apply is not None for name, kind in step.apply.columns.items()}
    columns = {**{name: Column(type=kind) for name, kind in made.items() if name in found}, **contract.columns}
    marked = {name: column.model_copy(update={"sensitive": found[name]}) for name, column in columns.items() if name in found}
    return contract.model_copy(update={"columns": {**contract.columns, **marked}}) if marked else contract


def sensitive_panes(aggregate: AggregateSpec, rows: Mapping[str, str]) -> dict[str, str]:
    """Sensitive columns of an aggregate's panes, given those of its rows: groups, and measures that show a value as it is."""
    found = {name: how for name, how in rows.items() if name in aggregate.group_by}
    for name, text in aggregate.measures.items():
        measure = parse_measure(text)
        if measure.function in _SHOWS_VALUES and measure.argument:
            how = _strictest(rows, measure.argument)
            found |= {name: how} if how else {}
    return found


def _after_apply(found: Mapping[str, str], apply: Apply) -> dict[str, str]:
    seen = _first_of(found.values())
    said = {name: apply.sensitive.get(name, seen) for name in apply.columns}
    return {name: how for name, how in {**found, **said}.items() if how not in (None, "none")}


def _inherit(found: dict[str, str], name: str, sql: str) -> None:
    how = _first_of({found.get(name), _strictest(found, sql)})
    if how is not None:
        found[name] = how


def _strictest(sensitive: Mapping[str, str], sql: str) -> str | None:
    """How a value of `sql` is masked: by the columns it mentions. A word inside a text counts too: rather too much than too little."""
    ways = {how for name, how in sensitive.items() if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sql, re.IGNORECASE)}
    return _first_of(ways)


def _first_of(ways: Collection[str | None]) -> str | None:
    return next((way for way in ("drop", "redact", "hmac") if way in ways), None)
