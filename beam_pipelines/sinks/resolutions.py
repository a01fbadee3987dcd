"""What became of dead letters: replayed and through, or discarded. Nothing of a letter is ever changed or deleted. Loads no Beam.

    {state}/replays/{replay}.parquet       letters that a replay takes up, written before anything is run or sent
    {state}/resolutions/{name}.parquet     letters that are resolved, whole, with how, by which run, why, by whom, when; `none`: no letter

Each file is created once and never written again. A letter is open until it is resolved:

    open = letters of the newest runs and of the stream
         + what a replay took up, for a run over another range may have read the record and left its row to a run that never came
         - those in a resolution
         - those of the stream whose record has left by another door since (it was sent again, or a later start read it again)

A replayed letter is resolved as the letter of the run that wrote it: refused again, it is a new letter. A discarded one stays discarded, whichever run
refuses the same record for the same reason.
"""

from __future__ import annotations

import getpass
import io
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipelines.arrow.engine import literal
from beam_pipelines.arrow.masking import SEALED
from beam_pipelines.arrow.schema import DEAD_LETTERS, STORED_AT, UTC_MICROS
from beam_pipelines.places import create_new, exists, join, list_files, local
from beam_pipelines.sinks.outputs import StreamOutputs, read_outputs
from beam_pipelines.sinks.speed_views import AT_AGGREGATE, AT_SINK, doors_scan, letters_scan, scan
from beam_pipelines.spec.sinks import LETTERS, ROWS

_NONE = "none"
OPEN, REPLAYED, DISCARDED, READ_AGAIN = "open", "replayed", "discarded", "read again"
"""What can have become of a letter; `read again`: a later start of the stream read its record again, and it went through."""

RESOLVED = pa.schema(
    [
        *DEAD_LETTERS,
        ("how", pa.string()),
        ("resolved_by", pa.string()),
        ("why", pa.string()),
        ("who", pa.string()),
        ("resolved_at", UTC_MICROS),
    ]
)
"""A resolved letter: `resolved_by` is the run whose outputs no longer have it as a letter; `why` and `who` are a person's."""
TAKEN_UP = pa.schema(
    [*DEAD_LETTERS, ("into", pa.string()), ("planned", pa.string()), ("input", pa.string()), ("lies_at", UTC_MICROS), ("taken_at", UTC_MICROS), ("said_at", UTC_MICROS)]
)  # fmt: skip
"""A letter that a replay took up: `into` batch or stream; the run that is `planned`, over which `input`, for the event time `lies_at` (NULL: over all
time); for the stream when the letter was stored, as far as is known (`said_at`)."""

_SQL = {
    "position": "BIGINT", "failures": 'STRUCT("name" VARCHAR, "column" VARCHAR, message VARCHAR)[]', "raw": "BLOB",
    **dict.fromkeys(("event_time", "arrival_time", "resolved_at"), "TIMESTAMPTZ"),
}  # fmt: skip
_COLUMNS = ", ".join(DEAD_LETTERS.names)
LETTER_TYPES = tuple((name, _SQL.get(name, "VARCHAR")) for name in DEAD_LETTERS.names)
"""Names and SQL types of a letter's columns."""


def _none(schema: pa.Schema) -> str:
    columns = ", ".join(f"NULL::{_SQL.get(name, 'VARCHAR')} AS {name}" for name in schema.names)
    return f"SELECT {columns} WHERE FALSE"


NO_LETTERS = _none(DEAD_LETTERS)
"""A SELECT (DEAD_LETTERS) without rows."""
NO_HISTORY = _none(RESOLVED)


def about_sql(*, nested: bool = True) -> str:
    """What a letter of an aggregate or a sink is about: its name. In a text file failures are text, and say nothing."""
    return f"CASE WHEN stage IN ('{AT_AGGREGATE}', '{AT_SINK}') THEN coalesce(failures[1].name, '') ELSE '' END" if nested else "''"


def with_failures(letters: str) -> str:
    """A SELECT of the `letters` of a CSV file, whose `failures` are text, with failures as they were."""
    fields = '[{"name": "VARCHAR", "column": "VARCHAR", "message": "VARCHAR"}]'
    return f"SELECT * REPLACE (from_json(failures, {literal(fields)}) AS failures) FROM ({letters})"


def new_name(what: str) -> str:
    """A name of a replay or a discarding, which nothing else has; names sort by time.

    >>> new_name("replay").startswith("replay-2")
    True
    """
    return f"{what}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def resolve(
    state: str, name: str, letters: pa.Table, *, how: Literal["replayed", "discarded"], resolved_by: str = "", why: str = ""
) -> bool:
    """Marks the `letters` (DEAD_LETTERS) as resolved; False where that has been done under this name. Raises SinkError where the state folder refuses."""
    said = {"how": how, "resolved_by": resolved_by or None, "why": why or None, "who": _who(), "resolved_at": datetime.now(UTC)}
    return _create(folder(state), name, _with(letters, said, RESOLVED))


