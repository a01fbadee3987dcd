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
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam

from beam_pipelines.arrow.masking import parse_key
from beam_pipelines.formats.archive import read_since, source_folder
from beam_pipelines.places import join
from beam_pipelines.sinks.archive import Archive
from beam_pipelines.sinks.commit import Commit
from beam_pipelines.sinks.dead_letters import WriteDeadLetters
from beam_pipelines.sinks.epochs import Fence
from beam_pipelines.sinks.judge import JudgeRun
from beam_pipelines.sinks.plan import letter_publishes_of, letter_writes_of, outputs_of, published_of, publishes_of
from beam_pipelines.sinks.progress import Progress
from beam_pipelines.sinks.pubsub import Publish, PublishDeadLetters
from beam_pipelines.sinks.reached import Reached
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sinks.speed import WriteDoors, WriteSpeed, WriteSpeedLetters
from beam_pipelines.sinks.write import Write
from beam_pipelines.sources.batch import read_batch
from beam_pipelines.sources.pubsub import ReadPubsub
from beam_pipelines.spec.horizon import compared_late, horizon
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.secrets import resolve_secret
from beam_pipelines.spec.sources import BatchSource, PubsubSource
from beam_pipelines.transforms import Aggregate, Deduplicate
from beam_pipelines.transforms.guard import Guard
from beam_pipelines.transforms.observe import Observe
from beam_pipelines.transforms.redelivered import DropRedelivered

_ALWAYS = -(2**62)


class Read(NamedTuple):
    """Raw batches of all sources, and dead letters of what could not be read, by stage."""

    rows: beam.PCollection
    dead: dict[str, beam.PCollection]


@dataclass(frozen=True)
class Resume:
    """Where a stream begins. `before` is how far earlier starts have come (see `progress`); `first`: there were none. `guard` keeps out records that crash the process. `make` gives another
    source in place of Pub/Sub (tests and benchmarks): a transform that yields message batches."""

    before: Reached = field(default_factory=Reached)
    first: bool = True
    guard: Guard | None = None
    make: Callable[[PubsubSource, int], beam.PTransform] | None = None

    @property
    def reached(self) -> int | None:
        """Everything that arrived before is stored (microseconds); None where nothing is known."""
        return self.before.watermark_micros

    def since(self, spec: PipelineSpec) -> int | None:
        """The arrival from which messages are taken from the archive again; None: all of them."""
        return None if self.reached is None else self.reached - horizon(spec)


@dataclass(frozen=True)
class Job:
    """One run of one spec. `temp_location` is a folder that all workers share; `args` are kept in the run's record; `resume` makes it a stream."""

    spec: PipelineSpec
    run: RunInfo
    temp_location: str
    apply_lateness: bool = False
    args: tuple[tuple[str, Any], ...] = ()
    resume: Resume | None = None


