"""A bundle ends when its work does, and answers first. Fails when Beam no longer sleeps: then `bundle_ends.install` can go."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.worker.statesampler import StateSampler
from apache_beam.utils.counters import CounterFactory

from beam_pipelines.runners import bundle_ends
from tests.prism import prism_program, run_on_prism
from tests.runners.prism_source import Gather, numbers, reset

LONG_S = 0.8  # until Beam samples every 100 ms


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = StateSampler.start, StateSampler.stop
    yield
    StateSampler.start, StateSampler.stop = before


def stopping_s() -> float:
    """How long a sampler takes to stop after a bundle of LONG_S: the longest of several."""
    longest = 0.0
    for _ in range(4):
        sampler = StateSampler("stage", CounterFactory())
        sampler.start()
        threading.Event().wait(LONG_S)
        begun = time.monotonic()
        sampler.stop()
        longest = max(longest, time.monotonic() - begun)
    return longest


@pytest.mark.slow
def test_beams_own_sampler_still_sleeps_at_the_end() -> None:
    StateSampler.start, StateSampler.stop = bundle_ends.BEAMS_OWN
    assert stopping_s() > 0.02


def test_a_bundle_is_not_sampled() -> None:
    bundle_ends.install()
    bundle_ends.install()
    threads = {*threading.enumerate()}
    sampler = StateSampler("stage", CounterFactory())
    for _ in range(2):
        sampler.start()
        assert {*threading.enumerate()} <= threads
        sampler.stop_if_still_running()
        assert sampler.finished
        sampler.reset()
        assert not sampler.started


def test_every_bundle_on_prism_answers_before_its_outputs_end(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, list[str]] = defaultdict(list)
    execute, enqueue = bundle_ends._beams_execute, bundle_ends._beams_enqueue

    def executed(harness: Any, task: Any, request: Any) -> None:
        execute(harness, task, request)
        said[request.instruction_id].append("answer")

    def enqueued(channel: Any, element: Any) -> None:
        said[element.instruction_id].append("end" if element.is_last else "output")
        enqueue(channel, element)

    monkeypatch.setattr(bundle_ends, "_beams_execute", executed)
    monkeypatch.setattr(bundle_ends, "_beams_enqueue", enqueued)
    seen = reset()

    def build(pipeline: beam.Pipeline) -> None:
        keyed = numbers(pipeline, 23) | "Key" >> beam.Map(lambda n: ("one", n)).with_output_types(tuple[str, int])
        _ = keyed | "Gather" >> beam.ParDo(Gather())

    run_on_prism(build, flags=[f"--prism_location={prism_program()}"])
    assert sorted(seen.numbers) == list(range(23))
    bundles = [words for words in said.values() if "end" in words]
    assert len(bundles) > 5
    for words in bundles:
        outputs, ends = words[: words.index("answer")], words[words.index("answer") + 1 :]
        assert set(outputs) <= {"output"}
        assert set(ends) == {"end"}
