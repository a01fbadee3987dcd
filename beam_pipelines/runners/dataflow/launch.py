"""The launcher of a flex template: its parameters become a run, which is handed in and left to itself.

    python -m beam_pipelines.runners.dataflow.launch --spec=gs://… --lake=gs://… --runner=DataflowRunner --project=… --temp_location=…
                                                     └ ours ┘      └ the spec's ┘ └ Beam's, from the service ─────────────────────

It never waits for the job: Dataflow gives a launcher up after a while, and the job with it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from beam_pipelines.errors import BeamPipelinesError, SpecError
from beam_pipelines.runners.dataflow.bundle import Bundle, declared, fetched, unpack
from beam_pipelines.runners.dataflow.settings import Dataflow
from beam_pipelines.runners.dataflow.template import OURS

if TYPE_CHECKING:
    from beam_pipelines.arrow.ranges import Range
    from beam_pipelines.spec.load import LoadedSpec

_INPUTS: dict[str, Literal["batch", "archive"]] = {"batch": "batch", "archive": "archive"}


class Given(NamedTuple):
    """The words of the call: the launcher's own parameters, those of the spec, and everything else, which is Beam's."""

    ours: dict[str, str]
    spec: dict[str, str]
    beam: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Launches; gives the exit code: 0 handed in, 1 refused by the world, 2 the call or the spec is wrong."""
    try:
        launch(sys.argv[1:] if argv is None else argv)
    except BeamPipelinesError as error:
        _say(f"error: {error}")
        return 2 if isinstance(error, SpecError) else 1
    return 0


def launch(argv: Sequence[str]) -> None:
    """Hands the run in that the parameters ask for. Raises what `submit` does."""
    url = _value(argv, "spec")
    if not url:
        raise SpecError("--spec is missing; expected the file that `beam-pipelines template build` wrote beside the template.")
    bundle = fetched(url)
    given = split(argv, bundle, url)
    from beam_pipelines.runners.dataflow.job import DataflowCall, submit

    with tempfile.TemporaryDirectory() as folder:
        loaded = replace(unpack(bundle, Path(folder), set_=given.spec), path=url)
        call = _call(bundle, given, DataflowCall)
        where = _range(loaded, given.ours)
        job = submit(
            loaded,
            replace(
                call, range=where, args={"spec": url, "runner": "dataflow", "parameters": {k: str(v) for k, v in loaded.parameters.items()}}
            ),
        )
    _say(f"handed in: job {job.name}, run {job.run.run_id}" + (f": {job.url}" if job.url else ", which the service now starts"))


def _value(words: Sequence[str], name: str) -> str:
    """What `--name=value` or `--name value` says first; "" where nothing does."""
    for word, after in zip(words, [*words[1:], ""], strict=False):
        if word == f"--{name}":
            return after
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return ""


def split(argv: Sequence[str], bundle: Bundle, url: str) -> Given:
    """Sorts `--name=value` words by whose they are; also `--name value`. What is empty was left out of the form."""
    names = set(declared(bundle.text, file=url))
    ours: dict[str, str] = {}
    spec: dict[str, str] = {}
    beam: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        mine = ours if name in OURS else spec if name in names else None
        if mine is None or not word.startswith("--"):
            beam.append(word)
            continue
        value = value if equals else next(words, "")
        if value:
            mine[name] = value
    return Given(ours, spec, tuple(beam))


def _call(bundle: Bundle, given: Given, make: type) -> Any:
    ours = given.ours
    mode = ours.get("mode", bundle.mode)
    if mode not in ("batch", "stream"):
        raise SpecError(f"--mode={mode}: expected batch or stream.")
    image = _value(given.beam, "sdk_container_image") or bundle.image
    replaces = _true(ours, "replace_running")
    settings = Dataflow(image=image, update=replaces, or_start=replaces, at_least_once=_true(ours, "at_least_once"), wait=False)
    return make(
        settings,
        mode,
        ours.get("run_id"),
        given.beam,
        _true(ours, "apply_lateness"),
        input=_INPUTS.get(ours.get("input", ""), "batch"),
        say=_say,
    )


def _range(loaded: LoadedSpec, ours: dict[str, str]) -> Range | None:
    if "from_time" not in ours and "to_time" not in ours:
        return None
    from beam_pipelines.runners.closed import check_closed
    from beam_pipelines.spec.ranges import parse_range

    where = parse_range(loaded.spec, ours.get("from_time"), ours.get("to_time"))
    if where is not None and not _true(ours, "ignore_stream"):
        check_closed(loaded, where)
    return where


def _true(ours: dict[str, str], name: str) -> bool:
    value = ours.get(name, "false").lower()
    if value not in ("true", "false"):
        raise SpecError(f"--{name}={value}: expected true or false.")
    return value == "true"


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)  # noqa: T201  (a launcher's log is what it prints)


if __name__ == "__main__":
    sys.exit(main())
