"""The Pub/Sub sink against real servers: every row is a message that says which row it is, nothing ends before all are out, what is refused is a letter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that
from apache_beam.utils.timestamp import Timestamp
from google.pubsub_v1.types import PublishRequest

from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.schema import CHANGE, Failure, Rejected, dead_letters, provenance
from beam_pipelines.errors import SinkError, TransientError
from beam_pipelines.pubsub_service import Topic
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.sinks import publishing
from beam_pipelines.sinks.publishing import Publisher
from beam_pipelines.sinks.pubsub import Publish, PublishDeadLetters, _Publish
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sinks.write import Masking
from beam_pipelines.spec.load import load_spec
from beam_pipelines.spec.sinks import PubsubSink
from tests.cloud.grpc_gate import running_gate
from tests.pubsub_servers import PubsubServer

RUN = RunInfo("r1", "p", "/nowhere")


@pytest.fixture(autouse=True)
def _service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)


def flights(count: int, *, text: str = "x", change: int | None = None) -> pa.RecordBatch:
    numbers = list(range(count))
    arrival = pa.array([1_000_000 * n for n in numbers], pa.timestamp("us", "UTC"))
    columns: dict[str, Any] = {
        "id": pa.array(numbers, pa.int64()), "carrier": pa.array([f"{text}{n % 3}" if n % 5 else None for n in numbers], pa.string()),
        **dict(zip(["_source", "_position", "_arrival_time"], provenance("a.csv", pa.array(numbers, pa.int64()), arrival), strict=True)),
        "_key_hash": pa.array(numbers, pa.int64()),
    }  # fmt: skip
    if change is not None:
        columns[CHANGE] = pa.array([change] * count, pa.int8())
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def publish(
    batches: list[pa.RecordBatch], server: PubsubServer, topic: str, sink: dict[str, Any] | None = None, **options: Any
) -> dict[str, list[Any]]:
    """What comes out beside messages."""
    out: dict[str, list[Any]] = {"dead": [], "counts": []}
    made = Publish(PubsubSink(topic=topic, endpoint=f"http://{server.address}", **(sink or {})), label="rows_pubsub", run=RUN, **options)
    with beam.Pipeline("FnApiRunner") as pipeline:
        done = pipeline | beam.Create(batches, reshuffle=False) | "Send" >> made
        for name, kept in out.items():
            assert_that(getattr(done, name), _Keep(kept), label=name)
    return {name: _KEPT.pop(id(kept)) if id(kept) in _KEPT else [] for name, kept in out.items()}


_KEPT: dict[int, list[Any]] = {}


class _Keep:
    """Takes a PCollection's elements out of a pipeline that runs in this process."""

    def __init__(self, into: list[Any]) -> None:
        self._name = id(into)

    def __call__(self, actual: list[Any]) -> None:
        from tests.sinks import test_pubsub

        test_pubsub._KEPT[self._name] = list(actual)


def sent(server: PubsubServer, subscription: str, count: int) -> list[tuple[dict[str, Any], dict[str, str], str]]:
    taken = [m.message for m in server.take(subscription, count)]
    return [(json.loads(m.data), dict(m.attributes), m.ordering_key) for m in taken]


def test_every_row_is_a_message_that_says_which_row_it_is(pubsub_server: PubsubServer) -> None:
    topic, subscription = pubsub_server.pair()
    out = publish([flights(2_500), flights(10)], pubsub_server, topic, {"attributes": {"airline": "carrier"}})
    found = sent(pubsub_server, subscription, 2_510)
    assert sorted(int(told["position"]) for _, told, _ in found) == sorted([*range(2_500), *range(10)])
    for data, told, _ in found:
        assert told["position"] == str(data["id"])
        assert data == {"id": data["id"], "carrier": told.get("airline")}
        assert {k: told[k] for k in ("source", "output")} == {"source": "a.csv", "output": "rows_pubsub"}
        assert told["arrival_time"].endswith("Z")
    assert not out["dead"]
    assert sum(c[4] for c in out["counts"] if c[2:4] == ("written", "rows_pubsub")) == 2_510


