"""Beam's options for a job on Flink: those the runner has that the Python SDK does not declare, and the ones that we choose."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions, PortableOptions

from beam_pipelines.errors import SpecError
from beam_pipelines.runners.beam_options import Options
from beam_pipelines.runners.options import LOOPBACK
from beam_pipelines.runners.portable_job import TEN_YEARS_S

PATH = "path"
"""The parameter by which a worker of our pool is told of folders to import from."""
_OURS = {
    "--flink_master": "--flink-master",
    "--job_endpoint": "--flink-master",
    "--flink_job_server_jar": "--flink-job-server-jar",
    "--flink_submit_uber_jar": "--flink-master",
}
_CHECKPOINT_EVERY_MS = 10_000
_CHECKPOINT_TIMEOUT_MS = 10 * 60_000  # Flink's own
_LONGEST_MS = 30 * 60_000  # two intervals and two checkpoints in `PullSettings.lease_most_s`
_BUNDLE_MS = 200


class FlinkJobOptions(PipelineOptions):  # type: ignore[misc]  # Beam ships no types
    """Options of Beam's Flink runner that the Python SDK hands on without knowing them. None: as the runner has it."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--checkpointing_interval", type=int, help="Milliseconds between checkpoints.")
        parser.add_argument("--checkpoint_timeout_millis", type=int, help="Milliseconds after which a checkpoint is given up.")
        parser.add_argument("--min_pause_between_checkpoints", type=int, help="Milliseconds from the end of a checkpoint to the next.")
        parser.add_argument(
            "--fail_on_checkpointing_errors", type=_truth, help="Whether a checkpoint that fails ends the job: true, false."
        )
        parser.add_argument("--externalized_checkpoints_enabled", action="store_true", default=None)
        parser.add_argument("--retain_externalized_checkpoints_on_cancellation", action="store_true", default=None)
        parser.add_argument("--finish_bundle_before_checkpointing", action="store_true", default=None)
        parser.add_argument("--max_bundle_size", type=int, help="Elements after which a bundle ends.")
        parser.add_argument("--max_bundle_time_mills", type=int, help="Milliseconds after which a bundle ends.")
        parser.add_argument("--number_of_execution_retries", type=int, help="How often a failed task is tried again.")
        parser.add_argument("--execution_retry_delay", type=int, help="Milliseconds before it is.")
        parser.add_argument("--savepoint_path", help="The savepoint from which the job starts.")
        parser.add_argument("--allow_non_restored_state", action="store_true", default=None)
        parser.add_argument("--object_reuse", action="store_true", default=None)
        parser.add_argument("--operator_chaining", action="store_true", default=None)


def flink_options(
    endpoint: str, workers: str, flags: Sequence[str], *, streaming: bool, slots: int, path: Sequence[str] = ()
) -> PipelineOptions:
    """Options for a job by the job server at `endpoint`, with workers in this process (LOOPBACK) or those of the pool at `workers` (`host:port`).

    `path` are folders from which workers import too. What `flags` say stays as it is: a batch takes all `slots` else, a stream one. Raises SpecError for flags with which rows are lost.
    """
    for flag in flags:
        if (name := flag.partition("=")[0]) in _OURS:
            raise SpecError(f"{name} after --: the cluster is not a Beam option here.", hint=f"Say {_OURS[name]} before the --.")
    options = Options([*flags, *(["--streaming"] if streaming else [])], runner="PortableRunner")
    portable, flink, job = options.view_as(PortableOptions), options.view_as(FlinkRunnerOptions), options.view_as(FlinkJobOptions)
    if streaming and portable.environment_type is not None:
        raise SpecError(
            f"--environment_type={portable.environment_type}: who does the work of a stream must be known to the command, which asks it to end.",
            hint="Name a pool of workers by --flink-workers, before the --.",
        )
    portable.job_endpoint, portable.job_server_timeout = endpoint, TEN_YEARS_S
    if portable.environment_type is None:
        portable.environment_type = "LOOPBACK" if workers == LOOPBACK else "EXTERNAL"
        portable.environment_config = None if workers == LOOPBACK else json.dumps({"url": workers, "params": {PATH: os.pathsep.join(path)}})
    if flink.parallelism == -1:
        flink.parallelism = 1 if streaming else slots
    if streaming:
        _stream(job)
    return options


def _truth(said: str) -> bool:
    if said.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false; got {said}")
    return said.lower() == "true"


def _stream(job: FlinkJobOptions) -> None:
    if job.checkpointing_interval is None:
        job.checkpointing_interval = _CHECKPOINT_EVERY_MS
    if job.checkpointing_interval <= 0:
        raise SpecError(
            f"--checkpointing_interval={job.checkpointing_interval}: without checkpoints no message is ever acknowledged.",
            hint=f"Give milliseconds, for example {_CHECKPOINT_EVERY_MS}.",
        )
    if job.checkpoint_timeout_millis is None:
        job.checkpoint_timeout_millis = _CHECKPOINT_TIMEOUT_MS
    if job.checkpointing_interval + job.checkpoint_timeout_millis > _LONGEST_MS:
        raise SpecError(
            f"--checkpointing_interval={job.checkpointing_interval} and --checkpoint_timeout_millis={job.checkpoint_timeout_millis}: a message is acknowledged when the second "
            "checkpoint after it is complete, and held for an hour at most.",
            hint=f"Give at most {_LONGEST_MS} (milliseconds) in sum.",
        )
    # The next checkpoint makes up for one that fails; a job that fails with it would begin anew, and what was not acknowledged come again.
    if job.fail_on_checkpointing_errors is None:
        job.fail_on_checkpointing_errors = False
    # Without it a checkpoint that closes the source's first bundle buries its only element: the job runs, and no data ever comes.
    job.finish_bundle_before_checkpointing = True
    if job.max_bundle_time_mills is None:
        job.max_bundle_time_mills = _BUNDLE_MS
