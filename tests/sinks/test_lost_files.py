"""Staged files that go before a commit has moved them: nothing is decided without them, and what was decided is taken back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.errors import SinkError
from beam_pipelines.places import StagedFileGoneError, locked
from beam_pipelines.sinks import committing, load_jobs, manifest
from beam_pipelines.sinks.claims import holders
from beam_pipelines.sinks.committing import abandon, commit_steps, finish, prepare
from beam_pipelines.sinks.inventory import Stock
from beam_pipelines.sinks.loads import Loading, Table
from beam_pipelines.sinks.results import find_run
from beam_pipelines.sinks.work import Work
from tests.sinks.lake import Lake, rows
from tests.sinks.test_committing import AFTER, BEFORE, NEW, OLD, ranged


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def until(steps: Iterator[str], last: str) -> None:
    while next(steps) != last:
        pass


def staged(lake: Lake, output: str = "out") -> list[Path]:
    return sorted((lake.folder / output).rglob("*.inprogress"))


def lost_after(lake: Lake, last: str = "decide") -> None:
    """A run r2 over r1's that dies after a step; one of its staged files is gone then."""
    steps = lake.steps(lake.run("r2"), lake.output(), NEW)
    until(steps, last)
    staged(lake)[-1].unlink()


def test_a_run_that_gives_up_while_its_commit_makes_its_plan_decides_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the launcher, whose commit is on another thread."""
    lake.go("r1", lake.output(), OLD)
    run, plan = lake.run("r2"), committing._plan

    def interrupted(*arguments: Any) -> Any:
        made = plan(*arguments)
        abandon([lake.output()], run)
        return made

    monkeypatch.setattr(committing, "_plan", interrupted)
    with pytest.raises(SinkError, match="run 'r2' does not hold it any more"):
        list(lake.steps(run, lake.output(), NEW))
    monkeypatch.undo()
    assert manifest.numbers(lake.state) == [1]
    assert lake.go("r3", lake.output(), NEW).status == "success"
    assert lake.view() == lake.glob() == AFTER


def test_a_run_that_gives_up_while_its_commit_decides_waits_and_carries_it_out(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.go("r1", lake.output(), OLD)
    run, look = lake.run("r2"), committing._expect_whole
    launcher = threading.Thread(target=lambda: abandon([lake.output()], run))

    def interrupted(work: Work) -> None:
        look(work)
        launcher.start()
        launcher.join(0.5)
        with locked(lake.state, wait=False) as free:
            assert not free

    monkeypatch.setattr(committing, "_expect_whole", interrupted)
    list(lake.steps(run, lake.output(), NEW))
    launcher.join(60)
    assert lake.view() == lake.glob() == AFTER
    assert not holders(lake.output())


@pytest.mark.parametrize("kept", [0, 2])
def test_without_all_staged_files_nothing_is_decided_and_the_outputs_are_free(lake: Lake, kept: int) -> None:
    lake.go("r1", lake.output(), OLD)
    run = lake.run("r2")
    work = lake.work(run, [lake.output()], lake.stage(run, lake.output(), NEW))
    for path in staged(lake)[kept:]:
        path.unlink()
    with pytest.raises(SinkError, match=rf"of 3 staged files {3 - kept} are gone: .*\. Its launcher was interrupted"):
        list(commit_steps(work))
    assert manifest.numbers(lake.state) == [1]
    assert not holders(lake.output())


@pytest.mark.parametrize("last", ["decide", "move out"])
@pytest.mark.parametrize("more", [{}, {"replace": "all"}])
def test_a_decided_commit_that_lost_a_file_is_taken_back_by_the_next_run(lake: Lake, last: str, more: dict[str, Any]) -> None:
    output = lake.output(**more)
    lake.go("r1", output, OLD)
    until(lake.steps(lake.run("r2"), output, NEW), last)
    staged(lake)[-1].unlink()
    committing.release([output], lake.run("r2"))  # its process is dead
    run = lake.run("r3")
    prepare([output], run)
    assert lake.view() == lake.glob() == BEFORE
    found = find_run(lake.state, "r2")
    assert found is not None
    assert (found.status, found.outputs) == ("failed", ())
    assert "its commit was taken back, since a staged file was gone: " in found.failures[0]
    assert not list(manifest.unfinished(lake.state))
    abandon([output], run)
    assert len(lake.files()) == 2
    assert lake.go("r2", output, NEW, attempt="3").status == "success"  # its id may be used again
    assert lake.view() == lake.glob() == (AFTER[1:] if more else AFTER)


def test_the_first_commit_of_all_is_taken_back_to_nothing(lake: Lake) -> None:
    until(lake.steps(lake.run("r2"), lake.output(), NEW), "move out")
    staged(lake)[-1].unlink()
    abandon([lake.output()], lake.run("r2"))
    assert lake.view() == lake.glob() == lake.files() == []
    lake.go("r3", lake.output(), OLD)
    assert lake.view() == lake.glob() == BEFORE


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_one_file_stays_as_it_was_where_a_part_of_the_new_one_is_gone(lake: Lake, name: str) -> None:
    one, two = (lake.output(f"{n}{name}", format=name.rpartition(".")[2], partitions=()) for n in ("a", "b"))
    for run, batch in ((lake.run("r1"), OLD), (lake.run("r2"), NEW)):
        steps = commit_steps(lake.work(run, [one, two], [*lake.stage(run, one, batch), *lake.stage(run, two, batch)]))
        if run.run_id == "r1":
            list(steps)
    before = {path: Path(path).read_bytes() for path in (one.path, two.path)}
    until(steps, "decide")
    for path in Path(two.staging).rglob("*.inprogress"):
        path.unlink()
    abandon([one, two], lake.run("r2"))
    assert {path: Path(path).read_bytes() for path in before} == before
    assert lake.view(one.name) == lake.view(two.name) == BEFORE
    assert not list(manifest.unfinished(lake.state))


def test_of_two_outputs_neither_loses_an_old_file_before_both_have_all_new_ones(lake: Lake) -> None:
    one, two = lake.output("one", replace="all"), lake.output("two", replace="all")
    for run, batch in ((lake.run("r1"), OLD), (lake.run("r2"), NEW)):
        steps = commit_steps(lake.work(run, [one, two], [*lake.stage(run, one, batch), *lake.stage(run, two, batch)]))
        if run.run_id == "r1":
            list(steps)
    until(steps, "decide")
    staged(lake, "two")[-1].unlink()
    with pytest.raises(StagedFileGoneError, match="is gone"):
        list(steps)
    abandon([one, two], lake.run("r2"))
    assert lake.view("one") == lake.view("two") == lake.glob("one") == lake.glob("two") == BEFORE


def test_taking_back_stopped_after_any_step_readers_see_what_was_before_and_it_can_be_redone(tmp_path: Path) -> None:
    for stop in range(7):
        lake = Lake(tmp_path / str(stop))
        lake.go("r1", lake.output(), OLD)
        lost_after(lake, "move out")
        (lost,) = manifest.unfinished(lake.state)
        steps = finish(lake.state, lost)
        done = []
        for _ in range(stop):
            done.append(next(steps, "end"))
            assert lake.view() == BEFORE, done
        steps.close()
        abandon([lake.output()], lake.run("r2"))
        assert lake.view() == lake.glob() == BEFORE, done
        assert manifest.numbers(lake.state) == [1, 2, 3], done
        assert not list(manifest.unfinished(lake.state))
    assert done[-1] == "end"


def test_what_another_output_has_committed_since_stays(lake: Lake) -> None:
    first = lake.output()
    lake.go("r1", first, OLD)
    lost_after(lake)
    moved = lake.run("r3")
    newest = manifest.latest(lake.state)
    other = lake.output("other")
    work = lake.work(moved, [other], lake.stage(moved, other, OLD))
    plan = committing._plan(work, newest, frozenset())  # as by a run that began while r2 was at work
    assert manifest.decide(lake.state, plan)
    list(committing.carry_out(lake.state, plan))
    abandon([first], lake.run("r2"))
    assert (lake.view(), lake.view("other")) == (BEFORE, BEFORE)
    assert not list(manifest.unfinished(lake.state))
    lake.go("r4", first, NEW)
    assert (lake.view(), lake.view("other")) == (AFTER, BEFORE)


def test_an_output_that_moved_is_back_at_its_old_place(lake: Lake) -> None:
    lake.go("r1", lake.output(), OLD)
    run, there = lake.run("r2"), replace(lake.output("there"), name="out")
    until(commit_steps(lake.work(run, [there], lake.stage(run, there, NEW))), "decide")
    staged(lake, "there")[-1].unlink()
    abandon([there], run)
    assert lake.view() == BEFORE
    newest = manifest.latest(lake.state)
    assert newest is not None
    assert [snapshot.path for snapshot in newest.places] == [lake.output().path]


def test_the_account_of_files_read_is_that_before(lake: Lake) -> None:
    def work(run_id: str, batch: Any) -> Work:
        run = lake.run(run_id)
        return replace(lake.work(run, [lake.output()], lake.stage(run, lake.output(), batch)), stock=Stock("code", {}))

    list(commit_steps(work("r1", OLD)))
    until(commit_steps(work("r2", NEW)), "decide")
    staged(lake)[-1].unlink()
    abandon([lake.output()], lake.run("r2"))
    first, lost, back = (manifest.read_commit(lake.state, number) for number in (1, 2, 3))
    assert first is not None
    assert lost is not None
    assert back is not None
    assert first.inventory == back.inventory != lost.inventory


def test_what_was_before_stays_on_record_while_it_may_be_needed(lake: Lake) -> None:
    lake.go("r1", lake.output(), OLD)
    lost_after(lake)
    manifest.forget_old(lake.state, keep=1)
    abandon([lake.output()], lake.run("r2"))
    assert lake.view() == lake.glob() == BEFORE


def test_a_file_deleted_by_hand_after_its_run_was_recorded_takes_nothing_back(lake: Lake) -> None:
    until(lake.steps(lake.run("r2"), lake.output(), NEW), "record")
    doomed = next(path for path in (lake.folder / "out").rglob("*.parquet") if "k=c" in str(path))
    doomed.unlink()
    abandon([lake.output()], lake.run("r2"))
    found = find_run(lake.state, "r2")
    assert found is not None
    assert found.status == "success"
    assert not list(manifest.unfinished(lake.state))
    assert len(lake.glob()) == 2
    lake.go("r3", lake.output(), NEW)
    assert lake.view() == lake.glob() == AFTER[1:]


def test_where_what_was_before_is_gone_too_the_error_says_what_helps(lake: Lake) -> None:
    lake.go("r1", lake.output(), OLD)
    old = next((lake.folder / "out").rglob("k=b/*.parquet"))
    lost_after(lake)
    old.unlink()
    with pytest.raises(SinkError, match=rf"is gone, and so is what it replaces: {old}\. .*create the empty file ") as refused:
        abandon([lake.output()], lake.run("r2"))
    assert lake.view("none") == []
    Path(str(refused.value).partition("create the empty file ")[2].partition(",")[0]).touch()
    run = lake.run("r3")
    prepare([lake.output()], run)
    abandon([lake.output()], run)
    lake.go("r4", lake.output(), NEW)
    assert lake.view() == lake.glob() == AFTER


def test_a_commit_stands_on_none_that_is_not_carried_out(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run over another range decides between the look at what is unfinished and the decision: it could not be taken back any more."""
    output, look = lake.output(), manifest.unfinished
    one, two = ranged(lake, "a", 0, 10), ranged(lake, "b", 10, 20)
    first = commit_steps(lake.work(one, [output], lake.stage(one, output, rows((1, "x")))))
    second = commit_steps(lake.work(two, [output], lake.stage(two, output, rows((11, "y")))))
    assert (next(first), next(second)) == ("claim", "claim")
    secure, deciding = committing._secure, iter([first])

    def decided_meanwhile(state: str) -> Iterator[manifest.CommitEntry]:
        yield from look(state)
        for steps in deciding:
            until(steps, "decide")

    def secured(work: Work) -> None:
        secure(work)
        monkeypatch.setattr(manifest, "unfinished", decided_meanwhile)  # the next who looks is about to decide

    monkeypatch.setattr(committing, "_secure", secured)
    until(second, "decide")
    assert [manifest.is_done(lake.state, number) for number in (1, 2)] == [True, False]
    for steps in (first, second):
        list(steps)
    assert lake.view() == lake.glob() == [(1, "x"), (11, "y")]


