"""`terraform/`, offline: it is well formed, what it would make is right, and what is wrong is refused with a sentence.

The plans' own tests are terraform/tests/*.tftest.hcl. Here: they pass and can fail, and what must hold for every resource whatever it is.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cloud.installer import installed_again
from tests.cloud.terraform_readme import PAGES, current, outputs_of, variables_of
from tests.cloud.terraform_tool import HERE, SOURCE, Configuration, Made, copied, require_terraform

pytestmark = pytest.mark.cloud

KEY = "projects/keys-project/locations/europe-west3/keyRings/r/cryptoKeys/k"
FOLDERS = [SOURCE, *sorted((SOURCE / "modules").iterdir()), *sorted((SOURCE / "examples").iterdir())]
TEST_FILES = sorted(path.name for path in (SOURCE / "tests").glob("*.tftest.hcl"))
GOOD = {
    "project": "demo-project",
    "region": "europe-west3",
    "name": "flights",
    "image": "europe-west3-docker.pkg.dev/demo-project/images/beam-pipelines:1.0.0",
    "template_path": "gs://demo-project-flights-config/templates/flights-1.0.0.json",
    "spec_path": "gs://demo-project-flights-config/specs/flights-1.0.0.yaml",
}


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    """A copy of terraform/ for this module's tests, initialised."""
    require_terraform()
    folder = tmp_path_factory.mktemp("terraform")
    return Configuration(copied(folder / "terraform"), folder).init()


@pytest.fixture(scope="module")
def plans(configuration: Configuration) -> dict[str, list[Made]]:
    """What the root module would make: with six variables, with everything, without jobs."""
    return configuration.plans("tests/whole.tftest.hcl")


def named(path: Path) -> str:
    return str(path.relative_to(SOURCE.parent))


# ── it is well formed ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_everything_is_formatted(configuration: Configuration) -> None:
    configuration.run("fmt", "-check", "-recursive", "-diff")


@pytest.mark.parametrize("source", FOLDERS, ids=named)
def test_root_modules_and_examples_are_valid_alone(source: Path, configuration: Configuration) -> None:
    folder = configuration.folder / source.relative_to(SOURCE)
    done = Configuration(folder, configuration.scratch).init().run("validate", "-json")
    assert json.loads(done.stdout)["diagnostics"] == []


def test_an_argument_that_google_does_not_know_is_found(tmp_path: Path) -> None:
    """The stub is worth something: it has the real providers' schemas."""
    require_terraform()
    copy = Configuration(copied(tmp_path / "terraform"), tmp_path)
    storage = copy.folder / "modules" / "storage" / "main.tf"
    storage.write_text(storage.read_text("utf-8").replace("public_access_prevention ", "public_access_prevented "), "utf-8")
    said = copy.init().run("validate", "-no-color", expect=1)
    assert 'An argument named "public_access_prevented" is not expected here' in said.stderr


@pytest.mark.parametrize("file", TEST_FILES)
def test_plans_are_as_the_test_files_say(file: str, configuration: Configuration) -> None:
    done = configuration.run("test", "-no-color", f"-filter=tests/{file}")
    assert re.search(r"Success! [1-9]\d* passed, 0 failed", done.stdout), done.stdout


