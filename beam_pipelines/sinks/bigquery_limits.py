"""Which rows BigQuery would refuse, and why, before they are sent: one look at each column, a second only where something is out of range. No Beam.

dates, timestamps, datetimes    0001-01-01 to 9999-12-31
decimals                        the digits of the table's column
lists                           no NULL in them
required columns                no NULL
a row                           9.5 MB: a request of 10 MB holds it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.sinks.bigquery_schema import REQUIRED, Field

ROW_BYTES = 9_500_000
FIRST_DAY, LAST_DAY = -719_162, 2_932_896
_PER_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000}
_RANGE = "outside BigQuery's 0001-01-01 to 9999-12-31"
Rows = npt.NDArray[np.int64]


def limits(batch: pa.RecordBatch, fields: Sequence[Field]) -> dict[int, str]:
    """The rows that a table with these fields refuses, each with all reasons; mostly none. NaN and infinities are values like others."""
    by_name = {f.name.lower(): f for f in fields}
    found: dict[int, list[str]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        for rows, why in _refused(column, by_name.get(name.lower()), name):
            for row in dict.fromkeys(rows.tolist()):  # only those refused
                found.setdefault(row, []).append(f"column {name!r}: {why}")
    for row, size in _large(batch):
        found.setdefault(row, []).append(f"a row of {size:,} bytes; BigQuery takes {ROW_BYTES:,}")
    return {row: "; ".join(whys) for row, whys in sorted(found.items())}


def in_known_years(column: pa.Array) -> pa.Array:
    """A column of dates or moments, with NULL for those that BigQuery does not know."""
    for rows, _ in _outside_time(column):
        gone = np.zeros(len(column), bool)
        gone[rows] = True
        return pc.if_else(pa.array(gone), pa.scalar(None, column.type), column)
    return column


def _refused(column: pa.Array, field: Field | None, path: str) -> Iterator[tuple[Rows, str]]:
    kind = column.type
    if field is not None and field.mode == REQUIRED and column.null_count:
        yield _where(column.is_null()), "NULL, and the table requires a value"
    if pa.types.is_dictionary(kind):
        if not _checked(kind.value_type):
            return
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _in_list(column, field, path)
    elif pa.types.is_struct(kind):
        inner = {f.name.lower(): f for f in field.fields} if field is not None else {}
        for number in range(kind.num_fields):
            name = kind.field(number).name
            for rows, why in _refused(pc.struct_field(column, number), inner.get(name.lower()), f"{path}.{name}"):
                yield rows, f"{path}.{name}: {why}"
    elif pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        yield from _outside_time(column)
    elif pa.types.is_decimal(kind) and field is not None and field.digits:
        yield from _outside_digits(column, *field.digits)


def _checked(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or pa.types.is_nested(kind))


def _in_list(column: pa.Array, field: Field | None, path: str) -> Iterator[tuple[Rows, str]]:
    values, parents = pc.list_flatten(column), pc.list_parent_indices(column).to_numpy()
    if values.null_count:
        yield parents[_where(values.is_null())], "NULL in a list; BigQuery's lists have none"
    for rows, why in _refused(values, field, path):
        yield parents[rows], why


def _outside_time(column: pa.Array) -> Iterator[tuple[Rows, str]]:
    kind = column.type
    if pa.types.is_date32(kind):
        numbers, low, high = column.cast(pa.int32()), FIRST_DAY, LAST_DAY
    else:
        unit = _PER_DAY.get("ms" if pa.types.is_date64(kind) else kind.unit)
        if unit is None:  # nanoseconds reach from 1677 to 2262
            return
        numbers, low, high = column.cast(pa.int64()), FIRST_DAY * unit, (LAST_DAY + 1) * unit - 1
    ends = pc.min_max(numbers).as_py()
    if ends["min"] is not None and (ends["min"] < low or ends["max"] > high):
        yield _where(pc.or_(pc.less(numbers, low), pc.greater(numbers, high))), _RANGE


def _outside_digits(column: pa.Array, before: int, behind: int) -> Iterator[tuple[Rows, str]]:
    kind = column.type
    if kind.scale > behind:
        kept = pc.round(column, behind)
        lost = pc.not_equal(kept, column)
        if pc.any(lost).as_py():
            yield _where(lost), f"more than {behind} digits behind the decimal point"
    if kind.precision - kind.scale > before:
        wide = column.cast(pa.decimal256(76, kind.scale))
        low, high = (pa.scalar(sign * Decimal(10) ** before, wide.type) for sign in (-1, 1))
        out = pc.or_(pc.greater_equal(wide, high), pc.less_equal(wide, low))
        if pc.any(out).as_py():
            yield _where(out), f"more than {before} digits before the decimal point"


def _large(batch: pa.RecordBatch) -> Iterator[tuple[int, int]]:
    if batch.nbytes <= ROW_BYTES:
        return
    sizes = sum((_sizes(column) for column in batch.columns), np.zeros(batch.num_rows, np.int64))
    for row in np.flatnonzero(sizes > ROW_BYTES):
        yield int(row), int(sizes[row])


def _sizes(column: pa.Array) -> Rows:
    """Bytes of each value, in Arrow's form."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _sizes(column.dictionary_decode())
    if pa.types.is_struct(kind):
        return sum((_sizes(pc.struct_field(column, n)) for n in range(kind.num_fields)), np.zeros(len(column), np.int64))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        total = np.zeros(len(column), np.int64)
        np.add.at(total, pc.list_parent_indices(column).to_numpy(), _sizes(pc.list_flatten(column)))
        return total + 4
    if pa.types.is_fixed_size_binary(kind) or not _is_text(kind):
        return np.full(len(column), max(1, _bits(kind) // 8), np.int64)
    return np.asarray(pc.fill_null(pc.binary_length(column), 0), np.int64) + 4


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind) or pa.types.is_large_binary(kind))


def _bits(kind: pa.DataType) -> int:
    return 0 if pa.types.is_null(kind) else int(kind.bit_width)


def _where(mask: pa.Array) -> Rows:
    return np.flatnonzero(np.asarray(pc.fill_null(mask, False)))
