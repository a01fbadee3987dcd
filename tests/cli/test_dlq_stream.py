"""`dlq replay --into stream`, through the embedded broker: a letter's record comes back as the message it was; then the late one, into the batch."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.sources.pubsub_messages import AS_POSITION, AS_SOURCE
from tests.cli.conftest import Call, Start
from tests.faults.stream_jobs import Job
from tests.pubsub_servers import PubsubServer

SPEC = """spec: 1
pipeline: readings
contract:
  key: [id]
  event_time: at
  columns:
    id:     {type: int64, required: true}
    sensor: {type: string, required: true, in: [a, b]}
    at:     {type: timestamp, required: true}
sources:
  stream: [{pubsub: SUBSCRIPTION, format: json, arrival: {attribute: arrived}}]
deduplicate: {within: 1h}
aggregates:
  by_hour: {windowing: {type: fixed, size: 1h, allowed_lateness: 1h}, measures: {n: count()}}
sinks:
  - {from: rows, parquet: {path: lake/readings, partition_by: [day(at)]}}
  - {from: by_hour, parquet: {path: lake/by_hour, partition_by: [day(_window_start)]}}
  - {from: dead_letters, parquet: {path: lake/dead_letters}}
"""


def message(number: int, at: str, *, sensor: str = "a", arrived: str | None = None, **more: str) -> dict[str, Any]:
    return {"data": json.dumps({"id": number, "sensor": sensor, "at": at}).encode(), "attributes": {"arrived": arrived or at, **more}}


def stream(start: Start, spec: Path) -> dict[str, Any]:
    """One start of the stream, until nothing comes any more: its record."""
    process = start("run", spec, "--mode", "stream", "--until-idle", "2s", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def answer(call: Call, spec: Path, sql: str) -> list[str]:
    return call("query", spec, sql, "--format", "csv").out.splitlines()[1:]


@pytest.mark.slow
def test_a_letter_comes_back_as_the_message_it_was_and_a_late_one_into_the_batch(
    server: PubsubServer, start: Start, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    topic, subscription = server.pair()
    spec = tmp_path / "readings.yaml"
    spec.write_text(SPEC.replace("SUBSCRIPTION", subscription))
    server.publish_all(
        topic,
        [
            message(1, "2024-05-01T10:00:00Z", sensor="c"),
            message(2, "2024-05-01T10:10:00Z"),
            message(3, "2024-05-01T10:05:00Z", arrived="2024-05-03T10:00:00Z"),
            {"data": b"broken", "attributes": {"arrived": "2024-05-01T10:20:00Z"}},
            message(9, "2024-05-20T10:00:00Z"),
            message(10, "2024-05-20T11:00:00Z"),
        ],
    )
    first = stream(start, spec)
    assert first["dead_letters"] == {"validate:CHECK": 1, "decode:DECODE": 1, "aggregate:LATE": 1}
    letters = "SELECT source, position, arrival_time FROM dead_letters WHERE reason = 'CHECK'"
    (was,) = answer(call, spec, letters)

    spec.write_text(spec.read_text().replace("in: [a, b]", "in: [a, b, c]"))
    assert (
        f"is not the topic of {subscription}, which is {topic}"
        in call("dlq", "replay", spec, "--into", "stream", "--topic", f"{topic}-2", code=2).err
    )
    planned = json.loads(call("dlq", "replay", spec, "--into", "stream", "--dry-run", "--json").out)
    assert (planned["fates"], planned["topics"]) == ({"replay": 1, "still refused": 1, "for the batch": 1}, {subscription: topic})
    for _ in range(2):  # sent twice, it is one row
        assert call("dlq", "replay", spec, "--into", "stream", "--topic", topic).out.startswith("3 open letters:")
    server.publish_all(
        topic, [message(4, "2024-05-20T11:00:00Z", **{AS_SOURCE: subscription, AS_POSITION: "0"})]
    )  # badly said: a message like any other

    second = stream(start, spec)
    assert second["status"] == "success", second["failures"]
    (line,) = second["ledger"]
    assert (line["read"], line["dead"], line["written"]["rows"]) == (7, 1, 6)
    assert second["dead_letters"] == {"decode:DECODE": 1, "aggregate:LATE": 1}
    assert answer(call, spec, "SELECT _source, _position, _arrival_time FROM rows WHERE id = 1") == [was]
    assert answer(call, spec, "SELECT count(*), count(DISTINCT id) FROM rows") == ["6,6"]
    found = json.loads(call("dlq", "inspect", spec, "--history", "--json").out)
    assert [(g["reason"], g["rows"]) for g in found["groups"]] == [("LATE", 1), ("DECODE", 1)]
    assert [(p["how"], p["reason"], p["run"]) for p in found["history"]] == [("replayed", "CHECK", second["metadata"]["run_id"])]

    assert answer(call, spec, "SELECT n FROM by_hour WHERE _window_start = '2024-05-01T10:00:00Z'") == ["1"]  # closed long ago
    assert call("dlq", "replay", spec, "--reason", "LATE").out.endswith("1 letter resolved\n")
    assert answer(call, spec, "SELECT n FROM by_hour WHERE _window_start = '2024-05-01T10:00:00Z'") == ["3"]
    assert answer(call, spec, "SELECT count(*), count(DISTINCT id) FROM rows") == ["6,6"]
    assert [g["reason"] for g in json.loads(call("dlq", "inspect", spec, "--json").out)["groups"]] == ["DECODE"]


@pytest.mark.slow
def test_a_repaired_start_that_reads_the_tail_again_resolves_letters_and_its_ledger_balances(
    server: PubsubServer, start: Start, tmp_path: Path, call: Call
) -> None:
    topic, subscription = server.pair()
    spec = tmp_path / "readings.yaml"
    spec.write_text(SPEC.replace("SUBSCRIPTION", subscription))
    server.publish_all(topic, [message(n, f"2024-05-01T10:0{n}:00Z", sensor="c" if n == 1 else "a") for n in range(3)])
    assert stream(start, spec)["dead_letters"] == {"validate:CHECK": 1}
    spec.write_text(spec.read_text().replace("in: [a, b]", "in: [a, b, c]"))
    second = stream(start, spec)
    assert (second["status"], second["dead_letters"]) == ("success", {})
    (past,) = json.loads(call("dlq", "inspect", spec, "--history", "--json").out)["history"]
    assert (past["how"], past["run"]) == ("read again", second["metadata"]["run_id"])


def eventually(call: Call, spec: Path, job: Job, sql: str, wanted: int = 1) -> list[str]:
    """The answer, once it has so many rows."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = call("query", spec, sql, "--format", "csv", code=None).out.splitlines()[1:]  # nothing is stored at first
        if len(found) >= wanted:
            break
        time.sleep(0.3)
    assert len(found) == wanted, job.text
    return found


