"""A stream whose sources are in other processes, seen from the one that started it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from beam_pipelines import draining, metrics
from beam_pipelines.places import exists, write_bytes
from beam_pipelines.runners.elsewhere import Elsewhere, control_folder, forget_earlier
from beam_pipelines.sources import pubsub
from beam_pipelines.sources.pubsub_pulling import PullStatus
from beam_pipelines.sources.pubsub_reports import Report, all_ended


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    draining.reset()
    metrics.reset()
    yield
    draining.reset()
    metrics.reset()
    pubsub.close()


def say(folder: str, process: str, number: int, pulled: int, ended: int | None = None) -> None:
    told = Report(number, PullStatus(f"subscription-{number}", pulled=pulled), {"messages_pulled": pulled, "rows_written": 1}, ended)
    write_bytes(f"{folder}/{process}-{number}.json", msgspec.json.encode(told))


def test_sources_elsewhere_are_seen_as_if_they_were_here(tmp_path: Path) -> None:
    folder = control_folder(str(tmp_path), 7)
    elsewhere = Elsewhere(folder, 2)
    elsewhere()
    assert (pubsub.status(), metrics.snapshot()) == ((), {})
    say(folder, "41-a", 0, 5)
    say(folder, "42-b", 1, 7)
    elsewhere()
    assert sorted((s.subscription, s.pulled) for s in pubsub.status()) == [("subscription-0", 5), ("subscription-1", 7)]
    assert metrics.snapshot() == {"messages_pulled": 12, "rows_written": 2}
    say(folder, "41-a", 0, 6)
    elsewhere()
    assert metrics.snapshot()["messages_pulled"] == 13, "the newest report of a process counts, not all it ever said"


def test_the_stream_has_ended_when_all_its_sources_have_at_the_earliest_watermark(tmp_path: Path) -> None:
    folder = control_folder(str(tmp_path), 7)
    elsewhere = Elsewhere(folder, 2)
    say(folder, "41-a", 0, 5)
    say(folder, "41-a", 1, 5, ended=90)
    elsewhere()
    assert draining.ended_at() is None
    assert not exists(f"{folder}/drain")
    draining.request()
    elsewhere()
    assert exists(f"{folder}/drain")
    say(folder, "41-a", 0, 5, ended=70)
    elsewhere()
    assert draining.ended_at() == 70


def test_several_processes_end_when_all_of_them_can_know_where(tmp_path: Path) -> None:
    folder = control_folder(str(tmp_path), 7)
    elsewhere = Elsewhere(folder, 1, 3)

    def tell(process: str, elements: tuple[int, ...], ended: int, *, over: bool) -> None:
        told = Report(0, PullStatus("s"), {}, ended, over, elements)
        write_bytes(f"{folder}/{process}-0.json", msgspec.json.encode(told))

    tell("41-a", (2, 0), 90, over=False)
    elsewhere()
    assert not exists(f"{folder}/ended"), "element 1 is nowhere yet"
    tell("42-b", (1,), 80, over=False)
    elsewhere()
    assert (all_ended(folder), draining.ended_at()) == (80, None)
    tell("41-a", (2, 0), 90, over=True)
    elsewhere()
    assert draining.ended_at() is None
    tell("42-b", (1,), 80, over=True)
    elsewhere()
    assert draining.ended_at() == 80


def test_what_earlier_starts_said_is_forgotten(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        say(control_folder(str(tmp_path), epoch), "41-a", 0, 5)
    forget_earlier(str(tmp_path), 3)
    left = [exists(f"{control_folder(str(tmp_path), epoch)}/41-a-0.json") for epoch in (1, 2, 3)]
    assert left == [False, False, True]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"number": 0, "status": {}, "counts": {}}', b"\xff"])
def test_a_report_that_cannot_be_read_costs_one_line_and_hides_no_other(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder = control_folder(str(tmp_path), 7)
    elsewhere = Elsewhere(folder, 2)
    write_bytes(f"{folder}/40-0.json", content)
    say(folder, "41-a", 1, 5)
    for _ in range(3):
        elsewhere()
    assert [s.subscription for s in pubsub.status()] == ["subscription-1"]
    assert len([r for r in caplog.records if "40-0.json: is no report that this version reads" in r.message]) == 1
    say(folder, "40", 0, 7)
    elsewhere()
    assert len(pubsub.status()) == 2
