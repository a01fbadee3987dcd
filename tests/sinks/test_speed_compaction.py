"""Compaction of the speed layer: few files, and at no moment a row too few or, for readers of the tables, too many."""

from __future__ import annotations

import threading
import time
from itertools import count, islice
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.errors import SinkError
from beam_pipelines.formats.compaction import GRACE_S, QUIET_S
from beam_pipelines.formats.named_files import named, unreplaced
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.sinks import speed_compaction
from beam_pipelines.sinks.speed import StoreFiles, WriteDoors
from beam_pipelines.sinks.speed_compaction import FAN_IN, compact_steps
from beam_pipelines.sinks.speed_files import replaces
from beam_pipelines.sinks.write import WriteSettings
from beam_pipelines.spec.load import load_spec
from tests.formats.archived import Clock, Compacted
from tests.laws import share
from tests.sinks.speed_lake import Speed, letters, panes, rows

SMALL = (3, 2)
ACTS = st.one_of(
    st.tuples(st.just("store"), st.lists(st.integers(0, 30), min_size=1, max_size=4)),
    st.tuples(st.just("wait"), st.sampled_from([1.0, GRACE_S, QUIET_S])),
    st.tuples(st.just("compact, killed after"), st.integers(0, 8)),
    st.tuples(st.just("restart"), st.none()),
)


def compact(writing: WriteSettings, **how: Any) -> Compacted:
    return Compacted.of(compact_steps(writing, **how))


def live(folder: str) -> list[str]:
    return [file.path for file in unreplaced(folder, replaces)]


def files(folder: str) -> list[Path]:
    return sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name not in (".columns.json", "none.parquet"))


@share(6)
@given(st.lists(ACTS, max_size=12))
def test_every_row_is_seen_once_wherever_compaction_was_killed(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, Any]]
) -> None:
    speed, clock, stored = Speed(tmp_path_factory.mktemp("speed")), Clock(), set[int]()
    writing = speed.writing(by=["k"])
    for act, given_ in acts:
        if act == "store":
            speed.store(writing, rows(given_))
            stored.update(given_)
        elif act == "wait":
            clock.at += given_
        elif act == "restart":
            speed.restart(f"r{speed.epoch + 1}")
            writing = speed.writing(by=["k"])
        else:
            steps = compact_steps(writing, epoch=speed.epoch, now=clock, fan_in=SMALL)
            list(islice(steps, given_))
            steps.close()
        if stored:
            assert sorted(r["n"] for r in speed.ask("SELECT n, k FROM rows")) == sorted(stored)


