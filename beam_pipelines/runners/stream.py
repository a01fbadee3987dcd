"""Streams: start, watch, drain, account.

    epoch ─▶ how far had we come ─▶ Prism, Flink ─▶ job ─▶ … ─▶ drain: hand out, store, acknowledge, panes of open windows ─▶ ledger, record

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

from beam_pipelines import draining, metrics
from beam_pipelines.arrow.quiet import HIDDEN
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.back_pressure import MOST_BYTES
from beam_pipelines.edges import Job, Resume, archive_of
from beam_pipelines.errors import BeamPipelinesError, RunError, SpecError
from beam_pipelines.formats import archive_compaction
from beam_pipelines.formats.archive import source_folder
from beam_pipelines.formats.compaction import Step
from beam_pipelines.pipeline import build
from beam_pipelines.runners import in_process
from beam_pipelines.runners.archived_records import records_at
from beam_pipelines.runners.crashes import look_back
from beam_pipelines.runners.direct import importable, temporary
from beam_pipelines.runners.elsewhere import Elsewhere, control_folder, forget_earlier
from beam_pipelines.runners.flink.jars import jar_versions
from beam_pipelines.runners.flink.job import FlinkJob, JobLostError, elements_of, expect_room, flink_job, jar_at_hand, target
from beam_pipelines.runners.heap import settle_heap
from beam_pipelines.runners.in_process import InProcessJob, in_process_job
from beam_pipelines.runners.options import FLINK, LOOPBACK, Flink
from beam_pipelines.runners.portable_job import PortableJob
from beam_pipelines.runners.prism import expect_no_other, prism_job, state_here
from beam_pipelines.runners.prism_binary import find_prism
from beam_pipelines.runners.process_state import begin_anew
from beam_pipelines.runners.versions import versions_here
from beam_pipelines.sinks import speed_compaction
from beam_pipelines.sinks.bigquery_append import close_appenders
from beam_pipelines.sinks.epochs import Fence, Ran, all_starts, latest_epoch, stream_folder, take_epoch
from beam_pipelines.sinks.judge import JudgeRun
from beam_pipelines.sinks.labels import labels_of
from beam_pipelines.sinks.ledger import Ledger
from beam_pipelines.sinks.outputs import SpeedOutput, StreamOutputs, write_outputs
from beam_pipelines.sinks.plan import appends_of, letter_appends_of, letter_writes_of, writes_of
from beam_pipelines.sinks.reached import Reached, begin, write_progress
from beam_pipelines.sinks.resolutions import write_no_resolutions
from beam_pipelines.sinks.results import RunResults, expect_id, find_run, metadata, write_run
from beam_pipelines.sinks.run import RunInfo, later_id, new_run_id, utc_now
from beam_pipelines.sinks.speed import write_no_doors
from beam_pipelines.sinks.stream_ledger import stored_outputs, stream_ledger
from beam_pipelines.sources import pubsub
from beam_pipelines.sources.lookups import FileLookup, lookups_of, versions_of
from beam_pipelines.sources.pubsub_watermark import Patience
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.placing import placing
from beam_pipelines.spec.secrets import expect_keys
from beam_pipelines.transforms.prepare import row_program
from beam_pipelines.transforms.stage import WARNED

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.5
_COMPACT_EVERY_S = 10.0
_LASTING_S, _LONGEST_WAIT_S = 300.0, 60.0
_ALWAYS = -(2**62)
_PRISM = "PrismRunner"

Running = PortableJob | InProcessJob | FlinkJob


@dataclass(frozen=True)
class StreamCall:
    """How a stream was asked for, on Prism or on the `flink` cluster. It ends by itself after `until_idle_s`, and 1.5 s, without messages or `max_duration_s` in all; `watch` is called
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
    flink: Flink | None = None


