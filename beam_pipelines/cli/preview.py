"""`preview`: the first rows after each stage, and what each stage changed and refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from beam_pipelines.cli.options import loaded, log_options, spec_options
from beam_pipelines.errors import SpecError

if TYPE_CHECKING:
    from beam_pipelines.runners.preview import StageView


@click.command(short_help="Show what each stage does to the first rows.")
@spec_options
@click.option("--rows", type=click.IntRange(min=1), default=1000, show_default=True, help="Rows read of each source.")
@click.option("--show", type=click.IntRange(min=0), default=5, show_default=True, help="Rows shown after each stage.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@log_options
def preview(spec: str, set_: tuple[str, ...], parameters_file: str | None, rows: int, show: int, as_json: bool) -> int:
    """Show what each stage of SPEC does to the first rows of its batch sources. Starts no job and writes nothing.

    Sensitive columns are masked. Deduplication, checks over many rows and aggregates see these rows only.
    """
    found = loaded(spec, set_, parameters_file)
    if not found.spec.sources.batch:
        raise SpecError(
            "preview: the spec declares no batch sources.", hint="Add sources.batch, for example [{files: data/*.csv, format: csv}]."
        )
    from beam_pipelines.cli.headers import header_notes
    from beam_pipelines.cli.tables import json_text, width_of
    from beam_pipelines.runners.preview import preview as look

    for note in header_notes(found.spec):
        click.echo(f"note: {note}", err=True)
    views = look(found, rows=rows, show=show)
    if as_json:
        click.echo(json.dumps([json.loads(json_text(_plain(view))) for view in views], ensure_ascii=False, indent=1))
        return 0
    for view in views:
        for line in _lines(view, width_of(sys.stdout) or 100):
            click.echo(line)
    return 0


def _plain(view: StageView) -> dict[str, Any]:
    from beam_pipelines.cli.tables import values

    columns = {n: values(c) for n, c in zip(view.rows.schema.names, view.rows.columns, strict=True)}
    return {
        "stage": view.name, "rows_in": view.rows_in, "rows_out": view.rows_out, "filtered": view.filtered, "duplicates": view.duplicates,
        "refused": [{"reason": r.reason, "rows": r.rows, "sample": r.sample} for r in view.refused], "warned": dict(view.warned),
        "columns": dict(view.columns), "empty": list(view.empty), "rows": [{n: columns[n][i] for n in columns} for i in range(view.rows.num_rows if columns else 0)],
    }  # fmt: skip


def _lines(view: StageView, width: int) -> Iterator[str]:
    import pyarrow as pa

    from beam_pipelines.cli.tables import cell, table_lines

    yield click.style(view.name, bold=True) + f"   {_counts(view)}"
    for refused in view.refused:
        yield f"  refused  {refused.rows:,} {refused.reason}, such as"
        yield f"           {cell(refused.sample, width - 11)}"
    for name, count in view.warned.items():
        yield f"  warned   {count:,} {name}"
    yield from _columns(view, width)
    if view.empty:
        yield f"  empty    {cell(', '.join(view.empty), width - 40)}: NULL in all {view.rows_out:,} rows"
    if view.rows.num_rows and view.rows.num_columns:
        yield from table_lines(pa.Table.from_batches([_changed_first(view)]), width=width, indent="  ")
    yield ""


def _counts(view: StageView) -> str:
    lost = [f"{n:,} {word}" for n, word in ((view.dead, "refused"), (view.filtered, "filtered"), (view.duplicates, "duplicate")) if n]
    word = "panes" if view.name.startswith("aggregate ") else "rows"
    return f"{view.rows_in:,} -> {view.rows_out:,} {word}" + (f"  ({', '.join(lost)})" if lost else "")


def _columns(view: StageView, width: int) -> Iterator[str]:
    """Changed columns by kind of change, such as `int16: year, month`."""
    from beam_pipelines.cli.tables import cell

    by_change: dict[str, list[str]] = {}
    for name, change in view.columns.items():
        by_change.setdefault(change, []).append(name)
    for change, names in by_change.items():
        yield f"  columns  {cell(f'{change}: ' + ', '.join(names), width - 11)}"


def _changed_first(view: StageView) -> Any:
    """The shown rows with the columns that the stage made or changed in front: a screen has no room for all."""
    names = view.rows.schema.names
    return view.rows.select(sorted(names, key=lambda n: n not in view.columns))
