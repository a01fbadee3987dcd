"""`stale`: rows that came after the run which committed their range had looked for its input, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.commit_elements import Columns
from beam_pipelines.formats.named_files import new_name
from beam_pipelines.serving.stale import stale_view
from beam_pipelines.serving.stale_files import ON_THE_WAY
from beam_pipelines.serving.tables import open_tables, stale_table
from beam_pipelines.sinks.commit import Verdicts, conclude
from beam_pipelines.sinks.epochs import doors_folder
from beam_pipelines.sinks.outputs import SpeedOutput, StreamOutputs, write_columns, write_outputs
from beam_pipelines.sinks.run import Clock, Output, RunInfo
from beam_pipelines.spec.load import parse_spec
from beam_pipelines.spec.models import PipelineSpec
from tests.sinks.lake import Lake

HOUR = 3_600_000_000
DAY = 24 * HOUR
NOW = 20_000 * DAY  # of the machine's clock, in microseconds
UTC_MICROS = pa.timestamp("us", "UTC")
SOURCE = "projects/p/subscriptions/s"


class Row(NamedTuple):
    """A message of the stream: its position, its event time, and when each copy of it was stored."""

    n: int
    t: int | None
    stored: tuple[int, ...]


@dataclass(frozen=True)
class Layers:
    """A lake whose speed layer is written with the times that a test says, and whose runs begin when it says."""

    folder: Path
    unit: str = "day"
    placings: tuple[str, ...] = ("one",)
    files: list[str] = field(default_factory=list)

    @property
    def lake(self) -> Lake:
        return Lake(self.folder)

    @property
    def state(self) -> str:
        return self.lake.state

    def know(self, *more: SpeedOutput) -> None:
        rows = SpeedOutput("rows", "rows", str(self.folder / "rows.speed"), (), True, 0, 0, ("t", f"t_{self.unit}"), self.placings)
        write_outputs(self.state, StreamOutputs((rows, *more)))
        write_columns(rows.folder, {f"t_{self.unit}": "DATE" if self.unit == "day" else "VARCHAR"})

    def store(self, *rows: Row, run_id: str = "r1") -> None:
        """A file for each copy of each row."""
        for row in rows:
            for stored in row.stored:
                part = "__HIVE_DEFAULT_PARTITION__" if row.t is None else _partition(row.t, self.unit)
                columns = {
                    **_identity([row.n]), "t": pa.array([row.t], UTC_MICROS), "_run_id": [run_id], "_stored_at": pa.array([stored], UTC_MICROS),
                    "wide": ["x" * 50],
                }  # fmt: skip
                self._write(self.folder / "rows.speed" / f"t_{self.unit}={part}", columns, stored)

    def tell(self, *told: tuple[int, int], door: str = "duplicate") -> None:
        """Doors of (position, when it was told)."""
        for n, stored in told:
            columns = {
                "source": [SOURCE],
                "position": pa.array([n], pa.int64()),
                "door": [door],
                "_stored_at": pa.array([stored], UTC_MICROS),
            }
            self._write(Path(doors_folder(self.state)), columns, stored)

    def _write(self, folder: Path, columns: dict[str, Any], stored: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = new_name(1, now=lambda: stored / 1e6)
        pq.write_table(pa.table(columns), folder / name)
        self.files.append(name)

    def commit(
        self,
        run_id: str,
        rows: Iterable[Row],
        where: Range,
        as_of: int,
        input_: Literal["batch", "archive"] = "archive",
        *,
        name: str = "rows",
    ) -> None:
        """A run over a range whose answer is `rows`."""
        run = RunInfo(run_id, "p", self.state, started_at=_iso(as_of), range=where, input=input_)
        column = "t" if name == "rows" else "_window_start"
        level = f"{column.lstrip('_')}_{self.unit}"
        output = Output(name, name, str(self.folder / name), partitions=(level,), clock=Clock(column, level, self.unit))
        listed = list(rows)
        batch = pa.RecordBatch.from_pydict({
            **_identity([r.n for r in listed]), "_arrival_time": pa.nulls(len(listed), UTC_MICROS), column: pa.array([r.t for r in listed], UTC_MICROS),
        })  # fmt: skip
        staged = self.lake.stage(run, replace(output, partitions=(f"{self.unit}({column})",)), batch) if listed and name == "rows" else []
        elements = [("b", SOURCE, "read", "", batch.num_rows), *staged]
        assert conclude(run, [output], elements if name == "rows" else [], Verdicts()).status == "success"

    def stale(self, spec: PipelineSpec | None = None) -> list[tuple[str, int, str, int]]:
        """(output, start of the partition in units, run, rows) of each line."""
        size = DAY if self.unit == "day" else HOUR
        found = stale_table(self.state, None, spec).to_pylist()
        return [(r["output"], _micros(r["start"]) // size, r["run_id"], r["rows"]) for r in found]


def _identity(positions: Sequence[int]) -> dict[str, Any]:
    return {"_source": pa.array([SOURCE] * len(positions), pa.string()), "_position": pa.array(positions, pa.int64())}


def _iso(at: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)).isoformat().replace("+00:00", "Z")


def _micros(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _partition(t: int, unit: str) -> str:
    return _iso(t)[:10] if unit == "day" else _iso(t)[:13].replace("T", "-")


moments = st.integers(-2, 4).map(lambda n: NOW + n * ON_THE_WAY // 2)  # around as_of, nearer and farther than what may be on the way
streamed = st.lists(st.tuples(st.none() | st.integers(0, 4 * DAY - 1), st.lists(moments, min_size=1, max_size=2)), max_size=10)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(streamed, st.data(), st.sampled_from(["batch", "archive"]), st.sampled_from(["day", "hour"]))
def test_a_row_is_stale_if_it_came_after_the_run_of_its_range_and_is_neither_in_its_answer_nor_a_duplicate(
    tmp_path_factory: pytest.TempPathFactory, stream: list[tuple[int | None, list[int]]], data: st.DataObject, input_: Any, unit: str
) -> None:
    layers = Layers(tmp_path_factory.mktemp("lake"), unit)
    rows = [Row(n, t, tuple(stored)) for n, (t, stored) in enumerate(stream)]
    told = {row.n: data.draw(moments) for row in rows if data.draw(st.integers(0, 3)) == 0}
    runs = [("b1", Range(0, 2 * DAY), NOW), ("b2", Range(DAY, 3 * DAY), NOW + ON_THE_WAY)]
    layers.know()
    layers.store(*rows)
    layers.tell(*told.items())
    layers.tell(*((row.n, NOW) for row in rows[:3]), door="filtered")  # says nothing of rows
    answers: dict[str, set[int]] = {}
    for run_id, where, as_of in runs:
        answer = [r for r in rows if r.t is not None and where.start <= r.t < where.end and data.draw(st.booleans())]
        layers.commit(run_id, answer, where, as_of, input_)
        answers[run_id] = {r.n for r in answer}

    wanted: dict[tuple[int, str], int] = {}
    for row in rows:
        if row.t is None or row.t >= 3 * DAY:
            continue
        run_id, _, as_of = runs[0] if row.t < DAY else runs[1]
        if input_ == "batch":
            late = min(row.stored) >= as_of and row.n not in told
        elif row.n in answers[run_id]:
            late = told.get(row.n, 0) >= as_of
        else:
            late = min(row.stored) >= as_of - ON_THE_WAY and row.n not in told
        if late:
            key = (row.t // (DAY if unit == "day" else HOUR), run_id)
            wanted[key] = wanted.get(key, 0) + 1
    assert {(part, run): n for _, part, run, n in layers.stale()} == wanted


def test_a_run_again_clears_what_was_stale(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    layers.know()
    first, late, other = Row(1, 5, (NOW - HOUR,)), Row(2, 7, (NOW + HOUR,)), Row(3, 3 * DAY, (NOW + HOUR,))
    layers.store(first, late, other)
    layers.commit("b1", [first], Range(0, DAY), NOW)
    assert layers.stale() == [("rows", 0, "b1", 1)]
    found = stale_table(layers.state).to_pylist()
    assert [_micros(found[0][c]) for c in ("start", "end", "first_stored_at", "last_stored_at")] == [0, DAY, NOW + HOUR, NOW + HOUR]
    layers.commit("b2", [first, late], Range(0, DAY), NOW + 2 * HOUR)
    assert layers.stale() == []


def test_rows_that_a_restart_stores_again_are_not_new(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    layers.know()
    layers.store(Row(1, 5, (NOW - HOUR, NOW + HOUR)))
    layers.commit("b1", [], Range(0, DAY), NOW)  # the batch had it, and found it wanting
    assert layers.stale() == []


def test_a_row_in_the_answer_that_turns_out_to_be_a_duplicate_is_stale(tmp_path: Path) -> None:
    """A better copy arrives after the range was committed, and lies in another one."""
    layers = Layers(tmp_path)
    layers.know()
    worse, better = Row(1, DAY - 5, (NOW - HOUR,)), Row(2, DAY + 5, (NOW + HOUR,))
    layers.store(worse, better)
    layers.commit("b1", [worse], Range(0, DAY), NOW)
    assert layers.stale() == []
    layers.tell((1, NOW + HOUR))
    assert layers.stale() == [("rows", 0, "b1", 1)]
    layers.tell((1, NOW - 2 * HOUR))  # it was told before: the batch knew better
    assert layers.stale() == []


def test_a_clock_that_is_behind_hides_nothing_that_is_not_in_the_answer(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    layers.know()
    layers.store(Row(1, 5, (NOW - ON_THE_WAY // 2,)))  # stored after the run began, by a clock that is behind
    layers.commit("b1", [], Range(0, DAY), NOW)
    assert layers.stale() == [("rows", 0, "b1", 1)]


def test_a_row_that_a_changed_spec_placed_anew_counts_where_its_newest_copy_lies(tmp_path: Path) -> None:
    layers = Layers(tmp_path, placings=("one", "two"))
    layers.know()
    layers.store(Row(1, 5, (NOW + 1,)))
    layers.store(Row(1, DAY + 5, (NOW + 2,)), run_id="r2")
    layers.commit("b1", [], Range(0, 2 * DAY), NOW)
    assert layers.stale() == [("rows", 1, "b1", 1)]


SPEC = """
spec: 1
pipeline: p
time_zone: America/New_York
contract: {key: [id], event_time: t, columns: {id: {type: int64}, t: {type: timestamp}}}
sources: {stream: [{pubsub: projects/p/subscriptions/s, format: json}]}
aggregates:
  counted: {windowing: WINDOW, measures: {n: count()}}
