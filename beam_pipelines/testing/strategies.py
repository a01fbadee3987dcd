"""Hypothesis strategies from a contract: what a producer may send, good and bad. Hypothesis comes with the extra `testing`."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.types import INTEGERS, DataType
from beam_pipelines.errors import SpecError
from beam_pipelines.testing.rows import Record
from beam_pipelines.testing.timeline import Message, Moment, moment

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise SpecError("records(contract) needs Hypothesis, which is not installed.", hint="pip install 'beam-pipelines[testing]'") from error

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

BROKEN = ('{"', "nonsense", "[1]")
"""Records that nothing can be made of, as texts."""
_LAGS = tuple(dt.timedelta(minutes=m) for m in (0, 0, 5, 0, 35, 150, 0, 600, -20))
"""From event time to arrival: on time first and most, to which Hypothesis shrinks."""
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_STEP = dt.timedelta(minutes=5)
_POOL = 4
"""How many different keys there are: few, so that there are copies."""


def records(
    contract: Contract, *, begin: Moment = "2024-05-01T10:00:00Z", hours: int = 4, max_size: int = 12
) -> SearchStrategy[list[Record]]:
    """Lists of records as a source of JSON has them: mappings, and texts of what is no record.

    Valid rows, and rows that miss what is required, hold a value of another type, or break a rule of the contract; NULLs and absent values;
    exact copies, and copies of a key with other values; few keys, and event times on a grid of five minutes from `begin`, so that both come
    together. Good rows stand first and most.
    """
    return st.lists(st.integers(0, 15), min_size=1, max_size=max_size).flatmap(
        lambda kinds: _records(contract, moment(begin), hours, kinds)
    )


def messages(
    contract: Contract, *, begin: Moment = "2024-05-01T10:00:00Z", hours: int = 4, max_size: int = 12
) -> SearchStrategy[list[Message]]:
    """The same as messages of a stream: most arrive at their event time, some long after it, one before it, some are delivered again."""
    return records(contract, begin=begin, hours=hours, max_size=max_size).flatmap(lambda made: _messages(contract, made, moment(begin)))


@st.composite
def _records(draw: DrawFn, contract: Contract, begin: dt.datetime, hours: int, kinds: list[int]) -> list[Record]:
    row = rows(contract, begin=begin, hours=hours)
    found: list[Record] = []
    for kind in kinds:  # 0 to 8: good rows
        earlier = [r for r in found if isinstance(r, Mapping)]
        if kind in (9, 10) and earlier:
            found.append(draw(st.sampled_from(earlier)))
        elif kind in (11, 12) and earlier:
            found.append(_conflicting(draw(row), draw(st.sampled_from(earlier)), contract))
        elif kind in (13, 14):
            found.append(draw(_spoilt(contract, draw(row))))
        else:
            found.append(draw(st.sampled_from(BROKEN)) if kind == 15 else draw(row))
    return found


@st.composite
def _messages(draw: DrawFn, contract: Contract, made: list[Record], begin: dt.datetime) -> list[Message]:
    found = []
    for number, record in enumerate(made):
        arrival = (_event_time(contract, record) or begin) + draw(st.sampled_from(_LAGS))
        found.append(Message(record, arrival=arrival, id=str(number)))
    again = draw(st.lists(st.sampled_from(found), max_size=2))
    return [*found, *again]


def rows(contract: Contract, *, begin: Moment = "2024-05-01T10:00:00Z", hours: int = 4) -> SearchStrategy[dict[str, Any]]:
    """Single rows that a contract takes, nested where its paths are."""
    first = moment(begin)

    def column(name: str, rules: Column) -> SearchStrategy[Any]:
        values = _times(rules, first, hours) if name == contract.event_time else _values(rules, first, few=name in contract.key)
        return (
            values
            if rules.required or name in contract.key or name == contract.event_time
            else st.one_of(values, values, values, st.none())
        )

    read = {name: column(name, rules) for name, rules in contract.read.items()}
    return st.fixed_dictionaries(read).map(lambda flat: _nested(contract, flat))


# ── good values ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _times(column: Column, first: dt.datetime, hours: int) -> SearchStrategy[Any]:
    return st.integers(0, hours * 12).map(lambda n: _written(column, first + n * _STEP))


def _values(column: Column, first: dt.datetime, *, few: bool) -> SearchStrategy[Any]:
    kind = column.dtype
    if column.in_ is not None:
        return st.sampled_from(column.in_)
    if kind.integer:
        low, high = (_bound(column.min, INTEGERS[kind.kind][0]), _bound(column.max, INTEGERS[kind.kind][1]))
        start = low if low > 0 or high < 1 else min(1, high)
        return (
            st.integers(start, min(high, start + _POOL - 1))
            if few
            else st.one_of(st.integers(start, min(high, start + 20)), st.integers(low, high))
        )
    if kind.kind == "decimal":
        return _decimals(column, kind)
    if kind.floating:
        low, high = float(_bound(column.min, -1000)), float(_bound(column.max, max(1000, float(column.min or 0) * 2)))
        return st.floats(low, high, allow_nan=False, width=32 if kind.kind == "float32" else 64)
    if kind.temporal:
        bounds = [moment(str(b)) for b in (column.min, column.max) if b is not None and kind.kind != "time"]
        return _times(column, bounds[0] if bounds else first, 0 if len(bounds) > 1 or (bounds and column.max is not None) else 48)
    if kind.kind == "string" and column.regex is None:
        texts = st.text(
            "abcd", min_size=max(1, column.min_length or 1), max_size=max(1, column.max_length or max(8, column.min_length or 0))
        )
        return st.sampled_from("abcd"[:_POOL]).map(lambda c: c * max(1, column.min_length or 1)) if few else texts
    if kind.kind == "string":
        return st.from_regex(column.regex or "", fullmatch=True)
    return _plain(kind, first)


def _plain(kind: DataType, first: dt.datetime) -> SearchStrategy[Any]:
    if kind.item is not None:
        return st.lists(_plain(kind.item, first), max_size=3)
    if kind.kind == "struct":
        return st.fixed_dictionaries({name: _plain(inner, first) for name, inner in kind.fields})
    simple: dict[str, SearchStrategy[Any]] = {
        "boolean": st.booleans(),
        "uuid": st.uuids().map(str),
        "binary": st.binary(max_size=8).map(lambda b: base64.b64encode(b).decode()),
        "json": st.dictionaries(st.sampled_from("ab"), st.integers(0, 9), max_size=2),
    }
    return simple[kind.kind] if kind.kind in simple else _values(Column(type=str(kind)), first, few=False)


def _decimals(column: Column, kind: DataType) -> SearchStrategy[Decimal]:
    unit = 10**kind.scale
    most = 10**kind.precision - 1
    low = max(-most, -(-Decimal(str(_bound(column.min, -100))) * unit // 1).__int__())
    high = min(most, int(Decimal(str(_bound(column.max, max(1000, float(column.min or 0) * 2)))) * unit // 1))
    return st.integers(min(low, high), high).map(lambda n: Decimal(n).scaleb(-kind.scale))


def _bound(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given


def _written(column: Column, at: dt.datetime) -> Any:
    """A time as a record has it: a number of its unit, a text of its format, else ISO 8601."""
    kind = column.dtype.kind
    if column.unit is not None:
        return round(at.timestamp()) * _UNITS[column.unit]
    if column.format is not None:
        return at.strftime(_first_format(column))
    if kind == "date":
        return at.date().isoformat()
    if kind == "time":
        return at.time().isoformat()
    return at.replace(tzinfo=None).isoformat() if kind == "datetime" else at.isoformat().replace("+00:00", "Z")


def _nested(contract: Contract, flat: Mapping[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, value in flat.items():
        *outer, last = contract.read[name].keys(name)
        inside = record
        for key in outer:
            inside = inside.setdefault(key, {})
        inside[last] = value
    return record


# ── bad ones ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _conflicting(row: Record, earlier: Record, contract: Contract) -> Record:
    """The key and the event time of an earlier row, with other values."""
    assert isinstance(row, Mapping)
    assert isinstance(earlier, Mapping)
    kept = [*contract.key, *([contract.event_time] if contract.event_time else [])]
    return {**row, **{k: earlier[k] for name in kept if name in contract.read and (k := contract.read[name].keys(name)[0]) in earlier}}


def _spoilt(contract: Contract, row: Mapping[str, Any]) -> SearchStrategy[Record]:
    """The row with one value that its contract refuses, or absent, or with a column that nobody knows."""

    def spoil(how: tuple[tuple[str, ...], Any]) -> Record:
        keys, value = how
        return _with(row, keys, value)

    wrong = [(column.keys(name), value) for name, column in contract.read.items() for value in _wrong(column)]
    return st.sampled_from([*wrong, (("nobody_knows_it",), 1)]).map(spoil)


_ABSENT = object()


def _with(record: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """The record with another value there, or none."""
    key, *inner = keys
    if inner:
        return {**record, key: _with(record[key], inner, value)}
    return {k: v for k, v in record.items() if k != key} if value is _ABSENT else {**record, key: value}


def _wrong(column: Column) -> list[Any]:
    kind = column.dtype
    found: list[Any] = [None, _ABSENT]
    found += ["never", {"a": [1]}] if kind.numeric or kind.temporal or kind.kind == "boolean" else [[[1]]]
    if kind.numeric:
        found += [b + step for b, step in ((column.min, -1), (column.max, 1)) if isinstance(b, int | float)]
    if column.in_ is not None:
        found.append("none of them" if isinstance(column.in_[0], str) else 987654)
    return found


def _event_time(contract: Contract, record: Record) -> dt.datetime | None:
    """When a record says that it happened; None where it does not, or in another way than `rows` writes it."""
    name = contract.event_time
    if name is None or name not in contract.read:
        return None
    column = contract.read[name]
    value: Any = record
    for key in column.keys(name):
        value = value.get(key) if isinstance(value, Mapping) else None
    try:
        return _read(column, value)
    except (SpecError, ValueError, TypeError, OverflowError, OSError):
        return None


def _read(column: Column, value: Any) -> dt.datetime:
    if column.unit is not None:
        return dt.datetime.fromtimestamp(int(value) / _UNITS[column.unit], dt.UTC)
    if column.format is not None:
        return dt.datetime.strptime(str(value), _first_format(column)).replace(tzinfo=dt.UTC)
    return moment(str(value))


def _first_format(column: Column) -> str:
    return column.format if isinstance(column.format, str) else (column.format or ("",))[0]
