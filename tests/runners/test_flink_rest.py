"""Flink's REST service as a client sees it: what it answers, what it refuses, and nobody there. The real one is in tests/flink."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.errors import RunError, SpecError, TransientError
from beam_pipelines.runners.flink.rest import FlinkRest, root_cause

Answers = dict[tuple[str, str], list[tuple[int, object]]]
Serve = Callable[[Answers], FlinkRest]
JOB = {"jid": "a1", "name": "flights", "state": "RUNNING", "start-time": 5, "duration": 7}


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A service that gives the answers of a path in turn, and the last of them for ever."""
    servers: list[ThreadingHTTPServer] = []

    def start(answers: Answers) -> FlinkRest:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                found = answers.get((self.command, self.path), [(404, {"errors": ["Not found"]})])
                code, body = found[0] if len(found) == 1 else found.pop(0)
                self.send_response(code)
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

            do_POST = do_PATCH = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return FlinkRest(f"127.0.0.1:{server.server_port}", timeout_s=5)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_cancel_waits_until_the_job_has_ended(serve: Serve) -> None:
    ended = {**JOB, "state": "CANCELED"}
    client = serve({("GET", "/jobs/a1"): [(200, JOB), (200, JOB), (200, ended)], ("PATCH", "/jobs/a1?mode=cancel"): [(202, {})]})
    client.cancel("a1")
    assert client.job("a1").ended


def test_a_job_that_does_not_end_is_said(serve: Serve) -> None:
    client = serve({("GET", "/jobs/a1"): [(200, JOB)], ("PATCH", "/jobs/a1?mode=cancel"): [(202, {})]})
    with pytest.raises(RunError, match="job a1 is still RUNNING after 0 s"):
        client.cancel("a1", wait_s=0.1)


STOP: Answers = {("POST", "/jobs/a1/stop"): [(202, {"request-id": "r"})], ("GET", "/jobs/a1"): [(200, {**JOB, "state": "FINISHED"})]}
GOING: tuple[int, object] = (200, {"status": {"id": "IN_PROGRESS"}, "operation": None})


def test_a_savepoint_is_waited_for(serve: Serve) -> None:
    done = {"status": {"id": "COMPLETED"}, "operation": {"location": "file:/svp/1"}}
    client = serve({**STOP, ("GET", "/jobs/a1/savepoints/r"): [GOING, (200, done)]})
    assert client.stop_with_savepoint("a1") == "file:/svp/1"


def test_a_savepoint_that_fails_says_why_and_that_the_job_goes_on(serve: Serve) -> None:
    trace = (
        "java.util.concurrent.CompletionException: x\n\tat a.B(C.java:1)\nCaused by: java.io.IOException: disk is full\n\tat d.E(F.java:2)"
    )
    failed = {"status": {"id": "COMPLETED"}, "operation": {"failure-cause": {"class": "x", "stack-trace": trace}}}
    client = serve({**STOP, ("GET", "/jobs/a1/savepoints/r"): [(200, failed)]})
    with pytest.raises(RunError, match=r"no savepoint of job a1: IOException: disk is full The job goes on"):
        client.stop_with_savepoint("a1")


def test_a_savepoint_that_does_not_come_is_not_waited_for_for_ever(serve: Serve) -> None:
    client = serve({**STOP, ("GET", "/jobs/a1/savepoints/r"): [GOING]})
    with pytest.raises(RunError, match="no savepoint of job a1 after 0 s"):
        client.stop_with_savepoint("a1", wait_s=0.1)


def test_checkpoints_are_counted_and_the_latest_is_the_newer_of_checkpoint_and_savepoint(serve: Serve) -> None:
    def one(number: int, savepoint: bool) -> dict[str, object]:
        return {"id": number, "external_path": f"file:/c/{number}", "state_size": 10, "end_to_end_duration": 3, "trigger_timestamp": 4,
                "is_savepoint": savepoint}  # fmt: skip

    found = {
        "counts": {"completed": 8, "failed": 1, "in_progress": 0, "restored": 2, "total": 9},
        "latest": {"completed": one(7, False), "savepoint": one(8, True), "failed": {"failure_message": "expired"}, "restored": None},
    }
    checkpoints = serve({("GET", "/jobs/a1/checkpoints"): [(200, found)]}).checkpoints("a1")
    assert (checkpoints.completed, checkpoints.failed, checkpoints.restored, checkpoints.failure) == (8, 1, 2, "expired")
    assert checkpoints.latest is not None
    assert (checkpoints.latest.id, checkpoints.latest.is_savepoint, checkpoints.latest.path) == (8, True, "file:/c/8")


