"""Partitions of a batch: which rows belong to which directory of a hive layout.

    rows ──▶ values of `day(t), origin` ──▶ [("2013-01-01", "EWR"), rows], [("2013-01-01", NULL), rows], ...

The model is `partition.py`. A value is text, as it will stand in a path before it is encoded; NULL is None. Days, hours, months and years are UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.partition import NULL_DIRECTORY, OUTSIDE, Partition, check_name
from beam_pipelines.errors import SpecError, nearest

MAX_VALUE_BYTES = 200
_MAX_SEGMENT_BYTES = 255  # what common file systems allow for one name
_MICROS_PER = {"day": 86_400_000_000, "hour": 3_600_000_000}
_UNIT = {"year": "Y", "month": "M", "day": "D", "hour": "h"}
_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
_SLICE_SHARE = 0.5  # a smaller piece is copied, so that it does not keep the whole batch in memory


class Piece(NamedTuple):
    """The rows of one partition; `values` has one text per partition column, None for NULL."""

    values: tuple[str | None, ...]
    rows: pa.RecordBatch


def split(batch: pa.RecordBatch, by: Sequence[Partition]) -> list[Piece]:
    """`batch` cut by partition; rows keep their order within a piece, and each row is in exactly one piece.

    A large piece whose rows lie together is a slice without copying, which is what sorted input gives.
    """
    if not batch.num_rows:
        return []
    if not by:
        return [Piece((), batch)]
    codes, labels = _codes(batch, by[0])
    columns = [labels]
    for partition in by[1:]:
        more, texts = _codes(batch, partition)
        codes = codes * len(texts) + more
        columns.append(texts)
    return [Piece(_values(code, columns), rows) for code, rows in _pieces(batch, codes)]


def encode_value(value: str | None) -> str:
    """A partition value as it stands in a directory name, percent-encoded; every hive reader gives `value` back.

    >>> encode_value("a/b=c"), encode_value(".."), encode_value(None)
    ('a%2Fb%3Dc', '..', '__HIVE_DEFAULT_PARTITION__')
    """
    if value is None:
        return NULL_DIRECTORY
    if value.isascii() and _SAFE.issuperset(value):
        return value
    # Letters beyond ASCII stay as they are: Spark decodes %C3%BC as two letters, everybody reads ü.
    return "".join(c if c in _SAFE or (not c.isascii() and c.isprintable()) else "".join(f"%{b:02X}" for b in c.encode()) for c in value)


def directory(values: Sequence[str | None], by: Sequence[Partition]) -> str:
    """The relative directory of a partition: `day=2013-01-01/origin=EWR`."""
    return "/".join(f"{p.name}={encode_value(v)}" for p, v in zip(by, values, strict=True))


def refusal(values: Sequence[str | None], by: Sequence[Partition]) -> str:
    """Why these values cannot be a directory, as a sentence; "" if they can."""
    for partition, value in zip(by, values, strict=True):
        if value is None:
            continue
        size, most = len(encode_value(value).encode()), min(MAX_VALUE_BYTES, _MAX_SEGMENT_BYTES - len(partition.name.encode()) - 1)
        if size > most:
            return f"the partition value of '{partition.name}' is too long for a directory name: {size} bytes encoded, at most {most}"
        if value.upper() == NULL_DIRECTORY:
            return f"the partition value of '{partition.name}' is the text that means NULL in a hive layout"
    return ""


def check_partitions(by: Sequence[Partition], schema: pa.Schema) -> None:
    """Raises SpecError where a partition column is missing, has a type that is no directory name, or a name readers would not find."""
    for partition in by:
        if partition.column not in schema.names:
            raise SpecError(f"partition_by: unknown column '{partition.column}';", hint=nearest(partition.column, schema.names))
        kind = schema.field(partition.column).type
        word = partition.transform
        if word == "range":
            if not pa.types.is_integer(kind) or kind == pa.uint64():
                raise SpecError(f"partition_by: {partition} needs an integer of at most 63 bits; got {kind}.")
        elif word and not (pa.types.is_timestamp(kind) or (pa.types.is_date(kind) and word != "hour")):
            raise SpecError(
                f"partition_by: {word}({partition.column}) needs a timestamp{'' if word == 'hour' else ' or date'}; got {kind}."
            )
        if not word and (pa.types.is_nested(kind) or pa.types.is_binary(kind)):
            raise SpecError(f"partition_by: column '{partition.column}' has type {kind}, which is no directory name.")
        if word and partition.name in schema.names:
            raise SpecError(
                f"partition_by: {word}({partition.column}) makes a directory column '{partition.name}', and a column has that name.",
                hint="Rename the column.",
            )
        check_name(partition)


def _codes(batch: pa.RecordBatch, partition: Partition) -> tuple[np.ndarray, list[str | None]]:
    """Per row a small integer, and the text each integer stands for."""
    column, word = batch.column(partition.column), partition.transform
    if word:
        return _range_codes(column, *partition.bounds) if word == "range" else _time_codes(column, word)
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    texts: list[str | None] = [*_texts(coded.dictionary), None]
    if not coded.indices.null_count and not coded.dictionary.null_count and len(texts) == 2:
        return np.zeros(len(column), np.int64), texts[:1]
    codes = pc.fill_null(coded.indices.cast(pa.int64()), len(texts) - 1).to_numpy(zero_copy_only=False)
    return codes, texts


def _range_codes(column: pa.Array, start: int, end: int, step: int) -> tuple[np.ndarray, list[str | None]]:
    """The text of a range is its first number."""
    numbers = pc.fill_null(column.cast(pa.int64()), start).to_numpy(zero_copy_only=False)
    inside = (numbers >= start) & (numbers < end)
    ranges = np.where(inside, (np.where(inside, numbers, start) - start) // step, -1)
    ranges = np.where(column.is_valid().to_numpy(zero_copy_only=False), ranges, -2)
    distinct, codes = np.unique(ranges, return_inverse=True)
    special: dict[int, str | None] = {-1: OUTSIDE, -2: None}
    return codes.astype(np.int64), [special[n] if n in special else str(start + n * step) for n in distinct.tolist()]


def _time_codes(column: pa.Array, word: str) -> tuple[np.ndarray, list[str | None]]:
    micros = (
        column.cast(pa.timestamp("us"), safe=False)
        if not pa.types.is_timestamp(column.type)
        else column.cast(pa.timestamp("us", column.type.tz), safe=False)
    )
    numbers = pc.fill_null(micros.cast(pa.int64()), 0).to_numpy(zero_copy_only=False) if column.null_count else _int64(micros)
    if word in _MICROS_PER:
        units = numbers // _MICROS_PER[word]  # floor: days before 1970 too
    else:
        units = numbers.view("datetime64[us]").astype(f"datetime64[{_UNIT[word]}]").astype(np.int64)
    valid = None if not column.null_count else column.is_valid().to_numpy(zero_copy_only=False)
    if valid is None and units.min() == units.max():
        return np.zeros(len(units), np.int64), [_time_text(int(units[0]), word)]
    changes = np.flatnonzero(np.diff(units))
    distinct, codes = (np.unique(units, return_inverse=True)) if len(changes) > 64 else _few(units, changes)
    texts: list[str | None] = [_time_text(int(u), word) for u in distinct]
    if valid is not None:
        codes = np.where(valid, codes, len(texts))
        texts.append(None)
    return codes.astype(np.int64), texts


def _few(units: np.ndarray, changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`np.unique(units, return_inverse=True)` without sorting the rows, for values that lie in few runs."""
    starts = np.concatenate([[0], changes + 1])
    distinct, of_run = np.unique(units[starts], return_inverse=True)
    return distinct, np.repeat(of_run, np.diff(np.concatenate([starts, [len(units)]])))


