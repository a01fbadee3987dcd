"""Avro object container files, by blocks. A row's position is its ordinal in the file.

    header · block · block · block …          block = count, size, records, sync marker

A block that cannot be read is one Broken, which names its byte; reading goes on behind the next sync marker. A value that no column
can hold costs its own record. After a block whose count is lost, ordinals go on as if it had held one record.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import cramjam
import fastavro
import msgspec
import pyarrow as pa
from backports import zstd

from beam_pipelines.formats.avro_schema import RowSchema, row_schema
from beam_pipelines.formats.columnar import positioned
from beam_pipelines.formats.lines import Window
from beam_pipelines.formats.reader import DECODE, FILE, TOO_LARGE, Broken, Limits

_MAGIC = b"Obj\x01"
_HEADER = fastavro.parse_schema(
    {
        "type": "record",
        "name": "org.apache.avro.file.Header",
        "fields": [
            {"name": "magic", "type": {"type": "fixed", "name": "magic", "size": 4}},
            {"name": "meta", "type": {"type": "map", "values": "bytes"}},
            {"name": "sync", "type": {"type": "fixed", "name": "sync", "size": 16}},
        ],
    }
)
_STEP_BYTES = 2**20
_SYNC_BYTES = 16
_FRAME_BYTES = 20  # two zigzag varints of 64 bits
_CHUNK_ROWS = 4096  # records that are Python objects at once
_MOST_IN_A_BLOCK = 10_000_000
_BATCH_ROWS = 32_768
_MISFITS = (pa.ArrowException, ValueError, TypeError, ArithmeticError)  # a value that no column can hold


class _Header(NamedTuple):
    schema: RowSchema
    unpack: Callable[[bytes, int], bytes]
    sync: bytes


@dataclass(frozen=True)
class AvroReader:
    """Reads a container; blocks become batches of up to 32,768 rows."""

    def splittable(self) -> bool:
        return False

    def read(
        self, stream: BinaryIO, *, start: int = 0, end: int | None = None, limits: Limits = Limits()
    ) -> Iterator[pa.RecordBatch | Broken]:  # never a range
        if start > 0:
            return
        window = Window(stream)
        if not window.hold(len(_MAGIC), _STEP_BYTES) and window.damage is None:
            return  # an empty file has no rows
        header = _header(window, limits)
        if isinstance(header, Broken):
            yield header
            return
        rows = _Rows(header.schema, limits)
        for block in _blocks(window, header.sync, limits):
            if isinstance(block, Broken):
                yield from rows.flush()
                yield rows.lose(block)
            else:
                yield from rows.add(block, header)
        yield from rows.flush()


def count_records(stream: BinaryIO, *, limits: Limits = Limits()) -> int:
    """How many records the blocks of a container say they hold, as far as a block may be believed; none is unpacked, and what cannot be read counts as none."""
    window = Window(stream)
    header = _header(window, limits) if window.hold(len(_MAGIC), _STEP_BYTES) else None
    if header is None or isinstance(header, Broken):
        return 0
    return sum(min(block.records, _MOST_IN_A_BLOCK) for block in _blocks(window, header.sync, limits) if isinstance(block, _Block))


def _claimed(records: int) -> int:
    """How many records a block that cannot be read stands for: what its frame claims, as far as a block may be believed."""
    return max(1, min(records, _MOST_IN_A_BLOCK))


class _Block(NamedTuple):
    """A framed block: where it begins, how many records it claims, its bytes."""

    offset: int
    records: int
    content: bytes


def _header(window: Window, limits: Limits) -> _Header | Broken:
    if window.data[: len(_MAGIC)].tobytes() != _MAGIC:
        return Broken(0, FILE, window.damage or f"not an Avro file: got {window.data[:4].tobytes()!r}; expected {_MAGIC!r}")
    size = _STEP_BYTES
    while True:
        window.hold(size, size)
        source = io.BytesIO(window.data.tobytes())
        try:
            found = _read_header(source)
            break
        except Exception as error:  # corrupt bytes surface as any exception of fastavro
            if window.ended or size > limits.max_record_bytes:
                return Broken(0, FILE, window.damage or f"the header cannot be read: {type(error).__name__} {error}")
            size *= 2
    window.drop(source.tell())
    codec = found["meta"].get("avro.codec", b"null").decode("utf-8", "replace")
    if codec not in _CODECS:
        return Broken(0, FILE, f"codec {codec!r} is unknown; expected one of {', '.join(_CODECS)}")
    try:
        return _Header(row_schema(msgspec.json.decode(found["meta"]["avro.schema"])), _CODECS[codec], found["sync"])
    except Exception as error:
        return Broken(0, FILE, f"the schema cannot be read: {type(error).__name__} {error}")


def _read_header(source: io.BytesIO) -> dict[str, Any]:
    found = fastavro.schemaless_reader(source, _HEADER, None)
    assert isinstance(found, dict)
    return found


def _blocks(window: Window, sync: bytes, limits: Limits) -> Iterator[_Block | Broken]:
    """The framed blocks in order; where the frame is broken, one Broken and on behind the next sync marker. Positions are not set."""
    most = limits.block_bytes + limits.max_record_bytes
    while window.hold(_FRAME_BYTES, _STEP_BYTES):
        offset = window.base
        frame = _frame(window)
        if frame is not None:
            count, at, size = frame
            if size <= most:
                window.hold(at + size + _SYNC_BYTES, _STEP_BYTES)
                if window.data[at + size : at + size + _SYNC_BYTES].tobytes() == sync:
                    content = window.data[at : at + size].tobytes()
                    window.drop(at + size + _SYNC_BYTES)
                    yield _Block(offset, count, content)
                    continue
        yield _lost(window, sync, frame, offset, most)
    if window.damage is not None:
        yield Broken(1, FILE, window.damage)


def _lost(window: Window, sync: bytes, frame: tuple[int, int, int] | None, offset: int, most: int) -> Broken:
    found = _drop_to_sync(window, sync)
    if frame is not None and frame[2] > most and found and window.base - offset >= frame[2]:
        text = f"block at byte {offset} too large: got {frame[2]} bytes; expected at most {most} (block_bytes + max_record_bytes)"
        return Broken(frame[0], TOO_LARGE, text, rows=_claimed(frame[0]))
    if not found:
        damage, window.damage = window.damage, None
        return Broken(1, FILE, damage or f"truncated: the block at byte {offset} ends in mid-data at byte {window.base}")
    return Broken(1, FILE, f"corrupt block at byte {offset}: no sync marker where it should end; read on at byte {window.base}")


def _frame(window: Window) -> tuple[int, int, int] | None:
    """Records, length of the frame, bytes of content; None where these cannot be."""
    head = window.data[:_FRAME_BYTES].tobytes()
    try:
        count, at = _long(head, 0)
        size, at = _long(head, at)
    except IndexError:
        return None
    return (count, at, size) if count >= 0 and size >= 0 else None


def _long(data: bytes, at: int) -> tuple[int, int]:
    """Avro's zigzag varint at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return (value >> 1) ^ -(value & 1), at