# What is broken in a copy, and the run of the test files that must see it.
BROKEN = [
    ("identity", '"roles/dataflow.worker"', '"roles/dataflow.worker", "roles/editor"', "each_account_has_exactly_these_rights"),
    ("storage", '"enforced"', '"inherited"', "no_bucket_is_public"),
    ("storage", '"temp/"', '""', "only_temporary_files_expire"),
    ("storage", "[var.undo_days]", "[1 + var.undo_days]", "versions_are_kept_where_an_undo_makes_sense"),
    ("messaging", "write_metadata   = true", "write_metadata   = false", "raw_messages_are_archived_with_their_identity"),
    ("messaging", "enable_exactly_once_delivery = false", "enable_exactly_once_delivery = true", "the_job_has_a_subscription_of_its_own"),
    ("messaging", "kms_key_name               = var.kms_key", "kms_key_name = null", "messages"),
    ("encryption", "EncrypterDecrypter", "Encrypter", "every_service_that_keeps_data_may_use_the_key"),
    ("warehouse", "* local.day_ms", "* 1000", "tables_are_as_they_were_said"),
    ("jobs", "WORKER_IP_PRIVATE", "WORKER_IP_PUBLIC", "the_stream_is_the_worker_and_private"),
    ("alerts", "var.thresholds.freshness_s, for_s", "600, for_s", "every_threshold_is_where_it_was_said"),
    ("alerts", "resource.labels.subscription_id", "resource.labels.topic_id", "each_alert_looks_at_its_own_thing"),
    ("network", "private_ip_google_access = true", "private_ip_google_access = false", "a_network_is_made_for_the_workers"),
]


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The runs that fail by an assertion in a copy in which all of BROKEN is broken."""
    require_terraform()
    scratch = tmp_path_factory.mktemp("broken")
    copy = Configuration(copied(scratch / "terraform"), scratch)
    for module, old, new, _ in BROKEN:
        file = copy.folder / "modules" / module / "main.tf"
        text = file.read_text("utf-8")
        assert old in text, f"{module}: nothing to break: {old}"
        file.write_text(text.replace(old, new), "utf-8")
    files = sorted({f"-filter=tests/{module}.tftest.hcl" for module, *_ in BROKEN})
    said = [json.loads(line) for line in copy.init().run("test", "-json", *files, expect=1).stdout.splitlines()]
    return {line["@testrun"] for line in said if line["type"] == "diagnostic" and line["diagnostic"]["summary"] == "Test assertion failed"}


@pytest.mark.parametrize(("module", "old", "run"), [(module, old, run) for module, old, _, run in BROKEN])
def test_a_plan_that_is_wrong_is_seen(module: str, old: str, run: str, failed: set[str]) -> None:
    assert run in failed, f"{module}: nobody missed: {old}"


# ── what holds for every resource ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_everything_that_can_have_labels_has_ours(plans: dict[str, list[Made]]) -> None:
    for run, labels in (("six_variables_make_a_stream", {}), ("everything", {"team": "data"})):
        seen = set()
        for made in plans[run]:
            for name in {"labels", "user_labels"} & made.schema["attributes"].keys():
                seen.add(made.type)
                found = made.after[name] or {}
                assert {"made_by": "terraform", **labels}.items() <= found.items(), f"{made.address}: {found}"
                assert found["pipeline"] == ("flights-eu" if labels else "flights")
        assert len(seen) >= 6, seen  # buckets, topics, subscriptions, dataset, tables or job, alerts


def test_nobody_has_a_right_on_the_project_that_a_resource_can_give(plans: dict[str, list[Made]]) -> None:
    """Owner, editor, viewer and every Admin are out; what is left are rights on jobs, which have no smaller resource."""
    for made in plans["everything"]:
        if made.type == "google_project_iam_member":
            assert made.after["role"] in {
                "roles/dataflow.worker", "roles/dataflow.viewer", "roles/dataflow.developer", "roles/bigquery.jobUser", "roles/bigquery.readSessionUser", "roles/compute.viewer",
            }, made.address  # fmt: skip


def test_no_right_is_for_everybody_or_administers_anything(plans: dict[str, list[Made]]) -> None:
    grants = [made for made in plans["everything"] if "_iam_" in made.type]
    assert len(grants) > 25
    for made in grants:
        assert made.type.endswith("_iam_member"), f"{made.address}: a binding or policy would take away rights that others gave"
        assert not re.match("(allUsers|allAuthenticatedUsers|domain:)", made.after["member"]), made.address
        assert not re.search(r"(?i)admin|owner|editor$", made.after["role"].removesuffix("bigquery.dataEditor")), (
            f"{made.address}: {made.after['role']}"
        )


def test_the_services_own_accounts_have_these_rights_and_no_other(plans: dict[str, list[Made]]) -> None:
    of_google = {
        (made.after["member"].removeprefix("serviceAccount:"), made.after["role"])
        for made in plans["everything"]
        if "_iam_" in made.type and re.search(r"@(gcp-sa|compute-system|dataflow-service|gs-project|bigquery-enc)", made.after["member"])
    }
    key, pubsub = "roles/cloudkms.cryptoKeyEncrypterDecrypter", "service-123456789012@gcp-sa-pubsub.iam.gserviceaccount.com"
    assert of_google == {
        (pubsub, key), (pubsub, "roles/storage.objectCreator"), (pubsub, "roles/storage.legacyBucketReader"),
        (pubsub, "roles/pubsub.publisher"), (pubsub, "roles/pubsub.subscriber"),
        ("service-123456789012@dataflow-service-producer-prod.iam.gserviceaccount.com", key),
        ("service-123456789012@compute-system.iam.gserviceaccount.com", key),
        ("service-123456789012@gs-project-accounts.iam.gserviceaccount.com", key),
        ("bq-123456789012@bigquery-encryption.iam.gserviceaccount.com", key),
    }  # fmt: skip


def test_with_a_key_every_argument_that_takes_one_has_it(plans: dict[str, list[Made]]) -> None:
    with_key = {made.type for made in plans["everything"] for name, value in named_values(made.after) if "kms_key" in name and value == KEY}
    assert with_key == {
        "google_bigquery_dataset", "google_bigquery_table", "google_dataflow_flex_template_job", "google_pubsub_topic", "google_storage_bucket",
    }  # fmt: skip
    for made in plans["everything"]:
        if any("kms_key" in name for name in all_names(made.schema)):
            assert any("kms_key" in name and value == KEY for name, value in named_values(made.after)), made.address
    assert launch(plans["everything"])["environment"]["kmsKeyName"] == KEY


def test_without_a_key_none_is_named(plans: dict[str, list[Made]]) -> None:
    for made in plans["six_variables_make_a_stream"]:
        assert all(value is None for name, value in named_values(made.after) if "kms_key" in name), made.address
        assert made.type != "google_kms_crypto_key_iam_member"


def test_what_holds_data_is_protected_from_destroy(plans: dict[str, list[Made]]) -> None:
    for made in plans["everything"]:
        assert made.after.get("force_destroy") in (None, False), made.address
        assert made.after.get("delete_contents_on_destroy") in (None, False), made.address
        assert made.after.get("deletion_protection") in (None, True), made.address
    assert sum(made.after.get("deletion_protection") is True for made in plans["everything"]) == 5  # tables


def test_both_jobs_are_told_the_same_but_their_mode(plans: dict[str, list[Made]]) -> None:
    stream = next(made.after for made in plans["everything"] if made.type == "google_dataflow_flex_template_job")
    batch = launch(plans["everything"])
    assert {**stream["parameters"], "mode": "batch"} == batch["parameters"]
    assert stream["parameters"] == {
        "spec": GOOD["spec_path"], "mode": "stream", "lake": "gs://demo-project-flights-eu-lake", "subscription": "projects/demo-project/subscriptions/flights-eu",
    }  # fmt: skip
    same = {"service_account_email": "serviceAccountEmail", "sdk_container_image": "sdkContainerImage", "subnetwork": "subnetwork"}
    assert all(stream[ours] == batch["environment"][theirs] for ours, theirs in same.items())


def test_the_scheduler_sends_what_the_api_takes(plans: dict[str, list[Made]]) -> None:
    """Google's own message refuses unknown fields and values."""
    from google.cloud import dataflow_v1beta3

    job = next(made.after for made in plans["everything"] if made.type == "google_cloud_scheduler_job")
    body = base64.b64decode(job["http_target"][0]["body"]).decode()
    request = dataflow_v1beta3.LaunchFlexTemplateRequest.from_json(body, ignore_unknown_fields=False)
    assert request.launch_parameter.job_name == "flights-eu-batch"
    assert request.launch_parameter.environment.ip_configuration == dataflow_v1beta3.WorkerIPAddressConfiguration.WORKER_IP_PRIVATE
    with pytest.raises(Exception, match="no field named"):
        dataflow_v1beta3.LaunchFlexTemplateRequest.from_json(body.replace("tempLocation", "temporaryLocation"), ignore_unknown_fields=False)


