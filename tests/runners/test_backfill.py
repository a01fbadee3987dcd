"""A backfill: steps that follow the clock on the wall, and that go on wherever it was killed; what is stale is computed anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.ranges import Range, minus, show_range, union, widened
from beam_pipelines.arrow.schema import MESSAGES, provenance
from beam_pipelines.cli.main import command, run_command
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.formats.archive import write_messages
from beam_pipelines.runners.backfill import BackfillPlan, Ended, alone, backfill_id, begin, done_steps, newest_plan, run_steps
from beam_pipelines.runners.backfill_steps import Step, check_steps, clock_of, cut, default_stride, parse_stride, stale_pieces
from beam_pipelines.serving.tables import open_tables, stale_table
from beam_pipelines.sinks.claims import claim, release
from beam_pipelines.sinks.manifest import Committed, snapshots
from beam_pipelines.sinks.outputs import SpeedOutput, StreamOutputs, write_outputs
from beam_pipelines.sinks.plan import outputs_of
from beam_pipelines.sinks.reached import Reached, write_progress
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.ranges import parse_range
from tests.faults.processes import descendants, gone
from tests.sinks.speed_lake import Speed
from tests.test_ranged_runs import DAY, SPEC, content, day_range, go, make, row

HOUR = 3_600_000_000
NEW_YORK = SPEC.replace("pipeline: ranged", "pipeline: ranged\ntime_zone: America/New_York").replace("day(", "hour(")
ZONES = ["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia", "UTC"]


def spec_of(folder: Path, text: str = SPEC) -> LoadedSpec:
    return make(folder, [[]], text)


def asked(spec: LoadedSpec, start: str, end: str) -> Range:
    found = parse_range(spec.spec, start, end)
    assert found is not None
    return found


# --------------------------------------------------------------------------------------------------------------- steps


@settings(deadline=None)
@given(st.datetimes(datetime(2008, 1, 1), datetime(2014, 1, 1)), st.integers(1, 40_000), st.sampled_from(["7h", "1d", "3d", "1w", "1mo", "5mo", "1y"]), st.sampled_from(ZONES))  # fmt: skip
def test_steps_are_the_range_in_order_and_end_at_the_same_time_on_the_wall(begun: datetime, hours: int, step: str, zone: str) -> None:
    start = int(begun.replace(microsecond=0, tzinfo=UTC).timestamp()) * 1_000_000
    whole, stride, clock = Range(start, start + hours * HOUR), parse_stride(step), ZoneInfo(zone)
    steps = cut(whole, stride, clock)
    assert [steps[0].start, *(s.end for s in steps)] == [*(s.start for s in steps), whole.end]
    assert all(s.start < s.end for s in steps)
    if step in ("1d", "3d", "1w") and zone != "Pacific/Apia":  # where a day of 2011 never was
        first = datetime.fromtimestamp(start / 1e6, clock)
        for number, one in enumerate(steps[:-1], 1):
            wall = first.replace(tzinfo=None) + timedelta(days=number * {"1d": 1, "3d": 3, "1w": 7}[step])
            assert one.end == int(wall.replace(tzinfo=clock).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("start", "end", "hours"),
    [("2013-03-09", "2013-03-12", [24, 23, 24]), ("2013-11-02", "2013-11-05", [24, 25, 24]), ("2013-11-02T04:00Z", "2013-11-05T05:00Z", [24, 24, 24, 1])],
)  # fmt: skip
def test_a_day_is_that_of_the_clock_that_from_is_told_by(tmp_path: Path, start: str, end: str, hours: list[int]) -> None:
    found = spec_of(tmp_path, NEW_YORK)
    steps = check_steps(found.spec, asked(found, start, end), parse_stride("1d"), clock_of(start, found.spec.time_zone))
    assert [(s.end - s.start) // HOUR for s in steps] == hours


def test_months_end_where_months_end() -> None:
    steps = cut(
        Range(*(int(datetime(2012, m, d, tzinfo=UTC).timestamp()) * 1_000_000 for m, d in ((1, 31), (6, 10)))), parse_stride("1mo"), UTC
    )
    assert [show_range(s)[1:11] for s in steps] == ["2012-01-31", "2012-02-29", "2012-03-31", "2012-04-30", "2012-05-31"]


MONTHS = SPEC.replace("lake/daily,   partition_by: [day(", "lake/daily,   partition_by: [month(")


@pytest.mark.parametrize(
    ("text", "start", "step", "said"),
    [
        (SPEC, "2013-12-01", "6h", "The smallest step that does: --step 1d."),
        (MONTHS, "2013-12-01", "1w", "'daily', month(_window_start), which are whole UTC months. The smallest step that does: --step 1mo."),
        (NEW_YORK, "2013-12-01", "90m", "is no length of a step"),
        (SPEC, "2013-12-01", "0d", "is no length of a step"),
        (NEW_YORK, "1913-12-01", "1h", "more than 100,000 steps"),
    ],
)
def test_a_step_that_does_not_fit_names_one_that_does(tmp_path: Path, text: str, start: str, step: str, said: str) -> None:
    found = spec_of(tmp_path, text)
    with pytest.raises(SpecError) as error:
        check_steps(found.spec, asked(found, start, "2014-02-01"), parse_stride(step), clock_of(start, found.spec.time_zone))
    assert said in str(error.value)


def test_the_step_is_the_coarsest_partition_if_none_is_said(tmp_path: Path) -> None:
    assert [str(default_stride(spec_of(tmp_path, text).spec)) for text in (SPEC, NEW_YORK, MONTHS)] == ["1d", "1h", "1mo"]


spans = st.tuples(st.integers(0, 60), st.integers(1, 10)).map(lambda s: Range(s[0] * DAY, (s[0] + s[1]) * DAY))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(spans, max_size=4),
    st.lists(spans, max_size=2),
    st.lists(st.tuples(spans, st.sampled_from(["batch", "archive"])), max_size=5),
    st.integers(0, 2),
)
def test_stale_pieces_hold_all_that_a_stale_row_can_change_of_what_is_committed_and_little_more(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Range], panes: list[Range], known: list[tuple[Range, Any]], days: int
) -> None:  # fmt: skip
    spec = spec_of(tmp_path_factory.mktemp("spec"), MONTHS).spec
    committed = [Committed(r.start, r.end, "b", 1, input_) for r, input_ in known]
    pieces = stale_pieces(spec, rows, panes, committed, (days * DAY, DAY))
    changed = union([*((r.start - DAY, r.end + days * DAY) for r in rows), *panes])
    needed = union((max(c.start, r.start), min(c.end, r.end)) for c in committed for r in changed)
    assert all(minus(n, [p.range for p in pieces]) == () for n in needed)
    assert union(p.range for p in pieces) == union(widened(n, "month") for n in needed)
    assert sum(p.end - p.start for p in pieces) == sum(r.end - r.start for r in union(p.range for p in pieces))  # none twice
    archived = [(c.start, c.end) for c in committed if c.input == "archive"]
    assert all(
        p.input == "archive"
        for p in pieces
        if any(minus(n, archived) == () and p.start <= n.start < p.end for n in needed if n.start < n.end)
    )


# ----------------------------------------------------------------------------------------------------------- the call


Called = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Called:
    """`call(spec, "--from", …, code=0)`: `backfill` in this process; its exit code and what it printed."""

    def run(loaded: LoadedSpec, *words: object, code: int = 0) -> tuple[int, str, str]:
        capsys.readouterr()
        ended = run_command(command, ["backfill", loaded.path, *map(str, words)])
        out, err = capsys.readouterr()
        assert ended == code, (out, err)
        assert "Traceback" not in err
        return ended, out, err

    return run


DAYS = ("--from", "2013-12-01", "--to", "2013-12-04")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no range is given"),
        (("--from", "2013-12-02", "--to", "2013-12-01"), "the range is reversed"),
        (("--from", "2013-12-01", "--to", "2013-12-01"), "the range is empty"),
        (("--from", "2013-12-01"), "--from is given alone"),
        ((*DAYS, "--step", "1m"), "1mo (a month)"),
        ((*DAYS, "--step", "1h"), "--step 1d"),
        ((*DAYS, "--input", "archive"), "declares no stream sources"),
        ((*DAYS, "--jobs", "0"), "--jobs"),
    ],
)
def test_a_wrong_call_is_one_clear_error_and_changes_nothing(tmp_path: Path, call: Called, words: tuple[str, ...], said: str) -> None:
    loaded = spec_of(tmp_path)
    assert said in call(loaded, *words, code=2)[2]
    assert not Path(loaded.state).exists()


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_dry_run_shows_what_is_committed_and_changes_nothing(tmp_path: Path, call: Called) -> None:
    loaded = make(tmp_path, [[row(1, 60), row(2, 1440 + 60)]])
    go(loaded, day_range(1, 2), run_id="b1")
    before = files(tmp_path)
    lines = call(loaded, *DAYS, "--dry-run")[1].splitlines()
    assert [line.partition(")  ")[2].partition(" as of ")[0] for line in lines[1:]] == ["not committed", "committed by b1", "not committed"]
    found = json.loads(call(loaded, *DAYS, "--dry-run", "--json")[1])
    assert [(s["status"], s["stale"]) for s in found["steps"]] == [("not_committed", 0), ("committed", 0), ("not_committed", 0)]
    assert found["status"] == "dry_run"
    call(loaded, "--stale")
    assert files(tmp_path) == before


def test_beside_a_stream_the_range_is_shortened_with_a_word(tmp_path: Path, call: Called) -> None:
    text = SPEC.replace("batch: [", "stream: [{pubsub: projects/demo-project/subscriptions/s, format: json}]\n  batch: [").replace("sources: {stream", "sources:\n  stream").replace("format: json}]}", "format: json}]")  # fmt: skip
    loaded = spec_of(tmp_path, text)
    write_outputs(loaded.state, StreamOutputs((SpeedOutput("rows", "rows", str(tmp_path / "none")),)))
    write_progress(loaded.state, 1, Reached(day_range(0, 4).end))
    _, out, err = call(loaded, *DAYS, "--dry-run")
    assert "shortened: after 2013-12-03T00:00:00Z windows of the stream are still open" in err
    assert out.splitlines()[0].startswith("backfill ranged: 2 steps of 1d")
    assert "3 steps" in call(loaded, *DAYS, "--dry-run", "--ignore-stream")[1]
    write_progress(loaded.state, 1, Reached(day_range(0, 1).start))
    assert "there is nothing to compute" in call(loaded, *DAYS)[1]


def test_the_same_call_finds_its_steps_again_and_what_changes_the_answer_begins_anew(tmp_path: Path) -> None:
    def id_of(text: str, *asked: object) -> str:
        return backfill_id(spec_of(tmp_path, text).spec, *asked)

    same = [SPEC, SPEC + "thresholds: {dead_letters: 0.5}\n", SPEC + "description: words\n"]
    other = [SPEC.replace("min: 0", "min: 1"), SPEC.replace("size: 3h", "size: 4h"), SPEC.replace("lake/rows", "lake/others"),
             SPEC.replace("in/*", "in/a*"), SPEC.replace("within: 6h", "within: 7h"), SPEC + "checks: [{name: c, expr: 'v < 9'}]\n"]  # fmt: skip
    assert len({id_of(text, "a") for text in same}) == 1
    assert len({id_of(text, "a") for text in (SPEC, *other)}) == len(other) + 1
    assert id_of(SPEC, "a") != id_of(SPEC, "b")


# ---------------------------------------------------------------------------------------- steps as processes, quick ones

WRITES = "import sys; from beam_pipelines.sinks.results import *; from beam_pipelines.sinks.run import *; r = RunInfo(sys.argv[2], 'p', sys.argv[1]); write_run(r.state, RunResults(metadata(r, finished_at=utc_now()), sys.argv[3])); "


def plan_of(state: Path, steps: int = 4) -> BackfillPlan:
    return begin(
        str(state), "backfill-x", [Step(n * DAY, (n + 1) * DAY, "batch") for n in range(steps)], pipeline="p", asked="days", step="1d"
    )


def child(state: Path, code: str, status: str = "success") -> Callable[[BackfillPlan, int], list[str]]:
    return lambda plan, number: [sys.executable, "-c", WRITES + code, str(state), plan.run_id(number), status, str(number)]


def test_a_step_is_done_if_its_record_says_so_however_its_process_ended(tmp_path: Path) -> None:
    plan, told = plan_of(tmp_path), list[Ended]()
    kill = "import os; os.kill(os.getpid(), 9)"
    assert run_steps(str(tmp_path), plan, [1, 2, 3, 4], child(tmp_path, kill), told.append) == []
    assert sorted(e.number for e in told) == [1, 2, 3, 4] == sorted(done_steps(str(tmp_path), plan))
    assert newest_plan(str(tmp_path), "backfill-x") == plan


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "print('warning: odd', file=sys.stderr); print('error: no room.\\nFree some.', file=sys.stderr); sys.exit(1)",
            "no room.\nFree some.",
        ),
        ("import os; os.kill(os.getpid(), 9)", "its process was ended by signal 9 (SIGKILL): the machine may be short of memory"),
        ("sys.exit(3)", "its process ended with code 3"),
    ],
)
def test_a_step_that_fails_says_why_and_the_others_are_not_begun(tmp_path: Path, code: str, said: str) -> None:
    plan, told = plan_of(tmp_path), list[Ended]()
    hopeless = child(tmp_path, code, "failed")
    first = run_steps(str(tmp_path), plan, [2, 3], hopeless, told.append)
    assert [(e.number, e.why) for e in first] == [(2, said)]
    assert len(told) == 1
    again = run_steps(str(tmp_path), plan, [2, 3, 4], hopeless, told.append, keep_going=True)
    assert [e.number for e in again] == [2, 3, 4]
    assert done_steps(str(tmp_path), plan) == {}


@pytest.mark.slow
def test_no_more_than_jobs_are_at_work_at_once_and_after_a_failure_the_others_end(tmp_path: Path) -> None:
    plan, told = plan_of(tmp_path, 6), list[Ended]()
    (tmp_path / "at_work").mkdir()
    code = (
        "import os, time; mine = f'{sys.argv[1]}/at_work/{sys.argv[4]}'; open(mine, 'w').close(); n = len(os.listdir(f'{sys.argv[1]}/at_work')); "
        "open(f'{sys.argv[1]}/most-{n}', 'w').close(); end = time.monotonic() + 60\n"
        "while not os.path.exists(f'{sys.argv[1]}/most-3') and time.monotonic() < end: time.sleep(0.02)\n"  # on a busy machine a start takes seconds
        "time.sleep(0.4); os.unlink(mine)"
    )
    assert run_steps(str(tmp_path), plan, range(1, 7), child(tmp_path, code), told.append, jobs=3) == []
    found = {p.name for p in tmp_path.glob("most-*")}
    assert "most-3" in found
    assert found <= {"most-1", "most-2", "most-3"}
    told.clear()
    slow = lambda p, n: [sys.executable, "-c", f"import time; time.sleep({2 if n == 1 else 0}); {WRITES}", str(tmp_path), p.run_id(n), "success" if n == 1 else "failed", ""]  # noqa: E731  # fmt: skip
    again = begin(str(tmp_path), "backfill-x", plan.steps, pipeline="p", asked="days", step="1d")
    assert again.attempt == 2
    assert [e.number for e in run_steps(str(tmp_path), again, [1, 2, 3, 4], slow, told.append, jobs=2)] == [2]
    assert sorted(e.number for e in told) == [1, 2]
    assert list(done_steps(str(tmp_path), again)) == [1]


def test_two_processes_do_not_work_on_one_backfill(tmp_path: Path) -> None:
    with alone(str(tmp_path), "x"):
        with pytest.raises(RunError, match="another process works on this backfill"), alone(str(tmp_path), "x"):
            pass
        with alone(str(tmp_path), "y"):
            pass
    with alone(str(tmp_path), "x"):
        pass


STEP = """
import sys, time
from beam_pipelines.cli import backfill
sys.modules["beam_pipelines.cli.main"].main = lambda words: time.sleep(600)
backfill.step_main()
"""


def test_a_step_ends_when_the_backfill_is_gone() -> None:
    """The test holds the pipe, as a backfill does; whoever kills it closes it."""
    process = subprocess.Popen([sys.executable, "-c", STEP], stdin=subprocess.PIPE, start_new_session=True)
    assert not gone(process.pid, within_s=1.5)
    assert process.stdin is not None
    process.stdin.close()
    assert gone(process.pid)
    process.wait()


# -------------------------------------------------------------------------------------------------- the command, whole


@pytest.fixture
def started(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`started(loaded, *words)`: `beam-pipelines backfill` as a process of its own."""
    found = list[subprocess.Popen[str]]()

    def start(loaded: LoadedSpec, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "beam_pipelines", "backfill", loaded.path, *words]
        found.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return found[-1]

    yield start
    for process in found:
        process.kill()
        process.communicate()


