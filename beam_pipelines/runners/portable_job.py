"""A job that a job service runs: watched, ended, and its failure said in one sentence."""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.runners.runner import PipelineState
from apache_beam.runners.worker import sdk_worker

from beam_pipelines.errors import RunError
from beam_pipelines.runners.failures import own_error

_LOG = logging.getLogger(__name__)
TEN_YEARS_S = 10 * 365 * 24 * 3600
"""For --job_server_timeout. Beam uses it as the deadline of the streams by which it waits for the job: with the default a stream ends with an error after 300 s."""
_CANCEL_TIMEOUT_S = 10.0
# A worker in this process, then what reads its streams: they print a traceback each if the job service goes before they have ended.
_BEAMS_THREADS = {"run_worker_": _CANCEL_TIMEOUT_S, "read_state": 1.0, "read_grpc_client_inputs": 1.0, "wait_until_finish_read": 1.0}


class Service(Protocol):
    """The process behind a job service."""

    @property
    def name(self) -> str: ...

    @property
    def log(self) -> Path: ...

    def ended(self, *, grace_s: float = 0.0) -> int | None: ...

    def last_errors(self, count: int = 3) -> str: ...


class PortableJob:
    """A running job. `server` is the process under it."""

    def __init__(self, result: Any, server: Service) -> None:
        self.server = server
        self._result = result
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._cancelled = False
        # Beam stops the service by which our workers are stopped as soon as it sees the job's last state; then they cannot be stopped in peace.
        self._later, result._cleanup_callbacks = tuple(result._cleanup_callbacks), ()
        threading.Thread(target=self._watch, name="portable-job", daemon=True).start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """True once the job has ended well or was cancelled; False if it still runs after `timeout_s`. Signals are handled meanwhile.

        Raises the error of ours that a step raised, or a RunError that names the cause, if the job failed or the process under it died.
        """
        if not self._ended.wait(timeout_s):
            return False
        if self._error is not None and not self._cancelled:
            raise self._failure(self._error) from self._error
        return True

    def cancel(self) -> None:
        """Ends the job where it stands: bundles at work are thrown away, not finalized, and timers do not fire. Returns when it has ended."""
        if not self._ended.is_set():
            self._cancelled = True
            with contextlib.suppress(Exception):  # a service that has died answers no more
                self._result.cancel()
            self._ended.wait(_CANCEL_TIMEOUT_S)

    def close(self) -> None:
        """Cancels the job if it still runs, and lets its workers tear their DoFns down."""
        self.cancel()
        for name, timeout_s in _BEAMS_THREADS.items():
            for thread in threading.enumerate():
                if thread.name.startswith(name):
                    with contextlib.suppress(RuntimeError):  # Beam is about to start it: it will find that all is over
                        thread.join(timeout_s)
        for callback in self._later:
            callback()

    def _watch(self) -> None:
        try:
            state = self._result.wait_until_finish()
            if state != PipelineState.DONE:
                self._error = RunError(f"the job ended in state {state}.")
        except BaseException as error:  # handed on by wait()
            self._error = error
        finally:
            self._ended.set()

    def _failure(self, error: BaseException) -> BaseException:
        # Beam says RuntimeError of a job that failed; anything else is a connection that fell, which it does before the process is gone.
        code = self.server.ended(grace_s=0.0 if isinstance(error, RuntimeError) else 2.0)
        log = f"{self.server.name}'s log: {self.server.log}"
        if code is not None:
            how = f"signal {-code}" if code < 0 else f"code {code}"
            return RunError(f"{self.server.name} ended ({how}) while the job ran. {self.server.last_errors()}".rstrip(), hint=log)
        return own_error(error, hint=log)


def submitted(pipeline: beam.Pipeline, server: Service) -> PortableJob:
    """The pipeline, handed in and running. Raises RunError where the service refuses it."""
    _quiet_workers()
    try:
        return PortableJob(pipeline.run(), server)
    except Exception as error:
        raise RunError(
            f"{server.name} does not take the job: {server.last_errors() or error}", hint=f"{server.name}'s log: {server.log}"
        ) from error


def _quiet_workers() -> None:
    """Beam prints the traceback of a bundle that fails to stderr, past all logging; it is raised and logged all the same."""
    sdk_worker.print = lambda text, **_: _LOG.debug("%s", text)
