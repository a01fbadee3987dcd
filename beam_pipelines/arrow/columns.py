"""Columns of any Arrow layout in the few layouts the stages know, with the contract's names.

Dictionaries, large and view types, run ends, fixed sizes and other units of time say nothing about a value; they are gone after `align`.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.engine import literal, local_engine, naive_utc, quote
from beam_pipelines.arrow.layers import KernelResult
from beam_pipelines.arrow.layouts import by_halves, plain, texts_of
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
    columns |= {UNKNOWN: _readable(UNKNOWN, plain(reserved.pop(UNKNOWN)), verdicts)} if UNKNOWN in reserved else {}
    columns |= reserved
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)), verdicts


def _sound(name: str, column: pa.Array, verdicts: _Verdicts) -> pa.Array:
    """`column` without values that the later stages cannot hold: NULL in their place, and a verdict."""
    if pa.types.is_timestamp(column.type):
        return _in_range(name, column, verdicts)
    return _readable(name, column, verdicts)


def _readable(name: str, column: pa.Array, verdicts: _Verdicts) -> pa.Array:
    column, wrong = readable(name, column)
    for row, message in wrong.items():
        _reject(verdicts, row, "DECODE", name, message)
    return column


def _in_range(name: str, column: pa.Array, verdicts: _Verdicts) -> pa.Array:
    counts = column.cast(pa.int64())
    ends = pc.min_max(counts).as_py()
    if ends["min"] is None or (ends["min"] >= FIRST_MICROS and ends["max"] <= LAST_MICROS):
        return column
    fits = pc.and_(pc.greater_equal(counts, FIRST_MICROS), pc.less_equal(counts, LAST_MICROS))
    for row in pc.indices_nonzero(pc.invert(pc.fill_null(fits, True))).to_pylist():
        _reject(verdicts, row, "CAST", name, f"{name}: got a time outside the years 1 to 9999")
    return pc.if_else(fits, column, pa.scalar(None, column.type))


def readable(name: str, column: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    """`column` with NULL in place of values with a text that is not UTF-8, at any depth, and what to say of their rows: Arrow and Parquet do not check, and DuckDB stops at one."""
    if _not_utf8(column) is None:
        return column, {}
    if pa.types.is_nested(column.type):
        column = column.take(pa.array(range(len(column)), pa.int64()))  # without what else a slice holds
        rows = by_halves(pa.RecordBatch.from_arrays([column], names=[name]), lambda batch: _not_utf8(batch.column(0)))
        wrong = {row: f"in a {column.type}" for row, _ in rows}
    else:
        found = enumerate(map(_wrong_byte, column.cast(pa.binary()).to_pylist()))
        wrong = {row: f"(byte {at})" for row, at in found if at is not None}
        column = column.cast(pa.string())  # views cannot be taken from
    left = pa.array((None if row in wrong else row for row in range(len(column))), pa.int64())
    return column.take(left), {row: f"{name}: got a text that is not UTF-8 {where}; expected UTF-8" for row, where in wrong.items()}


def _not_utf8(column: pa.Array) -> str | None:
    try:
        for texts in texts_of(column):
            texts.validate(full=True)
        return None
    except pa.ArrowInvalid as error:
        return str(error)


def _wrong_byte(text: bytes | None) -> int | None:
    try:
        str(text or b"", "utf-8")
        return None
    except UnicodeDecodeError as error:
        return error.start


def _reject(verdicts: _Verdicts, row: int, reason: str, name: str, message: str) -> None:
    failures = (*(verdicts[row].failures if row in verdicts else ()), Failure(name, name, message))
    verdicts[row] = Rejected(_STAGE, verdicts[row].reason if row in verdicts else reason, failures)


def _surprises(
    extras: dict[str, pa.Array], contract: Contract, columns: dict[str, pa.Array], reserved: dict[str, pa.Array], verdicts: _Verdicts
) -> None:
    """Columns that the contract does not name."""
    policy = contract.unknown_columns
    if policy == "keep" and UNKNOWN not in reserved:
        reserved[UNKNOWN] = _as_json({name: _readable(name, column, verdicts) for name, column in extras.items()})
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
