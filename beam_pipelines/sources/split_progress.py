"""Beam 2.77's unbounded sources under a runner that asks for splits: what keeps Prism from ending the job with an error."""

from __future__ import annotations

from apache_beam.io import unbounded_source

BEAMS_OWN = unbounded_source._UnboundedSourceRestrictionTracker.current_progress  # for the test that says when this module can go


def install() -> None:
    """Unbounded sources of this process answer "progress unknown" instead of a progress that can be NaN. Twice is the same as once.

    Beam multiplies the reader's progress with an estimate of the bytes it has put out. Before the first output has been sampled the
    estimate is NaN, and `bundle_processor._compute_split` raises `ValueError: cannot convert float NaN to integer`, which ends the job.
    Prism asks for a split whenever a bundle shows no progress for 100 ms, so every source that waits for data meets it. With "unknown"
    Beam takes one half; the source refuses every split but its own checkpoint either way, so nothing else changes.

    It must run in each process that runs an SDK harness: call it where the source's module is imported.
    """
    unbounded_source._UnboundedSourceRestrictionTracker.current_progress = _unknown


def _unknown(_: object) -> None:
    return None