def test_the_archive_source_understands_the_names_of_the_archive_s_files(plans: dict[str, list[Made]]) -> None:
    """`run --input archive` leaves out files by the moment in their names, and takes only those with its suffix."""
    from beam_pipelines.formats import pubsub_avro
    from beam_pipelines.formats.archive_files import source_folder

    config = next(made.after for made in plans["everything"] if made.address == "module.messaging.google_pubsub_subscription.archive")
    cloud_storage = config["cloud_storage_config"][0]
    begun = dt.datetime(2026, 11, 3, 4, 5, 6, tzinfo=dt.UTC)
    words = {"YYYY": "%Y", "MM": "%m", "DD": "%d", "hh": "%H", "mm": "%M", "ss": "%S"}
    moment = begun.strftime(re.sub("|".join(words), lambda word: words[word[0]], cloud_storage["filename_datetime_format"]))
    path = f"gs://b/{cloud_storage['filename_prefix']}{moment}_0a1b2c3d-1111-2222-3333-444455556666{cloud_storage['filename_suffix']}"
    read = next(made.after for made in plans["everything"] if made.address == "module.messaging.google_pubsub_subscription.job")
    source = f"projects/{read['project']}/subscriptions/{read['name']}"
    assert path.startswith(source_folder("gs://b/raw", source) + "/"), (
        "where `--input archive` looks, of a spec with `archive: gs://b/raw/`"
    )
    assert pubsub_avro.begun_micros(path) == begun.timestamp() * 1_000_000
    assert path.endswith(pubsub_avro.SUFFIX)
    longest = int(config["cloud_storage_config"][0]["max_duration"].removesuffix("s"))
    assert longest * 1_000_000 < pubsub_avro.LATEST_MICROS
    assert config["ack_deadline_seconds"] >= longest


