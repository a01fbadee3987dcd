"""Compressed files as streams: gzip, bzip2 and zstd, several members, every good byte before a break, and a bound for bombs.

The bytes of a compressed file can only be read from the start, so such files are never split; positions are offsets in the
decompressed bytes.

A member's checksum stands at its end, so wrong bytes in its middle are known only when all of it has come out. Therefore `sound_bytes` reads a
file once before its records are read, for 2 to 3 ns of CPU a byte that comes out. bzip2 needs no such look (`CHECKED_LATE`).
"""

from __future__ import annotations

import bz2
import io
import zlib
from collections.abc import Callable
from typing import BinaryIO, NamedTuple, Protocol

from backports import zstd

from beam_pipelines.errors import SpecError
from beam_pipelines.formats.reader import DamagedStream

CODECS = ("gzip", "bzip2", "zstd")
FREE_BYTES = 64 * 2**20
"""A file may always expand to this, whatever the ratio."""
CHECKED_LATE = ("gzip", "zstd")
"""Codecs that give bytes before their checksum is known; bzip2 checks each block before it gives it."""
_ENDINGS = {".gz": "gzip", ".gzip": "gzip", ".bz2": "bzip2", ".bz": "bzip2", ".zst": "zstd", ".zstd": "zstd"}
_IN_BYTES = 64 * 2**10
_PIECE_BYTES = {"gzip": _IN_BYTES, "bzip2": 4 * 2**10, "zstd": _IN_BYTES}
"""What goes in at once: where a block of bzip2 is wrong, the good ones before it in the same piece are lost with it."""
_OUT_BYTES = {"gzip": 2**20, "bzip2": FREE_BYTES, "zstd": 2**20}
"""What comes out at once; of bzip2 whole blocks, for a part of a block is given unchecked."""
_MAGIC = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "zstd": b"\x28\xb5\x2f\xfd"}


class DecompressionBomb(DamagedStream):
    """A file that expands further than `max_expansion` allows."""


def codec_of(path: str, compression: str = "auto") -> str | None:
    """The codec of a file; `auto` goes by the path's ending. None: not compressed.

    >>> codec_of('data/flights.csv.gz'), codec_of('flights.csv'), codec_of('flights.csv', 'zstd')
    ('gzip', None, 'zstd')
    """
    if compression == "auto":
        return next((codec for ending, codec in _ENDINGS.items() if path.lower().endswith(ending)), None)
    return None if compression == "none" else compression


def decompress(
    stream: BinaryIO, codec: str | None, *, max_expansion: int = 1000, compressed_size: int | None = None, sound: Sound | None = None
) -> BinaryIO:
    """The decompressed bytes of `stream`, streamed; `stream` itself without a codec.

    Reading raises DamagedStream where the file is truncated or corrupt, after the good bytes, and DecompressionBomb where it gives
    more than `max_expansion` times its size (`compressed_size`, else what was read of it), the first 64 MiB being free. `sound`: what an
    earlier look found to be wrong; without it, bytes of a corrupt member may come before the error.
    """
    if codec is None:
        return stream
    if codec not in CODECS:
        raise SpecError(f"compression: got {codec!r}; expected one of {', '.join(CODECS)}.")
    return Decompressed(stream, codec, max_expansion=max_expansion, compressed_size=compressed_size, sound=sound)  # type: ignore[return-value]  # a RawIOBase reads like a BinaryIO


def sound_bytes(stream: BinaryIO, codec: str, *, max_expansion: int = 1000, compressed_size: int | None = None) -> Sound | None:
    """How far `stream` can be believed, where a member of it is corrupt; None where no member is. Reads it to its end. Raises its OSError."""
    return Decompressed(stream, codec, max_expansion=max_expansion, compressed_size=compressed_size).look()


class Sound(NamedTuple):
    """The first `bytes` that come out are covered by checksums that fit; behind them, `why`."""

    bytes: int
    why: str


class _Member(Protocol):
    """The decompressor of one gzip member, bzip2 stream or zstd frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, chunk: bytes, max_length: int, /) -> bytes: ...


class _Gzip:
    """zlib's decompressor with the interface of bz2's."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)
        self._more = False  # the output was full: some may be left inside

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail and not self._more

    def decompress(self, chunk: bytes, max_length: int, /) -> bytes:
        out = self._zlib.decompress(self._zlib.unconsumed_tail + chunk, max_length)
        self._more = len(out) == max_length
        return out


