"""What a batch run takes in of its files: all, or, over a range, those that the last runs do not know to have nothing there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.errors import SpecError
from beam_pipelines.sinks.inventory import FileState, Inventory, Stock, needed, read_inventory
from beam_pipelines.sinks.labels import places_of
from beam_pipelines.sinks.manifest import latest
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sources.files import list_versions
from beam_pipelines.sources.lookups import state_of
from beam_pipelines.spec.horizon import EVERYTHING, reach
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.ranges import cuts_of
from beam_pipelines.spec.sources import FileSource

_HOUR, _DAY = 3_600_000_000, 86_400_000_000


class Cut(NamedTuple):
    """How finely times of rows are noted (microseconds), in what `units` outputs are replaced, and how far (microseconds) rows matter around them."""

    unit: int
    units: tuple[str, ...]
    before: int
    after: int


def cut_of(spec: PipelineSpec) -> Cut | None:
    """None where outputs cannot be replaced over a range, or all rows are compared with all."""
    try:
        units = tuple(dict.fromkeys(cut.by.transform for cut in cuts_of(spec)))
    except SpecError:
        return None
    before, after = reach(spec)
    return None if before >= EVERYTHING or not units else Cut(_HOUR if "hour" in units else _DAY, units, before, after)


def listed_files(spec: PipelineSpec) -> dict[str, FileState]:
    """Every file of the batch sources as it is now. Raises SourceError where a source has none."""
    found: dict[str, FileState] = {}
    for source in spec.sources.batch:
        if isinstance(source, FileSource):
            found |= {path: FileState(*version) for path, version in list_versions(source.patterns).items()}
    return found


def known_files(state: str) -> Inventory | None:
    """The account of files after the newest commit."""
    newest = latest(state)
    return None if newest is None else read_inventory(state, newest.inventory)


def code_of(spec: PipelineSpec) -> str:
    """16 hex digits over all that decides what outputs hold besides the files: the spec's stages, the outputs' places, the files of lookups. What an `apply`
    function does inside is not seen."""

    def plain(models: object) -> object:
        if isinstance(models, Mapping):
            return {name: plain(model) for name, model in models.items()}
        if isinstance(models, tuple):
            return [plain(model) for model in models]
        return models.model_dump(mode="json", exclude_defaults=True, by_alias=True) if hasattr(models, "model_dump") else models

    lookups = {name: state_of(source) for name, source in spec.lookups.items()}
    content = [
        spec.contract.fingerprint, spec.time_zone, plain(spec.transform), plain(spec.checks), plain(spec.deduplicate), plain(spec.aggregates),
        [[plain(source.format), plain(source.arrival)] for source in spec.sources.batch], places_of(spec), plain(spec.lookups), lookups,
    ]  # fmt: skip
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:16]


def stock_of(spec: PipelineSpec, run: RunInfo) -> Stock | None:
    """The files that the run reads; None where it keeps no account of files: it reads the archive, or its outputs cannot be replaced in part."""
    cut = cut_of(spec) if run.input == "batch" else None
    if cut is None:
        return None
    listed, known, code = listed_files(spec), known_files(run.state), code_of(spec)
    if run.range is None:
        return Stock(code, listed)
    read = needed(known, listed, code, Range(run.range.start - cut.before, run.range.end + cut.after))
    gone = tuple(path for path in (known.files if known is not None and known.code == code else ()) if path not in listed)
    return Stock(code, {path: listed[path] for path in sorted(read)}, gone, cut.before, cut.after, cut.units, run.range)
