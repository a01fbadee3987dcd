"""What is said of a stream's checkpoints that are not completed, on a clock turned by hand. The cluster is a script; a real store that is slow or away is in tests/flink."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from beam_pipelines.errors import TransientError
from beam_pipelines.runners.flink.checkpoint_watch import LOOK_EVERY_S, LOST_S, QUIET_S, CheckpointWatch
from beam_pipelines.runners.flink.rest import Checkpoint, Checkpoints

NONE = Checkpoints(0, 0, 0, 0, None, None)


@dataclass
class Script:
    """A cluster that answers what it is told to, a clock, and what was said."""

    found: Checkpoints = NONE
    interval_ms: int = 10_000
    away: bool = False
    now: float = 0.0
    said: list[str] = field(default_factory=list)

    def checkpoints(self, job: str) -> Checkpoints:
        if self.away:
            raise TransientError("Flink does not answer.")
        return self.found

    def checkpoint_interval_ms(self, job: str) -> int:
        return self.interval_ms

    def completes(self, took_s: float = 0.5) -> None:
        number = self.found.completed + 1
        self.found = replace(self.found, completed=number, latest=Checkpoint(number, "", 0, round(took_s * 1000), 0, False))

    def fails(self, why: str) -> None:
        self.found = replace(self.found, failed=self.found.failed + 1, failure=why)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def watch(script: Script) -> CheckpointWatch:
    rest: Any = script
    return CheckpointWatch(rest, script.said.append, clock=lambda: script.now)


def passing(watch: CheckpointWatch, script: Script, seconds: float) -> Iterator[str]:
    """Time passes; why the stream is to be started anew, as often as that is said."""
    until = script.now + seconds
    while script.now < until:
        script.now += LOOK_EVERY_S
        reason = watch("j")
        if reason is not None:
            yield reason


def test_of_checkpoints_that_are_completed_nothing_is_said(watch: CheckpointWatch, script: Script) -> None:
    for _ in range(1_000):
        script.completes()
        assert not list(passing(watch, script, 10.0))
    assert script.said == []


def test_those_that_fail_are_said_at_growing_distances_and_that_one_is_complete_again(watch: CheckpointWatch, script: Script) -> None:
    script.completes()
    script.fails("of before")
    assert not list(passing(watch, script, LOOK_EVERY_S))
    for _ in range(24):
        script.fails("Checkpoint expired before completing.")
        assert not list(passing(watch, script, 10.0))
    assert [sentence.partition(":")[0] for sentence in script.said] == [
        f"no checkpoint is complete for {seconds} s" for seconds in (30, 60, 120, 240)
    ]
    assert script.said[0].endswith(": 3 failed, the last with 'Checkpoint expired before completing'. Messages are held until one is.")
    script.completes()
    assert not list(passing(watch, script, LOOK_EVERY_S))
    assert script.said[4:] == ["a checkpoint is complete again, after 245 s."]
    assert not list(passing(watch, script, QUIET_S - LOOK_EVERY_S))
    assert len(script.said) == 5


def test_a_store_that_is_always_slow_is_said_once_and_one_that_grows_slower_again(watch: CheckpointWatch, script: Script) -> None:
    script.completes()
    for _ in range(20):
        script.found = replace(script.found, in_progress=1)
        assert not list(passing(watch, script, 40.0))
        script.completes(took_s=40.0)
    assert [sentence.partition(".")[0] for sentence in script.said] == [
        "no checkpoint is complete for 30 s: one is under way",
        "a checkpoint is complete again, after 40 s",
    ]
    assert not list(passing(watch, script, 130.0))
    assert script.said[2].startswith("no checkpoint is complete for 120 s")


def test_of_an_interval_of_minutes_three_are_waited_for(watch: CheckpointWatch, script: Script) -> None:
    script.interval_ms = 300_000
    assert not list(passing(watch, script, 900.0))
    assert script.said == []
    assert not list(passing(watch, script, 10.0))
    assert script.said == ["no checkpoint is complete for 900 s: none was begun. Messages are held until one is."]


def test_a_job_that_flink_has_not_begun_is_said_with_the_reason(watch: CheckpointWatch, script: Script) -> None:
    script.found = replace(NONE, failed=25)  # by Flink's count, tasks that do not run yet
    for _ in range(13):
        assert watch("j", "INITIALIZING") is None
        script.now += LOOK_EVERY_S
    assert script.said == [
        f"no checkpoint is complete for {seconds} s: Flink has not begun the job, for it makes their folders first. Messages are held until one is."
        for seconds in (30, 60)
    ]
    assert not list(passing(watch, script, 60.0))
    assert script.said[2].startswith("no checkpoint is complete for 120 s: none was begun")


def test_after_half_an_hour_without_any_the_stream_is_to_be_started_anew(watch: CheckpointWatch, script: Script) -> None:
    assert not list(passing(watch, script, LOOK_EVERY_S))
    script.fails("Failure to finalize checkpoint.")
    reasons = list(passing(watch, script, LOST_S))
    assert reasons == ["no checkpoint was complete for 30 minutes: 1 failed, the last with 'Failure to finalize checkpoint'"]


def test_a_job_manager_that_is_away_or_counts_anew_says_nothing_of_checkpoints(watch: CheckpointWatch, script: Script) -> None:
    script.completes()
    assert not list(passing(watch, script, QUIET_S - LOOK_EVERY_S))
    script.away = True
    assert not list(passing(watch, script, 2 * LOST_S))
    script.away, script.found = False, NONE
    assert not list(passing(watch, script, QUIET_S - LOOK_EVERY_S))
    assert script.said == []


def test_a_job_manager_that_counts_anew_has_no_checkpoint_completed_by_that(watch: CheckpointWatch, script: Script) -> None:
    script.completes()
    assert not list(passing(watch, script, QUIET_S + LOOK_EVERY_S))
    script.found = NONE
    assert not list(passing(watch, script, QUIET_S + LOOK_EVERY_S))
    script.completes()
    assert not list(passing(watch, script, LOOK_EVERY_S))
    assert [sentence.partition(":")[0] for sentence in script.said] == [
        "no checkpoint is complete for 30 s", "no checkpoint is complete for 30 s", "a checkpoint is complete again, after 35 s.",
    ]  # fmt: skip
