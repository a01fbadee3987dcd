"""Every output of a pipeline as a table of its name in DuckDB, exactly as committed, and `runs`.

rows, each aggregate, dead_letters     the live files of the newest commit, whatever else lies in the folders
runs                                   one row per run that ended
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa

from beam_pipelines.arrow.engine import quote
from beam_pipelines.errors import RunError, SpecError, nearest
from beam_pipelines.sinks.manifest import snapshots
from beam_pipelines.sinks.results import RunResults, list_runs
from beam_pipelines.sinks.views import select_sql

RUNS = "runs"
_RUN_COLUMNS = pa.schema(
    [("run_id", pa.string()), ("status", pa.string()), ("mode", pa.string()), ("engine", pa.string()), ("started_at", pa.timestamp("us", "UTC")),
     ("elapsed_s", pa.float64()), ("read", pa.int64()), ("dead", pa.int64()), ("duplicate", pa.int64()), ("filtered", pa.int64()),
     ("written", pa.int64()), ("contract", pa.string()), ("pipeline_version", pa.string()), ("failures", pa.list_(pa.string()))]
)  # fmt: skip


def open_tables(state: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with a view for every committed output and for `runs`."""
    connection = duckdb.connect(":memory:")
    connection.execute("SET TimeZone = 'UTC'")
    found = snapshots(state)
    for name, snapshot in found.items():
        connection.execute(f"CREATE VIEW {quote(name)} AS {select_sql(snapshot)}")
    if RUNS not in found:
        connection.register(RUNS, runs_table(list_runs(state)))
    return connection


def ask(connection: duckdb.DuckDBPyConnection, sql: str, *, expected: Iterable[str] = ()) -> pa.Table:
    """The answer to `sql`, one statement that reads.

    Raises SpecError for what is wrong in it (with the nearest table), RunError where files cannot be read.
    """
    try:
        _check_reads(connection.extract_statements(sql))
        return connection.sql(sql).to_arrow_table()
    except duckdb.CatalogException as error:
        raise _unknown_table(connection, error, expected) from None
    except (duckdb.IOException, duckdb.HTTPException) as error:
        raise RunError(
            f"query: {_first_line(error)}", hint="A file of the newest commit is gone or broken; a new run writes it again."
        ) from error
    except duckdb.Error as error:
        raise SpecError(f"query: {_explained(error)}") from None


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
        "elapsed_s": about.elapsed_s, "read": sum(line.read for line in run.ledger), "dead": sum(run.dead_letters.values()),
        "duplicate": sum(line.duplicate for line in run.ledger), "filtered": sum(line.filtered for line in run.ledger),
        "written": sum(o.rows for o in run.outputs if o.name == "rows"), "contract": about.contract, "pipeline_version": about.pipeline_version,
        "failures": list(run.failures),
    }  # fmt: skip


def _unknown_table(connection: duckdb.DuckDBPyConnection, error: Exception, expected: Iterable[str]) -> SpecError:
    """What to say about a name that is no table (or no function)."""
    found = re.search(r"Table with name (.+?) does not exist", str(error))
    if found is None:
        return SpecError(f"query: {_explained(error)}")
    name = found[1].strip('"')
    views = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    names = [str(row[0]) for row in views]
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
