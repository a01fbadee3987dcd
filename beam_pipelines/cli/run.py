"""`run`: a spec over its batch sources, or over its subscriptions."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import click

from beam_pipelines.cli.dataflow import dataflow_of, dataflow_options, run_on_dataflow
from beam_pipelines.cli.options import flink_of, flink_options, loaded, log_options, spec_options
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.runners.dataflow.settings import NO_JOB, Dataflow, runs_on_dataflow
from beam_pipelines.runners.heap import keep_memory
from beam_pipelines.runners.options import NOT_SAID, Flink

if TYPE_CHECKING:
    from beam_pipelines.arrow.ranges import Range
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
    mode: str = "batch"
    until_idle: str | None = None
    max_duration: str | None = None
    keep_logs: bool = False
    range: Range | None = None
    input: Literal["batch", "archive"] = "batch"
    new_files: bool = False
    flink: Flink = NOT_SAID
    dataflow: Dataflow = NO_JOB


@click.command(short_help="Run a spec and account for every row.")
@spec_options
@click.option("--mode", type=click.Choice(["batch", "stream"]), help="Which sources to run; needed where the spec has both.")
@click.option(
    "--runner",
    default="direct",
    show_default=True,
    help="direct: this machine; a batch in this process, a stream on Prism. flink: a cluster. dataflow: Google's service.",
)
@flink_options
@dataflow_options()
@click.option(
    "--from", "from_", metavar="TIME", help="A batch computes anew what lies at or after this event time, and replaces exactly that."
)
@click.option("--to", metavar="TIME", help="The end of that range, not included. Bare dates are midnight in the spec's time_zone.")
@click.option(
    "--input", "input_", type=click.Choice(["batch", "archive"]), help="A batch reads its batch sources, or what the stream has archived."
)
@click.option(
    "--new-files", is_flag=True, help="A batch reads files that came, changed or went since the last run, and computes what they touch."
)
@click.option("--ignore-stream", is_flag=True, help="Take a range although windows of the stream in it are still open.")
@click.option("--until-idle", metavar="DURATION", help="A stream ends once nothing has arrived for so long, for example 30s.")
@click.option("--max-duration", metavar="DURATION", help="A stream ends after so long, for example 2h.")
@click.option("--keep-logs", is_flag=True, help="Keep the log of the engine under a stream.")
@click.option("--run-id", help="Identity of the run: running twice under one id commits once. Default: the start time and a random part.")
@click.option("--apply-lateness", is_flag=True, help="Apply the stream's lateness rule to aggregates: rows too late become dead letters.")
@click.option("--json", "as_json", is_flag=True, help="Print run_results.json on stdout and nothing else there.")
@click.option("--results", type=click.Path(), help="Write run_results.json there, too.")
@log_options
@click.argument("beam_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM_OPTIONS...]")
def run(
    spec: str, set_: tuple[str, ...], parameters_file: str | None, mode: str | None, runner: str, run_id: str | None, apply_lateness: bool,
    as_json: bool, results: str | None, beam_options: tuple[str, ...], until_idle: str | None, max_duration: str | None, keep_logs: bool,
    from_: str | None, to: str | None, input_: str | None, ignore_stream: bool, new_files: bool, **elsewhere: Any,
) -> int:  # fmt: skip
    """Run SPEC: read, check, deduplicate, aggregate, write, and account for every row.

    With --from and --to a batch computes a range of event time anew: it reads what the range depends on, replaces whole partitions of every output,
    and is the authority there from then on.

    A stream runs until SIGTERM or Ctrl-C, which drain it: what was pulled is stored and acknowledged, and it exits with 0.

    Everything after -- are Beam pipeline options, for example -- --direct_running_mode=multi_processing.
    """
    if beam_options and not beam_options[0].startswith("--"):
        raise SpecError(f"run: unexpected argument {beam_options[0]!r}.", hint="Beam options come after -- and look like --name=value.")
    if chosen := next((word for word in beam_options if word.partition("=")[0] == "--runner"), None):
        raise SpecError(f"run: {chosen} after --: the engine is not a Beam option here.", hint="Say --runner before the --.")
    cluster = flink_of(runner, {name: value for name, value in elsewhere.items() if name.startswith("flink_")})
    job = dataflow_of(runner, {name: value for name, value in elsewhere.items() if name.startswith("dataflow_")})
    found = loaded(spec, set_, parameters_file)
    mode = check_mode(found.spec, mode)
    if mode == "batch":
        _set_libraries(found.spec)
    _check_options(
        mode, until_idle=until_idle, max_duration=max_duration, keep_logs=keep_logs, apply_lateness=apply_lateness, to=to, input=input_,
        ignore_stream=ignore_stream, new_files=new_files, **{"from": from_},
    )  # fmt: skip
    where, chosen_input = _range(found, from_, to, ignore_stream=ignore_stream), input_of(found.spec, input_)
    asked = Asked(
        runner,
        run_id,
        beam_options,
        apply_lateness,
        as_json,
        results,
        mode,
        until_idle,
        max_duration,
        keep_logs,
        where,
        chosen_input,
        new_files,
        cluster,
        job,
    )
    if new_files and (where is not None or chosen_input == "archive"):
        raise SpecError("--new-files: takes no range and no --input archive.", hint="It finds the ranges that new files touch by itself.")
    return execute(found, asked)


def _set_libraries(spec: PipelineSpec) -> None:
    """What Arrow and numpy read from the environment when they are loaded; and that a batch keeps the memory it has had for its next block."""
    keep_memory()
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "-1")  # Arrow's
    if not spec.functions:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads for matrices wait actively, and we multiply none


def check_mode(spec: PipelineSpec, mode: str | None) -> str:
    """The mode to run in. Raises SpecError where it is missing or has no sources."""
    if mode is None and spec.sources.batch and spec.sources.stream:
        raise SpecError("run: the spec has batch and stream sources.", hint="Say which: --mode batch or --mode stream.")
    mode = mode or ("batch" if spec.sources.batch else "stream")
    if mode == "stream" and not spec.sources.stream:
        raise SpecError(
            "run --mode stream: the spec declares no stream sources.",
            hint="Add sources.stream, for example [{pubsub: projects/P/subscriptions/S, format: json}].",
        )
    return mode


def input_of(spec: PipelineSpec, chosen: str | None) -> Literal["batch", "archive"]:
    """What a batch reads: its batch sources, where there are any, else the archive of its stream. Raises SpecError where the chosen one is not declared."""
    if chosen == "batch" and not spec.sources.batch:
        raise SpecError(
            "--input batch: the spec declares no batch sources.", hint="Add sources.batch, for example [{files: data/*.csv, format: csv}]."
        )
    if chosen == "archive" and not spec.sources.stream:
        raise SpecError(
            "--input archive: the spec declares no stream sources, so nothing archives.",
            hint="Add sources.stream, for example [{pubsub: projects/P/subscriptions/S, format: json}].",
        )
    return "archive" if chosen == "archive" or not spec.sources.batch else "batch"


def _range(found: LoadedSpec, start: str | None, end: str | None, *, ignore_stream: bool) -> Range | None:
    """The range asked for. Raises SpecError where it does not fit the outputs, or the stream is still at work in it."""
    if start is None and end is None:
        return None
    from beam_pipelines.runners.closed import check_closed
    from beam_pipelines.spec.ranges import parse_range

    where = parse_range(found.spec, start, end)
    if where is not None and not ignore_stream:
        check_closed(found, where)
    return where


_BATCH_ONLY = ("apply_lateness", "from", "to", "input", "ignore_stream", "new_files")


def _check_options(mode: str, **given: object) -> None:
    """Raises SpecError for an option of the other mode: it would do nothing, and nobody would know."""
    for name in (n for n, value in given.items() if value and (n in _BATCH_ONLY) == (mode == "stream")):
        option = f"--{name.replace('_', '-')}"
        if mode == "stream":
            why = "a stream always applies its lateness" if name == "apply_lateness" else "a stream takes what comes"
            raise SpecError(f"{option}: is for --mode batch; {why}.", hint="Leave it out.")
        raise SpecError(f"{option}: is for --mode stream and does nothing in a batch run.", hint="Leave it out, or say --mode stream.")


def execute(found: LoadedSpec, asked: Asked) -> int:
    """Runs the job, shows it, and gives the exit code."""
    if asked.results:
        _check_writable(asked.results)
    if runs_on_dataflow(asked.runner):
        record = run_on_dataflow(found, asked, _args(found, asked))
        if record is not None:
            _report(found, asked, record)
        return int(record is not None and record.status != "success")
    records = iter([_stream(found, asked)]) if asked.mode == "stream" else _batch(found, asked)
    worst = 0
    for record in records:
        _report(found, asked, record)
        worst = worst or int(record.status != "success")
    return worst


def _stream(found: LoadedSpec, asked: Asked) -> RunResults:
    from beam_pipelines.cli import stream
    from beam_pipelines.runners.options import check_flags

    stream.check_stream_runner(asked.runner)
    check_flags(asked.flags)
    return stream.stream(
        found,
        stream.Asked(
            asked.runner, asked.run_id, asked.flags, _args(found, asked), stream.seconds(asked.until_idle, "--until-idle"),
            stream.seconds(asked.max_duration, "--max-duration"), asked.keep_logs, asked.as_json, asked.flink,
        ),
    )  # fmt: skip


def _batch(found: LoadedSpec, asked: Asked) -> Iterator[RunResults]:
    """The record of the run, or those of all runs over new files as they end."""
    from beam_pipelines.runners.lean_beam import import_lean_beam
    from beam_pipelines.runners.options import check_flags, engine_for
    from beam_pipelines.spec.secrets import expect_keys

    engine = engine_for(asked.runner)
    check_flags(asked.flags)
    expect_keys(found.spec)
    if not engine.on_flink:
        import_lean_beam(found, asked.flags)
    from beam_pipelines.cli.headers import header_notes
    from beam_pipelines.cli.progress import watching
    from beam_pipelines.edges import archives_of
    from beam_pipelines.runners.beam_options import unknown_flags
    from beam_pipelines.runners.direct import Call, run_batch

    sources = found.spec.sources.batch if asked.input == "batch" else archives_of(found.spec, found.state)
    for warning in (*unknown_flags(asked.flags), *(header_notes(found.spec) if asked.input == "batch" else [])):
        click.echo(f"warning: {warning}", err=True)
    if not asked.as_json and not engine.on_flink:  # which announces itself, when it is known what answers
        click.echo(engine.announcement, err=True)
    quiet = asked.as_json or not sys.stderr.isatty()
    watch = watching(sources, quiet=quiet, flags=asked.flags)
    say = (lambda _: None) if asked.as_json else partial(click.echo, err=True)
    call = Call(
        asked.runner, asked.run_id, asked.flags, asked.apply_lateness, _args(found, asked), watch, asked.range, asked.input, asked.flink, say
    )  # fmt: skip
    if not asked.new_files:
        return iter([run_batch(found, call)])
    from beam_pipelines.runners.new_files import run_new_files

    return run_new_files(found, call, say=partial(click.echo, err=True))


def _args(found: LoadedSpec, asked: Asked) -> dict[str, Any]:
    """How the run was called, for its record."""
    return {
        "spec": found.path, "runner": asked.runner, "parameters": {k: str(v) for k, v in found.parameters.items()},
        "apply_lateness": asked.apply_lateness, "beam_options": list(asked.flags),
    }  # fmt: skip


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
    _warn_of_leftovers(found, record)
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


def _warn_of_leftovers(found: LoadedSpec, record: RunResults) -> None:
    from beam_pipelines.sinks.leftover import leftovers

    for left in leftovers(found.state, record) if record.status == "success" and record.metadata.range is None else ():
        click.echo(f"warning: {left}", err=True)


def _check_writable(path: str) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.access(folder, os.W_OK):
        raise SpecError(f"--results {path}: cannot be written.", hint="Give the path of a file in a folder that exists.")
