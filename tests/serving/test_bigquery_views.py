"""The script for BigQuery, put into DuckDB's words by a parser of BigQuery's, gives the answers that `query` gives."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa
import pytest
import sqlglot

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.serving.bigquery_views import bigquery_script
from beam_pipelines.serving.dead_letters import open_letters, select_letters
from beam_pipelines.serving.tables import open_tables
from beam_pipelines.sinks.resolutions import new_name, resolve, write_no_resolutions
from beam_pipelines.sinks.run import RunInfo
from tests.serving.test_views import DAY, commit, letter, run_over_letters, timed
from tests.sinks.lake import Lake
from tests.sinks.speed_lake import SOURCE, Speed, panes, rows

_EXTERNAL = re.compile(
    r"CREATE OR REPLACE EXTERNAL TABLE `demo\.lake\.(\w+)`(?:\nWITH PARTITION COLUMNS \((.*)\))?\n"
    r"OPTIONS \(format = 'PARQUET', enable_list_inference = TRUE, uris = \['gs://bucket/it(.*)/\*\.parquet'\]"
    r"(?:, hive_partition_uri_prefix = 'gs://bucket/it(.*)')?\)"
)
_KINDS = {"DATE": "DATE", "STRING": "VARCHAR", "INT64": "BIGINT"}


@pytest.fixture
def speed(tmp_path: Path) -> Speed:
    lake, speed = Lake(tmp_path), Speed(tmp_path)
    speed.store(speed.writing("rows", by=("day(t)",)), timed([0, DAY, 2 * DAY, None]))
    speed.store(speed.writing("rows", by=("day(t)",)), rows([0], change=-1, source="s"))
    speed.store(
        speed.writing("hourly", of="hourly"),
        panes(("a", 1, 10, "early", 1, 0), ("a", 1, 11, "on_time", 1, 1), ("b", 1, 0, "retracted", 1, 1)),
    )
    for number, at in enumerate([0, DAY, None]):
        speed.letter(letter(number, at))
    speed.letter(letter(7, DAY, "aggregate"))
    commit(lake, "b1", "day", timed([DAY, DAY + 1], first=100), Range(DAY, 2 * DAY))
    run_over_letters(lake, RunInfo("b2", "p", lake.state, range=Range(3 * DAY, 4 * DAY), input="archive"), SOURCE, since=DAY)
    return speed


def in_duckdb(script: str, folder: Path) -> duckdb.DuckDBPyConnection:
    """The script's tables and views. External tables are what BigQuery takes for them: all files below the folder, with hive partitions."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("ATTACH ':memory:' AS demo; CREATE SCHEMA demo.lake; USE demo.lake")
    for statement in filter(None, (part.strip() for part in script.split(";\n"))):
        found = _EXTERNAL.fullmatch(statement)
        if found is None:
            view = sqlglot.parse_one(statement, read="bigquery")
            for union in view.find_all(sqlglot.exp.SetOperation):  # by name is full and outer in DuckDB, which has no words for it
                if not union.args["by_name"]:
                    continue
                assert (union.args["side"], union.args["kind"]) == ("FULL", "OUTER")
                union.set("side", None)
                union.set("kind", None)
            connection.execute(view.sql("duckdb"))
            continue
        name, columns, path, prefix = found.groups()
        assert prefix in (None, path)
        types = dict(column.strip("` ").split("` ") for column in columns.split(", ")) if columns else {}
        hive = ", ".join(f"'{n}': {_KINDS[kind]}" for n, kind in types.items())
        options = f"hive_partitioning = true, hive_types = {{{hive}}}" if hive else "hive_partitioning = false"
        connection.execute(f"CREATE VIEW {name} AS FROM read_parquet('{folder}{path}/**/*.parquet', union_by_name = true, {options})")
    return connection


def test_it_answers_as_query_does(speed: Speed, tmp_path: Path) -> None:
    script = bigquery_script(speed.state, None, "demo.lake", folder=str(tmp_path), lake_at="gs://bucket/it")
    theirs, mine = in_duckdb(script, tmp_path), open_tables(speed.state)
    for table, columns in {
        "rows": "n, t, _source", "rows_speed": "n, t", "rows_batch": "n, t", "hourly": "g, total, _pane", "hourly_speed": "total",
        "dead_letters_speed": "position, stage", "dead_letters": "position, stage",
    }.items():  # fmt: skip
        sql = f"SELECT {columns} FROM {table} ORDER BY ALL"
        assert theirs.execute(sql).fetchall() == mine.execute(sql).fetchall() != [], table
    assert sorted(mine.execute("SELECT n FROM rows").fetchall()) == [(2,), (3,), (100,), (101,)]


@pytest.mark.parametrize("how", ["replayed", "discarded"])
def test_letters_that_are_resolved_are_left_out_as_in_query(speed: Speed, tmp_path: Path, how: Literal["replayed", "discarded"]) -> None:
    connection = open_letters(speed.state)
    letters = select_letters(connection, where="position IN (0, 7)")
    assert letters.num_rows == 2
    resolve(speed.state, new_name("test"), letters.slice(0, 1), how=how, resolved_by="b2")
    other = letters.set_column(letters.schema.get_field_index("run_id"), "run_id", pa.array(["another"] * 2))
    resolve(speed.state, new_name("test"), other.slice(1), how=how, resolved_by="b2")  # replayed: of another run, so not this one
    seen = answers(speed, tmp_path)
    assert (7 in seen, 0 in seen) == (how == "replayed", False)


