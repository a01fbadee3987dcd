"""Messages as a stream's source gives them, a clock that is cranked by hand, and what an archive says to whoever asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from beam_pipelines.arrow.schema import MESSAGES, provenance
from beam_pipelines.formats import archive_compaction
from beam_pipelines.formats.archive import read_since
from beam_pipelines.formats.compaction import Step

SOURCE = "projects/demo-project/subscriptions/flights"
NOON = 1_385_899_200_000_000  # 2013-12-01 12:00 UTC in microseconds
HOUR = 3_600_000_000


class Clock:
    """Seconds since 1970, moved by hand; each look moves it by a hundredth."""

    def __init__(self, at: float = NOON / 1e6) -> None:
        self.at = at

    def __call__(self) -> float:
        self.at += 0.01
        return self.at


def messages(rows: Sequence[tuple[int, int]], source: str = SOURCE) -> pa.RecordBatch:
    """Messages of (position, arrival in microseconds); all else follows from the position."""
    numbers = [position for position, _ in rows]
    times = pa.array([arrival for _, arrival in rows], pa.int64()).cast(MESSAGES.field("_arrival_time").type)
    columns = [
        *provenance(source, pa.array(numbers, pa.int64()), times),
        pa.array([raw(n) for n in numbers], pa.binary()),
        pa.array([f"id-{n}" for n in numbers], pa.string()),
        pa.array([f"key-{n % 2}" if n % 3 else None for n in numbers], pa.string()),
        times,
        pa.array([attributes(n) for n in numbers], MESSAGES.field("_attributes").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=MESSAGES)


def raw(number: int) -> bytes:
    return b'{"id": %d}' % number


def attributes(number: int) -> list[tuple[str, str]] | None:
    return [("number", str(number)), ("colour", "blue")][: number % 3] if number % 5 else None


def told(batches: Iterable[pa.RecordBatch]) -> list[tuple[int, int]]:
    """Position and arrival of each message, sorted."""
    return sorted(
        pair
        for b in batches
        for pair in zip(b.column("_position").to_pylist(), b.column("_arrival_time").cast(pa.int64()).to_pylist(), strict=True)
    )


def everything(folder: Path | str) -> list[tuple[int, int]]:
    return told(read_since(str(folder), -(2**62)))


@dataclass(frozen=True)
class Compacted:
    """What passes did, in files."""

    merged: int = 0
    deleted: int = 0
    swept: int = 0

    @classmethod
    def of(cls, steps: Iterable[Step]) -> Compacted:
        acts = [step.act for step in steps]
        return cls(acts.count("merged") + acts.count("settled"), acts.count("deleted"), acts.count("swept"))


def compact(folder: str, **how: Any) -> Compacted:
    """One pass over an archive."""
    return Compacted.of(archive_compaction.compact_steps(folder, **how))
