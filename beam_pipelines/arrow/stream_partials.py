"""What a stream's rows are to an aggregate before they meet: judged by the row alone, then partials, or inputs where rows may be taken back.

    rows ──▶ TIME, LATE, EXPRESSION dead letters
         └─▶ partials  group · _late_rank · _group_key · window · accumulators          nothing is ever taken back
         └─▶ inputs    the same for each row, not yet folded, with `_source`, `_position`, `_change`

`_late_rank` keeps apart what is on time and what is late (`windowing.late_rank`); `_group_key` is a stable hash of the group, which chooses
the shard and says which groups have changed. Both are group columns of the partials that are kept, and of no pane.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow import panes
from beam_pipelines.arrow.accumulators import EVENT_MICROS
from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.panes import Plan, extent, joined_letters, labelled, plan, relabelled, with_groups
from beam_pipelines.arrow.schema import ARRIVAL, CHANGE, LATE_RANK, POSITION, SOURCE, SOURCE_TYPE
from beam_pipelines.arrow.stable_hash import stable_hash
from beam_pipelines.arrow.windowing import event_micros, late_rank, split_late, split_untimed
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.errors import SpecError

_TYPES = b"beam_pipelines.types"
GROUP_KEY, COUNTED = "_group_key", "_counted"


def kept_spec(spec: AggregateSpec) -> AggregateSpec:
    """The aggregate that is kept: by lateness and key as well, with a count of its rows."""
    return _with(spec, (*spec.group_by, LATE_RANK, GROUP_KEY))


def shown_spec(spec: AggregateSpec) -> AggregateSpec:
    """The aggregate that is shown once windows are known: a window is what `w` and `e` say."""
    given = spec.windowing
    assert given is not None
    fixed = WindowSpec(size=1, watermark_delay=given.watermark_delay, allowed_lateness=given.allowed_lateness)
    return _with(spec, (*spec.group_by, GROUP_KEY)).model_copy(update={"windowing": fixed})


def _with(spec: AggregateSpec, group_by: tuple[str, ...]) -> AggregateSpec:
    return spec.model_copy(update={"group_by": group_by, "measures": {**spec.measures, COUNTED: "count()"}})


@dataclass(frozen=True)
class Arrived:
    """`kept` are partials or inputs; `rows` the rows they stand for; every other row of the batch is in `dead`."""

    kept: pa.RecordBatch
    rows: pa.RecordBatch
    dead: pa.RecordBatch


@dataclass(frozen=True, eq=False)
class Arrivals:
    """How rows of one schema arrive at an aggregate. Make it with `arrivals`."""

    made: Plan  # group_by, _late_rank
    kept: Plan  # group_by, _late_rank, _group_key
    schema: pa.Schema

    @cached_property
    def types(self) -> tuple[str, ...]:
        return panes.input_types(self.schema.append(pa.field(LATE_RANK, pa.int64())), self.made)

    def partials(self, batch: pa.RecordBatch, engine: Engine | None = None) -> Arrived:
        """The batch as partials of its groups and windows."""
        rows, dead = self._judged(batch)
        made = panes.partials(rows, self.made, engine=engine)
        kept = relabelled(self._keyed(made.partials), self.kept)
        return Arrived(kept, _without(made.rows), joined_letters([dead, made.dead]))

    def inputs(self, batch: pa.RecordBatch, engine: Engine | None = None) -> Arrived:
        """The batch as inputs, row by row; rows of `_change` -1 have identity, event time and window, and NULLs elsewhere.

        Raises SpecError where rows have no identity: then nothing can be taken back.
        """
        for name in (SOURCE, POSITION):
            if name not in batch.schema.names or batch.column(name).null_count:
                raise SpecError(
                    f"{self.kept.types.name}: rows without {name!r} cannot be told apart, so none could be taken back or come twice.",
                    hint="Aggregate(..., corrections=False) takes rows as they come, each once.",
                )
        taken = taken_back(batch)
        rows, dead = self._judged(batch.filter(pa.array(~taken)) if taken.any() else batch)
        made = panes.inputs(rows, self.made, self.types, engine=engine)
        kept = _identified(self._keyed(made.partials), made.rows, 1)
        if taken.any():
            kept = pa.concat_batches([self._minus(batch.filter(pa.array(taken)), kept.schema), kept])
        kept = labelled(kept, self.kept)
        kept = kept.replace_schema_metadata({**kept.schema.metadata, _TYPES: msgspec.json.encode(self.types)})
        return Arrived(kept, _without(made.rows), joined_letters([dead, made.dead]))

    def _judged(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Rows that are in time, with `_late_rank`, and letters for the others."""
        types, spec = self.kept.types, self.kept.windowing
        assert spec is not None
        timed = split_untimed(batch, event_micros(batch, types.time, types.time_zone, name=types.name), name=types.name)
        end = extent(timed.micros, self.kept)[1]
        on, late = split_late(timed.rows, timed.micros, end, spec, name=types.name)
        rows = timed.rows.filter(pa.array(on)) if late.num_rows else timed.rows
        arrival = rows.column(ARRIVAL) if ARRIVAL in rows.schema.names else None
        rank = late_rank(arrival, timed.micros[on], end[on], spec)
        return rows.append_column(LATE_RANK, pa.array(rank)), joined_letters([timed.dead, late])

    def _minus(self, rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
        """Rows that are taken back, in the schema of inputs; those that were too late for the aggregate never were in it."""
        rows, _ = self._judged(rows)
        types, n = self.kept.types, rows.num_rows
        micros = event_micros(rows, types.time, types.time_zone, name=types.name).to_numpy()
        start, end = extent(micros, self.kept)
        known = {"w": pa.array(start), "e": pa.array(end), EVENT_MICROS: pa.array(micros)}
        known |= dict.fromkeys(self.kept.groups[-2:], pa.array(np.zeros(n, np.int64)))
        empty = [known.get(f.name, pa.nulls(n, f.type)) for f in schema if f.name not in (SOURCE, POSITION, CHANGE)]
        names = [f.name for f in schema if f.name not in (SOURCE, POSITION, CHANGE)]
        return _identified(pa.RecordBatch.from_arrays(empty, names=names), rows, -1)

    def _keyed(self, made: pa.RecordBatch) -> pa.RecordBatch:
        groups = self.made.groups
        key = pa.array(stable_hash([made.column(g) for g in groups[:-1]], made.num_rows))
        return made.add_column(len(groups), self.kept.groups[-1], key)


def arrivals(spec: AggregateSpec, schema: pa.Schema, *, name: str, time: str | None, time_zone: str) -> Arrivals:
    """How rows of `schema` arrive at `spec`. Raises SpecError as `panes.plan` does, and without windowing: a stream has no end."""
    refuse_endless(spec, name=name)
    full = kept_spec(spec)
    within = schema.append(pa.field(LATE_RANK, pa.int64()))
    made = plan(full.model_copy(update={"group_by": full.group_by[:-1]}), within, name=name, time=time, time_zone=time_zone)
    return Arrivals(made, with_groups(made, full), schema)


def made_by(kept: pa.Schema, spec: AggregateSpec) -> tuple[Plan, tuple[str, ...]]:
    """The plan of partials or inputs, and the types of inputs, told by their schema."""
    types: tuple[str, ...] = msgspec.json.decode(kept.metadata.get(_TYPES, b"[]"), type=tuple[str, ...])
    return panes.plan_of(kept, kept_spec(spec)), types


def refuse_endless(spec: AggregateSpec, *, name: str) -> None:
    """Raises SpecError for an aggregate without windows: over a stream it would never be done."""
    if spec.windowing is None:
        raise SpecError(
            f"{name}: a stream has no end, and without windows this aggregate waits for it; got no windowing, expected one.",
            hint="Add `windowing: {type: fixed, size: 1h}`, or run it as a batch.",
        )


def has_changes(batch: pa.RecordBatch) -> bool:
    """Whether rows are taken back in the batch."""
    return bool(taken_back(batch).any())


def taken_back(batch: pa.RecordBatch) -> np.ndarray:
    """True for each row that takes another back: `_change` -1."""
    if CHANGE not in batch.schema.names:
        return np.zeros(batch.num_rows, bool)
    return np.asarray(pc.fill_null(pc.less(batch.column(CHANGE), 0), False).to_numpy(zero_copy_only=False))


def _without(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows.drop_columns([LATE_RANK]) if LATE_RANK in rows.schema.names else rows


def _identified(made: pa.RecordBatch, rows: pa.RecordBatch, change: int) -> pa.RecordBatch:
    source = rows.column(SOURCE)
    source = source if source.type == SOURCE_TYPE else source.cast(pa.string()).dictionary_encode()
    found = [source, rows.column(POSITION).cast(pa.int64()), pa.repeat(pa.scalar(change, pa.int8()), rows.num_rows)]
    return pa.RecordBatch.from_arrays([*made.columns, *found], names=[*made.schema.names, SOURCE, POSITION, CHANGE])
