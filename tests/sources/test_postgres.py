"""PostgreSQL as a source of the batch path, on a real server: the rows that come out are the rows of one moment, whatever the table's shape and whoever writes to it."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import math
from pathlib import Path

import pytest

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.ranges import Range
from beam_pipelines.errors import SourceError, SpecError, TransientError
from beam_pipelines.runners.direct import run_batch
from beam_pipelines.sources import postgres
from beam_pipelines.sources.bigquery_range import Near
from beam_pipelines.sources.database import open_database, rows_at
from beam_pipelines.sources.database_connection import snapshots_held
from beam_pipelines.sources.postgres import read_postgres
from beam_pipelines.spec.load import load_spec
from beam_pipelines.spec.sources import DatabaseSource
from tests.postgres_server import Database
from tests.sources.postgres_orders import COLUMNS, Row, contract, fill, names_of, opened, orders, read, source, spec, stored


def ids(database: Database, table: str = "orders", splits: int = 8, **more: str) -> list[int]:
    with snapshots_held():
        part = opened(source(database, table, max_splits=splits, **more), id="int64")
        found, broken = read(part)
        assert not broken
        assert len(set(names_of(found))) == found.num_rows
        return sorted(found["id"].to_pylist())


@pytest.mark.slow
def test_what_was_inserted_is_what_a_run_stores(database: Database, tmp_path: Path) -> None:
    rows = orders(200_000)
    database.run(f"CREATE TABLE orders({COLUMNS})")
    fill(database, "orders", rows)
    loaded = spec(tmp_path, f'{{database: "{database.url}", table: orders}}')
    record = run_batch(loaded)
    assert (record.status, dict(record.dead_letters)) == ("success", {})
    assert sum(line.read for line in record.ledger) == 200_000
    found = stored(loaded)
    for got, expected in zip(sorted(found), rows, strict=True):
        assert plain(got) == plain(expected)
    assert not database.connections()


def plain(row: Row) -> Row:
    return (*row[:-1], json.loads(row[-1]) if isinstance(row[-1], str) else row[-1])


@pytest.mark.parametrize("splits", [1, 2, 3, 7])
def test_any_number_of_splits_gives_each_row_once_of_tables_with_holes_partitions_and_heirs(database: Database, splits: int) -> None:
    filler = "repeat('x', 500)"
    database.run(
        f"CREATE TABLE holes AS SELECT i AS id, {filler} AS f FROM generate_series(1, 20000) i", "DELETE FROM holes WHERE id % 3 = 0 OR id BETWEEN 5000 AND 9000",
        "CREATE TABLE parts(id int, f text) PARTITION BY RANGE (id)", "CREATE TABLE p0 PARTITION OF parts FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE p1 PARTITION OF parts FOR VALUES FROM (10) TO (15000) PARTITION BY LIST (id)", "CREATE TABLE p11 PARTITION OF p1 DEFAULT",
        "CREATE TABLE p2(f text, gone int, id int)", "ALTER TABLE p2 DROP gone", "ALTER TABLE parts ATTACH PARTITION p2 FOR VALUES FROM (15000) TO (90000)",
        "CREATE TABLE p3 PARTITION OF parts FOR VALUES FROM (90000) TO (90001)",
        f"INSERT INTO parts SELECT i, {filler} FROM generate_series(1, 20000) i",
        "CREATE TABLE old(id int, f text)", "CREATE TABLE heir(more int) INHERITS (old)",
        f"INSERT INTO old SELECT i, {filler} FROM generate_series(1, 9000) i", f"INSERT INTO heir SELECT i, {filler} FROM generate_series(9001, 18000) i",
        "CREATE TABLE empty(id int)", "CREATE TABLE nowhere(id int) PARTITION BY LIST (id)",
    )  # fmt: skip
    assert ids(database, "holes", splits) == [i for i in range(1, 20_001) if i % 3 and not 5000 <= i <= 9000]
    assert ids(database, "parts", splits) == list(range(1, 20_001))
    assert ids(database, "old", splits) == list(range(1, 18_001))
    assert ids(database, "empty", splits) == ids(database, "nowhere", splits) == []
    with snapshots_held():
        assert len(opened(source(database, "parts", max_splits=splits)).splits) == min(splits, 2)
    loose = opened(source(database, "parts", max_splits=splits), id="int64")  # nobody holds a snapshot: one worker
    assert (len(loose.splits), loose.placed) == (1, "together")
    found, _ = read(loose)
    assert sorted(found["id"].to_pylist()) == list(range(1, 20_001))
    assert len(set(names_of(found))) == 20_000


def test_writers_change_nothing_of_what_a_run_reads(database: Database) -> None:
    database.run("CREATE TABLE orders AS SELECT i AS id, repeat('x', 500) AS f FROM generate_series(1, 30000) i")
    with snapshots_held():
        part = opened(source(database, max_splits=3), id="int64")
        assert len(part.splits) == 3
        first = names_of(read(part, [0])[0])
        database.run(
            "UPDATE orders SET id = -id WHERE id % 2 = 0",
            "DELETE FROM orders WHERE id % 5 = 0",
            "INSERT INTO orders SELECT 7 FROM generate_series(1, 5000)",
        )
        database.run("VACUUM orders")
        found, _ = read(part)
        assert sorted(found["id"].to_pylist()) == list(range(1, 30_001))
        assert names_of(read(part, [0])[0]) == first
        assert len(database.connections()) == 1
    assert not database.connections()
    assert 7 in ids(database)


def test_while_a_run_reads_nobody_takes_a_table_or_a_part_of_it_away(database: Database) -> None:
    database.run(
        "CREATE TABLE parts(id int) PARTITION BY LIST (id)", "CREATE TABLE p0 PARTITION OF parts DEFAULT", "INSERT INTO parts VALUES (1)"
    )
    with snapshots_held():
        part = opened(source(database, "parts"), id="int64")
        for statement in ("TRUNCATE parts", "TRUNCATE p0", "DROP TABLE p0", "VACUUM FULL p0", "ALTER TABLE parts ADD more int"):
            with pytest.raises(Exception, match="lock timeout"):
                database.run("SET lock_timeout = '50ms'", statement)
        assert read(part)[0]["id"].to_pylist() == [1]
    database.run("SET lock_timeout = '5s'", "TRUNCATE parts")


def test_the_run_lets_go_of_its_connection_also_where_it_fails(database: Database) -> None:
    database.run("CREATE TABLE orders(id int)")

    def fails() -> None:
        with snapshots_held():
            opened(source(database), id="int64")
            assert len(database.connections()) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not database.connections()


@pytest.mark.parametrize("where", [None, "id >= 0"])
def test_a_connection_that_breaks_in_the_middle_is_made_anew_and_no_row_is_lost_or_doubled(database: Database, where: str | None) -> None:
    database.run("CREATE TABLE orders AS SELECT i AS id, repeat(i::text, 300) AS f FROM generate_series(1, 60000) i")
    with snapshots_held():
        part = opened(source(database, max_splits=1, where=where), id="int64", f="string")
        rows: list[int] = []
        ended = 0
        for batch in read_postgres(part, 0):
            rows += batch["id"].to_pylist()
            if ended < 2:
                database.run("UPDATE orders SET id = 0")
                ended += database.end_readers()
        assert ended == 2
        assert sorted(rows) == list(range(1, 60_001))


def test_rows_that_came_before_a_break_come_no_second_time_however_many_follow(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new connection takes the rows by an index: those that have come are its last."""
    database.run(
        "CREATE TABLE orders AS SELECT i AS id, repeat(i::text, 300) AS f FROM generate_series(25000, 1, -1) i",
        "CREATE INDEX ON orders(id)", f"ALTER DATABASE {database.name} SET enable_bitmapscan = off",
    )  # fmt: skip
    monkeypatch.setattr(postgres, "_REMEMBERED", 12_000)
    with snapshots_held():
        held = read_postgres(opened(source(database, max_splits=1, where="id >= 0"), id="int64", f="string"), 0)
        rows = next(held)["id"].to_pylist()
        database.run(f"ALTER DATABASE {database.name} SET enable_seqscan = off")
        assert database.end_readers() == 1
        rows += [row for batch in held for row in batch["id"].to_pylist()]
    assert rows[0] == 25_000
    assert rows[-1] < 25_000
    assert sorted(rows) == list(range(1, 25_001))


