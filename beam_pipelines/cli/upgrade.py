"""`upgrade`: what a new version of a spec does to what its stream has stored, and then the stream goes on with it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from beam_pipelines.cli.options import flink_of, flink_options, loaded, log_options, spec_options
from beam_pipelines.cli.run import Asked, check_mode, execute
from beam_pipelines.errors import RunError, SpecError

if TYPE_CHECKING:
    from beam_pipelines.runners.upgrade import Upgrade
    from beam_pipelines.sinks.upgrades import Change


@click.command(short_help="Say what a new version of a running stream changes, then run it.")
@spec_options
@click.option("--dry-run", is_flag=True, help="Only say it.")
@click.option(
    "--accept", multiple=True, metavar="CHANGE", help="Take the effect of a refused change, and of those below it; may be repeated."
)
@click.option("--runner", default="direct", show_default=True, help="As of `run`: direct is Prism on this machine, flink a cluster.")
@flink_options
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
    max_duration: str | None, keep_logs: bool, run_id: str | None, as_json: bool, results: str | None, beam_options: tuple[str, ...], **flink: Any,
) -> int:  # fmt: skip
    """Compare SPEC with what the newest start of its stream runs, say what each difference does to what is stored, and take over as `run --mode stream` does.

    What would mix two meanings in one table, hide what is stored or lose what was not read is refused: then nothing is changed, and the exit code is 1.
    """
    from beam_pipelines.cli.stream import check_stream_runner
    from beam_pipelines.runners.dataflow.settings import runs_on_dataflow
    from beam_pipelines.runners.upgrade import upgrade_of

    if beam_options and not beam_options[0].startswith("--"):
        raise SpecError(f"upgrade: unexpected argument {beam_options[0]!r}.", hint="Beam options come after -- and look like --name=value.")
    if runs_on_dataflow(runner):
        raise SpecError(f"upgrade --runner {runner}: there a stream keeps its state.", hint="`plan` compares; `run --update` takes over.")
    check_stream_runner(runner)
    cluster = flink_of(runner, flink)
    found = loaded(spec, set_, parameters_file)
    check_mode(found.spec, "stream")
    seen = upgrade_of(found)
    refused = [change for change in seen.changes if change.effect == "refused" and not _accepted(change, accept)]
    given = ["--parameters", parameters_file] if parameters_file else []
    words = [spec, *given, *(word for value in set_ for word in ("--set", value))]
    if as_json:
        click.echo(json.dumps(_as_json(seen, accept, words), indent=2))
    else:
        for line in _lines(found.spec.pipeline, seen, accept, words):
            click.echo(line)
    if refused:
        raise RunError(
            f"upgrade: {len(refused)} of {len(seen.changes)} changes {'is' if len(refused) == 1 else 'are'} refused; nothing was changed.",
            hint=f"To take the effect all the same: {' '.join(f'--accept {shlex.quote(change.name)}' for change in refused)}",
        )
    if dry_run:
        return 0
    asked = Asked(runner, run_id, beam_options, False, as_json, results, "stream", until_idle, max_duration, keep_logs, flink=cluster)
    return execute(found, asked)


def _accepted(change: Change, accept: Sequence[str]) -> bool:
    return any(f"{change.name}.".startswith(f"{name}.") for name in accept)


def _lines(pipeline: str, seen: Upgrade, accept: Sequence[str], words: Sequence[str]) -> Iterator[str]:
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
    if start is not None:
        yield from _costs(seen, words)


def _effect(change: Change, accept: Sequence[str]) -> str:
    return "accepted" if change.effect == "refused" and _accepted(change, accept) else change.effect


def _costs(seen: Upgrade, words: Sequence[str]) -> Iterator[str]:
    from beam_pipelines.arrow.ranges import show_instant

    since = "everything" if seen.since is None else f"what arrived since {show_instant(seen.since)}"
    yield f"read again from the archive: {since}, {seen.bytes:,} bytes"
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


def _as_json(seen: Upgrade, accept: Sequence[str], words: Sequence[str]) -> dict[str, Any]:
    import msgspec

    from beam_pipelines.runners.versions import versions_here

    return {
        "start": seen.epoch, "run_id": seen.start.run_id if seen.start else None, "changes": [
            {**msgspec.structs.asdict(change), "accepted": change.effect == "refused" and _accepted(change, accept)} for change in seen.changes
        ],
        "read_again_since_micros": seen.since, "read_again_bytes": seen.bytes, "compute_anew": _again(seen, words) or None,
        "versions": {"before": seen.start.versions if seen.start else {}, "now": versions_here()},
    }  # fmt: skip
