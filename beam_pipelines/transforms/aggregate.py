"""Aggregate: rows to panes, one per group and window. Over an unbounded PCollection it is `aggregate_stream`.

    rows ─▶ PartialAggregate ─▶ GroupByKey ─▶ MergeAndPresent ─▶ panes
              per bundle          4 shards

Only accumulators are shuffled, never rows: a bundle holds one partial per group and window, or per run of a session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from beam_pipelines import metrics
from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.concat import Pending, slices
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.counts import Count
from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.measures import parse_measure
from beam_pipelines.arrow.panes import Plan, expansion, merge_partials, partials, plan, present, split_by_key
from beam_pipelines.arrow.schema import PROVENANCE
from beam_pipelines.arrow.window_panes import DAY
from beam_pipelines.errors import SpecError
from beam_pipelines.stage_results import arriving, joined
from beam_pipelines.transforms.aggregate_counts import counts_of
from beam_pipelines.transforms.aggregate_stream import SHARDS as STREAM_SHARDS
from beam_pipelines.transforms.aggregate_stream import Streaming, stream_aggregate
from beam_pipelines.transforms.given import batches, contract_of, piped
from beam_pipelines.transforms.keyed_state import checked_shards
from beam_pipelines.transforms.stage import COUNTS, DEAD

SHARDS = 4
_MERGE_ROWS = 100_000  # partials held unmerged
_PANE_ROWS = 1_000_000  # panes computed at once


class Aggregated(NamedTuple):
    """`panes` (RecordBatches), `dead` letters (stage aggregate) and `counts` of rows (unit, source, outcome, detail, rows)."""

    panes: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection

    def __or__(self, transform: Any) -> Any:
        return piped(self, transform)


class Aggregate(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """One aggregate of a PCollection of RecordBatches, or of the rows of the stage before, whose dead letters and counts go along.

    Every row is in the aggregate or in `dead`: without an event time though there are windows (TIME), with an expression that fails on it
    (EXPRESSION), or, with `apply_lateness`, too late by the stream's rule (LATE). Without `apply_lateness` late rows are aggregated: that is
    what a batch is for. Rows are counted per source as ('aggregated', name), ('late', name), or ('dead', 'aggregate:REASON').

    Over an unbounded PCollection the lateness is always applied, and windows are shown as time goes (`arrow.open_windows`): the watermark and
    the element timestamps must be arrival times. `corrections` (the default, and the safe one): rows of `_change` -1 take rows back, and a row
    that comes again, by `_source` and `_position`, counts once; then the rows of open windows are kept. Without, each row must come once, and
    only accumulators are kept. `corrected_within` (micros): how far behind the watermark, in event time, a row of a closed window may lie that is
    taken back and counted as stale. `epoch` goes into the panes; windows that had closed before `closed_before` (micros) are never shown again.
    `sources_in_process` says that all sources run in this process and tell `arrival_clock`: then a backlog costs fewer timers. Where they run in several processes, `most_ahead` (micros) is how late a
    timer may be for it, and `heed` is called before one is judged: then this process knows whether the stream has ended (`draining`).
    Windows are kept in `shards` keys of state, by a hash of their group: so many workers can share them, and each has its fixed cost.

    `contract`, that of the rows: names, types and measures are judged at once, not when the first batch comes; and its event time is `time`.

    `time` is the event-time column, unless the spec names its own; `time_zone` says what bare dates, civil times and calendar windows mean.

        panes = rows | Aggregate(AggregateSpec(windowing=WindowSpec(size='1h'), measures={'flights': 'count()'}), name='by_hour', time='at')
    """

    def __init__(
        self,
        spec: AggregateSpec,
        *,
        name: str,
        time: str | None = None,
        time_zone: str = "UTC",
        apply_lateness: bool = False,
        corrections: bool = True,
        corrected_within: int = DAY,
        epoch: int = 0,
        closed_before: int | None = None,
        sources_in_process: bool = False,
        most_ahead: int | None = None,
        heed: Callable[[], None] | None = None,
        shards: int = STREAM_SHARDS,
        contract: Contract | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for measure in spec.measures.values():
            parse_measure(measure)
        if contract is not None:
            of_rows = contract_of(contract, name)
            time = time or of_rows.event_time
            plan(spec, pa.schema([*of_rows.arrow_schema(), *PROVENANCE]), name=name, time=time, time_zone=time_zone)
        if spec.windowing is not None and (spec.time or time) is None:
            raise SpecError(f"{name}: windows need a time column.", hint="Set `time`, or the contract's event_time.")
        self._spec, self._name, self._time, self._time_zone, self._apply_lateness = spec, name, spec.time or time, time_zone, apply_lateness
        self._streaming = Streaming(
            corrections, epoch, closed_before, sources_in_process, corrected_within, most_ahead, heed, checked_shards(name, shards)
        )

    def expand(self, stage: Any) -> Aggregated:
        rows, dead, counts = arriving(batches(stage, self._name))
        if not rows.is_bounded:
            made = stream_aggregate(rows, self._spec, self._streaming, name=self._name, time=self._time, time_zone=self._time_zone)
            return Aggregated(made.panes, joined([*dead, *made.dead], "Dead"), joined([*counts, *made.counts], "Counts"))
        make = beam.ParDo(_PartialAggregate(self._spec, self._name, self._time, self._time_zone, self._apply_lateness))
        make = make.with_output_types(tuple[int, pa.RecordBatch], dead=pa.RecordBatch, counts=Count)
        merge = beam.ParDo(_MergeAndPresent(self._spec, self._name)).with_output_types(pa.RecordBatch, dead=pa.RecordBatch, counts=Count)
        made = (
            rows
            | "GlobalWindow" >> beam.WindowInto(GlobalWindows())  # windows are columns
            | "PartialAggregate" >> make.with_outputs(DEAD, COUNTS, main="partials")
        )
        shown = made.partials | "GroupByShard" >> beam.GroupByKey() | "MergeAndPresent" >> merge.with_outputs(DEAD, COUNTS, main="panes")
        return Aggregated(
            shown.panes, joined([*dead, made[DEAD], shown[DEAD]], "Dead"), joined([*counts, made[COUNTS], shown[COUNTS]], "Counts")
        )


class _PartialAggregate(beam.DoFn):  # type: ignore[misc]
    """Rows to partials, merged within the bundle, one batch per shard when it ends. Small batches are joined first."""

    def __init__(self, spec: AggregateSpec, name: str, time: str | None, time_zone: str, apply_lateness: bool) -> None:
        self._spec, self._name, self._time, self._time_zone, self._apply_lateness = spec, name, time, time_zone, apply_lateness
        self._plans: dict[pa.Schema, Plan] = {}

    def setup(self) -> None:
        self._engine = Engine()

    def start_bundle(self) -> None:
        self._waiting = Pending()
        self._held = _Held(self._spec, self._engine)

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        if not self._waiting.fits(batch):
            yield from self._run()
        self._waiting.add(batch)
        if self._waiting.ripe:
            yield from self._run()

    def finish_bundle(self) -> Iterator[Any]:
        if self._waiting:
            yield from (TaggedOutput(o.tag, _at_end(o.value)) for o in self._run())
        merged = self._held.merged()
        if merged is not None:
            yield from (_at_end(part) for part in split_by_key(merged, self._spec, SHARDS, engine=self._engine).items())

    def _run(self) -> Iterator[TaggedOutput]:
        batch = self._waiting.take()
        made = partials(batch, self._plan(batch.schema), apply_lateness=self._apply_lateness, engine=self._engine)
        self._held.add(made.partials)
        if made.dead.num_rows:
            metrics.count("rows_dead", made.dead.num_rows)
            yield TaggedOutput(DEAD, made.dead)
        yield from (TaggedOutput(COUNTS, c) for c in counts_of(batch, made.rows, made.dead, self._name))

    def _plan(self, schema: pa.Schema) -> Plan:
        schema = schema.remove_metadata()
        if schema not in self._plans:
            self._plans[schema] = plan(self._spec, schema, name=self._name, time=self._time, time_zone=self._time_zone)
        return self._plans[schema]


def _at_end(value: object) -> WindowedValue:
    return WindowedValue(value, GlobalWindow().max_timestamp(), [GlobalWindow()])


class _MergeAndPresent(beam.DoFn):  # type: ignore[misc]
    """All partials of a shard to panes. A pane that cannot be shown whole (a sum past 64 bits) is a letter of no source: it stands for no row."""

    def __init__(self, spec: AggregateSpec, name: str, *, merge_rows: int = _MERGE_ROWS, pane_rows: int = _PANE_ROWS) -> None:
        self._spec, self._name, self._merge_rows, self._pane_rows = spec, name, merge_rows, pane_rows

    def setup(self) -> None:
        self._engine = Engine()

    def process(self, shard: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[Any]:
        held = _Held(self._spec, self._engine, self._merge_rows)
        for part in shard[1]:
            held.add(part)
        merged = held.merged()
        if merged is None:
            return
        for number, part in enumerate(self._portions(merged)):
            panes, dead = present(part, self._spec, engine=self._engine)
            yield from slices(panes)
            if dead.num_rows:
                yield TaggedOutput(DEAD, dead)
                unit = f"panes of shard {shard[0]}, part {number}#{self._name}"
                reasons = Counter(dead.column("reason").to_pylist())
                yield from (TaggedOutput(COUNTS, (unit, "", "dead", f"aggregate:{reason}", n)) for reason, n in reasons.items())

    def _portions(self, merged: pa.RecordBatch) -> Iterable[pa.RecordBatch]:
        portions = -(-merged.num_rows * expansion(self._spec) // self._pane_rows)
        if portions == 1:
            return [merged]
        return split_by_key(merged, self._spec, portions, salt=1, engine=self._engine).values()


class _Held:
    """Partials that come in one by one, merged whenever there are many."""

    def __init__(self, spec: AggregateSpec, engine: Engine, merge_rows: int = _MERGE_ROWS) -> None:
        self._spec, self._engine = spec, engine
        self._parts: list[pa.RecordBatch] = []
        self._rows, self._least, self._limit = 0, merge_rows, merge_rows

    def add(self, part: pa.RecordBatch) -> None:
        if part.num_rows:
            self._parts.append(part)
            self._rows += part.num_rows
        if self._rows > self._limit:
            merged = self.merged()
            assert merged is not None
            self._parts, self._rows = [merged], merged.num_rows
            self._limit = max(self._least, 2 * merged.num_rows)  # doubling: merging costs no more than a factor

    def merged(self) -> pa.RecordBatch | None:
        if len(self._parts) > 1:
            self._parts = [merge_partials(self._parts, self._spec, engine=self._engine)]
        return self._parts[0] if self._parts else None
