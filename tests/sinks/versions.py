"""A spec that has a bit of everything a stream may have, and other versions of it."""

from __future__ import annotations

from pathlib import Path

from beam_pipelines.sinks.upgrades import SpecChange, Version, compare
from beam_pipelines.spec.load import LoadedSpec, parse_spec

STATE = "/lake/state"
SPEC = """
spec: 1
pipeline: shop
version: "1"
description: Orders of a shop.
time_zone: Europe/Berlin
state: /lake/state
parameters: {least: {type: int, default: 0}}
contract:
  key: [id, shop]
  event_time: at
  allowed_skew: 1h
  unknown_columns: drop
  columns:
    id: {type: int64, required: true}
    shop: {type: string, required: true, in: [north, south]}
    at: {type: timestamp, required: true}
    due: {type: timestamp}
    made: {type: datetime}
    n: {type: int32, min: "${least}"}
    cents: {type: "decimal(12,2)"}
    rate: {type: float32}
    mail: {type: string, sensitive: hmac}
    secret: {type: string, sensitive: drop}
    tags: {type: list<string>}
sources:
  batch: [{files: /in/*.jsonl, format: json}]
  stream:
    - {pubsub: projects/p/subscriptions/orders, format: json, arrival: {attribute: sent}}
    - {pubsub: projects/p/subscriptions/more, format: {type: avro, schema: {type: record, name: order, fields: [{name: id, type: long}]}}, archive: /lake/more}
lookups:
  shops: {files: /in/shops.csv, format: csv, key: shop, columns: {shop: string, town: string}}
transform:
  - {filter: "n IS NOT NULL"}
  - {lookup: {from: shops, on: shop, take: {town: town}}}
  - {set: {total: "n * cents"}}
checks:
  - {name: cheap, expr: "cents < 1000"}
  - {name: known, references: {columns: [shop], lookup: shops}, severity: warn}
  - {name: enough, row_count: {min: 1}}
deduplicate: {within: 1h, keep: newest, order_by: n}
aggregates:
  hourly: {windowing: {type: fixed, size: 1h, allowed_lateness: 2h}, trigger: {early: 10s}, group_by: [shop, town], measures: {orders: count(), turnover: sum(cents), top: max(n)}}
  daily: {windowing: {type: calendar, unit: day, watermark_delay: 10m}, group_by: [shop], measures: {orders: count()}}
sinks:
  - {from: rows, parquet: {path: /lake/rows, partition_by: [day(at), shop]}}
  - {from: rows, bigquery: {table: my-project.shop.orders, partition_by: day(at), cluster_by: [shop], mode: exactly_once}}
  - {from: rows, pubsub: {topic: projects/p/topics/orders, attributes: {shop: shop}}}
  - {from: hourly, parquet: {path: /lake/hourly, partition_by: [day(_window_start)]}}
  - {from: daily, csv: {path: /lake/daily.csv}}
  - {from: dead_letters, parquet: {path: /lake/dead}}
provenance: "on"
dead_letters: {raw_key: env:RAW_KEY}
retention: {archive: 30d}
hmac_key: env:HMAC_KEY
thresholds: {dead_letters: 0.5}
"""


def loaded(text: str = SPEC, *changes: tuple[str, str], folder: Path | str = "/specs") -> LoadedSpec:
    """The spec, with texts changed. Fails where one of them is not in it."""
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    return parse_spec(text, path=Path(folder) / "shop.yaml")


def version(found: LoadedSpec) -> Version:
    return Version(found.spec, found.columns)


def changes(*changed: tuple[str, str], text: str = SPEC, state: str = STATE) -> list[SpecChange]:
    """What differs in the spec after these changes of its text."""
    return compare(version(loaded(text)), version(loaded(text, *changed)), state)
