"""Claims: one run at a time writes an output, or a range of it. Loads no Beam.

The launcher claims the outputs before the job starts, so that the second of two runs fails at once and not after an hour; the commit
claims again, which costs nothing for the same attempt of the same run and covers a launcher that is gone. A claim is a file in the
output's staging folder, naming the run and the process: `claim.json`, or of a run over a range `claim-{start}-{end}.json`. Runs over ranges
that do not overlap write one output at the same time; dead letters, which each run keeps apart, are no reason to wait either.

A claim is *stale*, and taken over, if its process ran on this machine and is dead, or if it is from elsewhere and was not renewed for
six hours. A claim of a living run is never taken: `SinkError`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec

from beam_pipelines.arrow.ranges import Range, show_range
from beam_pipelines.errors import SinkError
from beam_pipelines.places import create_new, delete, join, list_files, locked, prune_folders, read_bytes, write_bytes
from beam_pipelines.sinks.owners import Process, alive, this_process
from beam_pipelines.sinks.run import Output, RunInfo, utc_now

STALE_AFTER = timedelta(hours=6)
CLAIM = "claim.json"
_RANGED = re.compile(r"claim-(-?\d+)-(-?\d+)\.json")


@dataclass(frozen=True)
class Claim:
    """Who writes an output."""

    run_id: str
    attempt: str
    owner: Process
    taken_at: str
    renewed_at: str
    range: Range | None = None


def claim(outputs: Sequence[Output], run: RunInfo) -> None:
    """Takes all outputs for this attempt of the run, or none of them.

    Raises SinkError where a living run holds one. Claiming again renews.
    """
    taken: list[Output] = []
    try:
        for output in outputs:
            if _take(output, run):
                taken.append(output)  # noqa: PERF401  (what is taken must be known when one is refused)
    except BaseException:
        release(taken, run)
        raise


def release(outputs: Sequence[Output], run: RunInfo) -> None:
    """Gives the outputs back, where this attempt of the run holds them."""
    for output in outputs:
        held = _read(_path(output, run.range))
        if held is not None and _same(held, run):
            delete(_path(output, run.range))
            prune_folders(output.staging, output.folder)


def holders(output: Output) -> list[Claim]:
    """The claims on an output, stale or not."""
    names = [name for name in list_files(output.staging) if name == CLAIM or _RANGED.fullmatch(name)]
    return [held for name in sorted(names) if (held := _read(join(output.staging, name))) is not None]


def _read(path: str) -> Claim | None:
    content = read_bytes(path)
    if content is None:
        return None
    try:
        return msgspec.json.decode(content, type=Claim)
    except msgspec.DecodeError:  # not ours, or from a future version: treat as taken by an unknown run
        return Claim("(unreadable)", "", Process("?", 0, ""), "", utc_now())


def stale(held: Claim) -> bool:
    """Whether the claim's run is certainly dead, or long silent."""
    runs = alive(held.owner)
    if runs is not None:
        return not runs
    return datetime.now(UTC) - datetime.fromisoformat(held.renewed_at) > STALE_AFTER


def _take(output: Output, run: RunInfo) -> bool:
    """True if the claim is new, False if it was ours."""
    now = utc_now()
    mine = Claim(run.run_id, run.attempt, this_process(), now, now, run.range)
    path = _path(output, run.range)
    with locked(output.folder):
        held = _read(path)
        if held is not None and _same(held, run):
            write_bytes(path, msgspec.json.encode(replace(held, renewed_at=now)))
            return False
        _expect_free(output, run)
        for dead in holders(output):
            if stale(dead) and (dead.range == run.range or _overlap(dead, output, run)):
                delete(_path(output, dead.range))
        if not create_new(path, msgspec.json.encode(mine)):
            raise _busy(output, _read(path) or mine)
        try:  # where nothing locks, such as an object store, another may have come between: whoever sees the other gives way
            _expect_free(output, run)
        except SinkError:
            delete(path)
            raise
    return True


def _expect_free(output: Output, run: RunInfo) -> None:
    """Raises SinkError where a living run other than this holds what it would write."""
    for held in holders(output):
        if not _same(held, run) and _overlap(held, output, run) and not stale(held):
            raise _busy(output, held)


def _overlap(held: Claim, output: Output, run: RunInfo) -> bool:
    if held.range is None or run.range is None:
        return True
    if output.replace == "runs":
        return False
    return held.range[0] < run.range.end and run.range.start < held.range[1]


def _busy(output: Output, held: Claim) -> SinkError:
    what = "it" if held.range is None else f"its range {show_range(held.range)}"
    return SinkError(
        f"output '{output.name}' ({output.path}): run '{held.run_id}' writes {what} ({held.owner.text}, since {held.taken_at}); expected no other run.",
        hint=f"Wait until it has ended. If you know that it is dead, delete {_path(output, held.range)}.",
    )


def _same(held: Claim, run: RunInfo) -> bool:
    return (held.run_id, held.attempt) == (run.run_id, run.attempt)


def _path(output: Output, where: tuple[int, int] | None) -> str:
    return join(output.staging, CLAIM if where is None else f"claim-{where[0]}-{where[1]}.json")
