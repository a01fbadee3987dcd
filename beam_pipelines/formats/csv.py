"""Delimited text: records by blocks, and blocks to one string column per contract column.

NULL and empty: a field with nothing in it is NULL; a quoted field with nothing in it (`""`) is the empty string where the contract
says `string`, `binary` or `json`, and NULL for every other type.

A contract column takes the header's field of its `path` (as one name), or of its own name; a column that the header does not name
is NULL. The header reaches the decoder as the batch's schema metadata (`columns`, a JSON list), so a batch decodes without its file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.program import KernelResult, Step
from beam_pipelines.arrow.schema import RAW
from beam_pipelines.errors import RunError
from beam_pipelines.formats.encoding import canonical
from beam_pipelines.formats.lines import Window, open_window, read_records
from beam_pipelines.formats.options import CsvFormat
from beam_pipelines.formats.placing import Failures, field_name, place, source_of
from beam_pipelines.formats.quoting import Dialect
from beam_pipelines.formats.reader import DECODE, FILE, Broken, Limits

COLUMNS = b"columns"
_HEADER_STEP_BYTES = 64 * 2**10
_NEWLINE, _RETURN = 10, 13


def decode_steps(contract: Contract, fmt: CsvFormat) -> tuple[Step, ...]:
    """The step that turns `_raw` into one string column per `contract.read` column, and `_unknown` where the contract keeps it."""
    return (DecodeCsv(contract, fmt),)


@dataclass(frozen=True)
class CsvReader:
    """Reads a file of delimited text; batches carry the file's column names in their schema's metadata."""

    fmt: CsvFormat
    contract: Contract

    def splittable(self) -> bool:
        """Without line breaks in fields, any line feed is a place to begin; a file in another encoding is transcoded from its start."""
        return not self.fmt.multiline and canonical(self.fmt.encoding) == "utf-8"

    def read(
        self, stream: BinaryIO, *, start: int = 0, end: int | None = None, limits: Limits = Limits()
    ) -> Iterator[pa.RecordBatch | Broken]:
        dialect = Dialect.of(self.fmt)
        window, end = open_window(stream, start=start, end=end, encoding=self.fmt.encoding)
        if window is None:
            return
        columns = self._columns(window, dialect, limits)
        if isinstance(columns, Broken):
            if start == 0:  # of all ranges, the first tells it
                yield columns
            return
        if start > window.base and not window.first_line(start, limits):
            return
        described = {COLUMNS: msgspec.json.encode(columns)}
        for item in read_records(window, dialect.record_ends, end=end, limits=limits, comment=dialect.comment):
            yield item if isinstance(item, Broken) else item.replace_schema_metadata(described)

    def _columns(self, window: Window, dialect: Dialect, limits: Limits) -> list[str] | Broken:
        """The file's column names; the window is then at its first record."""
        for _ in range(self.fmt.skip_rows):
            window.drop_line(limits)
        if not self.fmt.header:
            return header_columns(self.fmt, self.contract)
        _skip_no_records(window, dialect, limits)
        position = window.base
        record = _first_record(window, dialect, limits)
        if record is None:
            damage = (
                window.damage or f"the header is longer than {limits.max_record_bytes} bytes (max_record_bytes) or its quotes never close"
            )
            return Broken(position, FILE, damage)
        try:
            return _names(record, dialect)
        except ValueError as error:
            return Broken(position, FILE, f"header: {error}", record)


def header_columns(fmt: CsvFormat, contract: Contract) -> list[str]:
    """Column names of a file without a header."""
    return list(fmt.columns) if fmt.columns is not None else [field_name(n, c) for n, c in contract.read.items()]


def _skip_no_records(window: Window, dialect: Dialect, limits: Limits) -> None:
    """Drops blank lines and comments."""
    while window.hold(1, _HEADER_STEP_BYTES):
        window.hold(2, _HEADER_STEP_BYTES)
        head = window.data[:2].tobytes()
        blank = head[:1] == b"\n" or head in (b"\r\n", b"\r")
        if not blank and not (dialect.comment and head[:1] == dialect.comment.encode()):
            return
        window.drop_line(limits)


def _first_record(window: Window, dialect: Dialect, limits: Limits) -> bytes | None:
    """Takes the first record without its terminator: b"" at the end of the file, None where it cannot be read."""
    size = _HEADER_STEP_BYTES
    while (window.hold(size, size) and size <= 2 * limits.max_record_bytes) or window.ended:
        cut = dialect.record_ends(window.data[:size])
        whole = window.ended and len(window.data) <= size
        if len(cut.ends) or whole:
            if not len(cut.ends) and (cut.open or window.damage):
                return None
            length = int(cut.ends[0]) if len(cut.ends) else len(window.data)
            record = window.data[:length].tobytes().rstrip(b"\r\n")
            window.drop(length)
            return record
        size *= 2
    return None


