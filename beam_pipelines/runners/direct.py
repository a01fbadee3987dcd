"""A batch run on this machine: claim the outputs, run the graph, commit or leave everything as it was."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import apache_beam as beam

from beam_pipelines import metrics
from beam_pipelines.arrow.ranges import Range
from beam_pipelines.edges import needed_since
from beam_pipelines.errors import RunError
from beam_pipelines.pipeline import Job, build
from beam_pipelines.runners.archived_records import records_at
from beam_pipelines.runners.beam_options import Options, temp_location
from beam_pipelines.runners.crashes import known_to_crash
from beam_pipelines.runners.failures import run_to_end
from beam_pipelines.runners.options import NOT_SAID, Engine, Flink, check_flags, engine_for
from beam_pipelines.runners.quick import quick
from beam_pipelines.sinks.claims import renewing
from beam_pipelines.sinks.committing import abandon, prepare
from beam_pipelines.sinks.epochs import stream_folder
from beam_pipelines.sinks.plan import outputs_of
from beam_pipelines.sinks.resolutions import write_no_resolutions
from beam_pipelines.sinks.results import RunResults, expect_id, find_run
from beam_pipelines.sinks.run import RunInfo, new_run_id
from beam_pipelines.sources.database_connection import snapshots_held
from beam_pipelines.sources.lookups import FileLookup, lookups_of, versions_of
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.transforms.deduplicate import cleanup
from beam_pipelines.transforms.guard import Guard

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """How a batch run was asked for. `flags` are Beam's own options; `watch` is entered around the job (progress).
    `range`: which event times it computes anew, None: all; `input`: from the batch sources or the archive of the stream. `flink`: the cluster of
    runner flink; `say` gets sentences for people."""

    runner: str = "direct"
    run_id: str | None = None
    flags: tuple[str, ...] = ()
    apply_lateness: bool = False
    args: Mapping[str, Any] = field(default_factory=dict)
    watch: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    range: Range | None = None
    input: Literal["batch", "archive"] = "batch"
    flink: Flink = NOT_SAID
    say: Callable[[str], None] = lambda sentence: None


def run_batch(loaded: LoadedSpec, call: Call = Call()) -> RunResults:
    """Runs the spec over its batch sources and gives the run's record, `success` or `failed`.

    A failed or interrupted run leaves every output as it was. Raises SpecError where the call is wrong, SourceError or SinkError where a
    place refuses, RunError where the job breaks, KeyboardInterrupt (with a sentence) where somebody interrupts it.
    """
    check_flags(call.flags)
    engine = engine_for(call.runner)
    lookups = lookups_of(loaded.spec)
    run = _run_info(loaded, call, engine, lookups)
    expect_id(run.state, call.run_id, mode="batch")
    outputs = outputs_of(loaded.spec, run)
    with importable(loaded.directory), temporary(call.flags, run) as temp_location, snapshots_held():
        prepare(outputs, run)
        try:
            write_no_resolutions(run.state)
            args, guard = tuple(call.args.items()), _guard(loaded.spec, run, call)
            job = Job(loaded.spec, run, temp_location, call.apply_lateness, args, lookups=lookups, guard=guard)
            with renewing(outputs, run):
                _execute(job, call, engine)
        except BaseException as error:  # also Ctrl-C: whoever interrupts must find the outputs as they were
            abandon(outputs, run)
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(_state_of_outputs(run)) from None
            raise
        finally:
            cleanup(temp_location, run.run_id)
    found = find_run(run.state, run.run_id)
    if found is None:
        raise RunError(f"run '{run.run_id}' ended without a record in {run.state}.", hint="See the log for what the engine said.")
    return found


def _state_of_outputs(run: RunInfo) -> str:
    """What an interrupted run leaves: nothing, unless its commit had been decided, which was then carried to its end."""
    found = find_run(run.state, run.run_id)
    committed = found is not None and found.status == "success"
    return f"run {run.run_id} had been committed; its outputs are complete." if committed else "the outputs are as they were."


def _run_info(loaded: LoadedSpec, call: Call, engine: Engine, lookups: Mapping[str, FileLookup]) -> RunInfo:
    spec = loaded.spec
    return RunInfo(
        call.run_id or new_run_id(), spec.pipeline, loaded.state, pipeline_version=spec.version, contract=spec.contract.fingerprint,
        engine=engine.name, spec=loaded.path, range=call.range, input=call.input, lookups=versions_of(spec, lookups),
    )  # fmt: skip


def _guard(spec: PipelineSpec, run: RunInfo, call: Call) -> Guard | None:
    """Against records of the archive that the stream has found to crash."""
    if run.input != "archive":
        return None
    guard = known_to_crash(stream_folder(run.state), records=partial(records_at, spec, run.state, since=needed_since(spec, run)))
    found = sum(len(positions) for _, positions in guard.poison) if guard is not None else 0
    if found:
        call.say(
            f"dead letters (CRASH): {found:,} record{'s' * (found != 1)} of the archive, of which the stream has found that they crash the process"
        )
    return guard


def _execute(job: Job, call: Call, engine: Engine) -> None:
    run = job.run
    metrics.reset()
    flags = [*call.flags, f"--temp_location={job.temp_location}"]
    if engine.on_flink:
        from beam_pipelines.runners.flink.job import flink_job  # what it needs of a cluster is not on the way of a local run

        graph = partial(build, job=job)
        with (
            flink_job(
                graph, call.flink, name=run.run_id, flags=flags, streaming=False, path=[os.path.dirname(run.spec)], say=call.say
            ) as running,
            call.watch(),
        ):
            running.wait()
        return
    with quick():
        pipeline = beam.Pipeline(runner=engine.name, options=Options(flags, runner=engine.name))
        build(pipeline, job)
        with call.watch():
            run_to_end(pipeline)


@contextlib.contextmanager
def temporary(flags: Sequence[str], run: RunInfo) -> Iterator[str]:
    """The user's --temp_location, or a folder of this machine that goes with the run."""
    given = temp_location(flags)
    if given is not None:
        yield given
        return
    made = tempfile.mkdtemp(prefix=f"beam-pipelines-{run.pipeline}-")
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def importable(directory: str) -> Iterator[None]:
    """The spec's folder on the path of this process and of worker processes, so that `apply` finds a package beside the spec."""
    before = os.environ.get("PYTHONPATH")
    sys.path.insert(0, directory)
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (directory, before) if p)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(directory)
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
