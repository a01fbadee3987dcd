"""The archive: what is stored comes back, whole, once, from anywhere on."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.schema import MESSAGES, is_archived
from beam_pipelines.errors import SinkError, SourceError, SpecError
from beam_pipelines.formats.archive import Positions, live_files, raw_batch, read_hour, read_since, source_folder, write_messages
from beam_pipelines.formats.archive_files import hours
from beam_pipelines.formats.named_files import named
from beam_pipelines.formats.reader import Broken
from tests.formats.archived import HOUR, NOON, SOURCE, Clock, everything, messages, raw, told

KEY, OTHER = b"k" * 32, b"o" * 32
ROWS = st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(NOON - 3 * HOUR, NOON + 3 * HOUR)), max_size=12)


@settings(max_examples=20, deadline=None)
@given(batches=st.lists(ROWS, max_size=5), since=st.integers(NOON - 3 * HOUR, NOON + 3 * HOUR), size=st.integers(1, 7))
def test_read_since_gives_each_position_of_an_hour_once_in_order_of_hours(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]], since: int, size: int
) -> None:
    folder = str(tmp_path_factory.mktemp("archive"))
    first: dict[tuple[int, int], int] = {}
    for rows in batches:
        write_messages(messages(rows), folder, epoch=1, now=Clock())
        for position, arrival in rows:
            if arrival >= since:
                first.setdefault((arrival // HOUR, position), arrival)
    found = list(read_since(folder, since, batch_rows=size))
    assert {(a // HOUR, p) for p, a in told(found)} == set(first)
    assert len(told(found)) == len(first)
    assert all(b.num_rows <= size and b.schema.equals(MESSAGES) and is_archived(b) for b in found)
    order = [a // HOUR for b in found for a in b.column("_arrival_time").cast(pa.int64()).to_pylist()]
    assert order == sorted(order)


@pytest.mark.parametrize("key", [None, KEY])
def test_messages_come_back_as_they_were(tmp_path: Path, key: bytes | None) -> None:
    batch = messages([(n, NOON + n) for n in range(100)]).slice(7, 60)
    write_messages(batch, str(tmp_path), epoch=1, key=key)
    (found,) = read_since(str(tmp_path), 0, key=lambda: KEY)
    assert found.to_pylist() == batch.to_pylist()


def test_there_is_one_file_per_source_and_hour_and_its_name_says_epoch_and_time(tmp_path: Path) -> None:
    batch = pa.concat_batches(
        [messages([(1, NOON), (2, NOON + HOUR), (3, NOON)]), messages([(1, NOON)], source="projects/p/subscriptions/s")]
    )
    paths = write_messages(batch, str(tmp_path), epoch=7, now=Clock(NOON / 1e6))
    flights = re.escape(source_folder(str(tmp_path), SOURCE))
    assert flights.endswith(r"projects_demo\-project_subscriptions_flights\-" + source_folder("", SOURCE)[-8:])
    assert re.fullmatch(flights + rf"/arrival_hour=2013-12-01-12/000007-{NOON // 1000 + 10:012x}[0-9a-f]{{20}}\.parquet", paths[0])
    assert "arrival_hour=2013-12-01-13" in paths[1]
    assert "projects_p_subscriptions_s-" in paths[2]
    assert sorted(paths) == sorted(live_files(str(tmp_path)))
    assert [len(told(read_since(source_folder(str(tmp_path), s), 0))) for s in (SOURCE, "projects/p/subscriptions/s")] == [3, 1]


def test_no_two_sources_share_a_folder() -> None:
    assert source_folder("a", "projects/x/subscriptions/y_z") != source_folder("a", "projects/x/subscriptions_y/z")


def test_hours_before_the_time_asked_for_are_not_opened(tmp_path: Path) -> None:
    write_messages(messages([(1, NOON - HOUR), (2, NOON)]), str(tmp_path), epoch=1)
    early = next(h.folder for h in hours(str(tmp_path)))
    Path(named(early)[0].path).write_bytes(b"damaged")
    assert told(read_since(str(tmp_path), NOON)) == [(2, NOON)]


def test_row_groups_in_which_all_arrived_before_are_not_read(tmp_path: Path) -> None:
    (path,) = write_messages(messages([(1, NOON)]), str(tmp_path), epoch=1)
    _damage_column(path, "_raw")
    assert told(read_since(str(tmp_path), NOON + 1)) == []
    with pytest.raises(SourceError, match="cannot be read"):
        list(read_since(str(tmp_path), NOON))


def test_a_damaged_file_is_named_or_given_to_whoever_asks_and_costs_no_other(tmp_path: Path) -> None:
    bad, good = (write_messages(messages([(n, NOON), (n + 1, NOON)]), str(tmp_path), epoch=n)[0] for n in (1, 5))
    _damage_column(bad, "_raw")
    broken: list[tuple[str, Broken]] = []
    found = told(read_since(str(tmp_path), 0, on_broken=lambda path, piece: broken.append((path, piece))))
    assert found == [(5, NOON), (6, NOON)]
    assert [(path, piece.position, piece.rows) for path, piece in broken] == [(bad, 0, 2)]
    with pytest.raises(SourceError, match=re.escape(bad)):
        list(read_since(str(tmp_path), 0))
    assert good in live_files(str(tmp_path))


def test_an_archive_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert everything(tmp_path / "nothing") == []


def test_strangers_in_the_archive_are_left_alone(tmp_path: Path) -> None:
    (path,) = write_messages(messages([(1, NOON)]), str(tmp_path), epoch=1)
    Path(path).with_name("notes.txt").write_text("mine")
    Path(path).with_name(".000001-0123456789abcdef0123.inprogress").write_bytes(b"half a fi")
    (tmp_path / "arrival_hour=today").mkdir()
    assert everything(tmp_path) == [(1, NOON)]


def test_sealed_messages_need_the_key_and_show_nothing_people_wrote(tmp_path: Path) -> None:
    (path,) = write_messages(messages([(n, NOON) for n in range(1, 20)]), str(tmp_path), epoch=1, key=KEY)
    content = pq.read_table(path)
    assert pq.ParquetFile(path).metadata.metadata[b"beam_pipelines.archive"]
    assert content.schema.equals(pq.read_table(write_messages(messages([(1, NOON)]), str(tmp_path / "open"), epoch=1)[0]).schema)
    visible = repr(content.drop_columns(["_message_id", "_position"]).to_pydict())
    assert "blue" not in visible
    assert "key-1" not in visible
    assert not any(raw(n).decode() in visible for n in range(1, 20))
    assert content["_message_id"].to_pylist() == [f"id-{n}" for n in range(1, 20)]
    for give, why in ((None, "there is no key"), (lambda: OTHER, "the key is another one")):
        with pytest.raises(SpecError, match=f"the messages are sealed, and {why}.*raw_key"):
            list(read_since(str(tmp_path), 0, key=give))


def test_duckdb_reads_it_unassisted(tmp_path: Path) -> None:
    write_messages(messages([(1, NOON), (2, NOON + HOUR)]), str(tmp_path / "archive"), epoch=1)
    found = (
        duckdb.connect()
        .execute(f"""
        SELECT _position, decode(_raw), _source, arrival_hour, _attributes['number'], epoch_us(_arrival_time)
        FROM read_parquet('{tmp_path}/archive/**/*.parquet', hive_partitioning=true) ORDER BY 1
    """)
        .fetchall()
    )
    assert found == [
        (1, '{"id": 1}', SOURCE, "2013-12-01-12", "1", NOON),
        (2, '{"id": 2}', SOURCE, "2013-12-01-13", "2", NOON + HOUR),
    ]


def test_statistics_are_of_times_only(tmp_path: Path) -> None:
    (path,) = write_messages(messages([(1, NOON)]), str(tmp_path), epoch=1)
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    assert [c.path_in_schema for c in columns if c.is_stats_set] == ["_arrival_time", "_publish_time"]
    assert {c.compression for c in columns} == {"ZSTD"}


def test_a_message_without_arrival_time_is_refused(tmp_path: Path) -> None:
    batch = messages([(1, NOON)])
    missing = batch.set_column(2, MESSAGES.field("_arrival_time"), pa.nulls(1, MESSAGES.field("_arrival_time").type))
    with pytest.raises(SinkError, match="1 of 1 messages have no arrival time"):
        write_messages(missing, str(tmp_path), epoch=1)


def test_a_place_that_refuses_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "archive").write_text("a file")
    with pytest.raises(SinkError, match=f"{tmp_path}/archive/.*cannot write"):
        write_messages(messages([(1, NOON)]), str(tmp_path / "archive"), epoch=1)
    with _largest_file(1000), pytest.raises(SinkError, match=f"{tmp_path}/small/.*arrival_hour=2013-12-01-12: cannot write"):
        write_messages(messages([(n, NOON) for n in range(1000)]), str(tmp_path / "small"), epoch=1)
    assert [p for p in (tmp_path / "small").rglob("*") if p.is_file()] == []


def test_raw_batches_keep_provenance_and_metadata(tmp_path: Path) -> None:
    batch = messages([(1, NOON)]).replace_schema_metadata({"source": "3"})
    assert raw_batch(batch).schema.names == ["_source", "_position", "_arrival_time", "_raw"]
    assert raw_batch(batch, keep_attributes=True).schema.names[-1] == "_attributes"
    assert raw_batch(batch).schema.metadata == {b"source": b"3"}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(-20, 20), max_size=20), max_size=12))
def test_a_set_of_positions_says_new_once(batches: list[list[int]]) -> None:
    seen, known = Positions(), set[int]()
    for batch in batches:
        expected = []
        for position in batch:
            expected.append(position not in known)
            known.add(position)
        assert seen.add(np.array(batch, np.int64)).tolist() == expected


def test_a_set_of_positions_holds_eight_bytes_each() -> None:
    seen = Positions()
    for start in range(0, 400_000, 1000):
        assert seen.add(np.arange(start, start + 1000)).all()
    assert sum(run.nbytes for run in seen._runs) == 400_000 * 8
    assert all(len(a) >= 4 * len(b) for a, b in pairwise(seen._runs))


def test_memory_does_not_grow_with_the_hour(tmp_path: Path) -> None:
    for start in range(0, 60_000, 2000):
        write_messages(messages([(n, NOON) for n in range(start, start + 2000)]), str(tmp_path), epoch=1)
    folder = hours(str(tmp_path))[0].folder
    before, most, rows = pa.total_allocated_bytes(), 0, 0
    for _, piece in read_hour(folder, batch_rows=2000):
        assert not isinstance(piece, Broken)
        most, rows = max(most, pa.total_allocated_bytes() - before), rows + piece.num_rows
    assert rows == 60_000
    assert most < 4 * messages([(n, NOON) for n in range(2000)]).nbytes


def _damage_column(path: str, name: str) -> None:
    file = pq.ParquetFile(path)
    group = file.metadata.row_group(0)
    column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == name)
    content = bytearray(Path(path).read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 4] ^= 0xFF
    Path(path).write_bytes(content)


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_was_stored_since_a_moment_is_read_however_early_it_arrived(tmp_path: Path) -> None:
    for at_s, arrived in ((100.0, NOON), (200.0, NOON - 5 * HOUR), (300.0, NOON - 5 * HOUR + 1), (300.0, NOON + 1)):
        write_messages(messages([(arrived, arrived)]), str(tmp_path), epoch=1, now=lambda at=at_s: at)  # type: ignore[misc]
    found = [arrived for _, arrived in told(read_since(str(tmp_path), NOON, stored_since_ms=300_000))]
    assert found == [NOON - 5 * HOUR + 1, NOON, NOON + 1]
