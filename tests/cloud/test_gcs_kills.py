"""kill -9 of a stream between durable acts in a bucket, each once, one after the other on the same lake; and an outage under a running stream."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

from tests.cloud.gcs_server import GcsServer
from tests.faults.points import POINTS
from tests.faults.stream_jobs import Lake, check
from tests.faults.truth import SPEC, messages, truth
from tests.pubsub_servers import PubsubServer

pytestmark = [pytest.mark.cloud, pytest.mark.slow]

EACH = 200
DIES_AT = (
    "epoch taken, nothing else", "account begun, nothing read", "archive file named, not registered", "registered, not acknowledged",
    "acknowledged at once", "before a file of rows", "after a file of panes", "merged file not named", "merged file named, nothing deleted",
    "of replaced files one deleted", "before progress", "after progress", "end written down, no record",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class BucketLake(Lake):
    """All that a stream keeps lies in a bucket."""

    bucket: str = ""

    @property
    def state(self) -> str:
        return f"gs://{self.bucket}/state"


def make(folder: Path, subscription: str, broker: PubsubServer, gcs: GcsServer) -> BucketLake:
    bucket = gcs.bucket()
    spec = SPEC.replace("path: lake/", f"path: gs://{bucket}/lake/") + f"state: gs://{bucket}/state\n"
    made = Lake.make(folder, subscription, {**broker.environment, **gcs.environment}, spec=spec)
    return BucketLake(made.folder, made.subscription, made.environment, bucket)


@pytest.fixture(autouse=True)
def _pointed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    server = request.getfixturevalue("own_gcs" if "own_gcs" in request.fixturenames else "gcs")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def test_a_stream_may_die_between_any_two_acts(
    broker: PubsubServer, gcs: GcsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(DIES_AT) <= set(POINTS)
    topic, subscription = broker.pair(ack_deadline_seconds=10)
    lake = make(tmp_path, subscription, broker, gcs)
    sent = messages(5, EACH * (len(DIES_AT) + 1))
    for number, point in enumerate(DIES_AT):
        broker.publish_all(topic, [m.published() for m in sent[number * EACH : (number + 1) * EACH]])
        job = lake.start("--until-idle", "3s", at=point)
        assert job.ended(120) == -9, f"did not come to: {point}\n{job.text}"
        broker.advance(11.0)  # its leases are over
    broker.publish_all(topic, [m.published() for m in sent[len(DIES_AT) * EACH :]])
    last = lake.start("--until-idle", "2s", at="none")
    assert last.ended(120) == 0, last.text
    with capsys.disabled():
        print(f"\n{len(DIES_AT)} kills at their points in a bucket, {len(sent):,} messages: {check(lake, truth(sent))}")


def test_a_stream_outlives_an_outage_of_its_bucket(broker: PubsubServer, own_gcs: GcsServer, tmp_path: Path) -> None:
    """Nothing can be stored for five seconds, so nothing is acknowledged; afterwards it goes on."""
    topic, subscription = broker.pair(ack_deadline_seconds=60)
    lake, gate = make(tmp_path, subscription, broker, own_gcs), own_gcs.gate
    assert gate is not None
    sent = messages(6, 400)
    broker.publish_all(topic, [m.published() for m in sent[:200]])
    job = lake.start("--until-idle", "8s", at="none")
    stored = threading.Event()
    gate.answer(
        500, when=lambda method, target: bool("/rewriteTo/" in target and "arrival_hour" in target and stored.set())
    )  # never answers
    assert stored.wait(60), job.text
    gate.away()
    broker.publish_all(topic, [m.published() for m in sent[200:]])
    threading.Timer(5, gate.back).start()
    assert job.ended(120) == 0, job.text
    check(lake, truth(sent))
