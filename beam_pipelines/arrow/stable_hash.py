"""A 64-bit hash of some columns of each row that never changes: rows of a group find their state again after any upgrade.

DuckDB's own `hash()` is faster to write and may differ between its versions; so this one is arithmetic on the values' bytes, column by column.
Equal values have equal hashes, whatever batch they come in: NULL equals NULL, -0.0 equals 0.0, NaN equals NaN. It is no cryptographic hash.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Words = npt.NDArray[np.uint64]

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # splitmix64 (Steele, Lea, Flood 2014)
_STEP, _NULL, _TEXT = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x6A09E667F3BCC909), np.uint64(0xBB67AE8584CAA73B)


def stable_hash(columns: Sequence[pa.Array], rows: int) -> npt.NDArray[np.int64]:
    """One hash per row over all `columns`, in order; without columns all rows are equal.

    >>> stable_hash([pa.array(['a', 'b', 'a', None])], 4).tolist()[:3:2]
    [3516884698827981313, 3516884698827981313]
    """
    found = np.zeros(rows, np.uint64)
    for column in columns:
        found = _mixed(found * _STEP + _words(column) + _STEP)
    return found.view(np.int64)


def _mixed(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * _MIX[0]
    words = (words ^ (words >> np.uint64(27))) * _MIX[1]
    return np.asarray(words ^ (words >> np.uint64(31)))


def _words(column: pa.Array) -> Words:
    kind = column.type
    if pa.types.is_dictionary(kind):
        values = np.append(_words(column.dictionary), _NULL)  # a NULL index takes the last
        return np.asarray(values[column.indices.cast(pa.int64()).fill_null(len(values) - 1).to_numpy()])
    known = _known(column)
    if not column.null_count:
        return known
    return np.where(column.is_null().to_numpy(zero_copy_only=False), _NULL, known)


def _known(column: pa.Array) -> Words:
    """Words of values that are not NULL; anything for the NULLs."""
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), _NULL)
    if pa.types.is_floating(kind):
        return _floats(column)
    if pa.types.is_decimal(kind):
        column = column.cast(pa.string())
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return _integers(column)
    elif pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return _integers(column.cast(pa.int32() if kind.bit_width == 32 else pa.int64()))
    return _texts(column)


def _integers(column: pa.Array) -> Words:
    if column.type == pa.uint64():
        return np.asarray(column.fill_null(0).to_numpy(zero_copy_only=False))
    return np.asarray(column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)).view(np.uint64)


def _floats(column: pa.Array) -> Words:
    values = np.array(column.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)) + 0.0  # -0.0 + 0.0 is 0.0
    values[np.isnan(values)] = np.nan
    return values.view(np.uint64)


def _texts(column: pa.Array) -> Words:
    """Strings and bytes eight bytes at a time, all rows at once; other types by what they are as text."""
    if not (pa.types.is_large_string(column.type) or pa.types.is_string(column.type) or pa.types.is_binary(column.type)):
        column = _as_text(column)
    column = column.cast(pa.large_binary())
    lengths = pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column)] if len(column) else lengths
    raw = column.buffers()[2]
    data = np.concatenate([np.frombuffer(raw, np.uint8) if raw is not None else np.empty(0, np.uint8), np.zeros(8, np.uint8)])
    every = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))  # the eight bytes from each byte on
    found = _mixed(_TEXT + lengths.astype(np.uint64))
    left, at, rows = lengths.copy(), offsets.copy(), np.flatnonzero(lengths)
    while len(rows):
        words = every[at[rows]]
        short = np.minimum(left[rows], 8).astype(np.uint64)
        words = words & (np.uint64(2**64 - 1) >> (np.uint64(64) - np.uint64(8) * short))
        found[rows] = _mixed((found[rows] ^ words) * _STEP)
        left[rows] -= 8
        at[rows] += 8
        rows = rows[left[rows] > 0]
    return found


def _as_text(column: pa.Array) -> pa.Array:
    try:
        return column.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return pa.array([None if v is None else repr(v) for v in column.to_pylist()], pa.string())  # lists and structs, rare as groups
