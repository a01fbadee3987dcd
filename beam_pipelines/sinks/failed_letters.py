"""Dead letters of batch runs that failed: in no output, for nothing of such a run is committed, and there for whoever asks why. Loads no Beam.

{output}/.failed/{when it failed}.{attempt}/run_id=…/part-….parquet.failed      of the newest runs that failed
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from beam_pipelines.commit_elements import Staged
from beam_pipelines.places import delete_tree, each, exists, join, list_folders, move
from beam_pipelines.sinks.changes import INPROGRESS
from beam_pipelines.sinks.committing import merge_parts
from beam_pipelines.sinks.manifest import LiveFile, Merge, Snapshot
from beam_pipelines.sinks.resolutions import LETTER_TYPES, with_failures
from beam_pipelines.sinks.results import KeptLetters
from beam_pipelines.sinks.run import Output, RunInfo
from beam_pipelines.sinks.views import select_sql
from beam_pipelines.spec.sinks import LETTERS

KEPT_FAILED_RUNS = 5
"""Runs that failed whose letters are kept, of each output."""
FAILED = ".failed"
"""Folder of such letters, and ending of their files: readers that look into dot folders too must not take them for the output's."""


def keep_letters(outputs: Sequence[Output], staged: Iterable[Staged], run: RunInfo, *, header: bytes = b"") -> KeptLetters | None:
    """Moves the letters that the run has staged out of its staging folder; None where there are none.

    `header`: the first line of a single CSV file. Doing it twice changes nothing. Raises SinkError where the place refuses.
    """
    output = next((o for o in outputs if o.of == LETTERS), None)
    mine = sorted((s for s in staged if output is not None and s.output == output.name), key=lambda s: s.path)
    if output is None or not mine:
        return None
    folder = failed_folder(output)
    tried = (name for name in list_folders(folder) if name.endswith(f".{run.attempt}"))
    below = f"{next(tried, f'{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.{run.attempt}')}/run_id={run.run_id}"
    if output.single:
        names = [_failed(output.path)]
        target = join(folder, below, names[0])
        if not exists(target):
            merge_parts(Merge(target, tuple(s.path for s in mine), header if output.format == "csv" else b"", output.gzip))
    else:
        names = [_failed(s.path.removesuffix(INPROGRESS)) for s in mine]
        for _ in each(folder, move, [(one.path, join(folder, below, name)) for one, name in zip(mine, names, strict=True)]):
            pass
    files = tuple(f"{below}/{name}" for name in names)
    return KeptLetters(output.name, folder, output.format, files, sum(s.rows for s in mine), sum(s.bytes for s in mine))


def forget_older(kept: KeptLetters) -> None:
    """Deletes the letters of all but the newest failures, these among them, whether those are on record or not."""
    for old in sorted(set(list_folders(kept.folder)) - _failures(kept))[: 1 - KEPT_FAILED_RUNS]:
        delete_tree(join(kept.folder, old))


def forget_letters(kept: KeptLetters) -> None:
    """Deletes them."""
    for failure in _failures(kept):
        delete_tree(join(kept.folder, failure))


def failed_folder(output: Output) -> str:
    """Where the letters of runs that failed are kept, beside the output's staging folder."""
    return join(output.folder, f"{FAILED}-{output.path.rpartition('/')[2]}" if output.single else FAILED)


def kept_there(kept: KeptLetters) -> bool:
    """Whether they are still there."""
    return all(exists(join(kept.folder, path)) for path in kept.files)


def kept_sql(kept: KeptLetters) -> str:
    """A SELECT (DEAD_LETTERS) of the letters that a failed run left."""
    files = tuple(LiveFile(path, "", 0, 0, "") for path in kept.files)
    by = ("run_id",) if kept.format == "parquet" else ()
    snapshot = Snapshot(kept.output, "failed", kept.folder, kept.folder, kept.format, 0, by, files, LETTER_TYPES)
    return with_failures(select_sql(snapshot)) if kept.format == "csv" else select_sql(snapshot)


def _failures(kept: KeptLetters) -> set[str]:
    return {path.partition("/")[0] for path in kept.files}


def _failed(path: str) -> str:
    name = path.rpartition("/")[2]
    plain = name.removesuffix(".gz")
    return f"{plain}{FAILED}{name[len(plain) :]}"  # readers know by the ending that it is gzip
