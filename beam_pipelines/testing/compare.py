"""Rows that came out against rows that should have: in any order, on the columns that the expected rows name, with readable differences."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from beam_pipelines.arrow.contract import COLUMN_RULES
from beam_pipelines.arrow.named_values import named_values
from beam_pipelines.errors import nearest
from beam_pipelines.spec.tests import Expectation, ExpectedDeadLetter
from beam_pipelines.testing.matching import Keys, matched
from beam_pipelines.testing.rows import Row, Rows, rows_of

if TYPE_CHECKING:
    from beam_pipelines.testing.run import SpecResult

TOLERANCE = 1e-9
_SHOWN = 10
_MISSING = object()
"""The value of a column that a row does not have, which is not NULL."""


def assert_rows(actual: Rows, expected: Rows, *, columns: str | Iterable[str] | None = None, tolerance: float = TOLERANCE) -> None:
    """Asserts that both hold the same rows, in any order, compared on `columns` (default: of each expected row those that it names).

    Rows are mappings, `beam.Row`s, NamedTuples, dataclasses, RecordBatches or Tables. Decimals and times may be given as texts. Floats are equal
    where they are apart by at most `tolerance` of the larger one (0: not at all); NaN equals NaN. A column that a row does not have is not
    NULL. Raises AssertionError that says what is missing and what is too much, with the differences between the closest rows, or which column
    no row has; SpecError for what are no rows.

    >>> assert_rows([{'id': 1, 'paid': Decimal('9.50'), 'shop': 'a'}], [{'id': 1, 'paid': '9.5'}])
    >>> assert_rows([{'id': 1, 'shop': 'a'}], [{'id': 1, 'shop': 'b'}])
    Traceback (most recent call last):
        ...
    AssertionError: differs: id=1 shop='b'
        but got shop='a'
    """
    found, wanted = rows_of(actual, where="assert_rows: actual"), rows_of(expected, where="assert_rows: expected")
    if columns is not None:
        names = [columns] if isinstance(columns, str) else list(columns)
        unknown = _unknown(names, wanted, "expected") or _unknown(names, found, "actual")
        if unknown:
            raise AssertionError("\n".join(unknown))
        wanted = [_picked(row, names) for row in wanted]
    unlike = row_differences(found, wanted, tolerance=tolerance)
    if unlike:
        raise AssertionError("\n".join(unlike))


def row_differences(actual: Sequence[Row], expected: Sequence[Row], *, tolerance: float = TOLERANCE) -> list[str]:
    """What differs, one text for each row that is missing or too many, or each column that no actual row has; [] if nothing does."""
    named = dict.fromkeys(n for row in expected for n in row)
    unknown = _unknown(named, actual, "actual")

    def fits(row: Row, want: Row) -> bool:
        return all(_same_value(row.get(n, _MISSING), v, tolerance) for n, v in want.items())

    return unknown or _differences(actual, expected, fits=fits, keys=_keys(actual))


def _same_value(have: Any, want: Any, tolerance: float) -> bool:
    return have is want if have is _MISSING or want is _MISSING else same(have, want, tolerance=tolerance)


def _picked(row: Row, names: Iterable[str]) -> Row:
    return {name: row.get(name, _MISSING) for name in names}


def _unknown(names: Iterable[str], rows: Sequence[Row], which: str) -> list[str]:
    """A sentence for each name that is a column of no row; none where there are no rows."""
    known = {name for row in rows for name in row}
    return [f"column {name!r} is in no {which} row; {nearest(name, known)}" for name in names if name not in known] if rows else []


def differences(result: SpecResult, expect: Expectation) -> list[str]:
    """How `result` differs from what a case of a `tests:` file expects; [] if it does not."""
    found = [f"the run failed: {text}" for text in result.run.failures]
    if expect.rows is not None:
        found += [f"rows: {text}" for text in row_differences(result.rows, expect.rows)]
    if expect.dead_letters is not None:
        found += [f"dead letters: {text}" for text in _letters(result.dead_letters, expect.dead_letters)]
    for name, rows in expect.aggregates.items():
        found += [f"{name}: {text}" for text in row_differences(result.aggregates.get(name, []), rows)]
    for what, want, have in (("filtered", expect.filtered, result.filtered), ("duplicates", expect.duplicates, result.duplicates)):
        found += [f"{what}: got {have}; expected {want}"] if want is not None and want != have else []
    return found


def _letters(actual: Sequence[Row], expected: Sequence[ExpectedDeadLetter]) -> list[str]:
    rows = [
        {"reason": a["reason"], "stage": a["stage"], "failures": sorted({f["name"] for f in a["failures"] or ()}), "message": a["message"]}
        for a in actual
    ]
    wanted = [letter.model_dump(exclude_none=True) for letter in expected]

    def fits(row: Row, want: Row) -> bool:
        return all(_fits(name, row[name], value) for name, value in want.items())

    return _differences(rows, wanted, fits=fits, keys=_keys(rows, deciding=("reason", "stage")))


def _fits(name: str, have: Any, want: Any) -> bool:
    if name == "message":
        return want in (have or "")
    if name != "failures":
        return bool(have == want)
    return all(any(_answers(h, w) for w in want) for h in have) and all(any(_answers(h, w) for h in have) for w in want)


def _answers(failure: str, name: str) -> bool:
    """Whether `name` means this failure: a check by its name; a column's own rule by its column, or by its whole name (`amount.min`)."""
    column, _, rule = failure.rpartition(".")
    return name == failure or (rule in COLUMN_RULES and name == column)


