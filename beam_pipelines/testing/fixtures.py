"""pytest fixtures, as a plugin: nothing is to be imported or named in a conftest. Loads what a fixture needs when a test asks for it.

def test_a_stream(pubsub_broker): ...     # a Pub/Sub of its own for each test, and PUBSUB_EMULATOR_HOST set
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from beam_pipelines.testing.broker import Broker


@pytest.fixture
def pubsub_broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """The embedded broker, empty; Google's clients, and our sources and sinks, talk to it as long as the test runs."""
    from beam_pipelines.testing.broker import Broker

    with Broker() as broker:
        for name, value in broker.environment.items():
            monkeypatch.setenv(name, value)
        yield broker
