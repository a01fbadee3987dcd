"""BigQuery as a source of the batch path and as a lookup, on the local server: the rows of a table are the rows of the same Parquet file."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_pipelines.arrow.conform import conform_batch
from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.ranges import Range
from beam_pipelines.errors import BeamPipelinesError, SourceError, SpecError
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.runners.letter_records import Letter, letters_of, records
from beam_pipelines.runners.new_files import run_new_files
from beam_pipelines.runners.preview import preview
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.sources.bigquery import open_source
from beam_pipelines.sources.bigquery_range import Near
from beam_pipelines.sources.bigquery_session import as_read, read_table
from beam_pipelines.sources.lookups import lookups_of, state_of
from beam_pipelines.spec.load import LoadedSpec, load_spec
from beam_pipelines.spec.sources import BigQuerySource
from tests.cloud.bigquery_orders import NAMES, ROWS, TYPES, ids_by_position, orders, read_by_source, rows, rows_of, spec
from tests.cloud.bigquery_server import BigQueryServer

pytestmark = [pytest.mark.cloud, pytest.mark.usefixtures("google_here")]


def test_a_table_gives_the_rows_of_the_same_parquet_file_and_its_ledger_balances(orders_table: str, tmp_path: Path) -> None:
    pq.write_table(orders(ROWS, bad=10), tmp_path / "orders.parquet")
    of_file = spec(tmp_path / "file", f"{{files: {tmp_path}/orders.parquet, format: parquet}}")
    of_table = spec(tmp_path / "table", f"{{bigquery: {orders_table}}}")
    records = [run_batch(loaded) for loaded in (of_file, of_table)]
    assert [record.status for record in records] == ["success", "success"]
    assert [sum(read_by_source(record).values()) for record in records] == [ROWS, ROWS]
    assert [dict(record.dead_letters) for record in records] == [dict(records[0].dead_letters)] * 2
    assert sum(records[1].dead_letters.values()) == 10
    [line] = [line for line in records[1].ledger if line.source]
    assert (line.read, line.dead, sum(line.written.values())) == (ROWS, 10, ROWS - 10)
    assert line.source.startswith(f"bigquery:{orders_table}@")
    names = f"{NAMES}, _unknown"
    assert rows(of_table, names) == rows(of_file, names)
    assert len(rows(of_table, "id")) == ROWS - 10


def test_two_runs_give_the_same_rows_and_where_positions_lie_is_said_by_the_source(orders_table: str, tmp_path: Path) -> None:
    loaded = spec(tmp_path, f"{{bigquery: {orders_table}, where: 'id < 1000'}}")
    run_batch(loaded)
    first, ids = rows(loaded), rows(loaded, "_source, _position")
    run_batch(loaded)
    assert rows(loaded) == first
    assert len(set(ids)) == 990
    assert not set(ids) & set(rows(loaded, "_source, _position"))


def test_with_row_id_rows_keep_their_names_and_a_null_is_a_dead_letter(bigquery: BigQueryServer, tmp_path: Path) -> None:
    table = f"{bigquery.dataset()}.orders"
    named = orders(100).append_column("number", pa.array([None, *range(1, 100)], pa.int64()))
    bigquery.load(table, named)
    loaded = spec(tmp_path, f"{{bigquery: {table}, row_id: number}}")
    for _ in range(2):
        record = run_batch(loaded)
        assert record.status == "success"
        assert dict(record.dead_letters) == {"read:DECODE": 1}
        assert rows(loaded, "_source, _position") == [(f"bigquery:{table}", i) for i in range(1, 100)]
    with pytest.raises(SpecError, match=r"row_id 'place' has type string; expected INT64"):
        run_batch(spec(tmp_path / "other", f"{{bigquery: {table}, row_id: place}}"))


def test_a_query_gives_the_rows_of_its_answer(orders_table: str, bigquery: BigQueryServer, tmp_path: Path) -> None:
    sql = f"SELECT id, at, amount, place, address, tags FROM `{orders_table}` WHERE MOD(id, 1000) = 20"
    loaded = spec(tmp_path, f'{{bigquery: {bigquery.project}, query: "{sql}"}}')
    assert run_batch(loaded).status == "success"
    expected = [(i, *row[1:]) for i, row in enumerate(rows_of(orders(ROWS))) if i % 1000 == 20]
    assert rows(loaded) == expected


def test_a_run_that_is_begun_again_gets_the_answer_of_the_first_query(bigquery: BigQueryServer) -> None:
    table = f"{bigquery.dataset()}.few"
    bigquery.load(table, pa.table({"id": [1, 2]}))
    source = BigQuerySource(bigquery=bigquery.project, query=f"SELECT id FROM `{table}` ORDER BY id")
    first = read_table(source, who="test", job="run-1:0")
    bigquery.load(table, pa.table({"id": [3]}))
    assert read_table(source, who="test", job="run-1:0") == first
    assert read_table(source, who="test", job="run-2:0")["id"].to_pylist() == [1, 2, 3]


def test_where_and_columns_are_left_to_bigquery(orders_table: str, tmp_path: Path) -> None:
    source = f'{{bigquery: {orders_table}, where: "id >= 20 AND id < 30 OR id = 40", columns: [id, at, amount]}}'
    loaded = spec(tmp_path, source)
    record = run_batch(loaded)
    assert sum(read_by_source(record).values()) == 11
    assert rows(loaded, "id, place, _unknown") == [(i, None, None) for i in (*range(20, 30), 40)]


def test_columns_that_the_contract_drops_are_not_read(orders_table: str, tmp_path: Path) -> None:
    loaded = spec(tmp_path, f"{{bigquery: {orders_table}, where: 'id = 33'}}", unknown="drop")
    part = open_source(loaded.spec.sources.batch[0], loaded.spec.contract, number=0, run_id="r")  # type: ignore[arg-type]
    assert part.session.schema.names == ["id", "at", "amount", "place", "address", "tags"]


def test_the_streams_of_a_session_are_disjoint_whole_and_the_same_when_read_again(orders_table: str) -> None:
    part = open_source(
        BigQuerySource(bigquery=orders_table, max_streams=3), Contract(columns={"id": Column(type="int64")}), number=0, run_id="r"
    )
    assert len(part.session.streams) == 3

    def read() -> list[dict[int, int]]:
        return [ids_by_position(part, ordinal) for ordinal in range(3)]

    first = read()
    assert read() == first
    together = {position: i for one in first for position, i in one.items()}
    assert len(together) == sum(map(len, first)) == ROWS
    assert sorted(together.values()) == list(range(ROWS))


ALL_TYPES = """
CREATE TABLE `{table}` AS SELECT 1 AS id, TIMESTAMP '2026-11-01 10:00:00.123456+00' AS instant, DATETIME '2026-11-01 10:00:00' AS civil, DATE '2026-11-01' AS day,
  TIME '10:00:00.5' AS clock, NUMERIC '1.250000001' AS n, BIGNUMERIC '2.5' AS bn, 'x' AS s, b'ab' AS by, JSON '{{"a": 1}}' AS j, ST_GEOGPOINT(1, 2) AS g,
  [1, 2] AS list, STRUCT(7 AS a, 'q' AS b) AS part, [STRUCT(5 AS x)] AS parts, 1.5 AS f, TRUE AS yes
