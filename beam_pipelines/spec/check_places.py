"""Places: no sink writes into another's folder, or where a source or lookup of the same spec would read it back."""

from __future__ import annotations

import re
from collections.abc import Sequence

from beam_pipelines.spec.document import Document
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.problems import Path
from beam_pipelines.spec.sinks import Sink
from beam_pipelines.spec.sources import ArchiveSource

_TEXT_ENDINGS = (".csv", ".jsonl", ".csv.gz", ".jsonl.gz")


def check_places(document: Document, pipeline: PipelineSpec) -> None:
    """Adds a problem for each sink whose files lie where they must not."""
    read = [(f"sources.batch[{i}]", p) for i, source in enumerate(pipeline.sources.batch) for p in source.patterns]
    read += [(f"lookups.{name}", p) for name, lookup in pipeline.lookups.items() for p in lookup.patterns]
    archives = [(f"sources.batch[{i}]", s.archive) for i, s in enumerate(pipeline.sources.batch) if isinstance(s, ArchiveSource)]
    for i, sink in enumerate(pipeline.sinks):
        if sink.pubsub is not None:
            continue
        path: Path = ("sinks", i, sink.kind, "path")
        for where, pattern in read:
            if any(_matches(pattern, example) for example in _examples(sink)):
                document.problem(path, f"{where} would read what this sink writes (files: {pattern}); write outside of it")
        for where, archive in archives:
            if not _single(sink) and archive.startswith(sink.destination.path.rstrip("/") + "/"):
                document.problem(path, f"the archive of {where} lies in this sink's folder (archive: {archive}); write outside of it")
        for j, other in enumerate(pipeline.sinks[:i]):
            if other.pubsub is None and (_inside(sink, other) or _inside(other, sink)):
                document.problem(path, f"overlaps with the folder of sinks[{j}] ({other.destination.path}); each output needs its own")


def _examples(sink: Sink) -> Sequence[str]:
    """Paths such as the sink's files have."""
    place = sink.destination.path.rstrip("/")
    if _single(sink):
        return (place,)
    ending = "csv" if sink.csv else "jsonl" if sink.jsonl else "parquet"
    return f"{place}/part-0.{ending}", f"{place}/column=1/part-0.{ending}"


def _single(sink: Sink) -> bool:
    return sink.kind in ("csv", "jsonl") and sink.destination.path.endswith(_TEXT_ENDINGS)


def _inside(one: Sink, other: Sink) -> bool:
    """Whether `one` lies below the folder of `other`; the same place is reported elsewhere."""
    return not _single(other) and one.destination.path.startswith(other.destination.path.rstrip("/") + "/")


def _matches(pattern: str, path: str) -> bool:
    """Whether a path, a glob or a directory names the file: `*` stays inside a folder, `**` does not, a directory takes all below it."""
    if not re.search(r"[*?\[]", pattern):
        return path == pattern or path.startswith(pattern.rstrip("/") + "/")
    parts = re.split(r"(\*\*|\*|\?|\[[^\]]*\])", pattern)
    words = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    expression = "".join(words.get(part) or (part.replace("[!", "[^", 1) if part.startswith("[") else re.escape(part)) for part in parts)
    return re.fullmatch(expression, path) is not None
