"""What batch runs leave that grows without end: records of runs, and dead letters, which lie apart by run.

Records are files of their own. Letters are an output: they go by a commit like that of any run, so that readers see them or not, and never half.

    intent on record ─▶ commit decided ─▶ files deleted ─▶ on record as deleted
                    └ killed here: nothing was decided, the intent is dropped
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple, TypeVar

from msgspec import structs

from beam_pipelines.places import exists, join, parent, size
from beam_pipelines.sinks import manifest
from beam_pipelines.sinks.committing import carry_out, finish
from beam_pipelines.sinks.deletions import Deleted, Doomed, Intent, Step, read_account, write_account
from beam_pipelines.sinks.manifest import Change, CommitEntry, Snapshot
from beam_pipelines.sinks.results import RunResults, find_run, record_path
from beam_pipelines.spec.sinks import LETTERS

V = TypeVar("V")
KEPT_RUNS = 20
"""Records of the newest runs stay, however old."""
_TRIES = 20


class OldLetters(NamedTuple):
    """Runs whose dead letters go, of one output; `until`: all of them started before, in microseconds."""

    output: str
    runs: frozenset[str]
    rows: int
    files: int
    bytes: int
    until: int


def started(run: RunResults) -> int:
    """When the run started, in microseconds."""
    return round(datetime.fromisoformat(run.metadata.started_at).timestamp() * 1_000_000)


def old_runs(state: str, runs: Sequence[RunResults], before: int) -> list[Doomed]:
    """Records of runs that started before, without the newest and those of runs that an output, or a commit that is kept, names, or whose letters are kept."""
    held = _named(state) | {run.metadata.run_id for run in runs if any(exists(path) for path in _failed_letters(run))}
    gone = [run for run in runs[KEPT_RUNS:] if started(run) < before and run.metadata.run_id not in held]
    paths = [(record_path(state, run.metadata.run_id), started(run) + 1) for run in gone]
    return [Doomed("runs", "runs", path, join(state, "runs"), 0, size([path]), until) for path, until in paths]


def _named(state: str) -> set[str]:
    found: set[str] = set()
    for number in manifest.numbers(state):
        commit = manifest.read_commit(state, number)
        for snapshot in (*commit.snapshots.values(), *commit.elsewhere) if commit is not None else ():
            found |= {*(f.run_id for f in snapshot.files), *(r.run_id for r in snapshot.ranges), *snapshot.letters}
        found |= {commit.run_id, commit.record.metadata.run_id} if commit is not None else set()
    return found


def old_letters(batch: Mapping[str, Snapshot], runs: Sequence[RunResults], before: int) -> list[OldLetters]:
    """Dead letters of runs that started before, by output. Those of runs without a record, and in text files, stay."""
    begun = {run.metadata.run_id: started(run) for run in runs}
    found = []
    for name, snapshot in batch.items():
        if snapshot.of == LETTERS and snapshot.partitions == ("run_id",):
            gone = frozenset(run for run in {f.run_id for f in snapshot.files} if begun.get(run, before) < before)
            files = [f for f in snapshot.files if f.run_id in gone]
            if files:
                until = max(begun[run] for run in gone) + 1
                found.append(OldLetters(name, gone, sum(f.rows for f in files), len(files), sum(f.bytes for f in files), until))
    return found


def old_failed_letters(runs: Sequence[RunResults], before: int) -> list[Doomed]:
    """Dead letters of runs that failed and started before, which are in no output."""
    found = []
    for run in runs:
        kept = run.kept_letters
        if kept is None or started(run) >= before:
            continue
        for path in filter(exists, paths := _failed_letters(run)):
            rows = kept.rows if path == paths[0] else 0  # how many are in each file is not on record
            found.append(Doomed(kept.output, "letters of failed runs", path, parent(kept.folder), rows, size([path]), started(run) + 1))
    return found


def _failed_letters(run: RunResults) -> list[str]:
    kept = run.kept_letters
    return [] if kept is None else [join(kept.folder, path) for path in kept.files]


def delete_letters(state: str, old: OldLetters, run_id: str, *, at: str) -> Iterator[Step]:
    """Commits the output without these letters, and puts it on record; after each step the process may die. Call it with the output claimed.

    `run_id` is this commit's own. What became of it, `finish_letters` finds out.
    """
    newest = manifest.latest(state)
    if newest is None:
        return
    deleted = Deleted(old.output, "dead letters", old.rows, old.files, old.bytes, old.until, at, stream=False)
    write_account(state, structs.replace(read_account(state), intent=Intent(run_id, newest.number, deleted)))
    yield Step("retired", old.output)
    for _ in range(_TRIES):
        for other in manifest.unfinished(state):
            for _ in finish(state, other):
                pass
        newest = manifest.latest(state)
        if newest is None or not manifest.decide(state, decided := _without(state, newest, old, run_id)):
            continue  # a run of another output was quicker: its commit is the base then
        yield Step("recorded", state)
        for _ in carry_out(state, decided):
            yield Step("deleted", old.output)
        break
    yield from finish_letters(state)


def finish_letters(state: str) -> Iterator[Step]:
    """Puts an intent on record as deleted if its commit was decided, and drops it else."""
    account = read_account(state)
    if account.intent is None:
        return
    decided = _decided(state, account.intent)
    if decided is not None:
        for _ in carry_out(state, decided) if not manifest.is_done(state, decided.number) else ():
            pass
        account = structs.replace(account, deleted=(*account.deleted, account.intent.deleted))
    write_account(state, structs.replace(account, intent=None))
    yield Step("done", state)


def _decided(state: str, intent: Intent) -> CommitEntry | None:
    later = (manifest.read_commit(state, number) for number in manifest.numbers(state) if number > intent.base)
    return next((commit for commit in later if commit is not None and commit.run_id == intent.run_id), None)


def _without(state: str, newest: CommitEntry, old: OldLetters, run_id: str) -> CommitEntry:
    """The commit that leaves the letters out. Its record is that of the run before: it is no run of its own."""
    number, before = newest.number + 1, newest.snapshots[old.output]
    files = tuple(f for f in before.files if f.run_id not in old.runs)
    snapshot = replace(
        before, version=number, files=files, letters=_but(old, before.letters), superseded=_but(old, before.superseded),
        said_in=_but(old, before.said_in), layouts=_but(old, before.layouts),
    )  # fmt: skip
    deletes = tuple(join(before.folder, f.path) for f in before.files if f.run_id in old.runs)
    snapshots, changes = {**newest.snapshots, old.output: snapshot}, {old.output: Change(deletes=deletes)}
    record = find_run(state, newest.record.metadata.run_id) or newest.record
    return replace(newest, number=number, run_id=run_id, snapshots=snapshots, changes=changes, record=record)


def _but(old: OldLetters, by_run: Mapping[str, V]) -> dict[str, V]:
    return {run: said for run, said in by_run.items() if run not in old.runs}
