"""A row program: the stages of a batch as one prepared SELECT, with every row leaving by exactly one door.

    batch ─▶ kernel ─▶ [ layer · layer · layer ] ─▶ kernel ─▶ [ layer ] ─▶ rows
                └─ rejected   └─ rejected / filtered   └─ rejected   └──▶ dead letters, counts

A **layer** is SQL: it defines columns, names the conditions under which a row is rejected, and may filter. Layers that follow
each other become one SELECT. A **kernel** is Python on the whole batch: a lookup, a user's function, a syntax check.

Fast mode computes one small integer per row, the door it leaves by; the reasons are worked out in a second SELECT that sees
only the rejected rows. An expression that raises on some row (overflow, division by zero) makes the batch run once more in
safe mode, in which that row is rejected and no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

import duckdb
import msgspec
import numpy as np
import pyarrow as pa

from beam_pipelines.arrow.engine import Engine, local_engine, naive_utc
from beam_pipelines.arrow.layers import DOOR, EXPRESSION, SUSPECT, WARN, WARN_BITS, WHY, Define, KernelResult, Layer, Query, Reject, Warn
from beam_pipelines.arrow.layers import query as query_of
from beam_pipelines.arrow.layouts import plain, rows_of
from beam_pipelines.arrow.schema import CHANGE, LATE_RANK, PROVENANCE_NAMES, RAW, UTC_MICROS, Reasons, Rejected, dead_letters

__all__ = ["EXPRESSION", "Define", "Kernel", "KernelResult", "Layer", "Program", "Reject", "Split", "Step", "Warn", "judge", "row_json"]

_CARRIER = "_"  # stands in where a batch has no columns of its own: a SELECT counts rows by a column


@runtime_checkable
class Kernel(Protocol):
    """A stage in Python: the same rows in the same order with other columns, and verdicts by row index.

    `sees_rejected` says whether rows rejected earlier may be in the batch (they cost a copy to remove). A kernel is pickled
    to the workers, so it opens what it needs on first use.
    """

    @property
    def stage(self) -> str: ...

    @property
    def sees_rejected(self) -> bool: ...

    def __call__(self, batch: pa.RecordBatch) -> KernelResult: ...


Step = Layer | Kernel


class Split(NamedTuple):
    """What became of a batch: `rows` that go on, `dead` letters, how many were `filtered`, warnings by check name.

    rows + dead + filtered = the rows that came in.
    """

    rows: pa.RecordBatch
    dead: pa.RecordBatch
    filtered: int
    warned: dict[str, int]


@dataclass(frozen=True)
class Program:
    """Steps applied to a batch. `civil` names columns whose timestamps have no zone; all others mean UTC.

    `raw_format` labels the raw bytes of dead letters; `event_time` names the column they take their event time from;
    `keep_raw` keeps `_raw` on the rows that go on.
    """

    steps: tuple[Step, ...]
    civil: frozenset[str] = frozenset()
    raw_format: str = ""
    event_time: str = ""
    keep_raw: bool = False

    def __call__(self, batch: pa.RecordBatch, engine: Engine | None = None) -> Split:
        """Runs the steps over `batch`. Raises only what is no row's fault (out of memory, a broken kernel)."""
        run = _Run(self, engine or local_engine(), batch)
        for group in _groups(self.steps):
            if isinstance(group, tuple):
                run.layers(group)
            else:
                run.kernel(group)
        return run.finish()


def judge(
    layers: tuple[Layer, ...], batch: pa.RecordBatch, *, civil: frozenset[str] = frozenset(), engine: Engine | None = None
) -> KernelResult:
    """Layers over `batch` as a kernel's answer: all rows, aligned, and the verdicts by row. For layers known only at run time."""
    run = _Run(Program(layers, civil=civil), engine or local_engine(), batch)
    run.layers(layers)
    verdicts = dict(run.verdicts)
    for rows, reasons in run.told:
        verdicts |= dict(zip(rows.tolist(), reasons.verdicts(), strict=True))
    return run.batch, verdicts


