"""The commit: all or nothing, whatever dies when; twice is once; one run at a time."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.commit_elements import Staged
from beam_pipelines.errors import SinkError, SpecError
from beam_pipelines.sinks.claims import claim, holders, release
from beam_pipelines.sinks.commit import Verdicts, conclude
from beam_pipelines.sinks.committing import abandon, commit_steps, prepare
from beam_pipelines.sinks.manifest import live_files, numbers, unfinished
from beam_pipelines.sinks.results import RunResults, find_run, list_runs, metadata, write_run
from beam_pipelines.sinks.run import Output, RunInfo, check_outputs, staging_of, utc_now
from beam_pipelines.spec.models import Thresholds
from tests.runs import read_run
from tests.sinks.children import killed_after, killed_between_outputs, preparing, start
from tests.sinks.lake import Lake, rows

OLD = rows((1, "a"), (2, "b"))
NEW = rows((3, "b"), (4, "c"), (5, None))
BEFORE = [(1, "a"), (2, "b")]
AFTER = sorted([(1, "a"), (3, "b"), (4, "c"), (5, None)], key=repr)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def test_a_run_replaces_the_partitions_it_wrote_and_no_other(lake: Lake) -> None:
    lake.go("r1", lake.output(), OLD)
    results = lake.go("r2", lake.output(), NEW)
    assert lake.view() == lake.glob() == AFTER
    assert (results.status, results.outputs[0].rows, results.outputs[0].replaced_files) == ("success", 3, 1)
    assert results.outputs[0].partitions == ("k=__HIVE_DEFAULT_PARTITION__", "k=b", "k=c")
    assert len(live_files(lake.state, "out")) == len(lake.files()) == 4


def test_running_twice_gives_the_same_rows_and_no_orphan_file(lake: Lake) -> None:
    lake.go("r1", lake.output(), OLD)
    lake.go("r2", lake.output(), OLD)
    assert lake.view() == lake.glob() == BEFORE
    assert len(lake.files()) == 2


@pytest.mark.parametrize("more", [{"replace": "all"}, {"partitions": ()}])
def test_an_output_without_partitions_and_replace_all_are_replaced_whole(lake: Lake, more: dict[str, Any]) -> None:
    output = lake.output(**more)
    lake.go("r1", output, OLD)
    lake.go("r2", output, NEW)
    assert lake.view() == lake.glob() == AFTER[1:]
    lake.go("r3", output)
    assert lake.view() == lake.glob() == []
    assert lake.files() == []


def test_the_same_run_id_commits_once(lake: Lake) -> None:
    first = lake.go("r1", lake.output(), OLD)
    again = lake.go("r1", lake.output(), NEW, attempt="2")
    assert again == first
    assert lake.view() == lake.glob() == BEFORE
    assert lake.files() == [f for f in lake.files() if f.endswith(".parquet")]


@pytest.mark.parametrize("more", [{}, {"partitions": ()}, {"format": "csv", "partitions": ()}, {"format": "jsonl", "partitions": ()}])
def test_folders_above_an_output_that_look_like_partitions_change_nothing_of_what_is_read(tmp_path: Path, more: dict[str, Any]) -> None:
    lake = Lake(tmp_path / "k=other" / "n=99" / "_source=x")
    written = [(1, "a/b=c%d ü"), (2, None), (3, "b")]
    lake.go("r1", lake.output(**more), rows(*written))
    assert lake.view() == sorted(written, key=repr)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files and folders that were synced, in order, by the names that they had then."""
    seen: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        seen.append(os.readlink(f"/proc/self/fd/{handle}"))

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def test_all_that_a_commit_names_is_on_disk_before_the_commit_is(lake: Lake, synced: list[str]) -> None:
    run, output = lake.run("r1"), lake.output()
    elements = lake.stage(run, output, rows(*((n, f"k{n}") for n in range(30))))
    staged = {e.path for e in elements if isinstance(e, Staged)}
    assert len(staged) == 30
    for step in commit_steps(lake.work(run, [output], elements)):
        if step == "decide":
            break
    decided = next(at for at, path in enumerate(synced) if path.startswith(f"{lake.state}/commits/"))
    assert staged | {str(Path(path).parent) for path in staged} | {output.staging, output.path} <= set(synced[:decided])
    assert synced[-1] == "/"  # the commit's own name is, up to the root
    assert f"{lake.state}/commits" in synced[decided:]


