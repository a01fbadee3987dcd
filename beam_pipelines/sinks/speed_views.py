"""The speed layer as tables: what a stream has stored so far, each row once, each window's newest pane. Loads no Beam.

rows            files hold every row at least once          one per (`_source`, `_position`), of the newest run, without duplicates, and
                                                            without those that have been refused since: a later start has read them again
an aggregate    files hold every pane                       the newest per group and window, by (`_epoch`, `_pane_index`)
dead letters    files hold every letter at least once       one per row, stage and reason; none of an aggregate for a duplicate

A start shows the windows that were open when it began anew, and what it does not show again is gone: a group whose rows have turned out to be
duplicates, a session that has grown. So panes of earlier starts end when a later one has come past the moment at which it would show theirs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from beam_pipelines.arrow.doors import FILTERED
from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.schema import STORED_AT
from beam_pipelines.places import holds, join, list_files, local
from beam_pipelines.sinks.epochs import doors_folder, latest_epoch
from beam_pipelines.sinks.outputs import SpeedOutput, read_columns, read_outputs
from beam_pipelines.sinks.reached import starts, starts_sql
from beam_pipelines.sinks.views import NO_ROWS, read_hive
from beam_pipelines.spec.sinks import LETTERS, ROWS

AT_AGGREGATE = "aggregate"
"""The stage of dead letters that concern an aggregate, not the row."""

AT_SINK = "write"
"""The stage of dead letters that one sink has refused."""

_FIRST, _LAST = -(2**62), 2**62
_ROW = "_source, _position"
LETTER = "source, position, stage, reason, message"
KEPT = "_source, _position, _arrival_time, _run_id, _contract"


class PlainFiles(NamedTuple):
    """The live files of an output: those of `settled` folders that readers need, each row once (`settling`), and all `others`."""

    settled: tuple[str, ...]
    others: tuple[str, ...]


def speed_sql(
    state: str,
    output: SpeedOutput,
    *,
    where: Sequence[str] = (),
    alike: bool = False,
    kept: bool = False,
    plain: Sequence[PlainFiles] = (),
) -> str:
    """A SELECT over what the stream of `state` has stored of `output`: of `where`, conditions on its columns, one at most is true of a row, and of the rows
    selected one is; all rows without any.

    `alike` says that all its files have the same columns (`same_columns`): then none is opened that a condition leaves out.
    `kept`: the SELECT is to be good for long, and looks up how far the stream has come each time; otherwise that is in its text. `plain`, of rows that
    are placed, one for each condition: the SELECT is of these files, for as long as they are there, and those of settled folders are read as they are.

    The columns by which rows are placed are named where rows are told apart, so that a reader's condition on them reaches the files.
    """
    files = scan(output.folder, alike=alike)
    if files is None:
        return NO_ROWS
    chosen = " OR ".join(f"({condition})" for condition in where) or "TRUE"
    if output.of == LETTERS:
        return _letters_sql(state, output, chosen)
    place = [quote(c) for c in output.placed] if len(output.placings) <= 1 else []
    early = bool(place) or output.of != ROWS  # a row that a changed spec placed anew must be told apart first
    settled, conditions = "", where or ("TRUE",)
    if plain:
        settled = _each([_these(output.folder, found.settled) for found in plain], conditions)
        files = _each([_these(output.folder, found.others) for found in plain], conditions)
    elif early and alike:
        files = _each([files] * len(conditions), conditions)
    elif early:
        files = f"(SELECT * FROM {files} WHERE {chosen})"
    if output.of != ROWS:
        return _panes_sql(state, output, files, by=place, kept=kept)
    hidden = f"{STORED_AT}" if output.provenance else f"{KEPT}, {STORED_AT}"
    layers = [settled] if settled else []
    layers += [f"{once_sql(state, output, files, by=place, kept=kept)} WHERE {'TRUE' if early else chosen}"] if files else []
    return " UNION ALL BY NAME ".join(f"SELECT * EXCLUDE ({hidden}) FROM {layer}" for layer in layers) or NO_ROWS


def _letters_sql(state: str, output: SpeedOutput, chosen: str) -> str:
    """Each letter once, as the newest run told it, where `chosen` is true of it and of when the first was stored."""
    first = f"REPLACE (min({STORED_AT}) OVER (PARTITION BY {LETTER}) AS {STORED_AT})"
    newest = f"SELECT * {first} FROM {letters_scan(state, output)} QUALIFY {_newest(LETTER, 'run_id DESC')}"
    return f"SELECT * EXCLUDE ({STORED_AT}) FROM ({newest}) WHERE {chosen}"


def _panes_sql(state: str, output: SpeedOutput, files: str, *, by: Sequence[str], kept: bool) -> str:
    """The newest pane of each group and window (and of the columns `by`) that lies in `files`; none where that takes the earlier ones back."""
    window = ", ".join([*(quote(c) for c in output.group_by), "_window_start", "_window_end", *by])
    newest = _newest(window, "_epoch DESC, _pane_index DESC")
    return f"SELECT * FROM (SELECT * FROM {files} {_shown_anew(state, output, kept=kept)} QUALIFY {newest}) WHERE _pane <> 'retracted'"


def _each(files: Sequence[str], where: Sequence[str]) -> str:
    """A scan for each condition: what contradicts a reader's condition is left out whole, and no file of it is looked at. "" without any file."""
    scans = " UNION ALL ".join(f"SELECT * FROM {found} WHERE {condition}" for found, condition in zip(files, where, strict=True) if found)
    return f"({scans})" if scans else ""


