"""A database as a source of the batch path: what a spec may say about it, and that no password stands in one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from beam_pipelines.errors import SpecError
from beam_pipelines.runners.dataflow.checks import check_dataflow
from beam_pipelines.runners.dataflow.settings import Dataflow
from beam_pipelines.spec.load import LoadedSpec, load_spec
from beam_pipelines.spec.secrets import passwords_of
from beam_pipelines.spec.sources import BigQueryLookup, DatabaseLookup, DatabaseSource, LookupSource

SPEC = """
spec: 1
pipeline: p
contract: {{event_time: at, columns: {{id: {{type: int64}}, at: {{type: timestamp}}}}}}
sources: {{batch: [{source}]}}
sinks: [{{from: rows, parquet: {{path: lake/rows}}}}]
{more}
"""
URL = "postgresql://reader@db.example:5432/shop"


def load(folder: Path, source: str = "{files: a.csv, format: csv}", *, more: str = "") -> LoadedSpec:
    path = folder / "p.yaml"
    path.write_text(SPEC.format(source=source, more=more))
    return load_spec(path)


def only(loaded: LoadedSpec) -> DatabaseSource:
    [source] = loaded.spec.sources.batch
    assert isinstance(source, DatabaseSource)
    return source


def test_a_table_and_a_query_are_named_by_their_place_without_the_user(tmp_path: Path) -> None:
    table = only(load(tmp_path, f'{{database: "{URL}?sslmode=require", table: public.orders}}'))
    assert (table.place, table.name, table.sqlite) == ("db.example:5432/shop", "db.example:5432/shop/public.orders", None)
    names = {only(load(tmp_path, f'{{database: "{URL}", query: "SELECT {n} AS id", row_id: id}}')).name for n in (1, 2)}
    assert len(names) == 2
    assert all(re.fullmatch(r"db\.example:5432/shop/query-[0-9a-f]{12}", name) for name in names)


def test_paths_start_at_the_spec_s_folder(tmp_path: Path) -> None:
    assert only(load(tmp_path, '{database: "sqlite:///data/shop.db", table: t}')).database == f"sqlite:///{tmp_path}/data/shop.db"
    assert only(load(tmp_path, '{database: "sqlite:////data/shop.db", table: t}')).sqlite == "/data/shop.db"
    assert only(load(tmp_path, f'{{database: "{URL}", table: t, password: "file:pw.txt"}}')).password == f"file:{tmp_path}/pw.txt"


@pytest.mark.parametrize("url", [
    "postgresql://reader:hunter2@db.example/shop", "postgresql://db.example/shop?user=reader&password=hunter2", "postgres://:hunter2@db.example/shop",
    "postgresql://reader@db.example/shop?sslpassword=hunter2", "postgresql://a:hun/ter2@db.example/shop", "postgresql://a:hunter2#@db.example/shop",
])  # fmt: skip
def test_a_password_in_the_url_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(SpecError, match=r"sources.batch\[0\].*password: env:NAME") as error:
        load(tmp_path, f'{{database: "{url}", table: t}}')
    assert "ter2" not in str(error.value).replace(url, "") or "ter2" not in str(error.value)


WRONG = {
    "no table and no query": ("", "needs exactly one of 'table' and 'query'"),
    "table and query": (', table: t, query: "SELECT 1 AS id", row_id: id', "needs exactly one of 'table' and 'query'"),
    "a query without row_id": (', query: "SELECT 1 AS id"', "a query needs 'row_id'"),
    "where of a query": (', query: "SELECT 1 AS id", row_id: id, where: "id > 1"', "'where' is for a table; write it into the query"),
    "columns of a query": (', query: "SELECT 1 AS id", row_id: id, columns: [id]', "'columns' is for a table"),
    "an empty condition": (', table: t, where: " "', "where is empty"),
    "row_id that is not read": (", table: t, columns: [at], row_id: id", "row_id 'id' is not among 'columns'"),
    "an unknown field": (", tabel: t", "unknown field 'tabel'; did you mean 'table'"),
    "a password": (", table: t, password: hunter2", "expected a secret reference"),
    "no splits": (", table: t, max_splits: 0", "max_splits"),
    "arrival by an attribute": (", table: t, arrival: {attribute: x}", "attribute"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, wrong: str) -> None:
    more, said = WRONG[wrong]
    with pytest.raises(SpecError) as error:
        load(tmp_path, f'{{database: "{URL}"{more}}}')
    assert said in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["mysql://db/shop", "postgresql://db.example", "postgresql://db/a/b", "shop.db", "sqlite:///", "sqlite:shop.db", "postgresql://[::1/x"],
)
def test_a_url_that_is_none_of_a_database_says_what_one_is(tmp_path: Path, url: str) -> None:
    with pytest.raises(SpecError, match=r"expected postgresql://USER@HOST:PORT/DATABASE or sqlite:///PATH"):
        load(tmp_path, f'{{database: "{url}", table: t}}')


def test_a_password_that_is_not_here_is_a_note_and_sqlite_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_PW", raising=False)
    loaded = load(tmp_path, f'{{database: "{URL}", table: t, password: "env:SHOP_PW"}}')
    assert passwords_of(loaded.spec) == {"sources.batch[0].password": "env:SHOP_PW"}
    assert [
        note for note in loaded.notes if note.startswith("sources.batch[0].password: env:SHOP_PW: the environment variable is not set here")
    ]
    with pytest.raises(SpecError, match="'password' is for a server; SQLite has none"):
        load(tmp_path, '{database: "sqlite:///x.db", table: t, password: "env:SHOP_PW"}')


def test_dataflow_reaches_neither_this_machine_s_files_nor_its_ports_and_secrets(tmp_path: Path) -> None:
    sources = '{database: "sqlite:///x.db", table: t}, {database: "postgresql://a@localhost:5432/shop", table: t, password: "env:SHOP_PW"}'
    with pytest.raises(SpecError) as error:
        check_dataflow(load(tmp_path, sources), Dataflow(project="p", region="r"), (), mode="batch")
    said = str(error.value)
    assert f"sources.batch[0].database: {tmp_path}/x.db: workers see no disk of this machine" in said
    assert "sources.batch[1].database: localhost:5432/shop: is this machine, which workers do not reach" in said
    assert "sources.batch[1].password: env:SHOP_PW: workers do not have the environment of this machine" in said


def test_a_lookup_may_be_a_table_or_a_query_of_a_database(tmp_path: Path) -> None:
    kinds = f'a: {{database: "{URL}", table: t, key: id}}, b: {{database: "sqlite:///x.db", query: SELECT 1 AS id, key: [id]}}'
    others = "c: {files: c.csv, format: csv, key: id}, d: {bigquery: my-project.lake.d, key: id}"
    found = load(tmp_path, more=f"lookups: {{{kinds}, {others}}}").spec.lookups
    assert {name: type(lookup) for name, lookup in found.items()} == {
        "a": DatabaseLookup, "b": DatabaseLookup, "c": LookupSource, "d": BigQueryLookup,
    }  # fmt: skip
    assert [found[name].keys for name in "abcd"] == [("id",)] * 4
    assert found["b"].patterns == ()


WRONG_LOOKUPS = {
    "no key": ('{database: "%s", table: t}', r"needs 'key'\. Fields of a database lookup: database, table, query, where, password, key"),
    "no table": ('{database: "%s", key: id}', "needs exactly one of 'table' and 'query'"),
    "where of a query": ('{database: "%s", query: SELECT 1, where: "1 = 1", key: id}', "'where' is for a table; write it into the query"),
    "empty key": ('{database: "%s", table: t, key: []}', "the list is empty"),
    "no type": ('{database: "%s", table: t, key: id, columns: {id: int46}}', "int64"),
    "a word misspelt": ('{databse: "%s", table: t, key: id}', r"unknown field 'databse'; did you mean 'database'\?"),
    "what only a source has": ('{database: "%s", table: t, key: id, row_id: id}', "unknown field 'row_id'"),
    "a password": ('{database: "postgresql://a:hunter2@db/shop", table: t, key: id}', "holds a password; take it out"),
    "no reference": ('{database: "%s", table: t, key: id, password: hunter2}', "expected a secret reference"),
    "files too": ('{files: a.csv, format: csv, database: "%s", key: id}', "unknown field 'database'"),
}


@pytest.mark.parametrize("wrong", WRONG_LOOKUPS)
def test_what_is_wrong_in_a_lookup_is_said_at_its_place_and_no_password_repeated(tmp_path: Path, wrong: str) -> None:
    text, problem = WRONG_LOOKUPS[wrong]
    with pytest.raises(SpecError, match=rf"(?s)lookups\.a.*{problem}") as error:
        load(tmp_path, more=f"lookups: {{a: {text.replace('%s', URL)}}}")
    assert "hunter2" not in str(error.value)


def test_a_lookup_s_paths_start_at_the_spec_s_folder_and_its_password_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOP_PW", raising=False)
    lookups = 'a: {database: "sqlite:///x.db", table: t, key: id}, b: {database: "%s", table: t, key: id, password: %s}'
    loaded = load(tmp_path, more=f"lookups: {{{lookups % (URL, 'file:pw.txt')}}}")
    assert [getattr(loaded.spec.lookups[name], field) for name, field in (("a", "sqlite"), ("b", "password"))] == [
        f"{tmp_path}/x.db", f"file:{tmp_path}/pw.txt",
    ]  # fmt: skip
    loaded = load(tmp_path, more=f"lookups: {{{lookups % (URL, 'env:SHOP_PW')}}}")
    assert passwords_of(loaded.spec) == {"lookups.b.password": "env:SHOP_PW"}
    assert [note for note in loaded.notes if note.startswith("lookups.b.password: env:SHOP_PW: the environment variable is not set here")]
    with pytest.raises(SpecError) as error:
        check_dataflow(loaded, Dataflow(project="p", region="r"), (), mode="stream")
    assert f"lookups.a.database: {tmp_path}/x.db: workers see no disk of this machine" in str(error.value)
    assert "lookups.b.password: env:SHOP_PW: workers do not have the environment" in str(error.value)


def test_columns_taken_from_a_table_have_the_types_that_are_declared(tmp_path: Path) -> None:
    more = "transform: [{lookup: {from: a, on: id, take: {size: size}}}, {filter: 'size > 5'}]"
    table = f'lookups: {{a: {{database: "{URL}", table: t, key: id%s}}}}'
    load(tmp_path, more=f"{table % ''}\n{more}")
    load(tmp_path, more=f"{table % ', columns: {size: int64}'}\n{more}")
    with pytest.raises(SpecError, match="compares BOOLEAN with INTEGER"):
        load(tmp_path, more=f"{table % ', columns: {size: boolean}'}\n{more}")
