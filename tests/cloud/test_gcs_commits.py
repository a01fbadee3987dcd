"""Commits on Cloud Storage: killed after any step, racing one another, cut off in the middle; and what one costs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from beam_pipelines.errors import SinkError
from beam_pipelines.places import delete_tree, list_files
from beam_pipelines.sinks import claims, manifest
from beam_pipelines.sinks.claims import claim, holders, release
from beam_pipelines.sinks.committing import prepare
from beam_pipelines.sinks.epochs import Fence, latest_epoch, take_epoch
from beam_pipelines.sinks.manifest import numbers, unfinished
from tests.cloud.gcs_lake import GsLake, committing, killed_after, preparing
from tests.cloud.gcs_server import GcsServer
from tests.sinks.children import start
from tests.sinks.lake import rows

pytestmark = pytest.mark.cloud

OLD = [(1, "a"), (2, "b")]
NEW = [(1, "a"), (3, "b"), (4, "c"), (5, None)]
STEPS = 11


@pytest.fixture
def lake(gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> GsLake:
    for name, value in gcs.environment.items():
        monkeypatch.setenv(name, value)
    return GsLake.of(gcs.bucket())


def test_a_run_replaces_its_partitions_and_running_twice_leaves_no_orphan(lake: GsLake) -> None:
    for run in ("r1", "r2"):
        lake.go(run, lake.output(), rows(*OLD))  # type: ignore[arg-type]
    lake.go("r3", lake.output(), rows((3, "b")))
    assert lake.view() == lake.glob() == [(1, "a"), (3, "b")]
    assert not holders(lake.output())


@pytest.mark.parametrize("stop", range(STEPS))
def test_a_killed_run_leaves_old_or_new_rows_and_the_next_run_ends_or_forgets_it(lake: GsLake, gcs: GcsServer, stop: int) -> None:
    lake.go("r1", lake.output(), rows(*OLD))  # type: ignore[arg-type]
    process, _ = start(killed_after, gcs.environment, str(lake.folder), stop)
    process.join(60)
    assert process.exitcode == -9
    decided = len(numbers(lake.state)) == 2
    assert lake.view() in ((OLD, NEW) if decided else (OLD,))
    prepare([lake.output("other")], lake.run("r3"))
    assert not list(unfinished(lake.state))
    lake.go("r4", lake.output(), rows((9, "z")))
    assert lake.view() == lake.glob() == sorted([*(NEW if decided else OLD), (9, "z")], key=repr)
    names = gcs.names(str(lake.folder), "out/")
    assert len(names) == len({n.rpartition("/")[0] for n in names})  # a file per partition, nothing staged, no claim


def test_commits_of_different_outputs_race_and_both_are_kept(lake: GsLake, gcs: GcsServer) -> None:
    """They share the list of commits: each number is taken once, and the loser builds on the winner."""
    children = [start(committing, gcs.environment, str(lake.folder), f"r{n}", f"out{n}") for n in range(4)]
    for _, connection in children:
        assert connection.recv() == "ready"
    for _, connection in children:
        connection.send("go")
    assert [connection.recv() for _, connection in children] == ["committed"] * 4
    for process, _ in children:
        process.join(30)
    assert numbers(lake.state) == [1, 2, 3, 4]
    assert [lake.view(f"out{n}") for n in range(4)] == [[(1, f"r{n}")] for n in range(4)]


def test_of_many_runs_of_one_output_at_once_one_holds_it(lake: GsLake, gcs: GcsServer) -> None:
    children = [start(preparing, gcs.environment, str(lake.folder), f"r{n}") for n in range(4)]
    for _, connection in children:
        connection.send("go")
    assert sorted(connection.recv() for _, connection in children) == ["held", "refused", "refused", "refused"]
    for process, connection in children:
        connection.send("end")
        process.join(30)
    lake.go("last", lake.output(), rows((1, "a")))
    assert lake.view() == [(1, "a")]


def _twice(act: Callable[[], object]) -> list[object]:
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(act())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_every_start_takes_an_epoch_of_its_own_and_fences_the_earlier(lake: GsLake) -> None:
    assert sorted(_twice(lambda: take_epoch(lake.state, "s"))) == [1, 2, 3, 4]  # type: ignore[type-var]
    assert latest_epoch(lake.state) == 4
    Fence(lake.state, 4)()
    with pytest.raises(Exception, match="taken over by a later start"):
        Fence(lake.state, 3)()


def test_a_service_that_is_away_for_seconds_in_the_middle_of_a_commit_delays_it(
    own_gcs: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in own_gcs.environment.items():
        monkeypatch.setenv(name, value)
    lake, gate = GsLake.of(own_gcs.bucket()), own_gcs.gate
    assert gate is not None
    lake.go("r1", lake.output(), rows(*OLD))  # type: ignore[arg-type]
    run = lake.run("r2")
    for number, _ in enumerate(lake.steps(run, lake.output(), rows((3, "b"), (4, "c"), (5, None)))):
        if number in (1, 3):
            gate.away()
            threading.Timer(5 if number == 1 else 1, gate.back).start()
    assert lake.view() == lake.glob() == NEW


def test_a_decision_whose_answer_is_lost_is_made_once(own_gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in own_gcs.environment.items():
        monkeypatch.setenv(name, value)
    lake = GsLake.of(own_gcs.bucket())
    lost = own_gcs.gate.lose(when=lambda _, target: "ifGenerationMatch=0" in target, times=2)  # type: ignore[union-attr]
    lake.go("r1", lake.output(), rows(*OLD))  # type: ignore[arg-type]
    assert lost.hits == 2  # of the claim, and of the decision
    assert list_files(f"{lake.state}/commits") == ["00000001.done", "00000001.json"]
    assert lake.view() == OLD


@pytest.mark.parametrize("act", ["/rewriteTo/", "DELETE", "prefix=out"])
def test_moves_deletions_and_looks_of_a_commit_are_under_way_at_once(own_gcs: GcsServer, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    """Four requests wait for one another: one after the other they would for ever."""
    for name, value in own_gcs.environment.items():
        monkeypatch.setenv(name, value)
    lake, met = GsLake.of(own_gcs.bucket()), threading.Barrier(4)
    many = [(n, f"p{n}") for n in range(8)]
    lake.go("r1", lake.output(), rows(*many))  # type: ignore[arg-type]

    def meet(method: str, target: str) -> None:
        if act in f"{method} {target}" and "k%3Dp" in target:
            with suppress(threading.BrokenBarrierError):
                met.wait(30)

    own_gcs.gate.before = meet  # type: ignore[union-attr]
    lake.go("r2", lake.output(), rows(*many))  # type: ignore[arg-type]
    assert not met.broken
    assert lake.view() == lake.glob() == many


def test_a_move_that_is_refused_ends_the_commit_and_the_next_run_carries_it_out(
    own_gcs: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in own_gcs.environment.items():
        monkeypatch.setenv(name, value)
    lake = GsLake.of(own_gcs.bucket())
    many = [(n, f"p{n:02d}") for n in range(100)]
    refused = own_gcs.gate.answer(403, when=lambda _, target: "/rewriteTo/" in target and "p07" in target)  # type: ignore[union-attr]
    with pytest.raises(SinkError, match="permission denied"):
        lake.go("r1", lake.output(), rows(*many))  # type: ignore[arg-type]
    assert [c.run_id for c in unfinished(lake.state)] == ["r1"]
    assert 0 < len(own_gcs.names(str(lake.folder), "out/k=")) < 100, "those under way were done, others not begun"
    refused.times = 0
    release([lake.output()], lake.run("r1"))
    lake.go("r2", lake.output(), rows((100, "p99")))
    assert lake.view() == lake.glob() == sorted([*many[:-1], (100, "p99")], key=repr)


def _grown_old(lake: GsLake, gcs: GcsServer) -> None:
    """The claim, as if its run, on another machine, had said nothing for years."""
    blob = gcs.client().bucket(str(lake.folder)).blob("out/.staging/claim.json")
    held = json.loads(blob.download_as_bytes())
    held["owner"]["machine"], held["renewed_at"] = "elsewhere", "2013-01-01T00:00:00Z"
    blob.upload_from_string(json.dumps(held))


@pytest.mark.parametrize("moment", ["listed", "read"])
def test_of_two_who_have_both_seen_a_stale_claim_one_takes_it(
    lake: GsLake, gcs: GcsServer, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    claim([lake.output()], lake.run("dead"))
    _grown_old(lake, gcs)
    quicker = iter([lake.run("quicker")])

    def later(act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*arguments: Any) -> Any:
            for run in quicker:  # comes between our look and our act
                claim([lake.output()], run)
            return act(*arguments)

        return acting

    for name in ("_stale",) if moment == "listed" else ("swap", "create_new", "delete"):
        monkeypatch.setattr(claims, name, later(getattr(claims, name)))
    with pytest.raises(SinkError, match="run 'quicker' writes it"):
        claim([lake.output()], lake.run("slower"))
    assert [held.run_id for held in holders(lake.output())] == ["quicker"]


def test_a_renewal_does_not_undo_that_the_claim_was_taken_over(lake: GsLake, gcs: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    claim([lake.output()], lake.run("asleep"))
    _grown_old(lake, gcs)
    swap, others = claims.swap, iter([lake.run("other")])

    def later(*arguments: Any) -> bool:
        for run in others:
            claim([lake.output()], run)
        return swap(*arguments)

    monkeypatch.setattr(claims, "swap", later)
    with pytest.raises(SinkError, match="run 'other' writes it"):
        claim([lake.output()], lake.run("asleep"))
    assert [held.run_id for held in holders(lake.output())] == ["other"]


def test_without_its_staged_files_a_run_decides_nothing(lake: GsLake) -> None:
    lake.go("r1", lake.output(), rows(*OLD))  # type: ignore[arg-type]
    run = lake.run("r2")
    steps = lake.steps(run, lake.output(), rows((3, "b"), (4, "c")))
    delete_tree(f"{lake.output().staging}/r2.1")
    with pytest.raises(SinkError, match="of 2 staged files 2 are gone"):
        list(steps)
    assert numbers(lake.state) == [1]
    assert not holders(lake.output())


def test_a_run_that_its_launcher_elsewhere_gives_up_as_it_decides_is_taken_back(lake: GsLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing locks between machines: what is decided right after the last look cannot be carried out, and does not stand in the way."""
    lake.go("r1", lake.output(), rows(*OLD))  # type: ignore[arg-type]
    decide = manifest.decide

    def late(*arguments: Any) -> bool:
        delete_tree(f"{lake.output().staging}/r2.1")
        release([lake.output()], lake.run("r2"))
        return decide(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "decide", late)
        with pytest.raises(SinkError, match=r"its staged file .* is gone"):
            lake.go("r2", lake.output(), rows((3, "b"), (4, "c")))
    lake.go("r3", lake.output("other"), rows((1, "a")))
    assert lake.view() == lake.glob() == OLD
    assert not list(unfinished(lake.state))
    lake.go("r2", lake.output(), rows((3, "b")), attempt="2")
    assert lake.view() == lake.glob() == [(1, "a"), (3, "b")]


def test_requests_of_a_commit(lake: GsLake, gcs: GcsServer) -> None:
    """The figures of docs/cloud-storage.md: for each partition written 4 more, of which 1 is free."""
    lake.go("r0", lake.output(), rows((0, "p0")))
    found = []
    for partitions in (1, 3):
        with gcs.counted() as requests:
            lake.go(f"r{partitions}", lake.output(), rows(*((n, f"p{n}") for n in range(partitions))))
        found.append(requests)
    one, three = found
    assert {kind: (three[kind] - one[kind]) / 2 for kind in three if three[kind] != one[kind]} == {
        "UPLOAD": 1,
        "REWRITE": 1,
        "LIST": 1,
        "DELETE": 1,
    }
    assert one == {"LIST": 13, "GET media": 9, "UPLOAD": 5, "DELETE": 3, "GET metadata": 1, "REWRITE": 1}
