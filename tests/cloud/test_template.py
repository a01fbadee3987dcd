"""A flex template: the JSON as Dataflow's own messages read it, its parameters those of the spec, and a launch that hands the run in and returns."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from google.cloud.dataflow_v1beta3.types import ContainerSpec
from google.protobuf import json_format

from beam_pipelines.cli.template import template
from beam_pipelines.errors import BeamPipelinesError
from beam_pipelines.places import read_bytes
from beam_pipelines.runners.dataflow.bundle import fetched
from beam_pipelines.runners.dataflow.launch import main, split
from beam_pipelines.runners.dataflow.template import OURS
from beam_pipelines.sinks.epochs import all_starts, what_ran
from tests.cloud.dataflow_service import DataflowService
from tests.cloud.dataflow_specs import PLAIN, flights
from tests.cloud.gcs_server import GcsServer

pytestmark = pytest.mark.cloud
ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "templates" / "flex-template.schema.json").read_text())
IMAGE = "europe-docker.pkg.dev/demo-project/r/pipelines:1"
PARAMETERS = """{
  lake:      {type: path, default: "gs://demo-bucket/lake", description: Where outputs go.},
  least:     {type: int, default: -5},
  share:     {type: float, default: 0.5},
  open-now:  {type: boolean, default: true},
  patience:  {type: duration, default: 15m},
  kind:      {type: string, default: a, choices: [a, b]},
  shape:     {type: string, regex: "[a-z]{3}", default: abc},
  must:      {type: string},
}"""


def build(folder: Path, *words: str, text: str = PLAIN, code: int = 0) -> tuple[dict[str, Any], str]:
    """The template that the command writes, and what it prints; or its error."""
    (folder / "pipeline.yaml").write_text(text)
    result = CliRunner().invoke(
        template, ["build", str(folder / "pipeline.yaml"), "--image", IMAGE, "--output", str(folder / "t.json"), *words]
    )
    if code:
        assert isinstance(result.exception, BeamPipelinesError), result.output
        return {}, str(result.exception)
    assert result.exception is None, (result.exception, result.output)
    return json.loads((folder / "t.json").read_text()), result.output


def with_parameters(text: str = PLAIN) -> str:
    return re.sub(r"parameters: .*", "parameters: " + PARAMETERS.replace("\n", "\n  "), text)


@pytest.mark.parametrize("mode", ["batch", "stream"])
@pytest.mark.parametrize("words", [(), ("--service-account", "a@b", "--network", "n", "--subnetwork", "s", "--no-public-ips", "--kms-key", "k", "--workers", "1",
                                        "--max-workers", "9", "--machine-type", "m", "--temp-location", "gs://b/t", "--label", "team=x")])  # fmt: skip
def test_it_is_what_dataflow_reads_and_nothing_is_lost(tmp_path: Path, mode: str, words: tuple[str, ...]) -> None:
    made, _ = build(tmp_path, "--mode", mode, *words, text=with_parameters())
    jsonschema.Draft202012Validator(SCHEMA).validate(made)
    read = json_format.ParseDict(made, ContainerSpec.pb()())  # refuses fields that the service does not know
    again = json_format.MessageToDict(read, always_print_fields_with_no_presence=False)
    assert _without_defaults(again) == _without_defaults(made)
    assert read.metadata.streaming == (mode == "stream")


def _without_defaults(value: Any) -> Any:
    """Protobuf's JSON leaves false and empty out."""
    if isinstance(value, dict):
        return {k: _without_defaults(v) for k, v in value.items() if v not in (False, "", [], {})}
    return [_without_defaults(v) for v in value] if isinstance(value, list) else value


def test_gcloud_would_have_lost_what_makes_it_a_stream(tmp_path: Path) -> None:
    made, _ = build(tmp_path, "--mode", "stream", "--at-least-once")
    assert {k: made["metadata"][k] for k in ("streaming", "supportsAtLeastOnce", "supportsExactlyOnce", "defaultStreamingMode")} == {
        "streaming": True, "supportsAtLeastOnce": True, "supportsExactlyOnce": True, "defaultStreamingMode": "AT_LEAST_ONCE",
    }  # fmt: skip


