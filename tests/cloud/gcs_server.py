"""The local Cloud Storage server as a process of this test run: on a free loopback port, in memory, ended by its own pid.

    def test_something(gcs): ...         # one server per test run
    def test_a_fault(own_gcs): ...       # one for a test that cuts it off: its clients come through a `Gate`

    bucket = gcs.bucket()                                            # "lake-1-3fa2c1", made, which nobody has yet
    gcs.client().bucket(bucket).blob("a").upload_from_string(b"1")
    with gcs.counted() as requests: ...                              # Counter of "GET object", "LIST", "UPLOAD", ...
    own_gcs.gate.away(); own_gcs.gate.back()                         # refuses connections; the objects stay

`gcs.environment` points the product and google-cloud-storage, in this process or another, at the server. The server keeps objects in
memory, so a killed one has lost them: an outage of a service that loses nothing is the gate's.
"""

from __future__ import annotations

import itertools
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.cloud.http_gate import Gate
from tests.needs import kept, missing
from tests.server_process import HOST, ServerProcess, free_ports, started

VERSION = "v1.56.1"
HOW_TO_GET_IT = "bash tests/cloud/install_gcs.sh"
_LINE = re.compile(r'msg="\S+ - - \[[^]]*\] \\"([A-Z]+) (\S+) ')


def installed() -> Path:
    """The program; `missing` where it is not."""
    program = kept("fake-gcs-server", VERSION, "fake-gcs-server")
    if not program.is_file():
        missing("the local Cloud Storage server is not installed", HOW_TO_GET_IT)
    return program


@dataclass(eq=False)
class GcsServer:
    """A server that can be started and killed; with a `gate`, clients come through that."""

    process: ServerProcess
    gate: Gate | None = None
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _client: Any = None

    @property
    def port(self) -> int:
        return self.process.ports[0]

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"http://{HOST}:{self.gate.port if self.gate else self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": self.url, "NO_GCE_CHECK": "true"}

    def client(self) -> Any:
        """A google.cloud.storage.Client of this server, not through the gate."""
        if self._client is None:
            from google.auth.credentials import AnonymousCredentials
            from google.cloud import storage

            own = {"api_endpoint": f"http://{HOST}:{self.port}"}
            self._client = storage.Client(project="test-project", credentials=AnonymousCredentials(), client_options=own)
        return self._client

    def bucket(self, name: str = "lake") -> str:
        """The name of a new bucket."""
        made = f"{name}-{next(self._numbers)}-{uuid.uuid4().hex[:6]}"
        self.client().create_bucket(made)
        return made

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """The names of all objects of a bucket."""
        return [blob.name for blob in self.client().list_blobs(bucket, prefix=prefix)]

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Filled, when the block is left, with the requests that came meanwhile, by kind."""
        found: Counter[str] = Counter()
        start = self.process.log.stat().st_size
        yield found
        with self.process.log.open("rb") as log:
            log.seek(start)
            found.update(_kind(*m.groups()) for m in _LINE.finditer(log.read().decode()))

    def start(self) -> None:
        """Starts it, as `ServerProcess.start`."""
        where = f"{HOST}:{self.port}"
        command = [str(installed()), "-scheme", "http", "-host", HOST, "-port", str(self.port), "-public-host", where,
                   "-external-url", self.url, "-backend", "memory", "-log-level", "info"]  # fmt: skip
        self.process.start(command)

    def kill(self) -> None:
        """Ends it (kill -9), if it runs; its objects are gone."""
        self.process.kill()


def _kind(method: str, target: str) -> str:
    """What a request is charged as: lists, uploads and copies are class A, the rest class B, deletions free."""
    path = target.partition("?")[0]
    if path.startswith("/upload/"):
        return "UPLOAD"
    if "/rewriteTo/" in path:
        return "REWRITE"
    if method == "GET" and "/b/" in path and path.endswith("/o"):
        return "LIST"
    if method == "GET":
        return "GET media" if "alt=media" in target or path.startswith("/download/") else "GET metadata"
    return method


@contextmanager
def running_gcs(folder: Path, *, gated: bool = False) -> Iterator[GcsServer]:
    """An empty server, which is ended when the block is left."""
    folder.mkdir(parents=True, exist_ok=True)
    installed()

    def made() -> GcsServer:
        process = ServerProcess("the local Cloud Storage server", free_ports(1), folder / "server.log")
        return GcsServer(process, Gate(process.ports[0]) if gated else None)

    server = started(made)
    try:
        yield server
    finally:
        if server.gate:
            server.gate.away()
        server.kill()


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """A Cloud Storage server, shared by all tests of this process; each takes buckets of its own."""
    with running_gcs(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture
def own_gcs(tmp_path: Path) -> Iterator[GcsServer]:
    """A Cloud Storage server behind a gate, for one test that cuts it off or loses its answers."""
    with running_gcs(tmp_path / "gcs", gated=True) as server:
        yield server
