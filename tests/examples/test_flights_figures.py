"""The demo's numbers against figures computed from the CSV files by plain Python: csv, zoneinfo, and nothing of ours.

The files are those of `make demo` plus one day delivered a second time (the real data holds no flight twice).
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest

from tests.conftest import ROOT, Run

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "flights"
NEW_YORK = ZoneInfo("America/New_York")
REDELIVERED = (6, 30)
Row = dict[str, str]


# --- figures, independently ---------------------------------------------------------------------------------------------


def records(folder: Path) -> Iterator[Row]:
    for path in sorted(folder.glob("flights*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


def departure(row: Row) -> datetime:
    """The scheduled departure as an instant: the clock of New York says year, month, day, hour, minute."""
    local = datetime(*(int(row[k]) for k in ("year", "month", "day", "hour", "minute")), tzinfo=NEW_YORK)  # type: ignore[arg-type]
    return local.astimezone(UTC)


def failing_checks(row: Row) -> tuple[str, ...]:
    """The dead-lettering checks that the row fails; an NA passes, as NULL does in SQL."""
    failing = []
    if row["dep_delay"] != "NA" and not -30 <= int(row["dep_delay"]) <= 720:
        failing.append("plausible_delay")
    if row["air_time"] != "NA" and not 60 <= int(row["distance"]) / (int(row["air_time"]) / 60) <= 640:
        failing.append("plausible_speed")
    return tuple(failing)


@dataclass(frozen=True)
class Figures:
    """What must come out, from the CSV files alone."""

    read: int
    filtered: int
    dead: Counter[tuple[str, ...]]  # by the checks that fail together
    duplicates: int
    written: dict[tuple[str, str, str, datetime], Row]  # by key
    unknown_destinations_before_deduplication: int


def compute(folder: Path) -> Figures:
    airports = {row["faa"] for row in table(folder / "airports.csv")}
    read = filtered = duplicates = unknown = 0
    dead: Counter[tuple[str, ...]] = Counter()
    written: dict[tuple[str, str, str, datetime], Row] = {}
    for row in records(folder):
        read += 1
        if row["dep_time"] == "NA":
            filtered += 1
            continue
        failing = failing_checks(row)
        if failing:
            dead[failing] += 1
            continue
        unknown += row["dest"] not in airports
        key = (row["carrier"], row["flight"], row["origin"], departure(row))
        duplicates += key in written
        written[key] = row
    return Figures(read, filtered, dead, duplicates, written, unknown)


def table(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- the job --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One run of the example in a folder of its own, and what it wrote."""

    folder: Path
    results: dict[str, Any]

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of a query over the files that were written, read by DuckDB without our package."""
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            for name in ("flights", "delays_by_hour", "airline_days", "dead_letters"):
                files = self.folder / "lake" / name / "**" / "*.parquet"
                connection.execute(f"CREATE VIEW {name} AS FROM read_parquet('{files}', union_by_name = true, hive_partitioning = true)")
            return connection.execute(query).fetchall()


def run(beam_pipelines: Run, folder: Path) -> Job:
    done = beam_pipelines("run", folder / "pipeline.yaml", "--mode", "batch", "--json")
    return Job(folder, json.loads(done.stdout))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flights")
    shutil.copy(EXAMPLE / "pipeline.yaml", folder)
    month, day = REDELIVERED
    command = [sys.executable, EXAMPLE / "prepare.py", folder / "data", "--redeliver", f"{month}-{day}"]
    subprocess.run(command, check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def figures(folder: Path) -> Figures:
    return compute(folder / "data")


@pytest.fixture(scope="module")
def job(beam_pipelines: Run, folder: Path) -> Job:
    return run(beam_pipelines, folder)


# --- the data is what we say it is ---------------------------------------------------------------------------------------


def test_the_files_are_the_real_flights_of_2013(folder: Path) -> None:
    airports = {row["faa"] for row in table(folder / "data" / "airports.csv")}
    rows = [row for path in sorted((folder / "data").glob("flights-2013-??.csv")) for row in table(path)]
    assert len(rows) == 336_776
    assert sum(row["dep_time"] == "NA" for row in rows) == 8_255
    assert sum(row["dest"] not in airports for row in rows) == 7_602


# --- every row is accounted for --------------------------------------------------------------------------------------------


def test_the_ledger_has_the_figures_of_the_files(job: Job, figures: Figures) -> None:
    assert job.results["status"] == "success"
    assert job.results["failures"] == []
    assert doors(job.results) == {
        "read": figures.read,
        "written": len(figures.written),
        "dead": figures.dead.total(),
        "duplicate": figures.duplicates,
        "filtered": figures.filtered,
    }


def test_the_ledger_balances_for_each_file(job: Job, folder: Path) -> None:
    lines = [line for line in job.results["ledger"] if line["source"]]
    rows = {path.name: sum(1 for _ in path.open("rb")) - 1 for path in (folder / "data").glob("flights*.csv")}
    assert {Path(line["source"]).name: line["read"] for line in lines} == rows
    for line in lines:
        found = doors({**job.results, "ledger": [line]})
        assert found.pop("read") == sum(found.values())


def doors(results: dict[str, Any]) -> dict[str, int]:
    """How many rows were read, and by which door they left, over all sources."""
    rows = next(output["name"] for output in results["outputs"] if output["of"] == "rows")
    total: Counter[str] = Counter()
    for line in results["ledger"]:
        total.update({door: line[door] for door in ("read", "dead", "duplicate", "filtered")}, written=line["written"].get(rows, 0))
    return dict(total)


def test_the_figures_are_not_trivial(figures: Figures) -> None:
    assert figures.filtered > 8_255
    assert figures.duplicates > 800
    assert set(figures.dead) >= {("plausible_delay",), ("plausible_speed",)}
    assert figures.unknown_destinations_before_deduplication > 7_000


def test_dead_letters_are_counted_by_reason_and_by_failing_checks(job: Job, figures: Figures) -> None:
    found = job.sql(
        "SELECT reason, stage, list_sort(list_transform(failures, lambda f: f.name)) AS names, count(*) FROM dead_letters GROUP BY ALL"
    )
    assert {(reason, stage) for reason, stage, _, _ in found} == {("CHECK", "validate")}
    assert job.results["dead_letters"] == {"validate:CHECK": figures.dead.total()}
    assert {tuple(names): count for _, _, names, count in found} == dict(figures.dead)


def test_a_dead_letter_holds_the_line_of_the_file(job: Job) -> None:
    for source, position, raw in job.sql("SELECT source, position, raw FROM dead_letters"):
        with Path(source.removeprefix("file://")).open("rb") as file:
            file.seek(position)
            assert file.read(len(raw)) == raw
            assert file.read(1) in (b"\n", b"\r", b"")


def test_check_results_count_what_fails(job: Job, figures: Figures) -> None:
    checks = {check["name"]: check for check in job.results["checks"]}
    for name in ("plausible_delay", "plausible_speed"):
        assert checks[name]["failing"] == sum(count for failing, count in figures.dead.items() if name in failing)
    assert checks["known_destination"]["failing"] == figures.unknown_destinations_before_deduplication
    for name in ("known_airline", "utc_hour_agrees", "one_row_per_flight"):
        assert checks[name]["failing"] == 0


def test_unknown_destinations_are_written_without_a_name(job: Job, figures: Figures, folder: Path) -> None:
    airports = {row["faa"]: row["name"] for row in table(folder / "data" / "airports.csv")}
    expected = Counter(airports.get(row["dest"]) for row in figures.written.values())
    assert dict(job.sql("SELECT dest_name, count(*) FROM flights GROUP BY ALL")) == dict(expected)


# --- the rows ---------------------------------------------------------------------------------------------------------------


def test_each_flight_is_written_once_with_its_values(job: Job, figures: Figures) -> None:
    columns = "carrier, flight, origin, scheduled_departure, dest, tailnum, dep_delay, air_time, distance"
    found = {tuple(row[:4]): row[4:] for row in job.sql(f"SELECT {columns} FROM flights")}
    assert len(found) == len(figures.written) == job.sql("SELECT count(*) FROM flights")[0][0]

    def number(text: str) -> int | None:
        return None if text == "NA" else int(text)

    for (carrier, flight, origin, instant), row in figures.written.items():
        tail = None if row["tailnum"] == "NA" else row["tailnum"]
        expected = (row["dest"], tail, number(row["dep_delay"]), number(row["air_time"]), int(row["distance"]))
        assert found[carrier, int(flight), origin, instant] == expected


def test_partitions_are_utc_days(job: Job, figures: Figures) -> None:
    days = Counter(instant.date() for *_, instant in figures.written)
    parts: Counter[date] = Counter()
    for name, count in job.sql(
        "SELECT filename, count(*) FROM read_parquet('%s', filename = true) GROUP BY ALL" % (job.folder / "lake/flights/**/*.parquet")
    ):
        texts = [part.partition("=")[2] for part in Path(name).parts if "=" in part]
        parts[date.fromisoformat(texts[-1])] += count
    assert parts == days


# --- the aggregates ---------------------------------------------------------------------------------------------------------


def test_delays_by_hour_and_origin_are_exact(job: Job, figures: Figures) -> None:
    delays: dict[tuple[str, datetime], list[int]] = defaultdict(list)
    for (_, _, origin, instant), row in figures.written.items():
        delays[origin, instant.replace(minute=0)].append(int(row["dep_delay"]))
    found = job.sql("SELECT origin, _window_start, _window_end, flights, mean_delay, worst_delay, delayed FROM delays_by_hour")
    assert len(found) == len(delays)
    for origin, start, end, flights, mean, worst, delayed in found:
        of_window = delays[origin, start]
        assert end - start == timedelta(hours=1)
        assert (flights, worst, delayed) == (len(of_window), max(of_window), sum(d > 15 for d in of_window))
        assert math.isclose(mean, fmean(of_window), rel_tol=1e-12, abs_tol=1e-12)


@pytest.mark.parametrize(("day", "hours", "offset"), [(date(2013, 3, 10), 23, -4), (date(2013, 11, 3), 25, -5)])
def test_days_on_which_the_clock_changes_have_their_own_length(job: Job, figures: Figures, day: date, hours: int, offset: int) -> None:
    start = datetime(day.year, day.month, day.day, tzinfo=NEW_YORK).astimezone(UTC)
    expected = Counter(key[0] for key, row in figures.written.items() if (int(row["month"]), int(row["day"])) == (day.month, day.day))
    rows = job.sql("SELECT carrier, _window_start::TIMESTAMPTZ, _window_end::TIMESTAMPTZ, flights FROM airline_days")
    of_day = [(carrier, end, flights) for carrier, begin, end, flights in rows if begin == start]
    assert {end - start for _, end, _ in of_day} == {timedelta(hours=hours)}
    assert {carrier: flights for carrier, _, flights in of_day} == dict(expected)
    # The first flights leave at five in the morning, after the change: their UTC hour shows the new offset.
    first = job.sql(f"SELECT min(scheduled_departure), min(hour) FROM flights WHERE month = {day.month} AND day = {day.day}")[0]
    assert first[0].astimezone(UTC).hour == first[1] - offset


def test_calendar_days_hold_every_flight_and_its_mean(job: Job, figures: Figures) -> None:
    delays: dict[tuple[str, date], list[int]] = defaultdict(list)
    for (carrier, *_), row in figures.written.items():
        delays[carrier, date(int(row["year"]), int(row["month"]), int(row["day"]))].append(int(row["dep_delay"]))
    found = job.sql("SELECT carrier, _window_start::TIMESTAMPTZ, flights, mean_delay FROM airline_days")
    assert len(found) == len(delays)
    for carrier, start, flights, mean in found:
        of_day = delays[carrier, start.astimezone(NEW_YORK).date()]
        assert flights == len(of_day)
        assert math.isclose(mean, fmean(of_day), rel_tol=1e-9, abs_tol=1e-9)


# --- again --------------------------------------------------------------------------------------------------------------------


def test_a_second_run_changes_nothing(beam_pipelines: Run, job: Job) -> None:
    content = """
        SELECT '{0}', count(*), sum(hash(r)::HUGEINT) FROM (SELECT COLUMNS(lambda c: c NOT IN ('run_id', '_run_id')) FROM {0}) r
    """
    query = " UNION ALL ".join(content.format(name) for name in ("flights", "delays_by_hour", "airline_days", "dead_letters"))
    before = sorted(job.sql(query))
    again = run(beam_pipelines, job.folder)
    assert sorted(again.sql(query)) == before
    assert doors(again.results) == doors(job.results)
