"""Replay: every row once, in the order and at the pace of its arrival, with what was asked for besides, chosen by a seed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_pipelines.errors import SinkError, SourceError, SpecError
from beam_pipelines.runners.replay import Played, ReplayPlan, parse_speed, play, publisher, rows_without_arrival
from tests.pubsub_servers import PubsubServer

CSV = """id,origin,departed_at,delay
3,JFK,2013-12-01T00:01:40Z,NA
1,EWR,2013-12-01T00:00:00Z,5
4,LGA,,7
2,EWR,2013-12-01T00:00:50.250Z,-3
"""


class Sent:
    """Messages and when they went, by a clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waiting: list[tuple[bytes, dict[str, str]]] = []
        self.out: list[tuple[float, bytes, dict[str, str]]] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def add(self, data: bytes, attributes: Mapping[str, str], tag: int, *, ordering_key: str = "") -> None:
        self.waiting.append((data, dict(attributes)))

    def flush(self) -> None:
        self.out += [(self.now, *message) for message in self.waiting]
        self.waiting = []


def played(plan: ReplayPlan) -> tuple[Sent, Played]:
    sent = Sent()
    done = play(plan, sent, clock=sent.clock, sleep=sent.sleep)
    sent.flush()
    assert len(sent.out) == done.messages
    return sent, done


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "flights.csv").write_text(CSV)
    return str(tmp_path / "flights.csv")


def test_rows_go_out_in_the_order_and_at_the_pace_of_their_arrival(file: str) -> None:
    sent, done = played(ReplayPlan((file,), "departed_at", "departed_at", 10.0, null=("NA",)))
    assert [json.loads(data) for _, data, _ in sent.out] == [
        {"id": 1, "origin": "EWR", "delay": 5}, {"id": 2, "origin": "EWR", "delay": -3}, {"id": 3, "origin": "JFK", "delay": None},
    ]  # fmt: skip
    assert [round(at - 100.0, 3) for at, _, _ in sent.out] == [0.0, 5.025, 10.0]
    assert [told["departed_at"] for _, _, told in sent.out] == [
        "2013-12-01T00:00:00Z",
        "2013-12-01T00:00:50.250000Z",
        "2013-12-01T00:01:40Z",
    ]
    assert done == Played(3, reached=int(datetime(2013, 12, 1, 0, 1, 40, tzinfo=UTC).timestamp() * 1e6))
    assert rows_without_arrival(ReplayPlan((file,), "departed_at", "a")) == 1


def test_at_full_speed_nothing_waits(file: str) -> None:
    sent, _ = played(ReplayPlan((file,), "departed_at", "at", None))
    assert {at for at, _, _ in sent.out} == {100.0}
    assert "at" in sent.out[0][2]


def test_no_message_goes_out_more_than_a_tenth_of_a_second_early(tmp_path: Path) -> None:
    lines = [f"{n},{datetime.fromtimestamp(n / 50, UTC).isoformat()}" for n in range(500)]
    (tmp_path / "a.csv").write_text("\n".join(["id,at", *lines]))
    sent, _ = played(ReplayPlan((str(tmp_path / "a.csv"),), "at", "at", 1.0))
    early = [json.loads(data)["id"] / 50 - (at - 100.0) for at, data, _ in sent.out]
    assert max(early) <= 0.1 + 1e-9
    assert min(early) >= -1e-9


