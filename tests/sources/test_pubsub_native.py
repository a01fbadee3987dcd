"""Messages that Dataflow reads: the rows that a pull gives, in batches whose timestamps hold no row back and let none be late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.schema import MESSAGES, is_archived, source_number
from beam_pipelines.sources import pubsub_native
from beam_pipelines.sources.pubsub_messages import arrivals, pulled
from beam_pipelines.sources.pubsub_native import Gather, ReadPubsubNative, _Gather
from beam_pipelines.spec.sources import PubsubSource
from tests.formats.pubsub_files import Message

LIVE = "projects/demo-project/subscriptions/flights"
AT = 1_714_557_600_000_000


def received(m: Message) -> Any:
    from google.pubsub_v1.types import PubsubMessage as Sent
    from google.pubsub_v1.types import ReceivedMessage

    seconds, micros = divmod(m.published, 10**6)
    sent = Sent(
        data=m.data, message_id=m.message_id, attributes=dict(m.attributes), publish_time={"seconds": seconds, "nanos": micros * 1000}
    )
    return ReceivedMessage.pb(ReceivedMessage(message=sent))


def native(m: Message) -> PubsubMessage:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=m.published)
    return PubsubMessage(m.data, dict(m.attributes), m.message_id, at, "")


def gathered(messages: list[Message], attribute: str | None = None, *, stamps: list[int] | None = None) -> list[Any]:
    """What a bundle of them gives: windowed batches."""
    gather = _Gather(LIVE, 3, attribute)
    gather.start_bundle()
    found = [
        out
        for m, at in zip(messages, stamps or [m.published for m in messages], strict=True)
        for out in gather.process(native(m), Timestamp(micros=at))
    ]
    return [*found, *gather.finish_bundle()]


_MESSAGES = st.lists(
    st.builds(
        Message, st.integers(2**50, 2**50 + 30).map(str), st.integers(AT, AT + 5), st.binary(max_size=5),
        st.sampled_from([{}, {"at": "2024-05-01T09:59:00Z"}, {"at": "never"}]),
    ), min_size=1, max_size=20,
)  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(_MESSAGES, st.booleans(), st.integers(1, 7))
def test_rows_are_those_of_a_pull_whatever_the_batches(messages: list[Message], timed: bool, most: int) -> None:
    attribute = "at" if timed else None
    before, pubsub_native._MOST_ROWS = pubsub_native._MOST_ROWS, most
    try:
        batches = [out.value for out in gathered(messages, attribute)]
    finally:
        pubsub_native._MOST_ROWS = before
    assert (
        pa.Table.from_batches([b.replace_schema_metadata() for b in batches]).to_pylist()
        == pulled([received(m) for m in messages], source=LIVE, attribute=attribute).rows.to_pylist()
    )
    assert all(0 < b.num_rows <= most and b.schema.equals(MESSAGES) and is_archived(b) and source_number(b) == 3 for b in batches)


@settings(deadline=None, max_examples=50)
@given(_MESSAGES)
def test_a_batch_is_stamped_with_its_oldest_arrival(messages: list[Message]) -> None:
    for out in gathered(messages):
        assert out.timestamp.micros == arrivals(out.value).min()
        assert [str(w) for w in out.windows] == ["GlobalWindow"]


def test_a_batch_is_never_stamped_before_what_dataflow_promised() -> None:
    old = Message(str(2**50), AT, b"x", {"at": "2020-01-01T00:00:00Z"})
    (out,) = gathered([old], "at", stamps=[AT])  # an attribute that Dataflow has not read so
    assert out.timestamp.micros == AT


def test_an_empty_bundle_gives_nothing() -> None:
    assert gathered([]) == []


def test_in_a_pipeline_every_message_leaves_once() -> None:
    messages = [Message(str(2**50 + n), AT + n, b"%d" % n) for n in range(500)]

    def all_there(batches: list[pa.RecordBatch]) -> None:
        assert sorted(v for b in batches for v in b.column("_raw").to_pylist()) == sorted(m.data for m in messages)

    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        stamped = pipeline | beam.Create([TimestampedValue(native(m), m.published / 1e6) for m in messages])
        assert_that(stamped | Gather(LIVE), all_there)


def test_dataflow_itself_reads_the_attribute_that_is_the_clock() -> None:
    source = PubsubSource.model_validate({"pubsub": LIVE, "format": "json", "arrival": {"attribute": "at"}})
    pipeline = beam.Pipeline(runner="FnApiRunner")
    read: list[Any] = []

    class Look(beam.pipeline.PipelineVisitor):
        def visit_transform(self, node: Any) -> None:
            if node.full_label.endswith("Pull/Read"):
                read.append(node.transform.source)

    pipeline | ReadPubsubNative(source, 0)
    pipeline.visit(Look())
    assert [(s.full_subscription, s.timestamp_attribute, s.id_label, s.with_attributes) for s in read] == [(LIVE, "at", None, True)]
