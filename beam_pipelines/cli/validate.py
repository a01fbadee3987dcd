"""`validate` and `schema`: what is wrong with a spec, all of it, at once. Loads neither Arrow nor Beam."""

from __future__ import annotations

import json

import click

from beam_pipelines.cli.options import loaded, spec_options


@click.command(short_help="Say all that is wrong with a spec, with line and column.")
@spec_options
@click.option("--json", "as_json", is_flag=True, help="Print what was understood as JSON.")
def validate(spec: str, set_: tuple[str, ...], parameters_file: str | None, as_json: bool) -> int:
    """Check SPEC: names, types, expressions, sinks; prints everything that is wrong with its line and column."""
    found = loaded(spec, set_, parameters_file)
    from beam_pipelines.cli.headers import header_notes

    contract, notes = found.spec.contract, [*found.notes, *header_notes(found.spec)]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "pipeline": found.spec.pipeline,
                    "contract": contract.fingerprint,
                    "columns": dict(found.columns),
                    "notes": notes,
                }
            )
        )
        return 0
    for note in notes:
        click.echo(f"note: {note}", err=True)
    click.echo(
        f"{spec}: valid. Pipeline {found.spec.pipeline}, contract {contract.fingerprint}, {len(found.columns)} columns, {len(found.spec.sinks)} sinks."
    )
    return 0


@click.command(short_help="Print the JSON Schema of specs, for editors.")
def schema() -> int:
    """Print the JSON Schema of specs, for editors."""
    from beam_pipelines.spec.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
    return 0
