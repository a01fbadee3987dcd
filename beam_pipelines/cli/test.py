"""`test`: the cases of a `tests:` file, run on the real graph."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click

from beam_pipelines.cli.options import assignments, loaded, log_options, spec_options
from beam_pipelines.errors import SpecError

if TYPE_CHECKING:
    from beam_pipelines.spec.load import LoadedSpec
    from beam_pipelines.spec.tests import SpecTest


@click.command(short_help="Run the test cases beside a spec.")
@spec_options
@click.option("--tests", "tests_file", type=click.Path(), help="The cases; default: SPEC's name, or its pipeline's, and _tests.yaml.")
@click.option("--case", metavar="TEXT", help="Only cases whose name contains this.")
@log_options
def test(spec: str, set_: tuple[str, ...], parameters_file: str | None, tests_file: str | None, case: str | None) -> int:
    """Run the cases beside SPEC: given rows in, expected rows and dead letters out. Writes nothing but to a temporary folder.

    Exit code 1 where a case fails.
    """
    from beam_pipelines.spec.tests import load_tests

    found = loaded(spec, set_, parameters_file)
    tests = load_tests(tests_file or _beside(found), loaded=found)
    chosen = [(c, line) for c, line in zip(tests.cases, tests.lines, strict=True) if case is None or case in c.name]
    if not chosen:
        raise SpecError(
            f"test --case {case}: no case of {tests.path} has a name like that.", hint=f"Cases: {'; '.join(c.name for c in tests.cases)}."
        )
    begun, failed = time.monotonic(), 0
    for one, line in chosen:
        differences = _run(found, one, set_, parameters_file)
        failed += bool(differences)
        click.echo(
            f"{click.style('FAIL', fg='red') if differences else click.style('ok', fg='green')}    {one.name}"
            + (f"   ({tests.path}:{line})" if differences else "")
        )
        for text in differences:
            click.echo("        " + text.replace("\n", "\n        "))
        sys.stdout.flush()
    outcome = (
        f"{failed} of {len(chosen)} cases failed" if failed else f"all {len(chosen)} cases passed" if len(chosen) > 1 else "1 case passed"
    )
    click.echo(f"\n{outcome} in {time.monotonic() - begun:.1f} s")
    return 1 if failed else 0


def _beside(found: LoadedSpec) -> str:
    """The tests file beside the spec: called like the spec's file, or like its pipeline."""
    folder, stem = os.path.dirname(found.path), os.path.splitext(os.path.basename(found.path))[0]
    names = [os.path.join(folder, f"{name}_tests.yaml") for name in dict.fromkeys((stem, found.spec.pipeline))]
    for name in names:
        if os.path.exists(name):
            return name
    raise SpecError(f"test: there is no {' and no '.join(names)}.", hint="Write one (see docs: `test`), or name it with --tests FILE.")


def _run(found: LoadedSpec, case: SpecTest, set_: tuple[str, ...], parameters_file: str | None) -> list[str]:
    from beam_pipelines.spec.load import load_spec
    from beam_pipelines.testing import differences, run_spec

    if case.parameters:
        texts = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in case.parameters.items()}
        found = load_spec(found.path, set_=assignments(set_) | texts, parameters_file=parameters_file)
    return differences(run_spec(found, case.given), case.expect)
