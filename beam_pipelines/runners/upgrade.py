"""What a start of a spec would do to a stream that has run: how it differs from the newest start, and what would be read again. Loads no Beam, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec
from pydantic import ValidationError

from beam_pipelines.arrow.ranges import Range, widened
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.formats.archive_files import HOUR_MICROS, Hour, hours, source_folder
from beam_pipelines.formats.named_files import again
from beam_pipelines.places import holds, join, list_files, size
from beam_pipelines.runners.closed import closed_until
from beam_pipelines.sinks.deletions import expect_archived
from beam_pipelines.sinks.epochs import Start, newest_start, what_ran
from beam_pipelines.sinks.labels import places_of
from beam_pipelines.sinks.reached import Reached, starts
from beam_pipelines.sinks.upgrades import SpecChange, Version, compare
from beam_pipelines.spec.horizon import horizon
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.ranges import cuts_of


@dataclass(frozen=True)
class Upgrade:
    """What differs from the newest start, number `epoch`; 0: there was none.

    Messages that arrived at `since` or later (microseconds; None: all) are read again, `bytes` of the archive; on Dataflow `dataflow.upgrade` says what is. `anew`: the closed event time that a batch can
    replace; None where nothing is closed, or `whole`: the outputs are not cut by time, and a batch replaces all.
    """

    changes: tuple[SpecChange, ...]
    epoch: int = 0
    start: Start | None = None
    since: int | None = None
    bytes: int = 0
    anew: Range | None = None
    whole: bool = False


def upgrade_of(
    loaded: LoadedSpec, *, ran: str | None = None, begun: Mapping[int, Start] | None = None, from_archive: bool = True
) -> Upgrade:
    """What a start of this spec would do now. `ran`: the name of what runs ("": nobody knows), where somebody knows better than what the newest start has written down; `begun`: the
    starts that ran, by epoch, where not all did; without `from_archive` nothing is read again from there. Raises SinkError where the state folder refuses to be read.
    """
    spec, state = loaded.spec, loaded.state
    newest = newest_start(state) if begun is None else max(begun.items(), default=None)
    if newest is None:
        return Upgrade(tuple(_left_by_another(spec, state)))
    epoch, start = newest
    if ran is not None and ran != start.ran:
        start = msgspec.structs.replace(start, ran=ran, versions={})
    known = starts(state)
    watermark = (known[max(known)] if known else Reached()).watermark_micros
    since = None if watermark is None else watermark - horizon(spec)
    archived = [hour for s in spec.sources.stream for hour in hours(source_folder(s.archive or join(state, "archive"), s.pubsub))]
    replayed = [hour.folder for hour in archived if from_archive and (since is None or (hour.number + 1) * HOUR_MICROS > since)]
    changes = (*(_deleted(state, since) if from_archive else ()), *_compared(loaded, epoch, start))
    anew, whole = _closed(loaded, archived)
    return Upgrade(changes, epoch, start, since, sum(again(partial(_bytes, folder)) for folder in replayed), anew, whole)


def _left_by_another(spec: PipelineSpec, state: str) -> Iterator[SpecChange]:
    """Files of a stream whose state is elsewhere, in the places of this one."""
    for name, place in places_of(spec).items():
        if holds(f"{place.rstrip('/')}.speed", ".parquet"):
            why = f"nothing is known here of what lies in {place.rstrip('/')}.speed: repeats and duplicates would be shown, and panes of windows twice"
            yield SpecChange("state", "unknown", state, "refused", why, f"Name the state folder that belongs to '{name}', or other places.")
            return


def _deleted(state: str, since: int | None) -> Iterator[SpecChange]:
    try:
        expect_archived(state, since)
    except RunError as error:
        yield SpecChange("horizon", "archived", "deleted", "refused", error.message, "Keep windows and lateness as long as they were.")


def _compared(loaded: LoadedSpec, epoch: int, start: Start) -> list[SpecChange]:
    try:
        old = version_of(loaded.state, start)
    except ValidationError as error:
        return [_unknown(epoch, f"its spec has what this version does not know: {'.'.join(map(str, error.errors()[0]['loc']))}")]
    if old is None:
        return [_unknown(epoch, "a version made it that did not write down what it runs")]
    return compare(old, Version(loaded.spec, loaded.columns), loaded.state)


def version_of(state: str, start: Start) -> Version | None:
    """What a start runs; None where nobody has written it down. Raises ValidationError where this version does not know what is in it."""
    ran = what_ran(state, start)
    if ran is None:
        return None
    return Version(PipelineSpec.model_validate_json(msgspec.json.encode(ran.spec), strict=True, by_alias=True, by_name=False), ran.columns)


def _unknown(epoch: int, why: str) -> SpecChange:
    what = f"what start {epoch} runs cannot be compared: {why}"
    return SpecChange("unknown", f"start {epoch}", "this spec", "refused", what, "Compare its spec with this one yourself, then accept it.")


def _bytes(folder: str) -> int:
    return size([join(folder, name) for name in list_files(folder)])


def _closed(loaded: LoadedSpec, archived: list[Hour]) -> tuple[Range | None, bool]:
    spec, end = loaded.spec, closed_until(loaded.spec, loaded.state)
    start = min((hour.number * HOUR_MICROS for hour in archived), default=None)
    if start is None or end is None or end <= start:
        return None, False
    try:
        for cut in cuts_of(spec):
            start, end = (widened((at, at + 1), cut.by.transform).start for at in (start, end))
    except SpecError:
        return None, True
    return (Range(start, end) if start < end else None), False
