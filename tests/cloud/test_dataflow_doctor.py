"""`doctor --runner dataflow`: what is found of a job before it is handed in, and that nothing is changed by looking."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from beam_pipelines.cli.main import command, run_command
from beam_pipelines.runners.dataflow.job import submit
from beam_pipelines.spec.load import LoadedSpec
from tests.cloud.dataflow_lake import call
from tests.cloud.dataflow_service import RUNNING, DataflowService
from tests.cloud.dataflow_specs import FLIGHTS, JOB, PLAIN, SUBSCRIPTION, loaded
from tests.cloud.gcs_server import GcsServer
from tests.pubsub_servers import PubsubServer
from tests.server_process import bound_port

pytestmark = pytest.mark.cloud
ACCOUNT = "workers@demo-project.iam.gserviceaccount.com"
Seen = Callable[..., dict[str, list[tuple[str, str, str]]]]


@pytest.fixture
def seen(service: DataflowService, lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Seen:
    """`seen("--mode", "batch", code=1, image=None)`: state, text and what to do of each finding, by what was looked at, of a call that is right but for what is said."""

    def doctor(
        *words: str, code: int = 0, text: str = PLAIN, change: dict[str, str] | None = None, beam: tuple[str, ...] = (), **said: str | None
    ) -> dict[str, list[tuple[str, str, str]]]:
        loaded(tmp_path, text, change=change or {}, lake=lake)
        job = {
            "project": JOB.project, "region": JOB.region, "temp-location": lake.removesuffix("lake") + "tmp", "sdk-container-image": JOB.image,
            "service-account": ACCOUNT,
        }  # fmt: skip
        options = [f"--{name}={value}" for name, value in {**job, **{n.replace("_", "-"): v for n, v in said.items()}}.items() if value]
        spec = [str(tmp_path / "pipeline.yaml"), "--set", f"lake={lake}"] if "--no-spec" not in words else []
        words = tuple(word for word in words if word != "--no-spec")
        ends = ["--", "--no_auth", f"--dataflow_endpoint={service.url}", *beam]
        capsys.readouterr()
        ended = run_command(command, ["doctor", *spec, "--json", "--runner", "dataflow", *options, *words, *ends])
        out, err = capsys.readouterr()
        assert ended == code, (out, err)
        found: dict[str, list[tuple[str, str, str]]] = {}
        for check in json.loads(out)["checks"]:
            found.setdefault(check["check"], []).append((check["state"], check["found"], check["do"]))
        return found

    return doctor


def states(found: dict[str, list[tuple[str, str, str]]], name: str) -> list[str]:
    return [state for state, _, _ in found[name]]


def test_a_batch_whose_places_are_there_is_good_and_nothing_is_left_behind(
    seen: Seen, service: DataflowService, lake: str, gcs: GcsServer
) -> None:
    bucket = lake.removeprefix("gs://").partition("/")[0]
    before = gcs.names(bucket)
    found = seen("--mode", "batch")
    for name in ("Dataflow", "service", "temp location", "image", "workers", "state", "sources.batch[0]", "output rows, batch"):
        assert states(found, name) == ["good"], found[name]
    assert found["Dataflow"][0][1].startswith("project demo-project, region europe-west1, job flights-")
    assert found["service"][0][1] == "Dataflow answers for project demo-project in europe-west1"
    assert {"Prism", "keys", "job"}.isdisjoint(found)
    assert (service.jobs, gcs.names(bucket)) == ([], before)


def test_all_that_the_service_or_the_run_would_refuse_is_told_at_once(seen: Seen, service: DataflowService) -> None:
    found = seen("--mode", "batch", "--update", "--label", "Team=x", code=1, project=None, sdk_container_image=None, network="a/b")
    told = "\n".join(text for _, text, _ in found["Dataflow"])
    assert states(found, "Dataflow") == ["bad"] * len(found["Dataflow"])
    for part in ("--project is missing", "--sdk-container-image is missing", "--network a/b", "--update: replaces", "--label Team=x"):
        assert part in told, part
    assert (states(found, "service"), states(found, "image")) == (["not looked at"], ["not looked at"])


@pytest.mark.parametrize(
    ("said", "beam", "part"),
    [
        ({"project": "My Project"}, (), "Invalid Project ID"),
        ({"job_name": "Flights_1"}, (), "Invalid job_name"),
        ({"workers": "5", "max_workers": "2"}, (), "num_workers (5) cannot exceed max_num_workers (2)"),
        ({}, ("--worker_region=a", "--worker_zone=b"), "worker_region and worker_zone"),
        ({}, ("--save_main_session",), "--save_main_session after --: is not for you"),
        ({}, ("--template_location=gs://b/t",), "beam-pipelines template build"),
        ({"temp_location": "gs://demo-bucket"}, (), "Did you mean: 'gs://demo-bucket/"),
    ],
)
def test_options_that_dataflow_or_its_client_refuses_are_bad(
    seen: Seen, said: dict[str, str | None], beam: tuple[str, ...], part: str
) -> None:
    found = seen("--no-spec", code=1, beam=beam, **said)
    assert any(state == "bad" and part in text for state, text, _ in found["Dataflow"]), found["Dataflow"]


def test_places_that_are_not_there_are_bad_each_by_its_name(seen: Seen) -> None:
    found = seen("--no-spec", code=1, temp_location="gs://nobodys-bucket-1/tmp", beam=("--staging_location=/tmp/here",))
    assert (states(found, "temp location"), states(found, "staging location")) == (["bad"], ["bad"])
    assert "gs://nobodys-bucket-1/tmp" in found["temp location"][0][1]
    assert "expected gs://BUCKET/FOLDER" in found["staging location"][0][1]


def test_without_a_mode_options_of_streams_are_those_of_the_stream(seen: Seen) -> None:
    assert seen("--no-spec", "--update", "--at-least-once")["Dataflow"] == [("good", "project demo-project, region europe-west1", "")]
    assert "--at-least-once: is a mode of streams" in seen("--mode", "batch", "--at-least-once", code=1)["Dataflow"][0][1]


@pytest.mark.parametrize(
    ("said", "name", "state", "part"),
    [
        ({"sdk_container_image": "r/pipelines"}, "image", "warning", "workers that start later may get another one"),
        ({"sdk_container_image": "r/pipelines:latest"}, "image", "warning", "workers that start later"),
        ({"sdk_container_image": "localhost:5000/p@sha256:" + "a" * 64}, "image", "good", "is named"),
        ({"sdk_container_image": "https://r/p:1"}, "image", "bad", "is no image"),
        ({"service_account": None}, "workers", "warning", "default Compute Engine account"),
        ({"service_account": "me@example.com"}, "workers", "bad", "is no service account"),
    ],
)
def test_image_and_account_of_the_workers_are_named(seen: Seen, said: dict[str, str | None], name: str, state: str, part: str) -> None:
    [(found, text, _)] = seen("--no-spec", code=int(state == "bad"), **said)[name]
    assert (found, part in text) == (state, True), text


def test_packages_that_are_shipped_are_there(seen: Seen, tmp_path: Path) -> None:
    here, gone = tmp_path / "p-1.0.tar.gz", tmp_path / "gone.tar.gz"
    here.write_bytes(b"")
    found = seen("--no-spec", code=1, sdk_container_image=None, beam=(f"--extra_package={here}", f"--extra_package={gone}"))
    assert states(found, "packages") == ["good", "bad"]


@pytest.fixture
def running(service: DataflowService, lake: str, tmp_path: Path) -> LoadedSpec:
    """The spec, whose stream runs as a job."""
    spec = loaded(tmp_path, lake=lake)
    submit(spec, call(service, lake, "stream", run_id="s1"))
    return spec


def job(found: dict[str, list[tuple[str, str, str]]]) -> tuple[str, str, str]:
    [one] = found["job"]
    return one


def test_a_stream_that_runs_is_said_and_is_good_where_it_is_to_be_replaced(
    running: LoadedSpec, service: DataflowService, seen: Seen
) -> None:
    state, text, do = job(seen("--mode", "stream", code=1))
    assert (state, text) == ("bad", f"job flights ({service.jobs[0]['id']}, {RUNNING}) runs this stream; expected none")
    assert "--update" in do
    found = seen("--mode", "stream", "--update", code=1)  # the subscription cannot be seen from here
    assert (job(found)[0], states(found, "state")) == ("good", ["good"])
    service.jobs[0]["currentState"] = "JOB_STATE_CANCELLED"
    assert job(seen("--mode", "stream", "--update", code=1))[1].startswith("--update: no job of this stream runs")
    assert "job" not in seen("--mode", "stream", code=1)
    assert len(service.jobs) == 1


def test_a_job_of_that_name_that_is_not_of_this_state_is_bad(service: DataflowService, seen: Seen) -> None:
    service.jobs.append({"id": "theirs", "name": "flights", "currentState": RUNNING})
    state, text, do = job(seen("--mode", "stream", code=1))
    assert (state, "is not of this state" in text, do.startswith("Choose another --job-name")) == ("bad", True, True)
    assert "job" not in seen("--mode", "batch")
    assert job(seen("--mode", "batch", code=1, job_name="flights"))[0] == "bad"


@pytest.mark.parametrize(
    ("kept", "state", "part"),
    [
        ({"retain_acked_messages": True, "message_retention_duration": Duration(seconds=7 * 86_400)}, "good", "for 168 hours"),
        ({"retain_acked_messages": True, "message_retention_duration": Duration(seconds=3_600)}, "warning", "for 1 hours, and a start after this"),
        ({}, "warning", "keeps no acknowledged messages, and a start after this"),
    ],
)  # fmt: skip
def test_a_subscription_keeps_what_a_next_start_needs_again(
    seen: Seen, emulator: PubsubServer, monkeypatch: pytest.MonkeyPatch, kept: dict[str, Any], state: str, part: str
) -> None:
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    _, subscription = emulator.pair(**kept)
    found = seen("--mode", "stream", code=1, change={SUBSCRIPTION: subscription})
    [(was, text, do)] = found["sources.stream[0]"]
    assert (was, part in text, "retain_acked_messages" in do) == (state, True, state == "warning"), text
    assert any("workers do not reach an emulator" in text for _, text, _ in found["Dataflow"])
    assert not any(name.startswith("archive of") for name in found)
    [(was, text, _)] = seen("--mode", "stream", code=1)["sources.stream[0]"]
    assert (was, SUBSCRIPTION in text) == ("bad", True)


def test_keys_are_the_workers_to_read(seen: Seen, lake: str, gcs: GcsServer) -> None:
    bucket = lake.removeprefix("gs://").partition("/")[0]
    gcs.client().bucket(bucket).blob("lake/carriers.csv").upload_from_string("code,name\nAA,American\n")
    [(state, text, do)] = seen("--mode", "batch", code=1, text=FLIGHTS)["keys"]  # of whose topic nothing is known
    assert (state, "gcp:projects/demo-project/secrets/hmac" in text, "secretAccessor" in do) == ("not looked at", True, True)


def test_a_service_that_refuses_is_bad_and_says_which_role(seen: Seen, service: DataflowService) -> None:
    service.refuse = 403
    [(state, text, do)] = seen("--no-spec", code=1)["service"]
    assert (state, "cannot be listed" in text, "roles/dataflow.viewer" in do) == ("bad", True, True)


@pytest.mark.slow
def test_a_service_that_says_nothing_keeps_nobody_waiting(seen: Seen, service: DataflowService) -> None:
    with bound_port() as (port, server):
        server.listen()
        service.url = f"http://localhost:{port}"
        began = time.monotonic()
        found = seen("--no-spec", code=1)
    assert (states(found, "service"), states(found, "temp location")) == (["bad"], ["good"])
    assert time.monotonic() - began < 15
