"""Rows to partials, partials to panes. One grouped SELECT each; merging is associative and commutative.

    rows ──partials──▶ group · window · accumulators ──merge_partials──▶ the same, fewer ──present──▶ pane rows

Partials hold `g0…` (group columns), `w`, `e` (microseconds) and `p0…` (parts of accumulators); what they mean is in the schema's metadata, so that they
can be merged and shown far from the rows. `w` and `e` are a fixed or calendar window, a slice of sliding windows, or the first and last instant of a
run of a session. A pane exists where at least one row is: no rows, no panes.

A pane row has the group columns, the measures, `_window_start`, `_window_end` (NULL without windowing), `_pane` ('batch'), `_pane_index`, `_epoch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import duckdb
import msgspec
import numpy as np
import pyarrow as pa

from beam_pipelines.arrow import sessions
from beam_pipelines.arrow.accumulators import EVENT_MICROS, Accumulator, Part, accumulator
from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.engine import Engine, local_engine, naive_utc, quote
from beam_pipelines.arrow.measures import HUGE, argument_type, parse_measure
from beam_pipelines.arrow.program import EXPRESSION, Define, Layer, Program, row_json
from beam_pipelines.arrow.schema import DEAD_LETTERS, UTC_MICROS, Failure, Rejected, dead_letters, provenance
from beam_pipelines.arrow.windowing import (
    STAGE,
    WINDOW_END,
    WINDOW_START,
    covering,
    event_micros,
    slice_size,
    split_late,
    split_untimed,
    window_bounds,
)
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.errors import SpecError, nearest

PANE, PANE_INDEX, EPOCH = "_pane", "_pane_index", "_epoch"
_META, _ROWS, _NUMBER = b"beam_pipelines.aggregate", "_rows", "_number"


class _Types(msgspec.Struct, frozen=True):
    """What partials must carry to be understood without the rows they came from."""

    name: str
    time: str | None
    time_zone: str
    arguments: tuple[str, ...]  # SQL type of each measure's argument
    utc_groups: tuple[bool, ...]  # whether the group column is an instant
    civil: tuple[bool, ...]  # whether the measure's timestamps are civil


@dataclass(frozen=True)
class Plan:
    """An aggregate over columns of known types. Make it with `plan`, once per schema of rows."""

    spec: AggregateSpec
    types: _Types

    @property
    def windowing(self) -> WindowSpec | None:
        return self.spec.windowing

    @property
    def kind(self) -> str:
        return self.spec.windowing.type if self.spec.windowing else ""

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(f"g{i}" for i in range(len(self.spec.group_by)))

    @cached_property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return tuple(accumulator(parse_measure(m), a) for m, a in zip(self.spec.measures.values(), self.types.arguments, strict=True))

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every different part, made concrete for its input; measures of one argument share parts."""
        return tuple(dict.fromkeys(p for a in self.accumulators for p in self.parts_of(a)))

    def parts_of(self, of: Accumulator) -> list[Part]:
        inputs = list(dict.fromkeys(a.input for a in self.accumulators))
        return [replace(p, create=p.create.format(x=f"x{inputs.index(of.input)}")) for p in of.parts]

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(a.input for a in self.accumulators))

    def columns_of(self, of: Accumulator) -> list[str]:
        """The partials' columns of a measure."""
        return [f"p{self.parts.index(p)}" for p in self.parts_of(of)]


def plan(spec: AggregateSpec, schema: pa.Schema, *, name: str = "aggregate", time: str | None = None, time_zone: str = "UTC") -> Plan:
    """The plan of `spec` over rows of `schema`. `spec.time` goes before `time`.

    Raises SpecError for an unknown column, an expression that does not fit the rows, or a measure that does not take its type.
    """
    time = spec.time or time
    for column in spec.group_by:
        if column not in schema.names:
            raise SpecError(f"{name}: group_by {column!r} is not a column of the rows;", hint=nearest(column, schema.names))
    types = _sql_types(schema)
    parsed = [parse_measure(m) for m in spec.measures.values()]
    if time is None and any(m.function in ("first", "last") for m in parsed):
        raise SpecError(f"{name}: first and last go by event time.", hint="Set `time`, or the contract's event_time.")
    clocks = {quote(f.name) for f in schema if pa.types.is_timestamp(f.type) and f.type.tz is None}
    clocks |= {f.name for f in schema if quote(f.name) in clocks}
    groups = [schema.field(c).type for c in spec.group_by]
    found = Plan(
        spec,
        _Types(
            name=name,
            time=time,
            time_zone=time_zone,
            arguments=tuple(argument_type(m, types) for m in parsed),
            utc_groups=tuple(pa.types.is_timestamp(t) and t.tz is not None for t in groups),
            civil=tuple(m.argument in clocks for m in parsed),
        ),
    )
    _ = found.accumulators  # a measure that does not take its type is refused here, not on a worker
    return found


