"""The files of an archive: their names, what they say about themselves, how one is written and read. They are never changed.

    {archive}/{source}/arrival_hour=2013-12-01-05/000001-{id}.parquet      a bundle's messages
                                                  000001-{id}.1.parquet    merged from many of these
                                                  000001-{id}.2.parquet    merged from many of those
                                                  .000001-{id}.inprogress  not finished, and after a crash never will be

The six digits are the epoch of the process that wrote the file; `{id}` begins with the time at which it got its name, in milliseconds. A merged
file names those it *replaces*: it holds all their messages, and they are deleted later.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipelines.arrow.schema import ARRIVAL, ATTRIBUTES, MESSAGES, POSITION, PUBLISH_TIME, SOURCE
from beam_pipelines.errors import SinkError, SpecError
from beam_pipelines.formats.named_files import Named, again, unreplaced, write_new
from beam_pipelines.formats.reader import FILE, Broken
from beam_pipelines.places import is_local, join, list_folders, local, open_read

HOUR_MICROS = 3_600_000_000
BATCH_ROWS = 65_536
_HOUR = "arrival_hour="
_NOTES = b"beam_pipelines.archive"
_SETTINGS: dict[str, Any] = {
    "compression": "zstd", "compression_level": 1, "use_dictionary": [SOURCE, f"{ATTRIBUTES}.key_value.key"],
    "write_statistics": [ARRIVAL, PUBLISH_TIME], "column_encoding": dict.fromkeys((ARRIVAL, PUBLISH_TIME), "DELTA_BINARY_PACKED"),
    "write_page_checksum": True, "store_schema": False,
}  # fmt: skip
_known: dict[str, Notes] = {}  # by path: a name is never used for another content, and the process that compacts wrote most files itself
_MOST_KNOWN = 16_384


class Hour(NamedTuple):
    """An hour of arrivals of one source: `number` hours since 1970, and the folder of its files."""

    number: int
    folder: str


@dataclass(frozen=True)
class Notes:
    """What a file says about itself. `seal` names the key its messages are sealed with ("": not sealed), `replaces` the files it was merged
    from; `broken` why it cannot be read ("": it can). `stored_ms`: of a merged file, when the last of its messages was stored (ms since 1970), 0: unknown."""

    seal: str = ""
    replaces: tuple[str, ...] = ()
    broken: str = ""
    stored_ms: int = 0


def source_folder(archive: str, source: str) -> str:
    """Where the messages of a source lie: readable, and never the same for two sources."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", source).strip("._")[:100]
    return join(archive, f"{readable}-{hashlib.sha256(source.encode()).hexdigest()[:8]}")


def hour_folder(folder: str, hour: int) -> str:
    """Where the messages of an hour lie, below the folder of their source; `hour` counts from 1970.

    >>> hour_folder('archive/flights', 385001)
    'archive/flights/arrival_hour=2013-12-02-17'
    """
    return join(folder, _HOUR + str(np.datetime64(hour, "h")).replace("T", "-"))


def hours(folder: str) -> list[Hour]:
    """All hours in an archive, or in the folder of one of its sources, in order."""
    return sorted(_hours(folder))


def _hours(folder: str, *, deeper: bool = True) -> Iterator[Hour]:
    for name in list_folders(folder):
        if name.startswith(_HOUR):
            yield from _hour(join(folder, name), name.removeprefix(_HOUR))
        elif deeper:
            yield from _hours(join(folder, name), deeper=False)


def _hour(path: str, text: str) -> Iterator[Hour]:
    try:
        yield Hour(int(np.datetime64(f"{text[:-3]}T{text[-2:]}", "h").astype(np.int64)), path)
    except ValueError:
        return  # somebody else's folder


def live(folder: str) -> list[Named]:
    """The files of an hour that hold each of its messages, without those that a merged file replaces.

    Raises FileNotFoundError where a file went while we looked: look again.
    """
    return unreplaced(folder, replaced_by)


def live_files(folder: str) -> list[str]:
    """The paths of all files of an archive (or of one of its sources) that readers need, by hour."""
    return [file.path for hour in hours(folder) for file in again(lambda at=hour.folder: live(at))]  # type: ignore[misc]


def replaced_by(path: str) -> tuple[str, ...]:
    """The names of the files that a merged file was made of. Raises FileNotFoundError."""
    return notes(path).replaces


def stored_ms(file: Named) -> int:
    """The moment (ms since 1970) after which none of the file's messages was stored: merging them later does not make them newer."""
    made = round(file.made_at * 1000)
    return (file.level and notes(file.path).stored_ms) or made


def newest_arrival(folder: str) -> int | None:
    """The latest arrival (microseconds) of a message in an archive, or in the folder of one of its sources; None where there is none."""
    for hour in reversed(hours(folder)):
        found = [at for file in again(lambda at=hour.folder: live(at)) if (at := _latest_of(file.path)) is not None]  # type: ignore[misc]
        if found:
            return min(max(found), (hour.number + 1) * HOUR_MICROS - 1)
    return None


def count_rows(path: str) -> int:
    """The messages in a file, 0 where it cannot be read. Raises FileNotFoundError."""
    try:
        with _open(path) as file:
            return int(file.metadata.num_rows)
    except FileNotFoundError:
        raise
    except Exception:
        return 0


