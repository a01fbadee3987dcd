"""Rows as protobuf messages, for upserts: BigQuery takes changes by key in no other form ("the Apache Arrow format isn't supported"). No Beam.

    _CHANGE_TYPE               UPSERT or DELETE
    _CHANGE_SEQUENCE_NUMBER    up to four hexadecimal numbers of 16 digits, compared one after the other: the larger one is the newer version

Columns become Python values in one go; one loop over rows makes the messages, because protobuf has no other way to make them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.sinks.bigquery_appender import Ints
from beam_pipelines.sinks.bigquery_schema import REPEATED, Field

CHANGE_TYPE, SEQUENCE = "_CHANGE_TYPE", "_CHANGE_SEQUENCE_NUMBER"
UPSERT, DELETE = "UPSERT", "DELETE"
PSEUDO = (Field(CHANGE_TYPE, "STRING"), Field(SEQUENCE, "STRING"))
_PROTO = {
    "INTEGER": "TYPE_INT64", "FLOAT": "TYPE_DOUBLE", "BOOLEAN": "TYPE_BOOL", "BYTES": "TYPE_BYTES", "DATE": "TYPE_INT32", "TIMESTAMP": "TYPE_INT64",
}  # fmt: skip  # everything else is text
_SIGN = np.uint64(1 << 63)


@dataclass(frozen=True)
class ProtoRows:
    """Serialized messages of one type."""

    fields: tuple[Field, ...]
    messages: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.messages)

    def take(self, rows: Ints) -> ProtoRows:
        return ProtoRows(self.fields, tuple(self.messages[r] for r in rows))

    def fill(self, request: Any, *, first: bool) -> None:
        if first:
            descriptor(self.fields).CopyToProto(request.proto_rows.writer_schema.proto_descriptor)
        request.proto_rows.rows.serialized_rows.extend(self.messages)

    @property
    def kind(self) -> object:
        return self.fields

    def cut(self, most_bytes: int, most_rows: int) -> list[tuple[int, int]]:
        """First message and number of messages of each request."""
        ends = np.cumsum([len(m) + 8 for m in self.messages])
        found, first = [], 0
        while first < len(self.messages):
            taken = ends[first - 1] if first else 0
            last = min(max(int(np.searchsorted(ends, taken + most_bytes, "right")), first + 1), first + most_rows)
            found.append((first, last - first))
            first = last
        return found


def proto_rows(batch: pa.RecordBatch, fields: Sequence[Field]) -> ProtoRows:
    """Messages of rows in the types of `bigquery_encoding.wire`; `fields` are those of the batch's columns."""
    make = message_class(tuple(fields))
    names = batch.schema.names
    columns = [_values(column, field) for column, field in zip(batch.columns, fields, strict=True)]
    rows = zip(*columns, strict=True)
    return ProtoRows(
        tuple(fields), tuple(make(**{n: v for n, v in zip(names, row, strict=True) if v is not None}).SerializeToString() for row in rows)
    )


def changes(batch: pa.RecordBatch, deleted: pa.Array | None, sequence: pa.Array) -> pa.RecordBatch:
    """`batch` with both pseudo columns; `deleted` says which rows take a version back, `sequence` (from `sequence_numbers`) ranks it."""
    kind = pa.repeat(pa.scalar(UPSERT), batch.num_rows) if deleted is None else pc.if_else(deleted, DELETE, UPSERT)
    return batch.append_column(CHANGE_TYPE, kind).append_column(SEQUENCE, sequence)


def sequence_numbers(sections: Sequence[pa.Array], *, oldest: bool = False) -> pa.Array:
    """Texts that BigQuery compares as the given columns are compared, the first one first; four at most. `oldest`: in the first a smaller value counts more. NaN, and then
    NULL, count less than anything."""
    texts = [_hexadecimal(_ranked(column, reverse=oldest and not number)) for number, column in enumerate(sections)]
    return pc.binary_join_element_wise(*texts, "/")


