"""Terraform over a copy of `terraform/`, offline: with the stub of Google's providers and without anybody's credentials or cache.

configuration = Configuration(copy)          # a folder of .tf files, initialised once
configuration.run("validate")                # the finished process; `expect=1` where it must fail
configuration.plans("tests/whole.tftest.hcl")  # {"run_name": Plan}: what each run of a test file would make
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.needs import kept, missing

HERE = Path(__file__).resolve().parent
SOURCE = ROOT / "terraform"
PROVIDERS = "6.50.0"
NEEDS = (1, 11)  # `override_during = plan` in the test files
HOW_TO_GET_IT = "bash tests/cloud/install_terraform_stub.sh"
TERRAFORM = "install 1.11 or newer: https://developer.hashicorp.com/terraform/install"


def require_terraform() -> tuple[str, Path]:
    """The program, and the folder of the stub; `missing` where one of them is not."""
    program, stub = shutil.which("terraform"), kept("terraform", PROVIDERS)
    if program is None:
        missing("Terraform is not in PATH", TERRAFORM)
    if version_of(program) < NEEDS:
        missing(f"{program} is Terraform {'.'.join(map(str, version_of(program)))}", TERRAFORM)
    if not (stub / "terraform.rc").is_file():
        missing("the stub of Google's providers is not installed", HOW_TO_GET_IT)
    return program, stub


def version_of(program: str) -> tuple[int, ...]:
    said = subprocess.run([program, "version", "-json"], capture_output=True, text=True, timeout=60, check=True).stdout
    numbers = str(json.loads(said)["terraform_version"]).split("-")[0]
    return tuple(map(int, numbers.split(".")[:2]))


@dataclass(frozen=True)
class Made:
    """A resource of a plan: its arguments, and which of all arguments its type has."""

    address: str
    type: str
    after: dict[str, Any]
    schema: dict[str, Any]


@dataclass(frozen=True)
class Configuration:
    """A copy of a folder of .tf files, in which Terraform may leave what it likes."""

    folder: Path
    scratch: Path

    def run(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        program, stub = require_terraform()
        command = [program, f"-chdir={self.folder}", *arguments]
        done = subprocess.run(command, env=self._environment(stub), capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == expect, readable(command, done)
        return done

    def init(self) -> Configuration:
        self.run("init", "-backend=false", "-input=false", "-no-color")
        return self

    def plans(self, file: str) -> dict[str, list[Made]]:
        """What each run of a test file would make. The runs must pass."""
        lines = self.run("test", "-json", "-verbose", f"-filter={file}").stdout.splitlines()
        said = [json.loads(line) for line in lines]
        return {line["@testrun"]: list(_made(line["test_plan"])) for line in said if line["type"] == "test_plan"}

    def _environment(self, stub: Path) -> dict[str, str]:
        """Nothing of the user's Terraform or Google Cloud settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "GOOGLE_", "CLOUDSDK_"))}
        return {
            **kept,
            "HOME": str(self.scratch),
            "TF_CLI_CONFIG_FILE": str(stub / "terraform.rc"),
            "TF_IN_AUTOMATION": "1",
            "CHECKPOINT_DISABLE": "1",
        }


def _made(plan: dict[str, Any]) -> Iterator[Made]:
    for change in plan["resource_changes"]:
        if change["mode"] == "managed":
            schema = plan["provider_schemas"][change["provider_name"]]["resource_schemas"][change["type"]]["block"]
            yield Made(change["address"], change["type"], change["change"]["after"], schema)


def readable(command: list[str], done: subprocess.CompletedProcess[str]) -> str:
    """Why Terraform ended as it did: its words without frames and without what went well."""
    frames = str.maketrans("", "", "│╷╵")
    lines = (line.translate(frames).rstrip() for line in (done.stdout + done.stderr).splitlines())
    shown = [line for line in lines if line.strip() and not line.endswith(("... pass", "... in progress", "tearing down"))]
    return f"{' '.join(command)} ended with {done.returncode}\n" + "\n".join(shown)


def copied(target: Path, source: Path = SOURCE) -> Path:
    """A copy without what Terraform may have left in the source."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars"))
    return target
