"""What one more stage costs on Flink, per batch and per row: fused with the one before it, or behind a portable boundary.

    plain    make ───────────────────────────────────▶ end          all in one Python process
    fused    make ─▶ pass ─▶ pass ─▶ pass ───────────▶ end          the same process, three steps more
    unfused  make ═▶ JVM ═▶ pass ═▶ JVM ═▶ pass ═▶ … ▶ end          at each ═▶ a batch is encoded, sent, kept by Flink as bytes, sent, decoded

A job makes the same batch again and again, of each size in turn; the last step writes down how much CPU all processes have taken when a size is through, so that
the start of JVMs and of the job is in no figure. A stage's cost is the difference to the plain job, over batches and stages. In a stream a bundle has eight batches at most, and its own cost is in
the figures; in a batch it has all of them.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa

from beam_pipelines.arrow.schema import PROVENANCE, UTC_MICROS, provenance
from beam_pipelines.coders import RecordBatchCoder
from beam_pipelines.runners.flink.cluster import Cluster, local_cluster
from beam_pipelines.runners.flink.job import flink_job
from beam_pipelines.runners.options import Flink

TICKS = os.sysconf("SC_CLK_TCK")
SIZES = {1_000: 4_000, 10_000: 600, 50_000: 120}
"""Batches of each size, by rows."""
WARM = (10_000, 300)
STAGES = 3
KINDS = ("plain", "fused", "unfused")
_ROWS_MADE = 100_000  # by one element: what a bundle gives is in the task manager's memory until the bundle ends
_BUNDLE = 8  # elements, as of the source of a stream
_PATIENCE_S = 300.0


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds that processes have taken, and those of their children that were waited for."""
    return sum(_taken(pid) for pid in pids) / TICKS


def _taken(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(map(int, fields[11:15]))


@lru_cache
def batch_of(rows: int) -> pa.RecordBatch:
    """Rows as a stage has them: provenance and five columns, 66 bytes each."""
    chance, number = np.random.default_rng(0), np.arange(rows)
    columns = [
        *provenance("projects/p/subscriptions/s", pa.array(number), pa.array(number, UTC_MICROS)),
        pa.array(np.char.mod("%016x", chance.integers(0, 2**60, rows))),
        pa.array(number, UTC_MICROS),
        pa.array(["DE", "FR", "US", "JP"]).take(pa.array(chance.integers(0, 4, rows))),
        pa.array(chance.random(rows).round(2)),
        pa.array(chance.integers(0, 100, rows).astype("i4")),
    ]
    return pa.record_batch(columns, names=[*PROVENANCE.names, "id", "at", "country", "amount", "n"])


class _Make(beam.DoFn):  # type: ignore[misc]
    """`(rows, count)`: so many batches of so many rows."""

    def process(self, element: tuple[int, int]) -> Iterator[pa.RecordBatch]:
        rows, count = element
        batch = batch_of(rows)
        for _ in range(count):
            yield batch


class _Pass(beam.DoFn):  # type: ignore[misc]
    def process(self, element: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield element


class _End(beam.DoFn):  # type: ignore[misc]
    """Appends `rows cpu_s` to a file when all batches of a size have come."""

    def __init__(self, path: str, pids: Sequence[int], phases: Sequence[tuple[int, int]]) -> None:
        self._path, self._pids, self._phases = path, tuple(pids), tuple(phases)

    def setup(self) -> None:
        self._phase = self._seen = 0

    def process(self, element: pa.RecordBatch) -> Iterator[None]:
        rows, count = self._phases[self._phase]
        assert element.num_rows == rows, "the sizes came mixed"
        self._seen += 1
        if self._seen == count:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(f"{rows} {cpu_s((*self._pids, os.getpid()))}\n")
            self._phase, self._seen = self._phase + 1, 0
        yield from ()


def _build(pipeline: beam.Pipeline, kind: str, end: _End, phases: Sequence[tuple[int, int]]) -> None:
    chunks = [(rows, min(most, count - done)) for rows, count in phases for most in [_ROWS_MADE // rows] for done in range(0, count, most)]
    make, between = (beam.ParDo(step).with_output_types(pa.RecordBatch) for step in (_Make(), _Pass()))
    flow = pipeline | beam.Create(chunks, reshuffle=False) | "Begin" >> beam.Reshuffle() | "Make" >> make
    for number in range(STAGES if kind != "plain" else 0):
        flow = flow | f"Between-{number}" >> (beam.Reshuffle() if kind == "unfused" else between)
    assert isinstance(beam.coders.registry.get_coder(flow.element_type), RecordBatchCoder)
    flow | "End" >> beam.ParDo(end)


def taken(cluster: Cluster, kind: str, *, streaming: bool, scale: int = 1) -> dict[int, float]:
    """CPU seconds per batch of one job, by rows of a batch."""
    phases = [WARM, *((rows, count // scale) for rows, count in SIZES.items())]
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder) / "marks"
        end = _End(str(marks), [part.pid for part in cluster.parts.values()], phases)
        with flink_job(
            lambda pipeline: _build(pipeline, kind, end, phases),
            Flink(cluster.rest, cluster.workers),
            name=f"boundary-{kind}-{uuid.uuid4().hex}",  # the job is found again by it
            flags=["--parallelism=1", *([f"--max_bundle_size={_BUNDLE}"] if streaming else [])],
            streaming=streaming,
            path=[str(Path(__file__).parent)],
        ) as job:
            deadline = time.monotonic() + _PATIENCE_S
            while time.monotonic() < deadline and not (job.wait(0.5) or len(_read(marks)) == len(phases)):
                pass
        found = _read(marks)
    if len(found) != len(phases):
        raise SystemExit(f"boundary-{kind}: {len(found)} of {len(phases)} sizes came through")
    return {rows: (at - found[n][1]) / count for n, ((rows, at), (_, count)) in enumerate(zip(found[1:], phases[1:], strict=True))}


def _read(marks: Path) -> list[tuple[int, float]]:
    lines = marks.read_text("utf-8").splitlines() if marks.exists() else []
    return [(int(rows), float(at)) for rows, at in map(str.split, lines)]


def boundary(cluster: Cluster, *, runs: int, scale: int = 1) -> dict[str, float]:
    """Microseconds of CPU that one more stage costs a batch, as `batch_unfused_us_per_batch_10000`; medians."""
    figures: dict[str, float] = {}
    for mode, streaming in (("batch", False), ("stream", True)):
        jobs: dict[str, list[dict[int, float]]] = {kind: [] for kind in KINDS}
        for _ in range(runs):
            for kind in KINDS:
                jobs[kind].append(taken(cluster, kind, streaming=streaming, scale=scale))
        for rows in SIZES:
            per = {kind: statistics.median(job[rows] for job in found) for kind, found in jobs.items()}
            for kind in KINDS[1:]:
                us = (per[kind] - per["plain"]) / STAGES * 1e6
                figures[f"{mode}_{kind}_us_per_batch_{rows}"] = us
                print(
                    f"  {mode}: one more {kind} stage, batches of {rows:6,d} rows: {us:9,.0f} us a batch, {us / rows:6.3f} us a row",
                    flush=True,
                )
    return figures


def main() -> None:
    """These figures alone."""
    with tempfile.TemporaryDirectory() as folder, local_cluster(Path(folder) / "cluster") as cluster:
        print(json.dumps({name: round(value, 1) for name, value in boundary(cluster, runs=int(os.environ.get("RUNS", "1"))).items()}))


if __name__ == "__main__":
    import flink_boundary  # workers find its steps by this name

    flink_boundary.main()
