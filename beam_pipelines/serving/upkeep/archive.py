"""Which hours of an archive are older than they are kept, and which of these a stream that starts again still reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from beam_pipelines.formats.archive_files import HOUR_MICROS, Hour, count_rows, hours, live, newest_arrival, stored_ms
from beam_pipelines.formats.named_files import Named, again
from beam_pipelines.places import size
from beam_pipelines.sinks.deletions import Doomed
from beam_pipelines.sinks.reached import starts

_SLACK_MS = 600_000
NOT_THROUGH = "a stream that starts again may read them"
UNKNOWN = "nothing is known of how far the stream has come"


class Needed(NamedTuple):
    """What the next start of a stream reads: what arrived at `since` (microseconds) or later, or was stored at `stored_ms` or later. `known`: or all."""

    known: bool
    since: int = 0
    stored_ms: int = 0


def needed(state: str, horizon: int) -> Needed:
    """What the next start reads of the archive, where its windows reach `horizon` microseconds back."""
    accounts = starts(state)
    newest = accounts[max(accounts)] if accounts else None
    if newest is None or newest.watermark_micros is None or newest.through_ms is None:
        return Needed(False)
    return Needed(True, newest.watermark_micros - horizon, newest.through_ms - _SLACK_MS)


def newest_message(archives: Sequence[str]) -> int | None:
    """The latest arrival in any of the archives, in microseconds; None where there is no message."""
    return max((at for folder in archives if (at := newest_arrival(folder)) is not None), default=None)


def old_hours(archive: str, name: str, before: int, need: Needed) -> tuple[list[Doomed], dict[str, int]]:
    """The files of whole hours that ended at `before` or earlier, and how many messages stay all the same, by why."""
    doomed: list[Doomed] = []
    kept: dict[str, int] = {}
    for hour in hours(archive):
        if (hour.number + 1) * HOUR_MICROS > before:
            break
        files = again(lambda at=hour.folder: live(at))  # type: ignore[misc]
        why = _still_needed(hour, files, need)
        if why is not None:
            kept[why] = kept.get(why, 0) + sum(count_rows(f.path) for f in files)
        else:
            end = (hour.number + 1) * HOUR_MICROS
            doomed += [Doomed(name, "archive", f.path, archive, count_rows(f.path), size([f.path]), end) for f in files]
    return doomed, {why: rows for why, rows in kept.items() if rows}


def _still_needed(hour: Hour, files: Sequence[Named], need: Needed) -> str | None:
    if not need.known:
        return UNKNOWN
    late = (hour.number + 1) * HOUR_MICROS > need.since
    return NOT_THROUGH if late or any(stored_ms(file) >= need.stored_ms for file in files) else None
