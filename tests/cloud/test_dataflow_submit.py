"""A spec handed in to Dataflow: what the service is given by Beam's own client, and what of it another runner makes of the graph that was staged."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from google.protobuf.duration_pb2 import Duration
from google.pubsub_v1.types import SeekRequest

from beam_pipelines.errors import RunError, SinkError, SourceError, SpecError
from beam_pipelines.places import list_files, read_bytes
from beam_pipelines.pubsub_service import EMULATOR
from beam_pipelines.runners.beam_options import Options
from beam_pipelines.runners.dataflow import starts
from beam_pipelines.runners.dataflow.job import DataflowCall, submit
from beam_pipelines.runners.dataflow.service import jobs_of, remembered, taken_starts
from beam_pipelines.runners.dataflow.starts import certain
from beam_pipelines.sinks.epochs import all_starts, job_page, latest_epoch
from beam_pipelines.sinks.reached import Reached, write_progress
from beam_pipelines.sinks.results import RunResults, find_run, metadata, write_run
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sources.pubsub_messages import AHEAD_MICROS
from beam_pipelines.spec.horizon import horizon
from beam_pipelines.spec.load import LoadedSpec
from tests.cloud.dataflow_lake import call
from tests.cloud.dataflow_service import DONE, FAILED, DataflowService
from tests.cloud.dataflow_specs import JOB, SUBSCRIPTION, loaded
from tests.cloud.gcs_server import GcsServer
from tests.cloud.grpc_gate import running_gate
from tests.pubsub_servers import PubsubServer, texts

pytestmark = pytest.mark.cloud


def staged(job: dict[str, Any]) -> Any:
    """The graph that the job's workers will take."""
    content = read_bytes(job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"])
    assert content is not None
    return beam_runner_api_pb2.Pipeline.FromString(content)


def run_elsewhere(proto: Any) -> None:
    """The graph on Beam's local runner: only the image is taken out of it."""
    for environment in proto.components.environments.values():
        assert environment.urn == common_urns.environments.DOCKER.urn
        environment.urn, environment.payload = python_urns.EMBEDDED_PYTHON, b""
        del environment.dependencies[:]
    FnApiRunner().run_via_runner_api(proto, PipelineOptions([])).wait_until_finish()


def rows_in(folder: str, gcs: GcsServer) -> int:
    bucket, _, prefix = folder.removeprefix("gs://").partition("/")
    blobs = [
        blob for blob in gcs.client().list_blobs(bucket, prefix=prefix + "/") if blob.name.endswith(".parquet") and "/." not in blob.name
    ]
    return sum(pq.read_table(io.BytesIO(blob.download_as_bytes())).num_rows for blob in blobs)


@pytest.mark.slow
def test_the_graph_of_a_batch_is_complete_and_commits_by_itself(
    service: DataflowService, lake: str, gcs: GcsServer, tmp_path: Path
) -> None:
    handed_in = submit(loaded(tmp_path, lake=lake), call(service, lake, run_id="r1"))
    assert (handed_in.job_id, handed_in.name) == (service.jobs[0]["id"], "flights-r1")
    run_elsewhere(staged(service.jobs[0]))  # nobody who waits
    record = find_run(handed_in.run.state, "r1")
    assert record is not None
    assert job_page(handed_in.run.state, "r1") == handed_in.url
    assert (record.status, record.metadata.spec, record.args["spec"]) == ("success", "pipeline.yaml", "pipeline.yaml")
    assert (rows_in(f"{lake}/flights", gcs), rows_in(f"{lake}/dead_letters", gcs)) == (30, 1)
    assert list_files(f"{lake}/flights/.staging") == []


def test_what_was_asked_for_is_what_the_service_is_asked_for(service: DataflowService, lake: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "service_account": "workers@demo-project.iam.gserviceaccount.com", "labels": ("team=data",), "network": "net", "subnetwork": "regions/r/subnetworks/s",
        "public_ips": False, "kms_key": "projects/p/locations/l/keyRings/k/cryptoKeys/c", "workers": 2, "max_workers": 5, "machine_type": "n2-standard-2",
    }  # fmt: skip
    submit(loaded(tmp_path, lake=lake), call(service, lake, run_id="R.1", **asked))
    (job,) = service.jobs
    environment, (pool,) = job["environment"], job["environment"]["workerPools"]
    assert job["labels"] == {
        "beam_pipelines_pipeline": "flights",
        "beam_pipelines_run_id": "r_1",
        "beam_pipelines_mode": "batch",
        "team": "data",
    }
    assert job["type"] in (1, "JOB_TYPE_BATCH")
    assert (environment["serviceAccountEmail"], environment["serviceKmsKeyName"]) == (asked["service_account"], asked["kms_key"])
    assert (pool["network"], pool["subnetwork"], pool["numWorkers"], pool["machineType"]) == (
        "net",
        "regions/r/subnetworks/s",
        2,
        "n2-standard-2",
    )
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 5
    assert pool["ipConfiguration"] in (2, "WORKER_IP_PRIVATE")
    assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == [JOB.image]


def test_a_stream_goes_by_one_name_on_streaming_engine(service: DataflowService, lake: str, tmp_path: Path) -> None:
    handed_in = submit(loaded(tmp_path, lake=lake), call(service, lake, "stream", run_id="s1", at_least_once=True))
    (job,) = service.jobs
    assert (job["name"], handed_in.name) == ("flights", "flights")
    assert job["type"] in (2, "JOB_TYPE_STREAMING")
    assert job["environment"]["version"]["job_type"] == "FNAPI_STREAMING"
    assert {"enable_streaming_engine", "enable_windmill_service"} <= set(job["environment"]["experiments"])
    assert "streaming_mode_at_least_once" in job["environment"]["serviceOptions"]
    assert all_starts(f"{lake}/state")[1].run_id == "s1"
    reads = [t for t in staged(job).components.transforms.values() if t.spec.urn == "beam:transform:pubsub_read:v1"]
    assert [beam_runner_api_pb2.PubSubReadPayload.FromString(t.spec.payload).subscription for t in reads] == [SUBSCRIPTION]


def test_a_running_stream_is_replaced_and_never_doubled(service: DataflowService, lake: str, tmp_path: Path) -> None:
    spec = loaded(tmp_path, lake=lake)
    submit(spec, call(service, lake, "stream", run_id="s1"))
    with pytest.raises(SpecError, match=r"this stream runs as job flights .*--update"):
        submit(spec, call(service, lake, "stream", run_id="s2"))
    assert latest_epoch(spec.state) == 1
    replaced = submit(spec, call(service, lake, "stream", update=True))
    assert (service.jobs[1]["replaceJobId"], replaced.run.run_id, replaced.run.epoch) == (service.jobs[0]["id"], "s1", 1)


def test_an_update_without_a_job_is_refused(service: DataflowService, lake: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no job of this stream runs"):
        submit(loaded(tmp_path, lake=lake), call(service, lake, "stream", update=True))


def test_a_launch_that_would_replace_a_job_starts_one_where_none_runs(service: DataflowService, lake: str, tmp_path: Path) -> None:
    """Terraform says it always: the first time, and after the job has ended; then it is a start of its own, with nobody's state."""
    spec = loaded(tmp_path, lake=lake)
    first = submit(spec, call(service, lake, "stream", run_id="s1", update=True, or_start=True))
    assert (first.run.epoch, "replaceJobId" in service.jobs[0]) == (1, False)
    again = submit(spec, call(service, lake, "stream", update=True, or_start=True))
    assert (again.run.epoch, service.jobs[1]["replaceJobId"]) == (1, service.jobs[0]["id"])


@pytest.mark.parametrize(("arrival", "ahead"), [("", 0), (", arrival: {attribute: departed_at}", AHEAD_MICROS)])
def test_a_next_start_has_everything_delivered_again_that_open_windows_need(
    service: DataflowService, lake: str, emulator: PubsubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrival: str, ahead: int
) -> None:
    """Where an attribute says when a message arrived, it may have been published that much earlier."""
    topic, subscription = emulator.pair(retain_acked_messages=True, message_retention_duration=Duration(seconds=7 * 86_400))
    emulator.publish(topic, b"acknowledged")
    emulator.ack(subscription, emulator.take(subscription, 1))
    change = {SUBSCRIPTION: subscription, "format: json}]\nded": f"format: json{arrival}}}]\nded"}
    spec = loaded(tmp_path, change=change, lake=lake)
    submit(spec, call(service, lake, "stream", run_id="s1"))
    service.jobs[0]["currentState"] = "JOB_STATE_CANCELLED"
    reached = time.time_ns() // 1_000
    write_progress(spec.state, 1, Reached(reached))
    with running_gate(emulator.address) as gate:
        begins = replace(
            call(service, lake, "stream", run_id="s2", update=True, or_start=True),
            say=lambda _: monkeypatch.setenv(EMULATOR, gate.address),  # said after the check, which refuses an emulator
        )
        second = submit(spec, begins)
    assert (second.run.epoch, len(service.jobs)) == (2, 2)
    [sought] = [SeekRequest.pb().FromString(request) for request in gate.requests["Seek"]]
    since = reached - 2 * horizon(spec.spec) - 1_000_000 - ahead  # a drained job may have noted the end of an open window
    assert (sought.subscription, sought.time.ToMicroseconds()) == (subscription, since)
    assert texts(emulator.take(subscription, 1)) == ["acknowledged"]


def test_a_watermark_that_no_message_can_have_said_is_no_progress(tmp_path: Path) -> None:
    """A clock in the future moves Dataflow's; to seek there would acknowledge all that waits."""
    spec = loaded(tmp_path, lake=str(tmp_path / "lake"))
    before = time.time_ns() // 1_000
    write_progress(spec.state, 1, Reached(2 * before))
    reached = certain(spec.spec, spec.state).watermark_micros
    assert reached is not None
    assert before <= reached + horizon(spec.spec) + 1_000_000 <= time.time_ns() // 1_000


def test_a_start_that_is_refused_does_not_make_one_of_the_same_id_undone(
    service: DataflowService, lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = loaded(tmp_path, lake=lake)
    submit(spec, call(service, lake, "stream", run_id="s1"))
    service.jobs[0]["currentState"] = "JOB_STATE_CANCELLED"
    monkeypatch.setattr(starts, "go_back", lambda subscription, micros, *, ahead: micros)
    service.refuse_jobs = 403
    with pytest.raises(RunError):
        submit(spec, call(service, lake, "stream", run_id="s1"))
    assert (latest_epoch(spec.state), [*taken_starts(spec.state)]) == (2, [1, 2]), "the first ran: what it acknowledged is needed again"


def test_a_next_start_that_cannot_go_back_takes_no_epoch(
    service: DataflowService, lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = loaded(tmp_path, lake=lake)
    submit(spec, call(service, lake, "stream", run_id="s1"))
    service.jobs[0]["currentState"] = "JOB_STATE_CANCELLED"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(SourceError, match=r"missing\.json"):
        submit(spec, call(service, lake, "stream", run_id="s2"))
    assert (latest_epoch(spec.state), len(service.jobs)) == (1, 1)


def test_an_id_that_has_a_record_is_no_stream_s_and_that_of_a_stream_no_batch_s(
    service: DataflowService, lake: str, tmp_path: Path
) -> None:
    spec = loaded(tmp_path, lake=lake)
    for mode in ("batch", "stream"):
        about = RunInfo(mode, "flights", spec.state, mode=mode)
        write_run(spec.state, RunResults(metadata(about, finished_at=about.started_at), "success"))
    for mode, taken in (("stream", "stream"), ("stream", "batch"), ("batch", "stream")):
        with pytest.raises(SpecError, match=f"--run-id {taken}: is taken by a {taken} run"):
            submit(spec, call(service, lake, mode, run_id=taken))
    assert (latest_epoch(spec.state), service.jobs) == (0, [])


def test_two_batches_never_write_one_output_at_a_time(service: DataflowService, lake: str, tmp_path: Path) -> None:
    spec = loaded(tmp_path, lake=lake)
    submit(spec, call(service, lake, run_id="r1"))
    with pytest.raises(SinkError, match="run 'r1' writes it"):
        _from_elsewhere(spec, call(service, lake, run_id="r2"), lake)
    assert [job["name"] for job in service.jobs] == ["flights-r1"]


@pytest.mark.parametrize("again", ["r2", "r1"])
def test_a_batch_whose_job_failed_unwatched_stands_in_nobodys_way(service: DataflowService, lake: str, tmp_path: Path, again: str) -> None:
    """Not of another run's, nor of its own when an orchestrator begins it again under its id."""
    spec = loaded(tmp_path, lake=lake)
    submit(spec, call(service, lake, run_id="r1"))
    service.jobs[0]["currentState"] = FAILED
    _from_elsewhere(spec, call(service, lake, run_id=again), lake)
    assert [job["name"] for job in service.jobs] == ["flights-r1", f"flights-{again}"]


@pytest.mark.parametrize("again", ["r2", "r1"])
def test_a_batch_whose_job_runs_unwatched_keeps_its_outputs(service: DataflowService, lake: str, tmp_path: Path, again: str) -> None:
    spec = loaded(tmp_path, lake=lake)
    submit(spec, call(service, lake, run_id="r1"))
    _launcher(lake, started="by a process that has ended")
    with pytest.raises(SinkError, match=r"output 'rows' .*: run 'r1' writes it"):
        submit(spec, call(service, lake, run_id=again))
    service.jobs[0]["currentState"] = FAILED
    submit(spec, call(service, lake, run_id=again))
    assert [job["name"] for job in service.jobs] == ["flights-r1", f"flights-{again}"]


def test_a_launcher_does_not_take_its_own_queued_job_for_another(service: DataflowService, lake: str, tmp_path: Path) -> None:
    """The service makes the job of a template before it starts the launcher, which then looks for jobs of that name."""
    spec = loaded(tmp_path, lake=lake)
    submit(spec, call(service, lake, "stream", run_id="s1"))
    service.jobs[0]["currentState"] = "JOB_STATE_CANCELLED"
    service.jobs.append({"id": "own", "name": "flights", "currentState": "JOB_STATE_QUEUED"})
    known = remembered(spec.state, ["s1"])["s1"]

    def looking(*flags: str) -> list[str]:
        options = Options([*call(service, lake).flags, *flags], runner="DataflowRunner")
        return [found.id for found in jobs_of(options, known)]

    first = service.jobs[0]["id"]
    assert looking("--template_location=gs://b/staging/template_launches/own/job_object") == [first]
    assert looking() == [first, "own"]


def _launcher(lake: str, **owner: str) -> None:
    """Makes the claims those of another process."""
    from beam_pipelines.places import write_bytes

    for output in ("flights", "by_hour", "dead_letters"):
        path = f"{lake}/{output}/.staging/claim.json"
        claim = json.loads(read_bytes(path) or b"{}")
        claim["owner"] |= owner
        write_bytes(path, json.dumps(claim).encode())


def _from_elsewhere(spec: LoadedSpec, called: DataflowCall, lake: str) -> None:
    """As from another machine: a claim of a process that has ended on this one is taken over anyway."""
    _launcher(lake, machine="elsewhere/boot/namespace")
    submit(spec, called)


@pytest.mark.parametrize("mode", ["batch", "stream"])
def test_a_job_that_the_service_refuses_leaves_no_claim(service: DataflowService, lake: str, tmp_path: Path, mode: str) -> None:
    service.refuse = 403
    with pytest.raises(RunError):
        submit(loaded(tmp_path, lake=lake), call(service, lake, mode, run_id="r1"))
    assert (service.jobs, list_files(f"{lake}/flights/.staging")) == ([], [])


def test_a_stream_whose_job_the_service_refused_begins_as_if_it_was_never_asked_for(
    service: DataflowService, lake: str, tmp_path: Path
) -> None:
    spec = loaded(tmp_path, lake=lake)
    service.refuse = 403
    with pytest.raises(RunError):
        submit(spec, call(service, lake, "stream", run_id="s1"))
    service.refuse = None
    begun = submit(spec, call(service, lake, "stream", run_id="s2"))
    assert (begun.run.epoch, len(service.jobs)) == (2, 1)


@pytest.mark.slow  # Beam looks every five seconds
def test_a_followed_batch_gives_its_record(service: DataflowService, lake: str, tmp_path: Path) -> None:
    handed_in = submit(loaded(tmp_path, lake=lake), call(service, lake, run_id="r1"))
    run_elsewhere(staged(service.jobs[0]))
    service.jobs[0]["currentState"] = DONE
    record = handed_in.wait()
    assert record is not None
    assert (record.status, [output.rows for output in record.outputs if output.of == "rows"]) == ("success", [30])


@pytest.mark.slow
def test_a_followed_batch_that_fails_leaves_outputs_as_they_were(service: DataflowService, lake: str, tmp_path: Path) -> None:
    handed_in = submit(loaded(tmp_path, lake=lake), call(service, lake, run_id="r1"))
    service.jobs[0]["currentState"] = FAILED
    with pytest.raises(RunError, match=r"console\.cloud\.google\.com"):
        handed_in.wait()
    assert list_files(f"{lake}/flights/.staging") == []


def test_whoever_stops_waiting_leaves_the_job_its_claims(service: DataflowService, lake: str, tmp_path: Path) -> None:
    handed_in = submit(loaded(tmp_path, lake=lake), call(service, lake, run_id="r1"))

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it
    # At each look: one may hit a callback of the garbage collector, which hears nothing.
    service.watched = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        handed_in.wait()
    service.watched = lambda: None
    service.jobs[0]["currentState"] = DONE  # for Beam's thread, which would look for ever
    assert list_files(f"{lake}/flights/.staging") == ["claim.json"]
