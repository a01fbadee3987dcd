"""A stream on two task managers, a Python process for each: a process is killed, and a task manager with its own, while messages flow; the views are what was published.

`ROUNDS=4 SEED=7 pytest tests/flink/test_several_processes.py` kills oftener, or again as before.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from beam_pipelines.runners.elsewhere import control_folder
from beam_pipelines.runners.flink.cluster import local_cluster
from beam_pipelines.sinks.reached import reached_by
from beam_pipelines.sources.pubsub_reports import Report, Together, reports
from tests.faults.publish import publishing, stopped
from tests.faults.stream_jobs import Job, Lake, check
from tests.faults.test_kills import say
from tests.faults.truth import SPEC, messages, truth
from tests.flink.streams import started
from tests.flink_cluster import require_job_server
from tests.pubsub_servers import PubsubServer

pytestmark = pytest.mark.flink

ROUNDS = int(os.environ.get("ROUNDS", "1"))
SEED = int(os.environ.get("SEED") or time.time_ns() // 1_000_000 % 1_000_000)
PER_SECOND = 150
VICTIMS = ["worker", "task manager 2"]
MORE_VICTIMS = ["job manager", "worker pool"]
"""Die only where ROUNDS asks for more than one. The job manager may come back with its job, which is no new start."""
SHARDED = SPEC + "state_shards: 8\n"


def test_one_of_two_processes_is_killed_and_every_message_is_in_its_place(
    own_broker: PubsubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_job_server()
    chance, dying = random.Random(SEED), VICTIMS + MORE_VICTIMS * (ROUNDS > 1)
    victims = [victim for _ in range(ROUNDS) for victim in chance.sample(dying, len(dying))]
    lives_s = [chance.uniform(3.0, 15.0) for _ in victims]
    most = round(PER_SECOND * (sum(lives_s) + 300 * len(victims)))
    topic, subscription = own_broker.pair(ack_deadline_seconds=10)
    lake = Lake.make(tmp_path, subscription, own_broker.environment, spec=SHARDED)
    say(capsys, f"seed {SEED}: {', '.join(victims)} die")
    with ExitStack() as stack:
        cluster = stack.enter_context(local_cluster(tmp_path / "cluster", slots=2, task_managers=2))
        job = stack.enter_context(started(lake, cluster, "--until-idle", "25s", flags=["--parallelism=2"]))
        publisher = stack.enter_context(publishing(topic, SEED, most, PER_SECOND, lake.environment))
        for victim, life_s in zip(victims, lives_s, strict=True):
            told = acknowledging(lake, job)
            say(capsys, f"start {lake.starts()}: {' and '.join(f'{r.status.acked:,}' for r in told)} acknowledged by its two processes")
            time.sleep(life_s)
            starts, died_s = lake.starts(), time.monotonic()
            if victim == "worker":
                os.kill(chance.choice(cluster.worker_pids), signal.SIGKILL)
            else:
                cluster.kill(victim)
                cluster = cluster.restart(victim)
            if victim == "job manager":
                cluster.wait_until_ready()
                before = acknowledged(acknowledging(lake, job))
                until(lambda starts=starts, before=before: lake.starts() > starts or acknowledged(acknowledging(lake, job)) > before, job)  # type: ignore[misc]
                acknowledging(lake, job)
            else:
                until(lambda starts=starts: lake.starts() > starts, job)  # type: ignore[misc]
                acknowledging(lake, job)
            say(capsys, f"the {victim} died: both acknowledge again after {time.monotonic() - died_s:.0f} s")
        count = stopped(publisher)
        assert job.ended(240) == 0, job.text
    assert lake.starts() >= 1 + len(victims) - victims.count("job manager")
    assert all(reached.watermark_micros for reached in reached_by(lake.state, range(1, lake.starts() + 1)).values()), (
        "each start got somewhere"
    )
    sent = messages(SEED, count)
    found = check(lake, truth(sent))
    say(capsys, f"seed {SEED}: {lake.starts()} starts, {len(sent):,} messages: {found}")


def acknowledging(lake: Lake, job: Job) -> list[Report]:
    """Waits until both processes of the newest start have acknowledged messages that they have read and stored; gives what they say."""
    told: list[Report] = []

    def both() -> bool:
        folder = control_folder(lake.state, lake.starts())
        told[:] = reports(folder).values()
        return len(told) == 2 and Together(folder, 1, 16).complete(told) and all(report.status.acked for report in told)

    until(both, job)
    return told


def acknowledged(told: list[Report]) -> int:
    return sum(report.status.acked for report in told)


def until(condition: Callable[[], bool], job: Job, timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert job.process.poll() is None, job.text
        assert time.monotonic() < deadline, job.text
        time.sleep(0.2)