def test_queries_writer_and_compactor_at_once(tmp_path: Path) -> None:
    """Each query moves the clock on, so that files are deleted in queries that listed them: none fails, or sees a row twice or not at all."""
    speed, clock, done, turns = Speed(tmp_path), Clock(), threading.Event(), threading.Semaphore(10)
    writing, wrong, seen = speed.writing(), list[str](), [0]
    speed.store(writing, rows([0]))
    connection = open_tables(speed.state)

    def guarded(work: Any) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except Exception as error:
                wrong.append(repr(error))
            finally:
                done.set() if work is not compacting else None

        return threading.Thread(target=run)

    def storing() -> None:
        for n in range(1, 150):
            assert turns.acquire(timeout=60)
            speed.store(writing, rows([n]))

    def compacting() -> None:
        while not done.is_set():
            list(compact_steps(writing, epoch=1, now=clock, fan_in=SMALL))

    def asking() -> None:
        while not done.is_set():
            found = ask(connection if len(seen) % 2 else open_tables(speed.state), "SELECT n FROM rows")["n"].to_pylist()
            assert len(found) == len(set(found))
            assert sorted(found) == list(range(len(found)))
            assert len(found) >= seen[-1]
            seen.append(len(found))
            clock.at += 25
            turns.release(5)

    threads = [guarded(work) for work in (storing, compacting, asking)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
    assert not wrong
    assert len(seen) > 20
    assert len(ask(connection, "SELECT n FROM rows")) == 150


def test_a_query_whose_file_vanished_is_asked_again(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    (path,) = speed.store(speed.writing(), rows([1]))
    connection = open_tables(speed.state)
    hidden = Path(path).with_suffix(".gone")
    Path(path).rename(hidden)

    class Back:
        """A connection in which the file is there again after the first try, as a merged one would be."""

        tries = 0

        def sql(self, text: str) -> Any:
            self.tries += 1
            if self.tries == 2:
                hidden.rename(path)
            return connection.sql(text)

        def __getattr__(self, name: str) -> Any:
            return getattr(connection, name)

    assert ask(Back(), "SELECT n FROM rows").to_pylist() == [{"n": 1}]  # type: ignore[arg-type]


@share(4)
@given(st.lists(st.integers(1, 12), max_size=6))
def test_live_files_are_bounded_after_each_pass_whatever_the_rate(tmp_path_factory: pytest.TempPathFactory, rates: list[int]) -> None:
    speed, clock, numbers = Speed(tmp_path_factory.mktemp("speed")), Clock(), count()
    writing = speed.writing()
    for rate in rates:
        for _ in range(rate):
            speed.store(writing, rows([next(numbers)]))
        list(compact_steps(writing, epoch=1, now=clock, fan_in=SMALL))
        levels = [file.level for file in unreplaced(writing.layout.folder, replaces)]
        assert all(levels.count(level) < (SMALL[0] if level == 0 else SMALL[1]) for level in levels)


def test_merged_files_keep_rows_columns_types_compression_and_settings(tmp_path: Path) -> None:
    more = {
        "amount": pa.array([None, 2, 3], pa.decimal128(12, 2)), "at": pa.array([1, None, 2], pa.timestamp("us", "UTC")), "raw": pa.array([b"x", b"", None], pa.binary()),
        "list": pa.array([[1], None, []], pa.list_(pa.int16())), "word": pa.array(["a", None, "a"]).dictionary_encode(), "day": pa.array([1, 2, None], pa.date32()),
        "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}], pa.struct([("a", pa.int8()), ("b", pa.string())])),
    }  # fmt: skip
    speed, clock = Speed(tmp_path), Clock()
    writing = speed.writing(compression="gzip", statistics=["n"])
    for start in range(0, 3 * FAN_IN[0], 3):
        speed.store(writing, rows(range(start, start + 3), more={**more, "word": pa.array([f"w{start}", None, "a"]).dictionary_encode()}))
    folder = writing.layout.folder
    before, table = named(folder)[0].path, f"read_parquet('{folder}/*.parquet')"
    expected = duckdb.sql(f"SELECT * FROM {table} ORDER BY n").to_arrow_table()
    assert compact(writing, epoch=1, now=clock) == Compacted(merged=1)
    clock.at += GRACE_S
    old = pq.ParquetFile(before)
    columns, settings_ = old.schema_arrow.remove_metadata(), old.metadata.row_group(0)
    assert compact(writing, epoch=1, now=clock) == Compacted(deleted=FAN_IN[0])
    merged = pq.ParquetFile(named(folder)[0].path)
    assert merged.schema_arrow.remove_metadata() == columns
    assert merged.metadata.num_row_groups == 1
    for i in range(settings_.num_columns):
        now = merged.metadata.row_group(0).column(i)
        assert now.compression == settings_.column(i).compression == "GZIP"
        assert now.is_stats_set == settings_.column(i).is_stats_set
    assert duckdb.sql(f"SELECT * FROM {table} ORDER BY n").to_arrow_table() == expected


def test_files_of_other_columns_are_not_merged_with_these(tmp_path: Path) -> None:
    speed, clock = Speed(tmp_path), Clock()
    writing, numbers = speed.writing(), count()
    for _ in range(6):
        speed.store(writing, rows([next(numbers)]))
        speed.store(writing, rows([n := next(numbers)], more={"n": pa.array([n], pa.int64())}))
        speed.store(writing, rows([next(numbers)], more={"fresh": pa.array(["x"])}))
    acts = [step.act for step in compact_steps(writing, epoch=1, now=clock, fan_in=(6, 2))]
    assert acts == ["merged"] * 3
    clock.at += GRACE_S
    assert compact(writing, epoch=1, now=clock) == Compacted(deleted=18)
    assert [r["n"] for r in speed.ask("SELECT n FROM rows ORDER BY n")] == list(range(18))
    assert {str(pq.read_schema(p).field("n").type) for p in live(writing.layout.folder)} == {"int32", "int64"}


def test_full_files_are_not_merged_again(tmp_path: Path) -> None:
    speed, clock = Speed(tmp_path), Clock()
    writing = speed.writing(target_file_bytes=1 << 20)
    for start in range(0, 60_000, 10_000):
        more = {"noise": pa.array([f"{hash((n, 'x')):x}{hash((n, 'y')):x}" for n in range(start, start + 10_000)])}
        speed.store(writing, rows(range(start, start + 10_000), more=more))
    while [step for step in compact_steps(writing, epoch=1, now=clock, fan_in=(2, 2)) if step.act == "merged"]:
        clock.at += GRACE_S
    sizes = [Path(p).stat().st_size for p in live(writing.layout.folder)]
    assert len(sizes) > 1
    assert max(sizes) < 2 * (1 << 20)


def test_each_partition_is_merged_by_itself_and_rests_when_it_is_quiet(tmp_path: Path) -> None:
    speed, clock, rest = Speed(tmp_path), Clock(time.time()), dict[str, int]()  # bundles name their files by the clock on the wall
    writing = speed.writing(by=["k"])
    for n in range(6):
        speed.store(writing, rows([n, n + 9]))
    assert compact(writing, epoch=1, now=clock, at_rest=rest) == Compacted()
    clock.at += QUIET_S + 1
    assert compact(writing, epoch=1, now=clock, at_rest=rest) == Compacted(merged=3)
    clock.at += QUIET_S
    assert compact(writing, epoch=1, now=clock, at_rest=rest) == Compacted(deleted=6)
    assert compact(writing, epoch=1, now=clock, at_rest=rest) == Compacted()
    assert sorted(Path(folder).name for folder in rest) == ["k=00", "k=01", "k=02"]
    assert [p.parent.name for p in files(writing.layout.folder)] == ["k=00", "k=01", "k=02"]


def test_panes_letters_and_doors_are_merged_as_rows_are(tmp_path: Path) -> None:
    speed, clock = Speed(tmp_path), Clock()
    hourly = speed.writing("hourly", of="hourly")
    for n in range(FAN_IN[0]):
        speed.store(hourly, panes(("x", 0, n, "early", 1, n)))
        speed.letter(letters([n]))
        speed.door([n + 1_000], "filtered")
    for writing in (hourly, speed.letter_writing(), WriteDoors(speed.run).writing):
        assert compact(writing, epoch=1, now=clock) == Compacted(merged=1)
        clock.at += GRACE_S
        assert compact(writing, epoch=1, now=clock) == Compacted(deleted=FAN_IN[0])
        assert len(files(writing.layout.folder)) == 1
    assert speed.ask("SELECT total FROM hourly") == [{"total": FAN_IN[0] - 1}]
    assert speed.ask("SELECT count(*) AS n FROM dead_letters") == [{"n": FAN_IN[0]}]


def test_what_a_dead_process_left_unfinished_is_swept_by_the_next_start_alone(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    first = speed.writing()
    speed.store(first, rows([1]))
    folder = Path(first.layout.folder)
    (folder / f"part-{'0' * 32}.000001.parquet.inprogress").write_bytes(b"half a fi")
    (folder / ".000001-0123456789abcdef0123.inprogress").write_bytes(b"half a fi")
    (folder / "mine.inprogress").write_bytes(b"not ours")
    assert compact(first, epoch=1) == Compacted()
    assert compact(first, epoch=2) == Compacted(swept=2)
    assert len(files(str(folder))) == 2


def test_a_fenced_process_whose_file_was_swept_stores_nothing(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    writing = speed.writing(max_open_files=1, by=["k"])
    do = StoreFiles(writing)
    do.setup()
    do.start_bundle()
    list(do.process(rows([1, 2]), MIN_TIMESTAMP))
    do._files._flush(next(iter(do._files._parts.values())))
    assert compact(writing, epoch=2).swept == 1
    with pytest.raises((SinkError, FileNotFoundError)):
        list(do.finish_bundle())


def test_a_damaged_file_is_left_to_readers(tmp_path: Path) -> None:
    speed, clock = Speed(tmp_path), Clock()
    writing = speed.writing()
    for n in range(4):
        speed.store(writing, rows([n]))
    bad = Path(named(writing.layout.folder)[0].path)
    bad.write_bytes(b"PAR1 no more")
    assert [s.act for s in compact_steps(writing, epoch=1, now=clock, fan_in=(3, 2))] == ["merged"]
    clock.at += GRACE_S
    assert [s.act for s in compact_steps(writing, epoch=1, now=clock, fan_in=(3, 2))] == ["deleted"] * 3
    assert str(bad) in live(writing.layout.folder)


def test_every_output_of_a_spec_is_compacted(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(SPEC)
    spec = load_spec(tmp_path / "p.yaml").spec
    speed = Speed(tmp_path)
    found = {
        w.output.name: (w.layout.folder.removeprefix(str(tmp_path)), len(w.layout.by))
        for w in speed_compaction.writings_of(spec, speed.run)
    }
    assert found == {
        "rows": ("/lake/rows.speed", 1), "by_user": ("/lake/by_user.speed", 0), "dead_letters": ("/lake/dead.speed", 1), "doors": ("/state/stream/doors", 0),
    }  # fmt: skip


SPEC = """
spec: 1
pipeline: events
contract:
  key: [id]
  event_time: at
  columns:
    id: {type: int64, required: true}
    at: {type: timestamp, required: true}
    user: {type: string}
sources:
  stream: [{pubsub: projects/demo-project/subscriptions/events, format: json}]
aggregates:
  by_user: {windowing: {type: fixed, size: 10s}, group_by: [user], measures: {n: count()}}
sinks:
  - {from: rows, parquet: {path: lake/rows, partition_by: [day(at)]}}
  - {from: by_user, csv: {path: lake/by_user}}
  - {from: dead_letters, parquet: {path: lake/dead}}
"""
