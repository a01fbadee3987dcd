"""Pub/Sub on Dataflow: the service reads the subscription and acknowledges, we make of its messages what every other source gives.

    subscription ──▶ Dataflow's own source ──▶ PubsubMessage, one by one ──▶ Gather, within the bundle ──▶ MESSAGES batches

Dataflow acknowledges a message once what became of it is in its own storage, which outlives every worker. So nothing of `sources.pubsub` is needed there: no
puller, no leases, no archive before the acknowledgement. The archive is a Cloud Storage subscription of the same topic (`formats.pubsub_avro`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.gcp.pubsub import PubsubMessage, ReadFromPubSub
from apache_beam.transforms.window import GlobalWindow, WindowedValue
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines import metrics
from beam_pipelines.arrow.message_positions import micros_of
from beam_pipelines.arrow.schema import as_archived, of_source
from beam_pipelines.coders import RecordBatchCoder  # noqa: F401  (registers the element's coder)
from beam_pipelines.errors import SpecError
from beam_pipelines.sources.pubsub_messages import Parts, arrivals
from beam_pipelines.spec.sources import PubsubSource

_MOST_ROWS, _MOST_BYTES = 20_000, 16 << 20  # of a batch


class ReadPubsubNative(beam.PTransform):  # type: ignore[misc]  # Beam ships no types
    """Batches of the messages of one subscription, in `arrow.schema.MESSAGES`, marked as coming from source `number` of the spec: what `ReadPubsub` gives, read
    by Dataflow itself. They are marked as archived: somebody else archives.

    Element timestamps and the watermark are arrival times. With `arrival: {attribute: …}` it is Dataflow that reads the attribute for them: RFC 3339 or milliseconds
    since 1970. A batch's timestamp is its oldest arrival, or that of its oldest element where messages say to have arrived before what Dataflow knows.

    Raises SpecError for a name that no subscription can have.
    """

    def __init__(self, source: PubsubSource, number: int = 0) -> None:
        super().__init__()
        attribute = None if source.arrival is None else source.arrival.attribute
        try:
            self._read = ReadFromPubSub(subscription=source.pubsub, with_attributes=True, timestamp_attribute=attribute)
        except ValueError as error:  # a name that the service would not take either
            raise SpecError(
                f"sources.stream: {source.pubsub}: {str(error).rstrip('.')}.", hint="Check the names of project and subscription."
            ) from None
        self._gather = Gather(source.pubsub, number, attribute)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        return begin | "Pull" >> self._read | "Gather" >> self._gather


class Gather(beam.PTransform):  # type: ignore[misc]
    """Messages (Beam's `PubsubMessage`) to batches of MESSAGES, bundle by bundle. Beam's own `BatchElements` would stamp a batch with the end of time."""

    def __init__(self, subscription: str, number: int = 0, attribute: str | None = None) -> None:
        super().__init__()
        self._gather = _Gather(subscription, number, attribute)

    def expand(self, messages: beam.PCollection) -> beam.PCollection:
        return messages | "Batch" >> beam.ParDo(self._gather).with_output_types(pa.RecordBatch)


class _Gather(beam.DoFn):  # type: ignore[misc]
    def __init__(self, subscription: str, number: int, attribute: str | None) -> None:
        self._subscription, self._number, self._attribute = subscription, number, attribute

    def start_bundle(self) -> None:
        self._begin()

    def process(self, message: PubsubMessage, timestamp: Any = beam.DoFn.TimestampParam) -> Iterator[Any]:
        self._add(message, timestamp.micros)
        if len(self._parts.ids) >= _MOST_ROWS or self._bytes >= _MOST_BYTES:
            yield self._batch()

    def finish_bundle(self) -> Iterator[Any]:
        if self._parts.ids:
            yield self._batch()

    def _begin(self) -> None:
        self._parts = Parts([], [], [], [], [], [], [0])
        self._bytes, self._oldest = 0, 2**63 - 1

    def _add(self, message: PubsubMessage, micros: int) -> None:
        """The one loop over messages: Dataflow gives them one by one."""
        parts, data = self._parts, message.data or b""
        parts.raw.append(data)
        parts.ids.append(message.message_id or "")
        parts.orders.append(message.ordering_key or None)
        parts.published.append(micros if message.publish_time is None else micros_of(message.publish_time))
        for key, value in (message.attributes or {}).items():
            parts.keys.append(key)
            parts.values.append(value)
        parts.ends.append(len(parts.keys))
        self._bytes += len(data)
        self._oldest = min(self._oldest, micros)

    def _batch(self) -> Any:
        known = self._parts.known(source=self._subscription, attribute=self._attribute)
        metrics.count("messages_pulled", len(self._parts.ids))
        metrics.count("bytes_pulled", self._bytes)
        metrics.count("arrival_unreadable", int(known.unreadable.sum()))
        stamp = max(int(arrivals(known.rows).min()), self._oldest)
        self._begin()
        return WindowedValue(as_archived(of_source(known.rows, self._number)), Timestamp(micros=stamp), [GlobalWindow()])
