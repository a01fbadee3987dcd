"""Which files of the speed layer are older than they are kept and no longer the answer to anything.

    rows, panes     all of the file is old, and lies in times that a batch run has committed: tables have the batch's answer there
    dead letters    all of the file is old, and no row that stays was refused by one of them after it had been stored: readers would see it again
    doors           all of the file is old, and no row or letter that stays is one of those it tells of

What no batch has committed stays, however old: it is the only answer. So does what came after the batch had read (`stale`), until a later run has taken it up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import duckdb

from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.ranges import union
from beam_pipelines.arrow.schema import ARRIVAL, POSITION, SOURCE, STORED_AT
from beam_pipelines.formats.named_files import again, unreplaced
from beam_pipelines.places import local, size
from beam_pipelines.places.sql import reading
from beam_pipelines.sinks.deletions import Doomed, Of
from beam_pipelines.sinks.epochs import doors_folder
from beam_pipelines.sinks.manifest import Snapshot
from beam_pipelines.sinks.outputs import SpeedOutput
from beam_pipelines.sinks.speed_files import alike, all_folders, replaces
from beam_pipelines.sinks.speed_views import AT_AGGREGATE, refuses
from beam_pipelines.spec.sinks import LETTERS, ROWS

_FILES = 2_000  # of one query
UNCOMMITTED = "no batch run has committed their times"
UNDATED = "they have no event time"
STALE = "they came after the batch had read; backfill --stale takes them up"
TOLD = "a dead letter or row that stays is one of theirs"
BROKEN = "their file cannot be read"


class Old(NamedTuple):
    """A live file of which all rows are old. Times in microseconds: `first` and `last` event time (None: no row has one), `until` the last arrival."""

    path: str
    rows: int
    until: int
    first: int | None
    last: int | None
    undated: int
    stored: int | None


@dataclass
class Found:
    """What is to be deleted, and how many rows that are as old stay, by output and why."""

    doomed: list[Doomed] = field(default_factory=list)
    kept: dict[str, dict[str, int]] = field(default_factory=dict)

    def keep(self, output: str, why: str, rows: int) -> None:
        reasons = self.kept.setdefault(output, {})
        reasons[why] = reasons.get(why, 0) + rows

    def doom(self, output: str, of: Of, top: str, files: Iterable[Old]) -> None:
        self.doomed += [Doomed(output, of, f.path, top, f.rows, size([f.path]), f.until + 1) for f in files]


@dataclass(frozen=True)
class Before:
    """What is old: what arrived (panes: ended) before these moments, in microseconds; None: nothing is. `stale`: since when rows were stored
    that the batch has not taken up, None: it has taken up all."""

    speed: int | None = None
    letters: int | None = None
    stale: int | None = None


def old_files(
    state: str,
    outputs: Sequence[SpeedOutput],
    batch: Mapping[str, Snapshot],
    before: Before,
    *,
    event_time: str | None,
    tops: Collection[str],
) -> Found:
    """What the speed layer holds that need not be kept. `event_time` is the contract's; outputs that lie elsewhere than in one of `tops` are left alone."""
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        reading(connection, state, *(output.folder for output in outputs))
        look = partial(_found, connection, state, outputs, batch, before, event_time, tops)
        hiding = set[str]()
        while more := _hiding(connection, found := look(hiding), outputs):  # letters that stay may keep rows, and these letters
            hiding |= more
        return found


def _found(
    connection: duckdb.DuckDBPyConnection, state: str, outputs: Sequence[SpeedOutput], batch: Mapping[str, Snapshot], before: Before,
    event_time: str | None, tops: Collection[str], hiding: Collection[str],
) -> Found:  # fmt: skip
    """What need not be kept, if the letters `hiding` are."""
    found = Found()
    for output in outputs:
        if output.of == LETTERS and before.letters is not None and output.folder in tops:
            old = _old(connection, found, output.name, output.folder, before.letters, arrival="arrival_time", time=None)
            found.doom(output.name, "dead letters", output.folder, [f for f in old if f.path not in hiding])
            for f in old:
                if f.path in hiding:
                    found.keep(output.name, TOLD, f.rows)
    letters = _identities(outputs, found, LETTERS, "source, position", f"stage <> '{AT_AGGREGATE}' AND ")
    for output in outputs if before.speed is not None else ():
        if output.of != LETTERS and output.folder in tops:
            _rows_or_panes(connection, found, output, batch.get(output.name), before, event_time, letters)
    if before.speed is not None:
        _doors(connection, found, state, outputs, before)
    return found


