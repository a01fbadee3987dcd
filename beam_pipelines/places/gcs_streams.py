"""Objects of Cloud Storage as files: written in one request while small, read by ranges of one generation."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any

CHUNK_BYTES = 4 << 20
"""What a writer holds before it sends; a smaller object is one request."""
BLOCK_BYTES = 1 << 20
"""What a reader fetches at least; a smaller object is one request."""
_TAIL_BYTES = 64 << 10  # of a Parquet file: its footer, mostly
_KEPT = 4  # ranges that a reader remembers

Saying = Callable[[], AbstractContextManager[None]]


class Writer(io.BufferedIOBase):
    """An object that is there once this is closed. Forgotten, or left by an exception, it makes none."""

    def __init__(self, blob: Any, retry: Any, saying: Saying) -> None:
        self._blob, self._retry, self._saying = blob, retry, saying
        self._held = io.BytesIO()
        self._sent: Any = None
        self._at = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, content: Any) -> int:
        if self.closed:
            raise ValueError("write to a closed file")
        count = memoryview(content).nbytes
        with self._saying():
            (self._sent or self._held).write(content)
            self._at += count
            if self._sent is None and self._at > CHUNK_BYTES:
                self._sent = self._blob.open(
                    "wb", chunk_size=CHUNK_BYTES, ignore_flush=True, content_type="application/octet-stream", retry=self._retry
                )
                self._sent.write(self._held.getbuffer())
                self._held = io.BytesIO()
        return count

    def close(self) -> None:
        """Makes the object. Raises OSError where Cloud Storage refuses; then there is none."""
        if self.closed:
            return
        try:
            with self._saying():
                if self._sent is not None:
                    self._sent.close()
                else:
                    self._blob.upload_from_string(
                        self._held.getvalue(), content_type="application/octet-stream", retry=self._retry
                    )  # fmt: skip
        finally:
            self._end()

    def abandon(self) -> None:
        """Ends without an object."""
        if not self.closed:
            if self._sent is not None:
                with suppress(Exception):  # an upload that nobody ends is forgotten after a week
                    self._sent.terminate()
            self._end()

    def _end(self) -> None:
        self._held = io.BytesIO()
        super().close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def __del__(self) -> None:
        with suppress(Exception):  # io's own would close, which makes the object
            self.abandon()


class Reader(io.BufferedIOBase):
    """An object as it was when the first byte was read: what replaced it since is a FileNotFoundError, never a mixture."""

    def __init__(self, blob: Any, retry: Any, saying: Saying, *, size: int | None = None) -> None:
        self._blob, self._retry, self._saying = blob, retry, saying
        self._size = size
        self._ranges: list[tuple[int, bytes]] = []
        self._position = 0

    def begin(self) -> None:
        """Reads the start, and all of a small object. Raises FileNotFoundError."""
        if self._size is None or self._size <= BLOCK_BYTES:
            self._fetch(0, BLOCK_BYTES)

    @property
    def size(self) -> int:
        """Bytes of the object."""
        if self._size is None:
            with self._saying():
                self._blob.reload(retry=self._retry)
            self._size = int(self._blob.size)
        return self._size

    @property
    def generation(self) -> int | None:
        """Of what is read; None before the first byte."""
        found = self._blob.generation
        return None if found is None else int(found)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = 0 if whence == io.SEEK_SET else self._position if whence == io.SEEK_CUR else self.size
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        content = self.read_at(self._position, -1 if size is None else size)
        self._position += len(content)
        return content

    def read1(self, size: int = -1) -> bytes:
        return self.read(BLOCK_BYTES if size < 0 else size)

    def read_at(self, start: int, count: int) -> bytes:
        """So many bytes from there, all that are left for -1; fewer only at the end. Threads may call it at once."""
        left = max(0, self.size - start) if count < 0 else count
        pieces = []
        while left and (piece := self._piece(start, left)):
            pieces.append(piece)
            start += len(piece)
            left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, start: int, count: int) -> bytes:
        for at, content in reversed(self._ranges):
            if at <= start < at + len(content):
                return content[start - at : start - at + count]
        if self._size is not None and start >= self._size:
            return b""
        first = start
        if self._size is not None and self._size - start <= _TAIL_BYTES:  # whoever reads the end reads what is before it next
            first = max(0, self._size - _TAIL_BYTES)
        content = self._fetch(first, max(count, BLOCK_BYTES) + start - first)
        return content[start - first : start - first + count]

    def _fetch(self, start: int, count: int) -> bytes:
        from google.api_core.exceptions import RequestRangeNotSatisfiable

        with self._saying():
            try:  # the first answer tells the generation, which the library asks for from then on
                content = bytes(
                    self._blob.download_as_bytes(start=start, end=start + count - 1, raw_download=True, checksum=None, retry=self._retry)
                )
            except RequestRangeNotSatisfiable:
                content = b""
        if len(content) < count and self._size is None and (content or not start):
            self._size = start + len(content)
        self._ranges = [*self._ranges[1 - _KEPT :], (start, content)]
        return content
