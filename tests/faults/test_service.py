"""Faults of the service: it goes away and comes back, leases end under a slow stage, everything is delivered again, messages come hours late."""

from __future__ import annotations

import datetime as dt
import signal
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stream_jobs import PANES, Lake, check, rows_in
from tests.faults.test_ends import COUNT, acknowledged, begun, finished, halves, publish
from tests.faults.truth import BEGIN, FLUSH, SPEC, messages, truth
from tests.pubsub_servers import PubsubServer

SLOW = """
import time
import pyarrow as pa


def step(batch: pa.RecordBatch) -> pa.RecordBatch:
    time.sleep(0.5)  # a slow stage
    return batch
"""


def shown(lake: Lake) -> dict[str, Any]:
    """All that readers see."""
    views = lake.tables()
    panes = {name: Counter(views.sql(f"SELECT {columns} FROM {name}").fetchall()) for name, columns in PANES.items()}
    letters = Counter(views.sql("SELECT source, position, stage, reason FROM dead_letters").fetchall())
    return {"rows": rows_in(views), "dead_letters": letters, **panes}


@pytest.mark.slow
def test_the_broker_goes_away_and_comes_back(broker: PubsubServer, tmp_path: Path) -> None:
    sent = messages(21, COUNT)
    first, rest = halves(sent)
    lake, job, topic = begun(broker, tmp_path, first)
    assert broker.broker is not None
    publish(broker, topic, rest[:-100])
    broker.broker.stop()  # answers on their way are lost, and the messages in them are leased to nobody
    job.hears("trouble: ")
    broker.broker.start()
    publish(broker, topic, rest[-100:])
    acknowledged(broker, lake.subscription, job)
    assert job.kill(signal.SIGTERM) == 0, job.text
    finished(broker, lake, sent, leases=False)


@pytest.mark.slow
def test_an_outage_is_not_an_idle_subscription(broker: PubsubServer, tmp_path: Path) -> None:
    sent = messages(22, 300)
    topic, subscription = broker.pair(ack_deadline_seconds=10)
    lake = Lake.make(tmp_path, subscription, broker.environment)
    job = lake.start("--until-idle", "4s")
    job.hears("start 1")
    assert broker.broker is not None
    assert broker.broker.wait_called("Pull", timeout_s=30), job.text
    broker.broker.stop()
    job.hears("trouble: ")
    with pytest.raises(
        subprocess.TimeoutExpired
    ):  # longer than it waits for messages: without a service nobody knows whether there are any
        job.process.wait(6.0)
    broker.broker.start()
    publish(broker, topic, sent)
    assert job.ended(60) == 0, job.text
    check(lake, truth(sent))


@pytest.mark.slow
def test_leases_that_end_under_a_slow_stage(broker: PubsubServer, tmp_path: Path) -> None:
    sent = messages(23, COUNT)
    (tmp_path / "slow.py").write_text(SLOW)
    topic, subscription = broker.pair(ack_deadline_seconds=10)
    slow = SPEC.replace("transform:\n", "transform:\n  - apply: {function: 'slow:step', columns: {visitor: int32}}\n")
    lake = Lake.make(tmp_path, subscription, broker.environment, spec=slow)
    job = lake.start("--until-idle", "3s")
    job.hears("start 1")
    assert broker.broker is not None
    expired = 0
    for start in range(0, len(sent), 200):
        publish(broker, topic, sent[start : start + 200])
        assert broker.broker.wait_called("Pull", times=broker.broker.calls["Pull"] + 2, timeout_s=30), job.text
        expired += broker.broker.expire(subscription)
    assert job.ended(60) == 0, job.text
    assert expired > 0, "no lease was out when all ended"
    check(lake, truth(sent))


@pytest.mark.slow
def test_a_subscription_seeked_back_a_day_changes_nothing(broker: PubsubServer, tmp_path: Path) -> None:
    sent = messages(24, COUNT)
    topic, subscription = broker.pair(ack_deadline_seconds=10, retain_acked_messages=True)
    lake = Lake.make(tmp_path, subscription, broker.environment)
    publish(broker, topic, sent)
    job = lake.start("--until-idle", "2s")
    assert job.ended(60) == 0, job.text
    check(lake, truth(sent))
    before = shown(lake)
    a_day_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    assert broker.broker is not None
    for seeks in (1, 2):  # a process that has never seen them, and then one that has
        broker.subscriber.seek(request={"subscription": subscription, "time": a_day_ago})
        if seeks == 1:
            job = lake.start()
        acknowledged(broker, subscription, job)
    assert broker.broker.acked(subscription) == 3 * len(sent)
    assert job.kill(signal.SIGTERM) == 0, job.text
    assert shown(lake) == before
    check(lake, truth(sent))


@pytest.mark.slow
def test_messages_that_arrive_hours_before_what_came_are_rows_even_if_the_process_dies_on_them(
    broker: PubsubServer, tmp_path: Path
) -> None:
    sent = messages(25, COUNT)
    old = messages(26, 200, begin=BEGIN - dt.timedelta(hours=5))[:-FLUSH]
    topic, subscription = broker.pair(ack_deadline_seconds=10)
    lake = Lake.make(tmp_path, subscription, broker.environment)
    publish(broker, topic, sent)
    job = lake.start("--until-idle", "2s")
    assert job.ended(60) == 0, job.text
    publish(broker, topic, old)
    job = lake.start(at="acknowledged, no row written")
    assert job.ended(60) == -9, job.text
    assert broker.broker is not None
    assert broker.broker.unacked(subscription) == 0, "the point is that they will not be delivered again"
    broker.advance(11.0)
    last = lake.start("--until-idle", "2s", at="none")
    assert last.ended(60) == 0, last.text
    expected, both = truth(sent), truth([*sent, *old])
    check(
        lake, replace(expected, rows=both.rows, broken=both.broken, late=both.late)
    )  # windows of five hours ago had closed: for the batch
