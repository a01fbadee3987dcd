"""The command line: `beam-pipelines`. It prints and never computes."""

from beam_pipelines.cli.main import main

__all__ = ["main"]
