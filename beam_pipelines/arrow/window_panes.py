"""Kept partials of one stretch of time, and panes of windows made of them.

A `Bucket` holds the partials of one window, of one slice of sliding windows, or of all sessions. `Shown` turns partials that know their window
(`w`, `e`) into pane rows with kind, index and epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.kept_rows import KeptRows
from beam_pipelines.arrow.panes import EPOCH, PANE, PANE_INDEX, Plan, fold, merge_partials, plan_of, present, relabelled, with_groups
from beam_pipelines.arrow.stream_partials import COUNTED, GROUP_KEY, kept_spec, shown_spec
from beam_pipelines.arrow.windowing import WINDOW_END, WINDOW_START, instants

EARLY, ON_TIME, LATE, DRAINED, RETRACTED = "early", "on_time", "late", "drained", "retracted"
_PART = b"beam_pipelines.part"
DAY = 86_400_000_000
_MERGE_ROWS = 20_000  # partials held unmerged, at first

Ints = npt.NDArray[np.int64]
NO_KEYS: Ints = np.empty(0, np.int64)


class Fired(NamedTuple):
    """`panes` to emit, in order; `dead` letters for sums that do not fit; `stale`: window start to rows that came after its close."""

    panes: list[pa.RecordBatch]
    dead: list[pa.RecordBatch]
    stale: dict[int, int]


@dataclass(frozen=True)
class Shard:
    """What a shard knows of itself. `closed_before` (micros): windows that had closed by then are of an earlier process, and silent.

    `reach` (micros): how far behind the watermark, in event time, a row may lie that is still taken back; then it is known to be stale.
    """

    spec: AggregateSpec
    plan: Plan
    types: tuple[str, ...] = ()
    corrections: bool = True
    epoch: int = 0
    closed_before: int | None = None
    number: int = 0
    shards: int = 1
    reach: int = DAY

    @property
    def counted(self) -> str:
        """The column of kept partials that counts their rows."""
        return self.plan.columns_of(self.plan.accumulators[list(self.plan.spec.measures).index(COUNTED)])[0]


@dataclass(frozen=True)
class Layout:
    """Names of the columns of kept partials."""

    spec: AggregateSpec

    @cached_property
    def kept(self) -> AggregateSpec:
        return kept_spec(self.spec)

    @cached_property
    def shown(self) -> AggregateSpec:
        return shown_spec(self.spec)

    @property
    def rank(self) -> str:
        return f"g{len(self.spec.group_by)}"

    @property
    def key(self) -> str:
        return f"g{len(self.spec.group_by) + 1}"

    def keys(self, batch: pa.RecordBatch) -> Ints:
        return np.asarray(batch.column(self.key).to_numpy())

    def ranks(self, batch: pa.RecordBatch) -> Ints:
        return np.asarray(batch.column(self.rank).to_numpy())


class Kept(NamedTuple):
    """Where rows may be taken back: the rows, and DuckDB's types of their inputs."""

    rows: KeptRows
    types: tuple[str, ...]


@dataclass
class Bucket:
    """Partials, of which `dirty` groups are folded anew from the rows before anybody looks; `gone` are groups of rows that were taken back."""

    layout: Layout
    window: int | None
    end: int
    parts: list[pa.RecordBatch] = field(default_factory=list)
    dirty: list[Ints] = field(default_factory=list)
    gone: list[pa.RecordBatch] = field(default_factory=list)
    limit: int = _MERGE_ROWS

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self.parts)

    def add(self, partials: pa.RecordBatch, engine: Engine) -> None:
        self.parts.append(partials)
        if sum(p.num_rows for p in self.parts) > self.limit:
            self.parts = [merge_partials(self.parts, self.layout.kept, engine=engine)]
            self.limit = max(_MERGE_ROWS, 2 * self.parts[0].num_rows)  # doubling: merging costs no more than a factor

    def taken_back(self, rows: pa.RecordBatch) -> None:
        self.dirty.append(np.unique(self.layout.keys(rows)))
        self.gone.append(rows.select([*(f"g{i}" for i in range(len(self.layout.spec.group_by))), self.layout.key]))

    def merged(self, kept: Kept | None, engine: Engine) -> pa.RecordBatch | None:
        """All partials, each group, lateness and window once."""
        if self.dirty and kept is not None:
            self._fold_anew(np.unique(np.concatenate(self.dirty)), kept, engine)
        if len(self.parts) > 1:
            self.parts = [merge_partials(self.parts, self.layout.kept, engine=engine)]
        return self.parts[0] if self.parts else None

    def _fold_anew(self, dirty: Ints, kept: Kept, engine: Engine) -> None:
        plan = plan_of(self.parts[0].schema, self.layout.kept)
        clean = [p.filter(pa.array(~np.isin(self.layout.keys(p), dirty))) for p in self.parts]
        rows = kept.rows.select(dirty, self.window)
        self.dirty, self.parts = [], [*clean, *([fold(rows, plan, kept.types, engine=engine)] if rows is not None else [])]

    def group_of(self, keys: Ints) -> pa.RecordBatch | None:
        """Group columns and key of groups that lost rows, each of `keys` once, as far as they are known here."""
        if not self.gone or not len(keys):
            return None
        if len(self.gone) > 1:
            every = pa.concat_batches(self.gone)
            self.gone = [every.take(pa.array(np.unique(self.layout.keys(every), return_index=True)[1]))]
        mine = self.gone[0].filter(pa.array(np.isin(self.layout.keys(self.gone[0]), keys)))
        return mine.take(pa.array(np.unique(self.layout.keys(mine), return_index=True)[1])) if mine.num_rows else None


