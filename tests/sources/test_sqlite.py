"""SQLite as a source of the batch path: what a file holds comes out, whatever types its values have, or is a dead letter."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.errors import BeamPipelinesError, SourceError, SpecError
from beam_pipelines.formats.reader import Broken
from beam_pipelines.runners.direct import run_batch
from beam_pipelines.runners.doctor import Examination, examine
from beam_pipelines.sources.database import first_pieces, open_database, rows_at
from beam_pipelines.spec.load import load_spec
from beam_pipelines.spec.sources import DatabaseSource
from tests.sources.postgres_orders import read, spec, stored

pytest.importorskip("adbc_driver_sqlite")
KEEP = Contract(columns={"id": Column(type="int64")}, unknown_columns="keep")


def made(folder: Path, *statements: str, rows: Sequence[Sequence[Any]] = (), name: str = "shop.db") -> str:
    """A file with what the statements make, and the rows in its table t."""
    path = folder / name
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
        if rows:
            connection.executemany(f"INSERT INTO t VALUES ({', '.join('?' * len(rows[0]))})", rows)
    connection.close()
    return f"sqlite:///{path}"


def source(database: str, table: str | None = "t", **more: Any) -> DatabaseSource:
    return DatabaseSource(database=database, table=table, **more)


def rows_of(url: str, table: str | None = "t", **more: Any) -> tuple[pa.Table, list[Broken]]:
    return read(open_database(source(url, table, **more), KEEP, number=0))


def test_rows_come_with_their_numbers_and_types_also_behind_thousands_of_nulls(tmp_path: Path) -> None:
    count = 40_000
    rows = [
        (i, None if i < 30_000 else i, None if i < 30_000 else f"ü{i}", None if i < 30_000 else i / 7, i.to_bytes(3, "big"), i % 2)
        for i in range(1, count + 1)
    ]
    url = made(tmp_path, "CREATE TABLE t(id INTEGER PRIMARY KEY, n INT, s TEXT, f REAL, b BLOB, yes BOOLEAN)", rows=rows)
    found, broken = rows_of(url)
    assert not broken
    assert [str(field.type) for field in found.schema][3:] == ["int64", "int64", "string", "double", "binary", "bool"]
    assert found["_position"].to_pylist() == list(range(1, count + 1))
    expected = [(*row[:-1], bool(row[-1])) for row in rows]
    assert [tuple(row.values())[3:] for row in found.to_pylist()] == expected


VALUES = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    st.binary(max_size=5),
)  # fmt: skip


@given(
    values=st.lists(VALUES, max_size=30),
    declared=st.sampled_from(["", "INTEGER", "TEXT", "REAL", "NUMERIC", "BLOB", "BOOLEAN", "VARCHAR(10)"]),
)
def test_a_column_of_any_values_gives_each_of_them_exactly_or_as_a_text_or_a_letter(
    values: list[Any], declared: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = made(tmp_path_factory.getbasetemp(), f'CREATE TABLE t(id INTEGER PRIMARY KEY, "v w" {declared})', rows=list(enumerate(values)))
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        kept = dict(connection.execute('SELECT id, "v w" FROM t').fetchall())  # SQLite itself turns some into others by the declared type
    connection.close()
    found, broken = rows_of(url)
    good = dict(zip(found["id"].to_pylist(), found["v w"].to_pylist() if found.num_rows else [], strict=True))
    letters = {piece.position: piece.message for piece in broken}
    assert set(good) | set(letters) == set(kept)
    assert not set(good) & set(letters)
    for number, value in kept.items():
        if number in letters:
            assert letters[number].startswith("v w: got a blob") or (declared == "BOOLEAN" and value not in (0, 1)), letters[number]
        elif isinstance(good[number], str):
            assert type(value)(good[number]) == value
        else:
            assert good[number] == value


def test_a_table_without_numbers_a_view_and_a_query_need_a_row_id(tmp_path: Path) -> None:
    url = made(
        tmp_path, "CREATE TABLE t(id INTEGER, rowid TEXT, _rowid_ TEXT)", "CREATE TABLE bare(id INTEGER PRIMARY KEY, s TEXT) WITHOUT ROWID",
        "INSERT INTO bare VALUES (5, 'a'), (9, 'b')", "CREATE VIEW seen AS SELECT id, s FROM bare", rows=[(7, "a", "b"), (None, "c", "d")],
    )  # fmt: skip
    assert rows_of(url)[0]["_position"].to_pylist() == [1, 2]
    for table in ("bare", "seen"):
        with pytest.raises(SpecError, match="have no place; got no row_id"):
            rows_of(url, table)
        assert rows_of(url, table, row_id="id")[0]["_position"].to_pylist() == [5, 9]
    found, broken = rows_of(url, None, query="SELECT id, rowid AS s FROM t;", row_id="id")
    assert found["_position"].to_pylist() == [7]
    assert [piece.message for piece in broken] == ["row_id 'id' is NULL; expected a number that no other row has"]
    found, broken = rows_of(url, row_id="rowid")
    assert (found.num_rows, [piece.message for piece in broken]) == (
        0,
        [f"rowid: got {x}; expected an integer that no other row has" for x in "ac"],
    )
    assert len({piece.position for piece in broken}) == 2
    [again] = rows_at(source(url, "bare", row_id="id"), KEEP, [9, 10])
    assert again["s"].to_pylist() == ["b"]
    assert sum(piece.num_rows for _, piece in first_pieces(source(url), KEEP) if isinstance(piece, pa.RecordBatch)) == 2


def test_where_columns_and_names_with_quotes(tmp_path: Path) -> None:
    url = made(tmp_path, 'CREATE TABLE t(id INTEGER PRIMARY KEY, "it\'s" TEXT, gone INT)', rows=[(i, f"s{i}", i) for i in range(10)])
    found, _ = rows_of(url, columns=("it's",), where="id >= 8 -- the last")
    assert (found.schema.names[3:], found["it's"].to_pylist()) == (["it's"], ["s8", "s9"])


WRONG: dict[str, tuple[dict[str, Any], type[BeamPipelinesError], str]] = {
    "no such table": ({"table": "tt"}, SourceError, "there is no table tt; did you mean 't'"),
    "no such column": ({"columns": ("idd",)}, SpecError, "unknown column 'idd'; did you mean 'id'"),
    "wrong condition": ({"where": "id >"}, SpecError, "SQLite refuses: .*syntax error"),
    "wrong query": ({"table": None, "query": "SELECT price", "row_id": "id"}, SpecError, "SQLite refuses: no such column: price"),
    "query that writes": ({"table": None, "query": "DELETE FROM t", "row_id": "id"}, SpecError, "SQLite refuses: .*syntax error"),
    "no file": ({"database": "sqlite:////nowhere/x.db"}, SourceError, "/nowhere/x.db/t: the file cannot be opened. Check the path"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, wrong: str) -> None:
    more, kind, said = WRONG[wrong]
    url = made(tmp_path, "CREATE TABLE t(id INTEGER PRIMARY KEY, s TEXT)", rows=[(1, "a")])
    with pytest.raises(kind, match=said) as error:
        read(open_database(DatabaseSource(**{"database": url, "table": "t", **more}), KEEP, number=0))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x.db").exists()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("hello " * 1000)
    with pytest.raises(SourceError, match=r"this is no sound SQLite database: file is not a database"):
        rows_of(f"sqlite:///{tmp_path}/x.db")


def test_a_run_reads_the_file_beside_its_spec_and_casts_texts_by_the_contract(tmp_path: Path) -> None:
    made(
        tmp_path, "CREATE TABLE t(id INTEGER PRIMARY KEY, at TEXT, amount DECIMAL(12,2), name TEXT)",
        rows=[(1, "2026-11-01 10:00:00Z", 9.9, "a"), (2, "2026-11-01T11:00:00Z", 3, "b"), (3, "noon", 1, "c"), (4, "2026-11-01T12:00:00Z", "12.25", None)],
    )  # fmt: skip
    loaded = spec(tmp_path, '{database: "sqlite:///shop.db", table: t}', id="int64", at="timestamp", amount="decimal(12,2)", name="string")
    [given_] = loaded.spec.sources.batch
    assert isinstance(given_, DatabaseSource)
    assert given_.sqlite == str(tmp_path / "shop.db")
    record = run_batch(loaded)
    assert (record.status, dict(record.dead_letters)) == ("success", {"conform:CAST": 1})
    assert stored(loaded, "id, amount::VARCHAR, name, _position") == [(1, "9.90", "a", 1), (2, "3.00", "b", 2), (4, "12.25", None, 4)]
    [finding] = [f for f in examine(Examination(load_spec(loaded.path), "batch")) if f.check == "sources.batch[0]"]
    assert (finding.state, finding.found.startswith(f"{tmp_path}/shop.db/t: SQLite 3.")) == ("good", True)
