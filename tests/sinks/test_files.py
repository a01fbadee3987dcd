"""Staged files: every row in exactly one, bounded in number, size and memory; a disk that refuses is one clear error."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.partition import parse_partition
from beam_pipelines.errors import SinkError
from beam_pipelines.places import open_new, write_bytes
from beam_pipelines.sinks.changes import INPROGRESS
from beam_pipelines.sinks.files import Closed, Files, Layout
from beam_pipelines.sinks.parquet import ParquetEncoder
from tests.sinks.lake import rows

BY_K = (parse_partition("k"),)


def layout(folder: Path, **more: object) -> Layout:
    return replace(Layout("out", str(folder), ".parquet", BY_K), **more)  # type: ignore[arg-type]


def written(closed: list[Closed]) -> list[tuple[str, int]]:
    return sorted((c.partition, n) for c in closed for n in pq.ParquetFile(c.path).read(columns=["n"])["n"].to_pylist())


@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=20), max_size=8),
    st.integers(1, 30), st.integers(1, 3), st.integers(1, 5_000), st.integers(1, 4_000),
)  # fmt: skip
def test_every_row_is_in_one_file_of_its_partition_within_all_bounds(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[str | None]], group: int, most_open: int, target: int, buffered: int
) -> None:
    folder = tmp_path_factory.mktemp("out")
    files = Files(
        layout(folder, group_rows=group, max_open_files=most_open, target_file_bytes=target, buffered_bytes=buffered), ParquetEncoder()
    )
    number, expected, sources = 0, [], 0
    for keys in batches:
        pairs = [(number + i, k) for i, k in enumerate(keys)]
        number += len(keys)
        expected += [(f"k={'__HIVE_DEFAULT_PARTITION__' if k is None else k}", n) for n, k in pairs]
        assert not files.write(rows(*pairs, source=f"s{number % 2}"))
        assert len(os.listdir("/proc/self/fd")) < 500
    closed = files.close()
    assert written(closed) == sorted(expected)
    for file in closed:
        assert file.rows == pq.ParquetFile(file.path).metadata.num_rows == sum(file.sources.values())
        assert file.bytes == os.path.getsize(file.path)
        assert file.path.endswith(INPROGRESS)
        sources += len(file.sources)
    assert len({c.path for c in closed}) == len(closed)


def test_files_close_near_the_target_and_row_groups_have_their_size(tmp_path: Path) -> None:
    files = Files(layout(tmp_path, by=(), group_rows=100, target_file_bytes=4_000), ParquetEncoder())
    for i in range(0, 1000, 50):
        files.write(rows(*((n, f"{n * 7919 % 1000:x}") for n in range(i, i + 50))))
    closed = files.close()
    assert len(closed) > 1
    groups = [pq.ParquetFile(c.path).metadata.row_group(g).num_rows for c in closed for g in range(pq.ParquetFile(c.path).num_row_groups)]
    assert groups == [100] * 10


def test_the_path_holds_identity_columns_and_the_file_all_others(tmp_path: Path) -> None:
    files = Files(layout(tmp_path, constants=(("_run_id", "r1"),), drop=frozenset({"_arrival_time"})), ParquetEncoder())
    files.write(rows((1, "a")))
    (closed,) = files.close()
    table = pq.ParquetFile(closed.path).read()
    assert table.schema.names == ["n", "_source", "_position", "_run_id"]
    assert table["_run_id"].to_pylist() == ["r1"]
    assert files.columns is not None
    assert files.columns.names == ["n", "k", "_source", "_position", "_run_id"]


def test_sources_are_counted_even_where_the_column_is_dropped(tmp_path: Path) -> None:
    files = Files(layout(tmp_path, by=(), drop=frozenset({"_source"})), ParquetEncoder())
    files.write(rows((1, "a"), source="x"))
    files.write(pa.concat_batches([rows((2, "a"), source="y"), rows((3, "a"), source="x")]))
    assert files.close()[0].sources == {"x": 2, "y": 1}


def test_a_new_schema_starts_new_files(tmp_path: Path) -> None:
    files = Files(layout(tmp_path), ParquetEncoder())
    files.write(rows((1, "a")))
    files.write(rows((2, "a")).append_column("more", pa.array([1])))
    assert [c.rows for c in files.close()] == [1, 1]


def test_values_no_directory_can_have_come_back_with_the_reason(tmp_path: Path) -> None:
    files = Files(layout(tmp_path), ParquetEncoder())
    (refused,) = files.write(rows((1, "a"), (2, "x" * 300), (3, "a")))
    assert refused.rows.column("n").to_pylist() == [2]
    assert "too long" in refused.message
    assert [c.rows for c in files.close()] == [2]


def write_many(files: Files, text: str) -> None:
    for i in range(100):
        files.write(rows(*((n, f"{n}{text}") for n in range(i * 10, i * 10 + 10))))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_the_system_cuts_off_is_a_clear_error(tmp_path: Path) -> None:
    files = Files(layout(tmp_path, by=(), group_rows=10), ParquetEncoder(compression="none"))
    with largest_file(2_000), pytest.raises(SinkError, match=r"cannot write: a file would grow past the limit.*nothing was committed"):
        write_many(files, "x" * 40)


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    class OnFullDisk(ParquetEncoder):
        def open(self, path: str, first: pa.Table):  # type: ignore[no-untyped-def]
            return super().open("/dev/full", first)

    files = Files(layout(tmp_path, by=(), group_rows=10), OnFullDisk(compression="none"))
    with pytest.raises(SinkError, match=r"cannot write: the disk is full\. Free space"):
        write_many(files, "x" * 1000)


def test_a_path_below_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    files = Files(layout(tmp_path / "file" / "out"), ParquetEncoder())
    files.write(rows((1, "a")))
    with pytest.raises(SinkError, match=r"a part of the path is a file|a file is in the way"):
        files.close()
    with pytest.raises(SinkError, match=r"a part of the path is a file|a file is in the way"):
        open_new(str(tmp_path / "file" / "x"))
    with pytest.raises(SinkError, match=r"a part of the path is a file|a file is in the way"):
        write_bytes(str(tmp_path / "file" / "x"), b"")