def _differences(actual: Sequence[Row], expected: Sequence[Row], *, fits: Callable[[Row, Row], bool], keys: Keys) -> list[str]:
    pairs = matched(actual, expected, fits=fits, keys=keys)
    paired = set(pairs.values())
    missing = [want for i, want in enumerate(expected) if i not in pairs]
    extra = [row for j, row in enumerate(actual) if j not in paired]
    named = list(dict.fromkeys(n for want in expected for n in want))
    found = []
    for want in missing[:_SHOWN]:
        closest, wrong = _closest(want, extra, fits)
        if closest is None:
            found.append(f"missing: {_shown(want)}")
        else:  # one sentence for the pair
            found.append(f"differs: {_shown(want)}\n    but got {_shown(_picked(extra.pop(closest), wrong))}")
    extra = extra[max(len(missing) - _SHOWN, 0) :]  # what is not looked at is taken for pairs
    more = len(missing) + len(extra) - _SHOWN
    found += [f"not expected: {_shown(_picked(row, named) if named else row)}" for row in extra[: _SHOWN - len(found)]]
    return found + ([f"... and {more} more"] if more > 0 else [])


def _keys(actual: Sequence[Row], *, deciding: Collection[str] | None = None) -> Keys:
    """Keys of values by which `same` may be decided. `deciding`: the only columns where unequal keys say that values do not fit."""
    types: dict[str, set[type]] = {}
    for row in actual:
        for name, value in row.items():
            if value is not None:
                types.setdefault(name, set()).add(type(value))
    kinds = {name: next(iter(found)) for name, found in types.items() if len(found) == 1}

    def have(name: str, value: Any) -> Hashable:
        return value if value is None or value is _MISSING else _key(kinds.get(name), value)

    def want(name: str, value: Any) -> tuple[Hashable, bool]:
        if value is None or value is _MISSING:
            return value, True
        decides = type(value) in _WRITTEN_AS.get(kinds.get(name), ()) and (deciding is None or name in deciding)
        return _key(kinds.get(name), value), decides

    return Keys(have, want, absent=_MISSING)


def _closest(want: Row, rows: Sequence[Row], fits: Callable[[Row, Row], bool]) -> tuple[int | None, list[str]]:
    """The number of the row that has most in common, if one has anything, and the columns that differ."""
    found: tuple[int | None, list[str]] = (None, list(want))
    for j, row in enumerate(rows):
        wrong = [n for n, v in want.items() if not fits(row, {n: v})]
        if len(wrong) < len(found[1]):
            found = j, wrong
    return found


def _shown(row: Row) -> str:
    return " ".join(f"{name}={_value(value)}" for name, value in row.items()) or "(a row)"


