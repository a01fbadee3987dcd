"""From rows of somebody's own to files that are committed: every row is counted, from the first stage to the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that, equal_to, is_empty

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.errors import SpecError
from beam_pipelines.sinks.commit import Commit
from beam_pipelines.sinks.dead_letters import WriteDeadLetters
from beam_pipelines.sinks.parquet import WriteParquet
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sinks.text import WriteText
from beam_pipelines.spec.sinks import ParquetSink, TextSink
from beam_pipelines.transforms import Conform, Deduplicate, FromRows, Transform, Validate

CONTRACT = Contract(
    key=("id",), columns={"id": Column(type="int64", required=True, min=0), "name": Column(type="string")}, unknown_columns="drop"
)
GIVEN: list[Any] = [
    {"id": 1, "name": "a"}, {"id": 1, "name": "a"}, {"id": 2}, {"id": 9}, {"id": "x"}, {"id": -1}, None, "{", pa.table({"id": [7, 8]}),
]  # fmt: skip


def run_info(folder: Path) -> RunInfo:
    return RunInfo("run-1", "mine", str(folder / "state"))


@pytest.mark.slow
def test_a_chain_from_rows_to_files_balances(tmp_path: Path) -> None:
    run = run_info(tmp_path)
    rows = WriteParquet(ParquetSink(path=str(tmp_path / "rows")), label="rows", run=run)
    lines = WriteText(TextSink(path=str(tmp_path / "lines")), text_format="jsonl", label="lines", run=run)
    letters = WriteDeadLetters(None, run=run, contract=CONTRACT)

    def judge(results: list[Any]) -> None:
        (run,) = results
        assert run.status == "success"
        sums = [sum(counts) for counts in zip(*((n.read, n.dead, n.duplicate, n.filtered) for n in run.ledger), strict=True)]
        assert sums == [10, 4, 1, 1]
        assert {name: sum(n.written.get(name, 0) for n in run.ledger) for name in ("rows", "lines")} == {"rows": 4, "lines": 4}

    with beam.Pipeline() as pipeline:
        validated = pipeline | beam.Create(GIVEN) | FromRows(CONTRACT) | Conform(CONTRACT) | Transform({"filter": "id != 9"})
        kept = validated | Validate(CONTRACT) | Deduplicate(contract=CONTRACT)
        written, also = kept | "Rows" >> rows, kept.rows | "Lines" >> lines
        dead = (written.dead, also.dead) | beam.Flatten() | "Letters" >> letters
        parts = (written.files, written.counts, also.files, also.counts, dead.files, dead.counts)
        assert_that(parts | Commit(run, [rows.output, lines.output, letters.output]), judge)
    found = ds.dataset(str(tmp_path / "rows"), format="parquet").to_table(columns=["id"])["id"].to_pylist()
    assert sorted(found) == [1, 2, 7, 8]


def test_duplicates_that_are_told_are_not_letters_of_a_sink(tmp_path: Path) -> None:
    run = run_info(tmp_path)
    rows = WriteParquet(ParquetSink(path=str(tmp_path / "rows")), label="rows", run=run)
    letters = WriteDeadLetters(None, run=run, contract=CONTRACT)
    with beam.Pipeline() as pipeline:
        given = pipeline | beam.Create([pa.record_batch({"id": [1, 1]})])
        written = given | Deduplicate("id", tell=True) | "Rows" >> rows
        assert_that(written.dead, is_empty(), label="Dead")
        assert_that((written.dead | "Letters" >> letters).files, is_empty(), label="Files")
        assert_that(written.counts | beam.Map(lambda count: count[2]), equal_to(["duplicate", "written"]), label="Counts")


def test_rows_without_end_are_refused(tmp_path: Path) -> None:
    rows = WriteParquet(ParquetSink(path=str(tmp_path / "rows")), label="rows", run=run_info(tmp_path))
    with pytest.raises(SpecError, match="WriteParquet 'rows': the rows have no end"):
        beam.Pipeline(options=PipelineOptions(streaming=True)) | test_stream.TestStream() | FromRows(CONTRACT) | Conform(CONTRACT) | rows


def test_what_is_no_pcollection_is_refused(tmp_path: Path) -> None:
    rows = WriteParquet(ParquetSink(path=str(tmp_path / "rows")), label="rows", run=run_info(tmp_path))
    with pytest.raises(SpecError, match=r"WriteParquet 'rows': got list; expected a PCollection of RecordBatches or a stage's result"):
        rows.expand([{"id": 1}])
