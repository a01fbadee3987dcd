"""A run over a range: exactly what a run over everything has there, and nothing else changes."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.errors import SpecError
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.spec.load import LoadedSpec, load_spec
from beam_pipelines.spec.ranges import parse_range

SPEC = """
spec: 1
pipeline: ranged
contract:
  key: [id]
  event_time: at
  columns:
    id: {type: int32, required: true}
    at: {type: timestamp}
    v:  {type: int32, min: 0}
sources: {batch: [{files: "in/*.jsonl", format: json}]}
deduplicate: {within: 6h, keep: newest, order_by: v}
aggregates:
  hourly:  {windowing: {type: fixed, size: 1h}, measures: {n: count(), total: sum(v)}}
  sliding: {windowing: {type: sliding, size: 3h, period: 1h}, measures: {n: count(), most: max(v)}}
  bursts:  {windowing: {type: sessions, gap: 50m, max_length: 4h}, measures: {n: count(), total: sum(v)}}
  daily:   {windowing: {type: calendar, unit: day, time_zone: America/New_York}, measures: {n: count()}}
sinks:
  - {from: rows,    parquet: {path: lake/rows,    partition_by: [day(at)]}}
  - {from: hourly,  parquet: {path: lake/hourly,  partition_by: [day(_window_start)]}}
  - {from: sliding, parquet: {path: lake/sliding, partition_by: [day(_window_start)]}}
  - {from: bursts,  parquet: {path: lake/bursts,  partition_by: [day(_window_start)]}}
  - {from: daily,   parquet: {path: lake/daily,   partition_by: [day(_window_start)]}}
  - {from: dead_letters, parquet: {path: lake/dead_letters}}