def test_who_carries_out_what_another_has_done_by_then_changes_nothing(lake: Lake) -> None:
    """Its staged parts are gone then, and long afterwards its record too."""
    output = lake.output("out.csv", format="csv", partitions=())
    steps = lake.steps(lake.run("r1"), output, OLD)
    until(steps, "decide")
    (decided,) = manifest.unfinished(lake.state)
    list(steps)
    for _ in range(2):
        list(finish(lake.state, decided))
        assert lake.view("out.csv") == BEFORE
        assert manifest.numbers(lake.state) == [1]
        Path(lake.state, "runs", "r1.json").unlink(missing_ok=True)


def test_the_table_of_an_output_is_loaded_again_as_it_was(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its new files were loaded, and somebody deleted one before the run was recorded."""
    loaded: list[Loading] = []
    monkeypatch.setattr(load_jobs, "load", loaded.append)
    monkeypatch.setattr(load_jobs, "fits", lambda *_: True)
    output = lake.output(table=Table("p.d.t"))
    lake.go("r1", output, OLD)
    until(lake.steps(lake.run("r2"), output, rows((3, "c"))), "load out")
    next((lake.folder / "out").rglob("k=c/*.parquet")).unlink()
    abandon([output], lake.run("r2"))
    assert lake.view() == lake.glob() == BEFORE
    assert len({loading.commit for loading in loaded}) == len(loaded) == 3
    assert [sorted(loading.loads[0].files) for loading in loaded][2::-2] == [sorted(manifest.live_files(lake.state, "out"))] * 2
