"""Enrich: columns from a lookup table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.arrow.enrich import Lookup, LookupTable, lookup_table
from beam_pipelines.arrow.transform import LookupStep, TransformStep
from beam_pipelines.errors import SpecError
from beam_pipelines.transforms.given import piped
from beam_pipelines.transforms.transform import Transform


class Enriched(NamedTuple):
    """Rows with the lookup's columns; dead letters and counts of the stages before."""

    rows: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection

    def __or__(self, transform: Any) -> Any:
        return piped(self, transform)


class Enrich(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Adds `take` (new name to lookup column) where row column(s) `on` match the table's key. A miss is NULL; no row leaves.

    `table`: a pyarrow Table or RecordBatch with `key`, its key column(s); a LookupTable (`arrow.enrich.lookup_table`); or a function without
    arguments that gives a LookupTable, asked for each batch on the worker, which may keep and refresh it. Every worker holds the table; it travels
    with the job unless a function gives it. `duplicates` says what a repeated key does.

        rows | Enrich(pa.table({"shop": ["north"], "city": ["Oslo"]}), key="shop", on="shop", take={"city": "city"})

    Raises SpecError for a table of another kind, such as a side input, and for columns it does not have; RunError for a repeated key.
    """

    def __init__(
        self,
        table: Lookup | pa.Table | pa.RecordBatch,
        *,
        on: str | tuple[str, ...] | dict[str, str],
        take: Mapping[str, str],
        key: str | Iterable[str] | None = None,
        duplicates: Literal["fail", "first", "last"] = "fail",
    ) -> None:
        super().__init__()
        self.table = _lookup(table, key, duplicates)
        self.step = TransformStep(lookup=LookupStep(from_="table", on=on, take=dict(take)))
        self._transform = Transform(self.step, lookups={"table": self.table})

    def expand(self, rows: Any) -> Enriched:
        return Enriched(*(rows | "Lookup" >> self._transform))


def _lookup(table: Any, key: str | Iterable[str] | None, duplicates: Literal["fail", "first", "last"]) -> Lookup:
    if isinstance(table, pa.Table | pa.RecordBatch):
        if key is None:
            raise SpecError("Enrich: a pyarrow table needs `key`: the column(s) that `on` is compared with.")
        return lookup_table(table, name="table", key=key, duplicates=duplicates)
    if key is not None:
        raise SpecError("Enrich: `key` is for a pyarrow Table or RecordBatch; a LookupTable has its own.")
    if isinstance(table, LookupTable):
        return table
    if callable(table):
        loader: Lookup = table
        return loader
    hint = "pa.Table.from_pylist(rows) makes one of dicts."
    if isinstance(table, beam.PCollection | beam.pvalue.AsSideInput):
        hint = "A table is read before the job, or on the worker by a function: side inputs are not supported."
    raise SpecError(
        f"Enrich: table is a {type(table).__name__}; expected a pyarrow Table, a LookupTable, or a function that gives one.", hint=hint
    )
