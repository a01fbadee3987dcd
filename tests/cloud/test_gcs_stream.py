"""A stream whose archive, speed layer, dead letters and state lie in a bucket: ended, started again, computed anew, compared, mended, merged."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from beam_pipelines.arrow.schema import ARRIVAL, MESSAGES, POSITION, SOURCE
from beam_pipelines.cli.main import command, run_command
from beam_pipelines.formats.archive_files import hour_folder, write_file
from beam_pipelines.places import gcs as gcs_places
from beam_pipelines.runners.stream import StreamCall, run_stream
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.cloud.gcs_server import GcsServer
from tests.formats.archived import compact
from tests.pubsub_servers import PubsubServer

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.usefixtures("without_prism")]

SPEC = """
spec: 1
pipeline: clicks
state: {top}/state
contract:
  key: [id]
  event_time: at
  columns: {{id: {{type: int64}}, at: {{type: timestamp, required: true}}, v: {{type: int64, min: 0}}, shop: {{type: string}}}}
sources:
  stream: [{{pubsub: {subscription}, format: json, arrival: {{attribute: came}}, ack_deadline: 10s}}]
deduplicate: {{within: 1h}}
aggregates:
  hourly:
    windowing: {{type: fixed, size: 1h, allowed_lateness: 1h}}
    group_by: [shop]
    measures: {{n: count(), total: sum(v)}}
sinks:
  - {{from: rows, parquet: {{path: "{top}/lake/rows", partition_by: [day(at)]}}}}
  - {{from: hourly, parquet: {{path: "{top}/lake/hourly", partition_by: [day(_window_start)]}}}}
  - {{from: dead_letters, parquet: {{path: "{top}/lake/dead_letters"}}}}