def _drop_to_sync(window: Window, sync: bytes) -> bool:
    """Drops everything up to the end of the next sync marker; False where there is none."""
    while window.hold(_SYNC_BYTES, _STEP_BYTES):
        found = window.data.tobytes().find(sync)
        if found >= 0:
            window.drop(found + _SYNC_BYTES)
            return True
        if window.ended:
            window.drop(len(window.data))
            return False
        window.drop(max(0, len(window.data) - _SYNC_BYTES + 1))
    return False


@dataclass
class _Rows:
    """Gathers blocks into batches and numbers the rows."""

    schema: RowSchema
    limits: Limits
    position: int = 0  # of the first row that is held
    held: list[pa.RecordBatch] = field(default_factory=list)

    def add(self, block: _Block, header: _Header) -> Iterator[pa.RecordBatch | Broken]:
        try:
            batches, broken = self._decode(block, header)
        except Exception as error:  # corrupt bytes surface as any exception of fastavro and the codecs
            yield from self.flush()
            reason = TOO_LARGE if isinstance(error, _TooLargeError) else FILE
            text = f"corrupt block at byte {block.offset}: its {block.records} records cannot be read: {type(error).__name__} {error}"
            yield self.lose(Broken(block.records, reason, text, rows=_claimed(block.records)))
            return
        if broken:
            yield from self.flush()
            yield from self._around(batches[0], broken)
            return
        self.held += batches
        if sum(b.num_rows for b in self.held) >= _BATCH_ROWS or sum(b.nbytes for b in self.held) >= self.limits.block_bytes:
            yield from self.flush()

    def flush(self) -> Iterator[pa.RecordBatch | Broken]:
        if self.held:
            batch = pa.concat_batches(self.held)
            self.held, first = [], self.position
            self.position += batch.num_rows
            yield from positioned(batch, first)

    def lose(self, broken: Broken) -> Broken:
        """`broken`, whose position is a number of records, at its place."""
        records, first = max(1, min(broken.position, 2**40)), self.position
        self.position += records
        return Broken(first, broken.reason, broken.message, broken.raw, broken.rows)

    def _decode(self, block: _Block, header: _Header) -> tuple[list[pa.RecordBatch], dict[int, str]]:
        """The block's records in batches; where some have values that do not fit, the others in one batch, and why by record."""
        content = header.unpack(block.content, self.limits.block_bytes + self.limits.max_record_bytes)
        try:
            return [self.schema.batch(r) for r in _records(content, block.records, header)], {}
        except _MISFITS:
            good = [self.schema.batch([])]
            broken: dict[int, str] = {}
            numbered = (r for chunk in _records(content, block.records, header) for r in chunk)
            for number, record in enumerate(numbered):  # one by one, only in a block that holds such a record
                try:
                    good.append(self.schema.batch([record]))
                except _MISFITS as error:
                    broken[number] = str(error)
            return [pa.concat_batches(good)], broken

    def _around(self, good: pa.RecordBatch, broken: dict[int, str]) -> Iterator[pa.RecordBatch | Broken]:
        """A block's good rows in runs between its broken ones."""
        at = number = 0
        for record in [*sorted(broken), good.num_rows + len(broken)]:
            yield from positioned(good.slice(at, record - number), self.position + number)
            at, number = at + record - number, record + 1
            if record in broken:
                yield Broken(self.position + record, DECODE, f"a value does not fit its column: {broken[record]}")
        self.position += good.num_rows + len(broken)


