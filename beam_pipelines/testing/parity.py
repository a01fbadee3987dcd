"""Batch = stream = any order, for a spec of your own: the same messages through both paths, compared on everything that readers see.

messages ──▶ any order, any bundles, some again ──▶ the stream ──▶ rows, final panes, dead letters, ledger  ─┐
   └───────▶ an archive, any order, any files ────▶ the batch  ──▶ rows, panes, dead letters, ledger        ─┴─▶ equal
"""

from __future__ import annotations

import datetime as dt
import itertools
import os
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from beam_pipelines.arrow.message_positions import micros_of
from beam_pipelines.arrow.schema import ARRIVAL, CONTRACT, POSITION, RUN_ID, SOURCE
from beam_pipelines.errors import SpecError
from beam_pipelines.formats.archive import raw_batch, write_messages
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.spec.horizon import compared_late
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sources import ArchiveSource, PubsubSource, Sources
from beam_pipelines.testing.compare import TOLERANCE, same
from beam_pipelines.testing.outcomes import (
    Outcome,
    Pane,
    aligned,
    clock,
    counts,
    described,
    failed,
    ledger_of,
    letters_of,
    pane_name,
    panes_of,
    twice,
    unlike,
    unlike_letters,
)
from beam_pipelines.testing.quick import quick
from beam_pipelines.testing.run import Spec, loaded_spec
from beam_pipelines.testing.stream import play, stored, streaming
from beam_pipelines.testing.timeline import Delivery, Message, Step, Timeline, as_message, deliveries, messages_batch
from beam_pipelines.transforms.prepare import row_program

_SHOWN, _WIDTH = 12, 70
_BEGIN, _FAR = 1_704_067_200_000_000, dt.datetime(9999, 1, 1, tzinfo=dt.UTC)  # 2024 in microseconds
_UNCOMPARED = {SOURCE, POSITION, ARRIVAL, RUN_ID, CONTRACT, "_pane", "_pane_index", "_epoch"}


def assert_batch_equals_stream(
    spec: Spec, records: Iterable[Any] | Timeline, *, tries: int = 2, seed: int = 0, source: int = 0, set_: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
) -> None:  # fmt: skip
    """Asserts that a batch and a stream of `spec` make the same of the same messages: rows, final panes, dead letters, ledger.

    `records` are those of the spec's subscription number `source`, or `Message`s, which say when they arrived; else a record arrives at its event
    time. They are played `tries` times: once in one bundle, then each time in another order, cut into other bundles, some delivered again, as `seed` says; no window
    closes before all are there. The batch reads an archive of the same messages in yet another order. A `Timeline` is played as it stands:
    what comes behind the close of its window is then a difference (docs/stream.md, "Stale").

    Left out, by rule: copies of rows that come later than a stream compares them (docs/data-model.md, "Who is judged"), and panes of their windows.
    Floats may be `tolerance` apart, relative to the larger one, because sums depend on their order; and 1e-9 in any case, because sums may cancel
    (0: not at all).

    Raises AssertionError that shows what differs and the messages that bear on it, SpecError for a wrong spec or call.
    """
    found = loaded_spec(spec, set_, where="assert_batch_equals_stream")
    if tries < 1:
        raise SpecError(f"assert_batch_equals_stream: tries: got {tries}; expected 1 or more.")
    for steps, archived in _plays(found, records, tries, seed, source):
        with tempfile.TemporaryDirectory(prefix="beam-pipelines-test-") as folder:
            streamed = streaming(found, source, os.path.join(folder, "stream"), where="assert_batch_equals_stream")
            stream = as_stream(streamed, steps)
            batch = as_batch(_over_archive(streamed, archived, os.path.join(folder, "batch")))
        _agree(streamed.spec, steps, batch, stream, tolerance)


