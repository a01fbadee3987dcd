"""A broker as a process of its own, for faults that must not be softened by sharing a process with the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pubsub_servers import PubsubServer, broker_process


@pytest.fixture
def own_broker() -> Iterator[PubsubServer]:
    """The embedded broker in a process of its own."""
    with broker_process() as found:
        yield found
