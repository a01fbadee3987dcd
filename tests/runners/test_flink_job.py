"""Following a job on Flink: which failures end it, which start a stream anew, and that the job server's death is not the job's. The cluster is a script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from beam_pipelines import draining
from beam_pipelines.errors import RunError, SinkError, SpecError, TransientError
from beam_pipelines.runners.flink.checkpoint_watch import LOST_S
from beam_pipelines.runners.flink.job import MOST_SOURCE_BYTES, FlinkJob, JobLostError, job_server_jar
from beam_pipelines.runners.flink.rest import Checkpoints, Failure, Job
from beam_pipelines.runners.options import Flink

LOST = Failure(
    1, "Write", "JobMasterException: TaskManager is no longer reachable.", "JobMasterException: TaskManager is no longer reachable."
)
FENCED = Failure(
    2,
    "Archive",
    "RuntimeError",
    "Caused by: RuntimeError: beam_pipelines.errors.SinkError: state: taken over by a later start [while running 'Archive']",
)


@dataclass
class Script:
    """A cluster that answers what it is told to."""

    state: str = "RUNNING"
    known: list[Failure] = field(default_factory=list)
    silent: bool = False
    forgotten: bool = False
    address: str = "x"
    state_of: dict[str, int] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    stopped: list[bool] = field(default_factory=list)
    others: list[Job] = field(default_factory=list)
    refuses: list[RunError] = field(default_factory=list)

    def jobs(self) -> list[Job]:
        return [*self.others, self.job("j1")]

    def job(self, job: str) -> Job:
        if self.silent:
            raise TransientError("Flink at x does not answer.")
        if self.forgotten:
            raise RunError(f"Flink at x: /jobs/{job}: FlinkJobNotFoundException: Could not find Flink job ({job})")
        return Job("j1", "run-1", self.state, 0, 0)

    def failures(self, job: str) -> list[Failure]:
        return self.known

    def state_bytes(self, job: str) -> dict[str, int]:
        return self.state_of

    def checkpoints(self, job: str) -> Checkpoints:
        return Checkpoints(0, 0, 0, 0, None, None)

    def checkpoint_interval_ms(self, job: str) -> int:
        return 1_000

    def cancel(self, job: str) -> None:
        self.cancelled.append(job)

    def stop_with_savepoint(self, job: str, *, drain: bool) -> str:
        self.stopped.append(drain)
        if self.refuses:
            raise self.refuses.pop(0)
        self.state = "FINISHED"
        return "savepoint"


@dataclass
class Server:
    """The job server's side: it runs, or has died."""

    dead: bool = False
    failed: str = ""
    cancelled: bool = False
    name: str = "the job server"

    @property
    def server(self) -> Server:
        return self

    def ended(self, *, grace_s: float = 0.0) -> int | None:
        return -9 if self.dead else None

    def wait(self, timeout_s: float | None = None) -> bool:
        if self.dead:
            raise RunError("the job server ended (signal 9) while the job ran.")
        if self.failed:
            raise RunError("the job failed: a task was lost.") from RuntimeError(self.failed)
        return False

    def cancel(self) -> None:
        self.cancelled = True


class Stopping(Server):
    """One that knows when its job was cancelled."""

    def wait(self, timeout_s: float | None = None) -> bool:
        return self.cancelled or super().wait(timeout_s)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    draining.reset()
    yield
    draining.reset()


def following(script: Script, server: Server, said: list[str], *, streaming: bool, recovery_s: float = 60.0) -> FlinkJob:
    rest: Any = script
    job: Any = server
    return FlinkJob(job, rest, "run-1", streaming, said.append, {"j0"}, look_every_s=0.01, recovery_s=recovery_s)