def test_without_its_snapshot_a_broken_read_is_one_sentence_and_may_be_tried_again(database: Database) -> None:
    database.run("CREATE TABLE orders AS SELECT i AS id, repeat(i::text, 300) AS f FROM generate_series(1, 60000) i")
    loose = read_postgres(opened(source(database), id="int64", f="string"), 0)
    next(loose)
    assert database.end_readers() == 1
    with pytest.raises(TransientError, match=r"sources.batch\[0\]: 127.*/orders: the connection broke in the middle: \w") as lost:
        list(loose)
    assert lost.value.retryable
    with snapshots_held():
        part = opened(source(database, max_splits=1), id="int64", f="string")
        held = read_postgres(part, 0)
        next(held)
        database.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'")
        assert database.end_readers() == 1
        with pytest.raises(TransientError, match=r"what the run reads is over: .*snapshot.* Run again"):
            list(held)
        with pytest.raises(TransientError, match="what the run reads is over"):
            read(part)


EVERY_TYPE = """
CREATE TABLE every AS SELECT 1 AS row, 1::int2 AS a, 2::int4 AS b, 2::int8 ^ 62 AS c, 1.5::float4 AS d, 'NaN'::float8 AS e, 'x '::char(3) AS f, 'y'::varchar(9) AS g,
  'n'::name AS h, 'c'::"char" AS i, 12345678901234567890.125::numeric AS j, '12.5'::money AS k, 4294967295::oid AS l, interval '1 day 2 hours' AS m, inet '10.0.0.1/8' AS n,
  int4range(1, 5) AS o, '<a/>'::xml AS p, B'101' AS q, time '10:00:00.5' AS r, timetz '10:00+02' AS s, 'happy'::mood AS t, 7::small_number AS u, ROW(1, 'q', NULL)::pair AS v,
  ARRAY[ROW(1, 'q', date 'infinity')::pair] AS w, ARRAY[1.25, NULL]::numeric[] AS x, ARRAY['happy']::mood[] AS y, '[3:4]={7,8}'::int4[] AS z, ARRAY[date '2026-01-01'] AS aa,
  ARRAY[7]::small_number[] AS ab, ARRAY[true, NULL] AS ac, ARRAY[]::int8[] AS ad, '{"a": [1]}'::json AS ae, '00000000-0000-0000-0000-000000000001'::uuid AS af,
  ARRAY['\x01'::bytea] AS ag, 'v'::short_list AS ah
"""


