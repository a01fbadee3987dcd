"""Rows that take rows back pass every row stage: what a stream shows in the end is what a batch says of the same rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import chain
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_pipeline import TestPipeline as BarePipeline
from apache_beam.testing.test_stream import TestStream as Timeline
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines import draining
from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.concat import concat
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.duplicates import comparison, deduplicate_batch
from beam_pipelines.arrow.enrich import lookup_table
from beam_pipelines.arrow.keys import DeduplicateRule
from beam_pipelines.arrow.panes import aggregate_batch
from beam_pipelines.arrow.program import Program
from beam_pipelines.arrow.schema import CHANGE, POSITION, PROVENANCE, UTC_MICROS, provenance
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.coders import RecordBatchCoder
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.transforms import Aggregate, Deduplicate, Enrich, Transform, Validate
from beam_pipelines.transforms.aggregate_stream import Arrive, Streaming
from beam_pipelines.transforms.conform import _Unchanged
from beam_pipelines.transforms.deduplicate_stream import DigestRows
from beam_pipelines.transforms.transform import _Steps

OUT: list[pa.RecordBatch] = []
SECOND = 1_000_000
START = 1_000  # seconds
CONTRACT = Contract.model_validate(
    {
        "key": ["id"],
        "event_time": "at",
        "columns": {
            "id": {"type": "string", "required": True},
            "at": {"type": "timestamp", "required": True},
            "shop": {"type": "string", "required": True},
            "v": {"type": "int64", "required": True, "min": 1},
        },
    }
)
RULE = DeduplicateRule(within="60s", order_by="v")  # the copy with the larger v is the better one, whenever it comes
WINDOWS = WindowSpec(size="10s", watermark_delay="30s", allowed_lateness="1h")


@pytest.fixture(autouse=True)
def fresh() -> None:
    """No stream of this process has ended: its end would cut these short."""
    draining.reset()


def totals(time: str = "at", **more: Any) -> AggregateSpec:
    return AggregateSpec(windowing=WINDOWS, time=time, measures={"n": "count()", "total": "sum(v)"}, **more)


def doubled(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Fails on NULL, as a user's function does that was never told of rows without values."""
    return batch.set_column(batch.schema.names.index("v"), "v", pa.array([2 * v for v in batch["v"].to_pylist()], pa.int64()))