"""
START = datetime(2026, 1, 1, tzinfo=UTC)


class Job:
    """A stream, what it is sent, and its commands."""

    def __init__(self, loaded: LoadedSpec, broker: PubsubServer, topic: str, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.loaded, self.broker, self.topic, self.bucket, self._capsys = loaded, broker, topic, bucket, capsys

    def send(self, hours: Sequence[int], *, v: int = 1) -> None:
        """A click in the middle of each hour, that arrives at once."""
        for hour in hours:
            at = (START + timedelta(hours=hour, minutes=30)).isoformat()
            content = {"id": hour * 10 + v, "at": at, "v": v, "shop": "north" if hour % 2 else "south"}
            self.broker.publish_all(self.topic, [{"data": json.dumps(content).encode(), "attributes": {"came": at}}])

    def run(self) -> None:
        done = run_stream(self.loaded, StreamCall(until_idle_s=1.0))
        assert done.status == "success", done.failures

    def told(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in ask(open_tables(self.loaded.state), sql).to_pylist()]

    def says(self, *arguments: str, code: int = 0) -> str:
        self._capsys.readouterr()
        got = run_command(command, [arguments[0], *arguments[1].split(), *arguments[2:]])
        out, err = self._capsys.readouterr()
        assert got == code, f"{arguments} ended with {got}\n{out}\n{err}"
        assert "Traceback" not in out + err
        return out + err

    @property
    def spec(self) -> str:
        return self.loaded.path


@pytest.fixture
def job(gcs: GcsServer, broker: PubsubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Job:
    for name, value in {**gcs.environment, **broker.environment}.items():
        monkeypatch.setenv(name, value)
    topic, subscription = broker.pair(ack_deadline_seconds=10)
    bucket = gcs.bucket()
    (tmp_path / "spec.yaml").write_text(SPEC.format(top=f"gs://{bucket}", subscription=subscription), "utf-8")
    return Job(load_spec(tmp_path / "spec.yaml"), broker, topic, bucket, capsys)


def test_the_whole_life_of_a_stream_in_a_bucket(job: Job, gcs: GcsServer) -> None:
    job.send(range(30))
    job.send([3], v=-1)  # refused by its contract
    job.broker.publish_all(job.topic, [{"data": b"nonsense", "attributes": {"came": START.isoformat()}}])
    job.run()
    assert job.told("SELECT count(*), sum(v) FROM rows") == [(30, 30)]
    assert job.told("SELECT count(*), sum(n) FROM hourly") == [(30, 30)]
    assert sorted(job.told("SELECT reason FROM dead_letters")) == [("CHECK",), ("DECODE",)]

    job.send(range(30, 60))
    job.run()  # the second epoch: it replays the tail of the archive
    assert gcs.names(job.bucket, "state/stream/epochs/") == [f"state/stream/epochs/00000{n}.json" for n in (1, 2)]
    assert job.told("SELECT count(*), sum(v), count(DISTINCT id) FROM rows") == [(60, 60, 60)]
    assert job.told("SELECT count(*), sum(n) FROM hourly") == [(60, 60)]

    job.says("backfill", job.spec, "--from", "2026-01-01", "--to", "2026-01-03", "--input", "archive")
    assert job.told("SELECT output, count(*) FROM ranges GROUP BY ALL ORDER BY ALL")[0][0] == "hourly"
    assert job.told("SELECT count(*), sum(v) FROM rows") == [(60, 60)]
    assert job.told("SELECT count(*) FROM rows_batch") == [(48,)]
    assert "96 rows equal, none differ" in job.says("verify", job.spec)

    text = Path(job.spec).read_text("utf-8")
    Path(job.spec).write_text(text.replace("min: 0", "min: -1"), "utf-8")
    job.loaded = load_spec(job.spec)
    job.says("dlq", f"replay {job.spec}", "--reason", "CHECK")
    assert job.told("SELECT count(*), sum(v) FROM rows") == [(61, 59)]
    assert job.told("SELECT reason FROM dead_letters") == [("DECODE",)]

    layers = json.loads(job.says("compact", f"{job.spec} --json"))["layers"]
    assert job.told("SELECT count(*), sum(v) FROM rows") == [(61, 59)]
    live = [sum(layer[when]["files"] for layer in layers) for when in ("before", "after")]  # those that were merged stay a minute
    assert live[1] < live[0]
    job.says("status", job.spec)
    job.says("report", job.spec, "--output", str(Path(job.spec).parent / "report.html"))


def test_requests_of_a_start(job: Job, gcs: GcsServer) -> None:
    """A stream that gets nothing: what starting and ending costs, once and again. The figures of docs/cloud-storage.md."""
    counts = []
    for _ in range(2):
        with gcs.counted() as requests:
            job.run()
        counts.append(requests)
    class_a = [sum(requests[kind] for kind in ("UPLOAD", "LIST", "REWRITE")) for requests in counts]
    assert class_a[0] <= 25  # 22
    assert class_a[1] <= 50  # 34, with a pass of compaction while it waits for leases of the first


def test_a_pass_over_hours_at_rest_costs_a_few_listings(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    folder, at_rest = f"gs://{gcs.bucket()}/archive", dict[str, int]()
    for hour in range(30):
        write_file(hour_folder(f"{folder}/clicks-1", 400_000 + hour), [_messages(hour)], epoch=1, level=0, seal="")
    later = time.time() + 3_600
    with gcs.counted() as first:
        compact(folder, now=lambda: later, at_rest=at_rest)
    assert len(at_rest) == 30
    monkeypatch.setattr(gcs_places, "_stamps", {})
    with gcs.counted() as again:
        compact(folder, now=lambda: later, at_rest=at_rest)
    assert first["LIST"] > 100
    assert again == {"LIST": 3}  # the archive's sources, the source's hours, everything below it


def _messages(position: int) -> pa.RecordBatch:
    values = {name: [None] for name in MESSAGES.names} | {
        SOURCE: ["clicks"],
        POSITION: [position],
        ARRIVAL: [datetime(2026, 1, 1, tzinfo=UTC)],
    }
    return pa.RecordBatch.from_pydict(values, schema=MESSAGES)
