"""What arrived too late for the batch: rows of committed ranges that are not in the answer of the run that committed them.

    run begins: as_of          ┌── committed [start, end) ──┐
    ────────────●──────────────┼────────────────────────────┼──▶ event time
    stored before: in the answer      stored at or after: stale, until a later run computes the range anew

A row of the stream is stale for a range where the stream stored it first after the range's run had listed its input, unless the stream has told that
it is a duplicate. Of a run that read the archive more is known: a row that is in its answer is not stale, whenever it was stored; one that came so
shortly before that its message may not have been archived yet is, unless it is in the answer; and a row in its answer that the stream has told to be
a duplicate since is stale. An aggregate's range is stale where a window that starts in it holds such a row.

Rows without an event time are in no range. A stream without a sink of rows stores none, and nothing is known of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import duckdb
import pyarrow as pa

from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.schema import POSITION, RUN_ID, SOURCE, STORED_AT
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.places import local
from beam_pipelines.serving.stale_files import MADE_AT, ON_THE_WAY, finished_since, least_of, lie_in, made
from beam_pipelines.sinks.epochs import doors_folder
from beam_pipelines.sinks.manifest import Committed, Snapshot, snapshots
from beam_pipelines.sinks.outputs import SpeedOutput, read_columns, read_outputs
from beam_pipelines.sinks.run import TOMBSTONES, Clock
from beam_pipelines.sinks.speed_views import scan
from beam_pipelines.sinks.views import select_sql
from beam_pipelines.spec.horizon import reach
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sinks import ROWS

_COLUMNS = (("output", "VARCHAR"), ("start", "TIMESTAMPTZ"), ("end", "TIMESTAMPTZ"), ("run_id", "VARCHAR"), ("rows", "BIGINT"),
            ("first_stored_at", "TIMESTAMPTZ"), ("last_stored_at", "TIMESTAMPTZ"))  # fmt: skip
_EMPTY = f"SELECT {', '.join(f'NULL::{kind} AS {quote(name)}' for name, kind in _COLUMNS)} WHERE FALSE"
_ROW = f"{SOURCE}, {POSITION}"
_NOBODY = (
    f"SELECT NULL::VARCHAR AS {SOURCE}, NULL::BIGINT AS {POSITION}, NULL::VARCHAR AS {RUN_ID}, NULL::TIMESTAMPTZ AS {{time}} WHERE FALSE"
)


@dataclass(frozen=True)
class _Target:
    """An output whose ranges may be stale. A row of event time t belongs to starts of windows between `lo` and `hi`, SQL over t (for rows: t itself);
    so a range depends on rows from `before` (microseconds) its start to `after` its end."""

    output: str
    clock: Clock
    ranges: tuple[Committed, ...]
    lo: str = "t"
    hi: str = "t"
    before: int = 0
    after: int = 0


@dataclass
class StaleView:
    """The SELECT of `stale`, for DuckDB, over `tables`, which must be registered under their names."""

    sql: str = _EMPTY
    tables: dict[str, pa.Table] = field(default_factory=dict)

    def register(self, connection: duckdb.DuckDBPyConnection) -> str:
        """The SELECT, which the connection can execute from now on."""
        for name, table in self.tables.items():
            connection.register(name, table)
        return self.sql

    def table(self, kinds: Mapping[str, pa.DataType], rows: Sequence[Sequence[object]]) -> str:
        """The name of a table of these rows: as text of a query thousands of ranges would take seconds to read."""
        name = f"_stale_{len(self.tables)}"
        columns = list(zip(*rows, strict=True)) or [()] * len(kinds)
        self.tables[name] = pa.table([pa.array(c, kind) for c, kind in zip(columns, kinds.values(), strict=True)], names=list(kinds))
        return name


def stale_view(state: str, places: Mapping[str, str] | None = None, spec: PipelineSpec | None = None) -> StaleView:
    """A SELECT: per output, committed range and partition of it how many rows are stale, and when the first and the last was stored.

    Columns `output`, `start`, `end` (the partition, half-open, UTC), `run_id` (whose answer it is), `rows`, `first_stored_at`, `last_stored_at`; only where
    there are any. Ranges of aggregates are looked at where a `spec` says what their windows are. `places` as for `views`.

    Of the speed layer files in committed partitions that were finished after the range's run began are read, and where these hold a stale row, the
    identities and times of the others.
    """
    stream, batch, view = read_outputs(state), snapshots(state, places), StaleView()
    aggregates = [] if spec is None else [t for t in _aggregates(batch.values(), spec) if t.ranges]
    found = _of_buried(view, batch, aggregates)
    told = False
    for speed in (s for s in (stream.outputs if stream is not None else ()) if s.of == ROWS):
        rows = batch.get(speed.name)
        targets = [] if rows is None or rows.clock is None else [_Target(speed.name, rows.clock, _dated(rows.ranges))]
        targets += [] if told else aggregates  # rows of one output tell of all aggregates
        time = spec.contract.event_time if spec is not None else rows.clock.column if rows is not None and rows.clock is not None else None
        targets = [t for t in targets if t.ranges]
        if targets and time is not None and scan(speed.folder) is not None:
            found.append(_stale(view, state, speed, rows, targets, time))
            told = True
    if found:
        each = " UNION ALL ".join(f"({sql})" for sql in found)
        sums = 'sum("rows")::BIGINT AS "rows", min(first_stored_at) AS first_stored_at, max(last_stored_at) AS last_stored_at'
        view.sql = found[0] if len(found) == 1 else f'SELECT output, start, "end", run_id, {sums} FROM ({each}) GROUP BY ALL'
    return view


def _dated(ranges: Iterable[Committed]) -> tuple[Committed, ...]:
    """Without those of runs of which nobody wrote down when they listed their input."""
    return tuple(r for r in ranges if r.as_of)


def _aggregates(batch: Iterable[Snapshot], spec: PipelineSpec) -> Iterator[_Target]:
    for snapshot in batch:
        aggregate = spec.aggregates.get(snapshot.of)
        if aggregate is not None and aggregate.windowing is not None and snapshot.clock is not None:
            before, after = reach(spec.model_copy(update={"aggregates": {snapshot.of: aggregate}, "deduplicate": None}))
            lo, hi = _starts(aggregate.windowing, spec.time_zone, before)
            yield _Target(snapshot.output, snapshot.clock, _dated(snapshot.ranges), lo, hi, before, after)


def _starts(windowing: WindowSpec, time_zone: str, before: int) -> tuple[str, str]:
    """Between which starts the windows lie that a row of event time t can change, as SQL over t."""
    if windowing.type == "sessions":  # a row may join two, and move where long ones are cut
        return f"(t - {before})", f"(t + {before})"
    if windowing.type == "calendar":
        unit, zone = windowing.unit or "day", literal(windowing.time_zone or time_zone)
        wall = f"timezone({zone}, make_timestamptz(t))"
        if unit == "hour":  # of the clock, under one offset
            start = f"(t - (epoch_us({wall}) - epoch_us(date_trunc('hour', {wall}))))"
        else:
            start = f"epoch_us(timezone({zone}, date_trunc({literal(unit)}, {wall})))"
        return start, start
    size = windowing.size or 1
    every = windowing.period or size
    last = f"(t - ((t - {windowing.offset}) % {every} + {every}) % {every})"
    first = last if every == size else f"({last} - (({size} - (t - {last}) - 1) // {every}) * {every})"
    return first, last


def _stale(view: StaleView, state: str, speed: SpeedOutput, rows: Snapshot | None, targets: Sequence[_Target], time: str) -> str:
    """The stale rows of all `targets`, by what `speed` has stored. `rows` is the batch's table of the same rows, None if there is none."""
    anew = len(speed.placings) > 1  # a changed spec may have placed a row twice; its newest copy says where it is
    files, known, doors = scan(speed.folder, alike=not anew), _identities(rows, targets, time), scan(doors_folder(state), alike=True)
    since = {r: r.as_of - ON_THE_WAY if _by_identity(r, known) else r.as_of for t in targets for r in t.ranges}
    pieces = least_of([(r.start - t.before, r.end + t.after, since[r]) for t in targets for r in t.ranges])
    stored, at = f"epoch_us({STORED_AT})", f"epoch_us({quote(time)})"
    layout = rows.clock if rows is not None and rows.clock is not None and rows.clock.partition in read_columns(speed.folder) else None
    there = lie_in(pieces, layout, at)
    same = _ROW if anew or layout is None else f"{_ROW}, {quote(layout.partition)}"
    late = f"SELECT {same}, {at} AS t, {stored} AS stored FROM {files} WHERE {there} AND {finished_since(pieces, layout)} AND {STORED_AT} >= make_timestamptz({min(s for *_, s in pieces)})"
    parts = view.table({"from_time": pa.int64(), "to_time": pa.int64(), "since": pa.int64()}, pieces)
    newest = f"arg_max({at}, {RUN_ID})" if anew else f"any_value({at})"
    steps = {
        "arrived": f"SELECT DISTINCT {same} FROM ({late}) ASOF JOIN {parts} ON t >= from_time WHERE t < to_time AND stored >= since",
        "copies": f"SELECT {_ROW}, min({stored}) AS stored, {newest} AS t FROM (SELECT * FROM {files} WHERE {'TRUE' if anew else there}) SEMI JOIN arrived USING ({same}) GROUP BY ALL",
        "known": f"SELECT {_ROW}, any_value({RUN_ID}) AS run FROM ({known or _NOBODY.format(time='t')}) SEMI JOIN arrived USING ({_ROW}) GROUP BY ALL",
        "fresh": f"SELECT t, stored, FALSE AS told, run FROM copies LEFT JOIN known USING ({_ROW})"
        + (f" ANTI JOIN (SELECT * FROM {_duplicates(doors)} SEMI JOIN arrived USING ({_ROW})) USING ({_ROW})" if doors else ""),
    }
    changed = "FROM fresh"
    as_ofs = [r.as_of for t in targets for r in t.ranges if _by_identity(r, known)]
    if doors is not None and known is not None and as_ofs:
        lately = f"SELECT * FROM {_duplicates(doors, f'{MADE_AT} >= {made(min(as_ofs))} AND {stored} >= {min(as_ofs)}')}"
        first = f"SELECT {_ROW}, min(stored) AS stored FROM {_duplicates(doors)} SEMI JOIN ({lately}) USING ({_ROW}) GROUP BY ALL"
        steps["told"] = f"SELECT {at} AS t, stored, TRUE AS told, {RUN_ID} AS run FROM ({known}) JOIN ({first}) USING ({_ROW})"
        changed = "FROM fresh UNION ALL FROM told"
    steps["changed"] = f"SELECT * FROM ({changed}) WHERE t IS NOT NULL"
    ctes = ", ".join(f"{name} AS MATERIALIZED ({sql})" for name, sql in steps.items())
    return f"WITH {ctes} " + " UNION ALL ".join(_counted(view, t, since, known) for t in targets)


