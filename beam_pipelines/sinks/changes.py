"""What a commit changes on one output: which files stay, come and go. Looks at folders, changes nothing. Loads no Beam."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from beam_pipelines.arrow.ranges import Range, minus, partition_range, union
from beam_pipelines.errors import SinkError
from beam_pipelines.places import each, exists, join, list_files, list_folders
from beam_pipelines.sinks.manifest import Change, Committed, LiveFile, Merge, Snapshot
from beam_pipelines.sinks.run import Clock, Output, RunInfo
from beam_pipelines.sinks.superseded import letters_after
from beam_pipelines.sinks.work import Work

INPROGRESS = ".inprogress"
"""Ending of staged files: DuckDB and Polars look into dot folders too, so the name itself must not match `*.parquet`."""
_OURS = re.compile(r"part-[0-9a-f]{32}\.(parquet|csv|jsonl)(\.gz)?")


def change_of(output: Output, old: Snapshot | None, work: Work, number: int) -> tuple[Snapshot, Change]:
    """The output after the commit `number`, and the moves and deletions that lead there.

    Raises SinkError where a partition to be replaced holds files this program did not write.
    """
    check_layout(output, old)
    before, run, staged = old if old is not None and old.path == output.path else None, work.run, work.staged_of(output)
    if output.single:
        return _single(output, before, work, number)
    told = letters_after(output, before, work, number)
    names = {s.path: _below(s.partition, s.path.rpartition("/")[2].removesuffix(INPROGRESS)) for s in staged}
    mine = tuple(LiveFile(names[s.path], s.partition, s.rows, s.bytes, run.run_id) for s in staged)
    written, earlier = {s.partition for s in staged}, before.files if before is not None else ()
    scope = _replaced(output, before, written, told.dropped, run)
    files = (*(f for f in earlier if scope is not None and f.partition not in scope), *mine)
    snapshot = Snapshot(
        output.name, output.of, output.path, output.folder, output.format, number, output.partitions, files, _schema(output, before, work),
        told.letters, told.superseded, output.clock, _authority(output, before, written, run, whole=scope is None), told.said_in, told.settled,
        told.source_sets, _layouts(before, files, run.run_id, work.schemas.get(output.name, ())),
    )  # fmt: skip
    gone = ({f.path for f in earlier} | set(_lying(output, scope))) - {f.path for f in files}
    moves = tuple((path, join(output.path, name)) for path, name in names.items())
    return snapshot, Change(moves, None, tuple(join(output.path, p) for p in sorted(gone)))


def _schema(output: Output, before: Snapshot | None, work: Work) -> tuple[tuple[str, str], ...]:
    """The columns of what the run has written, else those that were there."""
    return work.schemas.get(output.name) or (before.schema if before is not None else ())


def check_layout(output: Output, old: Snapshot | None) -> None:
    """Raises SinkError where the output's folder is laid out otherwise: its files would be read wrongly together."""
    if (
        old is not None
        and old.path == output.path
        and old.files
        and (old.format, old.partitions) != (output.format, output.partitions)
        and output.replace != "all"
    ):
        raise SinkError(
            f"output '{output.name}' ({output.path}): its files are {old.format} {_by(old.partitions)}; the spec now says {output.format} {_by(output.partitions)}.",
            hint="Choose a new path, or `replace: all` for one run.",
        )
    if not output.single:
        _refuse_foreign(output, output.path, "")
    elif (old is None or old.path != output.path) and exists(output.path):
        raise SinkError(
            f"output '{output.name}': {output.path} is there already, and this pipeline did not write it; expected no such file.",
            hint="Move it away, or choose another path.",
        )


def _by(partitions: Sequence[str]) -> str:
    return f"partitioned by {', '.join(partitions)}" if partitions else "without partitions"


def _replaced(output: Output, before: Snapshot | None, written: set[str], dropped: Collection[str], run: RunInfo) -> set[str] | None:
    """The partitions whose files go: those written, and of a run over a range all that lie in it; None: all of the output."""
    if output.replace == "runs":
        return written | set(dropped)
    if run.range is not None and output.clock is not None:
        known = {file.partition for file in before.files} if before is not None else set()
        return written | {name for name in known if _lies_in(name, output.clock, run.range)}
    return None if output.replace == "all" or not output.partitions else written


