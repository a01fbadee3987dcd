"""The rules in plain Python, row by row, without the product's kernels: by which door each message leaves, and what every window shows.

A batch and a stream that are wrong in the same way agree with each other; they do not agree with this.

    decode ─▶ conform ─▶ filter, set ─▶ validate ─▶ pairwise duplicates ─▶ rows ─▶ windows: TIME, LATE, EXPRESSION ─▶ measures
"""

from __future__ import annotations

import datetime as dt
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.duplicates import CONTENT, comparison, digests
from beam_pipelines.arrow.schema import PROVENANCE, UTC_MICROS, provenance
from tests.parity.outcomes import DoorCounts, Outcome, Window
from tests.parity.specs import SUBSCRIPTION, Setting
from tests.parity.timelines import NEVER, Message, micros

MINUTE = 60_000_000
SIZE, LONG, PERIOD, GAP, LONGEST = 30 * MINUTE, 60 * MINUTE, 20 * MINUTE, 15 * MINUTE, 60 * MINUTE
SKEW = 30 * MINUTE
_ZONE = ZoneInfo("Europe/Berlin")


@dataclass(frozen=True)
class Row:
    """A valid row; times in microseconds since 1970."""

    number: int
    arrival: int
    id: int
    at: int | None
    kind: str | None
    price: Decimal | None
    n: int | None
    m: int | None
    version: int | None

    @property
    def shown(self) -> tuple[Any, ...]:
        """As it stands in `rows`."""
        return (self.id, self.at, self.kind, self.price, self.n, self.m, self.version, None if self.n is None else 60 // self.n)


def ruled(messages: Sequence[Message], setting: Setting, *, compared_late: int | None = None) -> Outcome:
    """What must come of the messages. With `compared_late` (microseconds) rows that are later than that, or timeless, are not compared with
    copies: the stream's rule."""
    letters: dict[int, tuple[str, ...]] = {}
    filtered, valid = 0, list[Row]()
    for message in messages:
        found = door_of(message)
        if isinstance(found, Row):
            valid.append(found)
        elif found == "":
            filtered += 1
        else:
            letters[message.number] = (found,)
    dead = len(letters)
    stay = unique(valid, setting, compared_late)
    aggregated, late = [], 0
    for row in stay:
        reason = _too_late(row, setting)
        if reason:
            late += 1
            letters[row.number] = (f"aggregate:{reason}",)
        else:
            aggregated.append(row)
    reasons = Counter(text for texts in letters.values() for text in texts)
    ledger = DoorCounts(len(messages), len(stay), dead, len(valid) - len(stay), filtered, late, dict(reasons))
    panes = {(window, group): _measures(rows) for window, group, rows in _windows(aggregated, setting)}
    return Outcome({row.number: row.shown for row in stay}, letters, panes, ledger)


def valid_rows(messages: Sequence[Message]) -> list[Row]:
    """The messages that are rows, duplicates among them."""
    return [row for row in map(door_of, messages) if isinstance(row, Row)]


# ── row by row ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def door_of(message: Message) -> Row | str:
    """The valid row, or `stage:REASON` of its letter, or "" where it is filtered."""
    if isinstance(message.record, str):
        return "decode:DECODE"
    if isinstance(message.get("n"), str):
        return "decode:TYPE"
    price = None if message.get("price") is None else Decimal(str(message.get("price")))
    if message.get("at") == NEVER or (price is not None and price != round(price, 2)):
        return "conform:CAST"
    if message.get("kind") == "none":
        return ""
    if message.get("n") == 0:
        return "transform:EXPRESSION"
    at = None if message.get("at") is None else micros(message.get("at"))
    if message.get("id") is None:
        return "validate:REQUIRED"
    if message.get("kind") == "c" or (price is not None and price >= 1000):
        return "validate:CHECK"
    if at is not None and at - micros(message.arrival) > SKEW:
        return "validate:FUTURE"
    return Row(
        message.number, micros(message.arrival), message.get("id"), at, message.get("kind"), price, message.get("n"), message.get("m"),
        message.get("version"),
    )  # fmt: skip


def _too_late(row: Row, setting: Setting) -> str:
    """Why the row is in no window; "" if it is."""
    if row.at is None:
        return "TIME"
    if row.arrival > own_end(row.at, setting) + setting.closes_after * MINUTE:
        return "LATE"
    return "EXPRESSION" if row.m == 0 else ""


def own_end(at: int, setting: Setting) -> int:
    """The end of the row's window by itself, which says whether it is too late."""
    if setting.kind == "sessions":
        return at + GAP
    return min(end for _, end in windows_of(at, setting))


def windows_of(at: int, setting: Setting) -> list[Window]:
    """The windows that hold an instant; sessions depend on other rows and have none here."""
    if setting.kind == "fixed":
        return [(at // SIZE * SIZE, at // SIZE * SIZE + SIZE)]
    if setting.kind == "sliding":
        newest = at // PERIOD * PERIOD
        return [(start, start + LONG) for start in range(newest, at - LONG, -PERIOD)]
    day = dt.datetime.fromtimestamp(at / 1e6, _ZONE).date()
    first, last = (dt.datetime.combine(d, dt.time(), _ZONE).astimezone(dt.UTC) for d in (day, day + dt.timedelta(days=1)))
    return [(round(first.timestamp()) * 1_000_000, round(last.timestamp()) * 1_000_000)]


# ── copies ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def unique(rows: Sequence[Row], setting: Setting, compared_late: int | None) -> list[Row]:
    """Rows of which no better copy lies within reach."""
    better = better_copies(rows, setting, compared_late)
    return [row for row in rows if not better.get(row.number)]


def better_copies(rows: Sequence[Row], setting: Setting, compared_late: int | None) -> dict[int, list[int]]:
    """Numbers of the rows that are compared, each with those of its better copies."""
    if setting.within is None:
        return {}
    compared = [r for r in rows if compared_late is None or (r.at is not None and r.arrival - r.at <= compared_late)]
    rank, reach = _ranks(compared, setting), setting.within * MINUTE

    def beats(copy: Row, row: Row) -> bool:
        return copy.id == row.id and _near(copy.at, row.at, reach) and rank[copy.number] < rank[row.number]

    return {row.number: [copy.number for copy in compared if beats(copy, row)] for row in compared}


def _near(a: int | None, b: int | None, reach: int) -> bool:
    return a is b if a is None or b is None else abs(a - b) <= reach


def _ranks(rows: Sequence[Row], setting: Setting) -> dict[int, int]:
    """Numbers of the rows to their place, the best first: `order_by`, then the larger digest of the content, then the smaller number."""
    content = _digests(rows)
    oldest = setting.keep == "oldest"

    def order(row: Row) -> tuple[bool, int]:
        by = row.version if setting.order_by == "version" else row.arrival
        return (by is None, 0 if by is None else by if oldest else -by)

    by_number = sorted(rows, key=lambda r: r.number)
    by_content = sorted(by_number, key=lambda r: content[r.number], reverse=True)
    return {row.number: place for place, row in enumerate(sorted(by_content, key=order))}


_KINDS = {
    "id": "int64",
    "at": "timestamp",
    "kind": "string",
    "price": "decimal(10,2)",
    "n": "int32",
    "m": "int32",
    "version": "int32",
}
_TYPES = [pa.int64(), UTC_MICROS, pa.string(), pa.decimal128(10, 2), pa.int32(), pa.int32(), pa.int32()]
_CONTRACT = Contract(key=("id",), event_time="at", columns={name: Column(type=kind) for name, kind in _KINDS.items()})


def _digests(rows: Sequence[Row]) -> dict[int, bytes]:
    """Of copies that are alike in order, a hash decides; which one is no rule but a choice, and taken from the product."""
    numbers = pa.array([r.number for r in rows], pa.int64())
    columns = [pa.array([getattr(r, name) for r in rows], kind) for name, kind in zip(_KINDS, _TYPES, strict=True)]
    batch = pa.record_batch([*provenance(SUBSCRIPTION, numbers), *columns], names=[*PROVENANCE.names, *_KINDS])
    return dict(zip(numbers.to_pylist(), digests(batch, comparison(contract=_CONTRACT)).column(CONTENT).to_pylist(), strict=True))


# ── windows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _windows(rows: Sequence[Row], setting: Setting) -> Iterator[tuple[Window, str | None, list[Row]]]:
    for group in {r.kind for r in rows}:
        mine = sorted((r for r in rows if r.kind == group), key=lambda r: _at(r))
        if setting.kind == "sessions":
            for window, some in _sessions(mine):
                yield window, group, some
            continue
        for window in {w for r in mine for w in windows_of(_at(r), setting)}:
            yield window, group, [r for r in mine if window[0] <= _at(r) < window[1]]


def _at(row: Row) -> int:
    assert row.at is not None
    return row.at


def _sessions(rows: Sequence[Row]) -> Iterator[tuple[Window, list[Row]]]:
    """Of rows in order: cut at pauses, and at multiples of the longest where a session is that long."""
    sessions: list[list[Row]] = []
    for row in rows:
        if sessions and _at(row) - _at(sessions[-1][-1]) < GAP:
            sessions[-1].append(row)
        else:
            sessions.append([row])
    for session in sessions:
        first, last = _at(session[0]), _at(session[-1])
        if last - first < LONGEST:
            yield (first, last + GAP), session
            continue
        for cell in sorted({_at(r) // LONGEST for r in session}):
            piece = [r for r in session if _at(r) // LONGEST == cell]
            end = _at(piece[-1]) + GAP
            goes_on = cell < last // LONGEST
            yield (_at(piece[0]), min(end, (cell + 1) * LONGEST) if goes_on else end), piece


def _measures(rows: Sequence[Row]) -> dict[str, Any]:
    """All measures of one pane."""
    prices, numbers = _known(r.price for r in rows), _known(r.n for r in rows)
    few = _known(r.n for r in rows if r.price is not None and r.price < 2)
    divided = [60 // r.m for r in rows if r.m]
    return {
        "rows_": len(rows),
        "priced": len(prices),
        "total": sum(prices) if prices else None,
        "few": min(numbers, default=None),
        "most": max(prices, default=None),
        "mean": float(sum(prices) / len(prices)) if prices else None,
        "spread": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "seen": len(set(_known(r.version for r in rows))),
        "opened": min(((_at(r), r.price) for r in rows if r.price is not None), default=(0, None))[1],
        "closed": max(((_at(r), r.n) for r in rows if r.n is not None), default=(0, None))[1],
        "middle": float(sorted(prices)[math.floor(0.5 * (len(prices) - 1))]) if prices else None,
        "cheap": sum(few) if few else None,
        "risky": sum(divided) if divided else None,
    }


def _known(values: Iterable[Any]) -> list[Any]:
    return [v for v in values if v is not None]
