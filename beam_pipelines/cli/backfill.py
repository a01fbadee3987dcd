"""`backfill`: many runs over ranges, one after the other or a few at once, which go on where they were stopped."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from beam_pipelines.cli.options import loaded, log_options, spec_options
from beam_pipelines.errors import RunError, SpecError

if TYPE_CHECKING:
    from beam_pipelines.cli.backfill_show import Saying
    from beam_pipelines.runners.backfill import BackfillPlan
    from beam_pipelines.runners.backfill_prepare import Ask, Prepared, Stale
    from beam_pipelines.spec.load import LoadedSpec

_CHILD = "from beam_pipelines.cli.backfill import step_main; step_main()"
_GRACE_S = 60.0


@dataclass(frozen=True)
class Asked:
    """How `backfill` was called."""

    spec: str
    set_: tuple[str, ...]
    parameters_file: str | None
    from_: str | None
    to: str | None
    step: str | None
    input: str | None
    jobs: int
    stale: bool
    dry_run: bool
    restart: bool
    keep_going: bool
    ignore_stream: bool
    as_json: bool
    beam_options: tuple[str, ...]

    @property
    def again(self) -> str:
        """The call that goes on."""
        values = {
            "--from": self.from_,
            "--to": self.to,
            "--step": self.step,
            "--input": self.input,
            "--jobs": self.jobs if self.jobs > 1 else "",
        }
        flags = {"--stale": self.stale, "--ignore-stream": self.ignore_stream, "--keep-going": self.keep_going}
        words = [str(word) for name, value in values.items() if value for word in (name, value)]
        return shlex.join(
            ["beam-pipelines", "backfill", *self.spec_words, *words, *(n for n, given in flags.items() if given), *self.beam_words]
        )

    @property
    def spec_words(self) -> list[str]:
        """The spec and its parameters."""
        given = ["--parameters", self.parameters_file] if self.parameters_file else []
        return [self.spec, *given, *(word for value in self.set_ for word in ("--set", value))]

    @property
    def beam_words(self) -> list[str]:
        return ["--", *self.beam_options] if self.beam_options else []


@click.command(short_help="Compute a range of event time anew, step by step.")
@spec_options
@click.option("--from", "from_", metavar="TIME", help="Where the first step begins.")
@click.option("--to", metavar="TIME", help="Where the last step ends, not included. Bare dates are midnight in the spec's time_zone.")
@click.option("--step", metavar="LENGTH", help="1h, 1d, 1w, 1mo, 1y or more of one; default: the coarsest partition of the outputs.")
@click.option("--input", type=click.Choice(["batch", "archive"]), help="Steps read the batch sources, or what the stream has archived.")
@click.option("--stale", is_flag=True, help="Only what is committed and no longer right, because rows have arrived since.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="So many steps at once, each a process.")
@click.option("--dry-run", is_flag=True, help="Show the steps, what of them is committed and what is stale; run nothing.")
@click.option("--keep-going", is_flag=True, help="Go on with the other steps after one has failed.")
@click.option("--restart", is_flag=True, help="Begin anew although an earlier attempt is not finished.")
@click.option("--ignore-stream", is_flag=True, help="Take all of the range although windows of the stream in it are still open.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else there.")
@log_options
@click.argument("beam_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM_OPTIONS...]")
def backfill(**options: Any) -> int:
    """Compute SPEC's outputs anew from --from to --to, step by step.

    Each step is a run over a range, which replaces exactly that. The same command after it was stopped or killed goes on with the steps that are not
    done. Beside a stream it goes as far as the stream's windows are closed.

    \b
    beam-pipelines backfill flights.yaml --from 2013-01-01T00:00Z --to 2014-01-01T00:00Z --step 1mo
    beam-pipelines backfill flights.yaml --stale

    Everything after -- are Beam pipeline options of each step.
    """
    asked = Asked(**options)
    found = loaded(asked.spec, asked.set_, asked.parameters_file)
    ask = _ask(found, asked)
    from beam_pipelines.cli import backfill_show as show
    from beam_pipelines.runners.backfill import alone, begin
    from beam_pipelines.runners.backfill_prepare import prepare

    @cache
    def stale() -> Sequence[Stale]:
        return stale_lines(found)

    say = show.Saying(found, ask, as_json=asked.as_json)
    prepared = prepare(found, ask, stale)
    if asked.dry_run or not prepared.steps:
        say.steps(prepared, stale() if asked.dry_run or ask.stale else (), dry_run=asked.dry_run)
        return 0
    with alone(found.state, prepared.id):
        prepared = prepare(found, ask, stale)  # as it is now that nobody else works on it
        plan = prepared.plan or begin(
            found.state,
            prepared.id,
            prepared.steps,
            pipeline=found.spec.pipeline,
            asked=ask.text,
            step=str(ask.stride),
            until=prepared.until,
        )
        return _run(found, asked, prepared, plan, say)


def _ask(found: LoadedSpec, asked: Asked) -> Ask:
    """What is asked for. Raises SpecError for all that is wrong with it."""
    from beam_pipelines.cli.run import input_of
    from beam_pipelines.runners.backfill_prepare import Ask
    from beam_pipelines.runners.backfill_steps import clock_of, default_stride, parse_stride
    from beam_pipelines.runners.options import check_flags
    from beam_pipelines.spec.ranges import parse_range

    check_flags(asked.beam_options)
    where = parse_range(found.spec, asked.from_, asked.to)
    if where is None and not asked.stale:
        raise SpecError("backfill: no range is given.", hint="Say --from and --to; or --stale, for what is committed and no longer right.")
    stride = parse_stride(asked.step) if asked.step else default_stride(found.spec)
    clock = clock_of(None if asked.stale else asked.from_, found.spec.time_zone)
    chosen = input_of(found.spec, asked.input) if asked.input or not asked.stale else None
    return Ask(where, stride, clock, chosen, asked.stale, asked.ignore_stream, asked.restart)


def stale_lines(found: LoadedSpec) -> list[Stale]:
    """The table `stale` of the spec's outputs."""
    import pyarrow as pa

    from beam_pipelines.runners.backfill_prepare import Stale
    from beam_pipelines.serving.tables import stale_table
    from beam_pipelines.sinks.labels import places_of

    table = stale_table(found.state, places_of(found.spec), found.spec)
    starts, ends = (table[name].cast(pa.int64()).to_pylist() for name in ("start", "end"))
    return [Stale(*line) for line in zip(table["output"].to_pylist(), starts, ends, table["rows"].to_pylist(), strict=True)]


