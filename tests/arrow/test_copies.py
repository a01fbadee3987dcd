"""Copies in a stream: whatever the batches, their order, redelivery, reloads and crashes, the end is what the rule says of the whole set."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.arrow.copies import Copies, Identities, Judged
from beam_pipelines.arrow.duplicates import CONTENT, KEY, ORDER, TIME, duplicate_mask
from beam_pipelines.arrow.held import CELLS, Held
from beam_pipelines.arrow.schema import ARRIVAL, POSITION, SOURCE, UTC_MICROS
from tests.laws import share

LOW, HIGH = -(2**63), 2**63 - 1
Copy = tuple[bytes, bytes, int, Any, str, int]
RowId = tuple[str, int]

digest = st.sampled_from([b"%016d" % i for i in range(3)] + [b"\xff" * 16, b"\xff" * 15 + b"\xfe"])
times = st.one_of(st.integers(-3, 20), st.sampled_from([LOW, LOW + 1, HIGH - 1, HIGH]))
numbers = st.one_of(st.none(), st.integers(0, 2))
words = st.one_of(st.none(), st.sampled_from(["", "a", "b"]))
keeps = st.sampled_from(["newest", "oldest"])
windows = st.sampled_from([1, 3, 6, 2**70])


@st.composite
def copies_in_batches(draw: st.DrawFn) -> tuple[list[list[Copy]], pa.DataType]:
    """Batches of copies, some told again; the type of their order."""
    kind = draw(st.sampled_from([pa.int64(), pa.string(), pa.dictionary(pa.int32(), pa.string())]))
    order = numbers if kind == pa.int64() else words
    copy = st.tuples(digest, digest, times, order, st.sampled_from(["a", "b", "aa"]), st.integers(0, 6))
    rows = draw(st.lists(copy, max_size=24, unique_by=lambda c: c[4:]))
    told = rows + (draw(st.lists(st.sampled_from(rows), max_size=8)) if rows else [])
    cuts = sorted(draw(st.lists(st.integers(0, len(told)), max_size=5)))
    told = draw(st.permutations(told))
    return [told[a:b] for a, b in zip([0, *cuts], [*cuts, len(told)], strict=True)], kind


def batch_of(rows: list[Copy], kind: pa.DataType = pa.int64()) -> pa.RecordBatch:
    types = [pa.binary(16), pa.binary(16), pa.int64(), kind, pa.string(), pa.int64()]
    arrays = [pa.array([r[i] for r in rows], pa.string() if pa.types.is_dictionary(t) else t) for i, t in enumerate(types)]
    arrays[3] = arrays[3].dictionary_encode() if pa.types.is_dictionary(kind) else arrays[3]
    arrays[4] = arrays[4].dictionary_encode()
    return pa.record_batch(arrays, names=[KEY, CONTENT, TIME, ORDER, SOURCE, POSITION])


class Told:
    """What a stream told: +1 and -1 row_ids."""

    def __init__(self) -> None:
        self.plus: set[RowId] = set()
        self.minus: set[RowId] = set()

    def hear(self, rows: list[Copy], judged: Judged) -> None:
        doors = judged.stays.astype(int) + judged.duplicate + judged.redelivered
        assert (doors == 1).all(), "each row leaves by one door"
        self.plus |= {r[4:] for r, stays in zip(rows, judged.stays, strict=True) if stays}
        self.minus |= {r[4:] for r, duplicate in zip(rows, judged.duplicate, strict=True) if duplicate}
        gone = judged.superseded
        self.minus |= set(zip(gone.column(SOURCE).to_pylist(), gone.column(POSITION).to_pylist(), strict=True))

    def holds(self, rows: list[Copy], kind: pa.DataType, within: int, keep: Any) -> None:
        whole = list(dict.fromkeys(rows))
        mask = duplicate_mask(batch_of(whole, kind), within=within, keep=keep)
        duplicates = {r[4:] for r, duplicate in zip(whole, mask, strict=True) if duplicate}
        assert self.plus - self.minus == {r[4:] for r in whole} - duplicates
        assert self.minus == duplicates


class Kept:
    """Saved state as a bag per cell."""

    def __init__(self) -> None:
        self.cells: list[list[pa.RecordBatch]] = [[] for _ in range(CELLS)]

    def write(self, writes: Iterator[tuple[int, bool, pa.RecordBatch | None]]) -> None:
        for cell, anew, piece in writes:
            if anew:
                self.cells[cell] = []
            if piece is not None:
                self.cells[cell].append(piece)

    @property
    def rows(self) -> int:
        return sum(p.num_rows for cell in self.cells for p in cell)


@given(copies_in_batches(), windows, keeps)
@share(60)
def test_any_batches_in_any_order_end_as_the_rule_says(made: Any, within: int, keep: Any) -> None:
    batches, kind = made
    copies, told = Copies(within=within, keep=keep, slice_micros=2), Told()
    for batch in batches:
        told.hear(batch, copies.add(batch_of(batch, kind)))
    told.holds([r for b in batches for r in b], kind, within, keep)
    assert len(copies) == len({r[4:] for b in batches for r in b})


@given(copies_in_batches(), windows, keeps)
def test_what_was_told_before_changes_nothing(made: Any, within: int, keep: Any) -> None:
    batches, kind = made
    copies = Copies(within=within, keep=keep, slice_micros=2)
    for batch in batches:
        copies.add(batch_of(batch, kind))
    for batch in batches:
        again = copies.add(batch_of(batch, kind))
        assert again.redelivered.all()
        assert not again.superseded.num_rows


@given(copies_in_batches(), windows, keeps, st.data())
def test_state_lost_anywhere_and_all_rows_told_again(made: Any, within: int, keep: Any, data: st.DataObject) -> None:
    batches, kind = made
    told = Told()
    for batch in batches[: data.draw(st.integers(0, len(batches)))]:
        told.hear(batch, (first := Copies(within=within, keep=keep, slice_micros=2)).add(batch_of(batch, kind)))
        del first  # every batch before the crash was judged by a process that knew little
    second = Copies(within=within, keep=keep, slice_micros=2)
    for batch in data.draw(st.permutations(batches)):
        told.hear(batch, second.add(batch_of(batch, kind)))
    told.holds([r for b in batches for r in b], kind, within, keep)


@given(copies_in_batches(), windows, keeps, st.data())
def test_what_is_saved_is_what_is_held(made: Any, within: int, keep: Any, data: st.DataObject) -> None:
    batches, kind = made
    how: dict[str, Any] = {"within": within, "keep": keep, "slice_micros": 2}
    copies, kept, told = Copies(**how), Kept(), Told()
    for batch in batches:
        if data.draw(st.booleans()):
            copies = Copies.load(kept.cells, **how)
        told.hear(batch, copies.add(batch_of(batch, kind)))
        kept.write(copies.save())
        assert kept.rows == len(copies)
    told.holds([r for b in batches for r in b], kind, within, keep)


arriving = st.lists(st.tuples(st.integers(0, 4), digest, st.integers(-6, 6), st.sampled_from([0, 1])), max_size=40)


@given(arriving, st.sampled_from([2, 4]), keeps, st.data())
@share(60)
def test_slices_behind_the_horizon_are_not_missed(steps: Any, within: int, keep: Any, data: st.DataObject) -> None:
    """Arrival time goes on, event time is up to 6 before or after it: forgetting what is older than 6 + within changes no verdict."""
    lateness, slice_micros, arrival = 6, data.draw(st.sampled_from([1, 2, 5])), 0
    how: dict[str, Any] = {"within": within, "keep": keep, "slice_micros": slice_micros}
    copies, kept, told, rows = Copies(**how), Kept(), Told(), []
    for number, (pause, key, lead, order) in enumerate(steps):
        arrival += pause
        if data.draw(st.booleans()):
            copies.expire(arrival - lateness - within)
        if data.draw(st.integers(0, 4)) == 0:
            kept.write(copies.save())
            copies = Copies.load(kept.cells, **how)
        rows.append((key, b"c" * 16, arrival + lead, order, "s", number))
        told.hear(rows[-1:], copies.add(batch_of(rows[-1:])))
        assert copies.first_end is not None
        assert copies.first_end > min(r[2] for r in rows[-len(copies) :])
    told.holds(rows, pa.int64(), within, keep)


def test_only_whole_slices_go_and_their_cells_are_written_anew() -> None:
    copies, kept = Copies(within=5, slice_micros=10), Kept()
    copies.add(batch_of([(b"%016d" % t, b"c" * 16, t, 0, "s", t) for t in (0, 9, 10, 19, 80, 85)]))
    kept.write(copies.save())
    assert [sum(p.num_rows for p in cell) for cell in kept.cells] == [4, 2, 0, 0, 0, 0, 0, 0]  # 80 to 89 share the cell of 0 to 9
    assert copies.first_end == 10
    copies.expire(9)
    assert len(copies) == 6
    copies.expire(19)
    assert (len(copies), copies.first_end) == (4, 20)
    kept.write(copies.save())
    assert [sum(p.num_rows for p in cell) for cell in kept.cells] == [2, 2, 0, 0, 0, 0, 0, 0]
    copies.expire(1_000)
    kept.write(copies.save())
    assert (len(copies), copies.first_end, kept.rows) == (0, None, 0)


def test_many_small_pieces_become_one_and_writing_stays_linear() -> None:
    copies, kept, written, n = Copies(within=5, slice_micros=10), Kept(), 0, 1_000
    for i in range(n):
        copies.add(batch_of([(b"%016d" % i, b"c" * 16, i % 10, i, "s", i)]))
        writes = list(copies.save())
        written += sum(p.num_rows for _, _, p in writes if p is not None)
        kept.write(iter(writes))
    assert kept.rows == n
    assert max(len(cell) for cell in kept.cells) <= 70
    assert written < 35 * n


def test_a_reload_knows_what_was_superseded_since_it_was_saved() -> None:
    copies, kept = Copies(within=5, slice_micros=10), Kept()
    old, new = (b"k" * 16, b"c" * 16, 1, 1, "s", 1), (b"k" * 16, b"c" * 16, 2, 2, "s", 2)
    for row in (old, new):
        copies.add(batch_of([row]))
        kept.write(copies.save())
    newest = copies.load(kept.cells, within=5, slice_micros=10).add(batch_of([(b"k" * 16, b"c" * 16, 3, 3, "s", 3)]))
    assert newest.superseded.column(POSITION).to_pylist() == [2]


def test_superseded_rows_come_with_their_times() -> None:
    copies = Copies(within=5, slice_micros=10)
    first = batch_of([(b"k" * 16, b"c" * 16, 1, 1, "s", 1), (b"k" * 16, b"c" * 16, 30, 1, "s", 2)])
    copies.add(first.append_column(ARRIVAL, pa.array([7, None], UTC_MICROS)))
    gone = [copies.add(batch_of([(b"k" * 16, b"c" * 16, t, 2, "s", 10 + t)])).superseded for t in (2, 31)]
    assert [g.column(TIME).to_pylist() for g in gone] == [[1], [30]]
    assert [g.column(ARRIVAL).cast(pa.int64()).to_pylist() for g in gone] == [[7], [None]]


def test_an_order_whose_type_is_known_only_later() -> None:
    copies = Copies(within=5, slice_micros=10)
    unknown = batch_of([(b"k" * 16, b"c" * 16, 1, None, "s", 1)]).set_column(3, ORDER, pa.nulls(1))
    assert copies.add(unknown).stays.all()
    known = copies.add(batch_of([(b"k" * 16, b"c" * 16, 2, 5, "s", 2)]))
    assert known.stays.all()
    assert known.superseded.column(POSITION).to_pylist() == [1]


identities = st.lists(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(-3, 5)), max_size=8), max_size=6)


@given(identities, st.data())
def test_each_identity_comes_for_the_first_time_once(batches: list[list[RowId]], data: st.DataObject) -> None:
    seen, kept, known = Identities(slice_micros=2), Kept(), set[RowId]()
    for batch in batches:
        if data.draw(st.booleans()):
            seen = Identities.load(kept.cells, slice_micros=2)
        source, position = pa.array([s for s, _ in batch], pa.string()), pa.array([p for _, p in batch], pa.int64())
        fresh = seen.add(pa.record_batch({SOURCE: source, POSITION: position, TIME: position}))
        kept.write(seen.save())
        for row_id, first in zip(batch, fresh, strict=True):
            assert first == (row_id not in known)
            known.add(row_id)
    assert len(seen) == kept.rows == len(known)


def test_an_identity_is_forgotten_with_its_slice() -> None:
    seen = Identities(slice_micros=10)
    rows = pa.record_batch({SOURCE: pa.array(["s", "s"]), POSITION: pa.array([1, 2]), TIME: pa.array([5, 15])})
    seen.add(rows)
    seen.expire(12)
    assert (len(seen), seen.first_end) == (1, 20)
    assert seen.add(rows).tolist() == [True, False]


@pytest.mark.parametrize("batch", [1, 7, 500])
def test_the_index_finds_every_pair_and_nothing_else(batch: int) -> None:
    chance, held, known = np.random.default_rng(0), Held(np.dtype([("time", "i8")]), 10), np.empty(0, np.uint64)
    for _ in range(20):
        words = chance.integers(0, 60, batch).astype(np.uint64) << np.uint64(40)
        met = held.meet(words)
        groups = np.split(met.places, met.starts[1:])
        assert sorted(met.places.tolist()) == list(range(batch))
        assert all(len(set(words[g].tolist())) == 1 for g in groups)
        assert len(groups) == len(set(words.tolist()))
        pairs = sorted((int(words[groups[g][0]]), r) for g, r in zip(met.of, met.rows.tolist(), strict=True))
        assert pairs == [(w, j) for w in sorted(set(words.tolist())) for j in np.flatnonzero(known == w)]
        held.add(words, np.zeros(batch, held.records.dtype))
        known = np.concatenate([known, words])


def test_a_key_of_many_copies_costs_its_copies_once_per_batch() -> None:
    copies, chance = Copies(within=2**60, slice_micros=2**60), random.Random(1)
    told = Told()
    rows = [(b"k" * 16, b"c" * 16, t, t, "s", t) for t in range(20_000)]
    chance.shuffle(rows)
    for start in range(0, len(rows), 2_000):
        batch = rows[start : start + 2_000]
        told.hear(batch, copies.add(batch_of(batch)))
    assert told.plus - told.minus == {("s", 19_999)}
