"""`init` on a table of a database: whatever the table, the proposal validates, and runs on that very table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from beam_pipelines.spec.load import LoadedSpec, load_spec
from beam_pipelines.spec.sources import DatabaseSource
from tests.cli.conftest import Call
from tests.postgres_server import Database
from tests.sources.postgres_orders import COLUMNS, TYPES, fill, orders, passworded, stored
from tests.sources.test_sqlite import made

SECRET = "s3cr%t/@:ü"


def proposed(call: Call, folder: Path, source: object, *words: object) -> LoadedSpec:
    """What `init` writes into the folder, loaded."""
    assert "It is a proposal, and it validates." in call("init", "--from", source, "--out", folder, "--force", *words).err
    return load_spec(folder / "pipeline.yaml")


def source_of(loaded: LoadedSpec) -> DatabaseSource:
    [source] = loaded.spec.sources.batch
    assert isinstance(source, DatabaseSource)
    return source


def kinds(loaded: LoadedSpec) -> dict[str, str]:
    return {name: column.type for name, column in loaded.spec.contract.columns.items()}


def test_a_table_of_every_type_runs_as_proposed_and_no_row_is_refused(call: Call, database: Database, tmp_path: Path) -> None:
    database.run("CREATE SCHEMA shop", f"CREATE TABLE shop.orders({COLUMNS}, PRIMARY KEY (id))")
    rows = [row for row in orders(200) if row[0] is not None]
    fill(database, "shop.orders", rows)
    loaded = proposed(call, tmp_path, database.url, "--table", "shop.orders")
    contract, source = loaded.spec.contract, source_of(loaded)
    assert kinds(loaded) == TYPES
    assert (contract.key, contract.event_time, source.row_id, loaded.spec.pipeline) == (("id",), "at", "id", "orders")
    assert {name for name, column in contract.columns.items() if column.required} == {"id"}
    record = json.loads(call("run", loaded.path, "--json").out)
    assert (record["status"], record["dead_letters"]) == ("success", {})
    expected = sorted(((*row[:-1], None if row[-1] is None else json.dumps(row[-1], ensure_ascii=False)) for row in rows), key=repr)
    found = stored(loaded)
    assert [row[:-1] for row in found] == [row[:-1] for row in expected]
    assert [None if row[-1] is None else json.loads(row[-1]) for row in found] == [
        None if row[-1] is None else json.loads(row[-1]) for row in expected
    ]


def test_what_the_catalog_says_counts_and_not_what_the_rows_happen_to_hold(call: Call, database: Database, tmp_path: Path) -> None:
    database.run(
        "CREATE DOMAIN sure AS text NOT NULL", "CREATE TYPE mood AS ENUM ('good', 'bad')", "CREATE TYPE pair AS (a int, b text)",
        "CREATE TABLE t(b int, a int2, note text, must text NOT NULL, s sure, any_number numeric, wide numeric(50,2), price money, u uuid, m mood, p pair, "
        "took interval, list numeric[], PRIMARY KEY (a, b))",
        "INSERT INTO t VALUES (1, 2, 'x', 'y', 'z', 1.5, 2, 3, gen_random_uuid(), 'good', (1, 'x'), '1 hour', '{1.5}')",
    )  # fmt: skip
    loaded = proposed(call, tmp_path, database.url, "--table", "t")
    contract = loaded.spec.contract
    assert contract.key == ("a", "b")
    assert source_of(loaded).row_id is None
    assert {name for name, column in contract.columns.items() if column.required} == {"a", "b", "must", "s"}
    assert kinds(loaded) == {
        "b": "int32", "a": "int16", "note": "string", "must": "string", "s": "string", "any_number": "decimal(38,9)", "wide": "decimal(38,9)",
        "price": "decimal(19,2)", "u": "uuid", "m": "string", "p": "json", "took": "string", "list": "list<string>",
    }  # fmt: skip
    assert "the primary key" in loaded.text
    record = json.loads(call("run", loaded.path, "--json").out)
    assert (record["dead_letters"], record["outputs"][0]["rows"]) == ({}, 1)


def test_an_empty_table_is_proposed_as_its_catalog_has_it_and_runs(call: Call, database: Database, tmp_path: Path) -> None:
    database.run("CREATE TABLE t(id int8 PRIMARY KEY, created timestamp, amount numeric(12,2) NOT NULL)")
    loaded = proposed(call, tmp_path, database.url, "--table", "t")
    assert kinds(loaded) == {"id": "int64", "created": "timestamp", "amount": "decimal(12,2)"}
    assert loaded.spec.contract.event_time == "created"
    assert "no offset: read as time_zone says" in loaded.text
    database.run("INSERT INTO t VALUES (1, '2026-11-01 10:00', 5)")
    assert json.loads(call("run", loaded.path, "--json").out)["outputs"][0]["rows"] == 1


def test_a_view_gets_a_row_id_or_is_refused(call: Call, database: Database, tmp_path: Path) -> None:
    database.run(
        "CREATE TABLE t AS SELECT i % 2 AS half, i AS number, i::text AS s FROM generate_series(1, 9) i",
        "CREATE VIEW numbered AS SELECT * FROM t", "CREATE VIEW bare AS SELECT half, s FROM t",
    )  # fmt: skip
    loaded = proposed(call, tmp_path, database.url, "--table", "numbered")
    assert source_of(loaded).row_id == "number"
    assert json.loads(call("run", loaded.path, "--json").out)["outputs"][0]["rows"] == 9
    said = call("init", "--from", database.url, "--table", "bare", code=2)
    assert (said.out, "no integer column is different in every row of the sample" in said.err) == ("", True)


def test_names_and_values_that_need_quotes_or_cannot_be_held_do_no_harm(call: Call, database: Database, tmp_path: Path) -> None:
    database.run(
        'CREATE TABLE "Odd ${t}"(id int8 PRIMARY KEY, "_x" int, "a.b" text, "select" bool, "Id" int, "${p}" text, at timestamptz)',
        """INSERT INTO "Odd ${t}" VALUES (1, 1, 'x', true, 2, '${y}', '2026-01-01'), (2, 1, NULL, NULL, NULL, NULL, 'infinity')""",
    )
    loaded = proposed(call, tmp_path, database.url, "--table", '"Odd ${t}"', "--name", "odd")
    record = json.loads(call("run", loaded.path, "--json").out)
    assert (record["dead_letters"], record["outputs"][0]["rows"]) == ({"read:DECODE": 1}, 1)
    assert "1 more could not be read" in loaded.text.splitlines()[0]


def test_a_sample_stops_at_so_many_rows(call: Call, database: Database, tmp_path: Path) -> None:
    database.run("CREATE TABLE t AS SELECT i AS id FROM generate_series(1, 3000) i")
    said = call("init", "--from", database.url, "--table", "t", "--rows", "10", "--out", tmp_path).err
    assert "Looked at the first 10 records of " in said
    assert not database.run(
        "SELECT 1 AS left FROM pg_stat_activity WHERE application_name = 'beam-pipelines' AND datname = current_database()"
    )


SHOP = (
    "CREATE TABLE orders(id INTEGER PRIMARY KEY, at TEXT, amount DECIMAL(10,2), status TEXT NOT NULL, gift BOOLEAN, blank REAL)",
    "INSERT INTO orders VALUES (1, '2026-11-01T10:00:00Z', 9.9, 'sent', 1, NULL), (2, '2026-11-01T11:00:00Z', 20, '007', 0, NULL)",
)


@pytest.mark.parametrize("shape", ["sqlite:///shop.db", "shop.db", "sqlite:///{folder}/shop.db"])
def test_a_file_of_sqlite_runs_as_proposed_from_wherever_the_spec_lies(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    made(tmp_path, *SHOP)
    monkeypatch.chdir(tmp_path)
    loaded = proposed(call, Path("made"), shape.format(folder=tmp_path))
    source, contract = source_of(loaded), loaded.spec.contract
    assert (source.sqlite, source.table, source.row_id) == (f"{tmp_path}/shop.db", "orders", "id")
    assert (contract.key, contract.event_time) == (("id",), "at")
    assert kinds(loaded) == {
        "id": "int64", "at": "timestamp", "amount": "decimal(10,2)", "status": "string", "gift": "boolean", "blank": "float64",
    }  # fmt: skip
    assert [name for name, column in contract.columns.items() if column.required] == ["id", "status"]
    record = json.loads(call("run", loaded.path, "--json").out)
    assert (record["dead_letters"], record["outputs"][0]["rows"]) == ({}, 2)


ODD = {
    "a table without numbers of rows": ("CREATE TABLE t(id INTEGER PRIMARY KEY, s TEXT) WITHOUT ROWID", ("id",), "id", {"id"}),
    "a primary key that may be NULL": ("CREATE TABLE t(id TEXT PRIMARY KEY, n INT)", ("id",), None, {"id"}),
    "a key of several": ("CREATE TABLE t(b INT, a INT, PRIMARY KEY (a, b))", ("a", "b"), None, {"a", "b"}),
    "a view": ("CREATE VIEW t AS SELECT 1 AS n, 'x' AS s UNION ALL SELECT 2, 'x'", ("n",), "n", {"n", "s"}),
    "a name in quotes": ('CREATE TABLE "a ""t"""(id INTEGER PRIMARY KEY)', ("id",), "id", {"id"}),
}