def plan_of(partials: pa.Schema, spec: AggregateSpec) -> Plan:
    """The plan that `partials` were made with."""
    return Plan(spec, msgspec.json.decode((partials.metadata or {})[_META], type=_Types))


def _sql_types(schema: pa.Schema) -> dict[str, str]:
    """DuckDB's name for the type of each column, asked of DuckDB itself: one row of NULLs tells."""
    empty = naive_utc(pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in schema], names=schema.names))
    if not schema.names:
        return {}
    types = ", ".join(f"typeof({quote(n)}) AS t{i}" for i, n in enumerate(schema.names))
    told = local_engine().select(f"SELECT {types} FROM (SELECT 1) LEFT JOIN (SELECT * FROM $slot) ON true", empty.schema)(empty)
    return {n: told.column(i)[0].as_py() for i, n in enumerate(schema.names)}


# ── rows to partials ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Partials(NamedTuple):
    """`rows` are the input rows that the partials stand for; every other input row is in `dead`."""

    partials: pa.RecordBatch
    dead: pa.RecordBatch
    rows: pa.RecordBatch


def partials(batch: pa.RecordBatch, plan: Plan, *, apply_lateness: bool = False, engine: Engine | None = None) -> Partials:
    """The partials of a batch of rows. A NULL in a group column is a group.

    Dead letters (stage aggregate): TIME, no event time although there are windows; LATE, where `apply_lateness`; EXPRESSION, an argument or a
    condition that fails on the row.
    """
    engine, name, zone = engine or local_engine(), plan.types.name, plan.types.time_zone
    rows, dead = batch, []
    if plan.windowing is not None:
        timed = split_untimed(batch, event_micros(batch, plan.types.time, zone, name=name), name=name)
        rows, dead = timed.rows, [timed.dead]
        if apply_lateness:
            end = extent(timed.micros, plan)[1]
            kept, late = split_late(rows, timed.micros, end, plan.windowing, name=name)
            rows, dead = rows.filter(pa.array(kept)) if late.num_rows else rows, [timed.dead, late]
    made, rows, failed = _create(rows, plan, engine)
    return Partials(made, joined_letters([*dead, failed]), rows)


def _columns(rows: pa.RecordBatch, plan: Plan) -> list[pa.Array]:
    """Start, end and event time of rows that have what they need of them."""
    nothing = pa.nulls(rows.num_rows, pa.int64())
    if plan.types.time is None:
        return [nothing, nothing, nothing]
    micros = event_micros(rows, plan.types.time, plan.types.time_zone, name=plan.types.name)
    if plan.windowing is None:
        return [nothing, nothing, micros]
    start, end = extent(micros.to_numpy(), plan)
    return [pa.array(start, pa.int64()), pa.array(end, pa.int64()), micros]


def joined_letters(dead: Sequence[pa.RecordBatch | None]) -> pa.RecordBatch:
    some = [d for d in dead if d is not None and d.num_rows]
    return pa.concat_batches(some) if some else pa.RecordBatch.from_pylist([], schema=DEAD_LETTERS)