@pytest.mark.slow
def test_a_stream_that_still_runs_takes_a_letter_again_once_its_lookup_is_refreshed(
    server: PubsubServer, start: Start, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    topic, subscription = server.pair()
    spec, places = tmp_path / "readings.yaml", tmp_path / "places.csv"
    known = """lookups: {places: {files: places.csv, format: csv, key: sensor, refresh: 1s}}
checks: [{name: known, references: {columns: [sensor], lookup: places}, severity: dead_letter}]
"""
    spec.write_text(SPEC.replace("SUBSCRIPTION", subscription).replace("deduplicate:", known + "deduplicate:"))
    places.write_text("sensor\na\n")
    server.publish_all(topic, [message(1, "2024-05-01T10:00:00Z", sensor="b"), message(2, "2024-05-01T10:10:00Z")])
    job = Job(start("run", spec, "--mode", "stream"))
    (was,) = eventually(call, spec, job, "SELECT source, position, arrival_time FROM dead_letters")
    eventually(call, spec, job, "SELECT id FROM rows")
    places.write_text("sensor\na\nb\n")
    time.sleep(2)
    assert "1 open letter:" in call("dlq", "replay", spec, "--into", "stream", "--topic", topic).out
    assert eventually(call, spec, job, "SELECT _source, _position, _arrival_time FROM rows WHERE id = 1") == [was]
    job.process.terminate()
    assert job.ended(120) == 0, job.text  # drained
    assert json.loads(call("dlq", "inspect", spec, "--json").out)["groups"] == []
