"""A batch job of this machine imports Beam without what only other places need; every other job gets all of Beam."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SPEC = """
spec: 1
pipeline: lean
contract:
  columns: {n: {type: int64}}
sources:
  batch: [{files: rows.jsonl, format: json}]
TRANSFORM
sinks:
  - {from: rows, jsonl: {path: SINK}}
"""
APPLY = "transform: [{apply: {function: 'own:same', columns: {}}}]"
OWN = "def same(batch):\n    return batch\n"
PROGRAM = """
import json, sys
from beam_pipelines.runners.lean_beam import import_lean_beam
from beam_pipelines.spec.load import load_spec
import_lean_beam(load_spec("lean.yaml"), sys.argv[1:])
import pyarrow as pa
from apache_beam.io.filesystem import FileSystem
import beam_pipelines.transforms
pa.array([1, 2])
extras = ("pandas", "google.cloud.dataflow", "google.cloud.storage", "google.cloud.bigquery", "google.cloud.pubsub_v1")
loaded = [name for name in extras if name in sys.modules]
schemes = sorted(c.scheme() for c in FileSystem.get_all_subclasses() if c.scheme() == "gs")
import pandas
from google.cloud import bigquery, pubsub
from apache_beam.io.gcp import gcsfilesystem
late = [pandas.Series([1]).sum().item(), bigquery.Client.__name__, gcsfilesystem.GCSFileSystem.scheme(), pa.table({"n": [1]}).to_pandas()["n"].sum().item()]
print(json.dumps([loaded, schemes, late]))
"""


def imported(folder: Path, *flags: str, transform: str = "", sink: str = "out.jsonl") -> tuple[list[str], list[str], list[object]]:
    """Which extras Beam's import brought, whether it knows gs://, and what is found of them by whoever imports them later."""
    (folder / "lean.yaml").write_text(SPEC.replace("TRANSFORM", transform).replace("SINK", sink))
    (folder / "own.py").write_text(OWN)
    (folder / "rows.jsonl").write_text('{"n": 1}\n')
    path = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "WARNING" not in done.stderr
    loaded, schemes, late = json.loads(done.stdout)
    return loaded, schemes, late


def test_a_job_on_files_of_this_machine_loads_no_extras_and_whoever_wants_them_later_finds_them(tmp_path: Path) -> None:
    assert imported(tmp_path) == ([], [], [1, "Client", "gs", 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "transform", "sink"),
    [
        (("--temp_location=gs://bucket/temp",), "", "out.jsonl"),
        ((), "", "gs://bucket/out.jsonl"),
        ((), APPLY, "out.jsonl"),
    ],
)
def test_a_job_that_goes_elsewhere_or_runs_code_of_the_user_gets_all_of_beam(
    tmp_path: Path, flags: tuple[str, ...], transform: str, sink: str
) -> None:
    loaded, schemes, _ = imported(tmp_path, *flags, transform=transform, sink=sink)
    assert {"pandas", "google.cloud.dataflow", "google.cloud.storage"} <= set(loaded)
    assert schemes == ["gs"]
