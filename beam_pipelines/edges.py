"""The two ends of the graph, where a bounded job and an endless one differ: where rows come from, and how what they become is stored.

              from                                     to
    batch     files                                    staged files, one commit at the end for all
    stream    messages, archived before anything else  files in place as bundles end, and the watermark behind them

What lies between (`pipeline.build`) is the same for both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import apache_beam as beam

from beam_pipelines.arrow.masking import parse_key
from beam_pipelines.arrow.ranges import Range
from beam_pipelines.formats.archive import read_since, source_folder
from beam_pipelines.intake import cut_of, stock_of
from beam_pipelines.places import join
from beam_pipelines.sinks.archive import Archive
from beam_pipelines.sinks.commit import Commit
from beam_pipelines.sinks.dead_letters import WriteDeadLetters
from beam_pipelines.sinks.deletions import expect_archived
from beam_pipelines.sinks.epochs import Fence
from beam_pipelines.sinks.inventory import Stock
from beam_pipelines.sinks.judge import JudgeRun
from beam_pipelines.sinks.plan import (
    appends_of,
    buries,
    letter_appends_of,
    letter_publishes_of,
    letter_writes_of,
    outputs_of,
    published_of,
    publishes_of,
)
from beam_pipelines.sinks.progress import MOST_AHEAD, Progress
from beam_pipelines.sinks.pubsub import Publish, PublishDeadLetters
from beam_pipelines.sinks.reached import Reached
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sinks.speed import WriteDoors, WriteSpeed, WriteSpeedLetters
from beam_pipelines.sinks.tombstones import WriteTombstones
from beam_pipelines.sinks.write import Write
from beam_pipelines.sources.batch import read_batch
from beam_pipelines.sources.bigquery_range import near_of
from beam_pipelines.sources.pubsub import ReadPubsub
from beam_pipelines.sources.pubsub_reports import Together
from beam_pipelines.spec.horizon import compared_late, horizon, reach
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.secrets import resolve_secret
from beam_pipelines.spec.sinks import ROWS
from beam_pipelines.spec.sources import ArchiveSource, BatchSource, PubsubSource
from beam_pipelines.transforms import Aggregate, Deduplicate
from beam_pipelines.transforms.guard import Guard
from beam_pipelines.transforms.observe import Observe
from beam_pipelines.transforms.redelivered import HOUR, DropRedelivered
from beam_pipelines.transforms.spans import Spans
from beam_pipelines.transforms.within import BESIDE, OUTSIDE, Inside, LettersWithin, Within

_ALWAYS = -(2**62)
_IDLE_S = 1.0  # of a reader whose bundles leave something in the state


class Read(NamedTuple):
    """Raw batches of all sources, and dead letters of what could not be read, by stage."""

    rows: beam.PCollection
    dead: dict[str, beam.PCollection]


@dataclass(frozen=True)
class Resume:
    """Where a stream begins. `before` is how far earlier starts have come (see `progress`); `first`: there were none. `guard` keeps out records that crash the process. `make` gives another
    source in place of Pub/Sub (tests and benchmarks): a transform that yields message batches. `unbroken`, `control`, `elements`: see `ReadPubsub`."""

    before: Reached = field(default_factory=Reached)
    first: bool = True
    guard: Guard | None = None
    make: Callable[[PubsubSource, int], beam.PTransform] | None = None
    unbroken: bool = False
    control: str | None = None
    elements: int = 1

    @property
    def reached(self) -> int | None:
        """Everything that arrived before is stored (microseconds); None where nothing is known."""
        return self.before.watermark_micros

    def since(self, spec: PipelineSpec) -> int | None:
        """The arrival from which messages are taken from the archive again; None: all of them."""
        return None if self.reached is None else self.reached - horizon(spec)


@dataclass(frozen=True)
class Job:
    """One run of one spec. `temp_location` is a folder that all workers share; `args` are kept in the run's record; `resume` makes it a stream.
    `lookups` open the spec's lookups, where they are open already; `guard` keeps out records of the archive that crash the process."""

    spec: PipelineSpec
    run: RunInfo
    temp_location: str
    apply_lateness: bool = False
    args: tuple[tuple[str, Any], ...] = ()
    resume: Resume | None = None
    lookups: Mapping[str, Any] | None = None
    guard: Guard | None = None


