"""How outputs are cut by time, which is what batch and stream share them by. Loads no numpy, for `validate`."""

from __future__ import annotations

from beam_pipelines.arrow.partition import FINEST_FIRST, Partition, parse_partition
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sinks import LETTERS, ROWS, ParquetSink, Sink

WINDOW = "_window_start"


def unjoined_of(spec: PipelineSpec) -> dict[str, str | None]:
    """Outputs that batch and stream write and that no range of time cuts, with the column that would: None where the contract names no event time."""
    if not (spec.sources.batch and spec.sources.stream):
        return {}
    found = {}
    for sink in spec.sinks:
        column = spec.contract.event_time if sink.from_ == ROWS else WINDOW
        if sink.pubsub is None and sink.from_ != LETTERS and (column is None or cut_of(sink, column) is None):
            found[sink.from_] = column
    return found


def cut_of(sink: Sink, column: str) -> Partition | None:
    """The finest partition of an output by this time; None where there is none."""
    by = [parse_partition(p) for p in sink.destination.partition_by] if isinstance(sink.destination, ParquetSink) else []
    return next((p for unit in FINEST_FIRST for p in by if (p.transform, p.column) == (unit, column)), None)
