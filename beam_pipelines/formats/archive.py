"""The archive of a stream: its raw messages, stored before they are acknowledged. No Beam.

    write_messages   a batch ─▶ one file per source and hour of arrival, durable when it returns
    read_since       what arrived since, each position once per hour, for the replay at a restart
    read_hour        one hour, for the batch path
    live_files       what a reader needs; `archive_compaction` merges small files meanwhile

DuckDB reads it unassisted: `read_parquet('archive/**/*.parquet', hive_partitioning=true)`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.concat import coalesce
from beam_pipelines.arrow.schema import ARRIVAL, ATTRIBUTES, MESSAGES, RAW_BATCH, SOURCE, as_archived
from beam_pipelines.errors import SourceError
from beam_pipelines.formats.archive_files import (
    HOUR_MICROS,
    arrivals,
    hour_folder,
    hours,
    key_name,
    live,
    live_files,
    notes,
    opening_key,
    positions,
    source_folder,
    stored,
    stored_ms,
    unreadable,
    write_file,
)
from beam_pipelines.formats.archive_sealing import opened, sealed
from beam_pipelines.formats.named_files import again
from beam_pipelines.formats.reader import Broken
from beam_pipelines.places import modified

__all__ = [
    "Key",
    "by_source",
    "hours",
    "live_files",
    "positions_by_source",
    "raw_batch",
    "read_hour",
    "read_since",
    "source_folder",
    "write_messages",
]

Key = Callable[[], bytes]
"""What gives the sealing key where it is needed: a graph holds no secrets."""


def write_messages(
    batch: pa.RecordBatch, folder: str, *, epoch: int, key: bytes | None = None, now: Callable[[], float] = time.time
) -> list[str]:
    """Stores messages (MESSAGES) in the archive `folder`: one new file per source and hour of arrival. Gives their paths.

    When it returns, all of them survive a power failure. With `key` the content is sealed (AES-256-GCM, value by value): `_raw`, the ordering
    key and the values of attributes; ids, times and names of attributes stay readable. Raises SinkError where the place refuses; files of other
    hours of the batch may be there then, which is harmless: a message stored twice is read once.
    """
    paths = []
    for source, of_source in by_source(batch):
        for hour, part in _by_hour(of_source):
            stored_as = part if key is None else sealed(part, key)
            at = hour_folder(source_folder(folder, source), hour)
            paths.append(write_file(at, [stored_as], epoch=epoch, level=0, seal=key_name(key), now=now))
    return paths


def positions_by_source(batch: pa.RecordBatch) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.int64]]]]:
    """Each source in a batch of messages, with the positions of its messages."""
    for source, part in by_source(batch):
        yield source, positions(part)


def by_source(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Each source in a batch, with its rows."""
    column = batch.column(SOURCE)
    names = column.dictionary.to_pylist()
    if len(names) == 1 and not column.null_count:
        yield names[0], batch
        return
    codes = np.asarray(column.indices)
    for code in np.unique(codes):
        yield names[code], batch.filter(pa.array(codes == code))