def _records(content: bytes, count: int, header: _Header) -> Iterator[list[Any]]:
    """The records of a block in chunks. Raises where they do not fill it exactly."""
    source = io.BytesIO(content)
    read, schema = header.schema.read, header.schema.decode
    for first in range(0, count, _CHUNK_ROWS):
        chunk = range(min(_CHUNK_ROWS, count - first))
        yield [read(source, schema, None, False, False, "surrogateescape") for _ in chunk]
    if source.tell() != len(content):
        raise EOFError(f"{count} records take {source.tell()} of {len(content)} bytes")


class _TooLargeError(Exception):
    """A block that expands beyond the limit."""


def _bounded(make: Callable[[], Any]) -> Callable[[bytes, int], bytes]:
    """Unpacks by the decompressor that `make` gives, to at most so many bytes."""

    def unpack(content: bytes, most: int) -> bytes:
        decompressor = make()
        out: bytes = decompressor.decompress(content, most + 1)
        if len(out) > most:
            raise _TooLargeError(f"more than {most} bytes come out of {len(content)} (block_bytes + max_record_bytes)")
        if not decompressor.eof:
            raise EOFError("the compressed data ends too early")
        return out

    return unpack


def _snappy(content: bytes, most: int) -> bytes:
    packed, checksum = content[:-4], content[-4:]
    if cramjam.snappy.decompress_raw_len(packed) > most:
        raise _TooLargeError(f"more than {most} bytes come out of {len(content)} (block_bytes + max_record_bytes)")
    out = bytes(cramjam.snappy.decompress_raw(packed))
    if zlib.crc32(out).to_bytes(4, "big") != checksum:
        raise ValueError("the checksum does not fit")
    return out


_CODECS: dict[str, Callable[[bytes, int], bytes]] = {
    "null": lambda content, _: content,
    "deflate": _bounded(lambda: zlib.decompressobj(-15)),
    "bzip2": _bounded(bz2.BZ2Decompressor),
    "snappy": _snappy,
    "zstandard": _bounded(zstd.ZstdDecompressor),
    "xz": _bounded(lzma.LZMADecompressor),
}
