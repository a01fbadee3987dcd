"""Streams on this machine: a pipeline on a Prism of our own, watched, ended, and its failure said in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, PrismRunnerOptions
from apache_beam.pipeline import PipelineVisitor

from beam_pipelines.errors import RunError
from beam_pipelines.runners import bundle_ends
from beam_pipelines.runners.portable_job import TEN_YEARS_S, PortableJob, submitted
from beam_pipelines.runners.prism_binary import find_prism
from beam_pipelines.runners.prism_process import PrismServer, prism_server
from beam_pipelines.sources import split_progress
from beam_pipelines.transforms import keyed_state

# Prism splits a bundle that is slow, a keyed one too, even between two elements of one key; both parts then work on copies of that
# key's state, and what the first wrote is lost without a word (docs/prism.md). With this experiment it never asks for a split.
NO_SPLITS = "prism_disable_sdf_split"


def prism_options(server: PrismServer, flags: Sequence[str] = ()) -> PipelineOptions:
    """Beam options for a streaming job on `server`: workers are threads of this process, nothing is staged, bundles are never split."""
    ours = [
        f"--job_endpoint={server.endpoint}", "--environment_type=LOOPBACK", "--streaming", f"--experiments={NO_SPLITS}",
        f"--job_server_timeout={TEN_YEARS_S}",
    ]  # fmt: skip
    return PipelineOptions([*flags, *ours], runner="PrismRunner")


@contextlib.contextmanager
def prism_job(
    build: Callable[[beam.Pipeline], object],
    *,
    flags: Sequence[str] = (),
    keep_logs: bool = False,
    say: Callable[[str], None] | None = None,
) -> Iterator[PortableJob]:
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
    bundle_ends.answer_first()
    with prism_server(program, keep_logs=keep_logs, debug=wanted.prism_log_level == "debug") as server:
        options = prism_options(server, flags)
        pipeline = beam.Pipeline(options=options)
        build(pipeline)
        quiet_ends(pipeline)
        job = submitted(pipeline, server)
        try:
            yield job
        finally:
            job.close()


def expect_no_other() -> None:
    """Raises RunError where a stream runs in this process whose state is here: another would make it forget."""
    if keyed_state.is_resident():
        raise RunError(
            "a stream on Prism runs in this process, and its state is here.", hint="Wait until it has ended, or start another process."
        )


@contextlib.contextmanager
def state_here() -> Iterator[None]:
    """Around one job on Prism at a time, and the making of its graph: what Prism would hold of ours (rows before a keyed stage, and its state) stays in this process.

    All stages run here, each element goes to its stage once, nothing is tried again, and Prism ends with this process: its memory would be a copy of
    ours that nobody asks for, and every row would be copied several times on its way. Raises RunError where there is such a job already.
    """
    expect_no_other()
    keyed_state.resident(True)
    try:
        yield
    finally:
        keyed_state.resident(False)


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
