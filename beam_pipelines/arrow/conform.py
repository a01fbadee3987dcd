"""Conform: decoded columns become the contract's types, strictly, or the row is rejected with every column that does not fit.

    decoded batch ─▶ trim, null texts, casts, defaults ─▶ local times to UTC ─▶ computed columns ─▶ row batch

Reason codes: CAST (a value does not convert), TIME (a local time that the clock skips or shows twice), EXPRESSION (a computed column
fails on the row), DECODE (a text that is not UTF-8), UNKNOWN_COLUMN. Whether a column may be NULL is a check (checks.py), not a cast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa

from beam_pipelines.arrow.casts import cast as cast_sql
from beam_pipelines.arrow.casts import cast_parsed, got, parse_json, same
from beam_pipelines.arrow.columns import align
from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.engine import literal, quote
from beam_pipelines.arrow.expressions import check_expression, strptime_fault
from beam_pipelines.arrow.layers import Define, KernelResult, Layer, Reject
from beam_pipelines.arrow.local_time import NAIVE, LocalColumn, LocalTimes, check_zones, is_utc
from beam_pipelines.arrow.program import Program, Split, Step, judge
from beam_pipelines.arrow.schema import ARRIVAL, POSITION, SOURCE, UNKNOWN
from beam_pipelines.arrow.text_casts import Cast, formats, prepared
from beam_pipelines.arrow.types import DataType
from beam_pipelines.errors import SpecError

CAST = "CAST"
_STAGE = "conform"
_PARSED = "_parsed_"
_PROVENANCE_SQL: dict[str, str | None] = {SOURCE: "VARCHAR", POSITION: "BIGINT", ARRIVAL: "TIMESTAMP"}


def conform_batch(batch: pa.RecordBatch, contract: Contract, *, time_zone: str = "UTC") -> Split:
    """The rows of `batch` with the contract's columns and types, and dead letters for rows that do not fit.

    Columns of `batch` may be texts or have types of their own; absent ones are NULL. rows + dead = input rows.

    >>> contract = Contract(columns={'id': Column(type='int32'), 'paid': Column(type='decimal(8,2)')})
    >>> batch = pa.RecordBatch.from_pydict({'id': ['1', '3.7'], 'paid': ['9.90', '1']})
    >>> split = conform_batch(batch, contract)
    >>> split.rows.to_pylist()
    [{'id': 1, 'paid': Decimal('9.90')}]
    >>> split.dead['message'].to_pylist()
    ["id: got '3.7'; expected int32"]
    """
    steps = conform_steps(contract, text=False, time_zone=time_zone)
    return Program(steps, civil=civil_paths(contract), event_time=contract.event_time or "")(batch)


def conform_steps(contract: Contract, *, text: bool, time_zone: str = "UTC") -> tuple[Step, ...]:
    """The steps from a decoded batch to a row batch.

    `text` says that every column is a string: then all is SQL, except local times of another zone than UTC. `time_zone` is the zone of
    local times and bare dates where a column names none. Raises SpecError for what is wrong in the contract.
    """
    _check(contract, time_zone)
    steps: list[Step] = []
    if text:
        steps += cast_layers(contract, dict.fromkeys(contract.read, pa.string()), time_zone, ordered=True)
    else:
        steps.append(Native(contract, time_zone))
    local = _local_columns(contract, time_zone)
    if local:
        steps.append(LocalTimes(local))
    computed = _computed_steps(contract, time_zone)
    if computed:
        steps += [*computed, Layer(_STAGE, columns=(*contract.columns, UNKNOWN))]
    return tuple(steps)


def civil_paths(contract: Contract) -> frozenset[str]:
    """Columns, and fields in them (`column.field`), that are civil times: for `Program.civil`."""

    def paths(path: str, dtype: DataType) -> list[str]:
        if dtype.item is not None:
            return paths(path, dtype.item)
        inner = [p for name, t in dtype.fields for p in paths(f"{path}.{name}", t)]
        return [path, *inner] if dtype.kind == "datetime" else inner

    return frozenset(p for name, column in contract.columns.items() for p in paths(name, column.dtype))


@dataclass(frozen=True)
class Native:
    """Kernel: columns of any Arrow type become the contract's; what already fits is not touched."""

    contract: Contract
    time_zone: str = "UTC"
    stage: ClassVar[str] = _STAGE
    sees_rejected: ClassVar[bool] = True
    _layers: dict[pa.Schema, tuple[Layer, ...]] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, batch: pa.RecordBatch) -> KernelResult:
        aligned, rejected = align(batch, self.contract)
        layers = self._layers.get(aligned.schema)
        if layers is None:
            kinds = {n: aligned.schema.field(n).type for n in self.contract.read}
            layers = self._layers[aligned.schema] = cast_layers(self.contract, kinds, self.time_zone)
        work = [n for n in self.contract.read if _is_touched(n, layers)]
        if not work:
            return aligned, rejected
        judged, verdicts = judge(layers, aligned.select(work), civil=civil_paths(self.contract))
        columns = {n: judged[n] if n in work else aligned[n] for n in self.contract.read}
        columns |= {n: judged[n] for n in judged.schema.names if n not in columns}  # flags of local times
        columns |= {n: aligned[n] for n in aligned.schema.names if n not in columns}
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)), verdicts | rejected


