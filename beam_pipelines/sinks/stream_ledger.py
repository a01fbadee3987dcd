"""A stream's ledger, taken from what is stored: every message of the archive left by exactly one door. Loads no Beam.

    read (archive) = written + dead + duplicate + filtered + refused + open          per source, for each output of rows

Rows are counted, each once, and never bundles: a bundle that is repeated after a crash holds other rows than before. `open` are messages that
are stored but not yet through: those in work, or, after a crash, those that the next start takes up again.

Each row is a set of doors, a bit for each, found in one pass over all files; what is asked is asked of the few sets that occur.

A message may come through more than once: a start with another spec reads the archive's tail again, a dead letter is sent again once its fault is repaired.
Then its newest pass counts, alone. Only rows that left by several doors are looked at so closely.

    dead (start 1) ─▶ written (start 2)            written
    dead ─▶ sent again ─▶ written                  written
    dead and written in one pass                   left twice: a fault

An archive that a Cloud Storage subscription wrote is counted by the blocks of its files, and no row of it is known: `read` is what they hold, at least what left. What they hold
more is not through, or was written twice by Pub/Sub, which nobody can tell; so it is no `open` row, and no fault.

Where retention has deleted something, what arrived since counts: of that nothing is gone (`deletions.complete_since`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import duckdb
import msgspec

from beam_pipelines.arrow.engine import literal
from beam_pipelines.arrow.schema import STORED_AT
from beam_pipelines.formats import pubsub_avro
from beam_pipelines.places import each, holds, join, list_files, list_folders, read_bytes, size
from beam_pipelines.places.sql import gone, reading
from beam_pipelines.sinks.deletions import complete_since
from beam_pipelines.sinks.epochs import Start, stream_folder
from beam_pipelines.sinks.ledger import Line
from beam_pipelines.sinks.outputs import SpeedOutput, StreamOutputs
from beam_pipelines.sinks.resolutions import sent_sql
from beam_pipelines.sinks.results import OutputResult
from beam_pipelines.sinks.speed_views import AT_AGGREGATE, doors_scan, letters_scan, scan, speed_sql
from beam_pipelines.spec.sinks import LETTERS, ROWS

_Found = TypeVar("_Found")
_AT_SINK = "write"
_MOST_NAMED = 10
_READ, _DEAD, _DUPLICATE, _FILTERED, _FIRST_SINK = 1, 2, 4, 8, 4  # the last is the number of a bit


@dataclass(frozen=True)
class Misplaced:
    """A row that is not where it belongs: the `doors` by which it left, and the outputs of rows in which it is `missing`."""

    source: str
    position: int
    doors: tuple[str, ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class StreamLedger:
    """`lines` per source; `open` rows per source that left by no door yet, or not in each output of rows.

    `lost` names some of those, `twice` some rows that left by two doors, which must not be. `reasons` counts dead letters by `stage:REASON`, each of
    distinct rows.
    """

    lines: tuple[Line, ...]
    open: Mapping[str, int]
    lost: tuple[Misplaced, ...]
    twice: tuple[Misplaced, ...]
    reasons: Mapping[str, int]

    @property
    def balanced(self) -> bool:
        """Whether every row left by exactly one door."""
        return not self.twice and not any(self.open.values())

    def explain(self) -> str:
        """Where a row is open or left twice, one sentence per line; "" if nowhere."""
        said = [f"{source}: {_open(rows)}, for example {_places(self.lost, source)}" for source, rows in self.open.items() if rows]
        said += [f"the ledger does not balance: {row.source}, position {row.position} left by {', '.join(row.doors)}" for row in self.twice]
        return "\n".join(said)


def _open(rows: int) -> str:
    return f"the ledger does not balance: {rows:,} {'row is' if rows == 1 else 'rows are'} stored in the archive and not yet through"


def _places(lost: Sequence[Misplaced], source: str) -> str:
    mine = [row for row in lost if row.source == source]
    return ", ".join(f"position {row.position} (not in {', '.join(row.missing)})" for row in mine[:3])


def stream_ledger(state: str, outputs: StreamOutputs) -> StreamLedger:
    """The ledger of everything that the stream of `state` has ever read."""
    return _again(lambda connection: _ledger(connection, state, outputs))


def _again(look: Callable[[duckdb.DuckDBPyConnection], _Found]) -> _Found:
    """What `look` finds; once more where a file was merged and deleted meanwhile (see `speed_views.scan`)."""
    try:
        with duckdb.connect(":memory:") as connection:
            return look(connection)
    except duckdb.Error as error:
        if not gone(error):
            raise
    with duckdb.connect(":memory:") as connection:
        return look(connection)


def _ledger(connection: duckdb.DuckDBPyConnection, state: str, outputs: StreamOutputs) -> StreamLedger:
    reading(connection, state, *(output.folder for output in outputs.outputs))
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"CREATE TABLE letters AS {_letters_sql(state, outputs)}")
    sinks = _Sinks(tuple(output.name for output in outputs.outputs if output.of == ROWS))
    connection.execute(
        f"CREATE TABLE left_by AS SELECT source, position, bit_or(door) AS doors FROM ({_doors_sql(state, outputs, sinks)}) GROUP BY ALL"
    )
    found = _sets(connection)
    several = sorted({doors for _, doors, _ in found if len(sinks.exits(doors)) > 1})
    if several and _newest_pass(connection, state, outputs, sinks, several):
        found = _sets(connection)
    late = connection.execute(_late_sql(outputs)).fetchall()
    archived = _archived(state, outputs)
    sources = sorted({source for source, *_ in found} | archived.keys())
    lines = tuple(
        _line(source, sinks, {doors: n for s, doors, n in found if s == source}, late, archived.get(source, 0)) for source in sources
    )
    open_rows = Counter[str]()
    for source, doors, n in found:
        open_rows[source] += n if doors & _READ and sinks.missing(doors) else 0
    lost = _named(connection, sinks, [doors for _, doors, _ in found if doors & _READ and sinks.missing(doors)])
    twice = _named(connection, sinks, [doors for _, doors, _ in found if len(sinks.exits(doors)) > 1])
    return StreamLedger(lines, dict(open_rows), lost, twice, dict(connection.execute(_REASONS).fetchall()))


def _archived(state: str, outputs: StreamOutputs) -> dict[str, int]:
    """By source, how many messages lie in files of a Cloud Storage subscription; without those that were closed before what retention has deleted."""
    since = complete_since(state)
    found: dict[str, int] = {}
    for folder, source in zip(outputs.archive, outputs.sources, strict=False):  # a stream of an older version named no sources
        if holds(folder, pubsub_avro.SUFFIX):
            files = [path for path in _files(folder, pubsub_avro.SUFFIX) if since is None or pubsub_avro.may_hold(path, since)]
            found[source] = sum(each(folder, _counted, [(path,) for path in files]))
    return found


def _counted(path: str) -> int:
    try:
        return pubsub_avro.count_messages(path)
    except FileNotFoundError:  # its age has ended since it was listed
        return 0


def _sets(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, int, int]]:
    return connection.execute("SELECT source, doors, count(*) FROM left_by GROUP BY ALL ORDER BY ALL").fetchall()


@dataclass(frozen=True)
class _Sinks:
    """The outputs of rows, and what a set of doors says about a row in each."""

    names: tuple[str, ...]

    def written(self, name: str) -> int:
        """The door of rows that are in the output's files."""
        return 1 << (_FIRST_SINK + 2 * self.names.index(name))

    def refused(self, name: str) -> int:
        """The door of rows that the output refused."""
        return self.written(name) << 1

    def at_sink(self) -> str:
        """SQL for the door of a letter of a sink."""
        refused = "".join(f" WHEN {literal(name)} THEN {self.refused(name)}" for name in self.names)
        return f"CASE failures[1].name{refused} ELSE 0 END" if refused else "0"

    def there(self, name: str, doors: int) -> bool:
        """Whether readers see the row in the output."""
        return bool(doors & self.written(name)) and not doors & _DUPLICATE

    def exits(self, doors: int) -> list[str]:
        """The doors by which the row left; in or refused by an output is one, and ends when the row turns out to be a duplicate."""
        found = [word for word, door in (("dead", _DEAD), ("duplicate", _DUPLICATE), ("filtered", _FILTERED)) if doors & door]
        if not doors & _DUPLICATE:
            found += ["written"] if any(doors & self.written(n) for n in self.names) else []
            found += ["refused"] if "written" not in found and any(doors & self.refused(n) for n in self.names) else []
            found += [f"written to and refused by {n}" for n in self.names if doors & self.written(n) and doors & self.refused(n)]
        return found

    def missing(self, doors: int) -> list[str]:
        """Outputs in which the row is missing. Without an output of rows nothing says which rows are through, so none is."""
        if doors & (_DEAD | _DUPLICATE | _FILTERED):
            return []
        return [name for name in self.names if not doors & (self.written(name) | self.refused(name))]


