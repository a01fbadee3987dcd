"""`doctor`: what is good and what is not, before a job starts."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from beam_pipelines.cli.dataflow import dataflow_of, dataflow_options
from beam_pipelines.cli.options import flink_of, flink_options, loaded, log_options
from beam_pipelines.cli.run import check_mode
from beam_pipelines.errors import SpecError
from beam_pipelines.runners.dataflow.settings import runs_on_dataflow

if TYPE_CHECKING:
    from beam_pipelines.runners.findings import Finding, State
    from beam_pipelines.spec.load import LoadedSpec

_COLORS: dict[State, str] = {"good": "green", "warning": "yellow", "bad": "red", "not looked at": "cyan"}


@click.command(short_help="Say what is good and what is not, before a job starts.")
@click.argument("spec", type=click.Path(), required=False)
@click.option("--set", "set_", multiple=True, metavar="NAME=VALUE", help="Set a parameter of the spec; may be repeated.")
@click.option("--parameters", "parameters_file", type=click.Path(), help="YAML or JSON file with parameter values.")
@click.option("--mode", type=click.Choice(["batch", "stream"]), help="Which sources and outputs to look at; default: all of the spec.")
@click.option("--runner", default="direct", show_default=True, help="direct: this machine. flink: a cluster. dataflow: Google's service.")
@flink_options
@dataflow_options(without=("--no-wait", "--graph"))
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@log_options
@click.argument("beam_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM_OPTIONS...]")
def doctor(
    spec: str | None, set_: tuple[str, ...], parameters_file: str | None, mode: str | None, runner: str, as_json: bool,
    beam_options: tuple[str, ...], **elsewhere: Any,
) -> int:  # fmt: skip
    """Look at this machine, at SPEC with its sources, outputs and state, and at the cluster or the service; say of each how it is, and what to do.

    Nothing is changed and nothing is run. With the options that `run` gets, it looks at what that run would need. Exit code 1: something is bad.
    """
    if spec is not None and spec.startswith("--"):  # no spec: the first word after -- is an option of Beam
        beam_options, spec = (spec, *beam_options), None
    cluster = _checked(runner, beam_options, {name: value for name, value in elsewhere.items() if name.startswith("flink_")})
    job = dataflow_of(runner, {name: value for name, value in elsewhere.items() if name.startswith("dataflow_")})
    found_spec = _loaded(spec, set_, parameters_file, mode)
    from beam_pipelines.runners.beam_options import unknown_flags
    from beam_pipelines.runners.doctor import Examination, examine, modes_of
    from beam_pipelines.runners.findings import Finding
    from beam_pipelines.spec.load import LoadedSpec

    known = modes_of(found_spec.spec, mode) if isinstance(found_spec, LoadedSpec) else (mode,) if mode is not None else ()
    _check_runner(runner, known)
    unknown = [Finding("Beam options", "warning", sentence, "Leave it out.") for sentence in unknown_flags(beam_options)]
    on_dataflow = job if runs_on_dataflow(runner) else None
    found = [*unknown, *examine(Examination(found_spec, mode, cluster, beam_options, on_dataflow))]
    counts = Counter(finding.state for finding in found)
    if as_json:
        checks = [{"check": f.check, "state": f.state, "found": f.found, "do": f.do} for f in found]
        click.echo(json.dumps({"checks": checks, **{state.replace(" ", "_"): counts[state] for state in _COLORS}}, indent=2))
    else:
        for line in _lines(found):
            click.echo(line)
        click.echo(", ".join(f"{counts[state]} {state}" for state in _COLORS if counts[state]))
    return int(counts["bad"] > 0)


def _checked(runner: str, beam_options: tuple[str, ...], flink: dict[str, Any]) -> Any:
    """The cluster, None for local runners. Raises SpecError where the call is wrong."""
    from beam_pipelines.runners.options import check_flags, runs_on_flink

    if beam_options and not beam_options[0].startswith("--"):
        raise SpecError(f"doctor: unexpected argument {beam_options[0]!r}.", hint="Beam options come after -- and look like --name=value.")
    check_flags(beam_options)
    cluster = flink_of(runner, flink)
    return cluster if runs_on_flink(runner) else None


def _check_runner(runner: str, modes: Sequence[str]) -> None:
    """Raises SpecError where the runner cannot run one of the modes; where none is known, either."""
    from beam_pipelines.cli.stream import check_stream_runner
    from beam_pipelines.runners.options import engine_for

    if runs_on_dataflow(runner):
        return
    if not modes:
        try:
            check_stream_runner(runner)
        except SpecError:
            engine_for(runner)
    for mode in modes:
        if mode == "stream":
            check_stream_runner(runner)
        else:
            engine_for(runner)


def _loaded(spec: str | None, set_: tuple[str, ...], parameters_file: str | None, mode: str | None) -> LoadedSpec | SpecError | None:
    """The spec, or what is wrong with it. Raises SpecError where the call is wrong: there is no such file, or the spec has no such mode."""
    if spec is None:
        if set_ or parameters_file is not None:
            raise SpecError("doctor: parameters are those of a spec, and none is named.", hint="Name it: beam-pipelines doctor SPEC.")
        return None
    try:
        found = loaded(spec, set_, parameters_file)
    except SpecError as error:
        if not os.path.exists(spec):
            raise
        return error
    if mode is not None:
        check_mode(found.spec, mode)
    return found


def _lines(found: Sequence[Finding]) -> Iterator[str]:
    """A line for each finding: what was looked at, how it is, what was seen; what to do is on a line of its own below."""
    from beam_pipelines.cli.tables import clean

    names, states = max(len(f.check) for f in found), max(len(f.state) for f in found)
    for finding in found:
        seen, *more = finding.found.splitlines() or [""]
        yield f"{finding.check:{names}}  {click.style(f'{finding.state:{states}}', fg=_COLORS[finding.state])}  {clean(seen)}".rstrip()
        below = " " * (names + states + 4)
        yield from (f"{below}{clean(line)}" for line in more)
        if finding.do:
            yield f"{below}→ {clean(finding.do)}"