def test_a_stream_that_starts_anew_can_go_back(plans: dict[str, list[Made]]) -> None:
    """It seeks its subscription to a time for which the topic must still have the messages (`runners.dataflow.subscriptions`)."""
    topic = next(made.after for made in plans["everything"] if made.address == 'module.messaging.google_pubsub_topic.topic["messages"]')
    assert topic["message_retention_duration"] == "604800s"


def test_every_service_that_is_used_is_enabled(plans: dict[str, list[Made]]) -> None:
    """A resource type begins with its service's name, but for these."""
    special = {
        "cloud_scheduler": "cloudscheduler",
        "artifact_registry": "artifactregistry",
        "secret_manager": "secretmanager",
        "kms": "cloudkms",
        "service_account": "iam",
    }
    enabled = {
        made.after["service"].removesuffix(".googleapis.com") for made in plans["everything"] if made.type == "google_project_service"
    }
    for made in plans["everything"]:
        name = made.type.removeprefix("google_")
        service = next((api for prefix, api in special.items() if name.startswith(prefix)), name.split("_")[0])
        assert service in enabled | {"project"}, made.address
    assert enabled >= {"bigquerystorage", "iamcredentials", "logging"}  # which no resource names, but a job uses


def launch(plan: list[Made]) -> dict[str, Any]:
    """The request that the scheduler sends."""
    job = next(made.after for made in plan if made.type == "google_cloud_scheduler_job")
    found: dict[str, Any] = json.loads(base64.b64decode(job["http_target"][0]["body"]))["launchParameter"]
    return found


