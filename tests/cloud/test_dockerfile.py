"""The image, as far as it can be proved without Docker: linted, what it copies is there, its entry point starts the right program, and its RUN steps work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.needs import kept, missing

pytestmark = pytest.mark.cloud
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
HOW_TO_GET_IT = "sh tests/cloud/install_hadolint.sh"


def steps() -> list[tuple[str, str]]:
    """Every instruction and its argument; continued lines are one."""
    lines = [line for line in TEXT.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def hadolint() -> str:
    """The program; `missing` where it is not."""
    installed = kept("hadolint", "2.15.1", "bin", "hadolint")
    program = shutil.which("hadolint") or (str(installed) if installed.is_file() else None)
    if program is None:
        missing("hadolint is not installed", HOW_TO_GET_IT)
    return program


def test_the_linter_has_nothing_to_say() -> None:
    linted = subprocess.run([hadolint(), "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_everything_that_is_copied_is_there() -> None:
    copied = [words.split() for name, words in steps() if name == "COPY" and "--from" not in words]
    sources = [source for words in copied for source in words[:-1]]
    assert {"requirements-run.lock", "beam_pipelines", "templates/launch.py", "templates/entry.sh"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_what_is_copied_from_other_stages_is_what_is_started() -> None:
    stages = {match[1] for match in re.finditer(r" AS (\w+)", TEXT)}
    from_others = {(match[1], match[2]) for match in re.finditer(r"COPY --from=(\w+) (\S+)", TEXT)}
    assert {stage for stage, _ in from_others} <= stages
    assert ("beam", "/opt/apache/beam") in from_others
    assert ("launcher", "/opt/google/dataflow/python_template_launcher") in from_others
    (started,) = re.findall(r"FLEX_TEMPLATE_PYTHON_PY_FILE=(\S+)", TEXT)
    assert started == "/opt/beam_pipelines/launch.py"
    assert ("ENTRYPOINT", '["/opt/beam_pipelines/entry.sh"]') in steps()


def test_versions_are_pinned_by_the_lock() -> None:
    assert "pip install --require-hashes -r requirements-run.lock" in TEXT
    assert [
        words for name, words in steps() if name == "RUN" and re.search(r"pip install (?!--require-hashes -r|--no-deps --no-index)", words)
    ] == []

    def pinned(path: str) -> str:
        return re.search(r"^setuptools==(\S+)", (ROOT / path).read_text(), re.MULTILINE)[1]  # type: ignore[index]

    assert pinned("templates/build.lock") == pinned("requirements.lock")


def entered(folder: Path, *words: str, **environment: str) -> str:
    """What the entry point starts, told by programs that only say who they are."""
    for name in ("boot", "beam-pipelines", "setpriv"):
        program = folder / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        program.chmod(0o755)
    given = {"PATH": f"{folder}:{os.environ['PATH']}", "BEAM_BOOT": str(folder / "boot"), **environment}
    return subprocess.run(
        ["sh", str(ROOT / "templates" / "entry.sh"), *words], env=given, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize(
    "words",
    [
        ("--id=1", "--logging_endpoint=localhost:1", "--artifact_endpoint=localhost:2", "--provision_endpoint=localhost:3", "--control_endpoint=localhost:4"),
        ("--worker_pool",),
        ("--provision_endpoint=localhost:3",),
    ],
)  # fmt: skip
def test_a_worker_is_booted(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert entered(tmp_path, *words) == " ".join(["boot", *words])


@pytest.mark.parametrize("words", [(), ("--help",), ("run", "a.yaml", "--mode", "batch"), ("run", "a.yaml", "--", "--id=1")])
def test_everybody_else_gets_the_command(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert entered(tmp_path, *words, BEAM_PIPELINES_ROOT="1") == " ".join(["beam-pipelines", *words])


@pytest.mark.skipif(os.getuid() != 0, reason="only root has rights to give up")
def test_the_command_gives_up_the_rights_of_root(tmp_path: Path) -> None:
    assert entered(tmp_path, "run", "a b.yaml") == "setpriv --reuid=10001 --regid=10001 --clear-groups beam-pipelines run a b.yaml"


@pytest.mark.slow  # installs every package of the lock
def test_the_steps_that_install_work(tmp_path: Path) -> None:
    """Those of the stage `build`, in folders of the test's."""
    stage = TEXT[TEXT.index("AS build") : TEXT.index("AS run")].replace("\\\n", " ")
    source, venv = tmp_path / "source", tmp_path / "venv"
    source.mkdir()
    python = shutil.which("python3.11") or shutil.which("python")
    for line in re.findall(r"^(?:COPY|RUN) .*$", stage, re.MULTILINE):
        kind, _, words = line.partition(" ")
        if kind == "COPY":
            *copied, target = words.split()
            for name in copied:
                to = source / (Path(name).name if target in (".", "./") else target)
                shutil.copytree(ROOT / name, to) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, to)
            continue
        command = (
            words.replace("/opt/venv", str(venv)).replace("/opt/build", str(tmp_path / "build")).replace("/dist", str(tmp_path / "dist"))
        )
        command = command.replace("python -m venv", f"{python} -m venv")
        done = subprocess.run(["sh", "-ec", command], cwd=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    version = subprocess.run([str(venv / "bin" / "beam-pipelines"), "--version"], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert version.stdout.startswith("beam-pipelines ")
    launched = subprocess.run(
        [str(venv / "bin" / "python"), str(ROOT / "templates" / "launch.py")], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert "--spec is missing" in launched.stderr
