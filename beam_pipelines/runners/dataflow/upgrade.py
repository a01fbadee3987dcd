"""What a new version of a spec does to a stream on Dataflow, and how it takes over there: by an update of the job that runs, or, where none does, by a start.

    what is stored      the rules that hold everywhere (`runners.upgrade`), against what the job that runs says it runs
    the job's state     goes on in an update, unless something on which it stands has changed (`plan`); then only a start can take over, once the job has ended

A job says by a label what it runs. The service may turn an update down after it took it, and the old job goes on: the newest record would be of a spec that does not run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import ValidationError

from beam_pipelines.edges import Resume
from beam_pipelines.runners.dataflow import service
from beam_pipelines.runners.dataflow.checks import check_dataflow
from beam_pipelines.runners.dataflow.job import DataflowCall, at_work, options_of
from beam_pipelines.runners.dataflow.plan import GraphChange, compare, planned
from beam_pipelines.runners.dataflow.service import Found
from beam_pipelines.runners.dataflow.starts import certain
from beam_pipelines.runners.upgrade import Upgrade, upgrade_of, version_of
from beam_pipelines.spec.load import LoadedSpec


@dataclass(frozen=True)
class TakeOver:
    """How a spec takes its stream over. `job`: the one that runs, and is replaced, with its state, unless there is something that `breaks` that.

    None: a start of its own. Then the subscriptions deliver again what arrived at `since` or later (microseconds; None: all that they keep), `first`: nothing.
    """

    job: Found | None = None
    breaks: tuple[GraphChange, ...] = ()
    first: bool = False
    since: int | None = None


def upgrade_on_dataflow(loaded: LoadedSpec, call: DataflowCall) -> tuple[Upgrade, TakeOver]:
    """What the spec would do to what is stored, and how it would take over. Nothing is changed.

    Raises SpecError where the job could not run there, RunError or TransientError where the service does not say which jobs run, SinkError where the state folder refuses.
    """
    check_dataflow(loaded, call.settings, call.flags, mode="stream")
    job, found = next(iter(at_work(loaded, call)), (None, None))
    if job is None or found is None:
        taken = service.taken_starts(loaded.state)
        return upgrade_of(loaded, begun=taken, from_archive=False), _start(loaded, first=not taken)
    ran = service.ran_by(options_of(loaded, call)[0], job, found)
    seen = upgrade_of(loaded, ran=ran, from_archive=False)
    ending = (GraphChange(f"it is in {found.state}", "a job that is to end takes no update", breaks=True),) if found.ending else ()
    return seen, TakeOver(found, (*ending, *_breaks(loaded, seen)))


def _start(loaded: LoadedSpec, *, first: bool) -> TakeOver:
    return TakeOver(first=first, since=None if first else Resume(certain(loaded.spec, loaded.state)).since(loaded.spec))


def _breaks(loaded: LoadedSpec, seen: Upgrade) -> tuple[GraphChange, ...]:
    """What the state of the job does not survive; nothing where what it runs is not known, which is a refused change."""
    try:
        old = None if seen.start is None else version_of(loaded.state, seen.start)
    except ValidationError:
        return ()
    if old is None:
        return ()
    before = replace(loaded, spec=old.spec, columns=old.columns)
    return tuple(change for change in compare(planned(before), planned(loaded)) if change.breaks)
