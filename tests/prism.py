"""The Prism program for tests that need one: never built or fetched by a test, so that a missing one is seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from beam_pipelines.runners.prism_binary import VARIABLE, kept_prism


def prism_program() -> Path:
    """Where it is. Without one the test is skipped with the command that makes it, and fails in CI."""
    path = Path(os.environ.get(VARIABLE) or kept_prism())
    if not path.is_file():
        say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        say(f"no Prism at {path}: make prism")
    return path