def _is_touched(name: str, layers: tuple[Layer, ...]) -> bool:
    """Whether a layer defines, judges or flags the column; others go past the SELECT."""
    defined = {d.name for layer in layers for d in layer.define}
    return not defined.isdisjoint({name, NAIVE + name, _PARSED + name}) or any(r.name == name for layer in layers for r in layer.rejects)


def cast_layers(contract: Contract, sources: Mapping[str, pa.DataType], time_zone: str, *, ordered: bool = False) -> tuple[Layer, ...]:
    """Layers that turn columns of the given types into the contract's: texts prepared, then casts, then defaults.

    `ordered` puts all of them in the contract's order, and nothing else goes on but `_unknown`, provenance and raw bytes.
    """
    read = contract.read
    casts = {name: _cast_of(name, column, sources[name], time_zone) for name, column in read.items()}
    first = [d for name, column in read.items() for d in _prepare(name, column, sources[name])]
    defines = [Define(name, c.value) for name, c in casts.items() if c.value != quote(name)]
    flags = [Define(NAIVE + name, c.naive) for name, c in casts.items() if c.naive and _is_local(read[name], time_zone)]
    rejects = [_reject(name, c, read[name], sources[name]) for name, c in casts.items() if c.wrong is not None]
    columns = (*read, *(d.name for d in flags), UNKNOWN) if ordered else None
    parsed = tuple(d.name for d in first if d.name.startswith(_PARSED))
    layers = [Layer(_STAGE, define=tuple(first))] if first else []
    layers.append(Layer(_STAGE, define=(*defines, *flags), rejects=tuple(rejects), columns=columns, drop=parsed))
    defaults = tuple(_default(name, column, time_zone) for name, column in read.items() if column.default is not None)
    return (*layers, Layer(_STAGE, define=defaults)) if defaults else tuple(layers)


def _prepare(name: str, column: Column, source: pa.DataType) -> list[Define]:
    if not pa.types.is_string(source):
        return []
    text = prepared(quote(name), column)
    found = [Define(name, text)] if text != quote(name) else []
    if column.dtype.nested:
        found.append(Define(_PARSED + name, parse_json(text, column.dtype)))
    return found


def _cast_of(name: str, column: Column, source: pa.DataType, time_zone: str) -> Cast:
    zone = _zone(column, time_zone) or "UTC"
    x, dtype = quote(name), column.dtype
    if dtype.nested and pa.types.is_string(source):
        return cast_parsed(x, quote(_PARSED + name), dtype, column, zone=zone)
    found = Cast(x) if same(source, dtype) else cast_sql(x, source, dtype, column, zone=zone)
    if found.naive is None and _is_local(column, time_zone):
        return found._replace(naive="FALSE")
    return found