def _layouts(before: Snapshot | None, files: Sequence[LiveFile], run_id: str, schema: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Which columns the files of each run have that still has some."""
    known = dict(before.layouts) if before is not None else {}
    known[run_id] = hashlib.sha256(repr(sorted(schema)).encode()).hexdigest()[:16]
    runs = {file.run_id for file in files}
    return {run: layout for run, layout in known.items() if run in runs}


def _lies_in(partition: str, clock: Clock, where: Range) -> bool:
    found = partition_range(partition, clock.partition, clock.unit)
    return found is not None and where.start <= found.start and found.end <= where.end


def _lying(output: Output, scope: set[str] | None) -> Iterator[str]:
    """Files of ours in the replaced partitions, known or left over. Raises SinkError for files of others."""
    looked = [(output, partition) for partition in sorted(_partitions(output, "", 0) if scope is None else scope)]
    for ours in each(output.path, _ours, looked):
        yield from ours


def _ours(output: Output, partition: str) -> list[str]:
    names = _refuse_foreign(output, join(output.path, partition), partition)
    return [_below(partition, name) for name in names if _OURS.fullmatch(name)]


def _partitions(output: Output, below: str, depth: int) -> Iterator[str]:
    yield below
    if depth < len(output.partitions):
        for name in list_folders(join(output.path, below)):
            if name.startswith(output.partitions[depth] + "="):
                yield from _partitions(output, _below(below, name), depth + 1)


def _authority(output: Output, before: Snapshot | None, written: Collection[str], run: RunInfo, *, whole: bool) -> tuple[Committed, ...]:
    """For which times the batch is the authority after the commit: the run's range, else the partitions written; and what of those before stays (`whole`: nothing).

    Files of a state that is older than this account count by their partitions.
    """
    clock = output.clock
    if clock is None:
        return ()
    found = [run.range] if run.range is not None else [partition_range(name, clock.partition, clock.unit) for name in written]
    mine = union(r for r in found if r is not None)
    kept: list[Committed] = []
    for old in () if whole or before is None else _known(before, clock):
        kept += [replace(old, start=left.start, end=left.end) for left in minus((old.start, old.end), mine)]
    new = [Committed(r.start, r.end, run.run_id, run.as_of, run.input) for r in mine]
    return tuple(sorted((*kept, *new), key=lambda c: c.start))


def _known(before: Snapshot, clock: Clock) -> tuple[Committed, ...]:
    if before.ranges:
        return before.ranges
    found = [partition_range(file.partition, clock.partition, clock.unit) for file in before.files]
    return tuple(Committed(*r, before.files[0].run_id) for r in union(r for r in found if r is not None))


def _below(partition: str, name: str) -> str:
    return f"{partition}/{name}" if partition else name


def _refuse_foreign(output: Output, folder: str, partition: str) -> list[str]:
    """The names of the files of a folder. Raises SinkError where some are not ours."""
    endings, names = (f".{output.format}", f".{output.format}.gz"), list_files(folder)
    foreign = [n for n in names if n.endswith(endings) and not _OURS.fullmatch(n) and not n.startswith(".")]
    if foreign:
        raise SinkError(
            f"output '{output.name}': {join(output.path, partition) if partition else output.path} holds files that this pipeline did not write: {', '.join(foreign[:3])}"
            f"{f' and {len(foreign) - 3} more' if len(foreign) > 3 else ''}; expected its own files only.",
            hint="Move them away, or choose another path: they would be read as part of the output.",
        )
    return names


def _single(output: Output, before: Snapshot | None, work: Work, number: int) -> tuple[Snapshot, Change]:
    staged = work.staged_of(output)
    file = LiveFile(output.path.rpartition("/")[2], "", sum(s.rows for s in staged), sum(s.bytes for s in staged), work.run.run_id)
    schema = _schema(output, before, work)
    snapshot = Snapshot(output.name, output.of, output.path, output.folder, output.format, number, (), (file,), schema)
    parts = tuple(sorted(s.path for s in staged))
    return snapshot, Change(merge=Merge(output.path, parts, work.headers.get(output.name, b""), output.gzip))
