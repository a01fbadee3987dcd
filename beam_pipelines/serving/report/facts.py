"""What a report asks of a run's outputs: a few aggregates, each in one pass over the columns it needs. All of it is SQL in DuckDB.

batch     the files that the run committed, as far as no later run has replaced them
stream    what all starts have stored so far, as the run's ledger counts it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import duckdb
import msgspec
import pyarrow as pa

from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.schema import ARRIVAL
from beam_pipelines.errors import BeamPipelinesError
from beam_pipelines.places.sql import reading, said
from beam_pipelines.serving.dead_letters import TABLE, Inspection, inspect_letters
from beam_pipelines.serving.tables import ask
from beam_pipelines.sinks.failed_letters import kept_sql, kept_there
from beam_pipelines.sinks.manifest import Snapshot, same_place, snapshots
from beam_pipelines.sinks.outputs import SpeedOutput, read_outputs
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.sinks.speed_views import speed_sql
from beam_pipelines.sinks.views import select_sql
from beam_pipelines.spec.sinks import ROWS

T = TypeVar("T")
MOST_BARS = 200
_SECOND = 1_000_000
_HOUR, _DAY = 3_600 * _SECOND, 86_400 * _SECOND
_MONDAY = 4 * _DAY  # 1970-01-05: weeks begin there
WIDTHS = (
    _SECOND, 10 * _SECOND, 60 * _SECOND, 300 * _SECOND, 900 * _SECOND, _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, _DAY, 7 * _DAY, 28 * _DAY, 364 * _DAY,
)  # fmt: skip
"""Widths of a bar in microseconds; past the last, its multiples."""
LATENESS = tuple(_SECOND * s for s in (0, 1, 5, 15, 60, 300, 900, 1_800, 3_600, 7_200, 21_600, 43_200, 86_400, 172_800, 604_800))
"""Edges of the buckets of arrival minus event time, in microseconds: before the first the row came ahead of its time, past the last there is no end."""


class Unknown(Exception):  # no error: an answer
    """There is nothing to show; the message says why."""


@dataclass(frozen=True)
class Spread:
    """Times in microseconds since 1970: how many, from when to when. `low` and `high` leave out the last thousandth at each end (about)."""

    rows: int
    first: int = 0
    last: int = 0
    low: int = 0
    high: int = 0


@dataclass(frozen=True)
class Timeline:
    """Rows by time: `bars` counts those in [start + n * width, start + (n + 1) * width); `before` and `after` lie outside, `undated` nowhere."""

    start: int
    width: int
    bars: tuple[int, ...]
    before: int = 0
    after: int = 0
    undated: int = 0


@dataclass(frozen=True)
class Lateness:
    """Arrival minus event time: `buckets` are rows between the edges of LATENESS, the others microseconds (quantiles about)."""

    rows: int
    buckets: tuple[int, ...]
    least: int
    half: int
    most_95: int
    most_99: int
    most: int


@dataclass(frozen=True)
class Times:
    """The clocks of a run's rows. None where rows have no such clock; `there` of `rows` written are still to be read."""

    rows: int
    there: int
    event: Spread
    arrival: Spread
    by_event: Timeline | None
    by_arrival: Timeline | None
    lateness: Lateness | None


