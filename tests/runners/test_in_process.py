"""Without Prism a stream that ends by itself runs all the same, and says on what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beam_pipelines.errors import RunError
from beam_pipelines.runners.stream import StreamCall, run_stream
from beam_pipelines.serving.tables import open_tables
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.pubsub_servers import PubsubServer

SPEC = """
spec: 1
pipeline: clicks
contract: {{key: [id], event_time: at, columns: {{id: {{type: int64}}, at: {{type: timestamp, required: true}}}}}}
sources: {{stream: [{{pubsub: {subscription}, format: json, arrival: {{attribute: at}}}}]}}
deduplicate: {{within: 1h}}
aggregates: {{by_minute: {{windowing: {{type: fixed, size: 1m}}, measures: {{n: count()}}}}}}
sinks: [{{from: rows, parquet: {{path: lake/rows}}}}, {{from: by_minute, parquet: {{path: lake/by_minute}}}}]
"""


@pytest.fixture
def loaded(tmp_path: Path, broker: PubsubServer, monkeypatch: pytest.MonkeyPatch) -> LoadedSpec:
    for name, value in broker.environment.items():
        monkeypatch.setenv(name, value)
    topic, subscription = broker.pair()
    times = [f"2026-01-01T00:{i // 10:02}:{i % 10 * 6:02}Z" for i in range(40)]
    messages = [{"data": json.dumps({"id": i, "at": at}).encode(), "attributes": {"at": at}} for i, at in enumerate(times)]
    broker.publish_all(topic, [*messages, *messages[:5], b"broken"])
    (tmp_path / "spec.yaml").write_text(SPEC.format(subscription=subscription), "utf-8")
    return load_spec(tmp_path / "spec.yaml")


def test_a_stream_that_ends_by_itself_runs_on_fnapirunner(loaded: LoadedSpec, without_prism: None) -> None:
    said: list[str] = []
    record = run_stream(loaded, StreamCall(until_idle_s=1.0, say=said.append))
    assert record.status == "success", record.failures
    assert any("no Prism here; running on Beam's FnApiRunner instead" in sentence for sentence in said)
    assert record.metadata.engine == "FnApiRunner"
    (line,) = record.ledger
    assert (line.read, line.dead, line.duplicate, line.written) == (46, 1, 5, {"rows": 40})
    panes = open_tables(loaded.state).sql("SELECT n FROM by_minute ORDER BY _window_start").fetchall()
    assert panes == [(10,)] * 4


def test_an_endless_stream_needs_prism(loaded: LoadedSpec, without_prism: None) -> None:
    with pytest.raises(RunError, match="no Prism here"):
        run_stream(loaded)


@pytest.mark.slow
def test_a_message_that_says_it_arrived_before_the_point_a_stream_had_reached_is_published(
    tmp_path: Path, broker: PubsubServer, monkeypatch: pytest.MonkeyPatch, without_prism: None
) -> None:
    for name, value in broker.environment.items():
        monkeypatch.setenv(name, value)
    topic, subscription = broker.pair(ack_deadline_seconds=10)
    into, consumer = broker.pair()
    sinks = f"sinks: [{{from: rows, parquet: {{path: lake/rows}}}}, {{from: rows, pubsub: {{topic: {into}}}}}]"
    text = SPEC.format(subscription=subscription).replace("{within: 1h}", "{within: 1m}")
    (tmp_path / "spec.yaml").write_text(text[: text.index("sinks:")] + sinks, "utf-8")
    loaded, seen = load_spec(tmp_path / "spec.yaml"), set[int]()
    for numbers in (range(10, 20), range(10)):  # the second start's are ten hours older
        times = [f"2026-01-01T{i:02}:00:00Z" for i in numbers]
        broker.publish_all(
            topic,
            [{"data": json.dumps({"id": i, "at": at}).encode(), "attributes": {"at": at}} for i, at in zip(numbers, times, strict=True)],
        )
        record = run_stream(loaded, StreamCall(until_idle_s=1.0))
        assert record.status == "success", record.failures
    for _ in range(20):
        seen |= {json.loads(m.message.data)["id"] for m in broker.pull(consumer, 100, wait=False)}
    assert seen == {*range(20)}
