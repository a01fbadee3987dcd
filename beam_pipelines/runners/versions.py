"""The versions of the programs at work. Loads no Beam."""

from __future__ import annotations

import platform
from importlib.metadata import version

from beam_pipelines import __version__


def versions_here() -> dict[str, str]:
    """This package, Beam and Python, by the names that people know."""
    return {"beam-pipelines": __version__, "Beam": version("apache-beam"), "Python": platform.python_version()}