def take_up(state: str, replay: str, letters: pa.Table) -> None:
    """Writes down what a replay takes up (TAKEN_UP). Raises SinkError where the state folder refuses."""
    _create(replays(state), replay, letters.select(TAKEN_UP.names).cast(TAKEN_UP))


def write_no_resolutions(state: str) -> None:
    """A file without a letter, once: SQL that is kept (`serve`) before the first resolution reads this folder, and sees it."""
    if not exists(join(folder(state), f"{_NONE}.parquet")):
        _create(folder(state), _NONE, RESOLVED.empty_table())


def folder(state: str) -> str:
    """Where resolutions are kept."""
    return join(state, "resolutions")


def replays(state: str) -> str:
    """Where it is kept what replays took up."""
    return join(state, "replays")


def open_sql(state: str, letters: str, *, nested: bool = True) -> str:
    """A SELECT of the open letters, where `letters` selects (DEAD_LETTERS) what the newest runs and the stream have."""
    taken = _files(replays(state))
    every = f"SELECT {_COLUMNS} FROM ({letters})"
    if taken is not None and nested:
        same = " AND ".join(f"a.{c} IS NOT DISTINCT FROM b.{c}" for c in ("source", "position", "stage", "reason", "message", "run_id"))
        only = f"NOT EXISTS (SELECT 1 FROM ({every}) AS b WHERE {same})"
        once = f"row_number() OVER (PARTITION BY source, position, stage, reason, {about_sql()}, run_id ORDER BY taken_at) = 1"
        every += f" UNION ALL SELECT {_COLUMNS} FROM (FROM {taken} WHERE \"into\" = 'batch' QUALIFY {once}) AS a WHERE {only}"
    left = [_not_resolved(state, nested=nested), _not_through(state)]
    return f"SELECT * FROM ({every}) AS letters WHERE {' AND '.join(filter(None, left)) or 'TRUE'}"


def history_sql(state: str) -> str:
    """A SELECT (RESOLVED) of the letters that are resolved, each with what became of it."""
    parts = [f"SELECT {', '.join(RESOLVED.names)} FROM {found}" for found in [_files(folder(state))] if found is not None]
    through = through_sql(state)
    outputs = read_outputs(state)
    if through is not None and outputs is not None:
        taken = _files(replays(state))
        sent = (
            f"SELECT DISTINCT source, position FROM {taken} WHERE \"into\" = 'stream'"
            if taken
            else "SELECT NULL::VARCHAR AS source, NULL::BIGINT AS position WHERE FALSE"
        )
        parts += [
            f"SELECT {', '.join(f'letter.{c}' for c in DEAD_LETTERS.names)}, CASE WHEN sent.source IS NULL THEN '{READ_AGAIN}' ELSE '{REPLAYED}' END AS how, "
            f"through.resolved_by, NULL::VARCHAR AS why, NULL::VARCHAR AS who, through.resolved_at FROM {_each_once(found)} AS letter "
            f"JOIN ({through}) AS through USING (source, position) LEFT JOIN ({sent}) AS sent USING (source, position) WHERE {_OF_ROWS}"
            for found in _letter_scans(state, outputs)[:1]
        ]  # fmt: skip
    return " UNION ALL ".join(parts) or NO_HISTORY


def through_sql(state: str) -> str | None:
    """A SELECT of the stream's refused records that have left by another door since: source, position, `resolved_by` the run whose row is the newest,
    `resolved_at` when. None where nothing was refused, or nothing else is stored."""
    outputs = read_outputs(state)
    scans = _letter_scans(state, outputs) if outputs else []
    doors = _door_parts(state, outputs) if outputs else []
    if not scans or not doors:
        return None
    letters = " UNION ALL ".join(f"SELECT source, position, {STORED_AT} AS moment FROM {found} WHERE {_OF_ROWS}" for found in scans)
    return (
        f"SELECT source, position, arg_max(run_id, door.moment) AS resolved_by, max(door.moment) AS resolved_at FROM ({' UNION ALL '.join(doors)}) AS door "
        f"JOIN (SELECT source, position, max(moment) AS said_at FROM ({letters}) GROUP BY ALL) AS said USING (source, position) "
        "WHERE door.moment > said.said_at GROUP BY ALL"
    )


def stored_sql(state: str) -> str | None:
    """A SELECT of when the newest letter of each of the stream's refused records was stored: source, position, said_at. None where nothing was refused."""
    outputs = read_outputs(state)
    scans = _letter_scans(state, outputs) if outputs else []
    if not scans:
        return None
    parts = " UNION ALL ".join(f"SELECT source, position, {STORED_AT} AS moment FROM {found}" for found in scans)
    return f"SELECT source, position, max(moment) AS said_at FROM ({parts}) GROUP BY ALL"