def _hiding(connection: duckdb.DuckDBPyConnection, found: Found, outputs: Sequence[SpeedOutput]) -> set[str]:
    """Files of doomed letters by which a row that stays was refused after it was stored."""
    files, gone = [d.path for d in found.doomed if d.of == "dead letters"], {d.path for d in found.doomed}
    hiding = set[str]()
    for output in outputs if files else ():
        stay = [path for path in _live_files(output.folder) if path not in gone] if output.of == ROWS else []
        if stay:
            refused = (
                f"SELECT filename, source, position, {STORED_AT} AS moment FROM ({_select(files, '*', name=True)}) WHERE {refuses(output)}"
            )
            rows = _select(stay, f"{SOURCE}::VARCHAR AS source, {POSITION} AS position, {STORED_AT} AS stored")
            same = "letters.source = kept.source AND letters.position = kept.position AND letters.moment > kept.stored"
            sql = f"SELECT DISTINCT filename FROM ({refused}) AS letters SEMI JOIN ({rows}) AS kept ON {same}"
            hiding |= {path for (path,) in connection.execute(sql).fetchall()}
    return hiding


def _rows_or_panes(
    connection: duckdb.DuckDBPyConnection, found: Found, output: SpeedOutput, snapshot: Snapshot | None, before: Before, event_time: str | None,
    letters: str | None,
) -> None:  # fmt: skip
    assert before.speed is not None
    rows = output.of == ROWS
    time, arrival = (event_time, ARRIVAL) if rows else ("_window_start", "_window_end")
    if snapshot is not None and snapshot.clock is not None:
        time = snapshot.clock.column
    old = _old(connection, found, output.name, output.folder, before.speed, arrival=arrival, time=time)
    committed = union((r.start, r.end) for r in (snapshot.ranges if snapshot is not None and snapshot.clock is not None else ()) if r.as_of)
    why = {f.path: _stays(f, committed, before.stale if rows else None) for f in old}
    gone = [f for f in old if why[f.path] is None]
    if rows:
        others = [letters] if letters is not None else []
        if len(output.placings) > 1:  # a changed spec may have placed a row twice: its older copy must not come to light
            stay = [p for p in _live_files(output.folder) if p not in {f.path for f in gone}]
            others += [_select(stay, f"{SOURCE}::VARCHAR AS source, {POSITION} AS position")] if stay else []
        tied = _tied(connection, [f.path for f in gone], f"{SOURCE}::VARCHAR", POSITION, others)
        why |= dict.fromkeys(tied, TOLD)
        gone = [f for f in gone if f.path not in tied]
    for f in old:
        reason = why[f.path]
        if reason is not None:
            found.keep(output.name, reason, f.rows)
    found.doom(output.name, "rows" if rows else "panes", output.folder, gone)


def _stays(file: Old, committed: Sequence[tuple[int, int]], stale: int | None) -> str | None:
    """Why the file stays although it is old; None where it need not."""
    if file.undated or file.first is None or file.last is None:
        return UNDATED if committed else UNCOMMITTED
    if not any(start <= file.first and file.last < end for start, end in committed):
        return UNCOMMITTED
    return STALE if stale is not None and (file.stored is None or file.stored >= stale) else None


