"""Handing a spec in to Dataflow as a batch or a stream, and following the job.

batch    check ─▶ claim the outputs ─▶ job ─▶ … its last step commits, whoever is still there
stream   check ─▶ nobody else runs it ─▶ epoch, subscriptions go back ─▶ job ─▶ … runs on by itself; `update` replaces it
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, TestOptions

from beam_pipelines import metrics
from beam_pipelines.arrow.ranges import Range
from beam_pipelines.edges import Job, Resume
from beam_pipelines.errors import BeamPipelinesError, RunError, SpecError, TransientError
from beam_pipelines.pipeline import build
from beam_pipelines.runners.beam_options import Options
from beam_pipelines.runners.dataflow import service
from beam_pipelines.runners.dataflow.checks import check_dataflow
from beam_pipelines.runners.dataflow.graph import check_size, graph_of
from beam_pipelines.runners.dataflow.plan import facts_of
from beam_pipelines.runners.dataflow.settings import DATAFLOW, Dataflow, beam_flags
from beam_pipelines.runners.dataflow.starts import Begun, first_or_next, goes_on, of_running, of_trial
from beam_pipelines.runners.direct import importable
from beam_pipelines.runners.failures import own_error
from beam_pipelines.runners.stream import stream_outputs_of
from beam_pipelines.sinks.claims import renewing
from beam_pipelines.sinks.committing import abandon, prepare
from beam_pipelines.sinks.outputs import write_outputs
from beam_pipelines.sinks.plan import outputs_of
from beam_pipelines.sinks.resolutions import write_no_resolutions
from beam_pipelines.sinks.results import RunResults, expect_id, find_run
from beam_pipelines.sinks.run import RunInfo, new_run_id
from beam_pipelines.sinks.speed import write_no_doors
from beam_pipelines.sources.lookups import FileLookup, lookups_of, versions_of
from beam_pipelines.sources.pubsub_native import ReadPubsubNative
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.transforms.prepare import row_program
from beam_pipelines.transforms.spill import cleanup, sweep

_OFFLINE = ("--dry_run=true", "--no_auth", "--sdk_location=container")


@dataclass(frozen=True)
class DataflowCall:
    """How a run on Dataflow was asked for; as `direct.Call` and `stream.StreamCall`."""

    settings: Dataflow
    mode: Literal["batch", "stream"] = "batch"
    run_id: str | None = None
    flags: tuple[str, ...] = ()
    apply_lateness: bool = False
    args: Mapping[str, Any] = field(default_factory=dict)
    range: Range | None = None
    input: Literal["batch", "archive"] = "batch"
    say: Callable[[str], None] = lambda sentence: None


@dataclass
class Submitted:
    """A job that was handed in. `job_id`: None where a template's launcher only made it, and the service starts it, and of a graph alone."""

    run: RunInfo
    name: str
    job_id: str | None
    url: str | None
    graph: Any
    _result: Any = None
    _ended: Callable[[bool], None] = lambda good: None
    _holding: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    def wait(self) -> RunResults | None:
        """Follows the job to its end; gives the record of a batch. Raises the error of ours that a step raised, RunError where the job failed otherwise.

        Whoever stops waiting, or can ask the service no more, leaves the job as it is: it goes on.
        """
        from apache_beam.runners.dataflow.dataflow_runner import DataflowRuntimeException

        try:
            with self._holding():
                self._result.wait_until_finish()
        except DataflowRuntimeException as error:  # it has ended, and not well
            self._ended(False)
            raise own_error(error, hint=f"See {self.url}") from error
        except Exception as error:  # of Google's clients
            raise TransientError(f"the job cannot be followed any more, and goes on: {own_error(error)}", hint=f"See {self.url}") from error
        self._ended(True)
        if self.run.mode == "stream":
            return None
        found = find_run(self.run.state, self.run.run_id)
        if found is None:
            raise RunError(f"run '{self.run.run_id}' ended without a record in {self.run.state}.", hint=f"See {self.url}")
        return found


