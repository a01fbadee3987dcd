"""`plan`: what a new version of a spec changes, before it is deployed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from beam_pipelines.cli.options import assignments, loaded, log_options, spec_options
from beam_pipelines.errors import SpecError

if TYPE_CHECKING:
    from beam_pipelines.runners.dataflow.graph import Graph


@click.command(short_help="Say what a new version of a spec changes.")
@spec_options
@click.option(
    "--against", required=True, type=click.Path(), metavar="OLD", help="The old version: its spec, or the graph that `run --graph` wrote."
)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@log_options
def plan(spec: str, set_: tuple[str, ...], parameters_file: str | None, against: str, as_json: bool) -> int:
    """Compare SPEC with the version that runs: what is written where, with which columns and checks; steps, and the state of the stream.

    Exit code 0: `run --update` can replace the running job. 1: it cannot, and why.
    """
    from beam_pipelines.runners.dataflow.plan import compare, planned

    old = _old(against, set_, parameters_file)
    changes = compare(old, planned(loaded(spec, set_, parameters_file)))
    broken = [change for change in changes if change.breaks]
    if as_json:
        click.echo(json.dumps({"compatible": not broken, "changes": [change._asdict() for change in changes]}, indent=2))
        return int(bool(broken))
    for change in changes:
        click.echo(f"{'BREAKS ' if change.breaks else 'changes'}  {change.what}" + (f": {change.why}" if change.why else ""))
    if broken:
        click.echo(
            f"The state of the running stream does not survive: {len(broken)} of {len(changes)} changes. Cancel the job and start the new version anew."
        )
    else:
        click.echo("Compatible: " + ("nothing changes." if not changes else "a running stream goes on with its state."))
    return int(bool(broken))


def _old(path: str, set_: tuple[str, ...], parameters_file: str | None) -> Graph:
    if path.endswith(".json"):
        return _saved(path)
    from beam_pipelines.runners.dataflow.bundle import declared
    from beam_pipelines.runners.dataflow.plan import planned

    known = declared(_text(path), file=path)
    given = tuple(f"{name}={value}" for name, value in assignments(set_).items() if name in known)
    return planned(loaded(path, given, parameters_file))


def _saved(path: str) -> Graph:
    import msgspec

    from beam_pipelines.runners.dataflow.graph import Graph

    try:
        return msgspec.json.decode(_text(path), type=Graph)
    except msgspec.DecodeError as error:
        raise SpecError(
            f"--against {path}: is no graph: {error}.", hint="A graph is what `run --runner dataflow --graph FILE` wrote."
        ) from None


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"--against {path}: cannot be read: {error}.") from None
