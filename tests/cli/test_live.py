"""What is shown while a stream runs."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines import metrics
from beam_pipelines.cli.live import Live
from beam_pipelines.sources.pubsub_pulling import PullStatus
from beam_pipelines.spec.load import load_spec
from beam_pipelines.spec.models import PipelineSpec

SPEC = """
spec: 1
pipeline: clicks
contract: {key: [id], event_time: at, columns: {id: {type: int64}, at: {type: timestamp}}}
sources: {stream: [{pubsub: projects/demo-project/subscriptions/clicks, format: json}]}
aggregates: {by_hour: {windowing: {type: fixed, size: 1h}, measures: {n: count()}}}
sinks: [{from: rows, parquet: {path: lake/rows}}, {from: by_hour, parquet: {path: lake/by_hour}}]
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def spec(tmp_path: Path) -> PipelineSpec:
    (tmp_path / "spec.yaml").write_text(SPEC, "utf-8")
    return load_spec(tmp_path / "spec.yaml").spec


@pytest.fixture(autouse=True)
def counters() -> Iterator[None]:
    metrics.reset()
    yield
    metrics.reset()


def test_elsewhere_than_on_a_terminal_it_is_a_line_per_interval_with_rates(spec: PipelineSpec) -> None:
    out, clock = io.StringIO(), Clock()
    live = Live(spec, out, clock)
    live()
    metrics.count("messages_pulled", 5_000)
    metrics.count("rows_written", 4_000)
    metrics.count("by_hour_written", 3)
    clock.s += 1.0
    live()  # too early for another line
    clock.s += 4.0
    live()
    first, second = out.getvalue().splitlines()
    assert first.endswith(" nothing yet; starting")
    assert "1,000/s in, 800/s out" in second
    assert "5,000 pulled, 4,000 written, 3 by_hour panes" in second


def test_on_a_terminal_the_table_is_drawn_over_itself(spec: PipelineSpec) -> None:
    out, clock = Terminal(), Clock()
    live = Live(spec, out, clock)
    live()
    lines = out.getvalue().count("\n")
    clock.s += 1.0
    metrics.count("rows_dead", 7)
    live()
    redrawn = out.getvalue().split(f"\x1b[{lines}F\x1b[J")
    assert len(redrawn) == 2
    assert [line.split() for line in redrawn[1].splitlines() if line.startswith("dead")] == [["dead", "7", "7/s"]]


def screen(written: str) -> list[str]:
    """What a terminal shows of it: the cursor goes up n lines, and what is below is erased."""
    shown: list[str] = []
    for n, text in re.findall(r"(?:\x1b\[(\d+)F\x1b\[J)?([^\x1b]*)", written):
        shown = shown[: len(shown) - int(n or 0)] + text.splitlines()
    return shown


def standing(name: str, **more: Any) -> PullStatus:
    return PullStatus(f"projects/demo-project/subscriptions/{name}", **more)


def test_a_line_that_would_wrap_is_cut_so_that_the_table_stays_in_its_place(spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out, clock = Terminal(), Clock()
    states = (standing("clicks", outage="no answer " * 50), standing("views", held=3, oldest_unacked_s=2.5))
    live = Live(spec, out, clock, statuses=lambda: states)
    live()
    clock.s += 1.0
    live()
    lines = screen(out.getvalue())
    assert len(lines) == len(set(lines))
    assert max(map(len, lines)) < 60
    assert [line.partition(":")[0] for line in lines[-2:]] == ["clicks", "views"]
    assert lines[-1] == "views: 3 held (oldest 2 s)"


def test_a_sentence_stays_above_the_table(spec: PipelineSpec) -> None:
    out, clock = Terminal(), Clock()
    live = Live(spec, out, clock)
    live.say("stream clicks: start 1")
    live()
    live.say("draining")
    live()  # drawn anew at once
    metrics.count("messages_acked", 2)
    live.end()
    lines = screen(out.getvalue())
    assert lines[:2] == ["stream clicks: start 1", "draining"]
    assert [line for line in lines if line.startswith("acknowledged")] == [f"{'acknowledged':20}{2:14}{'-':>14}"]
    assert lines[-1] == "ended"
    assert len(lines) == len(set(lines))


def test_what_has_come_to_an_end_is_said_with_all_that_was_acknowledged(spec: PipelineSpec) -> None:
    out, clock = io.StringIO(), Clock()
    live = Live(spec, out, clock)
    live()
    metrics.count("messages_acked", 2)
    clock.s += 1.0
    live.end()
    assert out.getvalue().splitlines()[-1].endswith("2 acknowledged; ended")


@pytest.mark.parametrize(
    ("behind_s", "says"), [(0, "0s"), (59, "59s"), (3_725, "1h2m"), (86_400 * 998 + 66_205, "998d18h"), (86_401, "1d")]
)
def test_a_lag_is_said_in_two_units(spec: PipelineSpec, behind_s: int, says: str) -> None:
    out = io.StringIO()
    Live(spec, out, Clock(), lambda: 1.7e9 + behind_s, lambda: (standing("clicks", watermark_micros=1_700_000_000_000_000),))()
    assert out.getvalue().rstrip().endswith(f"clicks: 0 held, watermark 2023-11-14T22:13:20Z ({says} behind the clock)")
