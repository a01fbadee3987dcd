"""A batch stage that gives more than the queues between worker and Flink hold: in a batch, all that a stage does in a slot is one bundle."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import pytest

from beam_pipelines.runners.flink.cluster import Cluster
from beam_pipelines.runners.flink.conf import HEAP_MB
from beam_pipelines.runners.flink.job import flink_job
from beam_pipelines.runners.options import Flink

pytestmark = pytest.mark.flink

MB = 1 << 20
COUNT = HEAP_MB + 400
"""Megabytes: more than the task manager's heap and Beam's own queues hold together."""


class Give(beam.DoFn):
    def process(self, count: int) -> Iterator[bytes]:
        for number in range(count):
            yield number.to_bytes(4, "big") * (MB // 4)


class Seen(beam.DoFn):
    """Writes down how many it has had, each once, when the bundle ends."""

    def __init__(self, path: str) -> None:
        self._path = path

    def start_bundle(self) -> None:
        self._numbers: list[int] = []

    def process(self, element: bytes) -> Iterator[None]:
        self._numbers.append(int.from_bytes(element[:4], "big"))
        yield from ()

    def finish_bundle(self) -> None:
        if self._numbers:
            Path(self._path).write_text(f"{len(self._numbers)} {len(set(self._numbers))}", "utf-8")


def test_a_bundle_that_gives_more_than_a_task_manager_holds_ends(flink_cluster: Cluster, tmp_path: Path) -> None:
    def build(pipeline: beam.Pipeline) -> None:
        given = pipeline | beam.Create([COUNT]) | beam.ParDo(Give()).with_output_types(bytes)
        given | beam.Reshuffle() | beam.ParDo(Seen(str(tmp_path / "seen")))

    flink = Flink(flink_cluster.rest, flink_cluster.workers)
    with flink_job(build, flink, name=f"large-{uuid.uuid4().hex}", flags=["--parallelism=1"], streaming=False) as job:
        assert job.wait(150), "it stands still"
    assert (tmp_path / "seen").read_text() == f"{COUNT} {COUNT}"
