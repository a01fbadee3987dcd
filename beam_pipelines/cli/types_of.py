"""The contract type of an Arrow type, for proposals."""

from __future__ import annotations

import re

import pyarrow as pa

_FIELD = re.compile(r"[A-Za-z_][\w -]*")


def type_of(kind: pa.DataType) -> tuple[str | None, str]:
    """The contract type that holds every value of `kind`, and a note where it is not quite the same; None where there is none."""
    if pa.types.is_dictionary(kind):
        return type_of(kind.value_type)
    if pa.types.is_large_list(kind) or pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        inner, note = type_of(kind.value_type)
        return (f"list<{inner}>" if inner else None), note
    if pa.types.is_struct(kind):
        return _struct(kind)
    if pa.types.is_decimal(kind):
        return (
            (f"decimal({kind.precision},{kind.scale})", "")
            if kind.precision <= 38 and 0 <= kind.scale <= kind.precision
            else (None, f"{kind}")
        )
    if pa.types.is_timestamp(kind):
        note = "nanoseconds in the file" if kind.unit == "ns" else ""
        return ("timestamp" if kind.tz else "datetime"), note
    for test, word in _PLAIN:
        if test(kind):
            return word, ""
    return None, f"no contract type holds {kind}"


def _struct(kind: pa.StructType) -> tuple[str | None, str]:
    fields = []
    for field in kind:
        inner, note = type_of(field.type)
        if inner is None or not _FIELD.fullmatch(field.name):
            return None, note or f"no contract type can name the field {field.name!r}"
        fields.append(f"{field.name}: {inner}")
    return (f"struct<{', '.join(fields)}>", "") if fields else (None, "a struct without fields")


_PLAIN = (
    (pa.types.is_boolean, "boolean"), (pa.types.is_int8, "int8"), (pa.types.is_int16, "int16"), (pa.types.is_int32, "int32"),
    (pa.types.is_int64, "int64"), (pa.types.is_uint8, "uint8"), (pa.types.is_uint16, "uint16"), (pa.types.is_uint32, "uint32"),
    (pa.types.is_uint64, "uint64"), (pa.types.is_float16, "float32"), (pa.types.is_float32, "float32"), (pa.types.is_float64, "float64"),
    (pa.types.is_string, "string"), (pa.types.is_large_string, "string"), (pa.types.is_string_view, "string"), (pa.types.is_binary, "binary"),
    (pa.types.is_large_binary, "binary"), (pa.types.is_fixed_size_binary, "binary"), (pa.types.is_date, "date"), (pa.types.is_time, "time"),
    (pa.types.is_null, "string"),
)  # fmt: skip
