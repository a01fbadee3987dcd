"""Messages as they come from a pull, as a batch: fields out of protobufs, positions, arrival times. No network here.

[ReceivedMessage, ...] ──▶ MESSAGES batch: _source, _position, _arrival_time, _raw, _message_id, _ordering_key, _publish_time, _attributes

A dead letter that is sent through the stream again says in attributes which message it was (`identity`): it comes back at the old position, with the
old arrival. What is not well said, or of another subscription, is a message like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.message_positions import DECIMAL, POSITION_BITS, Micros, message_positions
from beam_pipelines.arrow.schema import ARRIVAL, MESSAGES, PUBLISH_TIME, UTC_MICROS, provenance

Mask = npt.NDArray[np.bool_]

_DIGITS = "^[0-9]{1,19}$"
_ISO = r"^\d{4}-\d\d-\d\d([T ]\d\d(:\d\d(:\d\d([.]\d+)?)?)?(Z|[+-]\d\d(:?\d\d)?)?)?$"
_ZONED = r"[T ].*(Z|[+-]\d\d(:?\d\d)?)$"
_PLAIN_MICROS = pa.timestamp("us")
# Below these an epoch is in seconds, milliseconds, microseconds: each bound is the year 5138.
_EPOCHS = ((10**11, 1_000_000), (10**14, 1_000), (10**17, 1))
AHEAD_MICROS = 86_400_000_000
"""So long after its publish time a message may say that it arrived: a clock that is fast, a time zone left out. No message arrives later than it was published by more."""
AS_SOURCE, AS_POSITION, AS_ARRIVAL = (f"beam_pipelines.replayed.{what}" for what in ("source", "position", "arrival"))
"""Attributes of a message that is sent again: the subscription, position and arrival (microseconds) that it had."""


class Pulled(NamedTuple):
    """One answer to a pull: the rows (MESSAGES), their ack ids in the same order, and which rows' arrival says nothing about now: it could not be
    read or believed, or is that of a message that is sent again. `carriers` are the positions that the messages themselves have; None where they are the rows',
    as they are unless a message is sent again."""

    rows: pa.RecordBatch
    ack_ids: list[str]
    unreadable: Mask
    carriers: Micros | None


class Parts(NamedTuple):
    """The fields of messages, each a list over them; `attributes` of all messages one after the other, those of message i up to `ends[i + 1]`."""

    raw: list[bytes]
    ids: list[str]
    orders: list[str | None]
    published: list[int]  # microseconds
    keys: list[str]
    values: list[str]
    ends: list[int]

    def known(self, *, source: str, attribute: str | None) -> Known:
        """The messages as rows: see `rows_of`."""
        attributes = pa.MapArray.from_arrays(
            pa.array(self.ends, pa.int32()), pa.array(self.keys, pa.string()), pa.array(self.values, pa.string())
        )
        raw, ids, orders = pa.array(self.raw, pa.binary()), pa.array(self.ids, pa.string()), pa.array(self.orders, pa.string())
        return rows_of(raw, ids, orders, np.array(self.published, np.int64), attributes, source=source, attribute=attribute)


class Known(NamedTuple):
    """Messages as rows (MESSAGES), which rows' arrival says nothing about now, and the positions they are carried by: see `Pulled`."""

    rows: pa.RecordBatch
    unreadable: Mask
    carriers: Micros | None


def pulled(received: Sequence[Any], *, source: str, attribute: str | None) -> Pulled:
    """`received` (protobuf messages `ReceivedMessage`, not their wrappers) as a batch with provenance.

    The arrival time is that of the attribute; where it is missing, unreadable or more than a day after the publish time, and without an attribute, the
    publish time.
    """
    ack_ids, parts = _fields(received)
    known = parts.known(source=source, attribute=attribute)
    return Pulled(known.rows, ack_ids, known.unreadable, known.carriers)


