"""A whole batch pipeline whose input, lake and state lie in a bucket, by the commands that people use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from beam_pipelines import places
from beam_pipelines.cli.main import command, run_command
from beam_pipelines.places.sql import reading
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.cloud.gcs_server import GcsServer
from tests.cloud.http_gate import Gate
from tests.conftest import ROOT

pytestmark = pytest.mark.cloud

SPEC = """
spec: 1
pipeline: clicks
state: {top}/state
contract:
  key: [id]
  event_time: at
  columns: {{id: {{type: int64}}, at: {{type: timestamp, required: true}}, v: {{type: int64, min: 0}}, shop: {{type: string}}}}
sources:
  batch: [{{files: "{top}/in/*.jsonl", format: json}}]
lookups:
  shops: {{files: "{top}/shops.csv", format: csv, key: shop}}
transform:
  - lookup: {{from: shops, on: shop, take: {{town: town}}}}
deduplicate: {{within: 1h}}
aggregates:
  hourly:
    windowing: {{type: fixed, size: 1h}}
    group_by: [shop]
    measures: {{n: count(), total: sum(v)}}
sinks:
  - {{from: rows, parquet: {{path: "{top}/lake/rows", partition_by: [day(at)]}}}}
  - {{from: rows, jsonl: {{path: "{top}/lake/lines.jsonl.gz"}}}}
  - {{from: hourly, parquet: {{path: "{top}/lake/hourly", partition_by: [day(_window_start)]}}}}
  - {{from: dead_letters, parquet: {{path: "{top}/lake/dead_letters"}}}}
"""


def clicks(count: int, *, day: int = 1) -> bytes:
    """One is refused in a hundred, one in fifty comes twice."""
    lines = [
        json.dumps({"id": n, "at": f"2026-01-{day + n % 3:02d}T0{n % 10}:00:00Z", "v": n % 100 - 1, "shop": "ab"[n % 2]})
        for n in range(count)
    ]
    return ("\n".join([*lines, *lines[::50]]) + "\n").encode()


def make(folder: Path, bucket: str) -> LoadedSpec:
    top = f"gs://{bucket}"
    places.write_bytes(f"{top}/in/a.jsonl", clicks(500))
    places.write_bytes(f"{top}/shops.csv", b"shop,town\na,Ulm\nb,Bonn\n")
    (folder / "spec.yaml").write_text(SPEC.format(top=top), "utf-8")
    return load_spec(folder / "spec.yaml")


@pytest.fixture
def loaded(gcs: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedSpec:
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    return make(tmp_path, gcs.bucket())


def told(loaded: LoadedSpec) -> dict[str, list[Any]]:
    """What the outputs hold."""
    tables = open_tables(loaded.state)
    wanted = {
        "rows": 'id, "at", v, shop, town',
        "rows_jsonl": "id, v, town",
        "hourly": "shop, _window_start, n, total",
        "dead_letters": "position, reason",
    }
    return {name: ask(tables, f"SELECT {columns} FROM {name} ORDER BY ALL").to_pylist() for name, columns in wanted.items()}


def run(loaded: LoadedSpec) -> None:
    done = run_batch(loaded, Call())
    assert done.status == "success", done.failures


def lying(gcs: GcsServer, loaded: LoadedSpec) -> list[str]:
    """The folders in which files lie, but the state's history."""
    bucket = loaded.state.removeprefix("gs://").partition("/")[0]
    return sorted(name.rpartition("/")[0].partition("/run_id=")[0] for name in gcs.names(bucket) if not name.startswith("state/"))


def test_a_run_twice_is_the_same_rows_and_no_orphan(loaded: LoadedSpec, gcs: GcsServer) -> None:
    run(loaded)
    first, folders = told(loaded), lying(gcs, loaded)
    assert len(first["rows"]) == len(first["rows_jsonl"]) == 495
    assert {row["town"] for row in first["rows"]} == {"Ulm", "Bonn"}
    assert len(first["dead_letters"]) == 10  # five, and their copies
    assert sum(row["n"] for row in first["hourly"]) == 495
    run(loaded)
    assert told(loaded) == first
    assert lying(gcs, loaded) == folders


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    got = run_command(command, list(arguments))
    out, err = capsys.readouterr()
    assert got == code, f"{got}\n{out}\n{err}"
    assert "Traceback" not in out + err
    return out + err