def test_letters_of_records_that_went_through_since_are_left_out_as_in_query(speed: Speed, tmp_path: Path) -> None:
    before = answers(speed, tmp_path)
    speed.restart("r2")
    speed.store(speed.writing("rows", by=("day(t)",)), timed([5 * DAY], first=2, source=SOURCE))  # read again, and through
    assert 2 in before
    assert set(answers(speed, tmp_path)) == set(before) - {2}


def test_a_state_that_bigquery_does_not_see_is_said(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "it")
    commit(lake, "b1", "day", timed([DAY]), Range(DAY, 2 * DAY))
    state = str(tmp_path / "state")
    shutil.move(lake.state, state)
    write_no_resolutions(state)
    script = bigquery_script(state, None, "demo.lake", folder=str(tmp_path / "it"), lake_at="gs://bucket/it")
    assert "-- the pipeline's state is not in Cloud Storage: dead letters that were replayed or discarded are not left out" in script


def answers(speed: Speed, folder: Path) -> list[int]:
    """Positions of the dead letters, which BigQuery and `query` agree on."""
    script = bigquery_script(speed.state, None, "demo.lake", folder=str(folder), lake_at="gs://bucket/it")
    sql = "SELECT position FROM dead_letters ORDER BY ALL"
    theirs, mine = in_duckdb(script, folder).execute(sql).fetchall(), open_tables(speed.state).execute(sql).fetchall()
    assert theirs == mine
    return [position for (position,) in theirs]


def test_a_condition_on_the_partition_column_is_in_it(speed: Speed, tmp_path: Path) -> None:
    script = bigquery_script(speed.state, None, "demo.lake", folder=str(tmp_path), lake_at="gs://bucket/it/")
    assert "WHERE ((`t_day` >= DATE '1970-01-02' AND `t_day` < DATE '1970-01-03') OR" in script.replace("\n", " ")


def test_what_it_cannot_do_is_one_clear_error(speed: Speed, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is not in Cloud Storage") as refused:
        bigquery_script(speed.state, None, "demo.lake", folder=str(tmp_path))
    assert "--lake-at" in str(refused.value.hint)
    with pytest.raises(SpecError, match=r"expected PROJECT\.DATASET"):
        bigquery_script(speed.state, None, "lake", folder=str(tmp_path), lake_at="gs://b")
    with pytest.raises(SpecError, match=r"--lake-at my-bucket: expected gs://BUCKET"):
        bigquery_script(speed.state, None, "demo.lake", folder=str(tmp_path), lake_at="my-bucket")
    with pytest.raises(SpecError, match="neither in Cloud Storage nor below the spec's folder"):
        bigquery_script(speed.state, None, "demo.lake", folder=str(tmp_path / "elsewhere"), lake_at="gs://b")
    with pytest.raises(RunError, match="nothing has been stored yet"):
        bigquery_script(str(tmp_path / "empty"), None, "demo.lake")


def test_paths_are_texts_and_names_stay_names_whatever_is_in_them(speed: Speed, tmp_path: Path) -> None:
    script = bigquery_script(speed.state, None, "demo.lake", folder=str(tmp_path), lake_at="gs://bucket/it's\\here")
    uris = [uri for uri in re.findall(r"uris = \['((?:[^'\\]|\\.)*)'\]", script) if uri.startswith("gs://bucket/it\\'s\\\\here/")]
    assert len(uris) == script.count("EXTERNAL TABLE") > 1
    assert script.count("hive_partition_uri_prefix = 'gs://bucket/it\\'s\\\\here/") == script.count("hive_partition_uri_prefix") > 0
    with pytest.raises(SpecError, match=r"expected PROJECT\.DATASET"):
        bigquery_script(speed.state, None, "demo.la\\ke", folder=str(tmp_path), lake_at="gs://b")


@pytest.mark.parametrize("name", ["h`urly", "h\\urly", "h\nurly"])
def test_a_name_that_would_end_its_quotes_is_refused(speed: Speed, tmp_path: Path, name: str) -> None:
    speed.store(speed.writing(name, of="hourly"), panes(("a", 1, 10, "early", 1, 0)))
    with pytest.raises(SpecError, match="no backtick, backslash or line break"):
        bigquery_script(speed.state, None, "demo.lake", folder=str(tmp_path), lake_at="gs://bucket")


def test_what_has_no_file_yet_is_left_out_and_said(tmp_path: Path) -> None:
    lake, speed = Lake(tmp_path), Speed(tmp_path)
    speed.writing("rows", by=("day(t)",))
    with pytest.raises(RunError, match="rows_speed: the stream has stored nothing there yet"):
        bigquery_script(speed.state, None, "demo.lake", folder=str(tmp_path), lake_at="gs://bucket/it")
    commit(lake, "b1", "day", timed([DAY]), Range(DAY, 2 * DAY))
    script = bigquery_script(speed.state, None, "demo.lake", folder=str(tmp_path), lake_at="gs://bucket/it")
    assert "-- rows_speed: the stream has stored nothing there yet" in script
    assert in_duckdb(script, tmp_path).execute("SELECT n FROM rows").fetchall() == [(0,)]
    assert "rows.speed" not in script
