"""A connection to PostgreSQL or SQLite by ADBC, and what its refusals mean. Loads no Beam.

ask     rows of the catalog                small answers as dicts
stream  rows of a table, as Arrow batches  as they come: memory holds a few batches
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pyarrow as pa

from beam_pipelines.errors import BeamPipelinesError, RunError, SourceError, SpecError, TransientError
from beam_pipelines.spec.secrets import resolve_secret
from beam_pipelines.spec.sources import DatabaseSource

_DEFAULTS = {"connect_timeout": "10", "keepalives_idle": "30", "application_name": "beam-pipelines"}
_BATCH_BYTES, _BATCH_ROWS = 8 << 20, 16_384  # of one batch as the driver gives it
_SAID = re.compile(r"(?:ERROR|FATAL|PANIC): +([^\n]*)")
_NOISE = re.compile(r"^(?:[A-Z_]+: )?(?:\[(?:libpq|SQLite)\] )?(?:Failed to (?:connect|prepare query): |PQgetCopyData\(\) failed: )?")
_NOT_UNDERSTOOD = ("invalid uri", "in uri", "percent-encoded", "invalid integer value", "invalid connection option", "invalid port")
_CODE = re.compile(r"SQLSTATE: (\w{5})")
_LOST = re.compile(
    r"FATAL:|server closed the connection|could not (?:receive|send) data|no connection to the server|SSL (?:error|SYSCALL)|connection .*(?:reset|timed out)|lost synchronization",
    re.IGNORECASE,
)


class ConnectionLost(Exception):
    """The connection broke while rows came. `said`: the server's or the driver's words."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


