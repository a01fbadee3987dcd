"""Doors: a line for each row that left otherwise than written or dead."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.doors import DUPLICATE, FILTERED, doors_of, filtered_doors
from beam_pipelines.arrow.schema import DEAD_LETTERS, DOORS, Failure, Rejected, dead_letters, provenance


def rows(positions: list[int]) -> pa.RecordBatch:
    numbers = pa.array(positions, pa.int64())
    arrival = pa.array([1000 + n for n in positions], pa.timestamp("us", "UTC"))
    return pa.RecordBatch.from_arrays([*provenance("s", numbers, arrival)], names=["_source", "_position", "_arrival_time"])


def dead(batch: pa.RecordBatch) -> pa.RecordBatch:
    return dead_letters(batch, [Rejected("prepare", "TYPE", (Failure("n", "n", "wrong"),))] * batch.num_rows)


def test_each_row_is_a_line_with_its_identity_and_arrival() -> None:
    found = doors_of(rows([3, -1]), DUPLICATE)
    assert found.schema == DOORS
    assert found.column("source").to_pylist() == ["s", "s"]
    assert found.column("position").to_pylist() == [3, -1]
    assert found.column("door").to_pylist() == ["duplicate"] * 2
    assert found.column("arrival_time").cast(pa.int64()).to_pylist() == [1003, 999]


def test_rows_without_an_arrival_have_none() -> None:
    assert doors_of(rows([1]).drop_columns(["_arrival_time"]), FILTERED).column("arrival_time").to_pylist() == [None]


@given(st.lists(st.sampled_from(["kept", "dead", "filtered"]), max_size=12))
def test_filtered_is_what_is_neither_kept_nor_dead(fates: list[str]) -> None:
    batch = rows(list(range(len(fates))))
    kept, letters, filtered = (batch.filter(pa.array([f == fate for f in fates], pa.bool_())) for fate in ("kept", "dead", "filtered"))
    found = filtered_doors(batch, kept, dead(letters) if letters.num_rows else pa.RecordBatch.from_pylist([], schema=DEAD_LETTERS))
    assert found == doors_of(filtered, FILTERED)
