"""Observe: the states of checks over many rows, to be merged and judged when the run ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from beam_pipelines.arrow.run_checks import RunChecks, State
from beam_pipelines.arrow.validate import Check
from beam_pipelines.commit_elements import CheckState

_MERGE_AFTER = 16


class Observe(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Row batches to `CheckState` for `Commit`, one element per bundle; rows are looked at, none goes on."""

    def __init__(self, checks: Sequence[Check]) -> None:
        super().__init__()
        self.checks = RunChecks(tuple(c for c in checks if not c.per_row))

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        return rows | "Observe" >> beam.ParDo(_Observe(self.checks))


class _Observe(beam.DoFn):  # type: ignore[misc]
    def __init__(self, checks: RunChecks) -> None:
        self._checks = checks

    def start_bundle(self) -> None:
        self._states: list[State] = []

    def process(self, batch: pa.RecordBatch) -> None:
        self._states.append(self._checks.observe(batch))
        if len(self._states) >= _MERGE_AFTER:
            self._states = [self._checks.merge(self._states)]

    def finish_bundle(self) -> Iterator[Any]:
        if self._states:
            yield WindowedValue(CheckState(state_bytes(self._checks.merge(self._states))), MIN_TIMESTAMP, [GlobalWindow()])


def state_bytes(state: State) -> bytes:
    """A state as Arrow IPC."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, state.schema) as writer:
        writer.write_batch(state)
    return bytes(sink.getvalue())
