"""The speed layer as tables: what a stream has stored so far, each row once, each window's newest pane. Loads no Beam.

rows            files hold every row at least once          one per (`_source`, `_position`), of the newest run, without duplicates
an aggregate    files hold every pane                       the newest per group and window, by (`_epoch`, `_pane_index`)
dead letters    files hold every letter at least once       one per row, stage and reason; none of an aggregate for a duplicate

A start shows the windows that were open when it began anew, and what it does not show again is gone: a group whose rows have turned out to be
duplicates, a session that has grown. So panes of earlier starts end when a later one has come past the moment at which it would show theirs.
"""

from __future__ import annotations

from pathlib import Path

from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.places import local
from beam_pipelines.sinks.epochs import doors_folder
from beam_pipelines.sinks.outputs import SpeedOutput, read_columns
from beam_pipelines.sinks.reached import starts

AT_AGGREGATE = "aggregate"
"""The stage of dead letters that concern an aggregate, not the row."""

_FIRST, _LAST = -(2**62), 2**62
_NOTHING = "SELECT NULL AS nothing WHERE FALSE"
_ROW = "_source, _position"
_KEPT = "_source, _position, _arrival_time, _run_id, _contract"


def speed_sql(state: str, output: SpeedOutput) -> str:
    """A SELECT over what the stream of `state` has stored of `output`."""
    files = scan(output.folder)
    if files is None:
        return _NOTHING
    if output.of == "dead_letters":
        newest = _newest("source, position, stage, reason, message", "run_id DESC")
        return f"SELECT * FROM {letters_scan(state, output)} QUALIFY {newest}"
    if output.of != "rows":
        window = ", ".join([*(quote(c) for c in output.group_by), "_window_start", "_window_end"])
        newest = _newest(window, "_epoch DESC, _pane_index DESC")
        return f"SELECT * FROM (SELECT * FROM {files} {_shown_anew(state, output)} QUALIFY {newest}) WHERE _pane <> 'retracted'"
    hidden = "" if output.provenance else f" EXCLUDE ({_KEPT})"
    kept = f"SELECT * FROM {files} {_without_duplicates(state)} QUALIFY {_newest(_ROW, '_run_id DESC')}"
    return f"SELECT *{hidden} FROM ({kept})"


def letters_scan(state: str, output: SpeedOutput) -> str | None:
    """The files of dead letters, each letter at least once, without those of aggregates for duplicates; None where there are none."""
    files = scan(output.folder)
    return None if files is None else f"{files} {_without_late_duplicates(state)}"


def doors_scan(state: str) -> str | None:
    """The files of rows that left the stream by another door (DOORS), each row at least once; None where there are none."""
    return scan(doors_folder(state))


def scan(folder: str) -> str | None:
    """`read_parquet(…)` over all files below `folder` at the time it runs; None where there are none now.

    Compaction may be at work: files that others replace are read too, and readers take each row once. A file is deleted a minute after it was
    replaced, so a list of files is good for a minute.
    """
    place = local(folder)
    if "://" not in place and not _any(Path(place)):
        return None
    types = ", ".join(f"{literal(name)}: {kind}" for name, kind in read_columns(folder).items())
    hive = f"true, hive_types = {{{types}}}" if types else "false"
    return f"read_parquet({literal(place.rstrip('/') + '/**/*.parquet')}, union_by_name = true, hive_partitioning = {hive})"


def _shown_anew(state: str, output: SpeedOutput) -> str:
    """Leaves out panes of windows that a later start has shown anew."""
    known = [(epoch, _micros(s.began_micros), _LAST if s.ended else _micros(s.watermark_micros)) for epoch, s in starts(state).items()]
    later = [(epoch, began, came) for epoch, began, came in known if epoch > 1 and came > began]
    if not later:
        return ""
    end = "epoch_us(_window_end)"
    anew = f"{end} + {output.open_micros} >= began AND {end} + {output.shown_micros} < came"
    values = ", ".join(f"({epoch}, {began}, {came})" for epoch, began, came in later)
    return f"WHERE NOT EXISTS (SELECT 1 FROM (VALUES {values}) AS later(epoch, began, came) WHERE epoch > _epoch AND {anew})"


def _micros(at: int | None) -> int:
    return _FIRST if at is None else at


def _without_late_duplicates(state: str) -> str:
    """A row was too late for an aggregate before it was known to be a duplicate: as a duplicate it never was for it."""
    files = doors_scan(state)
    if files is None:
        return ""
    return f"ANTI JOIN (SELECT DISTINCT source, position, '{AT_AGGREGATE}' AS stage FROM {files} WHERE door = 'duplicate') USING (source, position, stage)"


def _any(folder: Path) -> bool:
    return next(folder.rglob("*.parquet"), None) is not None


def _newest(by: str, order: str) -> str:
    return f"row_number() OVER (PARTITION BY {by} ORDER BY {order}) = 1"


def _without_duplicates(state: str) -> str:
    files = doors_scan(state)
    if files is None:
        return ""
    gone = f"(SELECT source AS _source, position AS _position FROM {files} WHERE door = 'duplicate')"
    return f"ANTI JOIN {gone} USING ({_ROW})"
