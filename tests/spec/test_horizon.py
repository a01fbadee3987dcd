"""The horizon: no row that an open window or a copy still needs arrived before it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.spec.horizon import compared_late, horizon
from beam_pipelines.spec.load import load_spec
from beam_pipelines.spec.models import PipelineSpec

H = 3_600_000_000
S = 1_000_000


def spec(tmp_path: Path, *windowings: str, deduplicate: str = "", contract: str = "") -> PipelineSpec:
    aggregates = "".join(f"  a{n}: {{windowing: {w}, measures: {{n: count()}}}}\n" for n, w in enumerate(windowings))
    (tmp_path / "p.yaml").write_text(f"""
spec: 1
pipeline: p
time_zone: America/New_York
contract:
  key: [id]
  event_time: at
  {contract}
  columns: {{id: {{type: int64, required: true}}, at: {{type: timestamp, required: true}}}}
sources:
  stream: [{{pubsub: projects/demo-project/subscriptions/s, format: json}}]
{f"deduplicate: {deduplicate}" if deduplicate else ""}
{"aggregates:" if windowings else ""}
{aggregates}
sinks: [{{from: rows, parquet: {{path: lake}}}}]
""")
    return load_spec(tmp_path / "p.yaml").spec


@pytest.mark.parametrize(
    ("windowing", "expected"),
    [
        ("{type: fixed, size: 1h, allowed_lateness: 6h}", 7 * H),
        ("{type: fixed, size: 1h, watermark_delay: 2h, allowed_lateness: 2h}", 3 * H),
        ("{type: fixed, size: 1h}", H),
        ("{type: sliding, size: 2h, period: 30m, allowed_lateness: 1h}", 3 * H),
        ("{type: sessions, gap: 1h, max_length: 5h, allowed_lateness: 1h}", 2 * (5 + 1) * H + H),
        ("{type: calendar, unit: hour, allowed_lateness: 1h}", 2 * H),
        ("{type: calendar, unit: day, allowed_lateness: 1h}", 26 * H),
        ("{type: calendar, unit: week}", (7 * 24 + 1) * H),
        ("{type: calendar, unit: month}", (31 * 24 + 1) * H),
        ("{type: calendar, unit: quarter}", (92 * 24 + 1) * H),
        ("{type: calendar, unit: year}", (366 * 24 + 1) * H),
    ],
)  # fmt: skip
def test_a_row_is_needed_until_its_window_closes(tmp_path: Path, windowing: str, expected: int) -> None:
    found = spec(tmp_path, windowing)
    assert horizon(found) == expected + found.contract.allowed_skew


def test_the_longest_of_all_windows_and_copies_counts(tmp_path: Path) -> None:
    short, long = "{type: fixed, size: 10s}", "{type: fixed, size: 3h}"
    skew = spec(tmp_path).contract.allowed_skew
    assert horizon(spec(tmp_path)) == skew
    assert horizon(spec(tmp_path, short, long)) == 3 * H + skew
    assert horizon(spec(tmp_path, short, deduplicate="{within: 2h}")) == 2 * H + 2 * H + skew
    assert horizon(spec(tmp_path, long, deduplicate="{within: 1h}")) == 1 * H + 3 * H + skew


def test_how_far_event_time_may_lie_ahead_is_part_of_it(tmp_path: Path) -> None:
    skew = spec(tmp_path).contract.allowed_skew
    assert skew > 0
    more = spec(tmp_path, "{type: fixed, size: 1h}", contract="allowed_skew: 3h")
    assert horizon(more) == 4 * H


def test_rows_are_compared_at_least_as_late_as_a_window_takes_them(tmp_path: Path) -> None:
    assert compared_late(spec(tmp_path)) == 0
    assert compared_late(spec(tmp_path, "{type: fixed, size: 1h, allowed_lateness: 6h}", deduplicate="{within: 2h}")) == 7 * H
    assert compared_late(spec(tmp_path, "{type: fixed, size: 1h}", deduplicate="{within: 2h}")) == 2 * H


DAYS = {"day": 1, "week": 7, "month": 31, "quarter": 92, "year": 366}


@given(st.datetimes(datetime(1990, 1, 1), datetime(2037, 1, 1)), st.sampled_from(sorted(DAYS)))
def test_no_calendar_window_is_longer(at: datetime, unit: str) -> None:
    from beam_pipelines.spec.horizon import _LONGEST

    zone = ZoneInfo("America/New_York")
    start = datetime(at.year, at.month, at.day, tzinfo=zone)
    end = (start.replace(tzinfo=None) + timedelta(days=DAYS[unit])).replace(tzinfo=zone)
    assert (end.astimezone(UTC) - start.astimezone(UTC)) <= timedelta(hours=_LONGEST[unit])
