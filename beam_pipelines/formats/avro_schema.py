"""Avro schemas in Arrow's terms.

    record struct · array list · map map<string, T> · enum string · fixed binary(n) · date, time-*, timestamp-*, local-timestamp-*, decimal, uuid
    ["null", T] is a nullable T · several number types are the widest of them · any other union, and a record inside itself, is text:
    a string as it is, anything else as JSON

fastavro decodes without logical types: a timestamp beyond the years of Python, or a date that is none, then cannot cost a block,
and Arrow takes the integers as they are.
"""

from __future__ import annotations

import decimal
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import fastavro
import msgspec
import pyarrow as pa

Convert = Callable[[Any], Any]
_PRIMITIVES = {
    "null": pa.null(), "boolean": pa.bool_(), "int": pa.int32(), "long": pa.int64(), "float": pa.float32(), "double": pa.float64(),
    "bytes": pa.binary(), "string": pa.string(),
}  # fmt: skip
_LOGICAL: dict[tuple[str, object], pa.DataType] = {
    ("int", "date"): pa.date32(), ("int", "time-millis"): pa.time32("ms"), ("long", "time-micros"): pa.time64("us"),
    ("long", "timestamp-millis"): pa.timestamp("ms", "UTC"), ("long", "timestamp-micros"): pa.timestamp("us", "UTC"),
    ("long", "timestamp-nanos"): pa.timestamp("ns", "UTC"), ("long", "local-timestamp-millis"): pa.timestamp("ms"),
    ("long", "local-timestamp-micros"): pa.timestamp("us"), ("long", "local-timestamp-nanos"): pa.timestamp("ns"),
}  # fmt: skip
_WIDTH = ("int", "long", "float", "double")
_MOST_DIGITS = 76
_CONTEXT = decimal.Context(prec=_MOST_DIGITS + 2)
_ENCODE_JSON = msgspec.json.Encoder(enc_hook=str).encode


class Mapped(NamedTuple):
    """A schema without logical types, for fastavro; the Arrow type; and what turns fastavro's value into one Arrow takes (None: nothing)."""

    schema: Any
    arrow: pa.DataType
    convert: Convert | None = None


@dataclass(frozen=True)
class RowSchema:
    """How the records of a file, or messages, become rows. A schema that is no record gives one column, `value`."""

    decode: Any
    names: tuple[str, ...]
    types: tuple[pa.DataType, ...]
    converts: tuple[Convert | None, ...]
    record: bool
    recursive: bool = False

    @property
    def read(self) -> Callable[..., Any]:
        """fastavro's `schemaless_reader`. For a record inside itself the one in Python, which is slow: the compiled one overflows the stack and
        ends the process on bytes that claim a hundred thousand levels, where Python raises RecursionError."""
        read: Callable[..., Any] = fastavro._read_py.schemaless_reader if self.recursive else fastavro.schemaless_reader
        return read

    def arrays(self, records: Sequence[Any]) -> list[pa.Array]:
        """One array per column. Raises what a value that does not fit raises. Each value is converted anew: `records` stay as they are."""
        columns = []
        for name, kind, convert in zip(self.names, self.types, self.converts, strict=True):
            found = [r[name] for r in records] if self.record else records
            columns.append(pa.array(found if convert is None else [convert(v) for v in found], kind))
        return columns

    def batch(self, records: Sequence[Any]) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays(self.arrays(records), schema=self.arrow())

    def arrow(self) -> pa.Schema:
        return pa.schema(list(zip(self.names, self.types, strict=True)))


def row_schema(schema: Any) -> RowSchema:
    """The row form of a writer's schema (as parsed JSON). Raises fastavro's errors where it is none."""
    parsed = fastavro.parse_schema(schema)
    mapping = _Mapping()
    top = mapping.of(parsed)
    decode = fastavro.parse_schema(top.schema)
    _defaults_as_bytes(decode)
    if not pa.types.is_struct(top.arrow):
        return RowSchema(decode, ("value",), (top.arrow,), (top.convert,), record=False, recursive=mapping.recursive)
    names = tuple(top.arrow.field(i).name for i in range(top.arrow.num_fields))
    return RowSchema(
        decode, names, tuple(top.arrow.field(i).type for i in range(top.arrow.num_fields)), tuple(mapping.top_converts), record=True,
        recursive=mapping.recursive,
    )  # fmt: skip


