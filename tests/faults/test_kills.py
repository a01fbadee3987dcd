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
from tests.faults.stream_jobs import Job, Lake, check
from tests.faults.truth import messages, truth
from tests.pubsub_servers import PubsubServer

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "10"))
SEED = int(os.environ.get("SEED") or time.time_ns() // 1_000_000 % 1_000_000)
PER_SECOND = 150
LIVES_S = (1.0, 13.0)  # a start needs about 3 s, a lease of the one before ends after 10 s


def kill(job: Job) -> None:
    """kill -9 of the job; what it started is gone too."""
    family = descendants(job.process.pid)
    assert job.kill() == -9, job.text
    assert all(gone(pid) for pid in family), f"left behind: {family}"


def test_kill_minus_9_at_random_moments(own_broker: PubsubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(SEED)
    lives = [chance.uniform(*LIVES_S) for _ in range(KILLS)]
    count = round(PER_SECOND * (sum(lives) + 2))
    topic, subscription = own_broker.pair(ack_deadline_seconds=10)
    lake = Lake.make(tmp_path, subscription, own_broker.environment)
    publisher = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.publish", topic, str(SEED), str(count), str(PER_SECOND)], env=dict(lake.environment)
    )
    say(capsys, f"seed {SEED}: {KILLS} kills in {sum(lives):.0f} s, {count:,} messages")
    try:
        for life_s in lives:
            job = lake.start()
            try:
                job.process.wait(life_s)
            except subprocess.TimeoutExpired:
                kill(job)
            else:
                raise AssertionError(f"it ended by itself:\n{job.text}")
        assert publisher.wait(120) == 0
    finally:
        publisher.kill()
        publisher.wait()
    last = lake.start("--until-idle", "2s")
    assert last.ended(120) == 0, last.text
    sent = messages(SEED, count)
    say(capsys, f"seed {SEED}: {KILLS} kills, {len(sent):,} messages: {check(lake, truth(sent))}")


def say(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Prints the seed and the counts also where tests pass."""
    with capsys.disabled():
        print(f"\n{line}")