def test_every_type_is_exact_or_the_text_of_the_server(database: Database) -> None:
    database.run(
        "CREATE TYPE mood AS ENUM ('happy', 'sad')", "CREATE DOMAIN number AS int4 CHECK (value > 0)", "CREATE DOMAIN small_number AS number",
        "CREATE TYPE pair AS (x int, y text, z date)", "CREATE DOMAIN short_list AS varchar(20)", EVERY_TYPE,
    )  # fmt: skip
    found, broken = read(
        open_database(source(database, "every"), Contract(columns={"row": Column(type="int64")}, unknown_columns="keep"), number=0)
    )
    assert not broken
    [row] = found.drop_columns(["_source", "_position", "_arrival_time", "row"]).to_pylist()
    assert math.isnan(row.pop("e"))
    assert row == {
        "a": 1, "b": 2, "c": 2.0**62, "d": 1.5, "f": "x  ", "g": "y", "h": "n", "i": "c", "j": "12345678901234567890.125", "k": "12.50", "l": "4294967295",
        "m": "1 day 02:00:00", "n": "10.0.0.1/8", "o": "[1,5)", "p": "<a/>", "q": "101", "r": dt.time(10, 0, 0, 500_000), "s": "10:00:00+02", "t": "happy", "u": 7,
        "v": '{"x":1,"y":"q","z":null}', "w": '[{"x":1,"y":"q","z":"infinity"}]', "x": ["1.25", None], "y": ["happy"], "z": [7, 8], "aa": [dt.date(2026, 1, 1)],
        "ab": ["7"], "ac": [True, None], "ad": [], "ae": '{"a": [1]}', "af": "00000000-0000-0000-0000-000000000001", "ag": [b"\x01"], "ah": "v",
    }  # fmt: skip