def test_messages_of_one_ordering_key_stay_in_order(broker: PubsubServer) -> None:
    topic = broker.topic()
    subscription = broker.subscription(topic, enable_message_ordering=True)
    publish([flights(3_000)], broker, topic, {"ordering_key": "carrier"})
    seen: dict[str, list[int]] = {}
    got = 0
    while got < 3_000:
        taken = broker.pull(subscription, wait=True)
        for one in taken:
            seen.setdefault(one.message.ordering_key, []).append(int(one.message.attributes["position"]))
        broker.ack(subscription, taken)
        got += len(taken)
    assert set(seen) == {"x0", "x1", "x2", ""}
    assert all(positions == sorted(positions) for key, positions in seen.items() if key)


def test_a_row_too_large_is_a_letter_and_the_others_go_out(broker: PubsubServer) -> None:
    topic, subscription = broker.pair()
    large = flights(3).set_column(1, "carrier", pa.array(["a", "b" * 10_000_000, "c"], pa.string()))
    out = publish([large, flights(5)], broker, topic)
    assert len(sent(broker, subscription, 7)) == 7
    [letters] = out["dead"]
    assert letters.column("reason").to_pylist() == ["SINK"]
    assert letters.column("position").to_pylist() == [1]
    assert "a topic takes 9,900,000" in letters.column("message")[0].as_py()
    counts = {(c[2], c[3]): 0 for c in out["counts"]}
    for _, _, outcome, detail, rows in out["counts"]:
        counts[outcome, detail] += rows
    assert counts == {("written", "rows_pubsub"): 7, ("dead", "write:SINK@rows_pubsub"): 1}


def test_a_row_that_the_topic_refuses_is_a_letter(broker: PubsubServer) -> None:
    """A topic with a schema that wants a carrier: the service refuses the whole request, and names no message."""
    from google.pubsub_v1.types import Schema

    wanted = {"type": "record", "name": "r", "fields": [{"name": "id", "type": "long"}, {"name": "carrier", "type": "string"}]}
    schema = broker.schemas.create_schema(
        parent=f"projects/{broker.project}", schema=Schema(type_=Schema.Type.AVRO, definition=json.dumps(wanted)), schema_id="carriers"
    )
    topic = broker.topic(schema_settings={"schema": schema.name, "encoding": "JSON"})
    subscription = broker.subscription(topic)
    out = publish([flights(100)], broker, topic)
    assert {told["position"] for _, told, _ in sent(broker, subscription, 80)} == {str(n) for n in range(100) if n % 5}
    [letters] = out["dead"]
    assert sorted(letters.column("position").to_pylist()) == list(range(0, 100, 5))
    assert "refuses it" in letters.column("message")[0].as_py()