def run_stream(loaded: LoadedSpec, call: StreamCall = StreamCall()) -> RunResults:
    """Runs the spec over its subscriptions until it is drained; gives the run's record.

    SIGTERM and Ctrl-C drain: what was pulled is stored and acknowledged, windows still open show panes marked `drained`. A second one ends the
    job where it stands, which loses nothing either. Where a cluster loses the job, the next start follows by itself. A start that ends with an error, whatever it is, leaves a
    record, too, unless a later one has taken the stream over.

    Raises SpecError where the call is wrong, SourceError where a subscription refuses, SinkError where a place does, or a later start has taken the stream over,
    RunError where the job breaks.
    """
    spec = loaded.spec
    expect_id(loaded.state, call.run_id, mode="stream", anew=True)
    with importable(loaded.directory):  # all that can refuse comes before the epoch: a wrong call must not end a stream that runs
        lookups = _check(spec)
    expect_no_other()
    engine = _engine(call)
    if call.make is None:
        for source in spec.sources.stream:
            pubsub.check_subscription(source)
    draining.reset()
    begun, losses = time.monotonic(), 0
    with importable(loaded.directory), _draining_signals(call.say):
        while True:
            run = _run_info(loaded, call, engine, lookups)
            began = time.monotonic()
            try:
                try:
                    return _start(loaded, call, run, lookups, begun)
                except RunError as error:
                    Fence(run.state, run.epoch)()  # a later start has ended it, and must not be ended in its turn
                    if isinstance(error, JobLostError) and not draining.requested():
                        losses = losses + 1 if time.monotonic() - began < _LASTING_S else 1
                        if _next_follows(call, error, wait_s=min(2.0 ** (losses - 1), _LONGEST_WAIT_S)):
                            continue
                    raise
            except BaseException as error:  # also one that is not ours, and a second signal
                _record_failed(loaded, run, call, error)
                raise


def _next_follows(call: StreamCall, lost: JobLostError, *, wait_s: float) -> bool:
    """Waits until there is somebody to run the next start; False where the stream is to end meanwhile."""
    assert call.flink is not None
    call.say(f"{lost.message} The next start follows in {wait_s:.0f} s.")
    draining.wait(wait_s)
    said = False
    while True:
        try:
            expect_room(call.flink, call.flags)
            return True
        except RunError as error:
            if not said:
                call.say(f"{error.message} Waiting.")
            said = True
        if draining.wait(1.0):
            return False


def _start(loaded: LoadedSpec, call: StreamCall, run: RunInfo, lookups: Mapping[str, FileLookup], begun: float) -> RunResults:
    """One start of the stream, from where the ones before have come; gives its record."""
    spec, on_flink = loaded.spec, run.engine == FLINK
    begin_anew(most_waiting_bytes=None if on_flink else MOST_BYTES)  # Flink has its own
    outputs = stream_outputs_of(spec, run)
    write_no_doors(run.state)
    write_no_resolutions(run.state)
    write_outputs(run.state, outputs)
    before = begin(run.state, run.epoch)
    call.say(_beginning(run, before))
    over_many = [check.name for check in spec.checks if not check.per_row]
    if over_many:
        call.say(f"checks over many rows are judged by batch runs, not here: {', '.join(over_many)}")
    with temporary(call.flags, run) as temp_location:
        guard = look_back(stream_folder(run.state), run.epoch, records=partial(records_at, spec, run.state), say=call.say)
        elsewhere = _elsewhere(call, run, len(spec.sources.stream))
        control, elements = (None, 1) if elsewhere is None else (elsewhere.folder, elsewhere.elements)
        resume = Resume(before, run.epoch == 1, guard, call.make, unbroken=on_flink, control=control, elements=elements)
        job = Job(spec, run, temp_location, args=tuple(call.args.items()), resume=resume, lookups=lookups)
        with (
            _compacting(spec, run, outputs.archive),
            _pulling(),
            state_here() if run.engine == _PRISM else contextlib.nullcontext(),
            _running(partial(build, job=job), call, run) as running,
        ):
            settle_heap()
            _supervise(running, call, begun, elsewhere)
            out_s = max((status.out_s for status in pubsub.status()), default=0.0)
    ended = draining.ended_at()
    if ended is not None:
        write_progress(run.state, run.epoch, _at_the_end(before, ended, out_s=out_s))
    return _record(loaded, run, call, outputs, drained=ended is not None)


