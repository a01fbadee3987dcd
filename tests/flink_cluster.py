"""What tests on Flink need from the machine, and what to do where it is missing."""

from __future__ import annotations

import shutil
from typing import NoReturn

from beam_pipelines.errors import RunError
from beam_pipelines.runners.flink.jars import find_java, kept_job_server
from tests.needs import missing

HOW_TO_GET_IT = "apt-get install maven openjdk-17-jre-headless"


def require_maven() -> None:
    """Java and Maven are here; else the test is skipped with the command that installs them, and fails in CI."""
    _require_java()
    if shutil.which("mvn") is None:
        _missing("Maven is not installed")


def require_job_server() -> None:
    """Java is here, and a jar or the Maven that builds it; else the test is skipped, and fails in CI."""
    _require_java()
    if not kept_job_server().is_file():
        require_maven()


def _require_java() -> None:
    try:
        find_java()
    except RunError as error:
        _missing(error.message)


def _missing(what: str) -> NoReturn:
    missing(what, HOW_TO_GET_IT)
