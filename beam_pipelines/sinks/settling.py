"""Settled folders: partitions of a stream's rows in which those that readers see lie apart, each once. Such files are read as they are.

    a quiet folder ─▶ which rows a reader would not see ─▶ a file of these: the rest ─▶ files of the others: parts ─▶ the last part names them all

Nothing is taken away: whoever reads all files finds every copy. A folder is settled until it gets another file, or until more rows are known to be duplicates
or refused that may lie in it: those that arrived between its first row and its last. A sum over these is written into its last part, and made again
by readers; so no clock is trusted. Loads no Beam.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.schema import ARRIVAL, STORED_AT
from beam_pipelines.errors import BeamPipelinesError
from beam_pipelines.formats import compaction
from beam_pipelines.formats.compaction import SETTLED_LEVEL, Merge, Settle, grouped
from beam_pipelines.formats.named_files import Named, again, named, unreplaced
from beam_pipelines.formats.reader import Broken
from beam_pipelines.places import delete, local, size
from beam_pipelines.places.sql import reading
from beam_pipelines.sinks.outputs import SpeedOutput, read_columns, read_outputs
from beam_pipelines.sinks.speed_files import SETTLED, Settled, alike, count_rows, folders_of, replaces, settled, stored
from beam_pipelines.sinks.speed_views import PlainFiles, gone_sql, once_sql
from beam_pipelines.spec.sinks import ROWS

_LOG = logging.getLogger(__name__)
_MEMORY = "1GB"
_MOST_ROWS = 20_000_000  # of a folder that a stream settles beside its work: some 15 s
_DAY_S, _SHARE = 86_400.0, 16  # written anew for a sixteenth more, or what has lain for a day
_FIRST, _LAST = -(2**63), 2**63 - 1
_Numbers = npt.NDArray[np.int64]


def plain_files(state: str, output: SpeedOutput) -> PlainFiles:
    """Which files of an output of rows can be read as they are now."""
    found = [again(partial(_lying, folder)) for folder in folders_of(output.folder, len(read_columns(output.folder)))]
    marks = [mark for _, mark in found if mark is not None]
    gone = Gone(state, output, min(m.since for m in marks), max(m.until for m in marks)) if marks else None
    good, others = list[str](), list[str]()
    for live, mark in found:
        if mark is not None and gone is not None and gone.still(mark):
            good += [file.path for file in live if _name(file.path) not in mark.rest]
        else:
            others += [file.path for file in live]
    return PlainFiles(tuple(good), tuple(others))


def _lying(folder: str) -> tuple[list[Named], Settled | None]:
    """The live files of a folder, and what its last part says where they are all of a settled one."""
    live = unreplaced(folder, replaces)
    return live, _mark(live)


def _mark(live: Sequence[Named]) -> Settled | None:
    names = {_name(file.path) for file in live}
    return next((mark for whole, mark in _marks(live) if whole == names), None)


def _marks(live: Sequence[Named]) -> list[tuple[set[str], Settled]]:
    """What last parts say, with the names of all files that they speak of."""
    found = ((_name(file.path), settled(file.path)) for file in live if file.level == SETTLED_LEVEL)
    return [({name, *mark.parts, *mark.rest}, mark) for name, mark in found if mark is not None]


def _name(path: str) -> str:
    return path.rpartition("/")[2]


class Gone:
    """Rows that readers of an output leave out, as far as it matters for rows that arrived from `since` to `until`: of any time, a sum of hashes of them."""

    _times: _Numbers
    _sums: npt.NDArray[np.uint64]
    _unknown: int

    def __init__(self, state: str, output: SpeedOutput, since: int = _FIRST, until: int = _LAST) -> None:
        sql = gone_sql(state, output)
        if sql is None:
            self._times, self._sums, self._unknown = np.zeros(0, np.int64), np.zeros(1, np.uint64), 0
            return
        within = f"arrival_time IS NULL OR epoch_us(arrival_time) BETWEEN {since} AND {until}"
        with _engine(sql) as connection:
            found = connection.sql(
                f"SELECT epoch_us(arrival_time) AS arrived, named FROM ({sql}) WHERE {within} ORDER BY arrived NULLS FIRST"
            ).to_arrow_table()
        unknown, named_ = found.column("arrived").null_count, found.column("named").to_numpy().astype(np.uint64)
        self._times = found.column("arrived").slice(unknown).to_numpy()
        self._sums = np.concatenate(([np.uint64(0)], np.cumsum(named_[unknown:], dtype=np.uint64)))
        self._unknown = int(named_[:unknown].sum(dtype=np.uint64))

    def sum(self, since: int, until: int) -> int:
        """Of those that arrived then, both ends included, or nobody knows when; modulo 2^63, which JSON holds."""
        first, end = int(np.searchsorted(self._times, since, "left")), int(np.searchsorted(self._times, until, "right"))
        return (int(self._sums[max(first, end)]) - int(self._sums[first]) + self._unknown) % 2**63

    def still(self, mark: Settled) -> bool:
        """Whether nothing has gone since, or come back, that may lie in the folder."""
        return self.sum(mark.since, mark.until) == mark.gone


@contextmanager
def _engine(sql: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """One that lays aside what does not fit into its memory."""
    with TemporaryDirectory(prefix="beam-settling-") as spill:
        config: dict[str, Any] = {"threads": 1, "memory_limit": _MEMORY, "temp_directory": spill}
        with duckdb.connect(config=config) as connection:
            yield reading(connection, sql)


class _Damaged(Exception):  # never leaves this module
    pass


@dataclass
class Settling:
    """Settles folders of the stream of `state`, of the output that lies below `top`: one pass over them, beside a stream's work one of them. `write` writes a
    file (`Merge`) and gives its path; parts have about `part_bytes`."""

    state: str
    top: str
    write: Callable[[Merge], str]
    part_bytes: int | None
    _busy: bool = field(default=False, init=False)

    def __call__(self, folder: Settle) -> str | None:
        """The last part's path; None where the folder is settled, is not worth it yet, or cannot be: a file is broken, or columns differ.

        Beside a stream's work one that is settled is left alone: whether more rows are gone is asked by whoever calls for all.
        """
        output, paths, mark = self._output, [file.path for file in folder.live], _mark(folder.live)
        if output is None or self._busy or (mark is not None and folder.quiet_s) or not _can(folder.live) or not _worth(folder):
            return None
        try:
            gone = self._gone
        except duckdb.Error as error:  # a file of doors or letters was merged meanwhile
            _LOG.warning("%s: is not settled in this pass: %s", folder.folder, error)
            return None
        if mark is not None and gone.still(mark):
            return None
        self._busy, made = folder.quiet_s > 0, list[str]()
        try:
            self._write(folder, self._rest(output, paths), gone, made)
        except (_Damaged, FileNotFoundError, BeamPipelinesError, duckdb.Error) as error:
            _LOG.warning("%s: was not settled: %s", folder.folder, error)
            if not isinstance(error, BeamPipelinesError):  # a place that refuses may not do so again
                _failed.add(_names(folder.live))
            for path in made:  # copies of rows that are in other live files
                with suppress(BeamPipelinesError):
                    delete(path)
            return None
        return made[-1]

    def unsettled(self, live: Sequence[Named]) -> bool:
        """Whether these files of a quiet folder may yet be settled, in another pass."""
        return bool(live) and self._output is not None and _can(live) and _mark(live) is None and _rows(live) <= _MOST_ROWS

    @cached_property
    def _output(self) -> SpeedOutput | None:
        outputs = read_outputs(self.state)
        found = next((o for o in (outputs.outputs if outputs else ()) if o.folder == self.top and o.of == ROWS), None)
        return found if found is not None and len(found.placings) <= 1 else None

    @cached_property
    def _gone(self) -> Gone:
        assert self._output is not None
        return Gone(self.state, self._output)

    def _rest(self, output: SpeedOutput, paths: Sequence[str]) -> list[_Numbers]:
        """By file, in order, the rows that a reader does not see."""
        listed = ", ".join(map(literal, map(local, paths)))
        within = read_columns(self.top)
        place = [quote(column) for column in output.placed if column not in within]  # the others are the folder's
        columns = ", ".join(["_source", "_position", "_run_id", *place, STORED_AT])
        rows = f"list_position([{listed}], filename) AS file, file_row_number AS row"
        scan = f"read_parquet([{listed}], hive_partitioning = false, filename = true, file_row_number = true)"
        # kept: what a later start would leave out is left out here from the first on, as by `serve`
        once = once_sql(self.state, output, f"(SELECT {columns}, {rows} FROM {scan})", by=place, kept=True)
        sql = f"SELECT file, row FROM (SELECT {rows} FROM {scan}) ANTI JOIN (SELECT file, row FROM {once}) USING (file, row) ORDER BY file, row"
        with _engine(sql) as connection:
            found = connection.sql(sql).to_arrow_table()
        file, row = found.column("file").to_numpy(), found.column("row").to_numpy()
        ends = np.searchsorted(file, np.arange(1, len(paths) + 2))
        return [row[first:end] for first, end in pairwise(ends)]

    def _write(self, folder: Settle, rest: Sequence[_Numbers], gone: Gone, made: list[str]) -> None:
        paths = [file.path for file in folder.live]
        there, rows = {_name(file.path) for file in named(folder.folder)}, _rows(folder.live)
        replaced = [*map(_name, paths), *(name for path in paths for name in replaces(path) if name in there)]
        every = rows if self.part_bytes is None else max(compaction.GROUP_ROWS, rows * self.part_bytes // max(1, size(paths)))
        if any(map(len, rest)):
            made.append(self._file(folder, grouped(_picked(paths, rest, seen=False)), [], {}))
        hidden, arrived = tuple(map(_name, made)), _Arrived()
        batches = grouped(arrived.noting(_picked(paths, rest, seen=True)))
        waiting = next(batches, None)
        while True:
            names, more = list[str](), dict[bytes, bytes]()

            def part(first: pa.RecordBatch | None, names: list[str] = names, more: dict[bytes, bytes] = more) -> Iterator[pa.RecordBatch]:
                nonlocal waiting
                count = 0
                while first is not None:
                    yield first
                    count += first.num_rows
                    waiting = next(batches, None)
                    first = waiting if count < every else None
                if waiting is None:  # the last part: with its name the folder is settled
                    names += replaced
                    parts = tuple(map(_name, made[len(hidden) :]))
                    mark = Settled(parts, hidden, arrived.since, arrived.until, gone.sum(arrived.since, arrived.until))
                    more[SETTLED] = msgspec.json.encode(mark)

            made.append(self._file(folder, part(waiting), names, more))
            if waiting is None:
                return

    def _file(self, folder: Settle, batches: Iterator[pa.RecordBatch], names: Sequence[str], more: dict[bytes, bytes]) -> str:
        return self.write(Merge(folder.folder, folder.live[0].path, batches, names, folder.epoch, SETTLED_LEVEL, folder.now, more))


_failed: set[frozenset[str]] = set()  # files of this process's passes that could not be settled


def _names(live: Sequence[Named]) -> frozenset[str]:
    return frozenset(file.path for file in live)


def _can(live: Sequence[Named]) -> bool:
    """Whether all files can be read, have the same columns, and have not failed before."""
    words = {alike(file.path) for file in live}
    return len(words) == 1 and None not in words and _names(live) not in _failed


def _rows(live: Sequence[Named]) -> int:
    return sum(count_rows(file.path) for file in live)


def _worth(folder: Settle) -> bool:
    """Whether it is time, beside a stream's work, for a folder that is not too large: where it was settled before, when it has got enough since."""
    if not folder.quiet_s:
        return True
    if _rows(folder.live) > _MOST_ROWS:
        return False
    names = {_name(file.path): file for file in folder.live}
    whole = [of for of, _ in _marks(folder.live) if of <= names.keys()]
    new = [file for name, file in names.items() if name not in set().union(*whole)]
    if not whole or not new:  # without new ones: two processes have settled it
        return True
    if folder.now() - min(file.made_at for file in new) >= _DAY_S:
        return True
    return size([f.path for f in new]) * _SHARE >= size([f.path for f in folder.live]) > 0


