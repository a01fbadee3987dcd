"""From what a format found to the contract's columns: placed by name, the rest in `_unknown`, by the contract's policy."""

from __future__ import annotations

import re
from collections.abc import Mapping

import duckdb
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.engine import literal, local_engine, naive_utc, quote
from beam_pipelines.arrow.program import KernelResult
from beam_pipelines.arrow.schema import PROVENANCE_NAMES, RAW, SOURCE, UNKNOWN, Failure, Rejected
from beam_pipelines.errors import RunError, nearest
from beam_pipelines.formats.reader import UNKNOWN_COLUMN

Failures = dict[int, tuple[str, str]]
"""Row index to reason and message."""
_NO_JSON = re.compile(r'"(?:[^"\\]|\\.)*+"|-?NaN|-?Infinity')


def place(
    batch: pa.RecordBatch,
    contract: Contract,
    columns: Mapping[str, pa.Array | None],
    unknown: Mapping[str, pa.Array | None],
    failures: Failures,
    *,
    absent: pa.DataType | None = None,
) -> KernelResult:
    """The decoded batch: provenance and `_raw` of `batch`, `columns` in order (None: NULLs of type `absent`), `_unknown`; and verdicts.

    `unknown` holds what the contract does not name; its arrays are needed only where `unknown_columns` is `keep`.
    """
    rows = batch.num_rows
    nulls = pa.nulls(rows, absent or pa.string())
    out = {n: batch.column(n) for n in batch.schema.names if n in PROVENANCE_NAMES or n == RAW}
    out |= {n: nulls if c is None else c for n, c in columns.items()}
    if contract.unknown_columns == "keep":
        out[UNKNOWN] = json_objects({n: c for n, c in unknown.items() if c is not None}, rows)
    elif contract.unknown_columns == "fail" and unknown:
        name = next(iter(unknown))
        text = f"{source_of(batch)}: column {name!r} is not in the contract (unknown_columns: fail);"
        raise RunError(text, hint=nearest(name, contract.read))
    elif contract.unknown_columns == "dead_letter" and unknown:
        message = f"the contract does not name {', '.join(repr(n) for n in unknown)} (unknown_columns: dead_letter)"
        failures = dict.fromkeys(range(rows), (UNKNOWN_COLUMN, message)) | failures
    return pa.RecordBatch.from_arrays(list(out.values()), names=list(out)), verdicts(failures)


def field_name(name: str, column: Column) -> str:
    """The name in a header, or of a group, from which the contract column `name` is taken."""
    return name if column.path is None else column.path if isinstance(column.path, str) else ".".join(column.path)


def verdicts(failures: Failures) -> dict[int, Rejected]:
    return {row: Rejected("decode", reason, (Failure("decode", "", message),)) for row, (reason, message) in failures.items()}


def json_objects(columns: Mapping[str, pa.Array], rows: int) -> pa.Array:
    """One JSON object per row with a member per column; NULL where there are no columns. NaN and infinities, which JSON lacks, are null."""
    if not columns or not rows:
        return pa.nulls(rows, pa.string())
    slots = {f"c{i}": c for i, c in enumerate(columns.values())}
    batch = naive_utc(pa.RecordBatch.from_arrays(list(slots.values()), names=list(slots)))
    members = ", ".join(f"{literal(name)}, {quote(slot)}" for name, slot in zip(columns, slots, strict=True))
    try:
        texts = local_engine().select(f"SELECT json_object({members})::VARCHAR AS u FROM $slot", batch.schema)(batch).column(0)
    except duckdb.NotImplementedException:  # a type that DuckDB does not know: decimals beyond 38 digits, half floats
        encode = msgspec.json.Encoder(enc_hook=str).encode
        values = zip(*(c.to_pylist() for c in columns.values()), strict=True)
        return pa.array([encode(dict(zip(columns, v, strict=True))).decode() for v in values], pa.string())
    return _without_nan(texts)


def _without_nan(texts: pa.Array) -> pa.Array:
    suspects = np.flatnonzero(pc.match_substring_regex(texts, "NaN|Infinity").to_numpy(zero_copy_only=False))
    if not len(suspects):
        return texts
    found = texts.to_pylist()
    for row in suspects.tolist():  # only rows that hold such a word
        found[row] = _NO_JSON.sub(lambda m: m[0] if m[0].startswith('"') else "null", found[row])
    return pa.array(found, pa.string())


def source_of(batch: pa.RecordBatch) -> str:
    """The source of a batch's first row, for messages."""
    named = SOURCE in batch.schema.names and batch.num_rows > 0
    return str(batch.column(SOURCE)[0].as_py()) if named else "a batch"
