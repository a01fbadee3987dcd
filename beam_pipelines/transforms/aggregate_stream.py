"""Aggregate over an unbounded PCollection: rows to the panes of open windows.

    rows ─▶ Arrive ─▶ (shard, partials | rows) ─▶ OpenWindows ─▶ panes
            TIME, LATE, EXPRESSION                one key per shard, in the global window;
            letters                               one event-time timer, on the arrival clock

What is shown and when is `arrow.open_windows` and `arrow.open_sessions`; here it is tied to a runner's state and timers. State is a log:
what arrived and when time passed, in order, which gives the same windows whenever it is read again; now and then it is replaced by what is open.

    in state    log: [dump | dump | dump | add | add | time | add …]     token     timer `due`
    in memory   the open windows, valid while the token in state is the same (`keyed_state`)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from beam_pipelines import arrival_clock, draining, durable, metrics
from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.concat import Pending
from beam_pipelines.arrow.counts import Count, rows_by_source, unit_of
from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.open_sessions import OpenSessions
from beam_pipelines.arrow.open_windows import OpenWindows
from beam_pipelines.arrow.schema import CHANGE
from beam_pipelines.arrow.stream_partials import Arrivals, Arrived, arrivals, has_changes, made_by, refuse_endless, taken_back
from beam_pipelines.arrow.window_panes import DAY, Fired, Shard
from beam_pipelines.arrow.windowing import instants
from beam_pipelines.coders import RecordBatchCoder
from beam_pipelines.errors import RunError
from beam_pipelines.transforms.aggregate_counts import counts_of
from beam_pipelines.transforms.keyed_state import KEYED_ROWS, is_resident, keyed_batches, recall, remember
from beam_pipelines.transforms.stage import COUNTS, DEAD

SHARDS = 2
"""Where nobody says how many. Part of the format of state: another number would look for groups where they are not. Few, for each has fixed costs per bundle and timer."""

_RECORD = b"beam_pipelines.record"
_SHARD = b"beam_pipelines.shard"
_MILLISECOND = 1_000
_MOST_LOGGED = 1 << 20  # bytes logged at least before the log is written anew
_coder = RecordBatchCoder()


class Streaming(NamedTuple):
    """`Aggregate`'s settings for a stream. `ahead`: where the sources of this process are ahead, one timer serves many windows.

    `reach`: as in `Shard`. `most_ahead`, `heed`, `shards`: as in `Aggregate`.
    """

    corrections: bool = True
    epoch: int = 0
    closed_before: int | None = None
    ahead: bool = False
    reach: int = DAY
    most_ahead: int | None = None
    heed: Callable[[], None] | None = None
    shards: int = SHARDS


class StreamAggregated(NamedTuple):
    """`panes`, and the parts of the other outputs."""

    panes: beam.PCollection
    dead: list[beam.PCollection]
    counts: list[beam.PCollection]


def stream_aggregate(
    rows: beam.PCollection, spec: AggregateSpec, streaming: Streaming, *, name: str, time: str | None, time_zone: str
) -> StreamAggregated:
    """The panes of an unbounded PCollection of RecordBatches. Raises SpecError without windows."""
    refuse_endless(spec, name=name)
    outputs = {DEAD: pa.RecordBatch, COUNTS: Count}
    arrive = beam.ParDo(Arrive(spec, streaming, name, time, time_zone)).with_output_types(keyed_batches(), **outputs)
    show = beam.ParDo(ShowWindows(spec, streaming, name)).with_output_types(pa.RecordBatch, **outputs)
    arrived = rows | "GlobalWindow" >> beam.WindowInto(GlobalWindows()) | "Arrive" >> arrive.with_outputs(DEAD, COUNTS, main="kept")
    shown = arrived.kept | "OpenWindows" >> show.with_outputs(DEAD, COUNTS, main="panes")
    return StreamAggregated(shown.panes, [arrived[DEAD], shown[DEAD]], [arrived[COUNTS], shown[COUNTS]])


# ── rows to shards ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Arrive(beam.DoFn):  # type: ignore[misc]  # Beam ships no types
    """Judges rows and gives each shard its own, as partials, or row by row where rows may be taken back. Small batches are joined first."""

    def __init__(self, spec: AggregateSpec, streaming: Streaming, name: str, time: str | None, time_zone: str) -> None:
        self._spec, self._streaming, self._name, self._time, self._time_zone = spec, streaming, name, time, time_zone
        self._arrivals: dict[pa.Schema, Arrivals] = {}

    def setup(self) -> None:
        self._engine = Engine()

    def start_bundle(self) -> None:
        self._waiting, self._stamp = Pending(target_rows=2 * KEYED_ROWS), MAX_TIMESTAMP

    def process(self, batch: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        if not self._waiting.fits(batch):
            yield from self._run()
        self._waiting.add(batch)
        self._stamp = min(self._stamp, timestamp)
        if self._waiting.ripe:
            yield from self._run()

    def finish_bundle(self) -> Iterator[Any]:
        if self._waiting:
            yield from self._run()

    def _run(self) -> Iterator[Any]:
        """Outputs carry the earliest timestamp of what they were made of, which holds the watermark."""
        batch, stamp = self._waiting.take(), self._stamp
        self._stamp = MAX_TIMESTAMP
        for tag, value in self._outputs(batch):
            stamped = WindowedValue(value, stamp, [GlobalWindow()])
            yield TaggedOutput(tag, stamped) if tag else stamped

    def _outputs(self, batch: pa.RecordBatch) -> Iterator[tuple[str, Any]]:
        arrived = self._arrived(batch)
        for shard, part in _shards(arrived.kept, self._key, self._streaming.shards):
            yield "", (shard, part)
        if arrived.dead.num_rows:
            metrics.count("rows_dead", arrived.dead.num_rows)
            yield DEAD, arrived.dead
        superseded = batch.filter(pa.array(taken_back(batch)))
        counts = counts_of(batch, arrived.rows, arrived.dead, self._name)
        counts += [(f"{unit_of(batch)}#{self._name}", s, "superseded", self._name, n) for s, n in rows_by_source(superseded).items()]
        yield from ((COUNTS, count) for count in counts)

    def _arrived(self, batch: pa.RecordBatch) -> Arrived:
        schema = batch.schema.remove_metadata()
        if schema not in self._arrivals:
            self._arrivals[schema] = arrivals(self._spec, schema, name=self._name, time=self._time, time_zone=self._time_zone)
        if self._streaming.corrections:
            self._refuse_timeless(batch)
            return self._arrivals[schema].inputs(batch, self._engine)
        if has_changes(batch):
            raise RunError(
                f"{self._name}: rows are taken back ({CHANGE} -1), but Aggregate(..., corrections=False) keeps no rows.",
                hint="Set corrections=True after a Deduplicate that has a rule.",
            )
        return self._arrivals[schema].partials(batch, self._engine)

    def _refuse_timeless(self, batch: pa.RecordBatch) -> None:
        """Raises RunError for rows to take back of which nobody can say in which window they are."""
        if CHANGE not in batch.schema.names or self._time not in batch.schema.names:
            return
        if batch.column(self._time).null_count and batch.filter(pa.array(taken_back(batch))).column(self._time).null_count:
            raise RunError(
                f"{self._name}: rows are taken back ({CHANGE} -1) that have no {self._time!r}, so their windows are not known.",
                hint="They hold the event time that Deduplicate compares, and what a step computes from it alone: window by that, or Transform before Deduplicate.",
            )

    @property
    def _key(self) -> str:
        return f"g{len(self._spec.group_by) + 1}"


def _shards(kept: pa.RecordBatch, key: str, shards: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of each shard by the hash of their group; what is taken back goes to all, because it does not say its group."""
    shard = kept.column(key).to_numpy() % shards
    everywhere = kept.column(CHANGE).to_numpy() < 0 if CHANGE in kept.schema.names else np.zeros(len(shard), bool)
    for number in range(shards):
        mine = (shard == number) | everywhere
        if mine.any():
            yield number, kept.filter(pa.array(mine))


