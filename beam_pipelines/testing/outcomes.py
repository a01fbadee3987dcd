"""What came of a stream's input: the form in which a batch and a stream over the same messages are compared, message by message."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.schema import POSITION
from beam_pipelines.sinks.ledger import Line
from beam_pipelines.sinks.results import RunResults

LETTER = ("position", "stage", "reason", "message")
"""What tells dead letters apart."""
Pane = tuple[str, dt.datetime, dt.datetime, tuple[Any, ...]]
"""Aggregate, window, group."""
Stored = Mapping[str, Sequence[dict[str, Any]]]
"""What stands in each output, as readers see it."""


@dataclass(frozen=True)
class DoorCounts:
    """Numbers of messages by door; dead letters by `stage:REASON`."""

    read: int
    written: int
    dead: int
    duplicate: int
    filtered: int
    late: int
    reasons: Mapping[str, int]


@dataclass
class Outcome:
    """`rows` and `letters` by number of the message; `panes` the final one of each window and group."""

    rows: dict[int, Any]
    letters: dict[int, tuple[str, ...]]
    panes: dict[Any, dict[str, Any]]
    ledger: DoorCounts
    spoken: dict[int, tuple[Any, ...]] = field(default_factory=dict)  # letters whole: message, failures, raw
    wrong: list[str] = field(default_factory=list)  # a run that failed, a ledger that does not balance, what stands there twice

    def door(self, number: int) -> str:
        """Where a message left, in a word or two."""
        letters = self.letters.get(number, ())
        if number in self.rows:
            return " ".join(["written", *(text.partition(":")[2] for text in letters)])
        return " ".join(letters) or "dropped"


def ledger_of(lines: Sequence[Line], reasons: Mapping[str, int], *, output: str = "rows") -> DoorCounts:
    """The ledger of a run or a stream, over all sources."""
    mine = [line for line in lines if line.source]
    late = sum(sum(line.late.values()) for line in mine)
    read, dead, duplicate, filtered = (sum(getattr(line, door) for line in mine) for door in ("read", "dead", "duplicate", "filtered"))
    written = sum(line.written.get(output, 0) for line in mine)
    return DoorCounts(read, written, dead, duplicate, filtered, late, dict(reasons))


def counts(some_left_out: bool) -> Iterator[tuple[str, Callable[[DoorCounts], Any]]]:
    """What of two ledgers must be equal. Where it is not known which of some copies are duplicates, they are one or the other."""
    yield "read", lambda x: x.read
    yield "dead", lambda x: x.dead
    yield "filtered", lambda x: x.filtered
    yield "written or duplicate", lambda x: x.written + x.duplicate
    if not some_left_out:
        yield "duplicate", lambda x: x.duplicate
        yield "late", lambda x: x.late
        yield "reasons", lambda x: dict(x.reasons)


def letters_of(letters: Sequence[Mapping[str, Any]]) -> dict[int, tuple[Any, ...]]:
    """What dead letters say of each message: `stage:REASON`, message, failures, raw bytes."""
    spoken: dict[int, list[tuple[Any, ...]]] = {}
    for letter in sorted(letters, key=lambda x: tuple(str(x[n]) for n in LETTER)):
        failures = tuple((f["name"], f["message"]) for f in letter["failures"])
        spoken.setdefault(letter["position"], []).append(
            (f"{letter['stage']}:{letter['reason']}", letter["message"], failures, _raw(letter))
        )
    return {number: tuple(said) for number, said in spoken.items()}


def _raw(letter: Mapping[str, Any]) -> Any:
    """Its bytes; of a row that had been read, its columns, whatever their order."""
    raw = letter["raw"]
    return raw if raw is None or letter["raw_format"] != "row" else json.dumps(json.loads(raw), sort_keys=True)


def panes_of(found: Stored, aggregates: Mapping[str, AggregateSpec]) -> Iterator[tuple[Pane, dict[str, Any]]]:
    """The panes among what is stored."""
    for name, aggregate in aggregates.items():
        for p in found[name]:
            yield (name, p["_window_start"], p["_window_end"], tuple(p[g] for g in aggregate.group_by)), p


def twice(found: Stored, aggregates: Mapping[str, AggregateSpec]) -> list[str]:
    """What is stored more than once, a sentence each: the row of a message, the pane of a window and group."""
    there = Counter(f"row of message {r[POSITION]}" for r in found["rows"])
    there += Counter(pane_name(pane) for pane, _ in panes_of(found, aggregates))
    return [f"{what} is there {n} times" for what, n in there.items() if n > 1]


def failed(record: RunResults) -> list[str]:
    """Why a batch is not to be compared, a sentence each."""
    return [*record.failures, *([] if record.status == "success" else [f"the run is {record.status}"])]


def unlike(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None, names: Sequence[str]) -> tuple[Any, Any]:
    """Of two rows or panes that differ in `names`, these; a whole one where the other is not there."""
    if a is None or b is None:
        return a, b
    return {n: a.get(n) for n in names}, {n: b.get(n) for n in names}


def unlike_letters(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, Any]:
    """Of letters for the same reasons the parts that differ: message, failures, raw."""
    pairs = [(x, y) for mine, other in zip(a, b, strict=True) for x, y in zip(mine, other, strict=True) if x != y]
    return "; ".join(str(x) for x, _ in pairs), "; ".join(str(y) for _, y in pairs)


def described(value: Any) -> str:
    """A row, a pane, letters or a number, for people."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return " ".join(f"{n}={v}" for n, v in value.items()) or "nothing"
    return str(value)


def pane_name(pane: Pane) -> str:
    """Its aggregate, window and group, for people."""
    name, start, end, group = pane
    of = f" of {', '.join(map(str, group))}" if group else ""
    return f"{name}, pane [{clock(start)}, {clock(end)}){of}"


def clock(at: dt.datetime) -> str:
    """A moment of a timeline, for people, in UTC."""
    return at.astimezone(dt.UTC).strftime("%m-%d %H:%M:%S")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells as lines, each column as wide as it has to be."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