class Connection:
    """One connection of `source`. `at` begins the sentences of errors; no error holds the password."""

    def __init__(self, source: DatabaseSource, at: str) -> None:
        """Raises SpecError where the driver is not installed or the URL wrong, SourceError where the server refuses, TransientError where none answers."""
        self.at, self._of_file = at, source.sqlite is not None
        self._secret = resolve_secret(source.password).decode() if source.password is not None else ""
        driver = _driver(at, of_file=self._of_file)
        try:
            self._open = driver.connect(_uri(source, self._secret), autocommit=True)
        except Exception as error:  # the driver's own family, which is not known before it is loaded
            raise self._unreached(error) from None

    def ask(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a small answer. Raises as `refused` says."""
        rows: list[dict[str, Any]] = self._answer(sql).to_pylist()
        return rows

    def schema(self, sql: str) -> pa.Schema:
        """The columns that `sql` gives."""
        return self._answer(sql).schema

    def _answer(self, sql: str) -> pa.Table:
        with contextlib.closing(self._open.cursor()) as cursor:
            if not self._of_file:
                cursor.adbc_statement.set_options(**{"adbc.postgresql.use_copy": "false"})
            try:
                cursor.execute(sql)
                return cursor.fetch_arrow_table()
            except Exception as error:
                raise self.refused(error) from None

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The rows as they come. Raises ConnectionLost where the connection breaks, else as `refused` says."""
        options = {"adbc.sqlite.query.batch_rows": str(_BATCH_ROWS)}
        if not self._of_file:
            options = {"adbc.postgresql.batch_size_hint_bytes": str(_BATCH_BYTES)}
        cursor = self._open.cursor()
        ended = False
        try:
            cursor.adbc_statement.set_options(**options)
            cursor.execute(sql)
            yield from cursor.fetch_record_batch()
            ended = True
        except Exception as error:
            if not self._of_file and _is_lost(error):
                raise ConnectionLost(self._words(error)) from None
            raise self.refused(error) from None
        finally:
            if not ended:
                with contextlib.suppress(Exception):
                    cursor.adbc_cancel()  # else the driver reads to the end of the answer
            with contextlib.suppress(Exception):
                cursor.close()

    def close(self) -> None:
        """Ends it, and with it its transaction; of one that is broken, nothing is said."""
        with contextlib.suppress(Exception):
            self._open.close()

    def refused(self, error: Exception) -> BeamPipelinesError:
        """What an error of the driver means to a person."""
        said, code = self._words(error), _sqlstate(error)
        if self._of_file:
            return _of_sqlite(self.at, said)
        if code is None and _is_lost(error):
            return TransientError(f"{self.at}: the connection broke: {said}.", hint="Run again.")
        return _of_postgres(self.at, said, code or "")

    def _unreached(self, error: Exception) -> BeamPipelinesError:
        said = self._words(error)
        if self._of_file:
            return _of_sqlite(self.at, said)
        low = said.lower()
        if any(words in low for words in _NOT_UNDERSTOOD):
            return SpecError(
                f"{self.at}: the URL is not understood: {said}.", hint="Expected postgresql://USER@HOST:PORT/DATABASE?PARAMETER=VALUE."
            )
        if "password" in low or "authentication" in low or "role " in low or "pg_hba" in low:
            return SourceError(
                f"{self.at}: the server lets this user not in: {said}.",
                hint="Check the user of the URL, and its password: password: env:NAME in the spec, PGPASSWORD, or a password file.",
            )
        if "database " in low and "does not exist" in low:
            return SourceError(f"{self.at}: there is no such database: {said}.", hint="Check the URL: psql -l lists what there is.")
        if "translate host name" in low:
            return SourceError(f"{self.at}: the host is not known here: {said}.", hint="Check the host in the URL.")
        return TransientError(
            f"{self.at}: no server answers: {said}.", hint="Check host and port, that the server runs, and that it is reached from here."
        )

    def _words(self, error: Exception) -> str:
        """The server's sentence, else the driver's first line."""
        text = str(error)
        found = _SAID.search(text)
        line = found[1] if found else _NOISE.sub("", text.split("\n", 1)[0])
        for secret in filter(None, (quote(self._secret, safe=""), self._secret)):  # libpq repeats a URL that it does not understand
            line = line.replace(secret, "…")
        return line.strip().rstrip(".")


def _driver(at: str, *, of_file: bool) -> Any:
    try:
        if of_file:
            import adbc_driver_sqlite.dbapi

            return adbc_driver_sqlite.dbapi
        import adbc_driver_postgresql.dbapi  # type: ignore[import-untyped]  # it ships no types

        return adbc_driver_postgresql.dbapi
    except ImportError as fault:
        raise SpecError(
            f"{at}: databases are read by ADBC, whose driver is missing: {fault}.", hint="Run: pip install 'beam-pipelines[databases]'"
        ) from None


def _uri(source: DatabaseSource, secret: str) -> str:
    """What the driver is given."""
    if source.sqlite is not None:
        return f"file:{quote(source.sqlite)}?mode=ro"
    url = urlsplit(source.database)
    user, _, host = url.netloc.rpartition("@")
    given = dict(parse_qsl(url.query.replace("+", "%2B"), keep_blank_values=True))  # to libpq a plus is a plus
    query = urlencode({**_DEFAULTS, **given, "client_encoding": "UTF8"}, quote_via=quote)
    named = f"{user}:{quote(secret, safe='')}" if secret else user
    return f"postgresql://{f'{named}@' if named else ''}{host}{url.path}?{query}"


def _sqlstate(error: Exception) -> str | None:
    code = getattr(error, "sqlstate", None)
    found = _CODE.search(str(error))
    return str(code) if code else found[1] if found else None


def _is_lost(error: Exception) -> bool:
    code = _sqlstate(error) or ""
    return code.startswith(("08", "57P")) or (not code and _LOST.search(str(error)) is not None)


def _of_postgres(at: str, said: str, code: str) -> RunError | SpecError:
    low = said.lower()
    if code == "55P03" or "lock timeout" in low:
        return TransientError(f"{at}: somebody changes the table, or waits to: {said}.", hint="Run again when that is done.")
    if code == "57014" or "canceling statement" in low:
        if "recovery" in low:
            return TransientError(
                f"{at}: the standby cancelled the statement: {said}.", hint="Read from the primary, or raise max_standby_streaming_delay."
            )
        return SourceError(
            f"{at}: the server cancelled the statement: {said}.",
            hint="If it was statement_timeout, raise it for this user: ALTER ROLE … SET statement_timeout, or ?options=-c%20statement_timeout%3D0 in the URL.",
        )
    if code == "42501" or "permission denied" in low:
        return SourceError(
            f"{at}: no permission: {said}.", hint="Grant it: GRANT USAGE ON SCHEMA … and GRANT SELECT ON … TO the user of the URL."
        )
    if code in ("40001", "40P01", "72000", "53300") or code.startswith("57P"):
        return TransientError(
            f"{at}: the server refuses for now: {said}.", hint="Run again later; a lower max_splits needs fewer connections."
        )
    if code == "42P01":
        return SourceError(f"{at}: there is no such table: {said}.", hint="Check its name and schema.")
    if code.startswith("42") or code in ("0A000", "25006", "3F000"):
        return SpecError(
            f"{at}: PostgreSQL refuses: {said}.", hint="Check 'where', 'columns' and 'query'; only one SELECT is run, and read only."
        )
    return SourceError(f"{at}: reading failed: {said}.", hint="See the server's log for the statement.")


def _of_sqlite(at: str, said: str) -> RunError | SpecError:
    low = said.lower()
    if "failed to open" in low or "unable to open" in low:
        return SourceError(
            f"{at}: the file cannot be opened.",
            hint="Check the path, which starts at the spec's folder, and the rights; in WAL mode also those of its folder.",
        )
    if "not a database" in low or "malformed" in low:
        return SourceError(f"{at}: this is no sound SQLite database: {said}.", hint="Check the path, and the file: PRAGMA integrity_check.")
    if "locked" in low or "busy" in low:
        return TransientError(f"{at}: somebody writes to it: {said}.", hint="Run again when the writer has finished.")
    return SpecError(f"{at}: SQLite refuses: {said}.", hint="Check 'table', 'where', 'columns' and 'query'.")


_held: ContextVar[contextlib.ExitStack | None] = ContextVar("connections that a run holds", default=None)


@contextlib.contextmanager
def snapshots_held() -> Iterator[None]:
    """A run: connections that `hold` takes inside of it stay open until it ends, however it ends."""
    with contextlib.ExitStack() as connections:
        token = _held.set(connections)
        try:
            yield
        finally:
            _held.reset(token)


def can_hold() -> bool:
    """Whether there is a run around that `hold` can leave a connection to: not where a job is only handed in."""
    return _held.get() is not None


def hold(connection: Connection) -> None:
    """Leaves the connection to the run around."""
    connections = _held.get()
    assert connections is not None, "asked before: can_hold"
    connections.callback(connection.close)


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A text in SQL, as both databases read it."""
    return "'" + value.replace("'", "''") + "'"
