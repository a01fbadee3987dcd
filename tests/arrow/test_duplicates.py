"""The pairwise rule: equal to its definition, blind to order and to batches, and never quadratic."""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from hashlib import md5
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.duplicates import Comparison, comparison, deduplicate_batch, digests, duplicate_mask, key_hash, key_hash_sql
from beam_pipelines.arrow.engine import local_engine
from beam_pipelines.arrow.keys import DeduplicateRule
from beam_pipelines.arrow.schema import ARRIVAL, POSITION, SOURCE
from beam_pipelines.errors import SpecError
from tests.laws import share

LOW, HIGH = -(2**63), 2**63 - 1
COLUMNS = ("key", "content", "time", "order", "source", "position")
Copy = tuple[bytes, bytes, int | None, int | None, str, int]

digest = st.sampled_from([b"%016d" % i for i in range(3)] + [b"\xff" * 16])
times = st.one_of(st.none(), st.integers(0, 12), st.sampled_from([LOW, LOW + 1, HIGH - 1, HIGH]))
copies = st.tuples(digest, digest, times, st.one_of(st.none(), st.integers(0, 2)), st.sampled_from(["a", "b", "aa"]), st.integers(0, 3))
tables = st.lists(copies, max_size=16)
identified = st.lists(copies, max_size=12, unique_by=lambda copy: copy[4:])  # a row_id names one row
windows = st.one_of(st.none(), st.integers(1, 6), st.just(HIGH), st.just(2**70))
keeps = st.sampled_from(["newest", "oldest"])


def batch_of(rows: list[Copy]) -> pa.RecordBatch:
    types = [pa.binary(16), pa.binary(16), pa.int64(), pa.int64(), pa.string(), pa.int64()]
    arrays = [pa.array([r[i] for r in rows], t) for i, t in enumerate(types)]
    arrays[4] = arrays[4].dictionary_encode()
    return pa.record_batch(arrays, names=["key", "content", "time", "order", SOURCE, POSITION])


def is_better(a: Copy, b: Copy, keep: str) -> bool:
    """The rule's words, one by one."""
    if a[3] != b[3]:
        if a[3] is None or b[3] is None:
            return b[3] is None
        return (a[3] > b[3]) == (keep == "newest")
    if a[1] != b[1]:
        return a[1] > b[1]
    return a[4:] < b[4:]


def near(a: int | None, b: int | None, within: int | None) -> bool:
    if within is None:
        return True
    if a is None or b is None:
        return a is b
    return abs(a - b) <= within


def by_definition(rows: list[Copy], within: int | None, keep: str) -> list[bool]:
    """O(n²): a better copy within reach, or the same row earlier."""

    def beaten(i: int) -> bool:
        a = rows[i]
        return any(
            b[0] == a[0] and near(a[2], b[2], within) and (is_better(b, a, keep) or (j < i and not is_better(a, b, keep)))
            for j, b in enumerate(rows)
            if j != i
        )

    return [beaten(i) for i in range(len(rows))]


@given(tables, windows, keeps)
def test_mask_is_the_definition(rows: list[Copy], within: int | None, keep: Any) -> None:
    assert duplicate_mask(batch_of(rows), within=within, keep=keep).tolist() == by_definition(rows, within, keep)


@given(identified, windows, keeps, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows: list[Copy], within: int | None, keep: Any, chance: random.Random) -> None:
    def kept(some: list[Copy]) -> Counter[Copy]:
        mask = duplicate_mask(batch_of(some), within=within, keep=keep)
        return Counter(r for r, duplicate in zip(some, mask, strict=True) if not duplicate)

    redelivered = [*rows, *rows[:3]]
    assert kept(redelivered) == kept(chance.sample(redelivered, len(redelivered))) == kept(rows)


@given(tables, keeps, st.integers(0, 5))
def test_a_slice_is_judged_like_a_copy_of_it(rows: list[Copy], keep: Any, start: int) -> None:
    tail = batch_of(rows).slice(start)
    assert duplicate_mask(tail, within=3, keep=keep).tolist() == by_definition(rows[start:], 3, keep)