def _line(source: str, sinks: _Sinks, counts: Mapping[int, int], late: Sequence[tuple[str, str, int]], archived: int) -> Line:
    """`archived` are messages of which only the number is known."""

    def rows(door: int) -> int:
        return sum(n for doors, n in counts.items() if doors & door)

    written = {name: sum(n for doors, n in counts.items() if sinks.there(name, doors)) for name in sinks.names}
    refused = {
        name: sum(n for doors, n in counts.items() if doors & sinks.refused(name) and not doors & _DUPLICATE) for name in sinks.names
    }
    read = rows(_READ)
    return Line(
        source, read + max(archived, sum(counts.values()) - read) if archived else read, rows(_DEAD), rows(_DUPLICATE), rows(_FILTERED), written, {name: n for name, n in refused.items() if n},
        late={name: n for s, name, n in late if s == source},
    )  # fmt: skip


def _named(connection: duckdb.DuckDBPyConnection, sinks: _Sinks, sets: Sequence[int]) -> tuple[Misplaced, ...]:
    """Some rows that left by one of these sets of doors."""
    if not sets:
        return ()
    among = ", ".join(map(str, sorted(set(sets))))
    sql = f"SELECT source, position, doors FROM left_by WHERE doors IN ({among}) ORDER BY source, position LIMIT {_MOST_NAMED}"
    return tuple(Misplaced(s, p, tuple(sinks.exits(d)), tuple(sinks.missing(d))) for s, p, d in connection.execute(sql).fetchall())


