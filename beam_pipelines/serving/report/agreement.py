"""What a comparison of the batch's answer with the stream's has found, for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from beam_pipelines.arrow.ranges import Range, partition_range, union, widened
from beam_pipelines.errors import SpecError
from beam_pipelines.sinks.manifest import Snapshot
from beam_pipelines.sinks.outputs import SpeedOutput
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.sinks.speed_views import folders_in_use
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.ranges import cuts_of, parse_range
from beam_pipelines.spec.sinks import ROWS


@dataclass(frozen=True)
class Agreement:
    """One output over one range: rows (or groups) that are `equal` in both layers, and those that are not.

    `differing` are in both with other values; `only_batch` and `only_speed` in one alone. `range` as people read it; `note` says why, where that is known.
    """

    output: str
    range: str
    equal: int
    differing: int = 0
    only_batch: int = 0
    only_speed: int = 0
    note: str = ""

    @property
    def apart(self) -> int:
        """Rows on which the layers do not agree."""
        return self.differing + self.only_batch + self.only_speed


def compared_range(spec: PipelineSpec, run: RunResults, batch: Mapping[str, Snapshot], speed: Mapping[str, SpeedOutput]) -> Range | None:
    """Over which event times the report compares the layers: the range of the run; without one from the first to the last partition of rows that the stream
    has stored. So it costs no more than the stream has stored, however long the batch's history is. None, which is all of it, where this is not known.
    """
    if run.metadata.range:
        return parse_range(spec, *run.metadata.range)
    stored = union(found for name in batch.keys() & speed.keys() for found in _partitions(batch[name], speed[name]))
    if not stored:
        return None
    over = Range(stored[0].start, stored[-1].end)
    try:
        for cut in cuts_of(spec):
            over = widened(over, cut.by.transform)
    except SpecError:  # an output that no range replaces
        return None
    return over


def _partitions(snapshot: Snapshot, output: SpeedOutput) -> list[Range]:
    clock = snapshot.clock
    if output.of != ROWS or clock is None:
        return []
    found = (partition_range(folder, clock.partition, clock.unit) for folder in folders_in_use(output.folder) or ())
    return [each for each in found if each is not None]
