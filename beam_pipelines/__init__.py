"""beam_pipelines: one data pipeline as batch and stream, on Apache Beam, with Arrow RecordBatches as elements.

The command is `beam-pipelines`; the stages for your own Beam jobs are in `beam_pipelines.transforms`; the testing kit is
`beam_pipelines.testing`. Importing this package loads none of them.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("beam-pipelines")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0"