def once_sql(state: str, output: SpeedOutput, files: str, *, by: Sequence[str] = (), kept: bool = False) -> str:
    """What follows FROM: of the rows that lie in `files`, as readers see them, the newest of each and none that is gone.

    A row is one of (`_source`, `_position`) and the columns `by`. `kept` as in `speed_sql`.
    """
    newest = f"SELECT * FROM {files} {_without_duplicates(state)} QUALIFY {_newest(', '.join([_ROW, *by]), '_run_id DESC')}"
    return f"({newest}) AS stored {_refused_since(state, output, kept=kept)}"


def gone_sql(state: str, output: SpeedOutput) -> str | None:
    """A SELECT of each row that `once_sql` may ever leave out, as often as it was refused: `arrival_time`, NULL where it is not known, and a hash. None: there is
    none."""
    doors = doors_scan(state)
    each = "SELECT source, position, moment, arrival_time FROM"
    parts = [] if doors is None else [f"SELECT source, position, NULL AS moment, arrival_time FROM {doors} WHERE door = 'duplicate'"]
    parts += [f"{each} ({refusals})" for refusals in _refusals(state, output, kept=True)]
    return (
        f"SELECT arrival_time, hash(source, position, moment) AS named FROM (SELECT DISTINCT * FROM ({' UNION ALL '.join(parts)}))"
        if parts
        else None
    )


def refused_folders(state: str, *, kept: bool = False) -> list[str]:
    """Where letters lie that may say of a row that it has been refused since it was stored; none where every message came through once. `kept`: once
    so far."""
    if not kept and latest_epoch(state) < 2 and not list_files(join(state, "replays")):
        return []
    outputs = read_outputs(state)
    return [o.folder for o in (outputs.outputs if outputs else ()) if o.of == LETTERS]


def _refused_since(state: str, output: SpeedOutput, *, kept: bool) -> str:
    """Leaves out rows whose newest letter was stored after them, or that have been filtered since: that takes another transform. The row's own pass
    stored no letter of it, for it left by one door."""
    parts = _refusals(state, output, kept=kept)
    if not parts:
        return ""
    newest = f"SELECT source AS _source, position AS _position, max(moment) AS moment FROM ({' UNION ALL '.join(parts)}) GROUP BY ALL"
    same = "refused._source = stored._source AND refused._position = stored._position"
    return f"ANTI JOIN ({newest}) AS refused ON {same} AND refused.moment > stored.{STORED_AT}"


def _refusals(state: str, output: SpeedOutput, *, kept: bool) -> list[str]:
    """SELECTs of (source, position, moment, arrival_time): rows that were refused, or have been filtered since, and when that was stored."""
    scans = [found for folder in refused_folders(state, kept=kept) if (found := scan(folder)) is not None]
    doors = doors_scan(state) if len(output.placings) > 1 else None
    each = f"SELECT source, position, {STORED_AT} AS moment, arrival_time FROM"
    parts = [f"{each} {found} WHERE {refuses(output)}" for found in scans]
    return parts + ([] if doors is None else [f"{each} {doors} WHERE door = '{FILTERED}'"])


def refuses(output: SpeedOutput) -> str:
    """A condition on dead letters: that they are of a row of this output, not of what an aggregate or another sink made of it."""
    at_sink = f"stage = '{AT_SINK}' AND failures[1].name = {literal(output.name)}"
    return f"position IS NOT NULL AND (stage NOT IN ('{AT_AGGREGATE}', '{AT_SINK}') OR {at_sink})"


def letters_scan(state: str, output: SpeedOutput) -> str | None:
    """The files of dead letters, each letter at least once, without those of aggregates for duplicates; None where there are none."""
    files = scan(output.folder)
    return None if files is None else f"{files} {_without_late_duplicates(state)}"


