"""The strict JSON decoder, a record at a time: the definition of what is accepted, and the judge of what is not.

RFC 8259 and no more: no NaN, no trailing comma, no comment, valid UTF-8, one object and nothing after it. Members of one object have
different names at any depth, objects and arrays nest at most MAX_DEPTH deep, and every value has the JSON kind that its type in the
contract asks for. Numbers keep their source text.

The fast path of `json.py` gives the same answer for whole batches; only records that it cannot prove good come here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from beam_pipelines.arrow.contract import Column
from beam_pipelines.arrow.schema import Failure, Rejected
from beam_pipelines.arrow.types import DataType
from beam_pipelines.errors import RunError
from beam_pipelines.formats.json_plan import ARRAY, BOOLEAN, KIND_WORDS, MAX_DEPTH, NULL, NUMBER, OBJECT, STRING, Member, Plan, kinds_of
from beam_pipelines.formats.reader import DECODE, TYPE, UNKNOWN_COLUMN

STAGE = "decode"
_SHOWN_CHARACTERS = 60
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+', re.DOTALL)
_OTHERS = re.compile(rb"[^\[\]{}]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = b" \t\n\r"


class Number(str):
    """A JSON number by its source text."""

    __slots__ = ()


class Decoded(NamedTuple):
    """A good record: the text of each column that is read, and the members the contract does not name."""

    values: dict[str, str | None]
    unknown: str | None


def decode_record(raw: bytes, plan: Plan) -> Decoded | Rejected:
    """The record's columns as texts, or why it is rejected. Raises RunError for an unknown member where the contract says `fail`."""
    record = parse(raw)
    if isinstance(record, Rejected):
        return record
    failures: list[Failure] = []
    values: dict[str, str | None] = plan.empty.copy()
    unknown = _object(record, plan.root, plan, values, failures)
    if failures:
        order = {name: i for i, (name, _) in enumerate(plan.leaves)}
        return Rejected(STAGE, TYPE, tuple(sorted(failures, key=lambda f: order[f.column])))
    if not unknown or plan.unknown == "drop":
        return Decoded(values, None)
    if plan.unknown == "keep":
        return Decoded(values, to_text(unknown))
    names = ", ".join(repr(".".join(path)) for path in _paths(unknown, plan.root))
    message = f"{names}: not in the contract; expected its columns only (unknown_columns: {plan.unknown})"
    if plan.unknown == "fail":
        raise RunError(message, hint="Add the column to the contract, or choose unknown_columns: keep | drop | dead_letter.")
    return Rejected(STAGE, UNKNOWN_COLUMN, (Failure("unknown_columns", "", message),))


def parse(raw: bytes) -> dict[str, Any] | Rejected:
    """The record as dicts, lists, str, Number, bool and None; or DECODE with the reason. Blank lines behind it are no part of it."""
    raw = raw.rstrip(_SPACE)
    try:
        if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and depth(raw) > MAX_DEPTH:
            return malformed(f"nested more than {MAX_DEPTH} deep")
        text = raw.decode("utf-8")
        record = _DECODER.decode(text)
        if "\\u" in text and _has_surrogate(record):
            return malformed("a \\u escape is half of a surrogate pair")
    except UnicodeDecodeError as error:
        return malformed(f"not UTF-8: {error.reason} at byte {error.start}")
    except json.JSONDecodeError as error:
        if not raw:
            return malformed("an empty record; expected a JSON object")
        return malformed(f"{_REASONS.get(error.msg, error.msg)} at character {error.pos}")
    except (_Malformed, RecursionError) as error:
        return malformed(str(error))
    if not isinstance(record, dict):
        return malformed(f"got {described(record)}; expected a JSON object")
    return record


def malformed(reason: str) -> Rejected:
    """The verdict DECODE with a reason."""
    return Rejected(STAGE, DECODE, (Failure("json", "", f"not a JSON record: {reason}"),))


def depth(raw: bytes) -> int:
    """How deep brackets nest outside of strings, malformed records included."""
    brackets = np.frombuffer(_OTHERS.sub(b"", _STRINGS.sub(b"", raw)), np.uint8)
    steps = np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1)
    return int(np.cumsum(steps).max(initial=0))


def to_text(value: Any) -> str:
    """A parsed value as JSON text without white space; numbers by their source text."""
    if isinstance(value, Number):
        return value
    if isinstance(value, dict):
        return "{" + ",".join(f"{_quoted(k)}:{to_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(to_text, value)) + "]"
    return _quoted(value) if isinstance(value, str) else _LITERALS[value]


def kind_of(value: Any) -> int:
    """The JSON kind of a parsed value."""
    return _KINDS[type(value)]


def described(value: Any, *, secret: bool = False) -> str:
    """A value's kind and, unless it is secret or long, the value."""
    word = KIND_WORDS[kind_of(value)]
    if secret or isinstance(value, dict | list) or value is None:
        return word
    text = to_text(value)
    return f"{word} {text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + '...'}"


class _Malformed(Exception):
    pass


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        name = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]  # add() gives None
        raise _Malformed(f"the name {_quoted(name)} occurs twice in one object")
    return members


