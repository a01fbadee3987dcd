"""A read-only filesystem over Cloud Storage as fsspec defines it, which is how DuckDB calls into Python.

    glob            one listing of everything below the first wildcard, 1,000 names a request; it also says how large each file is
    open, read      one request for a file up to a megabyte; of a larger one the footer and the column chunks that a query wants

DuckDB reads one open file from several threads, each time by `seek` and then `read`: so each thread has its own position.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from fsspec import AbstractFileSystem  # type: ignore[import-untyped]  # it ships no types

from beam_pipelines.places import gcs
from beam_pipelines.places.gcs_streams import BLOCK_BYTES, Reader

_KNOWN_S = 10.0  # DuckDB opens a file several times in one query, and asks each time how large it is
_HELD = 64  # small files, each held whole


class _Known(NamedTuple):
    """What was said of a file, when (monotonic seconds), and its content where it is small."""

    listed: gcs.Listed
    since_s: float
    reader: Reader | None = None


class CloudFiles(AbstractFileSystem):  # type: ignore[misc]
    """gs:// for one DuckDB connection; what it learns of a file is good for one query."""

    protocol = "gs"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[str, _Known] = {}
        self._held: OrderedDict[str, None] = OrderedDict()

    def glob(self, path: str, **_: Any) -> list[str]:
        """The files that match, in order of their names; a path without a wildcard as it is."""
        if not gcs.is_pattern(path):
            return [path]
        found, now = gcs.matching(path), time.monotonic()
        for listed in found:
            before = self._files.get(listed.path)
            same = before is not None and before.listed.generation == listed.generation
            self._files[listed.path] = _Known(listed, now, before.reader if before is not None and same else None)
        return [listed.path for listed in found]

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode != "rb":
            raise OSError(f"{path}: only runs write outputs")
        known = self._fresh(path)
        if known is not None and known.reader is not None:
            return _Shared(known.reader)
        listed = None if known is None else known.listed
        size, generation = (listed.size, listed.generation) if listed is not None else (None, None)
        reader = cast("Reader", gcs.open_read(path, size=size, generation=generation))
        self._keep(path, listed or gcs.Listed(path, reader.size, reader.generation or 0), reader)
        return _Shared(reader)

    def size(self, path: str) -> int:
        return self._described(path).size

    def modified(self, path: str) -> datetime:
        """A moment that changes with the content: what DuckDB keeps of a file is good as long as it is the same."""
        return datetime.fromtimestamp(self._described(path).generation / 1e6, UTC)

    def isfile(self, path: str) -> bool:
        return self._fresh(path) is not None or gcs.exists(path)

    def exists(self, path: str, **_: Any) -> bool:
        return self.isfile(path)

    def isdir(self, path: str) -> bool:
        return False  # there are no folders; DuckDB asks of paths that it would write

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": self.size(path), "type": "file"}

    def _described(self, path: str) -> gcs.Listed:
        known = self._fresh(path)
        if known is None:
            known = self._files[path] = _Known(gcs.described(path), time.monotonic())
        return known.listed

    def _fresh(self, path: str) -> _Known | None:
        known = self._files.get(path)
        return known if known is not None and time.monotonic() - known.since_s < _KNOWN_S else None

    def _keep(self, path: str, listed: gcs.Listed, reader: Reader) -> None:
        small = listed.size <= BLOCK_BYTES
        self._files[path] = _Known(listed, time.monotonic(), reader if small else None)
        if small:
            self._held[path] = None
            self._held.move_to_end(path)
            while len(self._held) > _HELD:
                oldest, _ = self._held.popitem(last=False)
                self._files.pop(oldest, None)


class _Shared:
    """An open file with a position for each thread."""

    def __init__(self, file: Reader) -> None:
        self._file = file
        self._at = threading.local()

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at.position = offset if whence == 0 else self.tell() + offset if whence == 1 else self._file.size + offset
        return self.tell()

    def tell(self) -> int:
        return int(getattr(self._at, "position", 0))

    def read(self, size: int = -1) -> bytes:
        content = self._file.read_at(self.tell(), size)
        self._at.position = self.tell() + len(content)
        return content

    def seekable(self) -> bool:
        return True

    def flush(self) -> None:
        return

    def close(self) -> None:
        return  # others may read it yet
