"""What the catalog of a database says of a table's columns, beyond what reading needs: for proposals. Loads no Beam."""

from __future__ import annotations

from typing import Any, NamedTuple

from beam_pipelines.sources import postgres, sqlite
from beam_pipelines.sources.database_connection import Connection, text
from beam_pipelines.sources.database_opened import as_source
from beam_pipelines.spec.sources import DatabaseSource, DatabaseTable


class Described(NamedTuple):
    """A column: its type in the database's `words`, without its numbers and domains (`plain`), and whether it is of parts (`composite`).

    `required`: it is never NULL; None where the catalog does not know. `key`: its place in the primary key, from 1; 0 outside of it.
    """

    name: str
    words: str
    plain: str
    composite: bool
    required: bool | None
    key: int


class Catalog(NamedTuple):
    """The columns of a table, in order; `placed`: its rows have a place, and need no `row_id`."""

    columns: tuple[Described, ...]
    placed: bool

    @property
    def key(self) -> tuple[str, ...]:
        """The primary key's columns, in its order."""
        return tuple(column.name for column in sorted(self.columns, key=lambda c: c.key) if column.key)


def tables_there(table: DatabaseTable, at: str) -> list[str]:
    """Names of tables and views, as the `table` of a source has them. Raises as `describe`."""
    connection = Connection(as_source(table), at)
    try:
        if table.sqlite is not None:
            return [str(row["name"]) for row in sqlite.tables_of(connection)]
        return postgres.tables_of(connection)
    finally:
        connection.close()


def describe(table: DatabaseTable, at: str) -> Catalog:
    """Raises SourceError where there is no such table or no permission, TransientError where no server answers, SpecError without a driver."""
    source = as_source(table)
    connection = Connection(source, at)
    try:
        return (_of_postgres if source.sqlite is None else _of_sqlite)(connection, source, at)
    finally:
        connection.close()


def _of_postgres(connection: Connection, source: DatabaseSource, at: str) -> Catalog:
    postgres.begin(connection)
    found = postgres.relation_of(connection, source, at)
    types = postgres.types_of(connection, found.sql, found.names)
    rows = connection.ask(
        "SELECT format_type(a.atttypid, a.atttypmod) AS words, a.attnotnull OR t.typnotnull AS required, c.relkind::text IN ('v', 'm') AS shown, "
        "coalesce(k.number, 0) AS key FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid "
        "LEFT JOIN (SELECT u.place, u.number FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS u(place, number) "
        f"WHERE i.indrelid = {text(found.sql)}::regclass AND i.indisprimary) AS k ON k.place = a.attnum "
        f"WHERE a.attrelid = {text(found.sql)}::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
    )

    def described(name: str, kind: dict[str, Any], row: dict[str, Any]) -> Described:
        composite = "c" in (kind["kind"], kind["item_kind"])
        return Described(name, row["words"], kind["words"], composite, None if row["shown"] else row["required"], int(row["key"]))

    return Catalog(tuple(map(described, found.names, types, rows)), not found.placeless)


def _of_sqlite(connection: Connection, source: DatabaseSource, at: str) -> Catalog:
    relation, kinds, numbered = sqlite.relation_of(connection, source, at)
    name = relation[1:-1].replace('""', '"')
    rows = connection.ask(f'SELECT name, "notnull", pk FROM pragma_table_xinfo({text(name)})')
    of_key = [row["name"] for row in rows if row["pk"]]
    is_view = any(row["name"] == name and row["type"] == "view" for row in sqlite.tables_of(connection))

    def described(row: dict[str, Any]) -> Described:
        words = kinds[row["name"]]
        is_number = of_key == [row["name"]] and words.upper() == "INTEGER"  # the row's, which is never NULL
        unknown = is_view or (row["pk"] and not is_number)  # SQLite lets NULL into other primary keys
        required = True if row["notnull"] or is_number else None if unknown else False
        return Described(row["name"], words, words, False, required, int(row["pk"]))

    return Catalog(tuple(described(row) for row in rows if row["name"] in kinds), numbered is not None)