def _value(value: Any) -> str:
    if value is None or value is _MISSING:
        return "NULL" if value is None else "(no such column)"
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return str(value) if isinstance(value, date | time | Decimal) else repr(value)


def same(actual: Any, wanted: Any, *, tolerance: float = TOLERANCE, absolute: float = 0.0) -> bool:
    """Whether a value that came out is the one a test wrote down: texts stand for times, decimals and JSON; floats may be `tolerance` apart,
    relative to the larger one, or `absolute`.

    >>> same(datetime(2013, 3, 10, 9, tzinfo=UTC), '2013-03-10T09:00:00Z'), same(Decimal('1.50'), '1.5'), same(True, 1)
    (True, True, False)
    """
    if actual is None or wanted is None:
        return actual is wanted
    if isinstance(actual, bool) or isinstance(wanted, bool):
        return actual is wanted
    if isinstance(actual, datetime):
        return _instant(actual) == _instant(wanted)
    if isinstance(actual, date | time):
        return actual.isoformat() == (wanted.isoformat() if isinstance(wanted, date | time) else str(wanted)) or str(actual) == str(wanted)
    if isinstance(actual, Decimal):
        return actual == _decimal(wanted)
    if isinstance(actual, float):
        number = _number(wanted)
        return number is not None and (
            math.isclose(actual, number, rel_tol=tolerance, abs_tol=absolute) or (actual != actual and number != number)
        )
    if isinstance(actual, bytes):
        return bool(actual == (wanted.encode() if isinstance(wanted, str) else wanted))
    return _same_nested(actual, wanted, tolerance, absolute)


def _same_nested(actual: Any, wanted: Any, tolerance: float, absolute: float) -> bool:
    if isinstance(wanted, Mapping | list | tuple) and isinstance(actual, str):
        try:
            actual = json.loads(actual)
        except ValueError:
            return False
    want, have = named_values(wanted), named_values(actual)
    if want is not None:
        return have is not None and all(n in have and same(have[n], v, tolerance=tolerance, absolute=absolute) for n, v in want.items())
    if isinstance(wanted, list | tuple):
        if not isinstance(actual, list | tuple) or len(actual) != len(wanted):
            return False
        return all(same(a, w, tolerance=tolerance, absolute=absolute) for a, w in zip(actual, wanted, strict=True))
    return bool(actual == wanted)


def _instant(value: Any) -> datetime | None:
    """An instant; without an offset it is UTC."""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _decimal(value: Any) -> Decimal | None:
    try:
        return value if isinstance(value, Decimal) else Decimal(str(value))
    except InvalidOperation:
        return None


_WRITTEN_AS: Mapping[type | None, tuple[type, ...]] = {
    bool: (bool,), int: (int, float, Decimal, str), str: (str,), bytes: (bytes, str), date: (date, str), time: (time, str),
    datetime: (datetime, date, str), Decimal: (Decimal, int, float, str),
}  # fmt: skip
"""Types of values, each with those of the values a test writes down for it whose `_key` says all that `same` would."""


def _key(kind: type | None, value: Any) -> Hashable:
    """Equal keys, of a value that came out in a column of this kind and one that a test wrote down, say that they are the same."""
    if type(value) not in _WRITTEN_AS.get(kind, ()):
        return _frozen(value)
    if kind is datetime or kind is Decimal:
        found = _instant(value) if kind is datetime else _decimal(value)
        return object() if found is None or found != found else found
    if kind is int:
        return object() if isinstance(value, str) or value != value else value
    return value.encode() if kind is bytes and isinstance(value, str) else str(value) if kind in (date, time) else value


def _frozen(value: Any) -> Hashable:
    """Values with equal ones are the same wherever they stand; an `object()` is like nothing."""
    kind = type(value)
    if kind in (int, float):
        return int, "NaN" if value != value else value
    if kind is dict:
        return dict, frozenset((name, _frozen(one)) for name, one in value.items())
    if kind in (list, tuple):
        return list, tuple(map(_frozen, value))
    return None if value is None else (kind, _key(kind, value)) if kind in _WRITTEN_AS else object()


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | Decimal) else None
