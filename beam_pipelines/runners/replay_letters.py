"""Dead letters through the repaired graph, in the place where they belong: the partitions that they touch are computed anew, whole.

    letters ─▶ their records, tried alone ─┬▶ still refused, gone, …: they stay, and it is said why
                                           └▶ good ─▶ partitions they touch ─▶ written down ─▶ a run over each range ─▶ resolved where it has no such letter

A run over a range takes every record once, at its own event time, with its own key and identity. So a row cannot come twice, one that has meanwhile come by
another way is a duplicate by the rule of the spec, and a row that was too late for an aggregate is counted there and nowhere else anew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import pyarrow as pa

from beam_pipelines.arrow.ranges import Range, show_range, union
from beam_pipelines.arrow.schema import UTC_MICROS
from beam_pipelines.errors import SpecError
from beam_pipelines.runners.closed import closed_until
from beam_pipelines.runners.crashes import poison_of
from beam_pipelines.runners.direct import Call, importable, run_batch
from beam_pipelines.runners.letter_partitions import Partitions, Why, last_input
from beam_pipelines.runners.letter_records import INPUTS, Id, Input, Letter, inputs_of, letters_of, records
from beam_pipelines.runners.lost_inputs import Lost, lost_inputs, named, stream_has
from beam_pipelines.runners.trial import Tried, tried
from beam_pipelines.sinks.epochs import stream_folder
from beam_pipelines.sinks.labels import places_of
from beam_pipelines.sinks.manifest import Snapshot, snapshots
from beam_pipelines.sinks.outputs import read_outputs
from beam_pipelines.sinks.replays import resolve_replayed, still_open
from beam_pipelines.sinks.resolutions import TAKEN_UP, new_name, take_up
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.spec.horizon import EVERYTHING, reach
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.ranges import cuts_of
from beam_pipelines.spec.sinks import ROWS


class Fate(NamedTuple):
    """What is to become of a letter, by its number; `detail` says more: a reason, a place."""

    number: int
    why: Why
    detail: str = ""


class Planned(NamedTuple):
    """A run: over a range (None: everything), of one input, for so many letters."""

    run_id: str
    range: Range | None
    input: Input
    letters: int


@dataclass(frozen=True)
class LetterReplayPlan:
    """What a replay does: a fate for each letter, the runs, and what is written down before (TAKEN_UP)."""

    replay: str
    fates: tuple[Fate, ...]
    runs: tuple[Planned, ...] = ()
    taken: pa.Table = field(default_factory=TAKEN_UP.empty_table)


def plan_batch(loaded: LoadedSpec, letters: pa.Table, *, crashed: pa.Table | None = None, ignore_stream: bool = False) -> LetterReplayPlan:
    """What to do with these letters (DEAD_LETTERS). `crashed` are all open letters CRASH: a batch over their input may crash again.

    Raises SpecError where a sealed archive cannot be opened, RunError where the records cannot be tried.
    """
    name, known = new_name("replay"), letters_of(letters)
    fates: dict[int, Fate] = {n: Fate(n, "no record") for n in set(range(letters.num_rows)) - {letter.number for letter in known}}
    found, unsafe = _tried(loaded, known, letters_of(crashed) if crashed is not None else [])
    good: list[_Good] = []
    for letter in known:
        inputs = {i: outcome for i in inputs_of(loaded.spec, letter) if (outcome := found[i].get(letter.id)) is not None}
        fate = _judged(letter, inputs, unsafe)
        if fate.why == "replay":
            good.append(
                _Good(letter, {i: _time(letter, outcome) for i, outcome in inputs.items() if outcome.outcome in ("good", "filtered")})
            )
        else:
            fates[letter.number] = fate
    placed = _placed(loaded, good, ignore_stream=ignore_stream)
    fates |= {fate.number: fate for fate in placed.fates}
    runs = tuple(Planned(f"{name}-{n}", *run) for n, run in enumerate(placed.runs, 1))
    return LetterReplayPlan(name, tuple(fates[n] for n in sorted(fates)), runs, _taken(letters, placed.places, runs))


def carry_out(
    loaded: LoadedSpec, plan: LetterReplayPlan, call: Call = Call(), *, say: Callable[[Planned], None] = lambda run: None
) -> Iterator[RunResults]:
    """The records of the runs of the plan, one after the other; after each, what it resolved is marked. A run that fails ends it.

    May be killed at any moment and called for again: what is open then is open in `open_sql`. Raises what `run_batch` raises.
    """
    if not plan.runs:
        return
    take_up(loaded.state, plan.replay, plan.taken)
    for run in plan.runs:
        say(run)
        done = run_batch(loaded, replace(call, run_id=run.run_id, range=run.range, input=run.input))
        if done.status == "success":
            resolve_replayed(loaded.state, places_of(loaded.spec))
        yield done
        if done.status != "success":
            return


def resolved(loaded: LoadedSpec, plan: LetterReplayPlan) -> int:
    """How many of the letters that the plan took up are resolved by now."""
    return int(plan.taken.num_rows) - still_open(loaded.state, plan.replay)


def _tried(
    loaded: LoadedSpec, letters: Sequence[Letter], crashed: Sequence[Letter]
) -> tuple[dict[Input, dict[Id, Tried]], dict[Input, Letter]]:
    """What became of each record that an input has; and by input a record that crashes and that no batch would keep out."""
    kept_out = {(source, position) for source, positions in poison_of(stream_folder(loaded.state)).items() for position in positions}
    found: dict[Input, dict[Id, Tried]] = {"batch": {}, "archive": {}}
    unsafe: dict[Input, Letter] = {}
    for input_ in INPUTS:
        asked = {letter.id: letter for letter in (*letters, *crashed) if input_ in inputs_of(loaded.spec, letter)}
        with importable(loaded.directory):
            found[input_] = tried(records(loaded.spec, loaded.state, input_, asked.values()))
        crashes = [
            id_ for id_, outcome in found[input_].items() if outcome.outcome == "crash" and not (input_ == "archive" and id_ in kept_out)
        ]
        if crashes:
            unsafe[input_] = asked[crashes[0]]
    return found, unsafe


def _judged(letter: Letter, inputs: Mapping[Input, Tried], unsafe: Mapping[Input, Letter]) -> Fate:
    outcomes = list(inputs.values())
    if not outcomes:
        return Fate(letter.number, "unreadable" if letter.stage == "read" else "gone", letter.source)
    if any(outcome.outcome == "crash" for outcome in outcomes):
        return Fate(letter.number, "crashes")
    refused = next((outcome for outcome in outcomes if outcome.outcome == "refused"), None)
    if refused is not None:
        return Fate(letter.number, "still refused", refused.reason)
    if all(i in unsafe for i in inputs):
        first = unsafe[next(iter(inputs))]
        return Fate(letter.number, "beside a crash", f"{first.source}, position {first.position}")
    return Fate(letter.number, "replay")


class _Good(NamedTuple):
    """A letter whose record goes through, and by input its event time."""

    letter: Letter
    times: Mapping[Input, int | None]


def _time(letter: Letter, outcome: Tried) -> int | None:
    return outcome.time if outcome.outcome == "good" else letter.time  # filtered now: it lies nowhere, and is missed where it was


class _Placed(NamedTuple):
    """`places`: of each letter to be replayed its number, input, event time and the number of its run, from 0."""

    fates: list[Fate]
    runs: list[tuple[Range | None, Input, int]]
    places: list[tuple[int, Input, int | None, int]]


def _placed(loaded: LoadedSpec, good: Sequence[_Good], *, ignore_stream: bool) -> _Placed:
    """In which partitions letters belong, and which of these may be computed anew."""
    if not good:
        return _Placed([], [], [])
    known = snapshots(loaded.state, places_of(loaded.spec))
    try:
        units = tuple(dict.fromkeys(cut.by.transform for cut in cuts_of(loaded.spec)))
    except SpecError:
        units = ()
    if not units or reach(loaded.spec)[0] >= EVERYTHING:
        return _whole(loaded, good, known)
    closed = None if ignore_stream else closed_until(loaded.spec, loaded.state)
    return _by_range(loaded, good, Partitions(units, known, reach(loaded.spec), closed, partial(stream_has, loaded)))


def _whole(loaded: LoadedSpec, good: Sequence[_Good], known: Mapping[str, Snapshot]) -> _Placed:
    """All with one run over everything, where outputs cannot be computed anew in part."""
    if read_outputs(loaded.state) is not None and not any(s.of == ROWS for s in known.values()):
        return _Placed([Fate(g.letter.number, "batch alone") for g in good], [], [])
    newest = last_input(known)
    input_ = next(iter(good[0].times)) if newest is None else newest
    mine = [g for g in good if input_ in g.times]
    fates = [Fate(g.letter.number, "other input") for g in good if input_ not in g.times]
    lost = lost_inputs(loaded, input_, None) if mine else ()
    if lost or not mine:
        return _Placed([*fates, *(Fate(g.letter.number, "input gone", named(lost)) for g in mine)], [], [])
    fates += [Fate(g.letter.number, "replay") for g in mine]
    return _Placed(fates, [(None, input_, len(mine))], [(g.letter.number, input_, None, 0) for g in mine])


def _by_range(loaded: LoadedSpec, good: Sequence[_Good], partitions: Partitions) -> _Placed:
    fates: list[Fate] = []
    at_home: dict[Range, list[tuple[_Good, Input, int]]] = defaultdict(list)
    for one in good:
        time = next((time for time in one.times.values() if time is not None), None)
        if time is None:
            fates.append(Fate(one.letter.number, "no event time"))
            continue
        part = partitions.of(time)
        owner = partitions.answered(part) or ("archive" if "archive" in one.times else "batch")
        if part not in partitions.claimed and owner == "batch" and partitions.answered(part) is None and partitions.stream_answers(part):
            owner = "archive"  # the stream answers there: a file's rows would take the place of its own
        owner, time = partitions.claimed.setdefault(part, owner), one.times.get(owner)
        if time is None:
            fates.append(Fate(one.letter.number, "other input", show_range(part)))
        else:
            at_home[part].append((one, owner, time))
    touched = {part: partitions.touched([time for *_, time in ones], ones[0][1]) for part, ones in at_home.items()}
    needed: dict[Input, set[Range]] = defaultdict(set)
    kept: list[tuple[int, Input, int]] = []
    lost = {i: _lost_around(loaded, i, [p for part in touched if at_home[part][0][1] == i for p in touched[part]]) for i in INPUTS}
    for part, ones in at_home.items():
        owner = ones[0][1]
        fate = partitions.hindered(touched[part], lost[owner])
        fates += [Fate(one.letter.number, *(fate or ("replay",))) for one, *_ in ones]
        if fate is None:
            needed[owner] |= set(touched[part])
            kept += [(one.letter.number, owner, time) for one, _, time in ones]
    return _arranged(fates, needed, kept)


def _lost_around(loaded: LoadedSpec, input_: Input, parts: Sequence[Range]) -> Sequence[Lost]:
    return lost_inputs(loaded, input_, Range(min(p.start for p in parts), max(p.end for p in parts))) if parts else ()


def _arranged(fates: list[Fate], needed: Mapping[Input, set[Range]], kept: Sequence[tuple[int, Input, int]]) -> _Placed:
    """As few runs as there are stretches of partitions."""
    runs = [(input_, joined) for input_, parts in needed.items() for joined in union(parts)]
    places = [(n, i, time, next(k for k, (of, r) in enumerate(runs) if of == i and r.start <= time < r.end)) for n, i, time in kept]
    counted = Counter(k for *_, k in places)
    return _Placed(fates, [(r, input_, counted[k]) for k, (input_, r) in enumerate(runs)], list(places))


def _taken(letters: pa.Table, places: Sequence[tuple[int, Input, int | None, int]], runs: Sequence[Planned]) -> pa.Table:
    rows = letters.take(pa.array([n for n, *_ in places], pa.int64()))
    now = int(datetime.now(UTC).timestamp() * 1_000_000)
    more = {
        "into": pa.array(["batch"] * len(places), pa.string()),
        "planned": pa.array([runs[k].run_id for *_, k in places], pa.string()),
        "input": pa.array([input_ for _, input_, *_ in places], pa.string()),
        "lies_at": pa.array([time for _, _, time, _ in places], pa.int64()).cast(UTC_MICROS),
        "taken_at": pa.array([now] * len(places), pa.int64()).cast(UTC_MICROS),
        "said_at": pa.nulls(len(places), UTC_MICROS),
    }
    return pa.table({**{n: rows.column(n) for n in rows.column_names}, **more}).select(TAKEN_UP.names).cast(TAKEN_UP)
