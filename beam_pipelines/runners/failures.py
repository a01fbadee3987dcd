"""What went wrong, in one sentence, out of what an engine raised: the cause in a step of the graph and not the engine's traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator

import apache_beam as beam

from beam_pipelines.errors import BeamPipelinesError, RunError, SinkError, SourceError, SpecError, TransientError

_HINT = "Run again with --log-level debug for the engine's own account."


def own_error(error: BaseException, *, hint: str = _HINT) -> BaseException:
    """The error of ours, or the interruption, inside what a runner raised; else a RunError that names the cause."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, BeamPipelinesError | KeyboardInterrupt):
            return cause
    text = "\n".join(str(cause) for cause in chain)
    if "KeyboardInterrupt" in text or "Query interrupted" in text:  # Beam turns what a DoFn raises into RuntimeError; so does DuckDB
        return KeyboardInterrupt()
    return error_in(text) or RunError(f"the job failed: {_last_line(error)}", hint=hint)


def run_to_end(pipeline: beam.Pipeline) -> None:
    """Runs a pipeline whose runner is in this process, to its end. Raises `own_error` of what the runner raises."""
    try:
        pipeline.run().wait_until_finish()
    except BeamPipelinesError:
        raise
    except Exception as error:
        raise own_error(error) from error


def error_in(text: str) -> BeamPipelinesError | None:
    """The error of ours in the text of a traceback, as which an exception comes from a worker process; None where there is none."""
    ours = list(_OURS.finditer(text))
    if not ours:
        return None
    kind = {k.__name__: k for k in (SpecError, SourceError, SinkError, TransientError, RunError)}.get(ours[-1][1], RunError)
    return kind(ours[-1][2].strip())


_OURS = re.compile(r"beam_pipelines\.errors\.(\w+): ((?:.(?!\[while running))*)")
_STEP = re.compile(r"\s*\[while running '([^']*)'\]")
_WRAPPED = re.compile(r"^RuntimeError: (?=[\w.]+(Error|Exception)\b)")  # what Beam makes of an exception that it cannot make anew


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _last_line(error: BaseException) -> str:
    """What went wrong, in which step of the graph: without the traceback that a worker process sends along."""
    text = str(error).strip()
    last = next((line for line in reversed(text.splitlines()) if line.strip() and not _STEP.fullmatch(line)), "")
    step = _STEP.search(text)
    plain = _WRAPPED.sub("", _STEP.sub("", last).strip())
    kind = type(error).__name__
    named = plain if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", plain) else f"{kind}: {plain}" if plain else kind
    return f"{named}, in step {step[1]}." if step else f"{named}."
