"""The windows of one shard of a stream, from their first row until nothing can change them: fixed, sliding and calendar windows.

                          on time                late (trigger.late)
    rows  ├───────────────────────────────┼───────────────────────────┤  later: dead letters LATE
    ──────┼─── window ───┼────────────────┼───────────────────────────┼──────▶ arrival clock
          start          end              end + watermark_delay       end + allowed_lateness
    panes   early  early  early           on_time   late   late       closed: state is dropped

No clock and no Beam: `add` takes what arrived, `advance` says that everything that arrived before a time has been added, `due` says which time
it wants to hear of next. An `on_time` pane holds the rows that are on time by their own arrival, whatever else has been added by then; every
later pane holds all rows. So what is shown last is what a batch shows that applies the stream's lateness.

With `trigger.late: never` late rows are shown once, when their window closes.

What comes for a closed window, out of order by more than the watermark promised, is `stale`: counted by window start, for the batch to recompute.
`sessions` have windows that depend on their rows: `open_sessions`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from beam_pipelines.arrow.ended_rows import EndedRows
from beam_pipelines.arrow.engine import Engine, local_engine
from beam_pipelines.arrow.kept_rows import KeptRows
from beam_pipelines.arrow.panes import fold
from beam_pipelines.arrow.schema import CHANGE, POSITION
from beam_pipelines.arrow.window_panes import (
    DRAINED,
    EARLY,
    LATE,
    NO_KEYS,
    ON_TIME,
    RETRACTED,
    Bucket,
    Fired,
    Ints,
    Kept,
    Layout,
    Shard,
    column_sum,
    in_window,
    pane_rows,
    part,
    part_of,
    retracted,
    stamped,
)
from beam_pipelines.arrow.windowing import WINDOW_START, covering, own_window_end, slice_size, window_bounds
from beam_pipelines.arrow.windows import WindowSpec

_LONG_AGO = -(2**62)
_MILLISECOND = 1_000


@dataclass
class _Window:
    end: int
    index: int = -1
    changed: list[Ints] = field(default_factory=list)


@dataclass(frozen=True)
class _Firing:
    """One pane of one window: of all groups, or of those that changed; of all rows, or of those on time."""

    start: int
    window: _Window
    changed_only: bool = False
    on_time_only: bool = False


class OpenWindows:
    """See the module. Not for several threads at once."""

    def __init__(self, shard: Shard, *, engine: Engine | None = None) -> None:
        self.engine = engine or local_engine()
        self._shard, self._layout = shard, Layout(shard.spec)
        self._windows: dict[int, _Window] = {}
        self._buckets: dict[int, Bucket] = {}
        self._kept = self._nothing_kept()
        self._ended = EndedRows(reach=shard.reach)
        self._fired = _LONG_AGO
        self._tick: int | None = None

    # ── what arrives ──

    def add(self, batch: pa.RecordBatch, *, at: int | None = None) -> Fired:
        """Takes partials, or inputs where rows may be taken back; `at` is when the batch arrived (micros): early panes go by it."""
        stale: dict[int, int] = {}
        if self._kept is not None:
            batch = self._corrected(batch, at, stale)
        for some in _by_window(batch):
            self._add(some, stale)
        if at is not None and batch.num_rows:
            self._want_early(at)
        return self._late(stale)

    def _corrected(self, batch: pa.RecordBatch, at: int | None, stale: dict[int, int]) -> pa.RecordBatch:
        """Partials of the rows that are new; rows that are taken back leave their buckets."""
        assert self._kept is not None
        gone = batch.column(CHANGE).to_numpy() < 0
        if gone.any():
            self._take_back(batch.filter(pa.array(gone)), at, stale)
            batch = batch.filter(pa.array(~gone))
        over = self._over(batch, stale)
        fresh = self._kept.rows.add(batch.filter(pa.array(~over)) if over.any() else batch)
        return fold(fresh, self._shard.plan, self._shard.types, engine=self.engine)

    def _over(self, rows: pa.RecordBatch, stale: dict[int, int]) -> np.ndarray:
        """Which rows have no open window left."""
        over = np.zeros(rows.num_rows, bool)
        starts = rows.column("w").to_numpy()
        for start in np.unique(starts).tolist():
            mine = starts == start
            end = int(rows.column("e").to_numpy()[mine][0])
            windows = self._windows_of(start, end)
            if all(self._closed(e) for _, e in windows):
                over |= mine
                _count(stale, self._were_open(windows), int(mine.sum()))
        return over

    def _take_back(self, rows: pa.RecordBatch, at: int | None, stale: dict[int, int]) -> None:
        """Every shard hears of a correction. For a window that this process closed the shard that had the row counts it, which no other knows;
        for one of an earlier process, of which every shard knows, the row's position says which."""
        replayed = at is not None and self._shard.closed_before is not None and at < self._shard.closed_before
        for some in _by_window(rows):
            windows = self._windows_of(*_bounds(some))
            closed = [w for w in windows if self._closed(w[1])]
            if len(closed) < len(windows):
                self._changed(*_bounds(some), NO_KEYS)  # the window must close, or what is remembered would stay for ever
                had = self._remove(some)
            else:
                had = int(self._ended.take(some).sum())
            if replayed or not closed:
                continue
            mine = int((some.column(POSITION).to_numpy() % self._shard.shards == self._shard.number).sum())
            were_open = self._were_open(closed)
            _count(stale, were_open, had)
            _count(stale, [w for w in closed if w not in were_open], mine)

    def _remove(self, rows: pa.RecordBatch) -> int:
        """How many of the rows were there."""
        assert self._kept is not None
        gone = self._kept.rows.remove(rows)
        if gone.num_rows:
            self._buckets[_bounds(gone)[0]].taken_back(gone)
            self._changed(*_bounds(gone), np.unique(self._layout.keys(gone)))
        return int(gone.num_rows)

    def _add(self, some: pa.RecordBatch, stale: dict[int, int]) -> None:
        start, end = _bounds(some)
        windows = self._windows_of(start, end)
        closed = [w for w in windows if self._closed(w[1])]
        if closed:
            _count(stale, self._were_open(closed), column_sum(some.column(self._shard.counted)))
        if len(closed) < len(windows):
            self._buckets.setdefault(start, Bucket(self._layout, start, end)).add(some, self.engine)
            self._changed(start, end, np.unique(self._layout.keys(some)))

    def _changed(self, start: int, end: int, keys: Ints) -> None:
        for first, last in self._windows_of(start, end):
            if not self._closed(last):
                window = self._windows.setdefault(first, _Window(last))
                window.changed += [keys] if len(keys) else []

    def _late(self, stale: dict[int, int]) -> Fired:
        """Panes of windows that were shown already."""
        if self._shard.spec.trigger.late == "never":
            return Fired([], [], stale)
        found = self._fire(LATE, [_Firing(s, w, True) for s, w in self._windows.items() if w.changed and self._timely(w) < self._fired])
        return found._replace(stale=stale)

    # ── what time says ──

    def due(self) -> int | None:
        """The next time (micros) that `advance` should hear of: a whole millisecond, because runners' clocks tick so."""
        times = [self._timely(w) if self._timely(w) >= self._fired else self._closing(w.end) for w in self._windows.values()]
        times += [] if self._tick is None else [self._tick - 1]
        return None if not times else (min(times) // _MILLISECOND + 1) * _MILLISECOND

    def advance(self, to: int, *, drained: bool = False) -> Fired:
        """Shows what is due when everything that arrived before `to` has been added; `drained`: the stream ended before."""
        if drained:
            return self._drain()
        panes, dead = [], []
        for fired in self._advance(to):
            panes += fired.panes
            dead += fired.dead
        return Fired(panes, dead, {})

    def _advance(self, to: int) -> Iterator[Fired]:
        timely = [(s, w) for s, w in self._windows.items() if self._fired <= self._timely(w) < to]
        waiting = self._tick is not None and self._tick <= to
        early = [(s, w) for s, w in self._windows.items() if waiting and w.changed and self._timely(w) >= to]
        self._tick = None if waiting else self._tick
        self._fired = max(self._fired, to)
        yield self._fire(EARLY, [_Firing(s, w, True, True) for s, w in early])
        yield self._fire(ON_TIME, [_Firing(s, w, False, True) for s, w in timely])
        for start, window in timely:
            window.changed = self._late_keys(start, window)
        closing = [(s, w) for s, w in self._windows.items() if self._closed(w.end)]
        late = closing if self._shard.spec.trigger.late == "never" else timely
        yield self._fire(LATE, [_Firing(s, w, True) for s, w in late if w.changed])
        self._close([s for s, _ in closing])

    def _late_keys(self, start: int, window: _Window) -> list[Ints]:
        """Groups of which late rows are held already when the window's pane on time is shown."""
        keys = [self._layout.keys(p)[self._layout.ranks(p) > rank] for p, rank in self._parts(start, window)]
        return [k for k in keys if len(k)]

    def _drain(self) -> Fired:
        waiting = [_Firing(s, w) for s, w in self._windows.items() if self._timely(w) >= self._fired]
        shown = [_Firing(s, w, True) for s, w in self._windows.items() if self._timely(w) < self._fired and w.changed]
        found = self._fire(DRAINED, [*waiting, *shown])
        self._tick = None
        self._close(list(self._windows))
        return found

    def _close(self, starts: Sequence[int]) -> None:
        for start in starts:
            del self._windows[start]
        needed = {s for start, w in self._windows.items() for s in self._slices(start, w.end)} if starts else set(self._buckets)
        left = [s for s in self._buckets if s not in needed]
        self._buckets = {s: b for s, b in self._buckets.items() if s in needed}
        if self._kept is None or not starts:
            return
        if left:
            self._ended.add(*self._kept.rows.of_windows(left))
        self._ended.forget(self._fired)
        if self._windows:
            self._kept.rows.forget(min([self._oldest(), *self._buckets]))
        else:
            self._kept = self._nothing_kept()

    def _nothing_kept(self) -> Kept | None:
        rows = KeptRows(key=self._layout.key, slice_micros=_slice(self._windowing))
        return Kept(rows, self._shard.types) if self._shard.corrections else None

    # ── panes ──

    def _fire(self, kind: str, firings: Sequence[_Firing]) -> Fired:
        """The panes of these windows, one batch each; they count as shown."""
        made: list[pa.RecordBatch] = []
        missing: list[Ints] = []  # of each window: groups that changed and have no rows
        for firing in firings:
            changed = _union(firing.window.changed)
            parts = [self._some(p, firing, changed, rank) for p, rank in self._parts(firing.start, firing.window)]
            made += [in_window(p, firing.start, firing.window.end) for p in parts]
            missing.append(np.setdiff1d(changed, _union([self._layout.keys(p) for p in parts])))
            firing.window.changed = []
        if not made:
            return Fired([], [], {})
        rows = pane_rows(made, self._layout, engine=self.engine)
        starts = rows.panes.column(WINDOW_START).cast(pa.int64()).to_numpy()
        panes = []
        for firing, keys in zip(firings, missing, strict=True):
            a, b = np.searchsorted(starts, [firing.start, firing.start + 1]).tolist()
            gone = self._retracted(firing, keys, rows.panes.schema)
            panes += self._numbered(firing.window, [(kind, rows.panes.slice(a, b - a)), (RETRACTED, gone)])
        return Fired(panes, [rows.dead] if rows.dead.num_rows else [], {})

    def _numbered(self, window: _Window, found: Sequence[tuple[str, pa.RecordBatch]]) -> list[pa.RecordBatch]:
        """One batch of the next index, if there is any row."""
        batches = [stamped(rows, kind, window.index + 1, self._shard.epoch) for kind, rows in found if rows.num_rows]
        window.index += bool(batches)
        return [pa.concat_batches(batches)] if batches else []

    def _retracted(self, firing: _Firing, keys: Ints, schema: pa.Schema) -> pa.RecordBatch:
        """Groups that may have been shown and have no rows left."""
        found = [g for b in self._buckets_of(firing.start, firing.window.end) if (g := b.group_of(keys)) is not None]
        if firing.window.index < 0 or not found:
            return pa.RecordBatch.from_pylist([], schema=schema)
        groups = pa.concat_batches(found)
        groups = groups.take(pa.array(np.unique(self._layout.keys(groups), return_index=True)[1]))
        return retracted(schema, groups, self._layout, firing.start, firing.window.end)

    def _parts(self, start: int, window: _Window) -> list[tuple[pa.RecordBatch, int]]:
        """The partials under a window, each with the rank up to which its rows are on time for the window."""
        merged = [(b.merged(self._kept, self.engine), self._rank(b, window.end)) for b in self._buckets_of(start, window.end)]
        return [(m, rank) for m, rank in merged if m is not None]

    def _some(self, partials: pa.RecordBatch, firing: _Firing, changed: Ints, rank: int) -> pa.RecordBatch:
        mask = np.isin(self._layout.keys(partials), changed) if firing.changed_only else np.ones(partials.num_rows, bool)
        if firing.on_time_only:
            mask &= self._layout.ranks(partials) <= rank
        return partials if mask.all() else partials.filter(pa.array(mask))

    # ── windows and slices ──

    @property
    def _windowing(self) -> WindowSpec:
        assert self._shard.spec.windowing is not None
        return self._shard.spec.windowing

    @property
    def _sliding(self) -> bool:
        return self._windowing.type == "sliding"

    def _windows_of(self, start: int, end: int) -> list[tuple[int, int]]:
        if not self._sliding:
            return [(start, end)]
        starts = covering(np.array([start]), np.array([end - 1]), self._windowing)[1]
        return [(s, s + (self._windowing.size or 0)) for s in starts.tolist()]

    def _slices(self, start: int, end: int) -> Iterable[int]:
        return range(start, end, slice_size(self._windowing)) if self._sliding else (start,)

    def _buckets_of(self, start: int, end: int) -> list[Bucket]:
        return [self._buckets[s] for s in self._slices(start, end) if s in self._buckets]

    def _rank(self, bucket: Bucket, end: int) -> int:
        if not self._sliding:
            return 0
        assert bucket.window is not None
        first = own_window_end(np.array([bucket.window]), np.array([bucket.end]), self._windowing)[0]
        return int(end - first) // (self._windowing.period or 1)

    def _timely(self, window: _Window) -> int:
        """Rows that arrive until then are on time."""
        return window.end + self._windowing.watermark_delay

    def _closing(self, end: int) -> int:
        """Rows that arrive until then are in the window."""
        return end + max(self._windowing.allowed_lateness, self._windowing.watermark_delay)

    def _closed(self, end: int) -> bool:
        before = self._shard.closed_before
        return self._closing(end) < (self._fired if before is None else max(self._fired, before))

    def _were_open(self, closed: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those that this process closed: what an earlier one closed, it had seen."""
        before = self._shard.closed_before
        return [w for w in closed if before is None or self._closing(w[1]) >= before]

    def _oldest(self) -> int:
        """No window that starts earlier is open."""
        moment = np.array([self._fired - (self._closing(0)) - 1])
        if self._sliding:
            return int(moment[0]) - (self._windowing.size or 0)
        return int(window_bounds(moment, self._windowing, self._shard.plan.types.time_zone)[0][0])

    def _want_early(self, at: int) -> None:
        every = self._shard.spec.trigger.early
        if every is not None and self._tick is None and any(w.changed and self._timely(w) >= self._fired for w in self._windows.values()):
            self._tick = (max(at, self._fired) // every + 1) * every

    # ── what is kept between bundles ──

    @property
    def empty(self) -> bool:
        """Whether no window is open and no row is kept."""
        return not self._windows and not self._buckets and (self._kept is None or not len(self._kept.rows))

    @property
    def nbytes(self) -> int:
        """Bytes that `dump` would write, about."""
        kept = self._kept.rows.nbytes if self._kept is not None else 0
        return sum(b.nbytes for b in self._buckets.values()) + kept + self._ended.nbytes

    def dump(self) -> list[pa.RecordBatch]:
        """All that is held; `load` of a new object takes it back."""
        windows = [(s, w.end, w.index) for s, w in self._windows.items()]
        found = [part({"part": "head", "fired": self._fired, "tick": self._tick, "windows": windows})]
        for start, bucket in self._buckets.items():
            merged = bucket.merged(self._kept, self.engine)
            found += [] if merged is None else [part({"part": "partials", "window": start, "end": bucket.end}, merged)]
            found += [part({"part": "gone", "window": start}, g) for g in bucket.gone]
        for start, window in self._windows.items():
            if window.changed:
                found.append(part({"part": "changed", "window": start}, pa.record_batch({"key": _union(window.changed)})))
        rows = self._kept.rows.dump() if self._kept is not None else None
        remembered = {"rows": rows, "ended": self._ended.dump()}
        return [*found, *(part({"part": name}, batch) for name, batch in remembered.items() if batch is not None)]

    def load(self, dumped: Sequence[pa.RecordBatch]) -> None:
        """Takes back what `dump` gave, in its order."""
        for head, batch in map(part_of, dumped):
            self._load(head, batch)

    def _load(self, head: dict[str, Any], batch: pa.RecordBatch) -> None:
        start = head.get("window", 0)
        if head["part"] == "head":
            self._fired, self._tick = head["fired"], head["tick"]
            self._windows = {s: _Window(e, i) for s, e, i in head["windows"]}
        elif head["part"] == "partials":
            self._buckets[start] = Bucket(self._layout, start, head["end"], [batch])
        elif head["part"] == "gone":
            self._buckets[start].gone.append(batch)
        elif head["part"] == "changed":
            self._windows[start].changed.append(batch.column(0).to_numpy())
        elif head["part"] == "ended":
            self._ended.load(batch)
        elif self._kept is not None:
            self._kept.rows.load(batch)


def _by_window(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The rows of each `w`."""
    starts = batch.column("w").to_numpy()
    if not len(starts):
        return
    if (starts != starts[0]).any():
        order = np.argsort(starts, kind="stable")
        batch, starts = batch.take(pa.array(order)), starts[order]
    edges = [0, *(np.flatnonzero(np.diff(starts)) + 1).tolist(), len(starts)]
    for a, b in itertools.pairwise(edges):
        yield batch.slice(a, b - a)


def _bounds(part: pa.RecordBatch) -> tuple[int, int]:
    return part.column("w")[0].as_py(), part.column("e")[0].as_py()


def _count(stale: dict[int, int], windows: Iterable[tuple[int, int]], rows: int) -> None:
    for start, _ in windows if rows else ():
        stale[start] = stale.get(start, 0) + rows


def _union(keys: Sequence[Ints]) -> Ints:
    return np.unique(np.concatenate(keys)) if keys else NO_KEYS


def _slice(spec: WindowSpec) -> int:
    """How finely rows are forgotten by time: a quarter of a window, or of an hour."""
    return max(1, (spec.size or spec.gap or 3_600_000_000) // 4)