def in_window(partials: pa.RecordBatch, start: int | Ints, end: int | Ints) -> pa.RecordBatch:
    """The partials with this window's bounds."""
    n = partials.num_rows
    for name, bound in (("w", start), ("e", end)):
        partials = partials.set_column(partials.schema.get_field_index(name), name, pa.array(np.broadcast_to(bound, n)))
    return partials


class PaneRows(NamedTuple):
    """Pane rows, ordered by window, with `keys` (group) and `counts` (rows of each); `dead` as `panes.Panes`."""

    panes: pa.RecordBatch
    keys: Ints
    counts: Ints
    dead: pa.RecordBatch


def pane_rows(partials: Sequence[pa.RecordBatch], layout: Layout, *, engine: Engine) -> PaneRows:
    """Panes of partials that know their windows."""
    every = pa.concat_batches([p.replace_schema_metadata(partials[0].schema.metadata) for p in partials])
    names = [*(f"g{i}" for i in range(len(layout.spec.group_by))), layout.key]
    renamed = every.select([*names, *every.schema.names[len(names) + 1 :]])
    renamed = renamed.rename_columns([*(f"g{i}" for i in range(len(names))), *renamed.schema.names[len(names) :]])
    plan = with_groups(plan_of(every.schema, layout.kept), layout.shown)
    shown = present(relabelled(renamed, plan), layout.shown, engine=engine)
    keys, counts = shown.panes.column(GROUP_KEY).to_numpy(), shown.panes.column(COUNTED).to_numpy()
    return PaneRows(shown.panes.drop_columns([GROUP_KEY, COUNTED]), keys, counts, shown.dead)


def stamped(panes: pa.RecordBatch, kind: str, index: int, epoch: int) -> pa.RecordBatch:
    """The pane rows with their kind and version."""
    n = panes.num_rows
    values = {
        PANE: pa.repeat(kind, n),
        PANE_INDEX: pa.repeat(pa.scalar(index, pa.int32()), n),
        EPOCH: pa.repeat(pa.scalar(epoch, pa.int64()), n),
    }
    for name, value in values.items():
        panes = panes.set_column(panes.schema.get_field_index(name), name, value)
    return panes


def retracted(schema: pa.Schema, groups: pa.RecordBatch, layout: Layout, start: int, end: int) -> pa.RecordBatch:
    """Pane rows that say: this group has no row in this window any more. Its measures are NULL."""
    n = groups.num_rows
    known = {name: groups.column(f"g{i}") for i, name in enumerate(layout.spec.group_by)}
    known |= {WINDOW_START: instants(np.full(n, start)), WINDOW_END: instants(np.full(n, end))}
    return pa.RecordBatch.from_arrays(
        [_as(known[f.name], f.type) if f.name in known else pa.nulls(n, f.type) for f in schema], schema=schema
    )


def _as(column: pa.Array, kind: pa.DataType) -> pa.Array:
    return column if column.type == kind else column.cast(kind)


def without_measures(panes: pa.RecordBatch, layout: Layout) -> pa.RecordBatch:
    """Pane rows with NULLs for measures: what `retracted` gives, for windows that were shown."""
    columns = [pa.nulls(panes.num_rows, f.type) if f.name in layout.spec.measures else panes.column(f.name) for f in panes.schema]
    return pa.RecordBatch.from_arrays(columns, schema=panes.schema)


def column_sum(values: pa.Array) -> int:
    return int(pc.sum(values).as_py() or 0)


def joined_shown(shown: Sequence[tuple[pa.RecordBatch, int]]) -> pa.RecordBatch | None:
    """Rows out of several batches, in order."""
    return pa.concat_batches([rows.slice(i, 1) for rows, i in shown]) if shown else None


def part(head: dict[str, Any], batch: pa.RecordBatch | None = None) -> pa.RecordBatch:
    """A batch that says what it is, for saved state; `part_of` takes it apart."""
    batch = pa.RecordBatch.from_arrays([], schema=pa.schema([])) if batch is None else batch
    return batch.replace_schema_metadata({**(batch.schema.metadata or {}), _PART: msgspec.json.encode(head)})


def part_of(batch: pa.RecordBatch) -> tuple[dict[str, Any], pa.RecordBatch]:
    """What `part` was given."""
    head: dict[str, Any] = msgspec.json.decode(batch.schema.metadata[_PART])
    rest = {k: v for k, v in batch.schema.metadata.items() if k != _PART}
    return head, batch.replace_schema_metadata(rest or None)
