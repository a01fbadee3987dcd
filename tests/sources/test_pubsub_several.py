"""One subscription, several elements: in a process one of them reads, and what processes must know of one another they say by files."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from apache_beam.utils.timestamp import MAX_TIMESTAMP

from beam_pipelines import draining, durable
from beam_pipelines.errors import RunError
from beam_pipelines.places import exists, write_bytes
from beam_pipelines.sources import pubsub, pubsub_reports
from beam_pipelines.sources.pubsub_puller import NEVER
from beam_pipelines.sources.pubsub_pulling import PullSettings, PullStatus
from beam_pipelines.sources.pubsub_reports import Report, Together, all_ended, ask_to_end, in_one, reports, say_all_ended
from beam_pipelines.spec.sources import PubsubSource
from beam_pipelines.testing.broker import Broker
from tests.sources.pubsub_topic import Topic
from tests.sources.test_pubsub_puller import numbered, until


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    durable.reset()
    draining.reset()
    yield
    pubsub.close()
    draining.reset()
    durable.reset()


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as running:
        yield running


def say(folder: str, process: str, *elements: int, number: int = 0, **told: Any) -> None:
    report = Report(number, PullStatus("s"), {}, elements=elements, **told)
    write_bytes(f"{folder}/{process}-{number}.json", msgspec.json.encode(report))


def elements_of(topic: Topic, folder: str, count: int) -> list[pubsub._Unbounded]:
    read = PubsubSource(pubsub=topic.subscription, format="json", endpoint=f"http://{topic.address}")
    settings = pubsub.ReadPubsub(read, linger_s=0.0, unbroken=True, control=folder, elements=count).settings
    return [pubsub._Unbounded(settings, None, None, element) for element in range(count)]


def test_of_the_elements_in_a_process_the_first_reads_and_the_others_end_at_once(broker: Broker, tmp_path: Path) -> None:
    topic, folder = Topic(broker.address), str(tmp_path / "control")
    topic.publish(numbered(10))
    first, second = elements_of(topic, folder, 2)
    reads, ends = first.create_reader(None, None), second.create_reader(None, None)
    assert (ends.start(), ends.get_watermark()) == (False, MAX_TIMESTAMP)
    ends.get_checkpoint_mark().finalize_checkpoint()
    until(reads.start)
    assert reads.get_watermark() != MAX_TIMESTAMP
    until(lambda: [sorted(r.elements) for r in reports(folder).values()] == [[0, 1]])
    again = first.create_reader(None, reads.get_checkpoint_mark())
    assert not isinstance(again, pubsub._Nothing), "the one that reads goes on"


def test_a_drained_source_stands_still_until_all_have_ended_and_everybody_can_know_it(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub_reports, "SETTLED_S", 1.5)
    topic, folder = Topic(broker.address), str(tmp_path / "control")
    topic.publish(numbered(10))
    source, _ = elements_of(topic, folder, 2)
    reader = source.create_reader(None, None)
    until(reader.start)
    ask_to_end(folder)
    until(lambda: not reader.advance() and [r.ended_micros for r in reports(folder).values()] != [None])
    time.sleep(1.0)
    assert not reader.advance()
    assert (reader.get_watermark() == MAX_TIMESTAMP, draining.ended_at()) == (False, None)
    [report] = reports(folder).values()
    assert not report.over
    write_bytes(f"{folder}/ended", b"5")
    said = time.monotonic()
    until(lambda: draining.ended_at() == 5)
    until(lambda: not reader.advance() and reader.get_watermark() == MAX_TIMESTAMP)
    assert time.monotonic() - said > 1.5, "who judges timers has had the time to look"
    until(lambda: all(r.over for r in reports(folder).values()))


def test_a_source_that_cannot_hear_of_the_others_fails_and_does_not_read_on_deaf(broker: Broker, tmp_path: Path) -> None:
    topic, folder = Topic(broker.address), str(tmp_path / "control")
    source, _ = elements_of(topic, folder, 2)
    reader = source.create_reader(None, None)
    reader.start()
    write_bytes(f"{folder}/behind", b"no number")
    with pytest.raises(RunError, match="invalid literal"):
        until(reader.advance)


def test_what_is_under_way_is_the_least_of_all_processes_once_all_are_heard(tmp_path: Path) -> None:
    folder = str(tmp_path / "control")
    together = Together(folder, 2, 3)
    say(folder, "a", 0, 2, told_ms=900, under_way=((10, 100), (50, 300)))
    say(folder, "a", 0, 1, 2, number=1, told_ms=950)
    assert together.behind(20) is None, "element 1 of source 0 may be anywhere"
    say(folder, "b", 1, told_ms=800, under_way=((60, 200),))
    assert (together.behind(5), together.behind(20), together.behind(55), together.behind(61)) == (100, 200, 200, 800)


def test_what_the_sinks_have_is_under_way_no_more(broker: Broker, tmp_path: Path) -> None:
    topic, folder = Topic(broker.address), str(tmp_path / "control")
    source, _ = elements_of(topic, folder, 2)
    source.create_reader(None, None).start()
    durable.archiving(40)
    durable.archiving(60)
    until(lambda: [len(r.under_way) for r in reports(folder).values()] == [2])
    Together(folder, 1, 2).behind(50)
    until(lambda: [[at for at, _ in r.under_way] for r in reports(folder).values()] == [[60]])


def test_the_end_is_the_earliest_and_not_that_of_a_source_that_knows_of_no_message(tmp_path: Path) -> None:
    folder = str(tmp_path / "control")
    ends = [Report(0, PullStatus("s"), {}, at) for at in (70, NEVER, 50)]
    assert all_ended(folder) is None
    assert (say_all_ended(folder, ends), all_ended(folder)) == (50, 50)
    assert say_all_ended(folder, ends[1:2]) == NEVER


def test_a_timer_is_judged_after_a_look_that_is_no_older_than_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("beam_pipelines.sources.pubsub_reports.time.monotonic", lambda: now[0])
    folder = str(tmp_path / "control")
    together = Together(folder, 1, 2)
    together.heed()
    write_bytes(f"{folder}/ended", b"7")
    now[0] += pubsub_reports.FRESH_S / 2
    together.heed()
    assert draining.ended_at() is None
    now[0] += pubsub_reports.FRESH_S / 2
    together.heed()
    assert draining.ended_at() == 7
    assert pubsub_reports.SETTLED_S >= 2 * pubsub_reports.FRESH_S


def test_one_process_reads_the_archive_again_and_the_others_wait_for_it(tmp_path: Path) -> None:
    settings = PullSettings("s", "x", control=str(tmp_path))
    batch = pa.record_batch({"a": [1]})
    theirs, there = in_one(lambda: iter([batch]), settings, [1])(), threading.Event()

    def waits() -> None:
        assert not [rows for rows in theirs if rows.num_rows]
        there.set()

    threading.Thread(target=waits, daemon=True).start()
    assert next(in_one(lambda: iter([batch]), settings, [1])()).num_rows == 0
    assert not there.wait(0.8)
    assert list(in_one(lambda: iter([batch]), settings, [2, 0])()) == [batch]
    assert exists(f"{tmp_path}/replayed-0")
    assert there.wait(10)
