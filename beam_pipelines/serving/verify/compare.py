"""Finding the rows on which two layers do not agree, a piece of time after another, so that memory stays bounded.

    each layer ─▶ per partition and bucket of the matched columns: count, sum and xor of a hash over the row      equal: done
                        │ of buckets that differ
                        ▼
                  rows without those both layers have alike ─▶ paired by the matched columns ─▶ differences_N

Rows with the same matched columns are a bag: as often as both layers have the same row, it is equal; what is left is paired in order of its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import duckdb

from beam_pipelines.arrow.engine import literal
from beam_pipelines.serving.verify.findings import Kind
from beam_pipelines.serving.verify.layers import Layers, chunks
from beam_pipelines.serving.verify.retrying import retry

COMPARED_ROWS = 2_000_000
"""Rows of the batch that are compared at a time; a partition is not cut."""
BUCKETS = 4_096
"""Of a partition: where a few rows differ, the others are not paired one by one."""
KINDS: tuple[Kind, ...] = ("only batch", "only speed", "other values")
_OWN = ("source", "position", "run", "contract", "arrival", "pane", "epoch")


def differences(
    connection: duckdb.DuckDBPyConnection,
    layers: Layers,
    *,
    tolerance: float,
    rows: int = COMPARED_ROWS,
    watch: Callable[[str], object] = lambda _: None,
) -> dict[int, int]:
    """Fills the table `differences_N` of the connection and gives the equal rows of each part (start in microseconds, or UNDATED).

    Columns of the table: `id`, `part`, `moment`, `kind` (KINDS), `columns` that differ, `cause` and `detail` (NULL yet), and each layer's own: `b_source`,
    `b_c0`, …, `s_source`, `s_c0`, …
    """
    table = f"differences_{layers.number}"
    connection.execute(f"CREATE TABLE {table} ({_columns(layers)})")
    equal: dict[int, int] = {}
    for pieces, undated in chunks(layers, rows):
        watch(layers.name)
        sides = {layer: _hashed(layers, layers.select(layer, pieces, undated=undated)) for layer in ("batch", "speed")}
        retry(lambda: connection.execute(_sums(sides)))  # noqa: B023  # called at once
        for part, n in connection.execute("SELECT part, sum(b) FROM sums WHERE same GROUP BY part").fetchall():
            equal[part] = equal.get(part, 0) + int(n)
        if connection.execute("SELECT count(*) FROM sums WHERE NOT same").fetchall() == [(0,)]:
            continue
        for layer, sql in sides.items():
            retry(lambda: connection.execute(_suspects(layer, sql)))  # noqa: B023
        for part, n in connection.execute(_ALIKE).fetchall():
            equal[part] = equal.get(part, 0) + int(n)
        connection.execute(f"INSERT INTO {table} {_paired(layers, table, tolerance)}")
        for part, n in connection.execute(
            f"DELETE FROM {table} WHERE kind = 'other values' AND len(columns) = 0 RETURNING part, 1"
        ).fetchall():
            equal[part] = equal.get(part, 0) + int(n)  # within the tolerance
        connection.execute("DROP TABLE batch_rows; DROP TABLE speed_rows; DROP TABLE sums")
    return equal


def _columns(layers: Layers) -> str:
    own = {"source": "VARCHAR", "position": "BIGINT", "run": "VARCHAR", "contract": "VARCHAR", "arrival": "BIGINT", "pane": "VARCHAR", "epoch": "BIGINT",
           **{layers.places[name]: kind for name, kind in layers.columns.items()}}  # fmt: skip
    sides = [f"{side}_{name} {kind}" for side in ("b", "s") for name, kind in own.items()]
    return ", ".join(
        ["id BIGINT", "part BIGINT", "moment BIGINT", "kind VARCHAR", "columns VARCHAR[]", *sides, "cause VARCHAR", "detail VARCHAR"]
    )


def _hashed(layers: Layers, sql: str) -> str:
    """With `mh` over the matched columns, `h` over all that is compared, `xh` over what must be exactly alike."""
    places = layers.places
    match = [places[n] for n in layers.match]
    exact = [places[n] for n in layers.columns if n not in layers.floats]
    every = [places[n] for n in layers.columns]
    return f"SELECT *, {_hash(match)} AS mh, {_hash([*match, *every])} AS h, {_hash([*match, *exact])} AS xh FROM ({sql})"


def _hash(columns: Iterable[str]) -> str:
    """Twice, so that no column's share of it can be told apart: sums over rows would not see two values change places."""
    return f"hash(hash({', '.join(columns) or '0'}))"