def submit(loaded: LoadedSpec, call: DataflowCall) -> Submitted:
    """Hands the spec in as a job, and gives it back when the service has taken it. With `settings.graph` nothing is started, and nothing is written but the graph.

    Raises SpecError where the call is wrong, SourceError or SinkError where a place refuses, RunError where the service does.
    """
    check_dataflow(loaded, call.settings, call.flags, mode=call.mode)
    with importable(loaded.directory):
        handed_in = (_submit_batch if call.mode == "batch" else _submit_stream)(loaded, call)
    if call.settings.graph is not None:
        handed_in.graph = msgspec.structs.replace(handed_in.graph, facts=facts_of(loaded))
        Path(call.settings.graph).write_bytes(msgspec.json.format(msgspec.json.encode(handed_in.graph)))
    return handed_in


def _submit_batch(loaded: LoadedSpec, call: DataflowCall) -> Submitted:
    spec, dry = loaded.spec, _dry(call)
    lookups = lookups_of(spec)
    run = RunInfo(
        call.run_id or new_run_id(), spec.pipeline, loaded.state, pipeline_version=spec.version, contract=spec.contract.fingerprint, engine=DATAFLOW,
        spec=_shown(loaded), range=call.range, input=call.input, lookups=() if dry else versions_of(spec, lookups),
    )  # fmt: skip
    options, temp_location = options_of(loaded, call, run)
    job = Job(spec, run, temp_location, call.apply_lateness, _args(loaded, call), lookups=lookups)
    if dry:
        return _handed_in(job, call, options)
    expect_id(run.state, call.run_id, mode="batch")
    outputs = outputs_of(spec, run)
    for dead in service.release_dead(outputs, run, options):
        call.say(f"run {dead} has ended without a commit; its claims are given back")
    prepare(outputs, run)
    sweep(temp_location)  # of runs that died unwatched

    def ended(good: bool) -> None:
        if not good:
            abandon(outputs, run)
        cleanup(temp_location, run.run_id)

    try:
        write_no_resolutions(run.state)
        return replace(_handed_in(job, call, options), _ended=ended, _holding=partial(renewing, outputs, run))
    except BaseException:
        ended(False)
        raise


def _submit_stream(loaded: LoadedSpec, call: DataflowCall) -> Submitted:
    spec, dry = loaded.spec, _dry(call)
    lookups = lookups_of(spec, endless=True)
    reads = [ReadPubsubNative(source, number) for number, source in enumerate(spec.sources.stream)]
    if not dry or not lookups:
        for source in spec.sources.stream:
            row_program(spec, source, lookups)
    call = call if dry else _or_start(loaded, call)
    begun = _begun(loaded, call, lookups, dry=dry)
    run = replace(begun.run, engine=DATAFLOW, spec=_shown(loaded), pipeline_version=spec.version, contract=spec.contract.fingerprint)
    options, temp_location = options_of(loaded, call, run, ran=begun.ran)
    resume = Resume(begun.before, make=lambda source, number: reads[number])
    job = Job(spec, run, temp_location, args=_args(loaded, call), resume=resume, lookups=lookups)
    outputs = stream_outputs_of(spec, run)
    if not dry:
        write_no_doors(run.state)
        write_no_resolutions(run.state)
    handed_in = _handed_in(job, call, options)
    if not dry:  # what readers look at is of a job that the service has taken
        write_outputs(run.state, outputs)
        if _updates(call):
            goes_on(begun)
    return handed_in


def _or_start(loaded: LoadedSpec, call: DataflowCall) -> DataflowCall:
    """The call as it is meant: an update of no job is refused, or is the start of one. A job that took the state of a dead one for its own would leave rows out."""
    if not _updates(call) or at_work(loaded, call):
        return call
    if not call.settings.or_start:
        raise SpecError(f"--update: {loaded.state}: no job of this stream runs; expected one to replace.", hint="Leave --update out.")
    call.say("no job of this stream runs: one is started")
    return replace(call, settings=replace(call.settings, update=False))


def at_work(loaded: LoadedSpec, call: DataflowCall) -> list[tuple[service.HandedIn, service.Found]]:
    """The jobs of this stream that run, the newest first."""
    return list(service.running(options_of(loaded, call)[0], loaded.state))


