"""What a stream on Flink needs goes away for a while: the broker answers nothing, checkpoints cannot be stored, the job manager forgets its jobs. Afterwards the views are what was
published."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beam_pipelines.runners.flink.cluster import Cluster, Part
from tests.faults.publish import publishing, stopped
from tests.faults.stream_jobs import Lake, check
from tests.faults.truth import messages, truth
from tests.flink.streams import started
from tests.flink.test_faults import written
from tests.pubsub_servers import PubsubServer, connected

pytestmark = pytest.mark.flink

SEED, MOST, PER_SECOND = 17, 90_000, 150


@contextmanager
def stoppable_broker() -> Iterator[tuple[PubsubServer, int]]:
    """The embedded broker in a process of its own, and that process."""
    process = subprocess.Popen([sys.executable, "-m", "beam_pipelines.testing.broker"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for server in connected(process.stdout.readline().strip(), project="demo-project"):
            yield server, process.pid
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.terminate()
        process.wait(30)


@contextmanager
def no_checkpoints(cluster: Cluster) -> Iterator[None]:
    """Nothing can be stored where checkpoints lie, as on a full disk: a file is where the folder was."""
    folder = cluster.folder / "checkpoints"
    aside = folder.rename(cluster.folder / "aside")
    folder.write_text("")
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)


def test_the_broker_and_the_checkpoint_store_go_away_and_come_back(own_flink_cluster: Cluster, tmp_path: Path) -> None:
    cluster = own_flink_cluster
    with stoppable_broker() as (server, pid):
        topic, subscription = server.pair(ack_deadline_seconds=10)
        lake = Lake.make(tmp_path, subscription, server.environment)
        with (
            started(lake, cluster, "--until-idle", "25s") as job,
            publishing(topic, SEED, MOST, PER_SECOND, lake.environment) as publisher,
        ):
            job.hears("acknowledged", timeout_s=120)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(60)
            os.kill(pid, signal.SIGCONT)
            assert job.process.poll() is None, job.text
            with no_checkpoints(cluster):
                job.hears("no checkpoint is complete for", timeout_s=90)
            job.hears("a checkpoint is complete again", timeout_s=60)
            count = stopped(publisher)
            assert job.ended(240) == 0, job.text
    assert lake.starts() == 1
    check(lake, truth(messages(SEED, count)))


def test_a_job_manager_without_high_availability_dies_and_the_next_start_follows(
    own_flink_cluster: Cluster, own_broker: PubsubServer, tmp_path: Path
) -> None:
    cluster = own_flink_cluster
    topic, subscription = own_broker.pair(ack_deadline_seconds=10)
    lake = Lake.make(tmp_path, subscription, own_broker.environment)
    with started(lake, cluster, "--until-idle", "10s") as job, publishing(topic, SEED, MOST, PER_SECOND, lake.environment) as publisher:
        job.hears("acknowledged", timeout_s=120)
        cluster = forgetful(cluster)
        job.hears("The next start follows", timeout_s=180)
        written(lake, after=time.time(), job=job)
        count = stopped(publisher)
        assert job.ended(240) == 0, job.text
    assert lake.starts() >= 2
    check(lake, truth(messages(SEED, count)))


def forgetful(cluster: Cluster) -> Cluster:
    """The cluster after kill -9 of its job manager, which has come back and knows no job.

    Its task manager goes along: one that has seen more of ZooKeeper than the new one remembers may keep the old job manager's address for good.
    """
    for part in KILLED:
        cluster.kill(part)
    for name in ("recovery", "zookeeper"):
        shutil.rmtree(cluster.folder / name)
        (cluster.folder / name).mkdir()
    for part in KILLED:
        cluster = cluster.restart(part)
    cluster.wait_until_ready()
    return cluster


KILLED: tuple[Part, ...] = ("zookeeper", "job manager", "task manager")