def _ranked(column: pa.Array, *, reverse: bool = False) -> npt.NDArray[np.uint64]:
    """Unsigned numbers in the order of the values: integers, moments, days, floats, and decimals as floats."""
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = np.ascontiguousarray(pc.fill_null(column.cast(pa.float64()), 0.0))
        bits = numbers.view(np.uint64)
        ranks = np.where(bits & _SIGN, ~bits, bits | _SIGN)
        ranks = np.where(np.isnan(numbers), np.uint64(1), ~ranks if reverse else ranks)
    else:
        ranks = _whole(column)
        ranks = ~ranks if reverse else ranks
    return np.where(np.asarray(column.is_null()), np.uint64(0), ranks)


def _whole(column: pa.Array) -> npt.NDArray[np.uint64]:
    kind = column.type
    if pa.types.is_uint64(kind):
        return np.ascontiguousarray(pc.fill_null(column, 0))
    numbers = column.cast(pa.int32()) if pa.types.is_date32(kind) or pa.types.is_time32(kind) else column
    return np.ascontiguousarray(pc.fill_null(numbers.cast(pa.int64()), 0)).view(np.uint64) ^ _SIGN


def _hexadecimal(numbers: npt.NDArray[np.uint64]) -> pa.Array:
    """16 hexadecimal digits each, without a loop: two digits per byte, by a table."""
    digits = np.frombuffer(b"0123456789ABCDEF", np.uint8)
    octets = numbers.astype(">u8").view(np.uint8)
    text = np.empty(len(octets) * 2, np.uint8)
    text[0::2], text[1::2] = digits[octets >> 4], digits[octets & 15]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(numbers), [None, pa.py_buffer(text)]).cast(pa.binary()).cast(pa.string())


def _values(column: pa.Array, field: Field) -> list[Any]:
    if field.mode == REPEATED:
        ends = np.asarray(column.offsets)
        values = _values(column.values, Field(field.name, field.type, fields=field.fields))
        return [values[start:end] for start, end in pairwise(ends)]
    if field.type == "RECORD":
        inner = {f.name: f for f in field.fields}  # the table's order is another where a record has grown
        members = [(f.name, _values(pc.struct_field(column, n), inner[f.name])) for n, f in enumerate(column.type)]
        there = column.is_valid().to_pylist()
        return [{n: v[i] for n, v in members if v[i] is not None} if there[i] else None for i in range(len(column))]
    found: list[Any] = _plain(column, field).to_pylist()
    if field.type in ("NUMERIC", "BIGNUMERIC"):
        return [None if v is None else format(v, "f") for v in found]  # Arrow's own texts of small ones have exponents
    return found


def _plain(column: pa.Array, field: Field) -> pa.Array:
    if field.type == "DATE":
        return column.cast(pa.int32())
    if field.type == "TIMESTAMP":
        return column.cast(pa.int64())
    if field.type in ("DATETIME", "TIME"):
        return column.cast(pa.string())
    return column


def descriptor(fields: tuple[Field, ...]) -> Any:
    """The type of the rows' messages, with all that it is made of inside: as a request has it."""
    return message_class(fields).DESCRIPTOR


@lru_cache(256)
def message_class(fields: tuple[Field, ...]) -> Any:
    """A protobuf class for rows with these fields; a pool of its own, so that names never meet."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="rows.proto", package="rows", syntax="proto2")
    _describe(file.message_type.add(name="Row"), fields)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("rows.Row"))


def _describe(message: Any, fields: Sequence[Field], path: str = "rows.Row") -> None:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Proto

    for number, field in enumerate(fields, 1):
        label = Proto.LABEL_REPEATED if field.mode == REPEATED else Proto.LABEL_OPTIONAL
        one = message.field.add(name=field.name, number=number, label=label)
        if field.type == "RECORD":
            one.type, one.type_name = Proto.TYPE_MESSAGE, f".{path}.R{number}"
            _describe(message.nested_type.add(name=f"R{number}"), field.fields, f"{path}.R{number}")
        else:
            one.type = getattr(Proto, _PROTO.get(field.type, "TYPE_STRING"))
