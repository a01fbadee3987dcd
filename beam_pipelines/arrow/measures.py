"""Measures as a user writes them: `sum(price * quantity) where currency = 'EUR'`, and the type each one gives.

    count()  count(x)  count_distinct(x)                rows, values, different values       int64
    sum(x)                                              integers: int64, decimal(p,s): decimal(38,s), floats: float64
    min(x)  max(x)  first(x)  last(x)                   the type of x
    avg(x)  stddev(x)  quantile(x, q)                   float64; stddev is the sample's

NULLs are ignored by all of them, and so is a row for which `where` is not TRUE: over no values counts are 0, everything else is NULL.
`first` and `last` go by event time; of several values at that instant the smallest (largest) is taken, so that order does not matter.
Nothing here loads pyarrow; DuckDB is loaded when a type is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from beam_pipelines.arrow.expressions import check_expression
from beam_pipelines.errors import SpecError, nearest

FUNCTIONS = ("count", "sum", "min", "max", "avg", "stddev", "count_distinct", "first", "last", "quantile")
SMALL_INTEGERS = frozenset({"BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "UTINYINT", "USMALLINT", "UINTEGER"})
INTEGERS = SMALL_INTEGERS | {"BIGINT", "UBIGINT"}
HUGE = frozenset({"HUGEINT", "UHUGEINT"})
FLOATS = frozenset({"FLOAT", "DOUBLE"})
_OPEN, _CLOSE = "([{", ")]}"
_EXPECTED = "Write count(), sum(x), min(x), max(x), avg(x), stddev(x), count_distinct(x), first(x), last(x) or quantile(x, q), each with an optional `where CONDITION`."


@dataclass(frozen=True)
class Measure:
    """One measure, taken apart. `argument` and `where` are SQL over a row or ""; `q` is set for quantiles."""

    function: str
    argument: str = ""
    q: float | None = None
    where: str = ""

    def __str__(self) -> str:
        inner = self.argument if self.q is None else f"{self.argument}, {self.q}"
        return f"{self.function}({inner})" + (f" where {self.where}" if self.where else "")


@lru_cache(maxsize=1024)
def parse_measure(text: str) -> Measure:
    """The measure that `text` writes. Its SQL is cut out here, not judged: see `measure_type`.

    Raises SpecError for an unknown function, unbalanced brackets, or a wrong number of arguments.

    >>> parse_measure("quantile(price, 0.95) where kind = 'a)'")
    Measure(function='quantile', argument='price', q=0.95, where="kind = 'a)'")
    """
    match = re.match(r"\s*([A-Za-z_]\w*)\s*\(", text)
    if match is None:
        raise SpecError(f"measure {text!r} is not function(argument).", hint=_EXPECTED)
    function = match.group(1).lower()
    if function not in FUNCTIONS:
        raise SpecError(f"measure {text!r}: unknown function {match.group(1)!r};", hint=nearest(function, FUNCTIONS))
    commas, end = _arguments(text, match.end())
    where = re.fullmatch(r"\s*(?:where\b\s*(.*\S))?\s*", text[end + 1 :], re.IGNORECASE | re.DOTALL)
    if where is None:
        raise SpecError(f"measure {text!r}: unexpected {text[end + 1 :].strip()!r} after the function.", hint=_EXPECTED)
    argument, q = _argument(text, function, match.end(), commas, end)
    return Measure(function, argument, q, where.group(1) or "")


def _argument(text: str, function: str, start: int, commas: list[int], end: int) -> tuple[str, float | None]:
    if function != "quantile":
        argument = text[start:end].strip()
        if commas or (not argument and function != "count"):
            raise SpecError(f"measure {text!r}: {function} takes one argument; got {len(commas) + bool(argument)}.", hint=_EXPECTED)
        if re.match(r"distinct\b", argument, re.IGNORECASE):
            raise SpecError(f"measure {text!r}: DISTINCT is not an expression.", hint="Write count_distinct(x).")
        return ("", None) if argument == "*" and function == "count" else (argument, None)
    if len(commas) != 1 or not text[start : commas[0]].strip():
        raise SpecError(f"measure {text!r}: quantile takes an expression and a number between 0 and 1.", hint="Write quantile(x, 0.95).")
    number = text[commas[0] + 1 : end].strip()
    if not re.fullmatch(r"\d*\.?\d+(e-?\d+)?", number, re.IGNORECASE) or not 0 <= float(number) <= 1:
        raise SpecError(f"measure {text!r}: got q = {number!r}; expected a number between 0 and 1.", hint="Write quantile(x, 0.95).")
    return text[start : commas[0]].strip(), float(number)


def _arguments(text: str, start: int) -> tuple[list[int], int]:
    """Where the commas between arguments lie, and the bracket that closes them."""
    depth = 0
    commas: list[int] = []
    for i, char in _outside_quotes(text, start):
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE and depth == 0:
            if char == ")":
                return commas, i
            break
        elif char in _CLOSE:
            depth -= 1
        elif char == "," and depth == 0:
            commas.append(i)
    raise SpecError(f"measure {text!r}: brackets or quotes do not match.", hint=_EXPECTED)


def _outside_quotes(text: str, start: int) -> Iterator[tuple[int, str]]:
    """Characters of `text` that are not inside a quoted string or identifier; a doubled quote reopens at once."""
    quote = ""
    for i in range(start, len(text)):
        char = text[i]
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            yield i, char


def measure_type(measure: Measure | str, column_types: Mapping[str, str]) -> str:
    """The SQL type of the measure over rows whose columns have the given SQL types; no data is needed.

    Raises SpecError for SQL that does not fit the columns, or an argument the function does not take.

    >>> measure_type('sum(price)', {'price': 'DECIMAL(12,2)'})
    'DECIMAL(38,2)'
    """
    parsed = parse_measure(measure) if isinstance(measure, str) else measure
    return result_type(parsed, argument_type(parsed, column_types))


def argument_type(measure: Measure, column_types: Mapping[str, str]) -> str:
    """The SQL type of the measure's argument ("" for `count()`), its condition checked as well."""
    if measure.where:
        check_expression(measure.where, column_types, kind="boolean")
    found = check_expression(measure.argument, column_types, kind="aggregate-arg").type if measure.argument else ""
    return "INTEGER" if found in (None, '"NULL"', "NULL") else found


def result_type(measure: Measure, argument: str) -> str:
    """The SQL type of the measure over an argument of SQL type `argument`."""
    function = measure.function
    if function in ("count", "count_distinct"):
        return "BIGINT"
    if function in ("min", "max", "first", "last"):
        if argument == "INTERVAL":
            raise SpecError(f"measure {str(measure)!r}: intervals cannot be stored.", hint="Use epoch(x) for seconds.")
        return "DECIMAL(38,0)" if argument in HUGE else argument
    decimal = decimal_of(argument)
    if argument not in INTEGERS | HUGE | FLOATS and decimal is None:
        raise SpecError(f"measure {str(measure)!r}: {function} needs a number; its argument has type {argument}.")
    if function != "sum" or argument in FLOATS:
        return "DOUBLE"
    if decimal is not None:
        return f"DECIMAL(38,{decimal[1]})"
    return "DECIMAL(38,0)" if argument in HUGE else "BIGINT"


def decimal_of(sql_type: str) -> tuple[int, int] | None:
    """(precision, scale) of a SQL decimal type; None for any other type."""
    match = re.fullmatch(r"DECIMAL\((\d+),\s*(\d+)\)", sql_type)
    return (int(match.group(1)), int(match.group(2))) if match else None
