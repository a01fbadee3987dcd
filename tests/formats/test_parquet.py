"""Laws of Parquet: what was written is read at its ordinal; a corrupt page costs its row group; ranges cover the file."""

from __future__ import annotations

import gzip
import io
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.formats.compression import decompress
from beam_pipelines.formats.parquet import ParquetReader
from beam_pipelines.formats.reader import DECODE, FILE, Broken, Limits

KEEP = Contract(columns={"id": Column(type="int64")})
DROP = Contract(columns={"id": Column(type="int64")}, unknown_columns="drop")


def rows_of(n: int) -> list[dict[str, Any]]:
    return [{"id": i, "user": {"name": f"n{i}", "tags": ["a"] * (i % 3)}, "text": None if i % 5 == 0 else f"text {i}"} for i in range(n)]


def written(rows: list[dict[str, Any]] | pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    table = pa.Table.from_pylist(rows) if isinstance(rows, list) else rows
    pq.write_table(table, out, **({"write_page_checksum": True} | options))
    return out.getvalue()


def read(content: bytes | BinaryIO, names: Contract = KEEP, **options: Any) -> tuple[list[tuple[int, dict[str, Any]]], list[Broken]]:
    rows: list[tuple[int, dict[str, Any]]] = []
    broken: list[Broken] = []
    for item in ParquetReader(names).read(io.BytesIO(content) if isinstance(content, bytes) else content, **options):
        if isinstance(item, Broken):
            broken.append(item)
        else:
            item.validate(full=True)
            rows += zip(item["_position"].to_pylist(), item.drop_columns(["_position"]).to_pylist(), strict=True)
    return rows, broken


@given(st.integers(0, 40), st.integers(1, 20), st.lists(st.integers(0, 10_000), max_size=4))
def test_every_row_is_read_once_whatever_the_ranges(n: int, group: int, cuts: list[int]) -> None:
    content = written(pa.Table.from_pylist(rows_of(40)).slice(0, n), row_group_size=group)
    edges = [0, *sorted(cuts), None]
    parts = [read(content, start=a or 0, end=b) for a, b in zip(edges, edges[1:], strict=False)]
    assert sum((p[0] for p in parts), []) == list(enumerate(rows_of(n)))
    assert not any(p[1] for p in parts)


def test_large_row_groups_come_in_batches_of_bounded_bytes() -> None:
    content = written(rows_of(10_000))
    batches = list(ParquetReader(KEEP).read(io.BytesIO(content), limits=Limits(block_bytes=1000)))
    assert {b.num_rows for b in batches if isinstance(b, pa.RecordBatch)} == {1024, 10_000 % 1024}


def test_only_the_contracts_columns_are_read_where_others_are_dropped() -> None:
    assert read(written(rows_of(2)), DROP)[0] == [(0, {"id": 0}), (1, {"id": 1})]
    assert read(written([{"other": 1}]), DROP)[0] == [(0, {"other": 1})]


@pytest.mark.parametrize("damage", [lambda b, at: b.__setitem__(slice(at, at + 8), b"\xff" * 8)])
def test_a_corrupt_page_costs_its_row_group_and_no_other(damage: Callable[[bytearray, int], None]) -> None:
    content = bytearray(written(rows_of(3000), row_group_size=1000, compression="none", use_dictionary=False))
    column = pq.ParquetFile(io.BytesIO(bytes(content))).metadata.row_group(1).column(0)
    damage(content, column.data_page_offset + column.total_compressed_size // 2)
    rows, broken = read(bytes(content))
    assert [(b.position, b.reason) for b in broken] == [(1000, FILE)]
    assert "row group 1: rows 1000 to 1999 cannot be read" in broken[0].message
    assert [p for p, _ in rows] == [*range(1000), *range(2000, 3000)]


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"a,b\n1,2\n", written(rows_of(10))[:-20], written(rows_of(10))[:200], b"PAR1" + b"\xff" * 8 + b"PAR1"]
)
def test_a_file_without_a_good_footer_is_one_broken(content: bytes) -> None:
    rows, [broken] = read(content)
    assert not rows
    assert (broken.position, broken.reason) == (0, FILE)
    assert "not a readable Parquet file" in broken.message
    assert read(content, start=1) == ([], [])


def test_columns_with_one_name_cost_the_file() -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    [broken] = read(written(table))[1]
    assert "got the column 'a' twice" in broken.message


def test_a_compressed_file_is_read_and_a_truncated_one_is_one_broken() -> None:
    packed = gzip.compress(written(rows_of(10)))
    assert read(decompress(io.BytesIO(packed), "gzip"))[0] == list(enumerate(rows_of(10)))
    [broken] = read(decompress(io.BytesIO(packed[:-50]), "gzip"))[1]
    assert "truncated gzip" in broken.message


def test_invalid_utf8_costs_its_own_row() -> None:
    bad = pa.Array.from_buffers(pa.string(), 4, pa.array([b"a", b"b", b"\xff", b"d"], pa.binary()).buffers())
    nested = pa.StructArray.from_arrays([bad], names=["x"])
    content = written(pa.table({"id": [0, 1, 2, 3], "s": nested}))
    rows, broken = read(content)
    assert [p for p, _ in rows] == [0, 1, 3]
    assert [(b.position, b.reason) for b in broken] == [(2, DECODE)]


def test_our_own_outputs_are_read_again() -> None:
    rows, _ = read(written([{"_source": "a", "_position": 7, "_unknown": "{}", "_raw": b"x", "id": 1}]))
    assert rows == [(0, {"$_source": "a", "$_position": 7, "$_unknown": "{}", "$_raw": b"x", "id": 1})]


class Unplugged(io.BytesIO):
    """A stream that fails behind its footer's bytes."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() < 1000:
            raise OSError(5, "the disk is gone")
        return super().read(size)


def test_an_error_of_the_stream_itself_is_raised() -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        read(Unplugged(written(rows_of(3000))))


THREE_GROUPS = written(rows_of(60), row_group_size=20)
ABORTS = THREE_GROUPS[:1970] + b"\x03" + THREE_GROUPS[1971:]  # in the footer's schema: histograms of levels then have another length
IN_PROCESS = "import io, sys, pyarrow.parquet as pq; pq.ParquetFile(io.BytesIO(sys.stdin.buffer.read())).metadata.row_group(0).column(0)"


def test_metadata_that_ends_the_process_is_a_letter_for_each_row() -> None:
    ended = subprocess.run([sys.executable, "-c", IN_PROCESS], input=ABORTS, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGABRT, "if this pyarrow does not end on them, find others"
    rows, broken = read(ABORTS)
    assert not rows
    assert [(b.position, b.reason, b.rows) for b in broken] == [(0, FILE, 20), (20, FILE, 20), (40, FILE, 20)]


def test_a_footer_whose_row_groups_are_not_all_rows_is_one_broken() -> None:
    rows, [broken] = read(THREE_GROUPS.replace(b"\x16\x78\x19", b"\x16\x7a\x19"))  # num_rows: 60, 61
    assert not rows
    assert (broken.position, broken.rows) == (0, 1)
    assert "lists 60 rows in row groups; expected the 61 of the whole file" in broken.message


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_bytes_raise(flips: list[tuple[int, int]]) -> None:
    content = bytearray(written(rows_of(60), row_group_size=20))
    for at, value in flips:
        content[at % len(content)] = value
    rows, broken = read(bytes(content))
    positions = [p for p, _ in rows] + [b.position for b in broken]
    assert len(set(positions)) == len(positions)
