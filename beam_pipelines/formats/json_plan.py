"""Where a contract's columns lie in a JSON record: a tree of members, shared by the fast and the strict decoder.

contract                         tree
id:      {}                      (object) ─┬─ id      leaf
country: {path: user.country}              └─ user ── country   leaf
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.types import DataType
from beam_pipelines.errors import SpecError

MAX_DEPTH = 100
STRING, NUMBER, BOOLEAN, NULL, OBJECT, ARRAY = 1, 2, 4, 8, 16, 32
KIND_WORDS = {STRING: "string", NUMBER: "number", BOOLEAN: "boolean", NULL: "null", OBJECT: "object", ARRAY: "array"}
SCALAR = STRING | NUMBER | BOOLEAN
ANY = SCALAR | NULL | OBJECT | ARRAY
KIND_OF_BYTE: npt.NDArray[np.uint8] = np.zeros(256, np.uint8)
KIND_OF_BYTE[[*b"-0123456789"]] = NUMBER
KIND_OF_BYTE[[*b"tf"]] = BOOLEAN
KIND_OF_BYTE[[*b'"n{[']] = (STRING, NULL, OBJECT, ARRAY)
"""The kind of the JSON value that begins with a byte."""
_TEXTS = ("string", "date", "time", "timestamp", "datetime", "uuid", "binary")


@dataclass
class Member:
    """One declared member of an object. `columns` read it; without any it is an object on the way to others.

    `kinds`: the JSON kinds every column that reads it accepts, NULL always among them. `nested`: its value is given as JSON text.
    """

    path: tuple[str, ...]
    columns: list[str] = field(default_factory=list)
    kinds: int = OBJECT | NULL
    type: DataType | None = None
    coerce: bool = False
    nested: bool = False
    children: dict[str, Member] = field(default_factory=dict)

    def walk(self) -> Iterator[Member]:
        """This member and all below it."""
        yield self
        for child in self.children.values():
            yield from child.walk()


@dataclass(frozen=True, eq=False)
class Plan:
    """The tree of a contract, its leaves in the order of `Contract.read`, and what happens to unknown members."""

    contract: Contract
    root: Member
    leaves: tuple[tuple[str, Member], ...]

    @cached_property
    def empty(self) -> dict[str, str | None]:
        """A record without members."""
        return dict.fromkeys(name for name, _ in self.leaves)

    @property
    def unknown(self) -> str:
        return self.contract.unknown_columns

    def column(self, name: str) -> Column:
        return self.contract.columns[name]


def plan(contract: Contract) -> Plan:
    """The plan of a contract. Raises SpecError where one column's value is an object on the way to another column."""
    return _plan(_Identity(contract))


@dataclass(frozen=True)
class _Identity:
    contract: Contract

    def __hash__(self) -> int:
        return hash(self.contract.fingerprint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.contract == self.contract


@lru_cache(maxsize=64)
def _plan(identity: _Identity) -> Plan:
    contract = identity.contract
    root = Member(())
    leaves: list[tuple[str, Member]] = []
    for name, column in contract.read.items():
        keys = column.keys(name)
        member = root
        for depth, key in enumerate(keys, 1):
            if member.columns:
                raise _both(name, member)
            member = member.children.setdefault(key, Member(keys[:depth]))
        if member.children:
            raise _both(name, next(m for m in member.walk() if m.columns))
        kinds = kinds_of(column.dtype, coerce=column.coerce, unit=column.unit is not None)
        if member.columns and member.type != column.dtype and (member.nested or _is_nested(column.dtype)):
            raise SpecError(
                f"column {name!r}: its path is also read by {member.columns[0]!r} with another nested type.",
                hint="Give both the same type.",
            )
        member.kinds = member.kinds & kinds if member.columns else kinds
        member.coerce = member.coerce or column.coerce
        member.type = member.type or column.dtype
        member.nested = _is_nested(member.type)
        member.columns.append(name)
        leaves.append((name, member))
    return Plan(contract, root, tuple(leaves))


def _is_nested(dtype: DataType) -> bool:
    return dtype.nested or dtype.kind == "json"


def _both(name: str, other: Member) -> SpecError:
    return SpecError(
        f"column {name!r}: its path and that of {other.columns[0]!r} ({json.dumps(list(other.path))}) run through each other: "
        "one value cannot be read both whole and in parts.",
        hint="Read the whole value as struct<...> or json, or only its parts.",
    )


def kinds_of(dtype: DataType, *, coerce: bool = False, unit: bool = False) -> int:
    """The JSON kinds that fit a type, as bits; null fits every type."""
    if dtype.kind == "json":
        return ANY
    if dtype.kind == "list":
        return ARRAY | NULL
    if dtype.kind == "struct":
        return OBJECT | NULL
    if coerce:
        return SCALAR | NULL
    if dtype.numeric:
        return NUMBER | NULL
    if dtype.kind == "boolean":
        return BOOLEAN | NULL
    assert dtype.kind in _TEXTS, dtype
    return STRING | NULL | (NUMBER if unit and dtype.kind in ("timestamp", "datetime") else 0)
