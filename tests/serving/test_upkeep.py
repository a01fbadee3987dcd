"""`compact`: nothing is lost that is not on record, nothing is on record that is not gone, and no table changes while it happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.cli.compact import layers_of
from beam_pipelines.errors import RunError, SinkError
from beam_pipelines.formats.archive import read_since, write_messages
from beam_pipelines.places import locked
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.serving.upkeep import Report, upkeep
from beam_pipelines.serving.upkeep.archive import NOT_THROUGH, UNKNOWN
from beam_pipelines.serving.upkeep.speed import STALE, TOLD, UNCOMMITTED
from beam_pipelines.sinks.claims import claim, release
from beam_pipelines.sinks.deletions import complete_since, expect_archived, read_account
from beam_pipelines.sinks.labels import places_of
from beam_pipelines.sinks.manifest import snapshots
from beam_pipelines.sinks.outputs import read_outputs
from beam_pipelines.sinks.plan import outputs_of
from beam_pipelines.sinks.reached import Reached, write_progress
from beam_pipelines.sinks.results import KeptLetters, RunResults, list_runs, metadata, write_run
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sinks.settling import plain_files
from tests.formats.archived import messages
from tests.serving.two_layers import DAY, HOUR, NOW, SOURCE, SPEC, ZERO, Pane, Row, Twin

pytestmark = pytest.mark.slow

LATER = NOW / 1e6 + 10 * 86_400  # every file of a Twin was made before
KEEP = "retention: {archive: 2d, speed: 2d}\n"


class Killed(BaseException):
    """A process that ends here."""


def twin(folder: Path, retention: str = KEEP, *, days: int = 6, committed: int = 3, archive: bool = True) -> Twin:
    """`days` of two rows, a pane and two messages each; the batch has committed the first ones, and the stream is through with all."""
    made = Twin(folder, text=SPEC + retention)
    made.know()
    for day in range(days):
        found = [Row(10 * day + i, 10 * day + i, day * DAY + i * HOUR) for i in range(2)]
        made.stream(*found)
        made.panes(Pane(day * 24))
        if archive:
            write(made, *((r.n, r.at or 0) for r in found))
    if committed:
        answer = [Row(10 * d + i, 10 * d + i, d * DAY + i * HOUR) for d in range(committed) for i in range(2)]
        made.commit(*answer, *(Pane(d * 24) for d in range(committed)), where=(0, committed))
    write_progress(made.state, 1, Reached(ZERO + (days - 1) * DAY + HOUR, None, round(LATER * 1000), ended=True))
    return made


def write(made: Twin, *found: tuple[int, int], at: float = NOW / 1e6) -> None:
    """Messages of (position, arrival after ZERO), stored at a moment of the machine's clock."""
    write_messages(messages([(n, ZERO + arrival) for n, arrival in found], SOURCE), f"{made.state}/archive", epoch=1, now=lambda: at)


def compact(made: Twin, *, now: float = LATER, kill_after: int | None = None, dry_run: bool = False, run_id: str = "compact-1") -> Report:
    run, steps = RunInfo(run_id, "twin", made.state, mode="compact"), count(1)

    def say(_: str) -> None:
        if next(steps) == kill_after:
            raise Killed

    outputs = outputs_of(made.loaded.spec, run)
    return upkeep(made.loaded, layers_of(made.loaded, run), outputs, run=run, dry_run=dry_run, now=lambda: now, say=say)


def table(made: Twin, name: str, columns: str = "*") -> list[tuple[Any, ...]]:
    found = ask(open_tables(made.state, places_of(made.loaded.spec), made.loaded.spec), f"SELECT {columns} FROM {name} ORDER BY ALL")
    return [tuple(row.values()) for row in found.to_pylist()]


def archived(made: Twin) -> list[int]:
    return sorted(n for batch in read_since(f"{made.state}/archive", -(2**62)) for n in batch.column("_position").to_pylist())


def stored(made: Twin, output: str) -> int:
    """Different rows in the files of an output's speed layer, also in those on the way out of it that are not on record yet."""
    pending = {Path(p) for p in read_account(made.state).pending}
    found = [str(p) for p in (made.folder / "lake" / f"{output}.speed").rglob("*.parquet*") if p not in pending]
    row = "_window_start, g" if output == "hourly" else "_position"
    sql = f"SELECT count(DISTINCT ({row})) FROM read_parquet({found}, hive_partitioning = false, union_by_name = true)"
    return int(duckdb.sql(sql).fetchall()[0][0]) if found else 0


