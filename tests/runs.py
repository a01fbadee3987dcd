"""Records of runs, for tests."""

from __future__ import annotations

from beam_pipelines.sinks.results import RunResults, find_run


def read_run(state: str, run_id: str) -> RunResults:
    """The record of a run that has one."""
    found = find_run(state, run_id)
    assert found is not None, f"run {run_id} has no record in {state}"
    return found
