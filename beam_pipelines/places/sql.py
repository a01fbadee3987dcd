"""DuckDB over files of Cloud Storage: what a connection needs so that `read_parquet('gs://...')` works, without a DuckDB extension."""

from __future__ import annotations

import duckdb

from beam_pipelines.errors import SpecError

_SCHEME = "gs://"


def reading(connection: duckdb.DuckDBPyConnection, *texts: str) -> duckdb.DuckDBPyConnection:
    """`connection`, which reads gs:// files from now on where one of `texts`, paths or SQL, names any. Costs nothing where none does.

    Raises SpecError where fsspec, through which DuckDB calls us, is not installed.
    """
    if any(_SCHEME in text for text in texts) and "gs" not in connection.list_filesystems():
        try:
            from beam_pipelines.places.sql_files import CloudFiles
        except ImportError as error:
            raise SpecError(
                f"{_SCHEME}: reading it with SQL needs fsspec: {error}.", hint="Run: pip install 'beam-pipelines[gcp]'"
            ) from None
        connection.register_filesystem(CloudFiles())
    return connection


def gone(error: Exception) -> bool:
    """Whether the error says that a file went, or cannot be read: a query that lists files anew may succeed. What our filesystem raises comes as text."""
    raised = str(error)
    return isinstance(error, duckdb.IOException) or "\nFileNotFoundError: " in raised or "\nRefusedError: " in raised


def said(error: Exception) -> str:
    """The error in one line: DuckDB's first, or what our filesystem said."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if not lines[0].startswith("Traceback"):
        return lines[0]
    raised = next((line for line in lines[1:] if not line.startswith(" ")), lines[-1])
    return raised.partition(": ")[2] or raised
