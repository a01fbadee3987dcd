"""Batches of a stream on Prism and what came out. In a module of its own: workers find it by name, and its globals are the test's."""

from __future__ import annotations

import random

import pyarrow as pa

from beam_pipelines.arrow.schema import PROVENANCE, UTC_MICROS, provenance

SECOND = 1_000_000
OUT: list[pa.RecordBatch] = []


def message_batch(number: int) -> pa.RecordBatch:
    """Five rows (id, at, v) that arrive at second `number`, some seconds late; every seventh batch is an earlier one, delivered again."""
    if number % 7 == 6:
        return message_batch(number - 3)
    chance = random.Random(number)
    arrived = pa.array([number * SECOND] * 5, UTC_MICROS)
    at = pa.array([(number - chance.randint(0, 5)) * SECOND for _ in range(5)], UTC_MICROS)
    columns = [*provenance("s", pa.array(range(5 * number, 5 * number + 5), pa.int64()), arrived)]
    columns += [pa.array(chance.choices("abcdefgh", k=5)), at, pa.array(chance.choices(range(3), k=5), pa.int64())]
    return pa.record_batch(columns, names=[*PROVENANCE.names, "id", "at", "v"])


def see(batch: pa.RecordBatch) -> None:
    """Keeps what came out."""
    OUT.append(batch)
