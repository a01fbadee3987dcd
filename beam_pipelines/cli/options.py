"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from beam_pipelines.errors import SpecError

if TYPE_CHECKING:
    from beam_pipelines.runners.options import Flink
    from beam_pipelines.spec.load import LoadedSpec

F = TypeVar("F", bound=Callable[..., Any])
LEVELS = ("error", "warning", "info", "debug")


def spec_options(function: F) -> F:
    """SPEC, --set and --parameters."""
    function = click.option("--parameters", "parameters_file", type=click.Path(), help="YAML or JSON file with parameter values.")(function)
    function = click.option("--set", "set_", multiple=True, metavar="NAME=VALUE", help="Set a parameter of the spec; may be repeated.")(
        function
    )
    return click.argument("spec", type=click.Path())(function)


def flink_options(function: F) -> F:
    """--flink-master, --flink-workers and --flink-job-server-jar, which come as `flink_…`."""
    function = click.option(
        "--flink-job-server-jar",
        type=click.Path(),
        metavar="JAR",
        help="Beam's job server for Flink; default: built by Maven, kept in the cache.",
    )(function)
    function = click.option(
        "--flink-workers",
        metavar="HOST:PORT",
        help="Pool of Python workers beside each task manager, or loopback: this process does the work.",
    )(function)
    return click.option("--flink-master", metavar="HOST:PORT", help="REST service of the Flink cluster; default: that of `cluster up`.")(
        function
    )


def flink_of(runner: str, given: Mapping[str, str | None]) -> Flink:
    """The cluster that the options mean. Raises SpecError for one that does nothing with this runner."""
    from beam_pipelines.runners.options import Flink, runs_on_flink

    said = next((name for name, value in given.items() if value is not None), None)
    if said is not None and not runs_on_flink(runner):
        raise SpecError(
            f"--{said.replace('_', '-')}: is for --runner flink and does nothing with --runner {runner}.", hint="Say --runner flink."
        )
    return Flink(given["flink_master"], given["flink_workers"], given["flink_job_server_jar"])


def log_options(function: F) -> F:
    """--log-level and --log-format, which take effect before the verb starts."""
    style = click.Choice(["text", "json"])
    function = click.option(
        "--log-format",
        type=style,
        default="text",
        show_default=True,
        expose_value=False,
        callback=_set_up_logs,
        help="How logs are written to stderr.",
    )(function)
    return click.option(
        "--log-level", type=click.Choice(LEVELS), default="error", show_default=True, expose_value=False, callback=_set_up_logs,
        help="Which logs are shown; debug also shows tracebacks.",
    )(function)  # fmt: skip


def _set_up_logs(ctx: click.Context, parameter: click.Parameter, value: str) -> None:
    from beam_pipelines.cli.logs import set_up

    ctx.meta[f"beam_pipelines.{parameter.name}"] = value
    set_up(ctx.meta.get("beam_pipelines.log_level", "error"), ctx.meta.get("beam_pipelines.log_format", "text"))


def loaded(spec: str, set_: tuple[str, ...], parameters_file: str | None) -> LoadedSpec:
    """The spec, checked. Raises SpecErrors with all that is wrong."""
    from beam_pipelines.spec.load import load_spec

    return load_spec(spec, set_=assignments(set_), parameters_file=parameters_file)


def assignments(texts: tuple[str, ...]) -> dict[str, str]:
    """`name=value` texts as a mapping. Raises SpecError for anything else."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise SpecError(f"--set {text}: expected name=value.")
        found[name.strip()] = value
    return found