def test_the_commands_that_look_work(loaded: LoadedSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(loaded)
    spec = loaded.path
    assert "495" in said(capsys, "query", spec, "SELECT count(*) AS n FROM rows")
    assert "success" in said(capsys, "runs", spec)
    assert "CHECK" in said(capsys, "dlq", "inspect", spec)
    page, served = tmp_path / "report.html", tmp_path / "served.duckdb"
    said(capsys, "report", spec, "--output", str(page))
    assert "gs://" in page.read_text("utf-8")
    said(capsys, "serve", spec, "--duckdb", str(served))
    with reading(duckdb.connect(str(served), read_only=True), "gs://") as client:
        assert client.sql("SELECT count(*) FROM rows").fetchall() == [(495,)]
    lacking = said(capsys, "query", spec, f"SELECT * FROM read_parquet('{loaded.state}/none.parquet')", code=1)
    assert "no such object in Cloud Storage" in lacking


def test_dead_letters_are_replayed_through_a_mended_spec(loaded: LoadedSpec, capsys: pytest.CaptureFixture[str]) -> None:
    run(loaded)
    text = Path(loaded.path).read_text("utf-8")
    Path(loaded.path).write_text(text.replace("min: 0", "min: -1"), "utf-8")
    said(capsys, "dlq", "replay", loaded.path)
    assert "500" in said(capsys, "query", loaded.path, "SELECT count(*) AS n FROM rows")
    assert told(load_spec(loaded.path))["dead_letters"] == []


def test_a_file_that_is_gone_is_one_sentence(loaded: LoadedSpec, gcs: GcsServer, capsys: pytest.CaptureFixture[str]) -> None:
    run(loaded)
    bucket = loaded.state.removeprefix("gs://").partition("/")[0]
    places.delete(f"gs://{bucket}/{next(n for n in gcs.names(bucket, 'lake/rows/'))}")
    told_so = said(capsys, "query", loaded.path, "SELECT sum(v) FROM rows", code=1)
    assert "a new run over its range writes it again" in told_so


# ── processes that are killed, cut off, refused ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def gated(own_gcs: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LoadedSpec, GcsServer, Gate]:
    for name, value in own_gcs.environment.items():
        monkeypatch.setenv(name, value)
    assert own_gcs.gate is not None
    return make(tmp_path, own_gcs.bucket()), own_gcs, own_gcs.gate


def started(loaded: LoadedSpec, server: GcsServer, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **server.environment, "PYTHONPATH": str(ROOT)}
    command_ = [sys.executable, "-c", "from beam_pipelines.cli import main; main()", "run", loaded.path, "--mode", "batch", *arguments]
    return subprocess.Popen(command_, env=environment, cwd=loaded.directory, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _decision(method: str, target: str) -> bool:
    return "/rewriteTo/" in target  # the first move: the commit is decided


def _staged(method: str, target: str) -> bool:
    return method == "POST" and target.endswith("uploadType=multipart")


@pytest.mark.slow
@pytest.mark.parametrize("when", [_decision, _staged], ids=["in its commit", "while it stages"])
def test_a_run_killed_is_forgotten_or_carried_to_its_end_by_the_next(
    gated: tuple[LoadedSpec, GcsServer, Gate], when: Callable[[str, str], bool]
) -> None:
    loaded, server, gate = gated
    process = started(loaded, server)
    hit = threading.Event()

    def kill(method: str, target: str) -> bool:
        if not hit.is_set() and when(method, target):
            hit.set()
            process.send_signal(signal.SIGKILL)
        return False

    gate.answer(500, when=kill)
    assert process.wait(120) == -9
    assert hit.is_set()
    run(loaded)
    whole = told(loaded)
    assert len(whole["rows"]) == 495
    assert not [name for name in lying(server, loaded) if "staging" in name]


@pytest.mark.slow
def test_a_service_that_is_away_for_five_seconds_delays_a_run(gated: tuple[LoadedSpec, GcsServer, Gate]) -> None:
    loaded, _, gate = gated
    away = threading.Event()

    def cut(method: str, target: str) -> bool:
        if not away.is_set() and _staged(method, target) and len(gate.seen) > 40:
            away.set()
            threading.Thread(target=gate.away).start()
            threading.Timer(5, gate.back).start()
        return False

    gate.answer(500, when=cut)
    run(loaded)
    assert away.is_set()
    assert len(told(loaded)["rows"]) == 495


def test_no_bucket_and_no_permission_are_one_sentence(
    gated: tuple[LoadedSpec, GcsServer, Gate], capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, _, gate = gated
    text = Path(loaded.path).read_text("utf-8")
    bucket = loaded.state.removeprefix("gs://").partition("/")[0]
    Path(loaded.path).write_text(text.replace(f"gs://{bucket}/lake", "gs://no-such-lake/lake"), "utf-8")
    assert "there is no bucket 'no-such-lake'. Make it" in said(capsys, "run", loaded.path, "--mode", "batch", code=1)
    Path(loaded.path).write_text(text, "utf-8")
    gate.answer(403, when=lambda method, target: method == "POST")
    assert "permission denied (403)" in said(capsys, "run", loaded.path, "--mode", "batch", code=1)
    gate.answer(403, when=lambda *_: True)
    assert "roles/storage.objectUser" in said(capsys, "query", loaded.path, "SELECT 1", code=1)


def test_requests_of_a_run(loaded: LoadedSpec, gcs: GcsServer) -> None:
    """The figures of docs/cloud-storage.md: four outputs, three days, one input file, one lookup; the second run replaces the first."""
    counts = []
    for _ in range(2):
        with gcs.counted() as requests:
            run(loaded)
        counts.append(requests)
    with gcs.counted() as asked:
        told(loaded)
    for requests in counts:
        assert requests["UPLOAD"] + requests["LIST"] + requests["REWRITE"] <= 85  # 79
        assert requests["GET media"] + requests["GET metadata"] <= 50  # 35, then 44
    assert asked["LIST"] <= 10
    assert asked["GET media"] + asked["GET metadata"] <= 35  # 30
