"""Compaction: few files, and at no moment a message too few or, for our readers, too many."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.formats import archive_files
from beam_pipelines.formats.archive import live_files, read_since, write_messages
from beam_pipelines.formats.archive_compaction import GRACE_S, QUIET_S, Step, compact_steps
from beam_pipelines.formats.archive_files import hours, live, notes
from beam_pipelines.formats.named_files import named
from beam_pipelines.places import locked
from tests.formats.archived import HOUR, NOON, Clock, Compacted, compact, everything, messages, told
from tests.sinks.test_places import SCHEME

SMALL = (3, 2, 2)
KEY, OTHER = b"k" * 32, b"o" * 32
ROW = st.tuples(st.integers(0, 40), st.sampled_from([NOON, NOON + 1, NOON + HOUR]))
ACTS = st.one_of(
    st.tuples(st.just("write"), st.lists(ROW, min_size=1, max_size=4)),
    st.tuples(st.just("wait"), st.sampled_from([1.0, GRACE_S, QUIET_S])),
    st.tuples(st.just("compact, killed after"), st.integers(0, 8)),
    st.tuples(st.just("restart"), st.none()),
)


def write(folder: Path | str, numbers: range, clock: Clock, *, epoch: int = 1, arrival: int = NOON, key: bytes | None = None) -> None:
    for n in numbers:
        write_messages(messages([(n, arrival)]), str(folder), epoch=epoch, key=key, now=clock)


def files(folder: Path | str) -> list[Path]:
    return sorted(p for p in Path(folder).rglob("*") if p.is_file())


@settings(max_examples=25, deadline=None)
@given(st.lists(ACTS, max_size=16))
def test_whatever_was_written_is_read_once_wherever_compaction_was_killed(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, Any]]
) -> None:
    folder, clock, epoch = str(tmp_path_factory.mktemp("archive")), Clock(), 1
    written: dict[tuple[int, int], set[int]] = {}
    for act, given_ in acts:
        if act == "write":
            write_messages(messages(given_), folder, epoch=epoch, now=clock)
            for position, arrival in given_:
                written.setdefault((arrival // HOUR, position), set()).add(arrival)
        elif act == "wait":
            clock.at += given_
        elif act == "restart":
            epoch += 1
        else:
            steps = compact_steps(folder, epoch=epoch, now=clock, fan_in=SMALL)
            list(islice(steps, given_))
            steps.close()
        found = everything(folder)
        assert sorted((a // HOUR, p) for p, a in found) == sorted(written)
        assert all(a in written[a // HOUR, p] for p, a in found)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=6), st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_a_reader_misses_nothing_while_files_are_merged_and_deleted_under_it(
    tmp_path_factory: pytest.TempPathFactory, written: list[int], pauses: list[int]
) -> None:
    folder, clock = str(tmp_path_factory.mktemp("archive")), Clock()
    numbers = count()
    for rows in written:
        for arrival in (NOON, NOON + HOUR):
            write_messages(messages([(next(numbers), arrival) for _ in range(rows)]), folder, epoch=1, now=clock)
    expected = everything(folder)
    reader, found = read_since(folder, 0, batch_rows=1), []
    for pause in pauses:
        found += list(islice(reader, pause))
        list(compact_steps(folder, epoch=1, now=clock, fan_in=SMALL))
        clock.at += GRACE_S
    assert told([*found, *reader]) == expected


def test_readers_writer_and_compactor_at_once(tmp_path: Path) -> None:
    folder, clock, done = str(tmp_path), Clock(), threading.Event()
    wrong: list[str] = []

    def guarded(work: Any) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except Exception as error:
                wrong.append(repr(error))

        return threading.Thread(target=run)

    def writing() -> None:
        try:
            for n in range(90):
                write(folder, range(n, n + 1), clock)
                clock.at += 5
        finally:
            done.set()

    def compacting() -> None:
        while not done.is_set():
            list(compact_steps(folder, epoch=1, now=clock, fan_in=SMALL))

    def reading() -> None:
        while not done.is_set():
            before = {p for p, _ in seen[-1]} if seen else set()
            seen.append(everything(folder))
            now = [p for p, _ in seen[-1]]
            assert len(now) == len(set(now))
            assert before <= set(now)

    seen: list[list[tuple[int, int]]] = []
    threads = [guarded(work) for work in (writing, compacting, compacting, reading)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong
    assert seen
    assert [p for p, _ in everything(folder)] == list(range(90))


def test_originals_stay_a_minute_and_go_in_a_later_pass(tmp_path: Path) -> None:
    clock = Clock()
    write(tmp_path, range(32), clock)
    assert compact(str(tmp_path), epoch=1, now=clock) == Compacted(merged=1)
    assert len(files(tmp_path)) == 33
    assert len(live_files(str(tmp_path))) == 1
    clock.at += GRACE_S - 1
    assert compact(str(tmp_path), epoch=1, now=clock) == Compacted()
    clock.at += 1
    assert compact(str(tmp_path), epoch=1, now=clock) == Compacted(deleted=32)
    assert [str(p) for p in files(tmp_path)] == live_files(str(tmp_path))
    assert everything(tmp_path) == [(n, NOON) for n in range(32)]


def test_fewer_than_32_files_wait_for_more(tmp_path: Path) -> None:
    write(tmp_path, range(31), Clock())
    assert compact(str(tmp_path), epoch=1, now=Clock()) == Compacted()


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=6))
def test_live_files_are_bounded_after_each_pass_whatever_the_rate(tmp_path_factory: pytest.TempPathFactory, rates: list[int]) -> None:
    folder, clock, numbers = str(tmp_path_factory.mktemp("archive")), Clock(), count()
    for rate in rates:
        for _ in range(rate):
            write(folder, range(next(numbers), next(numbers)), clock)
        list(compact_steps(folder, epoch=1, now=clock, fan_in=SMALL))
        assert len(live_files(folder)) <= sum(f - 1 for f in SMALL)


def test_a_quiet_hour_becomes_one_file_and_rests(tmp_path: Path) -> None:
    clock, rest = Clock(), dict[str, int]()
    write(tmp_path, range(5), clock)
    clock.at += QUIET_S
    assert compact(str(tmp_path), epoch=1, now=clock, at_rest=rest) == Compacted(merged=1)
    clock.at += GRACE_S
    assert compact(str(tmp_path), epoch=1, now=clock, at_rest=rest) == Compacted(deleted=5)
    assert len(files(tmp_path)) == 1
    clock.at += QUIET_S
    assert compact(str(tmp_path), epoch=1, now=clock, at_rest=rest) == Compacted()
    assert list(rest) == [h.folder for h in hours(str(tmp_path))]
    write(tmp_path, range(5, 37), clock)
    assert compact(str(tmp_path), epoch=1, now=clock, at_rest=rest) == Compacted(merged=1)


def test_a_merge_drops_positions_that_came_twice_and_keeps_the_order(tmp_path: Path) -> None:
    clock = Clock()
    for rows in ([(5, NOON), (3, NOON)], [(3, NOON), (9, NOON)], [(1, NOON)]):
        write_messages(messages(rows), str(tmp_path), epoch=1, now=clock)
    list(compact_steps(str(tmp_path), epoch=1, now=clock, fan_in=SMALL))
    (path,) = live_files(str(tmp_path))
    assert pq.read_table(path)["_position"].to_pylist() == [5, 3, 9, 1]


def test_what_a_dead_process_left_unfinished_is_swept_by_the_next_epoch_alone(tmp_path: Path) -> None:
    write(tmp_path, range(1), Clock())
    folder = Path(hours(str(tmp_path))[0].folder)
    (folder / ".000001-0123456789abcdef0123.inprogress").write_bytes(b"half a fi")
    (folder / ".000001-0123456789abcdef0123.inprogress.mine").write_bytes(b"not ours")
    assert compact(str(tmp_path), epoch=1) == Compacted()
    assert compact(str(tmp_path), epoch=2) == Compacted(swept=1)
    assert len(files(tmp_path)) == 2
    (folder / ".000001-0123456789abcdef0123.inprogress").write_bytes(b"half a fi")
    write(tmp_path, range(1, 2), Clock(), epoch=2)
    assert compact(str(tmp_path), now=Clock()) == Compacted(swept=1)


def test_sealed_messages_are_merged_without_the_key_and_with_their_like_only(tmp_path: Path) -> None:
    clock = Clock()
    for start, key in ((0, KEY), (10, OTHER), (20, None)):
        write(tmp_path, range(start, start + 3), clock, key=key)
    list(compact_steps(str(tmp_path), epoch=1, now=clock, fan_in=(3, 9, 9)))
    merged = live_files(str(tmp_path))
    assert len(merged) == 3
    for path in merged:
        key = KEY if notes(path).seal == archive_files.key_name(KEY) else OTHER
        clear = Path(path).parent.parent / "one" / Path(path).parent.name
        clear.mkdir(parents=True)
        Path(path).rename(clear / Path(path).name)
        (found,) = read_since(str(clear.parent), 0, key=lambda: key)
        assert found.to_pylist() == messages([(p, NOON) for p in found["_position"].to_pylist()]).to_pylist()
        (clear / Path(path).name).unlink()
        clear.rmdir()


def test_two_compactors_do_not_work_on_one_hour_at_once(tmp_path: Path) -> None:
    write(tmp_path, range(32), Clock())
    with locked(hours(str(tmp_path))[0].folder) as held:
        assert held
        assert compact(str(tmp_path), epoch=1) == Compacted()
    assert compact(str(tmp_path), epoch=1) == Compacted(merged=1)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=12))
def test_where_locks_do_not_reach_two_compactors_lose_nothing(tmp_path_factory: pytest.TempPathFactory, turns: list[int]) -> None:
    """On a URL, here of a file system registered with Beam."""
    place, clock, numbers = tmp_path_factory.mktemp("archive"), Clock(), count()
    folder = f"{SCHEME}://{place}"
    compactors: list[Iterator[Step]] = [iter(()), iter(())]
    for turn in turns:
        write(folder, range(n := next(numbers) * 3, n + 3), clock)
        clock.at += 30
        for number, compactor in enumerate(compactors):
            if not list(islice(compactor, turn)):
                compactors[number] = compact_steps(folder, epoch=1, now=clock, fan_in=SMALL)
        assert [p for p, _ in everything(folder)] == list(range(3 * (n // 3 + 1)))


def test_a_damaged_file_is_left_to_readers_and_not_merged_again_and_again(tmp_path: Path) -> None:
    clock = Clock()
    write(tmp_path, range(6), clock)
    folder = hours(str(tmp_path))[0].folder
    bad = Path(named(folder)[0].path)
    content = bytearray(bad.read_bytes())
    content[20] ^= 0xFF
    bad.write_bytes(content)
    named(folder)
    clock.at += QUIET_S
    assert [s.act for s in compact_steps(folder + "/..", epoch=1, now=clock)] == ["merged"]
    assert str(bad) in {str(Path(f.path).resolve()) for f in live(folder)}
    clock.at += QUIET_S + GRACE_S
    assert [s.act for s in compact_steps(folder + "/..", epoch=1, now=clock)] == ["deleted"] * 5
    broken: list[str] = []
    found = told(read_since(str(tmp_path), 0, on_broken=lambda path, _: broken.append(path)))
    assert broken == [str(bad)]
    assert [p for p, _ in found] == [1, 2, 3, 4, 5]


def test_memory_of_a_merge_does_not_grow_with_the_files(tmp_path: Path) -> None:
    clock = Clock()
    for start in range(0, 300_000, 5000):
        write_messages(messages([(n, NOON) for n in range(start, start + 5000)]), str(tmp_path), epoch=1, now=clock)
    usual = pa.default_memory_pool()
    watched = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(watched)
    try:
        (step,) = compact_steps(str(tmp_path), epoch=1, now=clock)
    finally:
        pa.set_memory_pool(usual)
    assert step.act == "merged"
    assert pq.ParquetFile(step.path).num_row_groups >= 2
    assert 0 < watched.max_memory() < 4 * messages([(n, NOON) for n in range(131_072)]).nbytes
