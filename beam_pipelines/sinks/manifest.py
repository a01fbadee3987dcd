"""Commits: which files an output consists of, exactly, whatever else lies in its folders. Loads no Beam.

    {state}/commits/00000007.json   what run 7 decided: every output's live files, the moves and deletions that make it so
    {state}/commits/00000007.done   all of it is carried out

A commit is decided by creating the .json, once, for all outputs of the run together. What follows can be repeated by anybody. A reader who
meets a commit that is decided but not carried out takes its files for each output if all are in place, else those before it: files are
deleted only after all new ones are in place, so one of the two views is whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import msgspec

from beam_pipelines.places import create_new, delete, exists, join, list_files, read_bytes, write_bytes
from beam_pipelines.sinks.loads import Loading
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.sinks.run import Clock

KEPT_COMMITS = 50


@dataclass(frozen=True)
class LiveFile:
    """A file of an output; `path` and `partition` are relative to the output's folder."""

    path: str
    partition: str
    rows: int
    bytes: int
    run_id: str


@dataclass(frozen=True)
class Committed:
    """A time for which the batch is the authority: [start, end) in microseconds UTC of the output's clock, by the run that wrote it last.

    `as_of`: what was there before (microseconds since 1970) that run has read, from its `input`: what came later is not in its answer.
    """

    start: int
    end: int
    run_id: str
    as_of: int = 0
    input: Literal["batch", "archive"] = "batch"


@dataclass(frozen=True)
class SupersededLetters:
    """A run has read its sources again: earlier dead letters are superseded where they are of `sources` (a key of `Snapshot.source_sets`), of an
    event time in [start, end) or of none, and arrived at `since` or later (None: ever). Earlier are those of a lower version
    (`Snapshot.said_in`), and those that a stream stored before `as_of`, when the run listed its input."""

    version: int
    sources: str
    start: int
    end: int
    since: int | None = None
    as_of: int = 0


@dataclass(frozen=True)
class Snapshot:
    """An output at rest. `version` is the commit that last changed it; `columns` names and SQL types of the partition columns.

    `ranges`, disjoint and in order, are the times of `clock` for which its files are the answer; whatever a stream has for them is not.

    For dead letters: `letters` says from which sources each run's letters come, `superseded` which of those a later run read again, `settled`
    what the newest runs over each time and source did.

    `layouts` says by run which columns its files have, as a hash. `table` is the table they were loaded into; "" none.
    """

    output: str
    of: str
    path: str
    folder: str
    format: Literal["parquet", "csv", "jsonl"]
    version: int
    partitions: tuple[str, ...] = ()
    files: tuple[LiveFile, ...] = ()
    schema: tuple[tuple[str, str], ...] = ()
    letters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    superseded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    clock: Clock | None = None
    ranges: tuple[Committed, ...] = ()
    said_in: Mapping[str, int] = field(default_factory=dict)
    settled: tuple[SupersededLetters, ...] = ()
    source_sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layouts: Mapping[str, str] = field(default_factory=dict)
    table: str = ""

    @property
    def alike(self) -> bool:
        """Whether all files are known to have the same columns."""
        found = {self.layouts.get(run) for run in {f.run_id for f in self.files}}
        return len(found) == 1 and None not in found

    @property
    def rows(self) -> int:
        return sum(f.rows for f in self.files)

    @property
    def paths(self) -> tuple[str, ...]:
        """Full paths of the live files."""
        return tuple(join(self.folder, f.path) for f in self.files)


@dataclass(frozen=True)
class Merge:
    """Parts (full paths) that become one file: `header`, then each part in order."""

    target: str
    parts: tuple[str, ...]
    header: bytes = b""
    gzip: bool = False


@dataclass(frozen=True)
class Change:
    """What carries out a commit on one output: moves (from, to), then one merge, then loads into its table, then deletions. Full paths."""

    moves: tuple[tuple[str, str], ...] = ()
    merge: Merge | None = None
    deletes: tuple[str, ...] = ()
    loading: Loading | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(to for _, to in self.moves) + ((self.merge.target,) if self.merge else ())


