"""How far a range may reach beside a stream: to where its windows are closed, and copies are no longer compared."""

from __future__ import annotations

from beam_pipelines.arrow.ranges import Range, show_instant, widened
from beam_pipelines.errors import SpecError
from beam_pipelines.sinks.outputs import read_outputs
from beam_pipelines.sinks.reached import starts
from beam_pipelines.spec.horizon import compared_late
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.ranges import cuts_of

_FIRST = -(2**62)


def closed_until(spec: PipelineSpec, state: str) -> int | None:
    """Up to which event time (microseconds) the stream of this state takes no more rows into windows; None where no stream ever started."""
    known = starts(state)
    if read_outputs(state) is None or not known:
        return None
    watermark = known[max(known)].watermark_micros
    return _FIRST if watermark is None else watermark - compared_late(spec)


def shortened(spec: PipelineSpec, state: str, asked: Range) -> Range:
    """The part of the range that is closed, in whole partitions of every output; it may be empty."""
    closed = closed_until(spec, state)
    if closed is None or closed >= asked.end:
        return asked
    end = max(closed, asked.start)
    for cut in cuts_of(spec):
        end = min(end, widened((end, end + 1), cut.by.transform).start)
    return Range(asked.start, max(end, asked.start))


def check_closed(loaded: LoadedSpec, asked: Range) -> None:
    """Raises SpecError where the range reaches into time in which windows of the stream are still open."""
    fits = shortened(loaded.spec, loaded.state, asked)
    if fits == asked:
        return
    closed = closed_until(loaded.spec, loaded.state)
    until = "nowhere yet" if closed is None or closed <= _FIRST // 2 else f"up to {show_instant(closed)}"
    nearest = f"The nearest range: --from {show_instant(asked.start)} --to {show_instant(fits.end)}. " if fits.end > fits.start else ""
    raise SpecError(
        f"the range ends at {show_instant(asked.end)}, and the stream's windows are closed {until}: rows of the range may still arrive.",
        hint=f"{nearest}Or say --ignore-stream: what arrives later is counted as stale.",
    )
