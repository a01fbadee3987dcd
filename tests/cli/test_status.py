"""`status` says how a pipeline stands: never run, running, drained, gone, elsewhere."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from beam_pipelines.places import write_bytes
from beam_pipelines.sinks.deletions import Account, Deleted, write_account
from beam_pipelines.sinks.epochs import Start, handed_in, take_epoch
from beam_pipelines.sinks.owners import Process, this_process
from beam_pipelines.sinks.reached import Reached, begin, write_progress
from beam_pipelines.sinks.results import RunResults, metadata, write_run
from beam_pipelines.sinks.run import RunInfo
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


def epoch(spec: Path, number: int, *, began: str, heard: str | None = None, ended: bool = False, owner: Process | None = None) -> None:
    start = Start(f"s{number}", began, "h", 1, owner=owner or replace(this_process(), started="5"))
    write_bytes(f"{state(spec)}/stream/epochs/{number:06d}.json", msgspec.json.encode(start))
    begin(state(spec), number)
    if heard is not None:
        ms = round(datetime.fromisoformat(heard).timestamp() * 1000)
        write_progress(state(spec), number, Reached(ms * 1000, None, ms, ended=ended))


def runs(call: Call, spec: Path) -> list[tuple[str, ...]]:
    asked = call(
        "query", spec, "SELECT run_id, status, elapsed_s, failures[1] AS why FROM runs ORDER BY started_at", "--format", "json"
    ).out
    return [tuple(row.values()) for row in json.loads(asked)]


def test_starts_of_a_stream_that_left_no_record_are_among_the_runs(call: Call, spec: Path) -> None:
    epoch(spec, 1, began="2026-11-29T00:00:00Z", heard="2026-11-29T00:10:00Z")
    epoch(spec, 2, began="2026-11-29T01:00:00Z", heard="2026-11-29T02:00:09Z")
    epoch(spec, 3, began="2026-11-29T02:00:00Z", heard="2026-11-29T02:30:00Z", ended=True)
    epoch(spec, 4, began="2026-11-29T03:00:00Z")
    by = "left no record: it was killed, ended with an error, or was taken over by run s2, which began 2026-11-29T01:00:00Z"
    assert runs(call, spec) == [
        ("s1", "killed", 600.0, f"{by}; last heard of 2026-11-29T00:10:00Z"),
        ("s2", "taken over", 3609.0, "left no record: it was taken over by run s3, which began 2026-11-29T02:00:00Z; last heard of 2026-11-29T02:00:09Z"),
        ("s4", "killed", None, "left no record: it was killed, or ended with an error; never heard of"),
    ]  # fmt: skip
    assert [line.split()[:2] for line in call("runs", spec).out.splitlines()[1:]] == [["s4", "killed"], ["s2", "taken"], ["s1", "killed"]]


def test_where_every_start_has_left_its_record_nobody_looks_how_far_they_came(call: Call, spec: Path) -> None:
    for number in (1, 2):
        epoch(spec, number, began=f"2026-11-29T0{number}:00:00Z")
        about = RunInfo(f"s{number}", "p", state(spec), mode="stream", started_at=f"2026-11-29T0{number}:00:00Z")
        write_run(state(spec), RunResults(metadata(about, finished_at=about.started_at), "success"))
    for number in (1, 2):
        write_bytes(f"{state(spec)}/stream/progress/{number:06d}.json", b"not to be read")
    assert [row[:2] for row in runs(call, spec)] == [("s1", "success"), ("s2", "success")]


def test_how_earlier_starts_stood_is_not_read(call: Call, spec: Path) -> None:
    for number in (1, 2):
        epoch(spec, number, began=f"2026-11-29T0{number}:00:00Z", owner=ELSEWHERE)
    write_bytes(f"{state(spec)}/stream/progress/000001.json", b"not to be read")
    assert "start 2, run s2" in call("status", spec).out


def test_a_start_that_may_run_or_whose_record_was_deleted_is_not_called_killed(call: Call, spec: Path) -> None:
    epoch(spec, 1, began="2026-11-29T00:00:00Z", owner=ELSEWHERE)
    assert runs(call, spec) == []
    epoch(spec, 1, began="2026-11-29T00:00:00Z", owner=this_process())
    assert runs(call, spec) == []
    epoch(spec, 2, began="2026-11-29T01:00:00Z", owner=ELSEWHERE)
    assert [row[:2] for row in runs(call, spec)] == [("s1", "killed")]
    until = round(datetime.fromisoformat("2026-11-29T00:00:01Z").timestamp() * 1_000_000)
    write_account(state(spec), Account((Deleted("runs", "runs", 0, 1, 1, until, "2026-11-30T00:00:00Z", stream=False),)))
    assert runs(call, spec) == []
