"""SQL that turns a text into a contract type, strictly: what converts with a loss does not convert.

DuckDB's TRY_CAST is generous ('3.7', '1e3', '0x1F', '1_000' and ' 5 ' are integers to it; it rounds decimals and ignores the offset of
a timestamp), so every cast has a guard. A guard first compares the value's own text with the input, which costs 0.02 microseconds, and
looks with a regular expression only where they differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from beam_pipelines.arrow.contract import Column
from beam_pipelines.arrow.engine import literal
from beam_pipelines.arrow.types import DataType


class Cast(NamedTuple):
    """`value` is SQL for the converted input. `wrong`, given SQL for that value, is TRUE for an input that does not convert and never
    for NULL. `naive` is TRUE where a timestamp's text had no offset; None where none can be."""

    value: str
    wrong: Callable[[str], str] | None = None
    naive: str | None = None


INTEGER = r"[+-]?[0-9]+"
FLOAT = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
TIME = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,9})?)?"
NAIVE = rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}([T ]{TIME})?"
WITH_OFFSET = rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[T ]{TIME}(Z| UTC|[+-](0[0-9]|1[0-4])(:?[0-5][0-9])?)"
UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_JSON_STRING = r'"([^"\\]|\\.)*"'
_EMPTY_STRING = '""'
WHITE_SPACE = " \t\n\r\v\f\u00a0\u2003\u3000"

FIRST_MICROS, LAST_MICROS = -62_135_596_800_000_000, 253_402_300_799_999_999  # years 1 to 9999, what Python and BigQuery hold
_INSTANT_RANGE = "TIMESTAMP '0001-01-01 00:00:00' AND TIMESTAMP '9999-12-31 23:59:59.999999'"
_EXACT_DOUBLE = 2**53
_PER_MICRO = {"s": 1_000_000, "ms": 1_000, "us": 1}
_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


def prepared(text: str, column: Column) -> str:
    """`text` without white space around it and NULL where it means NULL, as the column says."""
    if column.trim:
        text = f"trim({text}, {literal(WHITE_SPACE)})"
    if len(column.null_values) == 1:
        return f"nullif({text}, {literal(column.null_values[0])})"
    if column.null_values:
        return f"CASE WHEN {text} IN ({', '.join(map(literal, column.null_values))}) THEN NULL ELSE {text} END"
    return text


def text_cast(text: str, dtype: DataType, column: Column) -> Cast:
    """The cast of SQL `text` to a scalar `dtype`. Nested types: see casts.py.

    >>> text_cast('"q"', DataType('int32'), Column(type='int32')).value
    'TRY_CAST("q" AS INTEGER)'
    """
    if dtype.integer:
        return _integer(text, dtype, column)
    if dtype.floating:
        return _float(text, dtype, column)
    return _BY_KIND[dtype.kind](text, dtype, column)


def matches(text: str, pattern: str) -> str:
    return f"regexp_full_match({text}, {literal(pattern)})"


def unconverted(text: str) -> Callable[[str], str]:
    """The plain rule: wrong is what is not NULL and has no value."""
    return lambda value: f"({text} IS NOT NULL AND {value} IS NULL)"


def _guarded(text: str, accepted: Callable[[str], str]) -> Callable[[str], str]:
    """Wrong unless the value prints as the text, or `accepted` says that the text is fine."""

    def wrong(value: str) -> str:
        return (
            f"CASE WHEN {value}::VARCHAR = {text} THEN FALSE WHEN {text} IS NULL THEN FALSE"
            f" WHEN {value} IS NULL THEN TRUE ELSE NOT ({accepted(value)}) END"
        )

    return wrong


def _integer(text: str, dtype: DataType, column: Column) -> Cast:
    def accepted(value: str) -> str:
        if not column.coerce:
            return matches(text, INTEGER)
        return f"{matches(text, INTEGER + '([.]0*)?')} OR ({value} BETWEEN -{_EXACT_DOUBLE} AND {_EXACT_DOUBLE} AND {_exact(text, value)})"

    return Cast(f"TRY_CAST({text} AS {dtype.sql})", _guarded(text, accepted))


def _exact(text: str, value: str) -> str:
    """Whether a number with an exponent is `value`: equal as DOUBLEs, of at most 15 digits, so that a DOUBLE tells them apart, and not
    so small that it is 0 there."""
    few = f"length(regexp_replace({text}, '[eE].*|[^0-9]', '', 'g')) <= 15"
    zero = f"({value} <> 0 OR NOT regexp_matches({text}, '^[^eE]*[1-9]'))"
    return f"{matches(text, FLOAT)} AND {value}::DOUBLE = TRY_CAST({text} AS DOUBLE) AND {few} AND {zero}"