def rows_of(
    raw: pa.Array, ids: pa.Array, orders: pa.Array, publish: Micros, attributes: pa.MapArray, *, source: str, attribute: str | None
) -> Known:
    """Messages as rows, wherever they were read: by a pull, by Dataflow, from files of a Cloud Storage subscription. The same message is the same row.

    `attributes` is no slice and holds no NULL.
    """
    arrival, unreadable = publish, np.zeros(len(ids), np.bool_)
    if attribute is not None:
        said, unreadable = arrival_times(attribute_of(attributes, attribute), publish)
        unreadable = unreadable | (said > publish + AHEAD_MICROS)
        arrival = np.where(unreadable, publish, said)
    positions = message_positions(ids, publish)
    carriers = None
    again = sent_again(attributes, source, publish, latest_is_publish=attribute is None)
    if again is not None:
        carriers = positions.copy()
        positions[again.rows] = again.positions
        arrival, unreadable = arrival.copy(), unreadable.copy()
        arrival[again.rows], unreadable[again.rows] = again.arrivals, True
    columns = [*provenance(source, pa.array(positions), instants(arrival)), raw, ids, orders, instants(publish), attributes]
    return Known(pa.RecordBatch.from_arrays(columns, schema=MESSAGES), unreadable, carriers)


def _fields(received: Sequence[Any]) -> tuple[list[str], Parts]:
    """The ack ids and the fields of all messages. The one loop over messages: protobuf has no other way to its fields."""
    ack_ids: list[str] = []
    raw: list[bytes] = []
    ids: list[str] = []
    orders: list[str | None] = []
    published: list[int] = []
    keys: list[str] = []
    values: list[str] = []
    ends = [0]
    for one in received:
        message = one.message
        time = message.publish_time
        ack_ids.append(one.ack_id)
        raw.append(message.data)
        ids.append(message.message_id)
        orders.append(message.ordering_key or None)
        published.append(time.seconds * 1_000_000 + time.nanos // 1_000)
        if attributes := message.attributes:
            for key in attributes:
                keys.append(key)
                values.append(attributes[key])
        ends.append(len(keys))
    return ack_ids, Parts(raw, ids, orders, published, keys, values, ends)


class SentAgain(NamedTuple):
    """Numbers of the rows that are messages sent again, with the positions and arrivals (microseconds) they had."""

    rows: npt.NDArray[np.int64]
    positions: Micros
    arrivals: Micros


def identity(source: str, position: int, arrival_micros: int) -> Mapping[str, str]:
    """The attributes by which a message that is sent again is known as the one it was."""
    return {AS_SOURCE: source, AS_POSITION: str(position), AS_ARRIVAL: str(arrival_micros)}


def sent_again(attributes: pa.MapArray, source: str, publish_micros: Micros, *, latest_is_publish: bool) -> SentAgain | None:
    """Which messages are sent again; None if none is.

    All three attributes must be there, name this `source`, a position and an arrival that a message can have; with the publish time as the clock nothing
    arrived after this message was published.
    """
    if not pc.any(pc.equal(attributes.keys, AS_SOURCE), min_count=0).as_py():
        return None
    named = pc.fill_null(pc.equal(attribute_of(attributes, AS_SOURCE), source), False).to_numpy(zero_copy_only=False)
    positions, counted = _whole_numbers(attribute_of(attributes, AS_POSITION), POSITION_BITS)
    arrived, timed = _whole_numbers(attribute_of(attributes, AS_ARRIVAL), _EPOCHS[-1][0] - 1)
    known = named & counted & timed
    if latest_is_publish:
        known &= arrived <= publish_micros
    rows = np.flatnonzero(known)
    return SentAgain(rows, positions[rows], arrived[rows]) if len(rows) else None


def _whole_numbers(texts: pa.Array, most: int) -> tuple[Micros, Mask]:
    """The numbers that the texts are, and which of them are one of 0 to `most`."""
    digits = pc.fill_null(pc.match_substring_regex(texts, DECIMAL), False)
    numbers = pc.if_else(digits, texts, "0").cast(pa.uint64()).to_numpy()
    found: Mask = digits.to_numpy(zero_copy_only=False) & (numbers <= most)
    return np.where(found, numbers, 0).astype(np.int64), found


def attribute_of(attributes: pa.MapArray, name: str) -> pa.Array:
    """The attribute `name` of each row as text, NULL where a row has none. `attributes` is no slice and holds no NULL."""
    at = pc.indices_nonzero(pc.equal(attributes.keys, name)).to_numpy().astype(np.int64)
    rows = np.searchsorted(attributes.offsets.to_numpy(), at, side="right") - 1
    found = np.full(len(attributes), -1, np.int64)
    found[rows] = at
    return attributes.items.take(pa.array(found, mask=found < 0))


def arrival_times(texts: pa.Array, publish_micros: Micros) -> tuple[Micros, Mask]:
    """Microseconds for texts that are RFC 3339, ISO 8601 (without a zone: UTC) or an epoch in digits, and where none could be read.

    Digits are seconds below 1e11, milliseconds below 1e14, microseconds below 1e17. What cannot be read is the publish time.
    """
    micros = pc.coalesce(_from_digits(texts), _from_iso(texts))
    unreadable: Mask = micros.is_null().to_numpy(zero_copy_only=False)
    return np.where(unreadable, publish_micros, micros.fill_null(0).to_numpy()), unreadable


def _from_digits(texts: pa.Array) -> pa.Array:
    digits = pc.fill_null(pc.match_substring_regex(texts, _DIGITS), False)
    if not pc.any(digits, min_count=0).as_py():
        return pa.nulls(len(texts), pa.int64())
    numbers = pc.if_else(digits, texts, "0").cast(pa.uint64()).to_numpy()
    known = digits.to_numpy(zero_copy_only=False) & (numbers < _EPOCHS[-1][0])
    factors = np.select([numbers < bound for bound, _ in _EPOCHS], [factor for _, factor in _EPOCHS], 0)
    return pa.array(np.where(known, numbers, 0).astype(np.int64) * factors, mask=~known)


def _from_iso(texts: pa.Array) -> pa.Array:
    upper = pc.utf8_upper(pc.utf8_trim_whitespace(texts))
    iso = pc.if_else(pc.match_substring_regex(upper, _ISO), upper, pa.scalar(None, pa.string()))
    if iso.null_count == len(iso):
        return pa.nulls(len(texts), pa.int64())
    plain = pc.replace_substring_regex(iso, r"([.]\d{6})\d+", r"\1")  # finer than a microsecond
    zoned = pc.match_substring_regex(plain, _ZONED)
    none = pa.scalar(None, pa.string())
    with_zone = _cast(pc.if_else(zoned, plain, none), UTC_MICROS)
    without = _cast(pc.if_else(zoned, none, plain), _PLAIN_MICROS)
    return pc.coalesce(with_zone.cast(pa.int64()), without.cast(pa.int64()))


def _cast(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """`texts` as `kind`, NULL where one does not convert (30 February): halved until those are alone."""
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        if len(texts) == 1:
            return pa.nulls(1, kind)
        half = len(texts) // 2
        return pa.concat_arrays([_cast(texts[:half], kind), _cast(texts[half:], kind)])


def instants(micros: Micros) -> pa.Array:
    """Microseconds as timestamps."""
    return pa.array(micros).view(UTC_MICROS)


def clocked(batch: pa.RecordBatch) -> Micros:
    """What messages tell the arrival clock, in microseconds: when they arrived, and no later than they were published, which no clock of a producer can put into the future."""
    found: Micros = np.minimum(arrivals(batch), _published(batch))
    return found


def clocked_again(batch: pa.RecordBatch) -> Micros:
    """The same of messages of the archive. It does not say whose arrival was unreadable: those that have their publish time, and, if an earlier version wrote them, one far ahead of it."""
    arrival, published = arrivals(batch), _published(batch)
    known: Micros = clocked(batch)[(arrival != published) & (arrival <= published + AHEAD_MICROS)]
    return known


def _published(batch: pa.RecordBatch) -> Micros:
    micros: Micros = batch.column(PUBLISH_TIME).cast(pa.int64()).to_numpy()
    return micros


def arrivals(batch: pa.RecordBatch) -> Micros:
    """The arrival times of messages in microseconds."""
    micros: Micros = batch.column(ARRIVAL).cast(pa.int64()).to_numpy()
    return micros
