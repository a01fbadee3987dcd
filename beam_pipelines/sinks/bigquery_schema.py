"""What columns are in BigQuery: fields from DuckDB's types or from the REST API's JSON, and how a table grows. No client, no Beam.

DuckDB                                        BigQuery
TINYINT … BIGINT, UTINYINT … UINTEGER         INTEGER
UBIGINT                                       NUMERIC(20)
HUGEINT, UHUGEINT                             BIGNUMERIC
DECIMAL(p,s)                                  NUMERIC(p,s) up to 29 digits before the point and 9 behind it, else BIGNUMERIC(p,s)
FLOAT, DOUBLE                                 FLOAT
VARCHAR, ENUM, UUID                           STRING
TIMESTAMP WITH TIME ZONE, TIMESTAMP           TIMESTAMP, DATETIME
BOOLEAN, DATE, TIME, BLOB, JSON               BOOLEAN, DATE, TIME, BYTES, JSON
T[], STRUCT(…)                                mode REPEATED, RECORD; a list of lists is refused
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from beam_pipelines.errors import SinkError, SpecError

NULLABLE, REQUIRED, REPEATED = "NULLABLE", "REQUIRED", "REPEATED"
NUMERIC, BIGNUMERIC = (29, 9), (38, 38)
"""Digits before and behind the decimal point."""
MAX_COLUMNS, MAX_DEPTH, MAX_NAME = 10_000, 15, 300
RESERVED = ("_TABLE_", "_FILE_", "_PARTITION", "_ROW_TIMESTAMP", "__ROOT__", "_COLIDENTIFIER", "_CHANGE_SEQUENCE_NUMBER", "_CHANGE_TYPE", "_CHANGE_TIMESTAMP")  # fmt: skip
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TYPES = {
    "boolean": "BOOLEAN", "tinyint": "INTEGER", "smallint": "INTEGER", "integer": "INTEGER", "bigint": "INTEGER", "utinyint": "INTEGER",
    "usmallint": "INTEGER", "uinteger": "INTEGER", "float": "FLOAT", "double": "FLOAT", "varchar": "STRING", "enum": "STRING", "uuid": "STRING",
    "blob": "BYTES", "date": "DATE", "time": "TIME", "timestamp with time zone": "TIMESTAMP", "timestamp": "DATETIME", "timestamp_s": "DATETIME",
    "timestamp_ms": "DATETIME", "timestamp_ns": "DATETIME", "hugeint": "BIGNUMERIC", "uhugeint": "BIGNUMERIC", "null": "STRING",
}  # fmt: skip
_ALIASES = {
    "INT64": "INTEGER", "FLOAT64": "FLOAT", "BOOL": "BOOLEAN", "STRUCT": "RECORD", "DECIMAL": "NUMERIC", "BIGDECIMAL": "BIGNUMERIC",
    "INT": "INTEGER", "SMALLINT": "INTEGER", "BIGINT": "INTEGER", "TINYINT": "INTEGER", "BYTEINT": "INTEGER",
}  # fmt: skip
_OURS = frozenset({"name", "type", "mode", "fields", "precision", "scale", "description"})


@dataclass(frozen=True)
class Field:
    """A column of a table, or a field of a record. `type` is a word of the REST API (INTEGER, FLOAT, BOOLEAN, RECORD, …), `mode` NULLABLE, REQUIRED or REPEATED.

    `precision` and `scale` of 0 are none: of a NUMERIC its full range. `more` is what the REST API says beside: policy tags, default values.
    """

    name: str
    type: str
    mode: str = NULLABLE
    fields: tuple[Field, ...] = ()
    precision: int = 0
    scale: int = 0
    description: str = ""
    more: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def api(self) -> dict[str, Any]:
        """The field in the REST API's JSON."""
        found: dict[str, Any] = {**self.more, "name": self.name, "type": self.type, "mode": self.mode}
        if self.fields:
            found["fields"] = [f.api() for f in self.fields]
        if self.precision:
            found["precision"] = str(self.precision)
            found |= {"scale": str(self.scale)} if self.scale else {}
        if self.description:
            found["description"] = self.description
        return found

    @property
    def digits(self) -> tuple[int, int] | None:
        """Digits before and behind the decimal point; None where it is no decimal."""
        full = {"NUMERIC": NUMERIC, "BIGNUMERIC": BIGNUMERIC}.get(self.type)
        return full if full is None or not self.precision else (self.precision - self.scale, self.scale)

    @property
    def sql(self) -> str:
        """The type as one reads it: `NUMERIC(10,2) REPEATED`."""
        scale = f",{self.scale}" if self.scale else ""
        parameters = f"({self.precision}{scale})" if self.precision else ""
        return f"{self.type}{parameters}{' REPEATED' if self.mode == REPEATED else ''}"


def read_fields(api: Sequence[Mapping[str, Any]]) -> tuple[Field, ...]:
    """Fields from the REST API's JSON: the `fields` of a table's `schema`."""
    return tuple(_read(f) for f in api)


def _read(api: Mapping[str, Any]) -> Field:
    kind = str(api["type"]).upper()
    more = {name: value for name, value in api.items() if name not in _OURS}
    numbers = int(api.get("precision") or 0), int(api.get("scale") or 0)
    mode = str(api.get("mode") or NULLABLE).upper()
    nested = read_fields(api.get("fields") or ())
    return Field(str(api["name"]), _ALIASES.get(kind, kind), mode, nested, *numbers, str(api.get("description") or ""), more)


