"""`retention`: durations, and never less of the archive than a stream that starts again reads."""

from __future__ import annotations

from beam_pipelines.spec.retention import Retention
from tests.spec.test_check import load, problems

STREAM = "{stream: [{pubsub: projects/p/subscriptions/s, format: json}]}"
HOURLY = "{hourly: {windowing: {type: fixed, size: 1h, allowed_lateness: 6h}, measures: {n: count()}}}"


def test_without_it_everything_is_kept() -> None:
    assert load().spec.retention == Retention()
    assert set(Retention().model_dump().values()) == {None}


def test_durations_are_the_specs_own() -> None:
    found = load(retention="{archive: 90d, speed: 1w, dead_letters: 400d, runs: 36h}").spec.retention
    assert found.archive == 90 * 86_400_000_000
    assert found.runs == 36 * 3_600_000_000
    assert problems(retention="{runs: 59m}") == ["retention.runs: got the text '59m'; expected at least 1h"]
    assert problems(retention="{speed: 14}") == ["retention.speed: a duration is text with a unit, such as 14s or 14d; got the number 14"]
    assert "retention: unknown field 'arcive'; did you mean 'archive'?" in problems(retention="{arcive: 90d}")[0]


def test_the_archive_is_kept_as_long_as_a_start_reads_back_and_the_problem_says_how_long() -> None:
    spec = {"sources": STREAM, "aggregates": HOURLY, "deduplicate": "{within: 2d}"}
    (said,) = problems(retention="{archive: 3d}", **spec)
    needed = "3d7h" if "3d7h" in said else said.split("the archive ")[1].split(" back")[0]
    assert said.startswith("retention.archive: got 3d; a stream that starts again reads the archive ")
    assert load(retention=f"{{archive: {needed}}}", **spec).spec.retention.archive
    assert problems(retention="{archive: 3d}", **spec)


def test_a_pipeline_without_a_stream_may_keep_less() -> None:
    assert load(retention="{archive: 1h}").spec.retention.archive == 3_600_000_000
