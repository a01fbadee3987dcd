"""Upkeep of what a pipeline has stored: small files become large ones, and what is older than the spec keeps it goes. Loads no Beam.

    settle ─▶ what is old ─▶ on record ─▶ deleted ─▶ small files merged ─▶ report
    (a call that died)

Safe beside a stream, a batch and another call: files of a folder are merged and deleted by one process at a time, and readers see each row until it is deleted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from beam_pipelines.arrow.ranges import show_instant
from beam_pipelines.errors import SinkError
from beam_pipelines.places import join, locked, parent
from beam_pipelines.serving.tables import stale_table
from beam_pipelines.serving.upkeep.archive import needed, newest_message, old_hours
from beam_pipelines.serving.upkeep.batch import (
    OldLetters,
    delete_letters,
    finish_letters,
    old_failed_letters,
    old_letters,
    old_runs,
    started,
)
from beam_pipelines.serving.upkeep.layers import Layer, LayerSize, expected, merge, size_of
from beam_pipelines.serving.upkeep.speed import Before, Found, old_files
from beam_pipelines.sinks.claims import claim, release
from beam_pipelines.sinks.deletions import Deleted, Doomed, Step, delete_steps, finish_deletions, of_a_stream, read_account
from beam_pipelines.sinks.epochs import latest_epoch
from beam_pipelines.sinks.labels import places_of
from beam_pipelines.sinks.manifest import snapshots
from beam_pipelines.sinks.outputs import read_outputs
from beam_pipelines.sinks.results import list_runs
from beam_pipelines.sinks.run import Output, RunInfo
from beam_pipelines.spec.horizon import horizon
from beam_pipelines.spec.load import LoadedSpec

__all__ = ["Kept", "Layer", "Report", "Row", "upkeep"]


@dataclass(frozen=True)
class Row:
    """What became of one layer. `after` is what lies there now, in a dry run what would; `merged` files were written, `swept` unfinished ones deleted."""

    layer: str
    of: str
    before: LayerSize
    after: LayerSize
    merged: int = 0
    swept: int = 0


@dataclass(frozen=True)
class Kept:
    """Rows that are older than the spec keeps them and stay all the same, and why."""

    layer: str
    rows: int
    why: str


@dataclass(frozen=True)
class Report:
    """What a call did. `deleted` is what retention deleted (in a dry run: would), `now` by which moment things were old, by field of the spec."""

    layers: tuple[Row, ...]
    deleted: tuple[Deleted, ...] = ()
    kept: tuple[Kept, ...] = ()
    before: Mapping[str, str] = field(default_factory=dict)
    dry_run: bool = False
    notes: tuple[str, ...] = ()


@dataclass
class _Plan:
    doomed: list[Doomed] = field(default_factory=list)
    letters: list[OldLetters] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    before: dict[str, str] = field(default_factory=dict)

    @property
    def needs_outputs(self) -> bool:
        """Whether no batch may be at work meanwhile: one that reads the archive, or commits letters."""
        return bool(self.letters) or any(d.of == "archive" for d in self.doomed)


def upkeep(
    loaded: LoadedSpec, layers: Sequence[Layer], outputs: Sequence[Output], *, run: RunInfo, dry_run: bool = False, now: Callable[[], float] = time.time,
    say: Callable[[str], None] = lambda path: None,
) -> Report:  # fmt: skip
    """Merges the small files of all `layers` and applies the spec's retention. `outputs` are those that a batch run of the spec would claim, `run` names
    this call, `now` gives seconds since 1970, `say` hears of each file.

    Raises SinkError where another call is at work, or a place refuses.
    """
    if dry_run:
        return _foreseen(loaded, layers, _plan(loaded, layers, now), now)
    with locked(loaded.state, wait=False) as held:
        if not held:
            raise SinkError(f"compact: another call works on {loaded.state}.", hint="Wait until it has ended.")
        notes: list[str] = []
        for _ in _finished(loaded, layers):
            pass
        plan = _plan(loaded, layers, now)
        before = [size_of(layer) for layer in layers]
        known = len(read_account(loaded.state).deleted)
        for step in _delete(loaded.state, plan, outputs, run, now, notes):
            say(step.path)
        deleted = read_account(loaded.state).deleted[known:]
        epoch = latest_epoch(loaded.state)
        acts = [merge(layer, epoch=epoch, now=now, say=say) for layer in layers]
        rows = [
            Row(layer.name, layer.of, was, size_of(layer), act["merged"], act["swept"])
            for layer, was, act in zip(layers, before, acts, strict=True)
        ]
    return Report(tuple(rows), deleted, tuple(plan.kept), plan.before, notes=tuple(notes))


def _finished(loaded: LoadedSpec, layers: Sequence[Layer]) -> Iterable[Step]:
    folders = [folder for layer in layers for folder in layer.folders()]
    failed = {
        join(run.kept_letters.folder, parent(path))
        for run in list_runs(loaded.state)
        if run.kept_letters
        for path in run.kept_letters.files
    }
    yield from finish_deletions(loaded.state, [*folders, join(loaded.state, "runs"), *sorted(failed)])
    yield from finish_letters(loaded.state)


def _plan(loaded: LoadedSpec, layers: Sequence[Layer], now: Callable[[], float]) -> _Plan:
    spec, state, keep, plan = loaded.spec, loaded.state, loaded.spec.retention, _Plan()
    wall = round(now() * 1_000_000)
    archives = {layer.top: layer.name for layer in layers if layer.of == "archive"}
    newest = newest_message(list(archives)) if any((keep.archive, keep.speed, keep.dead_letters)) else None
    message = None if newest is None else min(wall, newest)  # neither a wrong clock here nor a wrong time in a message makes all old

    def before(name: str, at: int | None, keep_for: int | None) -> int | None:
        if at is None or keep_for is None:
            return None
        plan.before[name] = show_instant(at - keep_for)
        return at - keep_for

    archive = before("archive", message, keep.archive)
    if archive is not None:
        need = needed(state, horizon(spec))
        for folder, name in archives.items():
            doomed, kept = old_hours(folder, name, archive, need)
            plan.doomed += doomed
            plan.kept += [Kept(name, rows, why) for why, rows in kept.items()]
    speed, letters = before("speed", message, keep.speed), before("dead_letters", message, keep.dead_letters)
    if speed is not None or letters is not None:
        found = _speed(loaded, speed, letters, {layer.top for layer in layers})
        plan.doomed += found.doomed
        plan.kept += [Kept(name, rows, why) for name, reasons in found.kept.items() for why, rows in reasons.items()]
    _batch(loaded, plan, wall)
    return plan


def _speed(loaded: LoadedSpec, speed: int | None, letters: int | None, tops: set[str]) -> Found:
    known, places = read_outputs(loaded.state), places_of(loaded.spec)
    if known is None:
        return Found()
    late = stale_table(loaded.state, places, loaded.spec).column("first_stored_at").to_pylist() if speed is not None else []
    since = min((round(at.timestamp() * 1_000_000) for at in late), default=None)
    batch = snapshots(loaded.state, places)
    event_time = loaded.spec.contract.event_time
    return old_files(loaded.state, known.outputs, batch, Before(speed, letters, since), event_time=event_time, tops=tops)


def _batch(loaded: LoadedSpec, plan: _Plan, wall: int) -> None:
    keep = loaded.spec.retention
    runs = list_runs(loaded.state) if keep.runs is not None or keep.dead_letters is not None else []
    if not runs:
        return
    newest = min(wall, started(runs[0]))
    if keep.runs is not None:
        plan.before["runs"] = show_instant(newest - keep.runs)
        plan.doomed += old_runs(loaded.state, runs, newest - keep.runs)
    if keep.dead_letters is not None:
        plan.before.setdefault("dead_letters", show_instant(newest - keep.dead_letters))
        plan.doomed += old_failed_letters(runs, newest - keep.dead_letters)
        plan.letters = old_letters(snapshots(loaded.state, places_of(loaded.spec)), runs, newest - keep.dead_letters)


def _delete(state: str, plan: _Plan, outputs: Sequence[Output], run: RunInfo, now: Callable[[], float], notes: list[str]) -> Iterable[Step]:
    at = datetime.fromtimestamp(now(), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    doomed, letters, held = plan.doomed, plan.letters, False
    if plan.needs_outputs:
        try:
            claim(outputs, run)
            held = True
        except SinkError as error:
            notes.append(f"archive and dead letters of batch runs were left as they are: {error.message}")
            doomed, letters = [d for d in doomed if d.of != "archive"], []
    try:
        for step in delete_steps(state, doomed, at=at):
            if step.act == "busy":
                notes.append(f"{step.path}: left for the next call; another process is merging its files")
            yield step
        for old in letters:
            yield from delete_letters(state, old, run.run_id, at=at)
    finally:
        if held:
            release(outputs, run)


def _foreseen(loaded: LoadedSpec, layers: Sequence[Layer], plan: _Plan, now: Callable[[], float]) -> Report:
    """What a call would do, as far as that can be known."""
    gone, epoch = frozenset(d.path for d in plan.doomed), latest_epoch(loaded.state)
    rows = []
    for layer in layers:
        before, left = size_of(layer), size_of(layer, gone)
        files, swept = expected(layer, epoch, gone)
        rows.append(Row(layer.name, layer.of, before, replace(left, files=files), 0, swept))
    at = show_instant(round(now()) * 1_000_000)
    deleted = [Deleted(d.layer, d.of, d.rows, 1, d.bytes, d.until, at, stream=of_a_stream(d.of)) for d in plan.doomed]
    deleted += [Deleted(old.output, "dead letters", old.rows, old.files, old.bytes, old.until, at, stream=False) for old in plan.letters]
    return Report(tuple(rows), _by_layer(deleted), tuple(plan.kept), plan.before, dry_run=True)


def _by_layer(deleted: Sequence[Deleted]) -> tuple[Deleted, ...]:
    found: dict[tuple[str, str, bool], Deleted] = {}
    for one in deleted:
        key = (one.layer, one.of, one.stream)
        old = found.get(key)
        found[key] = one if old is None else Deleted(
            one.layer, one.of, old.rows + one.rows, old.files + one.files, old.bytes + one.bytes, max(old.until, one.until), one.at, one.stream
        )  # fmt: skip
    return tuple(found.values())