def named_values(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a plan below `value` with the name of the argument it belongs to."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from named_values(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from named_values(inner, name)
    else:
        yield name, value


def all_names(block: dict[str, Any]) -> Iterator[str]:
    yield from block.get("attributes", {})
    for inner in block.get("block_types", {}).values():
        yield from all_names(inner["block"])


# ── what is wrong is refused with a sentence ─────────────────────────────────────────────────────────────────────────────────────────────────

REFUSED = [
    ("project", "123456789012", "project: this is no project id; got \"123456789012\"; expected 6 to 30 small letters"),
    ("region", "europe-west3-a", "region: this is no region; got \"europe-west3-a\"; expected one like europe-west3"),
    ("name", "Flights_2013", "name: accounts and buckets cannot be called so; got \"Flights_2013\"; expected 2 to 20 small letters"),
    ("image", "x/y:latest", "image: it must say which build it is; got \"x/y:latest\"; expected REGION-docker.pkg.dev/"),
    ("template_path", "flights.json", "template_path: this is no template; got \"flights.json\"; expected gs://BUCKET/PATH.json"),
    ("spec_path", "gs://b/flights", "spec_path: this is no spec that workers can read; got \"gs://b/flights\"; expected gs://BUCKET/PATH.yaml or .json"),
    ("kms_key", "projects/p/locations/us/keyRings/r/cryptoKeys/k", "kms_key: not a key in the jobs' region"),
    ("producers", '["allUsers"]', "producers: the public is not let in; got \"allUsers\"; expected user:"),
    ("labels", '{Team="Data"}', "labels: Google takes small letters, digits, `_` and `-` only, 63 at most; got Team = \"Data\""),
    ("place_parameters", '{lke="lake"}', "place_parameters: unknown place; got lke; expected lake, archive, temp"),
    ("batch", '{schedule="nightly"}', "batch: schedule is no cron line; got \"nightly\"; expected five fields"),
    ("stream", "{num_workers=9,max_workers=3}", "stream: workers do not fit; got num_workers 9, max_workers 3"),
    ("archive", "{max_duration_s=5}", "archive: max_duration_s is out of range; got 5; expected 60 to 600"),
    ("messages", "{retention_days=40}", "messages: retention is out of range; got 40 and 7 days; expected 1 to 31"),
    ("thresholds", "{archive_s=60}", "so this would always be told; got archive_s = 60; expected 600 or more"),
    ("worker_roles", '["roles/editor"]', "worker_roles: a job is no administrator; got roles/editor"),
    ("secrets", '["k"]', "secrets: expected projects/PROJECT/secrets/SECRET, without a version; got \"k\""),
    ("temporary_days", "1", "temporary_days: a batch may run for days and needs its files; got 1; expected 8 or more"),
]  # fmt: skip


# Their rules look at other variables, so they are only asked where those are right.
DEPENDENT = {"kms_key", "thresholds"}


@pytest.fixture(scope="module")
def refusal(configuration: Configuration) -> str:
    """What two plans say of all wrong variables: Terraform collects them."""
    said = ""
    for dependent in (False, True):
        values = GOOD | {name: value for name, value, _ in REFUSED if (name in DEPENDENT) is dependent}
        variables = [f"-var={name}={value}" for name, value in values.items()]
        said += configuration.run("plan", "-no-color", "-input=false", "-lock=false", *variables, expect=1).stderr
    return " ".join(re.sub("[│╷╵]", " ", said).split())


@pytest.mark.parametrize(("name", "sentence"), [(name, sentence) for name, _, sentence in REFUSED])
def test_a_wrong_variable_is_refused_with_a_sentence(name: str, sentence: str, refusal: str) -> None:
    assert sentence in refusal, name


# ── it is described ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_current(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text.count("<!-- variables:") == text.count("<!-- outputs:") == 1
    assert text == current(text), "run: python -m tests.cloud.terraform_readme"


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("variables.tf")), ids=named)
def test_every_variable_has_a_description_and_a_type(file: Path) -> None:
    text = file.read_text("utf-8")
    found = list(variables_of(text))
    assert len(found) == text.count('\nvariable "') + text.startswith("variable")
    for variable in found:
        assert variable.description.endswith("."), f"{named(file)}: {variable.name}"
        assert variable.type, f"{named(file)}: {variable.name}"


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("outputs.tf")), ids=named)
def test_every_output_has_a_description(file: Path) -> None:
    text = file.read_text("utf-8")
    found = list(outputs_of(text))
    assert len(found) == len(re.findall('^output "', text, re.MULTILINE)) > 0
    assert all(description for _, description in found)


def test_every_module_is_used_and_named_in_the_readme() -> None:
    readme, root = (SOURCE / "README.md").read_text("utf-8"), (SOURCE / "main.tf").read_text("utf-8")
    for module in (SOURCE / "modules").iterdir():
        assert f"./modules/{module.name}" in root
        assert re.search(rf"^  {module.name} ", readme, re.MULTILINE), module.name


# ── the stub and the scripts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_installation_of_the_stub_changes_nothing_and_asks_nobody() -> None:
    _, stub = require_terraform()
    assert installed_again("install_terraform_stub.sh", stub) == stub


