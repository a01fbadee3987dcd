"""What is published, and what must come of it: computed row by row in plain Python, from the rules as DESIGN states them, without our kernels.

    message  ─▶ broken? ─▶ dead letter          row ─▶ user 'nobody'? ─▶ filtered      rest ─▶ pairwise duplicates ─▶ rows ─▶ windows, LATE

Arrival is an attribute, so that everything is a pure function of what was published, whatever happens to the processes in between.
"""

from __future__ import annotations

import datetime as dt
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

BEGIN = dt.datetime(2024, 3, 1, 12, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)
WITHIN, LATENESS = 30 * SECOND, 40 * SECOND
SIZE, PERIOD, LONG, GAP = 10 * SECOND, 10 * SECOND, 30 * SECOND, 2 * SECOND
LONGEST = 120 * SECOND
STEP = dt.timedelta(milliseconds=100)  # of the arrival clock, from message to message
FLUSH = 40  # messages in the end from an hour later: they let the arrival clock pass every window before

SPEC = """
spec: 1
pipeline: events
parameters:
  subscription: {type: string}
contract:
  key: [id]
  event_time: at
  allowed_skew: 5s
  columns:
    id: {type: int64, required: true}
    version: {type: int64, required: true}
    at: {type: timestamp, required: true}
    user: {type: string, required: true}
    visitor: {type: int32, required: true}
    cents: {type: int64, min: 0}
sources:
  stream: [{pubsub: "${subscription}", format: json, arrival: {attribute: arrived_at}, ack_deadline: 10s}]
transform:
  - filter: "user <> 'nobody'"
deduplicate: {within: 30s, order_by: version}
aggregates:
  by_user:
    windowing: {type: fixed, size: 10s, allowed_lateness: 40s}
    trigger: {early: 2s}
    group_by: [user]
    measures: {n: count(), total: sum(cents), top: max(cents)}
  slides:
    windowing: {type: sliding, size: 30s, period: 10s, allowed_lateness: 40s}
    group_by: [user]
    measures: {n: count(), total: sum(cents)}
  visits:
    windowing: {type: sessions, gap: 2s, max_length: 2m, allowed_lateness: 40s}
    trigger: {early: 2s}
    group_by: [visitor]
    measures: {n: count(), total: sum(cents)}
sinks:
  - {from: rows, parquet: {path: lake/rows, partition_by: [day(at)]}}
  - {from: by_user, parquet: {path: lake/by_user}}
  - {from: slides, parquet: {path: lake/slides}}
  - {from: visits, parquet: {path: lake/visits}}
  - {from: dead_letters, parquet: {path: lake/dead}}
"""


class Row(NamedTuple):
    """A row as it is published."""

    id: int
    version: int
    at: dt.datetime
    user: str
    visitor: int
    cents: int


@dataclass(frozen=True)
class Message:
    """A message: its bytes, when it arrived, and its row unless it is broken."""

    data: bytes
    arrived: dt.datetime
    row: Row | None = None

    def published(self) -> dict[str, Any]:
        return {"data": self.data, "attributes": {"arrived_at": self.arrived.isoformat()}}


def messages(seed: int, count: int, *, begin: dt.datetime = BEGIN) -> list[Message]:
    """`count` messages in the order of their arrival, and `FLUSH` more from an hour later."""
    made = list(_messages(random.Random(seed), count, begin))
    return made + [_of_row(_flush(n, count), begin + count * STEP + 3_600 * SECOND + n * STEP) for n in range(FLUSH)]


def _messages(chance: random.Random, count: int, begin: dt.datetime) -> Iterator[Message]:
    known: list[Message] = []
    for n in range(count):
        arrived = begin + n * STEP
        which = chance.random()
        if which < 0.02:
            yield Message(chance.choice([b'{"id": %d, "version"', b'{"id": "n%d"}', b"\xff%d", b"[%d]"]) % n, arrived)
        elif which < 0.05 and known:
            yield known[-chance.randrange(min(40, len(known))) - 1]  # the publisher's own retry: the same once more
        elif which < 0.12 and known:
            yield _corrected(chance, n, known[-chance.randrange(min(40, len(known))) - 1], arrived)
        else:
            known.append(_of_row(_row(chance, n, arrived), arrived))
            yield known[-1]


def _row(chance: random.Random, n: int, arrived: dt.datetime) -> Row:
    late = chance.choices([chance.uniform(0, 3), chance.uniform(3, 25), chance.uniform(25, 120)], [80, 15, 5])[0]
    cents = -1 if chance.random() < 0.01 else chance.randrange(10_000)
    return Row(n, n, _millis(arrived - late * SECOND), chance.choice(["ann", "bob", "cy", "nobody"]), chance.randrange(40), cents)


