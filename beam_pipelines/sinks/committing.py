"""The commit, step by step; every step can be repeated, and stopping after any of them loses nothing. Loads no Beam.

    claim ─▶ recover ─▶ secure ─▶ decide ─▶ move … ─▶ merge ─▶ load ─▶ delete … ─▶ secure ─▶ record ─▶ done ─▶ clean
             (others')             ▲
                                   └─ one file created under a number nobody has: before it nothing happened, after it all will

A run that dies before `decide` leaves outputs as they were and staged files that the next run deletes. A run that dies after it is carried
forward by the next run, or read correctly as it is (`manifest.snapshots`). That holds for a power failure too: what the file names is on disk
before it (`secure`), and staged names are forgotten only when the final ones are.

Only a run that still holds its outputs, and whose staged files are all there, decides. Where one of them goes later, before it has its final name, the
commit cannot be carried out: the next run takes it back (`finish`), by a commit that says what the one before said, and the run's record is `failed`.
All files of all outputs have their names before the first old one is deleted, so what was before is there.
"""

from __future__ import annotations

import gzip
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from beam_pipelines.commit_elements import Staged
from beam_pipelines.errors import SinkError
from beam_pipelines.places import (
    StagedFileGoneError,
    delete,
    delete_tree,
    each,
    exists,
    join,
    list_folders,
    locked,
    missing,
    move,
    open_new,
    open_read,
    parent,
    prune_folders,
    refused,
    secure,
    secure_folders,
)
from beam_pipelines.sinks import manifest
from beam_pipelines.sinks.changes import change_of, check_layout
from beam_pipelines.sinks.claims import claim, expect_held, holders, release, stale
from beam_pipelines.sinks.inventory import after_run, forget_inventories, read_inventory, write_inventory
from beam_pipelines.sinks.loads import Loading, Table, loading_of
from beam_pipelines.sinks.manifest import Change, CommitEntry, Merge, Snapshot
from beam_pipelines.sinks.results import OutputResult, RunResults, find_run, write_run
from beam_pipelines.sinks.run import Output, RunInfo, check_outputs, staging_of
from beam_pipelines.sinks.work import Work

_TRIES = 20
_DECIDING = threading.Lock()
KEPT_PLACES = 50
"""Places of one output that a state remembers besides the current one."""


def prepare(outputs: Sequence[Output], run: RunInfo) -> None:
    """What the launcher does before the job: claims the outputs, carries out commits that died half-way, deletes what dead runs staged.

    Raises SpecError where outputs overlap, SinkError where an output is taken, not writable, laid out in another way, or its table's dataset cannot be reached.
    """
    check_outputs(outputs)
    claim(outputs, run)
    try:
        for _ in _recover(run, outputs):
            pass
        known = manifest.snapshots(run.state, {o.name: o.path for o in outputs})
        for output in outputs:
            check_layout(output, known.get(output.name))
            if output.table is not None:
                from beam_pipelines.sinks.load_jobs import reach  # a reader commits nothing, and needs no client

                reach(output.table)
            _sweep(output, run)
    except BaseException:
        release(outputs, run)
        raise


def abandon(outputs: Sequence[Output], run: RunInfo) -> None:
    """What a launcher does when a run fails or is interrupted: staged files go, claims are given back, outputs are as they were.

    Interrupted in the middle of its commit, a run is carried to its end instead: it was decided.
    """
    with _deciding(run.state):
        try:
            _finish_own(run)
        except BaseException:  # what is staged is still needed: the next run, which must find nobody at work, carries it on
            release(outputs, run)
            raise
        release(outputs, run)  # first, so that a process elsewhere which commits this run finds it
        for output in outputs:
            delete_tree(staging_of(output, run))
            prune_folders(output.staging, output.folder)
    _finish_own(run)  # decided elsewhere between our look and the claim's end: taken back


def _finish_own(run: RunInfo) -> None:
    for decided in manifest.unfinished(run.state):
        if decided.run_id == run.run_id:
            for _ in finish(run.state, decided):
                pass


@contextmanager
def _deciding(state: str) -> Iterator[None]:
    """Of this machine's runs on a local state, and of this process's on any, one at a time decides, or gives up."""
    with _DECIDING, locked(state):
        yield


def commit(work: Work) -> RunResults:
    """Carries out the whole commit; the record says what was committed. Raises SinkError where an output refuses."""
    for _ in commit_steps(work):
        pass
    done = find_run(work.run.state, work.run.run_id)
    assert done is not None  # the last step but two wrote it
    return done


