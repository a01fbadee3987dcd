"""The Prism program for tests that need one: never built or fetched by a test, so that a missing one is seen."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import apache_beam as beam

from beam_pipelines.runners.prism import prism_job
from beam_pipelines.runners.prism_binary import VARIABLE, kept_prism
from tests.needs import missing


def prism_program() -> Path:
    """Where it is; `missing` where it is not."""
    path = Path(os.environ.get(VARIABLE) or kept_prism())
    if not path.is_file():
        missing(f"no Prism at {path}", "make prism")
    return path


def run_on_prism(build: Callable[[beam.Pipeline], object], *, flags: Sequence[str] = ()) -> None:
    """Runs the pipeline that `build` makes on Prism until its sources end."""
    with prism_job(build, flags=flags) as job:
        job.wait()
