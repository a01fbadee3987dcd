"""`init`: a file nobody has described becomes a spec that validates."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from beam_pipelines.cli.options import log_options
from beam_pipelines.errors import RunError, SpecError

if TYPE_CHECKING:
    from beam_pipelines.cli.choose import Choice
    from beam_pipelines.cli.propose import Proposal

SPEC, TESTS = "pipeline.yaml", "pipeline_tests.yaml"


@click.command(short_help="Look at a file and propose a spec that validates.")
@click.option(
    "--from", "source", required=True, metavar="FILE", help="A file, a glob in quotes, or a directory: csv, json, parquet, avro or orc."
)
@click.option("--out", type=click.Path(), metavar="DIR", help=f"Write {SPEC} and {TESTS} there; default: print the spec.")
@click.option("--name", help="Name of the pipeline; default: the file's.")
@click.option("--rows", type=click.IntRange(min=1), default=20_000, show_default=True, help="Records looked at.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@log_options
def init(source: str, out: str | None, name: str | None, rows: int, force: bool) -> int:
    """Look at a file and propose a contract and a spec for it, which validate. Runs nothing."""
    from beam_pipelines.cli.choose import choose
    from beam_pipelines.cli.look import look_at
    from beam_pipelines.cli.proposal import pipeline_name, spec_yaml, tests_yaml
    from beam_pipelines.cli.propose import propose

    folder = out or "."
    targets = [os.path.join(folder, SPEC), os.path.join(folder, TESTS)]
    _refuse_existing(targets if out and not force else [])
    chosen = choose(source, spec_folder=folder)
    proposal = propose(look_at(chosen.path, rows=rows))
    named = name or pipeline_name(source if os.path.exists(source) else chosen.path)
    text = spec_yaml(proposal, name=named, files=[_seen_from(pattern, folder) for pattern in chosen.patterns])
    _check(text, targets[0])
    if out is None:
        click.echo(text, nl=False)
    else:
        written = _write(folder, {targets[0]: text, targets[1]: tests_yaml(proposal, spec=targets[0])})
        for path in written:
            click.echo(f"wrote {path}")
    _explain(proposal, chosen, targets[0] if out else "the spec")
    return 0


def _refuse_existing(paths: list[str]) -> None:
    for path in paths:
        if os.path.exists(path):
            raise SpecError(f"{path}: is there already.", hint="--force replaces it; --out DIR writes elsewhere.")


def _seen_from(pattern: str, folder: str) -> str:
    """The pattern relative to the folder of the spec; a directory keeps its slash."""
    found = pattern if os.path.isabs(pattern) else os.path.relpath(pattern, folder)
    return found.replace("${", "$${") + ("/" if pattern.endswith("/") and not found.endswith("/") else "")


def _check(text: str, path: str) -> None:
    """Validates the proposal: one that does not would be our mistake, or an impossible --name."""
    from beam_pipelines.spec.load import parse_spec

    try:
        parse_spec(text, path=path)
    except SpecError as error:
        raise SpecError(f"init: the proposal does not validate:\n{error}") from None


def _write(folder: str, files: dict[str, str | None]) -> list[str]:
    try:
        os.makedirs(folder, exist_ok=True)
        for path, text in files.items():
            if text is not None:
                with open(path, "w", encoding="utf-8") as out:
                    out.write(text)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror}.") from None
    return [path for path, text in files.items() if text is not None]


def _explain(proposal: Proposal, chosen: Choice, where: str) -> None:
    look = proposal.look
    extent = "all" if look.whole else "the first"
    unfit = sum(c.rules is None for c in proposal.columns)
    click.echo(
        f"Looked at {extent} {look.rows:,} record{'s' * (look.rows != 1)} of {look.path} ({look.format['type']}): "
        f"{len(proposal.good)} column{'s' * (len(proposal.good) != 1)}"
        + (f", {unfit} without a type" if unfit else "") + (f", {look.broken:,} that cannot be read" if look.broken else "")
        + f"; key: {', '.join(proposal.key) or 'none found'}; event time: {proposal.event_time or 'none found'}.", err=True,
    )  # fmt: skip
    for sentence in chosen.sentences():
        click.echo(sentence, err=True)
    click.echo(
        f"It is a proposal, and it validates. Read {where}, above all key, event_time and required; then preview and run it.", err=True
    )