def _doors(connection: duckdb.DuckDBPyConnection, found: Found, state: str, outputs: Sequence[SpeedOutput], before: Before) -> None:
    assert before.speed is not None
    folder = doors_folder(state)
    old = _old(connection, found, "doors", folder, before.speed, arrival="arrival_time", time=None)
    rows = _identities(outputs, found, ROWS, f"{SOURCE}::VARCHAR AS source, {POSITION} AS position", "")
    others = [sql for sql in (rows, _identities(outputs, found, LETTERS, "source, position", "")) if sql is not None]
    why = dict.fromkeys(_tied(connection, [f.path for f in old], "source", "position", others), TOLD)
    why |= {f.path: STALE for f in old if before.stale is not None and (f.stored is None or f.stored >= before.stale)}
    for f in old:
        if f.path in why:
            found.keep("doors", why[f.path], f.rows)
    found.doom("doors", "doors", folder, [f for f in old if f.path not in why])


def _identities(outputs: Sequence[SpeedOutput], found: Found, of: str, columns: str, where: str) -> str | None:
    """A SELECT of source and position of what stays of all outputs of this kind; None where nothing does."""
    gone = {d.path for d in found.doomed}
    stay = [path for output in outputs if output.of == of for path in _live_files(output.folder) if path not in gone]
    position = "position" if of == LETTERS else POSITION
    return f"{_select(stay, columns)} WHERE {where}{position} IS NOT NULL" if stay else None


def _live_files(folder: str) -> list[str]:
    """Files of all partitions that can be read and that no other replaces."""
    found = [file.path for at in all_folders(folder) for file in again(lambda at=at: unreplaced(at, replaces))]  # type: ignore[misc]
    return [path for path in found if alike(path) is not None]


def _old(
    connection: duckdb.DuckDBPyConnection, found: Found, output: str, folder: str, before: int, *, arrival: str, time: str | None
) -> list[Old]:
    """The live files below a folder of which every row has arrived, and before `before`."""
    files = _live_files(folder)
    old: list[Old] = []
    for start in range(0, len(files), _FILES):
        part = files[start : start + _FILES]
        try:
            old += _measured(connection, part, arrival, time, before)
        except duckdb.Error:  # one is damaged inside: each for itself
            for path in part:
                try:
                    old += _measured(connection, [path], arrival, time, before)
                except duckdb.Error:
                    found.keep(output, BROKEN, 0)
    return old


def _measured(connection: duckdb.DuckDBPyConnection, files: Sequence[str], arrival: str, time: str | None, before: int) -> Iterator[Old]:
    read = _select(files, "*", name=True)
    known = {row[0] for row in connection.execute(f"DESCRIBE {read}").fetchall()}
    if arrival not in known:
        return iter(())

    def micros(column: str | None) -> str:
        return f"epoch_us({quote(column)})" if column in known and column is not None else "NULL::BIGINT"

    at, event, stored = micros(arrival), micros(time), micros(STORED_AT)
    sql = (
        f"SELECT filename, count(*), max({at}), min({event}), max({event}), count(*) - count({event}), max({stored}), "
        f"count(*) FILTER ({stored} IS NULL) FROM ({read}) GROUP BY filename HAVING max({at}) < {before} AND count({at}) = count(*)"
    )
    return (
        Old(p, n, until, first, last, bare, None if odd else s)
        for p, n, until, first, last, bare, s, odd in connection.execute(sql).fetchall()
    )


def _select(files: Collection[str], columns: str, *, name: bool = False) -> str:
    listed = ", ".join(literal(local(path)) for path in files)
    return f"SELECT {columns} FROM read_parquet([{listed}], union_by_name = true, hive_partitioning = false{', filename = true' * name})"


def _tied(connection: duckdb.DuckDBPyConnection, files: Sequence[str], source: str, position: str, others: Sequence[str]) -> set[str]:
    """Those of `files` that hold a row which is one of the `others` too."""
    if not files or not others:
        return set()
    mine = f"SELECT filename, {source} AS source, {position} AS position FROM ({_select(files, '*', name=True)})"
    sql = f"SELECT DISTINCT filename FROM ({mine}) SEMI JOIN ({' UNION ALL '.join(others)}) USING (source, position)"
    return {path for (path,) in connection.execute(sql).fetchall()}
