"""What a stream is given in a test: messages with their arrivals, in bundles, and the watermark between them. Nobody waits for anything.

Timeline().arrive("2024-05-01T10:01Z", a, b).arrive("2024-05-01T10:35Z", c).watermark("2024-05-01T12:00Z").arrive(...)

──●●──────────●──────────────────│──────────▶ arrival clock: `arrive` and `watermark` turn it
  one bundle  another            windows that are due show their panes
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.message_positions import micros_of
from beam_pipelines.arrow.named_values import named_values
from beam_pipelines.arrow.schema import ARRIVAL, MESSAGES, UTC_MICROS, provenance
from beam_pipelines.coders import RecordBatchCoder
from beam_pipelines.errors import SpecError
from beam_pipelines.formats.options import Format, JsonFormat, TextFormat
from beam_pipelines.testing.encoding import encode
from beam_pipelines.testing.rows import EXPECTED, Record

Moment = dt.datetime | str
"""A datetime, or its text in ISO 8601; without an offset it is UTC."""
_FAR = dt.timedelta(days=4000)
"""After the last step every window has closed."""


@dataclass(frozen=True)
class Message:
    """A record as a message. `arrival`: default the moment at which it is handed out; `id`: two with one id are one message that is delivered again."""

    record: Record
    arrival: Moment | None = None
    id: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Delivery:
    """A message as a pull gives it. `arrival` in microseconds since 1970."""

    position: int
    data: bytes
    arrival: int
    id: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """The watermark comes there (microseconds since 1970), then the batches are handed out as one bundle; none of them is empty."""

    watermark: int
    batches: tuple[tuple[Delivery, ...], ...] = ()


@dataclass(frozen=True)
class Timeline:
    """A stream's input, step by step; every call gives a longer one."""

    moments: tuple[tuple[dt.datetime, tuple[Message, ...]], ...] = ()

    def arrive(self, at: Moment, *records: Any) -> Timeline:
        """The clock comes to `at`, and the records are handed out in one bundle. A `Message` says its own arrival: one that was held up on its way."""
        return self._then(at, tuple(map(as_message, records)))

    def watermark(self, at: Moment) -> Timeline:
        """The clock comes to `at`, and nothing arrives."""
        return self._then(at, ())

    def _then(self, at: Moment, messages: tuple[Message, ...]) -> Timeline:
        now = moment(at)
        if self.moments and now < self.moments[-1][0]:
            raise SpecError(f"timeline: the clock goes back from {self.moments[-1][0].isoformat()} to {now.isoformat()}.",
                            hint="A message that arrived earlier is a Message(record, arrival=...).")  # fmt: skip
        return Timeline((*self.moments, (now, messages)))

    def steps(self, fmt: Format, contract: Contract) -> list[Step]:
        """As a source gives it, records in `fmt`."""
        found = iter(deliveries([(now, m) for now, messages in self.moments for m in messages], fmt, contract))
        batches = [tuple(itertools.islice(found, len(messages))) for _, messages in self.moments]
        return [Step(micros_of(now), (batch,) if batch else ()) for (now, _), batch in zip(self.moments, batches, strict=True)]


def as_message(record: Any) -> Message:
    """A record of a test as a message. Raises SpecError for what is none."""
    if isinstance(record, Message):
        return replace(record, record=as_message(record.record).record)
    if isinstance(record, str | bytes):
        return Message(record)
    row = named_values(record)
    if row is None:
        raise SpecError(f"timeline: got {type(record).__name__} {record!r:.60}; expected a Message, text, bytes, {EXPECTED}.")
    return Message(row)


def moment(at: Moment) -> dt.datetime:
    """The moment, in UTC. Raises SpecError for what is none."""
    try:
        found = at if isinstance(at, dt.datetime) else dt.datetime.fromisoformat(at)
    except (ValueError, TypeError):
        raise SpecError(f"timeline: got {at!r}; expected a datetime, or a text such as '2024-05-01T10:00:00Z'.") from None
    return found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found.astimezone(dt.UTC)


def message_bytes(record: Record, fmt: Format, contract: Contract) -> bytes:
    """A record as the bytes of one message. Raises SpecError for a mapping in a format whose messages must be given as bytes."""
    if isinstance(record, bytes):
        return record
    if isinstance(fmt, JsonFormat | TextFormat):
        return encode([record], fmt, contract=contract)[:-1]  # without the end of the line
    if isinstance(record, str):
        return record.encode(getattr(fmt, "encoding", "utf-8"))
    raise SpecError(f"a message of format {fmt.type}: got a mapping; expected its bytes.", hint="Encode it as its producer does.")


def deliveries(sent: Iterable[tuple[dt.datetime, Message]], fmt: Format, contract: Contract) -> list[Delivery]:
    """Messages as a pull gives them, records in `fmt`; each arrives at the moment beside it unless it says another. A message without an id is one
    of its own."""
    known, found = dict[str, int](), list[Delivery]()
    for number, (at, message) in enumerate(sent):
        name, position = (f"#{number}", number) if message.id is None else (message.id, known.setdefault(message.id, number))
        arrival = at if message.arrival is None else moment(message.arrival)
        content = message_bytes(message.record, fmt, contract)
        found.append(Delivery(position, content, micros_of(arrival), name, message.attributes))
    return found


# ── as a source gives it ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def messages_batch(deliveries: Sequence[Delivery], source: str) -> pa.RecordBatch:
    """Messages as a pull of `source` gives them (MESSAGES)."""
    arrival = pa.array([d.arrival for d in deliveries], pa.int64()).cast(UTC_MICROS)
    positions = pa.array([d.position for d in deliveries], pa.int64())
    attributes = pa.array([list(d.attributes.items()) or None for d in deliveries], MESSAGES.field("_attributes").type)
    data, ids = pa.array([d.data for d in deliveries], pa.binary()), pa.array([d.id for d in deliveries])
    columns = [*provenance(source, positions, arrival), data, ids, pa.nulls(len(deliveries), pa.string()), arrival, attributes]
    return pa.RecordBatch.from_arrays(columns, schema=MESSAGES)


def played(steps: Iterable[Step], source: str) -> beam.PTransform:
    """The steps as a source of message batches, for BundleBasedDirectRunner; after the last of them every window closes.

    This runner fires no timers at infinity: the clock goes far on before it ends.
    """
    stream, mark = TestStream(coder=RecordBatchCoder()), None
    for step in steps:
        if step.watermark != mark:
            stream.advance_watermark_to(Timestamp(micros=step.watermark))
        mark = step.watermark
        batches = [messages_batch(batch, source) for batch in step.batches]
        if batches:
            stream.add_elements(
                [TimestampedValue(b, Timestamp(micros=min(b.column(ARRIVAL).cast(pa.int64()).to_pylist()))) for b in batches]
            )
    end = (mark or 0) + _FAR // dt.timedelta(microseconds=1)
    return stream.advance_watermark_to(Timestamp(micros=end)).advance_watermark_to_infinity()
