"""Aggregate on a real runner: the panes of the whole, whatever the bundles; every row counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.engine import Engine
from beam_pipelines.arrow.panes import aggregate_batch, partials, plan
from beam_pipelines.arrow.schema import provenance
from beam_pipelines.arrow.windowing import instants
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.errors import SpecError
from beam_pipelines.transforms.aggregate import Aggregate, Aggregated, _MergeAndPresent

HOUR = 3_600_000_000
MEASURES = {"n": "count()", "s": "sum(x)", "d": "stddev(x)", "q": "quantile(x, 0.9)", "u": "count_distinct(x)", "last": "last(x)"}
WINDOWINGS = [
    None,
    WindowSpec(size="1h"),
    WindowSpec(type="sliding", size="2h", period="1h"),
    WindowSpec(type="sessions", gap="30m"),
    WindowSpec(type="calendar", unit="day", time_zone="Asia/Tokyo"),
]


def rows(source: str, n: int, *, seed: int) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    columns = [
        *provenance(source, pa.array(np.arange(n), pa.int64())),
        instants(rng.integers(-20 * HOUR, 40 * HOUR, n)),
        pa.array(rng.choice(["a", "b", "c", None], n).tolist(), pa.string()),
        pa.array(rng.integers(-100, 100, n)),
    ]
    return pa.RecordBatch.from_arrays(columns, names=["_source", "_position", "_arrival_time", "t", "g", "x"])


def check(collection: beam.PCollection, label: str, judge: Callable[[list[Any]], None]) -> None:
    """Runs `judge` on all elements, none included."""
    assert_that(collection, lambda elements: judge(list(elements)), label=label)


def joined(batches: Iterable[pa.RecordBatch]) -> list[dict[str, Any]]:
    found = [r for b in batches for r in b.to_pylist()]
    return sorted(found, key=lambda r: (str(r.get("_window_start")), str(r.get("g")), str(r.get("position"))))


def run(batches: list[pa.RecordBatch], transform: Aggregate, **judges: Callable[[list[Any]], None]) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        out = pipeline | "Rows" >> beam.Create(batches) | "Spread" >> beam.Reshuffle() | "Aggregate" >> transform
        for name, judge in judges.items():
            check(getattr(out, name), name, judge)


@pytest.mark.parametrize("windowing", WINDOWINGS, ids=lambda w: w.type if w else "none")
def test_bundles_give_the_panes_of_the_whole(windowing: WindowSpec | None) -> None:
    batches = [rows(f"file{i}", n, seed=i) for i, n in enumerate([200, 1, 0, 77])]
    spec = AggregateSpec(windowing=windowing, group_by=["g"], measures=MEASURES)
    expected = joined([aggregate_batch(pa.concat_batches(batches), spec, time="t").panes])

    def same(panes: list[pa.RecordBatch]) -> None:
        got = joined(panes)
        assert got == expected, (got, expected)

    def balanced(counts: list[tuple[Any, ...]]) -> None:
        totals: dict[tuple[str, str, str], int] = {}
        for _, source, outcome, detail, n in counts:
            totals[source, outcome, detail] = totals.get((source, outcome, detail), 0) + n
        assert totals == {("file0", "aggregated", "agg"): 200, ("file1", "aggregated", "agg"): 1, ("file3", "aggregated", "agg"): 77}
        assert len({c[:4] for c in counts}) == len(counts), "a count that has another's key would overwrite it"

    run(batches, Aggregate(spec, name="agg", time="t"), panes=same, counts=balanced)


def test_every_row_is_aggregated_or_dead_and_counted_as_that() -> None:
    batch = rows("f", 6, seed=1).drop_columns(["t", "x", "_arrival_time"])
    utc = pa.timestamp("us", "UTC")
    batch = batch.append_column("t", pa.array([0, None, 0, 0, 0, 0], pa.int64()).cast(utc)).append_column(
        "x", pa.array([1, 1, 2**63 - 1, 1, 1, 1])
    )
    batch = batch.append_column("_arrival_time", pa.array([0, 0, 0, 99 * HOUR, None, 1], pa.int64()).cast(utc))
    spec = AggregateSpec(windowing=WindowSpec(size="1h"), measures={"n": "count()", "s": "sum(x + 1)"})

    def panes(found: list[pa.RecordBatch]) -> None:
        assert [(r["n"], r["s"]) for r in joined(found)] == [(3, 6)]

    def dead(found: list[pa.RecordBatch]) -> None:
        assert sorted((r["position"], r["reason"]) for r in joined(found)) == [(1, "TIME"), (2, "EXPRESSION"), (3, "LATE")]

    def counts(found: list[tuple[Any, ...]]) -> None:
        assert sorted(c[1:] for c in found) == [
            ("f", "aggregated", "agg", 3),
            ("f", "dead", "aggregate:EXPRESSION", 1),
            ("f", "dead", "aggregate:TIME", 1),
            ("f", "late", "agg", 1),
        ]

    run([batch], Aggregate(spec, name="agg", time="t", apply_lateness=True), panes=panes, dead=dead, counts=counts)


class Before(NamedTuple):
    """A stage as others are: rows first, then what it rejected and counted."""

    valid: beam.PCollection
    dead: beam.PCollection
    counts: beam.PCollection


def test_dead_letters_and_counts_of_the_stage_before_go_along() -> None:
    batch = rows("f", 5, seed=2)
    letters = aggregate_batch(
        batch.set_column(3, "t", pa.nulls(5, pa.timestamp("us", "UTC"))),
        AggregateSpec(windowing=WindowSpec(size="1h"), measures={"n": "count()"}),
        time="t",
    ).dead
    with beam.Pipeline("FnApiRunner") as pipeline:
        before = Before(
            *(
                pipeline | name >> beam.Create([value])
                for name, value in (("R", batch), ("D", letters), ("C", ("u", "f", "dead", "validate:CHECK", 5)))
            )
        )
        out = before | Aggregate(AggregateSpec(measures={"n": "count()"}), name="all")
        assert isinstance(out, Aggregated)

        def dead(found: list[pa.RecordBatch]) -> None:
            assert sum(b.num_rows for b in found) == 5

        def counts(found: list[tuple[Any, ...]]) -> None:
            assert sorted(c[2] for c in found) == ["aggregated", "dead"]

        check(out.dead, "dead", dead)
        check(out.counts, "counts", counts)


def test_windows_are_columns_so_beams_own_windows_do_not_matter() -> None:
    batches = [rows(f"f{i}", 10, seed=i) for i in range(3)]

    def one(found: list[pa.RecordBatch]) -> None:
        assert [r["n"] for r in joined(found)] == [30]

    with beam.Pipeline("FnApiRunner") as pipeline:
        stamped = pipeline | beam.Create(list(enumerate(batches))) | beam.MapTuple(lambda i, b: TimestampedValue(b, i * 100))
        windowed = stamped | beam.WindowInto(FixedWindows(10))
        check((windowed | Aggregate(AggregateSpec(measures={"n": "count()"}), name="all")).panes, "panes", one)


def test_no_rows_no_panes_and_rows_without_provenance_are_counted_too() -> None:
    spec = AggregateSpec(group_by=["g"], measures={"n": "count()"})

    def nothing(found: list[Any]) -> None:
        assert not found

    run([], Aggregate(spec, name="a"), panes=nothing, dead=nothing, counts=nothing)

    def counts(found: list[tuple[Any, ...]]) -> None:
        assert [c[1:] for c in found] == [("", "aggregated", "a", 2)]

    run([pa.record_batch({"g": ["x", "y"]})], Aggregate(spec, name="a"), counts=counts)


def test_many_groups_are_merged_in_portions() -> None:
    batches = [pa.record_batch({"g": pa.array([f"k{i}" for i in range(400)]), "t": instants(np.full(400, k * HOUR))}) for k in range(4)]
    spec = AggregateSpec(windowing=WindowSpec(type="sliding", size="4h", period="1h"), group_by=["g"], measures={"n": "count()"})
    expected = joined([aggregate_batch(pa.concat_batches(batches), spec, time="t").panes])
    merge = _MergeAndPresent(spec, "a", merge_rows=50, pane_rows=100)
    merge.setup()
    shard = [partials(b, plan(spec, b.schema, name="a", time="t"), engine=Engine()).partials for b in batches]
    found = list(merge.process((0, shard)))
    assert 32 < len(found) <= 64  # 400 groups at 4 times, each in 4 windows
    assert joined(found) == expected


def test_windows_without_a_time_column_are_refused_when_declared() -> None:
    with pytest.raises(SpecError, match="hourly: windows need a time column"):
        Aggregate(AggregateSpec(windowing=WindowSpec(size="1h"), measures={"n": "count()"}), name="hourly")


def test_every_element_between_the_stages_has_the_batch_coder() -> None:
    pipeline = beam.Pipeline("FnApiRunner")
    out = pipeline | beam.Create([rows("f", 1, seed=1)]) | Aggregate(AggregateSpec(measures={"n": "count()"}), name="a")
    assert out.panes.element_type is pa.RecordBatch
    assert out.dead.element_type is pa.RecordBatch