@given(tables, keeps)
def test_without_within_one_row_per_key_stays(rows: list[Copy], keep: Any) -> None:
    mask = duplicate_mask(batch_of(rows), keep=keep)
    assert sorted(r[0] for r, duplicate in zip(rows, mask, strict=True) if not duplicate) == sorted({r[0] for r in rows})


def test_a_duplicate_still_beats_others() -> None:
    """10 beats 12 although 8 beats 10: the rule is pairwise, not a chain of survivors."""
    rows = [(b"k" * 16, b"c" * 16, t, o, "s", 0) for t, o in ((8, 3), (10, 2), (12, 1))]
    assert duplicate_mask(batch_of(rows), within=2).tolist() == [False, True, True]


@pytest.mark.parametrize("within", [None, 1000])
def test_a_million_copies_of_one_key(within: int | None) -> None:
    n = 1_000_000
    time = np.random.default_rng(0).permutation(n)
    copies = pa.record_batch(
        {
            "key": pa.array([b"k" * 16], pa.binary(16)).take(pa.array(np.zeros(n, np.int64))),
            "content": pa.array([b"c" * 16], pa.binary(16)).take(pa.array(np.zeros(n, np.int64))),
            "time": pa.array(time),
            "order": pa.array(time),
            SOURCE: pa.nulls(n),
            POSITION: pa.array(np.arange(n)),
        }
    )
    mask = duplicate_mask(copies, within=within)
    assert mask.sum() == n - 1
    assert not mask[time.argmax()]


# ------------------------------------------------------------------------------------------------------------ digests

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "i": st.one_of(st.none(), st.integers(-3, 12)),
    "s": st.one_of(st.none(), st.text(alphabet="a1,:;n\x00", max_size=3)),
    "t": st.one_of(st.none(), st.sampled_from(["", "1", "1,"])),
    "x": st.one_of(st.none(), st.binary(max_size=2)),
    "f": st.one_of(st.none(), st.sampled_from([0.0, 1.5, float("inf"), 0.1])),
    "b": st.one_of(st.none(), st.booleans()),
    "l": st.one_of(st.none(), st.lists(st.one_of(st.none(), st.sampled_from(["", "a", "1,a"])), max_size=3)),
    "r": st.one_of(
        st.none(),
        st.fixed_dictionaries({"p": st.one_of(st.none(), st.integers(0, 1)), "q": st.one_of(st.none(), st.sampled_from(["", ","]))}),
    ),
    "m": st.one_of(
        st.none(), st.lists(st.one_of(st.none(), st.fixed_dictionaries({"v": st.lists(st.integers(0, 1), max_size=2)})), max_size=2)
    ),
    "time": st.one_of(st.none(), st.sampled_from([LOW, LOW + 1, 0, HIGH])),
}
SCHEMA = pa.schema(
    [
        ("i", pa.int32()), ("s", pa.string()), ("t", pa.string()), ("x", pa.binary()), ("f", pa.float64()), ("b", pa.bool_()),
        ("l", pa.list_(pa.string())), ("r", pa.struct([("p", pa.int64()), ("q", pa.string())])),
        ("m", pa.list_(pa.struct([("v", pa.list_(pa.int64()))]))), ("time", pa.int64()),
    ]
)  # fmt: skip
records = st.lists(st.fixed_dictionaries(VALUES), min_size=1, max_size=12)