WRONG = {
    "day date": ["infinity", "-infinity", "0044-03-15 BC", "10000-01-01"],
    "at timestamptz": ["infinity", "-infinity", "0001-12-31 00:00+00 BC", "294276-12-31 00:00+00"],
    "civil timestamp": ["infinity", "-infinity", "4713-01-01 BC", "10000-01-01"],
    "clock time": ["24:00"],
    "days date[]": ["{2026-01-01,infinity}"],
    "grid int[]": ["{{1,2},{3,4}}"],
}


def test_what_arrow_or_the_years_cannot_hold_is_a_dead_letter_that_says_why(database: Database, tmp_path: Path) -> None:
    good = {
        "day": "0001-01-01",
        "at": "9999-12-31 23:59:59.999999+00",
        "civil": "9999-12-31 23:59:59.999999",
        "clock": "23:59:59.999999",
        "days": "{}",
        "grid": "{1}",
    }
    database.run(f"CREATE TABLE odd(id serial, price numeric, {', '.join(WRONG)})")
    wrong = [(column.split()[0], value) for column, values in WRONG.items() for value in values]
    for column, value in [("day", good["day"]), *wrong]:
        row = {**good, column: value}
        database.run(f"INSERT INTO odd({', '.join(row)}) VALUES ({', '.join(map(repr, row.values()))})")
    database.run("INSERT INTO odd(price) VALUES ('NaN')")
    columns = {
        "id": "int64",
        "price": "decimal(38,9)",
        "at": "timestamp",
        "civil": "datetime",
        "day": "date",
        "clock": "time",
    }
    columns |= {"days": "list<date>", "grid": "list<int64>"}
    path = tmp_path / "pipeline.yaml"
    lines = ", ".join(f"{name}: {{type: '{kind}'}}" for name, kind in columns.items())
    path.write_text(
        f"spec: 1\npipeline: odd\ncontract: {{columns: {{{lines}}}}}\nsources: {{batch: [{{database: '{database.url}', table: odd, row_id: id}}]}}\n"
        "sinks: [{from: rows, parquet: {path: rows}}, {from: dead_letters, parquet: {path: dead}}]\n"
    )
    record = run_batch(load_spec(path))
    assert (record.status, dict(record.dead_letters)) == ("success", {"read:DECODE": len(wrong), "conform:CAST": 1})
    assert stored(load_spec(path), 'id, day, "at"') == [(1, dt.date(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999999, dt.UTC))]
    letters = dict(stored(load_spec(path), "position, message", "dead_letters"))
    for number, (column, value) in enumerate(wrong, start=2):
        assert letters[number].startswith(f"{column}: got "), letters[number]
        assert value in letters[number] or column in ("at", "civil", "grid", "clock")
    assert letters[len(wrong) + 2] == "price: got 'NaN'; expected decimal(38,9)"


