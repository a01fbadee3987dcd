"""The speed layer as tables: each row once, without duplicates; each window's newest pane; each letter once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.sinks.outputs import read_outputs
from beam_pipelines.sinks.reached import Reached, write_progress
from tests.laws import share
from tests.sinks.lake import Lake
from tests.sinks.lake import rows as batch_rows
from tests.sinks.speed_lake import Speed, letters, panes, rows

POSITIONS = st.lists(st.integers(0, 9), max_size=6)


@share(8)
@given(st.lists(st.tuples(st.sampled_from([1, -1]), POSITIONS, st.booleans()), min_size=1, max_size=6), st.booleans())
def test_each_row_once_without_duplicates_in_whatever_order_they_were_stored(
    tmp_path_factory: pytest.TempPathFactory, bundles: list[tuple[int, list[int], bool]], provenance: bool
) -> None:
    speed = Speed(tmp_path_factory.mktemp("speed"))
    speed.writing(provenance=provenance)
    for number, (change, positions, restart) in enumerate(bundles):
        if restart:
            speed.restart(f"r{number + 2}")
        speed.store(speed.writing(provenance=provenance), rows(positions, change=change))
    gone = {p for change, positions, _ in bundles for p in positions if change < 0}
    stay = {p for change, positions, _ in bundles for p in positions if change > 0} - gone
    found = speed.ask("SELECT * FROM rows") if stay | gone else []
    if any(positions for change, positions, _ in bundles if change > 0):
        assert sorted(r["n"] for r in found) == sorted(stay)
        for row in found:
            assert set(row) == {"n", "k"} | ({"_source", "_position", "_arrival_time", "_run_id", "_contract"} if provenance else set())


def test_of_copies_of_a_row_the_newest_runs_is_seen(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.store(speed.writing(), rows([1, 2]))
    speed.restart("r2")
    speed.store(speed.writing(), rows([2]))
    assert speed.ask("SELECT n, _run_id FROM rows ORDER BY n") == [{"n": 1, "_run_id": "r1"}, {"n": 2, "_run_id": "r2"}]


def test_folders_above_a_lake_that_look_like_partitions_change_nothing_of_what_is_read(tmp_path: Path) -> None:
    speed = Speed(tmp_path / "k=other" / "n=99" / "run_id=x" / "epoch=7")
    speed.store(speed.writing(by=["k"]), rows([1, 2]))
    speed.letter(letters([3]))
    assert speed.ask("SELECT n, k FROM rows ORDER BY n") == [{"n": 1, "k": "01"}, {"n": 2, "k": "02"}]
    assert speed.ask("SELECT position, run_id FROM dead_letters") == [{"position": 3, "run_id": "r1"}]


def test_the_same_position_of_two_sources_is_two_rows(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.store(speed.writing(), rows([1], source="a", change=1), rows([1], source="b", change=1), rows([1], source="a", change=-1))
    assert speed.ask("SELECT _source FROM rows") == [{"_source": "b"}]


VERSION = st.tuples(
    st.sampled_from(["x", None]),
    st.integers(0, 1),
    st.sampled_from(["early", "on_time", "retracted"]),
    st.integers(1, 2),
    st.integers(0, 3),
)


@share(8)
@given(st.lists(st.lists(VERSION, min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_newest_pane_of_each_group_and_window_unless_it_was_retracted(
    tmp_path_factory: pytest.TempPathFactory, bundles: list[list[tuple[Any, int, str, int, int]]]
) -> None:
    speed = Speed(tmp_path_factory.mktemp("speed"))
    newest: dict[tuple[Any, int], tuple[int, int, str]] = {}
    kinds: dict[tuple[Any, ...], str] = {}
    for versions in bundles:
        stored = []
        for group, hour, kind, epoch, index in versions:
            kind = kinds.setdefault((group, hour, epoch, index), kind)  # a version of a pane is what it is
            stored.append((group, hour, epoch * 10 + index, kind, epoch, index))
            newest[group, hour] = max(newest.get((group, hour), (0, 0, "")), (epoch, index, kind))
        speed.store(speed.writing("hourly", of="hourly"), panes(*stored))
    found = {(r["g"], r["h"]): r["total"] for r in speed.ask("SELECT g, epoch(_window_start)::INT // 3600 AS h, total FROM hourly")}
    assert found == {key: epoch * 10 + index for key, (epoch, index, kind) in newest.items() if kind != "retracted"}
    assert len(speed.ask("SELECT * FROM hourly")) == len(found)


def test_a_pane_that_a_later_start_did_not_show_again_is_gone_once_it_has_come_that_far(tmp_path: Path) -> None:
    speed, hour = Speed(tmp_path), 3_600_000_000
    speed.store(
        speed.writing("hourly", of="hourly"),
        panes(("gone", 1, 1, "early", 1, 0), ("again", 1, 1, "early", 1, 0), ("closed", 0, 1, "on_time", 1, 0)),
    )
    write_progress(speed.state, 1, Reached(hour + 1))
    speed.store(speed.writing("hourly", of="hourly"), panes(("again", 1, 2, "on_time", 2, 0)))
    write_progress(speed.state, 2, Reached(2 * hour, hour + 1))
    assert len(speed.ask("FROM hourly")) == 3
    write_progress(speed.state, 2, Reached(2 * hour + 1, hour + 1))
    assert speed.ask("SELECT g, total FROM hourly ORDER BY g") == [{"g": "again", "total": 2}, {"g": "closed", "total": 1}]


def test_letters_once_per_row_stage_and_reason_and_aggregate(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    for _ in range(2):
        speed.letter(letters([1, 2]))
        speed.letter(letters([1], "aggregate", "LATE", "hourly"))
        speed.letter(letters([1], "aggregate", "LATE", "daily"))
    speed.restart("r2")
    speed.letter(letters([2]))
    assert speed.ask("SELECT position, stage, failures[1].name AS name, run_id FROM dead_letters ORDER BY ALL") == [
        {"position": 1, "stage": "aggregate", "name": "daily", "run_id": "r1"},
        {"position": 1, "stage": "aggregate", "name": "hourly", "run_id": "r1"},
        {"position": 1, "stage": "prepare", "name": "n", "run_id": "r1"},
        {"position": 2, "stage": "prepare", "name": "n", "run_id": "r2"},
    ]


def test_a_row_that_turns_out_to_be_a_duplicate_never_was_too_late_for_an_aggregate(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.store(speed.writing(), rows([1, 2], change=1))
    speed.letter(letters([1, 2], "aggregate", "LATE", "hourly"))
    speed.store(speed.writing(), rows([1], change=-1))
    assert speed.ask("SELECT position FROM dead_letters") == [{"position": 2}]


def test_a_run_id_of_digits_stays_text(tmp_path: Path) -> None:
    speed = Speed(tmp_path, run_id="20131201")
    speed.letter(letters([1]))
    assert speed.ask("SELECT run_id FROM dead_letters") == [{"run_id": "20131201"}]


def test_layers_without_a_row_are_empty_tables(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    for name, of in (("rows", "rows"), ("hourly", "hourly")):
        speed.writing(name, of=of)
    speed.letter_writing()
    for name in ("rows", "hourly", "dead_letters", "rows_speed"):
        assert speed.ask(f"SELECT count(*) AS n FROM {name}") == [{"n": 0}]


def test_each_of_several_outputs_of_rows_is_a_table(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.store(speed.writing(), rows([1, 2], change=1), rows([2], change=-1))
    speed.store(speed.writing("rows_csv"), rows([1, 2, 3]))
    assert speed.ask("SELECT list(n ORDER BY n) AS n FROM rows") == [{"n": [1]}]
    assert speed.ask("SELECT list(n ORDER BY n) AS n FROM rows_csv") == [{"n": [1, 3]}]


def test_partition_columns_have_the_types_of_the_batch(tmp_path: Path) -> None:
    by, moment = (
        ("k", "small", "day(moment)", "hour(moment)", "month(moment)", "year(moment)", "flag"),
        pa.array([0, None, 10**15], pa.timestamp("us", "UTC")),
    )
    more = {
        "small": pa.array([1, 2, None], pa.int8()),
        "moment": moment,
        "flag": pa.array([True, None, False]),
        "amount": pa.array([1.5, None, 2]),
    }
    lake, speed = Lake(tmp_path), Speed(tmp_path)
    batch = rows([1, 2, 3], more=more)
    lake.go("b1", lake.output("rows", partitions=by), batch)
    speed.store(speed.writing("rows", by=by), batch)
    connection = open_tables(speed.state)
    types = [
        dict(connection.execute(f"SELECT column_name, column_type FROM (DESCRIBE {name})").fetchall()) for name in ("rows", "rows_speed")
    ]
    assert types[0] == types[1]
    columns = ", ".join(n for n in types[0] if n not in ("_run_id", "_contract"))
    assert ask(connection, f"SELECT {columns} FROM rows ORDER BY n") == ask(connection, f"SELECT {columns} FROM rows_speed ORDER BY n")


def test_a_folder_above_that_looks_like_a_partition_is_none(tmp_path: Path) -> None:
    speed = Speed(tmp_path / "env=prod")
    speed.store(speed.writing(), rows([1]))
    assert "env" not in speed.ask("SELECT * FROM rows")[0]


def test_the_plain_name_is_the_batchs_once_it_has_committed(tmp_path: Path) -> None:
    lake, speed = Lake(tmp_path), Speed(tmp_path)
    speed.store(speed.writing("out"), rows([1, 2]))
    assert speed.ask("SELECT count(*) AS n FROM out") == speed.ask("SELECT count(*) AS n FROM out_speed") == [{"n": 2}]
    lake.go("b1", lake.output(), batch_rows((7, "a")))
    assert speed.ask("SELECT n FROM out") == [{"n": 7}]
    assert speed.ask("SELECT count(*) AS n FROM out_speed") == [{"n": 2}]


def test_what_says_how_a_row_changes_is_never_stored(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    (path,) = speed.store(speed.writing(), rows([1, 2], change=1))
    assert "_change" not in pq.read_schema(path).names
    assert "_change" not in speed.ask("SELECT * FROM rows")[0]


def test_outputs_are_read_as_they_were_written(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    assert read_outputs(speed.state) is None
    speed.writing("hourly", of="hourly")
    assert read_outputs(speed.state) == speed.outputs


def test_files_of_two_versions_of_the_contract_are_one_table(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.store(speed.writing(), rows([1]))
    speed.store(speed.writing(), rows([2], more={"n": pa.array([2], pa.int64()), "fresh": pa.array(["x"])}))
    assert speed.ask("SELECT n, fresh FROM rows ORDER BY n") == [{"n": 1, "fresh": None}, {"n": 2, "fresh": "x"}]