def extent(times: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """(`w`, `e`) of each row: its window, its slice of sliding windows, or itself as a run."""
    assert plan.windowing is not None
    if plan.kind == "sessions":
        return times, times
    spec = plan.windowing if plan.kind != "sliding" else WindowSpec(size=slice_size(plan.windowing), offset=plan.windowing.offset)
    return window_bounds(times, spec, plan.types.time_zone)


_Sql = Callable[[Plan, Sequence[str]], str]


def _create(
    rows: pa.RecordBatch, plan: Plan, engine: Engine, sql: _Sql | None = None
) -> tuple[pa.RecordBatch, pa.RecordBatch, pa.RecordBatch | None]:
    sql = sql or _create_sql
    slot, failed = _slot(rows, plan, " ".join(plan.inputs)), None
    try:
        out = engine.select(sql(plan, plan.inputs), slot.schema)(slot)
    except (duckdb.Error, UnicodeDecodeError):  # an expression fails on some row: find that row, and take the others
        names = [f"{plan.types.name}.{m}" for m in _first_measures(plan)]
        layer = Layer(STAGE, define=tuple(Define(n, i, True) for n, i in zip(names, plan.inputs, strict=True)))
        split = Program((layer,), event_time=plan.types.time or "", keep_raw=True)(rows, engine)
        inputs = [quote(n) for n in names]
        slot = _slot(split.rows, plan, " ".join(inputs))
        out = engine.select(sql(plan, inputs), slot.schema)(slot)
        rows, failed = split.rows.select(rows.schema.names), split.dead
    return labelled(out, plan), rows, failed


def _first_measures(plan: Plan) -> list[str]:
    by_input: dict[str, str] = {}
    for measure, a in zip(plan.spec.measures, plan.accumulators, strict=True):
        by_input.setdefault(a.input, measure)
    return [by_input[i] for i in plan.inputs]


def _slot(rows: pa.RecordBatch, plan: Plan, text: str) -> pa.RecordBatch:
    """The columns that the SELECT may name (converting the others would cost time for nothing), and the window's."""
    text = text.lower().replace('""', '"')
    slot = rows.select([n for n in rows.schema.names if n in plan.spec.group_by or n.lower() in text])
    for name, column in zip((WINDOW_START, WINDOW_END, EVENT_MICROS), _columns(rows, plan), strict=True):
        slot = slot.append_column(name, column)
    return naive_utc(slot)


def _create_sql(plan: Plan, inputs: Sequence[str]) -> str:
    return _grouped_sql(plan, _inputs_sql(plan, inputs), [p.create for p in plan.parts])


def _inputs_sql(plan: Plan, inputs: Sequence[str], source: str = "$slot") -> str:
    keys = [f"{quote(c)} AS {g}" for c, g in zip(plan.spec.group_by, plan.groups, strict=True)]
    values = [f"{sql} AS x{i}" for i, sql in enumerate(inputs)]
    return f"SELECT {', '.join([*keys, f'{WINDOW_START} AS w', f'{WINDOW_END} AS e', EVENT_MICROS, *values])} FROM {source}"


def _grouped_sql(plan: Plan, relation: str, parts: Sequence[str], *, numbers: bool = False) -> str:
    """Groups and windows with their parts; with `numbers`, also the list of `_number`s of the rows in each."""
    made = [f"{sql} AS p{i}" for i, sql in enumerate(parts) if sql] + ([f"list({_NUMBER}) AS {_ROWS}"] if numbers else [])
    if plan.windowing is not None and plan.kind == "sessions":
        relation, keys, start = sessions.numbered_runs(relation, plan.groups, plan.windowing), sessions.run_keys(), "min(w) AS w"
    else:
        keys, start = "w", "w"
    return _group(plan, relation, keys, [start, "max(e) AS e", *made])


def _group(plan: Plan, relation: str, keys: str, columns: Sequence[str]) -> str:
    return f"SELECT {', '.join([*plan.groups, *columns])} FROM ({relation}) GROUP BY {', '.join([*plan.groups, keys])}"


# ── rows to inputs, inputs to partials: where rows may be taken back, what was evaluated is kept, row by row ────────────────────────────────


def input_types(schema: pa.Schema, plan: Plan) -> tuple[str, ...]:
    """DuckDB's type of each of the plan's inputs over rows of `schema`: Arrow alone does not bring every type back."""
    slot = _slot(pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in schema], names=schema.names), plan, " ".join(plan.inputs))
    types = ", ".join(f"typeof(x{i}) AS t{i}" for i in range(len(plan.inputs)))
    sql = f"SELECT {types} FROM ({_inputs_sql(plan, plan.inputs, '(SELECT 1) LEFT JOIN (SELECT * FROM $slot) ON true')})"
    return tuple(local_engine().select(sql, slot.schema)(slot).to_pylist()[0].values())