def _engine(call: StreamCall) -> str:
    """The Beam runner that will run it. Where Prism cannot be had, a job that ends by itself runs on FnApiRunner, which is said."""
    if call.flink is not None:
        target(call.flink)
        return FLINK
    try:
        find_prism(PipelineOptions(list(call.flags)).view_as(PrismRunnerOptions).prism_location, say=call.say)
    except RunError as error:
        if call.until_idle_s is None and call.max_duration_s is None:
            raise
        call.say(f"{error.message}; running on Beam's FnApiRunner instead: everything that waits for time is shown when the stream ends")
        return in_process.ENGINE
    return _PRISM


def _running(graph: Callable[[beam.Pipeline], object], call: StreamCall, run: RunInfo) -> contextlib.AbstractContextManager[Running]:
    if call.flink is not None:
        return flink_job(
            graph,
            call.flink,
            name=run.run_id,
            flags=call.flags,
            streaming=True,
            instead_of=lambda: {start.run_id for start in all_starts(run.state).values()},
            keep_logs=call.keep_logs,
            say=call.say,
        )
    if run.engine == _PRISM:
        return prism_job(graph, flags=call.flags, keep_logs=call.keep_logs, say=call.say)
    return in_process_job(graph, flags=call.flags)


def stream_outputs_of(spec: PipelineSpec, run: RunInfo) -> StreamOutputs:
    """Every place the stream writes to."""
    provenance = {label: (sink.provenance or spec.provenance) == "on" for label, sink in zip(labels_of(spec), spec.sinks, strict=True)}
    tables = {name: append.table for name, append in appends_of(spec, run).items()}
    tables |= {name: append.table for name, append in letter_appends_of(spec, run).items()}
    found = []
    for output in [*(w.output for w in writes_of(spec, run)), *(w.output for w in letter_writes_of(spec, run))]:
        aggregate = spec.aggregates.get(output.of)
        groups, spans = ((), (0, 0)) if aggregate is None else (aggregate.group_by, _spans(aggregate.windowing))
        time = (spec.contract.event_time,) if output.of == "rows" and spec.contract.event_time else ()
        placed = tuple(dict.fromkeys((*time, *output.partitions))) if output.of != "dead_letters" else ()
        found.append(
            SpeedOutput(
                output.name,
                output.of,
                output.speed,
                groups,
                provenance.get(output.name, True),
                *spans,
                placed,
                (placing(spec),) if time else (),
                tables.get(output.name, ""),
            )
        )
    archives = tuple(source_folder(archive_of(source, run.state), source.pubsub) for source in spec.sources.stream)
    return StreamOutputs(tuple(found), archives, tuple(source.pubsub for source in spec.sources.stream))


