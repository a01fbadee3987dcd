"""The cluster on this machine: what it takes, that any part of it can die and come back, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipelines.errors import RunError, TransientError
from beam_pipelines.runners.flink.cluster import PARTS, Cluster, Part, cluster_folder, find_cluster, start_cluster
from beam_pipelines.runners.flink.jars import JAVA_OPENS, find_java, find_job_server, kept_job_server
from beam_pipelines.runners.flink.lasting_process import alive, members
from beam_pipelines.runners.flink.rest import FlinkRest
from beam_pipelines.runners.flink.server import job_server
from tests.conftest import Run
from tests.flink.streams import counts, ticks
from tests.flink_cluster import require_job_server

pytestmark = pytest.mark.flink

_WAIT_S = 120.0


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not after {_WAIT_S:.0f} s: {what}"
        time.sleep(0.1)


@contextlib.contextmanager
def submitting(cluster: Cluster) -> Iterator[list[str]]:
    """Beam's options for jobs on the cluster, with the workers of its pool."""
    with job_server(find_java(), JAVA_OPENS, find_job_server(), cluster.rest) as server:
        yield [
            "--runner=PortableRunner", f"--job_endpoint={server.endpoint}", "--environment_type=EXTERNAL",
            f"--environment_config={cluster.workers}", "--parallelism=1",
        ]  # fmt: skip


@pytest.fixture(scope="module")
def jobs(flink_cluster: Cluster) -> Iterator[list[str]]:
    with submitting(flink_cluster) as options:
        yield options


def test_a_batch_runs_on_its_workers_and_these_end_with_it(flink_cluster: Cluster, jobs: list[str], tmp_path: Path) -> None:
    with beam.Pipeline(options=PipelineOptions(jobs)) as pipeline:
        numbers = pipeline | beam.Create(range(1000)) | "Key" >> beam.Map(lambda n: (n % 2, n)) | beam.CombinePerKey(sum)
        numbers | beam.Map(lambda found: (tmp_path / str(found[0])).write_text(f"{os.getpid()} {found[1]}"))
    pid, total = (tmp_path / "1").read_text().split()
    assert int(total) == sum(range(1, 1000, 2))
    assert int(pid) != os.getpid()
    until(lambda: not flink_cluster.worker_pids, "the workers have ended")
    job = flink_cluster.client.jobs()[0]
    assert (job.state, job.ended) == ("FINISHED", True)
    assert flink_cluster.client.overview().slots_free == flink_cluster.slots


def test_a_step_that_fails_is_a_failure_with_pythons_reason(flink_cluster: Cluster, jobs: list[str]) -> None:
    def fail(_: object) -> None:
        raise ValueError("no such number")

    pipeline = beam.Pipeline(options=PipelineOptions(jobs))
    pipeline | beam.Create([1]) | beam.Map(fail)
    pipeline.run()
    client = flink_cluster.client
    until(lambda: running(client) and client.failures(client.jobs()[0].id), "the step has failed")
    job = client.jobs()[0].id
    assert client.failures(job)[0].cause.startswith("ValueError: no such number")
    client.cancel(job)
    client.cancel(job)  # has ended: nothing happens
    assert client.job(job).state == "CANCELED"