def _by_hour(batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    found = arrivals(batch) // HOUR_MICROS
    numbers = np.unique(found)
    for number in numbers.tolist():
        yield number, batch if len(numbers) == 1 else batch.filter(pa.array(found == number))


def raw_batch(messages: pa.RecordBatch, *, keep_attributes: bool = False) -> pa.RecordBatch:
    """Messages as the row stages take them: provenance and `_raw`, with `_attributes` if asked for; schema metadata is kept."""
    return messages.select([*RAW_BATCH.names, *([ATTRIBUTES] if keep_attributes else [])])


def read_since(
    folder: str, since: int, *, stored_since_ms: int | None = None, key: Key | None = None, batch_rows: int = 20_000,
    on_broken: Callable[[str, Broken], None] | None = None,
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    """The messages (MESSAGES) that arrived at `since` (microseconds) or later, in order of the hours in which they arrived; marked as archived.

    With `stored_since_ms` (milliseconds since 1970) also those that arrived earlier, but were stored at that moment or later.
    `folder` is an archive or the folder of one of its sources (`source_folder`). Each position comes once per source and hour, also while a compactor
    is at work. Batches have at most `batch_rows` rows. Memory: a few batches, and 16 bytes per message of an hour.

    `key` gives the key of sealed messages; it is called only where there are some. A file that cannot be read goes to `on_broken` with its path; without that it raises SourceError. Raises SpecError where messages are sealed
    and `key` does not open them.
    """
    pieces = _since(folder, since, stored_since_ms, key, batch_rows)
    yield from map(as_archived, coalesce(_whole(pieces, on_broken or _refuse), target_rows=batch_rows))


def _since(
    folder: str, since: int, stored_since_ms: int | None, key: Key | None, batch_rows: int
) -> Iterator[tuple[str, pa.RecordBatch | Broken]]:
    for hour in hours(folder):
        if stored_since_ms is not None and hour.number * HOUR_MICROS < since and _touched_since(hour.folder, stored_since_ms):
            for path, piece in read_hour(hour.folder, key=key, made_since_s=stored_since_ms / 1000, batch_rows=batch_rows):
                yield path, piece if isinstance(piece, Broken) else _arrived(pc.less, piece, since)
        if (hour.number + 1) * HOUR_MICROS > since:
            yield from read_hour(hour.folder, key=key, since=since, batch_rows=batch_rows)


def _whole(pieces: Iterator[tuple[str, pa.RecordBatch | Broken]], on_broken: Callable[[str, Broken], None]) -> Iterator[pa.RecordBatch]:
    for path, piece in pieces:
        if isinstance(piece, Broken):
            on_broken(path, piece)
        elif piece.num_rows:
            yield piece


def _touched_since(folder: str, ms: int) -> bool:
    changed = modified(folder)
    return changed is None or changed // 1_000_000 >= ms


def _arrived(compared: Callable[..., pa.Array], messages: pa.RecordBatch, micros: int) -> pa.RecordBatch:
    column = messages.column(ARRIVAL)
    return messages.filter(compared(column, pa.scalar(micros, column.type)))


def _refuse(path: str, broken: Broken) -> None:
    raise SourceError(
        f"archive: {broken.message}.", hint=f"Restore {path}, or move it out of the archive: its messages are then lost to this stream."
    )


def read_hour(
    folder: str, *, key: Key | None = None, since: int | None = None, made_since_s: float | None = None,
    columns: Sequence[str] = MESSAGES.names, batch_rows: int = 65_536,
) -> Iterator[tuple[str, pa.RecordBatch | Broken]]:  # fmt: skip
    """The messages of an hour's folder, each position once, or what cannot be read, each with the path of its file.

    `columns` must hold `_position`, and `_arrival_time` with `since`. `made_since_s` leaves out files of messages that were all stored before. Files that a compactor deletes meanwhile are looked for in what replaced them.
    """

    def needed() -> list[str]:
        return [f.path for f in again(lambda: live(folder)) if made_since_s is None or stored_ms(f) >= made_since_s * 1000]

    seen = Positions()
    done: set[str] = set()
    waiting = needed()
    while waiting:
        path = waiting.pop(0)
        try:
            for piece in _read_file(path, key, since, columns, batch_rows):
                if isinstance(piece, Broken):
                    yield path, piece
                else:
                    fresh = seen.fresh(piece)
                    if fresh.num_rows:
                        yield path, fresh
            done.add(path)
        except FileNotFoundError:
            waiting = [path for path in needed() if path not in done]


def _read_file(path: str, key: Key | None, since: int | None, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch | Broken]:
    broken = notes(path).broken
    if broken:  # nor is it known whether it is sealed
        yield unreadable(path, broken)
        return
    opening = opening_key(path, key)
    for piece in stored(path, columns=columns, since=since, batch_rows=batch_rows):
        if isinstance(piece, Broken):
            yield piece
            continue
        late = piece if since is None else _arrived(pc.greater_equal, piece, since)
        yield late if opening is None else opened(late, opening)


class Positions:
    """A growing set of positions in sorted arrays, of which each is at least four times as long as the next: 8 bytes a position.

    >>> seen = Positions()
    >>> seen.add(np.array([3, 1, 3])).tolist(), seen.add(np.array([1, 2])).tolist()
    ([True, True, False], [False, True])
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray[Any, np.dtype[np.int64]]] = []

    def add(self, positions: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """True for each position that is new, the first of equal ones; all are in the set afterwards."""
        distinct, first = np.unique(positions, return_index=True)
        new = np.ones(len(distinct), np.bool_)
        for run in self._runs:
            at = np.searchsorted(run, distinct)
            new &= run[np.minimum(at, len(run) - 1)] != distinct
        self._keep(distinct[new])
        fresh = np.zeros(len(positions), np.bool_)
        fresh[first[new]] = True
        return fresh

    def fresh(self, messages: pa.RecordBatch) -> pa.RecordBatch:
        """The messages whose positions are new."""
        new = self.add(positions(messages))
        return messages if new.all() else messages.filter(pa.array(new))

    def _keep(self, run: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        while self._runs and len(self._runs[-1]) < 4 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")  # merges sorted runs
        if len(run):
            self._runs.append(run)