def gone(made: Twin, of: str) -> int:
    return sum(d.rows for d in read_account(made.state).deleted if d.of == of)


def kept(report: Report) -> dict[tuple[str, str], int]:
    return {(k.layer, k.why): k.rows for k in report.kept}


def each_kill(run: Callable[[int], bool]) -> Iterator[int]:
    """Calls `run` with 1, 2, 3, … until it was not killed any more; True: it was killed."""
    for number in count(1):
        if not run(number):
            return
        yield number


# ── settled days ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "committed", [(), (2,), (1, 2, 6), tuple(range(1, 18, 2))], ids=["none", "one gap each side", "three gaps", "many gaps"]
)
def test_beside_committed_days_settled_ones_are_read_as_they_are(tmp_path: Path, committed: tuple[int, ...]) -> None:
    made = twin(tmp_path, "", days=18, committed=0)
    made.stream(Row(500, 500, None))
    made.stream(Row(30, 30, 3 * DAY), stored=NOW, run_id="s2")  # again, by a later start
    door(made, 41, 4 * DAY + HOUR)
    door(made, 61, 6 * DAY + HOUR)
    for number, day in enumerate(committed):
        made.commit(Row(1000 + day, 1, day * DAY), where=(day, day + 1), run_id=f"b{number}")
    before = {name: table(made, name) for name in ("rows", "rows_speed")}
    compact(made)
    output = next(o for o in read_outputs(made.state).outputs if o.of == "rows")  # type: ignore[union-attr]
    plain = plain_files(made.state, output)
    assert (len(plain.settled), plain.others) == (19, ())
    for at_once in (False, True):
        for name, rows in before.items():
            found = ask(open_tables(made.state, places_of(made.loaded.spec), at_once=at_once), f"FROM {name} ORDER BY ALL").to_pylist()
            assert [tuple(row.values()) for row in found] == rows
    assert "WINDOW" not in str(open_tables(made.state, at_once=True).execute("EXPLAIN FROM rows").fetchall()).upper()


# ── retention ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_old_and_committed_goes_and_is_on_record_and_no_table_changes(tmp_path: Path) -> None:
    made = twin(tmp_path)
    before = {name: table(made, name) for name in ("rows", "hourly")}
    report = compact(made)
    assert {name: table(made, name) for name in before} == before
    assert [(d.layer, d.of, d.rows) for d in report.deleted] == [("hourly", "panes", 3), ("rows", "rows", 6), ("s", "archive", 7)]
    assert kept(report) == {
        ("rows", UNCOMMITTED): 1
    }  # the first row of the fourth day is just older than two days before the newest message
    assert archived(made) == [31, 40, 41, 50, 51]
    assert (stored(made, "rows"), stored(made, "hourly")) == (6, 3)
    assert read_account(made.state).deleted == report.deleted
    assert compact(made, run_id="compact-2").deleted == ()


def killed_after(folder: Path, number: int) -> bool:
    """Kills a call after this step, and looks at what is left, before and after the next one. Whether it got so far."""
    made = twin(folder, "retention: {archive: 30h, speed: 1d}\n", days=3, committed=2)
    answers = {name: table(made, name) for name in ("rows", "hourly")}
    try:
        compact(made, kill_after=number)
        killed = False
    except Killed:
        killed = True
    for call in range(2):
        assert {name: table(made, name) for name in answers} == answers
        assert stored(made, "rows") + gone(made, "rows") == 6
        assert stored(made, "hourly") + gone(made, "panes") == 3
        if not call:
            compact(made, run_id="compact-2")
    ended(made)
    return killed


def ended(made: Twin) -> None:
    assert (gone(made, "rows"), gone(made, "panes"), gone(made, "archive")) == (3, 1, 2)
    assert archived(made) == [10, 11, 20, 21]
    assert not list(made.folder.rglob("*.retired"))
    assert not read_account(made.state).pending


@pytest.mark.parametrize("number", [2, 7, 10])
def test_killed_after_a_step_each_row_is_there_or_on_record_and_the_next_call_ends_it(tmp_path: Path, number: int) -> None:
    assert killed_after(tmp_path, number)


def test_killed_after_any_step(tmp_path: Path) -> None:
    assert len(list(each_kill(lambda number: killed_after(tmp_path / str(number), number)))) > 13


