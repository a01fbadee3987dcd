"""Laws of ORC: what was written is read at its ordinal; a corrupt stripe costs itself; ranges cover the file."""

from __future__ import annotations

import gzip
import io
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.orc as pa_orc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.formats.compression import decompress
from beam_pipelines.formats.orc import OrcReader
from beam_pipelines.formats.reader import DECODE, FILE, Broken

KEEP = Contract(columns={"id": Column(type="int64")})
DROP = Contract(columns={"id": Column(type="int64")}, unknown_columns="drop")


def rows_of(n: int) -> list[dict[str, Any]]:
    return [
        {"id": i, "user": {"name": f"n{i * i}", "tags": ["a"] * (i % 3)}, "text": None if i % 5 == 0 else f"text {i * 7919}"}
        for i in range(n)
    ]


def written(rows: list[dict[str, Any]] | pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    table = pa.Table.from_pylist(rows) if isinstance(rows, list) else rows
    pa_orc.write_table(table, out, **({"stripe_size": 1024, "batch_size": 500, "compression": "zlib"} | options))
    return out.getvalue()


def read(content: bytes | BinaryIO, names: Contract = KEEP, **options: Any) -> tuple[list[tuple[int, dict[str, Any]]], list[Broken]]:
    rows: list[tuple[int, dict[str, Any]]] = []
    broken: list[Broken] = []
    for item in OrcReader(names).read(io.BytesIO(content) if isinstance(content, bytes) else content, **options):
        if isinstance(item, Broken):
            broken.append(item)
        else:
            item.validate(full=True)
            rows += zip(item["_position"].to_pylist(), item.drop_columns(["_position"]).to_pylist(), strict=True)
    return rows, broken


ROWS = rows_of(60_000)
CONTENT = written(ROWS)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, len(CONTENT)), max_size=4))
def test_every_row_is_read_once_whatever_the_ranges(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), None]
    batches = [b for a, e in zip(edges, edges[1:], strict=False) for b in OrcReader(DROP).read(io.BytesIO(CONTENT), start=a or 0, end=e)]
    assert [p for b in batches if isinstance(b, pa.RecordBatch) for p in b["_position"].to_pylist()] == list(range(60_000))
    assert [p for b in batches if isinstance(b, pa.RecordBatch) for p in b["id"].to_pylist()] == list(range(60_000))


def test_nested_columns_are_read() -> None:
    assert read(written(rows_of(20)))[0] == list(enumerate(rows_of(20)))
    assert read(written(rows_of(2)), DROP)[0] == [(0, {"id": 0}), (1, {"id": 1})]


def test_a_corrupt_stripe_costs_itself_and_no_other() -> None:
    file = pa_orc.ORCFile(io.BytesIO(CONTENT))
    assert file.nstripes >= 2
    sizes = [file.read_stripe(i, columns=["id"]).num_rows for i in range(file.nstripes)]
    content = bytearray(CONTENT)
    at = len(content) // 2
    content[at : at + 60] = b"\xff" * 60
    rows, broken = read(bytes(content))
    assert [b.reason for b in broken] == [FILE]
    number = [sum(sizes[:i]) for i in range(len(sizes))].index(broken[0].position)
    lost = range(broken[0].position, broken[0].position + sizes[number])
    assert f"stripe {number}: rows {lost.start} to {lost.stop - 1} cannot be read" in broken[0].message
    assert rows == [(i, r) for i, r in enumerate(ROWS) if i not in lost]


@pytest.mark.parametrize("content", [b"", b"ORC", b"a,b\n1,2\n", CONTENT[:-20], CONTENT[:2000]])
def test_a_file_without_a_good_footer_is_one_broken(content: bytes) -> None:
    rows, [broken] = read(content)
    assert not rows
    assert (broken.position, broken.reason) == (0, FILE)
    assert "not a readable ORC file" in broken.message
    assert read(content, start=1) == ([], [])


def test_a_compressed_file_is_read_and_a_truncated_one_is_one_broken() -> None:
    packed = gzip.compress(written(rows_of(10)))
    assert read(decompress(io.BytesIO(packed), "gzip"))[0] == list(enumerate(rows_of(10)))
    [broken] = read(decompress(io.BytesIO(packed[:-50]), "gzip"))[1]
    assert "truncated gzip" in broken.message


def test_invalid_utf8_costs_its_own_row() -> None:
    bad = pa.Array.from_buffers(pa.string(), 4, pa.array([b"a", b"b", b"\xff", b"d"], pa.binary()).buffers())
    rows, broken = read(written(pa.table({"id": [0, 1, 2, 3], "s": bad})))
    assert [p for p, _ in rows] == [0, 1, 3]
    assert [(b.position, b.reason) for b in broken] == [(2, DECODE)]


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    st.sampled_from(["zlib", "uncompressed", "zstd"]),
)
def test_no_bytes_raise(flips: list[tuple[int, int]], compression: str) -> None:
    content = bytearray(written(rows_of(60), compression=compression))
    for at, value in flips:
        content[at % len(content)] = value
    rows, broken = read(bytes(content))
    positions = [p for p, _ in rows] + [b.position for b in broken]
    assert len(set(positions)) == len(positions)
