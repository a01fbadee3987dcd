"""SQL that turns a column of any Arrow type into its contract type: texts by the rules of text_casts.py, numbers without loss.

source            fits without `coerce`                          with `coerce` also
string            the text rules
integer           integers in range, decimal, float if exact     string; boolean where 0 or 1
float             floats; decimal if its shortest text fits      integer where whole; string
decimal           decimals that hold the value, float            integer where whole; string
boolean           boolean                                        string
date              date, timestamp and datetime at midnight       string
timestamp         the same kind of time                          date at midnight; string
list, struct      item by item, field by field; json
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from beam_pipelines.arrow.contract import Column
from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.text_casts import Cast, epoch, instant, text_cast, unconverted
from beam_pipelines.arrow.types import DataType

_SHOWN_CHARACTERS = 100
_SPACE = r"[ \t\r\n]*"


def cast(x: str, source: pa.DataType, dtype: DataType, column: Column, *, zone: str = "UTC") -> Cast:
    """The cast of SQL `x`, of Arrow type `source`, to `dtype` by the rules of `column`.

    `zone` is where timestamps without an offset inside lists and structs are local; at the top, `Cast.naive` marks them.

    >>> cast('"q"', pa.int64(), DataType('int16'), Column(type='int16')).value
    'TRY_CAST("q" AS SMALLINT)'
    """
    return _cast(x, source, dtype, column, zone=zone, depth=0)


def same(source: pa.DataType, dtype: DataType) -> bool:
    """Whether a column of type `source` is already what the contract wants and needs no look."""
    return bool(source == dtype.arrow()) and not _holds(dtype, ("json", "uuid"))


def json_shape(dtype: DataType) -> str:
    """The structure argument of from_json that reads `dtype` with every scalar as text."""
    if dtype.item is not None:
        return f"[{json_shape(dtype.item)}]"
    if dtype.kind == "struct":
        return "{" + ", ".join(f"{_json_text(n)}: {json_shape(t)}" for n, t in dtype.fields) + "}"
    return '"JSON"' if dtype.kind == "json" else '"VARCHAR"'


def shape_type(dtype: DataType) -> pa.DataType:
    """The Arrow type that `json_shape` gives."""
    if dtype.item is not None:
        return pa.list_(shape_type(dtype.item))
    if dtype.kind == "struct":
        return pa.struct([(n, shape_type(t)) for n, t in dtype.fields])
    return pa.string()


def parse_json(text: str, dtype: DataType) -> str:
    """SQL that reads JSON `text` as `dtype` with every scalar as text; NULL where it is no JSON."""
    return f"TRY(from_json({text}, {literal(json_shape(dtype))}))"


def cast_parsed(text: str, parsed: str, dtype: DataType, column: Column, *, zone: str = "UTC", depth: int = 0) -> Cast:
    """The cast to a nested `dtype` of JSON `text` that `parse_json` has read as `parsed`."""
    inner = _nested(parsed, shape_type(dtype), dtype, column, zone=zone, depth=depth)
    opening = literal(f"^{_SPACE}{'[{]' if dtype.kind == 'struct' else '[[]'}")  # from_json reads any scalar as a struct of NULLs
    shaped = f"coalesce(regexp_matches({text}, {opening}) AND {parsed} IS NOT NULL, FALSE)"
    return Cast(inner.value, lambda value: f"({text} IS NOT NULL AND (NOT {shaped} OR coalesce({_wrong(inner, value)}, FALSE)))")


def got(name: str, x: str, source: pa.DataType, column: Column) -> str:
    """The SQL of a rejected value's message: `dep_delay: got 'abc'; expected int16`. A sensitive value is not shown."""
    expected = literal(f"; expected {column.type}{_how(column)}")
    if column.sensitive is not None:
        return f"{literal(f'{name}: got a value that is not shown (sensitive)')} || {expected}"
    if pa.types.is_string(source):
        return f"{literal(f'{name}: got ')} || {shown(x)} || {expected}"
    return f"{literal(f'{name}: got ')} || {shown(x, quoted=False)} || {literal(f' ({source})')} || {expected}"


def shown(x: str, *, quoted: bool = True) -> str:
    """SQL for a value as people see it in a message: short, quoted, 'NULL' where it is NULL."""
    text = f"CAST({x} AS VARCHAR)"
    short = f"CASE WHEN length({text}) > {_SHOWN_CHARACTERS} THEN left({text}, {_SHOWN_CHARACTERS}) || '...' ELSE {text} END"
    return f"coalesce('''' || {short} || '''', 'NULL')" if quoted else f"coalesce({short}, 'NULL')"


