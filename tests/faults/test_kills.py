"""kill -9 of the whole process at random moments while messages flow: in the end the views are what was published, as if nothing had happened.

`KILLS=50 SEED=7 pytest tests/faults/test_kills.py` kills oftener, or again as before (`make test-kills`).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.processes import descendants, gone
from tests.faults.publish import publishing
from tests.faults.stream_jobs import Job, Lake, check
from tests.faults.truth import messages, truth
from tests.pubsub_servers import PubsubServer

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "14"))
SEED = int(os.environ.get("SEED") or time.time_ns() // 1_000_000 % 1_000_000)
PER_SECOND = 150


def kill(job: Job) -> None:
    """kill -9 of the job; what it started is gone too."""
    family = descendants(job.process.pid)
    assert job.kill() == -9, job.text
    assert all(gone(pid) for pid in family), f"left behind: {family}"


def killed_while_messages_flow(
    server: PubsubServer, folder: Path, capsys: pytest.CaptureFixture[str], lives_s: list[float], *, seed: int, at: str | None
) -> None:
    """Kills one start after the other, lets a last one come to the end, and compares."""
    count = round(PER_SECOND * (sum(lives_s) + 2))
    topic, subscription = server.pair(ack_deadline_seconds=10)
    lake = Lake.make(folder, subscription, server.environment)
    say(capsys, f"seed {seed}: {len(lives_s)} kills in {sum(lives_s):.0f} s, {count:,} messages")
    with publishing(topic, seed, count, PER_SECOND, lake.environment) as publisher:
        for life_s in lives_s:
            job = lake.start(at=at)
            try:
                job.process.wait(life_s)
            except subprocess.TimeoutExpired:
                kill(job)
                server.advance(11.0)  # a broker in this process: its leases are over
            else:
                raise AssertionError(f"it ended by itself:\n{job.text}")
        assert publisher.wait(120) == 0
    last = lake.start("--until-idle", "2s", at=at)
    assert last.ended(180) == 0, last.text
    sent = messages(seed, count)
    say(capsys, f"seed {seed}: {len(lives_s)} kills, {len(sent):,} messages: {check(lake, truth(sent))}")


def test_kill_minus_9_at_random_moments(broker: PubsubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(SEED)
    lives_s = [chance.uniform(1.0, 10.0) for _ in range(KILLS - KILLS // 3)]
    killed_while_messages_flow(broker, tmp_path, capsys, lives_s, seed=SEED, at="none")


def test_kill_minus_9_and_messages_come_back_when_their_leases_end(
    own_broker: PubsubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(-SEED)
    lives_s = [chance.uniform(1.0, 24.0) for _ in range(KILLS // 3)]  # a start needs about 3 s, leases of the one before end after 12 s
    killed_while_messages_flow(own_broker, tmp_path, capsys, lives_s, seed=SEED + 1, at=None)


def say(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Prints the seed and the counts also where tests pass; to stderr, which processes of xdist share with pytest."""
    with capsys.disabled():
        print(f"\n{line}", file=sys.stderr, flush=True)