@dataclass
class Batch:
    """The ends of a bounded job."""

    job: Job
    done: list[beam.PCollection] = field(default_factory=list)  # what the commit must hear of: counts, staged files, states of checks
    stock: Stock | None = None

    @property
    def guard(self) -> Guard | None:
        return self.job.guard  # of files there is none: a batch that crashes is run again by hand, and fails again

    @property
    def sources(self) -> Sequence[BatchSource | PubsubSource]:
        spec = self.job.spec
        return spec.sources.batch if self.job.run.input == "batch" else spec.sources.stream

    def read(self, pipeline: beam.Pipeline) -> Read:
        spec, run = self.job.spec, self.job.run
        sources = spec.sources.batch if run.input == "batch" else archives_of(spec, run.state)
        self.stock = stock_of(spec, run)
        only = None if self.stock is None else self.stock.read
        since = needed_since(spec, run)
        near = near_of(spec, run.range) if run.input == "batch" else None
        if run.input == "archive":
            expect_archived(run.state, since)
        read = read_batch(pipeline, sources, spec.contract, key=raw_key(spec), since=since, only=only, run_id=run.run_id, near=near)
        self.done.append(read.counts)
        return Read(read.rows, {"read": read.dead})

    def near(self, prepared: Any) -> beam.PCollection:
        """Rows that the run's range can depend on, and those without an event time, of which aggregates tell; all of a run over everything."""
        rows, where = prepared.rows, self.job.run.range
        cut = None if self.stock is None else cut_of(self.job.spec)
        if cut is not None:
            self.done.append(rows | Spans(self._time, cut.unit))
            self.done.append(prepared.dead | "LetterSpans" >> Spans("event_time", cut.unit, letters=True))
        if where is None:
            return rows
        before, after = reach(self.job.spec)
        inside: Inside = rows | "Near" >> Within(Range(where.start - before, where.end + after), self._time, OUTSIDE, undated=True)
        self.done.append(inside.counts)
        return inside.rows

    def asked(self, rows: beam.PCollection, output: str) -> beam.PCollection:
        """What lies in the run's range, of rows or of an aggregate's panes."""
        where = self.job.run.range
        if where is None:
            return rows
        inside: Inside = rows | f"Asked-{output}" >> Within(where, self._time if output == ROWS else "_window_start", BESIDE)
        if output == ROWS:
            self.done.append(inside.counts)
        return inside.rows

    @property
    def _time(self) -> str:
        assert self.job.spec.contract.event_time is not None  # a range is checked before
        return self.job.spec.contract.event_time

    def deduplicate(self) -> beam.PTransform | None:
        job = self.job
        if job.spec.deduplicate is None:
            return None
        return Deduplicate(
            job.spec.deduplicate,
            contract=job.spec.contract,
            temp_location=job.temp_location,
            run_id=job.run.run_id,
            tell=buries(job.spec, job.run),
        )

    def left(self, stage: Any) -> None:
        """What the ledger must hear of a stage; and which duplicates lie in partitions that the run does not write."""
        self.done.append(stage.counts)
        if hasattr(stage, "duplicates"):
            written = stage.duplicates | "Write-tombstones" >> WriteTombstones(self.job.run, self._time)
            self.done += [written.files, written.counts]

    def observe(self, rows: beam.PCollection) -> None:
        """Checks over many rows."""
        if any(not check.per_row for check in self.job.spec.checks):
            self.done.append(rows | Observe(self.job.spec.checks))

    def aggregate(self, name: str) -> Aggregate:
        return Aggregate(**_aggregate(self.job.spec, name), apply_lateness=self.job.apply_lateness)

    def publishes(self) -> list[Publish]:
        """Sinks of rows and panes that are topics; a run over a range corrects what is stored, and publishes nothing."""
        return publishes_of(self.job.spec, self.job.run) if self.job.run.range is None else []

    def store(self, write: Write | Publish, rows: beam.PCollection, label: str) -> beam.PCollection:
        """Stages an output; gives the letters of rows it refuses."""
        written = rows | label >> write
        self.done += [written.files, written.counts]
        return written.dead

    def conclude(self, dead: Mapping[str, beam.PCollection]) -> beam.PCollection:
        """Stores dead letters and commits; gives the run's record, one `RunResults`."""
        spec, run = self.job.spec, self.job.run
        publishes = letter_publishes_of(spec, run) if run.range is None else []
        writes: list[WriteDeadLetters | PublishDeadLetters] = [*letter_writes_of(spec, run), *publishes]
        for stage, letters in dead.items():  # stage by stage: one PCollection of all would be held in memory between two stages
            kept = self._asked_letters(letters, stage)
            for write in writes:
                stored = kept | f"Write-{write.output.name}-of-{stage}" >> write
                self.done += [stored.files, stored.counts]
        judge = JudgeRun(spec.checks, run.started_at)
        return tuple(self.done) | Commit(
            run, outputs_of(spec, run), thresholds=spec.thresholds, judge=judge, args=dict(self.job.args), raise_on_failure=False,
            published=published_of(spec, run) if run.range is None else (), since=needed_since(spec, run), stock=self.stock,
        )  # fmt: skip

    def _asked_letters(self, letters: beam.PCollection, stage: str) -> beam.PCollection:
        where = self.job.run.range
        if where is None:
            return letters
        inside: Inside = letters | f"Asked-{stage}" >> LettersWithin(
            where, stage.removeprefix("aggregate-") if stage.startswith("aggregate-") else ""
        )
        self.done.append(inside.counts)
        return inside.rows


