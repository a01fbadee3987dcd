"""kill -9 of every part of a cluster while messages flow: in the end the views are what was published, as if nothing had happened.

`ROUNDS=4 SEED=7 pytest tests/flink/test_faults.py` kills oftener, or again as before.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from beam_pipelines.runners.flink.cluster import PARTS, Cluster
from tests.faults.processes import descendants
from tests.faults.publish import publishing, stopped
from tests.faults.stream_jobs import Job, Lake, check
from tests.faults.test_kills import say
from tests.faults.truth import messages, truth
from tests.flink.streams import started
from tests.pubsub_servers import PubsubServer

pytestmark = pytest.mark.flink

ROUNDS = int(os.environ.get("ROUNDS", "1"))
SEED = int(os.environ.get("SEED") or time.time_ns() // 1_000_000 % 1_000_000)
PER_SECOND = 150
VICTIMS = ["worker", "task manager", "job manager", "worker pool", "job server"]


def test_every_part_is_killed_while_messages_flow(
    own_flink_cluster: Cluster, own_broker: PubsubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, chance = own_flink_cluster, random.Random(SEED)
    victims = [victim for _ in range(ROUNDS) for victim in chance.sample(VICTIMS, len(VICTIMS))]
    lives_s = [chance.uniform(3.0, 15.0) for _ in victims]
    most = round(PER_SECOND * (sum(lives_s) + 200 * len(victims)))
    topic, subscription = own_broker.pair(ack_deadline_seconds=10)
    lake = Lake.make(tmp_path, subscription, own_broker.environment)
    say(capsys, f"seed {SEED}: {', '.join(victims)} die")
    with started(lake, cluster, "--until-idle", "25s") as job, publishing(topic, SEED, most, PER_SECOND, lake.environment) as publisher:
        for victim, life_s in zip(victims, lives_s, strict=True):
            written(lake, after=time.time(), job=job)
            time.sleep(life_s)
            died_s = time.monotonic()
            cluster = killed(victim, cluster, job)
            again = written(lake, after=time.time(), job=job)
            say(capsys, f"the {victim} died: rows again after {again - died_s:.0f} s")
        count = stopped(publisher)
        assert job.ended(180) == 0, job.text
    sent = messages(SEED, count)
    found = check(lake, truth(sent))
    say(capsys, f"seed {SEED}: {lake.starts()} starts, {len(sent):,} messages: {found}")


def killed(victim: str, cluster: Cluster, job: Job) -> Cluster:
    """kill -9 of a part, which is started again where nobody else would; the cluster as it is then."""
    if victim == "worker":
        for pid in cluster.worker_pids:
            os.kill(pid, signal.SIGKILL)
        return cluster
    if victim == "job server":
        (server,) = [pid for pid in descendants(job.process.pid) if is_job_server(pid)]
        os.kill(server, signal.SIGKILL)
        return cluster
    part = next(part for part in PARTS if part == victim)
    cluster.kill(part)
    cluster = cluster.restart(part)
    cluster.wait_until_ready()
    return cluster


def is_job_server(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text("utf-8", errors="replace").split("\0")
    except OSError:
        return False
    return words[0].endswith("java") and "--flink-master" in words


def written(lake: Lake, *, after: float, job: Job, timeout_s: float = 180.0) -> float:
    """Waits until rows are stored that were stored after that moment; gives the time it was (monotonic)."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert job.process.poll() is None, job.text
        if any(stored_at(file) > after for file in lake.folder.glob("**/rows.speed/**/*.parquet")):
            return time.monotonic()
        time.sleep(0.2)
    raise AssertionError(f"no rows for {timeout_s:.0f} s:\n{job.text}")


def stored_at(file: Path) -> float:
    """When; 0 where it has been merged into another meanwhile."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