def doors_scan(state: str) -> str | None:
    """The files of rows that left the stream by another door (DOORS), each row at least once; None where there are none."""
    return scan(doors_folder(state), alike=True)


def same_columns(folder: str) -> str:
    """A query for how many different sets of columns the files below `folder` have."""
    columns = "string_agg(name || coalesce(type, '') || coalesce(logical_type, ''), ',')"
    files = literal(local(folder).rstrip("/") + "/**/*.parquet")
    return f"SELECT count(DISTINCT columns) FROM (SELECT {columns} AS columns FROM parquet_schema({files}) GROUP BY file_name)"


def scan(folder: str, *, alike: bool = False) -> str | None:
    """A relation over all files below `folder` at the time it runs; None where there are none now. `alike`: they have the same columns.

    Compaction may be at work: files that others replace are read too, and readers take each row once. A file is deleted a minute after it was
    replaced, so a list of files is good for a minute.
    """
    place, columns = local(folder).rstrip("/"), read_columns(folder)
    if not holds(folder, ".parquet"):
        return None
    joined = "" if alike else ", union_by_name = true"
    below = "*/" * len(columns) if alike and _all_lie(folder, len(columns)) else "**/"
    return read_hive(f"{literal(f'{place}/{below}*.parquet')}{joined}", folder, columns)


def _these(folder: str, paths: Sequence[str]) -> str:
    """`scan` of these files below `folder`, which have the same columns; "" of none."""
    if not paths:
        return ""
    return read_hive(f"[{', '.join(map(literal, map(local, paths)))}]", folder, read_columns(folder))


def folders_in_use(folder: str) -> list[str] | None:
    """The folders below `folder` in which files lie now, as paths from it; None on a URL, where looking takes long."""
    place = local(folder).rstrip("/")
    if "://" in place:
        return None
    return [at[len(place) :].strip("/") for at, _, names in os.walk(place) if any(name.endswith(".parquet") for name in names)]


def _all_lie(folder: str, levels: int) -> bool:
    """Whether all files lie so many folders deep: an engine lists these in half the time it takes to look for others."""
    found = folders_in_use(folder) if levels else None
    return found is not None and all(path.count("/") == levels - 1 and path for path in found)


def shown_anew(state: str) -> list[tuple[int, int, int]]:
    """Starts that have shown windows of earlier ones anew: the epoch, and from which moment to which of the arrival clock (microseconds)."""
    known = [(epoch, _micros(s.began_micros), _LAST if s.ended else _micros(s.watermark_micros)) for epoch, s in starts(state).items()]
    return [(epoch, began, came) for epoch, began, came in known if epoch > 1 and came > began]


def _shown_anew(state: str, output: SpeedOutput, *, kept: bool) -> str:
    """Leaves out panes of windows that a later start has shown anew."""
    later = starts_sql(state) if kept else shown_anew(state)
    if not later:
        return ""
    end = "epoch_us(_window_end)"
    anew = f"{end} + {output.open_micros} >= began AND {end} + {output.shown_micros} < came"
    if isinstance(later, str):
        came = f"CASE WHEN ended THEN {_LAST} ELSE coalesce(watermark_micros, {_FIRST}) END AS came"
        starts = f"(SELECT epoch, coalesce(began_micros, {_FIRST}) AS began, {came} FROM ({later}) WHERE epoch > 1 AND came > began)"
    else:
        starts = f"(VALUES {', '.join(map(str, later))})"
    return f"WHERE NOT EXISTS (SELECT 1 FROM {starts} AS later(epoch, began, came) WHERE epoch > _epoch AND {anew})"


def _micros(at: int | None) -> int:
    return _FIRST if at is None else at


def _without_late_duplicates(state: str) -> str:
    """A row was too late for an aggregate before it was known to be a duplicate: as a duplicate it never was for it."""
    files = doors_scan(state)
    if files is None:
        return ""
    return f"ANTI JOIN (SELECT DISTINCT source, position, '{AT_AGGREGATE}' AS stage FROM {files} WHERE door = 'duplicate') USING (source, position, stage)"


def _newest(by: str, order: str) -> str:
    return f"row_number() OVER (PARTITION BY {by} ORDER BY {order}) = 1"


def _without_duplicates(state: str) -> str:
    files = doors_scan(state)
    if files is None:
        return ""
    gone = f"(SELECT source AS _source, position AS _position FROM {files} WHERE door = 'duplicate')"
    return f"ANTI JOIN {gone} USING ({_ROW})"