def test_with_row_id_rows_keep_their_names_and_a_null_is_a_dead_letter(database: Database, tmp_path: Path) -> None:
    database.run(
        "CREATE TABLE orders AS SELECT i AS id, nullif(i, 5) AS number, timestamptz '2026-11-01' AS at FROM generate_series(1, 9) i"
    )
    loaded = spec(tmp_path, f'{{database: "{database.url}", table: orders, row_id: number}}', id="int64", at="timestamp")
    name = f"database:{database.server.url(database.name).partition('@')[2]}/orders"
    for _ in range(2):
        record = run_batch(loaded)
        assert (record.status, dict(record.dead_letters)) == ("success", {"read:DECODE": 1})
        assert stored(loaded, "_source, _position") == [(name, i) for i in range(1, 10) if i != 5]
    database.run("UPDATE orders SET number = 12 WHERE id = 3", "DELETE FROM orders WHERE id = 4")
    given = loaded.spec.sources.batch[0]
    assert isinstance(given, DatabaseSource)
    [piece] = rows_at(given, loaded.spec.contract, [1, 3, 4, 12])
    assert sorted(zip(piece["_position"].to_pylist(), piece["id"].to_pylist(), piece["_source"].to_pylist(), strict=True)) == [
        (1, 1, name),
        (12, 3, name),
    ]
    without = given.model_copy(update={"row_id": None})
    assert list(rows_at(without, loaded.spec.contract, [1])) == []


def test_two_runs_give_the_same_rows_under_the_names_of_their_moments(database: Database, tmp_path: Path) -> None:
    database.run(f"CREATE TABLE orders({COLUMNS})")
    fill(database, "orders", orders(500))
    loaded = spec(tmp_path, f'{{database: "{database.url}", table: orders}}')
    run_batch(loaded)
    first, names = stored(loaded), stored(loaded, "_source, _position")
    run_batch(loaded)
    assert stored(loaded) == first
    assert len(set(names) - set(stored(loaded, "_source, _position"))) == 500
    assert names[0][0].startswith(f"database:{database.url.partition('@')[2]}/orders@2")


def test_views_foreign_tables_and_queries_need_a_row_id_and_are_read_by_one(database: Database) -> None:
    database.run(
        "CREATE TABLE orders AS SELECT i AS id, i::text AS s FROM generate_series(1, 30000) i",
        "CREATE VIEW seen AS SELECT id, s FROM orders WHERE id > 10",
    )
    with pytest.raises(SpecError, match=r"rows of a view, or of a table that is kept elsewhere, have no place; got no row_id\. Say which"):
        opened(source(database, "seen"), id="int64")
    with snapshots_held():
        assert ids(database, "seen", row_id="id") == list(range(11, 30_001))
        query = "SELECT id, upper(s) AS s -- a comment\n FROM orders WHERE id <= 20;"
        part = opened(source(database, None, query=query, row_id="id"), id="int64", s="string")
        database.run("DELETE FROM orders")
        found, _ = read(part)
        assert found["_position"].to_pylist() == found["id"].to_pylist() == list(range(1, 21))
        assert found["s"].to_pylist() == [str(i) for i in range(1, 21)]


def another(database: Database, *tables: str) -> str:
    """The URL of a new user who may read the tables."""
    name = f"another_{database.name}"
    database.run(f"CREATE ROLE {name} LOGIN", f"GRANT SELECT ON {', '.join(tables)} TO {name}")
    return database.server.url(database.name, name)