def test_a_commit_is_done_when_files_have_their_names_and_lost_theirs_for_good(lake: Lake, synced: list[str]) -> None:
    lake.go("r1", lake.output(replace="all"), OLD)
    steps = lake.steps(lake.run("r2"), lake.output(replace="all"), NEW)
    for step in steps:
        if step == "delete out":
            synced.clear()
        elif step == "record":
            break
    folders = {str(Path(path).parent) for path in live_files(lake.state, "out")}
    record = next(at for at, path in enumerate(synced) if path.startswith(f"{lake.state}/runs/"))
    assert folders | {lake.output().path} <= set(synced[:record])  # of a folder that went, the one above it


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_the_parts_of_one_file_are_on_disk_before_it_has_its_name(lake: Lake, synced: list[str], kind: str) -> None:
    output = lake.output(f"out.{kind}", format=kind, partitions=())
    for step in lake.steps(lake.run("r1"), output, NEW):
        if step == f"merge out.{kind}":
            assert any(path.endswith("merged.inprogress") for path in synced)
            return
    pytest.fail("nothing was merged")


def test_files_left_by_a_lost_state_are_replaced_with_their_partition(lake: Lake, tmp_path: Path) -> None:
    lake.go("r1", lake.output(), OLD)
    other = Lake(tmp_path)
    object.__setattr__(other, "folder", tmp_path)
    run = replace(other.run("r2"), state=str(tmp_path / "other_state"))
    conclude(run, [other.output()], [*other.read(NEW), *other.stage(run, other.output(), NEW)], Verdicts())
    assert lake.glob() == AFTER


def test_files_of_others_are_never_deleted(lake: Lake) -> None:
    folder = lake.folder / "out" / "k=b"
    folder.mkdir(parents=True)
    (folder / "mine.parquet").write_bytes(b"PAR1")
    with pytest.raises(SinkError, match=r"k=b holds files that this pipeline did not write: mine\.parquet"):
        lake.go("r1", lake.output(), OLD)
    assert (folder / "mine.parquet").exists()
    assert lake.view() == []


def test_another_layout_in_the_same_folder_is_refused(lake: Lake) -> None:
    lake.go("r1", lake.output(), OLD)
    with pytest.raises(SinkError, match="partitioned by k; the spec now says parquet without partitions"):
        lake.go("r2", lake.output(partitions=()), OLD)
    assert lake.glob() == BEFORE


def failing(lake: Lake) -> list[Any]:
    run = lake.run("r2")
    return [("b", "s", "read", "", 5), *lake.stage(run, lake.output(), NEW)]


def test_an_unbalanced_run_commits_nothing_and_cleans_up(lake: Lake) -> None:
    lake.go("r1", lake.output(), OLD)
    results = conclude(lake.run("r2"), [lake.output()], failing(lake), Verdicts())
    assert results.status == "failed"
    assert results.failures == (
        "the ledger does not balance: out, source s: 5 read, but 3 written + 0 dead + 0 duplicate + 0 filtered: 2 rows vanished",
    )
    assert lake.view() == lake.glob() == BEFORE
    assert len(lake.files()) == 2
    assert read_run(lake.state, "r2").status == "failed"


def test_a_run_that_has_failed_and_is_concluded_again_keeps_its_record(lake: Lake) -> None:
    """As engines do that try a step again."""
    run, elements = lake.run("r2"), failing(lake)
    conclude(run, [lake.output()], elements, Verdicts())
    before = read_run(lake.state, "r2")
    assert conclude(run, [lake.output()], elements, Verdicts()).status == "failed"
    assert read_run(lake.state, "r2") == before