"""
TWO_OUTPUTS = "".join(line for line in SPEC.splitlines(keepends=True) if not re.search("sliding|bursts|daily", line))
START = datetime(2013, 12, 1, tzinfo=UTC)
DAY = 86_400_000_000
DAYS = 4


def at(minutes: int) -> str:
    return (START + timedelta(minutes=minutes)).isoformat()


def day_range(first: int, last: int) -> Range:
    zero = int(START.timestamp()) * 1_000_000
    return Range(zero + first * DAY, zero + last * DAY)


def make(folder: Path, files: list[list[Any]], spec: str = SPEC) -> LoadedSpec:
    (folder / "in").mkdir(parents=True, exist_ok=True)
    (folder / "pipeline.yaml").write_text(spec)
    for number, records in enumerate(files):
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path, text = folder / "in" / f"{number}.jsonl", "".join(line + "\n" for line in lines)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    return load_spec(folder / "pipeline.yaml")


def go(loaded: LoadedSpec, where: Range | None = None, **call: Any) -> RunResults:
    done = run_batch(loaded, Call(range=where, **call))
    assert done.status == "success", done.failures
    return done


def content(loaded: LoadedSpec, *, dated: bool = False) -> dict[str, list[str]]:
    """All outputs, without what names the run and the folder; `dated`: without rows that have no event time."""
    connection = open_tables(loaded.state)
    found = {}
    for name in ("rows", *loaded.spec.aggregates, "dead_letters"):
        rows = [row for row in ask(connection, f"FROM {name}").to_pylist() if not dated or name != "rows" or row.get("at") is not None]
        keep = [
            {k: Path(str(v)).name if k in ("_source", "source") else v for k, v in row.items() if k not in ("_run_id", "run_id")}
            for row in rows
        ]
        found[name] = sorted(str(row) for row in keep if set(row) != {"nothing"})
    return found


times = st.integers(-60, DAYS * 1440 + 60).map(at)
near_midnight = st.builds(lambda day, off: at(day * 1440 + off), st.integers(0, DAYS), st.integers(-200, 200))
records = st.fixed_dictionaries(
    {"id": st.integers(0, 4), "at": near_midnight | near_midnight | times | st.sampled_from([None, "x"])},
    optional={"v": st.integers(-1, 6)},
)
lines = records | records | records | st.just("nonsense")


@pytest.mark.slow
@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(lines, min_size=1, max_size=40), min_size=1, max_size=3))
def test_ranges_put_together_are_a_run_over_everything(tmp_path_factory: pytest.TempPathFactory, files: list[list[Any]]) -> None:
    whole, parts = make(tmp_path_factory.mktemp("whole"), files), make(tmp_path_factory.mktemp("parts"), files)
    go(whole)
    for first, last in [(-2, 1), (2, 3), (1, 2), (3, DAYS + 2)]:
        go(parts, day_range(first, last))
    assert content(parts, dated=True) == content(whole, dated=True)
    before = content(parts)
    go(parts, day_range(1, 2))
    assert content(parts) == before


def row(id_: int, minutes: int, v: int | None = 1) -> dict[str, Any]:
    return {"id": id_, "at": at(minutes), "v": v}


def test_it_reads_over_the_edges_and_writes_only_the_range(tmp_path: Path) -> None:
    """A better copy after midnight, a session that goes over it, a letter on either side."""
    midnight = 1440
    loaded = make(tmp_path, [[
        row(1, midnight - 10, 1), row(1, midnight + 10, 2),  # one copy on either side: the newer stays
        row(2, midnight - 20), row(3, midnight + 20),  # with these one session
        row(4, midnight - 5, -1), row(5, midnight + 5, -1),  # letters
        row(6, 3 * 1440),  # far away
    ]])  # fmt: skip
    done = go(loaded, day_range(0, 1))
    connection = open_tables(loaded.state)
    assert connection.execute("SELECT id FROM rows ORDER BY id").fetchall() == [(2,)]
    assert connection.execute("SELECT n FROM bursts").fetchall() == [(3,)]
    assert connection.execute("SELECT sum(n) FROM hourly").fetchall() == [(1,)]
    assert connection.execute("SELECT count(*) FROM dead_letters").fetchall() == [(1,)]
    (line,) = [line for line in done.ledger if line.source]
    assert (line.read, line.written["rows"], line.dead, line.duplicate, line.outside) == (7, 1, 1, 1, 4)
    assert done.failing_rows == {"v.min": 1}


def test_what_lay_there_and_no_longer_does_is_gone_and_the_rest_stays(tmp_path: Path) -> None:
    loaded = make(tmp_path, [[row(1, 60), row(2, 1440 + 60), row(3, 2 * 1440)], [row(4, 120, -1)]], TWO_OUTPUTS)
    go(loaded)
    make(tmp_path, [[row(2, 1440 + 61), row(9, 2 * 1440)], []], TWO_OUTPUTS)
    go(loaded, day_range(0, 2))
    connection = open_tables(loaded.state)
    assert connection.execute("SELECT id, \"at\" = '2013-12-02T01:01:00Z' FROM rows ORDER BY id").fetchall() == [(2, True), (3, False)]
    assert connection.execute("SELECT count(*) FROM dead_letters").fetchall() == [(0,)]  # its file was read again, and is empty


def test_a_letter_is_superseded_where_its_record_was_read_again(tmp_path: Path) -> None:
    loaded = make(tmp_path, [[row(1, 60, -1), row(2, 1440 + 60, -1), "nonsense"]], TWO_OUTPUTS)
    go(loaded)
    make(tmp_path, [[row(1, 60, 1), row(2, 1440 + 60, 1), "repaired"]], TWO_OUTPUTS)
    go(loaded, day_range(0, 1))
    found = open_tables(loaded.state).execute(
        "SELECT CASE WHEN event_time IS NULL THEN decode(raw) ELSE event_time::TEXT END FROM dead_letters ORDER BY 1"
    )
    assert [text for (text,) in found.fetchall()] == ["2013-12-02 01:00:00+00", "repaired"]
    go(loaded, day_range(1, 2))
    go(loaded)
    assert open_tables(loaded.state).execute("SELECT count(*) FROM dead_letters").fetchall() == [(1,)]


def test_an_empty_range_of_data_commits_and_is_authoritative(tmp_path: Path) -> None:
    loaded = make(tmp_path, [[row(1, 60)]])
    go(loaded, day_range(2, 3))
    assert open_tables(loaded.state).execute("SELECT output, count(*) FROM ranges GROUP BY ALL ORDER BY ALL").fetchall() == [
        ("bursts", 1), ("daily", 1), ("hourly", 1), ("rows", 1), ("sliding", 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        ("2013-12-01", "2013-12-01", "the range is empty"),
        ("2013-12-02", "2013-12-01", "the range is reversed"),
        ("2013-12-01", None, "--from is given alone; expected both"),
        ("yesterday", "2013-12-01", "--from 'yesterday': is no date or time"),
        ("2013-12-01T06:00", "2013-12-02", "the nearest range that does: --from 2013-12-01T00:00:00Z --to 2013-12-02T00:00:00Z."),
    ],
)
def test_a_wrong_range_is_one_clear_error(tmp_path: Path, start: str | None, end: str | None, said: str) -> None:
    loaded = make(tmp_path, [[]])
    with pytest.raises(SpecError) as error:
        parse_range(loaded.spec, start, end)
    assert said.lower() in f"{error.value} {error.value.hint}".lower()


def test_bare_dates_are_midnight_in_the_specs_time_zone(tmp_path: Path) -> None:
    loaded = make(
        tmp_path, [[]], SPEC.replace("pipeline: ranged", "pipeline: ranged\ntime_zone: America/New_York").replace("day(", "hour(")
    )
    assert parse_range(loaded.spec, "2013-11-03", "2013-11-04") == parse_range(loaded.spec, "2013-11-03T04:00Z", "2013-11-04T05:00Z")
    whole_days = make(tmp_path, [[]], SPEC.replace("pipeline: ranged", "pipeline: ranged\ntime_zone: America/New_York"))
    with pytest.raises(SpecError) as error:
        parse_range(whole_days.spec, "2013-12-01", "2013-12-08")
    assert "--from 2013-12-01T00:00:00Z --to 2013-12-09T00:00:00Z" in str(error.value.hint)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lake/rows,    partition_by: [day(at)]", "lake/rows", "sinks[0] (from rows) is not partitioned by at"),
        (
            "partition_by: [day(_window_start)]}}\n  - {from: sliding",
            "replace: partitions}}\n  - {from: sliding",
            "(from hourly) is not partitioned",
        ),
        ("parquet: {path: lake/dead_letters}", "jsonl: {path: lake/dead.jsonl}", "is a text file"),
        ("event_time: at", "event_time: at\n  allowed_skew: 0s", ""),
        ("lake/rows,    partition_by: [day(at)]", "lake/rows, replace: all, partition_by: [day(at)]", "replace: all"),
    ],
)
def test_outputs_that_cannot_be_replaced_in_part_are_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in SPEC
    loaded = make(tmp_path, [[]], SPEC.replace(old, new))
    if not said:
        assert parse_range(loaded.spec, "2013-12-01", "2013-12-02") == day_range(0, 1)
        return
    with pytest.raises(SpecError, match=said.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[")):
        parse_range(loaded.spec, "2013-12-01", "2013-12-02")


@pytest.mark.slow
def test_a_key_that_moves_to_another_partition_leaves_a_tombstone_in_the_old_one(tmp_path: Path) -> None:
    midnight = 1440
    files: list[list[Any]] = [[row(1, midnight - 60, 1), row(2, midnight - 50)]]
    loaded = make(tmp_path, files, TWO_OUTPUTS)
    go(loaded, day_range(0, 1))
    files.append([row(1, midnight + 60, 2)])
    make(tmp_path, files, TWO_OUTPUTS)
    done = go(loaded, day_range(1, 2))
    ids = "SELECT id, v FROM {} ORDER BY id"
    for table in ("rows", "rows_batch"):
        assert open_tables(loaded.state).execute(ids.format(table)).fetchall() == [(1, 2), (2, 1)]
    assert [(o.name, o.rows) for o in done.outputs if o.name == "tombstones"] == [("tombstones", 1)]
    go(loaded, day_range(0, 1))
    assert open_tables(loaded.state).execute(ids.format("rows")).fetchall() == [(1, 2), (2, 1)]
    make(tmp_path, [files[0], []], TWO_OUTPUTS)  # the newer copy is gone
    go(loaded, day_range(1, 2))
    assert open_tables(loaded.state).execute(ids.format("rows")).fetchall() == [(2, 1)]  # day 0 was computed without it since
    go(loaded, day_range(0, 1))
    assert open_tables(loaded.state).execute(ids.format("rows")).fetchall() == [(1, 1), (2, 1)]


def test_a_tombstone_goes_with_the_range_that_left_it(tmp_path: Path) -> None:
    midnight = 1440
    files: list[list[Any]] = [[row(1, midnight - 60, 1)]]
    loaded = make(tmp_path, files, TWO_OUTPUTS)
    go(loaded, day_range(0, 1))
    make(tmp_path, [*files, [row(1, midnight + 60, 2)]], TWO_OUTPUTS)
    go(loaded, day_range(1, 2))
    make(tmp_path, [*files, []], TWO_OUTPUTS)
    go(loaded, day_range(1, 2))
    assert open_tables(loaded.state).execute("SELECT id, v FROM rows").fetchall() == [(1, 1)]
