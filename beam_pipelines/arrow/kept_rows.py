"""The rows that open windows stand for, each held once: what a correction takes away, and from what its group is folded anew.

    add      rows whose identity is new are held; a row that comes again, or that was taken back before it came, is not
    remove   rows that were held are gone; an identity that was not held yet is remembered as gone
    forget   by slices of event time, once the windows over them have closed

A set of rows and a set of removals give the same whatever their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_pipelines.arrow.accumulators import EVENT_MICROS
from beam_pipelines.arrow.copies import identity_words
from beam_pipelines.arrow.ended_rows import identities_of
from beam_pipelines.arrow.held import Held
from beam_pipelines.arrow.schema import CHANGE, POSITION, SOURCE

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_ROW = np.dtype([("time", "i8"), ("position", "i8"), ("key", "i8"), ("window", "i8"), ("source", "i4"), ("gone", "?")])


class KeptRows:
    """Rows as `panes.inputs` makes them, with `_source`, `_position` and a group key (int64), the column named `key`."""

    def __init__(self, *, key: str, slice_micros: int) -> None:
        self._key = key
        self._held = Held(_ROW, slice_micros)
        self._chunks: list[pa.RecordBatch] = []  # the rows' own columns, in the order of the records
        self._sources: dict[str | None, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        return self._held.nbytes + int(sum(c.nbytes for c in self._chunks))

    def add(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Holds the rows whose identity is new; gives these."""
        fresh = self._add(rows, gone=False)
        return rows if fresh.all() else rows.filter(pa.array(fresh))

    def remove(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Takes back the rows of these identities; gives those that were held, with their own columns."""
        new = self._records(rows)
        wanted, records = set(_identities(new)), self._held.records
        met = np.unique(self._held.meet(identity_words(new["position"])).rows)
        met = met[~records["gone"][met]]
        found = met[np.array([identity in wanted for identity in _identities(records[met])], bool)]  # rows taken back only
        records["gone"][found] = True
        self._add(rows, gone=True)
        return self._take(found) if self._chunks else rows.slice(0, 0)

    def select(self, keys: Ints, window: int | None = None) -> pa.RecordBatch | None:
        """The rows of these group keys, and of this window start if one is given."""
        records = self._held.records
        mine = ~records["gone"] if window is None else ~records["gone"] & (records["window"] == window)
        mine &= np.isin(records["key"], keys)
        found = np.flatnonzero(mine)
        return self._take(found) if len(found) else None

    def discard(self, keys: Ints, until: Ints) -> tuple[Ints, Ints]:
        """Rows of `keys[i]` (sorted) whose time is at most `until[i]` are gone: their windows have closed. Gives what `of_windows` does of them."""
        records = self._held.records
        at = np.minimum(np.searchsorted(keys, records["key"]), len(keys) - 1)
        over = (keys[at] == records["key"]) & (records["time"] <= until[at]) & ~records["gone"]
        records["gone"] |= over
        return self._identities_of(over)

    def of_windows(self, starts: Sequence[int]) -> tuple[Ints, Ints]:
        """Event times (microseconds) and `ended_rows.identities_of` the rows of windows or slices that start there."""
        records = self._held.records
        return self._identities_of(np.isin(records["window"], np.array(starts, np.int64)) & ~records["gone"])

    def _identities_of(self, mask: Mask) -> tuple[Ints, Ints]:
        records, names = self._held.records[mask], pa.array(list(self._sources), pa.string())
        sources = pa.DictionaryArray.from_arrays(pa.array(np.ascontiguousarray(records["source"])), names)
        return np.ascontiguousarray(records["time"]), identities_of(sources, pa.array(np.ascontiguousarray(records["position"])))

    def forget(self, before_micros: int) -> None:
        """Forgets slices of time that end by `before_micros`."""
        stays = self._held.forget(before_micros)
        if stays is not None:
            self._chunks = [self._take(stays)] if len(stays) else []

    def dump(self) -> pa.RecordBatch | None:
        """Everything that is held, removals as rows of `_change` -1; `load` takes it back."""
        if not len(self):
            return None
        records, names = self._held.records, list(self._sources)
        sources = pa.DictionaryArray.from_arrays(pa.array(records["source"]), pa.array(names, pa.string()))
        rows = self._take(np.arange(len(records)))
        found = {SOURCE: sources, POSITION: pa.array(np.ascontiguousarray(records["position"]))}
        found[CHANGE] = pa.array(np.where(records["gone"], -1, 1).astype(np.int8))
        return pa.RecordBatch.from_arrays([*rows.columns, *found.values()], names=[*rows.schema.names, *found])

    def load(self, dumped: pa.RecordBatch) -> None:
        """Holds what `dump` gave."""
        gone = dumped.column(CHANGE).to_numpy() < 0
        self._add(dumped.filter(pa.array(gone)), gone=True)
        self._add(dumped.filter(pa.array(~gone)), gone=False)

    def _add(self, rows: pa.RecordBatch, *, gone: bool) -> Mask:
        new = self._records(rows)
        new["gone"] = gone
        words = identity_words(new["position"])
        fresh = self._fresh(new, words)
        if fresh.any():
            own = rows.drop_columns([n for n in (SOURCE, POSITION, CHANGE) if n in rows.schema.names])
            self._held.add(words[fresh], new[fresh])
            self._chunks.append((own if fresh.all() else own.filter(pa.array(fresh))).replace_schema_metadata(None))
            while len(self._chunks) > 1 and self._chunks[-2].num_rows < 2 * self._chunks[-1].num_rows:
                self._chunks[-2:] = [pa.concat_batches(self._chunks[-2:])]
        return fresh

    def _fresh(self, new: npt.NDArray[np.void], words: npt.NDArray[np.uint64]) -> Mask:
        met = self._held.meet(words)
        fresh = np.ones(len(new), bool)
        again = met.sizes > 1
        again[met.of] = True
        places = np.sort(met.places[np.repeat(again, met.sizes)])
        if not len(places):
            return fresh
        seen = set(_identities(self._held.records[np.unique(met.rows)]))
        for place, identity in zip(places.tolist(), _identities(new[places]), strict=True):  # rows that come again only
            fresh[place] = identity not in seen
            seen.add(identity)
        return fresh

    def _records(self, rows: pa.RecordBatch) -> npt.NDArray[np.void]:
        new = np.zeros(rows.num_rows, _ROW)
        new["time"], new["position"] = rows.column(EVENT_MICROS).to_numpy(), rows.column(POSITION).to_numpy()
        new["key"], new["window"] = rows.column(self._key).to_numpy(), rows.column("w").to_numpy()
        source = rows.column(SOURCE)
        source = source if pa.types.is_dictionary(source.type) else source.dictionary_encode()
        codes = [self._sources.setdefault(s, len(self._sources)) for s in source.dictionary.to_pylist()]
        new["source"] = np.array([*codes, -1])[source.indices.fill_null(len(codes)).to_numpy()]
        return new

    def _take(self, numbers: Ints) -> pa.RecordBatch:
        """Rows by their numbers, which ascend."""
        edges = np.cumsum([0, *(c.num_rows for c in self._chunks)])
        cuts = np.searchsorted(numbers, edges)
        taken = [
            c.take(pa.array(numbers[a:b] - e)) for c, e, a, b in zip(self._chunks, edges[:-1], cuts[:-1], cuts[1:], strict=True) if b > a
        ]
        return pa.concat_batches(taken) if taken else self._chunks[0].slice(0, 0)


def _identities(records: npt.NDArray[np.void]) -> Sequence[tuple[int, int]]:
    return list(zip(records["source"].tolist(), records["position"].tolist(), strict=True))
