"""Batches that are joined inside a bundle carry the earliest timestamp of what is in them: the watermark never passes a row on its way."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.program import Split
from beam_pipelines.arrow.schema import dead_letters
from beam_pipelines.transforms.rows import _Batch
from beam_pipelines.transforms.stage import TARGET_BYTES, TARGET_ROWS, RunProgram
from tests.formats.archived import NOON, messages

MOST = TARGET_ROWS * 3 // 5


def unchanged(batch: pa.RecordBatch, engine: Any) -> Split:
    return Split(batch, dead_letters(batch.slice(0, 0), [], raw_format="json"), 0, {})


def timestamps(made: list[Any]) -> list[int]:
    values = [m.value if isinstance(m, beam.pvalue.TaggedOutput) else m for m in made]
    return [value.timestamp.micros for value in values if isinstance(value, WindowedValue)]


@pytest.mark.parametrize("order", [(5, 9), (9, 5)])
def test_a_row_program_stamps_what_it_joined_with_the_earliest(order: tuple[int, int]) -> None:
    run = RunProgram(unchanged)
    run.setup()
    run.start_bundle()
    made: list[Any] = []
    for at in order:
        made += run.process(messages([(n, NOON) for n in range(MOST)]), Timestamp(micros=at), GlobalWindow())
    assert timestamps(made) == [5]
    made = [*run.process(messages([(1, NOON)]), Timestamp(micros=8), GlobalWindow()), *run.finish_bundle()]
    assert timestamps(made) == [8]


def test_a_row_program_joins_no_more_than_fit_into_memory() -> None:
    run = RunProgram(unchanged)
    run.setup()
    run.start_bundle()
    wide = pa.RecordBatch.from_pydict({"wide": [b"x" * (TARGET_BYTES // 4)]})
    made = [out.value.num_rows for _ in range(9) for out in run.process(wide, Timestamp(micros=5), GlobalWindow())]
    assert [*made, *(out.value.num_rows for out in run.finish_bundle())] == [4, 4, 1]


def test_rows_become_batches_of_the_earliest_of_them() -> None:
    batch = _Batch("test", Contract(columns={"n": Column(type="int64")}), counted=False)
    batch.setup()
    batch.start_bundle()
    made = [out for n in range(TARGET_ROWS) for out in batch.process({"n": n}, Timestamp(micros=TARGET_ROWS + 5 - n), GlobalWindow())]
    assert timestamps(made) == [6]
