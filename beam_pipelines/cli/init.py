"""`init`: a file or a table nobody has described becomes a spec that validates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from beam_pipelines.cli.options import log_options
from beam_pipelines.errors import RunError, SpecError

if TYPE_CHECKING:
    from beam_pipelines.cli.propose import Proposal

SPEC, TESTS = "pipeline.yaml", "pipeline_tests.yaml"
_DATABASES = "A database is postgresql://USER@HOST/DATABASE, sqlite:///PATH, or a file of SQLite."


class _Found(NamedTuple):
    """What was looked at: the proposal, the source that reads it (YAML), its name, and sentences that a user must know."""

    proposal: Proposal
    source: str
    name: str
    sentences: Sequence[str] = ()


@click.command(short_help="Look at a file or a table and propose a spec that validates.")
@click.option(
    "--from", "source", required=True, metavar="FILE|URL",
    help="A file, a glob in quotes, or a directory: csv, json, parquet, avro or orc. Or a database: postgresql://USER@HOST/DATABASE, sqlite:///PATH.",
)  # fmt: skip
@click.option("--table", help="The table of the database, as SQL writes it; may be left out where there is one.")
@click.option("--password", metavar="REFERENCE", help="Where the database's password is: env:NAME, file:/path or gcp:projects/…")
@click.option("--out", type=click.Path(), metavar="DIR", help=f"Write {SPEC} and {TESTS} there; default: print the spec.")
@click.option("--name", help="Name of the pipeline; default: the file's or the table's.")
@click.option("--rows", type=click.IntRange(min=1), default=20_000, show_default=True, help="Records looked at.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@log_options
def init(source: str, table: str | None, password: str | None, out: str | None, name: str | None, rows: int, force: bool) -> int:
    """Look at a file, or at a table of a database, and propose a contract and a spec for it, which validate. Runs nothing."""
    from beam_pipelines.cli.choose import is_database
    from beam_pipelines.cli.proposal import spec_yaml, tests_yaml

    folder = out or "."
    targets = [os.path.join(folder, SPEC), os.path.join(folder, TESTS)]
    _refuse_existing(targets if out and not force else [])
    if is_database(source):
        found = _table(source, table, password, folder, rows)
    elif table is None and password is None:
        found = _files(source, folder, rows)
    else:
        raise SpecError(f"--from {source}: is no database, and has neither --table nor --password.", hint=_DATABASES)
    text = spec_yaml(found.proposal, name=name or found.name, source=found.source)
    _check(text, targets[0])
    if out is None:
        click.echo(text, nl=False)
    else:
        written = _write(folder, {targets[0]: text, targets[1]: tests_yaml(found.proposal, spec=targets[0])})
        for path in written:
            click.echo(f"wrote {path}")
    _explain(found, targets[0] if out else "the spec")
    return 0


def _files(source: str, folder: str, rows: int) -> _Found:
    from beam_pipelines.cli.choose import choose, seen_from
    from beam_pipelines.cli.look import look_at
    from beam_pipelines.cli.proposal import files_source, pipeline_name
    from beam_pipelines.cli.propose import propose

    chosen = choose(source, spec_folder=folder)
    proposal = propose(look_at(chosen.path, rows=rows))
    patterns = [seen_from(pattern, folder).replace("${", "$${") for pattern in chosen.patterns]
    named = pipeline_name(source if os.path.exists(source) else chosen.path)
    return _Found(proposal, files_source(proposal.look, patterns), named, chosen.sentences())


def _table(source: str, table: str | None, password: str | None, folder: str, rows: int) -> _Found:
    from beam_pipelines.cli.look_database import locate, look_at_table, table_source
    from beam_pipelines.cli.proposal import pipeline_name
    from beam_pipelines.cli.propose import propose

    found = locate(source, table, password)
    look, placed = look_at_table(found, rows=rows)
    proposal = propose(look)
    named = pipeline_name(str(found.table).rpartition(".")[2].strip('"'))
    return _Found(proposal, table_source(found, proposal, placed=placed, folder=folder), named)


def _refuse_existing(paths: list[str]) -> None:
    for path in paths:
        if os.path.exists(path):
            raise SpecError(f"{path}: is there already.", hint="--force replaces it; --out DIR writes elsewhere.")


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


def _explain(found: _Found, where: str) -> None:
    proposal = found.proposal
    look = proposal.look
    extent = "all" if look.whole else "the first"
    unfit = sum(c.rules is None for c in proposal.columns)
    click.echo(
        f"Looked at {extent} {look.rows:,} record{'s' * (look.rows != 1)} of {look.path} ({look.format['type']}): "
        f"{len(proposal.good)} column{'s' * (len(proposal.good) != 1)}"
        + (f", {unfit} without a type" if unfit else "") + (f", {look.broken:,} that cannot be read" if look.broken else "")
        + f"; key: {', '.join(proposal.key) or 'none found'}; event time: {proposal.event_time or 'none found'}.", err=True,
    )  # fmt: skip
    for sentence in found.sentences:
        click.echo(sentence, err=True)
    click.echo(
        f"It is a proposal, and it validates. Read {where}, above all key, event_time and required; then preview and run it.", err=True
    )