def commit_steps(work: Work) -> Iterator[str]:
    """The steps of the commit; each has happened when its name is yielded. Idempotent by run id: after success, nothing changes."""
    run, outputs = work.run, work.outputs
    claim(outputs, run)
    yield "claim"
    yield from _recover(run, outputs)
    before = find_run(run.state, run.run_id)
    if before is None or before.status != "success":
        without = _without_table(work)
        _secure(work)
        decided = _decide(work, without)
        yield "decide"
        yield from carry_out(run.state, decided)
    for output in outputs:
        delete_tree(staging_of(output, run))
    yield "clean"
    release(outputs, run)
    yield "release"


def carry_out(state: str, decided: CommitEntry) -> Iterator[str]:
    """Makes a decided commit real; repeating it from the start at any point gives the same. Raises StagedFileGoneError before anything old is deleted."""
    for name, change in decided.changes.items():
        for _ in each(decided.snapshots[name].folder, move, change.moves):
            yield f"move {name}"
    merged = [(name, merge.target, _merged(merge)) for name, change in decided.changes.items() if (merge := change.merge) is not None]
    for name, target, made in merged:
        move(made, target)
        yield f"merge {name}"
    for name, change in decided.changes.items():
        if change.loading is not None:
            from beam_pipelines.sinks.load_jobs import load

            load(change.loading)
            yield f"load {name}"
        top = decided.snapshots[name].folder
        for _ in each(top, _drop, [(path, top) for path in change.deletes]):
            yield f"delete {name}"
        secure_folders({parent(path) for path in (*change.targets, *change.deletes)})
    write_run(state, decided.record)
    yield "record"
    yield from _done(state, decided)


def _done(state: str, decided: CommitEntry) -> Iterator[str]:
    manifest.mark_done(state, decided.number)
    manifest.forget_old(state)
    forget_inventories(state, decided.number, decided.inventory)
    yield "done"


def finish(state: str, decided: CommitEntry) -> Iterator[str]:
    """Carries out a commit that a run before decided; where a staged file of it is gone, takes it back. Raises SinkError where what was before is gone too."""
    try:
        yield from carry_out(state, decided)
    except StagedFileGoneError as error:
        if not manifest.is_done(state, decided.number):  # else another has just done it, and cleaned up
            yield from _take_back(state, decided, error)


def _take_back(state: str, lost: CommitEntry, error: StagedFileGoneError) -> Iterator[str]:
    """Decides that all is as before `lost`, and carries that out; again, it finds what was decided."""
    found = find_run(state, lost.run_id)
    if found is not None and found.status == "success":  # all was in its place: somebody has deleted a file of an output since
        yield from _done(state, lost)
        return
    before = manifest.read_commit(state, lost.number - 1)
    for _ in range(_TRIES):
        newest = manifest.latest(state)
        assert newest is not None  # there is `lost`
        if not any(snapshot.version == lost.number for snapshot in newest.places):
            break  # it was taken back already
        _expect_old_files(state, lost, before, error)
        plan = _as_before(lost, before, newest, error)
        kept = {path for snapshot in plan.places for path in snapshot.paths}
        for name, change in lost.changes.items():  # no reader takes them for files of the output: it was never whole
            top, moved = lost.snapshots[name].folder, [path for path in change.targets if path not in kept]
            for _ in each(top, _drop, [(path, top) for path in moved]):
                pass
            secure_folders({parent(path) for path in moved})
        if manifest.decide(state, plan):
            yield "take back"
            break
    else:
        raise _overtaken(state)
    for decided in manifest.unfinished(state):
        if decided.number > lost.number and decided.run_id == lost.run_id:
            yield from carry_out(state, decided)
    yield from _done(state, lost)


def _expect_old_files(state: str, lost: CommitEntry, before: CommitEntry | None, error: StagedFileGoneError) -> None:
    """Raises SinkError where files that `lost` was to replace are gone: there is nothing to go back to."""
    for name, change in lost.changes.items():
        old = None if before is None else before.at(name, lost.snapshots[name].path)
        replaced = sorted({*change.deletes, *change.targets} & {*(old.paths if old is not None else ())})
        gone = next((path for path, there in zip(replaced, map(exists, replaced), strict=True) if not there), None)
        if gone is not None or (before is None and lost.number > 1):
            raise SinkError(
                f"{error.message.rstrip('.')}, and so is what it replaces: {gone or f'commit {lost.number - 1}'}.",
                hint=f"Put one of them back. Or, to go on with what is there, create the empty file {manifest.done_path(state, lost.number)}, and run again over all that run "
                f"'{lost.run_id}' was to write.",
            ) from error