def test_its_parameters_are_the_specs_and_the_launchers(tmp_path: Path) -> None:
    made, printed = build(tmp_path, "--mode", "batch", "--set", "least=7", text=with_parameters())
    found = {p["name"]: p for p in made["metadata"]["parameters"]}
    assert {
        "lake",
        "least",
        "share",
        "open-now",
        "patience",
        "kind",
        "shape",
        "must",
        "spec",
        "run_id",
        "from_time",
        "to_time",
        "input",
    } <= set(found)
    assert [name for name, p in found.items() if not p["isOptional"]] == ["spec", "must"]
    assert (found["least"]["defaultValue"], found["least"]["paramType"], found["open-now"]["defaultValue"]) == ("7", "NUMBER", "true")
    assert [option["value"] for option in found["kind"]["enumOptions"]] == ["a", "b"]
    assert "--parameters=must=…" in printed
    for name, good, bad in (("share", "-1.5e3", "x"), ("patience", "1h30m", "soon"), ("shape", "xyz", "abcd"), ("lake", "gs://b/x", "/tmp"), ("least", "-3", "3.5"),
                            ("from_time", "2013-01-01", "yesterday"), ("run_id", "r-1", "-"), ("open-now", "false", "yes")):  # fmt: skip
        assert all(re.search(regex, good) for regex in found[name]["regexes"]), name
        assert not all(re.search(regex, bad) for regex in found[name]["regexes"]), name


@pytest.mark.parametrize(
    ("words", "text", "why"),
    [
        ((), PLAIN, "Say which: --mode batch or --mode stream"),
        (("--mode", "batch"), PLAIN.replace("lake: {", "region: {type: string, default: x}, lake: {"), "parameters.region: a template has Beam's option"),
        (("--mode", "batch"), PLAIN.replace("lake: {", "input: {type: string, default: x}, lake: {"), "parameters.input: a template has the launcher's option"),
        (("--mode", "batch"), PLAIN.replace("gs://demo-bucket/lake", "lake"), "workers see no disk of this machine"),
        (("--mode", "batch"), PLAIN.replace("lake: {", 'x: {type: string, regex: "a+"}, lake: {'), "--sample x=VALUE"),
        (("--mode", "batch", "--label", "Team"), PLAIN, "--label Team"),
        (("--mode", "batch"), PLAIN.replace("key: [flight]", "key: [fligt]"), "fligt"),
    ],
)  # fmt: skip
def test_what_cannot_be_launched_is_not_built(tmp_path: Path, words: tuple[str, ...], text: str, why: str) -> None:
    _, said = build(tmp_path, *words, text=text, code=2)
    assert why in said
    assert list(tmp_path.glob("t*")) == []


def test_a_contract_beside_the_spec_goes_along(tmp_path: Path) -> None:
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / "c.yaml").write_text(
        "key: [flight]\nevent_time: at\ncolumns: {flight: {type: int32}, delay: {type: int16}, at: {type: timestamp}}\n"
    )
    text = re.sub(r"contract:\n(  .*\n)+", "contract: {file: contracts/c.yaml}\n", PLAIN)
    build(tmp_path, "--mode", "batch", text=text)
    (bundle,) = tmp_path.glob("t.spec-*.json")
    assert list(fetched(str(bundle)).files) == ["contracts/c.yaml"]


def test_every_word_of_a_launch_goes_to_whom_it_is_for(tmp_path: Path) -> None:
    build(tmp_path, "--mode", "batch", text=with_parameters())
    (path,) = tmp_path.glob("t.spec-*.json")
    words = [
        "--must=a=b",
        "--open-now",
        "false",
        "--kind=",
        "--run_id=r1",
        "--project=p",
        "--labels={'a': 'b'}",
        "--streaming",
        "--experiments",
        "x",
    ]
    given = split(words, fetched(str(path)), str(path))
    assert given.spec == {"must": "a=b", "open-now": "false"}  # what is empty was left out of the form
    assert given.ours == {"run_id": "r1"}
    assert given.beam == ("--project=p", "--labels={'a': 'b'}", "--streaming", "--experiments", "x")
    assert "spec" in OURS