def _of_buried(view: StaleView, batch: Mapping[str, Snapshot], aggregates: Sequence[_Target]) -> list[str]:
    """What aggregates have counted that a later run, over another range, has found to be duplicates: rows that are still there, and hidden."""
    buried = batch.get(TOMBSTONES)
    rows = next((s for s in batch.values() if s.of == ROWS and s.files and {SOURCE, POSITION} <= {name for name, _ in s.schema}), None)
    if buried is None or not buried.files or rows is None or not aggregates:
        return []
    tombs = ", ".join(literal(local(path)) for path in buried.paths)
    found = f"SELECT source AS {SOURCE}, position AS {POSITION}, epoch_us(event_time) AS t, as_of AS stored FROM read_parquet([{tombs}], hive_partitioning = false)"
    gone = f"SELECT {_ROW}, t, max(stored) AS stored FROM ({found}) WHERE t IS NOT NULL GROUP BY ALL"
    changed = f"SELECT t, stored FROM ({gone}) SEMI JOIN ({select_sql(rows)}) USING ({_ROW})"
    counted = " UNION ALL ".join(_counted(view, t, {r: r.as_of for r in t.ranges}, None, "stored > as_of") for t in aggregates)
    return [f"WITH changed AS MATERIALIZED ({changed}) {counted}"]