"""


def test_every_type_of_bigquery_has_its_type_in_a_contract(bigquery: BigQueryServer, tmp_path: Path) -> None:
    table = f"{bigquery.dataset()}.types"
    bigquery.rows(ALL_TYPES.format(table=table))
    columns = {
        "id": "int64", "instant": "timestamp", "civil": "datetime", "day": "date", "clock": "time", "n": "decimal(38,9)", "bn": "decimal(38,18)",
        "s": "string", "by": "binary", "j": "json", "g": "string", "list": "list<int64>", "part": "struct<a: int64, b: string>",
        "parts": "list<struct<x: int64>>", "f": "float64", "yes": "boolean",
    }  # fmt: skip
    text = "\n".join(f"    {name}: {{type: '{kind}', required: true}}" for name, kind in columns.items())
    (tmp_path / "p.yaml").write_text(
        f"spec: 1\npipeline: types\ncontract:\n  columns:\n{text}\nsources: {{batch: [{{bigquery: {table}}}]}}\n"
        "sinks: [{from: rows, parquet: {path: rows}}, {from: dead_letters, parquet: {path: dead}}]\n"
    )
    loaded = load_spec(tmp_path / "p.yaml")
    record = run_batch(loaded)
    assert (record.status, dict(record.dead_letters)) == ("success", {})
    [row] = ask(open_tables(loaded.state), "SELECT " + ", ".join(f'"{name}"' for name in columns) + " FROM rows").to_pylist()
    assert row == {
        "id": 1, "instant": dt.datetime(2026, 11, 1, 10, 0, 0, 123456, dt.UTC), "civil": dt.datetime(2026, 11, 1, 10), "day": dt.date(2026, 11, 1),
        "clock": dt.time(10, 0, 0, 500_000), "n": Decimal("1.250000001"), "bn": Decimal("2.5"), "s": "x", "by": b"ab", "j": '{"a":1}', "g": "POINT(1 2)",
        "list": [1, 2], "part": {"a": 7, "b": "q"}, "parts": [{"x": 5}], "f": 1.5, "yes": True,
    }  # fmt: skip


def test_a_value_of_another_type_is_a_dead_letter_as_from_parquet(bigquery: BigQueryServer, tmp_path: Path) -> None:
    table = f"{bigquery.dataset()}.orders"
    wrong = orders(3).set_column(2, "amount", pa.array([1.25, 2.001, 3.5]))
    bigquery.load(table, wrong)
    pq.write_table(wrong, tmp_path / "orders.parquet")
    letters = []
    for name, source in (("table", f"{{bigquery: {table}}}"), ("file", f"{{files: {tmp_path}/orders.parquet, format: parquet}}")):
        loaded = spec(tmp_path / name, source)
        letters.append(dict(run_batch(loaded).dead_letters))
        assert rows(loaded, "id") == [(0,), (2,)]
    assert letters == [{"conform:CAST": 1}] * 2


def test_a_lookup_is_read_from_a_table_and_from_a_query(orders_table: str, bigquery: BigQueryServer, tmp_path: Path) -> None:
    places = f"{bigquery.dataset()}.places"
    bigquery.load(
        places, pa.table({"name": [f"place {i}" for i in range(1, 11)], "country": [f"c{i}" for i in range(1, 11)], "open": [True] * 10})
    )
    sources = (f"bigquery: {places}, where: open", f'bigquery: {bigquery.project}, query: "SELECT name, country FROM `{places}`"')
    found = []
    for number, source in enumerate(sources):
        lookups = f"lookups: {{places: {{{source}, key: name}}}}\ntransform: [{{lookup: {{from: places, on: place, take: {{country: country}}}}}}]"
        loaded = spec(tmp_path / f"{number}", f"{{bigquery: {orders_table}, where: 'id < 500'}}", lookups=lookups)
        record = run_batch(loaded)
        assert record.status == "success"
        assert record.metadata.lookups
        found.append(rows(loaded, "id, country"))
    expected = [None if i % 7 == 0 or i % 11 == 0 else f"c{i % 11}" for i in range(10, 500)]
    assert [country for _, country in found[0]] == expected
    assert found[1] == found[0]


def test_a_lookup_whose_key_repeats_or_whose_table_is_missing_stops_the_run(
    orders_table: str, bigquery: BigQueryServer, tmp_path: Path
) -> None:
    places = f"{bigquery.dataset()}.places"
    bigquery.load(places, pa.table({"name": ["a", "a"]}))
    for name, expected in ((places, "its key must be unique"), (f"{places}_none", r"lookup 'places': .*there is no such table")):
        lookups = (
            f"lookups: {{places: {{bigquery: {name}, key: name}}}}\ntransform: [{{lookup: {{from: places, on: place, take: {{x: name}}}}}}]"
        )
        with pytest.raises(BeamPipelinesError, match=expected):
            run_batch(spec(tmp_path, f"{{bigquery: {orders_table}}}", lookups=lookups))


def test_a_lookup_is_another_when_its_table_was_written_to(bigquery: BigQueryServer, tmp_path: Path) -> None:
    places = f"{bigquery.dataset()}.places"
    bigquery.rows(f"CREATE TABLE `{places}` (name STRING)")  # of one that a load job makes, the local server does not know when
    bigquery.load(places, pa.table({"name": ["a"]}))
    loaded = spec(tmp_path, f"{{bigquery: {places}}}", lookups=f"lookups: {{places: {{bigquery: {places}, key: name}}}}")
    source = loaded.spec.lookups["places"]
    before = state_of(source)
    assert state_of(source) == before
    assert lookups_of(loaded.spec)["places"]().rows.num_rows == 1
    bigquery.load(places, pa.table({"name": ["b"]}))
    assert state_of(source) != before
    assert lookups_of(loaded.spec)["places"]().rows.num_rows == 2


def test_a_lookup_of_a_stream_stays_as_it_was_while_its_table_cannot_be_read(bigquery: BigQueryServer, tmp_path: Path) -> None:
    places = f"{bigquery.dataset()}.places"
    bigquery.load(places, pa.table({"name": ["a"]}))
    lookups = f"lookups: {{places: {{bigquery: {places}, key: name, refresh: 1ms}}}}"
    lookup = lookups_of(spec(tmp_path, f"{{bigquery: {places}}}", lookups=lookups).spec, endless=True)["places"]
    assert lookup().rows.num_rows == 1
    bigquery.rows(f"DROP TABLE `{places}`")
    assert lookup().rows.num_rows == 1
    bigquery.load(places, pa.table({"name": ["a", "b"]}))
    assert lookup().rows.num_rows == 2


def test_preview_shows_the_first_rows(orders_table: str, tmp_path: Path) -> None:
    views = preview(spec(tmp_path, f"{{bigquery: {orders_table}}}"), rows=50)
    assert [(view.name, view.rows_out) for view in views if view.name in ("read", "validate")] == [("read", 50), ("validate", 40)]


RANGE = Range(1_793_577_600_000_000, 1_793_664_000_000_000)  # the second of November 2026


def test_a_range_is_left_to_bigquery_and_gives_what_a_run_over_everything_has_there(bigquery: BigQueryServer, tmp_path: Path) -> None:
    table = f"{bigquery.dataset()}.orders"
    undated = orders(1).set_column(1, "at", pa.array([None], TYPES.field("at").type))
    bigquery.load(table, pa.concat_tables([orders(1000), undated]))
    whole, part = spec(tmp_path / "whole", f"{{bigquery: {table}}}"), spec(tmp_path / "part", f"{{bigquery: {table}}}")
    run_batch(whole)
    record = run_batch(part, Call(range=RANGE))
    assert record.status == "success"
    assert sum(read_by_source(record).values()) == 501  # the second day, and the row without a time
    second = [row for row in rows(whole) if RANGE.start <= micros(row[1]) < RANGE.end]
    assert len(second) == 500
    assert rows(part) == second
    changed = spec(tmp_path / "changed", f"{{bigquery: {table}}}", more="transform: [{set: {at: '\"at\" + INTERVAL 12 HOUR'}}]")
    assert sum(read_by_source(run_batch(changed, Call(range=RANGE))).values()) == 1001  # the event time is not the table's


def micros(instant: dt.datetime) -> int:
    return (instant - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def test_a_range_with_duplicates_needs_names_that_last(bigquery: BigQueryServer, tmp_path: Path) -> None:
    table = f"{bigquery.dataset()}.orders"
    first, second = orders(10), orders(10)
    second = second.set_column(0, "id", pa.array(range(100, 110)))
    bigquery.load(table, pa.concat_tables([first, second]))
    more = "deduplicate: {key: [place], within: 3d, keep: newest, order_by: id}"
    with pytest.raises(SpecError, match=r"sources.batch\[0\]: .*row_id"):
        run_batch(spec(tmp_path, f"{{bigquery: {table}}}", more=more), Call(range=RANGE))
    whole, part = (spec(tmp_path / name, f"{{bigquery: {table}, row_id: id}}", more=more) for name in ("whole", "part"))
    for loaded in (whole, part):
        run_batch(loaded)
    assert (108,) in rows(part, "id")
    bigquery.rows(
        f"INSERT INTO `{table}` (id, at, place) VALUES (208, TIMESTAMP '2026-11-02 12:00:00+00', 'place 8')"
    )  # 108 is of the first day
    run_batch(whole)
    run_batch(part, Call(range=RANGE))
    assert rows(part) == rows(whole)
    assert (108,) not in rows(part, "id")


def test_conditions_hold_at_the_ends_of_time(orders_table: str) -> None:
    contract = Contract(columns={"id": Column(type="int64"), "at": Column(type="timestamp")})
    near = Near("at", Range(-62_135_596_800_000_000, 253_402_300_799_999_999))
    part = open_source(BigQuerySource(bigquery=orders_table, where="id < 5"), contract, number=0, run_id="r", near=near)
    assert len(ids_by_position(part, 0)) == 5


@pytest.mark.parametrize(
    ("source", "error", "expected"),
    [
        ("{{bigquery: {table}_none}}", SourceError, r"sources.batch\[0\]: .*_none: there is no such table"),
        ("{{bigquery: {table}, where: 'nope = 1'}}", SpecError, r"sources.batch\[0\]: .*nope"),
        ("{{bigquery: {table}, where: 'id ='}}", SpecError, r"sources.batch\[0\]: .*Syntax error"),
        ("{{bigquery: {table}, columns: [id, amuont]}}", SpecError, "unknown column 'amuont'; did you mean 'amount'"),
        ("{{bigquery: {table}, row_id: nope}}", SpecError, "unknown column 'nope'"),
        (
            "{{bigquery: {project}, query: 'SELECT nope FROM `{table}`'}}",
            SpecError,
            "does not understand the query: Unrecognized name: nope",
        ),
        ("{{bigquery: {project}, query: 'DROP TABLE `{table}`'}}", SpecError, "expected one SELECT. Nothing was run"),
        ("{{bigquery: {project}, query: 'SELECT 1; SELECT 2'}}", SpecError, "expected one SELECT"),
        ("{{bigquery: {project}, query: 'SELECT ERROR(\"boom\") AS id FROM `{table}`'}}", SpecError, "boom"),
    ],
)
def test_what_is_wrong_stops_the_run_with_a_sentence(
    orders_table: str, bigquery: BigQueryServer, tmp_path: Path, source: str, error: type[Exception], expected: str
) -> None:
    loaded = spec(tmp_path, source.format(table=orders_table, project=bigquery.project))
    with pytest.raises(error, match=expected):
        run_batch(loaded)
    assert not (tmp_path / "lake").exists() or not list((tmp_path / "lake").rglob("*.parquet"))
    assert bigquery.rows(f"SELECT count(*) AS n FROM `{orders_table}`") == [{"n": ROWS}]


def test_an_empty_table_is_a_run_without_rows(orders_table: str, tmp_path: Path) -> None:
    record = run_batch(spec(tmp_path, f"{{bigquery: {orders_table}, where: 'FALSE'}}"))
    assert (record.status, read_by_source(record)) == ("success", {})
    assert read_table(BigQuerySource(bigquery=orders_table, where="FALSE"), who="test", job="j").num_rows == 0


@pytest.mark.parametrize(
    ("kind", "inside", "of"),
    [
        (pa.decimal256(76, 38), "decimal(38,9)", lambda value: value),
        (pa.list_(pa.decimal256(76, 38)), "list<decimal(38,9)>", lambda value: [value]),
        (pa.list_(pa.struct([("x", pa.decimal256(76, 38))])), "list<struct<x: decimal(38,9)>>", lambda value: [{"x": value}]),
    ],
)
def test_bignumeric_as_google_sends_it_conforms_wherever_it_stands(kind: pa.DataType, inside: str, of: Callable[[Decimal], Any]) -> None:
    """Google's service sends decimal256, the local server decimal128."""
    fits, wide = Decimal("2.5"), Decimal(10) ** 37 + Decimal("0.1")
    sent = pa.RecordBatch.from_pydict({"n": pa.array([of(fits), of(wide), None], kind)})
    split = conform_batch(as_read(sent), Contract(columns={"n": Column(type=inside)}))
    assert split.rows["n"].to_pylist() == [of(fits), None]
    assert split.dead["reason"].to_pylist() == ["CAST"]