def fields_of(
    columns: Sequence[tuple[str, str]], *, required: Collection[str] = (), descriptions: Mapping[str, str] | None = None
) -> tuple[Field, ...]:  # fmt: skip
    """The fields of columns with DuckDB types, as `write.sql_schema` gives them.

    Raises SpecError where BigQuery has no such name or type.
    """
    import duckdb

    if len(columns) > MAX_COLUMNS:
        raise SpecError(
            f"{len(columns):,} columns; a BigQuery table takes {MAX_COLUMNS:,}.", hint="Drop columns, or write them as one of type json."
        )
    found = []
    for name, text in columns:
        try:
            kind = duckdb.sqltype(text)
        except duckdb.Error as error:
            raise SpecError(f"column {name!r}: {text} is no type that BigQuery could take: {str(error).splitlines()[0]}.") from None
        one = _field(name, name, kind)
        told = (descriptions or {}).get(name, "")
        mode = REQUIRED if name in required and one.mode == NULLABLE else one.mode
        found.append(replace(one, mode=mode, description=told))
    _check_names(found, "")
    return tuple(found)


def _field(path: str, name: str, kind: Any, *, depth: int = 1, listed: bool = False) -> Field:
    if depth > MAX_DEPTH:
        raise SpecError(
            f"column {path!r}: records deeper than {MAX_DEPTH} levels; BigQuery takes no more.", hint="Make an inner part of type json."
        )
    word = kind.id
    if word in ("list", "array"):
        if listed:
            raise SpecError(
                f"column {path!r}: a list of lists; BigQuery has none.",
                hint="Make the inner list a struct with one field, or the column of type json.",
            )
        inner = _field(path, name, dict(kind.children)["child"], depth=depth, listed=True)
        return replace(inner, mode=REPEATED)
    if word == "struct":
        fields = [_field(f"{path}.{n}", n, k, depth=depth + 1) for n, k in kind.children]
        _check_names(fields, f"{path}.")
        return Field(name, "RECORD", fields=tuple(fields))
    if word in ("decimal", "ubigint"):
        return _decimal(name, **(dict(kind.children) if word == "decimal" else {"precision": 20, "scale": 0}))
    if str(kind) == "JSON":
        return Field(name, "JSON")
    if word not in _TYPES:
        raise SpecError(
            f"column {path!r}: BigQuery has no type for {kind}.",
            hint="Cast it in a `set` step: a map to a list of structs, anything else to text.",
        )
    return Field(name, _TYPES[word])


def _decimal(name: str, precision: int, scale: int) -> Field:
    kind = "NUMERIC" if precision - scale <= NUMERIC[0] and scale <= NUMERIC[1] else "BIGNUMERIC"
    return Field(name, kind, precision=precision, scale=scale)


def _check_names(fields: Sequence[Field], prefix: str) -> None:
    seen: dict[str, str] = {}
    for one in fields:
        path = prefix + one.name
        if _NAME.fullmatch(one.name) is None or len(one.name) > MAX_NAME:
            raise SpecError(
                f"column {path!r}: no name for BigQuery; expected letters, digits and underscores, no digit first, {MAX_NAME} at most.",
                hint="Give it another name in the contract, or in a `set` step.",
            )
        reserved = next((p for p in RESERVED if one.name.upper().startswith(p)), None)
        if reserved and not prefix:
            raise SpecError(f"column {path!r}: BigQuery keeps names that begin with {reserved} for itself.", hint="Give it another name.")
        other = seen.setdefault(one.name.lower(), path)
        if other is not path:
            raise SpecError(f"columns {other!r} and {path!r}: to BigQuery these are one name.", hint="Give one of them another name.")


def evolved(table: Sequence[Field], wanted: Sequence[Field], *, where: str = "the table") -> tuple[Field, ...]:
    """The fields of a table that must take rows with the `wanted` ones: new columns behind its own, and NULL where rows may have none. Nothing is dropped, no
    type changes. The same as `table` where nothing is to be done. Raises SinkError where a column has another type.
    """
    return _evolved(table, wanted, where, "")


def _evolved(table: Sequence[Field], wanted: Sequence[Field], where: str, prefix: str) -> tuple[Field, ...]:
    ours = {f.name.lower(): f for f in wanted}
    theirs = {f.name.lower() for f in table}
    kept = [_grown(f, ours.get(f.name.lower()), where, prefix + f.name) for f in table]
    return (*kept, *(_added(f) for f in wanted if f.name.lower() not in theirs))


def _grown(theirs: Field, ours: Field | None, where: str, path: str) -> Field:
    if ours is None:  # rows come without it
        return replace(theirs, mode=NULLABLE) if theirs.mode == REQUIRED else theirs
    if not _takes(theirs, ours):
        hint = "Give the column another name in the contract, or write to another table."
        if theirs.type == ours.type and theirs.digits and REPEATED not in (theirs.mode, ours.mode):
            hint = f"Run: ALTER TABLE `{where.strip('`')}` ALTER COLUMN {path} SET DATA TYPE {ours.sql}."
        raise SinkError(f"{where}: column {path!r} is {theirs.sql}; the rows have {ours.sql}.", hint=hint)
    mode = NULLABLE if theirs.mode == REQUIRED and ours.mode == NULLABLE else theirs.mode
    told = ours.description or theirs.description
    return replace(
        theirs,
        mode=mode,
        description=told,
        fields=_evolved(theirs.fields, ours.fields, where, f"{path}.") if ours.fields else theirs.fields,
    )


def _takes(theirs: Field, ours: Field) -> bool:
    if (theirs.mode == REPEATED) != (ours.mode == REPEATED):
        return False
    if theirs.digits and ours.digits:
        return all(own <= other for own, other in zip(ours.digits, theirs.digits, strict=True))
    return theirs.type == ours.type


def _added(new: Field) -> Field:
    """A field that rows stored before do not have, so it is not required."""
    return replace(new, mode=NULLABLE if new.mode == REQUIRED else new.mode)