def _picked(paths: Sequence[str], rest: Sequence[_Numbers], *, seen: bool) -> Iterator[pa.RecordBatch]:
    """The rows of the files, in order: those of `rest`, or, `seen`, the others."""
    for path, numbers in zip(paths, rest, strict=True):
        start = 0
        for batch in stored(path):
            if isinstance(batch, Broken):
                raise _Damaged(batch.reason)
            first, end = np.searchsorted(numbers, (start, start + batch.num_rows))
            hidden = np.zeros(batch.num_rows, bool)
            hidden[numbers[first:end] - start] = True
            if end == first and seen:
                yield batch
            elif end > first:
                yield batch.filter(pa.array(~hidden if seen else hidden))
            start += batch.num_rows


class _Arrived:
    """From when to when the rows arrived that passed: of none, no time at all; where one has no time, all times."""

    def __init__(self) -> None:
        self.since, self.until = _LAST, _FIRST

    def noting(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            times = batch.column(ARRIVAL).cast(pa.int64()) if ARRIVAL in batch.schema.names else pa.nulls(1, pa.int64())
            if times.null_count:
                self.since, self.until = _FIRST, _LAST
            elif batch.num_rows:
                ends = pc.min_max(times)
                self.since, self.until = min(self.since, ends["min"].as_py()), max(self.until, ends["max"].as_py())
            yield batch
