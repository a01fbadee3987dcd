"""J1 in DuckDB SQL: the same rows out, every reject kept with its reasons and its line, duplicates counted.

    python benchmarks/j1/duckdb_peer.py INPUT_DIRECTORY OUTPUT_DIRECTORY

Written to be fast: one pass over the lines, scalars fetched once, the cheapest guards that give the exact answer on this input
(rows keep file, position and run as ours do, compressed alike; DuckDB's JSON reader accepts trailing commas, NaN, repeated keys, 3.7 for an integer and true for 1). One thread, because CPU seconds
are compared.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import duckdb

SHAPE = json.dumps(
    {"event_id": "VARCHAR", "event_time": "VARCHAR", "user": {"id": "VARCHAR", "country": "VARCHAR"}, "type": "VARCHAR",
     "amount": "JSON", "currency": "VARCHAR", "url": "VARCHAR", "quantity": "JSON"}
)  # fmt: skip
CHECKS = {
    "event_id": "event_id IS NOT NULL AND length(event_id) = 32",
    "event_time": "event_time IS NOT NULL",
    "user_id": "user_id IS NOT NULL",
    "country": "country IS NOT NULL",
    "type": "type IS NOT NULL AND type IN ('view','click','cart','purchase')",
    "amount": "amount IS NOT NULL AND amount >= 0",
    "currency": "currency IS NOT NULL AND currency IN ('EUR','USD','GBP','SEK')",
    "quantity": "quantity IS NOT NULL AND quantity > 0",
}
BITS = "(CASE WHEN valid THEN 0 ELSE 1 END) | " + " | ".join(
    f"(CASE WHEN {c} THEN 0 ELSE {2 << i} END)" for i, c in enumerate(CHECKS.values())
)


def run(source: Path, out: Path) -> None:
    """Reads `source/*.jsonl`, writes rows by day, dead letters and the hourly aggregate to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    db = duckdb.connect(config={"threads": 1})
    db.execute(f"""
      CREATE TEMP TABLE judged AS
      SELECT event_id, event_time, user_id, country, type, amount, currency, url, quantity, filename, position, ({BITS})::SMALLINT AS bad,
             CASE WHEN bad <> 0 THEN line END AS raw
      FROM (SELECT s.event_id, try_cast(s.event_time AS TIMESTAMP) AS event_time, s."user".id AS user_id, s."user".country AS country, s.type,
                   try_cast(s.amount::VARCHAR AS DECIMAL(12, 2)) AS amount, s.currency, s.url,
                   CASE WHEN NOT contains(s.quantity, '.') THEN try_cast(s.quantity::VARCHAR AS BIGINT) END AS quantity, valid, line, filename, position
            FROM (SELECT valid, line, filename, position, CASE WHEN valid THEN from_json(line, '{SHAPE}') END AS s
                  FROM (SELECT line, filename, row_number() OVER () AS position, CASE WHEN json_valid(line) THEN NOT contains(line, ',}}') AND len(json_keys(line)) = 8 ELSE false END AS valid
                        FROM read_csv('{source}/*.jsonl', columns = {{line: 'VARCHAR'}}, delim = '\x01', quote = '', escape = '', header = false,
                                      auto_detect = false, filename = true, strict_mode = false, max_line_size = 1048576))))""")
    reasons = str(["json", *CHECKS])
    db.execute(f"""COPY (SELECT filename, position, raw, list_filter({reasons}, lambda reason, i: (bad >> (i - 1)::INT) & 1 = 1) AS reasons FROM judged WHERE bad <> 0)
                   TO '{out}/dead.parquet' (FORMAT parquet)""")
    db.execute(
        """CREATE TEMP TABLE events AS SELECT * EXCLUDE (bad, raw) FROM judged WHERE rowid IN (SELECT min(rowid) FROM judged WHERE bad = 0 GROUP BY event_id)"""
    )
    db.execute(
        f"COPY (SELECT *, NULL::TIMESTAMP AS arrival, 'run' AS run_id, 'contract' AS contract, event_time::DATE AS day FROM events) TO '{out}/rows' (FORMAT parquet, PARTITION_BY (day), COMPRESSION zstd, COMPRESSION_LEVEL 1, OVERWRITE)"
    )
    db.execute(f"""COPY (SELECT date_trunc('hour', event_time) AS hour, country, type, count(*) AS events, sum(amount) AS amount FROM events GROUP BY ALL)
                   TO '{out}/hourly.parquet' (FORMAT parquet)""")
    read, dead, kept = db.sql(
        "SELECT (SELECT count(*) FROM judged), (SELECT count(*) FROM judged WHERE bad <> 0), (SELECT count(*) FROM events)"
    ).fetchall()[0]
    print(json.dumps({"read": read, "dead": dead, "duplicates": read - dead - kept, "written": kept}))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
