"""A quantile sketch that merges exactly: how many values fell into each logarithmic bucket.

Bucket i > 0 holds (γ^(i-1), γ^i] with γ = (1 + α) / (1 - α) and is shown as 2 γ^i / (γ + 1), which is within α = 1 % of every value in it
(Masson, Rim, Lee: DDSketch, VLDB 2019, without its collapsing). Counts add up, so grouping and order do not matter. Negative values mirror
positive ones, zero and the infinities are exact, and the smallest and largest value are kept beside the sketch. NaN is larger than any number.
Values nearer to zero than 1e-300 are exact to 1e-300 only.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

ACCURACY = 0.01
_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GAMMA = math.log(_GAMMA)
_ZERO = 40_000  # float64 spans buckets -37,221 to 35,488; this far from zero both signs keep their order
_INFINITE, _NAN = 90_000, 90_001
SKETCH = pa.list_(pa.struct([("key", pa.int32()), ("value", pa.uint64())]))


def bucket_sql(x: str) -> str:
    """SQL for the bucket of the DOUBLE `x`, an INTEGER that orders as the values do."""
    positive = f"{_ZERO} + ceil(ln({{0}}) / {_LOG_GAMMA!r})"
    return (
        f"(CASE WHEN isnan({x}) THEN {_NAN} WHEN isinf({x}) THEN CASE WHEN {x} > 0 THEN {_INFINITE} ELSE -{_INFINITE} END WHEN {x} = 0 THEN 0 "
        f"WHEN {x} > 0 THEN {positive.format(x)} ELSE -({positive.format('-' + x)}) END)::INTEGER"
    )


def merge_sketches(sketches: pa.Array, group: np.ndarray, groups: int) -> pa.Array:
    """One sketch per group: row i of `sketches` (type SKETCH) belongs to `group[i]`."""
    lengths = np.diff(sketches.offsets.to_numpy())
    flat = sketches.flatten()  # drops what lies under NULLs and outside a slice
    owner = np.repeat(group, np.where(_valid(sketches), lengths, 0))
    keys, counts = flat.field("key").to_numpy(), flat.field("value").to_numpy()
    order = np.lexsort((keys, owner))
    owner, keys, counts = owner[order], keys[order], counts[order]
    first = np.ones(len(owner), bool)
    first[1:] = (owner[1:] != owner[:-1]) | (keys[1:] != keys[:-1])
    starts = np.flatnonzero(first)
    merged = np.add.reduceat(counts, starts) if len(starts) else counts
    offsets = np.searchsorted(owner[starts], np.arange(groups + 1)).astype(np.int32)
    entries = pa.StructArray.from_arrays([pa.array(keys[starts]), pa.array(merged)], fields=list(SKETCH.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets), entries, type=SKETCH)


def quantile_of(sketches: pa.Array, smallest: pa.Array, largest: pa.Array, q: float) -> pa.Array:
    """The q-quantile of each sketch: the value of rank floor(q (n - 1)), within 1 %; NULL where there are no values."""
    low, high = smallest.to_numpy(zero_copy_only=False).astype(float), largest.to_numpy(zero_copy_only=False).astype(float)
    values = np.full(len(sketches), np.nan)
    flat, lengths = sketches.flatten(), np.where(_valid(sketches), np.diff(sketches.offsets.to_numpy()), 0)
    ends = np.cumsum(lengths)
    some = np.flatnonzero(lengths)
    if len(some):
        keys, running = flat.field("key").to_numpy(), np.cumsum(flat.field("value").to_numpy().astype(np.int64))
        before = np.concatenate([[0], running])[(ends - lengths)[some]]
        rank = np.floor(q * (running[ends[some] - 1] - before - 1)).astype(np.int64)
        values[some] = _shown(keys[np.searchsorted(running, before + rank, side="right")])
        inside = np.isfinite(values)
        values = np.where(inside, np.fmin(np.fmax(values, low), high), values)
        edge = {0.0: low, 1.0: high}.get(q)
        values = values if edge is None else edge
    return pa.array(values, mask=lengths == 0)


def _valid(array: pa.Array) -> np.ndarray:
    valid: np.ndarray = array.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _shown(keys: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        size = 2 * np.exp((np.abs(keys) - _ZERO) * _LOG_GAMMA) / (_GAMMA + 1)
    size = np.where(np.isinf(size), np.finfo(float).max, size)
    size = np.where(keys == 0, 0.0, np.where(np.abs(keys) == _INFINITE, np.inf, np.where(keys == _NAN, np.nan, size)))
    shown: np.ndarray = np.copysign(size, keys)
    return shown