def inputs(batch: pa.RecordBatch, plan: Plan, types: Sequence[str], *, engine: Engine | None = None) -> Partials:
    """Each row of the batch as what its measures need: group, window, event time, and the value of each input (`x0`…).

    All rows must have an event time. The first field holds inputs, in the order of `rows`; `fold` makes partials of them.
    """
    casts = [f"x{i}::VARCHAR AS x{i}" for i, t in enumerate(types) if t in HUGE]  # Arrow has no integers of 128 bits

    def sql(plan: Plan, inputs: Sequence[str]) -> str:
        relation = _inputs_sql(plan, inputs)
        return f"SELECT * REPLACE ({', '.join(casts)}) FROM ({relation})" if casts else relation

    made, rows, failed = _create(batch, plan, engine or local_engine(), sql)
    return Partials(made, joined_letters([failed]), rows)


def fold(inputs: pa.RecordBatch, plan: Plan, types: Sequence[str], *, engine: Engine | None = None) -> pa.RecordBatch:
    """The partials of inputs: `fold(inputs(rows))` is `partials(rows)`."""
    values = [f"x{i}::{t} AS x{i}" for i, t in enumerate(types)]
    relation = f"SELECT {', '.join([*plan.groups, 'w', 'e', EVENT_MICROS, *values])} FROM $slot"
    slot = inputs.replace_schema_metadata(None)
    sql = _grouped_sql(plan, relation, [p.create for p in plan.parts])
    return labelled(_select(sql, slot, engine), plan)


def _select(sql: str, slot: pa.RecordBatch, engine: Engine | None) -> pa.RecordBatch:
    return (engine or local_engine()).select(sql, slot.schema)(slot)


def relabelled(partials: pa.RecordBatch, plan: Plan) -> pa.RecordBatch:
    """Partials whose columns are those of `plan`, said to be made by it."""
    return labelled(partials.select([*plan.groups, "w", "e", *(f"p{i}" for i in range(len(plan.parts)))]), plan)


def with_groups(plan: Plan, spec: AggregateSpec) -> Plan:
    """The plan of `spec`, which has the measures of `plan`, and first of all its group columns; the others are no instants."""
    shared = plan.types.utc_groups[: len(spec.group_by)]
    utc = shared + (False,) * (len(spec.group_by) - len(shared))
    return Plan(spec, msgspec.structs.replace(plan.types, utc_groups=utc))


def labelled(batch: pa.RecordBatch, plan: Plan) -> pa.RecordBatch:
    return batch.replace_schema_metadata({_META: msgspec.json.encode(plan.types)})


# ── partials to fewer partials ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def merge_partials(batches: Sequence[pa.RecordBatch], spec: AggregateSpec, *, engine: Engine | None = None) -> pa.RecordBatch:
    """One partial per group and window out of many; any grouping and order of merges gives the same.

    `batches` must not be empty: without any there is no schema.
    """
    plan = plan_of(batches[0].schema, spec)
    if any(plan_of(b.schema, spec) != plan for b in batches[1:]):
        raise ValueError(f"{plan.types.name}: partials made from rows of different types do not merge")
    return _merge(pa.concat_batches(batches), plan, engine or local_engine())


def _merge(partials: pa.RecordBatch, plan: Plan, engine: Engine, grouped: Callable[..., str] = _grouped_sql) -> pa.RecordBatch:
    slow = [i for i, p in enumerate(plan.parts) if not isinstance(p.merge, str)]
    merges = [p.merge.format(p=f"p{i}") if isinstance(p.merge, str) else "" for i, p in enumerate(plan.parts)]
    slot = partials.drop_columns([f"p{i}" for i in slow]) if slow else partials
    slot = slot.append_column(_NUMBER, pa.array(np.arange(slot.num_rows))).replace_schema_metadata(None)
    out = engine.select(grouped(plan, "SELECT * FROM $slot", merges, numbers=bool(slow)), slot.schema)(slot)
    if slow:
        out = _merge_in_python(out, partials, plan, slow)
    return labelled(out, plan)