def test_a_job_without_checkpoints_has_none(serve: Serve) -> None:
    counts = {"completed": 0, "failed": 0, "in_progress": 0, "restored": 0}
    empty = {"counts": counts, "latest": {"completed": None, "savepoint": None, "failed": None, "restored": None}}
    client = serve({
        ("GET", "/jobs/a1/checkpoints"): [(200, empty)],
        ("GET", "/jobs/a1/checkpoints/config"): [(200, {"interval": 9223372036854775807})],
        ("GET", "/jobs/a1/metrics?get=numRestarts"): [(200, [])],
    })  # fmt: skip
    assert client.checkpoints("a1").latest is None
    assert client.checkpoint_interval_ms("a1") is None
    assert client.restarts("a1") == 0


def test_what_flink_refuses_is_its_reason_and_a_job_manager_without_a_leader_may_be_asked_again(serve: Serve) -> None:
    unknown = {"errors": ["org.apache.flink.runtime.rest.NotFoundException: Job a1 not found\n\tat a.B(C.java:1)"]}
    leader = {"errors": ["Service temporarily unavailable due to an ongoing leader election. Please refresh."]}
    client = serve({("GET", "/jobs/a1"): [(404, unknown)], ("GET", "/overview"): [(503, leader)]})
    with pytest.raises(RunError, match=r"Flink at 127\.0\.0\.1:\d+: /jobs/a1: NotFoundException: Job a1 not found$") as refused:
        client.job("a1")
    assert not refused.value.retryable
    with pytest.raises(TransientError, match="leader election"):
        client.overview()


@pytest.mark.parametrize("answer", [(200, b"<html>"), (404, b"<html>"), (502, b"")])
def test_another_server_at_the_address_is_said(serve: Serve, answer: tuple[int, bytes]) -> None:
    with pytest.raises(RunError, match=r"is no Flink.*8081 by default"):
        serve({("GET", "/overview"): [answer]}).overview()


def test_nobody_at_the_address_is_said_and_may_be_asked_again() -> None:
    with pytest.raises(TransientError, match=r"Flink at 127\.0\.0\.1:1 does not answer: connection refused; .*beam-pipelines cluster up"):
        FlinkRest("127.0.0.1:1").overview()
    with pytest.raises(TransientError, match=r"Flink at no\.such\.invalid:8081 does not answer"):
        FlinkRest("no.such.invalid:8081").overview()


@pytest.mark.parametrize("address", ["", "host", "host:many", "[local]", "ftp://host:1", "a b:1"])
def test_an_address_that_is_none_is_a_spec_error(address: str) -> None:
    with pytest.raises(SpecError, match=r"expected host:port"):
        FlinkRest(address).overview()


PYTHON = """java.lang.RuntimeException: x
\tat a.B(C.java:1)
Caused by: java.lang.RuntimeException: Error received from SDK harness for instruction 4: Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1, in process
    raise ValueError("no such number")
ValueError: no such number [while running 'Map(fail)']

\tat org.apache.beam.runners.fnexecution.control.FnApiControlClient.a(FnApiControlClient.java:1)
\t... 3 more
"""


def test_the_cause_of_a_step_that_failed_is_pythons() -> None:
    assert root_cause(PYTHON) == "ValueError: no such number [while running 'Map(fail)']"


@pytest.mark.parametrize("trace", ["", "\n", "\tat a.B(C.java:1)", "Caused by: ", "Traceback (most recent call last):\n  File x"])
def test_a_trace_without_a_cause_is_no_error(trace: str) -> None:
    assert "\n" not in root_cause(trace)


NAMES = st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5}){0,3}\.[A-Z][a-z]{1,8}Exception", fullmatch=True)
REASONS = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=30)


@given(st.lists(st.tuples(NAMES, REASONS), min_size=1, max_size=5), st.integers(0, 3))
def test_the_cause_is_the_innermost_exception_without_its_packages(causes: list[tuple[str, str]], frames: int) -> None:
    places = "".join(f"\n\tat some.Place$1.run(Place.java:{n}) ~[x.jar:1]" for n in range(frames)) + "\n\t... 5 more"
    name, reason = causes[-1]
    trace = "\nCaused by: ".join(f"{name}: {reason}{places}" for name, reason in causes)
    assert root_cause(trace) == f"{name.rpartition('.')[2]}: {reason}"
