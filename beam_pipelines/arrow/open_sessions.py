"""The sessions of one shard of a stream, from their first row until nothing can change them; `open_windows` for windows that depend on rows.

    rows       ··  ·       ···          a session ends `gap` after its last row, and is shown on time `watermark_delay` later
    on_time    ├─────┤     ├────┤
    late row         ·                  joins what was apart:
    retracted  ├─────┤     ├────┤       pane rows with NULL measures and `_pane` = retracted: the window does not exist any more
    late       ├────────────────┤       in its place

Which rows are on time for a session is decided by the session each would be alone, as for LATE. A row that is in time can join a session until
end + `gap` + `allowed_lateness`: the session closes then. A session cut at multiples of `max_length` closes piece by piece; that it went on
before is remembered, so that the pieces behind it stay pieces. Sessions are looked at once per `gap` / 100 of arrival time (at least 1 ms, at
most 10 s): every timer costs a runner a bundle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from beam_pipelines.arrow import sessions
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
    PaneRows,
    Shard,
    in_window,
    joined_shown,
    pane_rows,
    part,
    part_of,
    stamped,
    without_measures,
)
from beam_pipelines.arrow.windowing import WINDOW_END, WINDOW_START
from beam_pipelines.arrow.windows import WindowSpec

_LONG_AGO, _NEVER = -(2**62), 2**62

Session = tuple[int, int, int]
"""(group key, start, end)"""


class _Seen(NamedTuple):
    """How a session was shown last: of how many rows, whether before its end, and its pane row without measures."""

    counted: int
    early: bool
    rows: pa.RecordBatch
    row: int


class _Runs(NamedTuple):
    """Runs with the sessions they are in. `n` is the row of the partials, -1 for what is remembered of closed pieces."""

    n: Ints
    k: Ints
    chain: Ints
    start: Ints
    end: Ints
    e: Ints
    closing: Ints

    def where(self, mask: np.ndarray) -> _Runs:
        return _Runs(*(column[mask] for column in self))

    def sessions(self) -> set[Session]:
        return set(zip(self.k.tolist(), self.start.tolist(), self.end.tolist(), strict=True))

    def among(self, wanted: set[Session]) -> _Runs:
        ids = zip(self.k.tolist(), self.start.tolist(), self.end.tolist(), strict=True)
        return self.where(np.fromiter((i in wanted for i in ids), bool, len(self.k)))


class OpenSessions:
    """See the module; the interface is that of `OpenWindows`."""

    def __init__(self, shard: Shard, *, engine: Engine | None = None) -> None:
        self.engine = engine or local_engine()
        self._shard, self._layout = shard, Layout(shard.spec)
        self._runs = Bucket(self._layout, None, 0)
        self._kept = self._nothing_kept()
        self._ended = EndedRows(reach=shard.reach)
        self._remembered = np.empty((3, 0), np.int64)  # key, first and last instant of closed pieces of sessions that go on
        self._seen: dict[Session, _Seen] = {}
        self._timed: set[Session] = set()  # shown on time, or too late for that
        self._changed: list[Ints] = []  # groups, since their last early pane
        self._pending: set[int] = set()  # groups with late rows that wait for the close (trigger.late: never)
        self._fired, self._next, self._latest, self._index = _LONG_AGO, _NEVER, _LONG_AGO, -1
        self._tick: int | None = None

    # ── what arrives ──

    def add(self, batch: pa.RecordBatch, *, at: int | None = None) -> Fired:
        """As `OpenWindows.add`."""
        stale: dict[int, int] = {}
        moved: list[tuple[Ints, Ints]] = []  # groups that changed, and from when on
        if self._kept is not None:
            batch = self._corrected(batch, at, stale, moved)
        else:
            batch = self._in_time(batch, stale, batch.column(self._shard.counted).to_numpy())
        if batch.num_rows:
            self._runs.add(batch, self.engine)
            starts, ends = batch.column("w").to_numpy(), batch.column("e").to_numpy()
            moved.append((self._layout.keys(batch), starts))
            self._expect(int(ends.min()), int(ends.max()))
        if not moved:
            return Fired([], [], stale)
        keys, since = np.concatenate([k for k, _ in moved]), np.concatenate([t for _, t in moved])
        self._changed.append(np.unique(keys))
        if at is not None:
            self._want_early(at)
        return self._late(np.unique(keys[since + self._gap + self._spec.watermark_delay < self._fired]))._replace(stale=stale)

    def _corrected(self, batch: pa.RecordBatch, at: int | None, stale: dict[int, int], moved: list[tuple[Ints, Ints]]) -> pa.RecordBatch:
        assert self._kept is not None
        gone = batch.column(CHANGE).to_numpy() < 0
        if gone.any():
            minus, batch = batch.filter(pa.array(gone)), batch.filter(pa.array(~gone))
            taken = self._kept.rows.remove(minus)
            if taken.num_rows:
                self._runs.taken_back(taken)
                moved.append((self._layout.keys(taken), taken.column("w").to_numpy()))
                self._next = min(self._next, max(self._fired, int(taken.column("w").to_numpy().min()) + self._spec.watermark_delay))
            self._stale_corrections(minus, taken, at, stale)
            times = minus.column("w").to_numpy()
            self._expect(int(times.max()), int(times.max()))
        return fold(self._kept.rows.add(self._in_time(batch, stale)), self._shard.plan, self._shard.types, engine=self.engine)

    def _in_time(self, rows: pa.RecordBatch, stale: dict[int, int], counts: Ints | None = None) -> pa.RecordBatch:
        """Rows or runs of which the last instant could still be in an open session."""
        over = rows.column("e").to_numpy() + self._gap + self._lateness < self._fired
        _count(stale, rows.column("w").to_numpy()[over], None if counts is None else counts[over])
        return rows.filter(pa.array(~over)) if over.any() else rows

    def _stale_corrections(self, minus: pa.RecordBatch, taken: pa.RecordBatch, at: int | None, stale: dict[int, int]) -> None:
        """As `OpenWindows._take_back`: who counts depends on which process closed the session that the row would be alone."""
        had = self._ended.take(minus)
        before = self._shard.closed_before
        if at is not None and before is not None and at < before:
            return
        times = minus.column("w").to_numpy()
        earlier = times + self._gap + self._lateness < self._silent_before
        mine = minus.column(POSITION).to_numpy() % self._shard.shards == self._shard.number
        _count(stale, times[np.where(earlier, mine & ~np.isin(times, taken.column("w").to_numpy()), had)])

    def _expect(self, first: int, last: int) -> None:
        self._next = min(self._next, first + self._gap + self._spec.watermark_delay)
        self._latest = max(self._latest, last)

    def _late(self, keys: Ints) -> Fired:
        """Sessions of these groups that were due before their rows came."""
        if not len(keys):
            return Fired([], [], {})
        if self._shard.spec.trigger.late == "never":
            self._pending.update(keys.tolist())
            return Fired([], [], {})
        partials = self._runs.merged(self._kept, self.engine)
        if partials is None:
            return Fired([], [], {})
        mine = np.isin(self._layout.keys(partials), keys)
        on_time = self._sessions(partials, mine & (self._layout.ranks(partials) == 0))
        self._timed |= on_time.where((on_time.n >= 0) & (on_time.end + self._spec.watermark_delay < self._fired)).sessions()
        return self._reconciled(partials, self._sessions(partials, mine), keys, set(keys.tolist()))

    # ── what time says ──

    def due(self) -> int | None:
        """As `OpenWindows.due`."""
        step = max(1_000, min(self._gap // 100, 10_000_000) // 1_000 * 1_000)
        times = [(self._next // step + 1) * step] if self._next < _NEVER else []
        times += [-(-self._tick // 1_000) * 1_000] if self._tick is not None else []
        if self._kept is not None and len(self._kept.rows):
            times.append(((self._latest + 2 * self._gap + self._lateness) // step + 1) * step)
        return min(times) if times else None

    def advance(self, to: int, *, drained: bool = False) -> Fired:
        """As `OpenWindows.advance`."""
        self._fired = max(self._fired, to)
        partials = self._runs.merged(self._kept, self.engine)
        found: list[Fired] = []
        if partials is not None:
            runs = self._sessions(partials)
            found = self._drain(partials, runs) if drained else self._advance(partials, runs)
        self._settle(found, drained)
        return Fired([p for f in found for p in f.panes], [d for f in found for d in f.dead], {})

    def _advance(self, partials: pa.RecordBatch, runs: _Runs) -> list[Fired]:
        delay = self._spec.watermark_delay
        on_time = self._sessions(partials, self._layout.ranks(partials) == 0)
        timely = on_time.where((on_time.end + delay < self._fired) & (on_time.n >= 0))
        timely = timely.among(timely.sessions() - self._timed)
        visible = runs.where((runs.end + delay < self._fired) & (runs.n >= 0) & (runs.closing >= self._silent_before))
        visible = visible.among({s for s in visible.sessions() if (seen := self._seen.get(s)) is None or seen.early})
        found = [self._early(partials, runs), self._shown(ON_TIME, partials, timely)]
        self._timed |= timely.sessions()
        keys = np.union1d(timely.k, visible.k)
        if self._shard.spec.trigger.late == "every_batch":
            found.append(self._reconciled(partials, runs, keys, set()))
        found += self._close(partials, runs)
        return found

    def _early(self, partials: pa.RecordBatch, runs: _Runs) -> Fired:
        if self._tick is None or self._tick > self._fired:
            return Fired([], [], {})
        keys = np.unique(np.concatenate([NO_KEYS, *self._changed]))
        self._tick, self._changed = None, []
        mine = runs.where(np.isin(runs.k, keys))
        shown = self._shown(EARLY, partials, mine.where(mine.end + self._spec.watermark_delay >= self._fired))
        gone = self._retracted({s for s in self._gone(keys, runs) if self._seen[s].early})
        return Fired([*shown.panes, *gone], shown.dead, {})

    def _reconciled(self, partials: pa.RecordBatch, runs: _Runs, keys: Ints, anew: set[int]) -> Fired:
        """Shows sessions of `keys` that are due and not shown as they are (those of `anew` in any case), and takes back what is no session now."""
        mine = runs.where(np.isin(runs.k, keys) & (runs.end + self._spec.watermark_delay < self._fired))
        counts = self._counts(partials, mine)
        wanted = {s for s, n in counts.items() if s[0] in anew or (seen := self._seen.get(s)) is None or seen.early or seen.counted != n}
        gone = self._retracted(self._gone(keys, runs))
        shown = self._shown(LATE, partials, mine.among(wanted))
        return Fired([*gone, *shown.panes], shown.dead, {})

    def _close(self, partials: pa.RecordBatch, runs: _Runs) -> list[Fired]:
        closing = runs.where(runs.closing < self._fired)
        found = []
        if self._shard.spec.trigger.late == "never":
            keys = np.unique(closing.k)
            gone = {s for s in self._gone(keys, runs) if s[1] < closing.end[closing.k == s[0]].max()}
            counts = self._counts(partials, closing)
            wanted = {
                s
                for s, n in counts.items()
                if s[0] in self._pending or (seen := self._seen.get(s)) is None or seen.early or seen.counted != n
            }
            found.append(Fired(self._retracted(gone), [], {}))
            found.append(self._shown(LATE, partials, closing.among(wanted)))
        if len(closing.k):
            self._drop(partials, runs, closing)
        return found

    def _drop(self, partials: pa.RecordBatch, runs: _Runs, closing: _Runs) -> None:
        """Forgets closed sessions; of those that go on behind closed pieces, that they did."""
        stays = np.ones(partials.num_rows, bool)
        stays[closing.n[closing.n >= 0]] = False
        self._runs.parts = [partials.filter(pa.array(stays))]
        chains = np.unique(np.stack([runs.k, runs.chain]), axis=1, return_inverse=True)[1].ravel()
        over = runs.closing < self._fired
        ends = np.ones(chains.max() + 1, bool)
        np.logical_and.at(ends, chains, over)
        left = over & ~ends[chains]
        self._remembered = _spans(runs.k[left], runs.start[left], runs.e[left], chains[left])
        keys, at = np.unique(closing.k, return_inverse=True)
        until = np.full(len(keys), _LONG_AGO)
        np.maximum.at(until, at, closing.e)
        if self._kept is not None:
            self._ended.add(*self._kept.rows.discard(keys, until))
            self._ended.forget(self._fired)
        for session in closing.sessions():
            self._seen.pop(session, None)

    def _drain(self, partials: pa.RecordBatch, runs: _Runs) -> list[Fired]:
        counts = self._counts(partials, runs)
        wanted = {
            s for s, n in counts.items() if s[0] in self._pending or (seen := self._seen.get(s)) is None or seen.early or seen.counted != n
        }
        keys = np.unique(runs.k)
        return [Fired(self._retracted(self._gone(keys, runs)), [], {}), self._shown(DRAINED, partials, runs.among(wanted))]

    def _settle(self, found: list[Fired], drained: bool) -> None:
        """What is due next; all is forgotten where no session is open."""
        partials = self._runs.parts[0] if self._runs.parts else None
        delay = self._spec.watermark_delay
        self._next = _NEVER
        if partials is not None and partials.num_rows and not drained:
            every, on_time = self._sessions(partials), self._sessions(partials, self._layout.ranks(partials) == 0)
            ends = np.concatenate([every.end, on_time.end]) + delay
            self._next = int(np.concatenate([ends[ends >= self._fired], every.closing[every.n >= 0]]).min())
            if self._kept is not None:
                first = int(partials.column("w").to_numpy().min())
                self._kept.rows.forget(min(first, self._fired - self._gap - self._lateness))
            horizon = self._fired - self._lateness - 2 * self._gap - self._spec.longest
            self._timed = {s for s in self._timed if s[2] >= horizon}
            return
        if not drained:
            found.append(Fired(self._retracted(list(self._seen)), [], {}))  # what closed is not among them
        self._runs, self._seen, self._timed, self._pending = Bucket(self._layout, None, 0), {}, set(), set()
        self._remembered, self._changed, self._tick = np.empty((3, 0), np.int64), [], None
        if drained or self._latest + self._gap + self._lateness < self._fired:
            self._kept, self._latest = self._nothing_kept(), _LONG_AGO

    # ── sessions ──

    def _sessions(self, partials: pa.RecordBatch, mask: np.ndarray | None = None) -> _Runs:
        """The runs (of `mask`) with their sessions."""
        n = np.arange(partials.num_rows) if mask is None else np.flatnonzero(mask)
        known = [self._layout.keys(partials)[n], partials.column("w").to_numpy()[n], partials.column("e").to_numpy()[n]]
        k, w, e = (np.concatenate([a, b]) for a, b in zip(known, self._remembered, strict=True))
        numbers = np.concatenate([n, np.full(self._remembered.shape[1], -1)])
        found = sessions.found(k, w, e, self._spec)
        closing = found.final + self._gap + self._lateness  # until then a row in time can join
        return _Runs(numbers[found.order], k[found.order], found.chain, found.start, found.end, e[found.order], closing)

    def _counts(self, partials: pa.RecordBatch, runs: _Runs) -> dict[Session, int]:
        counted = partials.column(self._shard.counted).to_numpy()
        found: dict[Session, int] = {}
        runs = runs.where(runs.n >= 0)
        for session, n in zip(
            zip(runs.k.tolist(), runs.start.tolist(), runs.end.tolist(), strict=True), counted[runs.n].tolist(), strict=True
        ):
            found[session] = found.get(session, 0) + n  # per run of a session that is looked at, not per row
        return found

    def _shown(self, kind: str, partials: pa.RecordBatch, runs: _Runs) -> Fired:
        """The panes of these sessions as one batch."""
        runs = runs.where((runs.n >= 0) & (runs.closing >= self._silent_before))
        if not len(runs.n):
            return Fired([], [], {})
        rows = pane_rows([in_window(partials.take(pa.array(runs.n)), runs.start, runs.end)], self._layout, engine=self.engine)
        self._index += 1
        self._note(rows, early=kind == EARLY)
        return Fired([stamped(rows.panes, kind, self._index, self._shard.epoch)], [rows.dead] if rows.dead.num_rows else [], {})

    def _note(self, rows: PaneRows, *, early: bool) -> None:
        bare = without_measures(rows.panes, self._layout)
        starts, ends = (rows.panes.column(n).cast(pa.int64()).to_pylist() for n in (WINDOW_START, WINDOW_END))
        for i, (session, n) in enumerate(zip(zip(rows.keys.tolist(), starts, ends, strict=True), rows.counts.tolist(), strict=True)):
            self._seen[session] = _Seen(n, early, bare, i)  # per pane, not per row

    def _gone(self, keys: Ints, runs: _Runs) -> set[Session]:
        """Sessions of `keys` that were shown and are none now."""
        wanted = set(keys.tolist())
        return {s for s in self._seen if s[0] in wanted} - runs.where(runs.n >= 0).sessions()

    def _retracted(self, gone: Iterable[Session]) -> list[pa.RecordBatch]:
        rows = joined_shown([(seen.rows, seen.row) for seen in map(self._seen.pop, sorted(gone))])
        if rows is None:
            return []
        self._index += 1
        return [stamped(rows, RETRACTED, self._index, self._shard.epoch)]

    def _want_early(self, at: int) -> None:
        every = self._shard.spec.trigger.early
        if every is not None and self._tick is None and self._changed:
            self._tick = (max(at, self._fired) // every + 1) * every

    def _nothing_kept(self) -> Kept | None:
        rows = KeptRows(key=self._layout.key, slice_micros=max(1, self._gap // 4))
        return Kept(rows, self._shard.types) if self._shard.corrections else None

    @property
    def _spec(self) -> WindowSpec:
        assert self._shard.spec.windowing is not None
        return self._shard.spec.windowing

    @property
    def _gap(self) -> int:
        return self._spec.gap or 0

    @property
    def _lateness(self) -> int:
        return max(self._spec.allowed_lateness, self._spec.watermark_delay)

    @property
    def _silent_before(self) -> int:
        before = self._shard.closed_before
        return _LONG_AGO if before is None else before

    # ── what is kept between bundles ──

    @property
    def empty(self) -> bool:
        """As `OpenWindows.empty`."""
        return not self._runs.parts and (self._kept is None or not len(self._kept.rows))

    @property
    def nbytes(self) -> int:
        """As `OpenWindows.nbytes`."""
        kept = self._kept.rows.nbytes if self._kept is not None else 0
        return self._runs.nbytes + kept + self._ended.nbytes + 100 * len(self._seen)

    def dump(self) -> list[pa.RecordBatch]:
        """As `OpenWindows.dump`."""
        partials = self._runs.merged(self._kept, self.engine)
        head = {
            "fired": self._fired, "next": self._next, "latest": self._latest, "index": self._index, "tick": self._tick,
            "timed": sorted(self._timed), "pending": sorted(self._pending),
            "remembered": self._remembered.tolist(), "changed": np.unique(np.concatenate([NO_KEYS, *self._changed])).tolist(),
        }  # fmt: skip
        seen = [(s, v.counted, v.early) for s, v in self._seen.items()]
        shown = joined_shown([(v.rows, v.row) for v in self._seen.values()])
        rows = self._kept.rows.dump() if self._kept is not None else None
        found = [part({"part": "head", **head})]
        found += [] if partials is None else [part({"part": "partials"}, partials)]
        found += [] if shown is None else [part({"part": "seen", "seen": seen}, shown)]
        remembered = {"rows": rows, "ended": self._ended.dump()}
        return [*found, *(part({"part": name}, batch) for name, batch in remembered.items() if batch is not None)]

    def load(self, dumped: Sequence[pa.RecordBatch]) -> None:
        """As `OpenWindows.load`."""
        for head, batch in map(part_of, dumped):
            self._load(head, batch)

    def _load(self, head: dict[str, Any], batch: pa.RecordBatch) -> None:
        if head["part"] == "head":
            self._fired, self._next, self._latest = head["fired"], head["next"], head["latest"]
            self._index, self._tick = head["index"], head["tick"]
            self._timed, self._pending = {(k, s, e) for k, s, e in head["timed"]}, set(head["pending"])
            self._remembered = np.array(head["remembered"], np.int64).reshape(3, -1)
            self._changed = [np.array(head["changed"], np.int64)] if head["changed"] else []
        elif head["part"] == "partials":
            self._runs.parts = [batch]
        elif head["part"] == "seen":
            self._seen = {(k, s, e): _Seen(n, early, batch, i) for i, ((k, s, e), n, early) in enumerate(head["seen"])}
        elif head["part"] == "ended":
            self._ended.load(batch)
        elif self._kept is not None:
            self._kept.rows.load(batch)


def _spans(k: Ints, start: Ints, end: Ints, chains: Ints) -> np.ndarray:
    """Key, first and last instant of each chain."""
    numbers, at, which = np.unique(chains, return_index=True, return_inverse=True)
    first, last = np.full(len(numbers), _NEVER), np.full(len(numbers), _LONG_AGO)
    np.minimum.at(first, which, start)
    np.maximum.at(last, which, end)
    return np.stack([k[at], first, last])


def _count(stale: dict[int, int], starts: Ints, counts: Ints | None = None) -> None:
    rows = counts if counts is not None else np.ones(len(starts), np.int64)
    for start, n in zip(starts.tolist(), rows.tolist(), strict=True):  # rows out of order by more than the watermark promised
        stale[start] = stale.get(start, 0) + n
