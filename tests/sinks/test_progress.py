"""Progress: what arrived before what is written down is stored, at every moment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.testing import test_stream as streams
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from beam_pipelines import draining, durable
from beam_pipelines.sinks.progress import MOST_AHEAD, Progress
from beam_pipelines.sinks.reached import Reached, begin, starts, write_progress


@pytest.fixture(autouse=True)
def fresh() -> None:
    draining.reset()
    durable.reset()


def test_a_first_start_begins_with_nothing(tmp_path: Path) -> None:
    assert begin(str(tmp_path), 1) == Reached()
    assert starts(str(tmp_path)) == {1: Reached()}


def test_a_start_goes_on_from_the_one_before_and_not_from_the_farthest(tmp_path: Path) -> None:
    write_progress(str(tmp_path), 1, Reached(100))
    assert begin(str(tmp_path), 2).watermark_micros == 100
    write_progress(str(tmp_path), 1, Reached(900))  # was taken over, and lives on for a moment
    write_progress(str(tmp_path), 2, Reached(200, 100))
    assert begin(str(tmp_path), 3).watermark_micros == 200


def test_a_start_ignores_what_later_ones_and_others_wrote(tmp_path: Path) -> None:
    write_progress(str(tmp_path), 5, Reached(500))
    (tmp_path / "stream" / "progress" / "notes.json").write_text("?")
    assert begin(str(tmp_path), 3) == Reached()


def seconds(*watermarks: int) -> streams.TestStream:
    """Something stored at each watermark, in seconds, and then the next one."""
    stream = streams.TestStream()
    for at in watermarks:
        stream = stream.add_elements([TimestampedValue("stored", Timestamp(at))]).advance_watermark_to(Timestamp(at + 10))
    return stream


@dataclass
class Told:
    """What several processes say of what is under way."""

    through_ms: int | None

    def heed(self) -> None: ...

    def behind(self, watermark_micros: int) -> int | None:
        assert watermark_micros > 1_000_000
        return self.through_ms


def run(state: Path, stream: streams.TestStream, *, began_micros: int | None = None, together: Told | None = None) -> Reached | None:
    write_progress(str(state), 1, Reached(began_micros))
    with beam.Pipeline(BundleBasedDirectRunner(), options=PipelineOptions(["--streaming"])) as pipeline:
        stored = pipeline | stream
        (stored,) | Progress(str(state), 1, began_micros=began_micros, together=together)
    return starts(str(state)).get(1)


def test_what_is_written_down_is_never_ahead_of_the_watermark(tmp_path: Path) -> None:
    reached = run(tmp_path, seconds(1, 20, 40))
    assert reached is not None
    assert reached.watermark_micros is not None
    assert 40_000_000 < reached.watermark_micros <= 50_000_000


def test_windows_that_are_shown_later_hold_it_back(tmp_path: Path) -> None:
    durable.owe(timer_micros=10**18, due_micros=15_000_000)
    reached = run(tmp_path, seconds(1, 20, 40))
    assert reached is not None
    assert reached.watermark_micros == 15_000_000


def test_a_start_never_says_less_than_it_began_with(tmp_path: Path) -> None:
    reached = run(tmp_path, seconds(1), began_micros=30_000_000)
    assert reached == Reached(30_000_000)


def test_a_timer_that_fires_because_the_stream_ends_says_nothing(tmp_path: Path) -> None:
    draining.request()
    draining.end(5_000_000)
    assert run(tmp_path, seconds(20)) == Reached()


def test_of_several_processes_it_says_what_all_have_stored_and_reckons_with_timers_that_are_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beam_pipelines.sinks.progress._EVERY_S", 0.0)
    at_s = MOST_AHEAD // 1_000_000
    reached = run(tmp_path, seconds(at_s, 2 * at_s), together=Told(7))
    assert reached is not None
    assert reached.watermark_micros is not None
    assert (at_s * 1_000_000 < reached.watermark_micros <= (at_s + 10) * 1_000_000, reached.through_ms) == (True, 7)
    assert run(tmp_path, seconds(at_s, 2 * at_s), began_micros=5, together=Told(None)) == Reached(5), "not all of them have been heard"
