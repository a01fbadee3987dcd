"""The local BigQuery server as a process of this test run: its own Python, free loopback ports, private folders, ended by its own pid.

    def test_something(bigquery): ...          # one server per test run
    def test_a_fault(own_bigquery): ...        # one for a test that kills it

    dataset = bigquery.dataset()                                    # "test-project.d1", which nobody has yet
    bigquery.client().load_table_from_file(file, f"{dataset}.rows").result()
    bigquery.rows(f"SELECT count(*) AS n FROM `{dataset}.rows`")    # [{"n": 3}]
    bigquery.kill(); bigquery.start()                               # kill -9; the same ports and the same tables

`bigquery.environment` points the product and google-cloud-bigquery, in this process or another, at the server. What the server
keeps in memory is lost by `kill` as by `stop`: read sessions, write streams that were not committed, rows of `_default` are not.
"""

from __future__ import annotations

import io
import itertools
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HOST = "127.0.0.1"
VERSION = "0.4.0"
HERE = Path(__file__).resolve().parent
HOW_TO_GET_IT = "bash tests/cloud/install_bigquery.sh"
START_S = 60.0


def installed() -> Path:
    """Where the server is installed. Without one the test is skipped, with the command that installs it; in CI it fails."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "beam_pipelines" / "bigquery" / VERSION
    if not (kept / "requirements.txt").is_file():
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"the local BigQuery server is not installed. Enable the test: {HOW_TO_GET_IT}")
    return kept


@dataclass(eq=False)
class BigQueryServer:
    """A server that can be started, stopped and killed; its ports and tables stay the same."""

    folder: Path
    port: int
    grpc_port: int
    project: str = "test-project"
    storage: str | None = None  # "http://127.0.0.1:PORT" of a Cloud Storage server, for jobs that name gs:// files
    _process: subprocess.Popen[bytes] | None = None
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _client: Any = None

    @property
    def rest(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def grpc(self) -> str:
        return f"{HOST}:{self.grpc_port}"

    @property
    def environment(self) -> dict[str, str]:
        addresses = {"BIGQUERY_EMULATOR_HOST": self.rest, "BIGQUERY_STORAGE_EMULATOR_HOST": self.grpc}
        return {**addresses, "STORAGE_EMULATOR_HOST": self.storage} if self.storage else addresses

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def client(self) -> Any:
        """A google.cloud.bigquery.Client of this server."""
        if self._client is None:
            from google.auth.credentials import AnonymousCredentials
            from google.cloud import bigquery

            self._client = bigquery.Client(
                project=self.project, credentials=AnonymousCredentials(), client_options={"api_endpoint": self.rest}
            )
        return self._client

    def dataset(self, name: str = "d") -> str:
        """`project.name_N_xxxxxx`, a new dataset with a name nobody has yet."""
        made = f"{self.project}.{name}_{next(self._numbers)}_{uuid.uuid4().hex[:6]}"
        self.client().create_dataset(made)
        return made

    def rows(self, sql: str) -> list[dict[str, Any]]:
        return [dict(row.items()) for row in self.client().query(sql).result(timeout=60)]

    def load(
        self, table: str, rows: Any, fields: Sequence[Any] | None = None, *, write: str = "WRITE_APPEND", job_id: str | None = None
    ) -> Any:
        """Loads a pyarrow.Table as Parquet, and gives the finished job. The table is made if it is missing, by `fields` (SchemaField) or the Arrow types."""
        import pyarrow.parquet as pq
        from google.cloud import bigquery

        file = io.BytesIO()
        pq.write_table(rows, file)
        file.seek(0)
        config = bigquery.LoadJobConfig(source_format="PARQUET", write_disposition=write, schema=fields)
        config.parquet_options = bigquery.ParquetOptions()  # type: ignore[no-untyped-call]
        config.parquet_options.enable_list_inference = True
        return self.client().load_table_from_file(file, table, job_id=job_id, job_config=config).result(timeout=120)

    def start(self) -> None:
        """Starts it and waits until both ports answer; fails with the end of its log where they do not."""
        assert self._process is None, "the server runs already"
        environment = {**os.environ, "HOME": str(self.folder / "home")}
        for name in ("BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST", "STORAGE_EMULATOR_HOST", "PYTHONPATH"):
            environment.pop(name, None)  # it is the server; and it has another Python than we
        if self.storage:
            environment["STORAGE_EMULATOR_HOST"] = self.storage
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command(), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not (_listens(self.port) and _listens(self.grpc_port)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServerDidNotStart(f"the local BigQuery server did not start:\n{self.log.read_text('utf-8', 'replace')[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends it in good order, if it runs."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it as a crash would (kill -9), if it runs."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _command(self) -> list[str]:
        python = installed() / "venv" / "bin" / "python"
        ports = ["--host", HOST, "--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        return [str(python), str(HERE / "bigquery_launcher.py"), *ports, "--project", self.project,
                "--data-dir", str(self.folder / "tables")]  # fmt: skip

    def _end(self, by: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(by)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


class ServerDidNotStart(Exception):
    """Often another process took one of its ports; the message ends with its log."""


@contextmanager
def running_bigquery(folder: Path, *, storage: str | None = None) -> Iterator[BigQueryServer]:
    """A server with an empty catalogue, which is ended when the block is left. `storage`: the address of a Cloud Storage server."""
    home = folder / "home"
    home.mkdir(parents=True)
    (home / ".duckdb").symlink_to(installed() / "home" / ".duckdb")  # the extensions, which the server only reads
    for last in (False, False, True):
        server = BigQueryServer(folder, *_free_ports(), storage=storage)
        try:
            server.start()
            break
        except ServerDidNotStart as error:  # another process may take a port between our look and its start
            if last:
                pytest.fail(str(error))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def bigquery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BigQueryServer]:
    """A BigQuery server, shared by all tests of this process; a test that kills it takes `own_bigquery`."""
    with running_bigquery(tmp_path_factory.mktemp("bigquery")) as server:
        yield server


@pytest.fixture
def own_bigquery(tmp_path: Path) -> Iterator[BigQueryServer]:
    """A BigQuery server for one test that stops or kills it."""
    with running_bigquery(tmp_path / "bigquery") as server:
        yield server


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind((HOST, 0))
        other.bind((HOST, 0))
        return one.getsockname()[1], other.getsockname()[1]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0
