"""Archived messages at some positions, each with the row program that works on it: what is tried, alone, to see whether it crashes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from beam_pipelines.arrow.schema import of_source
from beam_pipelines.edges import archive_of, raw_key
from beam_pipelines.formats.archive import raw_batch, read_since, source_folder
from beam_pipelines.runners.crashes import Positions, of_positions
from beam_pipelines.sources.lookups import lookups_of
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.transforms.prepare import row_program

_ALWAYS = -(2**62)


def records_at(
    spec: PipelineSpec, state: str, name: str, positions: Positions, *, since: int | None = None
) -> Iterator[tuple[pa.RecordBatch, Any]]:
    """Raw batches of the messages of subscription `name` at `positions` that arrived at `since` (microseconds; None: ever) or later, each with its program."""
    lookups = lookups_of(spec)
    for number, source in enumerate(spec.sources.stream):
        if source.pubsub == name:
            folder = source_folder(archive_of(source, state), name)
            program = row_program(spec, source, lookups)
            for batch in of_positions(read_since(folder, _ALWAYS if since is None else since, key=raw_key(spec)), positions):
                yield of_source(raw_batch(batch, keep_attributes=source.format.type == "avro"), number), program
