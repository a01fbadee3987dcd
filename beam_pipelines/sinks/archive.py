"""Archive: raw messages are stored before anything else happens to them, and before they are acknowledged.

    message batch ─▶ write, durable ─▶ am I fenced? ─▶ register ─▶ rows to the next stage
                                                       └▶ the source may acknowledge these, once the bundle is final

The law: *a message is registered as durable only after its file is on disk and, after that, the fence was looked at.* The order matters. A
restarted stream takes the next epoch first and lists the archive afterwards. If the look at the fence, after the write, finds no newer epoch, then the
newer one comes to be after the write, and its list holds the file: whatever was acknowledged is replayed. If it finds one, nothing is
registered, so nothing is acknowledged, and the messages go to the newer process, once more or for the first time; a position is read once.
Looking before the write would prove nothing: the newer process may list between the look and the write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa

from beam_pipelines import durable, metrics
from beam_pipelines.arrow.schema import is_archived
from beam_pipelines.coders import RecordBatchCoder  # noqa: F401  (registers the element's coder)
from beam_pipelines.formats.archive import Key, positions_by_source, raw_batch, write_messages


class Archive(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """The same messages as raw batches, each stored durably in the archive before it is given on.

    Takes a PCollection of message batches (MESSAGES); gives batches of provenance and `_raw`, with `_attributes` if `keep_attributes`; their
    schema metadata and element timestamps are kept. Batches marked as archived pass without being stored again.

    `fence` raises once a newer epoch exists; it is picklable and called after each write. `raw_key` gives, on the worker, the key under which the
    content of messages is sealed; it must be given where the contract has sensitive columns. Raises SinkError where the archive cannot be
    written: then nothing is registered, the bundle fails, and the messages come again.
    """

    def __init__(
        self, folder: str, *, epoch: int, fence: Callable[[], None], raw_key: Key | None = None,
        keep_attributes: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self._store = _Store(folder, epoch, fence, raw_key, keep_attributes)

    def expand(self, messages: beam.PCollection) -> beam.PCollection:
        return messages | "Store" >> beam.ParDo(self._store).with_output_types(pa.RecordBatch)


class _Store(beam.DoFn):  # type: ignore[misc]
    def __init__(self, folder: str, epoch: int, fence: Callable[[], None], raw_key: Key | None, keep_attributes: bool) -> None:
        self._folder, self._epoch, self._fence = folder, epoch, fence
        self._give_key, self._keep_attributes = raw_key, keep_attributes
        self._key: bytes | None = None

    def setup(self) -> None:
        self._key = None if self._give_key is None else self._give_key()

    def process(self, messages: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[pa.RecordBatch]:
        if not messages.num_rows:
            return
        if not is_archived(messages):
            durable.archiving(timestamp.micros)
            write_messages(messages, self._folder, epoch=self._epoch, key=self._key)
            self._fence()
            for source, positions in positions_by_source(messages):
                durable.register(source, positions)
            metrics.count("messages_archived", messages.num_rows)
        yield raw_batch(messages, keep_attributes=self._keep_attributes)
