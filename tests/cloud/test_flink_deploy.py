"""A Flink cluster on Kubernetes, as far as it can be proved without one: the manifests are valid, and the image of the command has nothing to be said about."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cloud.test_dockerfile import hadolint
from tests.conftest import ROOT
from tests.needs import kept, missing

pytestmark = pytest.mark.cloud
FOLDER = ROOT / "deploy" / "flink"


def validated(file: Path) -> subprocess.CompletedProcess[str]:
    """What Kubernetes' own schemas say of a file, with fields that they do not know refused."""
    program = kept("kubernetes-validate", "1.37.0", "bin", "kubernetes-validate")
    if not program.is_file():
        missing("Kubernetes' schemas are not installed", "sh tests/cloud/install_kubernetes.sh")
    return subprocess.run([program, "--strict", file], capture_output=True, text=True, check=False)


def test_the_manifests_are_valid_and_a_misspelt_field_would_not_be(tmp_path: Path) -> None:
    text = (FOLDER / "kubernetes.yaml").read_text("utf-8")
    good = validated(FOLDER / "kubernetes.yaml")
    assert good.returncode == 0, good.stdout + good.stderr
    for field in ("terminationGracePeriodSeconds", "readinessProbe", "matchLabels"):
        (tmp_path / "bad.yaml").write_text(text.replace(field, f"{field}X"), "utf-8")
        assert validated(tmp_path / "bad.yaml").returncode != 0, field


def test_the_linter_has_nothing_to_say_of_the_commands_image() -> None:
    linted = subprocess.run([hadolint(), "deploy/flink/Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")
