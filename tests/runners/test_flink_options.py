"""Beam's options for a job on Flink: what is set, what a user may say, what is refused."""

from __future__ import annotations

import json

import pytest
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PortableOptions, StandardOptions

from beam_pipelines.errors import SpecError
from beam_pipelines.runners.beam_options import unknown_flags
from beam_pipelines.runners.flink.options import FlinkJobOptions, flink_options
from beam_pipelines.runners.options import LOOPBACK


def test_a_stream_has_what_keeps_it_from_hanging_or_never_acknowledging() -> None:
    options = flink_options("here:1", LOOPBACK, [], streaming=True, slots=8)
    job = options.view_as(FlinkJobOptions)
    assert options.view_as(StandardOptions).streaming
    assert job.finish_bundle_before_checkpointing, "else a checkpoint in the source's first bundle buries its only element"
    assert job.checkpointing_interval == 10_000
    assert job.checkpoint_timeout_millis == 600_000
    assert job.fail_on_checkpointing_errors is False, "else a job begins anew with every checkpoint that a store refuses"
    assert job.max_bundle_time_mills == 200
    assert options.view_as(FlinkRunnerOptions).parallelism == 1
    portable = options.view_as(PortableOptions)
    assert (portable.job_endpoint, portable.environment_type, portable.environment_config) == ("here:1", "LOOPBACK", None)
    assert portable.job_server_timeout > 365 * 24 * 3600, "Beam's 300 s would end every wait after five minutes"


def test_a_batch_takes_all_slots_and_a_pool_is_told_where_to_import_from() -> None:
    options = flink_options("here:1", "pool:50000", [], streaming=False, slots=8, path=["/specs", "/more"])
    assert options.view_as(FlinkRunnerOptions).parallelism == 8
    assert options.view_as(FlinkJobOptions).checkpointing_interval is None
    portable = options.view_as(PortableOptions)
    assert portable.environment_type == "EXTERNAL"
    assert json.loads(portable.environment_config) == {"url": "pool:50000", "params": {"path": "/specs:/more"}}


def test_what_a_user_says_stays() -> None:
    flags = ["--checkpointing_interval=500", "--parallelism=3", "--max_bundle_time_mills=50"]
    options = flink_options("here:1", "pool:50000", flags, streaming=True, slots=8)
    job = options.view_as(FlinkJobOptions)
    assert (job.checkpointing_interval, job.max_bundle_time_mills, options.view_as(FlinkRunnerOptions).parallelism) == (500, 50, 3)
    image = ["--environment_type=DOCKER", "--environment_config=image"]
    portable = flink_options("here:1", "pool:50000", image, streaming=False, slots=8).view_as(PortableOptions)
    assert (portable.environment_type, portable.environment_config) == ("DOCKER", "image")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--checkpointing_interval=0"], "without checkpoints no message is ever acknowledged"),
        (["--checkpointing_interval=-1"], "without checkpoints no message is ever acknowledged"),
        (["--checkpointing_interval=3600000"], "held for an hour at most. Give at most 1800000"),
        (["--checkpointing_interval=1200001"], "checkpoint_timeout_millis=600000: a message is acknowledged when the second checkpoint"),
        (["--checkpoint_timeout_millis=1800000"], "held for an hour at most. Give at most 1800000"),
        (["--environment_type=DOCKER"], "must be known to the command, which asks it to end. Name a pool of workers by --flink-workers"),
        (["--flink_master=x:1"], "--flink_master after --: the cluster is not a Beam option here"),
        (["--job_endpoint=x:1"], "--job_endpoint after --"),
    ],
)
def test_what_would_lose_rows_or_do_nothing_is_refused(flags: list[str], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        flink_options("here:1", "pool:50000", flags, streaming=True, slots=8)


def test_a_user_may_have_longer_checkpoints_and_a_job_that_fails_with_them() -> None:
    flags = ["--checkpointing_interval=60000", "--checkpoint_timeout_millis=1740000", "--fail_on_checkpointing_errors=true"]
    job = flink_options("here:1", LOOPBACK, flags, streaming=True, slots=8).view_as(FlinkJobOptions)
    assert (job.checkpoint_timeout_millis, job.fail_on_checkpointing_errors) == (1_740_000, True)


def test_options_of_the_runner_are_known_where_they_are_checked() -> None:
    assert unknown_flags(["--checkpointing_interval=500", "--max_bundle_time_mills=50", "--savepoint_path=x"]) == []
