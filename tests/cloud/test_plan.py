"""`plan`: a change of the spec is told before it is deployed, and one that no running stream survives has exit code 1 and says why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from beam_pipelines.cli.plan import plan
from beam_pipelines.errors import SpecError
from beam_pipelines.runners.dataflow.graph import Graph, Step
from beam_pipelines.runners.dataflow.job import DataflowCall, submit
from beam_pipelines.runners.dataflow.plan import GraphChange, compare
from tests.cloud.dataflow_specs import JOB, PLAIN, loaded

pytestmark = pytest.mark.cloud


def planned(folder: Path, old: str, *changed: tuple[str, str], against: str = "old.yaml") -> tuple[int, dict[str, Any]]:
    """Exit code and output for PLAIN, changed, beside `old`."""
    new = PLAIN
    for before, after in changed:
        assert before in new, before
        new = new.replace(before, after)
    (folder / "old.yaml").write_text(old)
    (folder / "new.yaml").write_text(new)
    result = CliRunner().invoke(plan, [str(folder / "new.yaml"), "--against", str(folder / against), "--json"], standalone_mode=False)
    assert result.exception is None, result.exception
    return result.return_value, json.loads(result.output)


def test_the_same_spec_changes_nothing(tmp_path: Path) -> None:
    assert planned(tmp_path, PLAIN) == (0, {"compatible": True, "changes": []})


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("deduplicate:", "checks: [{name: low, expr: 'delay < 500'}]\ndeduplicate:", "checks: low is new"),
        ("gs://demo-bucket/lake", "gs://demo-bucket/other", "outputs: sinks[0]"),
        ("sinks:\n", "sinks:\n  - {from: by_hour, parquet: {path: 'gs://b/again'}}\n", "is new"),
        ("measures:", "trigger: {early: 10s}\n    measures:", ""),
        ("aggregates:\n", "aggregates:\n  more: {windowing: {type: fixed, size: 30m}, measures: {n: count()}}\n", "step Aggregate-more"),
    ],
)  # fmt: skip
def test_what_a_running_stream_survives_is_told_and_no_more(tmp_path: Path, before: str, after: str, told: str) -> None:
    changed = (
        [(before, after)]
        if "more:" not in after
        else [(before, after), ("sinks:\n", "sinks:\n  - {from: more, parquet: {path: 'gs://b/more'}}\n")]
    )
    code, found = planned(tmp_path, PLAIN, *changed)
    assert (code, found["compatible"]) == (0, True)
    assert not told or any(told in change["what"] for change in found["changes"]), found


@pytest.mark.parametrize(
    ("before", "after", "told", "why"),
    [
        ("within: 2h", "within: 3h", "deduplicate: rule", "kept by the old rule"),
        ("key: [flight]", "key: [flight, at]", "deduplicate: key", "kept by the old rule"),
        ("deduplicate: {within: 2h}\n", "", "step Deduplicate/Judge/ParDo(Remember) is gone", "nowhere to go"),
        ("size: 1h", "size: 2h", "aggregates: by_hour", "open windows were cut"),
        ("mean: avg(delay)", "mean: max(delay)", "aggregates: by_hour", "open windows were cut"),
        ("type: fixed, size: 1h", "type: sessions, gap: 10m", "aggregates: by_hour", "open windows were cut"),
        ("delay: {type: int16}", "delay: {type: int64}", "columns of the rows that are kept", "kept by the old rule"),
        ("subscriptions/flights", "subscriptions/other", "sources: sources.stream[0]", "come from the old one"),
        ("sinks:\n", "state_shards: 8\nsinks:\n", "state: shards: default becomes 8", "looked for where it is not"),
        ("by_hour", "per_hour", "step Aggregate-by_hour/OpenWindows/ParDo(ShowWindows) is gone", "nowhere to go"),
    ],
)  # fmt: skip
def test_what_no_running_stream_survives_is_told_with_the_reason(tmp_path: Path, before: str, after: str, told: str, why: str) -> None:
    code, found = planned(tmp_path, PLAIN, (before, after))
    broken = [change for change in found["changes"] if change["breaks"]]
    assert (code, found["compatible"]) == (1, False)
    assert any(told in change["what"] and why in change["why"] for change in broken), broken
    assert found["changes"][: len(broken)] == broken  # those first


def test_the_type_of_what_a_measure_reads_is_part_of_the_state(tmp_path: Path) -> None:
    """Also where no rows are kept: partials of two types do not merge."""
    without = ("deduplicate: {within: 2h}\n", "")
    code, found = planned(tmp_path, PLAIN.replace(*without), without, ("delay: {type: int16}", "delay: {type: float64}"))
    assert (code, found["compatible"]) == (1, False)
    assert any("aggregates: by_hour" in change["what"] for change in found["changes"] if change["breaks"])


def test_a_graph_that_was_kept_is_as_good_as_its_spec(tmp_path: Path) -> None:
    submit(loaded(tmp_path), DataflowCall(replace(JOB, graph=str(tmp_path / "kept.json")), "stream", "r1"))
    assert planned(tmp_path, PLAIN, against="kept.json") == (0, {"compatible": True, "changes": []})
    code, found = planned(tmp_path, PLAIN, ("size: 1h", "size: 2h"), against="kept.json")
    assert (code, len([c for c in found["changes"] if c["breaks"]])) == (1, 2)  # the windows, and the horizon with them


_STEP = Step("pardo", ("A",), ("B",), {"log": "bag of BytesCoder"}, {"due": "event_time"})


@pytest.mark.parametrize(
    ("new", "what"),
    [
        ({"inputs": ("Other",)}, "coder of its input: A becomes Other"),
        ({"states": {"log": "bag of Other"}}, "states: log bag of BytesCoder becomes log bag of Other"),
        ({"states": {"lag": "bag of BytesCoder"}}, "states: log"),
        ({"timers": {}}, "timers: due event_time becomes none"),
        ({"side_inputs": ("x",)}, "side inputs: none becomes x"),
    ],
)  # fmt: skip
def test_names_and_coders_of_what_is_kept_must_stay(new: dict[str, Any], what: str) -> None:
    import msgspec

    (change,) = compare(Graph({"S": _STEP}), Graph({"S": msgspec.structs.replace(_STEP, **new)}))
    assert change.breaks
    assert f"step S: {what}" in change.what


def test_a_step_that_keeps_nothing_may_change() -> None:
    assert compare(Graph({"S": Step("pardo", ("A",))}), Graph({"S": Step("pardo", ("B",))})) == []
    assert compare(Graph({"S": Step("pardo")}), Graph({"T": Step("pardo")})) == [
        GraphChange("step S is gone"),
        GraphChange("step T is new"),
    ]


@pytest.mark.parametrize("content", ["{}", "[]", "nonsense", '{"steps": 3}'])
def test_a_file_that_is_no_graph_says_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "old.json").write_text(content)
    (tmp_path / "new.yaml").write_text(PLAIN)
    result = CliRunner().invoke(plan, [str(tmp_path / "new.yaml"), "--against", str(tmp_path / "old.json")])
    assert isinstance(result.exception, SpecError)
