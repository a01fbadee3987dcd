"""Looking at a file nobody has described: its format, its columns, and a sample of their values as `Seen` columns."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO

from beam_pipelines.cli.choose import ENDINGS
from beam_pipelines.errors import SourceError, SpecError
from beam_pipelines.formats.compression import codec_of, decompress
from beam_pipelines.formats.reader import DamagedStream

HEAD_BYTES = 8 << 20
_MAGIC = {b"PAR1": "parquet", b"Obj\x01": "avro", b"ORC": "orc"}
_BYTES_OF_CODEC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
_DELIMITERS = ",;\t|"
_NO_NAME = re.compile(r"[+-]?[\d.,:/-]+|true|false|NA|NULL", re.IGNORECASE)
_PLAIN_NAME = re.compile(r"[^\W\d][\w .-]{0,59}")
_MOST_RAGGED = 0.2  # of the lines


@dataclass
class Seen:
    """A column as it was seen: its place in the record, and the sample's values (texts, numbers, nested values; None: NULL or absent)."""

    keys: tuple[str, ...]
    values: list[Any] = field(default_factory=list)
    kind: str | None = None  # the contract type where the file says it; "" where there is none
    note: str = ""
    required: bool | None = None  # whether it is never NULL, where a catalog says it


@dataclass(frozen=True)
class Look:
    """A file's format (as the spec says it) and the sample: `rows` records good, `broken` not. `whole`: the sample is the whole file.

    Of a table in a database `path` is its name, and `key` its primary key.
    """

    path: str
    format: dict[str, Any]
    compression: str | None
    columns: tuple[Seen, ...]
    rows: int
    broken: int
    whole: bool
    first: tuple[Any, ...] = ()
    key: tuple[str, ...] = ()


def look_at(path: str, *, rows: int = 20_000) -> Look:
    """The first `rows` records of a file.

    Raises SourceError where it cannot be read, SpecError where it holds nothing to learn from or does not look like data.
    """
    if os.path.getsize(path) == 0:
        raise SpecError(
            f"{path}: the file is empty.", hint="init proposes a contract from what a file holds: give it one with at least a header."
        )
    with open(path, "rb") as raw:
        codec = codec_of(path) or next((c for magic, c in _BYTES_OF_CODEC.items() if raw.peek(4).startswith(magic)), None)
        try:
            stream = decompress(raw, codec, compressed_size=os.path.getsize(path))
            head = _head(stream)
            kind = _format_of(path, head)
            if kind in ("parquet", "orc", "avro"):
                found = _columnar(path, kind, codec, rows)
            else:
                found = _json(path, head, stream, codec, rows) if kind == "json" else _csv(path, head, stream, codec, rows)
        except DamagedStream as error:
            raise SourceError(f"{path}: cannot be decompressed: {error}") from None
    if not found.columns:
        raise SpecError(f"{path}: no column was found in it.", hint="init reads csv, json (lines or one array), parquet, avro and orc.")
    return found


