"""The Prism program for tests that need one: never built or fetched by a test, so that a missing one is seen."""

from __future__ import annotations

import os
from pathlib import Path

from beam_pipelines.runners.prism_binary import VARIABLE, kept_prism
from tests.needs import missing


def prism_program() -> Path:
    """Where it is; `missing` where it is not."""
    path = Path(os.environ.get(VARIABLE) or kept_prism())
    if not path.is_file():
        missing(f"no Prism at {path}", "make prism")
    return path
