"""Partitions: each row in exactly one, and every hive reader finds the value that was written."""

from __future__ import annotations

import tempfile
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from beam_pipelines.arrow.partition import OUTSIDE, parse_partition
from beam_pipelines.arrow.partitioning import check_partitions, directory, encode_value, refusal, split
from beam_pipelines.errors import SpecError
from tests.laws import share

INSTANT = pa.timestamp("us", "UTC")
MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda d: d.replace(tzinfo=UTC))
BY_DAY = (parse_partition("day(at)"),)


def batch(moments: list[datetime | None], **more: list[object]) -> pa.RecordBatch:
    return pa.record_batch(
        {"at": pa.array(moments, INSTANT), "n": pa.array(range(len(moments)), pa.int64()), **{k: pa.array(v) for k, v in more.items()}}
    )


def day(moment: datetime | None) -> str | None:
    return None if moment is None else moment.date().isoformat()


@given(st.lists(st.one_of(st.none(), MOMENTS), max_size=40), st.integers(0, 5))
def test_every_row_is_in_exactly_one_piece_that_of_its_utc_day(moments: list[datetime | None], offset: int) -> None:
    rows = batch(moments).slice(min(offset, len(moments)))
    pieces = split(rows, BY_DAY)
    assert sorted(n for p in pieces for n in p.rows.column("n").to_pylist()) == sorted(rows.column("n").to_pylist())
    assert len({p.values for p in pieces}) == len(pieces)
    for piece in pieces:
        assert {(day(m),) for m in piece.rows.column("at").to_pylist()} == {piece.values}
        assert piece.rows.column("n").to_pylist() == sorted(piece.rows.column("n").to_pylist())


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from([1, 2, None]), st.booleans()), min_size=1, max_size=40))
def test_several_columns_cut_as_a_group_by_does(rows: list[tuple[str | None, int | None, bool]]) -> None:
    columns = {name: pa.array([r[i] for r in rows]) for i, name in enumerate("abc")}
    columns["a"] = columns["a"].cast(pa.string()).dictionary_encode()
    columns["b"] = columns["b"].cast(pa.int64())
    pieces = split(pa.record_batch(columns), [parse_partition(c) for c in "abc"])
    expected = {(a, None if b is None else str(b), str(c).lower()) for a, b, c in rows}
    assert {p.values for p in pieces} == expected
    assert sum(p.rows.num_rows for p in pieces) == len(rows)


def test_a_run_of_most_rows_is_not_copied_and_a_small_one_is() -> None:
    moments = [datetime(2013, 1, 1, tzinfo=UTC)] * 900 + [datetime(2013, 1, 2, tzinfo=UTC)] * 100
    rows = batch(moments)
    large, small = (p.rows.column("n") for p in split(rows, BY_DAY))
    assert large.buffers()[1].address == rows.column("n").buffers()[1].address
    assert small.buffers()[1].size < rows.column("n").buffers()[1].size


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("hour(at)", "2013-01-01-05"),
        ("day(at)", "2013-01-01"),
        ("month(at)", "2013-01"),
        ("year(at)", "2013"),
        ("at", "2013-01-01 05:06:07"),
    ],
)
def test_times_are_utc_and_sort_as_text(text: str, value: str) -> None:
    assert split(batch([datetime(2013, 1, 1, 5, 6, 7, tzinfo=UTC)]), [parse_partition(text)])[0].values == (value,)


def test_days_before_1970_and_dates_and_civil_times() -> None:
    assert split(batch([datetime(1969, 12, 31, 23, tzinfo=UTC)]), BY_DAY)[0].values == ("1969-12-31",)
    dates = pa.record_batch({"at": pa.array([date(1969, 12, 31)]), "t": pa.array([datetime(2013, 3, 31, 2, 30)], pa.timestamp("us"))})
    assert split(dates, BY_DAY)[0].values == ("1969-12-31",)
    assert split(dates, [parse_partition("month(at)"), parse_partition("day(t)")])[0].values == ("1969-12", "2013-03-31")


