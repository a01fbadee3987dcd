"""J2 in DuckDB SQL: 60 columns from JSON lines and CSV, every reject kept with its reasons and its record.

python benchmarks/j2/duckdb_peer.py INPUT_DIRECTORY OUTPUT_DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import duckdb

TEXT = ["order_id", "placed_at", "updated_at", "channel", "status", "currency", "country", "city", "postcode", "street", "note", "coupon",
        *(f"text_{n}" for n in range(12)), *(f"date_{n}" for n in range(4))]  # fmt: skip
TYPES = {
    "customer_id": "BIGINT", **dict.fromkeys(["subtotal", "tax", "shipping", "discount", "total"], "DECIMAL(12,2)"),
    **{f"weight_{n}": "DOUBLE" for n in range(4)}, **{f"flag_{n}": "BOOLEAN" for n in range(6)}, **{f"count_{n}": "BIGINT" for n in range(12)},
}  # fmt: skip
CASTS = {**TYPES, "placed_at": "TIMESTAMP", "updated_at": "TIMESTAMP", **{f"date_{n}": "DATE" for n in range(4)}}
NESTED = {
    "device": {"os": "VARCHAR", "version": "VARCHAR", "screen": {"w": "INTEGER", "h": "INTEGER"}},
    "geo": {"lat": "DOUBLE", "lon": "DOUBLE"},
    "tags": ["VARCHAR"],
    "items": [{"sku": "VARCHAR", "qty": "INTEGER", "price": "DECIMAL(10,2)"}],
}
SHAPE = json.dumps({**dict.fromkeys(TEXT, "VARCHAR"), **dict.fromkeys(TYPES, "JSON"), **NESTED})
ORDER = [*TEXT, *TYPES, *NESTED]


def _cast(name: str, of: str) -> str:
    """The value, and NULL where the text does not fit its type exactly."""
    if CASTS.get(name) == "BIGINT":
        return f"CASE WHEN NOT contains({of}, '.') THEN try_cast({of} AS BIGINT) END AS {name}"
    if CASTS.get(name) == "BOOLEAN":
        return f"CASE {of} WHEN 'true' THEN true WHEN 'false' THEN false END AS {name}"
    return f"try_cast({of} AS {CASTS[name]}) AS {name}" if name in CASTS else f"{of} AS {name}"


def run(source: Path, out: Path) -> None:
    """Reads `source/json` and `source/csv`, writes rows by day, dead letters and sessions to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    db = duckdb.connect(config={"threads": 1})
    lines = f"""SELECT line, filename FROM read_csv('{source}/json/*.jsonl', columns = {{line: 'VARCHAR'}}, delim = '\x01', quote = '', escape = '', header = false,
                auto_detect = false, filename = true, strict_mode = false, max_line_size = 1048576)"""
    from_json = f"""SELECT valid, line AS raw, filename, {", ".join(f"CASE WHEN s.{n}::VARCHAR <> 'null' THEN s.{n}::VARCHAR END AS {n}" if n in TYPES else f"s.{n}" for n in ORDER)}
                    FROM (SELECT *, CASE WHEN valid THEN from_json(line, '{SHAPE}') END AS s FROM (SELECT *, json_valid(line) AS valid FROM ({lines})))"""
    nested = ", ".join(f"from_json({n}, '{json.dumps(shape)}') AS {n}" for n, shape in NESTED.items())
    from_csv = f"SELECT true AS valid, NULL AS raw, filename, {', '.join([*TEXT, *TYPES])}, {nested} FROM read_csv('{source}/csv/*.csv', all_varchar = true, header = true, filename = true)"
    rules = {
        "json": "valid", "order_id": "order_id IS NOT NULL", "customer_id": "customer_id IS NOT NULL", "placed_at": "placed_at IS NOT NULL",
        "status": "status IN ('new','paid','packed','sent','returned')", "total": "total >= 0", "items": "len(items) >= 1",
        **{n: f"NOT (t_{n} IS NOT NULL AND {n} IS NULL)" for n in CASTS if n not in ("customer_id", "placed_at", "total")},
    }  # fmt: skip
    bits = " | ".join(f"(CASE WHEN ({rule}) IS false THEN {1 << i}::BIGINT ELSE 0::BIGINT END)" for i, rule in enumerate(rules.values()))
    texts = ", ".join(f"{n} AS t_{n}" if n in CASTS else n for n in ORDER)
    db.execute(f"""
      CREATE TEMP TABLE judged AS
      SELECT j.* EXCLUDE (raw), CASE WHEN bad <> 0 THEN coalesce(raw, to_json(j)::VARCHAR) END AS raw, c.name AS customer_name, c.segment, len(items) AS items_count
      FROM (SELECT * EXCLUDE (valid, {", ".join(f"t_{n}" for n in CASTS)}), ({bits}) AS bad
            FROM (SELECT *, {", ".join(_cast(n, f"t_{n}") for n in CASTS)} FROM (SELECT valid, raw, filename, {texts} FROM ({from_json} UNION ALL {from_csv})))) j
      LEFT JOIN read_csv('{source}/customers.csv') c USING (customer_id)""")
    reasons = str(list(rules))
    db.execute(
        f"COPY (SELECT filename, raw, list_filter({reasons}, lambda reason, i: (bad >> (i - 1)::INT) & 1 = 1) AS reasons FROM judged WHERE bad <> 0) TO '{out}/dead.parquet'"
    )
    db.execute(
        "CREATE TEMP TABLE orders AS SELECT * EXCLUDE (bad, raw) FROM judged WHERE rowid IN (SELECT min(rowid) FROM judged WHERE bad = 0 GROUP BY order_id)"
    )
    db.execute(
        f"COPY (SELECT *, NULL::TIMESTAMP AS arrival, 'run' AS run_id, 'contract' AS contract, placed_at::DATE AS day FROM orders) TO '{out}/rows' (FORMAT parquet, PARTITION_BY (day), COMPRESSION zstd, COMPRESSION_LEVEL 1, OVERWRITE)"
    )
    db.execute(f"""COPY (SELECT customer_id, session, min(placed_at) AS start, max(placed_at) + INTERVAL 30 MINUTE AS stop, count(*) AS orders, sum(total) AS spent, avg(weight_0) AS mean_weight
      FROM (SELECT *, sum(fresh) OVER (PARTITION BY customer_id ORDER BY placed_at ROWS UNBOUNDED PRECEDING) AS session
            FROM (SELECT customer_id, placed_at, total, weight_0, CASE WHEN placed_at - lag(placed_at) OVER (PARTITION BY customer_id ORDER BY placed_at) < INTERVAL 30 MINUTE THEN 0 ELSE 1 END AS fresh
                  FROM orders))
      GROUP BY ALL) TO '{out}/sessions.parquet'""")
    read, dead, kept = db.sql(
        "SELECT (SELECT count(*) FROM judged), (SELECT count(*) FROM judged WHERE bad <> 0), (SELECT count(*) FROM orders)"
    ).fetchall()[0]
    sessions = db.sql(f"SELECT count(*) FROM '{out}/sessions.parquet'").fetchall()[0][0]
    print(json.dumps({"read": read, "dead": dead, "duplicates": read - dead - kept, "written": kept, "sessions": sessions}))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