def _begun(loaded: LoadedSpec, call: DataflowCall, lookups: Mapping[str, FileLookup], *, dry: bool) -> Begun:
    """Which start of the stream the job is."""
    spec, run_id = loaded.spec, call.run_id or new_run_id()
    if dry:
        return of_trial(spec, loaded.state, run_id)
    versions = versions_of(spec, lookups)
    if _updates(call):
        return of_running(loaded, versions, say=call.say)
    expect_id(loaded.state, call.run_id, mode="stream")
    for job, found in at_work(loaded, call):
        raise SpecError(
            f"run --mode stream: {loaded.state}: this stream runs as job {job.name} ({found.id}, {found.state}); expected none.",
            hint="Replace it by --update, or cancel it first.",
        )
    first = not service.taken_starts(loaded.state)
    return first_or_next(loaded, run_id, versions, first=first, say=call.say)


def _shown(loaded: LoadedSpec) -> str:
    """Where the spec came from, for the record: a path of this machine says nothing there."""
    return loaded.path if "://" in loaded.path else os.path.basename(loaded.path)


def _args(loaded: LoadedSpec, call: DataflowCall) -> tuple[tuple[str, Any], ...]:
    return tuple({**call.args, "spec": _shown(loaded)}.items())


def options_of(loaded: LoadedSpec, call: DataflowCall, run: RunInfo | None = None, *, ran: str = "") -> tuple[PipelineOptions, str]:
    """Beam's options for the job, and the folder for what it needs on the way. `run`: None: whichever it will be."""
    run = run or RunInfo(call.run_id or new_run_id(), loaded.spec.pipeline, loaded.state, mode=call.mode)
    flags = beam_flags(call.settings, call.flags, pipeline=run.pipeline, mode=call.mode, run_id=run.run_id, ran=ran)
    options = Options([*flags, *(_OFFLINE if call.settings.graph is not None else ())], runner=DATAFLOW)
    return options, f"{str(options.view_as(GoogleCloudOptions).temp_location).rstrip('/')}/beam_pipelines"


def _dry(call: DataflowCall) -> bool:
    return call.settings.graph is not None or bool(PipelineOptions(list(call.flags)).view_as(TestOptions).dry_run)


def _updates(call: DataflowCall) -> bool:
    return call.settings.update or bool(PipelineOptions(list(call.flags)).view_as(GoogleCloudOptions).update)


def _handed_in(job: Job, call: DataflowCall, options: PipelineOptions) -> Submitted:
    run, cloud = job.run, options.view_as(GoogleCloudOptions)
    project, region = service.project_and_region(options)
    metrics.reset()
    with _no_google_machine(_dry(call)):
        pipeline = beam.Pipeline(runner=DATAFLOW, options=options)
        build(pipeline, job)
        check_size(graph_of(pipeline))
        handed_in = service.HandedIn(run.run_id, run.mode, project, region, str(cloud.job_name))
        if not _dry(call) and not _updates(call):
            earlier = service.remembered(run.state, [run.run_id]).get(run.run_id)  # a start of the same id
            service.remember(run.state, msgspec.structs.replace(handed_in, taken=earlier is not None and earlier.taken))
        try:
            result = pipeline.run()
        except BeamPipelinesError:
            raise
        except Exception as error:  # of Beam, of Google's clients, of the storage: each with classes of its own
            raise own_error(error) from error
    graph = graph_of(result.job.proto_pipeline) if _dry(call) else None
    job_id = None if _dry(call) or not result.has_job else str(result.job_id())
    url = None if job_id is None else service.link(project, region, job_id)
    if not _dry(call):
        service.remember(run.state, msgspec.structs.replace(handed_in, taken=True, url=url or ""))
    return Submitted(run, str(cloud.job_name), job_id, url, graph, result)


@contextlib.contextmanager
def _no_google_machine(offline: bool) -> Iterator[None]:
    """Without it Google's library asks the network for a metadata server, in a graph that is only looked at."""
    before = os.environ.get("NO_GCE_CHECK")
    if offline:
        os.environ["NO_GCE_CHECK"] = "true"
    try:
        yield
    finally:
        if offline and before is None:
            del os.environ["NO_GCE_CHECK"]
        elif before is not None:
            os.environ["NO_GCE_CHECK"] = before
