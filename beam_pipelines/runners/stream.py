"""Streams on this machine: start, watch, drain, account.

    epoch ─▶ how far had we come ─▶ Prism ─▶ job ─▶ … ─▶ drain: hand out, store, acknowledge, panes of open windows ─▶ ledger, record

The state of a job on Prism is in memory. What makes it safe to kill at any moment is outside: messages are acknowledged only once they are in
the archive, and a start takes from there what its open windows still need.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions, PrismRunnerOptions

from beam_pipelines import arrival_clock, back_pressure, draining, durable, metrics
from beam_pipelines.arrow.schema import of_source
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.edges import Job, Resume, archive_of, raw_key
from beam_pipelines.errors import BeamPipelinesError, RunError, SpecError
from beam_pipelines.formats import archive_compaction
from beam_pipelines.formats.archive import raw_batch, read_since, source_folder
from beam_pipelines.pipeline import build
from beam_pipelines.runners import in_process
from beam_pipelines.runners.crashes import Positions, look_back, of_positions
from beam_pipelines.runners.direct import importable, temporary
from beam_pipelines.runners.in_process import InProcessJob, in_process_job
from beam_pipelines.runners.prism import PrismJob, prism_job
from beam_pipelines.runners.prism_binary import find_prism
from beam_pipelines.sinks import speed_compaction
from beam_pipelines.sinks.epochs import stream_folder, take_epoch
from beam_pipelines.sinks.judge import JudgeRun
from beam_pipelines.sinks.labels import labels_of
from beam_pipelines.sinks.ledger import Ledger
from beam_pipelines.sinks.outputs import SpeedOutput, StreamOutputs, write_outputs
from beam_pipelines.sinks.plan import letter_writes_of, writes_of
from beam_pipelines.sinks.reached import Reached, begin, write_progress
from beam_pipelines.sinks.results import RunResults, metadata, write_run
from beam_pipelines.sinks.run import RunInfo, new_run_id, utc_now
from beam_pipelines.sinks.stream_ledger import stored_outputs, stream_ledger
from beam_pipelines.sources import pubsub
from beam_pipelines.sources.lookups import lookups_of
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.secrets import expect_secrets
from beam_pipelines.transforms import keyed_state
from beam_pipelines.transforms.prepare import row_program
from beam_pipelines.transforms.stage import WARNED

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.5
_COMPACT_EVERY_S = 10.0
_ALWAYS = -(2**62)


@dataclass(frozen=True)
class StreamCall:
    """How a stream was asked for. It ends by itself after `until_idle_s` without messages or `max_duration_s` in all; `watch` is called
    every half second; `say` gets sentences for people; `make` gives another source in place of Pub/Sub (see `edges.Resume`)."""

    run_id: str | None = None
    flags: tuple[str, ...] = ()
    args: Mapping[str, Any] = field(default_factory=dict)
    until_idle_s: float | None = None
    max_duration_s: float | None = None
    keep_logs: bool = False
    watch: Callable[[], None] = lambda: None
    say: Callable[[str], None] = lambda sentence: None
    make: Callable[..., beam.PTransform] | None = None


def run_stream(loaded: LoadedSpec, call: StreamCall = StreamCall()) -> RunResults:
    """Runs the spec over its subscriptions until it is drained; gives the run's record.

    SIGTERM and Ctrl-C drain: what was pulled is stored and acknowledged, windows still open show panes marked `drained`. A second one ends the
    job where it stands, which loses nothing either. Raises SpecError where the call is wrong, SourceError where a subscription refuses, SinkError
    where a place does, or a later start has taken the stream over, RunError where the job breaks.
    """
    spec = loaded.spec
    with importable(loaded.directory):  # all that can refuse comes before the epoch: a wrong call must not end a stream that runs
        _check(spec)
    on_prism = _has_prism(call)
    if call.make is None:
        for source in spec.sources.stream:
            pubsub.check_subscription(source)
    draining.reset()
    arrival_clock.reset()
    durable.reset()
    back_pressure.limit(back_pressure.MOST_BYTES)
    metrics.reset()
    keyed_state.forget()
    run = _run_info(loaded, call)
    outputs = outputs_of(spec, run)
    write_outputs(run.state, outputs)
    before = begin(run.state, run.epoch)
    call.say(_beginning(run, before))
    over_many = [check.name for check in spec.checks if not check.per_row]
    if over_many:
        call.say(f"checks over many rows are judged by batch runs, not here: {', '.join(over_many)}")
    with importable(loaded.directory), temporary(call.flags, run) as temp_location, _draining_signals(call.say):
        guard = look_back(stream_folder(run.state), run.epoch, records=partial(_records, spec, run.state), say=call.say)
        resume = Resume(before, run.epoch == 1, guard, call.make)
        job = Job(spec, run, temp_location, args=tuple(call.args.items()), resume=resume)
        with (
            _compacting(spec, run, outputs.archive),
            _pulling(),
            _running(lambda pipeline: build(pipeline, job), call, on_prism=on_prism) as running,
        ):
            _supervise(running, call)
            out_s = max((status.out_s for status in pubsub.status()), default=0.0)
    if isinstance(running, InProcessJob):
        run = replace(run, engine=in_process.ENGINE)
    ended = draining.ended_at()
    if ended is not None:
        write_progress(run.state, run.epoch, _at_the_end(before, ended, out_s=out_s))
    return _record(loaded, run, call, outputs, drained=ended is not None)


def _has_prism(call: StreamCall) -> bool:
    """Whether there is a Prism; where it cannot be had, a job that ends by itself runs on FnApiRunner, which is said."""
    try:
        find_prism(PipelineOptions(list(call.flags)).view_as(PrismRunnerOptions).prism_location, say=call.say)
    except RunError as error:
        if call.until_idle_s is None and call.max_duration_s is None:
            raise
        call.say(f"{error.message}; running on Beam's FnApiRunner instead: everything that waits for time is shown when the stream ends")
        return False
    return True


def _running(
    build_graph: Callable[[beam.Pipeline], object], call: StreamCall, *, on_prism: bool
) -> contextlib.AbstractContextManager[PrismJob | InProcessJob]:
    if on_prism:
        return prism_job(build_graph, flags=call.flags, keep_logs=call.keep_logs, say=call.say)
    return in_process_job(build_graph, flags=call.flags)


def outputs_of(spec: PipelineSpec, run: RunInfo) -> StreamOutputs:
    """Every place the stream writes to."""
    provenance = {label: (sink.provenance or spec.provenance) == "on" for label, sink in zip(labels_of(spec), spec.sinks, strict=True)}
    found = []
    for output in [*(w.output for w in writes_of(spec, run)), *(w.output for w in letter_writes_of(spec, run))]:
        aggregate = spec.aggregates.get(output.of)
        groups, spans = ((), (0, 0)) if aggregate is None else (aggregate.group_by, _spans(aggregate.windowing))
        found.append(SpeedOutput(output.name, output.of, output.speed, groups, provenance.get(output.name, True), *spans))
    archives = tuple(source_folder(archive_of(source, run.state), source.pubsub) for source in spec.sources.stream)
    return StreamOutputs(tuple(found), archives)


def _spans(windowing: WindowSpec | None) -> tuple[int, int]:
    """How long after its end a window is shown at the latest, and how long it stays open, in microseconds of the arrival clock."""
    if windowing is None:
        return 0, 0
    looked_at = min((windowing.gap or 0) // 100, 10_000_000)  # how often sessions are
    return windowing.watermark_delay + looked_at + 2_000, max(windowing.allowed_lateness, windowing.watermark_delay) + (windowing.gap or 0)


def _records(spec: PipelineSpec, state: str, name: str, positions: Positions) -> Iterator[tuple[pa.RecordBatch, Any]]:
    """Raw batches of the messages of subscription `name` at `positions`, each with the program that works on it."""
    lookups = lookups_of(spec)
    for number, source in enumerate(spec.sources.stream):
        if source.pubsub == name:
            folder = source_folder(archive_of(source, state), name)
            program = row_program(spec, source, lookups)
            for batch in of_positions(read_since(folder, _ALWAYS, key=raw_key(spec)), positions):
                yield of_source(raw_batch(batch, keep_attributes=source.format.type == "avro"), number), program


def _check(spec: PipelineSpec) -> None:
    if spec.contract.sensitive and spec.dead_letters.raw_key is None:
        raise SpecError(
            "run --mode stream: the contract has sensitive columns, and a stream keeps raw messages in its archive before it acknowledges them.",
            hint="Name a key they are sealed with: dead_letters: {raw_key: env:NAME}.",
        )
    expect_secrets(
        {"hmac_key": spec.hmac_reference, "dead_letters.raw_key": spec.dead_letters.raw_key if spec.contract.sensitive else None}
    )
    lookups = lookups_of(spec)
    for lookup in lookups.values():
        lookup()
    for source in spec.sources.stream:
        row_program(spec, source, lookups)


def _run_info(loaded: LoadedSpec, call: StreamCall) -> RunInfo:
    spec, run_id = loaded.spec, call.run_id or new_run_id()
    epoch = take_epoch(loaded.state, run_id)
    return RunInfo(
        run_id, spec.pipeline, loaded.state, pipeline_version=spec.version, contract=spec.contract.fingerprint, mode="stream",
        engine="PrismRunner", spec=loaded.path, epoch=epoch,
    )  # fmt: skip


def _beginning(run: RunInfo, before: Reached) -> str:
    if run.epoch == 1:
        return f"stream {run.pipeline}: start 1"
    if before.watermark_micros is None:
        return f"stream {run.pipeline}: start {run.epoch}; nothing is known of earlier ones, what they archived is replayed"
    at = str(np.datetime64(before.watermark_micros, "us").astype("datetime64[s]"))
    return f"stream {run.pipeline}: start {run.epoch}; everything that arrived before {at}Z is stored, what open windows need is replayed"


@contextlib.contextmanager
def _pulling() -> Iterator[None]:
    """However the job ends, what is stored is acknowledged and the rest handed back, so that nobody waits for leases to end."""
    try:
        yield
    finally:
        pubsub.close()


def _at_the_end(before: Reached, ended_micros: int, *, out_s: float) -> Reached:
    """How far a start has come that ended in order at this watermark; messages may be leased for `out_s` more."""
    began = before.watermark_micros
    known = [at for at in (began, ended_micros if ended_micros > _ALWAYS else None) if at is not None]
    now_ms = time.time_ns() // 1_000_000
    return Reached(max(known, default=None), began, now_ms, ended=True, out_ms=now_ms + round(out_s * 1000))


@contextlib.contextmanager
def _draining_signals(say: Callable[[str], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask the sources to end; a second one raises KeyboardInterrupt."""

    def asked(number: int, frame: Any) -> None:
        if draining.requested():
            raise KeyboardInterrupt
        draining.request()
        say("draining: what was pulled is stored and acknowledged; once more ends at once")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _supervise(running: PrismJob | InProcessJob, call: StreamCall) -> None:
    """Waits for the end of the job, shows it, and ends it when it was asked to."""
    begun = time.monotonic()
    while not running.wait(_LOOK_EVERY_S):
        call.watch()
        if not draining.requested() and _over(call, time.monotonic() - begun):
            draining.request()
    call.watch()