def _refuse(constant: str) -> None:
    raise _Malformed(f"{constant} is no JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_float=Number, parse_int=Number, parse_constant=_refuse)
_quoted = json.JSONEncoder(ensure_ascii=False).encode
_LITERALS = {True: "true", False: "false", None: "null"}
_KINDS = {str: STRING, Number: NUMBER, bool: BOOLEAN, type(None): NULL, dict: OBJECT, list: ARRAY}
_REASONS = {
    "Extra data": "something follows the object",
    "Expecting value": "expected a value",
    "Expecting ',' delimiter": "expected ',' or a closing bracket",
    "Expecting ':' delimiter": "expected ':'",
    "Expecting property name enclosed in double quotes": "expected a name in double quotes",
    "Illegal trailing comma before end of object": "a trailing comma",
    "Illegal trailing comma before end of array": "a trailing comma",
    "Invalid control character at": "a control character in a string",
    "Unterminated string starting at": "a string without end",
}


def _has_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return _SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(_has_surrogate(k) or _has_surrogate(v) for k, v in value.items())
    return isinstance(value, list) and any(map(_has_surrogate, value))


def _object(record: dict[str, Any], at: Member, plan: Plan, values: dict[str, str | None], failures: list[Failure]) -> dict[str, Any]:
    """Fills `values` and `failures` from an object; gives its unknown members."""
    unknown: dict[str, Any] = {}
    children = at.children
    for key, value in record.items():
        member = children.get(key)
        if member is None:
            unknown[key] = value
        elif member.columns:
            if _leaf(value, member, plan, values, failures):
                unknown[key] = value
        elif isinstance(value, dict):
            inner = _object(value, member, plan, values, failures)
            if inner:
                unknown[key] = inner
        elif value is not None:
            for below in member.walk():
                for name in below.columns:
                    path = ".".join(member.path)
                    failures.append(Failure("type", name, f"{name}: got {_shown(value, name, plan)} at {path}; expected object"))
    return unknown


def _leaf(value: Any, member: Member, plan: Plan, values: dict[str, str | None], failures: list[Failure]) -> bool:
    """Sets the columns that read a member; says whether its value holds members that its type does not name."""
    if member.nested:
        return _nested(value, member, plan, values, failures)
    if value is not None:
        kind = _KINDS[type(value)]
        if not kind & member.kinds:
            _wrong_kind(value, member, plan, failures)
        text = _LITERALS[value] if kind == BOOLEAN else value
        for name in member.columns:
            values[name] = text
    return False


def _wrong_kind(value: Any, member: Member, plan: Plan, failures: list[Failure]) -> None:
    """Names each column that reads the member and does not accept its kind."""
    for name in member.columns:
        column = plan.column(name)
        if not kind_of(value) & kinds_of(column.dtype, coerce=column.coerce, unit=column.unit is not None):
            wanted = str(column.dtype) if column.unit is None else f"{column.dtype} or a number of {column.unit}"
            failures.append(Failure("type", name, f"{name}: got {_shown(value, name, plan)}; expected {wanted}"))


def _nested(value: Any, member: Member, plan: Plan, values: dict[str, str | None], failures: list[Failure]) -> bool:
    """Sets the columns that read a member as JSON text; says whether it holds members that its type does not name."""
    if value is None:
        return False
    extra = False
    for name in member.columns:
        column = plan.column(name)
        wrong = next(_misfits(value, column.dtype, name, column), None)
        if wrong is not None:
            path, found, expected = wrong
            failures.append(Failure("type", name, f"{path}: got {_shown(found, name, plan)}; expected {expected}"))
        extra = extra or _has_extra(value, column.dtype)
        values[name] = to_text(value)
    return extra


def _shown(value: Any, name: str, plan: Plan) -> str:
    return described(value, secret=plan.column(name).sensitive is not None)


def _misfits(value: Any, dtype: DataType, path: str, column: Column) -> Iterator[tuple[str, Any, DataType]]:
    """Where a value departs from a nested type: path, value found, type expected."""
    if not kind_of(value) & kinds_of(dtype, coerce=column.coerce, unit=column.unit is not None):
        yield path, value, dtype
    elif isinstance(value, list) and dtype.item is not None:
        for i, item in enumerate(value):
            yield from _misfits(item, dtype.item, f"{path}[{i}]", column)
    elif isinstance(value, dict):
        for name, kind in dtype.fields:
            if name in value:
                yield from _misfits(value[name], kind, f"{path}.{name}", column)


def _has_extra(value: Any, dtype: DataType) -> bool:
    if isinstance(value, list) and dtype.item is not None:
        return any(_has_extra(item, dtype.item) for item in value)
    if isinstance(value, dict) and dtype.kind == "struct":
        fields = dict(dtype.fields)
        return any(k not in fields or _has_extra(v, fields[k]) for k, v in value.items())
    return False


def _paths(unknown: dict[str, Any], at: Member) -> Iterator[tuple[str, ...]]:
    for key, value in unknown.items():
        member = at.children.get(key)
        if member is not None and not member.columns:
            yield from _paths(value, member)
        else:
            yield (*at.path, key)
