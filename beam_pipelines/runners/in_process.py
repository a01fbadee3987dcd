"""A stream that ends by itself, without Prism: Beam's FnApiRunner in a thread of this process.

It is a batch engine: it runs the source until the source says that it has ended, and only then the stages behind a shuffle. So it is
for `--until-idle` and `--max-duration` on a machine where Prism cannot be had: the same rows and final panes, all at the end.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipelines import draining
from beam_pipelines.runners.failures import own_error
from beam_pipelines.sources import split_progress

ENGINE = "FnApiRunner"


class InProcessJob:
    """A job on FnApiRunner; to be watched as `PortableJob` is."""

    def __init__(self, pipeline: beam.Pipeline) -> None:
        self._ended = threading.Event()
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(pipeline,), name="in-process-job", daemon=True).start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """True once the job has ended well, False if it still runs after `timeout_s`. Raises the error of ours that a step raised, or a
        RunError that names the cause."""
        if not self._ended.wait(timeout_s):
            return False
        if self._error is not None:
            raise own_error(self._error) from self._error
        return True

    def _run(self, pipeline: beam.Pipeline) -> None:
        try:
            pipeline.run().wait_until_finish()
        except BaseException as error:  # handed on by wait()
            self._error = error
        finally:
            self._ended.set()


@contextlib.contextmanager
def in_process_job(build: Callable[[beam.Pipeline], object], *, flags: Sequence[str] = ()) -> Iterator[InProcessJob]:
    """The pipeline that `build` makes, running in a thread. Leaving the block early asks the sources to end and waits for that."""
    split_progress.install()
    pipeline = beam.Pipeline(runner=ENGINE, options=PipelineOptions([*flags, "--streaming"]))
    build(pipeline)
    job = InProcessJob(pipeline)
    try:
        yield job
    finally:
        draining.request()
        with contextlib.suppress(Exception):  # what it ends with was raised by wait() already
            job.wait(_PATIENCE_S)


_PATIENCE_S = 60.0
