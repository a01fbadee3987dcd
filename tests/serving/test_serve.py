"""The served file gives any DuckDB client the answers that `query` gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.errors import RunError, SinkError
from beam_pipelines.serving.published import view_statements, write_database
from beam_pipelines.serving.tables import open_tables
from beam_pipelines.serving.views import views
from beam_pipelines.sinks.outputs import write_outputs
from beam_pipelines.sinks.reached import Reached, begin, write_progress
from beam_pipelines.sinks.resolutions import resolve
from beam_pipelines.sinks.run import RunInfo
from tests.cli.conftest import Call, call, orders
from tests.laws import share
from tests.serving.test_views import DAY, TIMES, commit, letter, run_over_letters, timed
from tests.sinks import lake as batch
from tests.sinks.lake import Lake
from tests.sinks.speed_lake import Speed, panes, rows

__all__ = ["call", "orders"]
READ = "import duckdb, sys; print(duckdb.connect(sys.argv[1], read_only=True).execute(sys.argv[2]).fetchall())"
ALL_N = "SELECT n FROM rows ORDER BY n"


@pytest.fixture
def both(tmp_path: Path) -> Speed:
    folder = tmp_path / "a lake's ünïcode"
    folder.mkdir()
    lake, speed = Lake(folder), Speed(folder)
    speed.store(speed.writing("rows", by=("day(t)",)), timed([0, DAY, 2 * DAY, None]))
    commit(lake, "b1", "day", timed([DAY], first=100), Range(DAY, 2 * DAY))
    return speed


def elsewhere(path: Path, sql: str, *, cwd: Path) -> str:
    """What a process without this package answers."""
    done = subprocess.run([sys.executable, "-I", "-c", READ, str(path), sql], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def served(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as client:
        return client.execute(sql).fetchall()


@share(5)
@given(TIMES, TIMES, st.sets(st.integers(0, 7), max_size=3), st.booleans())
def test_every_table_is_what_query_has(
    tmp_path_factory: pytest.TempPathFactory, stored: list[int | None], computed: list[int | None], gone: set[int], relative: bool
) -> None:
    folder = tmp_path_factory.mktemp("lake")
    lake, speed = Lake(folder), Speed(folder)
    speed.store(speed.writing("rows", by=("day(t)",)), timed(stored))
    if found := sorted(gone & set(range(len(stored)))):
        speed.store(speed.writing("rows", by=("day(t)",)), rows(found, change=-1, source="s"))
    if computed:
        commit(lake, "b1", "day", timed(computed, first=100))
    path, mine = folder / "served.duckdb", open_tables(speed.state)
    write_database(str(path), speed.state, relative=relative)
    with duckdb.connect(str(path), read_only=True) as client:
        client.execute(f"SET file_search_path = '{folder}'")
        for (table,) in client.execute("SELECT table_name FROM information_schema.tables").fetchall():
            sql = f'SELECT * FROM "{table}" ORDER BY ALL'
            assert client.sql(sql).to_arrow_table().to_pylist() == mine.sql(sql).to_arrow_table().to_pylist(), table


def test_another_process_sees_what_query_sees(both: Speed, tmp_path: Path) -> None:
    path = tmp_path / "served.duckdb"
    assert len(write_database(str(path), both.state).statements) == 3
    mine = open_tables(both.state)
    for sql in (ALL_N, "SELECT count(*) FROM rows_speed", "SELECT n FROM rows_batch", "SELECT run_id FROM ranges"):
        assert elsewhere(path, sql, cwd=Path("/")) == str(mine.execute(sql).fetchall())
    both.store(both.writing("rows", by=("day(t)",)), timed([3 * DAY], first=9))  # a stream goes on: no new file is needed
    assert elsewhere(path, ALL_N, cwd=Path("/")) == "[(0,), (2,), (3,), (9,), (100,)]"


def test_a_lake_that_moves_with_its_file(both: Speed, tmp_path: Path) -> None:
    write_database(str(both.folder / "served.duckdb"), both.state, relative=True)
    moved = both.folder.rename(tmp_path / "moved")
    assert elsewhere(moved / "served.duckdb", ALL_N, cwd=moved) == "[(0,), (2,), (3,), (100,)]"


def test_only_what_is_read_becomes_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead letters name the file of their record by an absolute path, and views compare it."""
    lake, speed, source = Lake(tmp_path), Speed(tmp_path), str(tmp_path / "in/flights.csv")
    for position, at in enumerate([0, DAY, None]):
        speed.letter(letter(position, at, source=source))
    run_over_letters(lake, RunInfo("b1", "p", lake.state, range=Range(DAY, 2 * DAY), input="archive"), source)
    write_database(str(tmp_path / "served.duckdb"), speed.state, relative=True)
    monkeypatch.chdir(tmp_path)
    sql = "SELECT position FROM dead_letters"
    assert served(tmp_path / "served.duckdb", sql) == open_tables(speed.state).execute(sql).fetchall() == [(0,)]


