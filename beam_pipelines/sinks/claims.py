"""Claims: one run at a time writes an output, or a range of it. Loads no Beam.

The launcher claims the outputs before the job starts, so that the second of two runs fails at once and not after an hour; the commit
claims again, which costs nothing for the same attempt of the same run and covers a launcher that is gone. A claim is a file in the
output's staging folder, naming the run and the process: `claim.json`, or of a run over a range `claim-{start}-{end}.json`. Runs over ranges
that do not overlap write one output at the same time; dead letters, which each run keeps apart, are no reason to wait either.

A claim is *stale*, and taken over, if its process ran on this machine and is dead, or if it is from elsewhere and was not renewed for
six hours: the launcher renews it every ten minutes while it waits for the run (`renewing`). So a claim is taken from a living run only where its
launcher was cut off from the place, or asleep, or did not wait; such a run finds it gone when it commits, and commits nothing (`expect_held`).
Of all who take over a stale claim at once one succeeds, on Cloud Storage too; at a URL of Beam's filesystems, which know no condition, that is likely only.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import msgspec

from beam_pipelines.arrow.ranges import Range, show_range
from beam_pipelines.errors import BeamPipelinesError, SinkError
from beam_pipelines.places import Held, create_new, delete, join, list_files, locked, prune_folders, read_bytes, read_held, swap
from beam_pipelines.sinks.owners import Process, alive, this_process
from beam_pipelines.sinks.run import Output, RunInfo, utc_now

_LOG = logging.getLogger(__name__)
STALE_AFTER = timedelta(hours=6)
RENEW_EVERY_S = 600.0
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
        path = _path(output, run.range)
        while (found := read_held(path)) is not None and _same(_decoded(found.content), run):  # again, where it was renewed meanwhile
            with locked(output.folder):
                gone = swap(path, found, None)
            if gone:
                prune_folders(output.staging, output.folder)
                break


@contextmanager
def renewing(outputs: Sequence[Output], run: RunInfo, *, wait: Callable[[threading.Event], bool] | None = None) -> Iterator[None]:
    """Renews the claims now and then for as long as the block runs. Never takes one that is not ours any more."""
    ended = threading.Event()
    again = wait or (lambda event: not event.wait(RENEW_EVERY_S))

    def renew() -> None:
        while again(ended):
            for output in outputs:
                try:
                    with locked(output.folder):
                        _renewed(output, run)
                except BeamPipelinesError as error:  # the next time is long before the claim is stale
                    _LOG.warning("output '%s': its claim could not be renewed: %s", output.name, error)

    threading.Thread(target=renew, name="claims", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def expect_held(outputs: Sequence[Output], run: RunInfo) -> None:
    """Raises SinkError where this attempt of the run does not hold an output any more."""
    for output in outputs:
        held = _read(_path(output, run.range))
        if held is None:
            raise SinkError(
                f"output '{output.name}' ({output.path}): run '{run.run_id}' does not hold it any more: its claim was given back or deleted.",
                hint="Nothing was committed; run again.",
            )
        if not _same(held, run):
            raise busy(output, held)


def holders(output: Output) -> list[Claim]:
    """The claims on an output, stale or not."""
    names = [name for name in list_files(output.staging) if name == CLAIM or _RANGED.fullmatch(name)]
    return [held for name in sorted(names) if (held := _read(join(output.staging, name))) is not None]


def _read(path: str) -> Claim | None:
    content = read_bytes(path)
    return None if content is None else _decoded(content)


def _decoded(content: bytes) -> Claim:
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
    path = _path(output, run.range)
    with locked(output.folder):
        if _renewed(output, run):
            return False
        _expect_free(output, run)
        before: Held | None = None
        for dead in holders(output):
            if stale(dead) and (dead.range == run.range or overlap(dead, output, run)):
                found = _stale(_path(output, dead.range))
                if dead.range == run.range:
                    before = found
                elif found is not None:
                    swap(_path(output, dead.range), found, None)
        now = utc_now()
        mine = msgspec.json.encode(Claim(run.run_id, run.attempt, this_process(), now, now, run.range))
        if not (create_new(path, mine) if before is None else swap(path, before, mine)):
            raise busy(output, _read(path) or _decoded(mine))
        try:  # where nothing locks, such as an object store, another may have come between: whoever sees the other gives way
            _expect_free(output, run)
        except SinkError:
            delete(path)
            raise
    return True


def _renewed(output: Output, run: RunInfo) -> bool:
    """Whether the claim is ours, and was renewed. Call it with the folder locked."""
    path = _path(output, run.range)
    found = read_held(path)
    if found is None or not _same(held := _decoded(found.content), run):
        return False
    if swap(path, found, msgspec.json.encode(replace(held, renewed_at=utc_now()))):
        return True
    now = _read(path)  # another thread of ours was quicker, or the claim has just been given back, or taken as stale
    return now is not None and _same(now, run)


def _stale(path: str) -> Held | None:
    """The claim as it is now, if it is stale."""
    found = read_held(path)
    return found if found is not None and stale(_decoded(found.content)) else None


def _expect_free(output: Output, run: RunInfo) -> None:
    """Raises SinkError where a living run other than this holds what it would write."""
    for held in holders(output):
        if not _same(held, run) and overlap(held, output, run) and not stale(held):
            raise busy(output, held)


def overlap(held: Claim, output: Output, run: RunInfo) -> bool:
    """Whether the run would write what the claim holds."""
    if held.range is None or run.range is None:
        return True
    if output.replace == "runs":
        return False
    return held.range[0] < run.range.end and run.range.start < held.range[1]


def busy(output: Output, held: Claim) -> SinkError:
    """What to say where a living run holds an output."""
    what = "it" if held.range is None else f"its range {show_range(held.range)}"
    return SinkError(
        f"output '{output.name}' ({output.path}): run '{held.run_id}' writes {what} ({held.owner.text}, since {held.taken_at}); expected no other run.",
        hint=f"Wait until it has ended. If you know that it is dead, delete {_path(output, held.range)}.",
    )


def _same(held: Claim, run: RunInfo) -> bool:
    return (held.run_id, held.attempt) == (run.run_id, run.attempt)


def _path(output: Output, where: tuple[int, int] | None) -> str:
    return join(output.staging, CLAIM if where is None else f"claim-{where[0]}-{where[1]}.json")
