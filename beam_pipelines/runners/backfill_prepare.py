"""What a call of `backfill` means: an attempt that goes on, or the steps of a new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from typing import NamedTuple

from beam_pipelines.arrow.ranges import Range, minus, show_instant, show_range
from beam_pipelines.runners.backfill import BackfillPlan, backfill_id, done_steps, newest_plan
from beam_pipelines.runners.backfill_steps import Input, Step, Stride, check_steps, stale_pieces
from beam_pipelines.runners.closed import shortened
from beam_pipelines.sinks.labels import places_of
from beam_pipelines.sinks.manifest import Committed, Snapshot, snapshots
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.spec.horizon import reach
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.sinks import ROWS


class Stale(NamedTuple):
    """Rows that arrived too late for a committed partition [start, end) of an output."""

    output: str
    start: int
    end: int
    rows: int


@dataclass(frozen=True)
class Ask:
    """What is asked for. Over a `range`, None only with `stale`: then everything that is committed. `clock` is whose days steps count.
    `input`: None with `stale`: that from which each range was computed before."""

    range: Range | None
    stride: Stride
    clock: tzinfo = UTC
    input: Input | None = None
    stale: bool = False
    ignore_stream: bool = False
    restart: bool = False

    @property
    def text(self) -> str:
        where = "" if self.range is None else show_range(self.range)
        return " in ".join(filter(None, ["what is stale" if self.stale else "", where]))


@dataclass(frozen=True)
class Prepared:
    """`plan` is an attempt that is not finished, with the records of the steps that are `done`; else `steps` are those of a new one, which may be none.

    `until`: the stream's windows are closed up to there, and the steps end there; None where nothing was left out. `notes` are for the user.
    """

    id: str
    plan: BackfillPlan | None = None
    done: dict[int, RunResults] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    until: int | None = None
    notes: tuple[str, ...] = ()


def prepare(found: LoadedSpec, ask: Ask, stale: Callable[[], Sequence[Stale]]) -> Prepared:
    """What to do. Changes nothing. `stale` is called where it matters what is.

    Raises SpecError where a step does not fit the outputs.
    """
    id_ = backfill_id(found.spec, found.state, ask.range, ask.stride, ask.input, ask.stale, ask.ignore_stream)
    plan = newest_plan(found.state, id_)
    done = {} if plan is None else done_steps(found.state, plan)
    notes: list[str] = []
    if plan is not None and len(done) < len(plan.steps):
        so_far = f"{len(done)} of {len(plan.steps)} steps are done"
        if not ask.restart:
            return Prepared(id_, plan, done, plan.steps, plan.until, (f"attempt {plan.attempt} goes on: {so_far}",))
        notes.append(f"attempt {plan.attempt} is given up: {so_far}")
    elif plan is not None and not ask.stale:
        notes.append(f"attempt {plan.attempt}, of {plan.created_at}, is finished; this is a new one")
    steps, until = _steps(found, ask, stale)
    if until is not None:
        notes.append(f"shortened: after {show_instant(until)} windows of the stream are still open (--ignore-stream takes all)")
    return Prepared(id_, None, {}, steps, until, tuple(notes))


def _steps(found: LoadedSpec, ask: Ask, stale: Callable[[], Sequence[Stale]]) -> tuple[tuple[Step, ...], int | None]:
    """The steps as far as a stream lets them reach, and where that is if something was left out."""
    pieces = _stale(found, ask, stale()) if ask.stale else (Step(*ask.range, ask.input or "batch"),) if ask.range else ()
    steps, left_out = list[Step](), list[int]()
    for piece in pieces:
        fits = piece.range if ask.ignore_stream else shortened(found.spec, found.state, piece.range)
        if fits != piece.range:
            left_out.append(fits.end)
        checked = check_steps(
            found.spec, fits if fits.start < fits.end else piece.range, ask.stride, ask.clock
        )  # a wrong step is wrong today
        if fits.start < fits.end:
            steps += [Step(*step, piece.input) for step in checked]
    return tuple(steps), min(left_out, default=None)


def _stale(found: LoadedSpec, ask: Ask, lines: Sequence[Stale]) -> tuple[Step, ...]:
    outputs = committed(found)
    of = {name: snapshot.of for name, snapshot in outputs.items()}
    rows = [(line.start, line.end) for line in lines if of.get(line.output) == ROWS]
    panes = [(line.start, line.end) for line in lines if of.get(line.output) != ROWS]
    pieces = stale_pieces(found.spec, rows, panes, [r for s in outputs.values() for r in s.ranges], reach(found.spec))
    return tuple(
        Step(max(p.start, where.start), min(p.end, where.end), ask.input or p.input)
        for p in pieces
        for where in [ask.range or p.range]
        if p.start < where.end and where.start < p.end
    )


def committed(found: LoadedSpec) -> dict[str, Snapshot]:
    """The outputs of which it is known for which times a batch is the authority."""
    return {name: s for name, s in snapshots(found.state, places_of(found.spec)).items() if s.clock is not None}


def committed_in(outputs: Sequence[Snapshot], step: Range) -> tuple[bool, list[Committed]]:
    """Whether all of the outputs are committed in all of the step, and the ranges that reach into it, the newest first."""
    there = [[r for r in snapshot.ranges if r.start < step.end and step.start < r.end] for snapshot in outputs]
    whole = bool(there) and all(not minus(step, [(r.start, r.end) for r in ranges]) for ranges in there)
    newest = {r.run_id: r for ranges in there for r in ranges}
    return whole, sorted(newest.values(), key=lambda r: -r.as_of)