def later(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Moves every row by 20 seconds."""
    moved = pc.add(batch["at"], pa.scalar(20 * SECOND, pa.duration("us")))
    return batch.set_column(batch.schema.names.index("at"), "at", moved)


CITIES = lookup_table(pa.table({"shop": ["a"], "city": ["Oslo"]}), name="cities", key="shop")
STAGES: dict[str, tuple[Callable[[], beam.PTransform], AggregateSpec]] = {
    "none": (lambda: Transform(), totals()),
    "set": (lambda: Transform({"set": {"v": "v + length(shop)"}}), totals(group_by=["shop"])),
    "set event time": (lambda: Transform({"set": {"at": '"at" - INTERVAL 20 SECOND'}}), totals()),
    "set another time": (lambda: Transform({"set": {"later": '"at" + INTERVAL 7 SECOND', "then": "later"}}), totals("then")),
    "set a time that some rows have not": (lambda: Transform({"set": {"at": 'CASE WHEN epoch("at") % 3 > 0 THEN "at" END'}}), totals()),
    "rename": (lambda: Transform({"rename": {"moment": "at", "v": "v"}}), totals("moment")),
    "drop": (lambda: Transform({"drop": ["id", "shop"]}), totals()),
    "filter": (lambda: Transform({"filter": "v > 2"}), totals()),
    "apply": (lambda: Transform({"apply": doubled}), totals()),
    "lookup": (lambda: Enrich(CITIES, on="shop", take={"city": "city"}), totals(group_by=["city"])),
    "expression that fails": (lambda: Transform({"set": {"v": "10 // (v - 2)"}}), totals()),
    "validate": (lambda: Validate(CONTRACT, [{"name": "small", "expr": "v < 4"}]), totals()),
    "all": (
        lambda: Transform({"filter": "v > 1"}, {"rename": {"t": "at"}}, {"set": {"t": "t + INTERVAL 3 SECOND", "w": "v"}}, {"drop": ["id"]}),
        totals("t"),
    ),
}  # fmt: skip


def rows_of(chance: random.Random, n: int, start: int = 0, arrival: int = 40) -> pa.RecordBatch:
    arrived = pa.array([(START + arrival) * SECOND] * n, UTC_MICROS)
    at = pa.array([(START + chance.randint(0, 30)) * SECOND for _ in range(n)], UTC_MICROS)
    columns = [*provenance("s", pa.array(range(start, start + n), pa.int64()), arrived)]
    columns += [
        pa.array(chance.choices("pqrs", k=n)),
        at,
        pa.array(chance.choices(["a", "bb"], k=n)),
        pa.array(chance.choices(range(6), k=n), pa.int64()),
    ]
    return pa.record_batch(columns, names=[*PROVENANCE.names, "id", "at", "shop", "v"])


def last_panes(panes: list[pa.RecordBatch], spec: AggregateSpec) -> set[tuple[Any, ...]]:
    """Of each group and window the newest pane, without those that were retracted."""
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for pane in (p for batch in panes for p in batch.to_pylist()):
        key = (*(pane[g] for g in spec.group_by), pane["_window_start"])
        if key not in newest or newest[key]["_pane_index"] < pane["_pane_index"]:
            newest[key] = pane
    return {(*key, p["n"], p["total"]) for key, p in newest.items() if p["_pane"] != "retracted"}


def see(batch: pa.RecordBatch) -> None:
    """Keeps what came out. Workers find it by name, and its global is the test's."""
    OUT.append(batch)


def in_batch(stage: Callable[[], beam.PTransform], spec: AggregateSpec, rows: pa.RecordBatch) -> set[tuple[Any, ...]]:
    """What a batch of the same rows says."""
    OUT.clear()
    with BarePipeline(runner="BundleBasedDirectRunner") as pipeline:
        kept = pipeline | beam.Create([deduplicate_batch(rows, comparison(RULE, contract=CONTRACT))])
        _ = (kept | stage() | Aggregate(spec, name="totals")).panes | beam.Map(see)
    return last_panes(OUT, spec)


@pytest.mark.parametrize("name", [n if n == "all" else pytest.param(n, marks=pytest.mark.slow) for n in STAGES])
def test_stream_aggregate_is_batch_aggregate_with_a_stage_between(name: str) -> None:
    stage, spec = STAGES[name]
    chance = random.Random(name)
    batches = [rows_of(chance, 8, start=8 * i, arrival=40 if i < 3 else 75) for i in range(5)]
    timeline = Timeline(coder=RecordBatchCoder()).advance_watermark_to(START + 40)
    for batch in batches[:3]:
        timeline = timeline.add_elements([TimestampedValue(batch, START + 40)])
    timeline = timeline.advance_watermark_to(START + 75)  # some windows are shown
    for batch in batches[3:]:
        timeline = timeline.add_elements([TimestampedValue(batch, START + 75)])
    expected = in_batch(stage, spec, concat(batches))

    OUT.clear()
    with BarePipeline(runner="BundleBasedDirectRunner", options=PipelineOptions(streaming=True)) as pipeline:
        told = pipeline | timeline.advance_watermark_to_infinity() | Deduplicate(RULE, contract=CONTRACT, lateness=3600 * SECOND)
        _ = (told | stage() | Aggregate(spec, name="totals")).panes | beam.Map(see)
    assert last_panes(OUT, spec) == expected


# ------------------------------------------------------------------------------------------------------- one batch of both


def told(change: list[int], **own: Any) -> pa.RecordBatch:
    """Rows as Deduplicate tells them: those of -1 hold identity and event time only."""
    n = len(change)
    columns = dict(zip(PROVENANCE.names, provenance("s", pa.array(range(n), pa.int64())), strict=True))
    at = pa.array([(START + i) * SECOND for i in range(n)], UTC_MICROS)
    bare = pa.array([c < 0 for c in change])
    values = {name: pc.if_else(bare, None, pa.array(column)) for name, column in own.items()}
    return pa.record_batch({**columns, "at": at, **values, CHANGE: pa.array(change, pa.int8())})


@given(st.lists(st.sampled_from([1, -1]), min_size=1, max_size=12))
def test_every_correction_passes_once_and_rows_are_what_they_are_without_corrections(change: list[int]) -> None:
    batch = told(change, v=list(range(len(change))))
    steps = Transform(
        {"filter": "v % 2 = 0"}, {"set": {"w": "6 // (v - 4)", "later": '"at" + INTERVAL 1 HOUR'}}, {"rename": {"t": "at"}}, {"drop": ["v"]}
    )
    run = _Steps(tuple(steps.steps), {})
    plus, minus = (batch.filter(pa.array([c == sign for c in change])) for sign in (1, -1))
    both, alone = run(batch), run(plus)
    told_back = both.rows.filter(pc.less(both.rows[CHANGE], 0))
    assert both.rows.filter(pc.greater(both.rows[CHANGE], 0)).to_pylist() == alone.rows.to_pylist()
    assert (both.filtered, both.dead.num_rows) == (alone.filtered, alone.dead.num_rows)
    assert told_back[POSITION].to_pylist() == minus[POSITION].to_pylist()
    assert told_back["t"].to_pylist() == minus["at"].to_pylist()
    assert pc.subtract(told_back["later"], told_back["t"]).cast(pa.int64()).to_pylist() == [3600 * SECOND] * minus.num_rows
    assert told_back["w"].null_count == minus.num_rows


def test_reserved_columns_of_panes_go_on() -> None:
    rows = rows_of(random.Random(1), 20)
    panes = aggregate_batch(rows, totals(group_by=["shop"]), name="totals").panes
    reserved = [n for n in panes.schema.names if n.startswith("_")]
    made = _Steps(tuple(Transform({"set": {"mean": "total / n"}}, {"filter": "_window_start IS NOT NULL"}).steps), {})(panes).rows
    assert made.select(reserved).to_pylist() == panes.select(reserved).to_pylist()
    assert made.schema.field("_window_start").type == panes.schema.field("_window_start").type
    assert "_pane" not in _Steps(tuple(Transform({"drop": ["_pane"]}).steps), {})(panes).rows.schema.names


@pytest.mark.parametrize("step", [{"drop": [CHANGE]}, {"filter": f"{CHANGE} = 1"}])
def test_what_says_that_a_row_is_taken_back_is_not_for_steps(step: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=CHANGE):
        _Steps(tuple(Transform(step).steps), {})(told([1, -1], v=[1, 2]))


MOMENTS = lookup_table(pa.table({"v": [1], "moment": pa.array([START * SECOND], UTC_MICROS)}), name="moments", key="v")


@pytest.mark.parametrize(
    "stage",
    [
        Transform({"set": {"at": '"at" + to_seconds(v)'}}),
        Transform({"apply": {"function": later, "columns": {"at": "timestamp"}}}),
        Transform({"lookup": {"from": "moments", "on": "v", "take": {"at": "moment"}}}, lookups={"moments": MOMENTS}),
    ],
    ids=["set", "apply", "lookup"],
)
def test_a_correction_whose_window_is_not_known_is_refused(stage: Transform) -> None:
    batch = told([1, -1], v=[1, 2])
    moved = _Steps(tuple(stage.steps), stage.lookups, stage.functions)(batch).rows
    arrive = Arrive(totals(), Streaming(), "totals", "at", "UTC")
    arrive.setup()
    arrive.start_bundle()
    with pytest.raises(RunError, match=r"totals: rows are taken back .* that have no 'at'"):
        list(chain(arrive.process(moved, Timestamp(START)), arrive.finish_bundle()))


def test_a_function_that_moves_a_time_undeclared_is_refused() -> None:
    stage = Transform({"filter": "v > 0"}, {"apply": later})
    with pytest.raises(RunError, match=r":later: changed the time 'at', which is not declared, .* Declare it under columns"):
        _Steps(tuple(stage.steps), {}, stage.functions)(told([1, 1, -1], v=[0, 1, 2]))
    assert _Steps(tuple(stage.steps), {}, stage.functions)(told([1, -1], v=[0, 2])).filtered == 1


def test_a_row_on_which_a_function_fails_has_no_time_to_compare() -> None:
    stage = Transform({"apply": doubled})
    split = _Steps(tuple(stage.steps), {}, stage.functions)(told([1, 1, -1], v=[None, 1, 2]))
    assert (split.dead["reason"].to_pylist(), split.rows["v"].to_pylist()) == (["APPLY"], [None, 2])


def test_stages_for_rows_before_deduplicate_refuse_its_rows() -> None:
    batch = told([1, -1], id=["a", "b"], shop=["x", "y"], v=[1, 2])
    with pytest.raises(SpecError, match="Put Conform before Deduplicate"):
        _Unchanged(Program(()))(batch)
    digest = DigestRows(comparison(RULE, contract=CONTRACT), 0)
    digest.setup()
    digest.start_bundle()
    with pytest.raises(SpecError, match="Deduplicate a stream once"):
        list(chain(digest.process(batch, Timestamp(START)), digest.finish_bundle()))