def test_the_stub_is_of_these_scripts() -> None:
    _, stub = require_terraform()
    made_from = "".join(
        (HERE / name).read_text("utf-8") for name in ("install_terraform_stub.sh", "terraform_schemas.py", "terraform_provider.py")
    )
    assert (stub / "made_from").read_text("utf-8") == made_from, "run: bash tests/cloud/install_terraform_stub.sh"


def test_the_proof_says_what_it_needs_before_it_does_anything() -> None:
    script = SOURCE / "prove.sh"
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)
    nothing = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", str(script)], env=nothing, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("prove: PROJECT is not set")


FAKES = """#!/bin/bash
# Stands for every command that the proof calls: keeps what it was asked, and answers as a project in which all is well.
asked="$(basename "$0") $*"
echo "$asked" >>"$ASKED"
case "$asked" in
    *"jobs list"*-batch*) printf 'job-9\\tDone\\n' ;;
    *"jobs list"*) printf 'job-%s\\tRunning\\n' "$(grep -c max_workers=2 "$ASKED")" ;;
    *"storage ls --project"*) ;;
    *"storage rm"*) exit 1 ;;
    *"storage ls"*) echo "gs://b/found.json" ;;
    *"policies list"*) seq 9 ;;
    bq*) printf 'f0_\\n50\\n' ;;
    *" plan "*) exit "$PLAN" ;;
esac
"""
Prove = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def prove(tmp_path: Path) -> Prove:
    """`prove.sh` among commands that do nothing: it proves nothing of the cloud, but that the script's own steps follow one another."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("terraform", "gcloud", "bq", "beam-pipelines", "sleep"):
        (folder / name).write_text(FAKES, "utf-8")
        (folder / name).chmod(0o755)
    (tmp_path / "flights.yaml").write_text("spec: 1\n", "utf-8")
    (tmp_path / "messages.jsonl").write_text('{"a": 1}\n{"a": 2}\n', "utf-8")

    def run(**settings: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{folder}:{os.environ['PATH']}", "ASKED": str(tmp_path / "asked"), "TMPDIR": str(tmp_path), "PROJECT": "demo-project", "REGION": "europe-west3",
            "IMAGE": GOOD["image"], "SPEC": str(tmp_path / "flights.yaml"), "MESSAGES": str(tmp_path / "messages.jsonl"), "TABLE": "flights_speed", "PLAN": "0",
        } | settings  # fmt: skip
        command = ["bash", str(SOURCE / "prove.sh")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run


def test_the_proof_takes_down_what_it_made(prove: Prove, tmp_path: Path) -> None:
    done = prove()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("prove: all good\n")
    asked = (tmp_path / "asked").read_text("utf-8")
    terraform = re.findall(r"^terraform -chdir=\S+ (\w+)(?:.*(deploy=false|max_workers=2))?", asked, re.MULTILINE)
    assert terraform == [
        ("init", ""), ("apply", "deploy=false"), ("apply", ""), ("plan", ""), ("apply", "max_workers=2"), ("destroy", "max_workers=2"),
    ]  # fmt: skip
    assert asked.count("topics publish") == 2
    assert re.search(r"FROM `demo-project\.prove_\d+\.flights_speed`", asked), "the dataset has the pipeline's name"
    assert asked.count("template build") == 2
    assert asked.index("template build") < asked.index("jobs list")


def test_a_proof_that_fails_says_how_to_take_it_down(prove: Prove, tmp_path: Path) -> None:
    done = prove(PLAN="2")
    assert done.returncode == 1
    assert "prove: the plan is not empty after apply" in done.stderr
    remove = Path(done.stdout.strip().rpartition("bash ")[2])
    again = subprocess.run(
        ["bash", "-c", f"terraform() {{ env; }}; . {remove}"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    config = re.search(r"TF_VAR_template_path=(\S+)/stream.json", again.stdout)
    assert config is not None
    batch = f'{{template_path="{config[1]}/batch.json",spec_path="gs://b/found.json",schedule="0 0 1 1 *",paused=true}}'
    assert f"TF_VAR_batch={batch}" in again.stdout.splitlines()
    assert "destroy" not in (tmp_path / "asked").read_text("utf-8")
