"""Which copies of a thing are duplicates: a pure function of the set of rows.

    event time  ──────●────────●─────────────────●──▶        within = 2 d
    Mon           Tue (worse)  Wed (better)      Sun
                  duplicate    stays             stays: no better copy within 2 d

A row is a duplicate if a *better* copy of its key lies within `within` of its event time, even if that better copy is a duplicate
itself. Better: `order_by` (newest: larger; oldest: smaller; NaN and then NULL are worst), then the larger digest of the content,
then the smaller (`_source`, `_position`). NULL is a value like any other in a key. A row without an event time competes with
rows without one. So neither the order of rows nor the way they are split into batches matters.

Digests are MD5 over a canonical text that no two different rows share, NULLs and types included; `key_hash_sql` is only 64 bits
and finds candidates inside one run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.engine import Engine, literal, local_engine, quote
from beam_pipelines.arrow.keys import DeduplicateRule
from beam_pipelines.arrow.schema import ARRIVAL, KEY_HASH, POSITION, RESERVED_PREFIX, SOURCE, SOURCE_TYPE, UTC_MICROS
from beam_pipelines.errors import SpecError, nearest

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[Any]

KEY, CONTENT, TIME, ORDER = "key", "content", "time", "order"
DIGEST = pa.binary(16)
_END = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Comparison:
    """How copies are compared: a rule with every default resolved. `content` None: all columns of the user, by name."""

    key: tuple[str, ...]
    content: tuple[str, ...] | None = None
    event_time: str | None = None
    within: int | None = None
    keep: Literal["newest", "oldest"] = "newest"
    order_by: str = ARRIVAL

    def content_of(self, names: Sequence[str]) -> list[str]:
        """The columns whose values decide between copies, sorted, so that reordering a contract changes nothing."""
        mine = self.content if self.content is not None else [n for n in names if not n.startswith(RESERVED_PREFIX)]
        return sorted(set(mine) & set(names))

    def needed(self, names: Sequence[str]) -> list[str]:
        """The columns of a batch that `digests` reads. Raises SpecError for a column that is not there."""
        wanted = [*self.key, *([self.event_time] if self.event_time and self.within is not None else [])]
        wanted += [self.order_by] if self.order_by != ARRIVAL else []
        for name in wanted:
            if name not in names:
                raise SpecError(f"deduplicate: column {name!r} is not in the rows;", hint=nearest(name, names))
        used = {*wanted, *self.content_of(names), self.order_by, SOURCE, POSITION}
        return [n for n in names if n in used]


def comparison(
    rule: DeduplicateRule | str | Iterable[str] | None = None,
    *,
    contract: Contract | None = None,
    content: Iterable[str] | None = None,
    event_time: str | None = None,
    within: int | None = None,
) -> Comparison:
    """The comparison that `rule` (a rule, or just its key) means for rows of `contract`.

    Content: `content`, else the contract's columns, else all columns. Raises SpecError where there is no key, or where `within` is
    asked for without an event time.

    >>> comparison('id').key
    ('id',)
    """
    if not isinstance(rule, DeduplicateRule):
        key = (rule,) if isinstance(rule, str) else tuple(rule or ())
        rule = DeduplicateRule(key=key or None)
    key = rule.key or (contract.key if contract else ())
    if not key:
        raise SpecError("deduplicate: no key; neither the rule nor the contract names one.", hint="Write key: [column, ...].")
    within = within if within is not None else rule.within
    event_time = event_time or (contract.event_time if contract else None)
    if within is not None and event_time is None:
        raise SpecError(
            "deduplicate: 'within' compares event times, and there is none.", hint="Name the contract's event_time, or leave 'within' out."
        )
    columns = content if content is not None else (contract.columns if contract else None)
    return Comparison(key, None if columns is None else tuple(columns), event_time, within, rule.keep, rule.order_by)


def deduplicate_batch(batch: pa.RecordBatch, how: Comparison, *, engine: Engine | None = None) -> pa.RecordBatch:
    """`batch` without its duplicates, in the same order: `Deduplicate` for rows that fit in one batch.

    >>> rows = pa.record_batch({'id': [1, 1, 2], 'v': ['a', 'a', 'b']})
    >>> deduplicate_batch(rows, comparison('id')).column('id').to_pylist()
    [1, 2]
    """
    mask = duplicate_mask(digests(batch, how, engine=engine), within=how.within, keep=how.keep)
    return batch.filter(pa.array(~mask)) if mask.any() else batch


# ------------------------------------------------------------------------------------------------------------ the rule


def duplicate_mask(copies: pa.RecordBatch, *, within: int | None = None, keep: Literal["newest", "oldest"] = "newest") -> Mask:
    """True for each row of `copies` that is a duplicate. `copies` has `digests`' columns; `within` is in microseconds.

    Rows that are equal in all that is compared (the same `row_id` twice) count as one: the first of them stays. O(n log n) whatever
    the sizes of the groups.
    """
    if copies.num_rows < 2:
        return np.zeros(copies.num_rows, bool)
    group, best_first = _groups(_words(copies.column(KEY))), _best_first(copies, keep)
    if within is None:
        return _all_but_the_best(group, best_first)
    return _beaten_within(group, best_first, copies.column(TIME), within)


def _all_but_the_best(group: Ints, best_first: Ints) -> Mask:
    mask = np.ones(len(group), bool)
    mask[best_first[np.unique(group[best_first], return_index=True)[1]]] = False
    return mask


def _beaten_within(group: Ints, best_first: Ints, times: pa.Array, within: int) -> Mask:
    """Rows in whose window of event time an earlier rank of betterness is found: a range minimum over rows sorted by time."""
    n = len(group)
    rank = np.empty(n, np.int64)
    rank[best_first] = np.arange(n)
    timeless = times.is_null().to_numpy(zero_copy_only=False)
    time = times.fill_null(0).to_numpy().view(np.uint64) ^ np.uint64(1 << 63)  # ordered as before; distances cannot overflow
    group = group * 2 + timeless  # rows without a time compete with each other
    order = np.lexsort((time, group))
    group, time, rank = group[order], time[order], rank[order]
    edges = np.flatnonzero(np.diff(group, prepend=group[0] - 1, append=group[-1] + 1))
    sizes = np.diff(edges)
    start, end, here = np.repeat(edges[:-1], sizes), np.repeat(edges[1:], sizes), np.arange(n)
    span = np.uint64(min(within, int(_END)))
    earliest = time - np.minimum(time, span)
    latest = time + np.minimum(_END - time, span)
    first = _bisect(time, earliest, start, here, after=False)
    last = _bisect(time, latest, here, end, after=True)
    mask = np.empty(n, bool)
    mask[order] = _range_min(rank, first, last) < rank
    return mask


def _bisect(values: Ints, wanted: Ints, low: Ints, high: Ints, *, after: bool) -> Ints:
    """numpy.searchsorted of wanted[i] in values[low[i]:high[i]], all at once; `after` is side='right'."""
    low, high = low.copy(), high.copy()
    while (open_ := low < high).any():
        middle = np.where(open_, (low + high) // 2, 0)
        below = values[middle] <= wanted if after else values[middle] < wanted
        low = np.where(open_ & below, middle + 1, low)
        high = np.where(open_ & ~below, middle, high)
    return low


def _range_min(values: Ints, first: Ints, end: Ints) -> Ints:
    """min(values[first[i]:end[i]]) for each i, by the levels of a sparse table, of which one is held at a time."""
    answer = np.empty(len(first), values.dtype)
    level = np.frexp(end - first)[1] - 1  # floor(log2(length)), exact below 2**53
    for k in range(int(level.max()) + 1):
        step, mine = 1 << k, np.flatnonzero(level == k)
        answer[mine] = np.minimum(values[first[mine]], values[end[mine] - step])
        values = np.minimum(values[:-step], values[step:])
    return answer


def _groups(key: tuple[Ints, Ints]) -> Ints:
    """A number per distinct key."""
    order = np.lexsort(key)
    high, low = key[0][order], key[1][order]
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(np.concatenate(([False], (high[1:] != high[:-1]) | (low[1:] != low[:-1]))))
    return group


def _best_first(copies: pa.RecordBatch, keep: str) -> Ints:
    """Row numbers from the best to the worst, over all keys at once."""
    high, low = _words(copies.column(CONTENT))
    position = copies.column(POSITION).fill_null(2**63 - 1).to_numpy()
    order = _ranks(copies.column(ORDER), "descending" if keep == "newest" else "ascending")
    return np.asarray(np.lexsort((position, _ranks(copies.column(SOURCE), "ascending"), ~low, ~high, order)))


def _ranks(values: pa.Array, direction: str) -> Ints:
    """Dense ranks; NaN after all numbers and NULL after all values, whatever the direction."""
    if pa.types.is_null(values.type):
        return np.zeros(len(values), np.int64)
    if not pa.types.is_dictionary(values.type):
        return np.asarray(pc.rank(values, sort_keys=direction, tiebreaker="dense"))
    of_word = pa.array(_ranks(values.dictionary, direction).astype(np.int64))
    return np.asarray(of_word.take(values.indices).fill_null(len(of_word) + 1).to_numpy(zero_copy_only=False))


def _words(digests: pa.Array) -> tuple[Ints, Ints]:
    """128-bit digests as two 64-bit words whose order is that of the bytes."""
    words = np.frombuffer(digests.buffers()[1], ">u8", 2 * len(digests), 16 * digests.offset).astype(np.uint64).reshape(-1, 2)
    return words[:, 0].copy(), words[:, 1].copy()


# ------------------------------------------------------------------------------------------------- digests of a batch


def digests(rows: pa.RecordBatch, how: Comparison, *, engine: Engine | None = None) -> pa.RecordBatch:
    """What is compared of each row: `key` and `content` (MD5, 16 bytes), `time` (int64 microseconds), `order`, `_source`, `_position`.

    Raises SpecError where a column is missing or `order_by` has no order.
    """
    names = rows.schema.names
    how.needed(names)
    select = (engine or local_engine()).select(*_digest_sql(rows.schema, how))
    found = select(_plain(rows.select(_unique([*how.key, *how.content_of(names)]))))
    columns = {
        KEY: found.column(KEY).cast(DIGEST),
        CONTENT: found.column(CONTENT).cast(DIGEST),
        TIME: _micros(rows, how),
        ORDER: _order(rows, how),
        SOURCE: _typed(rows, SOURCE, SOURCE_TYPE),
        POSITION: _typed(rows, POSITION, pa.int64()),
    }
    return pa.record_batch(columns)


def first_byte(digests: pa.Array) -> npt.NDArray[np.uint8]:
    """The first byte of each digest: an even spread over 256 values."""
    return np.frombuffer(digests.buffers()[1], np.uint8)[16 * digests.offset :: 16][: len(digests)]


def key_hash_sql(columns: Sequence[str]) -> str:
    """DuckDB's 64-bit hash of the key columns, the expression of `_key_hash`. Equal keys have equal hashes in one run; not stable.

    >>> key_hash_sql(['id', 'day'])
    'hash("id", "day")'
    """
    return f"hash({', '.join(quote(c) for c in columns)})"


def key_hash(batch: pa.RecordBatch, how: Comparison, *, engine: Engine | None = None) -> npt.NDArray[np.uint64]:
    """`_key_hash` of each row: the batch's own column, else computed."""
    if KEY_HASH in batch.schema.names:
        return np.asarray(batch.column(KEY_HASH).to_numpy())
    how.needed(batch.schema.names)
    plain = _plain(batch.select(_unique(how.key)))
    sql = f"SELECT {key_hash_sql(how.key)} AS {KEY_HASH} FROM $slot"
    return np.asarray((engine or local_engine()).select(sql, plain.schema)(plain).column(0).to_numpy())


