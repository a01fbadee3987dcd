"""The pool of Python workers that a Flink task manager asks for: a process per worker, on an address of our choice, none left behind.

`python -m beam_pipelines.runners.worker_pool --port 8290`. It speaks Beam's own protocol, for `--environment_type=EXTERNAL`. Beam's
program (`apache_beam.runners.worker.worker_pool_main`) would do but for this: it listens on all interfaces, and whoever reaches it makes it run any
code; it starts whatever `python` comes first in PATH; a worker that prints 64 kB stops, because nobody reads; and workers outlive a pool
that is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import FrameType

import grpc
from apache_beam.options.pipeline_options import WorkerOptions
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.runners.worker.sdk_worker import SdkHarness
from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

from beam_pipelines.runners import bundle_ends
from beam_pipelines.runners.flink import parked_bundles, send_queue
from beam_pipelines.runners.flink.cluster import WORKER
from beam_pipelines.runners.flink.options import PATH
from beam_pipelines.sources import split_progress

_LOG = logging.getLogger(__name__)
_GRACE_S = 10.0


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):  # type: ignore[misc]  # Beam ships no types
    """Starts and stops workers, each a process that ends when this one does.

    One is always there that has loaded Beam and waits for its name: a worker is there at once, and after a crash a job goes on sooner.
    """

    def __init__(self) -> None:
        self._workers: dict[str, list[subprocess.Popen[bytes]]] = {}  # two task managers, or two jobs, may call theirs alike
        self._lock = threading.Lock()
        self._spare = _spare()

    def StartWorker(self, request: beam_fn_api_pb2.StartWorkerRequest, _: object) -> beam_fn_api_pb2.StartWorkerResponse:  # noqa: N802
        """One worker for the control service that the request names."""
        try:
            with self._lock:
                self._reap()
                worker = self._named(json.dumps([request.worker_id, request.control_endpoint.url, request.params.get(PATH, "")]))
                self._workers.setdefault(request.worker_id, []).append(worker)
        except Exception:
            return beam_fn_api_pb2.StartWorkerResponse(error=traceback.format_exc())
        _LOG.warning("worker %s is process %d", request.worker_id, worker.pid)
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: beam_fn_api_pb2.StopWorkerRequest, _: object) -> beam_fn_api_pb2.StopWorkerResponse:  # noqa: N802
        """Ends the worker; one that is not known has ended. Of several of that name nobody says which: they end when their control service does."""
        with self._lock:
            self._reap()
            workers = self._workers.get(request.worker_id, [])
            if len(workers) == 1:
                del self._workers[request.worker_id]
        if len(workers) == 1:
            _end(workers)
        return beam_fn_api_pb2.StopWorkerResponse()

    def close(self) -> None:
        """Ends all workers."""
        with self._lock:
            workers, self._workers = [*chain.from_iterable(self._workers.values()), self._spare], {}
        _end(workers)

    def _named(self, name: str) -> subprocess.Popen[bytes]:
        worker = self._spare if self._spare.poll() is None else _spare()
        assert worker.stdin is not None
        worker.stdin.write(f"{name}\n".encode())
        worker.stdin.flush()
        self._spare = _spare()
        return worker

    def _reap(self) -> None:
        left = {name: [worker for worker in workers if worker.poll() is None] for name, workers in self._workers.items()}
        self._workers = {name: workers for name, workers in left.items() if workers}


def _spare() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", __spec__.name, "--worker"], stdin=subprocess.PIPE)  # noqa: S603  (this program)


def _end(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        try:
            worker.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        if worker.stdin is not None:
            worker.stdin.close()


def serve(host: str, port: int) -> None:
    """Serves until SIGTERM or SIGINT; then all workers are ended. Raises OSError where the port is taken."""
    ended = threading.Event()

    def end(_: int, __: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    options = [("grpc.http2.max_pings_without_data", 0), ("grpc.http2.max_ping_strikes", 0), ("grpc.so_reuseport", 0)]
    server = grpc.server(shared_unbounded_instance(), options=options)
    pool = WorkerPool()
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"{host}:{port}: no place to serve: {error}") from None
    server.start()
    _LOG.warning("Python workers at %s:%d", host, bound)
    ended.wait()
    server.stop(grace=None)
    pool.close()


def work() -> None:
    """Is one worker: loads what takes long, waits for its name, and works until the control service goes, or the pool does: then standard input ends."""
    for name in _LARGE:
        importlib.import_module(name)
    line = sys.stdin.readline()
    if not line:
        return
    worker, control, path = json.loads(line)
    sys.path[:0] = [folder for folder in path.split(os.pathsep) if folder]
    with contextlib.suppress(OSError):  # Linux only: what `ps` and the cluster see
        Path("/proc/self/comm").write_text(WORKER)
    threading.Thread(target=_end_with_the_pool, name="pool-watch", daemon=True).start()
    split_progress.install()
    bundle_ends.install()
    send_queue.install()
    parked_bundles.install()
    cache_bytes = WorkerOptions().max_cache_memory_usage_mb << 20  # the default of the options, which a pool is not told
    SdkHarness(control, worker_id=worker, state_cache_size=cache_bytes, data_buffer_time_limit_ms=0).run()


_LARGE = ("duckdb", "pyarrow.compute", "pyarrow.dataset", "pyarrow.parquet")
"""Loaded ahead of time, beside Beam. Nothing of ours or the user's: a job's worker has the code as it is when the job starts."""


def _end_with_the_pool() -> None:
    sys.stdin.read()
    os._exit(1)  # at once: threads of a bundle may hold a normal exit up


def main(arguments: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description="A pool of Python workers for a Flink task manager.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; whoever reaches it can run code (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 (default): one that is free, and is printed")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    if given.worker:
        work()
        return
    try:
        serve(given.host, given.port)
    except OSError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