def _merge_in_python(out: pa.RecordBatch, partials: pa.RecordBatch, plan: Plan, slow: Sequence[int]) -> pa.RecordBatch:
    rows = out.column(_ROWS)
    group = np.zeros(partials.num_rows, np.int64)
    group[rows.flatten().to_numpy()] = np.repeat(np.arange(len(rows)), np.diff(rows.offsets.to_numpy()))
    columns = {n: out.column(n) for n in out.schema.names if n != _ROWS}
    for i in slow:
        merge = plan.parts[i].merge
        assert not isinstance(merge, str)
        columns[f"p{i}"] = merge(partials.column(f"p{i}"), group, len(rows))
    order = [*plan.groups, "w", "e", *(f"p{i}" for i in range(len(plan.parts)))]
    return pa.RecordBatch.from_arrays([columns[n] for n in order], names=order)


def split_by_key(
    partials: pa.RecordBatch, spec: AggregateSpec, parts: int, *, salt: int = 0, engine: Engine | None = None
) -> dict[int, pa.RecordBatch]:
    """Partials by a hash of what must meet to be merged and shown: group and window; for sliding windows and sessions the group alone.

    `salt` makes a hash that is independent of the one without it.
    """
    plan = plan_of(partials.schema, spec)
    keys = [*plan.groups, *(["w"] if plan.kind in ("fixed", "calendar", "") else []), str(salt)]
    slot = partials.select([*plan.groups, "w"]).replace_schema_metadata(None)
    sql = f"SELECT (hash({', '.join(keys)}) % {parts})::INTEGER AS part FROM $slot"
    part = (engine or local_engine()).select(sql, slot.schema)(slot).column(0).to_numpy()
    order = np.argsort(part, kind="stable")
    sorted_by_part = partials.take(pa.array(order))
    edges = np.searchsorted(part[order], np.arange(parts + 1))
    return {
        k: sorted_by_part.slice(a, b - a) for k, (a, b) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)) if b > a
    }


# ── partials to panes ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Panes(NamedTuple):
    """Pane rows, ordered by window and group. `dead` says which sums did not fit their type (NULL in the pane); those letters stand for no row."""

    panes: pa.RecordBatch
    dead: pa.RecordBatch


def present(partials: pa.RecordBatch, spec: AggregateSpec, *, engine: Engine | None = None) -> Panes:
    """Pane rows of all partials of their groups; they need not be merged before."""
    engine, plan = engine or local_engine(), plan_of(partials.schema, spec)
    if plan.kind == "sliding":
        partials = labelled(_in_sliding_windows(partials, plan), plan)
    merged = _merge(partials, plan, engine)
    if plan.kind == "sessions":
        merged = _merge(merged, plan, engine, _session_windows_sql)
    merged = merged.replace_schema_metadata(None)
    shown = engine.select(_present_sql(plan), merged.schema)(merged)
    return _pane_rows(shown, plan)


