"""Enrich: columns from a lookup table."""

from __future__ import annotations

from typing import Any, NamedTuple

import apache_beam as beam

from beam_pipelines.arrow.transform import LookupStep, TransformStep
from beam_pipelines.transforms.transform import Transform


class Enriched(NamedTuple):
    """Rows with the lookup's columns; dead letters and counts of the stages before."""

    rows: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection


class Enrich(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Adds `take` (new name to lookup column) where row column(s) `on` match the table's key. A miss is NULL; no row leaves."""

    def __init__(self, table: Any, *, on: str | tuple[str, ...], take: dict[str, str]) -> None:
        super().__init__()
        self.table = table
        self.step = TransformStep(lookup=LookupStep(from_="table", on=on, take=take))

    def expand(self, rows: Any) -> Enriched:
        return Enriched(*(rows | "Lookup" >> Transform(self.step, lookups={"table": self.table})))
