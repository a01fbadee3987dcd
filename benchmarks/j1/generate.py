"""J1's input: JSON events of about 240 bytes, deterministic in every byte.

    python benchmarks/j1/generate.py ROWS DIRECTORY

1 % broken lines of ten kinds, 2.5 % rule breaks, 3 % repeated lines; event time rises over two days with a minute of jitter.
Everything is a hash of the row number, so that any two machines make the same files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb

ROWS_PER_FILE = 250_000

EVENTS = """
WITH numbered AS (
  SELECT i AS line, CASE WHEN (md5_number_lower(i || 'repeat') % 4611686018427387904)::BIGINT % 1000 < 30 AND i > 0 THEN i - 1 ELSE i END AS i FROM range({first}, {last}) t(i)
), drawn AS (
  SELECT line, i, (md5_number_lower(i || 'kind') % 4611686018427387904)::BIGINT % 100000 AS kind, (md5_number_lower(i || 'a') % 4611686018427387904)::BIGINT AS a, (md5_number_lower(i || 'b') % 4611686018427387904)::BIGINT AS b, (md5_number_lower(i || 'c') % 4611686018427387904)::BIGINT AS c FROM numbered
), fields AS (
  SELECT line, kind,
    md5(i::VARCHAR) AS event_id,
    strftime(TIMESTAMP '2026-11-01' + to_milliseconds((i * 172800000.0 / {total})::BIGINT + (a % 120000)::BIGINT - 60000), '%Y-%m-%dT%H:%M:%S.%g') || 'Z' AS event_time,
    'u' || (b % 200000) AS user_id,
    ['DE','FR','US','GB','SE','IT','ES','PL'][1 + (b // 200000) % 8] AS country,
    ['view','click','cart','purchase'][1 + (c % 4)] AS type,
    CASE WHEN kind BETWEEN 1000 AND 2499 THEN '-1.0' ELSE printf('%.2f', -40 * ln((1 + a // 120000 % 1000000) / 1000001.0)) END AS amount,
    CASE WHEN kind BETWEEN 3000 AND 3499 THEN 'XXX' ELSE ['EUR','USD','GBP','SEK'][1 + (c // 4) % 4] END AS currency,
    'https://shop.example/p/' || (c // 16 % 1000000) AS url,
    CASE WHEN kind BETWEEN 2500 AND 2999 THEN '"three"' ELSE (1 + b // 1600000 % 4)::VARCHAR END AS quantity
  FROM drawn
), texts AS (
  SELECT line, kind,
    '"event_id": "' || event_id || '", "event_time": "' || event_time || '", "user": {{"id": "' || user_id || '", "country": "' || country || '"}}, "type": "' || type
      || '", "amount": ' AS head, amount, ', "currency": "' || currency || '", "url": "' || url || '", "quantity": ' AS middle, quantity
  FROM fields
)
SELECT CASE
  WHEN kind < 300 THEN left('{{' || head || amount || middle || quantity || '}}', 180)                         -- truncated
  WHEN kind < 400 THEN '{{' || head || amount || middle || quantity || ',}}'                                   -- trailing comma
  WHEN kind < 500 THEN '{{' || head || 'NaN' || middle || quantity || '}}'                                     -- no JSON number
  WHEN kind < 600 THEN '{{' || head || amount || middle || quantity || ', "quantity": 9}}'                     -- duplicate key
  WHEN kind < 650 THEN 'ERROR ' || line || ' connection reset by peer'                                       -- a log line
  WHEN kind < 700 THEN '{{' || head || amount || middle || quantity || '}} {{}}'                                 -- two objects
  WHEN kind < 800 THEN '{{' || head || amount || middle || '3.7}}'                                             -- no integer
  WHEN kind < 850 THEN '{{' || head || amount || middle || 'true}}'                                            -- no integer either
  WHEN kind < 950 THEN '{{' || replace(head, '"type": "', '"type": ') || amount || middle || quantity || '}}'  -- unbalanced quotes
  WHEN kind < 1000 THEN '{{' || head || '"' || amount || '"' || middle || quantity || '}}'                     -- a number as text
  ELSE '{{' || head || amount || middle || quantity || '}}' END AS text
FROM texts ORDER BY line
"""


def generate(rows: int, directory: Path) -> None:
    """Writes `rows` lines in files of 250,000 to `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect(config={"threads": 1})
    for number, first in enumerate(range(0, rows, ROWS_PER_FILE)):
        last = min(rows, first + ROWS_PER_FILE)
        query = EVENTS.format(first=first, last=last, total=rows)
        lines = connection.sql(query).to_arrow_table()["text"].to_pylist()
        (directory / f"events-{number:04d}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    generate(int(sys.argv[1]), Path(sys.argv[2]))