@dataclass
class _Mapping:
    """Maps a parsed schema, whose names are full names; `named` holds the named types met so far, None while one is being mapped."""

    named: dict[str, Mapped | None] = field(default_factory=dict)
    top_converts: list[Convert | None] = field(default_factory=list)
    recursive: bool = False

    def of(self, schema: Any) -> Mapped:
        if isinstance(schema, list):
            return self.union(schema)
        if isinstance(schema, str):
            return Mapped(schema, _PRIMITIVES[schema]) if schema in _PRIMITIVES else self.reference(schema)
        kind = schema["type"]
        if kind in ("record", "error"):
            return self.record(schema)
        if kind == "array":
            item = self.of(schema["items"])
            if _takes_no_bytes(item.arrow):
                raise ValueError("an array of items that take no bytes: a few bytes may claim any number of them")
            return Mapped({"type": "array", "items": item.schema}, pa.list_(item.arrow), _each(item.convert))
        if kind == "map":
            value = self.of(schema["values"])
            return Mapped({"type": "map", "values": value.schema}, pa.map_(pa.string(), value.arrow), _pairs(value.convert))
        if kind == "enum":
            return self.remember(schema, Mapped({k: v for k, v in schema.items() if not k.startswith("__")}, pa.string()))
        if kind == "fixed":
            fixed = {"type": "fixed", "name": schema["name"], "size": schema["size"], **_kept(schema, only=("aliases",))}
            return self.remember(schema, _logical(schema, Mapped(fixed, pa.binary(schema["size"]))))
        if isinstance(kind, str) and kind in _PRIMITIVES:
            return _logical(schema, Mapped(kind, _PRIMITIVES[kind]))
        return self.of(kind)

    def record(self, schema: dict[str, Any]) -> Mapped:
        top = not self.named
        self.named[schema["name"]] = None
        fields = [(f["name"], self.of(f["type"])) for f in schema["fields"]]
        members = [{"name": n, "type": m.schema, **_kept(f)} for f, (n, m) in zip(schema["fields"], fields, strict=True)]
        decode = {"type": "record", "name": schema["name"], "fields": members, **_kept(schema, only=("aliases",))}
        if top:
            self.top_converts = [m.convert for _, m in fields]
        converts = [(n, m.convert) for n, m in fields if m.convert is not None]
        return self.remember(schema, Mapped(decode, pa.struct([(n, m.arrow) for n, m in fields]), _members(converts)))

    def remember(self, schema: dict[str, Any], mapped: Mapped) -> Mapped:
        self.named[schema["name"]] = Mapped(schema["name"], mapped.arrow, mapped.convert)
        return mapped

    def reference(self, name: str) -> Mapped:
        known = self.named[name]
        self.recursive = self.recursive or known is None
        return known or Mapped(name, pa.string(), _text)

    def union(self, branches: list[Any]) -> Mapped:
        mapped = [self.of(b) for b in branches]
        decode = [m.schema for m in mapped]
        kinds = [m for m in mapped if not pa.types.is_null(m.arrow)]
        if not kinds:
            return Mapped(decode, pa.null())
        if len(kinds) == 1:
            return Mapped(decode, kinds[0].arrow, _optional(kinds[0].convert))
        plain = [m.schema for m in kinds if isinstance(m.schema, str) and m.arrow == _PRIMITIVES.get(m.schema)]
        numbers = sorted(_WIDTH.index(s) for s in plain if s in _WIDTH)
        if len(numbers) == len(kinds) and not (numbers[0] <= 1 < numbers[-1]):  # an integer may not fit a float
            return Mapped(decode, _PRIMITIVES[_WIDTH[numbers[-1]]])
        return Mapped(decode, pa.string(), _text)