def _sums(sides: dict[str, str]) -> str:
    def one(layer: str, b: str, s: str) -> str:
        total = "count(*), sum(h), bit_xor(h)"
        return f"SELECT part, mh % {BUCKETS} AS bucket, {b}, {s}, {total} FROM ({sides[layer]}) GROUP BY part, bucket"

    both = f"{one('batch', 'TRUE', 'FALSE')} UNION ALL {one('speed', 'FALSE', 'TRUE')}"
    alike = " AND ".join(f"any_value({v}) FILTER (b) IS NOT DISTINCT FROM any_value({v}) FILTER (s)" for v in ("n", "total", "mixed"))
    return (
        "CREATE OR REPLACE TEMP TABLE sums AS SELECT part, bucket, sum(n) FILTER (b) AS b, sum(n) FILTER (s) AS s, "
        f"{alike} AS same FROM ({both}) AS both_layers(part, bucket, b, s, n, total, mixed) GROUP BY part, bucket"
    )


def _suspects(layer: str, sql: str) -> str:
    """Rows of buckets that differ, numbered among those that are alike."""
    numbered = f"SELECT *, mh % {BUCKETS} AS bucket FROM ({sql})"
    suspects = f"SELECT * FROM ({numbered}) SEMI JOIN (SELECT part, bucket FROM sums WHERE NOT same) USING (part, bucket)"
    return f"CREATE OR REPLACE TEMP TABLE {layer}_rows AS SELECT *, row_number() OVER (PARTITION BY part, mh, h) AS copy FROM ({suspects})"


_ALIKE = "SELECT part, count(*) FROM batch_rows SEMI JOIN speed_rows USING (part, mh, h, copy) GROUP BY part"


def _paired(layers: Layers, table: str, tolerance: float) -> str:
    """What is left of both layers, side by side."""
    places = layers.places
    order = ", ".join(["xh", *(places[n] for n in layers.columns if n in layers.floats), "source", "position"])
    turn = f"row_number() OVER (PARTITION BY part, mh ORDER BY {order}) AS turn"
    left = {
        layer: f"(SELECT *, {turn} FROM {layer}_rows ANTI JOIN {other}_rows USING (part, mh, h, copy))"
        for layer, other in (("batch", "speed"), ("speed", "batch"))
    }
    same = " AND ".join(
        ["b.part = s.part", "b.mh = s.mh", "b.turn = s.turn", *(f"b.{places[n]} IS NOT DISTINCT FROM s.{places[n]}" for n in layers.match)]
    )
    kind = f"CASE WHEN s.part IS NULL THEN '{KINDS[0]}' WHEN b.part IS NULL THEN '{KINDS[1]}' ELSE '{KINDS[2]}' END"
    listed = ", ".join(
        f"CASE WHEN {_differ(f'b.{places[n]}', f's.{places[n]}', tolerance if n in layers.floats else None)} THEN {literal(n)} END"
        for n in layers.columns if n not in layers.match
    )  # fmt: skip
    differing = f"CASE WHEN b.part IS NULL OR s.part IS NULL THEN [] ELSE list_filter([{listed}]::VARCHAR[], lambda x: x IS NOT NULL) END"
    own = [*_OWN, *(places[n] for n in layers.columns)]
    sides = ", ".join(f"{side}.{name} AS {side}_{name}" for side in ("b", "s") for name in own)
    known = f"(SELECT coalesce(max(id), 0) FROM {table})"
    return (
        f"SELECT {known} + row_number() OVER () AS id, coalesce(b.part, s.part) AS part, coalesce(b.moment, s.moment) AS moment, {kind} AS kind, {differing} AS columns, "
        f"{sides}, NULL AS cause, NULL AS detail FROM {left['batch']} AS b FULL JOIN {left['speed']} AS s ON {same}"
    )


def _differ(one: str, other: str, tolerance: float | None) -> str:
    apart = f"{one} IS DISTINCT FROM {other}"
    if not tolerance:
        return apart
    a, b = f"{one}::DOUBLE", f"{other}::DOUBLE"
    near = f"isfinite({a}) AND isfinite({b}) AND abs({a} - {b}) <= {tolerance!r} * greatest(abs({a}), abs({b}))"
    return f"({apart} AND ({near}) IS NOT TRUE)"