@dataclass
class Stream:
    """The ends of an endless job."""

    job: Job
    stored: list[beam.PCollection] = field(
        default_factory=list
    )  # of everything that is in place: the watermark behind it is the job's progress
    doors: list[beam.PCollection] = field(default_factory=list)  # rows that left otherwise than written or dead

    @property
    def resume(self) -> Resume:
        assert self.job.resume is not None
        return self.job.resume

    @property
    def sources(self) -> Sequence[BatchSource | PubsubSource]:
        return self.job.spec.sources.stream

    @property
    def guard(self) -> Guard | None:
        return self.resume.guard

    def read(self, pipeline: beam.Pipeline) -> Read:
        each = [self._read(pipeline, source, number) for number, source in enumerate(self.job.spec.sources.stream)]
        return Read(each[0] if len(each) == 1 else tuple(each) | "AllSources" >> beam.Flatten(), {})

    def _read(self, pipeline: beam.Pipeline, source: PubsubSource, number: int) -> beam.PCollection:
        run, key, make = self.job.run, sealing_key(self.job.spec), self.resume.make
        folder = archive_of(source, run.state)
        read = self._live(source, number, source_folder(folder, source.pubsub)) if make is None else make(source, number)
        archive = Archive(
            folder, epoch=run.epoch, fence=Fence(run.state, run.epoch), raw_key=key, keep_attributes=source.format.type == "avro"
        )
        return pipeline | f"Read-{number}" >> read | f"Archive-{number}" >> archive

    def _live(self, source: PubsubSource, number: int, archived: str) -> ReadPubsub:
        """Messages of the subscription, after those of the archive that this start needs again."""
        resume, since = self.resume, self.resume.since(self.job.spec)
        how: dict[str, Any] = {"unbroken": resume.unbroken, "control": resume.control, "elements": resume.elements}
        how["idle_s"] = _IDLE_S if resume.unbroken else 0.0
        if resume.first:
            return ReadPubsub(source, number, **how)
        whole = _ALWAYS if since is None else since
        replay = partial(read_since, archived, whole, stored_since_ms=resume.before.through_ms, key=raw_key(self.job.spec))
        return ReadPubsub(source, number, replay=replay, replay_from=since, others_s=_out_s(resume.before), **how)

    def near(self, prepared: Any) -> beam.PCollection:
        """All rows: a stream has no range."""
        return prepared.rows

    def asked(self, rows: beam.PCollection, output: str) -> beam.PCollection:
        """All rows and panes."""
        return rows

    def deduplicate(self) -> beam.PTransform:
        spec = self.job.spec
        if spec.deduplicate is None:  # a message that is delivered twice must count once all the same
            return DropRedelivered(horizon=max(horizon(spec), HOUR), **_shards(spec))  # so long messages may be leased
        return Deduplicate(spec.deduplicate, contract=spec.contract, lateness=compared_late(spec), **_shards(spec))

    def left(self, stage: Any) -> None:
        """What the ledger must hear of a stage."""
        if hasattr(stage, "doors"):
            self.doors.append(stage.doors)

    def observe(self, rows: beam.PCollection) -> None:
        """Checks over many rows belong to a batch."""

    def aggregate(self, name: str) -> Aggregate:
        spec, together = self.job.spec, self._together
        return Aggregate(
            **_aggregate(spec, name), epoch=self.job.run.epoch, closed_before=self.resume.reached, corrections=spec.deduplicate is not None,
            corrected_within=horizon(spec), sources_in_process=True, most_ahead=None if together is None else MOST_AHEAD, heed=None if together is None else together.heed,
            **_shards(spec),
        )  # fmt: skip

    def publishes(self) -> list[Publish]:
        """Sinks of rows and panes that are topics."""
        return publishes_of(self.job.spec, self.job.run)

    def store(self, write: Write | Publish, rows: beam.PCollection, label: str) -> beam.PCollection:
        """Stores an output as bundles end; gives the letters of rows it refuses."""
        dead, append = [], self._appends.get(write.output.name)
        if append is not None:  # before the files: they are the record, and have no row that the table refuses
            appended = rows | f"Append-{write.output.name}" >> append
            self.stored.append(appended.files)
            rows, dead = appended.taken, [appended.dead]
        stored = rows | label >> (WriteSpeed(write, self.job.run) if isinstance(write, Write) else write)
        self.stored.append(stored.files)
        if write.output.of == ROWS:
            self.doors.append(stored.doors)
        return (*dead, stored.dead) | f"Refused-{write.output.name}" >> beam.Flatten() if dead else stored.dead

    @cached_property
    def _appends(self) -> Mapping[str, beam.PTransform]:
        return appends_of(self.job.spec, self.job.run)

    def conclude(self, dead: Mapping[str, beam.PCollection]) -> beam.PCollection:
        """Stores dead letters and doors, and follows the watermark behind everything that is stored."""
        letters = tuple(dead.values()) | "AllDead" >> beam.Flatten()
        for write in letter_writes_of(self.job.spec, self.job.run):
            stored = letters | f"Write-{write.output.name}" >> WriteSpeedLetters(write, self.job.run)
            self.stored.append(stored.files)
        for name, append in letter_appends_of(self.job.spec, self.job.run).items():
            self.stored.append((letters | f"Append-{name}" >> append).files)
        for publish in letter_publishes_of(self.job.spec, self.job.run):
            self.stored.append((letters | f"Write-{publish.output.name}" >> publish).files)
        doors = tuple(self.doors) | "AllDoors" >> beam.Flatten()
        self.stored.append(doors | "Write-doors" >> WriteDoors(self.job.run))
        run = self.job.run
        return tuple(self.stored) | Progress(run.state, run.epoch, began_micros=self.resume.reached, together=self._together)

    @property
    def _together(self) -> Together | None:
        """The processes in which the sources run; None where it is one."""
        if self.resume.control is None or self.resume.elements == 1:
            return None
        return Together(self.resume.control, len(self.sources), self.resume.elements)


