"""A pipeline as a job on a Flink cluster: handed in, followed, ended, and its failures said as they happen.

    graph ─▶ job server of our own ─▶ Flink job ─▶ workers: threads of this process, or a pool beside each task manager

Flink starts tasks that failed again, as its cluster's configuration says, and says nothing of it to whoever handed the job in: so we look.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import FlinkRunnerOptions, GoogleCloudOptions, PipelineOptions, PortableOptions
from apache_beam.runners.portability.job_server import JavaJarJobServer
from apache_beam.version import __version__ as BEAM_VERSION  # noqa: N812  (a constant)

from beam_pipelines import draining
from beam_pipelines.errors import BeamPipelinesError, RunError, SpecError, TransientError
from beam_pipelines.runners.failures import error_in, own_error
from beam_pipelines.runners.flink import parked_bundles, send_queue
from beam_pipelines.runners.flink.checkpoint_watch import CheckpointWatch
from beam_pipelines.runners.flink.cluster import find_cluster, listens, master_of
from beam_pipelines.runners.flink.jars import FLINK_VERSION, JAVA_OPENS, find_java, find_job_server, jar_versions, kept_job_server
from beam_pipelines.runners.flink.options import flink_options
from beam_pipelines.runners.flink.rest import Failure, FlinkRest, Job
from beam_pipelines.runners.flink.server import job_server
from beam_pipelines.runners.options import LOOPBACK, Flink
from beam_pipelines.runners.portable_job import PortableJob, submitted
from beam_pipelines.sources import split_progress

_GROWS = frozenset({"kubernetes.cluster-id", "yarn.application.id"})
"""Settings of clusters that start task managers when a job needs them."""
_BATCH_FAILURES = 3
"""A batch whose tasks have failed so often is ended: its input and its code do not change."""

_ELEMENTS_EACH = 8
"""Of a source for each slot: Flink spreads them by a hash, and a process that gets none reads nothing."""

_UNKNOWN = "Could not find Flink job"
_SOURCE, _WEIGH_EVERY_S = "Read-", 30.0
MOST_SOURCE_BYTES = 64 << 20
"""Of a stream's source in a checkpoint; what it needs is less than 100 kB."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """A cluster that answers, and who will do the work."""

    rest: FlinkRest
    workers: str
    version: str
    slots: int
    slots_free: int
    task_managers: int
    ours: bool  # started by `cluster up`

    @property
    def announcement(self) -> str:
        """One line for people."""
        workers = "workers in this process" if self.workers == LOOPBACK else f"Python workers at {self.workers}"
        return f"engine: Flink {self.version} at {self.rest.address}, {self.slots} slots, {workers}"


def target(flink: Flink, *, patience_s: float = 10.0) -> Target:
    """The cluster that is meant, of which each answer is waited for so long. Raises SpecError where none was named and none was started here, TransientError where it does not answer, RunError where it
    has no task manager, or is that of `cluster up` and has lost its pool of workers."""
    master = master_of(flink.master)
    if master is None:
        raise SpecError(
            "--runner flink: no cluster is named, and none was started here.",
            hint="Name one: --flink-master HOST:8081. Or start one: beam-pipelines cluster up.",
        )
    here = find_cluster()
    here = here if here is not None and here.rest == master else None
    rest = FlinkRest(master, timeout_s=patience_s)
    found = rest.overview()
    if not found.task_managers:
        raise RunError(
            f"Flink at {master} has no task manager: nothing would run the job.", hint="Start one, or wait until it has registered."
        )
    if here is not None and flink.workers is None and not listens(here.workers):
        raise RunError(
            f"Flink at {master} has no Python workers: its pool at {here.workers} does not listen.",
            hint="Start it again: beam-pipelines cluster up.",
        )
    workers = flink.workers or (LOOPBACK if here is None else here.workers)
    return Target(rest, workers, found.version, found.slots, found.slots_free, found.task_managers, here is not None)


class JobLostError(TransientError):
    """The cluster lost a stream: a task or a manager failed. What was stored stays; the stream is to be started anew."""


def job_server_jar(flink: Flink, version: str, *, say: Say) -> Path:
    """Beam's job server for a cluster of this version: the jar that is named, the pinned one (kept, or built by Maven), or the one that Beam releases and fetches.

    Raises SpecError where the jar that is named is for another Flink, or Beam has none for this one; RunError where none can be had.
    """
    found = jar_at_hand(flink, version)
    if found is not None:
        return found
    if _minor(version) != FLINK_VERSION:
        return _released(version, say)
    try:
        return find_job_server(say=say)
    except RunError as error:
        try:
            return _released(version, say)
        except RunError as other:
            raise RunError(f"{error.message} {other.message}", hint=error.hint) from error


