"""How a pipeline stands: its newest start of the stream and how far that has come, its newest batch run; starts that left no record. Loads no Beam."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from beam_pipelines.sinks.deletions import read_account
from beam_pipelines.sinks.epochs import Start, latest_epoch, newest_start, runs_here, starts_of
from beam_pipelines.sinks.reached import Reached, reached_by
from beam_pipelines.sinks.results import RunResults, list_runs

_LOOKED_AT = 50


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


@dataclass(frozen=True)
class Unrecorded:
    """A start of the stream that has ended and left no record: `taken over` where it was still heard of after the next one had begun, else `killed`. `heard_of`: when for the last
    time; None: never. `why`: a sentence."""

    run_id: str
    started_at: datetime
    status: Literal["killed", "taken over"]
    heard_of: datetime | None
    why: str


def unrecorded(state: str, recorded: Collection[str]) -> list[Unrecorded]:
    """The starts, of the newest 50, that have ended without a record, the newest first; `recorded` are the runs that have one. Not those whose record retention may have
    deleted."""
    last = latest_epoch(state)
    if not last:
        return []
    looked_at = range(max(1, last - _LOOKED_AT + 1), last + 1)
    known = starts_of(state, looked_at)
    ended = {e: s for e, s in known.items() if s.run_id not in recorded and (e != last or runs_here(state, s) is False)}
    if not ended:
        return []
    deleted_until = max((deleted.until for deleted in read_account(state).deleted if deleted.of == "runs"), default=0)
    ended = {e: s for e, s in ended.items() if datetime.fromisoformat(s.started_at).timestamp() * 1_000_000 >= deleted_until}
    reached = reached_by(state, {*ended, *(epoch - 1 for epoch in ended)})
    found = []
    for epoch, start in ended.items():
        of_it = reached.get(epoch)
        if of_it is None or not of_it.ended:
            found.append(_without_record(start, of_it, reached.get(epoch - 1), known.get(epoch + 1)))
    return found[::-1]


def _without_record(start: Start, reached: Reached | None, before: Reached | None, after: Start | None) -> Unrecorded:
    begun = datetime.fromisoformat(start.started_at)
    through = None if reached is None or (before is not None and reached.through_ms == before.through_ms) else reached.through_ms
    heard = None if through is None else datetime.fromtimestamp(through / 1000, UTC)
    last = f"last heard of {heard:%Y-%m-%dT%H:%M:%SZ}" if heard is not None and heard > begun else "never heard of"
    if after is None:
        return Unrecorded(start.run_id, begun, "killed", heard, f"left no record: it was killed, or ended with an error; {last}")
    by = f"run {after.run_id}, which began {after.started_at}"
    if heard is not None and heard > datetime.fromisoformat(after.started_at):
        return Unrecorded(start.run_id, begun, "taken over", heard, f"left no record: it was taken over by {by}; {last}")
    return Unrecorded(
        start.run_id, begun, "killed", heard, f"left no record: it was killed, ended with an error, or was taken over by {by}; {last}"
    )


def standing(state: str) -> Standing:
    """How the pipeline stands whose state this is."""
    batches = (run for run in list_runs(state) if run.metadata.mode == "batch")
    return Standing(_stream(state), next(batches, None))


def _stream(state: str) -> StreamStanding | None:
    newest = newest_start(state)
    if newest is None:
        return None
    epoch, start = newest
    reached = reached_by(state, [epoch]).get(epoch)
    drained = reached is not None and reached.ended
    runs = False if drained else runs_here(state, start)
    return StreamStanding(
        epoch, start.run_id, start.started_at, start.host, start.pid, runs, drained,
        None if reached is None else reached.watermark_micros, None if reached is None else reached.through_ms,
    )  # fmt: skip