def _int64(column: pa.Array) -> np.ndarray:
    return np.frombuffer(column.buffers()[1], np.int64, len(column), column.offset * 8)


def _time_text(units: int, word: str) -> str:
    text = str(np.asarray(units).astype(f"datetime64[{_UNIT[word]}]"))
    return text.replace("T", "-") if word == "hour" else text


def _texts(values: pa.Array) -> list[str | None]:
    if pa.types.is_timestamp(values.type):
        return [None if v is None else str(v.replace(tzinfo=None)) for v in values.cast(pa.timestamp("us", values.type.tz)).to_pylist()]
    if pa.types.is_boolean(values.type):
        return [None if v is None else str(v).lower() for v in values.to_pylist()]
    return list(values.cast(pa.string()).to_pylist())


def _values(code: int, columns: Sequence[list[str | None]]) -> tuple[str | None, ...]:
    values: list[str | None] = []
    for texts in reversed(columns):
        code, index = divmod(code, len(texts))
        values.append(texts[index])
    return tuple(reversed(values))


def _pieces(batch: pa.RecordBatch, codes: np.ndarray) -> list[tuple[int, pa.RecordBatch]]:
    if codes.min() == codes.max():
        return [(int(codes[0]), batch)]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1, [len(codes)]])
    if len(starts) - 1 == len(np.unique(codes[starts[:-1]])):  # every partition's rows lie together
        return [(int(codes[a]), _part(batch, a, b)) for a, b in pairwise(starts.tolist())]
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    edges = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1, [len(codes)]])
    return [(int(ordered[a]), batch.take(pa.array(order[a:b]))) for a, b in pairwise(edges.tolist())]


def _part(batch: pa.RecordBatch, start: int, end: int) -> pa.RecordBatch:
    if end - start >= _SLICE_SHARE * batch.num_rows:
        return batch.slice(start, end - start)
    return batch.take(pa.array(np.arange(start, end)))
