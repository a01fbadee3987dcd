"""What every format offers: a stream of bytes becomes batches, and whatever cannot be read becomes a `Broken`.

    bytes ─▶ Reader.read ─▶ RecordBatch(_position, _raw)      text formats: one record per row
                         ├▶ RecordBatch(_position, columns)   columnar formats
                         └▶ Broken                            one record, or the file from a position on

`_raw` is a zero-copy slice of the block it was read in, so it ends in the record's line terminator and in the blank lines that
follow it. Decoders ignore them; dead letters are built without them (`arrow.schema.dead_letters`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import pyarrow as pa

from beam_pipelines.errors import SpecError

DECODE, TYPE, UNKNOWN_COLUMN, TOO_LARGE, FILE = "DECODE", "TYPE", "UNKNOWN_COLUMN", "TOO_LARGE", "FILE"
RAW_PREFIX_BYTES = 64 * 2**10
"""How much of a record that is too large, or of a file that cannot be read on, a `Broken` keeps."""


@dataclass(frozen=True)
class Limits:
    """What bounds the memory of reading: at most about `block_bytes + max_record_bytes` of a file are held at once."""

    max_record_bytes: int = 16 * 2**20
    block_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        for name, value in (("max_record_bytes", self.max_record_bytes), ("block_bytes", self.block_bytes)):
            if not 0 < value <= 2**29:
                raise SpecError(f"{name}: got {value}; expected 1 to {2**29} bytes.")


@dataclass(frozen=True)
class Broken:
    """One record (DECODE, TOO_LARGE) or everything from `position` on (FILE) that cannot be read: always dead letters.

    `rows` records are lost, at `position` and behind it, each of which is a letter: 1 where nothing says how many they were.

    `raw` is the record without its line terminator, at most `RAW_PREFIX_BYTES` of it when it is too large; None where there
    are no bytes to show.
    """

    position: int
    reason: str
    message: str
    raw: bytes | None = None
    rows: int = 1


class DamagedStream(Exception):
    """A stream whose bytes end before their time: a truncated or corrupt compressed file, or a decompression bomb.

    Raised by `compression.decompress` after all good bytes were given; readers turn it into one Broken(FILE).
    """


class Reader(Protocol):
    """Reads one file of a format. It raises nothing for bad data: only OSError of the stream itself leaves `read`."""

    def splittable(self) -> bool:
        """Whether `read` may be given byte ranges: each record then belongs to the range in which it starts."""
        ...

    def read(
        self, stream: BinaryIO, *, start: int = 0, end: int | None = None, limits: Limits = Limits()
    ) -> Iterator[pa.RecordBatch | Broken]:
        """The records that start in [start, end), in order. `stream` is decompressed and, if `start` > 0, seekable."""
        ...
