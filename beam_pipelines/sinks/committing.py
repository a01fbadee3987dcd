"""The commit, step by step; every step can be repeated, and stopping after any of them loses nothing. Loads no Beam.

    claim ─▶ recover ─▶ secure ─▶ decide ─▶ move … ─▶ merge ─▶ load ─▶ delete … ─▶ secure ─▶ record ─▶ done ─▶ clean
             (others')             ▲
                                   └─ one file created under a number nobody has: before it nothing happened, after it all will

A run that dies before `decide` leaves outputs as they were and staged files that the next run deletes. A run that dies after it is carried
forward by the next run, or read correctly as it is (`manifest.snapshots`). That holds for a power failure too: what the file names is on disk
before it (`secure`), and staged names are forgotten only when the final ones are.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from beam_pipelines.errors import SinkError
from beam_pipelines.places import (
    delete,
    delete_tree,
    each,
    join,
    list_folders,
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
from beam_pipelines.sinks.claims import claim, holders, release, stale
from beam_pipelines.sinks.inventory import Stock, after_run, forget_inventories, read_inventory, write_inventory
from beam_pipelines.sinks.loads import Loading, Table, loading_of
from beam_pipelines.sinks.manifest import Change, Commit, Merge, Snapshot
from beam_pipelines.sinks.results import OutputResult, RunResults, find_run, write_run
from beam_pipelines.sinks.run import Output, RunInfo, check_outputs, staging_of

_TRIES = 20
KEPT_PLACES = 50
"""Places of one output that a state remembers besides the current one."""


@dataclass(frozen=True)
class Staged:
    """A closed file that waits for the commit; `path` is full, `partition` its directory in the output."""

    output: str
    partition: str
    path: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Work:
    """What a run brings to its commit. `sources` are those it read; `letters` those it has dead letters of; `schemas` names and SQL types of
    the columns of each output; `headers` the first line of merged text files. `since`: arrivals before it were not read.
    `stock`: which files were."""

    run: RunInfo
    outputs: tuple[Output, ...]
    staged: tuple[Staged, ...]
    record: RunResults
    sources: Collection[str] = ()
    letters: Collection[str] = ()
    schemas: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    headers: Mapping[str, bytes] = field(default_factory=dict)
    since: int | None = None
    stock: Stock | None = None


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
    try:
        for decided in manifest.unfinished(run.state):
            if decided.run_id == run.run_id:
                for _ in carry_out(run.state, decided):
                    pass
    except BaseException:  # what is staged is still needed: the next run, which must find nobody at work, carries it on
        release(outputs, run)
        raise
    for output in outputs:
        delete_tree(staging_of(output, run))
    release(outputs, run)


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
        missing = _without_table(work)
        secure([staged.path for staged in work.staged])
        decided = _decide(work, missing)
        yield "decide"
        yield from carry_out(run.state, decided)
    for output in outputs:
        delete_tree(staging_of(output, run))
    yield "clean"
    release(outputs, run)
    yield "release"


def carry_out(state: str, decided: Commit) -> Iterator[str]:
    """Makes a decided commit real; repeating it from the start at any point gives the same."""
    for name, change in decided.changes.items():
        top = decided.snapshots[name].folder
        for _ in each(top, move, change.moves):
            yield f"move {name}"
        if change.merge is not None:
            merge_parts(change.merge)
            yield f"merge {name}"
        if change.loading is not None:
            from beam_pipelines.sinks.load_jobs import load

            load(change.loading)
            yield f"load {name}"
        for _ in each(top, _drop, [(path, top) for path in change.deletes]):
            yield f"delete {name}"
        secure_folders({parent(path) for path in (*change.targets, *change.deletes)})
    write_run(state, decided.record)
    yield "record"
    manifest.mark_done(state, decided.number)
    manifest.forget_old(state)
    forget_inventories(state, decided.number, decided.inventory)
    yield "done"


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
        yield from carry_out(run.state, decided)
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


def _decide(work: Work, missing: frozenset[str]) -> Commit:
    mine = {o.path for o in work.outputs}
    for _ in range(_TRIES):
        for other in manifest.unfinished(work.run.state):  # a run over another range has just decided: this commit stands on its files
            if mine & {other.snapshots[name].path for name in other.changes}:
                for _ in carry_out(work.run.state, other):
                    pass
        newest = manifest.latest(work.run.state)
        plan = _plan(work, newest, missing)
        if manifest.decide(work.run.state, plan):
            return plan
    raise SinkError(
        f"{manifest.folder(work.run.state)}: {_TRIES} other commits came first.", hint="Run again when fewer runs commit at once."
    )


def _plan(work: Work, newest: Commit | None, missing: frozenset[str]) -> Commit:
    number = 1 if newest is None else newest.number + 1
    snapshots: dict[str, Snapshot] = {} if newest is None else dict(newest.snapshots)
    before = {o.name: None if newest is None else newest.at(o.name, o.path) for o in work.outputs}
    changes: dict[str, Change] = {}
    results: list[OutputResult] = []
    for output in work.outputs:
        mine = tuple(s for s in work.staged if s.output == output.name)
        snapshot, change = change_of(
            output, before[output.name], [(s.partition, s.path, s.rows, s.bytes) for s in mine], run=work.run, number=number,
            sources=work.sources, letters=work.letters, schema=work.schemas.get(output.name, ()), header=work.headers.get(output.name, b""),
            since=work.since,
        )  # fmt: skip
        if output.table is not None and snapshot.schema:
            loading = _loading(
                output.table, None if output.name in missing else before[output.name], snapshot, commit=f"{work.run.run_id}/{number}"
            )
            snapshot, change = replace(snapshot, table=output.table.name), replace(change, loading=loading)
        snapshots[output.name], changes[output.name] = snapshot, change
        results.append(_result(output, mine, change))
    record = replace(work.record, outputs=tuple(results))
    return Commit(
        number, work.run.run_id, snapshots, changes, record, elsewhere=_elsewhere(newest, snapshots), inventory=_inventory(work, newest, number)
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


def _inventory(work: Work, newest: Commit | None, number: int) -> str:
    """The name of the account of files after this commit."""
    name = "" if newest is None else newest.inventory
    if work.stock is None:
        return name
    new = after_run(read_inventory(work.run.state, name), work.stock)
    return name if new is None else write_inventory(work.run.state, number, work.run.run_id, new)


def _elsewhere(newest: Commit | None, snapshots: Mapping[str, Snapshot]) -> tuple[Snapshot, ...]:
    """Outputs at other places than those that are current after this commit, the newest of each name."""
    known = () if newest is None else (*newest.elsewhere, *newest.snapshots.values())
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
    """Makes one file of staged parts. Raises SinkError where one is gone."""
    made = f"{merge.parts[0].rpartition('/')[0]}/merged.inprogress" if merge.parts else f"{merge.target}.inprogress"
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
        raise SinkError(
            f"{merge.target}: a staged part is gone: {error.filename}.", hint="Somebody deleted it while the run committed; run again."
        ) from error
    except OSError as error:
        raise refused(merge.target, error) from error
    secure([made])
    move(made, merge.target)


def _sweep(output: Output, run: RunInfo) -> None:
    """Deletes what dead runs staged: whoever is at work on the output has a claim."""
    keep = {f"{held.run_id}.{held.attempt}" for held in holders(output) if not stale(held)} | {f"{run.run_id}.{run.attempt}"}
    for name in list_folders(output.staging):
        if name not in keep:
            delete_tree(join(output.staging, name))
