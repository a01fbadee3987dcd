"""Every output of a pipeline as a table of its name in DuckDB, and what is known of its runs.

rows, each aggregate, dead_letters     batch and speed layer as one, see `views`
rows_batch, …                          the live files of the newest commit, whatever else lies in the folders
rows_speed, …                          what a stream has stored so far
runs                                   one row per run that ended, starts of a stream that left no record among them
ranges                                 for which times the batch is the authority, by output
stale                                  what arrived too late for the batch, by output, range and partition; see `stale`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import duckdb
import pyarrow as pa

from beam_pipelines.arrow.engine import quote
from beam_pipelines.arrow.schema import UTC_MICROS
from beam_pipelines.errors import SpecError, nearest
from beam_pipelines.places.sql import reading, said
from beam_pipelines.serving.retrying import T, retry
from beam_pipelines.serving.stale import stale_view
from beam_pipelines.serving.standing import Unrecorded, unrecorded
from beam_pipelines.serving.views import BATCH, SPEED, views
from beam_pipelines.sinks.manifest import Snapshot, snapshots
from beam_pipelines.sinks.results import RunResults, list_runs
from beam_pipelines.spec.models import PipelineSpec

RUNS, RANGES, STALE = "runs", "ranges", "stale"
_RUN_COLUMNS = pa.schema(
    [("run_id", pa.string()), ("status", pa.string()), ("mode", pa.string()), ("engine", pa.string()), ("started_at", pa.timestamp("us", "UTC")),
     ("elapsed_s", pa.float64()), ("read", pa.int64()), ("dead", pa.int64()), ("duplicate", pa.int64()), ("filtered", pa.int64()),
     ("written", pa.int64()), ("outside", pa.int64()), ("range_start", UTC_MICROS), ("range_end", UTC_MICROS), ("input", pa.string()), ("contract", pa.string()), ("pipeline_version", pa.string()), ("failures", pa.list_(pa.string()))]
)  # fmt: skip

_RANGE_COLUMNS = pa.schema(
    [("output", pa.string()), ("column", pa.string()), ("start", UTC_MICROS), ("end", UTC_MICROS), ("run_id", pa.string()),
     ("as_of", UTC_MICROS), ("input", pa.string())]
)  # fmt: skip


def open_tables(
    state: str, places: Mapping[str, str] | None = None, spec: PipelineSpec | None = None, *, at_once: bool = False
) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with a view for every committed output and for `runs`, `ranges` and `stale`.

    `places` says by name at which path an output is looked for (`places_of` a spec); the others are where the newest run wrote them.
    With the `spec`, `stale` tells of aggregates too. `at_once`: for questions within the minute, of what is stored now; what a stream alone has stored of
    partitions that are settled costs then what plain Parquet costs.
    """
    connection = duckdb.connect(":memory:")
    connection.execute("SET TimeZone = 'UTC'")
    found = _asked(partial(views, state, places, at_once=at_once))
    reading(connection, state, *found.values())
    for name, sql in found.items():
        _asked(partial(connection.execute, f"CREATE VIEW {quote(name)} AS {sql}"))
    for name, table in ((RUNS, runs_of(state)), (RANGES, ranges_table(snapshots(state, places)))):
        if name not in found:
            connection.register(name, table)
    if STALE not in found:
        late = stale_view(state, places, spec).register(connection)
        reading(connection, late)
        _asked(lambda: connection.execute(f"CREATE VIEW {STALE} AS {late}"))
    return connection


def stale_table(state: str, places: Mapping[str, str] | None = None, spec: PipelineSpec | None = None) -> pa.Table:
    """The table `stale`, in order of output and time, whatever the outputs are called."""
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        late = stale_view(state, places, spec).register(connection)
        reading(connection, late)
        return _asked(lambda: connection.sql(f"FROM ({late}) ORDER BY output, start").to_arrow_table())


def elsewhere(state: str, places: Mapping[str, str]) -> dict[str, str]:
    """Outputs that were written, but not to the places given: name and the newest other place."""
    newest, here = snapshots(state), snapshots(state, places)
    return {name: newest[name].path for name in places if name in newest and name not in here}


def ask(
    connection: duckdb.DuckDBPyConnection, sql: str, *, expected: Iterable[str] = (), elsewhere: Mapping[str, str] | None = None
) -> pa.Table:
    """The answer to `sql`, one statement that reads. `expected` are tables that a run would make, `elsewhere` places of those that lie elsewhere.

    Raises SpecError for what is wrong in it (with the nearest table), RunError where files cannot be read.
    """
    try:
        _check_reads(connection.extract_statements(sql))
        reading(connection, sql)
        return _asked(lambda: connection.sql(sql).to_arrow_table())
    except duckdb.CatalogException as error:
        raise _unknown_table(connection, error, expected, elsewhere or {}) from None
    except duckdb.Error as error:
        raise SpecError(f"query: {_explained(error)}") from None


