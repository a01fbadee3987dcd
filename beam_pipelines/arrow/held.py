"""Rows that a stream still remembers: found by a hash, forgotten by age, saved to keyed state piece by piece.

    records   one numpy record of fixed width per row, in order of arrival; `time` is one of its fields
    index     sorted 64-bit words, 36 bits of hash and 28 bits of row number, in generations that merge as they grow (log-structured)
    cells     CELLS pieces of state; a row belongs to cell (time // slice_micros) % CELLS

A whole slice of time is forgotten at once. `save` says what must be written so that state holds what memory holds: what was added since,
and a cell anew where rows were forgotten or where many small pieces have grown as large as the rows (so writing stays linear).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[Any]
Records = npt.NDArray[Any]

CELLS = 8
"""Pieces of state per key: part of the format of state, like the names of the states; changing it makes saved state unreadable."""

_ROW = np.uint64(2**28 - 1)  # 268 million rows would be 20 GB of one bucket
_HASH = ~_ROW
_GROWTH = 1.4
_PIECE_ROWS = 30  # what a piece costs besides its rows, in rows
_FEW_PIECES = 64


class Met(NamedTuple):
    """The rows of a batch grouped by hash, and the held rows of these hashes.

    `places` of the batch in groups, which begin at `starts`; held row `rows[i]` meets group `of[i]`.
    """

    places: Ints
    starts: Ints
    rows: Ints
    of: Ints

    @property
    def sizes(self) -> Ints:
        return np.diff(self.starts, append=len(self.places))


class Save(NamedTuple):
    """One write to state: the cell is cleared first if `anew`; then held `rows` (numbers) are added to it, if there are any."""

    cell: int
    anew: bool
    rows: Ints


@dataclass
class _Cell:
    whole: int = 0  # rows when it was last written anew
    pieces: int = 0

    @property
    def scattered(self) -> bool:
        return self.pieces > max(_FEW_PIECES, self.whole // _PIECE_ROWS)


class Held:
    """Held rows as numpy records with a field `time` (int64 microseconds), which need not be in any order."""

    def __init__(self, record: np.dtype[Any], slice_micros: int) -> None:
        self._records, self._count = np.empty(0, record), 0
        self._index: list[Ints] = []
        self._slice = slice_micros
        self._cells = [_Cell() for _ in range(CELLS)]
        self._saved = 0
        self._anew: set[int] = set()
        self._first: int | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def records(self) -> Records:
        """The records; valid until the next `add` or `forget`. Fields other than `time` may be changed in place."""
        return self._records[: self._count]

    def at(self, rows: Ints) -> Records:
        """Copies of the records of these rows."""
        return _whole(self.records)[rows].view(self._records.dtype)

    @property
    def nbytes(self) -> int:
        return int(self._records.nbytes) + sum(g.nbytes for g in self._index)

    @property
    def first_end(self) -> int | None:
        """The end of the earliest slice that holds rows."""
        return None if self._first is None else (self._first // self._slice + 1) * self._slice

    def meet(self, words: Ints) -> Met:
        """Which rows have the hashes of a batch. Only 36 bits are compared: the caller compares exactly."""
        packed = (words & _HASH) | np.arange(len(words), dtype=np.uint64)
        packed.sort()
        hashes, places = packed & _HASH, (packed & _ROW).astype(np.int64)
        starts = np.flatnonzero(np.concatenate(([True], hashes[1:] != hashes[:-1]))) if len(words) else places
        found = [_found(generation, hashes[starts]) for generation in self._index] or [(places[:0], places[:0])]
        return Met(places, starts, np.concatenate([r for _, r in found]), np.concatenate([g for g, _ in found]))

    def add(self, words: Ints, records: Records) -> None:
        """Holds these rows, whose hashes are `words`."""
        n = len(words)
        if not n:
            return
        self._reserve(self._count + n)
        _whole(self._records)[self._count : self._count + n] = _whole(records)
        entries = (words & _HASH) | np.arange(self._count, self._count + n, dtype=np.uint64)
        entries.sort()
        self._count += n
        first = int(records["time"].min())
        self._first = first if self._first is None else min(first, self._first)
        self._index.append(entries)
        while len(self._index) > 1 and len(self._index[-2]) < 2 * len(self._index[-1]):
            merged = np.concatenate(self._index[-2:])
            merged.sort(kind="stable")  # two sorted runs: one merge
            self._index[-2:] = [merged]

    def forget(self, before_micros: int) -> Ints | None:
        """Forgets the slices that end by `before_micros`; the numbers of the rows that stay, which are numbered anew, or None for all."""
        limit = before_micros // self._slice * self._slice
        if self._first is None or self._first >= limit:
            return None
        times = self.records["time"]
        stays = times >= limit
        self._anew.update(np.unique(self._cell_of(times[~stays])).tolist())
        numbers = np.cumsum(stays) - 1
        self._saved = int(np.count_nonzero(stays[: self._saved]))
        kept = _whole(self.records)[stays].view(self._records.dtype)
        self._count = len(kept)
        if 4 * self._count > len(self._records):
            _whole(self._records)[: self._count] = _whole(kept)  # new memory costs more than the copy, and the next rows want the room
        else:
            self._records = kept
        self._first = int(kept["time"].min()) if self._count else None
        self._index = [kept for g in self._index if len(kept := _renumbered(g, stays, numbers))]
        return np.flatnonzero(stays)

    def save(self) -> Iterator[Save]:
        """What to write to state, which then holds what is held. Each write counts as done."""
        cells = self._cell_of(self._records[self._saved : self._count]["time"])
        added = np.bincount(cells, minlength=CELLS)
        for cell, known in enumerate(self._cells):
            known.pieces += bool(added[cell])
            if cell in self._anew or known.scattered:
                rows = np.flatnonzero(self._cell_of(self.records["time"]) == cell)
                known.whole, known.pieces = len(rows), bool(len(rows))
                yield Save(cell, True, rows)
            elif added[cell]:
                yield Save(cell, False, np.flatnonzero(cells == cell) + self._saved)
        self._anew, self._saved = set(), self._count

    def saved(self, pieces: list[int]) -> None:
        """Says that all held rows came from state, `pieces` of them in each cell."""
        self._saved = self._count
        rows = np.bincount(self._cell_of(self.records["time"]), minlength=CELLS)
        self._cells = [_Cell(0 if p > _FEW_PIECES else int(n), p) for p, n in zip(pieces, rows, strict=True)]

    def _cell_of(self, times: Ints) -> Ints:
        return (times // self._slice) % CELLS

    def _reserve(self, rows: int) -> None:
        if rows > len(self._records):
            grown = np.empty(max(rows, int(len(self._records) * _GROWTH)), self._records.dtype)
            _whole(grown)[: self._count] = _whole(self.records)
            self._records = grown


def _whole(records: Records) -> Records:
    """Records without their fields: numpy copies those field by field, six times slower."""
    return records.view(f"V{records.dtype.itemsize}")


def _found(generation: Ints, hashes: Ints) -> tuple[Ints, Ints]:
    """(places in `hashes`, rows of `generation`) of equal hashes; `hashes` ascend, so that neighbours are sought near each other."""
    first = np.searchsorted(generation, hashes)
    first_entry = generation[np.minimum(first, len(generation) - 1)]
    hits = np.flatnonzero((first_entry & _HASH == hashes) & (first < len(generation)))
    first = first[hits]
    counts = np.searchsorted(generation, hashes[hits] | _ROW, side="right") - first
    total = int(counts.sum())
    within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(hits, counts), (generation[np.repeat(first, counts) + within] & _ROW).astype(np.int64)


def _renumbered(generation: Ints, stays: npt.NDArray[np.bool_], numbers: Ints) -> Ints:
    rows = (generation & _ROW).astype(np.int64)
    mine = stays[rows]
    return (generation[mine] & _HASH) | numbers[rows[mine]].astype(np.uint64)