def _run(found: LoadedSpec, asked: Asked, prepared: Prepared, plan: BackfillPlan, say: Saying) -> int:
    """Runs the steps that are not done."""
    from beam_pipelines.runners.backfill import done_steps, failed_sentence, run_steps

    todo = [number for number in range(1, len(plan.steps) + 1) if number not in prepared.done]
    say.begin(prepared, plan, todo, jobs=asked.jobs)

    def command(plan: BackfillPlan, number: int) -> list[str]:
        return [sys.executable, "-c", _CHILD, *_words(asked, plan, number)]

    try:
        with _importable():
            failed = run_steps(found.state, plan, todo, command, say.ended, jobs=asked.jobs, keep_going=asked.keep_going)
    except KeyboardInterrupt:
        say.found(done_steps(found.state, plan))
        say.end("interrupted", asked.again)
        raise KeyboardInterrupt(f"{say.so_far}; the others are as they were. To go on: {asked.again}") from None
    if failed:
        say.end("failed", asked.again)
        raise RunError(f"backfill: {failed_sentence(plan, failed)}\n{say.so_far}.", hint=f"To go on: {asked.again}")
    say.end("success", "", left=_most_stale(stale_lines(found)) if asked.stale else None)
    return 0


def _most_stale(lines: Sequence[Stale]) -> int:
    """How many rows are stale, by the output that has most: rows of one are those of another."""
    rows = Counter[str]()
    for line in lines:
        rows[line.output] += line.rows
    return max(rows.values(), default=0)


def _words(asked: Asked, plan: BackfillPlan, number: int) -> list[str]:
    """The words of the run that is a step."""
    from beam_pipelines.arrow.ranges import show_instant

    step = plan.steps[number - 1]
    words = ["--mode", "batch", "--from", show_instant(step.start), "--to", show_instant(step.end), "--input", step.input]
    words += ["--run-id", plan.run_id(number), "--json", *(["--ignore-stream"] if asked.ignore_stream else [])]
    return ["run", *asked.spec_words, *words, *asked.beam_words]


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """This package on the path of steps, from wherever it was imported here."""
    before, root = os.environ.get("PYTHONPATH"), str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [before, root]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def step_main() -> NoReturn:
    """The process of a step: the words after it as a command, for as long as the backfill lives."""
    from beam_pipelines.cli.main import main

    threading.Thread(target=_end_with_backfill, name="backfill", daemon=True).start()
    main(sys.argv[1:])


def _end_with_backfill() -> None:
    """Ends this process when the backfill has: as SIGTERM does, so that outputs are as they were, and by force if that takes long."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(128 + signal.SIGTERM)
