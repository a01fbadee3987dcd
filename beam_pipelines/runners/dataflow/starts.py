"""Which start of a stream a job on Dataflow is: the first, a next one after a job that has ended, or the running one, replaced.

    first     epoch 1
    next      a new epoch: state is gone with the job, so the subscriptions deliver again what open windows and the comparison of copies need
    update    the epoch and run id of the running job, whose state goes on

A job that was *drained* has shown its open windows as if they were complete, and has noted as its progress the ends of these windows, which lie ahead of what it had
read. No step of a job learns that it is drained. So a next start takes the progress to be one horizon earlier than was noted: no window ends later than that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from beam_pipelines.edges import Resume
from beam_pipelines.errors import SpecError
from beam_pipelines.runners.dataflow.settings import DATAFLOW
from beam_pipelines.runners.dataflow.subscriptions import go_back
from beam_pipelines.runners.versions import versions_here
from beam_pipelines.sinks.epochs import Ran, keep_ran, newest_start, run_another, take_epoch
from beam_pipelines.sinks.reached import Reached, begin, starts, until_now, write_progress
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sources.pubsub_messages import AHEAD_MICROS
from beam_pipelines.spec.horizon import horizon
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sources import PubsubSource

_TICK_MICROS = 1_000_000  # by which progress may be ahead besides

Say = Callable[[str], None]
Versions = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Begun:
    """The run, how far the starts before it had come, and the name of what it runs, as in `epochs.Start`."""

    run: RunInfo
    before: Reached
    ran: str = ""


def of_trial(spec: PipelineSpec, state: str, run_id: str) -> Begun:
    """A first start, of which nothing is written down."""
    return Begun(RunInfo(run_id, spec.pipeline, state, mode="stream", epoch=1), Reached())


def of_running(loaded: LoadedSpec, versions: Versions, *, say: Say) -> Begun:
    """The start that is at work. Raises SpecError where there is none. What it runs is written down, but not yet that it does: see `goes_on`."""
    spec, state = loaded.spec, loaded.state
    newest = newest_start(state)
    if newest is None:
        raise SpecError(f"--update: {state}: this stream was never started; expected a running job.", hint="Leave --update out.")
    epoch, start = newest
    own = starts(state).get(epoch, Reached())
    say(f"stream {spec.pipeline}: start {epoch} goes on in a new job, with its state")
    return Begun(
        _run(spec, state, start.run_id, epoch, versions), Reached(own.began_micros, own.began_micros), keep_ran(state, Ran.of(loaded))
    )


def goes_on(begun: Begun) -> None:
    """Writes down that the start at work runs another spec from now on. Call it when the service has taken the job that does."""
    run = begun.run
    run_another(run.state, run.epoch, ran=begun.ran, lookups=dict(run.lookups), versions=_versions())


def first_or_next(loaded: LoadedSpec, run_id: str, versions: Versions, *, first: bool, say: Say) -> Begun:
    """A start of its own; `first`: no earlier one has run. Raises SourceError where a subscription does not keep what this one needs again; then no epoch was taken."""
    spec, state, ran = loaded.spec, loaded.state, Ran.of(loaded)
    if first:
        epoch = take_epoch(state, run_id, dict(versions), ran=ran, versions=_versions())
        begin(state, epoch)
        say(f"stream {spec.pipeline}: start {epoch}")
        return Begun(_run(spec, state, run_id, epoch, versions), Reached(), keep_ran(state, ran))
    before = certain(spec, state)
    since = Resume(before).since(spec)
    for source in spec.sources.stream:
        _go_back(source, since, say=say)
    epoch = take_epoch(state, run_id, dict(versions), ran=ran, versions=_versions())
    write_progress(state, epoch, Reached(before.watermark_micros, before.watermark_micros, before.through_ms))
    say(f"stream {spec.pipeline}: start {epoch}; {delivered_again(since)} is read again")
    return Begun(_run(spec, state, run_id, epoch, versions), before, keep_ran(state, ran))


def _go_back(source: PubsubSource, since: int | None, *, say: Say) -> None:
    """Has what arrived at `since` or later delivered again; where it is an attribute that says when, also what was published so much earlier."""
    ahead = AHEAD_MICROS if source.arrival is not None and source.arrival.attribute is not None else 0
    found = go_back(source.pubsub, since, ahead=ahead)
    if since is not None and found > since - ahead:
        say(
            f"{source.pubsub}: keeps messages since {_second(found)}: what was published before and says to have arrived at {_second(since)} or later "
            "is not read again, and windows may lack it until a batch over the archive"
        )


def delivered_again(since: int | None) -> str:
    """What a start reads again, in words."""
    return "all that the subscriptions keep" if since is None else f"what arrived since {_second(since)}"


def _second(micros: int) -> str:
    return f"{np.datetime64(micros, 'us').astype('datetime64[s]')}Z"


def certain(spec: PipelineSpec, state: str) -> Reached:
    """How far the starts of this state have come for certain; from there a next one goes back."""
    earlier = starts(state)
    return safe(until_now(earlier[max(earlier)]) if earlier else Reached(), spec)


def safe(noted: Reached, spec: PipelineSpec) -> Reached:
    """How far the starts before have come for certain, drained or not."""
    if noted.watermark_micros is None or noted.ended:  # noted by a launcher that saw the stream end
        return noted
    if noted.watermark_micros == noted.began_micros:  # it has not come further than where it began, which was certain
        return noted
    return replace_watermark(noted, noted.watermark_micros - horizon(spec) - _TICK_MICROS)


def replace_watermark(reached: Reached, micros: int) -> Reached:
    """The same with another watermark."""
    return Reached(micros, reached.began_micros, reached.through_ms, reached.ended, reached.out_ms)


def _run(spec: PipelineSpec, state: str, run_id: str, epoch: int, versions: Versions) -> RunInfo:
    return replace(RunInfo(run_id, spec.pipeline, state, mode="stream", epoch=epoch), lookups=versions)


def _versions() -> dict[str, str]:
    return {**versions_here(), "engine": DATAFLOW}