@pytest.mark.parametrize("query", [False, True])
def test_dead_letters_are_replayed_where_rows_have_names_that_last(bigquery: BigQueryServer, tmp_path: Path, query: bool) -> None:
    table = f"{bigquery.dataset()}.orders"
    bigquery.load(table, orders(50, bad=3))
    of = (
        f"bigquery: {bigquery.project}, query: 'SELECT * FROM `{table}` WHERE id < 20;'"
        if query
        else f"bigquery: {table}, where: 'id < 20'"
    )
    loaded = spec(tmp_path, f"{{{of}, row_id: id}}")
    assert dict(run_batch(loaded).dead_letters) == {"validate:CHECK": 3}
    bigquery.rows(f"UPDATE `{table}` SET amount = 5 WHERE id IN (0, 2)")
    replayed = replay(loaded)
    assert [letter.position for letter in replayed] == [0, 2]


def replay(loaded: LoadedSpec) -> list[Letter]:
    """The letters whose records a batch would now take."""
    letters = letters_of(ask(open_tables(loaded.state), "SELECT * FROM dead_letters ORDER BY position"))
    found: set[tuple[str, int]] = set()
    for batch, program in records(loaded.spec, loaded.state, "batch", letters):
        good = program(batch).rows
        found |= set(zip(good["_source"].to_pylist(), good["_position"].to_pylist(), strict=True))
    return [letter for letter in letters if letter.id in found]


