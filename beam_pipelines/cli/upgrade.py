"""`upgrade`: what a new version of a spec does to what its stream has stored, and then the stream goes on with it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import click

from beam_pipelines.cli.dataflow import dataflow_of, dataflow_options, judge_on_dataflow
from beam_pipelines.cli.options import flink_of, flink_options, loaded, log_options, spec_options
from beam_pipelines.cli.run import Asked, check_mode, execute
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.runners.dataflow.settings import runs_on_dataflow

if TYPE_CHECKING:
    from beam_pipelines.runners.dataflow.upgrade import TakeOver
    from beam_pipelines.runners.upgrade import Upgrade
    from beam_pipelines.sinks.upgrades import SpecChange

_LONGEST = 120  # of what breaks the state: the changes above it have the rest


@click.command(short_help="Say what a new version of a running stream changes, then run it.")
@spec_options
@click.option("--dry-run", is_flag=True, help="Only say it.")
@click.option(
    "--accept", multiple=True, metavar="CHANGE", help="Take the effect of a refused change, and of those below it; may be repeated."
)
@click.option(
    "--runner",
    default="direct",
    show_default=True,
    help="As of `run`: direct is Prism on this machine, flink a cluster, dataflow Google's service.",
)
@flink_options
@dataflow_options(without=("--update", "--graph"))
@click.option("--until-idle", metavar="DURATION", help="As of `run`: the stream ends once nothing has arrived for so long.")
@click.option("--max-duration", metavar="DURATION", help="As of `run`: the stream ends after so long.")
@click.option("--keep-logs", is_flag=True, help="As of `run`: keep the log of the engine.")
@click.option("--run-id", help="As of `run`: identity of the run.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON; then, where the stream is run, its run_results.json.")
@click.option("--results", type=click.Path(), help="As of `run`: write run_results.json there, too.")
@log_options
@click.argument("beam_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM_OPTIONS...]")
def upgrade(
    spec: str, set_: tuple[str, ...], parameters_file: str | None, dry_run: bool, accept: tuple[str, ...], runner: str, until_idle: str | None,
    max_duration: str | None, keep_logs: bool, run_id: str | None, as_json: bool, results: str | None, beam_options: tuple[str, ...], **elsewhere: Any,
) -> int:  # fmt: skip
    """Compare SPEC with what the newest start of its stream runs, say what each difference does to what is stored, and take over as `run --mode stream` does.

    What would mix two meanings in one table, hide what is stored or lose what was not read is refused: then nothing is changed, and the exit code is 1.

    On Dataflow it takes over as `run --update` does where a job runs, and refuses what its state does not survive; where none runs, by a start.
    """
    from beam_pipelines.cli.stream import check_stream_runner
    from beam_pipelines.runners.upgrade import upgrade_of

    if beam_options and not beam_options[0].startswith("--"):
        raise SpecError(f"upgrade: unexpected argument {beam_options[0]!r}.", hint="Beam options come after -- and look like --name=value.")
    on_dataflow = runs_on_dataflow(runner)
    if not on_dataflow:
        check_stream_runner(runner)
    cluster = flink_of(runner, {name: value for name, value in elsewhere.items() if name.startswith("flink_")})
    job = dataflow_of(runner, {name: value for name, value in elsewhere.items() if name.startswith("dataflow_")})
    found = loaded(spec, set_, parameters_file)
    check_mode(found.spec, "stream")
    record = as_json and not on_dataflow  # nobody sees the end of a stream there
    asked = Asked(
        runner, run_id, beam_options, False, record, results, "stream", until_idle, max_duration, keep_logs, flink=cluster, dataflow=job
    )
    seen, over = judge_on_dataflow(found, asked) if on_dataflow else (upgrade_of(found), None)
    refused = [change for change in seen.changes if change.effect == "refused" and not _accepted(change, accept)]
    given = ["--parameters", parameters_file] if parameters_file else []
    words = [spec, *given, *(word for value in set_ for word in ("--set", value))]
    if as_json:
        click.echo(json.dumps(_as_json(seen, over, accept, words), indent=2))
    else:
        for line in _lines(found.spec.pipeline, seen, over, accept, words):
            click.echo(line)
    if refused:
        raise RunError(
            f"upgrade: {len(refused)} of {len(seen.changes)} changes {'is' if len(refused) == 1 else 'are'} refused; nothing was changed.",
            hint=f"To take the effect all the same: {' '.join(f'--accept {shlex.quote(change.name)}' for change in refused)}",
        )
    if over is not None and over.job is not None:
        if over.breaks:
            raise RunError(
                f"upgrade: the state of job {over.job.name} ({over.job.id}) does not survive this spec; nothing was changed.",
                hint="Cancel it; once it has ended, say this again: that is a start, which has what open windows need delivered again.",
            )
        asked = replace(asked, dataflow=replace(job, update=True))
    return 0 if dry_run else execute(found, asked)


def _accepted(change: SpecChange, accept: Sequence[str]) -> bool:
    return any(f"{change.name}.".startswith(f"{name}.") for name in accept)


def _lines(pipeline: str, seen: Upgrade, over: TakeOver | None, accept: Sequence[str], words: Sequence[str]) -> Iterator[str]:
    from beam_pipelines.cli.tables import clean, grid

    start = seen.start
    if start is None:
        yield f"upgrade {pipeline}: no stream of this state has ever started; this is its first start"
    else:
        yield f"upgrade {pipeline}: against start {seen.epoch}, run {start.run_id}, since {start.started_at}"
    rows = [(_effect(c, accept), c.name, clean(c.before), clean(c.after)) for c in seen.changes]
    header, *lines = grid(("effect", "change", "before", "after"), rows)
    yield from [header] if rows else ["nothing differs"] if start is not None else []
    for line, change in zip(lines, seen.changes, strict=True):
        yield line
        do = "" if _accepted(change, accept) or not change.do else f"→ {change.do}"
        yield from (f"  {sentence}" for sentence in (change.why, do) if sentence)
    yield from _takes_over(over) if over is not None else [_read_again(seen)] if start is not None else []
    if start is not None:
        yield from _later(seen, words)


def _effect(change: SpecChange, accept: Sequence[str]) -> str:
    return "accepted" if change.effect == "refused" and _accepted(change, accept) else change.effect


def _read_again(seen: Upgrade) -> str:
    from beam_pipelines.arrow.ranges import show_instant

    since = "everything" if seen.since is None else f"what arrived since {show_instant(seen.since)}"
    return f"read again from the archive: {since}, {seen.bytes:,} bytes"


def _takes_over(over: TakeOver) -> Iterator[str]:
    from beam_pipelines.runners.dataflow.starts import delivered_again

    if over.job is None:
        yield "takes over by a start: " + ("nothing is read again" if over.first else f"{delivered_again(over.since)} is read again")
    elif not over.breaks:
        yield f"takes over by an update of job {over.job.name} ({over.job.id}): its state goes on, nothing is read again"
    else:
        yield f"cannot take over by an update of job {over.job.name} ({over.job.id}): its state does not survive"
        yield from (f"  {shorten(change.what, _LONGEST, placeholder=' …')}: {change.why}" for change in over.breaks)


def _later(seen: Upgrade, words: Sequence[str]) -> Iterator[str]:
    again = _again(seen, words)
    if again and any(change.effect != "nothing stored changes" for change in seen.changes):
        yield f"closed windows and rows from before stay as they are; to compute them anew: {again}"
    yield f"versions: {', '.join(_versions(seen)) or 'of that start are not known'}"


def _again(seen: Upgrade, words: Sequence[str]) -> str:
    """The command that computes anew what is closed; "" where nothing is."""
    from beam_pipelines.arrow.ranges import show_instant

    if seen.whole:
        return shlex.join(["beam-pipelines", "run", *words, "--mode", "batch", "--input", "archive"])
    if seen.anew is None:
        return ""
    where = ["--from", show_instant(seen.anew.start), "--to", show_instant(seen.anew.end)]
    return shlex.join(["beam-pipelines", "backfill", *words, "--input", "archive", *where])


def _versions(seen: Upgrade) -> Iterator[str]:
    from beam_pipelines.runners.versions import versions_here

    here = versions_here()
    for name, was in seen.start.versions.items() if seen.start is not None else ():
        yield f"{name} {was}" if here.get(name, was) == was else f"{name} {was} → {here[name]}"


def _as_json(seen: Upgrade, over: TakeOver | None, accept: Sequence[str], words: Sequence[str]) -> dict[str, Any]:
    import msgspec

    from beam_pipelines.runners.versions import versions_here

    return {
        "start": seen.epoch, "run_id": seen.start.run_id if seen.start else None, "changes": [
            {**msgspec.structs.asdict(change), "accepted": change.effect == "refused" and _accepted(change, accept)} for change in seen.changes
        ],
        **({"read_again_since_micros": seen.since, "read_again_bytes": seen.bytes} if over is None else {"takes_over": _over_as_json(over)}),
        "compute_anew": _again(seen, words) or None,
        "versions": {"before": seen.start.versions if seen.start else {}, "now": versions_here()},
    }  # fmt: skip


def _over_as_json(over: TakeOver) -> dict[str, Any]:
    if over.job is None:
        return {"by": "start", "reads_again": not over.first, "read_again_since_micros": over.since}
    return {"by": "update", "job": over.job.id, "breaks": [{"what": change.what, "why": change.why} for change in over.breaks]}
