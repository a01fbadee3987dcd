"""Corrections on their way through row stages: rows of `_change` -1, which take back a row that was told before.

Such a row holds identity, arrival and event time; all else is NULL. What a stage did to the row itself is undone by its correction, so

    +1 ─▶ filter, checks, expressions, functions ─▶ +1, or none        stream: aggregate(stage(deduplicate(rows)))
    -1 ─▶ renamed and dropped alike, else as it is ─▶ -1               = batch: aggregate(stage(deduplicate(rows)))

A correction passes every filter and check: a -1 for a row that never came further tells its reader nothing, who takes both as sets of row_ids.
A column keeps or gets a value in it only where that follows from what it holds: `set: {at: at + INTERVAL 1 HOUR}` moves the correction to the
window of its row.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.concat import concat
from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.program import Split
from beam_pipelines.arrow.schema import RESERVED_PREFIX
from beam_pipelines.arrow.stream_partials import taken_back

RowStage = Callable[[pa.RecordBatch, Engine | None], Split]


def around(
    stage: RowStage,
    batch: pa.RecordBatch,
    engine: Engine | None = None,
    *,
    correct: Callable[[pa.RecordBatch, Engine | None], pa.RecordBatch] = lambda rows, engine: rows,
) -> Split:
    """`stage` over the rows of `batch`, and `correct` over those that take rows back, which go on among its rows."""
    gone = taken_back(batch)
    if not gone.any():
        return stage(batch, engine)
    split = stage(batch.filter(pa.array(~gone)), engine)
    corrections = correct(batch.filter(pa.array(gone)), engine)
    return split._replace(rows=concat([_fitted(corrections, split.rows.schema), split.rows]))


def held(corrections: pa.RecordBatch) -> tuple[str, ...]:
    """The columns, without reserved ones, that say something in corrections: the event time."""
    return tuple(n for n in corrections.schema.names if not n.startswith(RESERVED_PREFIX) and not corrections.column(n).null_count)


def timed(corrections: pa.RecordBatch, before: pa.RecordBatch) -> pa.RecordBatch:
    """`corrections` with every time that came out as NULL set to that of `before`.

    The row itself has no such time, so no window has it, and it need not be found: NULL is left to say that a time is not known.
    """
    time = next((before.column(n) for n in held(before) if _is_instant(before.schema.field(n).type)), None)
    if time is None:
        return corrections
    columns = [
        pc.coalesce(c, time.cast(c.type, safe=False)) if _is_instant(c.type) and c.null_count and not _reserved(n) else c
        for n, c in zip(corrections.schema.names, corrections.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=corrections.schema.names)


def _fitted(corrections: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """`corrections` in the schema of the rows, NULL in what they do not hold."""
    have = set(corrections.schema.names)
    columns = [
        corrections.column(f.name).cast(f.type, safe=False) if f.name in have else pa.nulls(corrections.num_rows, f.type) for f in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _is_instant(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _reserved(name: str) -> bool:
    return name.startswith(RESERVED_PREFIX)
