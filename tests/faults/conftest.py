"""A broker as a process of its own, for faults that must not be softened by sharing a process with the test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.pubsub_servers import PubsubServer, connected


@pytest.fixture
def own_broker() -> Iterator[PubsubServer]:
    """The embedded broker in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "beam_pipelines.testing.broker"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield from connected(process.stdout.readline().strip(), project="demo-project")
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()
