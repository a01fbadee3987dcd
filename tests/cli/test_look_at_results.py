"""`query`, `runs`, `dlq inspect`, `preview`: what a person sees of a run, and of a spec before its run."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_pipelines.cli.show import show_run, show_table
from beam_pipelines.cli.tables import cell, grid, table_lines
from beam_pipelines.sinks.ledger import Line
from beam_pipelines.sinks.results import Metadata, RunResults
from tests.cli.conftest import Call

VALUES = """SELECT 170141183460469231731687303715884105727::HUGEINT AS huge, 1.50::DECIMAL(10,2) AS paid, NULL AS nothing,
    TIMESTAMPTZ '2024-01-01 00:00:00.5+00' AS at, 'a' || chr(27) || '[31m' AS text, {'x': [1, 2], 'y': 1.5::DECIMAL(4,2)} AS nested,
    18446744073709551615::UBIGINT AS big, 'NaN'::DOUBLE AS nan, '\\xAA'::BLOB AS bytes, '' AS empty, INTERVAL 3 DAY AS days, true AS yes"""


def test_before_any_run_a_query_says_that_nothing_was_committed(call: Call, orders: Path) -> None:
    for verb in (["query", orders, "SELECT * FROM rows"], ["dlq", "inspect", orders]):
        assert "nothing has been committed to" in call(*verb, code=2).err
    assert call("runs", orders).out.splitlines()[1:] == []


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT * FROM rowz", "there is no table 'rowz'; did you mean 'rows'? Known: by_hour, dead_letters, ranges, rows, runs, stale."),
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT shp FROM rows", "shop"),
        ("", "expected one SELECT"),
        ("SELECT 1; SELECT 2", "got 2 statements"),
        ("COPY rows TO 'elsewhere.csv'", "A query reads"),
    ],
)
def test_a_wrong_query_is_one_clear_error(call: Call, ran_orders: Path, sql: str, says: str) -> None:
    assert says in call("query", ran_orders, sql, code=2).err


def test_outputs_are_tables_by_name(call: Call, ran_orders: Path) -> None:
    ask = ["query", ran_orders, "--format", "csv"]
    assert (
        call(*ask, "SELECT id, shop, amount, note FROM rows ORDER BY id").out
        == "id,shop,amount,note\n1,north,9.50,***\n3,south,12.25,\n6,north,40.00,\n"
    )
    assert (
        call(*ask, "SELECT shop, orders, turnover, _window_start FROM by_hour ORDER BY ALL LIMIT 1").out.splitlines()[1]
        == "north,1,9.50,2024-05-01T10:00:00Z"
    )
    assert call(*ask, "SELECT status, read, written, dead FROM runs").out == "status,read,written,dead\nsuccess,8,3,3\n"
    assert len(call("runs", ran_orders).out.splitlines()) == 2


def test_runs_to_two_lakes_are_two_outputs(call: Call, orders: Path) -> None:
    count = "SELECT count(*) AS n FROM rows"
    call("run", orders)
    data = orders.parent / "orders.csv"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:2]))
    call("run", orders, "--set", "lake=other")
    assert call("query", orders, count).out.split() == ["n", "3"]
    assert call("query", orders, count, "--set", "lake=other").out.split() == ["n", "1"]
    assert "the newest run wrote it to" in call("query", orders, count, "--set", "lake=third", code=2).err
    assert "no dead letters" in call("dlq", "inspect", orders, "--set", "lake=other").out
    err = call("run", orders).err
    assert "warning: rows: 1 partition (placed_at_day=2024-05-02) still holds rows of run" in err


def test_every_kind_of_value_can_be_shown(call: Call, orders: Path) -> None:
    table = call("query", orders, VALUES).out
    for text in (
        "170141183460469231731687303715884105727",
        "1.50",
        "NULL",
        "2024-01-01 00:00:00.500000Z",
        "a\\x1b[31m",
        '{"x":[1,2],"y":1.50}',
        "3 days",
        "true",
    ):
        assert text in table
    assert "\x1b" not in table
    header, row = list(csv.reader(io.StringIO(call("query", orders, VALUES, "--format", "csv").out)))
    found = dict(zip(header, row, strict=True))
    assert (found["huge"], found["paid"], found["at"], found["nothing"]) == (
        "170141183460469231731687303715884105727",
        "1.50",
        "2024-01-01T00:00:00.5Z",
        "",
    )
    answer = json.loads(call("query", orders, VALUES, "--format", "json").out)[0]
    assert (answer["big"], answer["nan"], answer["at"], answer["nested"]["y"]) == (
        18446744073709551615,
        None,
        "2024-01-01T00:00:00.500000Z",
        1.5,
    )


def test_a_table_shows_as_many_rows_as_asked(call: Call, orders: Path) -> None:
    out = call("query", orders, "SELECT * FROM range(5)", "--limit", "2").out.splitlines()
    assert out == ["range", "    0", "    1", "... 3 more rows; --limit shows more"]


def test_columns_that_do_not_fit_the_screen_are_named() -> None:
    table = pa.table({f"column_{i}": ["x" * 20] for i in range(9)})
    lines = table_lines(table, width=60)
    assert max(map(len, lines[:2])) <= 60
    assert lines[-1] == "(7 more columns: column_2, column_3, column_4, column_5, column_6, column_7, column_8)"


def test_wide_characters_are_aligned_and_long_values_cut() -> None:
    assert grid(["a", "b"], [["😀", "x"], ["y", "z"]]) == ["a   b", "😀  x", "y   z"]
    assert cell("x" * 100, 10) == "x" * 9 + "…"


def test_the_text_null_is_told_from_no_value(call: Call, orders: Path) -> None:
    out = call("query", orders, "SELECT unnest([NULL, 'NULL', 'null', '']) AS x").out
    assert out.splitlines() == ["x", "NULL", '"NULL"', "null", ""]


def test_long_values_are_cut_unless_all_is_asked_for(call: Call, orders: Path) -> None:
    sql = "SELECT repeat('x', 500) AS long, 1 AS after"
    assert call("query", orders, sql).out.splitlines()[1] == "x" * 59 + "…      1"
    assert call("query", orders, sql, "--wide").out.splitlines()[1] == "x" * 500 + "      1"
    assert call("query", orders, sql, "--format", "csv").out.splitlines()[1] == "x" * 500 + ",1"
    table = pa.table({f"column_{i}": ["x" * 20] for i in range(9)})
    assert table_lines(table, width=60, wide=True)[0].split() == table.column_names


def test_an_empty_result_is_a_header(capsys: pytest.CaptureFixture[str]) -> None:
    for style, expected in (("table", "a\n"), ("csv", "a\n"), ("json", "[]\n")):
        out = io.StringIO()
        show_table(pa.table({"a": pa.array([], pa.int64())}), style=style, limit=10, out=out)
        assert out.getvalue() == expected


def test_dead_letters_are_grouped_by_reason_with_samples(call: Call, orders: Path) -> None:
    orders.write_text(orders.read_text().replace(", sensitive: redact", ""))
    call("run", orders)
    out = call("dlq", "inspect", orders).out
    assert "3 records refused" in out
    assert "| 2,2024-05-01T10:30:00Z,north,abc," in out
    groups = json.loads(call("dlq", "inspect", orders, "--json").out)["groups"]
    assert {(g["stage"], g["reason"], g["rows"]) for g in groups} == {
        ("decode", "DECODE", 1),
        ("conform", "CAST", 1),
        ("validate", "CHECK", 1),
    }
    assert sum(g["share"] for g in groups) == pytest.approx(1)


def test_dead_letters_can_be_chosen(call: Call, ran_orders: Path) -> None:
    assert "1 record refused, of those that fit" in call("dlq", "inspect", ran_orders, "--reason", "cast").out
    assert "no dead letters fit" in call("dlq", "inspect", ran_orders, "--where", "position < 0 -- none").out
    assert "Known: CAST, CHECK, DECODE." in call("dlq", "inspect", ran_orders, "--reason", "CHEK", code=2).err
    assert "sorce" in call("dlq", "inspect", ran_orders, "--where", "sorce = 'x'", code=2).err


def test_sensitive_columns_are_seen_nowhere(call: Call, ran_orders: Path) -> None:
    for verb in (
        ["dlq", "inspect", ran_orders],
        ["preview", ran_orders],
        ["preview", ran_orders, "--json"],
        ["query", ran_orders, "SELECT * FROM dead_letters"],
    ):
        assert "secret" not in call(*verb).out
    assert "(record not kept)" in call("dlq", "inspect", ran_orders).out


PEOPLE = """spec: 1
pipeline: people
contract:
  columns:
    id:    {type: int64}
    mail:  {type: string, path: person.mail, sensitive: redact}
    phone: {type: string, sensitive: redact}