class Facts:
    """The outputs of `run` in the folder `state`. What cannot be read raises Unknown with the reason, when it is asked for."""

    def __init__(self, state: str, run: RunResults, *, event_time: str | None = None, places: Mapping[str, str] | None = None) -> None:
        self._state, self._run, self._event_time = state, run, event_time
        self._places = {**(places or {}), **{o.name: o.path for o in run.outputs}}
        kept = () if run.kept_letters is None else (run.kept_letters.folder,)
        self._connection = reading(duckdb.connect(":memory:"), state, *self._places.values(), *kept)
        self._connection.execute("SET TimeZone = 'UTC'")

    @cached_property
    def snapshots(self) -> dict[str, Snapshot]:
        """Of a batch: the outputs at the places that the run wrote to, as they are now."""
        if self._run.metadata.mode == "stream":
            return {}
        mine = {o.name: o.path for o in self._run.outputs}
        return {n: s for n, s in snapshots(self._state, self._places).items() if n not in mine or same_place(s.path, mine[n])}

    @cached_property
    def _speed(self) -> tuple[SpeedOutput, ...]:
        stream = read_outputs(self._state) if self._run.metadata.mode == "stream" else None
        return stream.outputs if stream else ()

    def letters(self, samples: int) -> Inspection:
        """The run's dead letters, grouped, as `dlq inspect` shows them."""
        sql = self._letters_sql()
        try:
            self._connection.execute(f"CREATE OR REPLACE TEMP VIEW {TABLE} AS {sql}")
        except duckdb.Error as error:
            raise Unknown(f"The dead letters cannot be read: {said(error)}") from None
        return _told("The dead letters", lambda: inspect_letters(self._connection, samples=samples))

    def _letters_sql(self) -> str:
        kept = self._run.kept_letters
        if kept is not None and kept_there(kept):
            return kept_sql(kept)
        for output in self._speed:
            if output.of == TABLE:
                return speed_sql(self._state, output)
        for snapshot in self.snapshots.values():
            if snapshot.of == TABLE and snapshot.schema:
                every = select_sql(replace(snapshot, superseded={}, settled=()))  # also what a later run read again: this run did refuse it
                return f"SELECT * FROM ({every}) WHERE run_id = {literal(self._run.metadata.run_id)}"
        raise Unknown("No dead letters are stored.")

    def times(self) -> Times:
        """The clocks of the run's rows, in two passes."""
        sql, there = self._rows_sql()
        written = next((o.rows for o in self._run.outputs if o.of == ROWS), there)
        return _told("The rows", lambda: self._times(sql, written))

    def _rows_sql(self) -> tuple[str, int]:
        """The run's rows in the first output of them, and how many the manifest says these are."""
        for output in self._speed:
            if output.of == ROWS:
                return speed_sql(self._state, msgspec.structs.replace(output, provenance=True)), 0
        if self._run.status == "failed":
            raise Unknown("The run failed: it has committed no rows.")
        for snapshot in self.snapshots.values():
            if snapshot.of == ROWS:
                mine = tuple(f for f in snapshot.files if f.run_id == self._run.metadata.run_id)
                if not mine and snapshot.files:
                    raise Unknown("Later runs have replaced all that this run wrote.")
                if not mine or not snapshot.schema:
                    raise Unknown("The run wrote no rows.")
                return select_sql(replace(snapshot, files=mine)), sum(f.rows for f in mine)
        raise Unknown("The run has no output of rows that can be read.")

    def _times(self, sql: str, written: int) -> Times:
        clocks = self._clocks(sql)
        stats = ask(self._connection, f"SELECT count(*) AS rows, {_stats('e')}, {_stats('a')}, {_stats('l')} FROM {clocks}").to_pylist()[0]
        event, arrival = _spread(stats, "e"), _spread(stats, "a")
        axes = {"e": _axis(event), "a": _axis(arrival)}
        bars = ", ".join(f"{_bar(axis, name)} AS {name}" for name, axis in axes.items())
        grouped = (
            f"SELECT grouping(e) AS no_e, grouping(a) AS no_a, e, a, l, count(*) AS n FROM (SELECT {bars}, {_BUCKET} AS l FROM {clocks})"
        )
        found = ask(self._connection, f"{grouped} GROUP BY GROUPING SETS ((e), (a), (l))").to_pylist()
        counts = {
            "e": {r["e"]: r["n"] for r in found if not r["no_e"]},
            "a": {r["a"]: r["n"] for r in found if not r["no_a"]},
            "l": {r["l"]: r["n"] for r in found if r["no_e"] and r["no_a"]},
        }
        lateness = None
        if stats["l_rows"]:
            buckets = tuple(counts["l"].get(i, 0) for i in range(len(LATENESS) + 1))
            half, most_95, most_99 = stats["l_quantiles"]
            lateness = Lateness(stats["l_rows"], buckets, stats["l_first"], half, most_95, most_99, stats["l_last"])
        by_event = _timeline(axes["e"], counts["e"]) if event.rows else None
        by_arrival = _timeline(axes["a"], counts["a"]) if arrival.rows else None
        return Times(written, stats["rows"], event, arrival, by_event, by_arrival, lateness)

    def _clocks(self, sql: str) -> str:
        """Event time e, arrival a and lateness l of every row, in microseconds, NULL where the row has none."""
        schema = ask(self._connection, f"SELECT * FROM ({sql}) LIMIT 0").schema
        event, arrival = (_micros(schema, name) for name in (self._event_time, ARRIVAL))
        return f"(SELECT *, a - e AS l FROM (SELECT {event} AS e, {arrival} AS a FROM ({sql})))"


