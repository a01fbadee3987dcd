"""Going back with a subscription, on the official emulator: what was acknowledged comes again, and what is not kept is told before anything starts."""

from __future__ import annotations

import time

import pytest
from google.protobuf.duration_pb2 import Duration

from beam_pipelines.errors import SourceError
from beam_pipelines.runners.dataflow.subscriptions import go_back
from tests.pubsub_servers import PubsubServer, texts

pytestmark = pytest.mark.cloud
HOUR_MICROS = 3_600_000_000


@pytest.fixture(autouse=True)
def _pointed(emulator: PubsubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)


def now() -> int:
    return time.time_ns() // 1_000


@pytest.mark.parametrize("since", ["a time", "everything"])
def test_what_was_acknowledged_is_delivered_again(emulator: PubsubServer, since: str) -> None:
    topic, subscription = emulator.pair(retain_acked_messages=True, message_retention_duration=Duration(seconds=7_200))
    begun = now()
    emulator.publish_all(topic, [b"1", b"2", b"3"])
    emulator.ack(subscription, emulator.take(subscription, 3))
    go_back(subscription, begun - HOUR_MICROS if since == "a time" else None)
    assert sorted(texts(emulator.take(subscription, 3))) == ["1", "2", "3"]


def test_a_subscription_that_keeps_nothing_is_refused(emulator: PubsubServer) -> None:
    _, subscription = emulator.pair()
    with pytest.raises(SourceError, match=r"keeps no acknowledged messages, and this start needs .* retain_acked_messages"):
        go_back(subscription, now())


def test_a_time_before_what_is_kept_is_refused(emulator: PubsubServer) -> None:
    _, subscription = emulator.pair(retain_acked_messages=True, message_retention_duration=Duration(seconds=7_200))
    with pytest.raises(SourceError, match="keeps acknowledged messages for 2 hours"):
        go_back(subscription, now() - 3 * HOUR_MICROS)


@pytest.mark.parametrize(("ahead_h", "back_h"), [(0, 0.5), (1, 1.5), (24, 2)])
def test_what_a_message_may_be_ahead_is_gone_back_as_far_as_it_is_kept(emulator: PubsubServer, ahead_h: int, back_h: float) -> None:
    _, subscription = emulator.pair(retain_acked_messages=True, message_retention_duration=Duration(seconds=7_200))
    begun = now()
    found = go_back(subscription, begun - HOUR_MICROS // 2, ahead=ahead_h * HOUR_MICROS)
    assert 0 <= found - (begun - int(back_h * HOUR_MICROS)) <= now() - begun


def test_a_subscription_that_is_not_there_is_named(emulator: PubsubServer) -> None:
    with pytest.raises(SourceError, match="there is no such subscription"):
        go_back(f"projects/{emulator.project}/subscriptions/nobodys", now())
