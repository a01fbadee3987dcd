"""Files as a source: what is listed, how files are split, and what becomes of those that cannot be read."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.schema import source_number
from beam_pipelines.errors import SourceError
from beam_pipelines.formats.reader import Broken
from beam_pipelines.sources import files
from beam_pipelines.sources.files import FileRange, ReadFiles, file_ranges, list_files, read_range
from beam_pipelines.spec.sources import FileSource

CONTRACT = Contract(columns={"n": {"type": "int64"}})  # type: ignore[dict-item]


def source(files: Path | str | list[str], **options: object) -> FileSource:
    return FileSource.model_validate({"files": files if isinstance(files, list) else str(files), "format": "json", **options})


def lines(folder: Path, name: str, numbers: range) -> Path:
    path = folder / name
    path.write_text("".join(f'{{"n": {n}}}\n' for n in numbers))
    return path


def raw(part: FileRange, of: FileSource) -> list[bytes]:
    batches = [piece for piece in read_range(part, of, CONTRACT) if not isinstance(piece, Broken)]
    return [value.strip() for batch in batches for value in batch.column("_raw").to_pylist()]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(alphabet="ab\u00e9\r", max_size=12), max_size=40), st.integers(1, 64))
def test_each_line_is_in_exactly_one_range_however_a_file_is_split(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], block: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes("".join(json.dumps(t) + "\n" for t in texts).encode())
    of = source(path, block_bytes=block)
    found = [value for part in file_ranges(of, CONTRACT) for value in raw(part, of)]
    assert found == [json.dumps(t).encode() for t in texts]


def test_positions_are_byte_offsets_of_the_lines(tmp_path: Path) -> None:
    path = lines(tmp_path, "a.jsonl", range(100))
    of = source(path, block_bytes=64)
    content = path.read_bytes()
    for part in file_ranges(of, CONTRACT):
        for batch in read_range(part, of, CONTRACT):
            assert not isinstance(batch, Broken)
            for position, value in zip(batch.column("_position").to_pylist(), batch.column("_raw").to_pylist(), strict=True):
                assert content[position : position + len(value)] == value


def test_a_directory_gives_its_files_and_not_its_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", ".hidden", "_SUCCESS"):
        lines(tmp_path, name, range(1))
    (tmp_path / "below").mkdir()
    lines(tmp_path / "below", "c.jsonl", range(1))
    for hidden in (".beam_pipelines/runs", "below/_temporary", ".staging"):
        (tmp_path / hidden).mkdir(parents=True)
        lines(tmp_path / hidden, "d.jsonl", range(1))
    (tmp_path / "_day=1").mkdir()
    lines(tmp_path / "_day=1", "z.jsonl", range(1))
    assert [Path(path).name for path, _ in list_files([str(tmp_path)])] == ["z.jsonl", "a.jsonl", "b.jsonl", "c.jsonl"]


def test_a_file_matched_twice_is_read_once(tmp_path: Path) -> None:
    path = lines(tmp_path, "a.jsonl", range(3))
    assert list_files([str(path), str(tmp_path / "*.jsonl")]) == [(str(path), path.stat().st_size)]


@pytest.mark.parametrize("pattern", ["nothing-*.jsonl", "nothing.jsonl", "empty"])
def test_a_pattern_without_match_is_an_error_that_names_it(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="matches no file"):
        list_files([str(tmp_path / pattern)])


def test_compressed_files_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"n": 1}\n{"n": 2}\n' * 50))
    of = source(path, block_bytes=64)
    ranges = file_ranges(of, CONTRACT)
    assert [(r.start, r.end) for r in ranges] == [(0, -1)]
    assert len(raw(ranges[0], of)) == 100


def test_a_gzip_with_wrong_bytes_is_one_dead_letter_and_no_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    packed = bytearray(gzip.compress(b"".join(b'{"n": %d}\n' % (n * n) for n in range(20_000))))
    packed[len(packed) // 3] ^= 4
    path.write_bytes(packed)
    of = source(path)
    (part,) = file_ranges(of, CONTRACT)
    (broken,) = read_range(part, of, CONTRACT)
    assert isinstance(broken, Broken)
    assert (broken.position, broken.reason) == (0, "FILE")
    assert "corrupt gzip file" in broken.message
    *seen, last = read_range(part, of, CONTRACT, at_once=True)
    assert any(not isinstance(piece, Broken) for piece in seen)
    assert isinstance(last, Broken)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_folders_that_look_like_partitions_are_no_columns_of_their_files(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "n=7" / "env=prod"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("n\n1\n")
    pq.write_table(pa.table({"n": [1]}), folder / "a.parquet")
    of = FileSource.model_validate({"files": f"{tmp_path}/n=*/env=*/*.{kind}", "format": kind})
    (part,) = file_ranges(of, CONTRACT)
    (batch,) = read_range(part, of, CONTRACT)
    assert isinstance(batch, pa.RecordBatch)
    found = batch.column("n").to_pylist() if kind == "parquet" else raw(part, of)
    assert found == ([1] if kind == "parquet" else [b"1"])
    assert "env" not in batch.schema.names
    assert batch.column("_source").to_pylist() == [str(folder / f"a.{kind}")]


def test_a_file_that_vanished_is_one_dead_letter_and_costs_no_other_file(tmp_path: Path) -> None:
    kept, gone = lines(tmp_path, "a.jsonl", range(3)), lines(tmp_path, "b.jsonl", range(3))
    read = ReadFiles([source(tmp_path)], CONTRACT)

    def rows(batches: list[pa.RecordBatch]) -> None:
        assert sum(b.num_rows for b in batches) == 3

    def dead(letters: list[pa.RecordBatch]) -> None:
        (letter,) = [row for b in letters for row in b.to_pylist()]
        assert (letter["source"], letter["stage"], letter["reason"]) == (str(gone), "read", "FILE")
        assert "cannot be read" in letter["message"]

    def counts(found: list[tuple[str, str, str, str, int]]) -> None:
        assert sorted(c[1:] for c in found) == sorted(
            [(str(kept), "read", "", 3), (str(gone), "read", "", 1), (str(gone), "dead", "read:FILE", 1)]
        )

    pipeline = beam.Pipeline(runner="FnApiRunner")
    done = pipeline | read
    assert_that(done.rows, rows, label="Rows")
    assert_that(done.dead, dead, label="Dead")
    assert_that(done.counts, counts, label="Counts")
    gone.unlink()  # between listing and reading
    pipeline.run().wait_until_finish()


def test_sources_share_one_collection_and_batches_know_theirs(tmp_path: Path) -> None:
    one, two = lines(tmp_path, "a.jsonl", range(2)), lines(tmp_path, "b.jsonl", range(5))

    def check(batches: list[pa.RecordBatch]) -> None:
        assert sorted((source_number(b), b.num_rows) for b in batches) == [(0, 2), (1, 5)]

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        assert_that((pipeline | ReadFiles([source(one), source(two)], CONTRACT)).rows, check)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = lines(tmp_path, "a.jsonl", range(200_000))
    of = source(path, block_bytes=2**16)
    before = pa.total_allocated_bytes()
    most = 0
    for batch in read_range(FileRange(str(path), 0, -1, path.stat().st_size), of, CONTRACT):
        assert not isinstance(batch, Broken)
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 20 * 2**16


def test_every_row_of_a_row_group_that_cannot_be_read_is_a_dead_letter(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"n": range(1000)}), path, row_group_size=100, compression="none", use_dictionary=False, write_page_checksum=True
    )
    column = pq.ParquetFile(path).metadata.row_group(7).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 8] ^= 0xFF
    path.write_bytes(content)
    of = FileSource.model_validate({"files": str(path), "format": "parquet"})

    def dead(letters: list[pa.RecordBatch]) -> None:
        found = sorted(row["position"] for b in letters for row in b.to_pylist())
        assert found == list(range(700, 800))

    def counts(found: list[tuple[str, str, str, str, int]]) -> None:
        assert sorted(c[2:] for c in found) == [("dead", "read:FILE", 100), ("read", "", 1000)]

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        done = pipeline | ReadFiles([of], CONTRACT)
        assert_that(done.dead, dead, label="Dead")
        assert_that(done.counts, counts, label="Counts")


@pytest.mark.parametrize(("ending", "pack", "opens"), [("gz", gzip.compress, 2), ("bz2", bz2.compress, 1)])
def test_only_a_file_whose_checksum_comes_late_is_looked_through_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, pack: Callable[[bytes], bytes], opens: int
) -> None:
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(pack(b'{"n": 1}\n'))
    opened: list[str] = []
    open_raw = files._open_raw

    def noted(path: str) -> BinaryIO:
        opened.append(path)
        return open_raw(path)

    monkeypatch.setattr(files, "_open_raw", noted)
    of = source(path)
    assert [raw(part, of) for part in file_ranges(of, CONTRACT)] == [[b'{"n": 1}']]
    assert opened == [str(path)] * opens
