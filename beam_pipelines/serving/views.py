"""The serving view: per output one table, batch rows where the batch is the authority and what the stream has stored elsewhere.

    ──────●━━━━━━ committed [start, end) ━━━━━━●────────▶ event time, or start of the window
     speed │            batch                   │ speed

A batch is the authority for the partitions it wrote, or, run over a range, for all of the range (`manifest.Committed`). An output that is not
partitioned by its event time has no such ranges: there the batch answers alone, once it has committed anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import duckdb

from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.partition import NULL_DIRECTORY
from beam_pipelines.arrow.ranges import partition_range, partition_value, show_instant, union
from beam_pipelines.arrow.schema import POSITION, SOURCE, STORED_AT
from beam_pipelines.places import is_local
from beam_pipelines.places.sql import reading
from beam_pipelines.sinks.manifest import Snapshot, snapshots
from beam_pipelines.sinks.outputs import SpeedOutput, read_columns, read_outputs
from beam_pipelines.sinks.resolutions import open_sql
from beam_pipelines.sinks.run import TOMBSTONES, Clock
from beam_pipelines.sinks.settling import plain_files
from beam_pipelines.sinks.speed_views import PlainFiles, folders_in_use, same_columns, scan, speed_sql
from beam_pipelines.sinks.views import NO_ROWS, select_sql, superseded_sql
from beam_pipelines.spec.sinks import LETTERS, ROWS

BATCH, SPEED = "_batch", "_speed"
"""Endings of the names of one layer's table."""
_INSTANT = "TIMESTAMP WITH TIME ZONE"
_MOST_GAPS = 6  # each lists the files of the speed layer


def views(state: str, places: Mapping[str, str] | None = None, *, kept: bool = False, at_once: bool = False) -> dict[str, str]:
    """Name and SELECT of every table: each output, and its layers with `_batch` and `_speed` behind its name. For DuckDB.

    `places` says by name at which path an output is looked for (`places_of` a spec); the others are where the newest run wrote them.
    `kept`: they are to be good until the next commit, also while a stream goes on, stops and starts again. `at_once`: for a minute only, and of what is
    stored now; then partitions that are settled are read as plain files.
    """
    batch, stream = snapshots(state, places), read_outputs(state)
    speed = {} if stream is None else {output.name: output for output in stream.outputs}
    found: dict[str, str] = {}
    for name in dict.fromkeys((*batch, *speed)):
        snapshot, output = batch.get(name), speed.get(name)
        if snapshot is not None:
            found[name] = found[name + BATCH] = _without_buried(select_sql(snapshot), snapshot, batch)
        if output is not None:
            alike = _alike(output)
            known = at_once and alike and output.of == ROWS and output.placed and is_local(output.folder)  # elsewhere to look takes longer
            how = _How(alike, kept, plain_files(state, output) if known else None)
            found[name + SPEED] = _speed(state, output, how)
            merged = _merged(state, snapshot, output, batch, how)
            found[name] = _without_buried(merged, snapshot, batch) if snapshot is not None and output.provenance else merged
        if LETTERS in (snapshot and snapshot.of, output and output.of) and found[name] != NO_ROWS:
            found[name] = open_sql(state, found[name], nested=snapshot is None or snapshot.format != "csv")
    return found


def _without_buried(sql: str, snapshot: Snapshot, batch: Mapping[str, Snapshot]) -> str:
    """Without rows that a run over another range has found to be duplicates, unless a later run has computed their partition anew."""
    buried = batch.get(TOMBSTONES)
    if buried is None or not buried.files or snapshot.of != ROWS or SOURCE not in dict(snapshot.schema):
        return sql
    newer = " OR ".join(
        f"epoch_us(event_time) >= {r.start} AND epoch_us(event_time) < {r.end} AND as_of <= {r.as_of}" for r in snapshot.ranges
    )
    standing = (
        ", ".join(sorted({literal(r.run_id) for r in snapshot.ranges})) or "''"
    )  # whose range was computed anew has said its last word
    gone = (
        f"SELECT source AS {SOURCE}, position AS {POSITION} FROM ({select_sql(buried)})"
        f" WHERE run_id IN ({standing}) AND NOT coalesce({newer or 'FALSE'}, FALSE)"
    )
    return f"SELECT * FROM ({sql}) ANTI JOIN ({gone}) USING ({SOURCE}, {POSITION})"


def _alike(output: SpeedOutput) -> bool:
    """Whether all files have the same columns: one look at all now, for none at those that a query does not need later."""
    if len(output.placings) > 1 or scan(output.folder) is None:
        return False
    try:
        return bool(reading(duckdb.connect(), output.folder).execute(same_columns(output.folder)).fetchall()[0][0] == 1)
    except duckdb.Error:  # a file is broken, or was merged and deleted meanwhile
        return False


class _How(NamedTuple):
    """How the speed layer of an output is read: the arguments of `speed_sql`."""

    alike: bool
    kept: bool
    plain: PlainFiles | None


class Gap(NamedTuple):
    """A condition on rows of the speed layer, and the `spans` of the clock between which these lie; None: anywhere."""

    where: str
    spans: tuple[tuple[int | None, int | None], ...] | None = None

    def may_hold(self, partition: tuple[int, int] | None) -> bool:
        """Whether rows of a partition may be meant: of these times, or of none that is known."""
        if self.spans is None or partition is None:
            return True
        start, end = partition
        return any((first is None or end > first) and (last is None or start < last) for first, last in self.spans)


