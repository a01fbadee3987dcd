"""Measures are monoids: any grouping and order of merges gives what one pass over all rows gives, which is what plain Python gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.measures import Measure, measure_type, parse_measure
from beam_pipelines.arrow.panes import Plan, aggregate_batch, merge_partials, partials, plan, present
from beam_pipelines.arrow.windowing import instants
from beam_pipelines.errors import SpecError
from tests.arrow.slow_aggregate import measured
from tests.laws import share

WIDE = Context(prec=76)
NUMERIC = ("count", "sum", "min", "max", "avg", "stddev", "count_distinct", "first", "last", "quantile")
ORDERED = ("count", "min", "max", "count_distinct", "first", "last")
FLOATS = st.one_of(
    st.floats(-1e300, 1e300),
    st.floats(-1000, 1000),
    st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 1e10, 1e10 + 1e-6, 5e-324, 1e149]),
)


def decimals(precision: int, scale: int) -> st.SearchStrategy[Decimal]:
    top = 10**precision - 1
    return st.one_of(st.integers(-top, top), st.sampled_from([top, -top]), st.integers(-20, 20)).map(
        lambda i: Decimal(i).scaleb(-scale, WIDE)
    )


def integers(bits: int, *, signed: bool = True) -> st.SearchStrategy[int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.one_of(st.integers(low, high), st.sampled_from([low, high]), st.integers(max(low, -3), 3))


# Arrow type -> values, and the functions that take it
KINDS: dict[pa.DataType, tuple[st.SearchStrategy[Any], Sequence[str]]] = {
    pa.int8(): (integers(8), NUMERIC),
    pa.int32(): (integers(32), NUMERIC),
    pa.int64(): (st.one_of(st.integers(-(2**57), 2**57), st.integers(-3, 3), st.sampled_from([2**57, -(2**57)])), NUMERIC),
    pa.uint64(): (integers(58, signed=False), NUMERIC),
    pa.float32(): (st.floats(width=32), NUMERIC),
    pa.float64(): (FLOATS, NUMERIC),
    pa.decimal128(12, 2): (decimals(12, 2), NUMERIC),
    pa.decimal128(18, 18): (decimals(18, 18), NUMERIC),
    pa.decimal128(20, 4): (decimals(20, 4), NUMERIC),
    pa.decimal128(36, 6): (decimals(36, 6), NUMERIC),
    pa.string(): (st.sampled_from(["", "a", "ä", "z", "\U0001f600", "a\x00b"]), ORDERED),
    pa.bool_(): (st.booleans(), ORDERED),
    pa.binary(): (st.binary(max_size=2), ORDERED),
}


Same = Callable[[pa.RecordBatch, pa.RecordBatch], None]


def split_anyhow(batch: pa.RecordBatch, data: st.DataObject) -> list[pa.RecordBatch]:
    """Rows in another order, cut into batches (some empty, all of them slices)."""
    order = data.draw(st.permutations(range(batch.num_rows)))
    shuffled = batch.take(pa.array(order, pa.int64()))
    cuts = sorted(data.draw(st.lists(st.integers(0, batch.num_rows), max_size=4)))
    return [shuffled.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, batch.num_rows], strict=True)]


def merged_anyhow(made: list[pa.RecordBatch], spec: AggregateSpec, data: st.DataObject) -> pa.RecordBatch:
    """Partials merged as some tree: any two or more of what there is, until one is left."""
    made = list(made)
    while len(made) > 1:
        some = data.draw(st.integers(2, len(made)))
        made = [*made[some:], merge_partials(made[:some], spec)]
    return made[0]


def assert_is_a_monoid(batch: pa.RecordBatch, spec: AggregateSpec, made_by: Plan, data: st.DataObject, same: Same) -> pa.RecordBatch:
    """merge(any grouping, any order) = sequential = direct; gives the direct answer."""
    direct = present(partials(batch, made_by).partials, spec).panes
    anyhow = [partials(b, made_by).partials for b in split_anyhow(batch, data)]
    same(present(merged_anyhow(anyhow, spec, data), spec).panes, direct)
    sequential = anyhow[0]
    for part in anyhow[1:]:
        sequential = merge_partials([sequential, part], spec)
    same(present(sequential, spec).panes, direct)
    return direct


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_function_is_a_monoid_and_agrees_with_plain_python(kind: pa.DataType) -> None:
    values, functions = KINDS[kind]
    spec = AggregateSpec(measures={f: f"{f}(x, 0.3)" if f == "quantile" else f"{f}(x)" for f in functions})
    made_by = plan(spec, pa.schema({"x": kind, "t": pa.timestamp("us", "UTC")}), time="t")

    @settings(share(4), database=None)
    @given(st.lists(st.tuples(st.one_of(st.none(), values), st.integers(0, 5)), max_size=12), st.data())
    def law(rows: list[tuple[Any, int]], data: st.DataObject) -> None:
        batch = pa.record_batch({"x": pa.array([x for x, _ in rows], kind), "t": instants(np.array([t for _, t in rows], np.int64))})
        some = [(x, t) for x, t in rows if x is not None]
        finite = sum(abs(Fraction(x)) for x, _ in some if isinstance(x, float) and math.isfinite(x))
        size = float(min(finite, Fraction(1e308)))

        def same(got: pa.RecordBatch, expected: pa.RecordBatch) -> None:
            assert got.schema == expected.schema
            for f in functions:
                for a, b in zip(got.column(f).to_pylist(), expected.column(f).to_pylist(), strict=True):
                    assert_close(f, a, b, size)

        direct = assert_is_a_monoid(batch, spec, made_by, data, same)
        assert direct.num_rows == bool(rows)
        for f in functions if rows else ():
            assert_close(f, direct.column(f)[0].as_py(), measured(f, [x for x, _ in some], [t for _, t in some], 0.3), size)

    law()


def assert_close(function: str, got: Any, expected: Any, size: float) -> None:
    """Exact, but for floats: sums within 1e-12 of the sum of sizes, deviations 1e-9, quantiles 1 %."""
    if got is None or expected is None or not isinstance(got, float) or function in ("min", "max", "first", "last"):
        got = Fraction(got) if isinstance(got, Decimal) else got
        assert got == expected or (got != got and expected != expected), (function, got, expected)
    elif not math.isfinite(expected):
        assert got == expected or (got != got and expected != expected), (function, got, expected)
    elif function == "quantile":
        assert abs(got - expected) <= 0.0100001 * abs(expected) + 1e-300, (got, expected)
    else:
        slack = {"stddev": 1e-9 * abs(expected) + 1e-14 * size + 1e-150}.get(function, 1e-12 * size + 1e-15 * abs(expected) * 8 + 1e-290)
        assert abs(got - expected) <= slack, (function, got, expected)


@share(15)
@given(st.lists(st.integers(-5, 5), max_size=30), st.floats(0, 1))
def test_a_condition_leaves_out_rows_for_which_it_is_not_true(xs: list[int], q: float) -> None:
    spec = AggregateSpec(
        measures={
            "n": "count() where x > 0",
            "s": "sum(100 // x) WHERE x <> 0",
            "q": f"quantile(x, {q:.4f}) where x BETWEEN -2 AND 2",
            "m": "max(x) where x > 100",
        }
    )
    out = aggregate_batch(pa.record_batch({"x": pa.array(xs, pa.int64())}), spec)
    assert not out.dead.num_rows
    for row in out.panes.to_pylist():
        assert row["n"] == sum(x > 0 for x in xs)
        assert row["s"] == (sum(int(100 / x) for x in xs if x) if any(xs) else None)
        assert row["m"] is None
        assert_close("quantile", row["q"], measured("quantile", [x for x in xs if -2 <= x <= 2], None, float(f"{q:.4f}")), 0)


def only(values: list[Any], kind: pa.DataType, **measures: str) -> dict[str, Any]:
    """The one pane of all values."""
    [row] = aggregate_batch(pa.record_batch({"x": pa.array(values, kind)}), AggregateSpec(measures=measures)).panes.to_pylist()
    return {m: row[m] for m in measures}


def test_big_integers_lose_nothing_on_the_way() -> None:
    top = 2**63 - 1
    assert only([top, top, -top, -top, 1], pa.int64(), s="sum(x)", a="avg(x)") == {"s": 1, "a": 0.2}
    assert only([10**18, 10**18 + 1, 10**18 + 2], pa.int64(), d="stddev(x)") == {"d": 1.0}
    assert only([2**64 - 1, 2**64 - 3], pa.uint64(), d="stddev(x)") == {"d": math.sqrt(2)}
    assert only([-top - 1, top], pa.int64(), d="stddev(x)")["d"] == pytest.approx((2.0**64) / math.sqrt(2))


def test_a_sum_that_does_not_fit_is_null_and_a_dead_letter_says_so() -> None:
    rows = pa.record_batch({"g": ["a", "a", "b"], "x": pa.array([2**63 - 1, 1, 1], pa.int64())})
    out = aggregate_batch(rows, AggregateSpec(group_by=["g"], measures={"n": "count()", "s": "sum(x)"}), name="sales")
    assert out.panes.select(["n", "s"]).to_pylist() == [{"n": 2, "s": None}, {"n": 1, "s": 1}]
    [letter] = out.dead.to_pylist()
    assert (letter["source"], letter["stage"], letter["reason"], letter["raw_format"]) == (
        "aggregate:sales",
        "aggregate",
        "EXPRESSION",
        "pane",
    )
    assert "sales.s: the sum does not fit int64" in letter["message"]
    assert b'"g":"a"' in letter["raw"]


def test_wide_decimals_overflow_only_at_the_end() -> None:
    top = Decimal(10**38 - 1)
    low = top.copy_negate()  # `-top` would round to 28 digits
    assert only([top, top, low, low, Decimal(7)], pa.decimal128(38, 0), s="sum(x)", a="avg(x)") == {"s": 7, "a": 1.4}
    assert only([top, top], pa.decimal128(38, 0), s="sum(x)", a="avg(x)") == {"s": None, "a": 1e38}
    tiny = Decimal(1).scaleb(-38)
    assert only([tiny, tiny], pa.decimal128(38, 38), s="sum(x)") == {"s": 2 * tiny}


def test_float_sums_keep_the_small_beside_the_large_and_overflow_only_at_the_end() -> None:
    assert only([1e16, 1.0, -1e16], pa.float64(), s="sum(x)") == {"s": 1.0}
    assert only([1e308, 1e308, -1e308], pa.float64(), s="sum(x)", a="avg(x)")["s"] == pytest.approx(1e308)
    assert only([1e308, 1e308], pa.float64(), s="sum(x)", a="avg(x)") == {"s": math.inf, "a": pytest.approx(1e308)}
    assert only([1.0, math.inf], pa.float64(), s="sum(x)", a="avg(x)") == {"s": math.inf, "a": math.inf}
    assert math.isnan(only([math.inf, -math.inf, 1.0], pa.float64(), s="sum(x)")["s"])


def test_all_null_is_no_value_and_nan_is_the_largest_number() -> None:
    every = {f: f"{f}(x, 0.5)" if f == "quantile" else f"{f}(x)" for f in NUMERIC if f not in ("first", "last")}
    nothing = {f: 0 if f.startswith("count") else None for f in every}
    for kind in (pa.int64(), pa.float64(), pa.decimal128(12, 2), pa.decimal128(38, 0)):
        assert only([None, None], kind, **every) == nothing
    got = only([math.nan, 1.0, math.nan], pa.float64(), lo="min(x)", hi="max(x)", d="count_distinct(x)")
    assert (got["lo"], got["d"], math.isnan(got["hi"])) == (1.0, 2, True)


def test_a_deviation_loses_no_digits_to_a_large_common_mean() -> None:
    rng = np.random.default_rng(7)
    values = (1e9 + rng.normal(0, 1, 3000)).tolist()
    spec = AggregateSpec(measures={"d": "stddev(x)"})
    batch = pa.record_batch({"x": values})
    parts = [partials(batch.slice(i, 100), plan(spec, batch.schema)).partials for i in range(0, 3000, 100)]
    [row] = present(merge_partials(parts, spec), spec).panes.to_pylist()
    assert row["d"] == pytest.approx(measured("stddev", values), rel=1e-9, abs=1e-15 * 1e9)


def test_quantiles_of_many_values_are_within_one_percent() -> None:
    rng = np.random.default_rng(3)
    values = np.sort(np.concatenate([rng.lognormal(0, 5, 5000), -rng.lognormal(0, 5, 3000), np.zeros(100)]))
    qs = [0, 0.001, 0.2, 0.37, 0.375, 0.5, 0.9, 0.999, 1]
    got = only(values.tolist(), pa.float64(), **{f"q{i}": f"quantile(x, {q})" for i, q in enumerate(qs)})
    for i, q in enumerate(qs):
        exact = values[int(q * (len(values) - 1))]
        assert abs(got[f"q{i}"] - exact) <= 0.010001 * abs(exact)
    assert (got["q0"], got["q8"]) == (values[0], values[-1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("count()", Measure("count")),
        (" COUNT( * ) ", Measure("count")),
        ("sum(a + f(b, ')')) where c = 'x where y'", Measure("sum", "a + f(b, ')')", None, "c = 'x where y'")),
        ('max("odd ""( name")', Measure("max", '"odd ""( name"')),
        ("quantile(coalesce(a, b), .5)", Measure("quantile", "coalesce(a, b)", 0.5)),
        ("sum([1, 2][i])WHERE(x)", Measure("sum", "[1, 2][i]", None, "(x)")),
    ],
)
def test_a_measure_is_taken_apart(text: str, expected: Measure) -> None:
    assert parse_measure(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("summ(x)", "did you mean 'sum'"),
        ("x + 1", "is not function"),
        ("sum()", "takes one argument; got 0"),
        ("sum(a, b)", "takes one argument; got 2"),
        ("sum(a", "do not match"),
        ("sum(a]", "do not match"),
        ("sum('a)", "do not match"),
        ("count(distinct a)", "count_distinct"),
        ("quantile(a)", "a number between 0 and 1"),
        ("quantile(a, 2)", "got q = '2'"),
        ("quantile(a, b)", "got q = 'b'"),
        ("sum(a) filter (where b)", "unexpected"),
        ("sum(a) where", "unexpected"),
        ("sum(a) + 1", "unexpected"),
        ("", "is not function"),
    ],
)
def test_a_measure_that_cannot_be_read_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_measure(text)


COLUMNS = {
    "i": "INTEGER",
    "b": "BIGINT",
    "d": "DECIMAL(12,2)",
    "f": "FLOAT",
    "s": "VARCHAR",
    "t": "TIMESTAMP",
    'o"dd': "BOOLEAN",
    "h": "HUGEINT",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("count()", "BIGINT"), ("count_distinct(s)", "BIGINT"), ("sum(i)", "BIGINT"), ("sum(b)", "BIGINT"), ("sum(d)", "DECIMAL(38,2)"),
        ("sum(f)", "DOUBLE"), ("avg(d)", "DOUBLE"), ("stddev(i)", "DOUBLE"), ("quantile(d, 0.5)", "DOUBLE"), ("min(f)", "FLOAT"), ("max(t)", "TIMESTAMP"),
        ("first(s)", "VARCHAR"), ('sum("o""dd")', "BIGINT"), ("sum(h)", "DECIMAL(38,0)"), ("sum(d * i) where s = 'x'", "DECIMAL(38,2)"),
    ],
)  # fmt: skip
def test_the_type_of_a_measure_is_known_without_data(text: str, expected: str) -> None:
    assert measure_type(text, COLUMNS) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sum(s)", "needs a number"),
        ("avg(t)", "needs a number"),
        ("sum(nope)", "nope"),
        ("sum(avg(i))", "avg"),
        ("sum(i) where s", "BOOLEAN"),
        ("min(t - t)", "intervals"),
    ],
)
def test_a_measure_that_does_not_fit_the_columns_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        measure_type(text, COLUMNS)


def test_the_known_type_is_the_type_of_the_pane() -> None:
    batch = pa.record_batch(
        {
            n: pa.nulls(0, k)
            for n, k in {
                "i": pa.int32(),
                "d": pa.decimal128(12, 2),
                "f": pa.float32(),
                "s": pa.string(),
                "t": pa.timestamp("us", "UTC"),
                "c": pa.timestamp("us"),
            }.items()
        }
    )
    spec = AggregateSpec(
        measures={
            "a": "sum(i)",
            "b": "sum(d)",
            "c": "sum(f)",
            "e": "min(f)",
            "g": "first(s)",
            "h": "max(t)",
            "j": "min(c)",
            "k": "stddev(d)",
            "l": "quantile(i, 0.5)",
            "m": "count_distinct(s)",
        }
    )
    kinds = dict(zip(spec.measures, aggregate_batch(batch, spec, time="t").panes.schema.types, strict=False))
    instant = pa.timestamp("us", "UTC")
    expected = [
        pa.int64(),
        pa.decimal128(38, 2),
        pa.float64(),
        pa.float32(),
        pa.string(),
        instant,
        pa.timestamp("us"),
        pa.float64(),
        pa.float64(),
        pa.int64(),
    ]
    assert list(kinds.values()) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"measures": {"n": "cuont()"}}, "did you mean 'count'"),
        ({"measures": {"_n": "count()"}}, "reserved"),
        ({"measures": {"g": "count()"}, "group_by": ["g"]}, "twice"),
    ],
)
def test_an_aggregate_that_cannot_be_is_refused_when_declared(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AggregateSpec(**fields)