def _latest_of(path: str) -> int | None:
    try:
        with _open(path) as file:
            return max((_latest(file, group) for group in range(file.metadata.num_row_groups)), default=None)
    except Exception:  # corrupt bytes surface as any of pyarrow's exceptions
        return None


def notes(path: str) -> Notes:
    """What the file says about itself. Raises FileNotFoundError."""
    try:
        return _notes(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # corrupt bytes surface as any of pyarrow's exceptions
        return Notes(broken=str(error))


def _notes(path: str) -> Notes:
    found = _known.get(path)
    if found is None:
        with _open(path) as file:
            found = _know(path, msgspec.json.decode((file.metadata.metadata or {})[_NOTES], type=Notes))
    return found


def _know(path: str, found: Notes) -> Notes:
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[path] = found
    return found


def write_file(
    folder: str, batches: Iterable[pa.RecordBatch], *, epoch: int, level: int, seal: str, replaces: Sequence[str] = (),
    stored_ms: Callable[[], int] = lambda: 0, now: Callable[[], float] = time.time,
) -> str:  # fmt: skip
    """Writes messages to a new file of an hour, each batch a row group; gives its path. When this returns, the file survives a power failure.

    `replaces` is read, and `stored_ms` called (see `Notes`), after the last batch. Raises SinkError where the place refuses; then there is no file.
    """
    said = Notes(seal)

    def write(out: BinaryIO) -> None:
        nonlocal said
        with pq.ParquetWriter(out, MESSAGES, **_SETTINGS) as writer:
            for batch in batches:
                writer.write_batch(batch, row_group_size=max(1, batch.num_rows))
            said = Notes(seal, tuple(replaces), stored_ms=stored_ms())
            writer.add_key_value_metadata({_NOTES: msgspec.json.encode(said)})

    path = write_new(folder, write, epoch=epoch, level=level, now=now)
    _know(path, said)
    return path


def stored(
    path: str, *, columns: Sequence[str] = MESSAGES.names, since: int | None = None, batch_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch | Broken]:
    """The messages of a file as they are stored, sealed ones sealed; without row groups in which all arrived before `since` (microseconds).

    A row group that cannot be read is a Broken: `position` is the ordinal of its first row. Raises FileNotFoundError.
    """
    schema = pa.schema([MESSAGES.field(name) for name in columns])
    try:
        file = _open(path)
    except FileNotFoundError:
        raise
    except Exception as error:
        yield unreadable(path, str(error))
        return
    with file:
        first = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if since is None or _latest(file, group) >= since:
                yield from _row_group(file, path, group, first, schema, batch_rows)
            first += rows


def unreadable(path: str, why: str) -> Broken:
    """A file of which nothing can be read."""
    return Broken(0, FILE, f"{path}: not a readable file of an archive: {why}")


def _row_group(file: pq.ParquetFile, path: str, group: int, first: int, schema: pa.Schema, size: int) -> Iterator[pa.RecordBatch | Broken]:
    position, end = first, first + file.metadata.row_group(group).num_rows
    why = ""
    try:
        for batch in file.iter_batches(size, row_groups=[group], columns=schema.names, use_threads=False):
            yield batch.cast(schema)
            position += batch.num_rows
    except Exception as error:
        why = str(error)
    if position < end:
        yield Broken(
            position, FILE, f"{path}: messages {position} to {end - 1} cannot be read: {why or 'they are missing'}", rows=end - position
        )


def _latest(file: pq.ParquetFile, group: int) -> int:
    found = file.metadata.row_group(group).column(MESSAGES.get_field_index(ARRIVAL)).statistics
    return int(found.max_raw) if found is not None and found.has_min_max else 2**63 - 1


def _open(path: str) -> pq.ParquetFile:
    place = local(path) if is_local(path) else pa.PythonFile(open_read(path), mode="r")
    return pq.ParquetFile(place, page_checksum_verification=True, read_dictionary=[SOURCE], pre_buffer=False)


def key_name(key: bytes | None) -> str:
    """A name for a sealing key, by which a file says which one it needs; "" for none."""
    return "" if key is None else hashlib.sha256(b"beam_pipelines archive " + key).hexdigest()[:16]


def opening_key(path: str, give: Callable[[], bytes] | None) -> bytes | None:
    """The key that opens a file's messages, None where they are not sealed. Raises SpecError where `give` is None or gives another key."""
    needed = notes(path).seal
    if not needed:
        return None
    key = None if give is None else give()
    if key_name(key) != needed:
        got = "there is no key" if key is None else "the key is another one"
        raise SpecError(
            f"{path}: the messages are sealed, and {got}.", hint="Set `dead_letters.raw_key` to the key under which the stream stored them."
        )
    return key


def arrivals(batch: pa.RecordBatch) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Arrival times in microseconds since 1970. Raises SinkError where a message has none."""
    column = batch.column(ARRIVAL)
    if column.null_count:
        raise SinkError(
            f"archive: {column.null_count} of {batch.num_rows} messages have no arrival time.", hint="A source gives each message one."
        )
    return np.asarray(column.cast(pa.int64()))


def positions(batch: pa.RecordBatch) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The messages' positions."""
    return np.asarray(batch.column(POSITION))
