"""Functions as users write them for `apply`."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

CALLS: list[int] = []


def double(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Changes a column it was given."""
    return batch.set_column(0, "x", pc.multiply(batch["x"], 2))


def invert(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Adds 100 // x; raises on the whole batch where an x is 0."""
    CALLS.append(batch.num_rows)
    return pa.record_batch({"inverse": pa.array([100 // x for x in batch["x"].to_pylist()], pa.int64())})


def too_short(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.slice(1)


def undeclared(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.append_column("surprise", batch["x"])


def nothing(batch: pa.RecordBatch) -> None:
    return None


def sees(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch({"seen": [",".join(batch.schema.names)] * batch.num_rows})


def narrow(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch({"y": pc.multiply(batch["x"], 100)})


NOT_A_FUNCTION = 1
