"""`run`: a spec over its batch sources."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from beam_pipelines.cli.options import loaded, log_options, spec_options
from beam_pipelines.errors import RunError, SpecError

if TYPE_CHECKING:
    from beam_pipelines.sinks.results import RunResults
    from beam_pipelines.spec.load import LoadedSpec
    from beam_pipelines.spec.models import PipelineSpec


@dataclass(frozen=True)
class Asked:
    """How `run` was called."""

    runner: str
    run_id: str | None
    flags: tuple[str, ...]
    apply_lateness: bool
    as_json: bool
    results: str | None


@click.command(short_help="Run a spec and account for every row.")
@spec_options
@click.option("--mode", type=click.Choice(["batch", "stream"]), help="Which sources to run; needed where the spec has both.")
@click.option("--runner", default="direct", show_default=True, help="direct, DirectRunner and FnApiRunner run in this process.")
@click.option("--run-id", help="Identity of the run: running twice under one id commits once. Default: the start time and a random part.")
@click.option("--apply-lateness", is_flag=True, help="Apply the stream's lateness rule to aggregates: rows too late become dead letters.")
@click.option("--json", "as_json", is_flag=True, help="Print run_results.json on stdout and nothing else there.")
@click.option("--results", type=click.Path(), help="Write run_results.json there, too.")
@log_options
@click.argument("beam_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM_OPTIONS...]")
def run(
    spec: str, set_: tuple[str, ...], parameters_file: str | None, mode: str | None, runner: str, run_id: str | None, apply_lateness: bool,
    as_json: bool, results: str | None, beam_options: tuple[str, ...],
) -> int:  # fmt: skip
    """Run SPEC: read, check, deduplicate, aggregate, write, and account for every row.

    Everything after -- are Beam pipeline options, for example -- --direct_running_mode=multi_processing.
    """
    if beam_options and not beam_options[0].startswith("--"):
        raise SpecError(f"run: unexpected argument {beam_options[0]!r}.", hint="Beam options come after -- and look like --name=value.")
    found = loaded(spec, set_, parameters_file)
    check_mode(found.spec, mode)
    return execute(found, Asked(runner, run_id, beam_options, apply_lateness, as_json, results))


def check_mode(spec: PipelineSpec, mode: str | None) -> None:
    """Raises SpecError where the mode is missing, has no sources, or is not available."""
    if mode is None and spec.sources.batch and spec.sources.stream:
        raise SpecError("run: the spec has batch and stream sources.", hint="Say which: --mode batch or --mode stream.")
    mode = mode or ("batch" if spec.sources.batch else "stream")
    if mode == "batch" and not spec.sources.batch:
        raise SpecError(
            "run --mode batch: the spec declares no batch sources.",
            hint="Add sources.batch, for example [{files: data/*.csv, format: csv}].",
        )
    if mode == "stream":
        raise SpecError("run --mode stream: the stream path is not part of this version.", hint="Use --mode batch.")


def execute(found: LoadedSpec, asked: Asked) -> int:
    """Runs the job, shows it, and gives the exit code."""
    from beam_pipelines.runners.options import check_flags, engine_for

    engine = engine_for(asked.runner)
    check_flags(asked.flags)
    if asked.results:
        _check_writable(asked.results)
    from beam_pipelines.cli.progress import watching
    from beam_pipelines.runners.beam_options import unknown_flags
    from beam_pipelines.runners.direct import Call, run_batch

    for warning in unknown_flags(asked.flags):
        click.echo(f"warning: {warning}", err=True)
    if not asked.as_json:
        click.echo(engine.announcement, err=True)
    quiet = asked.as_json or not sys.stderr.isatty()
    args = {
        "spec": found.path, "runner": asked.runner, "parameters": {k: str(v) for k, v in found.parameters.items()},
        "apply_lateness": asked.apply_lateness, "beam_options": list(asked.flags),
    }  # fmt: skip
    record = run_batch(
        found,
        Call(asked.runner, asked.run_id, asked.flags, asked.apply_lateness, args, watching(found.spec, quiet=quiet, flags=asked.flags)),
    )
    _report(found, asked, record)
    return 0 if record.status == "success" else 1


def _report(found: LoadedSpec, asked: Asked, record: RunResults) -> None:
    from beam_pipelines.sinks.results import to_json

    text = to_json(record)
    if asked.results:
        try:
            with open(asked.results, "wb") as out:
                out.write(text)
        except OSError as error:
            raise RunError(
                f"--results {asked.results}: cannot be written: {error.strerror}.", hint=f"The run itself ended with {record.status}."
            ) from None
    with contextlib.suppress(BrokenPipeError):  # the exit code is the run's, whoever stopped reading
        if asked.as_json:
            click.echo(text.decode().rstrip())
        else:
            from beam_pipelines.cli.show import show_run

            show_run(record, state=found.state if "://" in found.state else os.path.relpath(found.state))
        sys.stdout.flush()
        return
    from beam_pipelines.cli.main import forget_stdout

    forget_stdout()


def _check_writable(path: str) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.access(folder, os.W_OK):
        raise SpecError(f"--results {path}: cannot be written.", hint="Give the path of a file in a folder that exists.")