@pytest.mark.parametrize("odd", ODD)
def test_tables_of_sqlite_have_the_key_and_the_row_id_that_fit_them(call: Call, tmp_path: Path, odd: str) -> None:
    statement, key, row_id, required = ODD[odd]
    fill = {"a view": "SELECT 1", "a name in quotes": 'INSERT INTO "a ""t""" VALUES (1), (2)'}.get(
        odd, "INSERT INTO t VALUES (1, 2), (2, 3)"
    )
    loaded = proposed(call, tmp_path / "made", made(tmp_path, statement, fill))
    contract = loaded.spec.contract
    assert (contract.key, source_of(loaded).row_id) == (key, row_id)
    assert {name for name, column in contract.columns.items() if column.required} == required
    record = json.loads(call("run", loaded.path, "--json").out)
    assert (record["dead_letters"], record["outputs"][0]["rows"]) == ({}, 2)


def test_a_partitioned_table_is_a_table(call: Call, database: Database, tmp_path: Path) -> None:
    database.run(
        "CREATE TABLE parts(id int8, day date NOT NULL, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)",
        "CREATE TABLE one PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')", "INSERT INTO parts VALUES (1, '2026-01-05'), (2, '2026-01-06')",
    )  # fmt: skip
    loaded = proposed(call, tmp_path, database.url, "--table", "parts")
    assert (loaded.spec.contract.key, loaded.spec.contract.event_time, source_of(loaded).row_id) == (("id", "day"), "day", None)
    assert json.loads(call("run", loaded.path, "--json").out)["outputs"][0]["rows"] == 2


