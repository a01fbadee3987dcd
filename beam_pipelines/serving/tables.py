"""Every output of a pipeline as a table of its name in DuckDB, exactly as committed, and `runs`.

rows, each aggregate, dead_letters     the live files of the newest commit, whatever else lies in the folders
rows_speed, …                          what a stream has stored so far; also without the ending where no batch has committed anything
runs                                   one row per run that ended
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
from beam_pipelines.errors import RunError, SpecError, nearest
from beam_pipelines.sinks.manifest import snapshots
from beam_pipelines.sinks.outputs import read_outputs
from beam_pipelines.sinks.results import RunResults, list_runs
from beam_pipelines.sinks.speed_views import speed_sql
from beam_pipelines.sinks.views import select_sql

RUNS, SPEED = "runs", "_speed"
_TRIES = 5
_RUN_COLUMNS = pa.schema(
    [("run_id", pa.string()), ("status", pa.string()), ("mode", pa.string()), ("engine", pa.string()), ("started_at", pa.timestamp("us", "UTC")),
     ("elapsed_s", pa.float64()), ("read", pa.int64()), ("dead", pa.int64()), ("duplicate", pa.int64()), ("filtered", pa.int64()),
     ("written", pa.int64()), ("contract", pa.string()), ("pipeline_version", pa.string()), ("failures", pa.list_(pa.string()))]
)  # fmt: skip


def open_tables(state: str, places: Mapping[str, str] | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with a view for every committed output and for `runs`.

    `places` says by name at which path an output is looked for (`places_of` a spec); the others are where the newest run wrote them.
    """
    connection = duckdb.connect(":memory:")
    connection.execute("SET TimeZone = 'UTC'")
    found = snapshots(state, places)
    for name, snapshot in found.items():
        connection.execute(f"CREATE VIEW {quote(name)} AS {select_sql(snapshot)}")
    stream = read_outputs(state)
    for output in stream.outputs if stream else ():
        sql = speed_sql(state, output)
        for name in (output.name + SPEED, *(() if output.name in found else (output.name,))):
            _again(partial(connection.execute, f"CREATE VIEW {quote(name)} AS {sql}"))
    if RUNS not in found:
        connection.register(RUNS, runs_table(list_runs(state)))
    return connection


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
        return _again(lambda: connection.sql(sql).to_arrow_table())
    except duckdb.CatalogException as error:
        raise _unknown_table(connection, error, expected, elsewhere or {}) from None
    except (duckdb.IOException, duckdb.HTTPException) as error:
        raise RunError(
            f"query: {_first_line(error)}", hint="A file of the newest commit is gone or broken; a new run writes it again."
        ) from error
    except duckdb.Error as error:
        raise SpecError(f"query: {_explained(error)}") from None


def _again(read: Callable[[], Any]) -> Any:
    """What `read` gives, again where a file vanished: a stream's compaction deletes what it merged a minute ago, and readers list files when they begin."""
    for _ in range(_TRIES - 1):
        try:
            return read()
        except duckdb.IOException:
            continue
    return read()


def _check_reads(statements: Sequence[Any]) -> None:
    kinds = [str(s.type).rpartition(".")[2] for s in statements]
    if len(kinds) != 1:
        raise SpecError(f"query: got {len(kinds)} statements; expected one SELECT.")
    if kinds[0] not in ("SELECT", "EXPLAIN", "CALL", "RELATION", "PRAGMA"):
        raise SpecError(f"query: got {kinds[0].replace('_', ' ')}; expected a SELECT.", hint="A query reads: only runs write outputs.")


def runs_table(runs: list[RunResults]) -> pa.Table:
    """One row per run, the newest first."""
    return pa.Table.from_pylist([_row(run) for run in runs], schema=_RUN_COLUMNS)


def _row(run: RunResults) -> dict[str, object]:
    about = run.metadata
    return {
        "run_id": about.run_id, "status": run.status, "mode": about.mode, "engine": about.engine, "started_at": datetime.fromisoformat(about.started_at),
        "elapsed_s": about.elapsed_s, "read": sum(line.read for line in run.ledger), "dead": sum(line.dead for line in run.ledger),
        "duplicate": sum(line.duplicate for line in run.ledger), "filtered": sum(line.filtered for line in run.ledger),
        "written": sum(o.rows for o in run.outputs if o.name == "rows"), "contract": about.contract, "pipeline_version": about.pipeline_version,
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
    return SpecError(f"query: there is no table '{name}';", hint=nearest(name, {*names, *expected}))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _explained(error: Exception) -> str:
    """DuckDB's message with the names it proposes and its picture of the place (`LINE 1: ...` and a caret)."""
    lines = [line.rstrip() for line in str(error).strip().splitlines()]
    picture = next((i for i, line in enumerate(lines) if line.startswith("LINE ")), None)
    names = [line for line in lines[1:] if line.startswith(("Candidate", "Did you mean"))]
    return "\n  ".join([" ".join([lines[0], *names]), *(lines[picture : picture + 2] if picture is not None else ())])
