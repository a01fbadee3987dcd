"""What a test plays: messages, when each one arrived and when it is handed out, in which bundles, and how far the watermark is by then.

    bundle   ● ● ●   ●  ● ●          handed out together, as one or two batches
    arrival  what the message says; a message may be handed out long after it (`held`), again, or as a copy under another id
    watermark  patient: waits for every message that is still to come.  else: goes with the clock, past what is held

Minutes are counted from `BEGIN`, half an hour before midnight in Berlin on the night in which clocks go forward.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from beam_pipelines.testing.timeline import Delivery, Step

BEGIN = dt.datetime(2026, 3, 28, 22, 30, tzinfo=dt.UTC)
BROKEN = ('{"id": 1', "nonsense", "[1]", '{"id": 1, "id": 2}', '{"id": NaN}')
NEVER = "soon"
"""An event time that is none."""

Record = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Message:
    """A message under its `number`; `record` are its fields, or the text of what is no record. `arrival` and `at` in minutes."""

    number: int
    arrival: int
    record: Record | str

    def get(self, name: str) -> Any:
        """A field as it was sent; None where it is not there."""
        return None if isinstance(self.record, str) else dict(self.record).get(name)

    @property
    def data(self) -> bytes:
        """Its bytes."""
        if isinstance(self.record, str):
            return self.record.encode()
        fields = dict(self.record)
        if isinstance(fields.get("at"), int):
            fields["at"] = instant(fields["at"]).isoformat()
        return json.dumps(fields).encode()


@dataclass(frozen=True)
class Bundle:
    """Messages that are handed out together when the watermark (minutes) is there; `cut`: the first so many are a batch of their own."""

    watermark: int
    messages: tuple[Message, ...]
    cut: int = 0

    @property
    def batches(self) -> list[tuple[Message, ...]]:
        """The messages as batches, none of them empty."""
        return [part for part in (self.messages[: self.cut], self.messages[self.cut :]) if part]


@dataclass(frozen=True, repr=False)
class Timeline:
    """A stream's input. `shuffled` are all its messages, those that come again included, in another order and in other batches: a batch's input;
    empty: the batch reads what the stream archived."""

    bundles: tuple[Bundle, ...]
    shuffled: tuple[tuple[Message, ...], ...]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What Hypothesis prints of it."""
        printer.text(f"<{len(self.messages)} messages in {len(self.bundles)} bundles; the failure shows them as a table>")

    @property
    def deliveries(self) -> Iterator[tuple[int, Message]]:
        """Watermark and message, as they are handed out."""
        return ((b.watermark, m) for b in self.bundles for m in b.messages)

    @property
    def messages(self) -> list[Message]:
        """Each message once."""
        return sorted({m.number: m for _, m in self.deliveries}.values(), key=lambda m: m.number)


def delivered(messages: Sequence[Message]) -> tuple[Delivery, ...]:
    """Messages as a pull gives them."""
    return tuple(Delivery(m.number, m.data, micros(m.arrival), str(m.number)) for m in messages)


def steps(timeline: Timeline) -> list[Step]:
    """The timeline as the testing kit plays it."""
    return [Step(micros(b.watermark), tuple(map(delivered, b.batches))) for b in timeline.bundles]


def instant(minutes: int) -> dt.datetime:
    """The moment so many minutes after the beginning."""
    return BEGIN + dt.timedelta(minutes=minutes)


def micros(minutes: int) -> int:
    """The same in microseconds since 1970."""
    return round(instant(minutes).timestamp()) * 1_000_000


# ── how they are drawn ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
# What is good stands first and often: Hypothesis shrinks to what is first, and a stream of nothing but broken rows tests little.

LAGS = (0, 5, 0, 10, 35, 0, 65, -20, 150, 5, 400, -90)
"""Minutes from event time to arrival: none, late, later than any window waits, ahead, further ahead than the contract allows."""
SPOILT: tuple[dict[str, Any], ...] = (
    {"at": None}, {"at": NEVER}, {"id": None}, {"kind": "none"}, {"kind": "c"}, {"price": 5000}, {"price": 1.005}, {"n": 0}, {"n": "x"},
    {"m": 0}, {"m": 0}, {"n": 0, "kind": "none"}, {"id": None, "price": 5000}, {"kind": None, "m": None},
)  # fmt: skip
"""What is wrong with a row: each leaves by a door of its own, the last ones by the first of two, or not at all."""

