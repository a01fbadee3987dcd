"""A PostgreSQL server for tests: one per test run, on the loopback interface, as another user than root, with a database for each test.

def test_something(database): ...         # an empty database, new for each test

database.run("CREATE TABLE t(id int)")    # statements, of which the last one's rows come back
database.url                              # of its owner, who needs no password
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.needs import missing
from tests.server_process import HOST, ServerProcess, free_ports, started

INSTALL = "bash tests/install_postgres.sh"
MAJOR = 15
_SETTINGS = {
    "listen_addresses": HOST, "unix_socket_directories": "", "fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB",
    "max_wal_size": "256MB", "max_connections": "60", "timezone": "America/New_York",
}  # fmt: skip
_RIGHTS = f"host all +with_password {HOST}/32 scram-sha-256\nhost all all {HOST}/32 trust\n"


@dataclass(eq=False)
class PostgresServer:
    """A cluster of its own in `folder`."""

    programs: Path
    folder: Path
    process: ServerProcess = field(init=False)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.process = ServerProcess("PostgreSQL", free_ports(1), self.folder / "server.log")

    @property
    def port(self) -> int:
        return self.process.ports[0]

    def start(self) -> None:
        data = self.folder / "data"
        if not data.exists():
            _as_nobody(
                self.programs / "initdb",
                "-D",
                data,
                "-U",
                "app",
                "-A",
                "trust",
                "--no-sync",
                "-E",
                "UTF8",
                "--locale=C",
                folder=self.folder,
            )
            (data / "pg_hba.conf").write_text(_RIGHTS)
        flags = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
        self.process.start([*_another_user(), str(self.programs / "postgres"), "-D", str(data), f"-p{self.port}", *flags])
        while self._lets_nobody_in():
            time.sleep(0.01)

    def _lets_nobody_in(self) -> bool:
        """It listens a moment before."""
        try:
            Database(self, "postgres").run("SELECT 1 AS one")
        except Exception as error:  # the driver's own family
            if "the database system is" not in str(error):  # starting up, or not yet accepting connections
                raise
            return True
        return False

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGINT)  # who is connected is sent away
        self.process.stop()

    def url(self, database: str, user: str = "app") -> str:
        return f"postgresql://{user}@{HOST}:{self.port}/{database}"

    def database(self) -> Database:
        """A new, empty database."""
        name = f"test_{next(self._numbers)}"
        Database(self, "postgres").run(f"CREATE DATABASE {name} TEMPLATE template0")
        return Database(self, name)


@dataclass(frozen=True)
class Database:
    """One database of a server."""

    server: PostgresServer
    name: str

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def run(self, *statements: str, user: str = "app") -> list[dict[str, Any]]:
        """Runs the statements one by one; the rows of the last."""
        import adbc_driver_postgresql.dbapi as postgres  # type: ignore[import-untyped]  # it ships no types

        rows: list[dict[str, Any]] = []
        with postgres.connect(self.server.url(self.name, user), autocommit=True) as connection:
            for statement in statements:
                with connection.cursor() as cursor:
                    cursor.adbc_statement.set_options(**{"adbc.postgresql.use_copy": "false"})
                    cursor.execute(statement)
                    rows = cursor.fetch_arrow_table().to_pylist()
        return rows

    def connections(self, state: str = "idle in transaction") -> list[dict[str, Any]]:
        """The connections of the pipeline in that state."""
        return self.run(
            f"SELECT pid, query FROM pg_stat_activity WHERE datname = '{self.name}' AND state = '{state}' AND application_name = 'beam-pipelines'"
        )

    def end_readers(self) -> int:
        """Ends the connections that read a table; how many there were."""
        ended = self.run(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}' AND query LIKE 'COPY (SELECT%' AND state = 'active'"
        )
        return len(ended)


@contextlib.contextmanager
def running_postgres(folder: Path) -> Iterator[PostgresServer]:
    """A server whose files lie in `folder`, which becomes its user's."""
    programs = _programs()
    for user in _another_user()[1:2]:
        shutil.chown(folder, user.removeprefix("--reuid="), user.removeprefix("--reuid="))
    server = started(lambda: PostgresServer(programs, folder))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for the whole test run."""
    with tempfile.TemporaryDirectory(prefix="beam-pipelines-postgres-") as folder, running_postgres(Path(folder)) as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Database:
    """An empty database, new for each test."""
    return postgres.database()


def _programs() -> Path:
    if find_spec("adbc_driver_postgresql") is None:
        missing("no ADBC driver here", "pip install -e '.[databases]'")
    known = Path(f"/usr/lib/postgresql/{MAJOR}/bin")
    found = shutil.which("initdb", path=f"{known}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        missing("no PostgreSQL server here", INSTALL)
    return Path(found).resolve().parent


def _another_user() -> Sequence[str]:
    """What comes before a command, where we are root: PostgreSQL refuses to run as root."""
    return ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups") if os.getuid() == 0 else ()


def _as_nobody(*command: object, folder: Path) -> None:
    done = subprocess.run([*_another_user(), *map(str, command)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