def _takes_no_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return all(_takes_no_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_null(kind) or kind == pa.binary(0))


def _kept(schema: dict[str, Any], *, only: tuple[str, ...] = ("default", "aliases")) -> dict[str, Any]:
    """What resolution needs of a reader's schema besides names and types."""
    return {word: schema[word] for word in only if word in schema}


def _defaults_as_bytes(parsed: Any) -> None:
    """Makes defaults of bytes and fixed the bytes they stand for: fastavro gives the text that JSON has in their place."""
    names: dict[str, Any] = parsed.get("__named_schemas", {}) if isinstance(parsed, dict) else {}
    for record in [parsed, *names.values()] if isinstance(parsed, dict) else []:
        for part in _fields(record):
            if "default" in part:
                part["default"] = _as_bytes(part["type"], part["default"], names)


def _fields(schema: Any) -> Iterator[dict[str, Any]]:
    """The fields of a parsed schema's records, at any depth."""
    if isinstance(schema, list):
        for branch in schema:
            yield from _fields(branch)
    elif isinstance(schema, dict):
        for part in schema.get("fields", ()):
            yield part
            yield from _fields(part["type"])
        for inner in ("items", "values", "type"):
            yield from _fields(schema.get(inner))


def _as_bytes(schema: Any, value: Any, names: dict[str, Any]) -> Any:
    if isinstance(schema, list):  # a default is of the first branch
        return _as_bytes(schema[0], value, names)
    if isinstance(schema, str):
        schema = names.get(schema, {"type": schema})
    kind = schema["type"]
    if kind in ("bytes", "fixed"):
        return value.encode("latin-1") if isinstance(value, str) else value
    if kind == "array":
        return [_as_bytes(schema["items"], item, names) for item in value]
    if kind == "map":
        return {key: _as_bytes(schema["values"], item, names) for key, item in value.items()}
    if kind in ("record", "error"):
        types = {part["name"]: part["type"] for part in schema["fields"]}
        return {key: _as_bytes(types[key], item, names) if key in types else item for key, item in value.items()}
    return value


def _logical(schema: dict[str, Any], physical: Mapped) -> Mapped:
    """The logical type of a primitive or fixed; the physical type where the logical one does not fit, as Avro demands."""
    word = schema.get("logicalType")
    known = _LOGICAL.get((physical.schema, word)) if isinstance(physical.schema, str) else None
    if known is not None:
        return Mapped(physical.schema, known)
    if word == "uuid" and schema.get("size") == 16:
        return Mapped(physical.schema, pa.string(), lambda v: None if v is None else str(uuid.UUID(bytes=v)))
    if word == "decimal" and (physical.schema == "bytes" or "size" in schema):
        precision, scale = schema.get("precision", 0), schema.get("scale", 0)
        if 1 <= precision <= _MOST_DIGITS and 0 <= scale <= precision:
            arrow = pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)
            return Mapped(physical.schema, arrow, lambda v: None if v is None else _decimal(v, scale))
    return physical


def _decimal(unscaled: bytes, scale: int) -> decimal.Decimal:
    return decimal.Decimal(int.from_bytes(unscaled, "big", signed=True)).scaleb(-scale, _CONTEXT)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else _ENCODE_JSON(value).decode()


def _optional(convert: Convert | None) -> Convert | None:
    return None if convert is None else lambda v: None if v is None else convert(v)


def _each(convert: Convert | None) -> Convert | None:
    return None if convert is None else lambda v: [convert(i) for i in v]


def _pairs(convert: Convert | None) -> Convert:
    if convert is None:
        return lambda v: list(v.items())
    return lambda v: [(key, convert(item)) for key, item in v.items()]


def _members(converts: list[tuple[str, Convert]]) -> Convert | None:
    return None if not converts else lambda v: v | {name: convert(v[name]) for name, convert in converts}
