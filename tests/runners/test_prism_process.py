"""Prism lives exactly as long as its launcher: killed, ended or failed, nothing of it is left."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from beam_pipelines.errors import RunError
from beam_pipelines.runners.prism_process import PrismServer, last_errors, prism_server
from tests.prism import prism_program

LAUNCHER = """
import os, sys, threading
from pathlib import Path
from beam_pipelines.runners.prism_process import prism_server
with prism_server(Path(sys.argv[1])) as server:
    print(server.pid, server.log, flush=True)
    sys.stdin.readline()
    {end}
"""


@pytest.fixture
def program() -> Path:
    return prism_program()


def gone(pid: int, *, within_s: float = 10.0) -> bool:
    """Whether the process has ended, or does so in time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], within_s)[0])
    finally:
        os.close(handle)


def jobs(server: PrismServer) -> list[object]:
    with grpc.insecure_channel(server.endpoint) as channel:
        answer = beam_job_api_pb2_grpc.JobServiceStub(channel).GetJobs(beam_job_api_pb2.GetJobsRequest(), timeout=10)
    return list(answer.job_info)


def test_it_answers_within_the_block_and_is_gone_after(program: Path) -> None:
    with prism_server(program) as server:
        assert jobs(server) == []
        assert server.ended() is None
        assert server.log.exists()
    assert gone(server.pid)
    assert not server.log.exists()


def test_two_have_two_ports(program: Path) -> None:
    with prism_server(program) as one, prism_server(program) as two:
        assert one.endpoint != two.endpoint
        assert jobs(one) == jobs(two) == []


def test_the_log_is_kept_when_asked_for_or_named_by_an_error(program: Path) -> None:
    with prism_server(program, keep_logs=True) as asked:
        pass
    with pytest.raises(RunError), prism_server(program) as named:
        raise RunError(f"see {named.log}")
    with pytest.raises(RunError), prism_server(program) as other:
        raise RunError("of no interest to Prism")
    assert [server.log.exists() for server in (asked, named, other)] == [True, True, False]
    asked.log.unlink()
    named.log.unlink()


def test_it_outlives_the_thread_that_started_it(program: Path) -> None:
    entered = prism_server(program)
    started: list[PrismServer] = []
    thread = threading.Thread(target=lambda: started.append(entered.__enter__()))
    thread.start()
    thread.join(60)
    try:
        assert started[0].ended(grace_s=0.5) is None
    finally:
        entered.__exit__(None, None, None)
    assert gone(started[0].pid)


def test_an_interruption_in_the_terminal_does_not_reach_it(program: Path) -> None:
    with prism_server(program) as server:
        assert os.getsid(server.pid) == server.pid != os.getsid(0)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)", "os._exit(3)", "raise ValueError", "pass"])
def test_it_is_gone_however_the_launcher_ends(program: Path, end: str) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER.format(end=end), str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert launcher.stdout is not None
    pid, log = launcher.stdout.readline().split()
    try:
        assert not gone(int(pid), within_s=0)
        launcher.communicate("end\n", timeout=60)
        assert gone(int(pid))
    finally:
        launcher.kill()
        launcher.wait()
        Path(log).unlink(missing_ok=True)


def test_it_can_be_seen_to_have_died(program: Path) -> None:
    with prism_server(program) as server:
        os.kill(server.pid, signal.SIGKILL)
        assert server.ended(grace_s=10) == -signal.SIGKILL


def test_a_program_that_is_no_prism_is_a_run_error_with_what_it_said(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho 'unknown flag --job_port' >&2\nexit 2\n")
    other.chmod(0o755)
    with (
        pytest.raises(RunError, match=r"Prism does not start: it ended with code 2\. unknown flag --job_port") as raised,
        prism_server(other),
    ):
        pass
    Path(str(raised.value).rsplit(" ", 1)[-1]).unlink()


def test_the_last_errors_of_a_log_are_one_line_and_panics_count(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        '{"time":"t","level":"INFO","msg":"Serving"}\n{"level":"ERROR","msg":"job failed","error":"x"}\n{"level":"WARN","msg":"w"}\npanic: boom\n'
    )
    assert last_errors(log) == "job failed error=x | panic: boom"
    log.write_text("")
    assert last_errors(log) == ""
