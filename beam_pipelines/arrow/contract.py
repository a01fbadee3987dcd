"""The contract: what a row is. Columns and their types, the key, the event time, and what happens to surprises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from beam_pipelines.arrow.durations import Micros
from beam_pipelines.arrow.model import Model, refuse
from beam_pipelines.arrow.types import INTEGERS, DataType, parse_type
from beam_pipelines.errors import SpecError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

COLUMN_RULES = ("required", "min", "max", "in", "regex", "min_length", "max_length")
"""Rules of a column; a failure of one is called `column.rule`."""
Scalar = bool | int | float | str
Fault = tuple[tuple[str | int, ...], str]
_TEXTS = ("string", "json", "uuid")
_TIMES = ("date", "time", "timestamp", "datetime")


def _known_type(text: str) -> str:
    try:
        return str(parse_type(text))
    except SpecError as error:
        raise ValueError(str(error)) from None


TypeText = Annotated[str, AfterValidator(_known_type)]


class Column(Model):
    """One column of a contract."""

    type: TypeText = Field(description="int32, decimal(12,2), timestamp, list<string>, struct<a: int32>, ...")
    required: bool = Field(False, description="NULL or absent is a dead letter (reason REQUIRED).")
    path: str | tuple[str, ...] | None = Field(
        None, description="Where the value lies in a nested record: `user.id`, or a list of keys. Default: the column's name as one key."
    )
    expr: str | None = Field(None, description="SQL over other contract columns: the column is computed, not read.")
    default: Scalar | None = Field(None, description="Taken where the value is absent or NULL.")
    null_values: tuple[str, ...] = Field((), description="Texts that mean NULL.")
    trim: bool = Field(False, description="Strip white space around texts before anything else.")
    coerce: bool = Field(
        False, description='Accept what converts without loss: "5" or 5.0 for an integer, 1 or "true" for a boolean, 12 for a string.'
    )
    format: str | tuple[str, ...] | None = Field(
        None, description="strptime pattern(s) of a date, time or timestamp text; default ISO 8601."
    )
    unit: Literal["s", "ms", "us", "ns"] | None = Field(None, description="A number is a count of this unit since 1970-01-01 UTC.")
    time_zone: str | None = Field(None, description="Zone of texts without an offset; default: the spec's `time_zone`.")
    ambiguous: Literal["earlier", "later", "dead_letter"] = Field("earlier", description="A local time that the clock shows twice.")
    missing: Literal["dead_letter", "earlier", "later"] = Field("dead_letter", description="A local time that the clock skips.")
    min: int | float | str | None = Field(None, description="Smallest value allowed.")
    max: int | float | str | None = Field(None, description="Largest value allowed.")
    in_: tuple[Scalar, ...] | None = Field(None, alias="in", description="Values allowed.")
    regex: str | None = Field(None, description="RE2 pattern the whole text must match.")
    min_length: int | None = Field(None, ge=0, description="Fewest characters allowed.")
    max_length: int | None = Field(None, ge=0, description="Most characters allowed.")
    sensitive: Literal["hmac", "redact", "drop"] | None = Field(
        None,
        description="How the column is masked in every output: hmac (HMAC-SHA256 as 64 hex digits; equal values stay equal), redact (`***` for text, "
        "NULL otherwise), drop (left out).",
    )
    description: str = Field("", description="For people; becomes the column's description where a sink has one.")

    @model_validator(mode="after")
    def _fits_its_type(self) -> Column:
        refuse([*_misplaced(self), *_unfitting_values(self), *_reversed_bounds(self)])
        return self

    @property
    def dtype(self) -> DataType:
        return parse_type(self.type)

    def keys(self, name: str) -> tuple[str, ...]:
        """The keys that lead to the value in a nested record."""
        if self.path is None:
            return (name,)
        return tuple(self.path.split(".")) if isinstance(self.path, str) else self.path


class Contract(Model):
    """What a row is: typed columns, the `key` that identifies a thing, and `event_time`, when it happened.

    >>> Contract(key=['id'], columns={'id': Column(type='int64', required=True)}).key
    ('id',)
    """

    columns: dict[str, Column] = Field(description="Column name to its rules, in order.", min_length=1)
    key: tuple[str, ...] = Field((), description="Columns that identify a thing; used by `deduplicate` and upserts.")
    event_time: str | None = Field(None, description="The timestamp column that says when the thing happened.")
    allowed_skew: Micros = Field(
        86_400_000_000,
        ge=0,
        description="How far event time may lie ahead of arrival, where that is known; further is a dead letter `FUTURE`.",
    )
    unknown_columns: Literal["keep", "drop", "dead_letter", "fail"] = Field(
        "keep", description="Values the contract does not name: keep as JSON in `_unknown`, drop, dead-letter the row, or fail the run."
    )
    version: str = Field("1", description="For people; the fingerprint identifies the contract.")
    description: str = Field("", description="For people.")

    @model_validator(mode="after")
    def _names_agree(self) -> Contract:
        refuse([*_bad_names(self.columns), *_unknown_names(self)])
        return self

    @property
    def read(self) -> dict[str, Column]:
        """The columns that come from the record, in order."""
        return {n: c for n, c in self.columns.items() if c.expr is None}

    @property
    def computed(self) -> dict[str, Column]:
        """The columns that have an `expr`, in order."""
        return {n: c for n, c in self.columns.items() if c.expr is not None}

    @property
    def civil(self) -> frozenset[str]:
        """Columns that are civil times: they never carry a zone."""
        return frozenset(n for n, c in self.columns.items() if c.dtype.kind == "datetime")

    @property
    def sensitive(self) -> dict[str, str]:
        """Sensitive columns and how each is masked."""
        return {n: c.sensitive for n, c in self.columns.items() if c.sensitive is not None}

    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema of the contract's columns, all nullable, in the contract's order."""
        import pyarrow as pa

        return pa.schema([pa.field(n, c.dtype.arrow()) for n, c in self.columns.items()])

    @property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over everything that changes what a row is; descriptions and `version` do not."""
        import hashlib  # these two cost as much to import as a spec to read, and `validate` needs neither

        import msgspec

        content: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True, exclude={"version", "description"}, by_alias=True)
        content["columns"] = [
            [name, {k: v for k, v in rules.items() if k != "description"}] for name, rules in content["columns"].items()
        ]  # a list: the order of columns is part of the contract
        return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:16]


def _misplaced(column: Column) -> list[Fault]:
    """Rules that mean nothing for the column's type, or for a computed column."""
    kind = column.dtype.kind
    given = column.model_fields_set
    rules = {"regex": _TEXTS, "min_length": _TEXTS, "max_length": _TEXTS, "format": _TIMES, "unit": _TIMES[2:] + _TIMES[:1],
             "time_zone": _TIMES, "ambiguous": _TIMES, "missing": _TIMES}  # fmt: skip
    faults: list[Fault] = [
        ((name,), f"'{name}' is for columns of type {', '.join(kinds)}; this one has type {column.type}")
        for name, kinds in rules.items()
        if name in given and getattr(column, name) is not None and kind not in kinds
    ]
    if column.expr is not None:
        reading = ("path", "null_values", "trim", "coerce", "format", "unit")
        faults += [((name,), f"'{name}' is about reading, and a column with 'expr' is not read") for name in reading if name in given]
    if column.path is not None and not all(column.keys("")):
        faults.append((("path",), f"got {column.path!r}; expected keys, none of them empty"))
    return faults