def _micros(schema: pa.Schema, name: str | None) -> str:
    kind = schema.field(name).type if name is not None and name in schema.names else None
    if kind is None or not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        return "NULL::BIGINT"
    column = f"{quote(str(name))}::TIMESTAMP"
    return f"CASE WHEN isfinite({column}) THEN epoch_us({column}) END"


def _stats(clock: str) -> str:
    shares = "[0.5, 0.95, 0.99]" if clock == "l" else "[0.001, 0.999]"
    quantiles = f"approx_quantile({clock}, {shares}) AS {clock}_quantiles"
    return f"count({clock}) AS {clock}_rows, min({clock}) AS {clock}_first, max({clock}) AS {clock}_last, {quantiles}"


_BUCKET = f"CASE {' '.join(f'WHEN l < {edge} THEN {i}' for i, edge in enumerate(LATENESS))} WHEN l IS NOT NULL THEN {len(LATENESS)} END"


def _spread(stats: Mapping[str, Any], clock: str) -> Spread:
    if not stats[f"{clock}_rows"]:
        return Spread(0)
    low, high = stats[f"{clock}_quantiles"]
    first, last = stats[f"{clock}_first"], stats[f"{clock}_last"]
    return Spread(stats[f"{clock}_rows"], first, last, max(low, first), min(high, last))


@dataclass(frozen=True)
class _Axis:
    start: int
    width: int
    bars: int


def _axis(spread: Spread) -> _Axis:
    """At most MOST_BARS bars from the first time to the last; without its outer thousandths where these are most of the way."""
    first, last = spread.first, spread.last
    if last - first > 4 * max(spread.high - spread.low, _HOUR):
        first, last = spread.low, spread.high
    span = last - first
    width = next((w for w in WIDTHS if span // w < MOST_BARS - 1), None)
    width = width or WIDTHS[-1] * (span // (WIDTHS[-1] * (MOST_BARS - 1)) + 1)
    monday = _MONDAY if width % (7 * _DAY) == 0 else 0
    start = (first - monday) // width * width + monday
    return _Axis(start, width, (last - start) // width + 1)


def _bar(axis: _Axis, clock: str) -> str:
    end = axis.start + axis.bars * axis.width
    return (
        f"CASE WHEN {clock} < {axis.start} THEN -1 WHEN {clock} >= {end} THEN {axis.bars} ELSE ({clock} - {axis.start}) // {axis.width} END"
    )


def _timeline(axis: _Axis, counts: Mapping[int | None, int]) -> Timeline:
    bars = tuple(counts.get(i, 0) for i in range(axis.bars))
    return Timeline(axis.start, axis.width, bars, counts.get(-1, 0), counts.get(axis.bars, 0), counts.get(None, 0))


def _told(what: str, read: Callable[[], T]) -> T:
    """What `read` gives. Files that are gone or broken are Unknown."""
    try:
        return read()
    except BeamPipelinesError as error:
        raise Unknown(f"{what} cannot be read: {error.message.removeprefix('query: ')} {error.hint}".strip()) from None
