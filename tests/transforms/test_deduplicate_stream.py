"""Deduplicate and DropRedelivered in a stream: what is told ends as the rule says of all rows, on the arrival clock, and state goes away."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_pipeline import TestPipeline as BarePipeline
from apache_beam.testing.test_stream import TestStream as Timeline
from apache_beam.testing.util import BeamAssertException, assert_that
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines import metrics
from beam_pipelines.arrow.concat import concat
from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.duplicates import KEY, Comparison, comparison, deduplicate_batch, digests, first_byte
from beam_pipelines.arrow.held import CELLS
from beam_pipelines.arrow.keys import DeduplicateRule
from beam_pipelines.arrow.schema import ARRIVAL, CHANGE, KEY_HASH, POSITION, PROVENANCE, SOURCE, UTC_MICROS, provenance
from beam_pipelines.coders import RecordBatchCoder, _numbers, _table
from beam_pipelines.errors import SpecError
from beam_pipelines.runners.prism import state_here
from beam_pipelines.transforms import Conform, Deduplicate, FromRows, ToRows
from beam_pipelines.transforms.deduplicate import Deduplicated, DeduplicatedWithDead
from beam_pipelines.transforms.deduplicate_stream import ByRule, DigestRows, FirstWins
from beam_pipelines.transforms.redelivered import DropRedelivered
from beam_pipelines.transforms.sliced_state import BUCKETS, Remember
from tests.laws import share
from tests.prism import prism_program, run_on_prism
from tests.runners.prism_source import numbers
from tests.transforms import stream_rows

SECOND = 1_000_000
CONTRACT = Contract(
    key=("id",), event_time="at", columns={"id": Column(type="string"), "at": Column(type="timestamp"), "v": Column(type="int64")}
)
RULE = DeduplicateRule(within="5s")
HOW = comparison(RULE, contract=CONTRACT)
STREAMING = PipelineOptions(["--streaming"])

Row = tuple[str, int | None, int]
RowId = tuple[str, int]


def batch_of(rows: list[Row], start: int = 0, arrival: int | None = 100, kind: pa.DataType = pa.timestamp("us", "UTC")) -> pa.RecordBatch:
    """(id, at in seconds, v) rows that arrive at `arrival` seconds; positions count from `start`."""
    arrived = pa.array([None if arrival is None else arrival * SECOND] * len(rows), UTC_MICROS)
    at = pa.array([None if r[1] is None else r[1] * SECOND for r in rows], pa.int64()).cast(pa.timestamp("us", "UTC"))
    columns = [
        *provenance("s", pa.array(range(start, start + len(rows)), pa.int64()), arrived),
        pa.array([r[0] for r in rows], pa.string()),
    ]
    return pa.record_batch(
        [*columns, at.cast(kind), pa.array([r[2] for r in rows], pa.int64())], names=[*PROVENANCE.names, "id", "at", "v"]
    )


def timeline(*steps: tuple[int, Iterable[pa.RecordBatch]]) -> Timeline:
    """At each time in seconds: the watermark goes there, then the batches arrive, each in a bundle of its own."""
    stream = Timeline(coder=RecordBatchCoder())
    for at, batches in steps:
        stream = stream.advance_watermark_to(at)
        for batch in batches:
            stream = stream.add_elements([TimestampedValue(batch, at)])
    return stream.advance_watermark_to_infinity()


def ids(batches: Iterable[pa.RecordBatch]) -> list[RowId]:
    return [pair for b in batches for pair in zip(b.column(SOURCE).to_pylist(), b.column(POSITION).to_pylist(), strict=True)]


def told(batches: Iterable[pa.RecordBatch], change: int) -> list[RowId]:
    return ids(b.filter(pa.array([c == change for c in b.column(CHANGE).to_pylist()])) for b in batches)


def check(outputs: beam.PCollection, judge: Callable[[list[Any]], None], label: str = "check") -> None:
    def matcher(actual: list[Any]) -> None:
        try:
            judge(actual)
        except AssertionError as error:
            raise BeamAssertException(str(error)) from error

    assert_that(outputs, matcher, label)


def as_the_rule_says(batches: list[pa.RecordBatch], how: Comparison = HOW) -> Callable[[list[Any]], None]:
    everything = ids(batches)
    whole = set(ids([deduplicate_batch(_once(concat(batches)), how)]))

    def judge(outputs: list[Any]) -> None:
        plus, minus = set(told(outputs, 1)), set(told(outputs, -1))
        assert plus - minus == whole
        assert minus == set(everything) - whole

    return judge


def _once(batch: pa.RecordBatch) -> pa.RecordBatch:
    first = {row_id: i for i, row_id in reversed(list(enumerate(ids([batch]))))}
    return batch.take(pa.array(sorted(first.values())))


# ------------------------------------------------------------------------------------------------------------ the law


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("keep", ["newest", "oldest"])
def test_any_order_and_redelivery_on_a_real_runner(seed: int, keep: Any) -> None:
    chance = random.Random(seed)
    rows = [(chance.choice("abcdefg"), chance.randint(95, 105), chance.randint(0, 3)) for _ in range(60)]
    batches = [batch_of(rows[i : i + 6], start=i) for i in range(0, 60, 6)]
    sent = chance.sample([*batches, *batches[:4]], 14)
    rule = DeduplicateRule(within="5s", keep=keep, order_by="v")
    with BarePipeline(options=STREAMING) as pipeline:
        out = pipeline | timeline((100, sent[:7]), (101, sent[7:])) | Deduplicate(rule, contract=CONTRACT, lateness=10 * SECOND)
        assert isinstance(out, Deduplicated)
        check(out.rows, as_the_rule_says(batches, comparison(rule, contract=CONTRACT)))


def test_a_better_copy_takes_the_first_back() -> None:
    old, new = batch_of([("x", 100, 1)], start=1), batch_of([("x", 101, 2)], start=2, arrival=102)

    def judge(outputs: list[pa.RecordBatch]) -> None:
        assert len({b.schema for b in outputs}) == 1
        rows = sorted((r for b in outputs for r in b.to_pylist()), key=lambda r: (r[POSITION], -r[CHANGE]))
        assert [(r[POSITION], r[CHANGE], r["v"]) for r in rows] == [(1, 1, 1), (1, -1, None), (2, 1, 2)]
        taken_back = rows[1]
        assert taken_back["at"] == dt.datetime.fromtimestamp(100, dt.UTC)
        assert taken_back[ARRIVAL] == dt.datetime.fromtimestamp(100, dt.UTC)
        assert (taken_back[SOURCE], taken_back["id"]) == ("s", None)

    def counted(counts: list[Any]) -> None:
        assert counts == [("deduplicate:s@2+1", "s", "duplicate", "", 1)]

    with BarePipeline(options=STREAMING) as pipeline:
        out = pipeline | timeline((100, [old]), (102, [new])) | Deduplicate(RULE, contract=CONTRACT)
        check(out.rows, judge)
        check(out.counts, counted, "counted")


def test_a_worse_copy_is_told_as_a_duplicate_and_a_redelivered_one_not_at_all() -> None:
    new, old = batch_of([("x", 101, 2)], start=2, arrival=102), batch_of([("x", 100, 1)], start=1)
    metrics.reset()
    with BarePipeline(options=STREAMING) as pipeline:
        out = pipeline | timeline((100, [new]), (101, [old, new]), (103, [old])) | Deduplicate(RULE, contract=CONTRACT)
        check(out.rows, lambda outputs: _assert(sorted(told(outputs, 1)), [("s", 2)], sorted(told(outputs, -1)), [("s", 1)]))
    assert metrics.snapshot()["rows_redelivered"] == 2
    assert metrics.snapshot()["rows_duplicate"] == 1


def _assert(*pairs: Any) -> None:
    assert list(pairs[::2]) == list(pairs[1::2])


@pytest.mark.parametrize("kind", [pa.timestamp("ms"), pa.timestamp("s", "Europe/Berlin"), pa.timestamp("ns"), pa.timestamp("us", "UTC")])
def test_event_times_come_back_in_their_own_type(kind: pa.DataType) -> None:
    batches = [batch_of([("x", 100 + i, i)], start=i, arrival=100 + i, kind=kind) for i in range(2)]

    def judge(outputs: list[pa.RecordBatch]) -> None:
        (gone,) = [b for b in outputs if b.column(CHANGE).to_pylist() == [-1]]
        assert gone.column("at").equals(batches[0].column("at"))

    with BarePipeline(options=STREAMING) as pipeline:
        check((pipeline | timeline((101, batches)) | Deduplicate(RULE, contract=CONTRACT)).rows, judge)


@pytest.mark.parametrize("where", [contextlib.nullcontext, state_here], ids=["prism's state", "state here"])
@pytest.mark.parametrize("stage", ["rule", "identity"])
def test_the_same_on_prism(stage: str, where: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    flags = [f"--prism_location={prism_program()}"]
    batches = [stream_rows.message_batch(n) for n in range(60)]
    stream_rows.OUT.clear()
    rule = DeduplicateRule(within="5s", order_by="v")

    def build(pipeline: beam.Pipeline) -> None:
        rows = numbers(pipeline, 60) | "Rows" >> beam.Map(stream_rows.message_batch).with_output_types(pa.RecordBatch)
        dropped = rows | (Deduplicate(rule, contract=CONTRACT) if stage == "rule" else DropRedelivered())
        (dropped.rows if stage == "rule" else dropped) | "See" >> beam.Map(stream_rows.see)

    before = next(_numbers)
    with where():
        run_on_prism(build, flags=flags)
        assert len(_table) == 0
    assert (next(_numbers) - before > 1) == (where is state_here)  # batches were handed over, and only there
    if stage == "rule":
        as_the_rule_says(batches, comparison(rule, contract=CONTRACT))(stream_rows.OUT)
    else:
        assert sorted(ids(stream_rows.OUT)) == sorted(set(ids(batches)))


# -------------------------------------------------------------------------------------------------------- the horizon


def test_rows_beyond_the_horizon_pass_unjudged_and_counted() -> None:
    late = batch_of([("x", 94, 1), ("x", 94, 1), ("x", None, 1), ("x", 95, 1), ("x", 95, 1)])

    def judge(outputs: list[pa.RecordBatch]) -> None:
        assert sorted(told(outputs, 1)) == [("s", 0), ("s", 1), ("s", 2), ("s", 3)]
        assert told(outputs, -1) == [("s", 4)]

    def counted(counts: list[Any]) -> None:
        assert sorted(c[1:] for c in counts) == [("s", "duplicate", "", 1), ("s", "unjudged", "beyond_horizon", 3)]

    metrics.reset()
    with BarePipeline(options=STREAMING) as pipeline:
        out = pipeline | timeline((100, [late])) | Deduplicate(RULE, contract=CONTRACT)
        check(out.rows, judge)
        check(out.counts, counted, "counted")
    assert metrics.snapshot()["rows_beyond_horizon"] == 3


def test_without_an_arrival_time_the_timestamp_says_how_late_a_row_is() -> None:
    batches = [batch_of([("x", 94, 1)], start=i, arrival=None) for i in range(2)]
    with BarePipeline(options=STREAMING) as pipeline:
        out = pipeline | timeline((100, batches[:1]), (101, batches[1:])) | Deduplicate(RULE, contract=CONTRACT)
        check(out.rows, lambda outputs: _assert(len(told(outputs, 1)), 2))


def test_state_is_forgotten_slice_by_slice_and_no_verdict_changes() -> None:
    """40 s of rows, one a second, each up to 5 s late: at most within + lateness + two slices are held, at the end nothing."""
    chance = random.Random(5)
    batches = [batch_of([(chance.choice("ab"), at - chance.randint(0, 5), at)], start=at, arrival=at) for at in range(100, 140)]
    sizes: list[int] = []
    _Watched.sizes = sizes
    with BarePipeline(options=STREAMING) as pipeline:
        rows = pipeline | timeline(*((at, [b]) for at, b in zip(range(100, 140), batches, strict=True)))
        copies = rows | beam.ParDo(DigestRows(HOW, 5 * SECOND)).with_output_types(tuple[int, pa.RecordBatch])
        judged = copies | beam.ParDo(Remember(_Watched(HOW, 5 * SECOND))).with_outputs("counts", main="rows")
        check(judged.rows, as_the_rule_says(batches))
    assert max(sizes) <= 16
    assert len(sizes) == 40


class _Watched(ByRule):
    """Notes how many rows a bucket holds."""

    sizes: list[int] = []

    def judge(self, held: Any, rows: pa.RecordBatch) -> Any:
        outputs = list(super().judge(held, rows))
        self.sizes.append(len(held))
        return outputs


# ------------------------------------------------------------------------------------------ by hand: state, failure, memory


class Bag:
    """A bag of state; `Cell` is a read-modify-write cell."""

    def __init__(self) -> None:
        self.value: Any = None
        self.pieces: list[Any] = []

    def read(self) -> Any:
        return self.pieces

    def write(self, value: Any) -> None:
        self.value = value

    def add(self, piece: Any) -> None:
        self.pieces = [*self.pieces, RecordBatchCoder().decode(RecordBatchCoder().encode(piece))]

    def clear(self) -> None:
        self.value, self.pieces = None, []


class Cell(Bag):
    def read(self) -> Any:
        return self.value


class Clock:
    at: int | None = None

    def set(self, timestamp: Timestamp) -> None:
        self.at = timestamp.micros


def by_hand(fn: Remember, state: list[Any], rows: pa.RecordBatch) -> list[pa.RecordBatch]:
    outputs = list(fn.process((0, rows), *state))
    return [o for o in outputs if isinstance(o, pa.RecordBatch)]


def fresh_state() -> list[Any]:
    return [Cell(), *(Bag() for _ in range(CELLS)), Clock()]


@cache
def first_stage() -> DigestRows:
    first = DigestRows(HOW, 10 * SECOND)
    first.setup()
    return first


def digested(batch: pa.RecordBatch) -> pa.RecordBatch:
    first = first_stage()
    first.start_bundle()
    list(first.process(batch, Timestamp(100)))
    return concat([keyed.value[1] for keyed in first.finish_bundle() if not isinstance(keyed, beam.pvalue.TaggedOutput)])


@given(st.integers(0, 10_000), st.data())
@share(6)
def test_a_failed_bundle_and_a_lost_process_leave_no_trace(seed: int, data: st.DataObject) -> None:
    """State rolls back, memory does not: only the token tells."""
    chance = random.Random(seed)
    rows = [(chance.choice("abc"), chance.randint(95, 105), chance.randint(0, 2)) for _ in range(24)]
    batches = [batch_of(rows[i : i + 4], start=i) for i in range(0, 24, 4)]
    fn, state, outputs = Remember(ByRule(HOW, 10 * SECOND)), fresh_state(), []
    for batch in batches:
        match data.draw(st.sampled_from(["works", "works", "fails first", "elsewhere"])):
            case "fails first":
                before = [(s.value, s.pieces) for s in state[:-1]]
                by_hand(fn, state, digested(batch))
                for saved, was in zip(state[:-1], before, strict=True):
                    saved.value, saved.pieces = was
            case "elsewhere":
                fn = Remember(ByRule(HOW, 10 * SECOND))
        outputs += by_hand(fn, state, digested(batch))
    as_the_rule_says(batches)(outputs)


# --------------------------------------------------------------------------------------------- the first wins, for good


FIRST = comparison(DeduplicateRule(within="5s", keep="oldest"), contract=CONTRACT)


@given(seed=st.integers(0, 10**9), data=st.data())
@share(6)
def test_what_passes_at_once_is_what_a_batch_keeps_of_the_first_copies(seed: int, data: st.DataObject) -> None:
    """Batches come in the order of their arrival, some again, some to another process; a bundle may fail first."""
    chance = random.Random(seed)
    rows = [(chance.choice("abc"), chance.randint(95, 115), chance.randint(0, 2)) for _ in range(24)]
    batches = [batch_of(rows[i : i + 4], start=i, arrival=100 + i // 4) for i in range(0, 24, 4)]
    rule = FirstWins(FIRST, 30 * SECOND)
    fn, state, outputs = Remember(rule), fresh_state(), []
    for number, batch in enumerate(batches):
        match data.draw(st.sampled_from(["works", "works", "fails first", "elsewhere", "again"])):
            case "fails first":
                before = [(s.value, s.pieces) for s in state[:-1]]
                by_hand(fn, state, digested(batch))
                for saved, was in zip(state[:-1], before, strict=True):
                    saved.value, saved.pieces = was
            case "elsewhere":
                fn = Remember(rule)
            case "again" if number:
                outputs += by_hand(fn, state, digested(batches[chance.randrange(number)]))
        outputs += by_hand(fn, state, digested(batch))
    assert not any(CHANGE in out.schema.names for out in outputs)
    assert sorted(ids(outputs)) == sorted(ids([deduplicate_batch(concat(batches), FIRST)]))


def test_a_better_copy_that_comes_later_takes_nothing_back() -> None:
    batches = [batch_of([("x", 100, 1)], start=1), batch_of([("x", 101, 2), ("y", 101, 1)], start=2, arrival=102)]

    def judge(outputs: list[pa.RecordBatch]) -> None:
        assert [(r["id"], r["v"]) for b in outputs for r in b.to_pylist()] == [("x", 1), ("y", 1)]
        assert not any(CHANGE in b.schema.names for b in outputs)

    def counted(counts: list[Any]) -> None:
        assert [(outcome, n) for _, _, outcome, _, n in counts] == [("duplicate", 1)]

    with BarePipeline(options=STREAMING) as pipeline:
        stream = pipeline | timeline((100, batches[:1]), (102, batches[1:]))
        out = stream | Deduplicate(RULE, contract=CONTRACT, changes=False)
        check(out.rows, judge)
        check(out.counts, counted, "counts")


@pytest.mark.parametrize(("stages", "times"), [([], 2), ([DropRedelivered(horizon=60 * SECOND)], 1)])
def test_a_row_beyond_the_horizon_comes_as_often_as_its_message(stages: list[beam.PTransform], times: int) -> None:
    late = batch_of([("x", 94, 1)])
    with BarePipeline(options=STREAMING) as pipeline:
        rows = pipeline | timeline((100, [late]), (101, [late]))
        for stage in stages:
            rows |= stage
        out = rows | Deduplicate(RULE, contract=CONTRACT, changes=False)
        check(out.rows, lambda outputs: _assert(ids(outputs), [("s", 0)] * times))


# ------------------------------------------------------------------------------------------------------------ state, timers


def test_the_timer_is_whole_milliseconds_and_forgets_what_it_was_set_for() -> None:
    rule = ByRule(comparison(DeduplicateRule(within="7us"), contract=CONTRACT), 5)
    fn, state = Remember(rule), fresh_state()
    by_hand(fn, state, digested(batch_of([("x", 100, 1)])))
    at = state[-1].at
    assert at % 1_000 == 0
    assert 100 * SECOND + 12 < at <= 100 * SECOND + 1_000
    fn.expire(0, Timestamp(micros=at), *state)
    assert all(bag.pieces == [] for bag in state[1:-1])


def test_a_row_at_the_end_of_time_sets_no_timer() -> None:
    fn, state = Remember(ByRule(HOW, 10 * SECOND)), fresh_state()
    far = batch_of([("x", 100, 1)]).set_column(4, "at", pa.array([2**63 - 1]).cast(pa.timestamp("us", "UTC")))
    assert told(by_hand(fn, state, digested(far)), 1) == [("s", 0)]
    assert state[-1].at is None


# ------------------------------------------------------------------------------------------------ in a job of one's own


def test_dicts_in_a_stream_of_ones_own() -> None:
    stream = Timeline()
    for at, v in ((100, 1), (101, 2)):
        row = {"id": "x", "at": f"1970-01-01T00:01:{at - 60}Z", "v": v}
        stream = stream.advance_watermark_to(at).add_elements([TimestampedValue(row, at)])

    def judge(rows: list[dict[str, Any]]) -> None:
        assert sorted((r[CHANGE], r["v"]) for r in rows if r[CHANGE] == 1) == [(1, 1), (1, 2)]
        assert [(r["id"], r["v"]) for r in rows if r[CHANGE] == -1] == [(None, None)]

    with BarePipeline(options=STREAMING) as pipeline:
        conformed = pipeline | stream.advance_watermark_to_infinity() | FromRows(CONTRACT) | Conform(CONTRACT)
        out = conformed | Deduplicate(DeduplicateRule(within="2d"), contract=CONTRACT)
        assert isinstance(out, DeduplicatedWithDead)
        check(out.rows | ToRows(), judge)


def test_the_key_hash_goes_and_labels_are_constant() -> None:
    batch = batch_of([("x", 100, 1)])
    hashed = batch.append_column(KEY_HASH, pa.array([5], pa.uint64()))
    pipeline = BarePipeline(options=STREAMING)
    out = pipeline | timeline((100, [hashed])) | Deduplicate(RULE, contract=CONTRACT)
    check(out.rows, lambda outputs: _assert(outputs[0].schema.names, [*batch.schema.names, CHANGE]))
    labels = {t.unique_name for t in pipeline.to_runner_api().components.transforms.values()}
    inside = {name.removeprefix("Deduplicate/").split("/")[0] for name in labels if name.startswith("Deduplicate/")}
    assert inside == {"Digest", "Judge"}
    assert out.rows.element_type is pa.RecordBatch
    pipeline.run().wait_until_finish()


@pytest.mark.parametrize("shards", [1, BUCKETS, 7, 64])
def test_rows_go_to_the_bucket_of_their_key(shards: int) -> None:
    first = DigestRows(HOW, 10 * SECOND, shards=shards)
    first.setup()
    first.start_bundle()
    batch = batch_of([(str(i), 100, 1) for i in range(2_000)])
    assert list(first.process(batch, Timestamp(100))) == []
    keyed = [o.value for o in first.finish_bundle()]
    assert [bucket for bucket, _ in keyed] == list(range(shards))
    for bucket, rows in keyed:
        key = digests(rows.select(batch.schema.names), HOW).column(KEY)
        assert set((first_byte(key).astype(int) * shards // 256).tolist()) == {bucket}


def test_a_row_without_identity_is_refused() -> None:
    first = DigestRows(HOW, 0)
    first.setup()
    first.start_bundle()
    list(first.process(batch_of([("x", 100, 1)]).drop_columns([POSITION]), Timestamp(100)))
    with pytest.raises(SpecError, match=r"rows of a stream need _position, which is missing or NULL\. .*FromRows"):
        list(first.finish_bundle())


def test_a_negative_lateness_and_windows_are_refused() -> None:
    with pytest.raises(SpecError, match="lateness is -1"):
        Deduplicate(RULE, contract=CONTRACT, lateness=-1)
    with pytest.raises(SpecError, match="global window"):
        BarePipeline(options=STREAMING) | Timeline() | beam.WindowInto(FixedWindows(1)) | Deduplicate(RULE, contract=CONTRACT)


# ----------------------------------------------------------------------------------------------------- DropRedelivered


def test_a_message_passes_once_until_it_is_forgotten() -> None:
    first, second = batch_of([("x", 100, 1), ("y", 100, 1)], start=0), batch_of([("y", 100, 1), ("z", 100, 1)], start=1)

    def judge(outputs: list[pa.RecordBatch]) -> None:
        assert sorted(ids(outputs)) == [("s", 0), ("s", 0), ("s", 1), ("s", 1), ("s", 2)]
        assert outputs[0].schema == first.schema

    with BarePipeline(options=STREAMING) as pipeline:
        stream = timeline((100, [first, second, first]), (300, [first]))
        check(pipeline | stream | DropRedelivered(horizon=60 * SECOND), judge)


def test_redelivered_rows_after_another_stage_and_in_batch() -> None:
    batch = batch_of([("x", 100, 1)])
    with BarePipeline(options=STREAMING) as pipeline:
        conformed = pipeline | timeline((100, [batch, batch])) | FromRows(CONTRACT) | Conform(CONTRACT)
        out = conformed | DropRedelivered()
        assert type(out) is type(conformed)
        check(out.rows, lambda outputs: _assert(ids(outputs), [("s", 0)]))
    with BarePipeline(runner="FnApiRunner") as pipeline:
        rows = pipeline | beam.Create([batch])
        assert (rows | DropRedelivered()) is rows
    with pytest.raises(SpecError, match="horizon is 0"):
        DropRedelivered(horizon=0)


def test_rows_that_take_others_back_are_no_redelivered_ones() -> None:
    twice = [batch_of([("x", 100, 1), ("x", 100, 1)])]
    pipeline = BarePipeline(options=STREAMING)
    told = pipeline | timeline((100, twice)) | FromRows(CONTRACT) | Conform(CONTRACT) | Deduplicate(RULE, contract=CONTRACT)
    told.rows | DropRedelivered()
    with pytest.raises(Exception, match="Put it before Deduplicate"):
        pipeline.run().wait_until_finish()
