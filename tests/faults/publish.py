"""A publisher of its own: `python -m tests.faults.publish TOPIC SEED COUNT PER_SECOND`, to the server of PUBSUB_EMULATOR_HOST.

SIGTERM makes it publish what closes the windows, and end; it prints how many messages there were.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.faults.truth import messages
from tests.pubsub_servers import connected

_PULSE_S = 0.1


@contextmanager
def publishing(topic: str, seed: int, count: int, per_second: int, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that publishes `messages(seed, count)`; it is ended with the block, if it has not ended."""
    command = [sys.executable, "-m", "tests.faults.publish", topic, str(seed), str(count), str(per_second)]
    process = subprocess.Popen(command, env=dict(environment), stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def stopped(publisher: subprocess.Popen[bytes], timeout_s: float = 60.0) -> int:
    """Ends a publisher before its time; gives the `count` whose `messages` it has published."""
    publisher.send_signal(signal.SIGTERM)
    said, _ = publisher.communicate(timeout=timeout_s)
    assert publisher.returncode == 0
    return int(said)


def publish(topic: str, seed: int, count: int, per_second: int) -> int:
    """Publishes at a steady rate, all or until SIGTERM; gives the `count` whose `messages` were published."""
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stops.append(number))
    sent, at_once = messages(seed, count), max(1, round(per_second * _PULSE_S))
    with contextmanager(connected)(os.environ["PUBSUB_EMULATOR_HOST"]) as server:
        begun = time.monotonic()
        for number, start in enumerate(range(0, len(sent), at_once)):
            if stops and start < count:
                server.publish_all(topic, [m.published() for m in messages(seed, start)[start:]])
                return start
            time.sleep(max(0.0, begun + number * _PULSE_S - time.monotonic()))  # the rate, nothing waits for it
            server.publish_all(topic, [m.published() for m in sent[start : start + at_once]])
    return count


if __name__ == "__main__":
    print(publish(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