def sent_sql(state: str) -> str | None:
    """A SELECT of what was sent into the stream again: source, position, and the `moment` (of the stream's own clock) after which it is stored anew."""
    taken = _files(replays(state))
    return (
        None
        if taken is None
        else f"SELECT source, position, said_at AS moment FROM {taken} WHERE \"into\" = 'stream' AND said_at IS NOT NULL"
    )


def unresolved_sql(state: str) -> str | None:
    """A SELECT (TAKEN_UP, and `replay`) of what replays into the batch took up and no resolution has, each letter as the newest replay took it."""
    taken = _files(replays(state))
    if taken is None:
        return None
    newest = (
        f"row_number() OVER (PARTITION BY source, position, stage, reason, {about_sql()}, run_id ORDER BY taken_at DESC, filename DESC) = 1"
    )
    of = f"SELECT *, parse_filename(filename, true) AS replay FROM {taken[:-1]}, filename = true) WHERE \"into\" = 'batch' QUALIFY {newest}"
    unresolved = _not_resolved(state)
    return f"SELECT * FROM ({of}) AS letters" + (f" WHERE {unresolved}" if unresolved else "")


_OF_ROWS = f"stage NOT IN ('{AT_AGGREGATE}', '{AT_SINK}') AND position IS NOT NULL"


def _letter_scans(state: str, outputs: StreamOutputs) -> list[str]:
    return [found for o in outputs.outputs if o.of == LETTERS and (found := letters_scan(state, o)) is not None]


def _each_once(found: str) -> str:
    return f"(SELECT {_COLUMNS} FROM {found} QUALIFY row_number() OVER (PARTITION BY source, position, stage, reason, message ORDER BY run_id DESC) = 1)"


def _door_parts(state: str, outputs: StreamOutputs) -> list[str]:
    """Rows and doors of the stream: source, position, run_id (NULL of a door), moment."""
    parts = [
        f"SELECT _source::VARCHAR AS source, _position AS position, _run_id::VARCHAR AS run_id, {STORED_AT} AS moment FROM {found}"
        for o in outputs.outputs
        if o.of == ROWS and (found := scan(o.folder)) is not None
    ]
    doors = doors_scan(state)
    return parts + ([] if doors is None else [f"SELECT source, position, NULL::VARCHAR AS run_id, {STORED_AT} AS moment FROM {doors}"])


def _not_resolved(state: str, *, nested: bool = True) -> str:
    """A condition on `letters`: no resolution has it. A discarded record is the same record by its bytes, where they are known."""
    found = _files(folder(state))
    if found is None:
        return ""
    same = " AND ".join(f"done.{c} IS NOT DISTINCT FROM letters.{c}" for c in ("source", "position", "stage", "reason"))
    about = about_sql(nested=nested)
    mine, theirs = (about.replace("stage", f"{t}.stage").replace("failures", f"{t}.failures") for t in ("letters", "done"))
    kept = f"done.raw IS NULL OR letters.raw IS NULL OR ends_with(done.raw_format, {literal(SEALED)}) OR done.raw = letters.raw"
    which = f"CASE WHEN done.how = '{REPLAYED}' THEN done.run_id IS NOT DISTINCT FROM letters.run_id ELSE {kept} END"
    return f"NOT EXISTS (SELECT 1 FROM {found} AS done WHERE {same}{f' AND {mine} = {theirs}' if nested else ''} AND {which})"


def _not_through(state: str) -> str:
    """A condition on `letters`: it is none of the stream's whose record has left otherwise since."""
    through, outputs = through_sql(state), read_outputs(state)
    if through is None or outputs is None:
        return ""
    runs = " UNION ".join(f"SELECT run_id FROM {found}" for found in _letter_scans(state, outputs))
    streams = f"letters.run_id IN ({runs})"  # a batch over the archive refuses the same record under its own name
    return f"NOT ({_OF_ROWS} AND {streams} AND EXISTS (SELECT 1 FROM ({through}) AS through WHERE through.source = letters.source AND through.position = letters.position))"


def _files(where: str) -> str | None:
    """`read_parquet(…)` over the files of a folder; None where there are none."""
    if not any(name.endswith(".parquet") for name in list_files(where)):
        return None
    return f"read_parquet({literal(join(local(where), '*.parquet'))}, union_by_name = true, hive_partitioning = false)"


def _with(letters: pa.Table, values: Mapping[str, object], schema: pa.Schema) -> pa.Table:
    columns = {n: letters.column(n) for n in DEAD_LETTERS.names}
    columns |= {n: pa.array([value] * letters.num_rows, schema.field(n).type) for n, value in values.items()}
    return pa.table([columns[n] for n in schema.names], names=schema.names).cast(schema)


def _create(where: str, name: str, table: pa.Table) -> bool:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return create_new(join(where, f"{name}.parquet"), out.getvalue())


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user need not have a name
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else ""
