"""Aggregates: rows to partial accumulators, accumulators to panes. Merging is associative, commutative and exact."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from beam_pipelines.arrow.durations import Micros
from beam_pipelines.arrow.measures import parse_measure
from beam_pipelines.arrow.model import Model, refuse
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.errors import SpecError


class Trigger(Model):
    """When a stream shows a window before and after its end. Batch ignores it."""

    early: Micros | None = Field(None, gt=0, description="A pane this often before the window closes.")
    late: Literal["every_batch", "never"] = Field("every_batch", description="Whether late rows give a new pane each time.")


class AggregateSpec(Model):
    """Measures per group and window.

    `measures` maps a column name to `count()`, `sum(x)`, `min(x)`, `max(x)`, `avg(x)`, `stddev(x)`, `count_distinct(x)`, `first(x)`,
    `last(x)` or `quantile(x, q)`, where x is a row expression; each may end in `where CONDITION`.
    """

    windowing: WindowSpec | None = Field(None, description="Default: one window over everything (batch only).")
    trigger: Trigger = Field(Trigger(), description="When a stream shows a window before and after its end.")
    time: str | None = Field(None, description="The timestamp column windows are cut by; default: the contract's event_time.")
    group_by: tuple[str, ...] = Field((), description="Columns, declared or computed.")
    measures: dict[str, str] = Field(min_length=1, description="Column name to measure.")

    @model_validator(mode="after")
    def _complete(self) -> AggregateSpec:
        faults: list[tuple[tuple[str | int, ...], str]] = []
        for name, text in self.measures.items():
            if not name or name.startswith("_"):
                faults.append((("measures", name), f"{name!r}: names that start with '_' are reserved for the columns of panes"))
            try:
                parse_measure(text)
            except SpecError as error:
                faults.append((("measures", name), str(error)))
        columns = [*self.group_by, *self.measures]
        twice = dict.fromkeys(n for n in columns if columns.count(n) > 1)
        faults += [((), f"{n!r} is twice among group_by and measures; a pane needs columns of different names") for n in twice]
        refuse(faults)
        return self
