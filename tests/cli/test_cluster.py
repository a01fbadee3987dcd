"""`cluster` where there is none, or no way to start one. A real one is in tests/flink."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from beam_pipelines.runners.flink import jars
from tests.cli.conftest import Call


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user who never had a cluster."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "beam_pipelines" / "cluster"


def test_where_there_is_none_down_and_status_say_so_and_nothing_is_made(call: Call, cache: Path) -> None:
    assert call("cluster", "down").out == f"No cluster in {cache}.\n"
    assert call("cluster", "status").out == f"No cluster in {cache}; beam-pipelines cluster up starts one.\n"
    assert json.loads(call("cluster", "status", "--json").out) == {"folder": str(cache), "running": False}
    assert not cache.exists()


def test_without_java_up_says_what_to_install(call: Call, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "JAVA_VERSIONS", (1717,))  # so that no Java of this machine fits
    assert "needs Java 1717" in call("cluster", "up", code=1).err
    assert not (cache / "cluster.json").exists()


def test_a_record_of_processes_that_are_gone_is_shown_and_taken_away(call: Call, cache: Path) -> None:
    parts = ("zookeeper", "job manager", "task manager", "worker pool")
    write(cache, {part: {"pid": os.getpid(), "began": "another boot 1", "mark": "x"} for part in parts})
    assert call("cluster", "status", code=1).out.splitlines()[0] == f"zookeeper     dead; its log: {cache / 'logs' / 'zookeeper.log'}"
    seen = json.loads(call("cluster", "status", "--json", code=1).out)
    assert (seen["running"], seen["parts"]["job manager"]["alive"]) == (False, False)
    assert "does not answer" in seen["error"]
    assert call("cluster", "down").out == "Ended: the cluster at 127.0.0.1:1.\n"
    assert not (cache / "cluster.json").exists()


def test_a_record_that_cannot_be_read_is_said_and_nothing_is_ended(call: Call, cache: Path) -> None:
    write(cache, {"zookeeper": {"pid": os.getpid()}})
    for verb in ("status", "down", "up"):
        assert f"{cache / 'cluster.json'}: not the record of a cluster" in call("cluster", verb, code=1).err
    assert (cache / "cluster.json").exists()


def write(folder: Path, parts: dict[str, object]) -> None:
    record = {"id": "x", "ports": {"rest": 1, "zookeeper": 2, "workers": 3}, "slots": 2, "jar": "x.jar", "parts": parts}
    folder.mkdir(parents=True)
    (folder / "cluster.json").write_text(json.dumps(record))
