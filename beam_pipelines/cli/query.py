"""`query` and `runs`: SQL over the outputs by name."""

from __future__ import annotations

import sys
from functools import partial

import click

from beam_pipelines.cli.options import loaded, log_options, spec_options

_STYLE = click.option("--format", "style", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
_WIDE = click.option(
    "--wide", is_flag=True, help="Show long values and all columns of a table whole, whatever the screen; csv and json always do."
)
_RUNS = "run_id, status, mode, started_at, elapsed_s, range_start, range_end, read, written, dead, duplicate, filtered, outside, stale, contract"
_STALE = "SELECT run_id AS by_run, sum(rows) AS late FROM stale WHERE output = 'rows' GROUP BY by_run"
_RUNS_SQL = f"""SELECT {_RUNS} FROM (SELECT *, CASE WHEN mode = 'batch' THEN coalesce(late, 0)::BIGINT END AS stale
    FROM runs LEFT JOIN ({_STALE}) ON run_id = by_run) ORDER BY started_at DESC"""


@click.command(short_help="Ask SQL of the outputs by name.")
@spec_options
@click.argument("sql")
@_STYLE
@_WIDE
@click.option("--limit", type=click.IntRange(min=0), default=100, show_default=True, help="Rows shown as a table; csv and json show all.")
@log_options
def query(spec: str, set_: tuple[str, ...], parameters_file: str | None, sql: str, style: str, wide: bool, limit: int) -> int:
    """Ask SQL of SPEC's outputs: tables rows, dead_letters, one per aggregate, runs, ranges and stale.

    \b
    beam-pipelines query flights.yaml "SELECT origin, sum(flights) FROM delays_by_hour GROUP BY ALL"
    """
    return _ask(spec, set_, parameters_file, sql, style, limit, wide=wide)


@click.command(short_help="List the runs of a spec.")
@spec_options
@_STYLE
@_WIDE
@log_options
def runs(spec: str, set_: tuple[str, ...], parameters_file: str | None, style: str, wide: bool) -> int:
    """List SPEC's runs: when, what they read and wrote, how they ended; and how many rows of the ranges they answer for have arrived since (stale)."""
    return _ask(spec, set_, parameters_file, _RUNS_SQL, style, 100, wide=wide)


def _ask(spec: str, set_: tuple[str, ...], parameters_file: str | None, sql: str, style: str, limit: int, *, wide: bool) -> int:
    found = loaded(spec, set_, parameters_file)
    from beam_pipelines.cli.show import show_table
    from beam_pipelines.errors import RunError
    from beam_pipelines.serving.tables import ask, elsewhere, open_tables
    from beam_pipelines.sinks.labels import places_of

    names, places = ["rows", "dead_letters", *found.spec.aggregates], places_of(found.spec)
    answer = partial(ask, sql=sql, expected=names, elsewhere=elsewhere(found.state, places))
    try:
        table = answer(open_tables(found.state, places, found.spec, at_once=True))
    except RunError:  # it took longer than files that are merged meanwhile stay
        table = answer(open_tables(found.state, places, found.spec))
    show_table(table, style=style, limit=limit, out=sys.stdout, wide=wide)
    return 0