def expansion(spec: AggregateSpec) -> int:
    """How many windows `present` makes of one partial, at most."""
    window = spec.windowing
    return -(-(window.size or 0) // (window.period or 1)) if window is not None and window.type == "sliding" else 1


def _in_sliding_windows(partials: pa.RecordBatch, plan: Plan) -> pa.RecordBatch:
    spec = plan.windowing
    assert spec is not None
    index, start = covering(partials.column("w").to_numpy(), partials.column("e").to_numpy() - 1, spec)
    rows = partials.take(pa.array(index))
    rows = rows.set_column(rows.schema.get_field_index("w"), "w", pa.array(start))
    return rows.set_column(rows.schema.get_field_index("e"), "e", pa.array(start + (spec.size or 0)))


def _session_windows_sql(plan: Plan, relation: str, parts: Sequence[str], *, numbers: bool = False) -> str:
    assert plan.windowing is not None
    made = [f"{sql} AS p{i}" for i, sql in enumerate(parts) if sql] + ([f"list({_NUMBER}) AS {_ROWS}"] if numbers else [])
    windows = sessions.windows(relation, plan.groups, plan.windowing)
    return _group(plan, windows, "_run, _piece", ["min(w) AS w", "max(_end) AS e", *made])


def _present_sql(plan: Plan) -> str:
    shown = []
    for i, a in enumerate(plan.accumulators):
        if isinstance(a.present, str):
            shown.append(f"({a.present.format(*plan.columns_of(a))})::{a.type} AS m{i}")
    raw = [f"p{i}" for i in range(len(plan.parts))]
    keys = ["w", *plan.groups]
    return f"SELECT {', '.join([*plan.groups, 'w', 'e', *raw, *shown])} FROM $slot ORDER BY {', '.join(keys)}"


def _pane_rows(shown: pa.RecordBatch, plan: Plan) -> Panes:
    columns: dict[str, pa.Array] = {}
    for name, g, utc in zip(plan.spec.group_by, plan.groups, plan.types.utc_groups, strict=True):
        columns[name] = shown.column(g).cast(UTC_MICROS) if utc else shown.column(g)
    overflows: list[tuple[str, np.ndarray]] = []
    for i, (measure, a) in enumerate(zip(plan.spec.measures, plan.accumulators, strict=True)):
        parts = [shown.column(c) for c in plan.columns_of(a)]
        values = shown.column(f"m{i}") if isinstance(a.present, str) else a.present(*parts)
        if a.checked and values.null_count > parts[0].null_count:
            overflows.append(
                (
                    measure,
                    np.flatnonzero(parts[0].is_valid().to_numpy(zero_copy_only=False) & values.is_null().to_numpy(zero_copy_only=False)),
                )
            )
        instant = pa.types.is_timestamp(values.type) and not plan.types.civil[i]
        columns[measure] = values.cast(UTC_MICROS) if instant else values
    n = shown.num_rows
    columns |= {WINDOW_START: shown.column("w").cast(UTC_MICROS), WINDOW_END: shown.column("e").cast(UTC_MICROS)}
    columns |= {
        PANE: pa.repeat("batch", n),
        PANE_INDEX: pa.repeat(pa.scalar(0, pa.int32()), n),
        EPOCH: pa.repeat(pa.scalar(0, pa.int64()), n),
    }
    panes = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    return Panes(panes, joined_letters([_overflowed(panes, plan, m, rows) for m, rows in overflows]))


def _overflowed(panes: pa.RecordBatch, plan: Plan, measure: str, rows: np.ndarray) -> pa.RecordBatch:
    """A dead letter per sum that does not fit: its source is the aggregate, its position the pane's place in time."""
    name = plan.types.name
    taken = panes.take(pa.array(rows))
    kind = "int64" if pa.types.is_integer(taken.schema.field(measure).type) else "38 digits"
    text = f"{name}.{measure}: the sum does not fit {kind}; the pane holds NULL. Sum a wider type: sum(x::decimal(38,0)) or sum(x::double)"
    raw = row_json(taken)
    positions = taken.column(WINDOW_START).cast(pa.int64())
    source = pa.RecordBatch.from_arrays(
        [*provenance(f"aggregate:{name}", positions), raw], names=["_source", "_position", "_arrival_time", "_raw"]
    )
    return dead_letters(
        source, [Rejected(STAGE, EXPRESSION, (Failure(f"{name}.{measure}", measure, text),))] * len(rows), raw_format="pane"
    )


def aggregate_batch(
    batch: pa.RecordBatch,
    spec: AggregateSpec,
    *,
    name: str = "aggregate",
    time: str | None = None,
    time_zone: str = "UTC",
    apply_lateness: bool = False,
) -> Panes:
    """The panes of all rows of `batch`, and dead letters for the rows that are in none.

    >>> rows = pa.record_batch({'country': ['DE', 'FR', 'DE'], 'amount': [1, 2, 4]})
    >>> out = aggregate_batch(rows, AggregateSpec(group_by=['country'], measures={'n': 'count()', 'total': 'sum(amount)'}))
    >>> out.panes.select(['country', 'n', 'total']).to_pylist()
    [{'country': 'DE', 'n': 2, 'total': 5}, {'country': 'FR', 'n': 1, 'total': 2}]
    """
    made = partials(batch, plan(spec, batch.schema, name=name, time=time, time_zone=time_zone), apply_lateness=apply_lateness)
    shown = present(made.partials, spec)
    return Panes(shown.panes, joined_letters([made.dead, shown.dead]))
