"""The Compose files fit the code and one another: the version of Flink and its plugin, the pool's program and port, where checkpoints go. Docker itself is not started."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from beam_pipelines.runners.flink.jars import FLINK_VERSION, kept_job_server
from beam_pipelines.runners.flink.store import Store
from tests.conftest import ROOT

FOLDER = ROOT / "deploy" / "flink"
MANAGERS = ("jobmanager", "taskmanager")
CHUNK = "gs.outputstream.upload.chunk.size"


def services(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(file)["services"]
    return found


def pool_port(command: list[str]) -> str:
    """The port at which a container's command has a pool of workers listen."""
    program, flag, module, option, port = command
    assert (program, flag, option) == ("python", "-m", "--port")
    assert find_spec(module) is not None
    return port


def properties(text: str) -> dict[str, str]:
    """Flink's settings, as its image takes them."""
    return dict(line.split(": ", 1) for line in text.splitlines())


def test_the_compose_file_fits_the_code() -> None:
    file = FOLDER / "compose.yaml"
    found = services(file)
    assert {found[name]["image"].rpartition(".")[0] for name in MANAGERS} == {f"flink:{FLINK_VERSION}"}
    port = pool_port(found["workers"]["entrypoint"])
    assert f"--flink-workers localhost:{port}" in file.read_text("utf-8")
    assert found["workers"]["network_mode"] == "service:taskmanager"


def test_checkpoints_go_where_the_variable_says_with_the_settings_that_tests_have_run() -> None:
    found = properties(services(FOLDER / "compose.yaml")["jobmanager"]["environment"]["FLINK_PROPERTIES"])
    assert found.items() >= Store("${CHECKPOINTS:-file:///flink}").settings({}).items()
    assert found[CHUNK] == str(Store("gs://bucket").settings({})[CHUNK])


def test_the_plugin_for_a_bucket_is_that_of_the_image() -> None:
    images = {name: about["image"] for name, about in services(FOLDER / "compose.yaml").items() if name in MANAGERS}
    for name, about in services(FOLDER / "compose.gcs.yaml").items():
        version = images.pop(name).removeprefix("flink:").partition("-")[0]
        assert about["environment"]["ENABLE_BUILT_IN_PLUGINS"] == f"flink-gs-fs-hadoop-{version}.jar"
    assert not images


def manifests() -> dict[tuple[str, str], Any]:
    """Those for Kubernetes, by kind and name."""
    return {(one["kind"], one["metadata"]["name"]): one for one in YAML(typ="safe").load_all(FOLDER / "kubernetes.yaml")}


def containers() -> Iterator[tuple[str, Any]]:
    """Each container, and the deployment it is in."""
    for (kind, name), one in manifests().items():
        if kind == "Deployment":
            template = one["spec"]["template"]
            assert one["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"] == {"part": name}
            assert one["spec"]["strategy"] == {"type": "Recreate"}, "two of a part must never run at once"
            assert ("ServiceAccount", template["spec"]["serviceAccountName"]) in manifests()
            for container in template["spec"]["containers"]:
                yield name, container


def test_the_manifests_for_kubernetes_fit_the_code_and_one_another() -> None:
    found = {container["name"]: (part, container) for part, container in containers()}
    config = manifests()["ConfigMap", "flink"]["data"]
    settings = {key: str(value) for key, value in Store("gs://BUCKET/flink").settings({}).items()}
    assert properties(config["FLINK_PROPERTIES"]).items() >= settings.items()
    for name in MANAGERS:
        part, container = found[name]
        assert (part, container["args"], container["envFrom"]) == (name, [name], [{"configMapRef": {"name": "flink"}}])
        version = container["image"].removeprefix("flink:").partition("-")[0]
        assert version.startswith(f"{FLINK_VERSION}.")
        assert config["ENABLE_BUILT_IN_PLUGINS"] == f"flink-gs-fs-hadoop-{version}.jar"
    service = manifests()["Service", properties(config["FLINK_PROPERTIES"])["jobmanager.rpc.address"]]["spec"]
    assert service["selector"] == {"part": "jobmanager"}
    part, pool = found["workers"]
    assert part == "taskmanager", "in the network of the task manager"
    arguments = found["command"][1]["args"]
    assert f"--flink-workers=localhost:{pool_port(pool['command'])}" in arguments
    rest = next(port["port"] for port in service["ports"] if port["name"] == "rest")
    assert f"--flink-master=jobmanager:{rest}" in arguments
    (jar,) = [argument.partition("=")[2] for argument in arguments if argument.startswith("--flink-job-server-jar=")]
    assert f" {jar}\n" in (FOLDER / "Dockerfile").read_text("utf-8")


def test_the_commands_image_takes_what_is_in_the_tree_and_what_the_pom_gives() -> None:
    lines = (FOLDER / "Dockerfile").read_text("utf-8").splitlines()
    copied = [line.split()[1:] for line in lines if line.startswith("COPY ")]
    assert [source for source, _ in (words for words in copied if len(words) == 2) if not (ROOT / source).exists()] == []
    assert any(f"/build/target/{kept_job_server().name}" in words for words in copied)
