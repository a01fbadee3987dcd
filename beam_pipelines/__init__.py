"""beam_pipelines: one data pipeline as batch and stream, on Apache Beam, with Arrow RecordBatches as elements.

The command is `beam-pipelines`; the stages for your own Beam jobs are in `beam_pipelines.transforms`; the testing kit is
`beam_pipelines.testing`. Importing this package loads none of them.
"""


def __getattr__(name: str) -> str:
    """`__version__`, looked up when somebody asks: importlib.metadata costs as much as all of `validate`'s own modules."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("beam-pipelines")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0"
