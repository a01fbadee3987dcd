"""Without Prism a stream that ends by itself runs all the same, and says on what."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.errors import RunError
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.runners.stream import StreamCall, run_stream
from beam_pipelines.serving.tables import open_tables
from beam_pipelines.sinks.reached import starts
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


@pytest.mark.slow
def test_a_message_from_the_future_leaves_by_one_door_in_stream_and_batch_and_the_stream_goes_on(
    tmp_path: Path, broker: PubsubServer, monkeypatch: pytest.MonkeyPatch, without_prism: None
) -> None:
    """One only says that it arrived in 2098; another happened then, too, which its arrival was to excuse."""
    for name, value in broker.environment.items():
        monkeypatch.setenv(name, value)
    topic, subscription = broker.pair(ack_deadline_seconds=10)
    (tmp_path / "spec.yaml").write_text(SPEC.format(subscription=subscription).replace("attribute: at", "attribute: came"), "utf-8")
    loaded, far = load_spec(tmp_path / "spec.yaml"), "2098-01-01T00:00:00Z"

    def publish(*rows: tuple[int, str, str]) -> None:
        broker.publish_all(
            topic, [{"data": json.dumps({"id": i, "at": at}).encode(), "attributes": {"came": came}} for i, at, came in rows]
        )

    def stream() -> tuple[int, int, int]:
        record = run_stream(loaded, StreamCall(until_idle_s=1.0))
        assert record.status == "success", record.failures
        (line,) = record.ledger
        return line.read, line.dead, line.written["rows"]

    ago = [(i, at, at) for i, at in enumerate(f"2026-01-01T00:{i // 10:02}:{i % 10 * 6:02}Z" for i in range(50))]
    recently = datetime.now(UTC).isoformat()
    publish(*ago, (100, recently, far), (101, far, far))
    assert stream() == (52, 1, 51)
    reached = starts(loaded.state)[1].watermark_micros
    assert reached is not None
    assert reached < datetime(2026, 1, 1, 1, tzinfo=UTC).timestamp() * 1e6
    publish(*((200 + i, f"2026-01-01T00:06:{i:02}Z", f"2026-01-01T00:06:{i:02}Z") for i in range(10)))
    assert stream() == (62, 1, 61)

    def seen() -> tuple[list[Any], ...]:
        tables = open_tables(loaded.state)
        ask = (
            "SELECT id FROM rows ORDER BY id",
            "SELECT _window_start, n FROM by_minute ORDER BY ALL",
            "SELECT stage, reason FROM dead_letters",
        )
        return tuple(tables.sql(sql).fetchall() for sql in ask)

    live = seen()
    assert [n for _, n in live[1]] == [10] * 5 + [10, 1]
    assert live[2] == [("validate", "FUTURE")]
    assert run_batch(loaded, Call(input="archive")).status == "success"
    assert seen() == live


@pytest.mark.slow
def test_a_stream_without_windows_starts_even_if_no_event_time_may_lie_ahead(
    tmp_path: Path, broker: PubsubServer, monkeypatch: pytest.MonkeyPatch, without_prism: None
) -> None:
    for name, value in broker.environment.items():
        monkeypatch.setenv(name, value)
    topic, subscription = broker.pair()
    text = SPEC.format(subscription=subscription).replace("event_time: at,", "event_time: at, allowed_skew: 0s,")
    plain = text[: text.index("deduplicate:")] + "sinks: [{from: rows, parquet: {path: lake/rows}}]\n"
    (tmp_path / "spec.yaml").write_text(plain, "utf-8")
    message = {"data": b'{"id": 1, "at": "2026-01-01T00:00:00Z"}', "attributes": {"at": "2026-01-01T00:00:00Z"}}
    broker.publish_all(topic, [message, message])
    record = run_stream(load_spec(tmp_path / "spec.yaml"), StreamCall(until_idle_s=1.0))
    assert record.status == "success", record.failures
    (line,) = record.ledger
    assert line.written == {"rows": 2}
