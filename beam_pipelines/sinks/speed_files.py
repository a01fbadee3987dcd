"""The files of the speed layer: what they say about themselves, how one is read, in which folders they lie. Loads no Beam."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipelines.formats.reader import FILE, Broken
from beam_pipelines.places import is_local, join, list_folders, local, open_read

NOTES, SETTLED = b"beam_pipelines.speed", b"beam_pipelines.settled"
"""The keys, in a file's metadata, under which a merged file names those it replaces, and the last part of a settled folder says so."""
_BATCH_ROWS = 65_536


def folders_of(folder: str, depth: int) -> Iterator[str]:
    """The folders of all partitions of an output of the speed layer, `depth` levels below its own."""
    if not depth:
        yield folder
        return
    for name in list_folders(folder):
        if "=" in name:
            yield from folders_of(join(folder, name), depth - 1)


def all_folders(folder: str) -> Iterator[str]:
    """The output's own folder and those of all partitions below it, however it is partitioned."""
    yield folder
    for name in list_folders(folder):
        if "=" in name:
            yield from all_folders(join(folder, name))


class Settled(msgspec.Struct, frozen=True):
    """A folder in which the rows that readers see lie apart: names of the other `parts` that hold these, and of files with the `rest`. They arrived from
    `since` to `until` (microseconds, both included), and `gone` is the sum of what is gone of that time (`settling.Gone`)."""

    parts: tuple[str, ...]
    rest: tuple[str, ...]
    since: int
    until: int
    gone: int


@dataclass(frozen=True)
class Notes:
    """What a file says about itself: how many rows it has; their `columns`, names and types as text ("": it cannot be read)."""

    rows: int = 0
    columns: str = ""
    replaces: tuple[str, ...] = ()
    settled: Settled | None = None


@lru_cache(16_384)  # a name is never used for another content
def _notes(path: str) -> Notes:
    """Raises FileNotFoundError, and any of pyarrow's exceptions where bytes are damaged."""
    with _open(path) as file:
        said = file.metadata.metadata or {}
        columns = file.schema_arrow.to_string(show_field_metadata=False, show_schema_metadata=False)
        replaced = msgspec.json.decode(said[NOTES], type=tuple[str, ...]) if NOTES in said else ()
        return Notes(
            file.metadata.num_rows, columns, replaced, msgspec.json.decode(said[SETTLED], type=Settled) if SETTLED in said else None
        )


def count_rows(path: str) -> int:
    """The rows of a file; 0 where it cannot be read. Raises FileNotFoundError."""
    return _said(path).rows


def _said(path: str) -> Notes:
    try:
        return _notes(path)
    except FileNotFoundError:
        raise
    except Exception:  # corrupt bytes surface as any of pyarrow's exceptions
        return Notes()


def replaces(path: str) -> tuple[str, ...]:
    """The names of the files that a merged file was made of. Raises FileNotFoundError."""
    return _said(path).replaces


def settled(path: str) -> Settled | None:
    """What the last part of a settled folder says of it; None of another file. Raises FileNotFoundError."""
    return _said(path).settled


def alike(path: str) -> str | None:
    """The columns of a file, as text; None where it cannot be read. Files of the same may be merged."""
    return _said(path).columns or None


def stored(path: str) -> Iterator[pa.RecordBatch | Broken]:
    """The rows of a file, or why they cannot be read. Raises FileNotFoundError."""
    try:
        with _open(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                yield batch.replace_schema_metadata(None)
    except FileNotFoundError:
        raise
    except Exception as error:
        yield Broken(0, FILE, f"{path}: cannot be read: {error}")


def columns_of(path: str) -> pa.Schema:
    """The columns of a file. Raises FileNotFoundError, and any of pyarrow's exceptions where bytes are damaged."""
    with _open(path) as file:
        return file.schema_arrow.remove_metadata()


def _open(path: str) -> Any:
    return pq.ParquetFile(local(path) if is_local(path) else pa.PythonFile(open_read(path), mode="r"), pre_buffer=False)
