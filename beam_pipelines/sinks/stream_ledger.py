"""A stream's ledger, taken from what is stored: every message of the archive left by exactly one door. Loads no Beam.

    read (archive) = written + dead + duplicate + filtered + refused + open          per source, for each output of rows

Rows are counted, each once, and never bundles: a bundle that is repeated after a crash holds other rows than before. `open` are messages that
are stored but not yet through: those in work, or, after a crash, those that the next start takes up again.

Each row is a set of doors, a bit for each, found in one pass over all files; what is asked is asked of the few sets that occur.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb

from beam_pipelines.arrow.engine import literal
from beam_pipelines.places import join, list_files, list_folders, size
from beam_pipelines.sinks.ledger import Line
from beam_pipelines.sinks.outputs import SpeedOutput, StreamOutputs
from beam_pipelines.sinks.results import OutputResult
from beam_pipelines.sinks.speed_views import AT_AGGREGATE, doors_scan, letters_scan, scan, speed_sql

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
    try:
        return _ledger(state, outputs)
    except duckdb.IOException:  # a file was merged and deleted meanwhile (see `speed_views.scan`)
        return _ledger(state, outputs)


def _ledger(state: str, outputs: StreamOutputs) -> StreamLedger:
    connection = duckdb.connect(":memory:")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"CREATE TABLE letters AS {_letters_sql(state, outputs)}")
    sinks = _Sinks(tuple(output.name for output in outputs.outputs if output.of == "rows"))
    connection.execute(
        f"CREATE TABLE left_by AS SELECT source, position, bit_or(door) AS doors FROM ({_doors_sql(state, outputs, sinks)}) GROUP BY ALL"
    )
    found = connection.execute("SELECT source, doors, count(*) FROM left_by GROUP BY ALL ORDER BY ALL").fetchall()
    late = connection.execute(_late_sql(outputs)).fetchall()
    sources = sorted({source for source, *_ in found})
    lines = tuple(_line(source, sinks, {doors: n for s, doors, n in found if s == source}, late) for source in sources)
    open_rows = Counter[str]()
    for source, doors, n in found:
        open_rows[source] += n if doors & _READ and sinks.missing(doors) else 0
    lost = _named(connection, sinks, [doors for _, doors, _ in found if doors & _READ and sinks.missing(doors)])
    twice = _named(connection, sinks, [doors for _, doors, _ in found if len(sinks.exits(doors)) > 1])
    return StreamLedger(lines, dict(open_rows), lost, twice, dict(connection.execute(_REASONS).fetchall()))


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


def _line(source: str, sinks: _Sinks, counts: Mapping[int, int], late: Sequence[tuple[str, str, int]]) -> Line:
    def rows(door: int) -> int:
        return sum(n for doors, n in counts.items() if doors & door)

    written = {name: sum(n for doors, n in counts.items() if sinks.there(name, doors)) for name in sinks.names}
    refused = {
        name: sum(n for doors, n in counts.items() if doors & sinks.refused(name) and not doors & _DUPLICATE) for name in sinks.names
    }
    return Line(
        source, rows(_READ), rows(_DEAD), rows(_DUPLICATE), rows(_FILTERED), written, {name: n for name, n in refused.items() if n},
        late={name: n for s, name, n in late if s == source},
    )  # fmt: skip


def _named(connection: duckdb.DuckDBPyConnection, sinks: _Sinks, sets: Sequence[int]) -> tuple[Misplaced, ...]:
    """Some rows that left by one of these sets of doors."""
    if not sets:
        return ()
    among = ", ".join(map(str, sorted(set(sets))))
    sql = f"SELECT source, position, doors FROM left_by WHERE doors IN ({among}) ORDER BY source, position LIMIT {_MOST_NAMED}"
    return tuple(Misplaced(s, p, tuple(sinks.exits(d)), tuple(sinks.missing(d))) for s, p, d in connection.execute(sql).fetchall())


_REASONS = "SELECT stage || ':' || reason, count(DISTINCT (source, position)) FROM letters GROUP BY ALL ORDER BY ALL"


def _doors_sql(state: str, outputs: StreamOutputs, sinks: _Sinks) -> str:
    """(source, position, door) of everything that is stored, as often as it is."""
    ways = list(_stored(outputs.archive, _READ))
    doors = doors_scan(state)
    if doors is not None:
        ways.append(f"SELECT source, position, CASE door WHEN 'duplicate' THEN {_DUPLICATE} ELSE {_FILTERED} END AS door FROM {doors}")
    for output in outputs.outputs:
        ways += list(_stored([output.folder], sinks.written(output.name))) if output.of == "rows" else []
    refused = "".join(f" WHEN {literal(name)} THEN {sinks.refused(name)}" for name in sinks.names)
    at_sink = f"CASE failures[1].name{refused} ELSE 0 END" if refused else "0"
    ways.append(
        f"SELECT source, position, CASE stage WHEN '{_AT_SINK}' THEN {at_sink} ELSE {_DEAD} END AS door FROM letters WHERE {_OF_ROWS}"
    )
    return " UNION ALL ".join(ways)


_OF_ROWS = f"stage <> '{AT_AGGREGATE}' AND source IS NOT NULL AND position IS NOT NULL"


def _stored(folders: Sequence[str], door: int) -> Iterator[str]:
    for found in filter(None, map(scan, folders)):
        yield f"SELECT _source::VARCHAR AS source, _position AS position, {door}::BIGINT AS door FROM {found}"


def _letters_sql(state: str, outputs: StreamOutputs) -> str:
    scans = [found for o in outputs.outputs if o.of == "dead_letters" and (found := letters_scan(state, o)) is not None]
    if not scans:
        return """SELECT NULL::VARCHAR AS source, NULL::BIGINT AS position, NULL::VARCHAR AS stage, NULL::VARCHAR AS reason,
            NULL::STRUCT(name VARCHAR, "column" VARCHAR, message VARCHAR)[] AS failures WHERE FALSE"""
    return " UNION ".join(f"SELECT source, position, stage, reason, failures FROM {found}" for found in scans)


def _late_sql(outputs: StreamOutputs) -> str:
    """Letters of aggregates, of distinct rows: source, aggregate, rows. What failed is called as the aggregate is, or `aggregate.measure`."""
    names = sorted({o.of for o in outputs.outputs} - {"rows", "dead_letters"}, key=len, reverse=True)
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
    if output.of == "rows":
        rows = sum(line.written.get(output.name, 0) for line in ledger.lines)
    else:
        rows = int(duckdb.connect(":memory:").execute(f"SELECT count(*) FROM ({speed_sql(state, output)})").fetchall()[0][0])
    files = list(_files(output.folder))
    partitions = sorted({path.removeprefix(output.folder).strip("/").rpartition("/")[0] for path in files} - {""})
    return OutputResult(output.name, output.of, output.folder, "parquet", rows, len(files), size(files), tuple(partitions), status="stored")


def _files(folder: str) -> Iterator[str]:
    yield from (join(folder, name) for name in list_files(folder) if name.endswith(".parquet"))
    for name in list_folders(folder):
        yield from _files(join(folder, name))
