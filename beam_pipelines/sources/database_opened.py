"""What is known of a database source before it is read: the plain value that the graph takes to the workers. Loads no Beam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.errors import SpecError, nearest
from beam_pipelines.formats.columnar import roots
from beam_pipelines.spec.sources import DatabaseSource, DatabaseTable

PREFIX = "database:"
"""What the `_source` of rows from a database begins with."""
PLACE, LEAF, REFUSED = "$place", "$leaf", "$refused"
"""Columns in front of the source's own: where the row lies, in which table of several, and why it cannot be given (NULL: it can)."""


Placed = Literal["pages", "together", "row_id"]


class Shown(NamedTuple):
    """A column as it is read: `sql` gives it, `wrong` (SQL, or None) a sentence where its value is none that Arrow holds. `kind` is the type in the database."""

    name: str
    sql: str
    wrong: str | None = None
    kind: str = ""


class Part(NamedTuple):
    """The pages [first, end) of one table (`relation`, as FROM has it), which is number `leaf` of the source's; `end` -1 is all that follow."""

    relation: str
    leaf: int = 0
    first: int = 0
    end: int = -1


@dataclass(frozen=True)
class Opened:
    """A source and how it is read. `placed`: by the pages of its tables one by one, of all of them together, or rows have no place but their `row_id`.

    `splits` are read by one worker each, in the snapshot, or where there is none, the only one in a transaction of its own. `name` is the `_source` of the rows,
    `number` what SQLite calls the number of a row.
    """

    source: DatabaseSource
    at: str
    name: str
    server: str
    shown: tuple[Shown, ...]
    splits: tuple[tuple[Part, ...], ...]
    placed: Placed
    conditions: tuple[str, ...] = ()
    snapshot: str | None = None
    number: str = ""


def as_source(table: DatabaseTable) -> DatabaseSource:
    """What is read of a table, or answer, that is no source: all columns, and a query needs no row_id."""
    return DatabaseSource.model_construct(**{name: getattr(table, name) for name in DatabaseTable.model_fields})


def lasting_name(source: DatabaseSource) -> str:
    """The `_source` of rows that have a `row_id`."""
    return f"{PREFIX}{source.name}"


def named(source: DatabaseSource, moment: str) -> str:
    """The `_source` of its rows: with `row_id` the table, else the table and the moment of the snapshot, in which alone a place says anything."""
    return lasting_name(source) if source.row_id is not None else f"{lasting_name(source)}@{moment}"


def wanted(source: DatabaseSource, contract: Contract | None, names: Sequence[str], at: str) -> list[str]:
    """The columns to read of those that the table has; without a contract all. Raises SpecError where the spec names another, or two have one name."""
    for name in (*(source.columns or ()), *((source.row_id,) if source.row_id else ())):
        if name not in names:
            raise SpecError(f"{at}: unknown column {name!r}; {nearest(name, names)}")
    twice = next((name for at_, name in enumerate(names) if name in names[:at_]), None)
    if twice is not None:
        raise SpecError(f"{at}: two columns are called {twice!r}.", hint="Name one of them otherwise, with AS.")
    if source.columns is not None:
        return list(source.columns)
    if contract is None or contract.unknown_columns != "drop":
        return list(names)
    asked = roots(contract) | ({source.row_id} if source.row_id else set())
    return [name for name in names if name in asked] or list(names[:1])
