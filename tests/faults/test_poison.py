"""A record that brings the process down: after two crashes the third start finds out which it is, keeps it out, and all others go through."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.stream_jobs import Lake, check
from tests.faults.test_ends import publish
from tests.faults.truth import SPEC, messages, truth
from tests.pubsub_servers import PubsubServer

STRIKES = """
import os
import signal

import pyarrow as pa


def step(batch: pa.RecordBatch) -> pa.RecordBatch:
    if {version} in batch.column("version").to_pylist():  # what a fault in a library would do
        os.kill(os.getpid(), signal.{signal})
    return batch
"""
COUNT = 600

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_record_that_crashes_the_process_becomes_a_dead_letter(broker: PubsubServer, tmp_path: Path, number: signal.Signals) -> None:
    sent = messages(31, COUNT)
    poison = next(
        m for m in sent[COUNT // 2 :] if m.row is not None and m.row.user != "nobody" and m.row.id == m.row.version and m.row.cents > 0
    )
    assert poison.row is not None
    copies = [m for m in sent if m.row is not None and m.row.version == poison.row.version]
    (tmp_path / "strikes.py").write_text(STRIKES.format(version=poison.row.version, signal=number.name))
    spec = SPEC.replace("transform:\n", "transform:\n  - apply: {function: 'strikes:step', columns: {visitor: int32}}\n")
    topic, subscription = broker.pair(ack_deadline_seconds=10)
    lake = Lake.make(tmp_path, subscription, broker.environment, spec=spec)
    publish(broker, topic, sent)
    for _ in range(2):
        job = lake.start("--until-idle", "2s", at="none")
        assert job.ended(60) == -number, job.text
        broker.advance(11.0)
    third = lake.start("--until-idle", "2s", at="none")
    assert third.ended(60) == 0, third.text
    assert f"found {len(copies)} record" in third.text
    expected = truth(m for m in sent if m not in copies)
    check(lake, replace(expected, broken=expected.broken + Counter(m.data for m in copies)))
    letters = lake.tables().sql("SELECT reason, count(*) FROM dead_letters WHERE reason = 'CRASH' GROUP BY 1").fetchall()
    assert letters == [("CRASH", len(copies))]
    assert lake.start("--until-idle", "1s").ended(60) == 0, "it is known for good"


def test_kills_from_outside_make_nobody_guilty(broker: PubsubServer, tmp_path: Path) -> None:
    sent = messages(32, COUNT)
    topic, subscription = broker.pair(ack_deadline_seconds=10)
    lake = Lake.make(tmp_path, subscription, broker.environment)
    publish(broker, topic, sent)
    for _ in range(2):
        job = lake.start("--until-idle", "2s", at="in the middle of the work")
        assert job.ended(60) == -9, job.text
        broker.advance(11.0)
    third = lake.start("--until-idle", "2s", at="none")
    assert third.ended(60) == 0, third.text
    assert "looking for one that crashes" in third.text
    assert "found no record that crashes" in third.text
    check(lake, truth(sent))