def _corrected(chance: random.Random, n: int, of: Message, arrived: dt.datetime) -> Message:
    """Another version of a row, better or worse, in another group and perhaps another window; no closed window changes: the row is in time for all, or too late."""
    row = of.row
    if row is None or 20 * SECOND < of.arrived - row.at < 60 * SECOND:
        return _of_row(_row(chance, n, arrived), arrived)
    version = n if chance.random() < 0.7 else -n
    at = _millis(min(arrived, row.at + chance.uniform(-5, 5) * SECOND))
    return _of_row(Row(row.id, version, at, chance.choice(["ann", "bob", "cy"]), chance.randrange(40), chance.randrange(10_000)), arrived)


def _flush(n: int, count: int) -> Row:
    return Row(count + n, 0, BEGIN + count * STEP + 3_600 * SECOND, "flush", 1_000 + n, 1)


def _of_row(row: Row, arrived: dt.datetime) -> Message:
    return Message(json.dumps({**row._asdict(), "at": row.at.isoformat()}).encode(), arrived, row)


def _millis(at: dt.datetime) -> dt.datetime:
    return at.replace(microsecond=at.microsecond // 1_000 * 1_000)


# ── what must come of it ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

Arrived = tuple[Row, dt.datetime]
Pane = tuple[Any, ...]


@dataclass(frozen=True)
class Truth:
    """`rows` with their arrivals, each once; final panes by aggregate; the bytes of broken messages; how many rows are too late for each."""

    rows: Counter[Arrived]
    panes: dict[str, list[Pane]]
    broken: Counter[bytes]
    late: dict[str, int]


def truth(published: Iterable[Message]) -> Truth:
    """What must be in the views in the end."""
    sent = list(published)
    kept = [m for m in sent if m.row is None or m.row.user != "nobody"]  # filtered before any check
    broken = [m for m in kept if m.row is None or m.row.cents < 0]
    stay = unique([(m.row, m.arrived) for m in kept if m.row is not None and m.row.cents >= 0])
    fixed, slides, visits = _in_time(stay, lambda r: _floor(r.at) + SIZE), _in_time(stay, _first_end), _in_time(stay, lambda r: r.at + GAP)
    panes = {"by_user": _fixed(fixed), "slides": _slides(slides), "visits": _visits(visits)}
    late = {"by_user": len(stay) - len(fixed), "slides": len(stay) - len(slides), "visits": len(stay) - len(visits)}
    return Truth(Counter(stay), panes, Counter(m.data for m in broken), late)


def unique(rows: Sequence[Arrived]) -> list[Arrived]:
    """Without rows of which a better copy lies within `WITHIN`; of copies that are alike, one."""
    by_key: dict[int, set[Arrived]] = defaultdict(set)
    for arrived in rows:
        by_key[arrived[0].id].add(arrived)
    return [a for copies in by_key.values() for a in copies if not any(_beats(b[0], a[0]) for b in copies)]


def _beats(better: Row, row: Row) -> bool:
    return better.version > row.version and abs(better.at - row.at) <= WITHIN


def _in_time(rows: Iterable[Arrived], end: Any) -> list[Row]:
    return [row for row, arrived in rows if arrived <= end(row) + LATENESS]


def _floor(at: dt.datetime) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(at.timestamp() // 10) * 10, dt.UTC)


def _first_end(row: Row) -> dt.datetime:
    """The end of the earliest sliding window that holds the row."""
    return _floor(row.at) - 2 * PERIOD + LONG


def _fixed(rows: Iterable[Row]) -> list[Pane]:
    found: dict[tuple[str, dt.datetime], list[int]] = defaultdict(list)
    for row in rows:
        found[row.user, _floor(row.at)].append(row.cents)
    return sorted((user, start, start + SIZE, len(c), sum(c), max(c)) for (user, start), c in found.items())


def _slides(rows: Iterable[Row]) -> list[Pane]:
    found: dict[tuple[str, dt.datetime], list[int]] = defaultdict(list)
    for row in rows:
        for back in range(3):
            found[row.user, _floor(row.at) - back * PERIOD].append(row.cents)
    return sorted((user, start, start + LONG, len(c), sum(c)) for (user, start), c in found.items())


def _visits(rows: Iterable[Row]) -> list[Pane]:
    by_visitor: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_visitor[row.visitor].append(row)
    return sorted(pane for visitor, mine in by_visitor.items() for pane in _sessions(visitor, sorted(mine, key=lambda r: r.at)))


def _sessions(visitor: int, rows: Sequence[Row]) -> Iterator[Pane]:
    session: list[Row] = []
    for row in [*rows, None]:
        if session and (row is None or row.at - session[-1].at >= GAP):
            yield visitor, session[0].at, session[-1].at + GAP, len(session), sum(r.cents for r in session)
            assert session[-1].at - session[0].at < LONGEST, "longer sessions are cut, which this does not do"
            session = []
        if row is not None:
            session.append(row)
