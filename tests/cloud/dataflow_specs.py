"""Specs for Dataflow's tests: all that a graph can hold, in one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beam_pipelines.runners.dataflow.settings import Dataflow
from beam_pipelines.spec.load import LoadedSpec, load_spec

SUBSCRIPTION = "projects/demo-project/subscriptions/flights"
FLIGHTS = """
spec: 1
pipeline: nyc_flights
state: "${lake}/state"
time_zone: America/New_York
parameters:
  lake:  {type: path, default: "gs://demo-bucket/lake", description: Where outputs go.}
  least: {type: int, default: -120, description: The smallest delay that is believed.}
contract:
  key: [carrier, flight]
  event_time: at
  columns:
    carrier: {type: string, required: true}
    flight:  {type: int32, required: true}
    tailnum: {type: string, sensitive: hmac}
    delay:   {type: int16}
    at:      {type: timestamp, required: true}
sources:
  batch:  [{files: "${lake}/in/*.json", format: json}]
  stream: [{pubsub: projects/demo-project/subscriptions/flights, format: json, arrival: {attribute: departed_at}}]
lookups:
  carriers: {files: "${lake}/carriers.csv", format: csv, key: code}
transform:
  - lookup: {from: carriers, on: carrier, take: {airline: name}}
checks:
  - {name: believable, expr: "delay BETWEEN ${least} AND 3000"}
hmac_key: gcp:projects/demo-project/secrets/hmac
dead_letters: {raw_key: "gcp:projects/demo-project/secrets/raw"}
deduplicate: {within: 2h, keep: newest, order_by: _arrival_time}
aggregates:
  by_hour:
    windowing: {type: fixed, size: 1h, allowed_lateness: 6h}
    trigger:   {early: 30s, late: every_batch}
    group_by:  [carrier]
    measures:  {flights: count(), mean: avg(delay)}
  sessions:
    windowing: {type: sessions, gap: 10m, max_length: 6h, allowed_lateness: 1h}
    group_by:  [carrier]
    measures:  {flights: count()}
sinks:
  - {from: rows,         parquet: {path: "${lake}/flights", partition_by: [day(at)]}}
  - {from: by_hour,      parquet: {path: "${lake}/by_hour"}}
  - {from: sessions,     parquet: {path: "${lake}/sessions"}}
  - {from: rows,         pubsub: {topic: projects/demo-project/topics/clean}}
  - {from: dead_letters, parquet: {path: "${lake}/dead_letters"}}
"""
PLAIN = """
spec: 1
pipeline: flights
state: "${lake}/state"
parameters: {lake: {type: path, default: "gs://demo-bucket/lake"}}
contract:
  key: [flight]
  event_time: at
  columns: {flight: {type: int32, required: true}, delay: {type: int16}, at: {type: timestamp, required: true}}
sources:
  batch:  [{files: "${lake}/in/*.json", format: json}]
  stream: [{pubsub: projects/demo-project/subscriptions/flights, format: json}]
deduplicate: {within: 2h}
aggregates:
  by_hour:
    windowing: {type: fixed, size: 1h, allowed_lateness: 2h}
    measures:  {flights: count(), mean: avg(delay)}
sinks:
  - {from: rows,         parquet: {path: "${lake}/flights", partition_by: [day(at)]}}
  - {from: by_hour,      parquet: {path: "${lake}/by_hour"}}
  - {from: dead_letters, parquet: {path: "${lake}/dead_letters"}}
"""
JOB = Dataflow(
    project="demo-project",
    region="europe-west1",
    temp_location="gs://demo-bucket/tmp",
    image="europe-docker.pkg.dev/demo-project/r/pipelines:1",
)


def loaded(folder: Path, text: str = PLAIN, *, change: Mapping[str, str] = {}, **parameters: str) -> LoadedSpec:
    """The spec, with texts changed; parameters are set."""
    for old, new in change.items():
        assert old in text, old
        text = text.replace(old, new)
    path = folder / "pipeline.yaml"
    path.write_text(text)
    return load_spec(path, set_=parameters)


def flights(count: int) -> str:
    """Lines of JSON, the last of which is broken."""
    rows: list[dict[str, Any]] = [
        {"carrier": "AA", "flight": n, "tailnum": f"N{n}", "delay": n % 9, "at": f"2013-01-0{1 + n % 3}T10:00:00Z"} for n in range(count)
    ]
    return "\n".join([*map(json.dumps, rows), '{"flight": '])
