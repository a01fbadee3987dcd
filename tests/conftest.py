"""What all tests share: the command as a subprocess, the Hypothesis profiles, and no skipped test in CI."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from beam_pipelines.errors import RunError

ROOT = Path(__file__).resolve().parents[1]

pytest_plugins = ["tests.pubsub_servers"]

# No deadline: a law does not depend on how busy the machine is.
settings.register_profile("everyday", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("everyday"), derandomize=True, print_blob=True)
settings.register_profile("deep", parent=settings.get_profile("everyday"), max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("LAWS") or ("ci" if os.environ.get("CI") == "true" else "everyday"))

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _warnings_are_heard() -> None:
    """Whatever level a command that ran in this process has set."""
    logging.getLogger().setLevel(logging.WARNING)


@pytest.fixture
def without_prism(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Prism can be had: streams that end by themselves run on FnApiRunner, in this process."""

    def missing(*_: object, **__: object) -> Path:
        raise RunError("no Prism here")

    monkeypatch.setattr("beam_pipelines.runners.stream.find_prism", missing)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `beam-pipelines` and `python` as this test run has them, to put first in PATH."""
    folder = tmp_path_factory.mktemp("bin")
    scripts = {"beam-pipelines": '-c "from beam_pipelines.cli import main; main()" "$@"', "python": '"$@"', "python3": '"$@"'}
    for name, arguments in scripts.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}\n')
        script.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def environment(commands: Path) -> dict[str, str]:
    """The environment of commands that tests start: our commands first, this tree importable, quiet and reproducible."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1", "COLUMNS": "120"}  # fmt: skip


@pytest.fixture(scope="session")
def beam_pipelines(environment: dict[str, str]) -> Run:
    """`beam-pipelines ARGS...` in a process of its own: `beam_pipelines("run", spec, cwd=..., expect=0)`."""

    def run(*arguments: object, cwd: Path | None = None, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        command = ["beam-pipelines", *map(str, arguments)]
        found = shutil.which(command[0], path=environment["PATH"])
        assert found is not None
        done = subprocess.run([found, *command[1:]], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
        if expect is not None:
            assert done.returncode == expect, f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def pytest_collection_finish() -> None:
    """Where tests use Beam: what it finds out about a class of ours, by the signatures of some 30 methods, it finds out once.

    It asks eight times per stage of a job, which is a quarter of the CPU of a small one.
    """
    userstate = sys.modules.get("apache_beam.transforms.userstate")
    if userstate is None or hasattr(userstate.get_dofn_specs, "known"):
        return
    found, known = userstate.get_dofn_specs, {}

    def get_dofn_specs(dofn: Any) -> Any:
        kind = type(dofn)
        if not kind.__module__.startswith("beam_pipelines."):  # those that wrap a function differ one by one
            return found(dofn)
        if kind not in known:
            known[kind] = found(dofn)
        return known[kind]

    get_dofn_specs.known = known  # type: ignore[attr-defined]
    userstate.get_dofn_specs = get_dofn_specs


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a skipped test is a failed one: what it needs must be there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    if os.environ.get("CI") == "true" and skipped and exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"CI: {len(skipped)} skipped tests count as failures", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