def jar_at_hand(flink: Flink, version: str) -> Path | None:
    """The job server that is named or kept; None where it has to be built or fetched. Raises SpecError as `job_server_jar` does."""
    minor = _minor(version)
    if flink.job_server_jar:
        jar = find_job_server(flink.job_server_jar)
        of = jar_versions(jar).flink
        if of is not None and not of.startswith(f"{minor}."):
            raise SpecError(
                f"--flink-job-server-jar {flink.job_server_jar}: is for Flink {of}; the cluster at {flink.master} is Flink {version}.",
                hint="Leave it out, and one is found that fits.",
            )
        return jar
    kept = kept_job_server()
    if minor == FLINK_VERSION and kept.is_file():
        return kept
    known = FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS
    if minor not in (FLINK_VERSION, *known):
        raise SpecError(f"the cluster is Flink {minor}; Beam {BEAM_VERSION} has runners for {', '.join(known)}.")
    return None


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _released(version: str, say: Say) -> Path:
    """The job server of the installed Beam, from Maven Central or from where Beam has kept it."""
    minor = _minor(version)
    url = JavaJarJobServer.path_to_beam_jar(f":runners:flink:{minor}:job-server:shadowJar")
    say(f"Flink: taking {url}")
    try:
        return Path(JavaJarJobServer.local_jar(url))
    except Exception as error:  # urllib's, and RuntimeError
        why = str(error).partition(". ")[0]
        raise RunError(
            f"Beam's job server for Flink {minor} cannot be fetched: {why}.", hint=f"Fetch {url}, and name it by --flink-job-server-jar."
        ) from error


