"""Texts that are not UTF-8: byte-order marks and transcoding while reading."""

from __future__ import annotations

import codecs
import io
from typing import BinaryIO

from beam_pipelines.errors import SpecError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is its prefix
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
MARK_BYTES = 4
_CHUNK_BYTES = 2**20
_UNDECODABLE = "\udcff"  # written as the byte FF, which no UTF-8 text holds: the record, and no other, becomes DECODE


def _mark_undecodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _UNDECODABLE, error.end


codecs.register_error("beam_pipelines.mark", _mark_undecodable)


def canonical(encoding: str) -> str:
    """The codec's own name; `utf-8` for all spellings of UTF-8. Raises SpecError for what is no text codec.

    >>> canonical('UTF8'), canonical('latin1')
    ('utf-8', 'iso8859-1')
    """
    try:
        name = codecs.lookup(encoding).name
        "".encode(encoding)
    except LookupError:
        raise SpecError(
            f"encoding: unknown text encoding {encoding!r}.", hint="Names are those of Python's codecs: utf-8, utf-16, latin-1, cp1252, ..."
        ) from None
    return "utf-8" if name in ("utf-8", "utf-8-sig") else name


def detect(head: bytes, encoding: str) -> tuple[str, int]:
    """The encoding of a file that begins with `head` (4 bytes) and the length of its mark; a mark wins over `encoding`."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, len(mark)
    return canonical(encoding), 0


class Utf8Stream(io.RawIOBase):
    """`head` and then `stream`, decoded by `encoding` and given as UTF-8, a chunk at a time."""

    def __init__(self, stream: BinaryIO, *, head: bytes, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="beam_pipelines.mark")
        self._pending = self._encode(head, final=False)
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, view: memoryview) -> int:  # type: ignore[override]  # typeshed: any writable buffer; ours is a memoryview
        while not self._pending and not self._ended:
            chunk = self._stream.read(_CHUNK_BYTES)
            self._ended = not chunk
            self._pending = self._encode(chunk, final=not chunk)
        taken = self._pending[: len(view)]
        view[: len(taken)] = taken
        self._pending = self._pending[len(taken) :]
        return len(taken)

    def _encode(self, chunk: bytes, *, final: bool) -> memoryview:
        return memoryview(self._decoder.decode(chunk, final).encode("utf-8", "surrogateescape"))
