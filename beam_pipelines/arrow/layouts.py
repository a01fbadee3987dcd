"""Any Arrow layout in the few that the stages know: dictionaries, large and view types, run ends, fixed sizes and units of time say
nothing about a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

LAST_MICROS = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999
_US_PER = {"s": 1_000_000, "ms": 1_000}


def plain(column: pa.Array) -> pa.Array:
    """`column` in the plain layout of its type (see `plain_type`)."""
    if isinstance(column, pa.ExtensionArray):
        if column.type.extension_name == "arrow.uuid":
            return pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.string())  # Arrow has no kernel for it
        column = column.storage
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_decimal256(column.type):
        return column.cast(pa.string())
    kind = plain_type(column.type)
    if kind == column.type:
        return column
    if pa.types.is_timestamp(kind):
        return _micros(column, kind)
    try:
        return column.cast(options=pc.CastOptions(kind, allow_time_truncate=True))
    except pa.ArrowInvalid:  # a time out of range inside a list or struct
        return column.cast(kind, safe=False)


def rows_of(batch: pa.RecordBatch, rows: npt.NDArray[np.integer]) -> pa.RecordBatch:
    """The rows of these numbers; string views included, which Arrow cannot take from."""
    index = pa.array(rows)
    arrays = [_views_of(c, rows) if pa.types.is_string_view(c.type) else c.take(index) for c in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _views_of(column: pa.Array, rows: npt.NDArray[np.integer]) -> pa.Array:
    _, views, *data = column.buffers()
    taken = np.frombuffer(views, "V16")[column.offset : column.offset + len(column)][rows]
    valid = np.packbits(column.is_valid().to_numpy(zero_copy_only=False)[rows], bitorder="little")
    return pa.Array.from_buffers(column.type, len(rows), [pa.py_buffer(valid), pa.py_buffer(taken), *data])


def by_halves(batch: pa.RecordBatch, fault: Callable[[pa.RecordBatch], str | None], first: int = 0) -> Iterator[tuple[int, str]]:
    """The rows of which `fault` says something, and what, for a fault that one row gives to the whole; `first` is the number of the first."""
    said = fault(batch)
    if said is None or not batch.num_rows:
        return
    if batch.num_rows == 1:
        yield first, said
        return
    half = batch.num_rows // 2
    for rows in (range(half), range(half, batch.num_rows)):
        taken = rows_of(batch, np.array(rows))  # a slice would be judged with all its nested values
        yield from by_halves(taken, fault, first + rows.start)


def texts_of(column: pa.Array) -> Iterator[pa.Array]:
    """The texts in `column` at any depth, as arrays; those in rare layouts as they lie. Lists are not copied, so what NULL hides may be among them."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_map(kind):
        offsets = column.offsets
        within = (column.keys, column.items) if pa.types.is_map(kind) else (column.values,)
        for array in within if len(column) else ():
            yield from texts_of(array[offsets[0].as_py() : offsets[-1].as_py()])
    elif pa.types.is_struct(kind):
        for array in column.flatten():
            yield from texts_of(array)
    elif pa.types.is_dictionary(kind):
        yield from texts_of(column.dictionary_decode())
    elif isinstance(column, pa.ExtensionArray) or any(is_kind(kind) for is_kind in _TEXTS):
        yield column


_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_nested)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The plain layout: string, binary, list, struct, timestamp[us, UTC or none], time64[us], date32, decimal128, float32.

    >>> plain_type(pa.dictionary(pa.int8(), pa.large_string())), plain_type(pa.timestamp('ns', 'Asia/Tokyo'))
    (DataType(string), TimestampType(timestamp[us, tz=UTC]))
    """
    for is_kind, canonical in _LAYOUTS:
        if is_kind(kind):
            return canonical
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if pa.types.is_decimal(kind) and kind.precision <= 38:
        return pa.decimal128(kind.precision, kind.scale)
    if any(is_list(kind) for is_list in _LISTS):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(f.name, plain_type(f.type)) for f in kind])
    return kind


_LAYOUTS = (
    (pa.types.is_large_string, pa.string()), (pa.types.is_string_view, pa.string()), (pa.types.is_large_binary, pa.binary()),
    (pa.types.is_binary_view, pa.binary()), (pa.types.is_fixed_size_binary, pa.binary()), (pa.types.is_date64, pa.date32()),
    (pa.types.is_time, pa.time64("us")), (pa.types.is_float16, pa.float32()),
)  # fmt: skip
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view, pa.types.is_large_list_view)


def _micros(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Timestamps in microseconds, rounded down; what does not fit becomes a time past the year 9999, which `align` refuses."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    unit = column.type.unit
    if unit == "ns":
        column = pc.floor_temporal(column, unit="microsecond")
    elif unit in _US_PER:
        counts, most = column.cast(pa.int64()), LAST_MICROS // _US_PER[unit]
        fits = pc.less_equal(pc.abs(counts), most)
        column = pc.if_else(fits, counts, pa.scalar(most + 1, pa.int64())).cast(pa.timestamp(unit, column.type.tz))
    return column.cast(kind, safe=False)