def _asked(read: Callable[[], T]) -> T:
    return retry(read, whose="query")


def _check_reads(statements: Sequence[Any]) -> None:
    kinds = [str(s.type).rpartition(".")[2] for s in statements]
    if len(kinds) != 1:
        raise SpecError(f"query: got {len(kinds)} statements; expected one SELECT.")
    if kinds[0] not in ("SELECT", "EXPLAIN", "CALL", "RELATION", "PRAGMA"):
        raise SpecError(f"query: got {kinds[0].replace('_', ' ')}; expected a SELECT.", hint="A query reads: only runs write outputs.")


def runs_of(state: str) -> pa.Table:
    """The table `runs`."""
    runs = list_runs(state)
    return runs_table(runs, unrecorded(state, {run.metadata.run_id for run in runs}))


def runs_table(runs: Sequence[RunResults], without: Sequence[Unrecorded] = ()) -> pa.Table:
    """One row per run, those `without` a record among them, the newest first."""
    rows = [*(_row(run) for run in runs), *(_row_without_record(start) for start in without)]
    return pa.Table.from_pylist(sorted(rows, key=lambda row: (row["started_at"], row["run_id"]), reverse=True), schema=_RUN_COLUMNS)


def _row_without_record(start: Unrecorded) -> dict[str, Any]:
    elapsed_s = None if start.heard_of is None else max(0.0, (start.heard_of - start.started_at).total_seconds())
    return {
        "run_id": start.run_id, "status": start.status, "mode": "stream", "started_at": start.started_at, "elapsed_s": elapsed_s, "input": "pubsub",
        "failures": [start.why],
    }  # fmt: skip


def ranges_table(outputs: Mapping[str, Snapshot]) -> pa.Table:
    """One row per committed range of each output: [start, end) of `column`, by which run, and when that run listed its input."""
    found = [
        {"output": name, "column": snapshot.clock.column, "start": r.start, "end": r.end, "run_id": r.run_id, "as_of": r.as_of, "input": r.input}
        for name, snapshot in outputs.items()
        if snapshot.clock is not None
        for r in snapshot.ranges
    ]  # fmt: skip
    return pa.Table.from_pylist(found, schema=_RANGE_COLUMNS)


def _row(run: RunResults) -> dict[str, Any]:
    about = run.metadata
    return {
        "run_id": about.run_id, "status": run.status, "mode": about.mode, "engine": about.engine, "started_at": datetime.fromisoformat(about.started_at),
        "elapsed_s": about.elapsed_s, "read": sum(line.read for line in run.ledger), "dead": sum(line.dead for line in run.ledger),
        "duplicate": sum(line.duplicate for line in run.ledger), "filtered": sum(line.filtered for line in run.ledger),
        "written": sum(o.rows for o in run.outputs if o.name == "rows"), "outside": sum(line.outside for line in run.ledger),
        **{f"range_{end}": datetime.fromisoformat(at) for end, at in zip(("start", "end"), about.range or (), strict=False)},
        "input": about.input if about.mode == "batch" else "pubsub", "contract": about.contract, "pipeline_version": about.pipeline_version,
        "failures": list(run.failures),
    }  # fmt: skip


def _unknown_table(
    connection: duckdb.DuckDBPyConnection, error: Exception, expected: Iterable[str], elsewhere: Mapping[str, str]
) -> SpecError:
    """What to say about a name that is no table (or no function)."""
    found = re.search(r"Table with name (.+?) does not exist", str(error))
    if found is None:
        return SpecError(f"query: {_explained(error)}")
    name = found[1].strip('"')
    views = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    names = [str(row[0]) for row in views]
    if name in elsewhere and name not in names:
        return SpecError(
            f"query: nothing has been committed to '{name}' with these parameters yet; the newest run wrote it to {elsewhere[name]}.",
            hint="Give the same --set as that run, or run the pipeline with these.",
        )
    if name in set(expected) - set(names):
        return SpecError(
            f"query: nothing has been committed to '{name}' yet.", hint="Run the pipeline first; a run that fails commits nothing."
        )
    plain = {n for n in names if not n.endswith((BATCH, SPEED)) and not n.startswith("_")}
    return SpecError(f"query: there is no table '{name}';", hint=nearest(name, {*plain, *expected}))


def _explained(error: Exception) -> str:
    """DuckDB's message with the names it proposes and its picture of the place (`LINE 1: ...` and a caret)."""
    lines = [line.rstrip() for line in str(error).strip().splitlines()]
    picture = next((i for i, line in enumerate(lines) if line.startswith("LINE ")), None)
    names = [line for line in lines[1:] if line.startswith(("Candidate", "Did you mean"))]
    return "\n  ".join([" ".join([said(error), *names]), *(lines[picture : picture + 2] if picture is not None else ())])
