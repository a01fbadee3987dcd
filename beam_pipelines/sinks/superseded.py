"""Which dead letters a commit supersedes: those of records that a later run has read again. Loads no Beam.

a run over everything     all letters of the sources it read
a run over a range        of these, those whose event time lies in the range or is not known, of messages it can have read
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import NamedTuple

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.sinks.manifest import Snapshot, SupersededLetters
from beam_pipelines.sinks.run import Output
from beam_pipelines.sinks.work import Work

_ALL_TIME = Range(-(2**63), 2**63 - 1)


class Told(NamedTuple):
    """What a snapshot of dead letters says after a commit (see `Snapshot`), and the partitions that nobody reads any more."""

    letters: Mapping[str, tuple[str, ...]]
    superseded: Mapping[str, tuple[str, ...]]
    said_in: Mapping[str, int]
    settled: tuple[SupersededLetters, ...]
    source_sets: Mapping[str, tuple[str, ...]]
    dropped: Collection[str] = ()


def letters_after(output: Output, before: Snapshot | None, work: Work, number: int) -> Told:
    """What is known of the letters after the commit `number`."""
    if output.replace != "runs":
        return Told({}, {}, {}, (), {})
    run = work.run
    said = {name: tuple(of) for name, of in (before.letters if before else {}).items() if name != run.run_id}
    gone = {name: set(before.superseded.get(name, ())) if before else set() for name in said}
    settled = before.settled if before else ()
    sets = dict(before.source_sets) if before else {}
    if run.range is None:
        gone = {name: of | (set(work.sources) & set(said[name])) for name, of in gone.items()}
    key, named = _named(work.sources)
    sets[key] = named
    where = run.range or _ALL_TIME
    new = SupersededLetters(number, key, where.start, where.end, work.since, run.as_of)
    settled = (*(old for old in settled if not _covers(new, old, sets)), new)
    over = {name for name, of in said.items() if set(of) <= gone[name]}
    kept = {name: of for name, of in said.items() if name not in over}
    versions = {name: before.said_in.get(name, 0) for name in kept} if before else {}
    if work.letters:
        kept, versions = kept | {run.run_id: tuple(sorted(work.letters))}, versions | {run.run_id: number}
    return Told(
        kept,
        {name: tuple(sorted(gone[name])) for name in kept if gone.get(name)},
        versions,
        settled,
        {key: sets[key] for key in sorted({s.sources for s in settled})},
        {f"run_id={name}" for name in over} | {f"run_id={run.run_id}"},
    )


def _named(sources: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Many runs read the same sources: they are kept once, under a name."""
    listed = tuple(sorted(sources))
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:16], listed


def _covers(new: SupersededLetters, old: SupersededLetters, sets: Mapping[str, tuple[str, ...]]) -> bool:
    reaches = new.since is None or (old.since is not None and new.since <= old.since)
    return new.start <= old.start and old.end <= new.end and reaches and set(sets[old.sources]) <= set(sets[new.sources])