def test_a_long_bundle_says_what_became_of_its_rows_as_it_goes_and_holds_few(broker: PubsubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_pipelines.sinks.pubsub._HELD_ROWS", 1_000)
    monkeypatch.setattr(publishing, "MESSAGE_BYTES", 10_000)
    topic, subscription = broker.pair()
    stage = _Publish(Publish(PubsubSink(topic=topic, endpoint=f"http://{broker.address}"), label="rows_pubsub", run=RUN)._messages)
    stage.setup()
    try:
        stage.start_bundle()
        large = flights(3).set_column(1, "carrier", pa.array(["a", "b" * 20_000, "c"], pa.string()))
        out = []
        for batch in (large, *[flights(600)] * 5):
            out += stage.process(batch, timestamp=Timestamp(7))
            assert sum(b.num_rows for b in stage._batches) < 1_000
        assert [o.tag for o in out].count("counts") == 6, "two parts are through"
        out += stage.finish_bundle()
    finally:
        stage.teardown()
    [letters] = [o.value.value for o in out if getattr(o, "tag", None) == "dead"]
    assert letters.column("position").to_pylist() == [1]
    counts = [o.value.value for o in out if getattr(o, "tag", None) == "counts"]
    assert sum(c[4] for c in counts if c[2] == "written") == 3_002
    assert out[-1].timestamp == Timestamp(7)
    assert len(sent(broker, subscription, 3_002)) == 3_002


def test_a_bundle_of_wide_rows_is_held_in_few_bytes(broker: PubsubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_pipelines.sinks.pubsub._HELD_BYTES", 100_000)
    stage = _Publish(Publish(PubsubSink(topic=broker.topic(), endpoint=f"http://{broker.address}"), label="rows_pubsub", run=RUN)._messages)
    stage.setup()
    try:
        stage.start_bundle()
        list(stage.process(flights(50, text="x" * 10_000), timestamp=Timestamp(7)))
        assert stage._batches == []
    finally:
        stage.teardown()


def test_sensitive_columns_are_masked_in_data_attributes_and_keys(broker: PubsubServer) -> None:
    topic, subscription = broker.pair()
    masking = Masking({"carrier": "redact", "id": "drop"})
    publish([flights(4)], broker, topic, {"ordering_key": "carrier", "attributes": {"airline": "carrier"}}, masking=masking)
    for data, told, key in sent(broker, subscription, 4):
        assert data in ({"carrier": "***"}, {"carrier": None})
        assert told.get("airline") in ("***", None)
        assert key in ("***", "")


def test_a_topic_that_is_not_there_is_one_clear_error(broker: PubsubServer) -> None:
    topic = f"projects/{broker.project}/topics/nowhere"
    with pytest.raises(Exception, match=f"{topic}: there is no such topic; expected a topic to publish to. Create the topic"):
        publish([flights(1)], broker, topic)


def test_a_stream_takes_back_rows_by_what_their_message_holds_of_the_key(broker: PubsubServer) -> None:
    topic, subscription = broker.pair()
    stays, gone = flights(6, change=1), flights(2, change=-1).set_column(1, "carrier", pa.nulls(2, pa.string()))
    publish([stays, gone], broker, topic, key=("id",))
    found = sent(broker, subscription, 8)
    assert sorted(int(told["position"]) for _, told, _ in found if "change" not in told) == [*range(6)]
    retracted = [(data, told["position"]) for data, told, _ in found if told.get("change") == "retract"]
    assert sorted(retracted, key=str) == [({"id": 0}, "0"), ({"id": 1}, "1")]


def test_panes_say_which_version_they_are(broker: PubsubServer) -> None:
    topic, subscription = broker.pair()
    start = pa.array([0], pa.timestamp("us", "UTC"))
    pane = pa.record_batch(
        {
            "origin": ["EWR"],
            "flights": [3],
            "_window_start": start,
            "_window_end": start,
            "_pane": ["early"],
            "_pane_index": [2],
            "_epoch": [7],
        }
    )
    publish([pane], broker, topic, of="by_hour", event_time="_window_start")
    [(data, told, _)] = sent(broker, subscription, 1)
    assert (data["origin"], data["flights"], data["_window_start"]) == ("EWR", 3, "1970-01-01T00:00:00Z")
    assert {k: told[k] for k in ("pane", "index", "epoch")} == {"pane": "early", "index": "2", "epoch": "7"}


def test_dead_letters_are_messages_with_their_reason(broker: PubsubServer) -> None:
    topic, subscription = broker.pair()
    raw = [b"{", b"\xff", b"x" * 5_000_000]
    rows = pa.RecordBatch.from_arrays(
        [*provenance("s", pa.array([1, 2, 3])), pa.array(raw, pa.binary())], names=["_source", "_position", "_arrival_time", "_raw"]
    )
    letters = dead_letters(rows, [Rejected("decode", "DECODE", (Failure("decode", "", "no JSON"),))] * 3, raw_format="json")
    sink = PubsubSink(topic=topic, endpoint=f"http://{broker.address}")
    with beam.Pipeline("FnApiRunner") as pipeline:
        pipeline | beam.Create([letters]) | PublishDeadLetters(sink, run=RUN, contract=Contract(columns={"id": {"type": "int64"}}))
    found = {told["position"]: (data, told) for data, told, _ in sent(broker, subscription, 3)}
    assert [found[p][0]["raw"] for p in "123"] == ["{", "base64:/w==", None]
    assert found["1"][1]["reason"] == "DECODE"
    assert found["1"][0]["run_id"] == "r1"


SPEC = """spec: 1
pipeline: events
contract: {{key: [id], columns: {{id: {{type: int64, required: true}}, kind: {{type: string}}}}}}
sources: {{batch: [{{files: in.jsonl, format: json}}]}}
aggregates: {{by_kind: {{group_by: [kind], measures: {{n: count()}}}}}}
sinks:
  - {{from: rows, pubsub: {{topic: {topic}, attributes: {{kind: kind}}}}}}
  - {{from: by_kind, pubsub: {{topic: {topic}}}}}
  - {{from: dead_letters, pubsub: {{topic: {topic}}}}}
  - {{from: rows, parquet: {{path: lake/rows}}}}
"""


def test_a_batch_run_publishes_and_its_ledger_balances(broker: PubsubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.address)
    topic, subscription = broker.pair()
    lines = [json.dumps({"id": n, "kind": "ab"[n % 2]}) for n in range(50)] + ["{", '{"kind": "a"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    (tmp_path / "p.yaml").write_text(SPEC.format(topic=topic))
    record = run_batch(load_spec(tmp_path / "p.yaml"), Call("direct"))
    assert record.status == "success", record.failures
    [line] = [found for found in record.ledger if found.source.endswith("in.jsonl")]
    assert line.written == {"rows": 50, "rows_pubsub": 50}
    [rest] = [found for found in record.ledger if not found.source]
    assert rest.written == {"by_kind_pubsub": 2, "dead_letters_pubsub": 2, "dead_letters": 2}
    found = sent(broker, subscription, 54)
    by_output = {
        name: [d for d, told, _ in found if told["output"] == name] for name in ("rows_pubsub", "by_kind_pubsub", "dead_letters_pubsub")
    }
    assert sorted(d["id"] for d in by_output["rows_pubsub"]) == list(range(50))
    assert sorted((d["kind"], d["n"]) for d in by_output["by_kind_pubsub"]) == [("a", 25), ("b", 25)]
    assert sorted(d["reason"] for d in by_output["dead_letters_pubsub"]) == ["DECODE", "REQUIRED"]


class Failing(grpc.RpcError):
    """An answer of the service that is an error."""

    def __init__(self, name: str) -> None:
        self.name = name

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode[self.name]

    def details(self) -> str:
        return f"{self.name} by the test"


class Scripted(Topic):
    """A real topic whose first calls end with given errors."""

    def __init__(self, server: PubsubServer, topic: str, errors: list[str]) -> None:
        super().__init__(topic, f"http://{server.address}", who="test", error=SinkError)
        self.errors = errors

    def publish(self, messages: Any, *, timeout_s: float = 60.0) -> Any:
        return _Failed(self.errors.pop(0)) if self.errors else super().publish(messages, timeout_s=timeout_s)


class _Failed:
    def __init__(self, name: str) -> None:
        self.name = name

    def result(self) -> None:
        raise Failing(self.name)


@pytest.fixture
def waits() -> list[float]:
    return []


def test_errors_that_pass_are_tried_again_and_the_order_is_kept(broker: PubsubServer, waits: list[float]) -> None:
    topic, subscription = broker.pair()
    publisher: Publisher[int] = Publisher(
        Scripted(broker, topic, ["UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL"]), ordered=True, wait=waits.append
    )
    for n in range(2_500):
        publisher.add(str(n).encode(), {}, n)
    assert publisher.finish() == []
    assert len(waits) == 3
    assert [int(m.message.data) for m in broker.take(subscription, 2_500)] == list(range(2_500))


def test_an_outage_longer_than_our_patience_is_an_error(broker: PubsubServer, waits: list[float]) -> None:
    publisher: Publisher[int] = Publisher(Scripted(broker, broker.topic(), ["UNAVAILABLE"] * 1_000), patience_s=30, wait=waits.append)
    publisher.add(b"x", {}, 1)
    with pytest.raises(TransientError, match="does not take messages: UNAVAILABLE by the test"):
        publisher.finish()
    assert 20 < sum(waits) <= 30


def test_a_permission_that_is_missing_is_an_error_at_once(broker: PubsubServer, waits: list[float]) -> None:
    publisher: Publisher[int] = Publisher(Scripted(broker, broker.topic(), ["PERMISSION_DENIED"]), wait=waits.append)
    publisher.add(b"x", {}, 1)
    with pytest.raises(SinkError, match=r"PERMISSION_DENIED by the test; .* roles/pubsub.publisher"):
        publisher.finish()
    assert not waits


def test_requests_stay_below_the_limits_of_the_service(broker: PubsubServer) -> None:
    topic, subscription = broker.pair()
    with running_gate(broker.address) as gate:
        publisher: Publisher[int] = Publisher(Topic(topic, f"http://{gate.address}", who="test", error=SinkError))
        for n in range(3_000):  # at first the bytes are at their limit, then the messages
            publisher.add(b"x" * (n % 7 * 10_000 + 1 if n < 1_500 else 1), {}, n)
        publisher.finish()
    assert len(broker.take(subscription, 3_000)) == 3_000
    requests = gate.requests["Publish"]
    assert max(map(len, requests)) <= 10_000_000
    assert max(len(PublishRequest.pb().FromString(request).messages) for request in requests) <= publishing.CALL_MESSAGES