def test_a_password_is_referred_to_and_never_written(
    call: Call, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.run("CREATE TABLE t(id int8 PRIMARY KEY)")
    url = passworded(database, "t", SECRET)
    refused = call("init", "--from", url.replace("@", ":hunter2@"), "--table", "t", code=2).err
    assert "the URL holds a password; take it out" in refused
    assert "--password env:NAME" in refused
    assert "hunter2" not in refused
    assert "hunter2" not in call("init", "--from", url, "--table", "t", "--password", "hunter2", code=2).err
    assert "lets this user not in" in call("init", "--from", url, "--table", "t", code=1).err
    monkeypatch.setenv("SHOP_PASSWORD", SECRET)
    loaded = proposed(call, tmp_path, url, "--table", "t", "--password", "env:SHOP_PASSWORD")
    assert source_of(loaded).password == "env:SHOP_PASSWORD"
    assert json.loads(call("run", loaded.path, "--json").out)["status"] == "success"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_what_is_wrong_is_one_sentence_that_says_what_to_do(
    call: Call, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.run("CREATE TABLE orders(id int)", "CREATE TABLE shops(id int)", "CREATE TABLE empty()")
    user = f"stranger_{database.name}"
    database.run(f"CREATE ROLE {user} LOGIN")

    def said(*words: object, code: int = 1) -> str:
        done = call("init", "--from", *words, code=code)
        assert done.out == ""
        return done.err

    assert "there is no table order; did you mean 'orders'?" in said(database.url, "--table", "order")
    assert "no permission: permission denied for table orders. Grant it: GRANT" in said(
        database.server.url(database.name, user), "--table", "orders"
    ).replace("\n", " ")
    assert "got no --table; there are empty, orders, shops. Say which: --table NAME." in said(database.url, code=2).replace("\n", " ")
    assert "empty has no columns" in said(database.url, "--table", "empty", code=2)
    assert "there is no such database" in said(database.server.url("nowhere"), "--table", "t")
    assert "is no URL of a database; expected postgresql://" in said("postgresql://db.example", "--table", "t", code=2)
    assert "the file cannot be opened" in said(f"sqlite:///{tmp_path}/none.db", "--table", "t")
    (tmp_path / "x.csv").write_text("id\n1\n")
    assert "is no database, and has neither --table nor --password" in said(tmp_path / "x.csv", "--table", "t", code=2)
    monkeypatch.setitem(sys.modules, "adbc_driver_postgresql.dbapi", None)
    assert "pip install 'beam-pipelines[databases]'" in said(database.url, "--table", "orders", code=2)