@pytest.fixture
def stream(flink_cluster: Cluster, jobs: list[str], tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A stream of ticks that has a checkpoint: its job and the file of counts."""
    path = tmp_path / "counts"
    pipeline = beam.Pipeline(options=PipelineOptions([*jobs, "--streaming", *STREAM]))
    ticks(pipeline, path)
    pipeline.run()
    client = flink_cluster.client
    until(lambda: running(client), "the stream runs")
    job = client.jobs()[0].id
    until(lambda: client.checkpoints(job).completed and counts(path), "it counts, and has a checkpoint")
    yield job, path
    client.cancel(job)
    until(lambda: not flink_cluster.worker_pids, "its workers have ended")


STREAM = [
    "--checkpointing_interval=500",
    "--finish_bundle_before_checkpointing",
    "--max_bundle_time_mills=200",
    "--externalized_checkpoints_enabled",
]


def running(client: FlinkRest) -> bool:
    jobs = client.jobs()
    return bool(jobs) and jobs[0].state == "RUNNING"


def now(cluster: Cluster) -> Cluster:
    """With the processes that earlier tests have started."""
    found = find_cluster(cluster.folder)
    assert found is not None
    return replace(cluster, parts=found.parts)


def goes_on(path: Path, seen: int) -> None:
    """Waits until an element is counted that was not before; the count went on from a checkpoint, not from nothing."""
    before = counts(path)
    until(lambda: max(number for _, number in counts(path)) > seen, "it counts beyond what it had counted")
    assert all(number > 1 for _, number in counts(path)[len(before) :])


DEATHS: list[tuple[Part, ...]] = [("task manager",), ("job manager",), ("worker pool",), ("zookeeper", "job manager")]


@pytest.mark.parametrize("dying", DEATHS, ids=" and ".join)
def test_a_stream_goes_on_from_its_checkpoint_after_parts_were_killed_and_started_again(
    flink_cluster: Cluster, stream: tuple[str, Path], dying: tuple[Part, ...]
) -> None:
    job, path = stream
    cluster = now(flink_cluster)
    seen = counts(path)[-1][1]
    workers = {pid for pid, _ in counts(path)}
    for part in dying:
        cluster.kill(part)
    assert cluster.dead == [part for part in PARTS if part in dying]
    if "worker pool" in dying:
        until(lambda: not workers & set(cluster.worker_pids), "its workers have ended, too")
    for part in dying:
        cluster = cluster.restart(part)
    cluster.wait_until_ready()
    until(lambda: cluster.client.job(job).state == "RUNNING", "the job runs")
    goes_on(path, seen + 10)


def test_a_worker_that_is_killed_is_replaced(flink_cluster: Cluster, stream: tuple[str, Path]) -> None:
    job, path = stream
    seen = counts(path)[-1]
    os.kill(seen[0], 9)
    until(lambda: counts(path)[-1][0] != seen[0], "another worker counts")
    goes_on(path, seen[1] + 10)
    until(lambda: flink_cluster.client.restarts(job), "the restart is counted")
    assert flink_cluster.client.failures(job)


def test_a_stream_is_stopped_with_a_savepoint_and_starts_from_it(flink_cluster: Cluster, stream: tuple[str, Path], jobs: list[str]) -> None:
    job, path = stream
    client = flink_cluster.client
    saved = client.stop_with_savepoint(job)
    assert client.job(job).state == "FINISHED"
    assert saved.startswith(flink_cluster.folder.resolve().as_uri().replace("file:///", "file:/"))
    seen = counts(path)[-1][1]
    pipeline = beam.Pipeline(options=PipelineOptions([*jobs, "--streaming", *STREAM, f"--savepoint_path={saved}"]))
    ticks(pipeline, path)
    pipeline.run()
    goes_on(path, seen + 10)
    second = client.jobs()[0].id
    assert client.checkpoints(second).restored == 1
    assert client.checkpoint_interval_ms(second) == 500
    client.cancel(second)
    assert client.job(second).state == "CANCELED"


def test_nobody_at_an_address_is_said_with_what_to_do(flink_cluster: Cluster) -> None:
    client = flink_cluster.client
    with pytest.raises(RunError, match=r"Flink at 127\.0\.0\.1:\d+: /jobs/.*00000000000000000000000000000000"):
        client.job("0" * 32)
    with pytest.raises(TransientError, match=r"does not answer: connection refused.*cluster up"):
        FlinkRest("127.0.0.1:1").overview()


def test_a_cluster_ends_with_the_process_that_asked_for_it_however_that_dies(tmp_path: Path) -> None:
    require_job_server()
    code = """
import os, sys
from pathlib import Path
from beam_pipelines.runners.flink.cluster import local_cluster
with local_cluster(Path(sys.argv[1])):
    os.kill(os.getpid(), 9)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    started = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    until((tmp_path / "cluster.json").exists, "the parts are started")
    cluster = find_cluster(tmp_path)
    assert cluster is not None
    assert started.wait(_WAIT_S) == -9
    until(lambda: not any(members(replace(p, pid=0)) for p in cluster.parts.values()), "nothing is left")
    until(lambda: not (tmp_path / "cluster.json").exists(), "the record is gone")
    assert (tmp_path / "logs" / "task-manager.log").exists()
    assert not (tmp_path / "recovery").exists()


def test_up_down_and_status_on_the_command_line(beam_pipelines: Run, environment: dict[str, str], tmp_path: Path) -> None:
    require_job_server()
    folder = ("--folder", tmp_path)
    try:
        first = beam_pipelines("cluster", "up", "--slots", 1, *folder).stdout
        cluster = find_cluster(tmp_path)
        assert cluster is not None
        line = f"Flink 1.19 at {cluster.rest} (1 slot), Python workers at {cluster.workers}; beam-pipelines cluster down --folder {tmp_path} ends it.\n"
        assert first == line
        assert beam_pipelines("cluster", "up", *folder).stdout == f"It runs already, and nothing was changed.\n{line}"
        assert find_cluster(tmp_path) == cluster
        assert "End it first" in beam_pipelines("cluster", "up", "--slots", 3, *folder, expect=1).stderr
        assert {address for part in PARTS for address in listening(cluster.parts[part].pid)} <= LOOPBACK
        assert "1 of 1 slots free" in beam_pipelines("cluster", "status", *folder).stdout
        cluster.kill("worker pool")
        assert "worker pool   dead" in beam_pipelines("cluster", "status", *folder, expect=1).stdout
        assert "started anew, because they were dead: worker pool." in beam_pipelines("cluster", "up", *folder).stdout
        repaired = find_cluster(tmp_path)
        assert repaired is not None
        assert [part for part in PARTS if repaired.parts[part] != cluster.parts[part]] == ["worker pool"]
    finally:
        ended = beam_pipelines("cluster", "down", *folder).stdout
    assert ended == f"Ended: the cluster at {cluster.rest}.\n"
    assert not any(alive(process) for process in repaired.parts.values())
    assert beam_pipelines("cluster", "down", *folder).stdout == f"No cluster in {tmp_path}.\n"
    assert '"running": false' in beam_pipelines("cluster", "status", "--json", *folder).stdout


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def listening(pid: int) -> Iterator[str]:
    """The addresses a process listens on, as /proc/net/tcp writes them."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(entry))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                yield fields[1].partition(":")[0]


def test_a_part_that_does_not_start_is_named_with_its_log_and_nothing_is_left(tmp_path: Path) -> None:
    require_job_server()
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    kept = kept_job_server(environment)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(find_job_server().read_bytes()[:1000])
    with pytest.raises(RunError, match=r"the (zookeeper|job manager|task manager) ended: .*(Error|Exception).*\. Its log: "):
        start_cluster(tmp_path / "cluster", environment=environment)
    assert find_cluster(tmp_path / "cluster") is None


def test_slots_are_spread_evenly_over_task_managers(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"3 slots cannot be spread evenly over 2 task managers\. Ask for 4\."):
        start_cluster(tmp_path / "cluster", slots=3, task_managers=2)
    assert not (tmp_path / "cluster" / "cluster.json").exists()


def test_the_folder_is_the_users_cache_unless_named(tmp_path: Path) -> None:
    assert cluster_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "beam_pipelines" / "cluster"