@pytest.mark.parametrize("word", ["--spec={}", "--spec {}"])
def test_the_spec_is_named_in_one_word_or_two(lake: str, tmp_path: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The spec is found: what is wrong is said of it."""
    assert main([*word.format(f"{lake}/none.json").split(), "--mode=batch"]) != 0
    assert f"{lake}/none.json" in capsys.readouterr().err
    assert main(["--spec"]) == 2
    assert "--spec is missing" in capsys.readouterr().err


@pytest.fixture
def lake(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    bucket = gcs.bucket()
    gcs.client().bucket(bucket).blob("lake/in/a.json").upload_from_string(flights(5))
    return f"gs://{bucket}/lake"


def as_the_service_calls(service: DataflowService, lake: str, *words: str) -> list[str]:
    return [
        *words, "--runner=DataflowRunner", "--project=demo-project", "--region=europe-west1", "--job_name=my-job", "--no_auth",
        f"--temp_location={lake}/tmp", f"--staging_location={lake}/staging", f"--dataflow_endpoint={service.url}", "--labels={'goog-dataflow-provided': 'x'}",
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["batch", "stream"])
def test_a_launch_hands_the_run_in_and_returns(service: DataflowService, lake: str, tmp_path: Path, mode: str) -> None:
    (tmp_path / "pipeline.yaml").write_text(PLAIN)
    command = [
        "build",
        str(tmp_path / "pipeline.yaml"),
        "--image",
        IMAGE,
        "--output",
        f"{lake}/templates/t.json",
        "--mode",
        mode,
        "--set",
        f"lake={lake}",
    ]
    result = CliRunner().invoke(template, command)
    assert result.exception is None, result.output
    url = next(p for p in json.loads(read_bytes(f"{lake}/templates/t.json") or b"")["metadata"]["parameters"] if p["name"] == "spec")[
        "defaultValue"
    ]
    assert main(as_the_service_calls(service, lake, f"--spec={url}", "--run_id=r1")) == 0
    (job,) = service.jobs
    assert (job["name"], job["labels"]["beam_pipelines_run_id"], job["labels"]["goog-dataflow-provided"]) == ("my-job", "r1", "x")
    assert [image["containerImage"] for image in job["environment"]["workerPools"][0]["sdkHarnessContainerImages"]] == [IMAGE]
    ran = what_ran(f"{lake}/state", all_starts(f"{lake}/state")[1]) if mode == "stream" else None
    assert (job["labels"].get("beam_pipelines_spec") is None, ran is None) == (mode == "batch", mode == "batch")
    assert ran is None or ran.spec["parameters"]["lake"]["default"]


def test_a_launch_into_a_file_leaves_the_start_to_the_service(service: DataflowService, lake: str, tmp_path: Path) -> None:
    """The service has its launcher write the job, and starts it itself."""
    (tmp_path / "pipeline.yaml").write_text(PLAIN.replace("gs://demo-bucket/lake", lake))
    made = f"{lake}/job_object"
    assert (
        main(
            as_the_service_calls(
                service,
                lake,
                f"--spec={tmp_path / 'pipeline.yaml'}",
                "--mode=batch",
                f"--template_location={made}",
                f"--sdk_container_image={IMAGE}",
            )
        )
        == 0
    )
    assert service.jobs == []
    assert json.loads(read_bytes(made) or b"")["name"] == "my-job"


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        ([], 2, "--spec is missing"),
        (["--spec=gs://nowhere/x.json"], 2, "there is no such file"),
        (["--spec=SPEC", "--mode=both"], 2, "expected batch or stream"),
        (["--spec=SPEC", "--mode=batch", "--from_time=2013-01-05", "--to_time=2013-01-01"], 2, "2013-01"),
    ],
)  # fmt: skip
def test_a_launch_that_cannot_be_says_why(
    service: DataflowService, lake: str, tmp_path: Path, capsys: Any, words: list[str], code: int, why: str
) -> None:
    (tmp_path / "pipeline.yaml").write_text(PLAIN.replace("gs://demo-bucket/lake", lake))
    given = [word.replace("SPEC", str(tmp_path / "pipeline.yaml")) for word in words]
    assert main(as_the_service_calls(service, lake, f"--sdk_container_image={IMAGE}", *given)) == code
    assert why in capsys.readouterr().err


def test_the_file_that_the_launcher_starts_is_the_package(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, str(ROOT / "templates" / "launch.py")], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (run.returncode, "--spec is missing" in run.stderr) == (2, True)


def test_code_beside_the_spec_is_refused_until_it_is_shipped(tmp_path: Path) -> None:
    (tmp_path / "beside_the_spec.py").write_text("def f(batch):\n    return batch\n")
    text = PLAIN.replace("deduplicate:", "transform: [{apply: beside_the_spec:f}]\ndeduplicate:")
    _, said = build(tmp_path, "--mode", "batch", text=text, code=2)
    assert "lies beside the spec, where workers do not find it" in said
