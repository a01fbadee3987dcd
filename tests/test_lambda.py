"""Batch and stream on one spec: the archive gives the batch what the stream had, one table shows both, and no row is in two layers."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.cli.run import check_mode, input_of
from beam_pipelines.errors import SpecError
from beam_pipelines.runners.closed import check_closed, closed_until, shortened
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.runners.stream import StreamCall, run_stream
from beam_pipelines.serving.tables import open_tables
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.pubsub_servers import PubsubServer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_prism")]

SPEC = """
spec: 1
pipeline: clicks
contract: {{key: [id], event_time: at, columns: {{id: {{type: int64}}, at: {{type: timestamp, required: true}}, v: {{type: int64, min: 0}}}}}}
sources: {{stream: [{{pubsub: {subscription}, format: json, arrival: {{attribute: came}}}}]}}
deduplicate: {{within: 1h}}
aggregates:
  hourly: {{windowing: {{type: fixed, size: 1h, allowed_lateness: 1h}}, measures: {{n: count(), total: sum(v)}}}}
sinks:
  - {{from: rows, parquet: {{path: lake/rows, partition_by: [day(at)]}}}}
  - {{from: hourly, parquet: {{path: lake/hourly, partition_by: [day(_window_start)]}}}}
  - {{from: dead_letters, parquet: {{path: lake/dead_letters}}}}