def _out_s(before: Reached) -> float | None:
    """How long messages may still be leased to earlier starts; None where that is not known."""
    return None if before.out_ms is None else max(0.0, before.out_ms / 1000 - time.time())


def archive_of(source: PubsubSource, state: str) -> str:
    """The archive of a subscription's raw messages."""
    return source.archive or join(state, "archive")


def archives_of(spec: PipelineSpec, state: str) -> list[ArchiveSource]:
    """The archives of all subscriptions, as sources of a batch."""
    return [
        ArchiveSource(
            archive=source_folder(archive_of(source, state), source.pubsub),
            format=source.format,
            arrival=source.arrival,
            subscription=source.pubsub,
        )
        for source in spec.sources.stream
    ]


def needed_since(spec: PipelineSpec, run: RunInfo) -> int | None:
    """The arrival from which a run over a range needs archived messages, None: all. Earlier ones lie before all that the range depends on: an event
    time further than `allowed_skew` after the arrival is a dead letter."""
    if run.range is None or run.input == "batch":
        return None
    return run.range.start - reach(spec)[0] - spec.contract.allowed_skew


def raw_key(spec: PipelineSpec) -> Callable[[], bytes] | None:
    """What gives, on a worker, the key that opens raw bytes, also those that an earlier version of the spec sealed; None where it names none."""
    reference = spec.dead_letters.raw_key
    return partial(_key, reference) if reference else None


def sealing_key(spec: PipelineSpec) -> Callable[[], bytes] | None:
    """The same for the key that raw bytes are sealed with; None where there is nothing to hide."""
    return raw_key(spec) if spec.sensitive else None


def _key(reference: str) -> bytes:
    return parse_key(resolve_secret(reference))


def _shards(spec: PipelineSpec) -> dict[str, Any]:
    """Of a stream; where the spec does not say, each stage has its own default."""
    return {} if spec.state_shards is None else {"shards": spec.state_shards}


def _aggregate(spec: PipelineSpec, name: str) -> dict[str, Any]:
    return {"spec": spec.aggregates[name], "name": name, "time": spec.contract.event_time, "time_zone": spec.time_zone}