def test_parquet_and_json_lines(tmp_path: Path) -> None:
    at = pa.array([datetime(2013, 1, 2, tzinfo=UTC), datetime(2013, 1, 1, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"id": [1, 2], "at": at, "names": [["a"], []]}), tmp_path / "a.parquet")
    sent, _ = played(ReplayPlan((str(tmp_path / "a.parquet"),), "at", "at"))
    assert [json.loads(data) for _, data, _ in sent.out] == [{"id": 2, "names": []}, {"id": 1, "names": ["a"]}]
    lines = ['{"id": 1,  "at": "2013-01-02T00:00:00Z"}', '{"at":"2013-01-01T00:00:00+01:00", "x":{"y":1.50}}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    sent, _ = played(ReplayPlan((str(tmp_path / "a.jsonl"),), "at", "at"))
    assert [data.decode() for _, data, _ in sent.out] == lines[::-1], "as they stand"
    assert sent.out[0][2]["at"] == "2012-12-31T23:00:00Z"


def test_folders_that_look_like_partitions_add_nothing_to_a_message(tmp_path: Path) -> None:
    folder = tmp_path / "env=prod" / "id=9"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"id": [1], "at": [datetime(2013, 1, 2, tzinfo=UTC)]}), folder / "a.parquet")
    (folder / "a.csv").write_text("id,at\n1,2013-01-02T00:00:00Z\n")
    for name in ("a.parquet", "a.csv"):
        sent, _ = played(ReplayPlan((str(folder / name),), "at", "at"))
        assert [json.loads(data) for _, data, _ in sent.out] == [{"id": 1}]


def test_duplicates_and_broken_messages_are_added_and_chosen_by_the_seed(tmp_path: Path) -> None:
    lines = [f"{n},{datetime.fromtimestamp(n, UTC).isoformat()}" for n in range(2_000)]
    (tmp_path / "a.csv").write_text("\n".join(["id,at", *lines]))
    plan = ReplayPlan((str(tmp_path / "a.csv"),), "at", "at", None, duplicates=0.05, broken=0.02, seed=7)
    sent, done = played(plan)
    assert done.rows == 2_000
    assert 50 < done.duplicates < 150
    assert 15 < done.broken < 70
    ids: Counter[Any] = Counter()
    for _, data, _ in sent.out:
        try:
            ids[json.loads(data)["id"]] += 1
        except (ValueError, TypeError):
            ids["broken"] += 1
    assert ids.pop("broken") == done.broken
    assert set(ids) == set(range(2_000)), "no row is lost"
    assert sum(n - 1 for n in ids.values()) == done.duplicates
    again, _ = played(plan)
    assert again.out == sent.out
    other, _ = played(ReplayPlan(plan.files, "at", "at", None, duplicates=0.05, broken=0.02, seed=8))
    assert other.out != sent.out


def test_a_limit_takes_the_first_to_arrive(file: str) -> None:
    sent, _ = played(ReplayPlan((file,), "departed_at", "at", None, limit=2))
    assert [json.loads(data)["id"] for _, data, _ in sent.out] == [1, 2]


def test_what_is_wrong_is_said(file: str) -> None:
    with pytest.raises(SpecError, match=r"'departed' is no column .* did you mean 'departed_at'"):
        played(ReplayPlan((file,), "departed", "at", None))
    with pytest.raises(SourceError, match=r"nowhere\.csv: cannot be read"):
        played(ReplayPlan(("nowhere.csv",), "at", "at", None))
    for text in ("fast", "0x", "-1x", "nanx", "infx"):
        with pytest.raises(SpecError, match="expected a number with an x"):
            parse_speed(text)


def test_an_interruption_says_how_far_it_came(file: str) -> None:
    seen: list[Played] = []
    asked: list[float] = []
    sent = Sent()
    play(
        ReplayPlan((file,), "departed_at", "at", 1.0),
        sent,
        clock=lambda: 0.0,
        sleep=asked.append,
        watch=seen.append,
        stopped=lambda: bool(asked),
    )
    assert seen[-1].rows == 1
    assert len(sent.out) == 1


def test_a_file_into_a_topic_that_is_made(pubsub_server: PubsubServer, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub_server.address)
    topic, subscription = pubsub_server.path("topics", "played"), pubsub_server.path("subscriptions", "played")
    with pytest.raises(SinkError, match=rf"replay --to {topic}: NOT_FOUND: .* give --create"):
        publisher(topic)
    for _ in range(2):  # what is there stays
        outlet = publisher(topic, create=True, subscription=subscription)
    play(ReplayPlan((file,), "departed_at", "departed_at", None, null=("NA",)), outlet)
    assert outlet.finish() == []
    taken = pubsub_server.take(subscription, 3)
    assert [json.loads(m.message.data)["id"] for m in taken] == [1, 2, 3]
    assert taken[0].message.attributes["departed_at"] == "2013-12-01T00:00:00Z"