def _names(record: bytes, dialect: Dialect) -> list[str]:
    names = [name or f"column_{i}" for i, name in enumerate(dialect.fields(record.decode("utf-8")), 1)] if record else []
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"got the column {twice[0]!r} twice; expected each name once")
    if any("\r" in n for n in names):
        raise ValueError("got a bare carriage return; expected lines that end in \\n or \\r\\n")
    return names


@dataclass(frozen=True)
class DecodeCsv:
    """Kernel: raw batch of CSV records -> decoded batch.

    The records of `messages` were not cut out of a block: one may hold none, or two, and none is a header.
    """

    contract: Contract
    fmt: CsvFormat
    messages: bool = False
    stage: str = "decode"
    sees_rejected: bool = True
    dialect: Dialect = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dialect", Dialect.of(self.fmt))

    def __call__(self, batch: pa.RecordBatch) -> KernelResult:
        columns = self._columns(batch)
        known = {field_name(n, c): n for n, c in self.contract.read.items()}
        wanted = [i for i, name in enumerate(columns) if name in known or self.contract.unknown_columns == "keep"]
        texts, failures = self._parse(batch.column(RAW), len(columns), wanted)
        by_name = dict(zip((columns[i] for i in wanted), texts, strict=True))
        placed = {n: self._null_if_empty(c, by_name.get(field_name(n, c))) for n, c in self.contract.read.items()}
        unknown = {name: by_name.get(name) for name in columns if name not in known}
        return place(batch, self.contract, placed, unknown, failures)

    def _columns(self, batch: pa.RecordBatch) -> list[str]:
        described = (batch.schema.metadata or {}).get(COLUMNS)
        if described is not None:
            return msgspec.json.decode(described, type=list[str])
        if self.fmt.header and not self.messages:
            raise RunError(
                f"csv: a batch of {source_of(batch)} has no column names in its schema metadata ('columns').",
                hint="Records from messages have no header: set `header: false` and `columns`.",
            )
        return header_columns(self.fmt, self.contract)

    def _null_if_empty(self, column: Column, text: pa.Array | None) -> pa.Array | None:
        if text is None or not len(text) or column.dtype.kind in ("string", "binary", "json"):
            return text
        empty = np.diff(np.frombuffer(text.buffers()[1], np.int32)[text.offset : text.offset + len(text) + 1]) == 0
        if int(empty.sum()) <= text.null_count:
            return text
        return pc.if_else(pa.array(empty), pa.scalar(None, pa.string()), text)

    def _parse(self, raw: pa.Array, width: int, wanted: list[int]) -> tuple[list[pa.Array], Failures]:
        """One string array per wanted field, aligned with `raw`, and the records that are none."""
        exact = _unsure(raw, self.dialect)
        if self.messages:
            exact |= _of_several_lines(raw) | self._unclosed(raw)
        clean = raw.filter(pa.array(~exact)) if exact.any() else raw
        rows = np.flatnonzero(~exact)
        block = self._parse_block(clean, width, wanted)
        if block is None:  # pyarrow and the splitter do not count the same: every record on its own
            exact[:] = True
            rows, table = rows[:0], pa.table([pa.array([], pa.string())] * len(wanted), names=[str(i) for i in wanted])
        else:
            table, ragged = block
            exact[rows[ragged]] = True
            rows = np.delete(rows, ragged)
        if not exact.any():
            return [c.combine_chunks() for c in table.columns], {}
        return self._with_exact(raw, width, wanted, table, rows, exact)

    def _unclosed(self, raw: pa.Array) -> npt.NDArray[np.bool_]:
        """Records in which a quote is opened that is not closed, or stands where it should not, and those that end in an escape: they would take
        in the next record."""
        offsets, data = _bytes_of(raw)
        unsure = self.dialect.unsure_records(data, offsets[:-1])
        for back in (1, 2, 3) if self.dialect.escape and len(data) else ():  # it may stand before \r\n
            unsure |= data[np.maximum(offsets[1:] - back, 0)] == ord(self.dialect.escape)
        return unsure

    def _parse_block(self, raw: pa.Array, width: int, wanted: list[int]) -> tuple[pa.Table, list[int]] | None:
        """pyarrow's answer on records that hold nothing it reads otherwise, and the indexes of ragged ones; None if in doubt."""
        if not len(raw) or not width:
            return None
        ragged: list[int] = []

        def skip(row: pacsv.InvalidRow) -> str:
            ragged.append(row.number - 1)
            return "skip"

        block = _block(raw)
        try:
            table = pacsv.read_csv(
                pa.BufferReader(block),
                read_options=pacsv.ReadOptions(column_names=[str(i) for i in range(width)], use_threads=False, block_size=len(block) + 1),
                parse_options=self._parse_options(skip),
                convert_options=pacsv.ConvertOptions(
                    column_types={str(i): pa.string() for i in range(width)},
                    include_columns=[str(i) for i in wanted] or ["0"],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                    null_values=[""],
                    check_utf8=False,
                ),
            )
        except pa.ArrowInvalid:
            return None
        return (table.select([str(i) for i in wanted]), ragged) if table.num_rows + len(ragged) == len(raw) else None

    def _parse_options(self, skip: object) -> pacsv.ParseOptions:
        return pacsv.ParseOptions(
            delimiter=self.fmt.delimiter,
            quote_char=self.fmt.quote or False,
            double_quote=self.dialect.doubled,
            escape_char=self.fmt.escape or False,
            newlines_in_values=False,  # the block is given whole, so nothing has to be cut at a line
            invalid_row_handler=skip,
        )

    def _with_exact(
        self, raw: pa.Array, width: int, wanted: list[int], table: pa.Table, rows: npt.NDArray[np.int64], exact: npt.NDArray[np.bool_]
    ) -> tuple[list[pa.Array], Failures]:
        """The block's rows and the exact records merged in their order. Loops over the exact records only."""
        failures: Failures = {}
        fields: list[list[str | None]] = []
        where = np.full(len(raw), -1, np.int64)
        where[rows] = np.arange(len(rows))
        odd = np.flatnonzero(exact)
        for row, record in zip(odd.tolist(), raw.take(pa.array(odd)).to_pylist(), strict=True):
            try:
                fields.append(self._record(record, width))
                where[row] = len(rows) + len(fields) - 1
            except ValueError as error:
                failures[row] = (DECODE, str(error))
        index = pa.array(where, mask=where < 0)
        extras = [pa.array([f[i] for f in fields], pa.string()) for i in wanted]
        return [pa.concat_arrays([*c.chunks, e]).take(index) for c, e in zip(table.columns, extras, strict=True)], failures

    def _record(self, record: bytes | None, width: int) -> list[str | None]:
        if record is None:
            raise ValueError("no bytes")
        line = record.rstrip(b"\r\n")
        if self.messages and not line:
            raise ValueError("an empty message")
        if self.messages and len(self.dialect.record_ends(np.frombuffer(line, np.uint8)).ends):
            raise ValueError("got a line break outside quotes; expected one record in a message")
        fields = self.dialect.fields(line.decode("utf-8"))
        if len(fields) > width or (len(fields) < width and self.fmt.ragged == "dead_letter"):
            raise ValueError(f"got {len(fields)} fields; expected {width}")
        return fields + [None] * (width - len(fields))


