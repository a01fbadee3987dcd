"""A timeline through the stages' own kernels, without Beam: the same comparison, four times as fast, for more timelines.

    batch    messages ──▶ row program ──▶ duplicate_mask ──▶ aggregate_batch
    stream   bundle by bundle, the watermark between:
             messages ──▶ row program ──▶ digests ──▶ Copies ──▶ arrivals ──▶ OpenWindows | OpenSessions

What is not here, runner, files, views and the stream's ledger, is in `graph`. The ledger is counted from what the kernels gave.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines.arrow.concat import concat
from beam_pipelines.arrow.doors import filtered_doors
from beam_pipelines.arrow.duplicates import comparison, digests, duplicate_mask
from beam_pipelines.arrow.held import CELLS
from beam_pipelines.arrow.open_sessions import OpenSessions
from beam_pipelines.arrow.open_windows import OpenWindows
from beam_pipelines.arrow.panes import aggregate_batch
from beam_pipelines.arrow.program import Program
from beam_pipelines.arrow.schema import CHANGE, KEY_HASH, POSITION
from beam_pipelines.arrow.stream_partials import Arrivals, arrivals
from beam_pipelines.arrow.window_panes import Fired, Shard
from beam_pipelines.formats.archive import raw_batch
from beam_pipelines.spec.horizon import compared_late
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.testing.outcomes import LETTER, letters_of
from beam_pipelines.testing.timeline import messages_batch
from beam_pipelines.transforms.aggregate_stream import SHARDS
from beam_pipelines.transforms.deduplicate_stream import ByRule, DigestRows
from beam_pipelines.transforms.prepare import row_program
from beam_pipelines.transforms.sliced_state import BUCKETS
from tests.parity.graph import FAR, panes_of, rows_of, spec_in
from tests.parity.outcomes import DoorCounts, Outcome
from tests.parity.specs import NAME, SUBSCRIPTION, Setting
from tests.parity.timelines import Message, Timeline, delivered, micros


@cache
def spec_of(setting: Setting) -> PipelineSpec:
    """The setting's spec."""
    with tempfile.TemporaryDirectory() as folder:
        return spec_in(Path(folder) / "spec", setting).spec


@cache
def _program(setting: Setting) -> Program:
    spec = spec_of(setting)
    return row_program(spec, spec.sources.stream[0], {})


def _split(messages: Sequence[Message], setting: Setting) -> tuple[pa.RecordBatch, pa.RecordBatch, pa.RecordBatch]:
    """Valid rows, letters, and doors of filtered rows."""
    raw = raw_batch(messages_batch(delivered(messages), SUBSCRIPTION))
    split = _program(setting)(raw)
    return split.rows, split.dead, filtered_doors(raw, split.rows, split.dead)


# ── batch ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def as_batch(timeline: Timeline, setting: Setting) -> Outcome:
    """All messages, each once, in the batches of `shuffled`."""
    spec, seen, parts = spec_of(setting), set[int](), []
    for messages in timeline.shuffled or [b.messages for b in timeline.bundles]:
        fresh = list({m.number: m for m in messages if m.number not in seen}.values())
        seen |= {m.number for m in fresh}
        parts += [_split(fresh, setting)] if fresh else []
    rows, dead, filtered = (concat([part[i] for part in parts]) for i in range(3))
    before = rows.num_rows
    if spec.deduplicate is not None:
        how = comparison(spec.deduplicate, contract=spec.contract)
        rows = rows.filter(pa.array(~duplicate_mask(digests(rows, how), within=how.within, keep=how.keep))).drop_columns([KEY_HASH])
    made = aggregate_batch(rows, spec.aggregates[NAME], name=NAME, time="at", apply_lateness=True)
    letters = dead.to_pylist() + made.dead.to_pylist()
    ledger = DoorCounts(
        len(seen), rows.num_rows, dead.num_rows, before - rows.num_rows, filtered.num_rows, made.dead.num_rows, _reasons(letters)
    )
    return _outcome(rows.to_pylist(), letters, made.panes.to_pylist(), ledger)


# ── stream ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def as_stream(timeline: Timeline, setting: Setting) -> Outcome:
    """Bundle by bundle, timers between them as a runner fires them."""
    stream = _Stream(setting)
    for bundle in timeline.bundles:
        stream.advance(micros(bundle.watermark))
        for messages in bundle.batches:
            stream.add(messages)
    stream.advance(micros(FAR))
    return stream.outcome({m.number for m in timeline.messages})


