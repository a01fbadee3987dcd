"""What a test needs of the machine and does not find: it is skipped, with what to install; in CI, where all of it must be there, it fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest


def missing(what: str, enable: str) -> NoReturn:
    """Ends the test: what is not there, and what installs it."""
    say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    say(f"{what.rstrip('.')}. Enable the test: {enable}")


def kept(*names: str) -> Path:
    """Where our installers keep a thing: `~/.cache/beam_pipelines/NAMES`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").joinpath("beam_pipelines", *names)