@pytest.mark.parametrize("relative", [True, False])
def test_names_may_have_quotes_and_an_output_the_name_of_a_table(tmp_path: Path, relative: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, column = Lake(tmp_path), "it's \"x\" read_parquet('/a')"
    lake.go("b1", lake.output("or'd\"ers"), batch.rows((1, "a")).append_column(column, pa.array([7])))
    lake.go("b2", lake.output("runs"), batch.rows((2, "b")))
    monkeypatch.chdir(tmp_path)
    write_database("served.duckdb", lake.state, relative=relative)
    quoted = column.replace('"', '""')
    assert served(tmp_path / "served.duckdb", f'SELECT n, "{quoted}" FROM "or\'d""ers"') == [(1, 7)]
    assert served(tmp_path / "served.duckdb", "SELECT n FROM runs") == [(2,)]


def test_it_is_replaced_in_one_step_while_clients_read(both: Speed, tmp_path: Path) -> None:
    path = tmp_path / "served.duckdb"
    write_database(str(path), both.state)
    client = duckdb.connect(str(path), read_only=True)
    commit(Lake(both.folder), "b2", "day", timed([DAY, DAY + 1], first=200), Range(DAY, 2 * DAY))
    with pytest.raises(duckdb.IOException):  # the commit has deleted what it replaced
        client.execute("SELECT * FROM rows").fetchall()
    write_database(str(path), both.state)
    client.close()
    assert elsewhere(path, ALL_N, cwd=tmp_path) == "[(0,), (2,), (3,), (200,), (201,)]"
    assert list(tmp_path.glob("*.inprogress*")) == []


def test_readers_during_replacements_get_one_commits_rows_or_an_error(both: Speed, tmp_path: Path) -> None:
    """Never a mixture: each commit writes one number alone into the committed day."""
    path, over, seen, lake = tmp_path / "served.duckdb", threading.Event(), set(), Lake(both.folder)
    write_database(str(path), both.state)
    commits = 8

    def replace() -> None:
        try:
            for number in range(1, commits):
                commit(lake, f"c{number}", "day", timed([DAY] * 3, first=1000 * number), Range(DAY, 2 * DAY))
                write_database(str(path), both.state)
        finally:
            over.set()

    writer = threading.Thread(target=replace)
    writer.start()
    while not over.is_set():
        try:
            with duckdb.connect() as reader:
                found = tuple(n for (n,) in reader.execute(f"ATTACH '{path}' AS s (READ_ONLY); SELECT n FROM s.rows").fetchall())
        except (duckdb.IOException, duckdb.InvalidInputException):
            continue
        seen.add(found)
    writer.join()
    for found in seen:
        assert len({n // 1000 for n in found if n >= 1000}) <= 1
    assert [n for (n,) in served(path, ALL_N)] == [0, 2, 3, *(1000 * (commits - 1) + n for n in range(3))]


def first_duplicate(speed: Speed) -> None:
    speed.store(speed.writing("rows", by=("day(t)",)), rows([0], change=-1, source="s"))


def next_start(speed: Speed) -> None:
    """It comes past the window of `hourly`, and shows nothing there."""
    write_progress(speed.state, 1, Reached(watermark_micros=0))
    speed.restart("r2")
    begin(speed.state, 2)
    write_progress(speed.state, 2, Reached(watermark_micros=10 * DAY, began_micros=0))


def first_discarded(speed: Speed) -> None:
    resolve(speed.state, "discard-1", open_tables(speed.state).sql("FROM dead_letters").to_arrow_table(), how="discarded")


def more_of_each(speed: Speed) -> None:
    speed.store(speed.writing("rows", by=("day(t)",)), timed([3 * DAY], first=9))
    speed.store(speed.writing("hourly", of="hourly"), panes(("a", 1, 11, "late", 1, 1)))
    speed.letter(letter(5, 3 * DAY))


ALL = ("FROM rows ORDER BY n", "FROM rows_speed ORDER BY n", "FROM hourly", "SELECT position FROM dead_letters ORDER BY ALL")


@pytest.fixture
def streamed(both: Speed) -> Speed:
    both.store(both.writing("hourly", of="hourly"), panes(("a", 1, 10, "early", 1, 0)))
    both.letter(letter(7, 3 * DAY))
    begin(both.state, 1)
    return both


@pytest.mark.parametrize("change", [more_of_each, first_duplicate, next_start, first_discarded])
def test_what_a_stream_does_next_is_in_the_old_file(streamed: Speed, tmp_path: Path, change: Any) -> None:
    path = tmp_path / "served.duckdb"
    first = write_database(str(path), streamed.state)
    made, before = path.stat().st_ino, [served(path, sql) for sql in ALL]
    change(streamed)
    after = [served(path, sql) for sql in ALL]
    assert after == [open_tables(streamed.state).execute(sql).fetchall() for sql in ALL] != before
    assert write_database(str(path), streamed.state, known=first) == first
    assert path.stat().st_ino == made  # it would be the same: not written


def new_column(speed: Speed) -> None:
    speed.store(speed.writing("rows", by=("day(t)",)), timed([3 * DAY], first=9).append_column("more", pa.array([1])))


def first_of_a_table(speed: Speed) -> None:
    speed.store(speed.writing("other", of="other"), panes(("a", 1, 10, "early", 1, 0)))


@pytest.mark.parametrize("change", [new_column, first_of_a_table])
def test_what_changes_the_views_makes_another_file(streamed: Speed, tmp_path: Path, change: Any) -> None:
    path = tmp_path / "served.duckdb"
    first = write_database(str(path), streamed.state)
    change(streamed)
    assert write_database(str(path), streamed.state, known=first) != first
    mine = open_tables(streamed.state)
    for table in views(streamed.state):
        assert served(path, f"FROM {table} ORDER BY ALL") == mine.execute(f"FROM {table} ORDER BY ALL").fetchall()


def test_the_first_row_without_an_event_time_is_in_the_old_file(tmp_path: Path) -> None:
    lake, speed, path = Lake(tmp_path), Speed(tmp_path), tmp_path / "served.duckdb"
    writing = speed.writing("rows", by=("day(t)",))
    speed.store(writing, timed([0, DAY]))
    commit(lake, "b1", "day", timed([DAY], first=100), Range(DAY, 2 * DAY))
    write_database(str(path), speed.state)
    speed.store(writing, timed([None], first=7))
    assert served(path, ALL_N) == [(0,), (7,), (100,)]


def test_an_old_file_does_not_have_a_column_that_is_new(streamed: Speed, tmp_path: Path) -> None:
    path = tmp_path / "served.duckdb"
    write_database(str(path), streamed.state)
    new_column(streamed)
    assert served(path, ALL_N) == [(0,), (2,), (3,), (9,), (100,)]
    assert "more" not in [row[0] for row in served(path, "DESCRIBE rows")]


def test_nothing_to_serve_and_nowhere_to_write_are_one_clear_error(both: Speed, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing has been stored yet"):
        view_statements(str(tmp_path / "empty"))
    with pytest.raises(SinkError, match=r"no-such-folder.*cannot be written"):
        write_database(str(tmp_path / "no-such-folder/x.duckdb"), both.state)


def test_a_file_of_the_lake_that_is_gone_is_said_and_the_old_file_stays(both: Speed, tmp_path: Path) -> None:
    path = tmp_path / "served.duckdb"
    write_database(str(path), both.state)
    before = path.read_bytes()
    next((both.folder / "rows").rglob("*.parquet")).unlink()
    with pytest.raises(RunError, match="No files found") as failed:
        write_database(str(path), both.state)
    assert "a new run writes it again" in str(failed.value.hint)
    assert path.read_bytes() == before
    assert list(tmp_path.glob("*.inprogress*")) == []


def test_the_command_writes_and_prints(call: Call, orders: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.duckdb"
    assert "nothing has been stored yet" in call("serve", orders, "--duckdb", path, code=1).err
    call("run", orders)
    assert call("serve", orders, "--duckdb", path).out == f"{path}: 6 views, as of commit 1\n"
    assert served(path, "SELECT id FROM rows ORDER BY id") == [(1,), (3,), (6,)]
    printed = call("serve", orders, "--sql").out
    connection = duckdb.connect()
    connection.execute(printed)
    assert connection.execute("SELECT count(*) FROM by_hour").fetchall() == served(path, "SELECT count(*) FROM by_hour")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "expected one of --duckdb FILE, --bigquery PROJECT.DATASET and --sql"),
        (("--sql", "--duckdb", "x"), "expected one of"),
        (("--sql", "--watch"), "--watch goes with --duckdb FILE"),
        (("--sql", "--lake-at", "gs://b"), "--lake-at goes with --bigquery PROJECT.DATASET"),
        (("--sql", "--relative"), "--relative goes with --duckdb FILE"),
    ],
)
def test_options_that_do_not_fit_are_one_clear_error(call: Call, orders: Path, words: tuple[str, ...], says: str) -> None:
    assert says in call("serve", orders, *words, code=2).err


@pytest.fixture
def watching(call: Call, orders: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    call("run", orders)
    path = orders.parent / "s.duckdb"
    command = [sys.executable, "-m", "beam_pipelines", "serve", str(orders), "--duckdb", str(path), "--watch"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    yield process, path
    process.kill()
    process.wait()


def test_watch_follows_the_commits(watching: tuple[subprocess.Popen[str], Path], call: Call, orders: Path) -> None:
    process, path = watching
    assert process.stdout is not None
    assert process.stdout.readline() == f"{path}: 6 views, as of commit 1\n"
    (orders.parent / "orders.csv").write_text("id,placed_at,shop,amount,note\n9,2024-05-01T10:00:00Z,north,9.50,first\n")
    call("run", orders)
    assert process.stdout.readline() == f"{path}: 6 views, as of commit 2\n"
    assert served(path, "SELECT id FROM rows_batch ORDER BY id") == open_rows(call, orders)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert list(path.parent.glob("*.inprogress*")) == []


@pytest.mark.slow  # `test_what_changes_the_views_makes_another_file` is the everyday one
def test_watch_follows_the_stream_without_a_commit(watching: tuple[subprocess.Popen[str], Path], orders: Path) -> None:
    process, path = watching
    assert process.stdout is not None
    assert process.stdout.readline() == f"{path}: 6 views, as of commit 1\n"
    speed = Speed(orders.parent / "stream")
    speed.store(speed.writing("hourly", of="hourly"), panes(("a", 1, 10, "early", 1, 0)))
    write_outputs(str(orders.parent / ".beam_pipelines/orders"), speed.outputs)
    assert process.stdout.readline() == f"{path}: 8 views, as of commit 1\n"
    assert served(path, "SELECT total FROM hourly") == [(10,)]


def open_rows(call: Call, spec: Path) -> list[tuple[int]]:
    printed = call("query", spec, "SELECT id FROM rows_batch ORDER BY id", "--format", "csv").out
    return [(int(line),) for line in printed.splitlines()[1:]]