_records = st.fixed_dictionaries(
    {
        "id": st.integers(1, 4),
        "kind": st.sampled_from(["a", "b"]),
        "price": st.sampled_from([1, 2.5, 3, 0.25, 40, None]),
        "n": st.sampled_from([1, 2, 3, 4, None]),
        "m": st.sampled_from([1, 2]),
        "version": st.sampled_from([1, 2, 3, None]),
        "lag": st.sampled_from(LAGS),
    }
)
_spoilt = st.sampled_from([{}] * 2 * len(SPOILT) + list(SPOILT))
_held = st.sampled_from([0] * 7 + [5, 35, 60, 600])
_kinds = {
    "row": st.tuples(st.just("row"), st.builds(lambda fields, spoilt: fields | spoilt, _records, _spoilt), _held),
    "copy": st.tuples(st.just("copy"), st.integers(1, 12), _held),
    "again": st.tuples(st.just("again"), st.integers(1, 12), st.just(0)),
    "broken": st.tuples(st.just("broken"), st.sampled_from(BROKEN), st.just(0)),
}
_items = st.sampled_from(["row"] * 10 + ["copy"] * 3 + ["again"] * 2 + ["broken"]).flatmap(_kinds.__getitem__)
_steps = st.sampled_from([5, 0, 5, 10, 20, 5, 60, 240])


@st.composite
def timelines(draw: st.DrawFn, bundles: int = 10, *, least: int = 3) -> Timeline:
    """Timelines of at most so many bundles, with a message at least."""
    drawn = draw(st.lists(st.tuples(_steps, st.lists(_items, min_size=1, max_size=6), st.integers(0, 3)), min_size=least, max_size=bundles))
    patient = draw(st.booleans())
    made = list(_made(drawn))
    assume(made)  # copies of nothing are left out
    marks = _patient(made) if patient else [clock for clock, _, _ in made]
    found = tuple(Bundle(mark, messages, cut) for mark, (_, messages, cut) in zip(marks, made, strict=True))
    everything = [m for bundle in found for m in bundle.messages]
    order = draw(st.permutations(everything))
    width = draw(st.sampled_from([0, len(order), 3]))  # of the batches; 0: the stream's own archive
    return Timeline(found, tuple(tuple(order[i : i + width]) for i in range(0, len(order), width)) if width else ())


def _made(drawn: Sequence[tuple[int, list[tuple[str, Any, int]], int]]) -> Iterator[tuple[int, tuple[Message, ...], int]]:
    """(clock, messages, cut) of each bundle."""
    clock, known = 0, list[Message]()
    for step, items, cut in drawn:
        clock += step
        out = []
        for what, value, held in items:
            if what in ("copy", "again") and not known:
                continue
            message = _message(len(known), clock - held, what, value, known)
            out.append(message)
            known += [message] if what != "again" else []
        if out:
            yield clock, tuple(out), cut


def _message(number: int, arrival: int, what: str, value: Any, known: Sequence[Message]) -> Message:
    if what == "broken":
        return Message(number, arrival, value)
    if what == "row":
        fields = {"id": None, "at": arrival - value["lag"]} | {k: v for k, v in value.items() if k != "lag"}
        return Message(number, arrival, tuple(fields.items()))
    earlier = known[-min(value, len(known))]
    return earlier if what == "again" else Message(number, arrival, earlier.record)


def _patient(made: Sequence[tuple[int, tuple[Message, ...], int]]) -> list[int]:
    """The earliest arrival of what is still to come, bundle by bundle; what comes again does not hold it."""
    marks, seen, ahead = [], set[int](), []
    for _, messages, _ in made:
        ahead.append(min((m.arrival for m in messages if m.number not in seen), default=None))
        seen |= {m.number for m in messages}
    for i in range(len(made)):
        rest = [a for a in ahead[i:] if a is not None]
        marks.append(min(rest, default=made[i][0]))
    return marks
