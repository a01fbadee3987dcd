"""`verify`: what the batch has computed against what the stream has stored, and why they differ."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from beam_pipelines.cli.options import loaded, log_options, spec_options

if TYPE_CHECKING:
    from beam_pipelines.serving.verify import Difference, Verification
    from beam_pipelines.spec.load import LoadedSpec


@click.command(short_help="Compare what batch and stream have stored.")
@spec_options
@click.option("--from", "start", metavar="TIME", help="Compare from this event time; default: everything that a batch run has committed.")
@click.option("--to", "end", metavar="TIME", help="To this event time, which is not compared any more.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, max=1),
    default=1e-9,
    show_default=True,
    help="Floats this near, relative to the larger, are equal.",
)
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="Differing rows shown of each output.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="csv: the differing rows alone.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="The same as --format json: counts by output, partition and cause, and the rows shown."
)
@click.option(
    "--memory", default="1GB", show_default=True, metavar="SIZE", help="Held in memory at most; the rest is laid aside in TMPDIR."
)
@click.option("--wide", is_flag=True, help="Show long values and all columns of the table whole, whatever the screen.")
@log_options
def verify(
    spec: str, set_: tuple[str, ...], parameters_file: str | None, start: str | None, end: str | None, tolerance: float, limit: int, style: str, as_json: bool,
    memory: str, wide: bool,
) -> int:  # fmt: skip
    """Compare the batch layer of SPEC's outputs with the speed layer, and say of each differing row why it differs.

    \b
    beam-pipelines verify flights.yaml --from 2013-12-01T00:00Z --to 2013-12-08T00:00Z

    Exit code 0: equal, or every difference has a cause; 1: at least one has none.
    """
    found = loaded(spec, set_, parameters_file)
    from beam_pipelines.serving import verify as verifying
    from beam_pipelines.spec.ranges import parse_range

    asked = parse_range(found.spec, start, end)
    done = verifying.verify(found.spec, found.state, asked, tolerance=tolerance, samples=limit, memory=memory)
    if as_json or style == "json":
        click.echo(_json(done))
    elif style == "csv":
        _show_csv(done)
    else:
        _show(found, done, wide=wide)
    return 1 if done.unexplained else 0


def _show(loaded_spec: LoadedSpec, done: Verification, *, wide: bool) -> None:
    from beam_pipelines.cli.tables import grid, width_of
    from beam_pipelines.serving.verify import verdict

    tone = "red" if done.unexplained else "green" if not done.differ else "yellow"
    click.echo(f"{click.style(loaded_spec.spec.pipeline, bold=True)}: {click.style(verdict(done), fg=tone)}")
    for each in done.outputs:
        for note in (*each.notes, *each.gaps):
            click.echo(f"  {each.output}: {note}")
    samples = [sample for each in done.outputs for sample in each.samples]
    if not samples:
        return
    click.echo("")
    cells = [[str(cell) for cell in _row(sample)] for sample in samples]
    for line in grid(_COLUMNS, cells, width=None if wide else width_of(sys.stdout)):
        click.echo(line)
    if done.differ > len(samples):
        click.echo(f"... {done.differ - len(samples):,} more differing rows; --limit shows more")


_COLUMNS = ("output", "cause", "found", "row", "values", "evidence")


def _row(sample: Difference) -> tuple[str, str, str, str, str, str]:
    return sample.output, sample.cause, sample.kind, _pairs(sample.key), _values(sample), sample.detail


def _values(sample: Difference) -> str:
    """Of a row in both layers what differs, batch → speed."""
    if sample.batch is not None and sample.speed is not None:
        return ", ".join(f"{name} {_text(sample.batch[name])} → {_text(sample.speed[name])}" for name in sample.columns)
    return _pairs(sample.batch or sample.speed or {}, most=4)


def _pairs(values: Mapping[str, Any], most: int = 8) -> str:
    shown = [f"{name}={_text(value)}" for name, value in list(values.items())[:most]]
    return " ".join([*shown, *(["…"] if len(values) > most else [])])


def _text(value: Any) -> str:
    from beam_pipelines.cli.tables import cell

    return cell(value, 40)


def _show_csv(done: Verification) -> None:
    import csv

    from beam_pipelines.cli.tables import json_text

    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["output", "cause", "found", "evidence", "key", "columns", "batch", "speed"])
    for sample in (s for each in done.outputs for s in each.samples):
        sides = ["" if side is None else json_text(dict(side)) for side in (sample.batch, sample.speed)]
        out.writerow(
            [sample.output, sample.cause, sample.kind, sample.detail, json_text(dict(sample.key)), " ".join(sample.columns), *sides]
        )


def _json(done: Verification) -> str:
    from beam_pipelines.arrow.ranges import show_instant
    from beam_pipelines.cli.tables import json_text

    def span(start: int | None, end: int | None) -> dict[str, str | None]:
        return {"start": None if start is None else show_instant(start), "end": None if end is None else show_instant(end)}

    def sample(one: Difference) -> dict[str, Any]:
        return {
            "kind": one.kind,
            "cause": one.cause,
            "evidence": one.detail,
            "key": one.key,
            "columns": one.columns,
            "batch": one.batch,
            "speed": one.speed,
        }

    outputs = [
        {
            "output": each.output, "of": each.of, "equal": each.equal, "differ": each.differ, "causes": each.causes, "kinds": each.kinds,
            "matched_by": each.matched_by, "notes": [*each.notes, *each.gaps], "missing": [span(*gap) for gap in each.missing],
            "parts": [{**span(part.start, part.end), "run_id": part.run_id, "equal": part.equal, "causes": part.causes} for part in each.parts],
            "samples": [sample(one) for one in each.samples],
        }
        for each in done.outputs
    ]  # fmt: skip
    return _indented(json_text({
        "range": None if done.range is None else span(*done.range), "tolerance": done.tolerance, "equal": done.equal, "differ": done.differ,
        "unexplained": done.unexplained, "causes": done.causes, "outputs": outputs,
    }))  # fmt: skip


def _indented(text: str) -> str:
    import msgspec

    return msgspec.json.format(text, indent=2)
