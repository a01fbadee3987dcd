"""`status`: how a pipeline stands, for whoever is on call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from beam_pipelines.cli.options import loaded, log_options, spec_options

if TYPE_CHECKING:
    from beam_pipelines.serving.standing import Standing, StreamStanding


@click.command(short_help="How a pipeline stands: its stream, its newest batch.")
@spec_options
@click.option("--flink-master", metavar="HOST:PORT", help="The Flink cluster whose job is looked at, too; default: that of `cluster up`.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@log_options
def status(spec: str, set_: tuple[str, ...], parameters_file: str | None, flink_master: str | None, as_json: bool) -> int:
    """Show the newest start of SPEC's stream, whether it runs and how far it has come; the newest batch run; and the stream's job on Flink with its checkpoints and restarts.

    Exit code 1 where the stream neither runs nor was drained.
    """
    from beam_pipelines.serving.standing import standing

    found = loaded(spec, set_, parameters_file)
    seen = standing(found.state)
    flink = _flink(flink_master, seen.stream.run_id) if seen.stream is not None else None
    if as_json:
        import json

        click.echo(json.dumps({"pipeline": found.spec.pipeline, **_as_json(seen), "flink": flink}, indent=2))
    else:
        for line in _lines(found.spec.pipeline, seen, flink):
            click.echo(line)
    return int(seen.stream is not None and seen.stream.lost)


def _flink(master: str | None, run_id: str) -> dict[str, Any] | None:
    """What Flink knows of the stream's job; None where no cluster is meant or it knows of none. `error` where it does not answer."""
    from beam_pipelines.errors import RunError
    from beam_pipelines.runners.flink.cluster import master_of
    from beam_pipelines.runners.flink.rest import FlinkRest

    address = master_of(master)
    if address is None:
        return None
    rest = FlinkRest(address)
    try:
        job = next((job for job in rest.jobs() if job.name == run_id), None)
        if job is None:
            return {"master": address, "error": f"Flink at {address} knows no job of this start."} if master else None
        checkpoints = rest.checkpoints(job.id)
        latest = checkpoints.latest
        return {
            "master": address, "job": job.id, "state": job.state, "restarts": rest.restarts(job.id), "checkpoints": checkpoints.completed,
            "failed_checkpoints": checkpoints.failed, "checkpoint_bytes": None if latest is None else latest.state_bytes,
            "checkpoint_ms": None if latest is None else latest.duration_ms, "checkpoint_done_ms": None if latest is None else latest.done_ms,
            "checkpoint_failure": checkpoints.failure if checkpoints.failing else None,
        }  # fmt: skip
    except RunError as error:
        return {"master": address, "error": str(error)}


def _as_json(seen: Standing) -> dict[str, Any]:
    from dataclasses import asdict

    batch = seen.batch
    return {
        "stream": None if seen.stream is None else {**asdict(seen.stream), "lost": seen.stream.lost},
        "batch": None
        if batch is None
        else {
            "run_id": batch.metadata.run_id, "status": batch.status, "started_at": batch.metadata.started_at, "elapsed_s": batch.metadata.elapsed_s,
            "range": batch.metadata.range, "failures": list(batch.failures),
        },
    }  # fmt: skip


def _lines(pipeline: str, seen: Standing, flink: dict[str, Any] | None) -> Iterator[str]:
    yield pipeline
    if seen.stream is None:
        yield "stream  never started"
    else:
        yield from _stream(seen.stream)
    if flink is not None:
        yield f"Flink   {_of_flink(flink)}"
    if seen.batch is None:
        yield "batch   never ran"
        return
    about = seen.batch.metadata
    over = f" over [{about.range[0]}, {about.range[1]})" if about.range else ""
    yield f"batch   {seen.batch.status}: run {about.run_id}{over}, {about.elapsed_s:.1f} s, begun {about.started_at}"
    for failure in seen.batch.failures:
        yield f"        {failure}"


def _stream(stream: StreamStanding) -> Iterator[str]:
    from beam_pipelines.arrow.ranges import show_instant

    where = f"process {stream.pid} on {stream.host}, since {stream.started_at}"
    how = (
        "drained"
        if stream.drained
        else {True: "runs", False: "GONE, and not drained: start it again", None: "runs elsewhere, or is gone"}[stream.alive]
    )
    yield f"stream  {how}: start {stream.starts}, run {stream.run_id}, {where}"
    until = (
        "nothing is known to be stored yet"
        if stream.stored_until is None
        else f"what arrived before {show_instant(stream.stored_until)} is stored"
    )
    ago = "" if stream.through_ms is None else f"; last heard of {_ago(time.time() - stream.through_ms / 1000)} ago"
    yield f"        {until}{ago}"


def _of_flink(flink: dict[str, Any]) -> str:
    if "error" in flink:
        return str(flink["error"])
    size = (
        ""
        if flink["checkpoint_bytes"] is None
        else f", the last of {flink['checkpoint_bytes'] / 1e6:.1f} MB in {flink['checkpoint_ms'] / 1000:.1f} s, {_ago(time.time() - flink['checkpoint_done_ms'] / 1000)} ago"
    )
    since = f", the latest: {flink['checkpoint_failure']}" if flink["checkpoint_failure"] else ""
    failed = f" ({flink['failed_checkpoints']:,} failed{since})" if flink["failed_checkpoints"] else ""
    return f"job {flink['job']} at {flink['master']}: {flink['state']}; {flink['checkpoints']:,} checkpoints{failed}{size}; restarted {flink['restarts']} times"


def _ago(seconds: float) -> str:
    from beam_pipelines.arrow.durations import format_duration

    return format_duration(max(1, int(seconds)) * 1_000_000)
