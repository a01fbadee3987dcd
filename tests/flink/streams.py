"""Streams for tests: ticks that need no service, counted in state, each count written down by the worker that counted; and a spec's, run by the command."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.coders import VarIntCoder
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from beam_pipelines.runners.flink.cluster import Cluster
from tests.faults.stream_jobs import Job, Lake

EVERY_S = 0.1


class Count(beam.DoFn):
    """Appends "process count" to a file for each element of a key: a count that goes on after a crash was in a checkpoint."""

    COUNT = ReadModifyWriteStateSpec("count", VarIntCoder())

    def __init__(self, path: str) -> None:
        self._path = path

    def process(self, element: tuple[str, Any], count: Any = beam.DoFn.StateParam(COUNT)) -> Iterator[None]:
        number = (count.read() or 0) + 1
        count.write(number)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {number}\n")
        yield from ()


def ticks(pipeline: beam.Pipeline, path: Path) -> None:
    """One element each EVERY_S, for ever, all of one key."""
    ticking = pipeline | "Ticks" >> PeriodicImpulse(fire_interval=EVERY_S, apply_windowing=False)
    ticking | "Key" >> beam.Map(lambda tick: ("key", tick)) | "Count" >> beam.ParDo(Count(str(path)))


def counts(path: Path) -> list[tuple[int, int]]:
    """Process and count of each element so far."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [(int(pid), int(number)) for pid, number in (line.split() for line in lines)]


@contextmanager
def started(lake: Lake, cluster: Cluster, *options: str, flags: Sequence[str] = ()) -> Iterator[Job]:
    """The command with the stream of `lake` on the cluster, its work done by the cluster's pool; it is killed with the block, if it has not ended. `flags` are Beam's."""
    flink = ["--runner", "flink", "--flink-master", cluster.rest, "--flink-workers", cluster.workers]
    job = lake.start(*flink, *options, "--", "--checkpointing_interval=1000", *flags)
    try:
        yield job
    finally:
        if job.process.poll() is None:
            job.kill()
