"""Tables of PostgreSQL and SQLite as lookups: what is held is what the database holds, or the run says why not."""

from __future__ import annotations

import datetime as dt
import logging
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from beam_pipelines.errors import BeamPipelinesError, RunError, SourceError, SpecError, TransientError
from beam_pipelines.runners.direct import run_batch
from beam_pipelines.runners.doctor import Examination, examine
from beam_pipelines.runners.preview import preview
from beam_pipelines.sources import lookups
from beam_pipelines.sources.lookups import FileLookup, lookups_of, state_of, versions_of
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.sources import DatabaseLookup
from tests.postgres_server import Database
from tests.server_process import free_ports
from tests.sources.postgres_orders import COLUMNS, TYPES, fill, orders, passworded, spec, stored
from tests.sources.postgres_proxy import running_proxy
from tests.sources.test_sqlite import made

SECRET = "s3cr%t/@:ü"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a server that is away."""
    monkeypatch.setattr(lookups, "_PATIENCE_DATABASE_S", 0.0)


@pytest.fixture
def customers(database: Database) -> Database:
    """Three customers, of whom one has no number."""
    database.run(
        "CREATE TABLE customers(number int8, name text, rate numeric(5,2), since timestamptz)",
        "INSERT INTO customers VALUES (1, 'Ada', 0.10, '2026-01-01'), (2, 'Bob', NULL, 'epoch'), (NULL, 'Eve', 1, NULL)",
    )
    return database


def given(database: Database | str, table: str | None = "customers", key: Any = "number", **more: Any) -> DatabaseLookup:
    return DatabaseLookup(database=database if isinstance(database, str) else database.url, table=table, key=key, **more)


def rows_of(source: DatabaseLookup) -> pa.RecordBatch:
    return FileLookup("customers", source)().rows


def orders_of(folder: Path, lookup: str, *, more: str = "") -> LoadedSpec:
    """A spec whose orders get the name and the rate of their customers."""
    folder.mkdir(exist_ok=True)
    (folder / "orders.jsonl").write_text("".join(f'{{"id": {i}, "at": "2026-11-01T00:00:00Z", "customer": {i % 4}}}\n' for i in range(8)))
    enriched = "transform: [{lookup: {from: customers, on: customer, take: {name: name, rate: rate}}}]"
    source = "{files: orders.jsonl, format: json}"
    text = f"lookups:\n  customers: {lookup}\n{enriched}\n{more}"
    return spec(folder, source, more=text, id="int64", at="timestamp", customer="int64")


EXPECTED = [(0, None, None), (1, "Ada", Decimal("0.10")), (2, "Bob", None), (3, None, None)]


def test_rows_of_a_run_get_the_columns_of_a_table_in_postgres_and_a_miss_is_null(customers: Database, tmp_path: Path) -> None:
    table = f'{{database: "{customers.url}", table: customers, key: number, columns: {{rate: "decimal(5,2)"}}}}'
    loaded = orders_of(tmp_path, table)
    record = run_batch(loaded)
    assert (record.status, dict(record.dead_letters)) == ("success", {})
    assert stored(loaded, "id, name, rate") == sorted(((i, *EXPECTED[i % 4][1:]) for i in range(8)), key=repr)
    assert set(record.metadata.lookups) == {"customers"}
    assert not customers.connections()  # nothing was left open, though the run could have held it
    assert [(view.name, view.rows_out) for view in preview(loaded, rows=3) if view.name == "transform"] == [("transform", 3)]


def test_rows_of_a_run_get_the_columns_of_a_table_in_sqlite_by_a_path_from_the_spec_s_folder(tmp_path: Path) -> None:
    made(tmp_path, "CREATE TABLE t(number INTEGER, name TEXT, rate TEXT)", rows=[(1, "Ada", "0.10"), (2, "Bob", None), (None, "Eve", "1")])
    loaded = orders_of(tmp_path, '{database: "sqlite:///shop.db", table: t, key: number, columns: {rate: "decimal(5,2)"}}')
    assert run_batch(loaded).status == "success"
    assert stored(loaded, "id, name, rate") == sorted(((i, *EXPECTED[i % 4][1:]) for i in range(8)), key=repr)


def test_every_type_comes_as_the_source_gives_it_to_the_contract(database: Database) -> None:
    database.run(f"CREATE TABLE orders({COLUMNS})")
    rows = orders(300)
    fill(database, "orders", rows)
    found = rows_of(given(database, "orders", "id", columns={"amount": TYPES["amount"]}))
    expected = [row for row in rows if row[0] is not None]
    keys = [row["id"] for row in found.to_pylist()]
    assert keys == [row[0] for row in expected]
    doc = len(TYPES) - 1  # JSON, as the server writes it
    assert [tuple(row.values())[:doc] for row in found.to_pylist()] == [row[:doc] for row in expected]
    assert found.schema.field("doc").type == pa.string()


@pytest.mark.parametrize(
    "what",
    [
        {"table": "few"}, {"table": "parts"}, {"table": "plain", "where": "i > 0 AND i < 3"}, {"table": None, "query": "SELECT i, i::text AS s FROM plain WHERE i < 3;"},
    ],
    ids=["view", "partitioned", "where", "query"],
)  # fmt: skip
def test_views_partitions_and_queries_need_no_row_id(database: Database, what: dict[str, Any]) -> None:
    database.run(
        "CREATE TABLE plain AS SELECT i, i::text AS s FROM generate_series(1, 5) i", "CREATE VIEW few AS SELECT * FROM plain WHERE i < 3",
        "CREATE TABLE parts(i int, s text) PARTITION BY RANGE (i)", "CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (2)",
        "CREATE TABLE high PARTITION OF parts FOR VALUES FROM (2) TO (9)", "INSERT INTO parts VALUES (1, '1'), (2, '2')",
    )  # fmt: skip
    found = rows_of(given(database, key=["i", "s"], **what))
    assert sorted(found.to_pylist(), key=lambda row: row["i"]) == [{"i": 1, "s": "1"}, {"i": 2, "s": "2"}]


def test_an_empty_table_has_the_types_of_its_columns(database: Database) -> None:
    database.run("CREATE TABLE customers(number int4, name text, since timestamptz, rate numeric)")
    found = rows_of(given(database, columns={"rate": "decimal(5,2)"}))
    assert found.num_rows == 0
    assert dict(zip(found.schema.names, found.schema.types, strict=True)) == {
        "number": pa.int32(), "name": pa.string(), "since": pa.timestamp("us", "UTC"), "rate": pa.decimal128(5, 2),
    }  # fmt: skip


def test_an_empty_table_of_sqlite_matches_nothing(tmp_path: Path) -> None:
    url = made(tmp_path, "CREATE TABLE t(number INTEGER, name TEXT)")
    found = rows_of(given(url, "t", columns={"number": "int64"}))
    assert (found.num_rows, found.schema.field("number").type) == (0, pa.int64())


WRONG: dict[str, tuple[dict[str, Any], type[BeamPipelinesError], str]] = {
    "table": ({"table": "customer"}, SourceError, r"there is no table customer; did you mean 'customers'\?"),
    "key": ({"key": "nummer"}, SpecError, r"no column 'nummer' for its key; did you mean 'number'\?"),
    "column": ({"columns": {"rat": "float64"}}, SpecError, r"no column 'rat' to give a type; did you mean 'rate'\?"),
    "type": ({"columns": {"name": "int64"}}, RunError, "3 rows do not fit its columns' types; the first: name: got 'Ada'; expected int64"),
    "where": ({"where": "nothing = 1"}, SpecError, 'PostgreSQL refuses: column "nothing" does not exist'),
    "twice": ({"table": None, "query": "SELECT 1 AS number FROM customers"}, RunError, r"its key must be unique; got number: 1 3 times|its key must be unique"),
    "value": ({"table": None, "query": "SELECT number, timestamp 'infinity' AS at FROM customers"}, RunError, r"3 rows have values that cannot be read; the first: at: got infinity; expected a time of the years 1 to 9999\. A lookup is read whole or not at all: repair"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_names_the_lookup_and_no_retry_helps(customers: Database, wrong: str) -> None:
    change, kind, expected = WRONG[wrong]
    with pytest.raises(kind, match=rf"lookup '?'customers'?.*{expected}") as error:
        rows_of(given(customers, **change))
    assert not error.value.retryable


def test_a_right_that_is_missing_names_the_grant(customers: Database) -> None:
    customers.run("CREATE ROLE guest LOGIN")
    try:
        with pytest.raises(SourceError, match=r"lookup 'customers': .*no permission: .*Grant it: GRANT"):
            rows_of(given(customers.server.url(customers.name, "guest")))
    finally:
        customers.run("DROP ROLE guest")


def test_duplicates_of_a_key_can_be_chosen_among(customers: Database) -> None:
    query = "SELECT 7 AS number, name FROM customers ORDER BY name"
    assert rows_of(given(customers, None, query=query, duplicates="first"))["name"].to_pylist() == ["Ada"]
    assert rows_of(given(customers, None, query=query, duplicates="last"))["name"].to_pylist() == ["Eve"]


def test_no_server_stops_the_run_before_it_begins_and_a_retry_is_right(tmp_path: Path) -> None:
    [nobody] = free_ports(1)
    loaded = orders_of(tmp_path, f'{{database: "postgresql://app@127.0.0.1:{nobody}/shop", table: customers, key: number}}')
    with pytest.raises(TransientError, match=r"lookup 'customers': 127.0.0.1:\d+/shop/customers: no server answers: .*Check host and port"):
        run_batch(loaded)


def test_a_server_that_sends_connections_away_for_a_moment_is_asked_again(
    customers: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lookups, "_PATIENCE_DATABASE_S", 60.0)
    with running_proxy(customers.server.port, b"BEGIN ISOLATION") as proxy:
        proxy.cuts = 2
        found = rows_of(given(f"postgresql://app@127.0.0.1:{proxy.port}/{customers.name}"))
    assert (found.num_rows, proxy.cuts) == (2, 0)
    assert caplog.text.count("It is asked again for 60 s.") == 1


def test_a_stream_keeps_the_table_it_has_while_the_database_does_not_give_another(
    customers: Database, caplog: pytest.LogCaptureFixture
) -> None:
    lookup = FileLookup("customers", given(customers, refresh="1ms"), endless=True)
    assert lookup().rows.num_rows == 2
    customers.run("INSERT INTO customers VALUES (3, 'Cyd')")
    assert lookup().rows.num_rows == 3
    customers.run("ALTER TABLE customers RENAME TO elsewhere")
    assert lookup().rows.num_rows == 3
    assert "lookup 'customers' stays as it was, its table cannot be read: " in caplog.text
    customers.run("ALTER TABLE elsewhere RENAME TO customers", "DELETE FROM customers WHERE number = 1")
    assert lookup().rows.num_rows == 2


def test_its_version_is_that_of_its_content_however_the_rows_lie(customers: Database, tmp_path: Path) -> None:
    loaded = orders_of(tmp_path, f'{{database: "{customers.url}", table: customers, key: number}}')
    source = loaded.spec.lookups["customers"]

    def versions() -> tuple[object, ...]:
        return state_of(source), versions_of(loaded.spec, lookups_of(loaded.spec))

    before = versions()
    customers.run("UPDATE customers SET name = name WHERE number = 1")  # the row lies behind the others now
    assert versions() == before
    customers.run("UPDATE customers SET name = 'Ann' WHERE number = 1")
    assert all(now != then for now, then in zip(versions(), before, strict=True))


def test_a_password_is_taken_from_its_reference_and_stands_nowhere(
    customers: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = passworded(customers, "customers", SECRET)
    loaded = orders_of(tmp_path, f'{{database: "{url}", table: customers, key: number, password: "env:SHOP_PASSWORD"}}')
    with pytest.raises(BeamPipelinesError, match="secret env:SHOP_PASSWORD: the environment variable is not set"):
        run_batch(loaded)
    monkeypatch.setenv("SHOP_PASSWORD", "wrong")
    with pytest.raises(SourceError, match=r"lookup 'customers': .*lets this user not in: .*password authentication failed"):
        run_batch(loaded)
    monkeypatch.setenv("SHOP_PASSWORD", SECRET)
    caplog.set_level(logging.DEBUG)
    assert run_batch(loaded).status == "success"
    assert SECRET.encode() not in pickle.dumps(lookups_of(loaded.spec))
    assert SECRET not in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_doctor_reads_it_and_names_what_a_run_would_stumble_over(customers: Database, tmp_path: Path) -> None:
    def looked(change: str) -> tuple[str, str]:
        loaded = orders_of(tmp_path, f'{{database: "{customers.url}", {change}}}')
        [found] = [finding for finding in examine(Examination(loaded, "batch")) if finding.check == "lookups.customers"]
        return found.state, found.found

    place = customers.url.partition("@")[2]
    version = customers.run("SHOW server_version")[0]["server_version"].split()[0]
    assert looked("table: customers, key: number") == ("good", f"{place}/customers: PostgreSQL {version}, 2 rows by number")
    for change, said in (
        ("table: customer, key: number", "there is no table customer"),
        ("table: customers, key: nummer", "no column 'nummer'"),
    ):
        state, found = looked(change)
        assert (state, said in found) == ("bad", True)
    assert not customers.connections()


def test_a_moment_of_a_day_is_the_same_whatever_the_server_s_zone(customers: Database) -> None:
    [first, second] = rows_of(given(customers))["since"].to_pylist()
    assert (first.astimezone(dt.UTC).hour, second.astimezone(dt.UTC)) == (5, dt.datetime(1970, 1, 1, tzinfo=dt.UTC))  # New York's midnight