def _unsure(raw: pa.Array, dialect: Dialect) -> npt.NDArray[np.bool_]:
    """Records that a block parser would read otherwise than one by one: not UTF-8, a bare carriage return, quotes out of place."""
    unsure = np.zeros(len(raw), bool)
    if raw.null_count:
        unsure |= raw.is_null().to_numpy(zero_copy_only=False)
    if not _is_utf8(raw):
        unsure |= np.array([not _decodes(r) for r in raw.to_pylist()], bool)  # only in a block that holds such a record
    offsets, data = _bytes_of(raw)
    if len(data) and data[-1] != _NEWLINE:
        unsure[-1] = True  # pyarrow takes an empty last field without a line feed for a quoted one if the field before it is
    returns = np.flatnonzero(data == _RETURN)
    if len(returns):
        bare = returns[data[np.minimum(returns + 1, len(data) - 1)] != _NEWLINE]
        unsure[np.searchsorted(offsets, bare, side="right") - 1] = True
    if not dialect.multiline:
        unsure |= dialect.unsure_records(data, offsets[:-1])
    return unsure


def _of_several_lines(raw: pa.Array) -> npt.NDArray[np.bool_]:
    """Records with a line break elsewhere than at their end, and records of nothing: a block parser would count them wrong."""
    offsets, data = _bytes_of(raw)
    found: npt.NDArray[np.bool_] = np.diff(offsets) <= 2  # "\r\n" and less: pyarrow skips blank lines
    newlines = np.flatnonzero(data == _NEWLINE)
    if len(newlines):
        first = newlines[np.minimum(np.searchsorted(newlines, offsets[:-1]), len(newlines) - 1)]
        found |= (first >= offsets[:-1]) & (first < offsets[1:] - 1)
    return found


def _is_utf8(raw: pa.Array) -> bool:
    try:
        pa.Array.from_buffers(pa.string(), len(raw), raw.buffers(), offset=raw.offset).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _decodes(record: bytes | None) -> bool:
    try:
        (record or b"").decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _bytes_of(raw: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """The bytes of a binary array's records, and where in them each begins, and the last ends."""
    _, offsets, data = raw.buffers()
    if data is None or not len(raw):
        return np.zeros(len(raw) + 1, np.int64), np.zeros(0, np.uint8)
    edges = np.frombuffer(offsets, np.int32)[raw.offset : raw.offset + len(raw) + 1].astype(np.int64)
    return edges - edges[0], np.frombuffer(data, np.uint8)[edges[0] : edges[-1]]


def _block(raw: pa.Array) -> pa.Buffer:
    """The records as one block of lines: the memory they lie in, or a copy where they do not end in line feeds."""
    offsets, data = _bytes_of(raw)
    if (data[np.maximum(offsets[1:] - 1, 0)] == _NEWLINE).all():
        return pa.py_buffer(data)
    return pa.py_buffer(b"\n".join([*raw.to_pylist(), b""]))  # records that came as messages
