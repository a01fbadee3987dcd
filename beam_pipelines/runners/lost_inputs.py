"""Whether a batch would still find what the rows of a partition were computed from: where input is gone, its rows would go with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import duckdb

from beam_pipelines.arrow.engine import quote
from beam_pipelines.arrow.ranges import Range
from beam_pipelines.arrow.schema import ARRIVAL, SOURCE
from beam_pipelines.edges import archives_of
from beam_pipelines.errors import SourceError
from beam_pipelines.formats.archive import hours
from beam_pipelines.formats.archive_files import HOUR_MICROS, hour_folder
from beam_pipelines.places.sql import reading
from beam_pipelines.runners.letter_records import Input
from beam_pipelines.sinks.labels import places_of
from beam_pipelines.sinks.manifest import snapshots
from beam_pipelines.sinks.outputs import read_outputs
from beam_pipelines.sinks.speed_views import scan
from beam_pipelines.sinks.views import select_sql
from beam_pipelines.sources.bigquery_session import PREFIX as BIGQUERY
from beam_pipelines.sources.database_opened import PREFIX as DATABASE
from beam_pipelines.sources.files import list_versions
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.sinks import ROWS
from beam_pipelines.spec.sources import ArchiveSource


class Lost(NamedTuple):
    """A file or archived hour that is gone, and an hour of event time, in microseconds, of which there are rows of it."""

    name: str
    start: int
    end: int


def lost_inputs(loaded: LoadedSpec, input_: Input, within: Range | None) -> Sequence[Lost]:
    """What rows of these event times (None: all) came from and is gone.

    Told by the rows' provenance; where they are stored without it, nothing is known, and nothing is said.
    """
    return _lost_files(loaded, within) if input_ == "batch" else _lost_hours(loaded, within)


def named(lost: Sequence[Lost]) -> str:
    """The first of them, and how many more."""
    names = sorted({one.name for one in lost})
    return names[0] + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


def stream_has(loaded: LoadedSpec, part: Range) -> bool:
    """Whether a stream has stored rows of these event times."""
    return bool(_rows_from(loaded, part, _of_stream(loaded)))


def _lost_files(loaded: LoadedSpec, within: Range | None) -> list[Lost]:
    there: set[str] = set()
    for source in loaded.spec.sources.batch:
        if isinstance(source, ArchiveSource):
            return []  # messages have no files of their own
        try:
            there |= list_versions(source.patterns).keys()
        except SourceError:
            continue
    return [
        Lost(source, start, start + HOUR_MICROS)
        for source, _, start in _rows_from(loaded, within, _of_batch(loaded))
        if source not in there
        and not source.startswith((BIGQUERY, DATABASE))  # a table is there or the run fails; which rows it has lost, nobody knows
    ]


def _lost_hours(loaded: LoadedSpec, within: Range | None) -> list[Lost]:
    archives = {s.pubsub: a.archive for s, a in zip(loaded.spec.sources.stream, archives_of(loaded.spec, loaded.state), strict=True)}
    there = {(source, hour.number) for source, archive in archives.items() for hour in hours(archive)}
    found = _rows_from(loaded, within, [*_of_stream(loaded), *_of_batch(loaded)])
    return [
        Lost(hour_folder(archives[source], hour), start, start + HOUR_MICROS)
        for source, hour, start in found
        if source in archives and (source, hour) not in there
    ]


def _of_stream(loaded: LoadedSpec) -> list[str]:
    outputs = read_outputs(loaded.state)
    return [found for o in (outputs.outputs if outputs else ()) if o.of == ROWS and (found := scan(o.folder)) is not None][:1]


def _of_batch(loaded: LoadedSpec) -> list[str]:
    rows = [s for s in snapshots(loaded.state, places_of(loaded.spec)).values() if s.of == ROWS and s.files]
    return [f"({select_sql(s)})" for s in rows if {SOURCE, ARRIVAL} <= dict(s.schema).keys()][:1]


def _rows_from(loaded: LoadedSpec, within: Range | None, selects: Sequence[str]) -> list[tuple[str, int, int]]:
    """Source, hour of arrival since 1970, and hour of event time (microseconds; of rows without one 0) of the rows that are stored."""
    name = loaded.spec.contract.event_time
    time = quote(name) if name is not None and within is not None else "NULL::TIMESTAMPTZ"  # over all time, what it is does not matter
    inside = "" if within is None else f" WHERE epoch_us({time}) >= {within.start} AND epoch_us({time}) < {within.end}"
    hour = f"coalesce(epoch_us({time}) // {HOUR_MICROS}, 0) * {HOUR_MICROS}"
    parts = [f"SELECT {SOURCE}::VARCHAR, coalesce(epoch_us({ARRIVAL}) // {HOUR_MICROS}, 0), {hour} FROM {rows}{inside}" for rows in selects]
    if not parts:
        return []
    with reading(duckdb.connect(":memory:"), *parts) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.execute(f"SELECT DISTINCT * FROM ({' UNION ALL '.join(parts)})").fetchall()