@dataclass
class FlinkJob:
    """A running job; to be waited for as a `PortableJob` is. `name` is what the cluster calls it, as it may have called jobs `before`.

    The cluster is asked what becomes of it, every `look_every_s`, not the job server: that one may die, and the job goes on. A job manager that has come back
    may look for its jobs for `recovery_s`.
    """

    job: PortableJob
    rest: FlinkRest
    name: str
    streaming: bool
    say: Say
    before: Collection[str] = ()
    look_every_s: float = 1.0
    recovery_s: float = 60.0
    _id: str | None = None
    _seen: set[tuple[int, str]] = field(default_factory=set)
    _look_at: float = 0.0
    _weigh_at: float = 0.0
    _silent: bool = False
    _unknown_since: float | None = None
    _alone: bool = False  # the job server is gone
    _draining: threading.Thread | None = None
    _undrained: RunError | None = None
    _watch: CheckpointWatch = field(init=False)

    def __post_init__(self) -> None:
        self._watch = CheckpointWatch(self.rest, self.say)

    def wait(self, timeout_s: float | None = None) -> bool:
        """True once the job has ended well or was cancelled; False if it still runs after `timeout_s`. Says what fails meanwhile.

        Raises the error of ours that a step raised, or a RunError that names the cause, where the job failed; also where it would fail for ever. Of a stream
        JobLostError, where anything else failed: Flink would go on from a checkpoint, and the stream's own starts go on from the archive (see `runners.stream`).
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            rest = self.look_every_s if deadline is None else max(0.0, min(self.look_every_s, deadline - time.monotonic()))
            if self._ended(rest) or self._look():
                if self._undrained is not None:
                    raise self._undrained
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def cancel(self) -> None:
        """Ends the job where it stands, also where the job server is gone."""
        self.job.cancel()
        if self._id is not None:
            with contextlib.suppress(RunError):
                self.rest.cancel(self._id)

    def close(self) -> None:
        """Cancels the job if it still runs, and lets workers in this process tear their DoFns down."""
        self.cancel()
        self.job.close()

    @property
    def id(self) -> str | None:
        """Flink's own name of the job; None until the cluster lists it."""
        if self._id is None:
            self._id = next((job.id for job in self.rest.jobs() if job.name == self.name and job.id not in self.before), None)
        return self._id

    def _ended(self, timeout_s: float) -> bool:
        """Whether the job has, as far as the job server knows."""
        if self._alone:
            time.sleep(timeout_s)
            return False
        try:
            return self.job.wait(timeout_s)
        except RunError as error:
            if self._id is None:
                raise
            if self.job.server.ended() is None:
                if self._forgotten(self._id):
                    raise self._gone() from None
                # not every cluster starts failed tasks again, or for ever
                if self.streaming and self._state(self._id) == "FAILED" and _lasting(str(error.__cause__)) is None:
                    raise JobLostError(error.message, hint=error.hint) from error
                raise
            self._alone = True
            self.say(f"{error.message} The job goes on.")
            return False

    def _state(self, job: str) -> str | None:
        """Of the job, as far as the cluster says."""
        try:
            return self.rest.job(job).state
        except RunError:
            return None

    def _forgotten(self, job: str) -> bool:
        """Whether a job manager answers that knows no such job: one without high availability has come back."""
        try:
            self.rest.job(job)
        except RunError as error:
            return _UNKNOWN in error.message
        return False

    def _gone(self) -> RunError:
        kind = JobLostError if self.streaming else RunError
        return kind(
            f"Flink at {self.rest.address} does not know the job any more.",
            hint="A job manager with high availability keeps jobs when it dies.",
        )

    def _look(self) -> bool:
        """Whether the job has ended, as far as the cluster knows; asked now and then."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + self.look_every_s
        try:
            found = None if self.id is None else self.rest.job(self.id)
            failures = [] if self._id is None else self.rest.failures(self._id)
        except TransientError as error:
            if not self._silent:
                self.say(f"{error.message} The job may go on; waiting.")
            self._silent, self._unknown_since = True, None
            return False
        except RunError as error:  # a job manager that has come back and has not found the job, or not yet
            if _UNKNOWN in error.message:
                self._unknown_since = now if self._unknown_since is None else self._unknown_since
                if now - self._unknown_since > self.recovery_s:
                    self.cancel()
                    raise self._gone() from None
            return False
        self._silent, self._unknown_since = False, None
        for failure in reversed(failures):
            if (failure.at_ms, failure.task) not in self._seen:
                self._seen.add((failure.at_ms, failure.task))
                self._judge(failure)
        if self._alone and found is not None and found.ended:
            return self._over(found.state, failures)
        self._weigh(now)
        if found is not None:
            self._expect_checkpoints(found)
        if self.streaming and self._draining is None and draining.ended_at() is not None and self._id is not None:
            self._draining = threading.Thread(target=self._drain, args=(self._id,), name="flink-drain", daemon=True)
            self._draining.start()
        return False

    def _weigh(self, now: float) -> None:
        """A stream whose source has grown too heavy is to be started anew: Beam's runner 2.70 leaves 2.7 kB in the source's state for each of its bundles."""
        if not self.streaming or self._id is None or now < self._weigh_at or self._draining is not None:
            return
        self._weigh_at = now + _WEIGH_EVERY_S
        try:
            sizes = self.rest.state_bytes(self._id)
        except RunError:  # a job manager that is away or has just come back
            return
        size = max((size for task, size in sizes.items() if _SOURCE in task), default=0)
        if size > MOST_SOURCE_BYTES:
            self.cancel()
            raise JobLostError(
                f"the source's state has grown to {size >> 20} MB, for a fault of Beam's Flink runner.", hint="See docs/flink.md."
            )

    def _expect_checkpoints(self, found: Job) -> None:
        """A stream whose checkpoints are not completed for half an hour is to be started anew."""
        if not self.streaming or self._draining is not None:
            return
        reason = self._watch(found.id, found.state)
        if reason is not None:
            self.cancel()
            raise JobLostError(f"{reason}.", hint="See docs/flink.md, and the log of the job manager.")

    def _over(self, state: str, failures: Sequence[Failure]) -> bool:
        if state == "FINISHED":
            return True
        cause = own_error(RuntimeError(failures[0].trace)) if failures else None
        raise cause or RunError(f"the job ended in state {state}.", hint="Somebody else ended it, or see the cluster's log.")

    def _drain(self, job: str) -> None:
        """The sources have ended and the watermark is at its end, and Flink goes on for ever all the same. Stopped with a savepoint, everything before it has
        gone through the sinks, and its bundles are finalized."""
        until, why = time.monotonic() + 2 * self.recovery_s, self._stop(job)
        while isinstance(why, TransientError) and time.monotonic() < until:  # the job manager may come back, with the job or with its end
            time.sleep(self.look_every_s)
            why = self._stop(job)
        if why is None or self._state(job) == "FINISHED":
            return
        self._undrained = RunError(
            f"{why.message} So the stream was ended without a savepoint: windows that were open show nothing of it, and messages that are not acknowledged come "
            "again with the next start.",
            hint=why.hint or "A cluster needs state.savepoints.dir: docs/flink.md.",
        )
        self.cancel()

    def _stop(self, job: str) -> RunError | None:
        """Why it was not stopped, if it was not."""
        try:
            self.rest.stop_with_savepoint(job, drain=True)
        except RunError as error:
            return error
        return None

    def _judge(self, failure: Failure) -> None:
        ours = _lasting(failure.trace)
        if not (ours or self.streaming or len(self._seen) >= _BATCH_FAILURES):
            self.say(f"a task failed, and Flink starts it again: {failure.cause}")
            return
        self.cancel()
        if ours:
            raise ours
        if self.streaming:
            raise JobLostError(f"a task failed: {failure.cause.rstrip('.')}.", hint=f"The task: {failure.task}")
        raise RunError(f"the job failed {len(self._seen)} times, the last time with {failure.cause}", hint=f"The task: {failure.task}")


def _lasting(trace: str) -> BeamPipelinesError | None:
    """The error of ours that made a job fail, if the job would fail again."""
    found = error_in(trace)
    return None if isinstance(found, TransientError) else found


@contextlib.contextmanager
def flink_job(
    build: Callable[[beam.Pipeline], object],
    flink: Flink,
    *,
    name: str,
    flags: Sequence[str] = (),
    streaming: bool,
    path: Sequence[str] = (),
    instead_of: Callable[[], Collection[str]] = tuple,
    keep_logs: bool = False,
    say: Say = lambda sentence: None,
) -> Iterator[FlinkJob]:
    """The pipeline that `build` makes, running as `name` on the cluster; a job still running at the end of the block is cancelled. So are jobs named
    `instead_of`, before it begins. Workers of a pool import from the folders of `path` too.

    Raises as `target` does; SpecError where a flag is wrong, RunError where the job server does not start or refuses the job.
    """
    split_progress.install()
    send_queue.install()
    parked_bundles.install()
    where = target(flink)
    say(where.announcement)
    jar = job_server_jar(flink, where.version, say=say)
    _cancel(where.rest, instead_of, say)
    before = {job.id for job in where.rest.jobs()}  # a run may have been tried under this name
    with job_server(find_java(), JAVA_OPENS, jar, where.rest.address, keep_logs=keep_logs) as server:
        options = options_for(where, flags, endpoint=server.endpoint, streaming=streaming, path=path)
        options.view_as(GoogleCloudOptions).job_name = name
        pipeline = beam.Pipeline(options=options)
        build(pipeline)
        job = FlinkJob(submitted(pipeline, server), where.rest, name, streaming, say, before)
        try:
            yield job
        finally:
            job.close()


def options_for(where: Target, flags: Sequence[str], *, endpoint: str, streaming: bool, path: Sequence[str] = ()) -> PipelineOptions:
    """Options for a job on the cluster, handed in at `endpoint`. Raises SpecError where a flag is wrong, or asks for more slots than the cluster can have."""
    options = flink_options(endpoint, where.workers, flags, streaming=streaming, slots=where.slots, path=path)
    wanted = options.view_as(FlinkRunnerOptions).parallelism
    if wanted > where.slots and not _yields(where.rest.configuration()):
        raise SpecError(
            f"--parallelism={wanted}: the cluster has {where.slots} slot{'s' * (where.slots != 1)}; the job would wait for more, and fail after minutes.",
            hint="Ask for less, or give the cluster more slots.",
        )
    return options


def expect_room(flink: Flink, flags: Sequence[str]) -> None:
    """Before a stream starts once more: raises as `target` does, and RunError where the cluster has lost slots that it takes."""
    try:
        options_for(target(flink), flags, endpoint="", streaming=True)
    except SpecError as error:
        raise RunError(error.message, hint=error.hint) from None


def elements_of(flink: Flink, flags: Sequence[str]) -> int:
    """How many elements stand for each source of a stream (see `ReadPubsub`): 1 where one process does all the work. Raises as `target` and `options_for` do."""
    where = target(flink)
    options = options_for(where, flags, endpoint="", streaming=True)
    wanted, each = options.view_as(FlinkRunnerOptions).parallelism, int(options.view_as(PortableOptions).sdk_worker_parallelism)
    return 1 if where.workers == LOOPBACK or (wanted == 1 and each == 1) else _ELEMENTS_EACH * wanted


def _yields(configuration: Mapping[str, str]) -> bool:
    """Whether the cluster starts task managers for a job, or runs one with fewer slots than it asks for."""
    adaptive = configuration.get("jobmanager.scheduler", "").lower() == "adaptive" or "scheduler-mode" in configuration
    return adaptive or bool(_GROWS.intersection(configuration))


def _cancel(rest: FlinkRest, names: Callable[[], Collection[str]], say: Say) -> None:
    running = [job for job in rest.jobs() if not job.ended]
    earlier = names() if running else ()
    for job in running:
        if job.name in earlier:
            say(f"Flink job {job.name} of an earlier start still runs, and is cancelled")
            rest.cancel(job.id)