def _digest_sql(schema: pa.Schema, how: Comparison) -> tuple[str, pa.Schema]:
    content = how.content_of(schema.names)
    inside = _plain(schema.empty_table().select(_unique([*how.key, *content]))).schema
    key = canonical_sql([schema.field(c) for c in how.key], named=False)
    texts = f"SELECT {key} AS k, {canonical_sql([schema.field(c) for c in content])} AS c FROM $slot"
    return f"SELECT unhex(md5(k)) AS {KEY}, unhex(md5(c)) AS {CONTENT} FROM ({texts})", inside


def _micros(rows: pa.RecordBatch, how: Comparison) -> pa.Array:
    if how.within is None or how.event_time is None:
        return pa.nulls(rows.num_rows)
    times = rows.column(how.event_time)
    if not (pa.types.is_timestamp(times.type) or pa.types.is_date(times.type)):
        raise SpecError(f"deduplicate: event time {how.event_time!r} has type {times.type}; expected timestamp or date.")
    zone = times.type.tz if pa.types.is_timestamp(times.type) else None
    return times.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64())


def _typed(rows: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.Array:
    """A provenance column as `kind`, so that copies of differing batches meet; NULL where rows have none."""
    if name not in rows.schema.names:
        return pa.nulls(rows.num_rows, kind)
    column = rows.column(name)
    if column.type == kind:
        return column
    return column.cast(pa.string()).dictionary_encode() if kind == SOURCE_TYPE else column.cast(kind)


def _order(rows: pa.RecordBatch, how: Comparison) -> pa.Array:
    if how.order_by not in rows.schema.names:  # only `_arrival_time` may be missing: unknown, so NULL
        return pa.nulls(rows.num_rows, UTC_MICROS)
    values = rows.column(how.order_by)
    if pa.types.is_nested(values.type) and not pa.types.is_dictionary(values.type):
        raise SpecError(
            f"deduplicate: order_by {how.order_by!r} has type {values.type}, which has no order.", hint="Order by a plain column."
        )
    return values


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


# ------------------------------------------------------------------------------------- canonical text, injective per type


def canonical_sql(columns: Sequence[pa.Field], *, named: bool = True) -> str:
    """SQL of a text that no two different rows of `columns` share; temporal columns must come as integers.

        32 hex digits of the names and families of type, then a token per column, then bodies
        …7f3a  12.50,5,,               hello      amount 12.50, name 'hello', note NULL

    The token of a number, boolean or time is its text; of a text, binary or list its length, which says where its body ends; of
    NULL nothing. 0.0 and -0.0 are one value, and so are integers of different widths.
    """
    families = ",".join(f"{len(f.name) if named else 0}:{f.name if named else ''}{_family(f.type)}" for f in columns)
    head = hashlib.md5(families.encode(), usedforsecurity=False).hexdigest()
    return f"concat({literal(head)}, {_record([(quote(f.name), f.type) for f in columns], 0) or literal('')})"


def _record(columns: Sequence[tuple[str, pa.DataType]], depth: int) -> str:
    """Arguments of `concat`, which skips NULL: all tokens, each ended by a comma, then all bodies."""
    coded = [_coded(sql, kind, depth) for sql, kind in columns]
    return ", ".join([f"{token}, ','" for token, _ in coded] + [body for _, body in coded if body])


def _coded(sql: str, kind: pa.DataType, depth: int) -> tuple[str, str]:
    """SQL of a value's token (NULL where it is NULL) and of its body ('' where it has none)."""
    match _family(kind)[0]:
        case "n":
            return "''", ""
        case "f":
            return f"CASE WHEN {sql} = 0 THEN '0' ELSE {sql}::VARCHAR END", ""
        case "i" | "d" | "b" | "t":
            return f"{sql}::VARCHAR", ""
        case "s":
            return f"strlen({sql})", sql
        case "x":
            return f"octet_length({sql})", f"hex({sql})"
        case "r":
            fields = [(f"struct_extract({sql}, {literal(f.name)})", f.type) for f in kind]
            return f"CASE WHEN {sql} IS NOT NULL THEN 'r' END", _record(fields, depth)
        case "l":
            item = _record([(f"e{depth}", kind.value_type)], depth + 1)
            return f"len({sql})", f"array_to_string(list_transform({sql}, lambda e{depth}: concat({item})), '')"
        case _:
            return f"strlen({sql}::VARCHAR)", f"{sql}::VARCHAR"


def _family(kind: pa.DataType) -> str:
    """What a type contributes to the text: a letter, and what nested types are made of."""
    types = pa.types
    if types.is_dictionary(kind):
        return _family(kind.value_type)
    if types.is_struct(kind):
        return "r(" + ",".join(f"{len(f.name)}:{f.name}{_family(f.type)}" for f in kind) + ")"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return f"l({_family(kind.value_type)})"
    if types.is_temporal(kind):
        return "t" + str(kind).partition(",")[0].rstrip("]")  # without the zone
    families = {
        "n": types.is_null, "i": types.is_integer, "f": types.is_floating, "b": types.is_boolean, "d": types.is_decimal,
        "s": lambda k: types.is_string(k) or types.is_large_string(k),
        "x": lambda k: types.is_binary(k) or types.is_large_binary(k) or types.is_fixed_size_binary(k),
    }  # fmt: skip
    return next((letter for letter, matches in families.items() if matches(kind)), f"o{kind}")


def _plain(rows: Any) -> Any:
    """Times and dates as the integers they are: DuckDB has infinities among them and casts of their own."""
    views = {f.name: _integer_of(f.type) for f in rows.schema}
    if not any(views.values()):
        return rows
    arrays = [c if (kind := views[f.name]) is None else _view(c, kind) for f, c in zip(rows.schema, rows.columns, strict=True)]
    return type(rows).from_arrays(arrays, names=rows.schema.names)


def _integer_of(kind: pa.DataType) -> pa.DataType | None:
    if not pa.types.is_temporal(kind) or pa.types.is_interval(kind):
        return None
    return pa.int64() if kind.bit_width == 64 else pa.int32()


def _view(column: Any, kind: pa.DataType) -> Any:
    return pa.chunked_array([c.view(kind) for c in column.chunks], kind) if isinstance(column, pa.ChunkedArray) else column.view(kind)