_LATER = "CASE WHEN told THEN archive AND stored >= as_of WHEN run IS NULL THEN stored >= since ELSE stored >= as_of AND NOT (archive AND run = run_id) END"


def _counted(view: StaleView, target: _Target, since: Mapping[Committed, int], known: str | None, later: str = _LATER) -> str:
    kinds = {
        "from_time": pa.int64(),
        "to_time": pa.int64(),
        "run_id": pa.string(),
        "as_of": pa.int64(),
        "since": pa.int64(),
        "archive": pa.bool_(),
    }
    ranges = view.table(kinds, [(r.start, r.end, r.run_id, r.as_of, since[r], _by_identity(r, known)) for r in target.ranges])
    unit = target.clock.unit
    partitions = f"generate_series(date_trunc('{unit}', make_timestamp(greatest(lo, from_time))), make_timestamp(least(hi, to_time - 1)), INTERVAL 1 {unit})"
    return (
        f"SELECT {literal(target.output)} AS output, timezone('UTC', part) AS start, timezone('UTC', part + INTERVAL 1 {unit}) AS \"end\", run_id,"
        ' count(*) AS "rows", make_timestamptz(min(stored)) AS first_stored_at, make_timestamptz(max(stored)) AS last_stored_at'
        f" FROM (SELECT run_id, stored, unnest({partitions}) AS part FROM (SELECT *, {target.lo} AS lo, {target.hi} AS hi FROM changed)"
        f" JOIN {ranges} ON lo < to_time AND hi >= from_time AND {later}) GROUP BY part, run_id"
    )


def _by_identity(committed: Committed, known: str | None) -> bool:
    """Whether it is known which rows of the stream are in the answer: those that come out of files are other rows to us."""
    return committed.input == "archive" and known is not None


def _identities(rows: Snapshot | None, targets: Sequence[_Target], time: str) -> str | None:
    """A SELECT over the rows that runs over the archive have committed, with their identities; None where these are not kept."""
    kept = {name for name, _ in rows.schema} if rows is not None else set()
    if rows is None or rows.format != "parquet" or not (kept >= {SOURCE, POSITION, RUN_ID, time} or not kept):
        return None
    runs = {r.run_id for t in targets for r in t.ranges if r.input == "archive"}
    files = tuple(f for f in rows.files if f.run_id in runs)
    return select_sql(replace(rows, files=files)) if files else _NOBODY.format(time=quote(time))


def _duplicates(doors: str, where: str = "TRUE") -> str:
    return f"(SELECT source AS _source, position AS _position, epoch_us({STORED_AT}) AS stored FROM {doors} WHERE door = 'duplicate' AND {where})"
