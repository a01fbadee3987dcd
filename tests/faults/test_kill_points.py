"""kill -9 at every place between two durable acts, each once, one after the other on the same lake.

`POINT="before progress" pytest tests/faults/test_kill_points.py` dies at that place alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.points import POINTS
from tests.faults.stream_jobs import Lake, check
from tests.faults.truth import Message, messages, truth
from tests.pubsub_servers import PubsubServer

pytestmark = pytest.mark.slow

EACH = 300
ALONE = [name for name in POINTS if name == os.environ.get("POINT")]


def portions(sent: list[Message], count: int) -> Iterator[list[Message]]:
    """`EACH` messages `count` times, and the rest."""
    yield from (sent[n * EACH : (n + 1) * EACH] for n in range(count))
    yield sent[count * EACH :]


def test_a_stream_may_die_between_any_two_acts(broker: PubsubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = ALONE or list(POINTS)
    topic, subscription = broker.pair(ack_deadline_seconds=10)
    lake = Lake.make(tmp_path, subscription, broker.environment)
    sent = messages(5, EACH * (len(points) + 1))
    *each, rest = portions(sent, len(points))
    for point, portion in zip(points, each, strict=True):
        broker.publish_all(topic, [m.published() for m in portion])
        job = lake.start("--until-idle", "3s", at=point)
        assert job.ended(90) == -9, f"did not come to: {point}\n{job.text}"
        broker.advance(11.0)  # its leases are over
    broker.publish_all(topic, [m.published() for m in rest])
    last = lake.start("--until-idle", "2s", at="none")
    assert last.ended(90) == 0, last.text
    with capsys.disabled():
        print(f"\n{len(points)} kills at their points, {len(sent):,} messages: {check(lake, truth(sent))}")