def _how(column: Column) -> str:
    if column.format is None:
        return ""
    patterns = (column.format,) if isinstance(column.format, str) else column.format
    return f" as {' or '.join(patterns)}"


def _json_text(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _holds(dtype: DataType, kinds: tuple[str, ...]) -> bool:
    inner = [dtype.item] if dtype.item is not None else [t for _, t in dtype.fields]
    return dtype.kind in kinds or any(_holds(t, kinds) for t in inner)


def _cast(x: str, source: pa.DataType, dtype: DataType, column: Column, *, zone: str, depth: int) -> Cast:
    if pa.types.is_null(source):
        return Cast(f"NULL::{dtype.sql}")
    if dtype.kind == "json" and not pa.types.is_string(source):
        return Cast(f"CAST(to_json({x}) AS VARCHAR)")
    if dtype.nested:
        return _nested(x, source, dtype, column, zone=zone, depth=depth)
    found = text_cast(x, dtype, column) if pa.types.is_string(source) else _native(x, source, dtype, column)
    if depth == 0 or found.naive is None or zone == "UTC":
        return found
    local = f"CASE WHEN {found.naive} THEN {instant(f'timezone({literal(zone)}, {found.value})')} ELSE {found.value} END"
    return Cast(local, found.wrong)


def _nested(x: str, source: pa.DataType, dtype: DataType, column: Column, *, zone: str, depth: int) -> Cast:
    if pa.types.is_string(source):
        return cast_parsed(x, parse_json(x, dtype), dtype, column, zone=zone, depth=depth)
    if dtype.item is not None and pa.types.is_list(source):
        return _list(x, source, dtype.item, column, zone=zone, depth=depth)
    if dtype.kind == "struct" and pa.types.is_struct(source):
        return _struct(x, source, dtype, column, zone=zone, depth=depth)
    return _no_way(x, dtype)


def _list(x: str, source: pa.DataType, item: DataType, column: Column, *, zone: str, depth: int) -> Cast:
    one = f"e{depth}"
    inner = _cast(one, source.value_type, item, column, zone=zone, depth=depth + 1)
    value = x if inner.value == one else f"list_transform({x}, lambda {one}: {inner.value})"
    if inner.wrong is None:
        return Cast(value)
    bad = _wrong(inner, inner.value)
    return Cast(value, lambda _: f"coalesce(len(list_filter({x}, lambda {one}: {bad})) > 0, FALSE)")


def _struct(x: str, source: pa.DataType, dtype: DataType, column: Column, *, zone: str, depth: int) -> Cast:
    have = {f.name: f.type for f in source}
    values, bads = [], []
    for name, kind in dtype.fields:
        if name not in have:
            values.append(f"{quote(name)} := NULL::{kind.sql}")
            continue
        inner = _cast(f"struct_extract({x}, {literal(name)})", have[name], kind, column, zone=zone, depth=depth + 1)
        values.append(f"{quote(name)} := {inner.value}")
        if inner.wrong is not None:
            bads.append(f"coalesce({_wrong(inner, inner.value)}, FALSE)")
    value = f"CASE WHEN {x} IS NOT NULL THEN struct_pack({', '.join(values)}) END"
    return Cast(value, (lambda _: f"({' OR '.join(bads)})") if bads else None)


def _wrong(inner: Cast, value: str) -> str:
    return "FALSE" if inner.wrong is None else inner.wrong(value)


def _native(x: str, source: pa.DataType, dtype: DataType, column: Column) -> Cast:
    """A scalar of another Arrow type than string."""
    if dtype.kind == "string":
        text = f"CASE WHEN {x} THEN 'true' ELSE 'false' END" if pa.types.is_boolean(source) else f"CAST({x} AS VARCHAR)"
        if pa.types.is_binary(source):
            text = f"TRY(decode({x}))"
        return Cast(text, unconverted(x)) if column.coerce else _no_way(x, dtype)
    for kind, rule in _NATIVE:
        if kind(source):
            return rule(x, source, dtype, column)
    return _no_way(x, dtype)


def _no_way(x: str, dtype: DataType) -> Cast:
    return Cast(f"NULL::{dtype.sql}", lambda _: f"({x} IS NOT NULL)")


def _only(x: str, dtype: DataType, condition: Callable[[str], str], value: str | None = None) -> Cast:
    """The plain cast, of rows for which `condition` of the value holds."""
    found = value or f"TRY_CAST({x} AS {dtype.sql})"
    return Cast(found, lambda v: f"({x} IS NOT NULL AND ({v} IS NULL OR NOT coalesce({condition(v)}, FALSE)))")


def _from_integer(x: str, source: pa.DataType, dtype: DataType, column: Column) -> Cast:
    if dtype.integer or dtype.kind == "decimal":
        return Cast(f"TRY_CAST({x} AS {dtype.sql})", unconverted(x))
    if dtype.floating:
        return _only(x, dtype, lambda v: f"TRY_CAST({v} AS HUGEINT) = {x}")
    if dtype.kind == "boolean" and column.coerce:
        return Cast(f"CASE {x} WHEN 1 THEN TRUE WHEN 0 THEN FALSE END", unconverted(x))
    return _counted(x, dtype, column)


def _counted(x: str, dtype: DataType, column: Column) -> Cast:
    """A number as a count of `unit`s since 1970."""
    if dtype.kind not in ("timestamp", "datetime") or column.unit is None:
        return _no_way(x, dtype)
    return Cast(epoch(f"CAST({x} AS VARCHAR)", column.unit), unconverted(x))


def _from_float(x: str, source: pa.DataType, dtype: DataType, column: Column) -> Cast:
    if dtype.floating:
        return _only(x, dtype, lambda v: f"isfinite({v}) OR NOT isfinite({x})")
    if dtype.kind == "decimal" or (dtype.kind == "boolean" and column.coerce):
        text = text_cast(f"CAST({x} AS VARCHAR)", dtype, column)
        whole = text_cast(f"CAST(TRY_CAST({x} AS TINYINT) AS VARCHAR)", dtype, column)
        return text if dtype.kind == "decimal" else _only(x, dtype, lambda _: f"{x} IN (0, 1)", whole.value)
    if dtype.integer and column.coerce:
        return _only(x, dtype, lambda v: f"{x} = trunc({x}) AND {v}::DOUBLE = {x}")
    return _counted(x, dtype, column)


def _from_decimal(x: str, source: pa.DataType, dtype: DataType, column: Column) -> Cast:
    if dtype.floating:
        return Cast(f"TRY_CAST({x} AS {dtype.sql})", unconverted(x))
    if dtype.kind == "decimal" or (dtype.integer and (column.coerce or source.scale <= 0)):
        return _only(x, dtype, lambda v: f"TRY_CAST({v} AS DECIMAL({source.precision},{source.scale})) = {x}")
    return _counted(x, dtype, column)


def _from_boolean(x: str, source: pa.DataType, dtype: DataType, column: Column) -> Cast:
    return Cast(x) if dtype.kind == "boolean" else _no_way(x, dtype)


def _from_date(x: str, source: pa.DataType, dtype: DataType, column: Column) -> Cast:
    if dtype.kind == "date":
        return Cast(x)
    if dtype.kind in ("timestamp", "datetime"):
        naive = f"({x} IS NOT NULL)" if dtype.kind == "timestamp" else None
        return Cast(f"TRY_CAST({x} AS TIMESTAMP)", unconverted(x), naive)
    return _no_way(x, dtype)


def _from_timestamp(x: str, source: pa.DataType, dtype: DataType, column: Column) -> Cast:
    """In microseconds and in range before; DuckDB sees no zone."""
    if dtype.kind == "timestamp":
        return Cast(x, naive=None if source.tz else f"({x} IS NOT NULL)")
    if dtype.kind == "datetime" and not source.tz:
        return Cast(x)
    if dtype.kind == "date" and column.coerce:
        return _only(x, dtype, lambda v: f"{v}::TIMESTAMP = {x}")
    return _no_way(x, dtype)


def _from_time(x: str, source: pa.DataType, dtype: DataType, column: Column) -> Cast:
    return Cast(x) if dtype.kind == "time" else _no_way(x, dtype)


def _from_binary(x: str, source: pa.DataType, dtype: DataType, column: Column) -> Cast:
    return Cast(x) if dtype.kind == "binary" else _no_way(x, dtype)


_Rule = Callable[[str, pa.DataType, DataType, Column], Cast]
_NATIVE: tuple[tuple[Callable[[pa.DataType], bool], _Rule], ...] = (
    (pa.types.is_integer, _from_integer),
    (pa.types.is_floating, _from_float),
    (pa.types.is_decimal, _from_decimal),
    (pa.types.is_boolean, _from_boolean),
    (pa.types.is_date, _from_date),
    (pa.types.is_timestamp, _from_timestamp),
    (pa.types.is_time, _from_time),
    (pa.types.is_binary, _from_binary),
)
