"""How a pipeline stands: its newest start of the stream and how far that has come, its newest batch run. Loads no Beam."""

from __future__ import annotations

from dataclasses import dataclass

from beam_pipelines.sinks.epochs import newest_start, runs_here
from beam_pipelines.sinks.reached import starts
from beam_pipelines.sinks.results import RunResults, list_runs


@dataclass(frozen=True)
class StreamStanding:
    """The newest of `starts` starts. `alive`: whether its process runs; None where it ran on another machine, or a service runs it. `drained`: it ended in order.

    What arrived before `stored_until` (microseconds of the arrival clock) is in the sinks, and what was archived before `through_ms` (since 1970); None where
    nothing is known.
    """

    starts: int
    run_id: str
    started_at: str
    host: str
    pid: int
    alive: bool | None
    drained: bool
    stored_until: int | None
    through_ms: int | None

    @property
    def lost(self) -> bool:
        """Whether it neither runs nor ended in order."""
        return self.alive is False and not self.drained


@dataclass(frozen=True)
class Standing:
    """A pipeline's stream, and its newest batch run; None where there is none."""

    stream: StreamStanding | None
    batch: RunResults | None


def standing(state: str) -> Standing:
    """How the pipeline stands whose state this is."""
    batches = (run for run in list_runs(state) if run.metadata.mode == "batch")
    return Standing(_stream(state), next(batches, None))


def _stream(state: str) -> StreamStanding | None:
    newest = newest_start(state)
    if newest is None:
        return None
    epoch, start = newest
    reached = starts(state).get(epoch)
    drained = reached is not None and reached.ended
    runs = False if drained else runs_here(state, start)
    return StreamStanding(
        epoch, start.run_id, start.started_at, start.host, start.pid, runs, drained,
        None if reached is None else reached.watermark_micros, None if reached is None else reached.through_ms,
    )  # fmt: skip
