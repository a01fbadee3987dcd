"""`status` says how a pipeline stands: never run, running, drained, gone, elsewhere."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from beam_pipelines.places import write_bytes
from beam_pipelines.sinks.epochs import Start, handed_in, take_epoch
from beam_pipelines.sinks.owners import Process, this_process
from beam_pipelines.sinks.reached import Reached, begin, write_progress
from tests.cli.conftest import Call

SPEC = """
spec: 1
pipeline: p
contract: {key: [id], columns: {id: {type: int64, required: true}}}
sources: {batch: [{files: "in/*.csv", format: csv}], stream: [{pubsub: projects/demo-project/subscriptions/s, format: json}]}
sinks: [{from: rows, parquet: {path: lake}}]
"""


@pytest.fixture(autouse=True)
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("id\n1\n2\n")
    (tmp_path / "p.yaml").write_text(SPEC)
    return tmp_path / "p.yaml"


def state(spec: Path) -> str:
    return str(spec.parent / ".beam_pipelines" / "p")


def test_a_pipeline_that_never_ran(call: Call, spec: Path) -> None:
    assert call("status", spec).out.splitlines() == ["p", "stream  never started", "batch   never ran"]
    assert json.loads(call("status", spec, "--json").out) == {"pipeline": "p", "stream": None, "batch": None, "flink": None}


def test_a_batch_that_ran_and_a_stream_that_runs(call: Call, spec: Path) -> None:
    call("run", spec, "--mode", "batch", "--run-id", "b1")
    epoch = take_epoch(state(spec), "s1")
    begin(state(spec), epoch)
    write_progress(state(spec), epoch, Reached(1_385_942_400_000_000, None, 1_385_942_400_000))
    lines = call("status", spec).out.splitlines()
    assert lines[1].startswith(f"stream  runs: start 1, run s1, process {os.getpid()} on {socket.gethostname()}, since 20")
    assert lines[2].startswith("        what arrived before 2013-12-02T00:00:00Z is stored; last heard of ")
    assert lines[3].startswith("batch   success: run b1, ")
    seen = json.loads(call("status", spec, "--json").out)
    assert (seen["batch"]["run_id"], seen["stream"]["stored_until"], seen["stream"]["alive"], seen["stream"]["lost"]) == (
        "b1",
        1_385_942_400_000_000,
        True,
        False,
    )


def started(spec: Path, owner: Process) -> None:
    start = Start("s1", "2026-11-29T00:00:00Z", owner.host, owner.pid, owner=owner)
    write_bytes(f"{state(spec)}/stream/epochs/000001.json", msgspec.json.encode(start))
    begin(state(spec), 1)


ELSEWHERE = Process("elsewhere/boot/pid:[1]", 1, "5")


def test_a_stream_whose_process_is_gone_is_exit_code_1_unless_it_was_drained(call: Call, spec: Path) -> None:
    started(spec, replace(this_process(), started="5"))  # another process has its number now
    assert "stream  GONE, and not drained: start it again: start 1" in call("status", spec, code=1).out
    write_progress(state(spec), 1, Reached(1, None, 1, ended=True))
    assert "stream  drained: start 1" in call("status", spec).out


def test_of_another_host_only_what_is_stored_is_known(call: Call, spec: Path) -> None:
    started(spec, ELSEWHERE)
    assert "stream  runs elsewhere, or is gone: start 1, run s1, process 1 on elsewhere" in call("status", spec).out


def test_a_stream_that_a_service_runs_outlives_its_launcher(call: Call, spec: Path) -> None:
    started(spec, replace(this_process(), started="5"))
    write_bytes(handed_in(state(spec), "s1"), b"{}")
    assert "stream  runs elsewhere, or is gone: start 1" in call("status", spec).out


def test_a_cluster_that_does_not_answer_is_said(call: Call, spec: Path) -> None:
    started(spec, ELSEWHERE)
    assert "Flink   Flink at 127.0.0.1:1 does not answer" in call("status", spec, "--flink-master", "127.0.0.1:1").out