# ── shards to panes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Held:
    """A shard's open windows; what the log in state holds: the number of the next record, bytes of the dump and since; the time of the
    timer that is set, if this process knows of one."""

    windows: OpenWindows | OpenSessions
    label: dict[bytes, bytes]
    number: int = 0
    dumped: int = 0
    logged: int = 0
    timer: int | None = None


class ShowWindows(beam.DoFn):  # type: ignore[misc]
    """Keyed by shard: keeps open windows, shows them when they are due."""

    LOG = BagStateSpec("log", BytesCoder())
    TOKEN = ReadModifyWriteStateSpec("token", BytesCoder())
    DUE = TimerSpec("due", TimeDomain.WATERMARK)

    def __init__(self, spec: AggregateSpec, streaming: Streaming, name: str) -> None:
        self._spec, self._streaming, self._name = spec, streaming, name
        self._stage = f"aggregate:{name}"

    def setup(self) -> None:
        self._engine = Engine()

    def process(
        self,
        element: tuple[int, pa.RecordBatch],
        timestamp: Any = beam.DoFn.TimestampParam,
        log: Any = beam.DoFn.StateParam(LOG),
        token: Any = beam.DoFn.StateParam(TOKEN),
        due: Any = beam.DoFn.TimerParam(DUE),
    ) -> Iterator[Any]:
        shard, batch = element
        held = self._held(shard, log, token) or self._new(shard, batch.schema)
        at = timestamp.micros
        fired = held.windows.add(batch, at=at)
        self._log(held, log, {"do": "add", "at": at}, batch)
        yield from self._emitted(shard, held, fired)
        self._keep(shard, held, log, token, due)

    @on_timer(DUE)  # type: ignore[untyped-decorator]  # Beam ships no types
    def show(
        self,
        shard: Any = beam.DoFn.KeyParam,
        timestamp: Any = beam.DoFn.TimestampParam,
        log: Any = beam.DoFn.StateParam(LOG),
        token: Any = beam.DoFn.StateParam(TOKEN),
        due: Any = beam.DoFn.TimerParam(DUE),
    ) -> Iterator[Any]:
        """The watermark has passed what was due: at least the timer's own time; how much more, no callback knows."""
        held = self._held(shard, log, token)
        if held is None:
            return
        held.timer = None
        if self._streaming.heed is not None:
            self._streaming.heed()
        to, drained = timestamp.micros, draining.cut_short(timestamp.micros)
        for step in [(draining.ended_at(), False), (to, True)] if drained else [(to, False)]:
            fired = held.windows.advance(step[0] or to, drained=step[1])
            self._log(held, log, {"do": "advance", "to": step[0] or to, "drained": step[1]})
            yield from self._emitted(shard, held, fired)
        self._keep(shard, held, log, token, due)

    def _emitted(self, shard: int, held: _Held, fired: Fired) -> Iterator[Any]:
        for panes in fired.panes:
            yield panes.replace_schema_metadata({_SHARD: str(shard).encode()})
        unit = f"panes of shard {shard}, {self._streaming.epoch}.{held.number}#{self._name}"
        for dead in fired.dead:
            yield TaggedOutput(DEAD, dead)
        reasons = Counter(reason for dead in fired.dead for reason in dead.column("reason").to_pylist())
        yield from (TaggedOutput(COUNTS, (unit, "", "dead", f"aggregate:{reason}", n)) for reason, n in reasons.items())
        starts = instants(np.array(list(fired.stale), np.int64)).cast(pa.string()).to_pylist()
        metrics.count("rows_stale", sum(fired.stale.values()))
        for start, n in zip(starts, fired.stale.values(), strict=True):
            yield TaggedOutput(COUNTS, (unit, "", "stale", f"{self._name}@{start}", n))

    # ── state ──

    def _held(self, shard: int, log: Any, token: Any) -> _Held | None:
        held: _Held | None = recall(self._stage, shard, token)
        held = held or self._read(shard, log)
        if held is not None:
            held.windows.engine = self._engine  # a DuckDB connection belongs to one thread
        return held

    def _new(self, shard: int, schema: pa.Schema) -> _Held:
        plan, types = made_by(schema, self._spec)
        how = self._streaming
        kind = OpenSessions if self._spec.windowing is not None and self._spec.windowing.type == "sessions" else OpenWindows
        of = Shard(self._spec, plan, types, how.corrections, how.epoch, how.closed_before, shard, how.shards, how.reach)
        return _Held(kind(of, engine=self._engine), dict(schema.metadata))

    def _read(self, shard: int, log: Any) -> _Held | None:
        """What the log says, in the order in which it was written."""
        records = sorted((_record(blob) for blob in log.read()), key=lambda r: int(r[0]["number"]))
        if not records:
            return None
        held = self._new(shard, records[0][1].schema)
        held.windows.load([batch for head, batch, _ in records if head["do"] == "load"])
        for head, batch, size in records:
            if head["do"] == "add":
                held.windows.add(batch, at=head["at"])
            elif head["do"] == "advance":
                held.windows.advance(head["to"], drained=head["drained"])
            held.dumped += size if head["do"] == "load" else 0
            held.logged += size if head["do"] != "load" else 0
            held.number = head["number"] + 1
        return held

    def _log(self, held: _Held, log: Any, head: dict[str, Any], batch: pa.RecordBatch | None = None) -> int:
        if is_resident():
            return 0
        blob = _blob({**head, "number": held.number}, held.label, batch)
        log.add(blob)
        held.number += 1
        held.logged += len(blob)
        return len(blob)

    def _keep(self, shard: int, held: _Held, log: Any, token: Any, due: Any) -> None:
        if not is_resident():
            self._rewrite(held, log)
        at = held.windows.due()
        if at is not None:
            self._wake(held, due, at)
        remember(self._stage, shard, token, held)

    def _rewrite(self, held: _Held, log: Any) -> None:
        """Replaces the log by what is open, where that is worth it."""
        size = held.windows.nbytes
        worth_it = held.logged > max(_MOST_LOGGED, 2 * held.dumped) and held.logged > 2 * size
        if worth_it or (held.windows.empty and held.logged >= size):
            log.clear()
            held.dumped = sum(self._log(held, log, {"do": "load"}, batch) for batch in held.windows.dump())
            held.logged = 0

    def _wake(self, held: _Held, due: Any, at: int) -> None:
        """Sets the timer for `at`, or, where the sources are past that already, for where they are: one firing for all windows up to there.

        A timer that is set stays, unless something is due before it: moved on with every batch it would never fire.
        """
        ahead, most = arrival_clock.now() if self._streaming.ahead else None, self._streaming.most_ahead
        if ahead is not None and most is not None:
            ahead = min(ahead, at + most)
        timer = max(at, 0 if ahead is None else ahead // _MILLISECOND * _MILLISECOND)
        if held.timer is None or timer < held.timer:
            held.timer = timer
            due.set(min(Timestamp(micros=timer), GlobalWindow().max_timestamp()))
        if held.timer > at and most is None:  # else whoever asks reckons with the most
            durable.owe(held.timer, at)


def _blob(head: dict[str, Any], label: dict[bytes, bytes], batch: pa.RecordBatch | None) -> bytes:
    batch = pa.RecordBatch.from_arrays([], schema=pa.schema([])) if batch is None else batch
    metadata = {**label, **(batch.schema.metadata or {}), _RECORD: json.dumps(head).encode()}
    return _coder.encode(batch.replace_schema_metadata(metadata))


def _record(blob: bytes) -> tuple[dict[str, Any], pa.RecordBatch, int]:
    batch = _coder.decode(blob)
    head: dict[str, Any] = json.loads(batch.schema.metadata[_RECORD])
    return head, batch.replace_schema_metadata({k: v for k, v in batch.schema.metadata.items() if k != _RECORD}), len(blob)
