"""A publisher of its own: `python -m tests.faults.publish TOPIC SEED COUNT PER_SECOND`, to the server of PUBSUB_EMULATOR_HOST."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager

from tests.faults.truth import messages
from tests.pubsub_servers import connected

_PULSE_S = 0.1


def publish(topic: str, seed: int, count: int, per_second: int) -> None:
    """Publishes at a steady rate."""
    sent, at_once = messages(seed, count), max(1, round(per_second * _PULSE_S))
    with contextmanager(connected)(os.environ["PUBSUB_EMULATOR_HOST"]) as server:
        begun = time.monotonic()
        for number, start in enumerate(range(0, len(sent), at_once)):
            time.sleep(max(0.0, begun + number * _PULSE_S - time.monotonic()))  # the rate, nothing waits for it
            server.publish_all(topic, [m.published() for m in sent[start : start + at_once]])


if __name__ == "__main__":
    publish(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
