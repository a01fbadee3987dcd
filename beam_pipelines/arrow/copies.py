"""Copies that a stream can still compare: the rule of `duplicates`, kept up to date while rows arrive in any order and any batches.

    new rows ──▶ copies of their keys within reach, held or new ──▶ duplicate_mask ──▶ stays | duplicate | redelivered,
                                                                                       and held rows that are duplicates now
Law: over any batches in any order, (rows that stayed) − (all duplicates told) are the rows that `deduplicate_batch` keeps of the whole set, and
the duplicates told are all its duplicates. A row told twice is told the same; a duplicate never ceases to be one, because sets of rows only grow.

`Copies` compares keys; `Identities` only knows whether a row came before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_pipelines.arrow.concat import concat
from beam_pipelines.arrow.duplicates import CONTENT, DIGEST, KEY, ORDER, TIME, duplicate_mask
from beam_pipelines.arrow.held import Held, Ints, Met, Records, Save
from beam_pipelines.arrow.schema import ARRIVAL, POSITION, SOURCE, SOURCE_TYPE, UTC_MICROS

Mask = npt.NDArray[np.bool_]

DUPLICATE = "duplicate"
SUPERSEDED = pa.schema([(SOURCE, SOURCE_TYPE), (POSITION, pa.int64()), (ARRIVAL, UTC_MICROS), (TIME, pa.int64())])

_ROW_ID = [("position", "i8"), ("source", "i4")]
_COPY = np.dtype([("key", "u8", 2), ("content", "u8", 2), ("time", "i8"), ("arrival", "i8"), *_ROW_ID, ("duplicate", "?")], align=True)
_IDENTITY = np.dtype([("time", "i8"), *_ROW_ID], align=True)
_NO_TIME = -(2**63)
_MANY = 16  # Arrow arrays of order values before they are joined
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Judged(NamedTuple):
    """One verdict per row of a batch, and the held rows that the batch has made duplicates (SUPERSEDED, `time` in microseconds)."""

    stays: Mask
    duplicate: Mask
    redelivered: Mask
    superseded: pa.RecordBatch


class Copies:
    """All rows within the horizon, so that each new batch is judged as if the whole set lay before it.

    `within` and `slice_micros` in microseconds. Costs: 88 bytes a row and what is compared of `order_by`; a new batch costs its own rows and the
    copies of its keys within reach. Not safe for use by several threads.
    """

    def __init__(self, *, within: int, slice_micros: int, keep: Literal["newest", "oldest"] = "newest") -> None:
        self._within, self._keep = within, keep
        self._held = Held(_COPY, slice_micros)
        self._orders: list[pa.Array] = []
        self._sources = _Words()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        return self._held.nbytes + sum(int(o.nbytes) for o in self._orders)

    @property
    def first_end(self) -> int | None:
        """Where the earliest slice that holds rows ends, in microseconds of event time."""
        return self._held.first_end

    def add(self, copies: pa.RecordBatch) -> Judged:
        """Judges a batch of `digests` (no NULL in `time`, `_source`, `_position`; `_arrival_time` if known) and holds its rows."""
        new, order = self._records(copies), _plain(copies.column(ORDER))
        words = new["key"][:, 0]
        met = self._held.meet(words)
        near = self._within_reach(new["time"], met)
        places, rows = _contested(met, met.of[near]), met.rows[near]
        redelivered, superseded = np.zeros(len(new), bool), rows[:0]
        if len(places):
            union = np.concatenate([self._held.at(rows), new[places]])
            again = _seen_before(union)
            duplicate = np.zeros(len(union), bool)
            orders = _joined([self._order_of(rows), order.take(pa.array(places))]).filter(pa.array(~again))
            duplicate[~again] = duplicate_mask(self._batch(union[~again], orders), within=self._within, keep=self._keep)
            redelivered[places] = again[len(rows) :]
            new["duplicate"][places] = duplicate[len(rows) :]
            superseded = rows[duplicate[: len(rows)] & ~union["duplicate"][: len(rows)]]
            self._held.records["duplicate"][superseded] = True
        stays = ~(new["duplicate"] | redelivered)
        gone = self._superseded(superseded)
        if redelivered.any():
            self._hold(words[~redelivered], new[~redelivered], order.filter(pa.array(~redelivered)))
        else:
            self._hold(words, new, order)
        return Judged(stays, new["duplicate"], redelivered, gone)

    def expire(self, before_micros: int) -> None:
        """Forgets slices of event time that end by `before_micros`: nothing that is still judged reaches them."""
        stay = self._held.forget(before_micros)
        if stay is not None:
            self._orders = [self._order_of(stay)] if len(stay) else []

    def save(self) -> Iterator[tuple[int, bool, pa.RecordBatch | None]]:
        """(cell, whether it is cleared first, a piece to add or None): what makes saved state equal to what is held. Asked for once."""
        for write in self._held.save():
            yield _piece(write, lambda rows: self._batch(self._held.at(rows), self._order_of(rows)))

    @classmethod
    def load(cls, cells: Sequence[Sequence[pa.RecordBatch]], **how: Any) -> Copies:
        """What was saved, piece by piece in each cell."""
        copies = cls(**how)
        pieces = [piece for cell in cells for piece in cell]
        if pieces:
            saved = _concat(pieces)
            new = copies._records(saved)
            new["duplicate"] = saved.column(DUPLICATE).to_numpy(zero_copy_only=False)
            order = _plain(saved.column(ORDER))
            met = copies._held.meet(new["key"][:, 0])
            again = np.sort(_contested(met, met.of))  # a row is saved as it was judged first; later verdicts follow
            among = copies._batch(new[again], order.take(pa.array(again)))
            new["duplicate"][again] |= duplicate_mask(among, within=copies._within, keep=copies._keep)
            copies._hold(new["key"][:, 0], new, order)
            copies._held.saved([len(cell) for cell in cells])
        return copies

    def _within_reach(self, times: Ints, met: Met) -> Mask:
        """Which held rows lie within reach of some row of their group."""
        if not len(met.rows):
            return np.zeros(0, bool)
        mine, theirs = _unsigned(times[met.places]), _unsigned(self._held.records["time"][met.rows])
        first, last = np.minimum.reduceat(mine, met.starts)[met.of], np.maximum.reduceat(mine, met.starts)[met.of]
        apart = np.where(theirs < first, first - theirs, np.where(theirs > last, theirs - last, 0))
        near: Mask = apart <= np.uint64(min(self._within, 2**64 - 1))
        return near

    def _records(self, copies: pa.RecordBatch) -> Records:
        new = np.zeros(copies.num_rows, _COPY)
        new["key"], new["content"] = _words(copies.column(KEY)), _words(copies.column(CONTENT))
        new["time"], new["position"] = copies.column(TIME).to_numpy(), copies.column(POSITION).to_numpy()
        new["source"] = self._sources.codes(copies.column(SOURCE))
        new["arrival"] = copies.column(ARRIVAL).cast(pa.int64()).fill_null(_NO_TIME) if ARRIVAL in copies.schema.names else _NO_TIME
        return new

    def _batch(self, records: Records, order: pa.Array) -> pa.RecordBatch:
        columns = {
            KEY: _digests(records["key"]),
            CONTENT: _digests(records["content"]),
            TIME: pa.array(records["time"]),
            ORDER: order,
            **self._identity(records),
            DUPLICATE: pa.array(records["duplicate"]),
        }
        return pa.record_batch(columns)

    def _superseded(self, rows: Ints) -> pa.RecordBatch:
        records = self._held.at(rows)
        return pa.record_batch({**self._identity(records), TIME: pa.array(records["time"])}, schema=SUPERSEDED)

    def _identity(self, records: Records) -> dict[str, pa.Array]:
        arrival = np.ascontiguousarray(records["arrival"])
        return {
            SOURCE: self._sources.column(records["source"]),
            POSITION: pa.array(records["position"]),
            ARRIVAL: pa.array(arrival, pa.int64(), mask=arrival == _NO_TIME).cast(UTC_MICROS),
        }

    def _hold(self, words: Ints, records: Records, order: pa.Array) -> None:
        self._held.add(words, records)
        if len(order):
            self._orders.append(order)
        while len(self._orders) > _MANY or (len(self._orders) > 1 and len(self._orders[-2]) < 2 * len(self._orders[-1])):
            self._orders[-2:] = [_joined(self._orders[-2:])]

    def _order_of(self, rows: Ints) -> pa.Array:
        if not self._orders:
            return pa.nulls(0)
        if len({o.type for o in self._orders}) > 1:
            self._orders = [_joined(self._orders)]
        return pa.chunked_array(self._orders).take(pa.array(rows)).combine_chunks()


class Identities:
    """The identities (`_source`, `_position`) that came before, forgotten by slices of their time. 32 bytes a row."""

    def __init__(self, *, slice_micros: int) -> None:
        self._held = Held(_IDENTITY, slice_micros)
        self._sources = _Words()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def first_end(self) -> int | None:
        """Where the earliest slice that holds rows ends, in microseconds."""
        return self._held.first_end

    def add(self, rows: pa.RecordBatch) -> Mask:
        """True for each row (`_source`, `_position`, `time`; no NULLs) that comes for the first time; holds it."""
        new = self._records(rows)
        words = identity_words(new["position"])
        met = self._held.meet(words)
        places = _contested(met, met.of)
        fresh = np.ones(len(new), bool)
        fresh[places] = ~_seen_before(np.concatenate([self._held.at(met.rows), new[places]]))[len(met.rows) :]
        self._held.add(words[fresh], new[fresh])
        return fresh

    def expire(self, before_micros: int) -> None:
        """Forgets slices that end by `before_micros`."""
        self._held.forget(before_micros)

    def save(self) -> Iterator[tuple[int, bool, pa.RecordBatch | None]]:
        """As `Copies.save`."""
        for write in self._held.save():
            yield _piece(write, lambda rows: self._batch(self._held.at(rows)))

    @classmethod
    def load(cls, cells: Sequence[Sequence[pa.RecordBatch]], **how: Any) -> Identities:
        """What was saved, piece by piece in each cell."""
        identities = cls(**how)
        pieces = [piece for cell in cells for piece in cell]
        if pieces:
            new = identities._records(_concat(pieces))
            identities._held.add(identity_words(new["position"]), new)
            identities._held.saved([len(cell) for cell in cells])
        return identities

    def _records(self, rows: pa.RecordBatch) -> Records:
        new = np.zeros(rows.num_rows, _IDENTITY)
        new["time"], new["position"] = rows.column(TIME).to_numpy(), rows.column(POSITION).to_numpy()
        new["source"] = self._sources.codes(rows.column(SOURCE))
        return new

    def _batch(self, records: Records) -> pa.RecordBatch:
        source, position = self._sources.column(records["source"]), pa.array(records["position"])
        return pa.record_batch({SOURCE: source, POSITION: position, TIME: pa.array(records["time"])})


class _Words:
    """Texts as small numbers."""

    def __init__(self) -> None:
        self._codes: dict[str | None, int] = {}

    def codes(self, column: pa.Array) -> Ints:
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        mine = np.array([self._codes.setdefault(w, len(self._codes)) for w in column.dictionary.to_pylist()] or [0], np.int32)
        return np.asarray(mine[column.indices.to_numpy()])

    def column(self, codes: Ints) -> pa.Array:
        used, indices = np.unique(codes, return_inverse=True)
        words = list(self._codes)
        mine = pa.array([words[c] for c in used.tolist()], pa.string())
        return pa.DictionaryArray.from_arrays(pa.array(indices.astype(np.int32)), mine)


def identity_words(positions: Ints) -> Ints:
    """64 well-mixed bits per position; its lowest two choose a bucket of state."""
    mixed = positions.astype(np.int64).view("u8")
    for shift, factor in zip((30, 27), _MIX, strict=True):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * factor
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _contested(met: Met, found: Ints) -> Ints:
    """The places, ascending, of rows that do not stand alone: in groups of several, or that held rows `found`."""
    contested = met.sizes > 1
    contested[found] = True
    return np.sort(met.places[np.repeat(contested, met.sizes)])


def _unsigned(times: Ints) -> Ints:
    """Times whose distances cannot overflow, ordered as before."""
    return times.astype(np.int64).view("u8") ^ np.uint64(1 << 63)


def _seen_before(records: Records) -> Mask:
    """Rows whose (source, position) stands earlier among `records`."""
    order = np.lexsort((records["position"], records["source"]))
    position, source = records["position"][order], records["source"][order]
    again = np.zeros(len(records), bool)
    again[order[1:]] = (position[1:] == position[:-1]) & (source[1:] == source[:-1])
    return again


def _piece(write: Save, batch: Any) -> tuple[int, bool, pa.RecordBatch | None]:
    return write.cell, write.anew, batch(write.rows) if len(write.rows) else None


def _words(digests: pa.Array) -> Ints:
    return np.frombuffer(digests.buffers()[1], "u8", 2 * len(digests), 16 * digests.offset).reshape(-1, 2)


def _digests(words: Ints) -> pa.Array:
    return pa.Array.from_buffers(DIGEST, len(words), [None, pa.py_buffer(np.ascontiguousarray(words))])


def _plain(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _joined(arrays: Sequence[pa.Array]) -> pa.Array:
    """One array; a type that all values fit where batches differ in it (a column that is all NULL in one, say)."""
    if len({a.type for a in arrays}) > 1:
        arrays = [a for a in arrays if len(a)]
        schemas = [pa.schema([(ORDER, a.type)]) for a in arrays]
        common = pa.unify_schemas(schemas, promote_options="permissive").field(ORDER).type if schemas else pa.null()
        arrays = [a.cast(common) for a in arrays]
    return pa.concat_arrays(arrays) if arrays else pa.nulls(0)


def _concat(pieces: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    if all(p.schema.equals(pieces[0].schema) for p in pieces):
        return concat(pieces)
    names = pieces[0].schema.names
    return pa.record_batch({n: _joined([p.column(n) for p in pieces]) for n in names})