_MEMBER: dict[str, Callable[[], _Member]] = {"gzip": _Gzip, "bzip2": bz2.BZ2Decompressor, "zstd": zstd.ZstdDecompressor}


class Decompressed(io.RawIOBase):
    """Reads through the members of a compressed stream one after the other; see `decompress`."""

    def __init__(
        self, stream: BinaryIO, codec: str, *, max_expansion: int, compressed_size: int | None, sound: Sound | None = None
    ) -> None:
        self._stream, self._codec = stream, codec
        self._max_expansion, self._compressed_size = max_expansion, compressed_size
        self._member: _Member | None = None
        self._taken = self._given = self._ended = 0  # read; come out; come out of members that are whole
        self._sound, self._corrupt = sound, ""
        self._unfed, self._pending = b"", memoryview(b"")  # not yet gone in; come out and not yet given
        self._damage: DamagedStream | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, view: memoryview) -> int:  # type: ignore[override]  # typeshed: any writable buffer; ours is a memoryview
        if not self._pending and self._damage is None:
            self._pending = memoryview(self._next())
        if not self._pending and self._damage is not None:
            raise self._damage
        taken = self._pending[: len(view)]
        view[: len(taken)] = taken
        self._pending = self._pending[len(taken) :]
        return len(taken)

    def close(self) -> None:
        self._stream.close()
        super().close()

    def look(self) -> Sound | None:
        """Reads to the end or the damage; what is sound, if a member is corrupt."""
        while self._next():
            pass
        if not self._corrupt:
            return None
        unread = f"of what it unpacks to, nothing from byte {self._ended} on was read, because it is not what was packed"
        return Sound(self._ended, f"{self._corrupt}; {unread}")

    def _next(self) -> bytes:
        """Decompressed bytes; empty at the end or where `_damage` is set."""
        while self._damage is None:
            member, chunk = self._member, b""
            if member is None or member.eof:
                chunk = self._first_bytes()
                if not chunk:
                    return b""
                self._ended = self._given
                member = self._member = _MEMBER[self._codec]()
            elif member.needs_input:
                chunk = self._take()
                if not chunk:
                    self._damage = DamagedStream(f"truncated {self._codec} file: it ends in mid-data after {self._taken} bytes")
                    return b""
            out = self._step(member, chunk)
            if out:
                return out
        return b""

    def _step(self, member: _Member, chunk: bytes) -> bytes:
        try:
            out = member.decompress(chunk, _OUT_BYTES[self._codec])
        except (zlib.error, OSError, EOFError, zstd.ZstdError) as error:  # bz2 says OSError for corrupt data
            self._corrupt = f"corrupt {self._codec} file near byte {self._taken}: {error}"
            self._damage = DamagedStream(self._corrupt if self._sound is None else self._sound.why)
            return b""
        if self._sound is not None and self._given + len(out) > self._sound.bytes:
            out = out[: self._sound.bytes - self._given]
            self._damage = DamagedStream(self._sound.why)
        self._given += len(out)
        allowed = max(FREE_BYTES, self._max_expansion * (self._compressed_size or self._taken))
        if self._given > allowed:
            text = f"decompression bomb: more than {allowed} bytes come out of {self._compressed_size or self._taken}; expected at most {self._max_expansion} times (max_expansion)"
            self._damage = DecompressionBomb(text)
            return b""
        return out

    def _first_bytes(self) -> bytes:
        """The bytes the next member begins with; empty at the end of the file or where `_damage` is set."""
        padded = self._member is not None  # zero bytes may follow a member, up to a sector or tape block
        magic, rest = _MAGIC[self._codec], b"" if self._member is None else self._member.unused_data
        while True:
            rest = rest.lstrip(b"\0") if padded else rest
            chunk = self._take() if len(rest) < len(magic) else b""
            if not chunk:
                break
            rest += chunk
        skippable = self._codec == "zstd" and rest[1:4] == b"\x2a\x4d\x18"
        if rest and not rest.startswith(magic) and not skippable:
            what = "bytes behind the last member of a" if padded else "no"
            text = f"{what} {self._codec} file at byte {self._taken - len(rest)}: got {rest[:4]!r}; expected {magic!r}"
            self._damage = DamagedStream(text)
            return b""
        return rest

    def _take(self) -> bytes:
        self._unfed = self._unfed or self._stream.read(_IN_BYTES)
        most = _PIECE_BYTES[self._codec]
        chunk, self._unfed = self._unfed[:most], self._unfed[most:]
        self._taken += len(chunk)
        return chunk