def test_a_job_is_not_taken_for_another_of_its_name_or_of_a_longer_one() -> None:
    others = [Job("j0", "run-1", "FAILED", 0, 0), Job("j2", "run-1-stream", "RUNNING", 0, 0)]
    script = Script(others=others)
    job = following(script, Server(), [], streaming=False)
    assert job.id == "j1"
    job.cancel()
    assert script.cancelled == ["j1"]


def test_a_stream_that_loses_a_task_is_cancelled_and_to_be_started_anew() -> None:
    script, server = Script(known=[LOST]), Server()
    with pytest.raises(JobLostError) as lost:
        following(script, server, [], streaming=True).wait()
    assert lost.value.message == "a task failed: JobMasterException: TaskManager is no longer reachable."
    assert server.cancelled


def test_an_error_of_ours_ends_a_job_whatever_it_is() -> None:
    for streaming in (True, False):
        with pytest.raises(SinkError, match=r"state: taken over by a later start$"):
            following(Script(known=[FENCED]), Server(), [], streaming=streaming).wait()


def test_a_batch_may_fail_twice_and_is_ended_the_third_time() -> None:
    script, server, said = Script(known=[LOST]), Server(), list[str]()
    job = following(script, server, said, streaming=False)
    assert not job.wait(0.05)
    assert said == ["a task failed, and Flink starts it again: JobMasterException: TaskManager is no longer reachable."]
    script.known += [Failure(n, "Write", "IOException: disk", "IOException: disk") for n in (3, 4)]
    with pytest.raises(RunError, match="failed 3 times, the last time with IOException: disk"):
        job.wait()


def test_a_stream_that_flink_has_given_up_is_to_be_started_anew_unless_it_would_fail_again() -> None:
    for trace, streaming, expected in ((LOST.trace, True, JobLostError), (FENCED.trace, True, RunError), (LOST.trace, False, RunError)):
        script, server = Script(), Server()
        job = following(script, server, [], streaming=streaming)
        assert not job.wait(0.05)
        script.state, server.failed = "FAILED", trace
        with pytest.raises(RunError) as raised:
            job.wait(1.0)
        assert type(raised.value) is expected


def test_a_stream_that_somebody_cancels_is_not_started_anew() -> None:
    script, server = Script(), Server()
    job = following(script, server, [], streaming=True)
    assert not job.wait(0.05)
    script.state, server.failed = "CANCELED", "the job ended in state CANCELLED."
    with pytest.raises(RunError) as raised:
        job.wait(1.0)
    assert type(raised.value) is RunError


def test_a_dead_job_server_is_not_a_dead_job() -> None:
    script, server, said = Script(), Server(), list[str]()
    job = following(script, server, said, streaming=True)
    assert not job.wait(0.05)  # so that the job is known
    server.dead = True
    assert not job.wait(0.05)
    assert said == ["the job server ended (signal 9) while the job ran. The job goes on."]
    script.state = "FINISHED"
    assert job.wait(1.0)


def test_a_job_that_somebody_else_ends_is_an_error_without_a_job_server_too() -> None:
    script, server = Script(), Server()
    job = following(script, server, [], streaming=True)
    assert not job.wait(0.05)
    server.dead, script.state = True, "CANCELED"
    with pytest.raises(RunError, match="ended in state CANCELED"):
        job.wait(1.0)


def test_a_job_manager_that_is_away_is_waited_for_and_said_once() -> None:
    script, said = Script(), list[str]()
    job = following(script, Server(), said, streaming=True)
    assert not job.wait(0.05)
    script.silent = True
    assert not job.wait(0.1)
    assert said == ["Flink at x does not answer. The job may go on; waiting."]


@pytest.mark.parametrize(("streaming", "expected"), [(True, JobLostError), (False, RunError)])
def test_a_job_manager_that_has_forgotten_the_job_has_lost_it(streaming: bool, expected: type[RunError]) -> None:
    for server_dies in (False, True):
        script, server, said = Script(), Server(), list[str]()
        job = following(script, server, said, streaming=streaming)
        assert not job.wait(0.05)
        script.forgotten = True
        assert not job.wait(0.05), "it may be looking for its jobs"
        if server_dies:
            server.dead = True
            job.recovery_s = 0.02
        else:
            server.failed = "FlinkJobNotFoundException"
        with pytest.raises(RunError, match="Flink at x does not know the job any more") as raised:
            job.wait(5.0)
        assert type(raised.value) is expected


