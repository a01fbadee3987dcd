"""Streams on this machine: a pipeline on a Prism of our own, watched, ended, and its failure said in one sentence."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, PrismRunnerOptions
from apache_beam.pipeline import PipelineVisitor
from apache_beam.runners.runner import PipelineState
from apache_beam.runners.worker import sdk_worker

from beam_pipelines.errors import RunError
from beam_pipelines.runners import bundle_ends
from beam_pipelines.runners.failures import own_error
from beam_pipelines.runners.prism_binary import find_prism
from beam_pipelines.runners.prism_process import PrismServer, prism_server
from beam_pipelines.sources import split_progress

_LOG = logging.getLogger(__name__)

# Prism splits a bundle that is slow, a keyed one too, even between two elements of one key; both parts then work on copies of that
# key's state, and what the first wrote is lost without a word (docs/prism.md). With this experiment it never asks for a split.
NO_SPLITS = "prism_disable_sdf_split"
# Beam uses it as the deadline of the streams by which it waits for the job: with the default a stream ends with an error after 300 s.
_TEN_YEARS_S = 10 * 365 * 24 * 3600
_CANCEL_TIMEOUT_S = 10.0
# A worker in this process, then what reads its streams: they print a traceback each if Prism goes before they have ended.
_BEAMS_THREADS = {"run_worker_": _CANCEL_TIMEOUT_S, "read_state": 1.0, "read_grpc_client_inputs": 1.0, "wait_until_finish_read": 1.0}


class PrismJob:
    """A job that runs on Prism. `server` is the process under it."""

    def __init__(self, result: Any, server: PrismServer) -> None:
        self.server = server
        self._result = result
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._cancelled = False
        # Beam stops the service by which Prism stops our workers as soon as it sees the job's last state; then they cannot be stopped in peace.
        self._later, result._cleanup_callbacks = tuple(result._cleanup_callbacks), ()
        threading.Thread(target=self._watch, name="prism-job", daemon=True).start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """True once the job has ended well or was cancelled; False if it still runs after `timeout_s`. Signals are handled meanwhile.

        Raises the error of ours that a step raised, or a RunError that names the cause, if the job failed or Prism died.
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
            with contextlib.suppress(Exception):  # a Prism that has died answers no more
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
        log = f"Prism's log: {self.server.log}"
        if code is not None:
            how = f"signal {-code}" if code < 0 else f"code {code}"
            return RunError(f"Prism ended ({how}) while the job ran. {self.server.last_errors()}".rstrip(), hint=log)
        return own_error(error, hint=log)


def prism_options(server: PrismServer, flags: Sequence[str] = ()) -> PipelineOptions:
    """Beam options for a streaming job on `server`: workers are threads of this process, nothing is staged, bundles are never split."""
    ours = [
        f"--job_endpoint={server.endpoint}", "--environment_type=LOOPBACK", "--streaming", f"--experiments={NO_SPLITS}",
        f"--job_server_timeout={_TEN_YEARS_S}",
    ]  # fmt: skip
    return PipelineOptions([*flags, *ours], runner="PrismRunner")


@contextlib.contextmanager
def prism_job(
    build: Callable[[beam.Pipeline], object],
    *,
    flags: Sequence[str] = (),
    keep_logs: bool = False,
    say: Callable[[str], None] | None = None,
) -> Iterator[PrismJob]:
    """The pipeline that `build` makes, running on a Prism that is found, started, and ended with the block; a job still running then is cancelled.

        with prism_job(build) as job:
            while not job.wait(1.0):
                show_progress()

    `flags` are Beam options (`--prism_location`, `--prism_log_level=debug`, ...). Raises SpecError where a flag names a program that is
    none, RunError where Prism cannot be had, does not start, or refuses the graph.
    """
    wanted = PipelineOptions(list(flags)).view_as(PrismRunnerOptions)
    program = find_prism(wanted.prism_location, say=say)
    split_progress.install()
    bundle_ends.install()
    _quiet_workers()
    with prism_server(program, keep_logs=keep_logs, debug=wanted.prism_log_level == "debug") as server:
        options = prism_options(server, flags)
        pipeline = beam.Pipeline(options=options)
        build(pipeline)
        quiet_ends(pipeline)
        job = PrismJob(_submitted(pipeline, server), server)
        try:
            yield job
        finally:
            job.close()


def run_on_prism(
    build: Callable[[beam.Pipeline], object],
    *,
    flags: Sequence[str] = (),
    keep_logs: bool = False,
    say: Callable[[str], None] | None = None,
) -> None:
    """Runs the pipeline that `build` makes on Prism until its sources end. Raises as `prism_job` and `PrismJob.wait` do."""
    with prism_job(build, flags=flags, keep_logs=keep_logs, say=say) as job:
        job.wait()


def _quiet_workers() -> None:
    """Beam prints the traceback of a bundle that fails to stderr, past all logging; it is raised and logged all the same."""
    sdk_worker.print = lambda text, **_: _LOG.debug("%s", text)


def _submitted(pipeline: beam.Pipeline, server: PrismServer) -> Any:
    try:
        return pipeline.run()
    except Exception as error:
        raise RunError(f"Prism does not take the job: {server.last_errors() or error}", hint=f"Prism's log: {server.log}") from error


def quiet_ends(pipeline: beam.Pipeline) -> None:
    """Gives every PCollection that nobody reads an end that is always empty; do it when the graph is complete.

    Prism spins a core for as long as a bundle runs whose stage has no output (measured: 5.4 s of CPU for 5.0 s of bundles, 0.5 s with
    such ends). Nothing is added to what the job does.
    """
    for number, end in enumerate(_unread(pipeline)):
        (end | f"Nothing{number}" >> beam.ParDo(_Nothing()).with_output_types(bytes),) | f"End{number}" >> beam.Flatten()


class _Nothing(beam.DoFn):  # type: ignore[misc]  # Beam ships no types
    def process(self, element: Any) -> Iterator[bytes]:
        return iter(())


def _unread(pipeline: beam.Pipeline) -> list[Any]:
    seen = _Edges()
    pipeline.visit(seen)
    return [made for made in seen.made if made not in seen.read]


class _Edges(PipelineVisitor):  # type: ignore[misc]  # Beam ships no types
    def __init__(self) -> None:
        self.made: dict[Any, None] = {}
        self.read: set[Any] = set()

    def visit_transform(self, node: Any) -> None:
        self.read.update(node.inputs)
        self.read.update(side.pvalue for side in node.side_inputs)
        self.made.update(dict.fromkeys(node.outputs.values()))
