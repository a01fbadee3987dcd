"""`run --mode stream`: a spec over its subscriptions, until it is told to end."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beam_pipelines.errors import SpecError
from beam_pipelines.runners.options import Flink, runs_on_flink

if TYPE_CHECKING:
    from beam_pipelines.sinks.results import RunResults
    from beam_pipelines.spec.load import LoadedSpec

_PRISM = ("direct", "directrunner", "prism", "prismrunner")


@dataclass(frozen=True)
class Asked:
    """How the stream was called; durations in seconds."""

    runner: str
    run_id: str | None
    flags: tuple[str, ...]
    args: dict[str, Any]
    until_idle_s: float | None
    max_duration_s: float | None
    keep_logs: bool
    quiet: bool
    flink: Flink


def seconds(text: str | None, option: str) -> float | None:
    """A duration such as 30s or 2h of `option`, in seconds. Raises SpecError."""
    if text is None:
        return None
    from beam_pipelines.arrow.durations import parse_duration

    try:
        found = parse_duration(text) / 1e6
    except SpecError as error:
        raise SpecError(f"{option}: {error}") from None
    if not found:
        raise SpecError(f"{option} {text}: the stream would end before it has begun; expected more than 0.")
    return found


def check_stream_runner(runner: str) -> None:
    """Raises SpecError where the runner cannot run a stream."""
    if runner.lower() not in _PRISM and not runs_on_flink(runner):
        raise SpecError(
            f"--runner {runner}: does not run streams in this version.", hint="Use --runner direct, which is Beam's Prism, or flink."
        )


def stream(found: LoadedSpec, asked: Asked) -> RunResults:
    """Runs the stream, shown live on stderr, and gives its record. Raises what `run_stream` does; KeyboardInterrupt with a sentence."""
    from beam_pipelines.cli.live import Live
    from beam_pipelines.runners.beam_options import unknown_flags
    from beam_pipelines.runners.stream import StreamCall, run_stream

    live = Live(found.spec, sys.stderr)
    for warning in unknown_flags(asked.flags):
        live.say(f"warning: {warning}")
    on_flink = runs_on_flink(asked.runner)
    engine = [] if on_flink else [f"engine: Beam's PrismRunner on this machine (--runner {asked.runner})"]

    def say(sentence: str) -> None:
        while engine:  # said when it is sure that something starts
            live.say(engine.pop())
        live.say(sentence)

    call = StreamCall(
        run_id=asked.run_id, flags=asked.flags, args=asked.args, until_idle_s=asked.until_idle_s, max_duration_s=asked.max_duration_s,
        keep_logs=asked.keep_logs, watch=(lambda: None) if asked.quiet else live, say=(lambda _: None) if asked.quiet else say,
        flink=asked.flink if on_flink else None,
    )  # fmt: skip
    try:
        record = run_stream(found, call)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what is stored stays, and what is not comes again with the next start.") from None
    if not asked.quiet:
        live.end()
    return record