def test_new_files_are_not_sought_in_a_table(orders_table: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"--new-files: sources.batch\[0\] is .* does not tell what is new"):
        list(run_new_files(spec(tmp_path, f"{{bigquery: {orders_table}}}"), Call()))


@pytest.mark.slow
def test_worker_processes_read_streams_too(orders_table: str, tmp_path: Path) -> None:
    loaded = spec(tmp_path, f"{{bigquery: {orders_table}}}")
    record = run_batch(loaded, Call(flags=("--direct_running_mode=multi_processing", "--direct_num_workers=2")))
    assert (record.status, sum(read_by_source(record).values())) == ("success", ROWS)
    assert len(rows(loaded, "id")) == ROWS - 10


def test_files_and_tables_are_sources_of_one_run(orders_table: str, tmp_path: Path) -> None:
    pq.write_table(orders(20).slice(10), tmp_path / "orders.parquet")
    loaded = spec(
        tmp_path, f"{{files: {tmp_path}/orders.parquet, format: parquet}}, {{bigquery: {orders_table}, where: 'id >= 20 AND id < 30'}}"
    )
    record = run_batch(loaded)
    assert record.status == "success"
    assert sorted(read_by_source(record).values())[-2:] == [10, 10]
    assert rows(loaded) == list(rows_of(orders(30).slice(10)))