@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(-9, 30)), min_size=1, max_size=40), st.integers(1, 7))
def test_a_range_holds_the_numbers_from_its_first_to_the_next(numbers: list[int | None], step: int) -> None:
    rows = pa.record_batch({"n": pa.array(numbers, pa.int64())})
    found = {p.values[0]: p.rows.column("n").to_pylist() for p in split(rows, [parse_partition(f"range(n, -5, 20, {step})")])}
    assert sorted(map(str, numbers)) == sorted(str(n) for held in found.values() for n in held)
    for value, held in found.items():
        if value is None:
            assert set(held) == {None}
        elif value == OUTSIDE:
            assert all(not -5 <= n < 20 for n in held)
        else:
            assert (int(value) + 5) % step == 0
            assert all(int(value) <= n < min(int(value) + step, 20) for n in held)


def test_a_range_is_of_integers_that_a_table_has() -> None:
    rows = pa.schema([("n", pa.uint64()), ("small", pa.uint32())])
    check_partitions([parse_partition("range(small, 0, 10, 5)")], rows)
    with pytest.raises(SpecError, match=r"range\(n, 0, 10, 5\) needs an integer of at most 63 bits; got uint64"):
        check_partitions([parse_partition("range(n, 0, 10, 5)")], rows)


def test_values_that_are_no_directory_are_refused_with_a_reason() -> None:
    by = [parse_partition("k")]
    assert "too long" in refusal(("x" * 201,), by)
    assert "too long" in refusal(("/" * 70,), by)  # three bytes each once encoded
    assert "means NULL" in refusal(("__HIVE_DEFAULT_PARTITION__",), by)
    assert refusal(("x" * 200,), by) == refusal((None,), by) == ""


@pytest.mark.parametrize(
    ("text", "schema", "message"),
    [
        ("nope", {"at": INSTANT}, "unknown column"),
        ("day(n)", {"n": pa.int64()}, "needs a timestamp"),
        ("hour(d)", {"d": pa.date32()}, "needs a timestamp"),
        ("l", {"l": pa.list_(pa.int64())}, "no directory name"),
        ("a/b", {"a/b": pa.string()}, "cannot stand"),
        ("day(at)", {"at": INSTANT, "at_day": pa.int64()}, "a column has that name"),
    ],
)
def test_partitions_that_readers_could_not_follow_are_refused(text: str, schema: dict[str, pa.DataType], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_partitions([parse_partition(text)], pa.schema(list(schema.items())))


VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@share(20)
@example("a/b=c")
@example("..")
@example(".")
@example("")
@example(" ")
@example("NULL")
@example("a%20b+c")
@example("日本 Zürich 🦆")
@example("*?[x]{y}\n\\\"'")
@example("007")
@given(VALUES)
def test_duckdb_pyarrow_and_polars_read_the_value_back(value: str) -> None:
    by = [parse_partition("k")]
    if refusal((value,), by):
        return
    with tempfile.TemporaryDirectory() as folder:
        for text in (value, None):
            path = Path(folder, directory((text,), by))
            path.mkdir(parents=True)
            assert path.parent == Path(folder)
            pq.write_table(pa.table({"n": [1 if text is None else 2]}), path / "x.parquet")
        expected = {(1, None), (2, value)}
        sql = "SELECT n, k FROM read_parquet(? || '/**/*.parquet', hive_partitioning = true, hive_types = {'k': VARCHAR})"
        assert set(duckdb.connect().execute(sql, [folder]).fetchall()) == expected
        arrow = ds.dataset(folder, partitioning=ds.partitioning(pa.schema([("k", pa.string())]), flavor="hive")).to_table()
        assert {(r["n"], r["k"]) for r in arrow.to_pylist()} == expected
        polars = pl.read_parquet(f"{folder}/**/*.parquet", hive_partitioning=True, hive_schema={"k": pl.String})
        assert set(polars.select("n", "k").iter_rows()) == expected


@given(VALUES)
def test_an_encoded_value_is_one_path_segment(value: str) -> None:
    assert not set(encode_value(value)) & set('/\\=:*?"<>|\n\r ')
