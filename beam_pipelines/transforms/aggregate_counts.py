"""What became of the rows of a batch in an aggregate, as ledger counts: the same in batch and stream."""

from __future__ import annotations

import pyarrow as pa

from beam_pipelines.arrow.counts import Count, rows_by_source, unit_of
from beam_pipelines.arrow.windowing import LATE


def counts_of(batch: pa.RecordBatch, rows: pa.RecordBatch, dead: pa.RecordBatch, name: str) -> list[Count]:
    """`rows` of the batch were aggregated, the others are `dead`. The unit names the aggregate: others count the same rows."""
    unit = f"{unit_of(batch)}#{name}"
    tally = {(source, "aggregated", name): n for source, n in rows_by_source(rows).items()}
    for letter in dead.select(["source", "reason"]).to_pylist():  # rejected rows only
        outcome, detail = ("late", name) if letter["reason"] == LATE else ("dead", f"aggregate:{letter['reason']}")
        key = (letter["source"] or "", outcome, detail)
        tally[key] = tally.get(key, 0) + 1
    return [(unit, source, outcome, detail, n) for (source, outcome, detail), n in tally.items()]
