"""What is compared: each output as both layers have it, the columns they share, and by which of them rows are matched.

    rows         contract key + event time │ without a key: identity where the batch read the archive, else all columns but floats
    aggregates   group_by + _window_start + _window_end

A layer is read as `part, moment, source, position, run, contract, arrival, pane, epoch, c0, c1, …`: where the row belongs, what tells it apart, and its
columns in the type that holds both layers' values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import duckdb
from msgspec import structs

from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.partition import is_derived
from beam_pipelines.arrow.ranges import Range, minus, partition_range, partition_value, show_range, union
from beam_pipelines.arrow.schema import ARRIVAL, CONTRACT, POSITION, RUN_ID, SOURCE, UNKNOWN
from beam_pipelines.errors import SpecError
from beam_pipelines.serving.verify.retrying import retry
from beam_pipelines.serving.views import BATCH, views
from beam_pipelines.sinks.manifest import Committed, Snapshot, snapshots
from beam_pipelines.sinks.outputs import SpeedOutput, read_columns, read_outputs
from beam_pipelines.sinks.results import find_run
from beam_pipelines.sinks.run import Clock, RunInfo
from beam_pipelines.sinks.speed_views import speed_sql
from beam_pipelines.sinks.views import NO_ROWS
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sinks import LETTERS, ROWS

UNDATED = -(2**62)
"""The part of rows without a time, and of an output that is not partitioned by time."""
WINDOW = ("_window_start", "_window_end")
IDENTITY = (SOURCE, POSITION)
_OWN = {UNKNOWN, *WINDOW}  # of our columns, those that hold what a row says
_FLOATS = ("FLOAT", "DOUBLE")


@dataclass(frozen=True)
class Layers:
    """One output in both layers: views `batch` and `speed` of a connection, and how to compare them.

    `columns` are what is compared, with the type both fit in; `committed` the time compared, by the run that answers for it. `archive`: the batch read
    the archive and keeps identities, so that a row has one identity in both layers.
    """

    number: int
    output: SpeedOutput
    snapshot: Snapshot
    there: Mapping[str, frozenset[str]]  # by layer, the columns it has
    columns: Mapping[str, str]
    match: tuple[str, ...]
    time: str | None
    committed: tuple[Committed, ...]
    archive: bool
    notes: tuple[str, ...] = ()
    missing: tuple[Range, ...] = ()

    @property
    def name(self) -> str:
        return self.output.name

    @property
    def clock(self) -> Clock | None:
        return self.snapshot.clock

    @property
    def pieces(self) -> tuple[Range, ...]:
        """The times compared, without UNDATED."""
        return union((r.start, r.end) for r in self.committed if r.start != UNDATED)

    @property
    def undated(self) -> bool:
        """Whether rows of the part UNDATED are compared."""
        return any(r.start == UNDATED for r in self.committed)

    @property
    def floats(self) -> frozenset[str]:
        """Columns that are compared within a tolerance."""
        return frozenset(name for name, kind in self.columns.items() if kind in _FLOATS)

    @cached_property
    def places(self) -> dict[str, str]:
        """The name of each column in what `select` gives."""
        return {name: f"c{i}" for i, name in enumerate(self.columns)} | {SOURCE: "source", POSITION: "position"}

    def select(self, layer: str, pieces: Sequence[tuple[int, int]], *, undated: bool = False) -> str:
        """A SELECT of the rows of a layer (batch, speed) in `pieces`, and of those of no time if `undated`."""
        there = self.there[layer]

        def ours(name: str, kind: str) -> str:
            return f"{quote(name)}::{kind}" if name in there else f"NULL::{kind}"

        own = [f"{self._part(there)} AS part", f"{self._at(there)} AS moment", f"{ours(SOURCE, 'VARCHAR')} AS source", f"{ours(POSITION, 'BIGINT')} AS position",
               f"{ours(RUN_ID, 'VARCHAR')} AS run", f"{ours(CONTRACT, 'VARCHAR')} AS contract", f"epoch_us({ours(ARRIVAL, 'TIMESTAMPTZ')}) AS arrival",
               f"{ours('_pane', 'VARCHAR')} AS pane", f"{ours('_epoch', 'BIGINT')} AS epoch"]  # fmt: skip
        columns = [f"{ours(name, kind)} AS {self.places[name]}" for name, kind in self.columns.items()]
        return f"SELECT {', '.join([*own, *columns])} FROM {layer}_{self.number} WHERE {self._within(there, pieces, undated)}"

    def _at(self, there: frozenset[str]) -> str:
        return f"epoch_us({quote(self.time)}::TIMESTAMPTZ)" if self.time is not None and self.time in there else "NULL::BIGINT"

    def _part(self, there: frozenset[str]) -> str:
        clock = self.clock
        if clock is None or clock.column not in there:
            return f"{UNDATED}"
        return f"coalesce(epoch_us(date_trunc('{clock.unit}', {quote(clock.column)}::TIMESTAMPTZ)), {UNDATED})"

    def _within(self, there: frozenset[str], pieces: Sequence[tuple[int, int]], undated: bool) -> str:
        """The condition that rows lie there; over the partition column where there is one: whole files are then passed over."""
        clock = self.clock
        if clock is None or clock.column not in there:
            return "TRUE" if undated else "FALSE"
        if clock.partition in there:
            column = f"{quote(clock.partition)}::VARCHAR"
            ends = [tuple(literal(partition_value(at, clock.unit)) for at in piece) for piece in pieces]
        else:
            column = f"epoch_us({quote(clock.column)})"
            ends = [(f"{start}", f"{end}") for start, end in pieces]
        found = [f"({column} >= {start} AND {column} < {end})" for start, end in ends]
        return " OR ".join([*found, *([f"{column} IS NULL"] if undated else [])]) or "FALSE"


def layers_of(
    connection: duckdb.DuckDBPyConnection, spec: PipelineSpec, state: str, places: Mapping[str, str], asked: Range | None
) -> tuple[list[Layers], list[tuple[str, str, str]]]:
    """What can be compared, as views of the connection; and (output, of, reason) of what cannot.

    Raises SpecError where no stream has ever started, no batch run has committed anything, or nothing of what was asked.
    """
    stream, batch = read_outputs(state), snapshots(state, places)
    if stream is None:
        raise SpecError(
            "verify: no stream of this spec has ever started, so there is nothing to compare with.", hint="`run --mode stream` starts one."
        )
    sql, found, left = views(state, places), list[Layers](), list[tuple[str, str, str]]()
    for number, output in enumerate(stream.outputs):
        snapshot = batch.get(output.name)
        if output.of == LETTERS:
            continue
        if output.of != ROWS and output.of not in spec.aggregates:
            left.append((output.name, output.of, "the spec has no such aggregate any more"))
        elif snapshot is None:
            left.append((output.name, output.of, "no batch run has committed it"))
        elif asked is not None and snapshot.clock is None:
            left.append((output.name, output.of, "it is not partitioned by time, so no range of it is committed"))
        else:
            layers = _layers(connection, number, spec, state, output, snapshot, sql[output.name + BATCH], asked)
            found += [layers] if layers.committed else []
            left += [] if layers.committed else [(output.name, output.of, "no batch run has committed anything of this range")]
    known = {output.name for output in stream.outputs}
    left += [
        (name, s.of, "the stream does not store it")
        for name, s in batch.items()
        if name in places and name not in known and s.of != LETTERS
    ]
    if not found:
        raise SpecError(
            f"verify: there is nothing to compare: {'; '.join(f'{name}: {why}' for name, _, why in left) or 'no output'}.",
            hint=_hint(batch),
        )
    return found, left


def _hint(batch: Mapping[str, Snapshot]) -> str:
    ranges = union((r.start, r.end) for s in batch.values() for r in s.ranges)
    if not ranges:
        return "`run --mode batch` makes the batch's answer."
    return f"Committed are {', '.join(map(show_range, ranges[:3]))}{' and more' if len(ranges) > 3 else ''}; `run --mode batch --from … --to …` adds to it."


def _layers(
    connection: duckdb.DuckDBPyConnection, number: int, spec: PipelineSpec, state: str, output: SpeedOutput, snapshot: Snapshot, batch: str,
    asked: Range | None,
) -> Layers:  # fmt: skip
    speed = speed_sql(state, structs.replace(output, provenance=True))  # a row is told apart by it, whatever readers see
    kinds = {"batch": _view(connection, f"batch_{number}", batch), "speed": _view(connection, f"speed_{number}", speed)}
    columns, notes = _shared(
        connection, kinds["batch"], kinds["speed"], {*snapshot.partitions, *read_columns(output.folder)}, snapshot.format
    )
    there = {layer: frozenset(names) for layer, names in kinds.items()}
    committed = _committed(state, snapshot, asked)
    identities = all(set(IDENTITY) <= names for names in there.values() if names)
    archive = output.of == ROWS and identities and bool(committed) and all(r.input == "archive" for r in committed)
    match, more = _match(spec, output, columns, there, archive=archive)
    time = spec.contract.event_time if output.of == ROWS else WINDOW[0]
    missing = () if asked is None else minus(asked, [(r.start, r.end) for r in committed])
    return Layers(number, output, snapshot, there, columns, match, time, committed, archive, (*notes, *more), missing)


def _view(connection: duckdb.DuckDBPyConnection, name: str, sql: str) -> dict[str, str]:
    """Makes a view; the columns it has and their types, none where the layer never had a row."""
    retry(lambda: connection.execute(f"CREATE VIEW {name} AS {sql}"))
    described = retry(lambda: connection.execute(f"DESCRIBE {name}").fetchall())
    return {} if sql == NO_ROWS else {column: kind for column, kind, *_ in described}


def _shared(
    connection: duckdb.DuckDBPyConnection, batch: Mapping[str, str], speed: Mapping[str, str], partitions: set[str], batch_format: str
) -> tuple[dict[str, str], list[str]]:
    """The columns to compare with the type that holds both layers' values, in the batch's order; and sentences about those that differ."""
    names = [n for n in dict.fromkeys((*batch, *speed)) if not n.startswith("_") or n in _OWN]
    derived = {name for name in partitions if is_derived(name, names)}
    columns, notes = dict[str, str](), list[str]()
    for name in (n for n in names if n not in derived):
        kinds = [kind for kind in (batch.get(name), speed.get(name)) if kind is not None]
        if batch_format != "parquet" and len(kinds) == 2 and kinds[0] != kinds[1] and _is_nested(kinds[1]):
            notes.append(f"'{name}' is not compared: as {batch_format} it has another form")
            continue
        columns[name] = kinds[0] if len(set(kinds)) == 1 else _common(connection, *kinds)
        if len(kinds) == 1 and batch and speed and name not in _OWN:
            notes.append(f"'{name}' is a column of the {'batch' if name in batch else 'speed layer'} alone")
        elif len(set(kinds)) > 1:
            notes.append(f"'{name}' is {kinds[0]} in the batch and {kinds[1]} in the speed layer; compared as {columns[name]}")
    return columns, notes


def _is_nested(kind: str) -> bool:
    return kind.endswith("]") or kind.startswith(("STRUCT", "MAP")) or kind == "BLOB"


def _common(connection: duckdb.DuckDBPyConnection, one: str, other: str) -> str:
    try:
        return str(connection.execute(f"DESCRIBE SELECT NULL::{one} AS x UNION ALL SELECT NULL::{other}").fetchall()[0][1])
    except duckdb.Error:
        return "VARCHAR"


def _match(
    spec: PipelineSpec, output: SpeedOutput, columns: Mapping[str, str], there: Mapping[str, frozenset[str]], *, archive: bool
) -> tuple[tuple[str, ...], list[str]]:
    known = [names for names in there.values() if names] or [frozenset[str]()]
    if output.of != ROWS:
        wanted = (*spec.aggregates[output.of].group_by, *WINDOW)
        found = tuple(n for n in wanted if all(n in names for names in known))
        lacking = [n for n in wanted if n not in found]
        return found, [f"not matched by {', '.join(lacking)}, which is not in both layers"] if lacking else []
    key = (spec.deduplicate.key if spec.deduplicate else None) or spec.contract.key
    time = spec.contract.event_time
    if key and all(n in names for n in key for names in known):
        return tuple(dict.fromkeys((*key, *((time,) if time and all(time in names for names in known) else ())))), []
    said = [f"the key ({', '.join(key)}) is not in both layers"] if key else []
    if archive:
        return IDENTITY, said
    return tuple(n for n, kind in columns.items() if kind not in _FLOATS), said


def _committed(state: str, snapshot: Snapshot, asked: Range | None) -> tuple[Committed, ...]:
    """The committed time in `asked`, by run; with UNDATED where the batch answers for rows without a time, or for the whole output."""
    start, end = asked or (-(2**62) + 1, 2**62)
    clipped = [replace(r, start=max(r.start, start), end=min(r.end, end)) for r in snapshot.ranges]
    found = [r for r in clipped if r.start < r.end]
    clock = snapshot.clock
    if asked is not None:
        return tuple(found)
    loose = [f for f in snapshot.files if clock is None or partition_range(f.partition, clock.partition, clock.unit) is None]
    if loose or clock is None:
        found.append(_of_files(state, {f.run_id for f in loose}))
    return tuple(found)


def _of_files(state: str, run_ids: set[str]) -> Committed:
    """Whose answer a part without a time is: the newest run's that wrote a file of it."""
    runs = sorted((run.metadata for run in (find_run(state, r) for r in sorted(run_ids)) if run is not None), key=lambda m: m.started_at)
    if not runs:
        return Committed(UNDATED, UNDATED + 1, max(run_ids, default=""))
    newest = runs[-1]
    as_of = RunInfo(newest.run_id, newest.pipeline, state, started_at=newest.started_at).as_of
    return Committed(UNDATED, UNDATED + 1, newest.run_id, as_of, "archive" if newest.input == "archive" else "batch")


def chunks(layers: Layers, rows: int) -> Iterator[tuple[list[tuple[int, int]], bool]]:
    """The time compared, cut between partitions so that the batch has about `rows` rows in each piece; and whether rows of no time go with it."""
    clock, pieces = layers.clock, layers.pieces
    known: dict[int, int] = {}
    for file in layers.snapshot.files:
        where = None if clock is None else partition_range(file.partition, clock.partition, clock.unit)
        if where is not None:
            known[where.start] = known.get(where.start, 0) + file.rows
    cuts, held = [], 0
    for start in sorted(at for at in known if any(p.start <= at < p.end for p in pieces)):
        if held and held + known[start] > rows:
            cuts.append(start)
            held = 0
        held += known[start]
    ends = list(zip([-(2**62) + 1, *cuts], [*cuts, 2**62], strict=True))
    if len(layers.output.placings) > 1:  # a row may lie in two partitions, and only all of it says where it is
        ends = [(ends[0][0], ends[-1][1])]
    for number, (start, end) in enumerate(ends):
        inside = [(max(p.start, start), min(p.end, end)) for p in pieces if p.start < end and p.end > start]
        undated = layers.undated and number == 0
        if inside or undated:
            yield inside, undated