@contextlib.contextmanager
def _compacting(spec: PipelineSpec, run: RunInfo, archives: Sequence[str]) -> Iterator[None]:
    """Merges the small files of the archive and of the speed layer meanwhile, in a thread of its own: a pass can take seconds."""
    stop = threading.Event()
    at_rest: dict[str, int] = {}
    compact = {folder: partial(archive_compaction.compact, folder) for folder in archives}
    compact |= {writing.layout.folder: partial(speed_compaction.compact, writing) for writing in speed_compaction.writings_of(spec, run)}

    def passes() -> None:
        while not stop.wait(_COMPACT_EVERY_S):
            for folder, one_pass in compact.items():
                try:
                    one_pass(epoch=run.epoch, at_rest=at_rest)
                except (
                    BeamPipelinesError,
                    OSError,
                    pa.ArrowException,
                ) as error:  # the stream goes on with small files; the next pass tries again
                    _LOG.warning("%s: small files were not merged: %s", folder, error)

    thread = threading.Thread(target=passes, name="compact", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _over(call: StreamCall, elapsed_s: float) -> bool:
    if call.max_duration_s is not None and elapsed_s >= call.max_duration_s:
        return True
    states = pubsub.status()
    return (
        call.until_idle_s is not None
        and bool(states)
        and all(s.idle_s >= call.until_idle_s and not s.held and s.outage is None for s in states)
    )


def _record(loaded: LoadedSpec, run: RunInfo, call: StreamCall, outputs: StreamOutputs, *, drained: bool) -> RunResults:
    """The record of a stream that has ended: ledger and outputs of all its starts, the checks of this one."""
    ledger = stream_ledger(run.state, outputs)
    seen = metrics.snapshot()
    failing = {name.removeprefix(WARNED): hits for name, hits in seen.items() if name.startswith(WARNED)}
    by_row = tuple(check for check in loaded.spec.checks if check.per_row)
    checks = tuple(JudgeRun(by_row, run.started_at)({}, Ledger(ledger.lines, ledger.reasons, failing, ())))
    failures = tuple(ledger.explain().splitlines()) if drained else ()
    failures += tuple(f"check '{c.name}' failed: {c.observed}" for c in checks if c.status == "fail")
    stored = stored_outputs(run.state, outputs, ledger)
    record = RunResults(
        metadata(run, finished_at=utc_now()), "failed" if failures else "success", failures, dict(call.args), stored, ledger.lines, ledger.reasons,
        failing, checks,
    )  # fmt: skip
    write_run(run.state, record)
    return record