def test_a_job_manager_that_was_away_has_its_time_to_find_the_job_anew() -> None:
    script, server = Script(), Server()
    job = following(script, server, [], streaming=True, recovery_s=0.3)
    assert not job.wait(0.05)
    script.forgotten = True
    assert not job.wait(0.1)
    script.silent = True
    assert not job.wait(0.4), "longer than it may take, but nobody answers"
    script.silent = False
    assert not job.wait(0.1)
    assert not server.cancelled


def test_a_stream_whose_sources_have_ended_is_stopped_with_a_savepoint() -> None:
    script, server = Script(), Server()
    job = following(script, server, [], streaming=True)
    assert not job.wait(0.05)
    assert not script.stopped
    draining.end(5)
    assert not job.wait(0.2)
    assert script.stopped == [True], "once, with the watermark at its end"


def test_a_drain_that_flink_refuses_is_no_end_in_order() -> None:
    script, server = Script(refuses=[RunError("Flink at x: no savepoint directory configured.")]), Stopping()
    job = following(script, server, [], streaming=True)
    assert not job.wait(0.05)
    draining.end(5)
    with pytest.raises(RunError, match=r"no savepoint directory configured\. So the stream was ended without a savepoint") as raised:
        job.wait(5.0)
    assert type(raised.value) is RunError, "not to be started anew"
    assert server.cancelled


@pytest.mark.parametrize("lost", [True, False])
def test_a_job_manager_that_is_away_while_a_stream_drains_is_asked_again(lost: bool) -> None:
    away = TransientError("Flink at x does not answer.")
    script, server = Script(refuses=[away, RunError("the job is not running.")] if lost else [away, away]), Stopping()
    job = following(script, server, [], streaming=True)
    assert not job.wait(0.05)
    script.state = "FINISHED" if lost else "RUNNING"
    draining.end(5)
    assert not job.wait(0.3)
    assert len(script.stopped) == (2 if lost else 3)
    assert not server.cancelled


def test_a_source_that_has_grown_heavy_is_started_anew_and_no_other_task() -> None:
    heavy = MOST_SOURCE_BYTES + 1
    script, server = Script(state_of={"[19]{Deduplicate, Aggregate}": heavy, "[12]{Read-0, Archive-0}": 90_000}), Server()
    job = following(script, server, [], streaming=True)
    assert not job.wait(0.05)
    script.state_of["[12]{Read-0, Archive-0}"] = heavy
    job._weigh_at = 0.0
    with pytest.raises(JobLostError, match="the source's state has grown to 64 MB"):
        job.wait(1.0)
    assert server.cancelled


@pytest.mark.parametrize("streaming", [True, False])
def test_a_stream_whose_checkpoints_are_never_complete_is_started_anew_and_no_batch(streaming: bool) -> None:
    script, server, now = Script(), Server(), [0.0]
    job = following(script, server, [], streaming=streaming)
    job._watch.clock = lambda: now[0]
    assert not job.wait(0.05)
    now[0] = LOST_S
    if streaming:
        with pytest.raises(JobLostError, match=r"no checkpoint was complete for 30 minutes: none was begun\. See docs/flink\.md"):
            job.wait(1.0)
    else:
        assert not job.wait(0.05)
    assert server.cancelled == streaming


def test_beam_has_no_runner_for_a_cluster_that_old() -> None:
    with pytest.raises(SpecError, match=r"the cluster is Flink 1\.18; Beam .* has runners for 1\.19, "):
        job_server_jar(Flink("x:1"), "1.18.1", say=print)
