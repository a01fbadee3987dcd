"""Whether a batch, a stream and the rules agree on a timeline; and if they do not, the timeline as a table, with what each said of every message."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any

from beam_pipelines.testing.outcomes import aligned, counts, described, unlike, unlike_letters
from tests.parity.differences import Excused, excused, unjustified
from tests.parity.outcomes import Outcome, Pane, same_measures
from tests.parity.rules import ruled
from tests.parity.specs import Setting
from tests.parity.timelines import NEVER, Message, Timeline, instant

_SHOWN = 12


def agree(timeline: Timeline, setting: Setting, batch: Outcome, stream: Outcome, *, compared_late: int) -> None:
    """Raises AssertionError where batch, stream and rules disagree beyond what `differences` allows; it says how, and shows the timeline."""
    rules, streamed = ruled(timeline.messages, setting), ruled(timeline.messages, setting, compared_late=compared_late)
    left_out = excused(timeline, setting, compared_late, [*batch.panes, *stream.panes, *rules.panes, *streamed.panes])
    nothing = Excused(frozenset(), frozenset())
    found = [f"batch: {text}" for text in batch.wrong] + [f"stream: {text}" for text in stream.wrong]
    found += _apart("batch", batch, "rules", rules, nothing)
    found += _apart("stream", stream, "rules", streamed, left_out)
    found += _apart("batch", batch, "stream", stream, _ruled_apart(left_out, rules, streamed))
    found += [
        f"stream: the window of {_time(at)} is called stale, though nothing came behind its close"
        for at in unjustified(timeline, setting, compared_late, stream)
    ]
    if found:
        raise AssertionError("\n".join(["", *found[:_SHOWN], *([f"... and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []), "",
                                        *table(timeline, setting, batch, stream, rules, streamed)]))  # fmt: skip


def _ruled_apart(left_out: Excused, rules: Outcome, streamed: Outcome) -> Excused:
    """Left out of a batch and a stream: what the rules themselves tell apart."""
    numbers = {n for n in {**rules.rows, **streamed.rows, **rules.letters, **streamed.letters} if _said(rules, n) != _said(streamed, n)}
    panes = {p for p in {**rules.panes, **streamed.panes} if rules.panes.get(p) != streamed.panes.get(p)}
    return Excused(left_out.messages | numbers, left_out.panes | panes)


def _said(outcome: Outcome, number: int) -> tuple[Any, ...]:
    return outcome.rows.get(number), outcome.letters.get(number)


def _apart(name: str, mine: Outcome, other_name: str, other: Outcome, left_out: Excused) -> list[str]:
    """What differs, one sentence each."""
    roughly = other_name == "rules"

    def differ(what: str, a: Any, b: Any) -> str:
        return f"{what}: {name} {described(a)}; {other_name} {described(b)}"

    found = []
    for number in sorted(({*mine.rows, *other.rows, *mine.letters, *other.letters}) - left_out.messages):
        if mine.rows.get(number) != other.rows.get(number):
            found.append(differ(f"row of message {number}", mine.rows.get(number), other.rows.get(number)))
        if mine.letters.get(number) != other.letters.get(number):
            found.append(differ(f"letters of message {number}", mine.letters.get(number), other.letters.get(number)))
        elif not roughly and mine.spoken.get(number) != other.spoken.get(number):
            found.append(differ(f"letters of message {number}", *unlike_letters(mine.spoken[number], other.spoken[number])))
    for pane in sorted({*mine.panes, *other.panes} - left_out.panes, key=str):
        a, b = mine.panes.get(pane), other.panes.get(pane)
        if a is None or b is None or not same_measures(a, b, roughly=roughly):
            found.append(differ(_pane(pane), *_unlike(a, b)))
    for what, count in counts(bool(left_out.messages)):
        if count(mine.ledger) != count(other.ledger):
            found.append(differ(f"ledger, {what}", count(mine.ledger), count(other.ledger)))
    return found


def _unlike(a: dict[str, Any] | None, b: dict[str, Any] | None) -> tuple[Any, Any]:
    """Of two panes the measures that differ."""
    return unlike(a, b, [n for n in a if b is not None and a[n] != b[n]] if a is not None else [])


def _pane(pane: Pane) -> str:
    (start, end), group = pane
    return f"pane [{_time(start)}, {_time(end)}) of {group}"


def _time(at: int) -> str:
    return dt.datetime.fromtimestamp(at / 1e6, dt.UTC).strftime("%d %H:%M")


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

_HEAD = ("watermark", "message", "arrival", "event time", "id", "value", "batch", "stream", "rules")


def table(timeline: Timeline, setting: Setting, batch: Outcome, stream: Outcome, rules: Outcome, streamed: Outcome) -> list[str]:
    """The timeline as aligned lines, a blank one between bundles: every delivery, and by which door batch, stream and rules let it leave."""
    rows: list[Sequence[str]] = [_HEAD]
    for bundle in timeline.bundles:
        rows.append([""] * len(_HEAD))
        for i, message in enumerate(bundle.messages):
            mark = _clock(bundle.watermark) if i == 0 else "|" if i != bundle.cut else "-"
            said = [outcome.door(message.number) for outcome in (batch, stream, rules, streamed)]
            ruled_by = said[2] if said[2] == said[3] else f"{said[2]}, of a stream {said[3]}"
            rows.append([mark, *_described(message), *said[:2], ruled_by])
    lines = aligned(rows)
    read = "what the stream archived" if not timeline.shuffled else f"{_numbers(timeline.shuffled)}"
    return [str(setting), *lines, "", f"the batch read {read}", *_stale(stream)]


def _described(message: Message) -> list[str]:
    if isinstance(message.record, str):
        return [str(message.number), _clock(message.arrival), "", "", message.record]
    fields = dict(message.record)
    number, at = fields.pop("id"), fields.pop("at")
    when = "NULL" if at is None else at if at == NEVER else _clock(at)
    value = " ".join(f"{n}={'NULL' if v is None else v}" for n, v in fields.items())
    return [str(message.number), _clock(message.arrival), when, "NULL" if number is None else str(number), value]


def _clock(minutes: int) -> str:
    return instant(minutes).strftime("%d %H:%M")


def _numbers(batches: Iterable[Sequence[Message]]) -> str:
    return " | ".join(" ".join(str(m.number) for m in messages) for messages in batches)


def _stale(stream: Outcome) -> list[str]:
    return [f"the stream calls stale: {', '.join(f'{_time(s)} ({n})' for s, n in sorted(stream.stale.items()))}"] if stream.stale else []
