"""Checkpoints and savepoints in Cloud Storage: written there, read back, and deleted; a store that is slow, too slow, and away for a minute. The views are what was published.

The server is a real one, behind a gate that makes it slow; a stream's lake lies on the disk, so that only checkpoints wait.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipelines.runners.elsewhere import control_folder
from beam_pipelines.runners.flink.cluster import Cluster, local_cluster
from beam_pipelines.runners.flink.rest import Checkpoints
from beam_pipelines.sources.pubsub_reports import reports
from tests.cloud.gcs_server import GcsServer, running_gcs
from tests.conftest import ROOT
from tests.faults.publish import publishing, stopped
from tests.faults.stream_jobs import Job, Lake, check
from tests.faults.truth import SPEC, messages, truth
from tests.flink.streams import counts, started, ticks
from tests.flink.test_cluster import STREAM, goes_on, now, running, submitting, until
from tests.flink.test_faults import written
from tests.flink_cluster import require_job_server
from tests.pubsub_servers import PubsubServer

pytestmark = pytest.mark.flink

SEED, MOST, PER_SECOND = 23, 90_000, 150
NONE, AGAIN = "no checkpoint is complete for", "a checkpoint is complete again"


@dataclass
class Store:
    """A bucket below which a cluster keeps checkpoints; `slow_s` is how long the content of each file takes there: those of the tasks at once, then that of the job manager."""

    server: GcsServer
    bucket: str
    slow_s: float = 0.0

    def __call__(self, method: str, target: str) -> None:
        if method == "PUT" and target.startswith("/upload/"):
            threading.Event().wait(self.slow_s)

    @property
    def place(self) -> str:
        return f"gs://{self.bucket}/flink"

    def checkpoints(self) -> set[tuple[str, int]]:
        """Job and number of each of which a file lies there; empty objects that stand for folders may stay."""
        names = [name.split("/") for name in self.server.names(self.bucket, "flink/checkpoints/")]
        return {(name[2], int(name[3].removeprefix("chk-"))) for name in names if name[4:] > [""] and name[3].startswith("chk-")}

    def savepoints(self) -> list[str]:
        return [f"gs://{self.bucket}/{name}" for name in self.server.names(self.bucket, "flink/savepoints/") if name.endswith("/_metadata")]

    def away(self) -> None:
        assert self.server.gate is not None
        self.server.gate.away()

    def back(self) -> None:
        assert self.server.gate is not None
        self.server.gate.back()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with running_gcs(tmp_path_factory.mktemp("gcs"), gated=True) as server:
        made = Store(server, server.bucket("checkpoints"))
        assert server.gate is not None
        server.gate.before = made
        yield made


@pytest.fixture(scope="module")
def cluster(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_job_server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.server.environment.items():
            patch.setenv(name, value)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
        with local_cluster(tmp_path_factory.mktemp("flink"), checkpoints=store.place, environment=environment) as started_cluster:
            yield started_cluster


def test_flink_goes_on_from_a_checkpoint_and_from_a_savepoint_in_a_bucket(store: Store, cluster: Cluster, tmp_path: Path) -> None:
    path, client = tmp_path / "counts", cluster.client
    with submitting(cluster) as options:
        job = ticking(cluster, path, options)
        until(lambda: client.checkpoints(job).completed > 4 and counts(path), "it counts, and has checkpoints")
        until(lambda: min(number for _, number in store.checkpoints()) > 2, "old ones are deleted")
        seen = counts(path)[-1][1]
        cluster.kill("task manager")
        cluster.restart("task manager").wait_until_ready()
        goes_on(path, seen + 10)
        saved = client.stop_with_savepoint(job)
        assert f"{saved}/_metadata" in store.savepoints()
        until(lambda: not store.checkpoints(), "those of a job that has ended are deleted")
        seen = counts(path)[-1][1]
        second = ticking(cluster, path, [*options, f"--savepoint_path={saved}"])
        goes_on(path, seen + 10)
        assert client.checkpoints(second).restored == 1
        client.cancel(second)


def ticking(cluster: Cluster, path: Path, options: list[str]) -> str:
    """A stream of ticks; its job."""
    pipeline = beam.Pipeline(options=PipelineOptions([*options, "--streaming", *STREAM]))
    ticks(pipeline, path)
    pipeline.run()
    until(lambda: running(cluster.client), "the stream runs")
    return cluster.client.jobs()[0].id


def test_a_stream_that_loses_its_task_manager_ends_with_a_savepoint_in_the_bucket(
    store: Store, cluster: Cluster, own_broker: PubsubServer, tmp_path: Path
) -> None:
    cluster, saved = now(cluster), store.savepoints()
    topic, subscription = own_broker.pair(ack_deadline_seconds=10)
    lake = Lake.make(tmp_path, subscription, own_broker.environment)
    with started(lake, cluster, "--until-idle", "10s") as job, publishing(topic, SEED, MOST, PER_SECOND, lake.environment) as publisher:
        job.hears("acknowledged", timeout_s=120)
        assert store.checkpoints()
        cluster.kill("task manager")
        cluster = cluster.restart("task manager")
        job.hears("The next start follows", timeout_s=60)
        written(lake, after=time.time(), job=job)
        count = stopped(publisher)
        assert job.ended(240) == 0, job.text
    assert lake.starts() >= 2
    check(lake, truth(messages(SEED, count)))
    assert len(store.savepoints()) == len(saved) + 1
    until(lambda: not store.checkpoints(), "the checkpoints of both jobs are deleted")


def test_a_store_that_is_slow_then_too_slow_then_away_delays_acknowledgements_and_nothing_else(
    store: Store, cluster: Cluster, own_broker: PubsubServer, tmp_path: Path
) -> None:
    cluster = now(cluster)
    topic, subscription = own_broker.pair(ack_deadline_seconds=30)
    lake = Lake.make(tmp_path, subscription, own_broker.environment, spec=SPEC.replace("ack_deadline: 10s", "ack_deadline: 30s"))
    options = started(lake, cluster, "--until-idle", "10s", flags=["--checkpoint_timeout_millis=16000"])
    with options as job, publishing(topic, SEED, MOST, PER_SECOND, lake.environment) as publisher:
        job.hears("acknowledged", timeout_s=120)
        try:
            store.slow_s = 3.0  # with that of the job manager six intervals
            before = of(cluster)
            until(lambda: of(cluster).completed >= before.completed + 4, "checkpoints are completed, slowly")
            slow = of(cluster)
            assert slow.latest is not None
            assert slow.latest.duration_ms > 3_000
            with saying(job, NONE):
                store.slow_s = 18.0  # longer than a checkpoint may take
            written(lake, after=time.time(), job=job)
            assert of(cluster).failed > slow.failed
            with saying(job, AGAIN):
                store.slow_s = 0.0
            gone, held = time.monotonic(), megabytes(cluster)
            with saying(job, NONE):
                store.away()
            written(lake, after=time.time(), job=job)
            threading.Event().wait(gone + 60 - time.monotonic())
            assert megabytes(cluster) - held < 200, "Beam's own worker keeps each of some three hundred bundles whole, and grows by 500"
            with saying(job, AGAIN):
                store.back()
        finally:
            store.slow_s = 0.0
            store.back()
        count = stopped(publisher)
        assert job.ended(240) == 0, job.text
    assert lake.starts() == 1
    check(lake, truth(messages(SEED, count)))
    statuses = [report.status for report in reports(control_folder(lake.state, 1)).values()]
    assert sum(status.acked for status in statuses) == len(messages(SEED, count))
    assert sum(status.redelivered for status in statuses) == 0, "leases of 30 s were extended meanwhile"
    until(lambda: not store.checkpoints(), "nothing is left of those that were given up either")


def of(cluster: Cluster) -> Checkpoints:
    """The checkpoints of the job that runs."""
    (job,) = [job.id for job in cluster.client.jobs() if not job.ended]
    return cluster.client.checkpoints(job)


def megabytes(cluster: Cluster) -> int:
    """What the workers have in memory."""
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in cluster.worker_pids]
    return sum(int(line.split()[1]) for status in statuses for line in status.splitlines() if line.startswith("VmRSS")) >> 10


@contextmanager
def saying(job: Job, sentence: str) -> Iterator[None]:
    """After the block the job says it, perhaps once more."""
    before = job.text.count(sentence)
    yield
    until(lambda: job.text.count(sentence) > before, f"{sentence}:\n{job.text}")
