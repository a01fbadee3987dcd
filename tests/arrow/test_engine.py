"""A prepared SELECT says the same of a batch, however many rows it has and whatever became of the batch before."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest

from beam_pipelines.arrow.engine import Engine, Select

QUERY = "SELECT n * 2 AS twice, repeat(t, 3) AS text, n FROM $slot"
MANY = 140_000  # more than DuckDB gives in one piece unless asked, and than EXECUTE is used for


def batch_of(rows: int, *, first: int = 0) -> pa.RecordBatch:
    numbers = list(range(first, first + rows))
    return pa.record_batch(
        {"n": pa.array(numbers, pa.int64()), "t": pa.array([None if n % 7 == 0 else str(n) for n in numbers], pa.string())}
    )


def select() -> Select:
    return Engine().select(QUERY, batch_of(0).schema, optimize=False)


def test_rows_of_a_large_batch_are_those_of_its_parts_in_their_order() -> None:
    asked, whole = select(), batch_of(MANY)
    parts = [asked(whole.slice(at, 1000)) for at in range(0, MANY, 1000)]
    assert asked(whole).equals(pa.Table.from_batches(parts).combine_chunks().to_batches()[0])


def test_large_and_small_batches_take_turns() -> None:
    asked = select()
    for rows in (0, MANY, 3, MANY + 1, 0, 1):
        assert asked(batch_of(rows, first=rows))["n"].equals(batch_of(rows, first=rows)["n"])


@pytest.mark.parametrize("rows", [10, MANY])
def test_a_batch_that_fails_leaves_the_select_as_it_was(rows: int) -> None:
    asked, good = select(), batch_of(rows)
    wrong = good.set_column(0, "n", pa.array([2**62] * rows, pa.int64()))
    before = asked(good)
    with pytest.raises(duckdb.Error, match="Overflow"):
        asked(wrong)
    assert asked(good).equals(before)
