"""Checks: what must hold of a row, and what happens where it does not."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from beam_pipelines.arrow.durations import parse_duration
from beam_pipelines.arrow.model import Misfits, Model
from beam_pipelines.errors import SpecError

Severity = Literal["warn", "dead_letter", "fail"]


class References(Model):
    """`columns` must be found in the lookup's `key`."""

    columns: tuple[str, ...] = Field(min_length=1, description="The row's columns, in the order of the lookup's key.")
    lookup: str = Field(description="The lookup's name.")


class RowCount(Model):
    """How many rows a run (or a stream's window) must have."""

    min: int | None = Field(None, ge=0, description="Fewest rows.")
    max: int | None = Field(None, ge=0, description="Most rows.")

    @model_validator(mode="after")
    def _some(self) -> RowCount:
        if self.min is None and self.max is None:
            raise ValueError("row_count needs 'min', 'max' or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}: no count would be allowed")
        return self


class NullRate(Model):
    """The largest share of NULLs in a column."""

    column: str = Field(description="The column.")
    max: float = Field(ge=0, le=1, description="Largest share, from 0 to 1.")


class Check(Model):
    """One check: exactly one of `expr`, `unique`, `references`, `row_count`, `null_rate`, `freshness`.

    `expr` is SQL over a row with CHECK semantics: NULL passes. `unique`, `row_count`, `null_rate` and `freshness` look at many rows: they are
    judged when the run ends and can warn or fail it.
    """

    name: str = Field(pattern=r"^[A-Za-z_][\w-]*$", description="The check's name, in dead letters and reports; unlike any other check's.")
    expr: str | None = Field(None, description="SQL that must not be FALSE.")
    unique: tuple[str, ...] | None = Field(None, description="Columns whose values must not repeat among the rows that go to the sinks.")
    references: References | None = Field(None, description="Values that must exist in a lookup; NULL passes.")
    row_count: RowCount | None = Field(None, description="Bounds on the number of rows that go to the sinks.")
    null_rate: NullRate | None = Field(None, description="Largest share of NULLs among the rows that go to the sinks.")
    freshness: dict[str, str] | None = Field(
        None, description="{column: timestamp column, max_age: 1d}: newest value against the run's start."
    )
    severity: Severity = Field(
        "dead_letter", description="What a failure does: count, dead-letter the row, fail the run. Over many rows the default is `fail`."
    )
    description: str = Field("", description="For people.")

    @model_validator(mode="after")
    def _one_kind(self) -> Check:
        kinds = ("expr", "unique", "references", "row_count", "null_rate", "freshness")
        given = [k for k in kinds if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"check {self.name!r} needs exactly one of {', '.join(kinds)}; got {', '.join(given) or 'none'}")
        if given[0] not in ("expr", "references") and self.severity == "dead_letter":
            if "severity" in self.model_fields_set:
                raise Misfits((("severity",), f"{given[0]} looks at many rows and cannot dead-letter one; expected warn or fail"))
            object.__setattr__(self, "severity", "fail")
        if self.unique == ():
            raise Misfits((("unique",), "the list is empty; expected columns"))
        if self.freshness is not None:
            _check_freshness(self.freshness)
        return self

    @property
    def per_row(self) -> bool:
        """Whether the check is judged row by row."""
        return self.expr is not None or self.references is not None


def _check_freshness(freshness: dict[str, str]) -> None:
    for name in freshness:
        if name not in ("column", "max_age"):
            raise Misfits((("freshness", name), f"unknown field {name!r}; fields of a freshness check: column, max_age"))
    for name in ("column", "max_age"):
        if name not in freshness:
            raise Misfits((("freshness",), f"needs {name!r}; write {{column: event_time, max_age: 1d}}"))
    try:
        parse_duration(freshness["max_age"])
    except SpecError as error:
        raise Misfits((("freshness", "max_age"), str(error))) from None