def _spans(windowing: WindowSpec | None) -> tuple[int, int]:
    """How long after its end a window is shown at the latest, and how long it stays open, in microseconds of the arrival clock."""
    if windowing is None:
        return 0, 0
    looked_at = min((windowing.gap or 0) // 100, 10_000_000)  # how often sessions are
    return windowing.watermark_delay + looked_at + 2_000, max(windowing.allowed_lateness, windowing.watermark_delay) + (windowing.gap or 0)


def _check(spec: PipelineSpec) -> dict[str, FileLookup]:
    """The lookups, read once."""
    expect_sealed(spec)
    expect_keys(spec)
    lookups = lookups_of(spec, endless=True)
    for lookup in lookups.values():
        lookup()
    for source in spec.sources.stream:
        row_program(spec, source, lookups)
    return lookups


def expect_sealed(spec: PipelineSpec) -> None:
    """Raises SpecError where a stream would keep sensitive values as they are."""
    if spec.sensitive and spec.dead_letters.raw_key is None:
        raise SpecError(
            "run --mode stream: there are sensitive columns, and a stream keeps raw messages in its archive before it acknowledges them.",
            hint="Name a key they are sealed with: dead_letters: {raw_key: env:NAME}.",
        )


def _run_info(loaded: LoadedSpec, call: StreamCall, engine: str, lookups: Mapping[str, FileLookup]) -> RunInfo:
    spec, versions = loaded.spec, versions_of(loaded.spec, lookups)
    run = RunInfo(
        _run_id(loaded.state, call.run_id), spec.pipeline, loaded.state, pipeline_version=spec.version, contract=spec.contract.fingerprint, mode="stream",
        engine=engine, spec=loaded.path, lookups=versions,
    )  # fmt: skip
    epoch = take_epoch(loaded.state, run.run_id, dict(versions), ran=Ran.of(loaded), versions=_versions(call, engine))
    return replace(run, epoch=epoch)


def _run_id(state: str, asked: str | None) -> str:
    """The id that was asked for is the first start's; each later one has its own, which sorts after it."""
    if asked is None:
        return new_run_id()
    taken = find_run(state, asked) is not None or any(start.run_id == asked for start in all_starts(state).values())
    return later_id(asked) if taken else asked


def _versions(call: StreamCall, engine: str) -> dict[str, str]:
    """What is at work, for whoever compares a later start with this one; of Flink as far as it is known before the job is."""
    found = {**versions_here(), "engine": engine}
    if call.flink is None:
        return found
    with contextlib.suppress(BeamPipelinesError):  # whoever starts the job says it
        found["Flink"] = target(call.flink).version
        jar = jar_at_hand(call.flink, found["Flink"])
        found |= {"Flink runner": jar_versions(jar).beam or "unknown"} if jar is not None else {}
    return found


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
        close_appenders()


def _at_the_end(before: Reached, ended_micros: int, *, out_s: float) -> Reached:
    """How far a start has come that ended in order at this watermark; messages may be leased for `out_s` more."""
    began = before.watermark_micros
    known = [at for at in (began, ended_micros if ended_micros > _ALWAYS else None) if at is not None]
    now_ms = time.time_ns() // 1_000_000
    return Reached(max(known, default=None), began, now_ms, ended=True, out_ms=now_ms + round(out_s * 1000))


_DRAINING = "draining: what was pulled is stored and acknowledged; once more ends at once"


@contextlib.contextmanager
def _draining_signals(say: Callable[[str], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask the sources to end; a second one raises KeyboardInterrupt."""

    def asked(number: int, frame: Any) -> None:
        if draining.requested():
            earlier = before[signal.Signals(number)]
            if callable(earlier):  # whose it was notes which signal it is: the exit code says it
                earlier(number, frame)
            raise KeyboardInterrupt
        draining.request()
        try:
            say(_DRAINING)
        except RuntimeError:  # the signal has interrupted a line that is being said to the same place: when that is through
            threading.Thread(target=say, args=(_DRAINING,), daemon=True).start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _elsewhere(call: StreamCall, run: RunInfo, sources: int) -> Elsewhere | None:
    """What is heard of sources in other processes; None where they are threads of this one."""
    if call.flink is None or target(call.flink).workers == LOOPBACK:
        return None
    forget_earlier(run.state, run.epoch)
    elements = 1 if call.make is not None else elements_of(call.flink, call.flags)
    return Elsewhere(control_folder(run.state, run.epoch), sources, elements)


def _supervise(running: Running, call: StreamCall, begun: float, elsewhere: Elsewhere | None) -> None:
    """Waits for the end of the job, shows it, and ends it when it was asked to."""
    while not running.wait(_LOOK_EVERY_S):
        if elsewhere is not None:
            elsewhere()
        call.watch()
        if not draining.requested() and _over(call, time.monotonic() - begun):
            draining.request()
    call.watch()


@contextlib.contextmanager
def _compacting(spec: PipelineSpec, run: RunInfo, archives: Sequence[str]) -> Iterator[None]:
    """Merges the small files of the archive and of the speed layer meanwhile, in a thread of its own: a pass can take seconds."""
    stop = threading.Event()
    at_rest: dict[str, int] = {}
    compact: dict[str, Callable[..., Iterator[Step]]] = {folder: partial(archive_compaction.compact_steps, folder) for folder in archives}
    compact |= {
        writing.layout.folder: partial(speed_compaction.compact_steps, writing, state=run.state)
        for writing in speed_compaction.writings_of(spec, run)
    }

    def passes() -> None:
        while not stop.wait(_COMPACT_EVERY_S):
            for folder, steps in compact.items():
                try:
                    for _ in steps(epoch=run.epoch, at_rest=at_rest):
                        if stop.is_set():
                            return
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


_LEAST_IDLE_S = Patience().lookback_s + 0.5
"""Sooner after the last message the source does not say how far it is, and windows that could close would be left open."""


def _over(call: StreamCall, elapsed_s: float) -> bool:
    if call.max_duration_s is not None and elapsed_s >= call.max_duration_s:
        return True
    states = pubsub.status()
    return (
        call.until_idle_s is not None
        and bool(states)
        and all(s.idle_s >= max(call.until_idle_s, _LEAST_IDLE_S) and not s.held and s.outage is None for s in states)
    )


def _record_failed(loaded: LoadedSpec, run: RunInfo, call: StreamCall, error: BaseException) -> None:
    """The record of a start that ended with an error, unless a later one has taken the stream over. Where that fails, too, what is told is the error."""
    try:
        if latest_epoch(run.state) != run.epoch:
            return
        said = _said(error, loaded.spec)
        bare = RunResults(metadata(run, finished_at=utc_now()), "failed", (said,), dict(call.args))
        write_run(run.state, bare)  # to count takes a while, and what has failed may fail again
        if isinstance(error, Exception):  # who interrupts does not wait for it
            _record(loaded, run, call, stream_outputs_of(loaded.spec, run), drained=False, error=said)
    except Exception as again:
        _LOG.warning("run %s: its record was not written, or not all of it: %s", run.run_id, again)


def _said(error: BaseException, spec: PipelineSpec) -> str:
    """An error in a record. The text of one that is not ours may hold values of a row."""
    if isinstance(error, BeamPipelinesError):
        return error.message
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"{type(error).__name__}: {HIDDEN if spec.sensitive else error}"


def _record(
    loaded: LoadedSpec, run: RunInfo, call: StreamCall, outputs: StreamOutputs, *, drained: bool, error: str | None = None
) -> RunResults:
    """The record of a stream that has ended: ledger and outputs of all its starts, the checks of this one."""
    ledger = stream_ledger(run.state, outputs)
    seen = metrics.snapshot()
    failing = {name.removeprefix(WARNED): hits for name, hits in seen.items() if name.startswith(WARNED)}
    by_row = tuple(check for check in loaded.spec.checks if check.per_row)
    checks = tuple(JudgeRun(by_row, run.started_at)((), Ledger(ledger.lines, ledger.reasons, failing, ())))
    failures: tuple[str, ...] = () if error is None else (error,)
    failures += tuple(ledger.explain().splitlines()) if drained else ()
    failures += tuple(f"check '{c.name}' failed: {c.observed}" for c in checks if c.status == "fail")
    stored = stored_outputs(run.state, outputs, ledger)
    record = RunResults(
        metadata(run, finished_at=utc_now()), "failed" if failures else "success", failures, dict(call.args), stored, ledger.lines, ledger.reasons,
        failing, checks,
    )  # fmt: skip
    write_run(run.state, record)
    return record
