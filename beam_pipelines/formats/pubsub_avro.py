"""Files that a Pub/Sub Cloud Storage subscription writes: Avro containers of messages with their metadata. No Beam.

    {prefix}2024-05-01T10:00:00+00:00_4f2a….avro     named by the moment at which the file was begun; how, is a setting of the subscription

    record PubsubMessageWithMetadata { subscription_name, message_id, publish_time (timestamp-micros), attributes (map), data (bytes) }

`message_id` and `publish_time` are those that every subscription of the topic is given, and with them a message has the position it has in the live stream.
`subscription_name` is not: it is the one that writes. An ordering key is an entry of the attributes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import pyarrow as pa

from beam_pipelines.formats.avro import AvroReader, count_records
from beam_pipelines.formats.reader import FILE, Broken
from beam_pipelines.places import open_read

SUFFIX = ".avro"
LATEST_MICROS = 3_600_000_000
"""So long after the moment in its name a file may still get messages: it is closed after ten minutes at most, and nobody has promised more."""
_MOMENT = re.compile(r"(\d{4})[-/](\d\d)[-/](\d\d)[T_/ -](\d\d)[:_-]?(\d\d)(?:[:_-]?(\d\d))?")  # no part of a UUID looks like it
_UTC_MICROS = pa.timestamp("us", "UTC")
_COLUMNS = {
    "data": pa.binary(),
    "message_id": pa.string(),
    "publish_time": _UTC_MICROS,
    "attributes": pa.map_(pa.string(), pa.string()),
}


class Written(NamedTuple):
    """Messages of a file, a column for each of their fields."""

    data: pa.Array
    ids: pa.Array
    published: pa.Array  # timestamp[us, UTC]
    attributes: pa.MapArray


def begun_micros(path: str) -> int | None:
    """The moment in a file's name, in microseconds; None where there is none that we know. A date alone is none.

    >>> begun_micros("gs://b/flights/2024-05-01T10:00:00+00:00_4f2a.avro")
    1714557600000000
    >>> begun_micros("gs://b/flights/part-7.avro") is None
    True
    """
    found = list(_MOMENT.finditer(path))
    if not found:
        return None
    try:
        year, month, day, hour, minute, second = (int(part or 0) for part in found[-1].groups())
        return round(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()) * 1_000_000
    except ValueError:
        return None


def may_hold(path: str, since: int) -> bool:
    """Whether the file may hold a message published at `since` (microseconds) or later."""
    begun = begun_micros(path)
    return begun is None or begun + LATEST_MICROS >= since


def read_file(path: str) -> Iterator[Written | Broken]:
    """The messages of a file, block by block, and what of it cannot be read. Never raises for the file's sake."""
    position = 0
    try:
        with open_read(path) as stream:
            for piece in AvroReader().read(stream):
                if isinstance(piece, Broken):
                    position = piece.position + piece.rows
                    yield Broken(piece.position, piece.reason, f"{path}: {piece.message}", piece.raw, piece.rows)
                else:
                    yield _written(path, piece, position)
                    position += piece.num_rows
    except OSError as error:
        yield Broken(position, FILE, f"{path}: cannot be read after message {position}: {error}")


def count_messages(path: str) -> int:
    """How many messages a file holds, by its blocks. Raises OSError where it is not there."""
    with open_read(path) as stream:
        return count_records(stream)


def _written(path: str, piece: pa.RecordBatch, position: int) -> Written | Broken:
    names = piece.schema.names
    missing = [name for name, kind in _COLUMNS.items() if name not in names or not piece.schema.field(name).type.equals(kind)]
    if missing:
        return Broken(
            position,
            FILE,
            f"{path}: is no file of messages with metadata: '{missing[0]}' is missing or of another type; its fields: {', '.join(names[1:])}."
            " The subscription needs write_metadata, and must not use the topic's schema.",
            rows=piece.num_rows,
        )
    data, ids, published, attributes = (piece.column(name) for name in _COLUMNS)
    if any(column.null_count for column in (data, ids, published, attributes)):
        return Broken(
            position, FILE, f"{path}: messages {position} to {position + piece.num_rows - 1}: a field is null.", rows=piece.num_rows
        )
    return Written(data, ids, published, pa.concat_arrays([attributes]))  # a slice keeps the entries of messages beside it
