"""An upgrade: a start with a changed spec takes over from one that runs, whose job stays on the cluster if its command was killed.

The check and the key that are new decide nothing otherwise than before, so that the truth is one: but no state of the earlier start would fit them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beam_pipelines.runners.flink.cluster import Cluster
from beam_pipelines.sinks.epochs import all_starts
from tests.faults.publish import publishing
from tests.faults.stream_jobs import Job, Lake, check
from tests.faults.truth import SPEC, messages, truth
from tests.flink.streams import started
from tests.pubsub_servers import PubsubServer

pytestmark = pytest.mark.flink

SEED, COUNT, PER_SECOND = 11, 18_000, 150
CHANGED_CHECK = SPEC + '\nchecks: [{name: plausible, expr: "cents < 10_000"}]\n'
CHANGED_KEY = CHANGED_CHECK.replace("key: [id]", "key: [part, id]").replace(
    "  columns:", '  columns:\n    part: {type: int32, expr: "id % 7"}'
)


@contextmanager
def upgraded(lake: Lake, cluster: Cluster, *options: str) -> Iterator[Job]:
    """`upgrade` in place of `run`, as `started` otherwise."""
    flink = ["--runner", "flink", "--flink-master", cluster.rest, "--flink-workers", cluster.workers]
    given = ["upgrade", "spec.yaml", "--set", f"subscription={lake.subscription}", *flink, *options, "--", "--checkpointing_interval=1000"]
    command = [sys.executable, "-c", "from beam_pipelines.cli import main; main()", *given]
    nothing = subprocess.DEVNULL
    job = Job(
        subprocess.Popen(
            command, cwd=lake.folder, env=dict(lake.environment), stdin=nothing, stdout=nothing, stderr=subprocess.PIPE, text=True
        )
    )
    try:
        yield job
    finally:
        if job.process.poll() is None:
            job.kill()


def test_a_changed_spec_takes_over_from_a_killed_command_and_from_one_that_runs(
    own_flink_cluster: Cluster, own_broker: PubsubServer, tmp_path: Path
) -> None:
    cluster = own_flink_cluster
    topic, subscription = own_broker.pair(ack_deadline_seconds=10)
    lake = Lake.make(tmp_path, subscription, own_broker.environment)
    with publishing(topic, SEED, COUNT, PER_SECOND, lake.environment) as publisher:
        with started(lake, cluster) as first:
            first.hears("acknowledged", timeout_s=120)
            first.kill()
        assert [job.ended for job in cluster.client.jobs()] == [False], "with workers in a pool the job stays"

        (tmp_path / "spec.yaml").write_text(CHANGED_CHECK, "utf-8")
        with upgraded(lake, cluster) as second:
            second.hears("of an earlier start still runs, and is cancelled", timeout_s=60)
            second.hears("acknowledged", timeout_s=120)
            (tmp_path / "spec.yaml").write_text(CHANGED_KEY, "utf-8")
            with upgraded(lake, cluster) as refused:
                assert refused.ended(60) == 1
                assert "--accept contract.key" in refused.text
            assert lake.starts() == 2
            assert second.process.poll() is None
            assert [job.ended for job in cluster.client.jobs()].count(False) == 1
            with upgraded(lake, cluster, "--accept", "contract.key", "--until-idle", "25s") as third:
                third.hears(" written", timeout_s=120)  # of the archive; on a busy machine nothing may be left to acknowledge
                assert second.ended(60) == 1
                assert "this stream was taken over by a later start" in second.text
                assert publisher.wait(120) == 0
                assert third.ended(180) == 0, third.text
    assert all(job.ended for job in cluster.client.jobs())
    starts = all_starts(lake.state)
    assert len(starts) == 3
    assert {(start.versions["engine"], start.versions["Flink"].rpartition(".")[0]) for start in starts.values()} == {
        ("FlinkRunner", "1.19")
    }
    check(lake, truth(messages(SEED, COUNT)))