@dataclass
class _Run:
    """One batch on its way through a program: `alive` marks the rows still in it.

    Of the rejected ones, `verdicts` holds what kernels say, by row of `origin`, and `told` what layers say, in columns.
    """

    program: Program
    engine: Engine
    batch: pa.RecordBatch
    origin: pa.RecordBatch = field(init=False)
    index: np.ndarray | None = None  # row of `batch` -> row of `origin`; None is the identity
    alive: np.ndarray = field(init=False)
    verdicts: dict[int, Rejected] = field(default_factory=dict)
    told: list[tuple[np.ndarray, Reasons]] = field(default_factory=list)
    event_times: list[tuple[np.ndarray, pa.Array]] = field(default_factory=list)
    filtered: int = 0
    warned: dict[str, int] = field(default_factory=dict)
    resolved: list[Split] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.origin = self.batch
        self.alive = np.ones(self.batch.num_rows, bool)

    def kernel(self, kernel: Kernel) -> None:
        if not kernel.sees_rejected:
            self.compact()
        out, verdicts = kernel(self.batch)
        if out.num_rows != self.batch.num_rows:
            raise ValueError(f"{kernel.stage}: got {out.num_rows} rows for {self.batch.num_rows}; a kernel keeps its rows aligned")
        self.batch = out
        fresh = np.array([row for row in verdicts if self.alive[row]], np.int64)
        self.alive[fresh] = False
        self.verdicts |= {origin: verdicts[row] for origin, row in zip(self.original(fresh).tolist(), fresh.tolist(), strict=True)}
        self.remember_event_times(fresh, out)

    def layers(self, layers: tuple[Layer, ...]) -> None:
        texts = _text_of(layers)
        aside = [n for n in self.batch.schema.names if (n in PROVENANCE_NAMES or n == RAW) and n.lower() not in texts]
        inside = naive_utc(self.batch.drop_columns(aside))
        if not inside.num_columns:
            inside = pa.record_batch([pa.nulls(self.batch.num_rows, pa.int8())], names=[_CARRIER])
        query = query_of(layers, tuple(inside.schema.names))
        safe = False
        try:
            out = self.engine.select(query.sql(), inside.schema, optimize=False)(inside)
        except (duckdb.Error, UnicodeDecodeError):
            safe = True
            out = self.engine.select(query.sql(safe=True), inside.schema, optimize=False)(inside)
        doors = out.column(DOOR).to_numpy()
        if doors.any():
            self.leave(query, layers, inside, out, doors)
        self.count_warnings(layers, out, safe=safe)
        columns = {n: out.column(n) for n in query.columns if n != _CARRIER}
        columns |= {n: self.batch.column(n) for n in aside}
        self.batch = _zoned(columns, self.program.civil, self.batch.num_rows)

    def leave(self, query: Query, layers: tuple[Layer, ...], inside: pa.RecordBatch, out: pa.RecordBatch, doors: np.ndarray) -> None:
        doors = np.where(self.alive, doors, 0)
        gone = doors < 0
        self.filtered += int(gone.sum())
        suspects = np.flatnonzero(doors == SUSPECT)
        rejected = np.flatnonzero((doors > 0) & (doors != SUSPECT))
        self.alive &= doors == 0
        if len(rejected):
            taken = rows_of(inside, rejected)
            why = self.engine.select(query.sql(safe=True, why=True), taken.schema, optimize=False)(taken).column(WHY)
            self.told.append((self.original(rejected), query.reasons(doors[rejected], why)))
            self.remember_event_times(rejected, out)
        if len(suspects):
            self.resolve(layers, suspects)

    def resolve(self, layers: tuple[Layer, ...], suspects: np.ndarray) -> None:
        position = next(
            i for i, layer in enumerate(self.program.steps) if isinstance(layer, Layer) and layer.resolve is not None and layer in layers
        )
        layer = self.program.steps[position]
        assert isinstance(layer, Layer)
        assert layer.resolve is not None
        sub = self.batch.take(pa.array(suspects))
        decoded, verdicts = layer.resolve(sub)
        good = np.ones(sub.num_rows, bool)
        good[list(verdicts)] = False
        origin = self.original(suspects)
        self.verdicts |= {int(origin[row]): verdict for row, verdict in verdicts.items()}
        tail = replace(self.program, steps=self.program.steps[position + 1 :])
        self.resolved.append(tail(decoded.filter(pa.array(good)), self.engine))

    def count_warnings(self, layers: tuple[Layer, ...], out: pa.RecordBatch, *, safe: bool) -> None:
        names = [w.name for layer in layers for w in layer.warns]
        for chunk in range(0, len(names), WARN_BITS):
            bits = out.column(f"{WARN}{chunk}").to_numpy()
            bits = bits[self.alive & (bits != 0)]
            for i, name in enumerate(names[chunk : chunk + WARN_BITS]):
                hits = int(((bits >> i) & 1).sum()) if len(bits) else 0
                self.warned[name] = self.warned.get(name, 0) + hits

    def remember_event_times(self, rows: np.ndarray, out: pa.RecordBatch) -> None:
        name = self.program.event_time
        if len(rows) and name in out.schema.names and pa.types.is_timestamp(out.schema.field(name).type):
            self.event_times.append((self.original(rows), out.column(name).take(pa.array(rows)).cast(pa.int64())))

    def original(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.index is None else self.index[rows]

    def compact(self) -> None:
        if not self.alive.all():
            rows = np.flatnonzero(self.alive)
            self.batch = self.batch.filter(pa.array(self.alive))
            self.index = rows if self.index is None else self.index[rows]
            self.alive = np.ones(self.batch.num_rows, bool)

    def finish(self) -> Split:
        rows = self.batch
        if not self.program.keep_raw and RAW in rows.schema.names:
            rows = rows.drop_columns([RAW])
        if not self.alive.all():
            rows = rows.filter(pa.array(self.alive))
        dead = self.dead()
        filtered, warned = self.filtered, dict(self.warned)
        if self.resolved:
            rows = pa.concat_batches([rows, *(_conformed(s.rows, rows.schema) for s in self.resolved)])
            dead = pa.concat_batches([dead, *(s.dead for s in self.resolved)])
            filtered += sum(s.filtered for s in self.resolved)
            for split in self.resolved:
                for name, hits in split.warned.items():
                    warned[name] = warned.get(name, 0) + hits
        return Split(rows, dead, filtered, warned)

    def dead(self) -> pa.RecordBatch:
        parts = [(np.array(list(self.verdicts), np.int64), Reasons.of(list(self.verdicts.values()))), *self.told]
        found = np.concatenate([rows for rows, _ in parts])
        order = np.argsort(found)
        kept = [n for n in self.origin.schema.names if n in PROVENANCE_NAMES or n == RAW]
        if RAW in kept:
            rows = self.origin.select(kept)
        else:  # the row itself is the record; view types cannot be taken from
            rows = pa.RecordBatch.from_arrays([plain(c) for c in self.origin.columns], names=self.origin.schema.names)
        rows = rows.take(pa.array(found[order])) if len(order) else rows.slice(0, 0)
        times = self.times_of(found[order])
        raw_format = self.program.raw_format
        if RAW not in rows.schema.names:
            rows, raw_format = rows.append_column(RAW, row_json(rows)), "row"
        reasons = Reasons.joined([reasons for _, reasons in parts], pa.array(order))
        return dead_letters(rows, reasons, event_time=times, raw_format=raw_format)

    def times_of(self, rows: np.ndarray) -> pa.Array:
        """The event times that are known of rows of `origin`."""
        place = np.full(self.origin.num_rows + 1, -1)
        known = [pa.array([], pa.int64()), *(times for _, times in self.event_times)]
        if self.event_times:
            place[np.concatenate([rows for rows, _ in self.event_times])] = np.arange(sum(map(len, known)))
        at = place[rows]
        return pa.concat_arrays(known).take(pa.array(at, mask=at < 0)).cast(UTC_MICROS)


@lru_cache(maxsize=1024)
def _text_of(layers: tuple[Layer, ...]) -> str:
    parts: list[str] = []
    for layer in layers:
        parts += (
            [f"{d.name} {d.sql}" for d in (*layer.let, *layer.define)]
            + [f"{r.when} {r.message}" for r in layer.rejects]
            + [w.when for w in layer.warns]
        )
        parts += [layer.keep or "", layer.suspect or "", *(layer.columns or ())]
    return " ".join(parts).lower()


def _groups(steps: Sequence[Step]) -> list[tuple[Layer, ...] | Kernel]:
    """Adjacent layers together; a layer that may hold suspects starts its own group."""
    groups: list[tuple[Layer, ...] | Kernel] = []
    for step in steps:
        if not isinstance(step, Layer):
            groups.append(step)
        elif groups and isinstance(groups[-1], tuple) and step.suspect is None:
            groups[-1] = (*groups[-1], step)
        else:
            groups.append((step,))
    return groups


def _zoned(columns: Mapping[str, pa.Array], civil: frozenset[str], rows: int) -> pa.RecordBatch:
    """The columns as a batch; timestamps without a zone are UTC unless `civil`."""
    if not columns:
        return pa.record_batch([pa.nulls(rows, pa.int8())], names=[_CARRIER])
    arrays = []
    for name, column in columns.items():
        kind = _instants(column.type, civil, name)
        arrays.append(column if kind is column.type else column.cast(kind, safe=False))
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _instants(kind: pa.DataType, civil: frozenset[str], path: str) -> pa.DataType:
    """`kind` with its timestamps as instants, except at the paths in `civil` (`column`, `column.field`; a list adds nothing)."""
    if pa.types.is_timestamp(kind):
        return kind if path in civil or kind.tz == "UTC" else UTC_MICROS
    if pa.types.is_list(kind):
        inner = _instants(kind.value_type, civil, path)
        return kind if inner is kind.value_type or inner == kind.value_type else pa.list_(inner)
    if pa.types.is_struct(kind):
        fields = [pa.field(f.name, _instants(f.type, civil, f"{path}.{f.name}")) for f in kind]
        return kind if all(new.type == old.type for new, old in zip(fields, kind, strict=True)) else pa.struct(fields)
    return kind


def _conformed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    return batch if batch.schema == schema else batch.select(schema.names).cast(schema)


def row_json(rows: pa.RecordBatch) -> pa.Array:
    """Each row's own columns as JSON bytes: the raw form of a record that came from a columnar file."""
    names = [n for n in rows.schema.names if n not in PROVENANCE_NAMES and n not in (CHANGE, LATE_RANK)]
    encode = msgspec.json.Encoder(enc_hook=str).encode
    columns = [_python_values(rows.column(n)) for n in names]
    records = (
        (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)) if names else ({} for _ in range(rows.num_rows))
    )
    return pa.array([encode(r) for r in records], pa.binary())  # rejected rows only


def _python_values(column: pa.Array) -> list[object]:
    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_shown(value) for value in column]
    except (OverflowError, ValueError):  # an instant outside the years 1 to 9999, or one with nanoseconds: Python has none, text has
        zoned = column.cast(pa.timestamp(column.type.unit, "UTC")) if pa.types.is_timestamp(column.type) else column
        values = (
            zoned.cast(pa.string()).to_pylist()
            if zoned is not column or not pa.types.is_nested(column.type)
            else [str(column.type)] * len(column)
        )
    return values


def _shown(value: pa.Scalar) -> object:
    """Of a text that is not UTF-8, such as Parquet may hold, the bytes in question as `\\xff`; of lists and structs that have one the type."""
    try:
        return value.as_py()
    except UnicodeDecodeError:
        if pa.types.is_nested(value.type):
            return str(value.type)
        return value.cast(pa.binary()).as_py().decode(errors="backslashreplace")