# ── what is played ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _plays(
    found: LoadedSpec, records: Iterable[Any] | Timeline, tries: int, seed: int, source: int
) -> Iterator[tuple[list[Step], list[tuple[Delivery, ...]]]]:
    """Steps of the stream, and the batches in which the batch's archive is written."""
    with tempfile.TemporaryDirectory() as folder:
        spec = streaming(found, source, folder, where="assert_batch_equals_stream").spec
    if isinstance(records, Timeline):
        steps = records.steps(spec.sources.stream[0].format, spec.contract)
        yield steps, [tuple(_some([d for step in steps for batch in step.batches for d in batch]))]
        return
    sent = _some(_arriving(spec, [as_message(record) for record in records]))
    earliest = min(d.arrival for d in sent)
    for number in range(tries):
        chance = random.Random(f"{seed} {number}")  # noqa: S311  # an order, not a secret
        order = chance.sample(sent, len(sent)) if number else sent
        again = chance.sample(order, len(order) // 5) if number else []
        bundles = _cut(chance, [*order, *again]) if number else [tuple(order)]
        yield [Step(earliest, tuple(_cut(chance, bundle))) for bundle in bundles], _cut(chance, chance.sample(order, len(order)))


def _some(sent: list[Delivery]) -> list[Delivery]:
    if not sent:
        raise SpecError("assert_batch_equals_stream: records: there are none, so nothing would be compared.")
    return sent


def _cut(chance: random.Random, messages: Sequence[Delivery]) -> list[tuple[Delivery, ...]]:
    """In order, in up to four parts, none of them empty."""
    marks = sorted({0, len(messages), *(chance.randrange(len(messages)) for _ in range(chance.randrange(4)))})
    return [tuple(messages[a:b]) for a, b in itertools.pairwise(marks)]


def _arriving(spec: PipelineSpec, messages: Sequence[Message]) -> list[Delivery]:
    """The messages as they are delivered; those without an arrival arrive at their event time, or with the last of the others."""
    source, far = spec.sources.stream[0], micros_of(_FAR)
    found = deliveries([(_FAR, message) for message in messages], source.format, spec.contract)
    unsaid = [d for d in found if d.arrival == far]
    times = _event_times(spec, source, unsaid) if unsaid else {}
    said = [d.arrival for d in found if d.arrival != far]
    last = max([*times.values(), *said], default=_BEGIN)
    return [d if d.arrival != far else replace(d, arrival=times.get(d.position, last)) for d in found]


def _event_times(spec: PipelineSpec, source: PubsubSource, unsaid: Sequence[Delivery]) -> dict[int, int]:
    """Event times by position, where they can be read."""
    time = spec.contract.event_time
    if time is None:
        return {}
    plain = spec.model_copy(update={"transform": (), "checks": (), "lookups": {}, "deduplicate": None})
    raw = raw_batch(messages_batch(unsaid, source.pubsub), keep_attributes=source.format.type == "avro")
    split = row_program(plain, source, {})(raw)
    rows = [(r[POSITION], r[time]) for r in split.rows.select([POSITION, time]).to_pylist()]
    letters = [(x["position"], x["event_time"]) for x in split.dead.to_pylist()]
    return {position: micros_of(_instant(at)) for position, at in [*rows, *letters] if at is not None}


def _instant(at: Any) -> dt.datetime:
    day = at if isinstance(at, dt.datetime) else dt.datetime.combine(at, dt.time())
    return day if day.tzinfo is not None else day.replace(tzinfo=dt.UTC)


# ── what comes of it ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def as_stream(loaded: LoadedSpec, steps: Sequence[Step]) -> Outcome:
    """What the stream makes of the steps, in the end."""
    ledger = play(loaded, steps)
    return _outcome(loaded, "speed", ledger_of(ledger.lines, ledger.reasons), ledger.explain().splitlines())


def as_batch(loaded: LoadedSpec) -> Outcome:
    """What `run --mode batch --apply-lateness` makes of the batch source."""
    with quick():
        record = run_batch(loaded, Call(apply_lateness=True))
    return _outcome(loaded, "batch", ledger_of(record.ledger, record.dead_letters), failed(record))


def archive(folder: str, batches: Iterable[Sequence[Delivery]], source: str) -> None:
    """Puts messages where a batch finds them."""
    os.makedirs(folder, exist_ok=True)
    for batch in batches:
        write_messages(messages_batch(batch, source), folder, epoch=1)


def _over_archive(streamed: LoadedSpec, batches: Iterable[Sequence[Delivery]], folder: str) -> LoadedSpec:
    """The spec as a batch over an archive of these messages."""
    [source] = streamed.spec.sources.stream
    place = os.path.join(folder, "archive")
    archive(place, batches, source.pubsub)
    over = ArchiveSource(archive=place, format=source.format, arrival=source.arrival, subscription=source.pubsub)
    sinks = tuple(
        s.model_copy(update={"parquet": s.parquet.model_copy(update={"path": os.path.join(folder, s.from_)})})
        for s in streamed.spec.sinks
        if s.parquet
    )
    update = {"sources": Sources(batch=(over,)), "sinks": sinks, "state": os.path.join(folder, "state")}
    return replace(streamed, spec=streamed.spec.model_copy(update=update))


def _outcome(loaded: LoadedSpec, layer: str, ledger: Any, wrong: Iterable[str]) -> Outcome:
    found = stored(loaded, layer=layer)
    spoken = letters_of(found["dead_letters"])
    doors = {number: tuple(s[0] for s in said) for number, said in spoken.items()}
    rows, panes = {r[POSITION]: r for r in found["rows"]}, dict(panes_of(found, loaded.spec.aggregates))
    return Outcome(rows, doors, panes, ledger, spoken, [*wrong, *twice(found, loaded.spec.aggregates)])


# ── whether it is the same ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Difference:
    """Sentences, and what they are about."""

    said: list[str]
    messages: set[int]
    panes: set[Pane]


def _agree(spec: PipelineSpec, steps: Sequence[Step], batch: Outcome, stream: Outcome, tolerance: float) -> None:
    messages, panes = _unjudged(spec, batch, stream)
    found = _Difference([f"batch: {text}" for text in batch.wrong] + [f"stream: {text}" for text in stream.wrong], set(), set())
    _of_messages(found, batch, stream, messages, tolerance)
    _of_panes(found, batch, stream, panes, tolerance)
    for what, count in counts(bool(messages)):
        if count(batch.ledger) != count(stream.ledger):
            found.said.append(f"ledger, {what}: batch {described(count(batch.ledger))}; stream {described(count(stream.ledger))}")
    if found.said:
        more = [f"... and {len(found.said) - _SHOWN} more"] if len(found.said) > _SHOWN else []
        raise AssertionError(
            "\n".join(["batch and stream differ", *found.said[:_SHOWN], *more, "", *_table(spec, steps, batch, stream, found)])
        )


def _unjudged(spec: PipelineSpec, batch: Outcome, stream: Outcome) -> tuple[set[int], set[Pane]]:
    """Rows of a key of which a stream does not compare some, because they are late or have no event time; and panes these are in."""
    rule, time = spec.deduplicate, spec.contract.event_time
    if rule is None or time is None:
        return set(), set()
    key, late = rule.key or spec.contract.key, compared_late(spec)
    rows = {**batch.rows, **stream.rows}

    def judged(row: Mapping[str, Any]) -> bool:
        at = row.get(time)
        return at is not None and (row[ARRIVAL] is None or micros_of(row[ARRIVAL]) - micros_of(_instant(at)) <= late)

    keys = {_key(row, key) for row in rows.values() if not judged(row)}
    messages = {number for number, row in rows.items() if _key(row, key) in keys}
    return messages, _touched({*batch.panes, *stream.panes}, [_instant(rows[n][time]) for n in messages if rows[n].get(time) is not None])


def _key(row: Mapping[str, Any], key: Sequence[str]) -> tuple[str, ...]:
    return tuple(repr(row.get(name)) for name in key)


def _touched(panes: set[Any], times: Sequence[dt.datetime]) -> set[Any]:
    """Panes of windows that hold, or touch, one of these times, or hang together with such."""
    spans = [(at, at) for at in times]
    found: set[Any] = set()
    while new := {p for p in panes - found if any(p[1] <= end and start <= p[2] for start, end in spans)}:
        found |= new
        spans = [(p[1], p[2]) for p in new if p[2] - p[1] != dt.timedelta()]
    return found


def _of_messages(found: _Difference, batch: Outcome, stream: Outcome, left_out: set[int], tolerance: float) -> None:
    for number in sorted({*batch.rows, *stream.rows, *batch.letters, *stream.letters} - left_out):
        a, b = batch.rows.get(number), stream.rows.get(number)
        names = _apart(a, b, tolerance)
        if names or (a is None) != (b is None):
            mine, other = unlike(_compared(a), _compared(b), names)
            found.said.append(f"row of message {number}: batch {described(mine)}; stream {described(other)}")
            found.messages.add(number)
        if batch.letters.get(number) != stream.letters.get(number):
            said = [described(" ".join(x.letters[number]) if number in x.letters else None) for x in (batch, stream)]
        elif batch.spoken.get(number) != stream.spoken.get(number):
            said = list(unlike_letters(batch.spoken[number], stream.spoken[number]))
        else:
            continue
        found.said.append(f"letters of message {number}: batch {said[0]}; stream {said[1]}")
        found.messages.add(number)


def _of_panes(found: _Difference, batch: Outcome, stream: Outcome, left_out: set[Pane], tolerance: float) -> None:
    for pane in sorted({*batch.panes, *stream.panes} - left_out, key=str):
        a, b = batch.panes.get(pane), stream.panes.get(pane)
        names = _apart(a, b, tolerance)
        if names or (a is None) != (b is None):
            mine, other = unlike(_compared(a), _compared(b), names)
            found.said.append(f"{pane_name(pane)}: batch {described(mine)}; stream {described(other)}")
            found.panes.add(pane)


def _compared(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else {n: v for n, v in row.items() if n not in _UNCOMPARED and not n.startswith("_window")}


def _apart(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None, tolerance: float) -> list[str]:
    """Columns in which two rows or panes differ; none where one is not there."""
    mine, other = _compared(a), _compared(b)
    if mine is None or other is None:
        return []
    return [
        n
        for n in dict.fromkeys([*mine, *other])
        if not same(mine.get(n), other.get(n), tolerance=tolerance, absolute=min(tolerance, TOLERANCE))
    ]


# ── how it is shown ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

_HEAD = ("clock", "message", "arrival", "record", "batch", "stream")


def _table(spec: PipelineSpec, steps: Sequence[Step], batch: Outcome, stream: Outcome, found: _Difference) -> list[str]:
    """The messages that bear on a difference as they were delivered, a blank line between bundles, and where each left batch and stream."""
    bearing, everything = _bearing(spec, batch, stream, found), set[int]()
    rows: list[Sequence[str]] = [_HEAD]
    for step in steps:
        mine = [d for part in step.batches for d in part if not bearing or d.position in bearing]
        everything |= {d.position for part in step.batches for d in part}
        rows += [("",) * len(_HEAD)] if mine else []
        for i, d in enumerate(mine):
            text = d.data.decode("utf-8", "replace")
            record = text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
            mark = clock(_at(step.watermark)) if i == 0 else "|"
            rows.append((mark, str(d.position), clock(_at(d.arrival)), record, batch.door(d.position), stream.door(d.position)))
    shown = f"{len(bearing)} of {len(everything)} messages bear on it:" if bearing else f"the {len(everything)} messages:"
    return [shown, *aligned(rows)]


def _bearing(spec: PipelineSpec, batch: Outcome, stream: Outcome, found: _Difference) -> set[int]:
    """Messages that differ, copies of them, and rows of panes that differ; empty: it is not known."""
    time, rule = spec.contract.event_time, spec.deduplicate
    key = (rule.key if rule is not None else ()) or spec.contract.key
    rows = {**batch.rows, **stream.rows}
    keys = {_key(rows[n], key) for n in found.messages if n in rows} if key else set()
    bearing = found.messages | {n for n, row in rows.items() if key and _key(row, key) in keys}
    for name, start, end, group in found.panes:
        by = spec.aggregates[name].group_by
        bearing |= {
            n
            for n, row in rows.items()
            if time is not None
            and row.get(time) is not None
            and start <= _instant(row[time]) < end
            and tuple(row.get(g) for g in by) == group
        }
    return bearing


def _at(micros_: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=micros_)