"""
START = datetime(2026, 1, 1, tzinfo=UTC)
ZERO, HOUR, DAY = int(START.timestamp()) * 1_000_000, 3_600_000_000, 86_400_000_000
LATE = 3 * 60


class Clicks:
    """A topic with a subscription, and the spec over it."""

    def __init__(self, folder: Path, broker: PubsubServer) -> None:
        self.broker, (self.topic, subscription) = broker, broker.pair()
        (folder / "spec.yaml").write_text(SPEC.format(subscription=subscription), "utf-8")
        self.loaded: LoadedSpec = load_spec(folder / "spec.yaml")

    def publish(self, *clicks: tuple[int, int, int, int] | bytes) -> None:
        """Messages (id, event time, arrival: minutes; v), or raw bytes that arrive at the start."""
        self.broker.publish_all(self.topic, [self._message(click) for click in clicks])

    def _message(self, click: tuple[int, int, int, int] | bytes) -> dict[str, Any]:
        if isinstance(click, bytes):
            return {"data": click, "attributes": {"came": at(0)}}
        number, event, arrival, v = click
        return {"data": json.dumps({"id": number, "at": at(event), "v": v}).encode(), "attributes": {"came": at(arrival)}}

    def stream(self) -> RunResults:
        done = run_stream(self.loaded, StreamCall(until_idle_s=1.0))
        assert done.status == "success", done.failures
        return done

    def batch(self, first: int | None = None, last: int | None = None) -> RunResults:
        where = None if first is None or last is None else Range(ZERO + first * DAY, ZERO + last * DAY)
        done = run_batch(self.loaded, Call(range=where, input="archive"))
        assert done.status == "success", done.failures
        return done

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        return open_tables(self.loaded.state).execute(sql).fetchall()


def at(minutes: int) -> str:
    return (START + timedelta(minutes=minutes)).isoformat()


@pytest.fixture
def clicks(tmp_path: Path, broker: PubsubServer, monkeypatch: pytest.MonkeyPatch) -> Clicks:
    for name, value in broker.environment.items():
        monkeypatch.setenv(name, value)
    return Clicks(tmp_path, broker)


def days(count: int) -> list[tuple[int, int, int, int]]:
    """A click an hour; each with its hour as v."""
    return [(hour, hour * 60 + 5, hour * 60 + 5, hour) for hour in range(24 * count)]


def test_the_batch_supersedes_the_stream_in_its_range_and_nowhere_else(clicks: Clicks) -> None:
    late = (1000, 30 * 60, 30 * 60 + LATE, 7)  # two hours after its window's end: a letter of the aggregate, and a row
    clicks.publish(*days(4), late, (3, 3 * 60 + 5, 3 * 60 + 6, 3), (2000, 31 * 60, 31 * 60, -1), b"nonsense")
    clicks.stream()
    assert clicks.ask("SELECT count(*), count(DISTINCT id) FROM rows") == [(97, 97)]
    assert clicks.ask("SELECT count(*), sum(n) FROM hourly") == [(96, 96)]
    assert clicks.ask("SELECT stage, count(*) FROM dead_letters GROUP BY ALL ORDER BY ALL") == [
        ("aggregate", 1),
        ("decode", 1),
        ("validate", 1),
    ]

    done = clicks.batch(1, 2)
    assert [line.outside > 0 for line in done.ledger if line.source] == [True]
    assert clicks.ask("SELECT count(*), count(DISTINCT id) FROM rows") == [(97, 97)]
    assert clicks.ask("SELECT count(*), count(*) FILTER (_pane = 'batch'), sum(n) FROM hourly") == [(96, 24, 97)]  # the late one counts
    assert clicks.ask("SELECT stage, count(*) FROM dead_letters GROUP BY ALL ORDER BY ALL") == [("decode", 1), ("validate", 1)]
    assert clicks.ask("SELECT DISTINCT input FROM ranges") == [("archive",)]
    before = clicks.ask("SELECT * EXCLUDE (_run_id) FROM rows ORDER BY ALL"), clicks.ask("FROM hourly ORDER BY ALL")
    clicks.batch(1, 2)
    assert (clicks.ask("SELECT * EXCLUDE (_run_id) FROM rows ORDER BY ALL"), clicks.ask("FROM hourly ORDER BY ALL")) == before


def test_history_is_computed_anew_from_the_archive_alone(clicks: Clicks) -> None:
    """Kappa: no batch sources at all."""
    assert check_mode(clicks.loaded.spec, "batch") == "batch"
    assert input_of(clicks.loaded.spec, None) == "archive"
    clicks.publish(*days(3), (5, 5 * 60 + 5, 5 * 60 + 9, 5))
    clicks.stream()
    live = clicks.ask("SELECT id, v FROM rows ORDER BY ALL"), clicks.ask("SELECT _window_start, n, total FROM hourly ORDER BY ALL")
    clicks.batch()
    assert clicks.ask("SELECT DISTINCT _run_id LIKE '%' FROM rows_batch") == [(True,)]
    assert (
        clicks.ask("SELECT id, v FROM rows ORDER BY ALL"),
        clicks.ask("SELECT _window_start, n, total FROM hourly ORDER BY ALL"),
    ) == live
    assert clicks.ask("SELECT count(*) FROM rows_batch") == [(72,)]
    clicks.publish((5000, 3 * 24 * 60 + 1, 3 * 24 * 60 + 1, 1))
    clicks.stream()  # the stream goes on, and shows what no batch has
    assert clicks.ask("SELECT count(*) FROM rows") == [(73,)]


def test_a_range_reads_only_the_hours_of_the_archive_that_can_matter(clicks: Clicks) -> None:
    clicks.publish(*days(4))
    clicks.stream()
    done = clicks.batch(3, 4)
    (line,) = [line for line in done.ledger if line.source]
    assert line.read < 96
    assert line.written == {"rows": 24}


def test_a_range_ends_where_the_streams_windows_are_closed(clicks: Clicks) -> None:
    clicks.publish(*days(2))
    clicks.stream()
    closed = closed_until(clicks.loaded.spec, clicks.loaded.state)
    assert closed is not None
    asked = Range(ZERO, ZERO + 5 * DAY)
    fits = shortened(clicks.loaded.spec, clicks.loaded.state, asked)
    assert fits == Range(ZERO, closed // DAY * DAY)
    with pytest.raises(SpecError, match="the stream's windows are closed up to") as refused:
        check_closed(clicks.loaded, asked)
    assert "--ignore-stream" in str(refused.value.hint)
    check_closed(clicks.loaded, fits)
