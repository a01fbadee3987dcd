"""Doors: the rows of a stream that left otherwise than written or dead, one line each, so that its ledger counts rows and not bundles."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from beam_pipelines.arrow.schema import ARRIVAL, DOORS, POSITION, SOURCE, UTC_MICROS

DUPLICATE, FILTERED = "duplicate", "filtered"


def doors_of(rows: pa.RecordBatch, door: str) -> pa.RecordBatch:
    """A line of DOORS for each of the rows."""
    n = rows.num_rows
    arrival = rows.column(ARRIVAL) if ARRIVAL in rows.schema.names else pa.nulls(n, UTC_MICROS)
    columns = [rows.column(SOURCE).cast(pa.string()), rows.column(POSITION), pa.repeat(pa.scalar(door), n), arrival]
    return pa.RecordBatch.from_arrays(columns, schema=DOORS)


def filtered_doors(batch: pa.RecordBatch, kept: pa.RecordBatch, dead: pa.RecordBatch) -> pa.RecordBatch:
    """Doors of the rows of `batch` (of one source) that are in neither `kept` nor the letters `dead`: a stage filtered them."""
    before = batch.column(POSITION).to_numpy()
    left = np.concatenate((kept.column(POSITION).to_numpy(), dead.column("position").to_numpy(zero_copy_only=False)))
    return doors_of(batch.filter(pa.array(~np.isin(before, left))), FILTERED)
