"""A bundle ends when its work does. Fails when Beam no longer sleeps: then `runners/bundle_ends.py` can go."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from apache_beam.runners.worker.statesampler import StateSampler
from apache_beam.utils.counters import CounterFactory

from beam_pipelines.runners import bundle_ends

LONG_S = 0.8  # until Beam samples every 100 ms


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = StateSampler.__init__.__defaults__
    yield
    StateSampler.__init__.__defaults__ = before


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
    StateSampler.__init__.__defaults__ = (bundle_ends.BEAMS_OWN_MS,)
    assert stopping_s() > 2 * bundle_ends.PERIOD_MS / 1e3


def test_samplers_sample_often_enough_to_end_at_once() -> None:
    bundle_ends.install()
    bundle_ends.install()
    sampler = StateSampler("stage", CounterFactory())
    assert sampler.sampling_period_ms == bundle_ends.PERIOD_MS
    assert bundle_ends.BEAMS_OWN_MS == 200
