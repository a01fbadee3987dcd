"""The serving view: batch rows where the batch is the authority, speed rows elsewhere, no row twice and none missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.arrow.schema import DEAD_LETTERS
from beam_pipelines.serving.tables import open_tables
from beam_pipelines.serving.views import views
from beam_pipelines.sinks.commit import Verdicts, conclude
from beam_pipelines.sinks.manifest import snapshots
from beam_pipelines.sinks.run import Clock, Output, RunInfo
from tests.laws import share
from tests.sinks.lake import Lake
from tests.sinks.speed_lake import SOURCE, Speed, letters, panes, rows

DAY = 86_400_000_000
UNITS = {"day": DAY, "hour": DAY // 24}
TIMES = st.lists(st.one_of(st.none(), st.integers(0, 4 * DAY - 1)), max_size=8)


def timed(times: list[int | None], *, first: int = 0, source: str = "s") -> pa.RecordBatch:
    more = {"t": pa.array(times, pa.timestamp("us", "UTC"))}
    return rows(range(first, first + len(times)), source=source, more=more)


def _output(lake: Lake, unit: str, *before: str) -> Output:
    return lake.output("rows", partitions=(*before, f"t_{unit}"), clock=Clock("t", f"t_{unit}", unit))


def commit(lake: Lake, run_id: str, unit: str, batch: pa.RecordBatch, where: Range | None = None) -> None:
    run = RunInfo(run_id, "p", lake.state, range=where)
    written = _output(lake, unit)
    elements = [*lake.read(batch), *lake.stage(run, replace(written, partitions=(f"{unit}(t)",)), batch)] if batch.num_rows else []
    assert conclude(run, [written], elements, Verdicts()).status == "success"


def ask(speed: Speed, sql: str) -> list[tuple[Any, ...]]:
    return open_tables(speed.state).execute(sql).fetchall()


@share(12)
@given(TIMES, TIMES, st.sampled_from(sorted(UNITS)), st.booleans(), st.booleans())
def test_batch_in_the_partitions_it_wrote_and_speed_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, stored: list[int | None], computed: list[int | None], unit: str, grown: bool, placed: bool
) -> None:
    folder = tmp_path_factory.mktemp("lake")
    lake, speed = Lake(folder), Speed(folder)
    writing = speed.writing("rows", by=(f"{unit}(t)",))
    if placed:
        know(speed, placings=("one",), unit=unit)
    speed.store(writing, timed(stored))
    commit(lake, "b1", unit, timed(computed, first=100))
    if grown and stored:  # what comes after the commit is seen where the batch has no say, also by a connection that was open
        connection = open_tables(speed.state)
        stored = [*stored, 0, 3 * DAY]
        speed.store(writing, timed(stored[-2:], first=len(stored) - 2))
    else:
        connection = open_tables(speed.state)
    parts = {None if t is None else t // UNITS[unit] for t in computed}
    beside = {n for n, t in enumerate(stored) if (None if t is None else t // UNITS[unit]) not in parts}
    wanted = sorted(beside | set(range(100, 100 + len(computed))))
    if wanted:
        assert [n for (n,) in connection.execute("SELECT n FROM rows ORDER BY n").fetchall()] == wanted


def test_a_run_over_a_range_is_the_authority_for_all_of_it_even_where_it_found_nothing(tmp_path: Path) -> None:
    lake, speed = Lake(tmp_path), Speed(tmp_path)
    speed.store(speed.writing("rows", by=("day(t)",)), timed([0, DAY, 2 * DAY, 3 * DAY, None]))
    commit(lake, "b1", "day", timed([DAY], first=100), Range(DAY, 3 * DAY))
    assert ask(speed, "SELECT n FROM rows ORDER BY n") == [(0,), (3,), (4,), (100,)]
    known = snapshots(lake.state)["rows"].ranges
    assert [(r.start, r.end, r.run_id) for r in known] == [(DAY, 3 * DAY, "b1")]
    assert known[0].as_of > 0


def test_a_later_run_takes_over_what_it_writes_and_the_earlier_keeps_the_rest(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    commit(lake, "b1", "day", timed([0, DAY, 2 * DAY]), Range(0, 3 * DAY))
    commit(lake, "b2", "day", timed([DAY]), Range(DAY, 2 * DAY))
    commit(lake, "b3", "day", timed([5 * DAY]))
    found = open_tables(lake.state).execute('SELECT run_id, epoch_us(start), epoch_us("end") FROM ranges ORDER BY start').fetchall()
    assert found == [("b1", 0, DAY), ("b2", DAY, 2 * DAY), ("b1", 2 * DAY, 3 * DAY), ("b3", 5 * DAY, 6 * DAY)]


@pytest.mark.parametrize("asked", ["t_day = '1970-01-04'", "t >= '1970-01-04' AND t < '1970-01-05'", "k IS NOT NULL"])
def test_files_of_committed_partitions_are_not_read(tmp_path: Path, asked: str) -> None:
    lake, speed = Lake(tmp_path), Speed(tmp_path)
    for day in range(10):
        speed.store(speed.writing("rows", by=("day(t)",)), timed([day * DAY], first=day))
    know(speed, placings=("one",))
    commit(lake, "b1", "day", timed([day * DAY for day in range(3)], first=100))
    scanned = files_of_speed(open_tables(speed.state), f"SELECT count(*) FROM rows WHERE {asked}")
    assert scanned == (1 if "t_day" in asked else 7)


@pytest.mark.parametrize("committed", [3, 12])  # few gaps, each with a scan of its own, and many, which are one condition
def test_between_many_committed_ranges_are_the_streams_rows(tmp_path: Path, committed: int) -> None:
    lake, speed = Lake(tmp_path), Speed(tmp_path)
    times = [None, *(day * DAY for day in range(30))]
    speed.store(speed.writing("rows", by=("day(t)",)), timed(times))
    know(speed, placings=("one",))
    commit(lake, "b1", "day", timed([2 * day * DAY for day in range(committed)], first=100))
    mine = [n for n, t in enumerate(times) if t is None or t // DAY not in range(0, 2 * committed, 2)]
    assert ask(speed, "SELECT n FROM rows WHERE n < 100 ORDER BY n") == [(n,) for n in mine]
    assert ask(speed, "SELECT n FROM rows WHERE t_day = '1970-01-02'") == [(2,)]


def test_a_file_in_another_layout_of_folders_is_an_error_and_never_left_out(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.store(speed.writing("rows"), timed([0], first=7))  # before the sink had partitions
    speed.store(speed.writing("rows", by=("day(t)",)), timed([DAY]))
    with pytest.raises(duckdb.Error, match=r"[Hh]ive"):
        ask(speed, "SELECT n FROM rows ORDER BY n")


def test_a_row_that_a_changed_spec_placed_anew_is_one_row(tmp_path: Path) -> None:
    """Its old copy lies in a partition that the batch has, its new one in another, or the other way round."""
    for number, (old, new, seen) in enumerate([(0, DAY, [1]), (DAY, 0, [])]):
        folder = tmp_path / str(number)
        lake, speed = Lake(folder), Speed(folder)
        speed.store(speed.writing("rows", by=("day(t)",)), timed([old], first=1))
        speed.restart("r2")
        speed.store(speed.writing("rows", by=("day(t)",)), timed([new], first=1))
        know(speed, placings=("one", "two"))
        commit(lake, "b1", "day", timed([0], first=100))
        assert [n for (n,) in ask(speed, "SELECT n FROM rows WHERE n < 100")] == seen


def test_panes_of_committed_windows_are_the_batchs(tmp_path: Path) -> None:
    lake, speed = Lake(tmp_path), Speed(tmp_path)
    speed.store(
        speed.writing("hourly", of="hourly", by=("day(_window_start)",)), panes(("a", 1, 10, "on_time", 1, 0), ("a", 30, 20, "early", 1, 0))
    )
    run = RunInfo("b1", "p", lake.state)
    clock = Clock("_window_start", "window_start_day", "day")
    written = Output("hourly", "hourly", str(tmp_path / "hourly"), partitions=("window_start_day",), clock=clock)
    elements = lake.stage(run, replace(written, partitions=("day(_window_start)",)), panes(("a", 1, 11, "batch", 0, 0)))
    assert conclude(run, [written], elements, Verdicts()).status == "success"
    assert ask(speed, "SELECT total, _pane FROM hourly ORDER BY total") == [(11, "batch"), (20, "early")]


def test_an_output_that_is_not_partitioned_by_its_event_time_is_the_batchs_alone(tmp_path: Path) -> None:
    lake, speed = Lake(tmp_path), Speed(tmp_path)
    speed.store(speed.writing("rows"), timed([0]))
    lake.go("b1", lake.output("rows", partitions=()), timed([5 * DAY], first=7))
    assert ask(speed, "SELECT n FROM rows") == [(7,)]
    assert ask(speed, "SELECT n FROM rows_speed") == [(0,)]
    assert ask(speed, "FROM ranges") == []


def know(speed: Speed, *, placings: tuple[str, ...], unit: str = "day") -> None:
    """The stream says by which columns it places rows."""
    from msgspec import structs

    from beam_pipelines.sinks.outputs import StreamOutputs, write_outputs

    known = tuple(structs.replace(o, placed=("t", f"t_{unit}"), placings=placings) for o in speed.outputs.outputs)
    write_outputs(speed.state, StreamOutputs(known))


def files_of_speed(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    """How many files of the speed layer the engine opens, by its own account."""
    import re

    plan = str(connection.execute(f"EXPLAIN ANALYZE {sql}").fetchall()[0][1])
    found = [(int(some), int(of)) for some, of in re.findall(r"Scanning Files: (\d+)/(\d+)", plan)]
    return sum(some for some, of in found if of == 10)


def test_the_view_is_plain_sql(tmp_path: Path) -> None:
    lake, speed = Lake(tmp_path), Speed(tmp_path)
    speed.store(speed.writing("rows", by=("day(t)",)), timed([0, DAY]))
    commit(lake, "b1", "day", timed([0], first=100))
    assert sorted(duckdb.connect().execute(f"SELECT n FROM ({views(lake.state)['rows']})").fetchall()) == [(1,), (100,)]


def letter(position: int, at: int | None, stage: str = "prepare", source: str = SOURCE) -> pa.RecordBatch:
    """A dead letter of a record with that event time, which arrived then or at 0."""
    name = "hourly" if stage == "aggregate" else "n"
    made = letters([position], stage, "LATE" if stage == "aggregate" else "TYPE", name, source)
    for column, value in (("event_time", at), ("arrival_time", at or 0)):
        made = made.set_column(
            DEAD_LETTERS.get_field_index(column), DEAD_LETTERS.field(column), pa.array([value], pa.timestamp("us", "UTC"))
        )
    return made


def run_over_letters(lake: Lake, run: RunInfo, source: str, *, since: int | None = None) -> None:
    """A run that read `source` and found nothing to refuse."""
    written, refused = _output(lake, "day"), lake.output("dead_letters", partitions=("run_id",), replace="runs")
    refused = Output("dead_letters", "dead_letters", refused.path, partitions=("run_id",), replace="runs")
    elements = [("u", source, "read", "", 0)]
    assert conclude(run, [written, refused], elements, Verdicts(since=since)).status == "success"


def open_letters(speed: Speed) -> list[int]:
    return [n for (n,) in ask(speed, "SELECT position FROM dead_letters ORDER BY position")]


def test_letters_of_the_stream_are_settled_by_a_run_that_read_their_records(tmp_path: Path) -> None:
    lake, speed = Lake(tmp_path), Speed(tmp_path)
    for position, at in enumerate([0, DAY, 2 * DAY, None]):
        speed.letter(letter(position, at))
    speed.letter(letter(4, None, source="another"))
    assert open_letters(speed) == [0, 1, 2, 3, 4]
    run_over_letters(lake, RunInfo("b1", "p", lake.state, range=Range(DAY, 2 * DAY), input="archive"), SOURCE, since=DAY // 2)
    assert open_letters(speed) == [0, 2, 3, 4]  # the letter without an event time arrived before what the run has read
    speed.restart("r2")
    speed.letter(letter(5, DAY + 1))  # stored after the run listed its input
    assert open_letters(speed) == [0, 2, 3, 4, 5]
    run_over_letters(lake, RunInfo("b2", "p", lake.state, input="archive"), SOURCE)
    assert open_letters(speed) == [4]


def test_letters_of_the_stream_are_the_batchs_where_it_is_the_authority_whatever_it_read(tmp_path: Path) -> None:
    lake, speed = Lake(tmp_path), Speed(tmp_path)
    for position, at in enumerate([0, DAY]):
        speed.letter(letter(position, at))
    speed.letter(letter(2, DAY, "aggregate"))
    run_over_letters(lake, RunInfo("b1", "p", lake.state, range=Range(DAY, 2 * DAY)), "file.csv")
    assert open_letters(speed) == [0, 2]  # no batch has computed the aggregate there


def test_letters_of_batch_and_stream_are_one_table(tmp_path: Path) -> None:
    lake, speed = Lake(tmp_path), Speed(tmp_path)
    speed.letter(letter(1, 0))
    run = lake.run("b1")
    refused = Output("dead_letters", "dead_letters", str(tmp_path / "dead_letters"), partitions=("run_id",), replace="runs")
    mine = letter(7, 5 * DAY, source="s")
    mine = mine.set_column(DEAD_LETTERS.get_field_index("run_id"), DEAD_LETTERS.field("run_id"), pa.array(["b1"]))
    elements = [("u", "s", "read", "", 1), ("u", "s", "dead", "prepare:TYPE", 1), *lake.stage(run, refused, mine)]
    assert conclude(run, [refused], elements, Verdicts()).status == "success"
    assert ask(speed, "SELECT position, source, run_id FROM dead_letters ORDER BY ALL") == [(1, SOURCE, "r1"), (7, "s", "b1")]