def test_who_may_read_the_whole_but_no_part_reads_it_alone_and_sees_what_rows_he_may(database: Database) -> None:
    database.run(
        "DROP ROLE IF EXISTS reader", "CREATE ROLE reader LOGIN", "CREATE TABLE parts(id int, f text) PARTITION BY RANGE (id)",
        "CREATE TABLE p0 PARTITION OF parts FOR VALUES FROM (0) TO (10)", "CREATE TABLE p1 PARTITION OF parts FOR VALUES FROM (10) TO (100000)",
        "INSERT INTO parts SELECT i, repeat('x', 900) FROM generate_series(1, 9000) i", "GRANT SELECT ON parts TO reader",
    )  # fmt: skip
    given = source(database, "parts").model_copy(update={"database": database.server.url(database.name, "reader")})
    with snapshots_held():
        part = opened(given, id="int64")
        assert (part.placed, len(part.splits)) == ("together", 1)
        found, _ = read(part)
        assert sorted(found["id"].to_pylist()) == list(range(1, 9001))
        assert len(set(names_of(found))) == 9000
    database.run(
        "GRANT SELECT ON p0, p1 TO reader",
        "ALTER TABLE parts ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY few ON parts TO reader USING (id % 2 = 0)",
    )
    found, _ = read(opened(given, id="int64"))
    assert sorted(found["id"].to_pylist()) == list(range(2, 9001, 2))


def test_who_may_see_some_rows_reads_alone_and_a_broken_connection_is_told(database: Database) -> None:
    """The server may take the rows by the index of the policy's column: not in the order of their places."""
    database.run(
        "CREATE TABLE orders(id int, tenant int, f text)",
        "INSERT INTO orders SELECT i, i / 1000, repeat(i::text, 150) FROM generate_series(100000, 1, -1) i", "CREATE INDEX ON orders(tenant)",
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY", "CREATE POLICY mine ON orders USING (tenant < 40)", "VACUUM ANALYZE orders",
    )  # fmt: skip
    given = source(database).model_copy(update={"database": another(database, "orders")})
    with snapshots_held():
        part = opened(given, id="int64", f="string")
        assert (part.placed, len(part.splits)) == ("together", 1)
        broken = read_postgres(part, 0)
        next(broken)
        assert database.end_readers() == 1
        with pytest.raises(TransientError, match=r"the connection broke in the middle: .*Run again"):
            list(broken)
        found, _ = read(part)
        assert sorted(found["id"].to_pylist()) == list(range(1, 40_000))


@pytest.mark.parametrize("snapshot", [True, False])
@pytest.mark.parametrize("last", [10, 100])
def test_a_partition_that_may_not_be_read_by_itself_is_read_as_a_part_of_the_whole(database: Database, snapshot: bool, last: int) -> None:
    database.run(
        "CREATE TABLE parts(id int) PARTITION BY RANGE (id)",
        "CREATE TABLE p0 PARTITION OF parts FOR VALUES FROM (0) TO (10)", "CREATE TABLE p1(id int)", "INSERT INTO p1 SELECT generate_series(10, 99)",
        *(["ALTER TABLE parts ATTACH PARTITION p1 FOR VALUES FROM (10) TO (100)"] if last > 10 else []),
        "INSERT INTO parts SELECT generate_series(1, 9)",
        "ALTER TABLE p0 ENABLE ROW LEVEL SECURITY", "ALTER TABLE p1 ENABLE ROW LEVEL SECURITY",
    )  # fmt: skip
    given = source(database, "parts").model_copy(update={"database": another(database, "parts", "p0", "p1")})
    with snapshots_held() if snapshot else contextlib.nullcontext():
        part = opened(given, id="int64")
        assert part.placed == "together"
        found, _ = read(part)
    assert sorted(found["id"].to_pylist()) == list(range(1, last))
    assert len(set(names_of(found))) == last - 1


def test_a_partition_that_is_attached_while_a_run_reads_is_no_part_of_it(database: Database) -> None:
    database.run(
        "CREATE TABLE parts(id int) PARTITION BY RANGE (id)", "CREATE TABLE p0(id int)", "INSERT INTO p0 SELECT generate_series(100, 199)",
        "CREATE TABLE p1 PARTITION OF parts FOR VALUES FROM (0) TO (100)", "INSERT INTO parts SELECT generate_series(1, 99)",
    )  # fmt: skip
    given = source(database, "parts").model_copy(update={"database": another(database, "parts")})
    with snapshots_held():
        mine = opened(source(database, "parts"), id="int64")
        whole = opened(given, id="int64")
        database.run("SET lock_timeout = '5s'", "ALTER TABLE parts ATTACH PARTITION p0 FOR VALUES FROM (100) TO (200)")
        assert [mine.placed, whole.placed] == ["pages", "together"]
        for part in (mine, whole):
            assert sorted(read(part)[0]["id"].to_pylist()) == list(range(1, 100))