def test_a_batch_under_the_id_of_a_stream_is_refused_and_the_record_stays(lake: Lake) -> None:
    taken = RunResults(metadata(replace(lake.run("r1"), mode="stream"), finished_at=utc_now()), "success")
    write_run(lake.state, taken)
    with pytest.raises(SpecError, match="--run-id r1: is taken by a stream run"):
        lake.go("r1", lake.output(), NEW)
    assert read_run(lake.state, "r1") == taken
    assert lake.view() == []


def test_a_passed_threshold_commits_nothing(lake: Lake) -> None:
    elements = [*failing(lake), ("b", "s", "dead", "validate:CHECK", 2)]
    results = conclude(lake.run("r2"), [lake.output()], elements, Verdicts(Thresholds(dead_letters=0.3)))
    assert results.failures == ("dead_letters: 40.00% of the rows read; at most 30.00% allowed",)
    assert lake.files() == []
    good = conclude(
        lake.run("r3"),
        [lake.output()],
        [*lake.read(NEW), *lake.stage(lake.run("r3"), lake.output(), NEW)],
        Verdicts(Thresholds(dead_letters=0.0)),
    )
    assert good.status == "success"


def test_a_lost_file_is_noticed(lake: Lake) -> None:
    elements = lake.stage(lake.run("r1"), lake.output(), NEW)
    lost = next(e for e in elements if isinstance(e, Staged))
    results = conclude(lake.run("r1"), [lake.output()], [*lake.read(NEW), *(e for e in elements if e is not lost)], Verdicts())
    assert results.failures == ("out: its files hold 2 rows, the ledger counts 3",)


def count_steps(lake: Lake) -> int:
    probe = Lake(lake.folder / "probe")
    probe.go("r1", probe.output(), OLD)
    return len(list(probe.steps(probe.run("r2"), probe.output(), NEW)))


def test_stopped_after_any_step_the_commit_is_nothing_or_can_be_redone_to_the_end(tmp_path: Path) -> None:
    total = count_steps(Lake(tmp_path))
    assert total >= 9
    for stop in range(total + 1):
        lake = Lake(tmp_path / f"after{stop}")
        lake.go("r1", lake.output(), OLD)
        run = lake.run("r2")
        work = lake.work(run, [lake.output()], lake.stage(run, lake.output(), NEW))
        steps = commit_steps(work)
        done = [next(steps) for _ in range(stop)]
        assert lake.view() in (BEFORE, AFTER), done
        assert ("decide" in done) or lake.view() == BEFORE
        list(commit_steps(work))  # the runner tries the bundle again
        assert lake.view() == lake.glob() == AFTER, done
        assert len(lake.files()) == 4, done
        assert find_run(lake.state, "r2") is not None


def test_a_reader_between_any_two_steps_sees_the_old_rows_or_the_new_ones(lake: Lake) -> None:
    lake.go("r1", lake.output(), OLD)
    seen = [lake.view(), *(lake.view() for _ in lake.steps(lake.run("r2"), lake.output(), NEW))]
    changes = [i for i in range(1, len(seen)) if seen[i] != seen[i - 1]]
    assert (seen[0], seen[-1], len(changes)) == (BEFORE, AFTER, 1)


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_a_killed_run_leaves_old_or_new_rows_and_the_next_run_ends_or_forgets_it(lake: Lake, stop: int) -> None:
    lake.go("r1", lake.output(), OLD)
    process, _ = start(killed_after, lake.folder, stop)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    decided = bool(list(unfinished(lake.state)))
    assert decided == (stop >= 2)
    assert lake.view() in (BEFORE, AFTER)
    run = lake.run("r3")
    prepare([lake.output()], run)  # the dead process's claim is taken over
    assert lake.view() == lake.glob() == (AFTER if decided else BEFORE)
    assert not list(unfinished(lake.state))
    assert [f for f in lake.files() if not f.endswith("claim.json")] == [f for f in lake.files() if f.endswith(".parquet")]
    abandon([lake.output()], run)
    assert not (lake.folder / "out" / ".staging").exists()
    assert (find_run(lake.state, "r2") is not None) == decided


