"""`serve`: the serving view as SQL for others."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping

import click

from beam_pipelines.cli.options import loaded, log_options, spec_options
from beam_pipelines.errors import SpecError

_LOOK_EVERY_S = 2.0
_REST = 9
"""Looking takes at most a tenth of the time: a stream may have many files."""


@click.command(short_help="Write the tables as SQL views, for DuckDB and BigQuery.")
@spec_options
@click.option("--duckdb", "database", type=click.Path(), metavar="FILE", help="Write a DuckDB file with the views.")
@click.option("--relative", is_flag=True, help="Paths in it are relative to its folder, for a lake that moves with it.")
@click.option("--watch", is_flag=True, help="Write it anew whenever a commit has changed it, or the first row of a table, until Ctrl-C.")
@click.option("--bigquery", "dataset", metavar="PROJECT.DATASET", help="Print SQL that makes external tables and views in BigQuery.")
@click.option(
    "--lake-at", metavar="gs://BUCKET/PREFIX", help="Where the spec's folder lies in Cloud Storage; for paths that are local here."
)
@click.option("--sql", "as_sql", is_flag=True, help="Print the views for DuckDB.")
@log_options
def serve(
    spec: str, set_: tuple[str, ...], parameters_file: str | None, database: str | None, relative: bool, watch: bool, dataset: str | None,
    lake_at: str | None, as_sql: bool,
) -> int:  # fmt: skip
    """Write SPEC's tables, batch and stream as one, as views that need nothing of this program.

    \b
    beam-pipelines serve flights.yaml --duckdb lake.duckdb
    duckdb lake.duckdb "SELECT count(*) FROM rows"
    """
    if sum(map(bool, (database, dataset, as_sql))) != 1:
        raise SpecError("serve: expected one of --duckdb FILE, --bigquery PROJECT.DATASET and --sql.")
    if (watch or relative) and not database:
        raise SpecError(f"serve: {'--watch' if watch else '--relative'} goes with --duckdb FILE.")
    if lake_at is not None and not dataset:
        raise SpecError("serve: --lake-at goes with --bigquery PROJECT.DATASET.")
    found = loaded(spec, set_, parameters_file)
    from beam_pipelines.serving.published import view_statements
    from beam_pipelines.sinks.labels import places_of

    places = places_of(found.spec)
    if as_sql:
        click.echo(";\n".join(view_statements(found.state, places)) + ";")
        return 0
    if dataset:
        from beam_pipelines.serving.bigquery_views import bigquery_script

        click.echo(bigquery_script(found.state, places, dataset, folder=found.directory, lake_at=lake_at), nl=False)
        return 0
    assert database is not None
    for views, commit in _writing(database, found.state, places, relative=relative, watch=watch):
        click.echo(f"{database}: {views} views, as of commit {commit}")
        sys.stdout.flush()
    return 0


def _writing(database: str, state: str, places: Mapping[str, str], *, relative: bool, watch: bool) -> Iterator[tuple[int, int]]:
    """Writes the file, and again whenever it would be another; gives number of views and of the commit, each time."""
    from beam_pipelines.serving.published import write_database

    written = None
    while True:
        began = time.monotonic()
        now = write_database(database, state, places, relative=relative, known=written)
        if now != written:
            yield len(now.statements), now.commit
        if not watch:
            return
        written = now
        time.sleep(max(_LOOK_EVERY_S, _REST * (time.monotonic() - began)))
