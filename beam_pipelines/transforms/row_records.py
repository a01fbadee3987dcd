"""One Python row as the JSON record that a decoder reads. Pure functions, no Beam pipeline.

Every value either keeps its meaning or makes the row `Unreadable`, with a sentence that names the column and the Python type:

    as JSON has them     None, bool, int, float, Decimal, str, list, tuple, set, dict with text keys
    as text              datetime, date, time, UUID, Enum, Beam's Timestamp; bytes as base64, for a `binary` column alone
    as what they hold    NamedTuples, beam.Rows, dataclasses, numpy's scalars and arrays; pandas' NaT and NA as NULL
    unreadable           NaN and infinities, which JSON lacks; bytes for another type; all else
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from decimal import Decimal
from math import isfinite
from types import NoneType
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.named_values import named_values
from beam_pipelines.arrow.types import DataType

Member = Mapping[str, Any] | DataType | None
"""What the contract says of a value: the members that its paths lead to, a type, or nothing."""

_SIMPLE = frozenset({NoneType, bool, int, float, str, Decimal, dt.datetime, dt.date, dt.time, UUID})
_NO_FLOATS = _SIMPLE - {float}
_MISSING = {"NaTType", "NAType"}  # pandas' own; a NaT is a datetime, too
_encode = msgspec.json.Encoder(decimal_format="number").encode


class Unreadable(ValueError):
    """Why a row is no record, as a sentence."""


def members_of(contract: Contract) -> dict[str, Any]:
    """The types of the contract's columns, by the keys of a nested record that lead to them."""
    tree: dict[str, Any] = {}
    for name, column in contract.read.items():
        *above, last = column.keys(name)
        at = tree
        for key in above:
            below = at.get(key)
            at = at.setdefault(key, {}) if below is None or isinstance(below, dict) else {}
        at.setdefault(last, column.dtype)
    return tree


def record(row: Any, members: Mapping[str, Any]) -> bytes:
    """A mapping, `beam.Row`, NamedTuple or dataclass as a JSON object. Raises Unreadable, whatever the row's own methods raise."""
    try:
        named = row if type(row) is dict else named_values(row)
        if named is None:
            raise Unreadable(_unknown(row))
        kinds = set(map(type, named.values()))
        if not kinds <= _SIMPLE:
            kinds = set()
            _add_kinds(named.values(), kinds)
        simple = kinds <= _SIMPLE
        if not simple:
            named = {name: _plain(value, members.get(name), str(name)) for name, value in named.items()}
        encoded = _encode(named)
        if b"null" in encoded and (float in kinds or not simple):
            _refuse_infinite(named)
    except Unreadable:
        raise
    except Exception as error:  # a text with half a character, a key that is no text, a list within itself
        raise Unreadable(f"the row has no JSON form ({type(error).__name__})") from error
    return encoded


def _add_kinds(values: Iterable[Any], kinds: set[type]) -> None:
    """Adds to `kinds` the types of `values`; of lists and dicts among them those of their members."""
    for value in values:
        kind = type(value)
        if kind is dict:
            _add_kinds(value.values(), kinds)
        elif kind is list:
            _add_kinds(value, kinds)
        else:
            kinds.add(kind)


def _refuse_infinite(named: Mapping[Any, Any], within: str = "") -> None:
    """msgspec writes a float that is no number as null."""
    for name, value in named.items():
        kind = type(value)
        if kind is float:
            if not isfinite(value):
                raise Unreadable(
                    f"column {f'{within}{name}'!r}: {value} is no number that JSON has; None is a missing value, and RecordBatches keep {value}"
                )
        elif kind is dict:
            _refuse_infinite(value, f"{within}{name}.")
        elif kind is list and not _NO_FLOATS.issuperset(map(type, value)):
            for item in value:
                _refuse_infinite({name: item}, within)


def _unknown(row: Any) -> str:
    takes = "FromRows takes dicts, beam.Rows, NamedTuples, dataclasses, bytes, str, PubsubMessages, RecordBatches and Tables"
    keyed = "; of (key, value) pairs give it the values: beam.Values()" if isinstance(row, tuple) and len(row) == 2 else ""
    return f"an element of type {type(row).__name__} is no row: {takes}{keyed}"


def _plain(value: Any, member: Member, where: str) -> Any:
    """`value` of what JSON and msgspec know, down to its members."""
    if type(value) in _SIMPLE:
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return _binary(value, member, where)
    if isinstance(value, np.generic | np.ndarray):
        return _plain(_from_numpy(value), member, where)
    if type(value).__name__ in _MISSING:
        return None
    if isinstance(value, dt.datetime):  # of pandas, or of somebody else
        return dt.datetime.combine(value.date(), value.timetz())
    if isinstance(value, Timestamp):
        return value.to_utc_datetime(has_tz=True)
    named = named_values(value)
    if named is not None:
        return {str(name): _plain(v, _member(member, str(name)), f"{where}.{name}") for name, v in named.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return _items(value, member, where)
    try:
        _encode(value)
    except Exception as error:
        raise Unreadable(f"column {where!r}: a value of type {type(value).__name__} has no JSON form; give a text or a number") from error
    return value


def _items(values: Iterable[Any], member: Member, where: str) -> list[Any]:
    item = member.item if isinstance(member, DataType) else None
    return [_plain(value, item, where) for value in values]


def _member(member: Member, name: str) -> Member:
    if isinstance(member, DataType):
        return dict(member.fields).get(name)
    return None if member is None else member.get(name)


def _binary(value: Any, member: Member, where: str) -> Any:
    if isinstance(member, DataType) and member.kind != "binary":
        raise Unreadable(f"column {where!r}: a value of type {type(value).__name__}; expected {member}. Decode bytes to text before")
    return value


def _from_numpy(value: Any) -> Any:
    """Its Python values; a time of numpy's in microseconds, which Python has."""
    return value.astype("datetime64[us]").tolist() if value.dtype.kind == "M" else value.tolist()
