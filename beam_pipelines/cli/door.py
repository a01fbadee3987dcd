"""Beam's own door: `--spec PATH --runner R --key=value …`, as Airflow's Beam operator and Dataflow's launcher call a pipeline."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NoReturn

from beam_pipelines.cli.main import leave, run_command
from beam_pipelines.cli.main import main as verbs
from beam_pipelines.errors import SpecError

OURS = (
    "mode",
    "runner",
    "run_id",
    "results",
    "log_level",
    "log_format",
    "parameters",
    "until_idle",
    "max_duration",
    "flink_master",
    "flink_workers",
    "flink_job_server_jar",
)
SWITCHES = ("json", "apply_lateness", "keep_logs")
YIELDING = ("from", "to", "input")
YIELDING_SWITCHES = ("new_files", "ignore_stream")
"""Words that specs may have as names of their parameters; there the parameter is meant."""


def main(args: list[str] | None = None) -> NoReturn:
    """Parameters of the spec and our own options by name; every other flag is a Beam option.

    With a verb first, the same as `beam-pipelines`.
    """
    given = sys.argv[1:] if args is None else args
    if not given or not given[0].startswith("--") or given[0] in ("--help", "--version"):
        verbs(given)
    try:
        translated = translate(given)
    except SpecError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    gc.disable()  # as cli.main does
    from beam_pipelines.cli.run import run

    leave(run_command(run, translated, prog_name="python -m beam_pipelines"))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SpecError(
            f"python -m beam_pipelines: {message}.", hint="Call it as --spec=PATH [--mode=batch] [--runner=R] [--parameter=value ...]."
        )


def translate(given: list[str]) -> list[str]:
    """The words of `run` for flags in Beam's manner.

    A flag named like a parameter of the spec sets it; `--run-id` and `--run_id` are the same. Raises SpecError.
    """
    parser = _Parser(allow_abbrev=False, add_help=False)
    parser.add_argument("--spec", required=True)
    declared = declared_names(parser.parse_known_args(given)[0].spec)
    options = [*OURS, *(name for name in YIELDING if name not in declared)]
    switches = [*SWITCHES, *(name for name in YIELDING_SWITCHES if name not in declared)]
    for name in options:
        parser.add_argument(*_spellings(name), dest=name)
    for name in switches:
        parser.add_argument(*_spellings(name), dest=name, nargs="?", const="true", default="false")
    parser.add_argument("--set", action="append", default=[])
    ours, rest = parser.parse_known_args(given)
    words = [f"--{n.replace('_', '-')}={value}" for n in options if (value := getattr(ours, n)) is not None]
    words += [f"--{n.replace('_', '-')}" for n in switches if _true(n, getattr(ours, n))]
    parameters, beam = _parameters(declared, [word for word in rest if word != "--"])
    words += [f"--set={text}" for text in [*ours.set, *parameters]]
    return [*words, ours.spec, "--", *beam]


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def _true(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise SpecError(f"--{name}={value}: expected true or false.")
    return value.lower() == "true"


def declared_names(spec: str) -> frozenset[str]:
    """The names of the parameters that the file `spec` declares; nothing else in it is looked at. Raises SpecError where it is no YAML."""
    from beam_pipelines.spec.document import read_document

    try:
        value = read_document(Path(spec).read_bytes(), file=spec).value
    except OSError:
        return frozenset()  # `run` says what is wrong with the file
    declared = value.get("parameters") if isinstance(value, dict) else None
    return frozenset(declared) if isinstance(declared, dict) else frozenset()


def _parameters(declared: Collection[str], rest: list[str]) -> tuple[list[str], list[str]]:
    """`name=value` for flags that are parameters of the spec, and the other flags."""
    names = {spelling: name for name in declared for spelling in (*_spellings(name), f"--{name.replace('-', '_')}")}
    mine: list[str] = []
    beam: list[str] = []
    for word, value in _flags(rest):
        flag, equals, text = word.partition("=")
        if flag in names:
            mine.append(f"{names[flag]}={text if equals else 'true' if value is None else value}")
        else:
            beam += [word] if value is None else [word, value]
    return mine, beam


def _flags(words: list[str]) -> Iterator[tuple[str, str | None]]:
    """Each flag with the word after it, if that is its value."""
    i = 0
    while i < len(words):
        follows = i + 1 < len(words) and "=" not in words[i] and not words[i + 1].startswith("--")
        yield words[i], words[i + 1] if follows else None
        i += 2 if follows else 1