@dataclass
class _Stream:
    setting: Setting
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    filtered: set[int] = field(default_factory=set)
    letters: list[dict[str, Any]] = field(default_factory=list)
    panes: list[dict[str, Any]] = field(default_factory=list)
    stale: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        spec = spec_of(self.setting)
        self.windows: list[OpenWindows | OpenSessions] = []
        self.arrivals: Arrivals | None = None
        self.shards = self.setting.shards or SHARDS
        if spec.deduplicate is not None:
            how, late = comparison(spec.deduplicate, contract=spec.contract), compared_late(spec)
            self.first, self.rule = DigestRows(how, late, shards=self.setting.shards or BUCKETS), ByRule(how, late)
            self.first.setup()
            self.held: dict[int, Any] = {}

    @property
    def corrections(self) -> bool:
        return self.setting.within is not None

    def add(self, messages: Sequence[Message]) -> None:
        rows, dead, filtered = _split(messages, self.setting)
        self.letters += dead.to_pylist()
        self.filtered |= set(filtered.column("position").to_pylist())
        at = min(micros(m.arrival) for m in messages)
        for batch in self._judged(rows, at) if rows.num_rows else ():
            changes = batch.column(CHANGE).to_pylist() if CHANGE in batch.schema.names else [1] * batch.num_rows
            for row, change in zip(batch.to_pylist(), changes, strict=True):
                self.gone |= {row[POSITION]} if change < 0 else set()
                if change > 0:
                    self.rows[row[POSITION]] = row
            self._aggregate(batch, at)

    def _judged(self, rows: pa.RecordBatch, at: int) -> Iterable[pa.RecordBatch]:
        if not self.corrections:  # each message once, however often it comes
            fresh = [
                n not in self.rows and n not in rows.column(POSITION).to_pylist()[:i]
                for i, n in enumerate(rows.column(POSITION).to_pylist())
            ]
            yield rows.filter(pa.array(fresh))
            return
        self.first.start_bundle()
        list(self.first.process(rows, Timestamp(micros=at)))
        for bucket, some in [output.value for output in self.first.finish_bundle()]:
            held = self.held.setdefault(bucket, self.rule.load([[] for _ in range(CELLS)]))
            yield from (b for b in self.rule.judge(held, some) if not isinstance(b, TaggedOutput))

    def _aggregate(self, batch: pa.RecordBatch, at: int) -> None:
        if self.arrivals is None:
            self._open(batch.schema.remove_metadata())
        assert self.arrivals is not None
        arrived = self.arrivals.inputs(batch) if self.corrections else self.arrivals.partials(batch)
        self.letters += arrived.dead.to_pylist()
        shard = arrived.kept.column(self.arrivals.kept.groups[-1]).to_numpy() % self.shards
        everywhere = arrived.kept.column(CHANGE).to_numpy() < 0 if CHANGE in arrived.kept.schema.names else np.zeros(len(shard), bool)
        for number, windows in enumerate(self.windows):
            mine = arrived.kept.filter(pa.array(everywhere | (shard == number)))
            if mine.num_rows:
                self._take(windows.add(mine, at=at))

    def _open(self, schema: pa.Schema) -> None:
        spec = spec_of(self.setting)
        aggregate = spec.aggregates[NAME]
        self.arrivals = arrivals(aggregate, schema, name=NAME, time="at", time_zone=spec.time_zone)
        kind = OpenSessions if self.setting.kind == "sessions" else OpenWindows
        types = self.arrivals.types if self.corrections else ()
        self.windows = [
            kind(Shard(aggregate, self.arrivals.kept, types, self.corrections, number=n, shards=self.shards)) for n in range(self.shards)
        ]

    def advance(self, watermark: int) -> None:
        for windows in self.windows:
            while (due := windows.due()) is not None and due <= watermark:
                self._take(windows.advance(due))
        for held in self.held.values() if self.corrections else ():
            held.expire(watermark - self.rule.horizon)

    def _take(self, fired: Fired) -> None:
        self.letters += [letter for dead in fired.dead for letter in dead.to_pylist()]
        self.panes += [pane for panes in fired.panes for pane in panes.to_pylist()]
        self.stale += Counter(fired.stale)

    def outcome(self, numbers: set[int]) -> Outcome:
        """What views would show: the newest pane of each group and window, no letter of an aggregate for a duplicate, each letter once."""
        rows = [row for number, row in self.rows.items() if number not in self.gone]
        letters = [x for x in self.letters if x["stage"] != "aggregate" or x["position"] not in self.gone]
        letters = list({tuple(str(x[n]) for n in LETTER): x for x in letters}.values())
        newest: dict[Any, dict[str, Any]] = {}
        for pane in self.panes:
            key = pane["_window_start"], pane["_window_end"], pane["kind"]
            if key not in newest or pane["_pane_index"] > newest[key]["_pane_index"]:
                newest[key] = pane
        late = [x for x in letters if x["stage"] == "aggregate"]
        ledger = DoorCounts(
            len(numbers), len(rows), len(letters) - len(late), len(self.gone), len(self.filtered), len({x["position"] for x in late}),
            _reasons(letters),
        )  # fmt: skip
        found = _outcome(rows, letters, [p for p in newest.values() if p["_pane"] != "retracted"], ledger)
        found.stale += self.stale
        return found


def _reasons(letters: Sequence[dict[str, Any]]) -> dict[str, int]:
    return dict(Counter(f"{x['stage']}:{x['reason']}" for x in letters))


def _outcome(
    rows: Sequence[dict[str, Any]], letters: Sequence[dict[str, Any]], panes: Sequence[dict[str, Any]], ledger: DoorCounts
) -> Outcome:
    spoken = letters_of(letters)
    return Outcome(rows_of(rows), {n: tuple(s[0] for s in said) for n, said in spoken.items()}, panes_of(panes), ledger, spoken)