def _as_before(lost: CommitEntry, before: CommitEntry | None, newest: CommitEntry, error: StagedFileGoneError) -> CommitEntry:
    """The commit after `newest` in which the outputs that `lost` changed are as they were `before`."""
    number, known, old = newest.number + 1, _places(before) | _places(newest, but=lost.number), {} if before is None else before.snapshots
    current = {name: s if s.version != lost.number else old.get(name) for name, s in newest.snapshots.items()}
    snapshots = {name: snapshot for name, snapshot in current.items() if snapshot is not None}
    changes: dict[str, Change] = {}
    for name, change in lost.changes.items():  # where somebody deleted a file after its table was loaded
        snapshot, mine = snapshots.get(name), lost.snapshots[name]
        if change.loading is not None and snapshot is not None and (snapshot.table, snapshot.path) == (mine.table, mine.path):
            changes[name] = Change(loading=_loading(change.loading.table, mine, snapshot, commit=f"{lost.run_id}/{number}"))
    inventory = "" if before is None else before.inventory
    if newest.number != lost.number and lost.inventory != inventory:
        inventory = ""  # later ones stand on that of `lost`: all files are to be read again
    elif lost.inventory == inventory:
        inventory = newest.inventory
    failure = f"its commit was taken back, since a staged file was gone: {error.source}"
    record = replace(lost.record, status="failed", failures=(failure,), outputs=())
    return CommitEntry(
        number, lost.run_id, snapshots, changes, record, elsewhere=_elsewhere(known.values(), snapshots), inventory=inventory
    )


def _places(commit: CommitEntry | None, *, but: int = 0) -> dict[tuple[str, str], Snapshot]:
    """By output and path, each place as the commit knows it, without those of the version `but`."""
    return {(s.output, s.path.rstrip("/")): s for s in (commit.places if commit is not None else ()) if s.version != but}


def _drop(path: str, top: str) -> None:
    delete(path)
    prune_folders(parent(path), top)


def _recover(run: RunInfo, outputs: Sequence[Output]) -> Iterator[str]:
    """Carries out decided commits of dead runs: those that touch only outputs we hold, or that nobody living holds."""
    held = {o.path for o in outputs}
    for decided in manifest.unfinished(run.state):
        others = [_output(decided.snapshots[n]) for n in decided.changes if decided.snapshots[n].path not in held]
        try:
            claim(others, run)
        except SinkError:
            continue  # its run lives and is at work
        try:
            yield from finish(run.state, decided)
        finally:
            release(others, run)
        yield "recover"


def _output(snapshot: Snapshot) -> Output:
    return Output(snapshot.output, snapshot.of, snapshot.path, snapshot.format, snapshot.partitions, clock=snapshot.clock)


def _without_table(work: Work) -> frozenset[str]:
    """The outputs whose table is missing, though it may have been there: all of it is to be loaded. Raises SinkError or SpecError where one cannot take the rows."""
    tables = [(o.name, o.table, work.schemas[o.name]) for o in work.outputs if o.table is not None and work.schemas.get(o.name)]
    if not tables:
        return frozenset()
    from beam_pipelines.sinks.load_jobs import fits

    return frozenset(name for name, table, columns in tables if not fits(table, columns))


def _decide(work: Work, without_table: frozenset[str]) -> CommitEntry:
    state, mine = work.run.state, {o.path for o in work.outputs}
    for _ in range(_TRIES):
        newest = manifest.latest(state)  # before the look at what is unfinished: one that is decided later has its number
        for other in manifest.unfinished(state):  # a run over another range has just decided: this commit stands on its files
            if mine & {other.snapshots[name].path for name in other.changes}:
                for _ in finish(state, other):
                    pass
        plan = _plan(work, newest, without_table)
        with _deciding(state):
            _expect_whole(work)
            if manifest.decide(state, plan):
                return plan
    raise _overtaken(state)


def _overtaken(state: str) -> SinkError:
    return SinkError(f"{manifest.folder(state)}: {_TRIES} other commits came first.", hint="Run again when fewer runs commit at once.")


def _secure(work: Work) -> None:
    try:
        secure([staged.path for staged in work.staged])
    except SinkError:
        _expect_whole(work)  # says more where a file is gone
        raise


def _expect_whole(work: Work) -> None:
    """Raises SinkError where the run does not hold its outputs any more, or a staged file is gone: once decided, the commit must be possible."""
    expect_held(work.outputs, work.run)
    for output in work.outputs:
        staged = [s.path for s in work.staged_of(output)]
        gone = missing(staged, staging_of(output, work.run)) if staged else []
        if gone:
            release(work.outputs, work.run)  # nobody may be there any more to do it: what is gone will not come back
            raise SinkError(
                f"output '{output.name}' ({output.path}): of {len(staged):,} staged files {len(gone):,} are gone: {gone[0]}.",
                hint="Its launcher was interrupted, another run took its claim over, or somebody deleted them. Nothing was committed; run again.",
            )