def _decimal(text: str, dtype: DataType, column: Column) -> Cast:
    whole = rf"[+-]?[0-9]+(\.[0-9]{{0,{dtype.scale}}}0*)?"
    pattern = rf"{whole}|[+-]?\.[0-9]{{1,{dtype.scale}}}0*" if dtype.scale else r"[+-]?[0-9]+(\.0*)?"

    def accepted(value: str) -> str:
        return f"{matches(text, pattern)} OR (regexp_matches({text}, '[eE]') AND {_exact(text, value)})"

    return Cast(f"TRY_CAST({text} AS {dtype.sql})", _guarded(text, accepted))


def _float(text: str, dtype: DataType, column: Column) -> Cast:
    def wrong(value: str) -> str:
        special = f" WHEN {matches(text, '(?i)[+-]?(nan|inf|infinity)')} THEN {value} IS NULL" if column.coerce else ""
        finite = f"isfinite({value}) AND {matches(text, FLOAT)}"
        return f"CASE WHEN {text} IS NULL THEN FALSE WHEN {finite} THEN FALSE{special} ELSE TRUE END"

    return Cast(f"TRY_CAST({text} AS {dtype.sql})", wrong)


def _boolean(text: str, dtype: DataType, column: Column) -> Cast:
    true, false = (_TRUE, _FALSE) if column.coerce else (_TRUE[:1], _FALSE[:1])
    words = [f"lower({text}) IN ({', '.join(map(literal, w))}) THEN {v}" for w, v in ((true, "TRUE"), (false, "FALSE"))]
    value = f"CASE WHEN {text} = 'true' THEN TRUE WHEN {text} = 'false' THEN FALSE WHEN {' WHEN '.join(words)} END"
    return Cast(value, unconverted(text))


def _string(text: str, dtype: DataType, column: Column) -> Cast:
    return Cast(text)


def _json(text: str, dtype: DataType, column: Column) -> Cast:
    """DuckDB also takes NaN, Infinity and trailing commas: where a text may hold one, look again with its strings empty."""
    loose = r"(?i)nan|inf|,\s*[\]}]"
    bare = f"regexp_replace({text}, {literal(_JSON_STRING)}, {literal(_EMPTY_STRING)}, 'g')"

    def wrong(_: str) -> str:
        odd = f"regexp_matches({text}, {literal(loose)})"
        return (
            f"CASE WHEN {text} IS NULL THEN FALSE WHEN NOT json_valid({text}) THEN TRUE"
            f" WHEN {odd} THEN regexp_matches({bare}, {literal(loose)}) ELSE FALSE END"
        )

    return Cast(text, wrong)


def _uuid(text: str, dtype: DataType, column: Column) -> Cast:
    return Cast(f"lower({text})", lambda _: f"NOT {matches(text, UUID)}")


def _binary(text: str, dtype: DataType, column: Column) -> Cast:
    return Cast(f"TRY(from_base64({text}))", unconverted(text))


def _date(text: str, dtype: DataType, column: Column) -> Cast:
    if column.format is not None:
        return Cast(f"TRY_CAST({_by_format(text, formats(column))} AS DATE)", unconverted(text))

    def accepted(value: str) -> str:
        return f"{matches(text, NAIVE)} AND TRY_CAST({text} AS TIMESTAMP) = {value}::TIMESTAMP" if column.coerce else "FALSE"

    printed = _guarded(text, accepted)  # a DATE prints as YYYY-MM-DD, and longer past the year 9999
    return Cast(
        f"TRY_CAST({text} AS DATE)", lambda value: f"({printed(value)} OR {value} NOT BETWEEN DATE '0001-01-01' AND DATE '9999-12-31')"
    )


def _time(text: str, dtype: DataType, column: Column) -> Cast:
    if column.format is not None:
        return Cast(f"TRY_CAST({_by_format(text, formats(column))} AS TIME)", unconverted(text))
    return Cast(f"TRY_CAST({text} AS TIME)", lambda value: f"({text} IS NOT NULL AND ({value} IS NULL OR NOT {matches(text, TIME)}))")


