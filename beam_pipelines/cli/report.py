"""`report`: a run as one HTML page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from beam_pipelines.cli.options import loaded, log_options, spec_options
from beam_pipelines.errors import RunError, nearest

if TYPE_CHECKING:
    from beam_pipelines.serving.report import Agreement
    from beam_pipelines.sinks.results import RunResults
    from beam_pipelines.spec.load import LoadedSpec


@click.command(short_help="Write a run's report as one HTML page.")
@spec_options
@click.option("--run", "run_id", metavar="RUN_ID", help="Which run; default: the one that started last.")
@click.option("--output", "-o", type=click.Path(), default="report.html", show_default=True, help="The page's path; - is stdout.")
@click.option("--no-verify", is_flag=True, help="Leave out whether batch and stream agree: that reads what the stream has stored.")
@log_options
def report(spec: str, set_: tuple[str, ...], parameters_file: str | None, run_id: str | None, output: str, no_verify: bool) -> int:
    """Write the report of a run of SPEC as one HTML page that needs nothing else.

    \b
    beam-pipelines report flights.yaml --output report.html

    Exit code 0 says that the page is written, also of a run that failed.
    """
    found = loaded(spec, set_, parameters_file)
    from beam_pipelines.places import write_bytes
    from beam_pipelines.serving.report import report_page
    from beam_pipelines.sinks.labels import places_of
    from beam_pipelines.sinks.results import list_runs
    from beam_pipelines.sinks.run import utc_now

    runs = list_runs(found.state)
    if not runs:
        raise RunError(f"report: no run of '{found.spec.pipeline}' has ended yet.", hint=f"`beam-pipelines run {spec}` makes one.")
    run = next((r for r in runs if run_id in (None, r.metadata.run_id)), None)
    if run is None:
        raise RunError(f"report: there is no run '{run_id}';", hint=nearest(str(run_id), [r.metadata.run_id for r in runs[:10]]))
    page = report_page(
        found.state, run, runs=runs, event_time=found.spec.contract.event_time, places=places_of(found.spec), written_at=utc_now(),
        **_layers(found, run, verify=not no_verify),
    )  # fmt: skip
    if output == "-":
        sys.stdout.buffer.write(page)
        return 0
    write_bytes(output, page)
    click.echo(f"{output}: {run.status} run {run.metadata.run_id}, {len(page) / 1000:,.0f} kB")
    return 0


def _layers(found: LoadedSpec, run: RunResults, *, verify: bool) -> dict[str, Any]:
    """What the page asks where both layers are: whether they agree, and what came too late for the batch."""
    from beam_pipelines.serving import verify as verifying
    from beam_pipelines.serving.report.agreement import compared_range
    from beam_pipelines.serving.tables import stale_table
    from beam_pipelines.sinks.labels import places_of
    from beam_pipelines.sinks.manifest import snapshots
    from beam_pipelines.sinks.outputs import read_outputs

    places = places_of(found.spec)
    batch, stream = snapshots(found.state, places), read_outputs(found.state)
    if stream is None or not any(snapshot.ranges for snapshot in batch.values()):
        return {}

    def compare() -> Sequence[Agreement]:
        over = compared_range(found.spec, run, batch, {output.name: output for output in stream.outputs})
        return verifying.agreements(verifying.verify(found.spec, found.state, over, samples=0))

    return {"stale": lambda: stale_table(found.state, places, found.spec), "compare": compare if verify else None}
