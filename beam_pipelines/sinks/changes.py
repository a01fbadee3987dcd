"""What a commit changes on one output: which files stay, come and go. Looks at folders, changes nothing. Loads no Beam."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from beam_pipelines.errors import SinkError
from beam_pipelines.places import exists, join, list_files, list_folders
from beam_pipelines.sinks.manifest import Change, LiveFile, Merge, Snapshot
from beam_pipelines.sinks.run import Output, RunInfo

INPROGRESS = ".inprogress"
"""Ending of staged files: DuckDB and Polars look into dot folders too, so the name itself must not match `*.parquet`."""
_OURS = re.compile(r"part-[0-9a-f]{32}\.(parquet|csv|jsonl)(\.gz)?")
Arrived = tuple[str, str, int, int]
"""A staged file: partition, full path, rows, bytes."""


def change_of(
    output: Output,
    old: Snapshot | None,
    arrived: Sequence[Arrived],
    *,
    run: RunInfo,
    number: int,
    sources: Collection[str] = (),
    letters: Collection[str] = (),
    schema: tuple[tuple[str, str], ...] = (),
    header: bytes = b"",
) -> tuple[Snapshot, Change]:
    """The output after the commit, and the moves and deletions that lead there.

    Raises SinkError where a partition to be replaced holds files this program did not write.
    """
    check_layout(output, old)
    before = old if old is not None and old.path == output.path else None
    if output.single:
        return _single(output, before, arrived, run=run, number=number, schema=schema, header=header)
    said, dropped, superseded = _letters(output, before, run.run_id, sources, letters)
    names = {path: _below(partition, path.rpartition("/")[2].removesuffix(INPROGRESS)) for partition, path, _, _ in arrived}
    files = tuple(LiveFile(names[path], partition, rows, size, run.run_id) for partition, path, rows, size in arrived)
    scope = _replaced(output, {a[0] for a in arrived}, dropped)
    kept = tuple(f for f in (before.files if before else ()) if scope is not None and f.partition not in scope)
    live = {f.path for f in (*kept, *files)}
    gone = {f.path for f in (before.files if before else ())} - live
    gone |= {p for p in _lying(output, scope) if p not in live}
    snapshot = Snapshot(
        output.name,
        output.of,
        output.path,
        output.folder,
        output.format,
        number,
        output.partitions,
        kept + files,
        schema or (before.schema if before else ()),
        said,
        superseded,
    )
    moves = tuple((path, join(output.path, name)) for path, name in names.items())
    return snapshot, Change(moves, None, tuple(join(output.path, p) for p in sorted(gone)))


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


def _replaced(output: Output, written: set[str], dropped: set[str]) -> set[str] | None:
    """The partitions whose files go; None: all of the output."""
    if output.replace == "runs":
        return written | dropped
    return None if output.replace == "all" or not output.partitions else written


def _lying(output: Output, scope: set[str] | None) -> Iterator[str]:
    """Files of ours in the replaced partitions, known or left over. Raises SinkError for files of others."""
    for partition in sorted(_partitions(output, "", 0)) if scope is None else sorted(scope):
        folder = join(output.path, partition)
        _refuse_foreign(output, folder, partition)
        yield from (_below(partition, n) for n in list_files(folder) if _OURS.fullmatch(n))


def _partitions(output: Output, below: str, depth: int) -> Iterator[str]:
    yield below
    if depth < len(output.partitions):
        for name in list_folders(join(output.path, below)):
            if name.startswith(output.partitions[depth] + "="):
                yield from _partitions(output, _below(below, name), depth + 1)


def _below(partition: str, name: str) -> str:
    return f"{partition}/{name}" if partition else name


def _refuse_foreign(output: Output, folder: str, partition: str) -> None:
    endings = (f".{output.format}", f".{output.format}.gz")
    foreign = [n for n in list_files(folder) if n.endswith(endings) and not _OURS.fullmatch(n) and not n.startswith(".")]
    if foreign:
        raise SinkError(
            f"output '{output.name}': {join(output.path, partition) if partition else output.path} holds files that this pipeline did not write: {', '.join(foreign[:3])}"
            f"{f' and {len(foreign) - 3} more' if len(foreign) > 3 else ''}; expected its own files only.",
            hint="Move them away, or choose another path: they would be read as part of the output.",
        )


def _single(
    output: Output,
    before: Snapshot | None,
    arrived: Sequence[Arrived],
    *,
    run: RunInfo,
    number: int,
    schema: tuple[tuple[str, str], ...],
    header: bytes,
) -> tuple[Snapshot, Change]:
    name = output.path.rpartition("/")[2]
    file = LiveFile(name, "", sum(a[2] for a in arrived), sum(a[3] for a in arrived), run.run_id)
    known = schema or (before.schema if before else ())
    snapshot = Snapshot(output.name, output.of, output.path, output.folder, output.format, number, (), (file,), known)
    return snapshot, Change(merge=Merge(output.path, tuple(sorted(a[1] for a in arrived)), header, output.gzip))


def _letters(
    output: Output, before: Snapshot | None, run_id: str, sources: Collection[str], letters: Collection[str]
) -> tuple[dict[str, tuple[str, ...]], set[str], dict[str, tuple[str, ...]]]:
    """Dead letters by run: whose sources they are of, the partitions all of whose sources were read again, and what is superseded."""
    if output.replace != "runs":
        return {}, set(), {}
    said = {run: tuple(s) for run, s in (before.letters if before else {}).items() if run != run_id}
    again = frozenset(sources)
    superseded = {run: tuple(sorted({*(before.superseded.get(run, ()) if before else ()), *(again & set(of))})) for run, of in said.items()}
    over = {run for run, of in said.items() if set(of) <= set(superseded[run])}
    kept = {run: of for run, of in said.items() if run not in over} | ({run_id: tuple(sorted(letters))} if letters else {})
    dropped = {f"run_id={run}" for run in over} | {f"run_id={run_id}"}
    return kept, dropped, {run: of for run, of in superseded.items() if run in kept and of}
