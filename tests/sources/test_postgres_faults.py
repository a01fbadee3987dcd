"""What is wrong with a database source, each in one sentence that says what to do; and a password, which no graph, log or record holds."""

from __future__ import annotations

import contextlib
import logging
import pickle
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import apache_beam as beam
import pytest

from beam_pipelines.errors import BeamPipelinesError, SourceError, SpecError, TransientError
from beam_pipelines.pipeline import Job, build
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.runners.doctor import Examination, examine
from beam_pipelines.runners.letter_records import letters_of, records
from beam_pipelines.runners.new_files import run_new_files
from beam_pipelines.runners.preview import preview
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sources import postgres
from beam_pipelines.sources.database_connection import Connection, snapshots_held
from beam_pipelines.sources.postgres import open_postgres, read_postgres
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.sources import DatabaseSource
from tests.conftest import Run
from tests.postgres_server import Database
from tests.server_process import free_ports
from tests.sources.postgres_orders import opened, passworded, read, source, spec, stored
from tests.sources.postgres_proxy import running_proxy

pytestmark = pytest.mark.slow

SECRET = "s3cr%t/@:ü"


@pytest.fixture
def orders(database: Database) -> Database:
    database.run(
        "CREATE TABLE orders AS SELECT i AS id, timestamptz '2026-11-01' + i * interval '1 minute' AS at, i / 10.0 AS amount FROM generate_series(1, 50) i",
        "CREATE SCHEMA sales", "CREATE TABLE sales.refunds(id int)", 'CREATE TABLE "Mixed"(id int)',
    )  # fmt: skip
    return database