def three_days(folder: Path) -> LoadedSpec:
    return make(folder, [[row(n, n * 400, n % 5 - 1) for n in range(11)] + [row(n % 3, n * 390) for n in range(11)]])


def wait_for(happened: Callable[[], object], *, within_s: float = 60) -> Any:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if found := happened():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def records(loaded: LoadedSpec) -> list[str]:
    folder = Path(loaded.state) / "runs"
    return sorted(p.stem for p in folder.glob("*.json")) if folder.exists() else []


def ended_runs(loaded: LoadedSpec, at_least: int) -> bool:
    return len(records(loaded)) >= at_least


def children(process: subprocess.Popen[str]) -> list[int]:
    return [] if process.poll() is not None else descendants(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_killed_in_the_middle_the_same_command_goes_on(tmp_path: Path, started: Any, jobs: str) -> None:
    """kill -9 of the backfill, once between two commits and once before the first; nothing of it lives on, nothing is lost, nothing twice."""
    whole, loaded = three_days(tmp_path / "whole"), three_days(tmp_path / "parts")
    go(whole, day_range(0, 3))
    for at_least in (0, 1):
        process = started(loaded, *DAYS, "--jobs", jobs)
        wait_for(partial(ended_runs, loaded, at_least))
        working = wait_for(partial(children, process))
        process.send_signal(signal.SIGKILL)
        assert all(gone(pid, within_s=30) for pid in working)
        process.wait()
    before = records(loaded)
    process = started(loaded, *DAYS, "--jobs", jobs)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert f"attempt 1 goes on: {len(before)} of 3 steps are done" in err
    assert "done: 3 steps" in out
    assert content(loaded) == content(whole)
    named = [name.rpartition("-")[2] for name in records(loaded)]
    assert named == ["0001", "0002", "0003"]
    assert len(list((Path(loaded.state) / "commits").glob("*.json"))) == 3


@pytest.mark.slow
def test_killed_steps_and_a_terminated_backfill_leave_what_can_go_on(tmp_path: Path, started: Any) -> None:
    loaded = three_days(tmp_path)
    process = started(loaded, *DAYS)
    wait_for(lambda: [*tmp_path.rglob("claim-*.json")])  # the first step is at work
    (pid,) = children(process)
    os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "step 1 of 3, [2013-12-01T00:00:00Z, 2013-12-02T00:00:00Z): its process was ended by signal 9 (SIGKILL)" in err
    assert "To go on: beam-pipelines backfill" in err
    assert f"{loaded.path} --from 2013-12-01 --to 2013-12-04" in err
    assert records(loaded) == []

    process = started(loaded, *DAYS)
    wait_for(lambda: records(loaded) and children(process))
    working = children(process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 128 + signal.SIGTERM, (out, err)
    assert "terminated: 1 of 3 steps done; the others are as they were. To go on: beam-pipelines backfill" in err
    assert all(gone(pid) for pid in working)

    out, err = started(loaded, *DAYS, "--json").communicate(timeout=120)
    found = json.loads(out)
    assert (found["status"], found["attempt"], [s["status"] for s in found["steps"]]) == ("success", 1, ["success"] * 3)
    ranges = snapshots(loaded.state)["rows"].ranges
    assert [(r.start, r.end, r.run_id[-6:]) for r in ranges] == [(*day_range(n, n + 1), f"1-000{n + 1}") for n in range(3)]


@pytest.mark.slow
def test_a_finished_one_begins_anew_and_a_step_that_fails_is_told(tmp_path: Path, call: Called) -> None:
    loaded = three_days(tmp_path)
    two = ("--from", "2013-12-01", "--to", "2013-12-03")
    call(loaded, *two)
    _, out, err = call(loaded, *two, "--json")
    found = json.loads(out)
    assert found["attempt"] == 2
    assert "is finished; this is a new one" in found["notes"][0]
    assert found["steps"][0]["run_id"].endswith("-2-0001")
    assert sum(s["rows"] for s in found["steps"]) == open_tables(loaded.state).execute("SELECT count(*) FROM rows").fetchall()[0][0]
    (tmp_path / "in" / "0.jsonl").unlink()
    _, out, err = call(loaded, *two, "--keep-going", code=1)
    assert "failed after" in out
    assert err.count("matches no file") == 2
    _, out, err = call(loaded, *two, "--dry-run")
    assert "attempt 3 goes on: 0 of 2 steps are done" in err
    _, out, err = call(loaded, *two, "--restart", "--dry-run")
    assert "attempt 3 is given up" in err


@pytest.mark.slow
def test_of_two_over_one_range_the_second_says_who_is_at_work(tmp_path: Path, call: Called) -> None:
    loaded = three_days(tmp_path)
    one_day = ("--from", "2013-12-01", "--to", "2013-12-02")
    other = RunInfo("another", "ranged", loaded.state, range=day_range(0, 2))
    outputs = outputs_of(loaded.spec, other)
    claim(outputs, other)  # as a run of another backfill does, in a process that lives
    _, _, err = call(loaded, *one_day, code=1)
    assert "run 'another' writes its range [2013-12-01T00:00:00Z, 2013-12-03T00:00:00Z)" in err
    assert "0 of 1 step done" in err
    release(outputs, other)
    call(loaded, *one_day)


# ---------------------------------------------------------------------------------------------------------------- stale

STREAM = "projects/demo-project/subscriptions/s"
STREAMED = SPEC.replace('batch: [{files: "in/*.jsonl", format: json}]', f"stream: [{{pubsub: {STREAM}, format: json}}]")


def arrive(loaded: LoadedSpec, speed: Speed, *rows: dict[str, Any], first: int) -> None:
    """Messages that the stream has archived, and the rows it has stored of them."""
    positions = pa.array(range(first, first + len(rows)), pa.int64())
    times = pa.array([datetime.fromisoformat(r["at"]) for r in rows], pa.timestamp("us", "UTC"))
    identity = provenance(STREAM, positions, times)
    raw = pa.array([json.dumps(r).encode() for r in rows], pa.binary())
    texts = pa.array([f"m{n}" for n in positions.to_pylist()], pa.string())
    nothing = pa.nulls(len(rows), MESSAGES.field("_attributes").type)
    write_messages(
        pa.RecordBatch.from_arrays([*identity, raw, texts, texts, times, nothing], schema=MESSAGES), f"{loaded.state}/archive", epoch=1
    )
    columns = {"id": pa.array([r["id"] for r in rows], pa.int32()), "at": times, "v": pa.array([r["v"] for r in rows], pa.int32())}
    names = ["_source", "_position", "_arrival_time"]
    speed.store(speed.writing(by=("day(at)",)), pa.RecordBatch.from_pydict({**columns, **dict(zip(names, identity, strict=True))}))


class StreamLake(Speed):
    """The speed layer beside the outputs of `SPEC`."""

    @property
    def state(self) -> str:
        return str(self.folder.parent / ".beam_pipelines" / "ranged")


@pytest.mark.slow
def test_rows_that_arrive_after_the_commit_are_stale_until_they_are_computed(tmp_path: Path, call: Called) -> None:
    """One comes into a committed day, one with a better copy just after midnight, one into time that only the stream has an answer for."""
    loaded = make(tmp_path, [], STREAMED)
    (tmp_path / "lake").mkdir()
    speed = StreamLake(tmp_path / "lake")
    arrive(loaded, speed, row(1, 60), row(2, 1440 - 30, 1), row(3, 3 * 1440), first=0)
    call(loaded, "--from", "2013-12-01", "--to", "2013-12-03")
    assert stale_table(loaded.state, None, loaded.spec).num_rows == 0
    assert "nothing is stale" in call(loaded, "--stale")[1]

    arrive(loaded, speed, row(4, 90), row(2, 1440 + 30, 2), row(5, 3 * 1440 + 1), first=10)
    speed.door([1], "duplicate", source=STREAM)  # as the stream tells when the better copy comes
    connection = open_tables(loaded.state, None, loaded.spec)
    by_day = "SELECT output, start::DATE::TEXT, sum(rows) FROM stale GROUP BY ALL ORDER BY ALL"
    found = [line for line in connection.execute(by_day).fetchall() if line[0] in ("rows", "hourly")]
    assert found == [("hourly", "2013-12-01", 2), ("hourly", "2013-12-02", 1), ("rows", "2013-12-01", 2), ("rows", "2013-12-02", 1)]
    shown = json.loads(call(loaded, "--stale", "--dry-run", "--json")[1])
    assert [(s["start"][:10], s["input"], s["stale"]) for s in shown["steps"]] == [
        ("2013-12-01", "archive", 2),
        ("2013-12-02", "archive", 1),
    ]
    out = call(loaded, "--stale")[1]
    assert out.endswith("; 0 stale rows now\n"), out
    rows = open_tables(loaded.state).execute("SELECT id, v FROM rows WHERE \"at\" < TIMESTAMPTZ '2013-12-03 00:00Z' ORDER BY id").fetchall()
    assert rows == [(1, 1), (2, 2), (4, 1)]
    assert "nothing is stale" in call(loaded, "--stale")[1]


@pytest.mark.slow
def test_runs_tell_how_much_is_stale(tmp_path: Path, call: Called, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = make(tmp_path, [], STREAMED)
    (tmp_path / "lake").mkdir()
    speed = StreamLake(tmp_path / "lake")
    arrive(loaded, speed, row(1, 60), first=0)
    go(loaded, day_range(0, 1), input="archive", run_id="b1")
    arrive(loaded, speed, row(4, 90), first=10)
    capsys.readouterr()
    assert run_command(command, ["runs", loaded.path, "--format", "json"]) == 0
    assert [(r["run_id"], r["stale"]) for r in json.loads(capsys.readouterr().out)] == [("b1", 1)]


@pytest.mark.slow
def test_an_aggregate_that_counted_what_a_later_run_found_to_be_a_duplicate_is_stale(tmp_path: Path, call: Called) -> None:
    """The better copy lies in the next day, which alone was computed anew; without a stream."""
    loaded = make(tmp_path, [[row(1, 1440 - 30, 1), row(2, 60)]])
    go(loaded, day_range(0, 1), run_id="b1")
    go(loaded, day_range(1, 2), run_id="b2")
    make(tmp_path, [[row(1, 1440 - 30, 1), row(2, 60)], [row(1, 1440 + 30, 2)]])
    assert stale_table(loaded.state, None, loaded.spec).num_rows == 0
    go(loaded, day_range(1, 2), run_id="b3")
    found = stale_table(loaded.state, None, loaded.spec).to_pylist()
    assert ("hourly", "2013-12-01", "b1", 1) in [(r["output"], str(r["start"])[:10], r["run_id"], r["rows"]) for r in found]
    assert {r["output"] for r in found} == {"hourly", "sliding", "bursts", "daily"}
    assert call(loaded, "--stale")[1].endswith("; 0 stale rows now\n")
    assert open_tables(loaded.state).execute("SELECT sum(n) FROM hourly").fetchall() == [(2,)]