def _newest_pass(connection: duckdb.DuckDBPyConnection, state: str, outputs: StreamOutputs, sinks: _Sinks, several: Sequence[int]) -> bool:
    """Leaves to rows that left by `several` sets of doors those of their newest pass, and forgets letters of earlier ones; False where there was one pass.

    A pass begins with a start of the stream, or after the letter that was sent again. The rows of an earlier pass stay in their outputs, so what is stored
    counts as a whole where the newest pass stores it at all; of one output, what its newest pass says.
    """
    starts, sent = _starts(state)[1:], sent_sql(state)
    if not starts and sent is None:
        return False
    among = ", ".join(map(str, several))
    connection.execute(f"CREATE TABLE several AS SELECT source, position FROM left_by WHERE doors IN ({among})")
    began = f"len(list_filter({starts or '[]::BIGINT[]'}, lambda x: x <= stored))"
    again = sent or "SELECT NULL::VARCHAR AS source, NULL::BIGINT AS position, NULL::TIMESTAMPTZ AS moment WHERE FALSE"
    connection.execute(f"""
        CREATE TABLE newest AS WITH entries AS (
            SELECT source, position, door, coalesce(epoch_us(stored), 0) AS stored
            FROM ({_doors_sql(state, outputs, sinks, stamped=True)}) SEMI JOIN several USING (source, position) WHERE door > {_READ}),
        sent AS (SELECT source, position, list(epoch_us(moment)) AS sent FROM ({again}) GROUP BY ALL),
        passed AS (
            SELECT source, position, door, {began} + coalesce(len(list_filter(sent, lambda x: x < stored)), 0) AS pass,
                least(door, {1 << _FIRST_SINK}) AS kind, bit_count(door - 1) // 2 AS output
            FROM entries LEFT JOIN sent USING (source, position)),
        ranked AS (
            SELECT *, max(pass) OVER (PARTITION BY source, position) AS of_row, max(pass) OVER (PARTITION BY source, position, kind) AS of_kind,
                max(pass) OVER (PARTITION BY source, position, kind, output) AS of_output
            FROM passed),
        last AS (
            SELECT source, position, bit_or(CASE WHEN of_kind = of_row AND pass = of_output THEN door ELSE 0 END) AS doors, bit_or(door) AS ever
            FROM ranked GROUP BY ALL)
        SELECT source, position, doors | CASE WHEN doors >= {1 << _FIRST_SINK} THEN ever & {_DUPLICATE} ELSE 0 END AS doors FROM last""")
    same = "newest.source = {0}.source AND newest.position = {0}.position"
    connection.execute(f"UPDATE left_by SET doors = left_by.doors & {_READ} | newest.doors FROM newest WHERE {same.format('left_by')}")
    gone = (
        f"CASE stage WHEN '{_AT_SINK}' THEN {sinks.at_sink()} WHEN '{AT_AGGREGATE}' THEN newest.doors ELSE {_DEAD} END & newest.doors = 0"
    )
    connection.execute(f"DELETE FROM letters USING newest WHERE {same.format('letters')} AND {gone}")
    return True


def _starts(state: str) -> list[int]:
    """When each start of the stream took its number, in microseconds, ascending."""
    place = join(stream_folder(state), "epochs")
    found = [read_bytes(join(place, name)) for name in list_files(place) if name.endswith(".json")]
    begun = [datetime.fromisoformat(msgspec.json.decode(content, type=Start).started_at) for content in found if content]
    return sorted(round(at.timestamp() * 1_000_000) for at in begun)


_REASONS = "SELECT stage || ':' || reason, count(DISTINCT (source, position)) FROM letters GROUP BY ALL ORDER BY ALL"


