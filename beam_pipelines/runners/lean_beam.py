"""Beam without what it offers for places that a job does not use: its import then costs 0.4 CPU seconds instead of 1.0.

Beam looks for pandas and the clients of Google and MongoDB when it is imported, and does without them where they are not installed. For a job on files of this
machine they are as good as not installed, for as long as the import lasts; whoever imports them later finds them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder

import pyarrow as pa

from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.sources import FileSource

_EXTRAS = (
    "bson", "pandas", "apitools", "google.cloud.dataflow", "google.cloud.pubsub",
    "apache_beam.io.gcp.gcsfilesystem", "apache_beam.io.gcp.bigquery",
)  # fmt: skip
_LOCAL_SINKS = ("parquet", "csv", "jsonl")


def import_lean_beam(loaded: LoadedSpec, flags: Sequence[str]) -> None:
    """Imports Beam for a batch job of this process; lean where the job reads and writes files of this machine and runs no code of the user's."""
    if "apache_beam" not in sys.modules and _local(loaded.spec) and not any("://" in text for text in (_text(loaded), *flags)):
        _import_without(_EXTRAS)


def _local(spec: PipelineSpec) -> bool:
    return (
        all(isinstance(source, FileSource) for source in spec.sources.batch)
        and all(sink.kind in _LOCAL_SINKS for sink in spec.sinks)
        and not spec.functions
    )


def _text(loaded: LoadedSpec) -> str:
    """All that the spec says, among it every place; a URL in another role only makes the start slower."""
    return loaded.spec.model_dump_json() + loaded.state


def _import_without(names: Sequence[str]) -> None:
    absent = _Absent(frozenset(names))
    sys.meta_path.insert(0, absent)
    try:
        importlib.import_module("apache_beam")
        importlib.import_module("apache_beam.io.gcp.pubsub")  # of which FromRows takes the messages
        pa.array([None])  # pyarrow, too, looks for pandas: once, with the first list it is given
    finally:
        sys.meta_path.remove(absent)


@dataclass(frozen=True)
class _Absent(MetaPathFinder):
    """Finds nothing, and says of `names` that nobody will."""

    names: frozenset[str]

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname in self.names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