def _speed(state: str, output: SpeedOutput, how: _How, gaps: Sequence[Gap] = (), clock: Clock | None = None) -> str:
    where, found = [gap.where for gap in gaps], how.plain
    if found is None or not found.settled:
        return speed_sql(state, output, where=where, alike=how.alike, kept=how.kept)
    plain = [_within(found, output, clock, gap) for gap in gaps] if clock is not None and gaps else [found]
    return speed_sql(state, output, where=where, alike=True, kept=how.kept, plain=plain)


def _within(plain: PlainFiles, output: SpeedOutput, clock: Clock, gap: Gap) -> PlainFiles:
    """The files that may have rows of a gap."""
    place = output.folder.rstrip("/") + "/"

    def meant(path: str) -> bool:
        return gap.may_hold(partition_range(path.removeprefix(place).rpartition("/")[0], clock.partition, clock.unit))

    return PlainFiles(*(tuple(filter(meant, paths)) for paths in plain))


def _merged(state: str, snapshot: Snapshot | None, output: SpeedOutput, batch: Mapping[str, Snapshot], how: _How) -> str:
    if snapshot is None:
        return _speed(state, output, how)
    if output.of == LETTERS:
        return _union([select_sql(snapshot), speed_sql(state, output, where=[f"({_superseded_in_stream(snapshot, batch)}) IS NOT TRUE"])])
    if snapshot.clock is None:
        return select_sql(snapshot)
    return _union([select_sql(snapshot), _speed(state, output, how, unanswered(snapshot, output, kept=how.kept), snapshot.clock)])


def _union(layers: list[str]) -> str:
    known = [layer for layer in layers if layer != NO_ROWS]  # a layer without a file has no columns
    return " UNION ALL BY NAME ".join(known) or NO_ROWS


def _superseded_in_stream(letters: Snapshot, batch: Mapping[str, Snapshot]) -> str:
    """A condition on a dead letter of the stream: a batch run has read its record since, or is the authority where it would be.

    A letter of an aggregate would be in that aggregate's panes, any other in the rows. A batch that read files knows the row by another identity.
    """
    stored = f"epoch_us({STORED_AT})"
    conditions = [superseded_sql(letters, "", f"{stored} < as_of")]
    for output in batch.values():
        if output.clock is None or not output.ranges:
            continue
        concerned = (
            "stage <> 'aggregate'"
            if output.of == ROWS
            else f"stage = 'aggregate' AND split_part(failures[1].name, '.', 1) = {literal(output.of)}"
        )
        if output.of != LETTERS:
            times = " OR ".join(
                f"epoch_us(event_time) >= {r.start} AND epoch_us(event_time) < {r.end} AND {stored} < {r.as_of}" for r in output.ranges
            )
            conditions.append(f"{concerned} AND ({times})")
    return " OR ".join(f"({c})" for c in conditions)


def unanswered(snapshot: Snapshot, output: SpeedOutput, *, kept: bool = False) -> list[Gap]:
    """Conditions that together are true of the rows of the speed layer for whose time the batch has no answer, each row by one.

    One for each gap between committed ranges, in words that a planner can hold against a reader's own condition: of a query over a committed day no file of the
    speed layer is looked at. Over a partition column where there is one: then whole files are passed over. Rows without a time have a condition of their own,
    which costs a query some milliseconds; without `kept` only where there are any now.
    """
    clock = snapshot.clock
    assert clock is not None
    committed = union((known.start, known.end) for known in snapshot.ranges)
    kind, columns = read_columns(output.folder).get(clock.partition), dict(snapshot.schema)
    instants = kind is not None and columns.get(clock.column) == _INSTANT and len(output.placings) <= 1
    column = quote(clock.partition) if kind is not None else f"epoch_us({quote(clock.column)})"

    def between(start: int | None, end: int | None) -> Gap:
        found = []
        for sign, at in ((">=", start), ("<", end)):
            if at is not None:
                found.append(f"{column} {sign} {_bound(at, kind, clock.unit)}")
                found += [f"{quote(clock.column)} {sign} TIMESTAMPTZ {literal(show_instant(at))}"] if instants else []
        return Gap(" AND ".join(found), None if kind is None else ((start, end),))

    answered = any(partition_range(file.partition, clock.partition, clock.unit) is None for file in snapshot.files)
    if not committed:
        return [Gap(f"{column} IS NOT NULL")] if answered else []
    starts, ends = [None, *(r.end for r in committed)], [*(r.start for r in committed), None]
    bare = [] if answered or not (kept or _any_undated(output, clock)) else [Gap(f"{column} IS NULL", ())]
    if len(committed) + 1 > _MOST_GAPS:
        instants = False  # in one condition of many they rule out nothing
        every = [*map(between, starts, ends), *bare]
        return [Gap(" OR ".join(f"({gap.where})" for gap in every), None if kind is None else tuple(zip(starts, ends, strict=True)))]
    return [*map(between, starts, ends), *bare]


def _any_undated(output: SpeedOutput, clock: Clock) -> bool:
    """Whether there may be rows without a time now."""
    folders = folders_in_use(output.folder)
    by_time = clock.partition in read_columns(output.folder)
    return folders is None or not by_time or any(f"{clock.partition}={NULL_DIRECTORY}" in path.split("/") for path in folders)


def _bound(at: int, kind: str | None, unit: str) -> str:
    """The instant as a value of the partition column, or, without one, in microseconds."""
    if kind is None:
        return str(at)
    value = partition_value(at, unit)
    return {"DATE": f"DATE {literal(value)}", "VARCHAR": literal(value)}.get(kind, value)