@dataclass(frozen=True)
class CommitEntry:
    """One decided commit: all outputs as they will be, how to get there for those that change, and the run's record.

    `elsewhere` are outputs of the same names as runs with other parameters wrote them to other places: each place is an output of its own.
    `inventory` names the account of the files that were read (see `inventory`); "" before the first.
    """

    number: int
    run_id: str
    snapshots: Mapping[str, Snapshot]
    changes: Mapping[str, Change]
    record: RunResults
    version: int = 1
    elsewhere: tuple[Snapshot, ...] = ()
    inventory: str = ""

    @property
    def places(self) -> tuple[Snapshot, ...]:
        """Every output at every place."""
        return (*self.elsewhere, *self.snapshots.values())

    def at(self, output: str, path: str) -> Snapshot | None:
        """The output as it is at the place `path`; None if it was never written there."""
        return next((s for s in self.places if s.output == output and same_place(s.path, path)), None)


def same_place(one: str, other: str) -> bool:
    """Whether two paths name one output."""
    return one.rstrip("/") == other.rstrip("/")


def folder(state: str) -> str:
    """Where the commits of a pipeline are kept."""
    return join(state, "commits")


def numbers(state: str) -> list[int]:
    """The numbers of all commits kept, ascending."""
    return _numbers(list_files(folder(state)))


def _numbers(names: Iterable[str]) -> list[int]:
    return sorted(int(n.removesuffix(".json")) for n in names if n.endswith(".json") and n[:-5].isdigit())


def read_commit(state: str, number: int) -> CommitEntry | None:
    """The commit, or None if it is not kept."""
    content = read_bytes(_path(state, number))
    return None if content is None else msgspec.json.decode(content, type=CommitEntry)


def decide(state: str, commit: CommitEntry) -> bool:
    """Creates the commit under its number; False if another run took the number first."""
    return create_new(_path(state, commit.number), msgspec.json.encode(commit))


def is_done(state: str, number: int) -> bool:
    """Whether the commit is carried out."""
    return exists(done_path(state, number))


def done_path(state: str, number: int) -> str:
    """The file that says that the commit is carried out."""
    return _path(state, number, "done")


def mark_done(state: str, number: int) -> None:
    """Says that the commit is carried out."""
    write_bytes(done_path(state, number), b"")


def unfinished(state: str) -> Iterator[CommitEntry]:
    """Commits that were decided and not carried out, oldest first."""
    names = set(list_files(folder(state)))
    for number in _numbers(names):
        if f"{number:08d}.done" not in names:
            commit = read_commit(state, number)
            if commit is not None:
                yield commit


def forget_old(state: str, keep: int = KEPT_COMMITS) -> None:
    """Deletes all but the newest commits: each names every live file, so old ones are history only."""
    known = numbers(state)
    for number, after in pairwise(known[: max(0, len(known) - keep + 1)]):
        if is_done(state, number) and is_done(state, after):  # what was before one that may be taken back stays
            delete(_path(state, number))
            delete(done_path(state, number))


def latest(state: str) -> CommitEntry | None:
    """The newest commit, carried out or not."""
    known = numbers(state)
    return read_commit(state, known[-1]) if known else None


def snapshots(state: str, places: Mapping[str, str] | None = None) -> dict[str, Snapshot]:
    """Every output as it is now: the exact view that readers use. Takes no lock; also right while a commit is under way.

    `places` says by name at which path an output is looked for; the others are where the newest run wrote them.
    """
    newest = latest(state)
    if newest is None:
        return {}
    chosen = {**newest.snapshots, **{name: newest.at(name, path) for name, path in (places or {}).items()}}
    found = {name: _at_rest(state, name, snapshot) for name, snapshot in chosen.items() if snapshot is not None}
    return {name: snapshot for name, snapshot in found.items() if snapshot is not None}


def live_files(state: str, output: str) -> tuple[str, ...]:
    """Full paths of the files an output consists of now; () if it was never committed."""
    snapshot = snapshots(state).get(output)
    return () if snapshot is None else snapshot.paths


def _at_rest(state: str, name: str, snapshot: Snapshot) -> Snapshot | None:
    """`snapshot`, or the one before it if its commit's files are not all in place."""
    current: Snapshot | None = snapshot
    while current is not None and not is_done(state, current.version):
        commit = read_commit(state, current.version)
        if commit is None or all(exists(target) for target in commit.changes[name].targets):
            return current  # a forgotten commit was carried out
        before = read_commit(state, commit.number - 1)
        current = None if before is None else before.at(name, snapshot.path)
    return current


def _path(state: str, number: int, ending: str = "json") -> str:
    return join(folder(state), f"{number:08d}.{ending}")
