"""The row stages of a spec over raw batches: what only streams have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from beam_pipelines.arrow.doors import filtered_doors
from beam_pipelines.arrow.program import Split
from beam_pipelines.arrow.schema import RAW, RAW_BATCH, UTC_MICROS, provenance
from beam_pipelines.spec.load import load_spec
from beam_pipelines.transforms.prepare import row_program

SPEC = """
spec: 1
pipeline: clicks
contract: {key: [id], event_time: at, allowed_skew: 1h, columns: {id: {type: int64}, at: {type: timestamp}}}
sources:
  batch: [{files: clicks.jsonl, format: json}]
  stream: [{pubsub: projects/demo-project/subscriptions/clicks, format: json}]
transform: [{filter: "id <> 3"}]
sinks: [{from: rows, parquet: {path: lake/rows}}]
"""
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def messages(ahead: list[timedelta], arrival: datetime | None = NOON) -> pa.RecordBatch:
    """A message per event time, all of which arrive at noon."""
    raw = [f'{{"id": {i}, "at": "{NOON + a:%Y-%m-%dT%H:%M:%S.%f}Z"}}'.encode() for i, a in enumerate(ahead)]
    times = pa.array([arrival] * len(ahead), UTC_MICROS)
    return pa.RecordBatch.from_arrays([*provenance("s", pa.array(range(len(ahead)), pa.int64()), times), pa.array(raw)], schema=RAW_BATCH)


@pytest.fixture
def run(tmp_path: Path) -> object:
    (tmp_path / "spec.yaml").write_text(SPEC, "utf-8")
    spec = load_spec(tmp_path / "spec.yaml").spec

    def run(batch: pa.RecordBatch, *, stream: bool = True) -> Split:
        source = spec.sources.stream[0] if stream else spec.sources.batch[0]
        return row_program(spec, source, {})(batch)

    return run


def test_a_row_from_further_ahead_than_the_allowed_skew_is_a_dead_letter_future(run) -> None:  # type: ignore[no-untyped-def]
    split = run(messages([timedelta(hours=-30), timedelta(hours=1), timedelta(hours=1, microseconds=1)]))
    assert split.rows.column("id").to_pylist() == [0, 1]
    assert split.dead.select(["position", "stage", "reason"]).to_pylist() == [{"position": 2, "stage": "validate", "reason": "FUTURE"}]
    assert "after the arrival; expected at most 1h (contract.allowed_skew)" in split.dead.column("message")[0].as_py()
    assert split.dead.column("raw")[0].as_py().startswith(b'{"id": 2')


def test_where_the_arrival_is_unknown_nothing_is_from_the_future(run) -> None:  # type: ignore[no-untyped-def]
    far = [timedelta(days=400)]
    assert run(messages(far, arrival=None)).rows.num_rows == 1
    assert run(messages(far), stream=False).rows.num_rows == 1  # a file source that names no arrival


def test_filtered_rows_are_listed_one_by_one(run) -> None:  # type: ignore[no-untyped-def]
    batch = messages([timedelta(0)] * 3 + [timedelta(0), timedelta(days=2)])
    split = run(batch)
    doors = filtered_doors(batch, split.rows, split.dead)
    assert (split.rows.num_rows, split.dead.num_rows, split.filtered) == (3, 1, 1)
    assert doors.select(["source", "position", "door"]).to_pylist() == [{"source": "s", "position": 3, "door": "filtered"}]
    assert RAW in batch.schema.names
