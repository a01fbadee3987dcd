"""Rows as the Storage Write API takes them in Arrow: types that it knows, batches that fit into a request. No Beam, no client, no loop over rows.

    integers, unsigned ones too   int64           floats            float64
    UBIGINT, decimals             decimal128, of a BIGNUMERIC decimal256
    texts, dictionaries, JSON     utf8            bytes             binary
    timestamps                    microseconds, UTC               datetimes    microseconds, no zone
    dates                         date32          times             time64, microseconds
    lists                         list, NULL as an empty one        records      struct, in the table's spelling

The rule is Google's "Supported Apache Arrow data types". TIME is missing there: it goes as the Storage Read API gives it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.errors import SinkError
from beam_pipelines.sinks.bigquery_schema import BIGNUMERIC, NUMERIC, REPEATED, Field

REQUEST_BYTES = 9_000_000
"""Of rows in a request: the service takes 10 MB with all that is around them."""
REQUEST_ROWS = 20_000
_PLAIN = {
    "BOOLEAN": pa.bool_(), "INTEGER": pa.int64(), "FLOAT": pa.float64(), "STRING": pa.string(), "JSON": pa.string(), "GEOGRAPHY": pa.string(),
    "BYTES": pa.binary(), "DATE": pa.date32(), "TIME": pa.time64("us"), "TIMESTAMP": pa.timestamp("us", "UTC"), "DATETIME": pa.timestamp("us"),
}  # fmt: skip


def wire(batch: pa.RecordBatch, fields: Sequence[Field], *, where: str = "the table") -> pa.RecordBatch:
    """`batch` in the types and the spelling of a table with these fields; columns that have them already are not copied.

    Raises SinkError where the table has no such column, or a value does not fit into it (`limits` says which).
    """
    by_name = {f.name.lower(): f for f in fields}
    names, columns = [], []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        field = by_name.get(name.lower())
        if field is None:
            raise SinkError(f"{where}: has no column {name!r}.")
        try:
            columns.append(_wire(column, field))
        except pa.ArrowException as error:
            raise SinkError(f"{where}: column {name!r} is {field.sql}; the rows have {column.type}: {error}.") from error
        names.append(field.name)
    return pa.RecordBatch.from_arrays(columns, names=names)


def wire_type(kind: pa.DataType, field: Field) -> pa.DataType:
    """The Arrow type in which a column of type `kind` goes into the field."""
    if pa.types.is_dictionary(kind):
        return wire_type(kind.value_type, field)
    if field.mode == REPEATED:
        inner = kind.value_type if pa.types.is_nested(kind) and not pa.types.is_struct(kind) else kind
        return pa.list_(pa.field("item", _value_type(inner, field)))
    return _value_type(kind, field)


def _value_type(kind: pa.DataType, field: Field) -> pa.DataType:
    if field.type == "RECORD":
        inner = {f.name.lower(): f for f in field.fields}
        found = [kind.field(n) for n in range(kind.num_fields)] if pa.types.is_struct(kind) else []
        unknown = [f.name for f in found if f.name.lower() not in inner]
        if unknown:
            raise pa.ArrowInvalid(f"no field {unknown[0]!r} in it")
        return pa.struct([pa.field(inner[f.name.lower()].name, wire_type(f.type, inner[f.name.lower()])) for f in found])
    if field.type in ("NUMERIC", "BIGNUMERIC"):
        return _decimal_type(kind, field)
    if field.type not in _PLAIN:
        raise pa.ArrowInvalid(f"no rows can be made for {field.type}")
    return _PLAIN[field.type]


def _decimal_type(kind: pa.DataType, field: Field) -> pa.DataType:
    big = field.type == "BIGNUMERIC"
    make = pa.decimal256 if big else pa.decimal128
    if pa.types.is_uint64(kind):
        return make(20, 0)
    if pa.types.is_integer(kind):
        return make(19, 0)
    before, behind = field.digits or (BIGNUMERIC if big else NUMERIC)
    if pa.types.is_decimal(kind) and kind.scale <= behind and kind.precision - kind.scale <= before:
        return make(kind.precision, kind.scale)  # its own: another scale would be computed for every row
    return make(before + behind, behind)


def _wire(column: pa.Array, field: Field) -> pa.Array:
    target = wire_type(column.type, field)
    if column.type == target and not pa.types.is_nested(target):
        return column
    if pa.types.is_dictionary(column.type):
        return _wire(column.dictionary_decode(), field)
    if field.mode == REPEATED and pa.types.is_nested(column.type):
        return _list(column, field, target)
    if pa.types.is_struct(target) and pa.types.is_struct(column.type):
        inner = {f.name.lower(): f for f in field.fields}
        members = [_wire(_member(column, n), inner[column.type.field(n).name.lower()]) for n in range(column.type.num_fields)]
        mask = column.is_null() if column.null_count else None
        return pa.StructArray.from_arrays(members, fields=list(target), mask=mask)
    return column.cast(target, safe=not pa.types.is_timestamp(column.type))  # nanoseconds are cut; ranges were looked at before


def _member(column: pa.StructArray, number: int) -> pa.Array:
    return pc.struct_field(column, number)


def _list(column: pa.Array, field: Field, target: pa.DataType) -> pa.Array:
    """A list that is NULL goes as an empty one: a column of mode REPEATED knows no difference."""
    one = Field(field.name, field.type, fields=field.fields, precision=field.precision, scale=field.scale)
    values = _wire(pc.list_flatten(column), one)
    lengths = pc.fill_null(pc.list_value_length(column), 0).cast(pa.int64())
    ends = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths)]).cast(pa.int32())
    return pa.ListArray.from_arrays(ends, values, type=target)


def schema_bytes(schema: pa.Schema) -> bytes:
    """The schema as a connection's first request has it."""
    return bytes(schema.remove_metadata().serialize())


def rows_bytes(batch: pa.RecordBatch) -> bytes:
    """The rows as a request has them, without their schema; of a slice only its own."""
    return bytes(batch.serialize())


def cut(batch: pa.RecordBatch, *, most_bytes: int = REQUEST_BYTES, most_rows: int = REQUEST_ROWS) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each request, for rows of about the same size; one that comes out too large is halved by whoever sends it."""
    rows = batch.num_rows
    if rows:
        step = max(1, min(most_rows, rows * most_bytes // max(1, batch.nbytes)))
        yield from ((first, min(step, rows - first)) for first in range(0, rows, step))


def loadable(kind: pa.DataType) -> pa.DataType:
    """What BigQuery does not read from Parquet: integers beyond 2**63, which are NUMERIC there."""
    if kind == pa.uint64():
        return pa.decimal128(20, 0)
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(loadable(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(loadable(f.type)) for f in kind])
    return kind