def _plan(work: Work, newest: CommitEntry | None, without_table: frozenset[str]) -> CommitEntry:
    number = 1 if newest is None else newest.number + 1
    snapshots: dict[str, Snapshot] = {} if newest is None else dict(newest.snapshots)
    before = {o.name: None if newest is None else newest.at(o.name, o.path) for o in work.outputs}
    changes: dict[str, Change] = {}
    results: list[OutputResult] = []
    for output in work.outputs:
        snapshot, change = change_of(output, before[output.name], work, number)
        if output.table is not None and snapshot.schema:
            loading = _loading(
                output.table, None if output.name in without_table else before[output.name], snapshot, commit=f"{work.run.run_id}/{number}"
            )
            snapshot, change = replace(snapshot, table=output.table.name), replace(change, loading=loading)
        snapshots[output.name], changes[output.name] = snapshot, change
        results.append(_result(output, work.staged_of(output), change))
    record = replace(work.record, outputs=tuple(results))
    return CommitEntry(
        number, work.run.run_id, snapshots, changes, record, elsewhere=_elsewhere(() if newest is None else newest.places, snapshots),
        inventory=_inventory(work, newest, number),
    )  # fmt: skip


def _loading(table: Table, old: Snapshot | None, new: Snapshot, *, commit: str) -> Loading:
    """What makes the table what the output is; of a table that held the output before, only folders whose files are others."""
    files: dict[str, list[str]] = {}
    for file, path in zip(new.files, new.paths, strict=True):
        files.setdefault(file.partition, []).append(path)
    if old is None or old.table != table.name or old.path != new.path:
        return loading_of(table, commit=commit, columns=new.schema, files=files, changed=None)
    differing = {(f.partition, f.path) for f in old.files} ^ {(f.partition, f.path) for f in new.files}
    return loading_of(table, commit=commit, columns=new.schema, files=files, changed=sorted({partition for partition, _ in differing}))


def _inventory(work: Work, newest: CommitEntry | None, number: int) -> str:
    """The name of the account of files after this commit."""
    name = "" if newest is None else newest.inventory
    if work.stock is None:
        return name
    new = after_run(read_inventory(work.run.state, name), work.stock)
    return name if new is None else write_inventory(work.run.state, number, work.run.run_id, new)


def _elsewhere(known: Iterable[Snapshot], snapshots: Mapping[str, Snapshot]) -> tuple[Snapshot, ...]:
    """Outputs at other places than those that are current after this commit, the newest of each name."""
    others = [s for s in known if s.output not in snapshots or not manifest.same_place(s.path, snapshots[s.output].path)]
    kept: list[Snapshot] = []
    for snapshot in sorted(others, key=lambda s: -s.version):
        if sum(s.output == snapshot.output for s in kept) < KEPT_PLACES:
            kept.append(snapshot)
    return tuple(kept)


def _result(output: Output, staged: Sequence[Staged], change: Change) -> OutputResult:
    partitions = tuple(sorted({s.partition for s in staged if s.partition}))
    return OutputResult(
        output.name,
        output.of,
        output.path,
        output.format,
        sum(s.rows for s in staged),
        len(change.targets),
        sum(s.bytes for s in staged),
        partitions,
        len(change.deletes),
    )


def merge_parts(merge: Merge) -> None:
    """Makes one file of staged parts. Raises StagedFileGoneError where one is gone."""
    move(_merged(merge), merge.target)


def _merged(merge: Merge) -> str:
    """The parts as one file, which has not its name yet."""
    own = uuid.uuid4().hex  # two may carry the commit out at once
    made = f"{merge.parts[0].rpartition('/')[0]}/{own}.merged.inprogress" if merge.parts else f"{merge.target}.inprogress"
    try:
        with open_new(made) as out:
            if merge.header:
                out.write(gzip.compress(merge.header, mtime=0) if merge.gzip else merge.header)
            elif merge.gzip and not merge.parts:
                out.write(gzip.compress(b"", mtime=0))
            for part in merge.parts:  # gzip members one after the other are one gzip file
                with open_read(part) as content:
                    shutil.copyfileobj(content, out, 1 << 20)
    except FileNotFoundError as error:
        raise StagedFileGoneError(merge.target, str(error.filename)) from error
    except OSError as error:
        raise refused(merge.target, error) from error
    secure([made])
    return made


def _sweep(output: Output, run: RunInfo) -> None:
    """Deletes what dead runs staged and did not decide: whoever is at work on the output has a claim."""
    keep = {f"{held.run_id}.{held.attempt}" for held in holders(output) if not stale(held)} | {f"{run.run_id}.{run.attempt}"}
    doomed = [join(output.staging, name) for name in list_folders(output.staging) if name not in keep]
    needed = [path for decided in (manifest.unfinished(run.state) if doomed else ()) for path in _sources(decided)]
    for folder in doomed:
        if not any(path.startswith(f"{folder}/") for path in needed):
            delete_tree(folder)


def _sources(decided: CommitEntry) -> Iterator[str]:
    """The staged files that a commit is made of."""
    for change in decided.changes.values():
        yield from (source for source, _ in change.moves)
        yield from change.merge.parts if change.merge is not None else ()
