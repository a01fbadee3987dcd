"""Dataflow's REST service as far as handing in, listing and following jobs needs it, on a free loopback port. It runs nothing: a test says what becomes of a job."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

from tests.server_process import HOST

RUNNING, DONE, FAILED, UPDATED = "JOB_STATE_RUNNING", "JOB_STATE_DONE", "JOB_STATE_FAILED", "JOB_STATE_UPDATED"


class DataflowService:
    """The jobs that were handed in, as the service was given them; `refuse` is an HTTP status that it answers instead, `refuse_jobs` one from the next job on that is handed in; `watched` is called when someone asks how a job is."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.first_state = RUNNING
        self.refuse: int | None = None
        self.refuse_jobs: int | None = None
        self.watched: Callable[[], object] = lambda: None
        self.url = ""

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        active = next((job for job in self.jobs if job["name"] == body["name"] and job["currentState"] == RUNNING), None)
        if active is not None and not body.get("replaceJobId"):
            return active  # as the service does: the active job, with another clientRequestId
        if active is not None:
            active["currentState"] = UPDATED
        job = {**body, "id": f"2024-05-01_{len(self.jobs)}", "currentState": self.first_state}
        self.jobs.append(job)
        return job


@contextmanager
def running_service() -> Iterator[DataflowService]:
    """A service that knows no jobs, until the block is left."""
    service = DataflowService()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            service.refuse = service.refuse or service.refuse_jobs
            self._answer(service.create(body) if service.refuse is None else {})

        def do_GET(self) -> None:
            url = urlparse(self.path)
            job_id = url.path.rpartition("/jobs")[2].strip("/")
            if job_id.endswith("/messages"):
                return self._answer({})
            if job_id:
                service.watched()
                return self._answer(next(job for job in service.jobs if job["id"] == job_id))
            name = parse_qs(url.query).get("name", [None])[0]
            return self._answer({"jobs": [job for job in service.jobs if name in (None, job["name"])]})

        def _answer(self, value: dict[str, Any]) -> None:
            content = json.dumps(value).encode()
            self.send_response(service.refuse or 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer((HOST, 0), Handler)
    service.url = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
