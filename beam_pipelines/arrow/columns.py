"""Columns of any Arrow layout in the few layouts the stages know, with the contract's names.

Dictionaries, large and view types, run ends, fixed sizes and other units of time say nothing about a value; they are gone after `align`.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.engine import literal, local_engine, naive_utc, quote
from beam_pipelines.arrow.layers import KernelResult
from beam_pipelines.arrow.layouts import plain
from beam_pipelines.arrow.schema import RESERVED_PREFIX, UNKNOWN, Failure, Rejected
from beam_pipelines.arrow.text_casts import FIRST_MICROS, LAST_MICROS
from beam_pipelines.errors import RunError, nearest

_STAGE = "conform"
_Verdicts = dict[int, Rejected]


def align(batch: pa.RecordBatch, contract: Contract) -> KernelResult:
    """The contract's read columns in order, then `_unknown` where there is one, then provenance; absent columns are NULL.

    Other columns follow `contract.unknown_columns`. Rows with a text that is not UTF-8 (DECODE), a time outside the years 1 to 9999 (CAST) or an unknown column where the
    contract refuses these (UNKNOWN_COLUMN) are rejected; `unknown_columns: fail` raises RunError.
    """
    have = dict(zip(batch.schema.names, batch.columns, strict=True))
    verdicts: _Verdicts = {}
    columns: dict[str, pa.Array] = {}
    for name in contract.read:
        found = have.pop(name, None)
        columns[name] = pa.nulls(batch.num_rows) if found is None else _sound(name, plain(found), verdicts)
    reserved = {n: have.pop(n) for n in batch.schema.names if n.startswith(RESERVED_PREFIX)}
    extras = {n: plain(c) for n, c in have.items() if n not in contract.columns}
    if extras:
        _surprises(extras, contract, columns, reserved, verdicts)
    columns |= {UNKNOWN: reserved.pop(UNKNOWN)} if UNKNOWN in reserved else {}
    columns |= reserved
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)), verdicts


def _sound(name: str, column: pa.Array, verdicts: _Verdicts) -> pa.Array:
    """`column` without values that the later stages cannot hold: NULL in their place, and a verdict."""
    if pa.types.is_string(column.type):
        return _readable(name, column, verdicts)
    return _in_range(name, column, verdicts) if pa.types.is_timestamp(column.type) else column


def _in_range(name: str, column: pa.Array, verdicts: _Verdicts) -> pa.Array:
    counts = column.cast(pa.int64())
    ends = pc.min_max(counts).as_py()
    if ends["min"] is None or (ends["min"] >= FIRST_MICROS and ends["max"] <= LAST_MICROS):
        return column
    fits = pc.and_(pc.greater_equal(counts, FIRST_MICROS), pc.less_equal(counts, LAST_MICROS))
    for row in pc.indices_nonzero(pc.invert(pc.fill_null(fits, True))).to_pylist():
        _reject(verdicts, row, "CAST", name, f"{name}: got a time outside the years 1 to 9999")
    return pc.if_else(fits, column, pa.scalar(None, column.type))


def _readable(name: str, column: pa.Array, verdicts: _Verdicts) -> pa.Array:
    """`column` without texts that are not UTF-8: Parquet does not check, and DuckDB stops at one."""
    if not pa.types.is_string(column.type):
        return column
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        pass
    texts: list[str | None] = []
    for row, value in enumerate(column.cast(pa.binary()).to_pylist()):  # a batch with a broken text only
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError as error:
            texts.append(None)
            _reject(verdicts, row, "DECODE", name, f"{name}: got a text that is not UTF-8 (byte {error.start}); expected UTF-8")
    return pa.array(texts, pa.string())


def _reject(verdicts: _Verdicts, row: int, reason: str, name: str, message: str) -> None:
    failures = (*(verdicts[row].failures if row in verdicts else ()), Failure(name, name, message))
    verdicts[row] = Rejected(_STAGE, verdicts[row].reason if row in verdicts else reason, failures)


def _surprises(
    extras: dict[str, pa.Array], contract: Contract, columns: dict[str, pa.Array], reserved: dict[str, pa.Array], verdicts: _Verdicts
) -> None:
    """Columns that the contract does not name."""
    policy = contract.unknown_columns
    if policy == "keep" and UNKNOWN not in reserved:
        reserved[UNKNOWN] = _as_json(extras)
    if policy not in ("fail", "dead_letter"):
        return
    for name, column in extras.items():
        rows = [i for i, valid in enumerate(column.is_valid().to_pylist()) if valid]  # rows that will be rejected
        if rows and policy == "fail":
            raise RunError(
                f"conform: column {name!r} is not in the contract (unknown_columns: fail);", hint=nearest(name, contract.columns)
            )
        for row in rows:
            _reject(verdicts, row, "UNKNOWN_COLUMN", name, f"{name}: not a column of the contract")


def _as_json(extras: dict[str, pa.Array]) -> pa.Array:
    """One JSON object per row of what is not NULL; NULL where nothing is."""
    batch = naive_utc(pa.RecordBatch.from_arrays(list(extras.values()), names=list(extras)))
    members = ", ".join(f"{literal(n)}, {quote(n)}" for n in extras)
    some = " OR ".join(f"{quote(n)} IS NOT NULL" for n in extras)
    sql = f"SELECT CASE WHEN {some} THEN json_merge_patch('{{}}'::JSON, json_object({members}))::VARCHAR END AS j FROM $slot"
    return local_engine().select(sql, batch.schema)(batch).column("j").cast(pa.string())
