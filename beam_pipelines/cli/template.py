"""`template`: a spec as a Dataflow flex template."""

from __future__ import annotations

from typing import Any, Literal

import click

from beam_pipelines.cli.options import assignments, log_options
from beam_pipelines.errors import SpecError


@click.group(short_help="Write a Dataflow flex template of a spec.")
def template() -> None:
    """Write a Dataflow flex template of a spec."""


@template.command(short_help="Write the template's JSON, and beside it what it launches.")
@click.argument("spec", type=click.Path())
@click.option("--image", required=True, metavar="IMAGE", help="The image of launcher and workers, with this package and code of yours.")
@click.option("--output", required=True, metavar="gs://…/NAME.json", help="Where the template is written: Cloud Storage, or a local file.")
@click.option("--mode", type=click.Choice(["batch", "stream"]), help="What the template runs; needed where the spec has both.")
@click.option(
    "--set", "set_", multiple=True, metavar="NAME=VALUE", help="The template's default of a parameter of the spec; may be repeated."
)
@click.option(
    "--sample",
    "sample",
    multiple=True,
    metavar="NAME=VALUE",
    help="A value to check the spec with, of a parameter that a launch must give.",
)
@click.option(
    "--spec-url",
    metavar="gs://…",
    help="Where launches find the spec, where --output is local and you copy both. Default: beside --output.",
)
@click.option("--region", metavar="REGION", help="For the command that is shown.")
@click.option("--temp-location", metavar="gs://…", help="Default folder for what a job needs on the way.")
@click.option("--service-account", metavar="EMAIL", help="Default account that the workers are.")
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help="Label of the jobs; may be repeated.")
@click.option("--network", metavar="NAME", help="Default network of the workers.")
@click.option("--subnetwork", metavar="regions/R/subnetworks/S", help="Default subnetwork of the workers.")
@click.option("--no-public-ips", is_flag=True, help="Workers have no public addresses.")
@click.option("--kms-key", metavar="projects/…", help="Default Cloud KMS key under which a job's state lies.")
@click.option("--workers", type=click.IntRange(min=1), help="Default number of workers at the start.")
@click.option("--max-workers", type=click.IntRange(min=1), help="Default number of workers at most.")
@click.option("--machine-type", metavar="TYPE", help="Default machine type of the workers.")
@click.option("--at-least-once", is_flag=True, help="Default streaming mode: a message may be processed more than once; cheaper.")
@log_options
def build(
    spec: str, image: str, output: str, mode: Literal["batch", "stream"] | None, set_: tuple[str, ...], sample: tuple[str, ...], spec_url: str | None, **asked: Any,
) -> int:  # fmt: skip
    """Write the flex template of SPEC to --output, and beside it the spec that it launches.

    \b
    beam-pipelines template build flights.yaml --mode stream \\
        --image europe-docker.pkg.dev/P/R/beam-pipelines:1 --output gs://B/templates/flights.json
    """
    from beam_pipelines.places import parent, write_bytes
    from beam_pipelines.runners.dataflow.bundle import bundle_of, declared
    from beam_pipelines.runners.dataflow.settings import Dataflow, job_name
    from beam_pipelines.runners.dataflow.template import run_command, template_of

    if not output.endswith(".json"):
        raise SpecError(f"--output {output}: expected a name that ends in .json.")
    bundle = bundle_of(spec, _mode(spec, mode), set_=assignments(set_), image=image)
    parameters = declared(bundle.text, file=spec)
    region = asked.pop("region")
    settings = Dataflow(image=image, public_ips=not asked.pop("no_public_ips"), **asked)
    checked = _checked(spec, bundle, parameters, assignments(sample), settings)
    name = f"{output.removesuffix('.json').rpartition('/')[2]}.spec-{bundle.name}.json"
    folder = parent(output) if "/" in output else "."
    url = spec_url or f"{folder}/{name}"
    made = template_of(
        bundle, parameters, pipeline=checked.pipeline, description=checked.description, image=image, spec_url=url, settings=settings
    )
    import msgspec

    write_bytes(f"{folder}/{name}", bundle.content)
    write_bytes(output, msgspec.json.format(msgspec.json.encode(made)) + b"\n")
    click.echo(f"template: {output}\nspec:     {folder}/{name}", err=True)
    click.echo(run_command(output, url, bundle, parameters, job=job_name(checked.pipeline, bundle.mode, "RUN"), region=region))
    if not url.startswith("gs://"):
        click.echo(f"note: launches look for the spec at {url}; copy both to Cloud Storage and say --spec-url gs://….", err=True)
    return 0


def _mode(spec: str, mode: Literal["batch", "stream"] | None) -> Literal["batch", "stream"]:
    from beam_pipelines.runners.dataflow.bundle import modes_of

    there = modes_of(spec)
    if mode is None and len(there) > 1:
        raise SpecError("template build: the spec has batch and stream sources.", hint="Say which: --mode batch or --mode stream.")
    if mode is not None and mode not in there:
        raise SpecError(f"template build --mode {mode}: the spec declares no {mode} sources.")
    return mode or there[0]


def _checked(spec: str, bundle: Any, parameters: Any, sample: dict[str, str], settings: Any) -> Any:
    """The spec, with values made up for what a launch must give. Raises SpecErrors, or SpecError with all that Dataflow would not bear."""
    from dataclasses import replace

    from beam_pipelines.runners.dataflow.bundle import samples
    from beam_pipelines.runners.dataflow.checks import check_dataflow
    from beam_pipelines.spec.load import load_spec

    given = {**bundle.set_, **sample}
    loaded = load_spec(spec, set_={**given, **samples(parameters, given)})
    launched = replace(
        settings,
        project="given-by-the-launch",
        region="given-by-the-launch",
        temp_location=settings.temp_location or "gs://given-by-the-launch",
    )
    check_dataflow(loaded, launched, (), mode=bundle.mode)
    return loaded.spec