sinks:
  - {from: rows, parquet: {path: rows, partition_by: [hour(t)]}}
  - {from: counted, parquet: {path: counted, partition_by: [hour(_window_start)]}}
"""
WINDOWS = [
    "{type: fixed, size: 1h}",
    "{type: fixed, size: 90m, offset: 20m}",
    "{type: sliding, size: 3h, period: 30m}",
    "{type: sliding, size: 100m, period: 45m, offset: 10m}",
    "{type: calendar, unit: hour}",
    "{type: calendar, unit: day}",
    "{type: calendar, unit: week, time_zone: Asia/Kolkata}",
]
CHANGE = 1_383_436_800_000_000 // HOUR * HOUR  # 2013-11-03T00:00Z: six hours later the clock in New York goes back


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(WINDOWS), st.lists(st.integers(-200, 2000), min_size=1, max_size=4))
def test_an_aggregate_is_stale_in_the_partitions_in_which_windows_of_the_row_start(
    tmp_path_factory: pytest.TempPathFactory, window: str, minutes: list[int]
) -> None:
    from beam_pipelines.arrow.windowing import assign_windows

    layers = Layers(tmp_path_factory.mktemp("lake"), "hour")
    layers.know()
    spec = parse_spec(SPEC.replace("WINDOW", window), path=layers.folder / "p.yaml").spec
    times = [CHANGE + m * 60_000_000 for m in minutes]
    layers.store(*(Row(n, t, (NOW + 1,)) for n, t in enumerate(times)))
    where = Range(CHANGE - 24 * HOUR, CHANGE + 24 * HOUR)
    layers.commit("b1", [], where, NOW, name="counted")
    batch = pa.RecordBatch.from_pydict({"n": pa.array(range(len(times))), "t": pa.array(times, UTC_MICROS)})
    windows = assign_windows(batch, spec.aggregates["counted"].windowing, time="t", time_zone="America/New_York").rows
    parts = {(n, _micros(s) // HOUR) for n, s in zip(windows["n"].to_pylist(), windows["_window_start"].to_pylist(), strict=True)}
    first, last = where.start // HOUR, where.end // HOUR
    wanted: dict[int, int] = {}
    for _, part in parts:
        if first <= part < last:
            wanted[part] = wanted.get(part, 0) + 1
    assert {part: n for _, part, _, n in layers.stale(spec)} == wanted
    assert layers.stale() == []  # nothing says what the windows are


def test_a_session_is_stale_as_far_as_a_row_can_move_it(tmp_path: Path) -> None:
    layers = Layers(tmp_path, "hour")
    layers.know()
    spec = parse_spec(SPEC.replace("WINDOW", "{type: sessions, gap: 10m, max_length: 50m}"), path=tmp_path / "p.yaml").spec
    layers.store(Row(1, 10 * HOUR + 60, (NOW + 1,)))
    layers.commit("b1", [], Range(0, 20 * HOUR), NOW, name="counted")
    assert [(o, part) for o, part, _, _ in layers.stale(spec)] == [("counted", part) for part in (8, 9, 10, 11, 12)]


def test_only_files_of_committed_partitions_are_opened_that_were_finished_after_the_run_began(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    layers.know()
    for day in range(20):
        layers.store(Row(day, day * DAY, (NOW - DAY,)), Row(100 + day, day * DAY, (NOW + DAY,)))
    layers.commit("b1", [], Range(3 * DAY, 8 * DAY), NOW)
    connection = duckdb.connect()
    plan = str(connection.execute(f"EXPLAIN ANALYZE {stale_view(layers.state).register(connection)}").fetchall()[0][1])
    scans = [part for part in plan.split("Function: READ_PARQUET")[1:] if "Scanning Files" in part]
    read = sorted(int(n) for n in re.findall(r"Total Files Read: (\d+)", " ".join(scans)))
    assert len(read) == 2
    assert read[0] <= 5 + 1  # of each day the one after; one is opened to learn its columns
    assert read[1] <= 10 + 1  # the other copies of what was found
    assert "wide" not in "".join(re.findall(r"Projections: [^│]*", plan))


def test_it_is_a_table_beside_the_others_also_without_a_stream_or_a_commit(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    names = ["output", "start", "end", "run_id", "rows", "first_stored_at", "last_stored_at"]
    assert open_tables(layers.state).sql("FROM stale").columns == names
    layers.commit("b1", [Row(1, 5, ())], Range(0, DAY), NOW)
    assert open_tables(layers.state).execute("FROM stale").fetchall() == []
    layers.know()
    layers.store(Row(2, 6, (NOW + 1,)))
    assert open_tables(layers.state).execute("SELECT run_id, sum(rows) FROM stale GROUP BY ALL").fetchall() == [("b1", 1)]


def test_an_output_without_identities_is_judged_by_the_clock_alone(tmp_path: Path) -> None:
    """Rows stored just before the run began are the batch's, as nothing says otherwise."""
    layers = Layers(tmp_path)
    layers.know()
    layers.store(Row(1, 5, (NOW - 1,)), Row(2, 6, (NOW + 1,)))
    run = RunInfo("b1", "p", layers.state, started_at=_iso(NOW), range=Range(0, DAY), input="archive")
    output = Output("rows", "rows", str(tmp_path / "rows"), partitions=("t_day",), clock=Clock("t", "t_day", "day"))
    assert conclude(run, [output], [Columns("rows", (("t", "TIMESTAMP WITH TIME ZONE"),))], Verdicts()).status == "success"
    assert layers.stale() == [("rows", 0, "b1", 1)]


