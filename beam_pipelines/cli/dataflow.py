"""`run --runner dataflow`: its options, and what is shown of a job that runs elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from beam_pipelines.errors import SpecError
from beam_pipelines.runners.dataflow.settings import Dataflow, refuse_ours, runs_on_dataflow

if TYPE_CHECKING:
    from beam_pipelines.cli.run import Asked
    from beam_pipelines.runners.dataflow.upgrade import TakeOver
    from beam_pipelines.runners.upgrade import Upgrade
    from beam_pipelines.sinks.results import RunResults
    from beam_pipelines.spec.load import LoadedSpec

F = TypeVar("F", bound=Callable[..., Any])
_STREAM_ONLY_LOCAL = ("until_idle", "max_duration", "keep_logs")

_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--project", {"metavar": "PROJECT", "help": "Dataflow: Google Cloud project of the job."}),
    ("--region", {"metavar": "REGION", "help": "Dataflow: region of the job, for example europe-west1."}),
    ("--temp-location", {"metavar": "gs://…", "help": "Dataflow: folder for what the job needs on the way."}),
    ("--sdk-container-image", {"metavar": "IMAGE", "help": "Dataflow: image of the workers, with this package and code of yours."}),
    ("--job-name", {"metavar": "NAME", "help": "Dataflow: name of the job; default: from the pipeline, and of a batch its run id."}),
    ("--service-account", {"metavar": "EMAIL", "help": "Dataflow: account that the workers are."}),
    ("--label", {"metavar": "KEY=VALUE", "multiple": True, "help": "Dataflow: label of the job; may be repeated."}),
    ("--network", {"metavar": "NAME", "help": "Dataflow: network of the workers."}),
    ("--subnetwork", {"metavar": "regions/R/subnetworks/S", "help": "Dataflow: subnetwork of the workers."}),
    ("--no-public-ips", {"is_flag": True, "help": "Dataflow: workers have no public addresses."}),
    ("--kms-key", {"metavar": "projects/…", "help": "Dataflow: Cloud KMS key under which the job's state lies."}),
    ("--workers", {"type": click.IntRange(min=1), "help": "Dataflow: workers at the start."}),
    ("--max-workers", {"type": click.IntRange(min=1), "help": "Dataflow: workers at most."}),
    ("--machine-type", {"metavar": "TYPE", "help": "Dataflow: machine type of the workers."}),
    ("--at-least-once", {"is_flag": True, "help": "Dataflow: a stream may process a message more than once; cheaper."}),
    ("--update", {"is_flag": True, "help": "Dataflow: replace the running job of this stream, and go on with its state."}),
    ("--no-wait", {"is_flag": True, "help": "Dataflow: return when the job is handed in."}),
    ("--graph", {"type": click.Path(dir_okay=False), "metavar": "FILE", "help": "Dataflow: write the job's graph to FILE, and start nothing."}),
)  # fmt: skip


def dataflow_options(*, without: Sequence[str] = ()) -> Callable[[F], F]:
    """The options of a job on Dataflow, which come as `dataflow_…`."""

    def given(function: F) -> F:
        for flag, settings in reversed(_OPTIONS):
            if flag not in without:
                function = click.option(flag, f"dataflow_{flag[2:].replace('-', '_')}", **settings)(function)
        return function

    return given


def dataflow_of(runner: str, given: Mapping[str, Any]) -> Dataflow:
    """The job that the options mean. Raises SpecError for one that does nothing with this runner."""
    said = {name.removeprefix("dataflow_"): value for name, value in given.items() if value}
    if said and not runs_on_dataflow(runner):
        option = f"--{next(iter(said)).replace('_', '-')}"
        raise SpecError(f"{option}: is for --runner dataflow and does nothing with --runner {runner}.", hint="Say --runner dataflow.")
    return Dataflow(
        project=said.get("project"), region=said.get("region"), temp_location=said.get("temp_location"), image=said.get("sdk_container_image"),
        job_name=said.get("job_name"), service_account=said.get("service_account"), labels=said.get("label", ()), network=said.get("network"),
        subnetwork=said.get("subnetwork"), public_ips=not said.get("no_public_ips", False), kms_key=said.get("kms_key"), workers=said.get("workers"),
        max_workers=said.get("max_workers"), machine_type=said.get("machine_type"), at_least_once=said.get("at_least_once", False),
        update=said.get("update", False), wait=not said.get("no_wait", False), graph=said.get("graph"),
    )  # fmt: skip


def run_on_dataflow(found: LoadedSpec, asked: Asked, args: Mapping[str, Any]) -> RunResults | None:
    """Hands the job in and follows it; the record of a batch that was followed, else None. Raises what `submit` and `wait` do."""
    mode: Literal["batch", "stream"] = "stream" if asked.mode == "stream" else "batch"
    _refuse(asked)
    refuse_ours(asked.flags)
    from beam_pipelines.runners.beam_options import unknown_flags
    from beam_pipelines.runners.dataflow.job import DataflowCall, submit
    from beam_pipelines.runners.options import check_flags

    check_flags(asked.flags)
    for warning in unknown_flags(asked.flags):
        click.echo(f"warning: {warning}", err=True)
    settings = asked.dataflow
    call = DataflowCall(settings, mode, asked.run_id, asked.flags, asked.apply_lateness, args, asked.range, asked.input, _say)
    job = submit(found, call)
    if settings.graph is not None:
        _say(f"graph: {len(job.graph.steps)} steps, {job.graph.size:,} bytes, in {settings.graph}; nothing was started")
        return None
    _say(f"engine: Dataflow, job {job.name}, run {job.run.run_id}" + (f": {job.url}" if job.url else ""))
    if not settings.wait or job.job_id is None:
        return None
    try:
        return job.wait()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the job goes on without this command: {job.url}") from None


def judge_on_dataflow(found: LoadedSpec, asked: Asked) -> tuple[Upgrade, TakeOver]:
    """What the spec would do to its stream, and how it would take over. Raises SpecError where `run_on_dataflow` would refuse the call, and what `upgrade_on_dataflow` does."""
    _refuse(asked)
    refuse_ours(asked.flags)
    from beam_pipelines.runners.dataflow.job import DataflowCall
    from beam_pipelines.runners.dataflow.upgrade import upgrade_on_dataflow
    from beam_pipelines.runners.options import check_flags

    check_flags(asked.flags)
    return upgrade_on_dataflow(found, DataflowCall(asked.dataflow, "stream", asked.run_id, asked.flags))


def _refuse(asked: Asked) -> None:
    for name in _STREAM_ONLY_LOCAL:
        if getattr(asked, name):
            raise SpecError(
                f"--{name.replace('_', '-')}: a stream on Dataflow runs until it is cancelled, and the service keeps its log.",
                hint="Leave it out.",
            )
    if asked.new_files:
        raise SpecError(
            "--new-files: runs one batch after the other, which needs somebody who waits.", hint="Give the range: --from and --to."
        )
    if asked.as_json or asked.results:
        why = {
            "--graph: starts nothing": asked.dataflow.graph is not None, "--no-wait: nobody sees the end": not asked.dataflow.wait,
            "--mode stream: runs until it is cancelled": asked.mode == "stream",
        }  # fmt: skip
        for words in (words for words, so in why.items() if so):
            raise SpecError(f"{words}, so there is no record for --json or --results.", hint="Leave those out.")


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)
