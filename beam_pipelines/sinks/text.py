"""CSV and JSON lines, for people: every value as text, by Arrow kernels and DuckDB, without a loop over rows.

CSV (RFC 4180): NULL is an empty field, an empty text is `""`; a field is quoted where it must be. JSON lines: one object per row; numbers that
JSON cannot hold are the texts "NaN", "Infinity", "-Infinity". Both: instants end in `Z`, bytes are text where they are UTF-8, else base64.
A path that ends in .csv or .jsonl (or .gz) is one file; any other is a folder of files.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.engine import literal, local_engine
from beam_pipelines.places import open_new
from beam_pipelines.sinks.files import FileWriter
from beam_pipelines.sinks.run import Output, RunInfo
from beam_pipelines.sinks.views import BASE64
from beam_pipelines.sinks.write import Masking, Write, layout_of
from beam_pipelines.spec.sinks import ROWS, TextSink

_MUST_QUOTE = '[",\r\n]|^$|^\\s|\\s$'
_ROWS = 20_000  # rows turned into text at once


@dataclass(frozen=True)
class TextEncoder:
    """How text files are written; `header` is the CSV header in each file."""

    format: Literal["csv", "jsonl"]
    gzip: bool = False
    header: bool = True

    def open(self, path: str, first: pa.Table) -> FileWriter:
        """A new text file for tables with the schema of `first`."""
        return _TextFile(path, self, csv_header(first.schema.names) if self.format == "csv" and self.header else b"")


class _TextFile:
    def __init__(self, path: str, encoder: TextEncoder, header: bytes) -> None:
        self._sink = open_new(path)
        self._out = cast("BinaryIO", gzip.GzipFile(fileobj=self._sink, mode="wb", mtime=0)) if encoder.gzip else self._sink
        self._lines = csv_lines if encoder.format == "csv" else json_lines
        self._out.write(header)

    def write(self, table: pa.Table) -> None:
        for batch in table.combine_chunks().to_batches(max_chunksize=_ROWS):
            self._out.write(self._lines(batch))

    def tell(self) -> int:
        return int(self._sink.tell())

    def close(self) -> int:
        if self._out is not self._sink:
            self._out.close()
        self._sink.flush()
        size = self.tell()
        self._sink.close()
        return size


def csv_header(names: Sequence[str]) -> bytes:
    """The first line of a CSV file with these columns."""
    return csv_lines(pa.RecordBatch.from_arrays([pa.array([n], pa.string()) for n in names], names=list(names)))


def csv_lines(batch: pa.RecordBatch) -> bytes:
    """The rows as CSV lines, each with its line break."""
    fields = [_quoted(_text(column)) for column in batch.columns]
    if len(fields) == 1:
        return _joined(pc.coalesce(fields[0], pa.scalar("")))
    return _joined(pc.binary_join_element_wise(*fields, ",", null_handling="replace", null_replacement=""))


def json_lines(batch: pa.RecordBatch) -> bytes:
    """The rows as JSON objects, one per line."""
    return _joined(json_objects(batch))


def json_objects(batch: pa.RecordBatch) -> pa.Array:
    """The rows as JSON objects, one text each."""
    names = batch.schema.names
    plain = pa.RecordBatch.from_arrays([_json_ready(c) for c in batch.columns], names=[f"c{i}" for i in range(len(names))])
    members = [
        f"{literal(_key(name, i))}, coalesce({_json_sql(f'c{i}', batch.schema.field(i).type)}, 'null')" for i, name in enumerate(names)
    ]
    lines = local_engine().select(f"SELECT concat({', '.join(members)}, '}}') AS line FROM $slot", plain.schema)(plain)
    return lines.column("line")


def _key(name: str, number: int) -> str:
    return f"{',' if number else '{'}{msgspec.json.encode(name).decode()}:"


def _joined(lines: pa.Array) -> bytes:
    broken = pc.binary_join_element_wise(lines, "", "\n")  # the separator ends each line, so the values are the file's bytes
    if not len(broken):
        return b""
    _, positions, content = broken.buffers()
    starts = memoryview(positions).cast("q" if pa.types.is_large_string(broken.type) else "i")
    return bytes(memoryview(content)[starts[broken.offset] : starts[broken.offset + len(broken)]])


def _quoted(texts: pa.Array) -> pa.Array:
    needs = pc.match_substring_regex(texts, _MUST_QUOTE)
    if not pc.any(needs, min_count=0).as_py():
        return texts
    inner = pc.replace_substring(texts, '"', '""')
    return pc.if_else(needs, pc.binary_join_element_wise('"', inner, '"', ""), texts)


def plain_text(column: pa.Array) -> pa.Array:
    """Values as texts, as a CSV has them; NULL stays NULL."""
    return _text(column)


def _text(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_nested(kind):
        return _nested_text(column)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _bytes_text(column)
    if pa.types.is_timestamp(kind):
        return _moment_text(column)
    return column.cast(pa.string())


def _moment_text(column: pa.Array) -> pa.Array:
    text = pc.replace_substring(column.cast(pa.timestamp("us")).cast(pa.string()), " ", "T")
    text = pc.replace_substring_regex(text, r"\.000000$", "")
    return pc.binary_join_element_wise(text, "Z", "") if column.type.tz else text


def _bytes_text(column: pa.Array) -> pa.Array:
    try:
        text = column.cast(pa.string())
        text.validate(full=True)
        if not pc.any(pc.starts_with(text, BASE64)).as_py():
            return text
    except pa.ArrowInvalid:
        pass
    return pa.array([_utf8_or_base64(v) for v in column.to_pylist()], pa.string())  # only where a value is no plain text


def _utf8_or_base64(value: bytes | None) -> str | None:
    """Bytes as text that `views.select_sql` reads back as these bytes: UTF-8 as it is, all else (and what looks like it) as base64."""
    if value is None:
        return None
    with contextlib.suppress(UnicodeDecodeError):
        text = value.decode()
        if not text.startswith(BASE64):
            return text
    return BASE64 + base64.b64encode(value).decode()


def _nested_text(column: pa.Array) -> pa.Array:
    encode = msgspec.json.Encoder(enc_hook=str, decimal_format="number").encode
    return pa.array(
        [None if v is None else encode(_finite(v)).decode() for v in column.to_pylist()], pa.string()
    )  # no kernel prints nested values


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, bytes):
        return _utf8_or_base64(value)
    return [_finite(v) for v in value] if isinstance(value, list) else value


def _json_ready(column: pa.Array) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_timestamp(kind):
        return _text(column)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _json_sql(name: str, kind: pa.DataType) -> str:
    """The column as JSON text. Not by `to_json` of the whole row: that sends decimals through a float."""
    if pa.types.is_nested(kind) and not pa.types.is_dictionary(kind):
        return name
    if pa.types.is_decimal(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return f"{name}::VARCHAR"
    if not pa.types.is_floating(kind):
        return f"to_json({name})::VARCHAR"
    infinite = f"CASE WHEN isnan({name}) THEN 'NaN' WHEN {name} > 0 THEN 'Infinity' ELSE '-Infinity' END"
    return f"CASE WHEN isfinite({name}) OR {name} IS NULL THEN to_json({name})::VARCHAR ELSE to_json({infinite})::VARCHAR END"


class WriteText(Write):
    """Stages rows as CSV or JSON lines; `Commit` makes them visible, as one file where the sink's path names a file.

    Takes a PCollection of RecordBatch; gives `Written(files, dead, counts)`.
    """

    def __init__(
        self, sink: TextSink, *, text_format: Literal["csv", "jsonl"], label: str, run: RunInfo, provenance: bool = True, masking: Masking | None = None, of: str = ROWS,
    ) -> None:  # fmt: skip
        zipped = sink.compression == "gzip" or sink.path.endswith(".gz")
        output = Output(label, of, sink.path, text_format, gzip=zipped)
        encoder = TextEncoder(text_format, zipped, header=not output.single)
        super().__init__(output, layout=layout_of(output, run, provenance=provenance), encoder=encoder, masking=masking)
