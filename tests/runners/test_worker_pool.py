"""The pool of Python workers: a process per worker, on loopback, and none left however the pool ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2

pytestmark = pytest.mark.slow  # each process loads Beam


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Pool:
    """A running pool and a client of it."""

    def __init__(self, log: Path) -> None:
        self._out = log.open("wb")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "beam_pipelines.runners.worker_pool"]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._out)
        until(lambda: b"Python workers at" in log.read_bytes() or self.process.poll() is not None)
        self.address = log.read_text().partition("Python workers at ")[2].splitlines()[0]
        self._channel = grpc.insecure_channel(self.address)
        self.stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(self._channel)

    def start(self, name: str, control: str) -> None:
        endpoint = endpoints_pb2.ApiServiceDescriptor(url=control)
        answer = self.stub.StartWorker(beam_fn_api_pb2.StartWorkerRequest(worker_id=name, control_endpoint=endpoint), timeout=60)
        assert not answer.error

    def children(self) -> set[int]:
        return set(map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split())) | self._of_threads()

    def _of_threads(self) -> set[int]:
        return {int(pid) for task in Path(f"/proc/{self.process.pid}/task").iterdir() for pid in (task / "children").read_text().split()}

    def close(self) -> None:
        self._channel.close()
        self.process.kill()
        self.process.wait()
        self._out.close()


class Control(beam_fn_api_pb2_grpc.BeamFnControlServicer):  # type: ignore[misc]
    """A control service that notes which workers came, and gives them nothing to do."""

    def __init__(self) -> None:
        self.came: list[str] = []

    def Control(self, responses: Any, context: Any) -> Iterator[Any]:
        self.came.append(dict(context.invocation_metadata())["worker_id"])
        for _ in responses:
            pass
        yield from ()


@pytest.fixture
def control() -> Iterator[tuple[Control, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    service = Control()
    beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    found = Pool(tmp_path / "log")
    yield found
    found.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_workers_come_to_the_control_service_under_their_names_and_a_spare_one_waits(pool: Pool, control: tuple[Control, str]) -> None:
    for name in ("1-1", "2-1"):
        pool.start(name, control[1])
    until(lambda: sorted(control[0].came) == ["1-1", "2-1"])
    assert len(pool.children()) == 3


def test_a_stopped_worker_ends_and_the_others_stay(pool: Pool, control: tuple[Control, str]) -> None:
    before = pool.children()
    pool.start("1-1", control[1])
    pool.start("2-1", control[1])
    until(lambda: len(control[0].came) == 2)
    pool.stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1"), timeout=60)
    assert not any(map(alive, before))
    assert len([pid for pid in pool.children() if alive(pid)]) == 2
    pool.stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="never there"), timeout=60)


def test_of_two_workers_of_one_name_neither_is_ended_for_the_other(pool: Pool, control: tuple[Control, str]) -> None:
    pool.start("1-1", control[1])
    pool.start("1-1", control[1])  # of another task manager
    until(lambda: len(control[0].came) == 2)
    before = pool.children()
    pool.stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1"), timeout=60)
    assert all(map(alive, before))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_no_worker_is_left_however_the_pool_ends(pool: Pool, control: tuple[Control, str], number: signal.Signals) -> None:
    pool.start("1-1", control[1])
    until(lambda: control[0].came)
    workers = pool.children()
    assert len(workers) == 2
    pool.process.send_signal(number)
    assert pool.process.wait(60) == (0 if number != signal.SIGKILL else -9)
    until(lambda: not any(map(alive, workers)))


def test_it_listens_on_loopback_alone(pool: Pool) -> None:
    host, _, port = pool.address.rpartition(":")
    assert host == "127.0.0.1"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", int(port)), timeout=5).close()


def test_a_port_that_is_taken_is_one_sentence(pool: Pool) -> None:
    command = [sys.executable, "-m", "beam_pipelines.runners.worker_pool", "--port", pool.address.rpartition(":")[2]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"{pool.address}: no place to serve: ")
    assert "Traceback" not in done.stderr