@pytest.mark.parametrize("number", [2, 7, 10])
def test_a_process_that_is_killed_leaves_nothing_that_stops_the_next(tmp_path: Path, number: int) -> None:
    made = twin(tmp_path, "retention: {archive: 30h, speed: 1d}\n", days=3, committed=2)
    code = f"""
import os, signal
from itertools import count
from beam_pipelines.serving.upkeep import upkeep
from beam_pipelines.cli.compact import layers_of
from beam_pipelines.sinks.plan import outputs_of
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.spec.load import load_spec
found, steps = load_spec({str(tmp_path / "pipeline.yaml")!r}), count(1)
run = RunInfo("compact-1", "twin", found.state, mode="compact")
say = lambda path: os.kill(os.getpid(), signal.SIGKILL) if next(steps) == {number} else None
upkeep(found, layers_of(found, run), outputs_of(found.spec, run), run=run, now=lambda: {LATER}, say=say)
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert stored(made, "rows") + gone(made, "rows") == 6
    compact(made, run_id="compact-2")
    ended(made)


@settings(max_examples=4, deadline=None)
@given(st.integers(1, 140), st.lists(st.integers(0, 120), min_size=1, max_size=8), st.integers(-100, 5_000))
def test_a_row_younger_than_it_is_kept_for_stays_whatever_the_machines_clock_says(
    tmp_path_factory: pytest.TempPathFactory, keep: int, hours: list[int], wrong: int
) -> None:
    made = Twin(tmp_path_factory.mktemp("t"), text=SPEC + f"retention: {{archive: {max(keep, 26)}h, speed: {keep}h}}\n")
    made.know()
    for n, hour in enumerate(hours):
        made.stream(Row(n, n, hour * HOUR))
        write(made, (n, hour * HOUR))
    made.commit(*[Row(n, n, hour * HOUR) for n, hour in enumerate(hours)], where=(0, 6))
    write_progress(made.state, 1, Reached(ZERO + max(hours) * HOUR, None, round(LATER * 1000), ended=True))
    wall = ZERO // 1_000_000 + (max(hours) + wrong) * 3600
    compact(made, now=wall)
    seen = min(max(hours), max(hours) + wrong)
    assert set(archived(made)) >= {n for n, hour in enumerate(hours) if hour >= seen - max(keep, 26)}
    left = {n for (n,) in table(made, "rows_speed", "id")} if stored(made, "rows") else set()
    assert left == {n for n, hour in enumerate(hours) if hour >= seen - keep}
    assert [n for (n,) in table(made, "rows", "id")] == list(range(len(hours)))


def test_what_no_batch_has_committed_stays_however_old(tmp_path: Path) -> None:
    made = twin(tmp_path, committed=0)
    report = compact(made)
    assert (stored(made, "rows"), stored(made, "hourly")) == (12, 6)
    assert kept(report) == {("rows", UNCOMMITTED): 7, ("hourly", UNCOMMITTED): 3}
    assert {d.of for d in report.deleted} == {"archive"}


def test_what_came_after_the_batch_had_read_stays_until_a_run_takes_it_up(tmp_path: Path) -> None:
    made = twin(tmp_path)
    made.stream(Row(7, 7, HOUR), stored=NOW + HOUR)
    report = compact(made)
    assert kept(report)["rows", STALE] == 1
    assert 7 in [n for (n,) in table(made, "rows_speed", "id")]
    made.commit(
        *[Row(10 * d + i, 10 * d + i, d * DAY + i * HOUR) for d in range(3) for i in range(2)], Row(7, 7, HOUR), where=(0, 3), run_id="b2",
        as_of=NOW + 2 * HOUR,
    )  # fmt: skip
    assert ("rows", STALE) not in kept(compact(made, run_id="compact-2"))
    assert gone(made, "rows") == 7


def test_doors_stay_as_long_as_a_row_that_they_tell_of(tmp_path: Path) -> None:
    made = twin(tmp_path, committed=1)
    door(made, 0, 0)  # its row goes
    door(made, 10, DAY)  # its row stays: no batch has committed it
    before = table(made, "rows")
    report = compact(made)
    assert table(made, "rows") == before
    assert (gone(made, "doors"), kept(report)["doors", TOLD]) == (1, 1)


def test_a_row_stays_as_long_as_the_dead_letter_that_it_resolves(tmp_path: Path) -> None:
    made = twin(tmp_path, KEEP.replace("}", ", dead_letters: 400d}"))
    made.letter(0, None)
    made.stream(Row(0, 0, 0), stored=NOW - HOUR, run_id="s2")  # read again, and through
    assert table(made, "dead_letters") == []
    report = compact(made)
    assert table(made, "dead_letters") == []
    assert kept(report)["rows", TOLD] == 2


@pytest.mark.parametrize("committed", [0, 3])
def test_a_dead_letter_stays_as_long_as_a_row_that_it_hides(tmp_path: Path, committed: int) -> None:
    """A later start has refused what an earlier one had stored; what was refused first and let through later hides nothing."""
    made = twin(tmp_path, KEEP.replace("}", ", dead_letters: 1d}"), committed=committed)
    made.started()
    made.started("s2")
    made.stream(Row(25, 25, 2 * DAY), stored=NOW - 2 * DAY)  # its letters come a day later
    made.letter(25, 2 * DAY)
    made.stream(Row(26, 26, 2 * DAY), stored=NOW)
    made.letter(26, 2 * DAY)
    before = table(made, "rows_speed", "id")
    assert (25,) not in before
    report = compact(made)
    after = table(made, "rows_speed", "id")
    assert (25,) not in after
    assert set(after) <= set(before)
    files = [str(path) for path in (made.folder / "lake/dead_letters.speed").glob("*.parquet")]
    left = {n for (n,) in duckdb.read_parquet(files).project("position").fetchall()} if files else set()
    assert left == ({25} if not committed else set())
    assert kept(report).get(("dead_letters", TOLD), 0) == len(left)


def door(made: Twin, n: int, arrival: int) -> None:
    import pyarrow as pa

    from beam_pipelines.sinks.epochs import doors_folder

    utc = pa.timestamp("us", "UTC")
    columns = {
        "source": [SOURCE], "position": pa.array([n], pa.int64()), "door": ["duplicate"], "arrival_time": pa.array([ZERO + arrival], utc),
        "_stored_at": pa.array([NOW - DAY], utc),
    }  # fmt: skip
    made._write(Path(doors_folder(made.state)), columns)


def test_a_row_that_a_changed_spec_has_placed_anew_is_not_uncovered(tmp_path: Path) -> None:
    made = twin(tmp_path, committed=1)
    made.placings = ("one", "two")
    made.know()
    made.stream(Row(5, 5, DAY + HOUR), run_id="s1", arrival=HOUR)  # outside of what is committed, in its first place
    made.stream(Row(5, 5, HOUR), run_id="s2", arrival=HOUR)  # inside
    before = table(made, "rows", "id")
    report = compact(made)
    assert table(made, "rows", "id") == before
    assert kept(report)["rows", TOLD] == 1


def test_the_archive_keeps_what_the_next_start_of_the_stream_reads(tmp_path: Path) -> None:
    made = twin(tmp_path)
    write_progress(made.state, 2, Reached())
    assert kept(compact(made))["s", UNKNOWN] == 7
    write_progress(made.state, 2, Reached(ZERO + 2 * DAY + 3 * HOUR, None, round(LATER * 1000)))  # far behind; it reads 26 hours back
    assert kept(compact(made, run_id="c2"))["s", NOT_THROUGH] == 4
    assert archived(made)[:3] == [11, 20, 21]
    write_progress(made.state, 2, Reached(ZERO + 5 * DAY, None, round(LATER * 1000)))
    write(made, (99, DAY), at=LATER)  # late, and not known to be through
    assert kept(compact(made, run_id="c3"))["s", NOT_THROUGH] == 1
    assert archived(made) == [31, 40, 41, 50, 51, 99]


def test_a_batch_that_needs_what_the_archive_has_lost_is_told_so(tmp_path: Path) -> None:
    made = twin(tmp_path)
    expect_archived(made.state, None)
    compact(made)
    until = next(d.until for d in read_account(made.state).deleted if d.of == "archive")
    expect_archived(made.state, until)
    for since in (None, until - 1):
        with pytest.raises(RunError, match="retention has deleted what arrived before"):
            expect_archived(made.state, since)
    assert complete_since(made.state) == until


def test_the_archive_stays_while_a_batch_is_at_work(tmp_path: Path) -> None:
    made = twin(tmp_path)
    batch = RunInfo("b7", "twin", made.state)
    outputs = outputs_of(made.loaded.spec, batch)
    claim(outputs, batch)
    report = compact(made)
    assert (gone(made, "archive"), gone(made, "rows")) == (0, 6)
    assert "run 'b7' writes it" in report.notes[0]
    release(outputs, batch)
    compact(made, run_id="compact-2")
    assert gone(made, "archive") > 0


def test_two_calls_at_once_are_one_and_a_sentence(tmp_path: Path) -> None:
    made = twin(tmp_path)
    with locked(made.state), pytest.raises(SinkError, match="another call"):
        compact(made)


# ── dead letters of batch runs, records ─────────────────────────────────────────────────────────────────────────────────


def letters_of_two_runs(folder: Path) -> Twin:
    made = Twin(folder, text=SPEC + "retention: {dead_letters: 30d}\n")
    made.know()
    made.commit(Row(1, 1, HOUR), letters=[made.letter(5, HOUR, layer="batch")], where=(0, 1), as_of=NOW - 40 * DAY, run_id="old")
    made.commit(Row(2, 2, DAY), letters=[made.letter(6, DAY, layer="batch")], where=(1, 2), as_of=NOW, run_id="new")
    return made


def test_dead_letters_of_batch_runs_go_by_a_commit_killed_after_any_step(tmp_path: Path) -> None:
    def run(number: int) -> bool:
        made = letters_of_two_runs(tmp_path / str(number))
        rows = table(made, "rows")
        try:
            compact(made, kill_after=number)
            killed = False
        except Killed:
            killed = True
        live = snapshots(made.state)["dead_letters"]
        assert {row[0] for row in table(made, "dead_letters", "position")} in ({5, 6}, {6})
        assert live.rows + gone(made, "dead letters") >= 1
        compact(made, run_id="compact-2")
        live = snapshots(made.state)["dead_letters"]
        assert [Path(p).exists() for p in live.paths] == [True]
        assert (table(made, "dead_letters", "position"), gone(made, "dead letters")) == ([(6,)], 1)
        assert table(made, "rows") == rows
        assert read_account(made.state).intent is None
        assert [r.metadata.run_id for r in list_runs(made.state)] == ["new", "old"]
        return killed

    assert len(list(each_kill(run))) > 3


def test_records_of_runs_stay_where_an_output_names_them_and_the_newest_twenty(tmp_path: Path) -> None:
    made = Twin(tmp_path, text=SPEC + "retention: {runs: 30d}\n")
    made.know()
    made.commit(Row(1, 1, HOUR), where=(0, 1), as_of=NOW - 500 * DAY, run_id="committed")
    for age in range(60):
        run = RunInfo(f"r{age:02}", "twin", made.state, started_at=_iso(NOW - age * DAY))
        write_run(made.state, RunResults(metadata(run, finished_at=_iso(NOW)), "failed"))
    report = compact(made)
    assert [(d.of, d.files) for d in report.deleted] == [("runs", 29)]
    assert {r.metadata.run_id for r in list_runs(made.state)} == {"committed", *(f"r{age:02}" for age in range(31))}


def test_letters_of_old_failed_runs_go_and_are_on_record_and_their_record_stays_as_long_as_they_do(tmp_path: Path) -> None:
    made = Twin(tmp_path, text=SPEC + "retention: {dead_letters: 30d, runs: 30d}\n")
    made.know()
    folder = tmp_path / "dead" / ".failed"
    for age in (0, *range(10, 400, 10)):
        run = RunInfo(f"r{age:03}", "twin", made.state, started_at=_iso(NOW - age * DAY))
        kept = KeptLetters("dead_letters", str(folder), "parquet", (f"run_id={run.run_id}/part-a.parquet.failed",), 7, 1)
        has = age in (0, 20, 390)
        write_run(made.state, RunResults(metadata(run, finished_at=_iso(NOW)), "failed", kept_letters=kept if has else None))
        if has:
            (folder / kept.files[0]).parent.mkdir(parents=True)
            (folder / kept.files[0]).write_bytes(b"x")
    report = compact(made)
    assert [(d.of, d.rows, d.files, d.stream) for d in report.deleted if d.of != "runs"] == [("letters of failed runs", 7, 1, False)]
    assert {p.name for p in folder.iterdir()} == {"run_id=r000", "run_id=r020"}
    assert "r390" in {r.metadata.run_id for r in list_runs(made.state)}
    compact(made, run_id="compact-2")
    assert "r390" not in {r.metadata.run_id for r in list_runs(made.state)}


def _iso(at: int) -> str:
    from beam_pipelines.arrow.ranges import show_instant

    return show_instant(at)


# ── merging ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_folder_becomes_one_file_and_a_second_call_has_nothing_to_do(tmp_path: Path) -> None:
    made = twin(tmp_path, "")
    before, messages_ = {name: table(made, name) for name in ("rows", "hourly", "rows_speed")}, archived(made)
    planned, report = compact(made, dry_run=True), compact(made)
    for plan, row in zip(planned.layers, report.layers, strict=True):
        assert (plan.layer, plan.before, plan.after.files, plan.after.rows) == (row.layer, row.before, row.after.files, row.after.rows)
    assert [(r.layer, r.before.folders, r.before.files, r.after.files) for r in report.layers][1] == ("rows", 6, 12, 6)
    assert {name: table(made, name) for name in before} == before
    assert archived(made) == messages_
    again = compact(made, now=LATER + 61)
    assert all(row.merged == row.after.waiting == 0 for row in again.layers)
    assert [row.after.files for row in again.layers] == [row.after.files for row in report.layers]
    assert not report.deleted


def test_a_dry_run_says_what_a_call_does_and_does_nothing(tmp_path: Path) -> None:
    made = twin(tmp_path)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    planned = compact(made, dry_run=True)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    done = compact(made)
    assert {(d.layer, d.rows, d.files, d.bytes, d.until) for d in planned.deleted} == {
        (d.layer, d.rows, d.files, d.bytes, d.until) for d in done.deleted
    }
    assert planned.kept == done.kept


def test_merging_does_not_make_messages_new_to_a_stream_that_starts_again(tmp_path: Path) -> None:
    made, now = twin(tmp_path, "", days=1, committed=0, archive=False), time.time()
    for n in range(5):
        write(made, (n, n), at=now - 1_000)
    through_ms = round((now - 500) * 1000)
    for call in range(2):
        assert compact(made, now=now + call, run_id=f"c{call}").layers[0].merged == 1
        assert list(read_since(f"{made.state}/archive", ZERO + DAY, stored_since_ms=through_ms)) == []
        for n in range(2):
            write(made, (100 + 10 * call + n, 0), at=now - 900)
    write(made, (102, 0), at=now)
    again = read_since(f"{made.state}/archive", ZERO + DAY, stored_since_ms=through_ms)
    assert [n for b in again for n in b.column("_position").to_pylist()] == [102]


def guarded(work: Callable[[], None], wrong: list[str], done: threading.Event) -> threading.Thread:
    def run() -> None:
        try:
            work()
        except Exception as error:
            wrong.append(f"{work.__name__}: {error!r}")
            done.set()

    return threading.Thread(target=run)


def test_beside_a_stream_that_stores_and_merges_and_readers_that_ask(tmp_path: Path) -> None:
    """Every answer holds each row once, whatever is stored, merged and deleted meanwhile."""
    made, wrong, done = twin(tmp_path), list[str](), threading.Event()
    layers = layers_of(made.loaded, RunInfo("s1", "twin", made.state, mode="stream", epoch=1))
    clock = count(int(LATER), 30)

    def storing() -> None:
        for n in range(100, 140):
            made.stream(Row(n, n, 6 * DAY + n))
            write(made, (n, 6 * DAY + n))
            time.sleep(0.01)

    def merging() -> None:
        while not done.is_set():
            for layer in layers:
                list(layer.steps(epoch=1, now=lambda: next(clock)))

    def asking() -> None:
        least = 12
        while not done.is_set():
            found = [n for (n,) in table(made, "rows", "id")]
            assert len(found) == len(set(found)) >= least
            least = len(found)

    threads = [guarded(work, wrong, done) for work in (storing, merging, asking)]
    for thread in threads:
        thread.start()
    for call in range(6):
        compact(made, now=next(clock), run_id=f"c{call}")
    threads[0].join(timeout=60)
    done.set()
    for thread in threads[1:]:
        thread.join(timeout=60)
    assert not wrong
    compact(made, now=next(clock), run_id="last")
    assert [n for (n,) in table(made, "rows", "id")] == [*(10 * d + i for d in range(6) for i in range(2)), *range(100, 140)]
    assert gone(made, "rows") + stored(made, "rows") == 52
    assert gone(made, "archive") + len(archived(made)) == 52
