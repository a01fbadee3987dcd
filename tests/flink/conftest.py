"""One cluster for all tests here; without Java and Maven they are skipped with the command that enables them, and fail in CI."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from beam_pipelines.runners.flink.cluster import Cluster, local_cluster
from tests.conftest import ROOT
from tests.faults.conftest import own_broker
from tests.flink_cluster import require_job_server

__all__ = ["flink_cluster", "own_broker", "own_flink_cluster"]


@pytest.fixture(scope="session")
def flink_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two slots whose workers can import what tests define. A test that kills a part of it starts that again before it ends."""
    require_job_server()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    with local_cluster(tmp_path_factory.mktemp("flink"), environment=environment) as cluster:
        yield cluster


@pytest.fixture
def own_flink_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster for one test that kills parts of it."""
    require_job_server()
    with local_cluster(tmp_path_factory.mktemp("flink")) as cluster:
        yield cluster
