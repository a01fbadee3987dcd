"""What a stage or a sink is given: one PCollection, or the result of the stage before, whose dead letters and counts go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apache_beam as beam


def arriving(stage_input: Any) -> tuple[beam.PCollection, list[beam.PCollection], list[beam.PCollection]]:
    """Rows, and the dead letters and counts of the stages before, if `stage_input` is such a stage's result.

    Its other fields, `duplicates` say, are for whoever asks for them: they go no further.
    """
    if isinstance(stage_input, beam.PCollection):
        return stage_input, [], []
    if isinstance(stage_input, tuple) and stage_input:
        named = list(zip(names_of(stage_input), stage_input, strict=True))
        dead, counts = ([part for name, part in named[1:] if name == wanted] for wanted in ("dead", "counts"))
        return stage_input[0], dead, counts
    raise TypeError(f"a stage takes a PCollection of RecordBatch or the result of another stage; got {type(stage_input).__name__}")


def names_of(result: tuple[Any, ...]) -> tuple[str, ...]:
    """The fields of a stage's result. A tuple without names has rows first and counts last, and dead letters between."""
    plain = ("rows", *["dead"] * (len(result) - 2), "counts")[: len(result)]
    names: tuple[str, ...] = getattr(result, "_fields", plain)
    return names


def joined(collections: Sequence[beam.PCollection], label: str) -> beam.PCollection:
    """One PCollection of all; a single one as it is."""
    return collections[0] if len(collections) == 1 else tuple(collections) | f"All{label}" >> beam.Flatten()
