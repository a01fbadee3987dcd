"""Claims: renewed while their run lives, taken over by one of all who try, and given back whatever comes between."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.errors import SinkError
from beam_pipelines.places import Held
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.sinks import claims, committing, manifest
from beam_pipelines.sinks.claims import claim, holders, release, renewing, stale
from beam_pipelines.sinks.committing import abandon, commit_steps, prepare
from beam_pipelines.sinks.plan import outputs_of
from beam_pipelines.sinks.run import Output, RunInfo
from beam_pipelines.spec.load import load_spec
from tests.sinks.lake import Lake
from tests.sinks.test_committing import BEFORE, NEW, OLD, ranged


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def grow_old(lake: Lake, name: str = "out") -> None:
    """As if its run, on another machine, had said nothing for years."""
    path = Path(lake.output(name).staging, "claim.json")
    held = json.loads(path.read_text())
    held["owner"]["machine"], held["renewed_at"] = "elsewhere", "2013-01-01T00:00:00Z"
    path.write_text(json.dumps(held))


def passes(count: int) -> Any:
    """What lets a renewing thread work so often, and an event that says that it has."""
    left, worked = iter(range(count)), threading.Event()

    def wait(ended: threading.Event) -> bool:
        if next(left, None) is None:
            worked.set()
            return False
        return True

    return wait, worked


def test_a_claim_is_renewed_for_as_long_as_its_run_is_waited_for(lake: Lake) -> None:
    claim([lake.output()], lake.run("r1"))
    grow_old(lake)
    wait, worked = passes(1)
    with renewing([lake.output()], lake.run("r1"), wait=wait):
        assert worked.wait(60)
    (held,) = holders(lake.output())
    assert not stale(held)
    with pytest.raises(SinkError, match="run 'r1' writes it"):
        prepare([lake.output()], lake.run("r2"))


def test_what_another_run_holds_by_now_is_never_renewed_nor_given_back(lake: Lake) -> None:
    claim([lake.output()], lake.run("r1"))
    grow_old(lake)
    claim([lake.output()], lake.run("r2"))
    before = holders(lake.output())
    wait, worked = passes(1)
    with renewing([lake.output()], lake.run("r1"), wait=wait):
        assert worked.wait(60)
    release([lake.output()], lake.run("r1"))
    assert holders(lake.output()) == before


def test_a_claim_that_is_gone_is_not_renewed(lake: Lake) -> None:
    claim([lake.output()], lake.run("r1"))
    release([lake.output()], lake.run("r1"))
    wait, worked = passes(1)
    with renewing([lake.output()], lake.run("r1"), wait=wait):
        assert worked.wait(60)
    assert lake.files() == []


def test_a_claim_that_is_renewed_while_it_is_given_back_is_given_back(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    claim([lake.output()], lake.run("r1"))
    read, renewals = claims.read_held, iter([True])

    def renewed_meanwhile(path: str) -> Held | None:
        found = read(path)
        if next(renewals, False):
            claim([lake.output()], lake.run("r1"))
        return found

    monkeypatch.setattr(claims, "read_held", renewed_meanwhile)
    release([lake.output()], lake.run("r1"))
    assert holders(lake.output()) == []


def test_a_run_whose_claim_was_taken_over_commits_nothing(lake: Lake) -> None:
    lake.go("r0", lake.output(), OLD)
    run, other = lake.run("r1"), lake.run("r2")
    prepare([lake.output()], run)
    work = lake.work(run, [lake.output()], lake.stage(run, lake.output(), NEW))
    grow_old(lake)
    prepare([lake.output()], other)
    with pytest.raises(SinkError, match="run 'r2' writes it"):
        list(commit_steps(work))
    abandon([lake.output()], other)
    with pytest.raises(SinkError, match=r"of 3 staged files 3 are gone: .*another run took its claim over"):
        list(commit_steps(work))
    assert manifest.numbers(lake.state) == [1]
    assert lake.view() == lake.glob() == BEFORE
    assert not holders(lake.output())


def test_a_claim_taken_over_after_the_commit_has_begun_is_noticed_before_it_decides(lake: Lake) -> None:
    run = lake.run("r1")
    steps = lake.steps(run, lake.output(), NEW)
    assert next(steps) == "claim"
    grow_old(lake)
    claim([lake.output()], lake.run("r2"))
    with pytest.raises(SinkError, match="run 'r2' writes it"):
        list(steps)
    assert manifest.numbers(lake.state) == []


def decided_and_dead(lake: Lake) -> tuple[Output, Output]:
    """Two outputs of a run that has decided its commit, and no more."""
    one, two = lake.output("one"), lake.output("two")
    run = lake.run("r1")
    steps = commit_steps(lake.work(run, [one, two], [*lake.stage(run, one, OLD), *lake.stage(run, two, OLD)]))
    while next(steps) != "decide":
        pass
    release([one, two], run)
    return one, two


def test_outputs_claimed_to_carry_out_a_dead_runs_commit_are_given_back_where_that_fails(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = decided_and_dead(lake)

    def refused(*_: str) -> None:
        raise SinkError("the disk is full")

    monkeypatch.setattr(committing, "move", refused)
    with pytest.raises(SinkError, match="the disk is full"):
        prepare([one], lake.run("r2"))
    assert holders(one) == holders(two) == []
    monkeypatch.undo()
    prepare([one], lake.run("r3"))
    assert lake.view("one") == lake.view("two") == BEFORE


def test_what_a_dead_run_has_decided_stays_staged_while_it_cannot_be_carried_out(lake: Lake) -> None:
    """Two runs begin at once, each with one of the two outputs that a dead run had: neither may touch both, and neither sweeps."""
    one, two = decided_and_dead(lake)
    claim([two], lake.run("r2"))
    prepare([one], lake.run("r3"))
    assert manifest.numbers(lake.state) == [1]
    assert not manifest.is_done(lake.state, 1)
    release([two], lake.run("r2"))
    abandon([one], lake.run("r3"))
    prepare([two], lake.run("r4"))
    assert lake.view("one") == lake.view("two") == BEFORE
    assert manifest.numbers(lake.state) == [1]


def test_a_range_takes_over_stale_claims_of_ranges_that_overlap_and_no_others(lake: Lake) -> None:
    output = lake.output()
    for run in (ranged(lake, "a", 0, 10), ranged(lake, "b", 20, 30)):
        claim([output], run)
    for path in Path(output.staging).glob("claim-*.json"):
        held = json.loads(path.read_text())
        held["owner"]["machine"], held["renewed_at"] = "elsewhere", "2013-01-01T00:00:00Z"
        path.write_text(json.dumps(held))
    claim([output], ranged(lake, "c", 5, 15))
    assert [held.run_id for held in holders(output)] == ["b", "c"]
    assert [held.run_id for held in holders(output) if stale(held)] == ["b"]


SPEC = """
spec: 1
pipeline: claimed
contract: {key: [n], columns: {n: {type: int32}}}
sources: {batch: [{files: "in.jsonl", format: json}]}
sinks: [{from: rows, parquet: {path: out}}]
"""


def test_a_batch_run_renews_its_claims_while_its_job_runs_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "in.jsonl").write_text('{"n": 1}\n')
    loaded, renewed = load_spec(tmp_path / "spec.yaml"), threading.Event()
    outputs = outputs_of(loaded.spec, RunInfo("r1", "claimed", loaded.state))
    real = claims._renewed

    def seen(*arguments: Any) -> bool:
        done = real(*arguments)
        if threading.current_thread().name == "claims" and done:
            renewed.set()
        return done

    @contextmanager
    def watch() -> Iterator[None]:
        assert renewed.wait(60)
        assert [held.run_id for output in outputs for held in holders(output)] == ["r1"] * len(outputs)
        yield

    monkeypatch.setattr(claims, "RENEW_EVERY_S", 0.01)
    monkeypatch.setattr(claims, "_renewed", seen)
    assert run_batch(loaded, Call(run_id="r1", watch=watch)).status == "success"
    assert not any(map(holders, outputs))
    for thread in threading.enumerate():
        if thread.name == "claims":
            thread.join(60)
            assert not thread.is_alive()