def _doors_sql(state: str, outputs: StreamOutputs, sinks: _Sinks, *, stamped: bool = False) -> str:
    """(source, position, door) of everything that is stored, as often as it is; `stamped`: of all but messages, and when it was (`stored`)."""
    stored = f", {STORED_AT} AS stored" if stamped else ""
    since = complete_since(state)
    ways = [] if stamped else list(_stored(outputs.archive, _READ, since))
    doors = doors_scan(state)
    if doors is not None:
        ways.append(
            f"SELECT source, position, CASE door WHEN 'duplicate' THEN {_DUPLICATE} ELSE {_FILTERED} END AS door{stored} FROM {doors}{_since(since, 'arrival_time')}"
        )
    for output in outputs.outputs:
        ways += list(_stored([output.folder], sinks.written(output.name), since, stored)) if output.of == ROWS else []
    letter = f"CASE stage WHEN '{_AT_SINK}' THEN {sinks.at_sink()} ELSE {_DEAD} END"
    ways.append(f"SELECT source, position, {letter} AS door{', stored' if stamped else ''} FROM letters WHERE {_OF_ROWS}")
    return " UNION ALL ".join(ways)


_OF_ROWS = f"stage <> '{AT_AGGREGATE}' AND source IS NOT NULL AND position IS NOT NULL"


def _stored(folders: Sequence[str], door: int, since: int | None, more: str = "") -> Iterator[str]:
    for found in filter(None, map(scan, folders)):
        yield f"SELECT _source::VARCHAR AS source, _position AS position, {door}::BIGINT AS door{more} FROM {found}{_since(since, '_arrival_time')}"


def _since(since: int | None, arrival: str) -> str:
    return "" if since is None else f" WHERE {arrival} IS NULL OR epoch_us({arrival}) >= {since}"


def _letters_sql(state: str, outputs: StreamOutputs) -> str:
    scans = [found for o in outputs.outputs if o.of == LETTERS and (found := letters_scan(state, o)) is not None]
    if not scans:
        return """SELECT NULL::VARCHAR AS source, NULL::BIGINT AS position, NULL::VARCHAR AS stage, NULL::VARCHAR AS reason,
            NULL::STRUCT(name VARCHAR, "column" VARCHAR, message VARCHAR)[] AS failures, NULL::TIMESTAMPTZ AS stored WHERE FALSE"""
    since = _since(complete_since(state), "arrival_time")
    each = " UNION ALL ".join(
        f"SELECT source, position, stage, reason, failures, {STORED_AT} AS stored FROM {found}{since}" for found in scans
    )
    return f"SELECT * EXCLUDE (stored), max(stored) AS stored FROM ({each}) GROUP BY source, position, stage, reason, failures"


def _late_sql(outputs: StreamOutputs) -> str:
    """Letters of aggregates, of distinct rows: source, aggregate, rows. What failed is called as the aggregate is, or `aggregate.measure`."""
    names = sorted({o.of for o in outputs.outputs} - {ROWS, LETTERS}, key=len, reverse=True)
    of = "".join(f" WHEN name = {literal(n)} OR starts_with(name, {literal(n + '.')}) THEN {literal(n)}" for n in names)
    aggregate = f"CASE{of} ELSE split_part(name, '.', 1) END" if of else "split_part(name, '.', 1)"
    letters = (
        f"SELECT source, position, failures[1].name AS name FROM letters WHERE stage = '{AT_AGGREGATE}' AND source NOT LIKE 'aggregate:%'"
    )
    return f"SELECT source, {aggregate} AS aggregate, count(DISTINCT position) FROM ({letters}) GROUP BY ALL ORDER BY ALL"


def stored_outputs(state: str, outputs: StreamOutputs, ledger: StreamLedger) -> tuple[OutputResult, ...]:
    """What a stream's outputs hold: rows as readers see them, files and bytes as they lie there."""
    return tuple(_stored_output(state, output, ledger) for output in outputs.outputs)


def _stored_output(state: str, output: SpeedOutput, ledger: StreamLedger) -> OutputResult:
    if output.of == ROWS:
        rows = sum(line.written.get(output.name, 0) for line in ledger.lines)
    else:
        rows = _again(lambda connection: _count(connection, f"SELECT count(*) FROM ({speed_sql(state, output)})"))
    files = list(_files(output.folder, ".parquet"))
    partitions = sorted({path.removeprefix(output.folder).strip("/").rpartition("/")[0] for path in files} - {""})
    return OutputResult(
        output.name, output.of, output.folder, "parquet", rows, len(files), sum(map(_size, files)), tuple(partitions), status="stored"
    )


def _count(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    return int(reading(connection, sql).execute(sql).fetchall()[0][0])


def _size(path: str) -> int:
    try:
        return size([path])
    except FileNotFoundError:  # it was merged since it was listed
        return 0


def _files(folder: str, ending: str) -> Iterator[str]:
    yield from (join(folder, name) for name in list_files(folder) if name.endswith(ending))
    for name in list_folders(folder):
        yield from _files(join(folder, name), ending)