WRONG: dict[str, tuple[dict[str, Any], type[BeamPipelinesError], str]] = {
    "no such table": ({"table": "order"}, SourceError, r"there is no table order; did you mean 'orders'\? Known: \"Mixed\", orders, sales.refunds"),
    "another case": ({"table": "Mixed"}, SourceError, r"there is no table Mixed; did you mean '\"Mixed\"'"),
    "no table": ({"table": "pg_class_oid_index"}, SpecError, "is no table or view"),
    "no such column": ({"columns": ("id", "amuont")}, SpecError, "unknown column 'amuont'; did you mean 'amount'"),
    "no such row_id": ({"row_id": "idd"}, SpecError, "unknown column 'idd'; did you mean 'id'"),
    "row_id that is no integer": ({"row_id": "amount"}, SpecError, "row_id 'amount' has type numeric; expected smallint, integer or bigint"),
    "wrong condition": ({"where": "amount >"}, SpecError, 'PostgreSQL refuses: syntax error at or near ".*Check \'where\''),
    "condition of nothing": ({"where": "price > 1"}, SpecError, 'PostgreSQL refuses: column "price" does not exist'),
    "wrong query": ({"table": None, "query": "SELEC 1", "row_id": "id"}, SpecError, "PostgreSQL refuses: syntax error"),
    "query that writes": ({"table": None, "query": "DELETE FROM orders RETURNING id", "row_id": "id"}, SpecError, "PostgreSQL refuses: syntax error"),
    "two queries": ({"table": None, "query": "SELECT 1 AS id; SELECT 2 AS id", "row_id": "id"}, SpecError, "PostgreSQL refuses: syntax error"),
    "way out of the query": ({"table": None, "query": "SELECT 1 AS id) TO PROGRAM 'x' --", "row_id": "id"}, SpecError, "PostgreSQL refuses: subquery in FROM must"),
    "query of a missing table": ({"table": None, "query": "SELECT 1 AS id FROM nothing", "row_id": "id"}, SourceError, 'relation "nothing" does not exist'),
    "names twice": ({"table": None, "query": "SELECT 1 AS id, 2 AS id", "row_id": "id"}, SpecError, "two columns are called 'id'"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_the_spec_says_wrongly_is_one_sentence_before_anything_is_read(orders: Database, wrong: str) -> None:
    more, kind, said = WRONG[wrong]
    with pytest.raises(kind, match=said) as error, snapshots_held():
        opened(source(orders, **{"table": "orders", **more}), id="int64", amount="decimal(12,2)")
    assert str(error.value).startswith("sources.batch[0]: 127.0.0.1:")
    assert "\n" not in str(error.value)
    assert not orders.connections()
    assert orders.run("SELECT count(*) AS n FROM orders") == [{"n": 50}]


def test_a_server_that_is_not_there_or_refuses_is_told_apart(orders: Database) -> None:
    def said(url: str, kind: type[BeamPipelinesError]) -> str:
        with pytest.raises(kind) as error:
            opened(source(orders).model_copy(update={"database": url}), id="int64")
        return str(error.value)

    [nobody] = free_ports(1)
    assert "no server answers: connection to server at" in said(f"postgresql://app@127.0.0.1:{nobody}/shop", TransientError)
    assert "the host is not known here" in said("postgresql://app@nobody.invalid/shop", SourceError)
    assert "there is no such database" in said(orders.server.url("shop"), SourceError)
    assert "lets this user not in: role" in said(orders.server.url(orders.name, "nobody"), SourceError)
    assert "the URL is not understood" in said(f"{orders.url}?colour=red", SpecError)


@pytest.mark.parametrize("url", ["app@[::1]x/shop", "app%zz@host/shop", "app@host/sh%p", "app@host:1x/shop", "app@host/shop?a%zz=1"])
def test_a_url_that_the_driver_repeats_is_told_without_the_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", SECRET)
    given = DatabaseSource(database=f"postgresql://{url}", table="orders", password="env:SHOP_PASSWORD")
    with pytest.raises(SpecError, match="the URL is not understood: ") as error:
        Connection(given, "here")
    assert SECRET not in str(error.value)
    assert quote(SECRET, safe="") not in str(error.value)


def test_hosts_users_and_parameters_may_stand_anywhere_in_the_url(orders: Database) -> None:
    port = orders.server.port
    for url in (
        f"postgres://127.0.0.1:{port}/{orders.name}?user=app", f"postgresql:///{orders.name}?host=127.0.0.1&port={port}&user=app",
        f"postgresql://app@127.0.0.1:1,127.0.0.1:{port}/{orders.name}?application_name=a+b",
    ):  # fmt: skip
        given = source(orders).model_copy(update={"database": url})
        assert DatabaseSource.model_validate(given.model_dump()) == given
        assert read(opened(given, id="int64"))[0].num_rows == 50


def test_a_right_that_is_missing_names_the_grant(orders: Database) -> None:
    orders.run("CREATE ROLE stranger LOGIN")
    given = source(orders).model_copy(update={"database": orders.server.url(orders.name, "stranger")})
    with pytest.raises(SourceError, match=r"no permission: permission denied for table orders. Grant it: GRANT"):
        opened(given, id="int64")
    with pytest.raises(SourceError, match=r"no permission: permission denied for schema sales"):
        opened(given.model_copy(update={"table": "sales.refunds"}), id="int64")


def test_a_statement_that_the_server_cancels_says_how_to_raise_its_time(orders: Database) -> None:
    given = source(orders, where="pg_sleep(0.2) IS NOT NULL").model_copy(
        update={"database": f"{orders.url}?options=-c%20statement_timeout%3D300"}
    )
    part = opened(given, id="int64")
    with pytest.raises(SourceError, match=r"the server cancelled the statement: canceling statement due to statement timeout.*ALTER ROLE"):
        read(part)


def test_an_error_in_the_middle_of_a_table_is_no_lost_connection(orders: Database) -> None:
    part = opened(source(orders, where="1 / (id - 20) < 100"), id="int64")
    with pytest.raises(SourceError, match=r"reading failed: division by zero"):
        read(part)


@pytest.mark.parametrize("table", ["orders", "transactions"])
def test_a_new_connection_that_breaks_too_is_tried_again_whatever_the_table_is_called(database: Database, table: str) -> None:
    database.run(f"CREATE TABLE {table} AS SELECT i AS id, repeat(i::text, 300) AS f FROM generate_series(1, 30000) i")
    with snapshots_held(), running_proxy(database.server.port, b"BEGIN ISOLATION") as proxy:
        url = f"postgresql://app@127.0.0.1:{proxy.port}/{database.name}"
        held = read_postgres(opened(source(database, table, max_splits=1).model_copy(update={"database": url}), id="int64", f="string"), 0)
        rows = next(held).num_rows
        proxy.cuts = 2
        assert database.end_readers() == 1
        assert rows + sum(batch.num_rows for batch in held) == 30_000
        assert proxy.cuts == 0


def test_a_connection_that_always_breaks_at_the_same_row_is_not_tried_for_ever(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """After half a minute it breaks no more: so that this test ends, whatever the source does."""
    monkeypatch.setattr(postgres, "_PATIENCE_S", 1.0)
    database.run("CREATE TABLE orders AS SELECT i AS id, repeat(i::text, 300) AS f FROM generate_series(1, 20000) i")
    [end] = database.run("SELECT (clock_timestamp() + interval '30 s')::text AS at")
    breaks = f"id < 15000 OR clock_timestamp() > '{end['at']}' OR pg_terminate_backend(pg_backend_pid())"
    with snapshots_held(), pytest.raises(TransientError, match=r"the connection breaks again and again: .*Run again later"):
        read(opened(source(database, where=breaks, max_splits=1), id="int64", f="string"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a lock at all waits a moment."""
    settings = {name: "300ms" if name == "lock_timeout" else value for name, value in postgres._SETTINGS.items()}
    monkeypatch.setattr(postgres, "_SETTINGS", settings)


@pytest.mark.parametrize("change", ["ALTER TABLE orders ADD more int", "TRUNCATE orders", "VACUUM FULL orders"])
def test_who_waits_to_change_the_table_waits_no_longer_than_the_run_does(database: Database, change: str, impatient: None) -> None:
    """He waits for the launcher, and a worker behind him: the statement's time ends this test, whatever the source does."""
    database.run("CREATE TABLE orders AS SELECT i AS id FROM generate_series(1, 100) i")
    given = source(database).model_copy(update={"database": f"{database.url}?options=-c%20statement_timeout%3D10000"})
    changer = threading.Thread(target=database.run, args=(change,))
    with snapshots_held():
        part = opened(given, id="int64")
        changer.start()
        while not database.run("SELECT 1 AS waits FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"):
            assert changer.is_alive()
        with pytest.raises(
            TransientError, match=r"orders: somebody changes the table, or waits to: .*lock timeout\. Run again when that is done"
        ):
            read(part)
    changer.join(60)
    assert not changer.is_alive()


@contextlib.contextmanager
def locked(database: Database, table: str) -> Iterator[None]:
    """A transaction that changes the table, and is not yet done."""
    import adbc_driver_postgresql.dbapi as driver  # type: ignore[import-untyped]  # it ships no types

    with driver.connect(database.url) as connection, connection.cursor() as cursor:
        cursor.adbc_statement.set_options(**{"adbc.postgresql.use_copy": "false"})
        cursor.execute(f"LOCK TABLE {table}")
        yield


def test_a_table_that_somebody_changes_is_told_and_not_waited_for(database: Database, impatient: None) -> None:
    """By the launcher, and by a worker whom nobody holds a snapshot for."""
    database.run("CREATE TABLE orders AS SELECT i AS id FROM generate_series(1, 100) i")
    given = source(database).model_copy(update={"database": f"{database.url}?options=-c%20statement_timeout%3D10000"})
    part = opened(given, id="int64")
    for looks in (lambda: opened(given, id="int64"), lambda: read(part)):
        with (
            locked(database, "orders"),
            pytest.raises(TransientError, match=r"orders: somebody changes the table, or waits to: .*lock timeout"),
        ):
            looks()


def test_what_a_condition_lets_through_is_remembered_and_no_more(database: Database) -> None:
    """A place has eight bytes; what a look-up of every batch in all before it would need comes on top."""
    database.run("CREATE TABLE orders AS SELECT i AS id, repeat('x', 100) AS f FROM generate_series(1, 500000) i")
    with snapshots_held():
        part = opened(source(database, where="id > 0", max_splits=1), id="int64", f="string")
        tracemalloc.start()
        try:
            rows = sum(batch.num_rows for batch in read_postgres(part, 0))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert rows == 500_000
    assert peak < 16 * rows


def test_a_password_is_taken_from_its_reference_and_stands_nowhere(
    orders: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = spec(
        tmp_path,
        f'{{database: "{passworded(orders, "orders", SECRET)}", table: orders, password: "env:SHOP_PASSWORD"}}',
        id="int64",
        at="timestamp",
    )
    with pytest.raises(BeamPipelinesError, match="secret env:SHOP_PASSWORD: the environment variable is not set"):
        run_batch(loaded)
    monkeypatch.setenv("SHOP_PASSWORD", "wrong")
    with pytest.raises(SourceError, match=r"lets this user not in: .*password authentication failed"):
        run_batch(loaded)
    monkeypatch.setenv("SHOP_PASSWORD", SECRET)
    caplog.set_level(logging.DEBUG)
    assert run_batch(loaded).status == "success"
    with snapshots_held():
        pipeline = beam.Pipeline()
        build(pipeline, Job(loaded.spec, RunInfo("r", "orders", loaded.state), str(tmp_path / "temp")))
        graph = pipeline.to_runner_api().SerializeToString()
        part = open_postgres(loaded.spec.sources.batch[0], loaded.spec.contract, "here")  # type: ignore[arg-type]
    assert SECRET.encode() not in graph + pickle.dumps(part)
    assert SECRET not in caplog.text
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 3
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def test_libpq_finds_a_password_itself(orders: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = source(orders).model_copy(update={"database": passworded(orders, "orders", SECRET)})
    with pytest.raises(SourceError, match=r"lets this user not in: .*no password supplied"):
        opened(given, id="int64")
    monkeypatch.setenv("PGPASSWORD", SECRET)
    assert read(opened(given, id="int64"))[0].num_rows == 50


def found(loaded: LoadedSpec) -> list[tuple[str, str]]:
    return [(f.state, f.found) for f in examine(Examination(loaded, "batch")) if f.check == "sources.batch[0]"]


def test_doctor_looks_at_the_server_the_table_and_its_columns(orders: Database, tmp_path: Path) -> None:
    [good, missing] = found(spec(tmp_path, f'{{database: "{orders.url}", table: orders}}', id="int64", at="timestamp", colour="string"))
    place = orders.url.partition("@")[2]
    assert good == (
        "good",
        f"{place}/orders: PostgreSQL {orders.run('SHOW server_version')[0]['server_version'].split()[0]}, 2 columns are read",
    )
    assert missing == ("warning", f"{place}/orders: no column colour, which the contract names: NULL in every row")
    [(state, said)] = found(spec(tmp_path, f'{{database: "{orders.url}", table: order}}', id="int64", at="timestamp"))
    assert (state, "there is no table order" in said) == ("bad", True)
    assert not orders.connections()


def test_preview_reads_the_first_rows_and_new_files_are_refused(orders: Database, tmp_path: Path) -> None:
    loaded = spec(tmp_path, f'{{database: "{orders.url}", table: orders}}', id="int64", at="timestamp", amount="decimal(12,2)")
    views = preview(loaded, rows=10)
    assert (views[0].rows_in, views[-1].rows_out) == (10, 10)
    assert not orders.run(
        "SELECT 1 AS left FROM pg_stat_activity WHERE application_name = 'beam-pipelines' AND datname = current_database()"
    )
    with pytest.raises(SpecError, match=r"--new-files: sources.batch\[0\] is the table .*/orders, which does not tell what is new"):
        list(run_new_files(loaded, Call()))


def test_dead_letters_are_looked_up_again_by_their_row_id(orders: Database, tmp_path: Path, beam_pipelines: Run) -> None:
    orders.run("UPDATE orders SET amount = 'NaN' WHERE id IN (7, 8)", "ALTER TABLE orders ALTER id TYPE bigint")
    loaded = spec(tmp_path, f'{{database: "{orders.url}", table: orders, row_id: id}}', id="int64", at="timestamp", amount="decimal(12,2)")
    assert dict(run_batch(loaded).dead_letters) == {"conform:CAST": 2}
    seen = beam_pipelines("dlq", "inspect", loaded.path).stdout
    assert "amount: got 'NaN'; expected decimal(12,2)" in seen
    letters = letters_of(ask(open_tables(loaded.state), "SELECT * FROM dead_letters"))
    again = [batch["id"].to_pylist() for batch, _ in records(loaded.spec, loaded.state, "batch", letters)]
    assert sorted(i for some in again for i in some) == [7, 8]
    orders.run("UPDATE orders SET amount = 1 WHERE id = 7")
    beam_pipelines("dlq", "replay", loaded.path)
    assert len(stored(loaded, "id")) == 49


def test_the_command_says_what_is_wrong_without_a_traceback(orders: Database, tmp_path: Path, beam_pipelines: Run) -> None:
    wrong = spec(tmp_path / "wrong", f'{{database: "{orders.server.url("shop")}", table: orders}}', id="int64", at="timestamp")
    done = beam_pipelines("run", wrong.path, expect=None)
    assert done.returncode == 1
    assert "there is no such database" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_range_with_deduplicate_needs_a_row_id(orders: Database, tmp_path: Path, beam_pipelines: Run) -> None:
    text = "deduplicate: {within: 2d}"
    loaded = spec(tmp_path, f'{{database: "{orders.url}", table: orders}}', more=text, id="int64", at="timestamp")
    days = ("--from", "2026-11-01", "--to", "2026-11-02")
    refused = beam_pipelines("run", loaded.path, *days, expect=2).stderr
    assert "Say which integer column is different in every row: row_id: id." in refused
    named = spec(tmp_path, f'{{database: "{orders.url}", table: orders, row_id: id}}', more=text, id="int64", at="timestamp")
    beam_pipelines("run", named.path, *days)
    assert len(stored(named, "id")) == 50