def test_where_the_server_exports_no_snapshot_one_worker_reads_it_all_in_its_own_transaction(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    database.run(
        "CREATE TABLE parts(id int, f text) PARTITION BY RANGE (id)", "CREATE TABLE p0 PARTITION OF parts FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE p1 PARTITION OF parts FOR VALUES FROM (10) TO (100000)", "INSERT INTO parts SELECT i, repeat('x', 900) FROM generate_series(1, 9000) i",
        "CREATE ROLE alone LOGIN", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO alone", "REVOKE EXECUTE ON FUNCTION pg_export_snapshot() FROM PUBLIC",
    )  # fmt: skip
    given = source(database, "parts").model_copy(update={"database": database.server.url(database.name, "alone")})
    with snapshots_held(), caplog.at_level(logging.WARNING, "beam_pipelines"):
        part = opened(given, id="int64")
        assert (part.placed, len(part.splits), part.snapshot) == ("together", 1, None)
        assert not database.connections()
        assert "parts: the server exports no snapshot, so one worker reads it all: no permission: " in caplog.text
        found, _ = read(part)
    assert sorted(found["id"].to_pylist()) == list(range(1, 9001))


def test_a_range_of_time_is_left_to_the_server_where_the_column_is_an_instant(database: Database) -> None:
    database.run(
        "CREATE TABLE orders(id int, at timestamptz, day date)",
        "INSERT INTO orders SELECT i, timestamptz '2026-11-01 00:00Z' + i * interval '1 hour', date '2026-11-01' FROM generate_series(0, 99) i",
        "INSERT INTO orders VALUES (100, NULL, NULL), (101, 'infinity', NULL)",
    )
    hours = Range(1_793_491_200_000_000, 1_793_491_200_000_000 + 3 * 3_600_000_000)
    given, kinds = source(database), contract(id="int64", at="timestamp", day="date")
    found, broken = read(open_database(given, kinds, number=0, near=Near("at", hours)))
    assert sorted(found["id"].to_pylist()) == [0, 1, 2, 100]
    assert len(broken) == 1
    assert read(open_database(given, kinds, number=0, near=Near("day", hours)))[0].num_rows == 101


def test_columns_and_where_are_left_to_the_server_and_what_the_contract_drops_is_not_read(database: Database) -> None:
    database.run(
        "CREATE ROLE half LOGIN",
        "CREATE TABLE orders(id int, s text, secret text)",
        "GRANT SELECT (id, s) ON orders TO half",
    )
    database.run("INSERT INTO orders SELECT i, 's' || i, 'x' FROM generate_series(1, 100) i")
    mine = source(database, where="id > 95 -- the newest", row_id="id").model_copy(
        update={"database": database.server.url(database.name, "half")}
    )
    found, _ = read(open_database(mine, Contract(columns={"s": Column(type="string")}, unknown_columns="drop"), number=0))
    assert found.schema.names[3:] == ["id", "s"]
    assert found["s"].to_pylist() == ["s96", "s97", "s98", "s99", "s100"]
    assert read(opened(mine.model_copy(update={"columns": ("id",)}), id="int64"))[0].schema.names[3:] == ["id"]
    with pytest.raises(SourceError, match="no permission: permission denied for table orders"):
        opened(mine, secret="string")
    with pytest.raises(SpecError, match="this user may read some columns of it, but not where a row lies; got no row_id"):
        opened(mine.model_copy(update={"row_id": None}), id="int64")
