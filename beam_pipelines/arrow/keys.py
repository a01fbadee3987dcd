"""Keys and duplicates: which copy of a thing stays. A pure function of the set of rows, whatever their order."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from beam_pipelines.arrow.durations import Micros
from beam_pipelines.arrow.model import Model

MOST_SHARDS = 64
"""Keys of a stage's state, at most: a bundle goes to each, and that of a digest is found by its first byte."""


class DeduplicateRule(Model):
    """A row is a duplicate if a better copy of its key lies within `within` of its event time.

    Better: larger `order_by` where `keep` is newest (smaller where oldest; NULL is worst), then the larger digest of the contract's
    columns, then the smaller (`_source`, `_position`). Without `within`, over all time.
    """

    key: tuple[str, ...] | None = Field(None, description="Default: the contract's key.")
    within: Micros | None = Field(None, gt=0, description="How far apart in event time copies still compete; a stream needs it.")
    keep: Literal["newest", "oldest"] = Field("newest", description="Which copy stays, by `order_by`.")
    order_by: str = Field("_arrival_time", description="Column that says which copy is newer.")