def test_the_second_of_two_runs_at_once_is_refused_until_the_first_is_gone(lake: Lake) -> None:
    second = lake.run("second")
    process, connection = start(preparing, lake.folder, "first")
    connection.send("go")
    assert connection.recv() == "held"
    with pytest.raises(SinkError, match=rf"output 'out' .* run 'first' writes it \(process {process.pid} on ") as refused:
        prepare([lake.output()], second)
    assert "delete" in str(refused.value)
    with pytest.raises(SinkError, match="run 'first'"):
        list(lake.steps(second, lake.output(), NEW))
    process.kill()
    process.join()
    prepare([lake.output()], second)  # its process is dead: taken over
    (held,) = holders(lake.output())
    assert held is not None
    assert held.run_id == "second"
    abandon([lake.output()], second)


def test_many_processes_at_once_get_one_winner(lake: Lake) -> None:
    racing = [start(preparing, lake.folder, f"r{i}") for i in range(4)]
    for _, connection in racing:
        connection.send("go")
    assert sorted(connection.recv() for _, connection in racing) == ["held", "refused", "refused", "refused"]
    for process, connection in racing:
        connection.send("end")
        process.join()


def test_a_claim_is_all_or_none_and_reentrant_for_the_same_attempt(lake: Lake) -> None:
    one, two = lake.output("one"), lake.output("two")
    claim([two], lake.run("r1"))
    with pytest.raises(SinkError, match="'two'"):
        claim([one, two], lake.run("r2"))
    assert not holders(one)
    claim([one, two], lake.run("r1"))
    with pytest.raises(SinkError):
        claim([one], lake.run("r1", attempt="2"))
    release([one, two], lake.run("r1"))
    assert holders(one) == holders(two) == []
    assert lake.files("one") == []


def test_a_claim_from_elsewhere_is_stale_after_six_silent_hours(lake: Lake) -> None:
    claim([lake.output()], lake.run("r1"))
    path = Path(lake.output().staging, "claim.json")
    held = json.loads(path.read_text())
    held["owner"]["machine"] = "elsewhere"
    path.write_text(json.dumps(held))
    with pytest.raises(SinkError, match="on elsewhere"):
        claim([lake.output()], lake.run("r2"))
    held["renewed_at"] = "2013-01-01T00:00:00Z"
    path.write_text(json.dumps(held))
    claim([lake.output()], lake.run("r2"))


def test_all_outputs_of_a_run_become_visible_together(lake: Lake) -> None:
    one, two = lake.output("one"), lake.output("two", partitions=())
    process, _ = start(killed_between_outputs, lake.folder)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert lake.view("one") == lake.view("two") == []
    run = lake.run("r2")
    prepare([one], run)  # a run of one output carries out the whole, claiming the other for as long
    assert lake.view("one") == lake.view("two") == BEFORE
    abandon([one], run)
    assert holders(one) == holders(two) == []


@pytest.mark.parametrize("last", ["decide", "move out", "record"])
def test_interrupted_in_its_commit_a_decided_run_is_carried_to_its_end(lake: Lake, last: str) -> None:
    lake.go("r1", lake.output(), OLD)
    run = lake.run("r2")
    steps = lake.steps(run, lake.output(), NEW)
    while next(steps) != last:
        pass
    abandon([lake.output()], run)  # Ctrl-C
    assert lake.view() == lake.glob() == AFTER
    assert len(lake.files()) == 4