def _head(stream: BinaryIO) -> bytes:
    parts, size = [], 0
    while size < HEAD_BYTES and (part := stream.read(HEAD_BYTES - size)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _format_of(path: str, head: bytes) -> str:
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    named = _named(path)
    if named in ("parquet", "avro", "orc"):
        raise SourceError(f"{path}: is no {named} file: it starts with {head[:4]!r}.")
    start = head.decode(_encoding(head), "replace").lstrip("\ufeff \t\r\n")[:1]
    return "json" if (start in ("{", "[") and named != "csv") or named == "json" else "csv"


def _named(path: str) -> str | None:
    """The format that the file's name says."""
    return next((ENDINGS[w] for w in reversed(os.path.basename(path).lower().split(".")) if w in ENDINGS), None)


def _encoding(head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        decoder.decode(head)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


# ------------------------------------------------------------------------------------------------------------------ csv


def _csv(path: str, head: bytes, stream: BinaryIO, codec: str | None, most: int) -> Look:
    encoding = _encoding(head)
    text = head.decode(encoding if encoding == "utf-16" else {"utf-8": "utf-8-sig"}.get(encoding, encoding), "replace")
    whole = len(head) < HEAD_BYTES
    if not whole:
        text = text[: text.rfind("\n") + 1] or text  # the last record may be cut
    if "\0" in text:
        raise SpecError(
            f"{path}: holds NUL bytes: it is no text.", hint="init reads csv, json (lines or one array), parquet, avro and orc."
        )
    if not text.strip():
        raise SpecError(f"{path}: the file holds nothing but white space.", hint="Give init a file with at least a header.")
    delimiter = _delimiter(text)
    records = [r for r in islice(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), most + 2) if r]
    header = any(records[0]) and not any(_NO_NAME.fullmatch(name.strip()) for name in records[0])  # a value in it: no header
    names = records[0] if header else [f"column_{i + 1}" for i in range(len(records[0]))]
    fmt: dict[str, Any] = {"type": "csv"}
    fmt |= {"delimiter": delimiter} if delimiter != "," else {}
    fmt |= {"encoding": encoding} if encoding == "cp1252" else {}
    fmt |= {} if header else {"header": False}
    twice = [n for n, count in Counter(names).items() if count > 1 and n]
    if twice:
        raise SpecError(
            f"{path}: the header names {twice[0]!r} twice.",
            hint="Rename one; or read the file without its header: {type: csv, header: false, skip_rows: 1}.",
        )
    body = records[1:] if header else records
    _expect_table(path, names if header else [], [len(r) for r in records])
    good = [r for r in body if len(r) == len(names)][:most]
    columns = [
        Seen((name,), [v if v != "" else None for v in column]) for name, column in zip(names, _transposed(good, len(names)), strict=True)
    ]
    first = tuple(dict(zip(names, r, strict=True)) for r in good[:1])
    return Look(
        path,
        fmt,
        codec,
        tuple(columns),
        len(good),
        len(body) - len([r for r in body if len(r) == len(names)]),
        whole and len(body) <= most,
        first,
    )


def _expect_table(path: str, names: Sequence[str], widths: Sequence[int]) -> None:
    """Refuses what is a text for people or a program rather than a table, where the file's name does not say that it is one."""
    if _named(path) is not None:
        return
    ragged = sum(width != widths[0] for width in widths)
    why = ""
    if ragged > len(widths) * _MOST_RAGGED:
        why = f"{ragged:,} of its first {len(widths):,} lines have another number of fields than the first"
    elif len(names) == 1 and not _PLAIN_NAME.fullmatch(names[0].strip()):
        why = f"it has one column, called {names[0][:60]!r}"
    if why:
        raise SpecError(
            f"{path}: does not look like a table: {why}.", hint="If it is one, give it a name that ends in .csv (or .tsv, .jsonl, ...)."
        )


def _transposed(rows: Sequence[Sequence[str]], width: int) -> list[Sequence[str]]:
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _delimiter(text: str) -> str:
    """The character that cuts the first lines into the same number of fields, more than one; a comma if none does."""
    lines = text[:200_000]

    def score(delimiter: str) -> tuple[float, int]:
        widths = [len(r) for r in islice(csv.reader(io.StringIO(lines, newline=""), delimiter=delimiter), 200) if r]
        width, same = Counter(widths).most_common(1)[0]
        return (same / len(widths) if width > 1 else 0.0, width)

    return max(_DELIMITERS, key=score)


# ----------------------------------------------------------------------------------------------------------------- json


def _json(path: str, head: bytes, stream: BinaryIO, codec: str | None, most: int) -> Look:
    encoding = _encoding(head)
    text = head.decode({"utf-8": "utf-8-sig"}.get(encoding, encoding), "replace")
    array = text.lstrip().startswith("[")
    whole = len(head) < HEAD_BYTES
    records, broken, ended = (_elements if array else _lines)(text, whole, most)
    fmt: dict[str, Any] = (
        {"type": "json"} | ({"layout": "array"} if array else {}) | ({"encoding": encoding} if encoding == "cp1252" else {})
    )
    names = dict.fromkeys(name for record in records for name in record)
    columns = tuple(Seen((name,), [record.get(name) for record in records]) for name in names)
    return Look(path, fmt, codec, columns, len(records), broken, whole and ended, tuple(records[:1]))


class Number(str):
    """A JSON number as it is written."""


def _decoder() -> json.JSONDecoder:
    def refuse(word: str) -> Any:
        raise ValueError(word)

    return json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=refuse)


