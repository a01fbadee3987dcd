"""What the ledger counts: rows by source, and a name for what was counted."""

from __future__ import annotations

import pyarrow as pa

from beam_pipelines.arrow.schema import POSITION, SOURCE

Count = tuple[str, str, str, str, int]
"""(unit, source, outcome, detail, rows): `unit` names what was counted, so that a replayed bundle overwrites instead of adding."""


def rows_by_source(rows: pa.RecordBatch) -> dict[str, int]:
    """How many rows come from each source; all from "" where rows carry none."""
    if SOURCE not in rows.schema.names or not rows.num_rows:
        return {"": rows.num_rows} if rows.num_rows else {}
    column = rows.column(SOURCE)
    if pa.types.is_dictionary(column.type) and len(column.dictionary) == 1 and not column.null_count:
        return {str(column.dictionary[0].as_py()): rows.num_rows}
    return {str(e["values"] or ""): int(e["counts"]) for e in column.value_counts().to_pylist()}


def unit_of(rows: pa.RecordBatch) -> str:
    """A name for these rows that a replay gives again: their first row's identity and their number."""
    if not rows.num_rows:
        return ""
    names = rows.schema.names
    source = rows.column(SOURCE)[0].as_py() if SOURCE in names else ""
    position = rows.column(POSITION)[0].as_py() if POSITION in names else ""
    return f"{source or ''}@{position}+{rows.num_rows}"
