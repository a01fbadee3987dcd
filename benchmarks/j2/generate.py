"""J2's input: orders of 60 columns with nested structs and lists, half as JSON lines, half as CSV, and a lookup of customers.

    python benchmarks/j2/generate.py ROWS DIRECTORY

Another shape than J1 on purpose: wide, NULLs, escaped quotes and non-ASCII text, nested columns. 1 % broken records, 2 % rule breaks,
2 % repeated orders; customers come back in bursts, so that sessions exist. Deterministic in every byte.
"""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb

ROWS_PER_FILE = 100_000
CUSTOMERS = 20_000

COLUMNS = {
    "order_id": "'o-' || md5(i::VARCHAR)",
    "customer_id": "1 + (i // 5 * 7919 + b % 3) % 20400",
    "placed_at": "strftime(moment, '%Y-%m-%dT%H:%M:%S.%gZ')",
    "updated_at": "strftime(moment + to_seconds(a % 86400), '%Y-%m-%d %H:%M:%S')",
    "channel": "['web','app','store','phone'][1 + a % 4]",
    "status": "['new','paid','packed','sent','returned'][1 + b % 5]",
    "currency": "['EUR','USD','GBP'][1 + c % 3]",
    "country": "['DE','FR','US','GB','SE','IT','ES','PL','NL','BE'][1 + a // 4 % 10]",
    "city": "['Köln','São Paulo','Zürich','Oslo','Lyon','Bath'][1 + b // 5 % 6]",
    "postcode": "lpad((a // 40 % 100000)::VARCHAR, 5, '0')",
    "street": "'Street ' || (c // 3 % 5000)",
    "note": "CASE c % 20 WHEN 0 THEN 'said \"call me\"' WHEN 1 THEN 'line one' || chr(10) || 'line two' WHEN 2 THEN NULL ELSE 'ok' END",
    "coupon": "CASE WHEN a % 3 = 0 THEN 'C' || (a % 9973) END",
    "subtotal": "(a % 1000000 / 100.0)::DECIMAL(12, 2)",
    "tax": "(b % 10000 / 100.0)::DECIMAL(12, 2)",
    "shipping": "(c % 2000 / 100.0)::DECIMAL(12, 2)",
    "discount": "CASE WHEN a % 3 = 0 THEN (a % 500 / 100.0)::DECIMAL(12, 2) END",
    "total": "CASE WHEN kind BETWEEN 1000 AND 2999 THEN -1 ELSE a % 1000000 / 100.0 + b % 10000 / 100.0 END::DECIMAL(12, 2)",
    **{f"weight_{n}": f"((a // {n + 7} % 100000) / 1000.0)::DOUBLE" for n in range(4)},
    **{f"flag_{n}": f"b // {2**n} % 2 = 0" for n in range(6)},
    **{f"count_{n}": f"(c // {n + 3} % {10 ** (1 + n % 6)})::BIGINT" for n in range(12)},
    **{f"text_{n}": f"'value ' || (a // {n + 2} % {50 * 4 ** (n % 7)})" for n in range(12)},
    **{f"date_{n}": f"strftime(DATE '2026-01-01' + (b // {n + 2} % 300)::INTEGER, '%Y-%m-%d')" for n in range(4)},
    "device": "{'os': ['ios','android','linux'][1 + c % 3], 'version': (c % 20) || '.' || (b % 10), 'screen': {'w': (320 + a % 4 * 160)::INTEGER, 'h': 800::INTEGER}}",
    "geo": "{'lat': ((a % 180000) / 1000.0 - 90)::DOUBLE, 'lon': ((b % 360000) / 1000.0 - 180)::DOUBLE}",
    "tags": "list_transform(range(a % 4), lambda n: 'tag' || ((b + n) % 30))",
    "items": "list_transform(range(1 + c % 3), lambda n: {'sku': 'S' || ((a + n) % 5000), 'qty': (1 + (b + n) % 4)::INTEGER, 'price': ((c + n) % 10000 / 100.0)::DECIMAL(10, 2)})",
}  # fmt: skip
ROWS = """
WITH numbered AS (
  SELECT line, CASE WHEN {repeat} % 1000 < 20 AND line > 0 THEN line - 1 ELSE line END AS i FROM range({first}, {last}) t(line)
), drawn AS (
  SELECT line, i, {kind} % 100000 AS kind, {a} AS a, {b} AS b, {c} AS c,
         TIMESTAMP '2026-11-01' + to_milliseconds((i * 259200000.0 / {total})::BIGINT) AS moment FROM numbered
), fields AS (SELECT {columns}, kind, line FROM drawn)
SELECT * FROM fields ORDER BY line
"""


def _hash(name: str, of: str = "i") -> str:
    return f"(md5_number_lower({of} || '{name}') % 4611686018427387904)::BIGINT"


def _query(first: int, last: int, total: int) -> str:
    columns = ", ".join(f"{sql} AS {name}" for name, sql in COLUMNS.items())
    draws = {n: _hash(n) for n in ("kind", "a", "b", "c")}
    return ROWS.format(first=first, last=last, total=total, columns=columns, repeat=_hash("repeat", "line"), **draws)


def generate(rows: int, directory: Path) -> None:
    """Writes half of `rows` as JSON lines, half as CSV, and `customers.csv`, to `directory`."""
    for kind in ("json", "csv"):
        (directory / kind).mkdir(parents=True, exist_ok=True)
    db = duckdb.connect(config={"threads": 1})
    per_file = min(ROWS_PER_FILE, max(1, rows // 2))
    flat = ", ".join(f"to_json({n})::VARCHAR AS {n}" if n in ("device", "geo", "tags", "items") else n for n in COLUMNS)
    for number, first in enumerate(range(0, rows, per_file)):
        query = _query(first, min(rows, first + per_file), rows)
        if number % 2 == 0:
            text = f"""SELECT CASE WHEN kind < 300 THEN left(text, 700) WHEN kind < 500 THEN regexp_replace(text, '"count_1":(\\d+)', '"count_1":"x\\1"') WHEN kind < 700 THEN 'not json at all'
                       WHEN kind < 850 THEN regexp_replace(text, '"flag_0":(true|false)', '"flag_0":1') WHEN kind < 1000 THEN regexp_replace(text, '"count_0":(\\d+)', '"count_0":\\1.5') ELSE text END AS text
                       FROM (SELECT to_json(struct_pack({", ".join(f"{n} := {n}" for n in COLUMNS)}))::VARCHAR AS text, kind, line FROM ({query})) ORDER BY line"""
            lines = db.sql(text).to_arrow_table()["text"].to_pylist()
            (directory / "json" / f"orders-{number:04d}.jsonl").write_text("\n".join(lines) + "\n")
        else:
            bad = "CASE WHEN kind < 500 THEN 'x' || count_1 ELSE count_1::VARCHAR END AS count_1"
            chosen = f"SELECT {flat.replace('count_1,', bad + ',')} FROM ({query})"
            db.execute(f"COPY ({chosen}) TO '{directory}/csv/orders-{number:04d}.csv' (FORMAT csv, HEADER)")
    db.execute(f"""COPY (SELECT i AS customer_id, 'Customer ' || i AS name, ['A','B','C'][1 + i % 3] AS segment FROM range(1, {CUSTOMERS + 1}) t(i))
                   TO '{directory}/customers.csv' (FORMAT csv, HEADER)""")


if __name__ == "__main__":
    generate(int(sys.argv[1]), Path(sys.argv[2]))
