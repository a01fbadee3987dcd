"""The type words of a contract, and what each is in Arrow and in DuckDB.

    string  boolean  int8 … int64  uint8 … uint64  float32  float64  decimal(p,s)  date  time
    timestamp   an instant, microseconds, UTC          datetime    a civil time without a zone, microseconds
    binary  json  uuid                                 list<T>     struct<name: T, …>

In DuckDB an instant is a plain TIMESTAMP that means UTC, so that no session time zone can change an answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from beam_pipelines.errors import SpecError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

_SQL = {
    "string": "VARCHAR", "boolean": "BOOLEAN", "int8": "TINYINT", "int16": "SMALLINT", "int32": "INTEGER", "int64": "BIGINT",
    "uint8": "UTINYINT", "uint16": "USMALLINT", "uint32": "UINTEGER", "uint64": "UBIGINT", "float32": "FLOAT",
    "float64": "DOUBLE", "date": "DATE", "time": "TIME", "timestamp": "TIMESTAMP", "datetime": "TIMESTAMP",
    "binary": "BLOB", "json": "VARCHAR", "uuid": "VARCHAR",
}  # fmt: skip
_ARROW = {
    "string": "string", "boolean": "bool_", "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64", "float32": "float32",
    "float64": "float64", "date": "date32", "binary": "binary", "json": "string", "uuid": "string",
}  # fmt: skip
INTEGERS = {"int8": (-(2**7), 2**7 - 1), "int16": (-(2**15), 2**15 - 1), "int32": (-(2**31), 2**31 - 1),
            "int64": (-(2**63), 2**63 - 1), "uint8": (0, 2**8 - 1), "uint16": (0, 2**16 - 1), "uint32": (0, 2**32 - 1),
            "uint64": (0, 2**64 - 1)}  # fmt: skip
_ELSEWHERE = {
    "int": "int64", "integer": "int64", "bigint": "int64", "long": "int64", "smallint": "int16", "tinyint": "int8", "float": "float64",
    "double": "float64", "real": "float32", "number": "float64", "numeric": "decimal(p,s)", "bool": "boolean", "str": "string",
    "text": "string", "varchar": "string", "char": "string", "bytes": "binary", "blob": "binary", "array": "list<T>", "object": "struct<name: T, ...>",
    "timestamptz": "timestamp", "instant": "timestamp",
}  # fmt: skip  # what other systems call them
WORDS = (*_SQL, "decimal(p,s)", "list<T>", "struct<name: T, ...>")


@dataclass(frozen=True)
class DataType:
    """A contract type. `kind` is the type word; `precision`, `scale`, `item`, `fields` are set where the word needs them."""

    kind: str
    precision: int = 0
    scale: int = 0
    item: DataType | None = None
    fields: tuple[tuple[str, DataType], ...] = ()

    @property
    def nested(self) -> bool:
        return self.kind in ("list", "struct")

    @property
    def integer(self) -> bool:
        return self.kind in INTEGERS

    @property
    def floating(self) -> bool:
        return self.kind in ("float32", "float64")

    @property
    def numeric(self) -> bool:
        return self.integer or self.floating or self.kind == "decimal"

    @property
    def temporal(self) -> bool:
        return self.kind in ("date", "time", "timestamp", "datetime")

    @property
    def sql(self) -> str:
        """The DuckDB type."""
        if self.kind == "decimal":
            return f"DECIMAL({self.precision},{self.scale})"
        if self.item is not None:
            return f"{self.item.sql}[]"
        if self.kind == "struct":
            inner = ", ".join(f'"{n.replace(chr(34), chr(34) * 2)}" {t.sql}' for n, t in self.fields)
            return f"STRUCT({inner})"
        return _SQL[self.kind]

    def arrow(self) -> pa.DataType:
        """The Arrow type of the column in a conformed batch."""
        import pyarrow as pa

        if self.kind == "decimal":
            return pa.decimal128(self.precision, self.scale)
        if self.item is not None:
            return pa.list_(self.item.arrow())
        if self.kind == "struct":
            return pa.struct([(n, t.arrow()) for n, t in self.fields])
        if self.kind == "timestamp":
            return pa.timestamp("us", "UTC")
        if self.kind == "datetime":
            return pa.timestamp("us")
        if self.kind == "time":
            return pa.time64("us")
        return getattr(pa, _ARROW[self.kind])()

    def __str__(self) -> str:
        if self.kind == "decimal":
            return f"decimal({self.precision},{self.scale})"
        if self.item is not None:
            return f"list<{self.item}>"
        if self.kind == "struct":
            return "struct<" + ", ".join(f"{n}: {t}" for n, t in self.fields) + ">"
        return self.kind


@lru_cache(maxsize=4096)
def parse_type(text: str) -> DataType:
    """The type that `text` names.

    Raises SpecError for an unknown word, with the nearest known one.

    >>> str(parse_type('list<struct<sku: string, price: decimal(12, 2)>>'))
    'list<struct<sku: string, price: decimal(12,2)>>'
    """
    parsed, rest = _parse(text.strip(), text)
    if rest:
        raise SpecError(f"type {text!r}: unexpected {rest!r} after a complete type.", hint=f"Types: {', '.join(WORDS)}.")
    return parsed


def _parse(rest: str, whole: str) -> tuple[DataType, str]:
    match = re.match(r"[A-Za-z_]\w*", rest)
    word = match.group(0) if match else ""
    after = rest[len(word) :].lstrip()
    if word == "decimal":
        numbers = re.match(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)", after)
        if numbers is None:
            raise SpecError(f"type {whole!r}: decimal needs precision and scale.", hint="Write decimal(12,2).")
        precision, scale = int(numbers.group(1)), int(numbers.group(2))
        if not 1 <= precision <= 38 or scale > precision:
            raise SpecError(f"type {whole!r}: precision must be 1 to 38 and scale at most the precision.")
        return DataType("decimal", precision, scale), after[numbers.end() :].lstrip()
    if word == "list" and after.startswith("<"):
        item, after = _parse(after[1:].lstrip(), whole)
        return DataType("list", item=item), _closing(after, whole)
    if word == "struct" and after.startswith("<"):
        return _parse_struct(after[1:].lstrip(), whole)
    if word in _SQL:
        return DataType(word), after
    hint = nearest(word or rest, WORDS)
    if word.lower() in _ELSEWHERE:
        hint = f"did you mean '{_ELSEWHERE[word.lower()]}'? Known: {hint.split('Known: ')[1]}"
    raise SpecError(f"type {whole!r}: unknown type {word or rest!r};", hint=hint)


def _parse_struct(rest: str, whole: str) -> tuple[DataType, str]:
    fields: list[tuple[str, DataType]] = []
    while True:
        name = re.match(r"(\"[^\"]+\"|[\w$ -]+?)\s*:\s*", rest)
        if name is None:
            raise SpecError(f"type {whole!r}: a struct needs 'name: type' pairs; got {rest!r}.")
        kind, rest = _parse(rest[name.end() :], whole)
        fields.append((name.group(1).strip('"'), kind))
        if not rest.startswith(","):
            return DataType("struct", fields=tuple(fields)), _closing(rest, whole)
        rest = rest[1:].lstrip()


def _closing(rest: str, whole: str) -> str:
    if not rest.startswith(">"):
        raise SpecError(f"type {whole!r}: expected '>'; got {rest!r}.")
    return rest[1:].lstrip()
