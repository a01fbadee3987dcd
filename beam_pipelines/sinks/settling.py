"""Settled folders: partitions of a stream's rows in which each row lies once, and none that a reader leaves out. Such files are read as they are.

    a quiet folder ─▶ which rows a reader would see ─▶ they alone, in parts; the last names the others, and all files that they replace

A folder is settled until it gets another file, or until more rows are known to be duplicates or refused that may lie in it: those that arrived between
its first row and its last. How many these were is written into its last part, and counted again by readers; so no clock is trusted. Loads no Beam.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import duckdb
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.concat import coalesce
from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.schema import ARRIVAL, STORED_AT
from beam_pipelines.formats.compaction import QUIET_LEVEL, Merge, Settle
from beam_pipelines.formats.named_files import Named, again, named, unreplaced
from beam_pipelines.formats.reader import Broken
from beam_pipelines.places import delete, local, size
from beam_pipelines.places.sql import reading
from beam_pipelines.sinks.outputs import SpeedOutput, read_columns, read_outputs
from beam_pipelines.sinks.speed_files import SETTLED, Settled, alike, folders_of, replaces, settled, stored
from beam_pipelines.sinks.speed_views import gone_sql, once_sql

_LOG = logging.getLogger(__name__)
_MEMORY = "1GB"
_GROUP_ROWS, _GROUP_BYTES = 131_072, 32 << 20
_DAY_S, _SHARE = 86_400.0, 16  # written anew for a sixteenth more, or what has lain for a day
_FIRST, _LAST = -(2**63), 2**63 - 1
_Numbers = npt.NDArray[np.int64]


class Standing(NamedTuple):
    """The live files of an output: those of `settled` folders, each row once, and all `others`."""

    settled: tuple[str, ...]
    others: tuple[str, ...]


def standing(state: str, output: SpeedOutput) -> Standing:
    """Which files of an output of rows can be read as they are now."""
    found = [again(partial(_lying, folder)) for folder in folders_of(output.folder, len(read_columns(output.folder)))]
    marks = [mark for _, mark in found if mark is not None]
    if not marks:
        return Standing((), tuple(file.path for live, _ in found for file in live))
    gone = Gone(state, output, min(m.since for m in marks), max(m.until for m in marks))
    good, others = list[str](), list[str]()
    for live, mark in found:
        (good if mark is not None and gone.still(mark) else others).extend(file.path for file in live)
    return Standing(tuple(good), tuple(others))


def _lying(folder: str) -> tuple[list[Named], Settled | None]:
    """The live files of a folder, and what its last part says where they are all of a settled one."""
    live = unreplaced(folder, replaces)
    return live, _mark(live)


def _mark(live: Sequence[Named]) -> Settled | None:
    names = {_name(file.path) for file in live}
    marks = ((_name(file.path), settled(file.path)) for file in live if file.level)
    return next((mark for name, mark in marks if mark is not None and {name, *mark.parts} == names), None)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


class Gone:
    """When the rows arrived that readers of an output leave out, as far as it matters for rows that arrived from `since` to `until`."""

    _times: _Numbers
    _unknown: int

    def __init__(self, state: str, output: SpeedOutput, since: int = _FIRST, until: int = _LAST) -> None:
        sql, arrival = gone_sql(state, output), pa.array([], pa.int64())
        if sql is not None:
            times = f"SELECT epoch_us(arrival_time) AS at FROM ({sql}) WHERE arrival_time IS NULL OR epoch_us(arrival_time) BETWEEN {since} AND {until}"
            arrival = reading(duckdb.connect(config={"threads": 1}), sql).sql(times).to_arrow_table().column("at").combine_chunks()
        self._unknown = arrival.null_count
        self._times = np.sort(pc.drop_null(arrival).to_numpy())

    def count(self, since: int, until: int) -> int:
        """How many of them arrived then, both ends included, or nobody knows when."""
        first, end = int(np.searchsorted(self._times, since, "left")), int(np.searchsorted(self._times, until, "right"))
        return max(0, end - first) + self._unknown

    def still(self, mark: Settled) -> bool:
        """Whether nothing has gone since that may lie in the folder."""
        return self.count(mark.since, mark.until) == mark.gone


class _Damaged(Exception):  # never leaves this module
    pass


@dataclass
class Settling:
    """Settles folders of the stream of `state`, of the output that lies below `top`: one pass over them. `write` writes a file (`Merge`) and gives its
    path; parts have about `part_bytes`."""

    state: str
    top: str
    write: Callable[[Merge], str]
    part_bytes: int | None
    _gone: Gone | None = field(default=None, init=False)

    def __call__(self, folder: Settle) -> str | None:
        """The last part's path; None where the folder is settled, has not got enough since it was, or cannot be: a file is broken, or columns differ."""
        output = self._output()
        if output is None or not all(map(alike, (paths := [file.path for file in folder.live]))) or len(set(map(alike, paths))) > 1:
            return None
        mark, parts = _mark(folder.live), list[str]()
        try:
            gone = self._gone = self._gone or Gone(self.state, output)
            if gone.still(mark) if mark is not None else not _worth(folder):
                return None
            self._write(folder, self._kept(output, paths), gone, parts)
        except (_Damaged, FileNotFoundError, duckdb.Error) as error:
            _LOG.warning("%s: was not settled: %s", folder.folder, error)
            for path in parts:  # copies of rows that are in other live files
                delete(path)
            return None
        return parts[-1]

    def _output(self) -> SpeedOutput | None:
        outputs = read_outputs(self.state)
        found = next((o for o in (outputs.outputs if outputs else ()) if o.folder == self.top and o.of == "rows"), None)
        return found if found is not None and len(found.placings) <= 1 else None

    def _kept(self, output: SpeedOutput, paths: Sequence[str]) -> list[_Numbers]:
        """By file, in order, the rows that a reader sees."""
        listed = ", ".join(map(literal, map(local, paths)))
        within = read_columns(self.top)
        place = [quote(column) for column in output.placed if column not in within]  # the others are the folder's
        columns = f"{', '.join(['_source', '_position', '_run_id', *place])}, {STORED_AT}, list_position([{listed}], filename) AS file, file_row_number AS row"
        files = f"(SELECT {columns} FROM read_parquet([{listed}], hive_partitioning = false, filename = true, file_row_number = true))"
        once = once_sql(self.state, output, files, by=place)
        with TemporaryDirectory(prefix="beam-settling-") as spill:
            config: dict[str, Any] = {"threads": 1, "memory_limit": _MEMORY, "temp_directory": spill}
            found = reading(duckdb.connect(config=config), once).sql(f"SELECT file, row FROM {once}").to_arrow_table()
        file, row = found.column("file").to_numpy(), found.column("row").to_numpy()
        return [np.sort(row[file == number]) for number in range(1, len(paths) + 1)]

    def _write(self, folder: Settle, rows: Sequence[_Numbers], gone: Gone, parts: list[str]) -> None:
        paths = [file.path for file in folder.live]
        arrived = _Arrived()
        batches = coalesce(arrived.noting(_taken(paths, rows)), target_rows=_GROUP_ROWS, target_bytes=_GROUP_BYTES)
        kept = sum(map(len, rows))
        every = kept if self.part_bytes is None else max(_GROUP_ROWS, kept * self.part_bytes // max(1, size(paths)))
        there, waiting = {_name(file.path) for file in named(folder.folder)}, next(batches, None)
        replaced = [*map(_name, paths), *(name for path in paths for name in replaces(path) if name in there)]
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
                    more[SETTLED] = msgspec.json.encode(
                        Settled(tuple(map(_name, parts)), arrived.since, arrived.until, gone.count(arrived.since, arrived.until))
                    )

            parts.append(self.write(Merge(folder.folder, paths[0], part(waiting), names, folder.epoch, QUIET_LEVEL, folder.now, more)))
            if waiting is None:
                return


def _worth(folder: Settle) -> bool:
    """Whether a folder that has got files since it was settled has got enough of them."""
    names = {_name(file.path): file for file in folder.live}
    marks = [(name, mark) for name, file in names.items() if file.level and (mark := settled(file.path)) is not None]
    whole = [{name, *mark.parts} for name, mark in marks if {name, *mark.parts} <= names.keys()]
    new = [file for name, file in names.items() if name not in set().union(*whole)]
    if not whole or not new or not folder.quiet_s:  # without new ones: two processes have settled it
        return True
    old = folder.now() - min(file.made_at for file in new) >= _DAY_S
    return old or size([f.path for f in new]) * _SHARE >= size([f.path for f in folder.live])


def _taken(paths: Sequence[str], rows: Sequence[_Numbers]) -> Iterator[pa.RecordBatch]:
    """These rows of the files, in order."""
    for path, numbers in zip(paths, rows, strict=True):
        start = 0
        for batch in stored(path):
            if isinstance(batch, Broken):
                raise _Damaged(batch.reason)
            first, end = np.searchsorted(numbers, (start, start + batch.num_rows))
            if end - first == batch.num_rows:
                yield batch
            elif end > first:
                yield batch.take(pa.array(numbers[first:end] - start))
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
            else:
                ends = pc.min_max(times)
                self.since, self.until = min(self.since, ends["min"].as_py()), max(self.until, ends["max"].as_py())
            yield batch
