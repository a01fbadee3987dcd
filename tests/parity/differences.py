"""Where a stream may differ from a batch over the same messages: all of it, each with its reason. What is not written here is a failure.

    UNJUDGED   docs/data-model.md, "Who is judged"      a row later than `compared_late`, or without an event time, is compared with no copy by a stream
    FORGOTTEN  docs/data-model.md, "What is kept"       copies are forgotten `within` + lateness behind the watermark; one that comes from behind it misses them
    STALE      docs/stream.md, "Stale"                  a row or correction for a window that has closed changes no pane; the window is named, for a batch

UNJUDGED is a rule of its own and exact: `rules.ruled(..., compared_late=...)` says what the stream must give. The other two depend on the watermark. What they
leave out is computed from the timeline, not taken from what the stream says of itself: a window that it calls stale and that is not one of those must be right
all the same, and `unjustified` refuses it if nothing at all came behind its close.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.parity.outcomes import Outcome, Pane
from tests.parity.rules import GAP, MINUTE, Row, better_copies, valid_rows, windows_of
from tests.parity.specs import Setting
from tests.parity.timelines import Timeline, micros


@dataclass(frozen=True)
class Excused:
    """Messages of which it is not known which are duplicates, and panes that may be old."""

    messages: frozenset[int]
    panes: frozenset[Pane]


def excused(timeline: Timeline, setting: Setting, compared_late: int, shown: Iterable[Pane]) -> Excused:
    """What the stream's watermark excuses; `shown` are the panes of all that are compared."""
    rows = valid_rows(timeline.messages)
    forgotten = _forgotten(timeline, rows, setting, compared_late)
    spans = {span for row in rows if row.number in forgotten for span in _spans(row, setting)}
    spans |= set(_stale(timeline, rows, setting, compared_late))
    return Excused(frozenset(forgotten), frozenset(_touched(set(shown), spans, sessions=setting.kind == "sessions")))


def unjustified(timeline: Timeline, setting: Setting, compared_late: int, stream: Outcome) -> list[int]:
    """Starts of windows that the stream calls stale, though none of their rows, nor a better copy of one, came behind their close."""
    rows = valid_rows(timeline.messages)
    known = {start for start, _ in _stale(timeline, rows, setting, compared_late)}
    by_number = {row.number: row for row in rows}
    for mark, message in timeline.deliveries:  # also what comes once more
        if message.number in by_number:
            known |= {start for start, end in _spans(by_number[message.number], setting) if _closed(end, mark, setting)}
    return sorted(set(stream.stale) - known)


def _stale(timeline: Timeline, rows: Sequence[Row], setting: Setting, compared_late: int) -> Iterator[tuple[int, int]]:
    """Windows of rows that came, or of which a better copy came, when the windows had closed."""
    first: dict[int, int] = {}
    for mark, message in timeline.deliveries:
        first.setdefault(message.number, mark)
    better = better_copies(rows, setting, compared_late)
    for row in rows:
        mark = max(first[number] for number in (row.number, *better.get(row.number, ())))
        yield from (span for span in _spans(row, setting) if _closed(span[1], mark, setting))


def _closed(end: int, mark: int, setting: Setting) -> bool:
    """Whether the window that ends there may have closed when the watermark was there."""
    return end + setting.closes_after * MINUTE <= micros(mark)


def _spans(row: Row, setting: Setting) -> list[tuple[int, int]]:
    """Its windows; of a session that which the row would be alone."""
    if row.at is None:
        return []
    return [(row.at, row.at + GAP)] if setting.kind == "sessions" else windows_of(row.at, setting)


def _forgotten(timeline: Timeline, rows: Iterable[Row], setting: Setting, compared_late: int) -> set[int]:
    """Rows that came, behind the watermark, when copies within their reach may have been forgotten, and these copies."""
    if setting.within is None:
        return set()
    reach = setting.within * MINUTE
    judged = {row.number: (row, row.at) for row in rows if row.at is not None and row.arrival - row.at <= compared_late}
    held: dict[int, tuple[Row, int]] = {}
    found: set[int] = set()
    for mark, message in timeline.deliveries:
        if message.number not in judged or message.number in held:
            continue
        row, at = judged[message.number]
        gone = [
            c for c, then in held.values() if c.id == row.id and abs(then - at) <= reach and then + reach + compared_late < micros(mark)
        ]
        found |= {row.number, *(c.number for c in gone)} if gone else set()
        held[row.number] = row, at
    return found


def _touched(panes: set[Pane], spans: set[tuple[int, int]], *, sessions: bool) -> set[Pane]:
    """Panes of these windows; of sessions all that overlap, touch, or hang together with such, because one row joins or parts them."""
    starts = {start for start, _ in spans}
    if not sessions:
        return {pane for pane in panes if pane[0][0] in starts}
    found: set[Pane] = set()
    while True:
        new = {p for p in panes - found if any(p[0][0] <= end and start <= p[0][1] for start, end in spans)}
        if not new:
            return found
        found |= new
        spans = spans | {window for window, _ in new}
