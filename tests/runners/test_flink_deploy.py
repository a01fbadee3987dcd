"""The Compose file fits the code: the version of Flink, the pool's program and port, the port in its own instructions. Docker itself is not started."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from ruamel.yaml import YAML

from beam_pipelines.runners.flink.jars import FLINK_VERSION
from tests.conftest import ROOT

FILE = ROOT / "deploy" / "flink" / "compose.yaml"


def test_the_compose_file_fits_the_code() -> None:
    services: dict[str, Any] = YAML(typ="safe").load(FILE)["services"]
    assert {services[name]["image"].partition("-")[0] for name in ("jobmanager", "taskmanager")} == {f"flink:{FLINK_VERSION}"}
    program, flag, module, *arguments = services["workers"]["entrypoint"]
    assert (program, flag) == ("python", "-m")
    assert find_spec(module) is not None
    assert arguments == ["--port", "50000"]
    assert f"--flink-workers localhost:{arguments[1]}" in FILE.read_text("utf-8")
    assert services["workers"]["network_mode"] == "service:taskmanager"
