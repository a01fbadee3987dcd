"""A spec does not read what it writes, and its outputs do not lie in each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from beam_pipelines.errors import SpecError
from beam_pipelines.spec.load import load_spec

SPEC = """
spec: 1
pipeline: p
contract: {{columns: {{id: {{type: int64}}}}}}
sources: {{batch: [{{files: "{files}", format: json}}]}}
sinks:
  - {{from: rows, {rows}}}
  - {{from: dead_letters, parquet: {{path: out/dead}}}}
"""


def spec(folder: Path, files: str, rows: str) -> str:
    path = folder / "p.yaml"
    path.write_text(SPEC.format(files=files, rows=rows))
    return str(path)


@pytest.mark.parametrize(
    ("files", "rows"),
    [
        ("data/*.jsonl", "jsonl: {path: data/out.jsonl}"), ("data", "parquet: {path: data/out}"), ("data/", "jsonl: {path: data/a/b.jsonl}"),
        ("data/in.jsonl", "jsonl: {path: data/in.jsonl}"), ("data/**", "parquet: {path: data/x/y}"), ("lake/r/*.parquet", "parquet: {path: lake/r}"),
        ("data/[a-o]ut.jsonl", "jsonl: {path: data/out.jsonl}"),
    ],
)  # fmt: skip
def test_a_sink_where_a_source_reads_is_refused(tmp_path: Path, files: str, rows: str) -> None:
    with pytest.raises(SpecError, match=r"sinks\[0\].*path: sources.batch\[0\] would read what this sink writes"):
        load_spec(spec(tmp_path, files, rows))


@pytest.mark.parametrize(
    ("files", "rows"),
    [
        ("data/*.jsonl", "jsonl: {path: data/out/x.jsonl}"), ("data/in-*.jsonl", "jsonl: {path: data/out.jsonl}"),
        ("data/*.jsonl", "parquet: {path: data/lake}"), ("data/in", "parquet: {path: data/in2}"), ("data/[!o]*.jsonl", "jsonl: {path: data/out.jsonl}"),
    ],
)  # fmt: skip
def test_a_sink_beside_a_source_is_fine(tmp_path: Path, files: str, rows: str) -> None:
    load_spec(spec(tmp_path, files, rows))


@pytest.mark.parametrize("rows", ["parquet: {path: out/dead/rows}", "parquet: {path: out}", "csv: {path: out/dead/rows.csv}"])
def test_outputs_that_lie_in_each_other_are_refused(tmp_path: Path, rows: str) -> None:
    with pytest.raises(SpecError, match=r"overlaps with the folder of sinks\[0\]"):
        load_spec(spec(tmp_path, "data/*.jsonl", rows))


def test_a_partition_whose_name_no_directory_can_have_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        SPEC.format(files="data/*.jsonl", rows='parquet: {path: out/rows, partition_by: ["a/b"]}').replace(
            "{id:", '{"a/b": {type: string}, id:'
        )
    )
    with pytest.raises(SpecError, match=r"the name 'a/b' cannot stand in a directory name"):
        load_spec(path)
