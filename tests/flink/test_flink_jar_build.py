"""The pinned POM, really built: what comes out is what the package expects, and it is a job server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from beam_pipelines.runners.flink.jars import RUNNER_VERSION, find_job_server, jar_versions, maven_build
from tests.flink_cluster import require_maven

pytestmark = pytest.mark.flink


def test_the_pom_gives_the_content_that_is_pinned_and_the_versions_it_names(tmp_path: Path) -> None:
    require_maven()
    jar = maven_build(tmp_path, tmp_path / "maven.log", os.environ)  # raises where the content's digest is another
    versions = jar_versions(jar)
    assert (versions.beam, versions.flink) == (RUNNER_VERSION, "1.19.0")
    assert find_job_server(jar) == jar