def _unfitting_values(column: Column) -> list[Fault]:
    """Bounds, sets and defaults that are no values of the column's type."""
    kind = column.dtype
    faults: list[Fault] = []
    for name in ("min", "max"):
        bound = getattr(column, name)
        if bound is None:
            continue
        if kind.nested or kind.kind in ("boolean", "binary", "json"):
            faults.append(((name,), f"'{name}' needs a type with an order; this column has type {column.type}"))
        elif not fits(kind, bound):
            faults.append(((name,), f"got {bound!r}; expected {_wanted(kind)}, as the column has type {column.type}"))
    if column.in_ is not None and (kind.nested or kind.kind in ("binary", "json")):
        faults.append((("in",), f"'in' needs a plain type; this column has type {column.type}"))
    elif column.in_ is not None:
        wrong = [(i, v) for i, v in enumerate(column.in_) if not fits(kind, v)]
        faults += [(("in", i), f"got {v!r}; expected {_wanted(kind)}, as the column has type {column.type}") for i, v in wrong]
        if not column.in_:
            faults.append((("in",), "the list is empty: no value would be allowed"))
    if column.default is not None and not fits(kind, column.default):
        faults.append((("default",), f"got {column.default!r}; expected {_wanted(kind)}, as the column has type {column.type}"))
    return faults


