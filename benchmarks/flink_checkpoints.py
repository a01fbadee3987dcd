"""What checkpoints of a stream cost on Flink by the keys that deduplication holds: bytes, and from trigger to end.

    ticks ─▶ rows with new keys, until a number of keys is reached ─▶ Deduplicate (the stage of a stream) ─▶ count

One job, which is filled further when checkpoints at one size have been looked at. Flink keeps this state in memory and writes all of it at each checkpoint.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.utils.timestamp import Timestamp
from dedup_state import CONTRACT, DAY
from flink_boundary import batch_of

from beam_pipelines.arrow.keys import DeduplicateRule
from beam_pipelines.arrow.schema import ARRIVAL, POSITION, UTC_MICROS
from beam_pipelines.runners.flink.cluster import Cluster, local_cluster
from beam_pipelines.runners.flink.job import flink_job
from beam_pipelines.runners.options import Flink
from beam_pipelines.transforms.deduplicate import Deduplicate

KEYS = (10_000, 100_000, 1_000_000)
EVERY_S = 3
_TICK_S, _AT_ONCE = 0.5, 10_000
_CHECKPOINTS = 3  # looked at, of each size
_PATIENCE_S = 300.0


class _Rows(beam.DoFn):  # type: ignore[misc]
    """At each tick rows of new keys, until there are as many as the file `wanted` says."""

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted

    def setup(self) -> None:
        self._made = 0

    def process(self, _: Any, at: Any = beam.DoFn.TimestampParam) -> Iterator[pa.RecordBatch]:
        if self._made < int(Path(self._wanted).read_text("utf-8")):
            yield _rows(self._made, at.micros)
            self._made += _AT_ONCE


def _rows(first: int, now: int) -> pa.RecordBatch:
    number, batch = np.arange(first, first + _AT_ONCE), batch_of(_AT_ONCE)
    times = pa.array(np.full(_AT_ONCE, now), UTC_MICROS)
    new = {
        POSITION: pa.array(number),
        ARRIVAL: times,
        "id": pa.array(np.char.mod("%016x", number * 0x9E3779B97F4A7C1 % 2**60)),
        "at": times,
    }
    return pa.record_batch([new.get(name, batch[name]) for name in batch.schema.names], names=batch.schema.names)


class _Count(beam.DoFn):  # type: ignore[misc]
    """Writes down how many rows have come."""

    def __init__(self, path: str) -> None:
        self._path = path

    def setup(self) -> None:
        self._rows = 0

    def process(self, element: pa.RecordBatch) -> Iterator[None]:
        self._rows += element.num_rows
        Path(self._path).write_text(str(self._rows), "utf-8")
        yield from ()


def _build(pipeline: beam.Pipeline, wanted: Path, seen: Path) -> None:
    ticks = pipeline | "Ticks" >> PeriodicImpulse(start_timestamp=Timestamp.now(), fire_interval=_TICK_S, apply_windowing=False)
    rows = ticks | "Rows" >> beam.ParDo(_Rows(str(wanted)))
    rows.element_type = pa.RecordBatch
    kept = rows | "Deduplicate" >> Deduplicate(DeduplicateRule(within="2d"), contract=CONTRACT, lateness=2 * DAY)
    kept.rows | "Count" >> beam.ParDo(_Count(str(seen)))


def checkpoints(cluster: Cluster, *, scale: int = 1) -> dict[str, float]:
    """Megabytes of state and milliseconds of a checkpoint, as `checkpoint_mb_1000000_keys`; medians of three."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        wanted, seen = Path(folder) / "wanted", Path(folder) / "seen"
        wanted.write_text("0")
        with flink_job(
            lambda pipeline: _build(pipeline, wanted, seen), Flink(cluster.rest, cluster.workers), name=f"checkpoints-{uuid.uuid4().hex}",
            flags=["--parallelism=1", f"--checkpointing_interval={EVERY_S * 1000}"], streaming=True, path=[str(Path(__file__).parent)],
        ) as job:  # fmt: skip
            for keys in sorted({max(_AT_ONCE, most // scale) for most in KEYS}):
                wanted.write_text(str(keys))
                _until(job, lambda keys=keys: seen.exists() and int(seen.read_text() or 0) >= keys)
                assert job.id is not None
                found = _looked_at(job, cluster, job.id)
                bytes_, ms, state = (statistics.median(one[n] for one in found) for n in range(3))
                figures |= {
                    f"checkpoint_mb_{keys}_keys": bytes_ / 1e6,
                    f"checkpoint_ms_{keys}_keys": ms,
                    f"state_bytes_a_key_{keys}_keys": state / keys,
                }
                print(
                    f"  {keys:9,d} keys: checkpoints of {bytes_ / 1e6:7.2f} MB in {ms:5.0f} ms, {state / keys:5.0f} bytes a key", flush=True
                )
    return figures


def _until(job: Any, done: Any) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit("the stream does not get on")
        job.wait(0.2)


def _looked_at(job: Any, cluster: Cluster, number: str) -> list[tuple[float, float, float]]:
    """(bytes, milliseconds, bytes of the stage's state) of the next checkpoints but two: the latest when it was asked, and one that may have begun before."""
    found: dict[int, tuple[float, float, float]] = {}

    def enough() -> bool:
        latest = cluster.client.checkpoints(number).latest
        if latest is not None and latest.id not in found:
            sizes = cluster.client.state_bytes(number)
            stage = max((size for task, size in sizes.items() if "Deduplicate" in task), default=0)
            found[latest.id] = (latest.state_bytes, latest.duration_ms, stage)
        return len(found) > _CHECKPOINTS + 1

    _until(job, enough)
    return [found[n] for n in sorted(found)[2:]]


def main() -> None:
    """These figures alone."""
    with tempfile.TemporaryDirectory() as folder, local_cluster(Path(folder) / "cluster") as cluster:
        print(json.dumps({name: round(value, 2) for name, value in checkpoints(cluster).items()}))


if __name__ == "__main__":
    import flink_checkpoints  # workers find its steps by this name

    flink_checkpoints.main()
