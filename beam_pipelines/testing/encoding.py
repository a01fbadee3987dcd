"""Rows of a test as the bytes of one file, in any format that a source reads."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time
from typing import Any

import msgspec
import pyarrow as pa

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.errors import SpecError
from beam_pipelines.formats.options import CsvFormat, Format, JsonFormat, TextFormat
from beam_pipelines.testing.rows import Record

_JSON = msgspec.json.Encoder(enc_hook=str, decimal_format="number")


def encode(rows: Sequence[Record], fmt: Format, *, contract: Contract) -> bytes:
    """The rows as one file in `fmt`. Texts and bytes are records as they stand, in formats whose records are texts.

    Raises SpecError for a row that the format cannot hold.
    """
    if isinstance(fmt, CsvFormat):
        return _csv(rows, fmt, contract)
    if isinstance(fmt, JsonFormat):
        lines = [row if isinstance(row, str | bytes) else _JSON.encode(row).decode() for row in rows]
        if fmt.layout == "array":
            return _encoded(["[", *[part for line in lines for part in (line, ",")][:-1], "]"], fmt.encoding)
        return _encoded([part for line in lines for part in (line, "\n")], fmt.encoding)
    if isinstance(fmt, TextFormat):
        wrong = next((row for row in rows if isinstance(row, Mapping)), None)
        if wrong is not None:
            raise SpecError("rows of a text source are lines; got a mapping.", hint="Give each row as the line of text it is in the file.")
        return _encoded([part for row in rows if isinstance(row, str | bytes) for part in (row, "\n")], fmt.encoding)
    return _columnar(rows, fmt.type, contract)


def _encoded(parts: Iterable[str | bytes], encoding: str) -> bytes:
    """The parts one after the other, with one byte-order mark where the encoding has one; bytes as they are."""
    encoder = codecs.getincrementalencoder(encoding)()
    return b"".join(part if isinstance(part, bytes) else encoder.encode(part) for part in parts)


def _csv(rows: Sequence[Record], fmt: CsvFormat, contract: Contract) -> bytes:
    mappings = [row for row in rows if isinstance(row, Mapping)]
    known = [column.keys(name)[-1] for name, column in contract.read.items()]
    columns = list(fmt.columns or dict.fromkeys([*known, *(name for row in mappings for name in row)] if fmt.header else known))
    style: dict[str, Any] = {"delimiter": fmt.delimiter, "lineterminator": "\n"}
    style |= {"quotechar": fmt.quote} if fmt.quote else {"quoting": csv.QUOTE_NONE}
    style |= {"escapechar": fmt.escape, "doublequote": False} if fmt.escape else {}

    def line(texts: Sequence[str]) -> str:
        out = io.StringIO()
        csv.writer(out, **style).writerow(texts)
        return out.getvalue()

    parts: list[str | bytes] = ["\n" * fmt.skip_rows, line(columns) if fmt.header else ""]
    for row in rows:
        parts += [line([_text(row.get(c)) for c in columns])] if isinstance(row, Mapping) else [row, "\n"]
    return _encoded(parts, fmt.encoding)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode()
    return _JSON.encode(value).decode() if isinstance(value, Mapping | list | tuple) else str(value)


def _columnar(rows: Sequence[Record], kind: str, contract: Contract) -> bytes:
    records = [dict(row) for row in rows if isinstance(row, Mapping)]
    if len(records) != len(rows):
        raise SpecError(f"rows of a {kind} source are mappings; got a text or bytes.", hint=f"A {kind} file has columns, not lines.")
    names = list(dict.fromkeys([*(column.keys(name)[0] for name, column in contract.read.items()), *(n for r in records for n in r)]))
    table = pa.table({name: _column(name, [r.get(name) for r in records]) for name in names})
    sink = pa.BufferOutputStream()
    if kind == "avro":
        return _avro(table)
    if kind == "parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, sink)
    else:
        import pyarrow.orc

        pyarrow.orc.write_table(table, sink)
    return bytes(sink.getvalue())


def _column(name: str, values: list[Any]) -> pa.Array:
    try:
        column = pa.array(values)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise SpecError(f"column {name!r}: a columnar file holds values of one type; {error}.", hint="Give all values as texts.") from None
    return column.cast(pa.string()) if pa.types.is_null(column.type) else column


def _avro(table: pa.Table) -> bytes:
    import fastavro

    fields = [{"name": f"c{i}", "type": ["null", _avro_type(field.type, f"r{i}")], "default": None} for i, field in enumerate(table.schema)]
    for field, name in zip(fields, table.column_names, strict=True):
        field["name"] = name
    schema = fastavro.parse_schema({"type": "record", "name": "row", "fields": fields})
    out = io.BytesIO()
    fastavro.writer(out, schema, table.to_pylist())
    return out.getvalue()


def _avro_type(kind: pa.DataType, name: str) -> Any:
    if pa.types.is_list(kind):
        return {"type": "array", "items": ["null", _avro_type(kind.value_type, f"{name}i")]}
    if pa.types.is_struct(kind):
        inner = [{"name": f.name, "type": ["null", _avro_type(f.type, f"{name}_{i}")], "default": None} for i, f in enumerate(kind)]
        return {"type": "record", "name": name, "fields": inner}
    if pa.types.is_timestamp(kind):
        return {"type": "long", "logicalType": "timestamp-micros" if kind.tz else "local-timestamp-micros"}
    if pa.types.is_date(kind):
        return {"type": "int", "logicalType": "date"}
    if pa.types.is_time(kind):
        return {"type": "long", "logicalType": "time-micros"}
    if pa.types.is_decimal(kind):
        return {"type": "bytes", "logicalType": "decimal", "precision": kind.precision, "scale": kind.scale}
    words = {pa.bool_(): "boolean", pa.float64(): "double", pa.binary(): "bytes", pa.int64(): "long", pa.null(): "string"}
    return words.get(kind, "string")