def test_interrupted_before_the_commit_nothing_is_left(lake: Lake) -> None:
    lake.go("r1", lake.output(), OLD)
    run = lake.run("r2")
    prepare([lake.output()], run)
    lake.stage(run, lake.output(), NEW)
    abandon([lake.output()], run)
    assert lake.glob() == BEFORE
    assert len(lake.files()) == 2


def test_staged_files_match_no_readers_pattern(lake: Lake) -> None:
    run = lake.run("r1")
    lake.stage(run, lake.output(), OLD)
    assert lake.glob() == []
    assert all(f.startswith(".staging/r1.1/") for f in lake.files())
    assert Path(staging_of(lake.output(), run)).is_dir()


def test_old_commits_are_forgotten(lake: Lake) -> None:
    from beam_pipelines.sinks.manifest import forget_old

    for i in range(4):
        lake.go(f"r{i}", lake.output(), OLD)
    lake.go("other", lake.output("other"), OLD)
    forget_old(lake.state, keep=1)
    assert numbers(lake.state) == [5]
    assert lake.view() == BEFORE
    lake.go("r9", lake.output(), NEW)
    assert lake.view() == lake.glob() == AFTER


def test_runs_are_listed_latest_first(lake: Lake) -> None:
    lake.go("r1", lake.output(), OLD)
    lake.go("r2", lake.output(), NEW)
    assert [r.metadata.run_id for r in list_runs(lake.state)] == ["r2", "r1"]
    assert find_run(lake.state, "r3") is None


def test_overlapping_outputs_and_odd_run_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="overlap"):
        check_outputs([Output("a", "rows", "/lake"), Output("b", "rows", "/lake/b")])
    check_outputs([Output("a", "rows", "/lake/x.csv", "csv"), Output("b", "rows", "/lake/y.csv", "csv"), Output("c", "rows", "/lake2")])
    with pytest.raises(SpecError, match="run id"):
        RunInfo("../x", "p", str(tmp_path))


def ranged(lake: Lake, run_id: str, start: int, end: int) -> RunInfo:
    return replace(lake.run(run_id), range=Range(start, end))


def test_runs_over_ranges_that_do_not_overlap_write_one_output_at_once(lake: Lake) -> None:
    output = lake.output()
    prepare([output], ranged(lake, "a", 0, 10))
    prepare([output], ranged(lake, "b", 10, 20))
    for first, last in [(5, 6), (9, 11), (0, 10), (-5, 100)]:
        with pytest.raises(SinkError, match=r"run '[ab]' writes its range \["):
            prepare([output], ranged(lake, "c", first, last))
    with pytest.raises(SinkError, match="run 'a'"):
        prepare([output], lake.run("whole"))
    letters = lake.output("letters", replace="runs", partitions=("run_id",))
    claim([letters], ranged(lake, "a", 0, 10))
    claim([letters], ranged(lake, "b", 5, 20))
    with pytest.raises(SinkError, match="'letters'"):
        claim([letters], lake.run("whole"))
    for run in (ranged(lake, "a", 0, 10), ranged(lake, "b", 10, 20)):
        abandon([output], run)
    prepare([output], lake.run("whole"))


def test_a_commit_beside_another_keeps_what_the_other_staged_and_committed(lake: Lake) -> None:
    """Every way in which the steps of two commits over two ranges can interleave ends with both."""
    for stop in range(12):
        folder = Lake(lake.folder / str(stop))
        output = folder.output()
        one, two = ranged(folder, "a", 0, 10), ranged(folder, "b", 10, 20)
        prepare([output], one)
        first = commit_steps(folder.work(one, [output], folder.stage(one, output, rows((1, "x")))))
        for _ in range(stop):
            next(first, None)
        prepare([output], two)
        assert list(commit_steps(folder.work(two, [output], folder.stage(two, output, rows((11, "y"))))))
        for _ in first:
            pass
        assert folder.view() == [(1, "x"), (11, "y")], stop
        assert not holders(output)
