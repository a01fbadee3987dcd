"""Retention against what the pipeline itself still needs."""

from __future__ import annotations

from beam_pipelines.arrow.durations import format_duration
from beam_pipelines.spec.document import Document
from beam_pipelines.spec.horizon import horizon
from beam_pipelines.spec.models import PipelineSpec

_MINUTE = 60_000_000


def check_retention(spec: PipelineSpec, document: Document) -> None:
    """Adds a problem where the archive would not be kept as long as a stream that starts again reads back."""
    keep, needed = spec.retention.archive, horizon(spec)
    if keep is not None and spec.sources.stream and keep < needed:
        text = (
            f"got {format_duration(keep)}; a stream that starts again reads the archive {format_duration(_rounded(needed))} back "
            "(windows, lateness, deduplicate.within, allowed_skew); keep at least that"
        )
        document.problem(("retention", "archive"), text)


def _rounded(micros: int) -> int:
    """Up to whole minutes."""
    return -(-micros // _MINUTE) * _MINUTE
