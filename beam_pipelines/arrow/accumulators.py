"""Each measure as an accumulator: what is kept per group (`parts`), how it is made from rows, merged, and shown.

Merging is associative and commutative. Integers and decimals are kept exactly (sums of 128 bits, or two limbs where those could overflow);
sums of floats use compensated summation and agree, whatever the order, within 1e-12 of the sum of the absolute values; deviations of floats
within 1e-9 of themselves or 1e-15 of the values. Float sums are kept scaled by 2^-64
so that only a final sum outside float64 becomes infinite; infinities and NaN among the values are kept apart and win.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from beam_pipelines.arrow.measures import FLOATS, HUGE, INTEGERS, SMALL_INTEGERS, Measure, decimal_of, result_type
from beam_pipelines.arrow.quantiles import bucket_sql, merge_sketches, quantile_of

Merge = Callable[[pa.Array, np.ndarray, int], pa.Array]
"""(the part's values, the group of each, the number of groups) -> one value per group."""
Present = Callable[..., pa.Array]
"""(one array per part) -> the measure's values."""

EVENT_MICROS = "_event_micros"
_DOWN, _UP = "5.421010862427522e-20::DOUBLE", "18446744073709551616.0::DOUBLE"  # 2^-64, 2^64
_LIMB = 10**19
_SAFE_DIGITS = 28  # 10^10 values of so many digits sum to less than 10^38
_SQUARABLE = 1e150
_MOMENTS = pa.struct([("n", pa.int64()), ("mean", pa.float64()), ("m2", pa.float64())])


@dataclass(frozen=True)
class Part:
    """One value kept per group. `create` is SQL over rows with `{x}` for the input, `merge` SQL over partials with `{p}`, or Python."""

    create: str
    merge: str | Merge


@dataclass(frozen=True)
class Accumulator:
    """How one measure is computed. `present` is SQL over `{0}`, `{1}`, … or Python over arrays, one per part.

    `input` is SQL over a row: the argument, NULL where the condition is not TRUE. Where `checked`, the first part may hold a value that
    the result type cannot: the result is NULL then.
    """

    type: str
    input: str
    parts: tuple[Part, ...]
    present: str | Present
    checked: bool = False


def accumulator(measure: Measure, argument: str) -> Accumulator:
    """The accumulator of `measure` over an argument of SQL type `argument` (see `measures.argument_type`)."""
    kind = result_type(measure, argument)
    value = _input(measure, argument)
    if measure.function == "sum":
        return _sum(kind, value, argument)
    if measure.function == "avg":
        return _avg(kind, value, argument)
    if measure.function == "stddev":
        return _stddev(kind, value, argument)
    parts, present = _SIMPLE[measure.function](argument)
    shown: str | Present = present
    if measure.function == "quantile":
        q = measure.q or 0.0

        def show(sketch: pa.Array, low: pa.Array, high: pa.Array) -> pa.Array:
            return quantile_of(sketch, low, high, q)

        shown = show
    return Accumulator(kind, value, parts, shown)


def _input(measure: Measure, argument: str) -> str:
    value = f"({measure.argument})" if measure.argument else "1"
    if measure.function in ("sum", "avg", "stddev", "quantile"):
        value = f"{value}::{_number(argument)}"
    if measure.function in ("sum", "avg") and _wide(argument):
        value = _unscaled_text(value, argument)
    return f"CASE WHEN ({measure.where}) THEN {value} END" if measure.where else value


def _number(argument: str) -> str:
    return {"BOOLEAN": "UTINYINT", "FLOAT": "DOUBLE", "UHUGEINT": "HUGEINT"}.get(argument, argument)


def _wide(argument: str) -> bool:
    digits = decimal_of(argument)
    return argument in HUGE or (digits is not None and digits[0] > _SAFE_DIGITS)


def _unscaled_text(value: str, argument: str) -> str:
    """A decimal as the integer of its digits: DuckDB multiplies decimals only up to 38 digits."""
    return value if argument in HUGE else f"replace({value}::VARCHAR, '.', '')::HUGEINT"


_COUNT = Part("count({x})", "sum({p})::BIGINT")
_EXACT = Part("sum({x})::DECIMAL(38,0)", "sum({p})::DECIMAL(38,0)")
_HIGH = Part(f"sum({{x}} // {_LIMB}::HUGEINT)::DECIMAL(38,0)", "sum({p})::DECIMAL(38,0)")
_LOW = Part(f"sum({{x}} % {_LIMB}::HUGEINT)::DECIMAL(38,0)", "sum({p})::DECIMAL(38,0)")
_FINITE = Part(f"fsum(CASE WHEN isfinite({{x}}) THEN {{x}} * {_DOWN} END)", "fsum({p})")
_SPECIAL = Part("sum(CASE WHEN NOT isfinite({x}) THEN {x} END)", "sum({p})")


def _total_parts(argument: str) -> tuple[Part, ...]:
    if argument in FLOATS:
        return (_FINITE, _SPECIAL)
    if _wide(argument):
        return (_HIGH, _LOW)
    digits = decimal_of(argument)
    return (_EXACT,) if digits is None else (Part("sum({x})", "sum({p})"),)


def _scale(argument: str) -> int:
    digits = decimal_of(argument)
    return digits[1] if digits else 0


def _sum(kind: str, value: str, argument: str) -> Accumulator:
    parts = _total_parts(argument)
    if argument in FLOATS:
        return Accumulator(kind, value, parts, f"coalesce({{1}}, {{0}} * {_UP})")
    if _wide(argument):
        scale = _scale(argument)

        def show(high: pa.Array, low: pa.Array) -> pa.Array:
            totals = [_fitting(h, low_, scale) for h, low_ in zip(high.to_pylist(), low.to_pylist(), strict=True)]  # panes, past 128 bits
            return pa.array(totals, pa.decimal128(38, scale))

        return Accumulator(kind, value, parts, show, checked=True)
    return Accumulator(kind, value, parts, "TRY_CAST({0} AS BIGINT)" if kind == "BIGINT" else "{0}", checked=kind == "BIGINT")


def _fitting(high: decimal.Decimal | None, low: decimal.Decimal | None, scale: int) -> decimal.Decimal | None:
    if high is None or low is None:
        return None
    total = int(high) * _LIMB + int(low)
    return decimal.Decimal(total).scaleb(-scale, decimal.Context(prec=76)) if abs(total) < 10**38 else None


def _avg(kind: str, value: str, argument: str) -> Accumulator:
    parts = (*_total_parts(argument), _COUNT)
    if argument in FLOATS:
        return Accumulator(kind, value, parts, f"coalesce({{1}}, {{0}} / {{2}} * {_UP})")
    if _wide(argument):
        over = 10 ** _scale(argument)

        def show(high: pa.Array, low: pa.Array, count: pa.Array) -> pa.Array:
            rows = zip(high.to_pylist(), low.to_pylist(), count.to_pylist(), strict=True)  # panes, past 128 bits
            return pa.array([None if h is None else (int(h) * _LIMB + int(lo)) / (n * over) for h, lo, n in rows], pa.float64())

        return Accumulator(kind, value, parts, show)
    return Accumulator(kind, value, parts, "CASE WHEN {1} > 0 THEN {0}::DOUBLE / {1} END")


def _stddev(kind: str, value: str, argument: str) -> Accumulator:
    """Exact for integers to 64 bits and decimals to 18 digits; otherwise by moments in float64 (Chan, Golub, LeVeque 1979)."""
    digits = decimal_of(argument)
    if argument in INTEGERS:
        return Accumulator(kind, value, _square_parts(argument, "{x}"), _exact_stddev(1))
    if digits is not None and digits[0] <= 18:
        unscaled = f"({{x}} * {10 ** digits[1]}::DECIMAL({digits[1] + 1},0))::HUGEINT"
        return Accumulator(kind, value, _square_parts("BIGINT", unscaled), _exact_stddev(10 ** digits[1]))
    x = "{x}::DOUBLE"
    usable = f"CASE WHEN abs({x}) < {_SQUARABLE} THEN {x} END"
    moments = Part(
        f"CASE WHEN count({usable}) > 0 THEN {{{{'n': count({usable}), 'mean': favg({usable}), 'm2': var_pop({usable}) * count({usable})}}}} END",
        _merge_moments,
    )
    special = Part(f"coalesce(bool_or(NOT abs({x}) < {_SQUARABLE}), false)", "bool_or({p})")
    return Accumulator(kind, value, (moments, special), _moments_stddev)


def _square_parts(argument: str, x: str) -> tuple[Part, ...]:
    """Count, sum, and the sum of squares in limbs of 64 bits. UBIGINT is moved by 2^63, which leaves the deviation alone."""
    wide = f"({x}::HUGEINT - 9223372036854775808)" if argument == "UBIGINT" else f"{x}::HUGEINT"
    total = Part(f"sum({wide})::DECIMAL(38,0)", "sum({p})::DECIMAL(38,0)")
    if argument in SMALL_INTEGERS:
        squares = f"sum({x}::BIGINT * {x}::BIGINT)::DECIMAL(38,0)"
        return (_COUNT, total, Part("0::DECIMAL(38,0)", "max({p})"), Part(squares, "sum({p})::DECIMAL(38,0)"))
    limb = f"{2**64}::HUGEINT"
    return (_COUNT, total, *(Part(f"sum(({wide} * {wide}) {op} {limb})::DECIMAL(38,0)", "sum({p})::DECIMAL(38,0)") for op in ("//", "%")))


def _exact_stddev(over: int) -> Present:
    def show(count: pa.Array, total: pa.Array, high: pa.Array, low: pa.Array) -> pa.Array:
        rows = zip(count.to_pylist(), total.to_pylist(), high.to_pylist(), low.to_pylist(), strict=True)  # panes, past 128 bits
        return pa.array([_deviation(n, int(s), int(h) * 2**64 + int(lo), over) if n > 1 else None for n, s, h, lo in rows], pa.float64())

    return show


def _deviation(n: int, total: int, squares: int, over: int) -> float:
    return math.sqrt((n * squares - total * total) / (n * (n - 1))) / over


def _merge_moments(moments: pa.Array, group: np.ndarray, groups: int) -> pa.Array:
    some = moments.is_valid().to_numpy(zero_copy_only=False)
    n, mean, m2 = (moments.field(i).to_numpy(zero_copy_only=False)[some] for i in range(3))
    group = group[some]
    count = np.bincount(group, n, groups).astype(float)  # without rows it would be integers
    with np.errstate(invalid="ignore", divide="ignore"):
        # about the first mean of each group, so that a large common mean costs no digits
        base = np.zeros(groups)
        base[group[::-1]] = mean[::-1]
        merged = base + np.bincount(group, n * (mean - base[group]), groups) / count
    squares = np.bincount(group, m2 + n * (mean - merged[group]) ** 2, groups).astype(float)
    arrays = [pa.array(count.astype(np.int64)), pa.array(merged), pa.array(squares)]
    return pa.StructArray.from_arrays(arrays, fields=list(_MOMENTS), mask=pa.array(count == 0))


def _moments_stddev(moments: pa.Array, special: pa.Array) -> pa.Array:
    some = moments.is_valid().to_numpy(zero_copy_only=False)
    n = np.where(some, moments.field(0).to_numpy(zero_copy_only=False), 0)
    odd = special.to_numpy(zero_copy_only=False).astype(bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.sqrt(moments.field(2).to_numpy(zero_copy_only=False) / (n - 1))
    return pa.array(np.where(odd, np.nan, values), mask=(n < 2) & ~odd)


def _plain(x: str, argument: str) -> str:
    """-0.0 as 0.0: they are equal, and which of two equals is met first must not show."""
    return f"(CASE WHEN {x} = 0 THEN 0::{argument} ELSE {x} END)" if argument in FLOATS else x


Simple = Callable[[str], tuple[tuple[Part, ...], str]]


def _count(argument: str) -> tuple[tuple[Part, ...], str]:
    return (_COUNT,), "{0}"


def _extreme(function: str) -> Simple:
    return lambda argument: ((Part(f"{function}({_plain('{x}', argument)})", f"{function}({{p}})"),), "{0}")


def _edge(function: str) -> Simple:
    """The value at the first or last instant: the extreme of (instant, value) pairs."""

    def parts(argument: str) -> tuple[tuple[Part, ...], str]:
        pair = f"{{{{'t': {EVENT_MICROS}, 'v': {_plain('{x}', argument)}}}}}"
        make = f"{function}(CASE WHEN {{x}} IS NOT NULL AND {EVENT_MICROS} IS NOT NULL THEN {pair} END)"
        return (Part(make, f"{function}({{p}})"),), "{0}.v"

    return parts


def _distinct(argument: str) -> tuple[tuple[Part, ...], str]:
    values = f"list(DISTINCT {_plain('{x}', argument)}) FILTER (WHERE {{x}} IS NOT NULL)"
    return (Part(values, "list_distinct(flatten(list({p})))"),), "coalesce(len({0}), 0)::BIGINT"


def _sketch(argument: str) -> tuple[tuple[Part, ...], str]:
    sketch = Part(f"map_entries(histogram({bucket_sql('{x}::DOUBLE')}))", merge_sketches)
    return (sketch, Part("min({x}::DOUBLE)", "min({p})"), Part("max({x}::DOUBLE)", "max({p})")), ""


_SIMPLE: dict[str, Simple] = {
    "count": _count, "min": _extreme("min"), "max": _extreme("max"), "first": _edge("min"), "last": _edge("max"),
    "count_distinct": _distinct, "quantile": _sketch,
}  # fmt: skip