def _reversed_bounds(column: Column) -> list[Fault]:
    low, high = column.min, column.max
    comparable = isinstance(low, str) == isinstance(high, str)
    if low is not None and high is not None and comparable and low > high:  # type: ignore[operator]  # both texts or both numbers
        return [(("min",), f"min {low!r} is larger than max {high!r}: no value would be allowed")]
    if column.min_length is not None and column.max_length is not None and column.min_length > column.max_length:
        return [
            (("min_length",), f"min_length {column.min_length} is larger than max_length {column.max_length}: no value would be allowed")
        ]
    return []


def fits(kind: DataType, value: Scalar) -> bool:
    """Whether a scalar of a spec can stand for a value of the type: its kind and range, not yet its text.

    >>> fits(parse_type('int8'), 300), fits(parse_type('date'), '2013-01-01')
    (False, True)
    """
    if kind.kind == "boolean":
        return isinstance(value, bool)
    if isinstance(value, bool) or kind.nested:
        return False
    if kind.integer:
        low, high = INTEGERS[kind.kind]
        return isinstance(value, int) and low <= value <= high
    if kind.floating:
        return isinstance(value, (int, float))
    return kind.kind == "decimal" or isinstance(value, str)


def _wanted(kind: DataType) -> str:
    if kind.integer:
        low, high = INTEGERS[kind.kind]
        return f"an integer from {low} to {high}"
    if kind.numeric:
        return "a number"
    words = {"boolean": "true or false", "date": 'a text such as "2013-01-31"', "time": 'a text such as "23:59:00"'}
    return words.get(
        kind.kind, 'a text such as "2013-01-31 23:59:00"' if kind.temporal else "a text (in quotes, if it looks like a number)"
    )


def _bad_names(columns: dict[str, Column]) -> list[Fault]:
    faults: list[Fault] = []
    seen: dict[str, str] = {}
    for name in columns:
        at = ("columns", name)
        if not name or "$" in name or "\0" in name:
            faults.append((at, f"column {name!r}: a name must not be empty or contain '$'"))
        elif name.startswith("_"):
            faults.append((at, f"column {name!r}: names that start with '_' are reserved for provenance columns"))
        elif seen.setdefault(name.lower(), name) != name:
            faults.append((at, f"column {name!r} differs from {seen[name.lower()]!r} only in case, which SQL does not see"))
    return faults


def _unknown_names(contract: Contract) -> list[Fault]:
    columns, faults = contract.columns, list[Fault]()
    named: list[tuple[tuple[str | int, ...], str]] = [(("key", i), name) for i, name in enumerate(contract.key)]
    named += [(("event_time",), contract.event_time)] if contract.event_time is not None else []
    faults += [(at, f"{name!r} is not a column of the contract; {nearest(name, columns)}") for at, name in named if name not in columns]
    faults += [(("key", i), f"{name!r} is in the key twice") for i, name in enumerate(contract.key) if name in contract.key[:i]]
    for i, name in enumerate(contract.key):
        if name in columns and columns[name].dtype.nested:
            faults.append((("key", i), f"key column {name!r} has type {columns[name].type}; expected a plain type"))
    if contract.event_time in columns and columns[contract.event_time].dtype.kind not in ("timestamp", "date"):
        kind = columns[contract.event_time].type
        faults.append((("event_time",), f"event_time {contract.event_time!r} has type {kind}; expected timestamp or date"))
    return faults
