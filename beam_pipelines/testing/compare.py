"""Rows that came out against rows that should have: in any order, on the columns that the expected rows name, with readable differences."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from beam_pipelines.arrow.contract import COLUMN_RULES
from beam_pipelines.spec.tests import Expectation, ExpectedDeadLetter

if TYPE_CHECKING:
    from beam_pipelines.testing.run import SpecResult

Row = Mapping[str, Any]
_TOLERANCE = 1e-9
_SHOWN = 10


def assert_rows(actual: Sequence[Row], expected: Sequence[Row], *, columns: Iterable[str] | None = None) -> None:
    """Asserts that both hold the same rows, in any order, compared on `columns` (default: of each expected row those that it names).

    Decimals and times may be given as texts, floats are compared to 1e-9. Raises AssertionError that says what is missing and what is too
    much, with the differences between the closest rows.

    >>> assert_rows([{'id': 1, 'paid': Decimal('9.50'), 'shop': 'a'}], [{'id': 1, 'paid': '9.5'}])
    >>> assert_rows([{'id': 1, 'shop': 'a'}], [{'id': 1, 'shop': 'b'}])
    Traceback (most recent call last):
        ...
    AssertionError: differs: id=1 shop='b'
        but got shop='a'
    """
    names = None if columns is None else list(columns)
    wanted = expected if names is None else [{n: row.get(n) for n in names} for row in expected]
    found = row_differences(actual, wanted)
    if found:
        raise AssertionError("\n".join(found))


def row_differences(actual: Sequence[Row], expected: Sequence[Row]) -> list[str]:
    """What differs, one text for each row that is missing or too many; [] if nothing does."""
    return _differences(actual, expected, fits=lambda row, want: all(same(row.get(n), v) for n, v in want.items()))


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

    return _differences(rows, wanted, fits=fits)


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


def _differences(actual: Sequence[Row], expected: Sequence[Row], *, fits: Callable[[Row, Row], bool]) -> list[str]:
    pairs = _matched(actual, expected, fits)
    missing = [want for i, want in enumerate(expected) if i not in pairs]
    extra = [row for j, row in enumerate(actual) if j not in set(pairs.values())]
    named = list(dict.fromkeys(n for want in expected for n in want))
    found = []
    for want in missing:
        closest, wrong = _closest(want, extra, fits)
        if closest is None:
            found.append(f"missing: {_shown(want)}")
        else:  # one sentence for the pair
            extra = [row for row in extra if row is not closest]
            found.append(f"differs: {_shown(want)}\n    but got {_shown({n: closest.get(n) for n in wrong})}")
    found += [f"not expected: {_shown({n: row.get(n) for n in named} if named else row)}" for row in extra]
    return found[:_SHOWN] + ([f"... and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else [])


def _matched(actual: Sequence[Row], expected: Sequence[Row], fits: Callable[[Row, Row], bool]) -> dict[int, int]:
    """Expected row to actual row, as many as can be: an expected row that names few columns fits many (augmenting paths)."""
    candidates = [[j for j, row in enumerate(actual) if fits(row, want)] for want in expected]
    taken: dict[int, int] = {}

    def place(i: int, seen: set[int]) -> bool:
        for j in candidates[i]:
            if j not in seen:
                seen.add(j)
                if j not in taken or place(taken[j], seen):
                    taken[j] = i
                    return True
        return False

    for i in sorted(range(len(expected)), key=lambda i: len(candidates[i])):
        place(i, set())
    return {i: j for j, i in taken.items()}


def _closest(want: Row, rows: Sequence[Row], fits: Callable[[Row, Row], bool]) -> tuple[Row | None, list[str]]:
    """The row that has most in common, if one has anything, and the columns that differ."""
    found: tuple[Row | None, list[str]] = (None, list(want))
    for row in rows:
        wrong = [n for n, v in want.items() if not fits(row, {n: v})]
        if len(wrong) < len(found[1]):
            found = row, wrong
    return found


def _shown(row: Row) -> str:
    return " ".join(f"{name}={_value(value)}" for name, value in row.items()) or "(a row)"


def _value(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return str(value) if isinstance(value, date | time | Decimal) else repr(value)


def same(actual: Any, wanted: Any) -> bool:
    """Whether a value that came out is the one a test wrote down: texts stand for times, decimals and JSON.

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
            math.isclose(actual, number, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE) or (actual != actual and number != number)
        )
    if isinstance(actual, bytes):
        return bool(actual == (wanted.encode() if isinstance(wanted, str) else wanted))
    return _same_nested(actual, wanted)


def _same_nested(actual: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping | list | tuple) and isinstance(actual, str):
        try:
            actual = json.loads(actual)
        except ValueError:
            return False
    if isinstance(wanted, Mapping):
        return isinstance(actual, Mapping) and all(n in actual and same(actual[n], v) for n, v in wanted.items())
    if isinstance(wanted, list | tuple):
        return isinstance(actual, list) and len(actual) == len(wanted) and all(map(same, actual, wanted))
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


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | Decimal) else None
