"""`dlq`: what was refused, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from beam_pipelines.cli.options import loaded, log_options, spec_options

if TYPE_CHECKING:
    from beam_pipelines.serving.dead_letters import Group, Inspection, Sample


@click.group(short_help="Look into the rows that runs refused.")
def dlq() -> None:
    """Look into dead letters: the rows that a run refused."""


@dlq.command(short_help="Group dead letters by reason, with samples.")
@spec_options
@click.option("--where", metavar="SQL", help="Only letters for which this holds, for example \"source LIKE '%2013-06%'\".")
@click.option("--reason", metavar="CODE", help="Only letters with this reason: DECODE, TYPE, CAST, CHECK, ...")
@click.option("--samples", type=click.IntRange(min=0), default=2, show_default=True, help="Letters shown of each reason.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@log_options
def inspect(
    spec: str, set_: tuple[str, ...], parameters_file: str | None, where: str | None, reason: str | None, samples: int, as_json: bool
) -> int:
    """Group SPEC's dead letters by stage, reason and check, with samples of the records as they were read.

    Counted are records (source and position), each once. A record that failed several checks is in the line of each.
    """
    found = loaded(spec, set_, parameters_file)
    from beam_pipelines.serving.dead_letters import inspect_letters
    from beam_pipelines.serving.tables import open_tables
    from beam_pipelines.sinks.labels import places_of
    from beam_pipelines.sinks.manifest import snapshots
    from beam_pipelines.sinks.outputs import read_outputs

    places = places_of(found.spec)
    inspection = inspect_letters(open_tables(found.state, places), where=where, reason=reason, samples=samples)
    stream = read_outputs(found.state)
    stored = [o.folder for o in (stream.outputs if stream else ()) if o.of == "dead_letters"]
    place = next((s.path for s in snapshots(found.state, places).values() if s.of == "dead_letters"), (stored or [""])[0])
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"path": place, "rows": inspection.rows, "groups": inspection.groups}).decode())
        return 0
    for line in _lines(inspection, place, only=bool(where or reason)):
        click.echo(line, file=sys.stdout)
    return 0


def _lines(inspection: Inspection, place: str, *, only: bool) -> Iterator[str]:
    from beam_pipelines.cli.tables import clean, grid

    if not inspection.rows:
        yield f"no dead letters{' fit' if only else ''} in {place}"
        return
    yield f"{inspection.rows:,} record{'s' * (inspection.rows != 1)} refused{', of those that fit' if only else ''}; letters in {clean(place)}"
    yield ""
    rows = [row for group in inspection.groups for row in _rows(group, inspection.rows)]
    yield from grid(["stage", "reason", "check", "records", "share"], rows, right=[False, False, False, True, True])
    for group in inspection.groups:
        if group.samples:
            yield ""
            yield click.style(f"{group.stage}:{group.reason}", bold=True)
        for sample in group.samples:
            yield from _sample(sample)


def _rows(group: Group, total: int) -> Iterator[tuple[str, ...]]:
    from beam_pipelines.cli.tables import clean

    if list(group.checks.values()) == [group.rows]:
        yield group.stage, group.reason, clean(next(iter(group.checks))), f"{group.rows:,}", f"{group.share:.1%}"
        return
    yield group.stage, group.reason, "", f"{group.rows:,}", f"{group.share:.1%}"
    for name, count in group.checks.items():
        yield "", "", clean(name), f"{count:,}", f"{count / total:.1%}"


def _sample(sample: Sample) -> Iterator[str]:
    from beam_pipelines.cli.tables import cell, clean

    yield f"  {clean(sample.source)} at {sample.position}"
    yield f"    {cell(sample.message, 300)}"
    yield f"    | {cell(sample.raw, 300)}" if sample.raw is not None else "    | (record not kept)"
