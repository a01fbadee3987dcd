"""The serving view for others: the same tables as plain SQL views, in a DuckDB file that any DuckDB client opens, without this package.

A view names the files of the newest commit. A later commit deletes files it has replaced, so the file is written anew after each: the newest answer, under the
same name, in one step. Files that a stream adds are found by their folders, and need no new file, except the first of a table and those of a changed spec.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import chdir, nullcontext
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.errors import RunError, SinkError
from beam_pipelines.places.sql import gone, reading, said
from beam_pipelines.serving.tables import RANGES, RUNS, ranges_table, runs_of
from beam_pipelines.serving.views import views
from beam_pipelines.sinks.manifest import snapshots

STORAGE = "v1.0.0"
"""The oldest DuckDB whose clients open the file."""
_TRIES = 5
_TEXT = r"'(?:[^']|'')*'"
_TOKENS = re.compile(rf'"(?:[^"]|"")*"|read_(?:parquet|csv|json)\((\[(?:{_TEXT}(?:, )?)*\]|{_TEXT})|{_TEXT}')
"""Names, texts, and what a scan reads (group 1): only there a text is a path."""


@dataclass(frozen=True)
class Served:
    """What a served file holds: a statement per view, the small tables, and the newest commit in it (0: none). As long as it is equal, the file is good."""

    statements: tuple[str, ...]
    runs: pa.Table
    ranges: pa.Table
    commit: int


def view_statements(state: str, places: Mapping[str, str] | None = None) -> list[str]:
    """`CREATE OR REPLACE VIEW` for each table of the pipeline. Raises RunError where nothing has been stored yet."""
    found = views(state, places, kept=True)
    if not found:
        raise RunError("serve: nothing has been stored yet.", hint="Run the pipeline first; a run that fails commits nothing.")
    return [f"CREATE OR REPLACE VIEW {quote(name)} AS {sql}" for name, sql in found.items()]


def served(state: str, places: Mapping[str, str] | None = None) -> Served:
    """What a file that is written now would hold. Raises RunError where nothing has been stored yet."""
    outputs = snapshots(state, places)
    newest = max((snapshot.version for snapshot in outputs.values()), default=0)
    return Served(tuple(view_statements(state, places)), runs_of(state), ranges_table(outputs), newest)


def write_database(
    path: str, state: str, places: Mapping[str, str] | None = None, *, relative: bool = False, known: Served | None = None
) -> Served:
    """Writes the DuckDB file `path` with a view per table and tables `runs` and `ranges`; gives what is in it. A file that holds `known` is left as it is.

    The file appears whole or not at all; clients that have the old one open keep it. `relative`: paths are relative to the file's folder, which a client then
    must have as its working directory. Raises RunError where nothing has been stored yet or files of the lake are gone, SinkError where the file cannot be written.
    """
    for tries_left in reversed(range(_TRIES)):
        found = served(state, places)
        if found == known and os.path.exists(path):
            break
        try:
            _write(os.path.abspath(path), found, relative=relative)
            break
        except _GoneError as gone:  # a commit or compaction came between: what it left is the answer now
            if not tries_left:
                raise RunError(f"serve: {gone}", hint="A file of the newest commit is gone or broken; a new run writes it again.") from gone
        except (duckdb.IOException, OSError) as error:
            raise SinkError(f"serve: {path}: cannot be written: {str(error).splitlines()[0]}", hint="Choose another path.") from error
    return found


class _GoneError(Exception):
    """A file that a view reads is not there."""


def _write(path: str, found: Served, *, relative: bool) -> None:
    made = f"{path}.{os.getpid()}.inprogress"
    try:
        Path(made).unlink(missing_ok=True)  # of a process that was killed; numbers come again
        _make(made, found, os.path.dirname(path) if relative else None)
        os.replace(made, path)
    finally:
        Path(made).unlink(missing_ok=True)
        Path(f"{made}.wal").unlink(missing_ok=True)


def _make(path: str, found: Served, folder: str | None) -> None:
    """`folder`: where relative paths begin; None for absolute ones."""
    with reading(duckdb.connect(), *found.statements) as connection:
        connection.execute(f"ATTACH {literal(path)} AS made (STORAGE_VERSION {literal(STORAGE)})")
        connection.execute("USE made")
        connection.execute("SET TimeZone = 'UTC'")
        with nullcontext() if folder is None else chdir(folder):  # a view is bound as it is made, as a client will
            for statement in found.statements:
                try:
                    connection.execute(statement if folder is None else relative_paths(statement, folder))
                except duckdb.Error as error:
                    if not gone(error):
                        raise
                    raise _GoneError(said(error)) from error
        for name, table in ((RUNS, found.runs), (RANGES, found.ranges)):
            connection.register("registered", table)
            connection.execute(f"CREATE TABLE IF NOT EXISTS {quote(name)} AS FROM registered")  # an output may be called so
            connection.unregister("registered")
        connection.execute("USE memory")
        connection.execute("DETACH made")


def relative_paths(statement: str, folder: str) -> str:
    """The statement with the absolute paths that it reads as seen from `folder`; other texts, such as sources that rows name, stay."""

    def seen(path: re.Match[str]) -> str:
        text = path[0][1:-1].replace("''", "'")
        return literal(os.path.relpath(text, folder)) if os.path.isabs(text) else path[0]

    def token(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        return match[0][: -len(match[1])] + re.sub(_TEXT, seen, match[1])

    return _TOKENS.sub(token, statement)
