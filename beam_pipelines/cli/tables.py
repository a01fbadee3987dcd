"""Rows as text for people: aligned, cut to the width of the screen, safe to print."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, TextIO

import msgspec
import pyarrow as pa
from rich.cells import cell_len, set_cell_size

_ENCODER = msgspec.json.Encoder(enc_hook=str, decimal_format="number")
_GAP = "  "
_LONGEST = 60  # columns of the screen that a value may take
_NARROW = 100


def width_of(out: TextIO) -> int | None:
    """The columns of the screen; None where `out` is no screen, so that nothing need be left out."""
    return shutil.get_terminal_size((_NARROW, 24)).columns if out.isatty() else None


def table_lines(table: pa.Table, *, width: int | None, limit: int | None = None, indent: str = "", wide: bool = False) -> list[str]:
    """The first `limit` rows as aligned lines under the columns' names; columns that do not fit `width` are named in a last line, and long
    values end in an ellipsis. `wide`: everything is shown."""
    shown = table if limit is None else table.slice(0, limit)
    right = [_is_number(field.type) for field in table.schema]
    longest = None if wide else _LONGEST
    cells = [[cell(v, longest) for v in values(column)] for column in shown.columns]
    names = [clean(name) for name in table.column_names]
    return grid(names, list(zip(*cells, strict=True)) if cells else [], right=right, width=None if wide else width, indent=indent)


def grid(
    names: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[bool] = (), width: int | None = None, indent: str = ""
) -> list[str]:
    """Texts in aligned columns; `right` says which are aligned to the right."""
    sizes = [max([cell_len(n), *(cell_len(row[i]) for row in rows)]) for i, n in enumerate(names)]
    fitting = _fitting(sizes, width, len(indent))

    def line(texts: Sequence[str]) -> str:
        padded = [_pad(texts[i], sizes[i], i < len(right) and right[i]) for i in range(fitting)]
        return (indent + _GAP.join(padded)).rstrip()

    lines = [line(names), *(line(row) for row in rows)]
    hidden = names[fitting:]
    return [*lines, f"{indent}({len(hidden)} more column{'s' * (len(hidden) > 1)}: {_listed(hidden)})"] if hidden else lines


def _fitting(sizes: Sequence[int], width: int | None, used: int) -> int:
    if width is None:
        return len(sizes)
    for i, size in enumerate(sizes):
        used += size + (len(_GAP) if i else 0)
        if used > width and i:
            return i
    return len(sizes)


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _pad(text: str, size: int, right: bool) -> str:
    return " " * (size - cell_len(text)) + text if right else text + " " * (size - cell_len(text))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def values(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """The values as Python's; instants without an offset, as they are all UTC."""
    try:
        found: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):  # outside the years 1 to 9999, or with nanoseconds
        found = column.cast(pa.string()).to_pylist()
    if pa.types.is_map(column.type):
        return [None if v is None else dict(v) for v in found]
    if pa.types.is_interval(column.type):
        return [None if v is None else _interval(*v) for v in found]
    return found


def _interval(months: int, days: int, nanoseconds: int) -> str:
    parts = [f"{n} {word}" for n, word in ((months, "months"), (days, "days")) if n]
    return " ".join([*parts, str(timedelta(microseconds=nanoseconds // 1000))] if nanoseconds or not parts else parts)


def cell(value: Any, longest: int | None = None) -> str:
    """One value on one line: NULL for none (a text of that name stands in quotes), JSON for what is nested, control characters escaped."""
    text = '"NULL"' if value == "NULL" else clean(_text(value))
    return text if longest is None or cell_len(text) <= longest else set_cell_size(text, longest - 1).rstrip() + "…"


def _text(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) + ".0" if value.is_integer() and abs(value) < 1e15 else f"{value:.9g}"
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(" ", "auto" if value.microsecond else "seconds") + ("Z" if value.tzinfo else "")
    return json_text(value) if isinstance(value, dict | list) else str(value)


def clean(text: str) -> str:
    """Text that cannot move the cursor or color the screen: control characters are escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def json_text(value: Any) -> str:
    """A value as JSON: decimals as exact numbers, instants as ISO 8601 in UTC, bytes as text, what is no number as null."""
    return _ENCODER.encode(_plain(value)).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date | time) else str(value) if isinstance(value, timedelta) else value