@dataclass
class Batch:
    """The ends of a bounded job."""

    job: Job
    done: list[beam.PCollection] = field(default_factory=list)  # what the commit must hear of: counts, staged files, states of checks

    @property
    def guard(self) -> Guard | None:
        return None  # a batch that crashes is run again by hand, and fails again

    @property
    def sources(self) -> Sequence[BatchSource | PubsubSource]:
        return self.job.spec.sources.batch

    def read(self, pipeline: beam.Pipeline) -> Read:
        read = read_batch(pipeline, self.job.spec.sources.batch, self.job.spec.contract, key=raw_key(self.job.spec))
        self.done.append(read.counts)
        return Read(read.rows, {"read": read.dead})

    def deduplicate(self) -> beam.PTransform | None:
        job = self.job
        if job.spec.deduplicate is None:
            return None
        return Deduplicate(job.spec.deduplicate, contract=job.spec.contract, temp_location=job.temp_location, run_id=job.run.run_id)

    def left(self, stage: Any) -> None:
        """What the ledger must hear of a stage."""
        self.done.append(stage.counts)

    def observe(self, rows: beam.PCollection) -> None:
        """Checks over many rows."""
        if any(not check.per_row for check in self.job.spec.checks):
            self.done.append(rows | Observe(self.job.spec.checks))

    def aggregate(self, name: str) -> Aggregate:
        return Aggregate(**_aggregate(self.job.spec, name), apply_lateness=self.job.apply_lateness)

    def publishes(self) -> list[Publish]:
        """Sinks of rows and panes that are topics."""
        return publishes_of(self.job.spec, self.job.run)

    def store(self, write: Write | Publish, rows: beam.PCollection, label: str) -> beam.PCollection:
        """Stages an output; gives the letters of rows it refuses."""
        written = rows | label >> write
        self.done += [written.files, written.counts]
        return written.dead

    def conclude(self, dead: Mapping[str, beam.PCollection]) -> beam.PCollection:
        """Stores dead letters and commits; gives the run's record, one `RunResults`."""
        spec, run = self.job.spec, self.job.run
        writes: list[WriteDeadLetters | PublishDeadLetters] = [*letter_writes_of(spec, run), *letter_publishes_of(spec, run)]
        for stage, letters in dead.items():  # stage by stage: one PCollection of all would be held in memory between two stages
            for write in writes:
                stored = letters | f"Write-{write.output.name}-of-{stage}" >> write
                self.done += [stored.files, stored.counts]
        judge = JudgeRun(spec.checks, run.started_at)
        return tuple(self.done) | Commit(
            run, outputs_of(spec, run), thresholds=spec.thresholds, judge=judge, args=dict(self.job.args), raise_on_failure=False,
            published=published_of(spec, run),
        )  # fmt: skip


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
        run, key, make = self.job.run, raw_key(self.job.spec), self.resume.make
        folder = archive_of(source, run.state)
        read = self._live(source, number, source_folder(folder, source.pubsub)) if make is None else make(source, number)
        archive = Archive(
            folder, epoch=run.epoch, fence=Fence(run.state, run.epoch), raw_key=key, keep_attributes=source.format.type == "avro"
        )
        return pipeline | f"Read-{number}" >> read | f"Archive-{number}" >> archive

    def _live(self, source: PubsubSource, number: int, archived: str) -> ReadPubsub:
        """Messages of the subscription, after those of the archive that this start needs again."""
        resume, since = self.resume, self.resume.since(self.job.spec)
        if resume.first:
            return ReadPubsub(source, number)
        whole = _ALWAYS if since is None else since
        replay = partial(read_since, archived, whole, stored_since_ms=resume.before.through_ms, key=raw_key(self.job.spec))
        return ReadPubsub(source, number, replay=replay, replay_from=since, others_s=_out_s(resume.before))

    def deduplicate(self) -> beam.PTransform:
        spec = self.job.spec
        if spec.deduplicate is None:  # a message that is delivered twice must count once all the same
            return DropRedelivered(horizon=horizon(spec))
        return Deduplicate(spec.deduplicate, contract=spec.contract, lateness=compared_late(spec))

    def left(self, stage: Any) -> None:
        """What the ledger must hear of a stage."""
        if hasattr(stage, "doors"):
            self.doors.append(stage.doors)

    def observe(self, rows: beam.PCollection) -> None:
        """Checks over many rows belong to a batch."""

    def aggregate(self, name: str) -> Aggregate:
        spec = self.job.spec
        return Aggregate(
            **_aggregate(spec, name), epoch=self.job.run.epoch, closed_before=self.resume.reached, corrections=spec.deduplicate is not None,
            sources_in_process=True,
        )  # fmt: skip

    def publishes(self) -> list[Publish]:
        """Sinks of rows and panes that are topics."""
        return publishes_of(self.job.spec, self.job.run, published_before=self.resume.reached)

    def store(self, write: Write | Publish, rows: beam.PCollection, label: str) -> beam.PCollection:
        """Stores an output as bundles end; gives the letters of rows it refuses."""
        stored = rows | label >> (WriteSpeed(write, self.job.run) if isinstance(write, Write) else write)
        self.stored.append(stored.files)
        if write.output.of == "rows":
            self.doors.append(stored.doors)
        return stored.dead

    def conclude(self, dead: Mapping[str, beam.PCollection]) -> beam.PCollection:
        """Stores dead letters and doors, and follows the watermark behind everything that is stored."""
        letters = tuple(dead.values()) | "AllDead" >> beam.Flatten()
        for write in letter_writes_of(self.job.spec, self.job.run):
            stored = letters | f"Write-{write.output.name}" >> WriteSpeedLetters(write, self.job.run)
            self.stored.append(stored.files)
        for publish in letter_publishes_of(self.job.spec, self.job.run, published_before=self.resume.reached):
            self.stored.append((letters | f"Write-{publish.output.name}" >> publish).files)
        doors = tuple(self.doors) | "AllDoors" >> beam.Flatten()
        self.stored.append(doors | "Write-doors" >> WriteDoors(self.job.run))
        return tuple(self.stored) | Progress(self.job.run.state, self.job.run.epoch, began_micros=self.resume.reached)


def _out_s(before: Reached) -> float | None:
    """How long messages may still be leased to earlier starts; None where that is not known."""
    return None if before.out_ms is None else max(0.0, before.out_ms / 1000 - time.time())


def archive_of(source: PubsubSource, state: str) -> str:
    """The archive of a subscription's raw messages."""
    return source.archive or join(state, "archive")


def raw_key(spec: PipelineSpec) -> Callable[[], bytes] | None:
    """What gives, on a worker, the key that raw bytes are sealed with; None where the contract has nothing to hide."""
    reference = spec.dead_letters.raw_key
    return partial(_key, reference) if spec.contract.sensitive and reference else None


def _key(reference: str) -> bytes:
    return parse_key(resolve_secret(reference))


def _aggregate(spec: PipelineSpec, name: str) -> dict[str, Any]:
    return {"spec": spec.aggregates[name], "name": name, "time": spec.contract.event_time, "time_zone": spec.time_zone}
