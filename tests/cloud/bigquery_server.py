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
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.needs import kept, missing
from tests.server_process import HOST, ServerProcess, free_ports, started

VERSION = "0.4.0"
HERE = Path(__file__).resolve().parent
HOW_TO_GET_IT = "bash tests/cloud/install_bigquery.sh"


def installed() -> Path:
    """Where the server is installed; `missing` where it is not."""
    folder = kept("bigquery", VERSION)
    if not (folder / "requirements.txt").is_file():
        missing("the local BigQuery server is not installed", HOW_TO_GET_IT)
    return folder


def client_at(endpoint: str, project: str) -> Any:
    """A google.cloud.bigquery.Client of a server without accounts."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery

    return bigquery.Client(project=project, credentials=AnonymousCredentials(), client_options={"api_endpoint": endpoint})


@dataclass(eq=False)
class BigQueryServer:
    """A server that can be started, stopped and killed; its ports and tables stay the same."""

    folder: Path
    process: ServerProcess  # its ports: REST, gRPC
    project: str = "test-project"
    storage: str | None = None  # "http://127.0.0.1:PORT" of a Cloud Storage server, for jobs that name gs:// files
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _client: Any = None

    @property
    def port(self) -> int:
        return self.process.ports[0]

    @property
    def grpc_port(self) -> int:
        return self.process.ports[1]

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

    def client(self) -> Any:
        """A google.cloud.bigquery.Client of this server."""
        if self._client is None:
            self._client = client_at(self.rest, self.project)
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
        """Starts it, as `ServerProcess.start`."""
        environment = {**os.environ, "HOME": str(self.folder / "home")}
        for name in ("BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST", "STORAGE_EMULATOR_HOST", "PYTHONPATH"):
            environment.pop(name, None)  # it is the server; and it has another Python than we
        if self.storage:
            environment["STORAGE_EMULATOR_HOST"] = self.storage
        self.process.start(self._command(), environment)

    def stop(self) -> None:
        self.process.stop()

    def kill(self) -> None:
        self.process.kill()

    def _command(self) -> list[str]:
        python = installed() / "venv" / "bin" / "python"
        ports = ["--host", HOST, "--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        return [str(python), str(HERE / "bigquery_launcher.py"), *ports, "--project", self.project,
                "--data-dir", str(self.folder / "tables")]  # fmt: skip


@contextmanager
def running_bigquery(folder: Path, *, storage: str | None = None) -> Iterator[BigQueryServer]:
    """A server with an empty catalogue, which is ended when the block is left. `storage`: the address of a Cloud Storage server."""
    home = folder / "home"
    home.mkdir(parents=True)
    (home / ".duckdb").symlink_to(installed() / "home" / ".duckdb")  # the extensions, which the server only reads

    def made() -> BigQueryServer:
        return BigQueryServer(folder, ServerProcess("the local BigQuery server", free_ports(2), folder / "server.log"), storage=storage)

    server = started(made)
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
