"""Panes are a pure function of the set of rows, for every kind of window, and every row is in the panes or a dead letter."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.panes import Panes, Plan, aggregate_batch, merge_partials, partials, plan, present, split_by_key
from beam_pipelines.arrow.schema import DEAD_LETTERS, provenance
from beam_pipelines.arrow.windowing import instants
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.errors import SpecError
from tests.arrow.slow_aggregate import Row, measured, panes_of, plain
from tests.laws import share

HOUR, DAY = 3_600_000_000, 86_400_000_000
CHANGE = int(datetime(2013, 11, 3, 6, tzinfo=UTC).timestamp()) * 1_000_000
WINDOWINGS: dict[str, WindowSpec | None] = {
    "none": None,
    "fixed": WindowSpec(size="1h", offset="10m"),
    "sliding": WindowSpec(type="sliding", size="90m", period="40m"),
    "sessions": WindowSpec(type="sessions", gap="45m", max_length="4h"),
    "day": WindowSpec(type="calendar", unit="day", time_zone="America/New_York"),
    "hour": WindowSpec(type="calendar", unit="hour", time_zone="Australia/Lord_Howe"),
}
MEASURES = {
    "n": "count()",
    "s": "sum(x)",
    "lo": "min(x)",
    "first": "first(x)",
    "last": "last(x) where x <> 3",
    "d": "count_distinct(x)",
    "sd": "stddev(x)",
    "q": "quantile(x, 0.5)",
}
TYPES = {"g": pa.string(), "f": pa.float64(), "t": pa.timestamp("us", "UTC"), "x": pa.int32()}

instant = st.one_of(st.integers(-8, 8).map(lambda i: i * HOUR // 2), st.integers(-12 * HOUR, 12 * HOUR)).map(lambda t: CHANGE + t)
row = st.fixed_dictionaries(
    {
        "g": st.sampled_from(["a", "b", None]),
        "f": st.sampled_from([None, 0.0, -0.0, math.nan, 1.5]),
        "t": instant,
        "x": st.one_of(st.none(), st.integers(-9, 9)),
    }
)


@cache
def planned(windowing: str, group_by: tuple[str, ...]) -> Plan:
    return plan(AggregateSpec(windowing=WINDOWINGS[windowing], group_by=group_by, measures=MEASURES), pa.schema(TYPES), time="t")


def batch_of(rows: list[Row]) -> pa.RecordBatch:
    columns = {n: pa.array([r[n] for r in rows], pa.int64() if n == "t" else k).cast(k) for n, k in TYPES.items()}
    return pa.record_batch(columns)


def micros(array: pa.Array) -> list[int | None]:
    values: list[int | None] = array.cast(pa.int64()).to_pylist()
    return values


def by_key(panes: pa.RecordBatch, group_by: list[str]) -> dict[tuple[Any, ...], Row]:
    keys = zip(
        *([plain(v) for v in panes.column(g).to_pylist()] for g in group_by),
        micros(panes.column("_window_start")),
        micros(panes.column("_window_end")),
        strict=True,
    )
    found = dict(zip(keys, panes.to_pylist(), strict=True))
    assert len(found) == panes.num_rows, "a window of a group has one pane"
    return found


def brute(rows: list[Row]) -> dict[str, Any]:
    some = [(r["x"], r["t"]) for r in rows if r["x"] is not None]
    xs, ts = [x for x, _ in some], [t for _, t in some]
    not3 = [(x, t) for x, t in some if x != 3]
    return {
        "n": len(rows), "s": measured("sum", xs), "lo": measured("min", xs), "first": measured("first", xs, ts),
        "last": measured("last", [x for x, _ in not3], [t for _, t in not3]), "d": measured("count_distinct", xs), "sd": measured("stddev", xs), "q": measured("quantile", xs),
    }  # fmt: skip


@pytest.mark.parametrize("windowing", WINDOWINGS)
@settings(share(6), database=None)
@given(rows=st.lists(row, max_size=25), data=st.data())
def test_any_split_and_order_of_rows_gives_the_panes_that_plain_python_gives(windowing: str, rows: list[Row], data: st.DataObject) -> None:
    group_by = data.draw(st.sampled_from([[], ["g"], ["g", "f"]]))
    made_by = planned(windowing, tuple(group_by))
    spec, batch = made_by.spec, batch_of(data.draw(st.permutations(rows)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    made = [partials(batch.slice(a, b - a), made_by).partials for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    sharded: dict[int, list[pa.RecordBatch]] = {}
    for group in (made[:2], made[2:]):
        if group:
            for shard, part in split_by_key(merge_partials(group, spec), spec, 3).items():
                sharded.setdefault(shard, []).append(part)
    shown = [present(merge_partials(parts, spec), spec).panes for parts in sharded.values()]
    got = by_key(pa.concat_batches(shown), group_by) if shown else {}
    expected = panes_of(rows, spec.windowing, group_by)
    assert got.keys() == expected.keys()
    for key, members in expected.items():
        for name, value in brute(members).items():
            slack = {"q": 0.0101, "sd": 1e-9}.get(name)
            assert got[key][name] == (value if slack is None or value is None else pytest.approx(value, rel=slack)), name


@settings(share(5), database=None)
@given(st.lists(row, max_size=20))
def test_panes_are_ordered_and_carry_their_place_in_the_stream(rows: list[Row]) -> None:
    spec = AggregateSpec(windowing=WINDOWINGS["fixed"], group_by=["g"], measures=MEASURES)
    panes = aggregate_batch(batch_of(rows), spec, time="t").panes
    assert panes.schema.names == ["g", *MEASURES, "_window_start", "_window_end", "_pane", "_pane_index", "_epoch"]
    assert [panes.schema.field(n).type for n in panes.schema.names[-5:]] == [TYPES["t"], TYPES["t"], pa.string(), pa.int32(), pa.int64()]
    starts = micros(panes.column("_window_start"))
    assert starts == sorted(starts, key=lambda s: s or 0)
    assert set(panes.column("_pane").to_pylist()) <= {"batch"}
    assert panes.equals(aggregate_batch(batch_of(rows[::-1]), spec, time="t").panes)


def test_a_null_in_a_group_column_is_a_group_and_equal_floats_are_one() -> None:
    batch = pa.record_batch({"f": pa.array([None, 0.0, -0.0, math.nan, -math.nan, None])})
    panes = aggregate_batch(batch, AggregateSpec(group_by=["f"], measures={"n": "count()"})).panes
    assert sorted((str(f), n) for f, n in zip(panes.column("f").to_pylist(), panes.column("n").to_pylist(), strict=True)) == [
        ("0.0", 2),
        ("None", 2),
        ("nan", 2),
    ]


def test_no_rows_no_panes_and_the_columns_are_there() -> None:
    for windowing in WINDOWINGS.values():
        for group_by in ([], ["g"]):
            out = aggregate_batch(batch_of([]), AggregateSpec(windowing=windowing, group_by=group_by, measures=MEASURES), time="t")
            full = aggregate_batch(
                batch_of([{"g": "a", "f": 1.0, "t": 0, "x": 1}]),
                AggregateSpec(windowing=windowing, group_by=group_by, measures=MEASURES),
                time="t",
            )
            assert (out.panes.num_rows, out.dead.num_rows) == (0, 0)
            assert out.panes.schema == full.panes.schema


def test_names_that_need_quotes_and_sql_words_work_everywhere() -> None:
    names = ['a "b" c', "select", "x.y", "😀", "w", "g0", "p0", "_x"]
    batch = pa.record_batch({n: pa.array([1, 1, 2]) for n in names} | {"the time": instants(np.arange(3))})
    measures = {
        'sum of "all"': 'sum("a ""b"" c")',
        "from": 'max("select") where "x.y" = 2',
        "e": 'sum("w" + "g0" + "p0" + "_x")',
        "😀😀": 'first("😀")',
    }
    spec = AggregateSpec(windowing=WindowSpec(type="sessions", gap="1h"), time="the time", group_by=names, measures=measures)
    panes = aggregate_batch(batch, spec, name='odd "name"').panes
    assert panes.schema.names[: len(names) + 4] == [*names, *measures]
    assert [list(r.values())[:12] for r in panes.to_pylist()] == [[1] * 8 + [2, None, 8, 1], [2] * 8 + [2, 2, 8, 2]]


def test_group_columns_keep_their_types() -> None:
    columns = {
        "i": pa.array([7], pa.int8()),
        "d": pa.array([Decimal("1.50")], pa.decimal128(9, 2)),
        "day": pa.array([1], pa.int32()).cast(pa.date32()),
        "at": instants(np.array([5])),
        "civil": pa.array([5], pa.timestamp("us")),
        "clock": pa.array([5], pa.time64("us")),
        "b": pa.array([b"x"]),
        "flag": pa.array([True]),
        "u": pa.array([2**64 - 1], pa.uint64()),
        "tags": pa.array([["a", "b"]]),
        "place": pa.array([{"x": 1.0}]),
    }
    batch = pa.record_batch(columns)
    panes = aggregate_batch(batch, AggregateSpec(group_by=list(columns), measures={"n": "count()"})).panes
    assert panes.select(list(columns)).to_pylist() == batch.to_pylist()
    assert [panes.schema.field(n).type.id for n in columns] == [a.type.id for a in columns.values()]
    assert panes.schema.field("at").type.tz == "UTC"
    assert panes.schema.field("civil").type.tz is None


def test_a_dictionary_column_is_grouped_by_its_values() -> None:
    rows = [pa.record_batch({"c": pa.array(v).dictionary_encode()}) for v in (["a", "b"], ["b", "c"])]
    spec = AggregateSpec(group_by=["c"], measures={"n": "count()", "m": "max(c)"})
    made = [partials(b, plan(spec, b.schema)).partials for b in rows]
    assert present(merge_partials(made, spec), spec).panes.select(["c", "n", "m"]).to_pylist() == [
        {"c": c, "n": n, "m": c} for c, n in (("a", 1), ("b", 2), ("c", 1))
    ]


def with_provenance(arrivals: list[int | None], times: list[int | None], **more: pa.Array) -> pa.RecordBatch:
    utc = pa.timestamp("us", "UTC")
    columns = provenance("file.csv", pa.array(range(len(times)), pa.int64()), pa.array(arrivals, pa.int64()).cast(utc))
    return pa.RecordBatch.from_arrays(
        [*columns, pa.array(times, pa.int64()).cast(utc), *more.values()], names=["_source", "_position", "_arrival_time", "t", *more]
    )


LATE = AggregateSpec(windowing=WindowSpec(size="1h", allowed_lateness="1h"), measures={"n": "count()"})


def doors(batch: pa.RecordBatch, out: Panes) -> None:
    """Each row is in the panes (its `count()`) or in `dead`."""
    assert sum(out.panes.column("n").to_pylist()) + out.dead.num_rows == batch.num_rows


def test_a_late_row_is_aggregated_by_a_batch_and_a_dead_letter_by_the_streams_rule() -> None:
    batch = with_provenance([0, 2 * HOUR, 2 * HOUR + 1, None], [5, 5, 5, 5])
    assert aggregate_batch(batch, LATE, time="t").panes.column("n").to_pylist() == [4]
    out = aggregate_batch(batch, LATE, name="hourly", time="t", apply_lateness=True)
    doors(batch, out)
    [letter] = out.dead.to_pylist()
    assert (letter["reason"], letter["stage"], letter["source"], letter["position"]) == ("LATE", "aggregate", "file.csv", 2)
    assert letter["message"].startswith("hourly: arrived at 1970-01-01 02:00:00.000001Z")
    assert letter["event_time"] == datetime(1970, 1, 1, 0, 0, 0, 5, tzinfo=UTC)
    assert out.dead.schema == DEAD_LETTERS


def test_a_too_late_row_of_sliding_windows_is_in_none_of_them() -> None:
    """Its earliest window decides, so that a replay of the dead letter counts it nowhere twice."""
    spec = AggregateSpec(windowing=WindowSpec(type="sliding", size="2h", period="1h"), measures={"n": "count()"})
    batch = with_provenance([0, HOUR + HOUR // 2], [HOUR // 2, HOUR // 2])
    out = aggregate_batch(batch, spec, time="t", apply_lateness=True)
    assert out.panes.column("n").to_pylist() == [1, 1]
    assert out.dead.column("position").to_pylist() == [1]


def test_a_row_without_a_time_is_a_dead_letter_where_there_are_windows_only() -> None:
    batch = with_provenance([None] * 3, [1, None, 2], x=pa.array([1, 2, 3]))
    out = aggregate_batch(batch, LATE, time="t")
    doors(batch, out)
    assert out.dead.select(["position", "reason"]).to_pylist() == [{"position": 1, "reason": "TIME"}]
    whole = aggregate_batch(batch, AggregateSpec(measures={"n": "count()", "s": "sum(x)", "f": "first(x)", "l": "last(x)"}), time="t")
    assert whole.panes.select(["n", "s", "f", "l"]).to_pylist() == [{"n": 3, "s": 6, "f": 1, "l": 3}]
    assert not whole.dead.num_rows


def test_an_expression_that_fails_on_some_rows_costs_those_rows() -> None:
    batch = with_provenance([0, None, 99 * HOUR, None, None], [1, 2, 3, None, 5], x=pa.array([1, 2**63 - 1, 3, 4, 5]))
    spec = AggregateSpec(windowing=WindowSpec(size="1h"), measures={"n": "count()", "s": "sum(x + 1)", "m": "max(x + 1) where x < 3"})
    out = aggregate_batch(batch, spec, name="sums", time="t", apply_lateness=True)
    doors(batch, out)
    assert out.panes.select(["n", "s", "m"]).to_pylist() == [{"n": 2, "s": 8, "m": 2}]
    assert sorted(zip(out.dead.column("position").to_pylist(), out.dead.column("reason").to_pylist(), strict=True)) == [
        (1, "EXPRESSION"),
        (2, "LATE"),
        (3, "TIME"),
    ]
    assert (
        "sums.s"
        in out.dead.filter(pa.array([r == "EXPRESSION" for r in out.dead.column("reason").to_pylist()])).column("message")[0].as_py()
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"measures": {"s": "sum(xx)"}}, "xx"),
        ({"measures": {"s": "sum(g)"}}, "needs a number"),
        ({"measures": {"n": "count()"}, "group_by": ["gg"]}, "did you mean 'g'"),
        ({"measures": {"n": "count()"}, "windowing": WindowSpec(size="1h"), "time": "tt"}, "did you mean 't'"),
        ({"measures": {"n": "count()"}, "windowing": WindowSpec(size="1h")}, "windows need a time column"),
        ({"measures": {"n": "first(x)"}}, "go by event time"),
    ],
)
def test_an_aggregate_that_does_not_fit_its_rows_is_explained(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        aggregate_batch(batch_of([{"g": "a", "f": 1.0, "t": 0, "x": 1}]), AggregateSpec(**fields))


def test_partials_of_rows_of_other_types_do_not_merge() -> None:
    spec = AggregateSpec(measures={"m": "min(x)"})
    made = [partials(b, plan(spec, b.schema)).partials for b in (pa.record_batch({"x": [1]}), pa.record_batch({"x": [1.5]}))]
    with pytest.raises(ValueError, match="do not merge"):
        merge_partials(made, spec)


def test_the_hash_that_shards_keeps_together_what_must_meet() -> None:
    rows = [{"g": g, "f": 1.0, "t": t * HOUR, "x": t} for g in "abcdefgh" for t in range(12)]
    for name, whole_groups in (("fixed", False), ("sliding", True), ("sessions", True)):
        spec = AggregateSpec(windowing=WINDOWINGS[name], group_by=["g"], measures={"n": "count()"})
        parts = split_by_key(partials(batch_of(rows), plan(spec, batch_of(rows).schema, time="t")).partials, spec, 4)
        groups = [set(p.column("g0").to_pylist()) for p in parts.values()]
        assert len(parts) > 1
        assert sum(p.num_rows for p in parts.values()) == len(rows)
        assert not whole_groups or sum(map(len, groups)) == 8