def _reject(name: str, found: Cast, column: Column, source: pa.DataType) -> Reject:
    assert found.wrong is not None
    value = quote(name) if found.value == quote(name) else quote(name + "$")
    return Reject(CAST, name, name, found.wrong(value), got(name, quote(name), source, column))


def _zone(column: Column, time_zone: str) -> str | None:
    """The zone in which the column's local times lie; None where that is UTC."""
    zone = column.time_zone or time_zone
    return None if is_utc(zone) else zone


def _is_local(column: Column, time_zone: str) -> bool:
    return column.dtype.kind == "timestamp" and _zone(column, time_zone) is not None


def _local_columns(contract: Contract, time_zone: str) -> tuple[LocalColumn, ...]:
    """Columns read that may hold local times of another zone than UTC."""
    return tuple(_local(n, c, time_zone) for n, c in contract.read.items() if _is_local(c, time_zone))


def _local(name: str, column: Column, time_zone: str, *, always: bool = False) -> LocalColumn:
    zone = _zone(column, time_zone) or "UTC"
    return LocalColumn(name, zone, column.ambiguous, column.missing, always=always, sensitive=column.sensitive is not None)


def value_sql(name: str, value: object, column: Column, *, time_zone: str = "UTC") -> str:
    """SQL for `value`, a default or bound from the contract, in the column's type: read once, here, as a text of the column is read.

    Raises SpecError where it does not fit.
    """
    rules = {"default": None, "required": False, "null_values": (), "expr": None, "path": None, "coerce": True, "format": None}
    plain = column.model_copy(update=rules)
    text = value if isinstance(value, str) else _scalar_text(value)
    one = Contract(columns={name: plain})
    split = conform_batch(pa.RecordBatch.from_pydict({name: pa.array([text], pa.string())}), one, time_zone=time_zone)
    if not split.rows.num_rows:
        raise SpecError(f"column {split.dead['message'][0].as_py()}.")
    if column.dtype.kind == "timestamp":
        return f"make_timestamp({split.rows[name].cast(pa.int64())[0].as_py()}::BIGINT)"
    return cast_sql(literal(text), pa.string(), column.dtype, plain).value


def _default(name: str, column: Column, time_zone: str) -> Define:
    return Define(name, f"coalesce({quote(name)}, {value_sql(name, column.default, column, time_zone=time_zone)})")


def _scalar_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _computed_steps(contract: Contract, time_zone: str) -> list[Step]:
    """One layer per computed column, in order, each followed by its local time where it yields one.

    An expression that names no instant and gives a timestamp without a zone is built from parts, such as make_timestamp(year, ...):
    a local time. One that names an instant gives an instant.
    """
    known = {n: c.dtype.sql for n, c in contract.read.items()} | _PROVENANCE_SQL
    instants = {n for n, c in contract.read.items() if c.dtype.kind == "timestamp"} | {ARRIVAL}
    steps: list[Step] = []
    for name, column in contract.computed.items():
        assert column.expr is not None
        found = check_expression(column.expr, known)
        steps.append(Layer(_STAGE, define=(Define(name, f"CAST(({column.expr}\n) AS {column.dtype.sql})", fallible=True),)))
        zoned = found.type == "TIMESTAMP WITH TIME ZONE" or bool(instants.intersection(found.references))
        if _is_local(column, time_zone) and not zoned:
            steps.append(LocalTimes((_local(name, column, time_zone, always=True),)))
        known[name] = column.dtype.sql
        instants |= {name} if column.dtype.kind == "timestamp" else set()
    return steps


def _check(contract: Contract, time_zone: str) -> None:
    """Raises SpecError for zones and strptime patterns that do not work."""
    check_zones([time_zone, *(c.time_zone for c in contract.columns.values() if c.time_zone)])
    for name, column in contract.read.items():
        for pattern in formats(column):
            fault = strptime_fault(pattern)
            if fault is not None:
                raise SpecError(f"column {name!r}: format {pattern!r} is no strptime pattern: {fault}")
