"""Which letters that a replay took up are resolved by now: asked of what runs have committed, not of who sent them. Loads no Beam.

    taken up ─▶ a run over its time succeeded since, over the same input ─┬▶ that run has no such letter    replayed, by that run
                                                                         └▶ it refused the record again     open: the new letter
                └─ no such run: open

So a replay that is killed between a commit and its own account of it loses nothing: the next look finds out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa

from beam_pipelines.arrow.engine import literal
from beam_pipelines.places.sql import reading
from beam_pipelines.sinks.manifest import Snapshot, snapshots
from beam_pipelines.sinks.resolutions import about_sql, resolve, unresolved_sql
from beam_pipelines.sinks.results import RunResults, list_runs
from beam_pipelines.sinks.speed_views import AT_AGGREGATE
from beam_pipelines.sinks.views import select_sql
from beam_pipelines.spec.sinks import LETTERS

Record = tuple[str, int, str]
"""Source, position, and the aggregate that a letter is about ("": the row itself)."""


def resolve_replayed(state: str, places: Mapping[str, str] | None = None) -> None:
    """Resolves what can be. Raises SinkError where the state folder refuses."""
    sql = unresolved_sql(state)
    if sql is None:
        return
    with _connected(sql) as connection:
        taken = connection.sql(f"SELECT *, {about_sql()} AS about FROM ({sql})").to_arrow_table()
    for (replay, run_id), rows in _computed(taken, state).items():
        refused = refused_by(state, run_id, places)
        through = [row for row in rows if _record(taken, row) not in refused]
        if through:
            resolve(state, f"{replay}.{run_id}", taken.take(pa.array(through)), how="replayed", resolved_by=run_id)


def refused_by(state: str, run_id: str, places: Mapping[str, str] | None = None) -> set[Record]:
    """The records that a batch run refused, as far as its letters are still the newest."""
    found: set[Record] = set()
    for snapshot in snapshots(state, places).values():
        if snapshot.of == LETTERS and snapshot.files:
            with _connected(snapshot.folder) as connection:
                of = f"CASE WHEN stage = '{AT_AGGREGATE}' THEN {about_sql(nested=_nested(snapshot))} ELSE '' END"
                letters = f"SELECT DISTINCT source, position, {of} FROM ({select_sql(snapshot)}) WHERE run_id = {literal(run_id)}"
                found |= {(source, position, about) for source, position, about in connection.execute(letters).fetchall()}
    return found


def _nested(snapshot: Snapshot) -> bool:
    """Whether failures can be looked into: not in a CSV."""
    return snapshot.format != "csv"


def _computed(taken: pa.Table, state: str) -> dict[tuple[str, str], list[int]]:
    """Rows of `taken` by replay and the newest run that has computed their time since."""
    runs = [_Run(r) for r in list_runs(state) if r.status == "success" and r.metadata.mode == "batch"] if taken.num_rows else []
    known: dict[tuple[Any, ...], str | None] = {}
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    columns = [taken.column(name).to_pylist() for name in ("replay", "input", "lies_at", "taken_at")]
    for row, (replay, source, lies_at, taken_at) in enumerate(zip(*columns, strict=True)):
        asked = (source, lies_at, taken_at)
        if asked not in known:
            known[asked] = next((run.run_id for run in runs if run.has(*asked)), None)
        run_id = known[asked]
        if run_id is not None:
            found[replay, run_id].append(row)
    return found


class _Run:
    """A batch run: over what, from what, since when."""

    def __init__(self, results: RunResults) -> None:
        about = results.metadata
        self.run_id, self.input = about.run_id, about.input
        self.started_at = datetime.fromisoformat(about.started_at)
        self.range = None if about.range is None else [datetime.fromisoformat(at) for at in about.range]

    def has(self, source: str, lies_at: datetime | None, taken_at: datetime) -> bool:
        if self.input != source or self.started_at < taken_at:
            return False
        return self.range is None or (lies_at is not None and self.range[0] <= lies_at < self.range[1])


def _record(taken: pa.Table, row: int) -> Record:
    source, position, stage, about = (taken.column(name)[row].as_py() for name in ("source", "position", "stage", "about"))
    return source, position, about if stage == AT_AGGREGATE else ""


def still_open(state: str, replay: str) -> int:
    """How many letters that this replay took up are open."""
    sql = unresolved_sql(state)
    if sql is None:
        return 0
    with _connected(sql) as connection:
        return int(connection.execute(f"SELECT count(*) FROM ({sql}) WHERE replay = {literal(replay)}").fetchall()[0][0])


def _connected(sql: str) -> duckdb.DuckDBPyConnection:
    connection = reading(duckdb.connect(":memory:"), sql)
    connection.execute("SET TimeZone = 'UTC'")
    return connection
