"""Beam's NaN progress of unbounded sources: it is still there, and ours is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
from apache_beam.io.iobase import RestrictionProgress
from apache_beam.io.unbounded_source import _PROVIDER, UnboundedCountingSource
from apache_beam.runners.worker.bundle_processor import DataInputOperation
from apache_beam.utils.counters import Counter, CounterFactory

from beam_pipelines.sources import split_progress

NO_SAMPLE_YET = CounterFactory().get_counter("bytes", Counter.BEAM_DISTRIBUTION).value()[0]


def asked_to_split(progress: RestrictionProgress | None) -> Any:
    """What Beam does with a source's progress when a runner asks for a split before an output's size was sampled."""
    part = 0.5 if progress is None else progress.with_completed(1 * NO_SAMPLE_YET).fraction_completed
    return DataInputOperation._compute_split(0, part, 1, 0.5, 1)


def tracker() -> Any:
    return _PROVIDER.create_tracker(_PROVIDER.initial_restriction(UnboundedCountingSource(3)))


def test_beam_still_needs_the_repair() -> None:
    """Fails when Beam is repaired: then `split_progress` can go."""
    assert math.isnan(NO_SAMPLE_YET)
    with pytest.raises(ValueError, match="cannot convert float NaN to integer"):
        asked_to_split(split_progress.BEAMS_OWN(tracker()))


def test_with_it_a_split_is_declined_and_nothing_breaks() -> None:
    split_progress.install()
    split_progress.install()
    assert asked_to_split(tracker().current_progress()) is None
    assert split_progress.BEAMS_OWN(tracker()) is not None