def _datetime(text: str, dtype: DataType, column: Column) -> Cast:
    if column.format is not None:
        value = _by_format(text, formats(column))
    else:
        value = f"CASE WHEN {text} >= '0001' AND {matches(text, NAIVE)} THEN TRY_CAST({text} AS TIMESTAMP) END"
    return Cast(_or_epoch(text, value, column), _out_of_range(text))


def _timestamp(text: str, dtype: DataType, column: Column) -> Cast:
    """Instants of texts with an offset, wall times of texts without (`naive` tells them apart)."""
    if column.format is not None:
        patterns = formats(column)
        found = [f"WHEN {_strptime(text, p)} IS NOT NULL THEN {'FALSE' if has_zone(p) else 'TRUE'}" for p in patterns]
        return Cast(_or_epoch(text, _by_format(text, patterns), column), _out_of_range(text), f"CASE {' '.join(found)} ELSE FALSE END")
    slow = (
        f"CASE WHEN {text} < '0001' THEN NULL WHEN {matches(text, NAIVE)} THEN TRY_CAST({text} AS TIMESTAMP)"
        f" WHEN {matches(text, WITH_OFFSET)} THEN {instant(f'TRY_CAST({text} AS TIMESTAMPTZ)')} END"
    )
    value = f"coalesce({_zulu(text)}, {slow})"
    return Cast(_or_epoch(text, value, column), _out_of_range(text), matches(text, NAIVE))


def instant(zoned: str) -> str:
    """A TIMESTAMPTZ as the TIMESTAMP that means UTC; a plain cast asks the calendar and costs twice as much."""
    return f"make_timestamp(epoch_us({zoned}))"


def _zulu(text: str) -> str:
    """The common forms 2026-11-01T00:00:00[.mmm[uuu]]Z at half the price. strptime takes fields with fewer digits and spaces around
    the text; at full length, with a digit first and the Z last, there is no room for either."""
    forms = {20: "%Y-%m-%dT%H:%M:%SZ", 24: "%Y-%m-%dT%H:%M:%S.%gZ", 27: "%Y-%m-%dT%H:%M:%S.%fZ"}
    cases = " ".join(f"WHEN {n} THEN try_strptime({text}, {literal(f)})" for n, f in forms.items())
    return f"CASE WHEN {text} >= '0001' AND ends_with({text}, 'Z') THEN CASE strlen({text}) {cases} END END"


def _out_of_range(text: str) -> Callable[[str], str]:
    return lambda value: f"({text} IS NOT NULL AND ({value} IS NULL OR {value} NOT BETWEEN {_INSTANT_RANGE}))"


def formats(column: Column) -> tuple[str, ...]:
    return (column.format,) if isinstance(column.format, str) else (column.format or ())


def has_zone(pattern: str) -> bool:
    """Whether a strptime pattern reads an offset or a zone."""
    return "%z" in pattern.replace("%%", "") or "%Z" in pattern.replace("%%", "")


def _strptime(text: str, pattern: str) -> str:
    parsed = f"try_strptime({text}, {literal(pattern)})"
    return instant(parsed) if has_zone(pattern) else parsed


def _by_format(text: str, patterns: tuple[str, ...]) -> str:
    parsed = [_strptime(text, p) for p in patterns]
    return parsed[0] if len(parsed) == 1 else f"coalesce({', '.join(parsed)})"


def _or_epoch(text: str, value: str, column: Column) -> str:
    return value if column.unit is None else f"coalesce({epoch(text, column.unit)}, {value})"


def epoch(text: str, unit: str) -> str:
    """A count of `unit` since 1970-01-01 UTC as a TIMESTAMP, NULL where the text is no number or out of range; below a microsecond it rounds down."""
    number = f"TRY_CAST({text} AS DECIMAL(28,9))"
    micros = f"{number} * {_PER_MICRO[unit]}" if unit in _PER_MICRO else f"{number} * 0.001"
    whole = f"TRY_CAST(floor({micros}) AS BIGINT)"
    return f"CASE WHEN {matches(text, FLOAT)} AND {whole} BETWEEN {FIRST_MICROS} AND {LAST_MICROS} THEN make_timestamp({whole}) END"


_BY_KIND: dict[str, Callable[[str, DataType, Column], Cast]] = {
    "string": _string, "boolean": _boolean, "decimal": _decimal, "date": _date, "time": _time, "timestamp": _timestamp,
    "datetime": _datetime, "binary": _binary, "json": _json, "uuid": _uuid,
}  # fmt: skip