def with_instants(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    batch = pa.RecordBatch.from_pylist(rows, SCHEMA)
    return batch.set_column(9, "time", batch.column("time").view(pa.timestamp("us")))


def prints(batch: pa.RecordBatch, how: Comparison) -> list[tuple[bytes, bytes]]:
    found = digests(batch, how)
    return list(zip(found.column("key").to_pylist(), found.column("content").to_pylist(), strict=True))


@share(20)
@given(records)
def test_digests_are_equal_exactly_where_values_are(rows: list[dict[str, Any]]) -> None:
    found = digests(with_instants(rows), comparison(SCHEMA.names))
    values = {repr(r) for r in pa.RecordBatch.from_pylist(rows, SCHEMA).to_pylist()}  # of any order as drawn, and of the schema's here
    for name in ("key", "content"):
        assert len(set(found.column(name).to_pylist())) == len(values)


@given(records)
def test_equal_keys_have_equal_hashes(rows: list[dict[str, Any]]) -> None:
    batch = with_instants([*rows, *rows])
    hashes = key_hash(batch, comparison(SCHEMA.names)).tolist()
    assert hashes[: len(rows)] == hashes[len(rows) :]


@share(25)
@given(records, st.data())
def test_digests_do_not_depend_on_the_batch(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    whole, cut = with_instants(rows), data.draw(st.integers(0, len(rows)))
    how = comparison(["s", "l"])
    assert prints(whole, how) == prints(whole.slice(0, cut), how) + prints(whole.slice(cut), how)


def test_the_canonical_text_is_a_promise() -> None:
    """Stored answers depend on it: the winner among copies must not change with a release."""
    rows = pa.record_batch(
        {
            "id": [7],
            "name": ["é"],
            "at": pa.array([0], pa.timestamp("us", "UTC")),
            "price": pa.array(["1.50"]).cast(pa.decimal128(12, 2)),
            "tags": [["a", None]],
            "note": pa.array([None], pa.string()),
        }
    )
    head = md5(b"2:atttimestamp[us,2:idi,4:names,4:notes,5:priced,4:tagsl(s)").hexdigest()
    key = md5(f"{md5(b'0:i').hexdigest()}7,".encode())
    content = md5(f"{head}0,7,2,,1.50,2,é1,a,".encode())
    assert prints(rows, comparison("id")) == [(key.digest(), content.digest())]


def test_representation_does_not_change_a_digest() -> None:
    plain = pa.record_batch({"k": ["a", "b"], "n": pa.array([1, 2], pa.int64()), "f": [0.0, 1.0]})
    other = pa.record_batch({"f": [-0.0, 1.0], "n": pa.array([1, 2], pa.int16()), "k": pa.array(["a", "b"]).dictionary_encode()})
    how = comparison("k")
    assert prints(plain, how) == prints(other, how)
    assert key_hash(plain, how).tolist() == key_hash(other, how).tolist()


def test_types_and_nulls_are_part_of_a_key() -> None:
    def key(values: pa.Array) -> bytes:
        return prints(pa.record_batch({"k": values}), comparison("k"))[0][0]

    kinds = [
        pa.array(["1"]),
        pa.array([1]),
        pa.array([1.0]),
        pa.array([b"1"]),
        pa.array([None], pa.string()),
        pa.array([""]),
        pa.array(["1"]).cast(pa.decimal128(3, 0)),
    ]
    assert len({key(k) for k in kinds}) == len(kinds)


def test_the_key_hash_is_a_column_expression() -> None:
    batch = pa.record_batch({'we"ird key': [1, 1, 2]})
    hashes = local_engine().select(f"SELECT {key_hash_sql(batch.schema.names)} AS _key_hash FROM $slot", batch.schema)(batch)
    assert hashes.column(0).to_pylist() == key_hash(batch, comparison('we"ird key')).tolist()
    assert key_hash(batch.append_column("_key_hash", pa.array([5, 6, 7], pa.uint64())), comparison('we"ird key')).tolist() == [5, 6, 7]


# ------------------------------------------------------------------------------------------------------- whole batches


def test_newest_by_arrival_then_content_then_row_id() -> None:
    at = pa.array([dt.datetime(2026, 1, d, tzinfo=dt.UTC) if d else None for d in (1, 2, 0)], pa.timestamp("us", "UTC"))
    rows = pa.record_batch({"id": ["x", "x", "x"], "v": [1, 2, 3], ARRIVAL: at})
    assert deduplicate_batch(rows, comparison("id")).column("v").to_pylist() == [2]
    assert deduplicate_batch(rows, comparison(DeduplicateRule(key=("id",), keep="oldest"))).column("v").to_pylist() == [1]


def test_equal_copies_leave_the_smallest_row_id() -> None:
    rows = pa.record_batch({"id": [1, 1, 1], SOURCE: pa.array(["b", "a", "a"]).dictionary_encode(), POSITION: [0, 9, 3]})
    assert deduplicate_batch(rows, comparison("id")).to_pylist() == [{"id": 1, SOURCE: "a", POSITION: 3}]


@given(st.permutations(range(4)))
def test_enriched_columns_do_not_decide(order: list[int]) -> None:
    contract = Contract(key=("id",), columns={"id": Column(type="int64"), "v": Column(type="string")})
    rows = pa.record_batch({"id": [1] * 4, "v": ["a", "b", "b", "c"], "looked_up": order, POSITION: range(4)})
    kept = deduplicate_batch(rows, comparison(contract=contract)).column(POSITION).to_pylist()
    assert kept == deduplicate_batch(rows.drop_columns(["looked_up"]), comparison(contract=contract)).column(POSITION).to_pylist()


def test_within_uses_the_contracts_event_time() -> None:
    contract = Contract(key=("id",), event_time="day", columns={"id": Column(type="int64"), "day": Column(type="date")})
    rows = pa.record_batch({"id": [1, 1, 1], "day": pa.array([dt.date(2026, 1, d) for d in (1, 3, 6)]), "n": [3, 2, 1]})
    rule = DeduplicateRule(within="2d", order_by="n")
    assert deduplicate_batch(rows, comparison(rule, contract=contract)).column("n").to_pylist() == [3, 1]


def test_order_by_any_plain_column_nan_and_null_are_worst() -> None:
    def kept(order: pa.Array, keep: Any = "newest") -> list[int]:
        rows = pa.record_batch({"id": [1] * len(order), "o": order, "n": range(len(order))})
        return list(deduplicate_batch(rows, comparison(DeduplicateRule(key=("id",), order_by="o", keep=keep))).column("n").to_pylist())

    floats = pa.array([None, float("nan"), 1.0, 2.0])
    assert kept(floats) == [3]
    assert kept(floats, "oldest") == [2]
    assert kept(pa.array(["a", "c", "b", None]).dictionary_encode()) == [1]
    assert kept(pa.array([False, True, None])) == [1]
    assert kept(pa.array(["1.5", "-2"]).cast(pa.decimal128(9, 2)), "oldest") == [1]


def test_nulls_in_a_key_are_equal() -> None:
    rows = pa.record_batch({"a": [None, None, "x"], "b": [1, 1, 1]})
    assert deduplicate_batch(rows, comparison(["a", "b"])).num_rows == 2


@pytest.mark.parametrize("names", [["id", "v"], ["order", "select"], ['a"b', "c d.e"], ["😀", "it's"]])
def test_any_column_name(names: list[str]) -> None:
    rows = pa.record_batch([pa.array([1, 1]), pa.array(["a", "a"])], names=names)
    assert deduplicate_batch(rows, comparison(names[0])).num_rows == 1


def test_empty_batch() -> None:
    rows = pa.record_batch({"id": pa.array([], pa.int64())})
    assert deduplicate_batch(rows, comparison("id")).num_rows == 0


def test_what_is_wrong_is_said_at_once() -> None:
    with pytest.raises(SpecError, match="no key"):
        comparison()
    with pytest.raises(SpecError, match="event times"):
        comparison("id", within=1)
    with pytest.raises(SpecError, match="did you mean 'id'"):
        deduplicate_batch(pa.record_batch({"id": [1]}), comparison("idd"))
    with pytest.raises(SpecError, match="which has no order"):
        deduplicate_batch(pa.record_batch({"id": [1], "o": [[1]]}), comparison(DeduplicateRule(key=("id",), order_by="o")))
    with pytest.raises(SpecError, match="expected timestamp or date"):
        deduplicate_batch(pa.record_batch({"id": [1], "t": [1]}), comparison("id", event_time="t", within=1))
