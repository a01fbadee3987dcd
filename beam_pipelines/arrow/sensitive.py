"""Which columns are sensitive further down: what is renamed or computed from a sensitive column is sensitive too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.measures import parse_measure
from beam_pipelines.arrow.transform import TransformStep

_SHOWS_VALUES = ("min", "max", "first", "last")


def sensitive_columns(contract: Contract, steps: Sequence[TransformStep] = ()) -> dict[str, str]:
    """Sensitive columns of the rows after `steps`, and how each is masked.

    A column computed from several takes the strictest way: drop before redact before hmac. What an `apply` function makes is not seen here.

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
    return found


def sensitive_panes(aggregate: AggregateSpec, rows: Mapping[str, str]) -> dict[str, str]:
    """Sensitive columns of an aggregate's panes, given those of its rows: groups, and measures that show a value as it is."""
    found = {name: how for name, how in rows.items() if name in aggregate.group_by}
    for name, text in aggregate.measures.items():
        measure = parse_measure(text)
        if measure.function in _SHOWS_VALUES and measure.argument:
            how = _strictest(rows, measure.argument)
            found |= {name: how} if how else {}
    return found


def _inherit(found: dict[str, str], name: str, sql: str) -> None:
    how = _strictest(found, sql)
    if how is not None:
        found.setdefault(name, how)


def _strictest(sensitive: Mapping[str, str], sql: str) -> str | None:
    """How a value of `sql` is masked: by the columns it mentions. A word inside a text counts too: rather too much than too little."""
    ways = {how for name, how in sensitive.items() if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sql, re.IGNORECASE)}
    return next((way for way in ("drop", "redact", "hmac") if way in ways), None)