def _lines(text: str, whole: bool, most: int) -> tuple[list[dict[str, Any]], int, bool]:
    decoder, records, broken = _decoder(), list[dict[str, Any]](), 0
    lines = text.split("\n")
    for line in lines if whole else lines[:-1]:
        if not line.strip():
            continue
        if len(records) >= most:
            return records, broken, False
        try:
            value = decoder.decode(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            records.append(value)
        else:
            broken += 1
    return records, broken, True


def _elements(text: str, whole: bool, most: int) -> tuple[list[dict[str, Any]], int, bool]:
    decoder, records, broken = _decoder(), list[dict[str, Any]](), 0
    at = text.index("[") + 1
    between = re.compile(r"[\s,]*")
    while len(records) < most:
        at = between.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
        if text[at : at + 1] in ("]", ""):
            return records, broken, True
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return records, broken + whole, False
        if isinstance(value, dict):
            records.append(value)
        else:
            broken += 1
    return records, broken, False


# ------------------------------------------------------------------------------------------------------------- columnar


def _columnar(path: str, kind: str, codec: str | None, most: int) -> Look:
    import pyarrow as pa

    if codec is not None:
        raise SpecError(f"{path}: a compressed {kind} file: {kind} compresses inside.", hint="Decompress it first.")
    try:
        if kind == "parquet":
            import pyarrow.parquet as pq

            file = pq.ParquetFile(path)
            schema, total = file.schema_arrow, file.metadata.num_rows
            batches: Iterator[Any] = file.iter_batches(batch_size=most)
            table = pa.Table.from_batches(list(islice(batches, 1)), schema)
        elif kind == "orc":
            import pyarrow.orc

            whole = pyarrow.orc.ORCFile(path)
            total, table = whole.nrows, pa.Table.from_batches([whole.read_stripe(0)] if whole.nstripes else [], whole.schema).slice(0, most)
        else:
            return _avro(path, most)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: is no {kind} file that can be read: {str(error).splitlines()[0]}") from None
    from beam_pipelines.cli.types_of import type_of

    columns = [typed(field.name, *type_of(field.type), table.column(i)) for i, field in enumerate(table.schema)]
    return Look(path, {"type": kind}, None, tuple(columns), table.num_rows, 0, table.num_rows == total)


def typed(name: str, kind: str | None, note: str, column: Any) -> Seen:
    """A column whose type is known; None: no type of a contract holds it."""
    from beam_pipelines.cli.tables import values

    return Seen((name,), values(column) if kind is not None else [None] * len(column), kind or "", note)


def _avro(path: str, most: int) -> Look:
    import pyarrow as pa

    from beam_pipelines.cli.types_of import type_of
    from beam_pipelines.formats.avro import AvroReader
    from beam_pipelines.formats.reader import Broken

    with open(path, "rb") as stream:
        pieces = list(islice(AvroReader().read(stream), 64))
    batches = [p for p in pieces if not isinstance(p, Broken)]
    if not batches:
        why = next((p.message for p in pieces if isinstance(p, Broken)), "it holds no record")
        raise SourceError(f"{path}: {why}.", hint="Give init a file with at least one record.")
    table = pa.Table.from_batches([b for b in batches if b.schema == batches[0].schema]).slice(0, most)
    names = [n for n in table.column_names if not n.startswith("_")]
    columns = [typed(n, *type_of(table.schema.field(n).type), table.column(n)) for n in names]
    return Look(path, {"type": "avro"}, None, tuple(columns), table.num_rows, len(pieces) - len(batches), table.num_rows < most)