transform: [{rename: {address: mail}}, {drop: [phone]}]
aggregates: {newest: {group_by: [id], measures: {last: max(address)}}}
sources: {batch: [{files: people.parquet, format: parquet}]}
sinks: [{from: rows, csv: {path: rows.csv}}, {from: newest, csv: {path: newest.csv}}]
"""


def test_a_preview_hides_what_is_sensitive_under_every_name_it_has_on_its_way(call: Call, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"id": 1, "person": {"mail": "secret@a.b"}, "phone": "secret"}]), tmp_path / "people.parquet")
    of_a_step = "{apply: {function: 'tests.arrow.user_functions:as_it_is', columns: {mail: string}, sensitive: {mail: redact}}}, {rename"
    first_said = PEOPLE.replace("person.mail, sensitive: redact", "person.mail").replace("{rename", of_a_step)
    for name, text in (("contract", PEOPLE), ("step", first_said)):
        (tmp_path / f"{name}.yaml").write_text(text)
        out = call("preview", tmp_path / f"{name}.yaml").out
        assert "aggregate newest   1 -> 1 panes" in out
        assert "secret" not in out


def test_a_preview_shows_what_each_stage_does_and_writes_nothing(call: Call, orders: Path) -> None:
    before = sorted(orders.parent.rglob("*"))
    stages = {s["stage"]: s for s in json.loads(call("preview", orders, "--json").out)}
    assert list(stages) == ["read", "decode", "conform", "transform", "validate", "deduplicate", "aggregate by_hour"]
    assert {n: (s["rows_in"], s["rows_out"]) for n, s in stages.items()} == {
        "read": (8, 8), "decode": (8, 7), "conform": (7, 6), "transform": (6, 5), "validate": (5, 4), "deduplicate": (4, 3), "aggregate by_hour": (3, 3),
    }  # fmt: skip
    assert stages["conform"]["refused"] == [{"reason": "CAST", "rows": 1, "sample": "amount: got 'abc'; expected decimal(12,2)"}]
    assert stages["conform"]["columns"]["amount"] == "string -> decimal(12,2)"
    assert stages["transform"]["filtered"] == 1
    assert stages["transform"]["columns"] == {"cents": "new int64"}
    assert stages["deduplicate"]["duplicates"] == 1
    assert [r["id"] for r in stages["deduplicate"]["rows"]] == [1, 3, 6]
    assert sorted(orders.parent.rglob("*")) == before


def test_a_preview_agrees_with_the_run(call: Call, orders: Path) -> None:
    stages = {s["stage"]: s for s in json.loads(call("preview", orders, "--json").out)}
    record = json.loads(call("run", orders, "--json").out)
    assert stages["deduplicate"]["rows_out"] == record["outputs"][0]["rows"]
    assert sum(r["rows"] for s in stages.values() for r in s["refused"]) == sum(record["dead_letters"].values())


def test_a_preview_for_people_fits_the_screen(call: Call, orders: Path) -> None:
    out = call("preview", orders, "--rows", "3", "--show", "1").out
    assert "decode   3 -> 3 rows" in out
    assert max(map(len, out.splitlines())) <= 100


def test_a_preview_of_no_records_has_all_stages(call: Call, orders: Path) -> None:
    (orders.parent / "orders.csv").write_text("id,placed_at,shop,amount,note\n")
    stages = json.loads(call("preview", orders, "--json").out)
    assert [s["rows_out"] for s in stages] == [0, 0, 0, 0, 0]


def test_a_preview_of_two_sources_joins_them(call: Call, orders: Path) -> None:
    (orders.parent / "more.jsonl").write_text('{"id": 9, "placed_at": "2024-05-03T00:00:00Z", "shop": "south", "amount": 1}\nbroken\n')
    orders.write_text(orders.read_text().replace("batch: [", "batch: [{files: more.jsonl, format: json}, "))
    stages = {s["stage"]: s for s in json.loads(call("preview", orders, "--json").out)}
    assert stages["deduplicate"]["rows_out"] == 4


def test_the_ledger_line_counts_what_was_written_and_what_the_sink_refused() -> None:
    """Numbers come from the doors themselves, not from a subtraction that always fits."""
    line = Line(source="a", read=13, dead=1, duplicate=1, filtered=1, written={"rows": 7}, refused={"rows": 3})
    about = Metadata("r", "p", "0", "c", "batch", "e", "s", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", 1.0, "0")
    out = io.StringIO()
    show_run(RunResults(about, "success", ledger=(line,)), state="s", out=out)
    assert "13 read = 7 good + 3 refused by rows + 1 dead + 1 duplicate + 1 filtered" in out.getvalue()
