"""Positions of messages: what tells a message of a subscription from every other one, wherever it was read."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Micros = npt.NDArray[np.int64]

DECIMAL = "^(0|[1-9][0-9]{0,18})$"
POSITION_BITS = 2**63 - 1
_LEAST_WHOLE_ID = 2**40
_ID_BITS = 11
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def message_positions(ids: pa.Array, publish_micros: Micros) -> Micros:
    """Positions >= 0, a pure function of message id and publish time: a redelivered message keeps both, and so its position.

    An id of the real service, decimal and at least 2**40, is the position itself. Smaller ones come from brokers that count from 1
    again after a restart: publish time in microseconds, shifted, and the id's last 11 bits (2,048 messages of one microsecond). Any
    other id: 63 bits of a hash over publish time and id.
    """
    decimal = pc.match_substring_regex(ids, DECIMAL)
    numbers = pc.if_else(decimal, ids, "0").cast(pa.uint64()).to_numpy()
    small = (publish_micros.astype(np.uint64) << np.uint64(_ID_BITS)) | (numbers & np.uint64(2**_ID_BITS - 1))
    positions = np.where(numbers >= _LEAST_WHOLE_ID, numbers, small & np.uint64(POSITION_BITS))
    for row in np.flatnonzero(~decimal.to_numpy(zero_copy_only=False) | (numbers > POSITION_BITS)).tolist():
        positions[row] = _hashed(ids[row].as_py(), int(publish_micros[row]))  # ids that are no numbers: not those of the service
    signed: Micros = positions.astype(np.int64)
    return signed


def _hashed(message_id: str, publish_micros: int) -> int:
    digest = hashlib.blake2b(f"{publish_micros}:{message_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & POSITION_BITS


def micros_of(moment: datetime) -> int:
    """Microseconds since 1970 of a publish time; one without a zone is UTC."""
    since: timedelta = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