def test_many_ranges_are_few_conditions(tmp_path: Path) -> None:
    layers = Layers(tmp_path, "hour")
    layers.know()
    layers.store(Row(1, 5, (NOW + 500,)), Row(2, 300 * HOUR, (NOW + 500,)))
    for hour in range(0, 320, 40):
        layers.commit(f"b{hour}", [], Range(hour * HOUR, (hour + 40) * HOUR), NOW + hour)
    assert layers.stale() == [("rows", 0, "b0", 1), ("rows", 300, "b280", 1)]


@pytest.mark.parametrize("size", [1, 30, 800, 40_000])
def test_however_many_partitions_there_are_a_late_row_is_found(tmp_path: Path, size: int) -> None:
    """Files are chosen by hour, by day, by month, or all alike."""
    layers = Layers(tmp_path, "hour")
    layers.know()
    times = [number * size * HOUR for number in range(0, 300, 23)]
    layers.store(*(Row(n, t, (NOW + 10 * DAY,)) for n, t in enumerate(times)))
    layers.store(*(Row(100 + n, t, (NOW - DAY,)) for n, t in enumerate(times)))
    layers.commit("b1", [], Range(0, 150 * size * HOUR), NOW)
    layers.commit("b2", [], Range(150 * size * HOUR, 300 * size * HOUR), NOW + DAY)
    assert layers.stale() == [("rows", t // HOUR, "b1" if t < 150 * size * HOUR else "b2", 1) for t in times]
