"""What the strategies draw from a contract: rows that it takes, records that it does not, copies of both kinds, messages out of order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.formats.archive import raw_batch
from beam_pipelines.spec.load import parse_spec
from beam_pipelines.testing import messages, records
from beam_pipelines.testing.strategies import rows
from beam_pipelines.testing.timeline import Delivery, message_bytes, messages_batch, moment
from beam_pipelines.transforms.prepare import row_program
from tests.laws import share

SPEC = """
spec: 1
pipeline: all
contract:
  key: [id, shop]
  event_time: at
  allowed_skew: 1d
  columns:
    id:      {type: int64, required: true, min: 5}
    shop:    {type: string, required: true, in: [north, south]}
    at:      {type: timestamp, required: true, path: when.at}
    small:   {type: uint8, max: 3}
    plain:   {type: int32}
    price:   {type: "decimal(6,2)", min: 0, max: 99.5}
    share:   {type: float64, min: 0.5, max: 1}
    single:  {type: float32}
    name:    {type: string, min_length: 2, max_length: 4}
    code:    {type: string, regex: "[A-Z]{2}[0-9]"}
    sold:    {type: boolean}
    day:     {type: date, format: "%d.%m.%Y"}
    opened:  {type: time}
    local:   {type: datetime}
    stamp:   {type: timestamp, unit: ms}
    uid:     {type: uuid}
    bytes:   {type: binary}
    extra:   {type: json}
    tags:    {type: "list<string>"}
    item:    {type: "struct<sku: string, n: int8>"}
    twice:   {type: int64, expr: "small * 2"}
sources:
  stream: [{pubsub: projects/p/subscriptions/s, format: json}]
sinks:
  - {from: rows, parquet: {path: out}}
"""
LOADED = parse_spec(SPEC, path="all.yaml")
CONTRACT = LOADED.spec.contract
FEW = CONTRACT.model_copy(update={"columns": {n: CONTRACT.columns[n] for n in ("id", "shop", "at", "price", "name")}})
"""The same contract, quicker to draw from."""
SOURCE = LOADED.spec.sources.stream[0]
PROGRAM = row_program(LOADED.spec, SOURCE, {})


def split(given_: list[Any]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Rows and dead letters of records."""
    deliveries = [Delivery(i, message_bytes(r, SOURCE.format, CONTRACT), 2**51, str(i)) for i, r in enumerate(given_)]
    found = PROGRAM(raw_batch(messages_batch(deliveries, SOURCE.pubsub)))
    return found.rows, found.dead


def test_a_contract_takes_the_rows_that_are_drawn_for_it() -> None:
    some = drawn(rows(CONTRACT))
    found, dead = split(some)
    assert [x["message"] for x in dead.to_pylist()] == []
    assert found.num_rows == len(some)


def drawn(strategy: st.SearchStrategy[Any], examples: int = 60) -> list[Any]:
    """Some examples, always the same."""
    found: list[Any] = []

    @seed(1)
    @settings(max_examples=examples, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def draw(example: Any) -> None:
        found.append(example)

    draw()
    return found


def whole(record: Any) -> str:
    return json.dumps(record, default=str, sort_keys=True)


def same_thing(record: Any) -> str:
    return whole([record.get("id"), record.get("shop"), record.get("when")])


def repeated(examples: list[Any], key: Callable[[Any], str]) -> int:
    """In how many examples two records have the same key."""
    keys = [[key(r) for r in example if isinstance(r, Mapping)] for example in examples]
    return sum(len(found) > len(set(found)) for found in keys)


@pytest.mark.slow
def test_records_break_a_contract_in_every_way_and_most_are_good() -> None:
    some = [record for example in drawn(records(FEW), 1000) for record in example]
    found, dead = split(some)
    reasons = {f"{x['stage']}:{x['reason']}" for x in dead.to_pylist()}
    assert reasons >= {"decode:DECODE", "decode:TYPE", "conform:CAST", "validate:REQUIRED", "validate:CHECK"}
    assert found.num_rows > dead.num_rows
    assert any(isinstance(r, Mapping) and r.get("name", "") is None for r in some)


def test_records_have_copies_conflicting_copies_and_ties_in_time() -> None:
    examples = drawn(records(FEW), 200)
    copies, conflicting, ties = (repeated(examples, key) for key in (whole, same_thing, lambda r: whole(r.get("when"))))
    assert 0 < copies < conflicting <= ties


def test_messages_come_late_and_again() -> None:
    examples = drawn(messages(FEW), 200)
    assert any(moment(m.arrival) > moment("2024-05-01T20:00Z") for example in examples for m in example if m.arrival)
    assert any(len({m.id for m in example}) < len(example) for example in examples)


@share(30)
@given(records(Contract.model_validate({"columns": {"n": {"type": "int64"}}})))
def test_a_contract_needs_neither_key_nor_event_time(given_: list[Any]) -> None:
    assert all(isinstance(r, Mapping | str) for r in given_)
