"""`cluster`: a Flink cluster on this machine, for trying and for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from beam_pipelines.cli.options import log_options

if TYPE_CHECKING:
    from beam_pipelines.runners.flink.cluster import Cluster

F = TypeVar("F", bound=Callable[..., Any])


@click.group(short_help="Start, end and look at a Flink cluster on this machine.")
def cluster() -> None:
    """Start, end and look at a Flink cluster on this machine: without Docker, on loopback alone."""


def _folder(function: F) -> F:
    """--folder."""
    return click.option(
        "--folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
        help="Where its files are; default: ~/.cache/beam_pipelines/cluster.",
    )(function)  # fmt: skip


@cluster.command(short_help="Start a cluster that stays when this command ends.")
@click.option("--slots", type=click.IntRange(min=1), help="How many tasks run at once; default: 2, or one for each task manager.")
@click.option(
    "--task-managers",
    type=click.IntRange(min=1),
    help="How many processes of Flink run them, each with Python workers of its own; default: 1.",
)
@click.option("--port", type=click.IntRange(1, 65535), help="Of Flink's REST service and web page; default: 8081, or a free one.")
@click.option(
    "--checkpoints",
    metavar="PLACE",
    help="Where checkpoints and savepoints lie: a folder, or gs://bucket/folder; default: the cluster's folder.",
)
@_folder
@log_options
def up(slots: int | None, task_managers: int | None, port: int | None, checkpoints: str | None, folder: Path | None) -> int:
    """Start a job manager, a task manager and a pool of Python workers, and wait until they take jobs.

    \b
    beam-pipelines cluster up
    beam-pipelines run flights.yaml --mode batch --runner flink
    beam-pipelines cluster down

    Workers see the environment that this command is called with. Where a cluster runs already, only what is dead of it is started.
    """
    from beam_pipelines.runners.flink.cluster import start_cluster

    found, started = start_cluster(
        folder, slots=slots, task_managers=task_managers, port=port, checkpoints=checkpoints, say=lambda text: click.echo(text, err=True)
    )
    if not started:
        click.echo("It runs already, and nothing was changed.")
    elif len(started) < len(found.parts):
        click.echo(f"It ran already; started anew, because they were dead: {', '.join(started)}.")
    click.echo(_line(found, folder))
    return 0


def _line(found: Cluster, folder: Path | None) -> str:
    from beam_pipelines.runners.flink.jars import FLINK_VERSION

    named = f" --folder {folder}" if folder else ""
    slots = f"{found.slots} slot{'s' * (found.slots != 1)}"
    slots += f" of {found.task_managers} task managers" if found.task_managers > 1 else ""
    checkpoints = f", checkpoints in {found.store.place}" if found.store.in_bucket else ""
    return (
        f"Flink {FLINK_VERSION} at {found.rest} ({slots}), Python workers at {found.workers}{checkpoints}; "
        f"beam-pipelines cluster down{named} ends it."
    )


@cluster.command(short_help="End what `cluster up` started.")
@_folder
@log_options
def down(folder: Path | None) -> int:
    """End the cluster that `cluster up` started, with the jobs on it. Checkpoints, savepoints and logs stay."""
    from beam_pipelines.runners.flink.cluster import cluster_folder, end_cluster

    ended = end_cluster(folder)
    click.echo(f"No cluster in {folder or cluster_folder()}." if ended is None else f"Ended: the cluster at {ended.rest}.")
    return 0


@cluster.command(short_help="Show what of it lives, its slots and its jobs.")
@_folder
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@log_options
def status(folder: Path | None, as_json: bool) -> int:
    """Show the cluster that `cluster up` started: its parts, slots, jobs and versions. Exit code 1 where a part is dead."""
    from beam_pipelines.runners.flink.cluster import cluster_folder, find_cluster

    found = find_cluster(folder)
    seen = {"folder": str(folder or cluster_folder()), "running": False} if found is None else _seen(found)
    if as_json:
        import json

        click.echo(json.dumps(seen, indent=2))
    elif found is None:
        click.echo(f"No cluster in {seen['folder']}; beam-pipelines cluster up starts one.")
    else:
        for line in _lines(found, seen, folder):
            click.echo(line)
    return 1 if found is not None and found.dead else 0


def _seen(found: Cluster) -> dict[str, Any]:
    """All that is known of a cluster, for JSON."""
    from dataclasses import asdict
    from importlib.metadata import version

    from beam_pipelines.errors import RunError
    from beam_pipelines.runners.flink.jars import RUNNER_VERSION

    dead = found.dead
    seen: dict[str, Any] = {
        "folder": str(found.folder), "running": not dead, "rest": found.rest, "workers": found.workers, "slots": found.slots, "checkpoints": found.store.place,
        "parts": {part: {"pid": process.pid, "alive": part not in dead, "log": str(found.log(part))} for part, process in found.parts.items()},
        "beam_runner": RUNNER_VERSION, "beam": version("apache-beam"),
    }  # fmt: skip
    try:
        overview, jobs = found.client.overview(), found.client.jobs()
    except RunError as error:
        return {**seen, "running": False, "error": str(error)}
    running = not dead and overview.slots >= found.slots
    return {**seen, "running": running, "flink": overview.version, "slots_free": overview.slots_free, "jobs": [asdict(job) for job in jobs]}


def _lines(found: Cluster, seen: dict[str, Any], folder: Path | None) -> Iterator[str]:
    dead, width = found.dead, max(map(len, found.parts))
    for part, process in found.parts.items():
        yield f"{part:{width}}  {f'dead; its log: {found.log(part)}' if part in dead else f'process {process.pid}'}"
    if "error" in seen:
        yield seen["error"]
    else:
        yield f"Flink {seen['flink']} at {found.rest}: {seen['slots_free']} of {found.slots} slots free"
        yield f"Python workers at {found.workers}; Beam {seen['beam']}, its Flink runner {seen['beam_runner']}"
        yield f"checkpoints and savepoints in {found.store.place}"
        for job in seen["jobs"]:
            yield f"{job['id']}  {job['state']:10}  {job['duration_ms'] / 1000:8.1f} s  {job['name']}"
    if dead:
        yield f"beam-pipelines cluster up{f' --folder {folder}' if folder else ''} starts what is dead."
