"""Which SQL functions an expression may call: pure ones, of one row.

The engine's own catalog decides (kind and stability); the words below are the common pure ones, so that a usual spec is
checked without reading the catalog, which costs more than everything else. A test compares them with the catalog.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

PURE = frozenset(
    """
    + - * / // % ** ^ & | ~ << >> || @ @> <@ && ^@ ~~ !~~ ~~* !~~* ~~~ ->>
    abs array_contains array_length ascii atan atan2 base64 bit_count cardinality cbrt ceil ceiling century char_length chr
    concat concat_ws contains cos date_diff date_part date_sub date_trunc datediff datepart datetrunc day dayname dayofmonth
    dayofweek dayofyear decade decode degrees ends_with epoch epoch_ms epoch_ns epoch_us exp flatten floor format from_base64
    gcd greatest hash hex hour instr isfinite isinf isnan isodow isoyear json_array json_array_length json_contains
    json_exists json_extract json_extract_path json_extract_path_text json_extract_string json_keys json_object json_type
    json_valid json_value julian last_day lcase least left len length levenshtein list_aggregate list_apply list_concat
    list_contains list_distinct list_element list_extract list_filter list_has_all list_has_any list_position list_reduce
    list_slice list_sort list_transform list_unique list_value ln log log10 log2 lower lpad ltrim make_date make_time
    make_timestamp make_timestamp_ms map map_extract map_keys map_values md5 microsecond millisecond minute mod month
    monthname nfc_normalize ord pi position pow power prefix printf quarter radians range regexp_escape regexp_extract
    regexp_extract_all regexp_full_match regexp_matches regexp_replace regexp_split_to_array repeat replace reverse right
    round row rpad rtrim second sha1 sha256 sign sin split sqrt starts_with strftime string_split strip_accents strlen strpos
    strptime struct_extract struct_insert struct_pack substr substring suffix tan time_bucket timezone to_base64 to_days
    to_hex to_hours to_json to_microseconds to_milliseconds to_minutes to_months to_seconds to_timestamp to_weeks to_years
    translate trim trunc try_strptime typeof ucase unhex unicode upper url_decode url_encode week weekday weekofyear xor year
    yearweek
    """.split()
)
LAMBDA_TAKERS = frozenset(
    "apply filter reduce list_apply list_filter list_reduce list_transform array_apply array_filter array_reduce array_transform".split()
)
CLOCK_WORDS = frozenset(
    """
    current_date current_time current_timestamp localtime localtimestamp current_localtime current_localtimestamp
    current_user session_user user current_role current_catalog current_schema current_database
    """.split()
)
_PURE_MACROS = frozenset("date_add days_in_month fdiv if json nullif split_part md5_number_lower md5_number_upper".split())
_IMPURE = frozenset(
    "getenv version json_serialize_plan json_serialize_sql json_deserialize_sql parse_duckdb_log_message read_text read_blob".split()
)


def refused(name: str, arguments: int, connection: duckdb.DuckDBPyConnection) -> str | None:
    """Why an expression over one row may not call `name` with so many arguments; None where it may."""
    name = name.lower()
    if name == "age" and arguments == 1:
        return "age with one argument reads the clock and is not deterministic; give it two timestamps"
    if name in PURE:
        return None
    if name in _IMPURE:
        return f"{name} depends on more than its row and is refused"
    kinds = _catalog(connection).get(name)
    if kinds is None:
        return f"unknown function '{name}'; {_nearest_function(name, connection)}"
    return _verdict(name, kinds)


def _verdict(name: str, kinds: frozenset[tuple[str, str]]) -> str | None:
    types = {kind for kind, _ in kinds}
    stabilities = {stability for kind, stability in kinds if kind == "scalar"}
    if name == "unnest" or types <= {"table", "table_macro", "pragma"}:
        return f"{name} gives rows, not a value; an expression gives one value per row and reaches no file or network"
    if "aggregate" in types and "scalar" not in types:
        return f"{name.removesuffix('_star')} aggregates over rows; a row expression sees one row. Put it under aggregates.<name>.measures"
    if types == {"window"}:
        return f"{name} is a window function; a row expression sees one row"
    if name.startswith(("__internal", "icu_", "pg_", "has_", "inet_")):
        return f"{name} depends on more than its row and is refused"
    if "macro" in types:
        pure = name in _PURE_MACROS or name.startswith(("list_", "array_"))
        return None if pure else f"{name} depends on more than its row and is refused"
    if "CONSISTENT" not in stabilities or "VOLATILE" in stabilities:
        return f"{name} is not deterministic: the same row must always give the same answer"
    return None


def _nearest_function(name: str, connection: duckdb.DuckDBPyConnection) -> str:
    known = [n for n, kinds in _catalog(connection).items() if n[:1].isalpha() and _verdict(n, kinds) is None]
    close = get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else "expressions know DuckDB's functions of one row"


@lru_cache(maxsize=1)
def _catalog(connection: duckdb.DuckDBPyConnection) -> dict[str, frozenset[tuple[str, str]]]:
    rows = connection.execute(
        "SELECT DISTINCT lower(function_name), function_type, coalesce(stability, '') FROM duckdb_functions()"
    ).fetchall()
    found: dict[str, set[tuple[str, str]]] = {}
    for name, kind, stability in rows:
        found.setdefault(name, set()).add((kind, stability))
    return {name: frozenset(kinds) for name, kinds in found.items()}
