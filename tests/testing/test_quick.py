"""Jobs of tests in one process do not get in each other's way."""

from __future__ import annotations

import threading
from typing import Any

import duckdb
import pytest

from beam_pipelines.errors import RunError
from beam_pipelines.testing import Timeline, run, run_spec, run_spec_stream
from beam_pipelines.testing.quick import quick
from beam_pipelines.transforms import keyed_state

SPEC: dict[str, Any] = {
    "spec": 1,
    "pipeline": "shop",
    "contract": {"columns": {"id": {"type": "int64"}}},
    "sources": {
        "batch": [{"files": "orders.json", "format": "json"}],
        "stream": [{"pubsub": "projects/p/subscriptions/orders", "format": "json"}],
    },
    "sinks": [{"from": "rows", "parquet": {"path": "out"}}],
}


def test_one_job_at_a_time() -> None:
    entered, leave = threading.Event(), threading.Event()

    def job() -> None:
        with quick():
            entered.set()
            leave.wait(60)

    other = threading.Thread(target=job)
    with quick(), quick():
        other.start()
        assert not entered.wait(0.2)
    assert entered.wait(60)
    leave.set()
    other.join()


def test_a_stream_that_runs_in_this_process_is_left_alone() -> None:
    keyed_state.resident(True)
    try:
        with pytest.raises(RunError, match="a stream on Prism runs in this process"):
            run_spec_stream(SPEC, Timeline().arrive("2024-05-01T10:00Z", {"id": 1}))
        assert keyed_state.is_resident()
    finally:
        keyed_state.resident(False)


def test_the_tables_of_a_result_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[duckdb.DuckDBPyConnection] = []
    open_tables = run.open_tables
    monkeypatch.setattr(run, "open_tables", lambda *given: opened.append(open_tables(*given)) or opened[-1])
    assert run_spec(SPEC, [{"id": 1}]).rows == [{"id": 1, "_unknown": None}]
    [tables] = opened
    with pytest.raises(duckdb.ConnectionException):
        tables.execute("SELECT 1")
