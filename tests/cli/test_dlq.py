"""`dlq replay`, `dlq discard`, `dlq inspect --history`: what a person calls and reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.cli.main import command, run_command
from beam_pipelines.sinks.epochs import take_epoch
from beam_pipelines.sinks.results import write_run
from tests.cli.conftest import Call, written_orders
from tests.runs import read_run

KEY = "00" * 32


@pytest.fixture
def open_orders(orders: Path) -> Path:
    """The orders without anything to hide; a run gives three letters."""
    return nothing_hidden(orders)


@pytest.fixture(scope="module")
def open_letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, run once: for tests that change nothing."""
    spec = nothing_hidden(written_orders(tmp_path_factory.mktemp("letters")))
    assert run_command(command, ["run", str(spec)]) == 0
    return spec


def nothing_hidden(orders: Path) -> Path:
    orders.write_text(
        orders.read_text()
        .replace(", sensitive: redact", "")
        .replace('csv: {path: "${lake}/by_hour.csv"}', 'parquet: {path: "${lake}/by_hour"}')
    )
    return orders


def repair(orders: Path) -> None:
    orders.write_text(orders.read_text().replace("min: 0}", "min: -5}"))


def counts(call: Call, orders: Path) -> dict[str, int]:
    found = json.loads(call("dlq", "inspect", orders, "--json").out)
    return {f"{g['stage']}:{g['reason']}": g["rows"] for g in found["groups"]}


@pytest.mark.slow
def test_a_replay_says_what_it_will_do_does_it_and_keeps_the_history(call: Call, open_orders: Path) -> None:
    call("run", open_orders)
    assert sum(counts(call, open_orders).values()) == 3
    repair(open_orders)
    plan = json.loads(call("dlq", "replay", open_orders, "--dry-run", "--json").out)
    assert (plan["letters"], plan["fates"]) == (3, {"still refused": 2, "replay": 1})
    assert len(json.loads(call("dlq", "inspect", open_orders, "--json", "--history").out)["history"]) == 0

    out = call("dlq", "replay", open_orders).out
    assert "3 open letters:" in out
    assert "  1 go through the graph again" in out
    assert "  2 would be refused again" in out
    assert out.endswith("1 letter resolved\n")
    assert call("query", open_orders, "SELECT id FROM rows ORDER BY id", "--format", "csv").out.split() == ["id", "1", "3", "5", "6"]
    assert sum(counts(call, open_orders).values()) == 2
    (past,) = json.loads(call("dlq", "inspect", open_orders, "--json", "--all").out)["history"]
    assert (past["how"], past["reason"], past["rows"]) == ("replayed", "CHECK", 1)
    assert past["run"] in call("runs", open_orders, "--format", "csv").out
    assert "replayed  validate  CHECK" in call("dlq", "inspect", open_orders, "--history", "--reason", "check").out

    again = json.loads(call("dlq", "replay", open_orders, "--json").out)
    assert (again["fates"], again["runs"], again["resolved"]) == ({"still refused": 2}, [], 0)


@pytest.mark.slow
def test_discarded_letters_stay_discarded_and_are_told_of(call: Call, open_orders: Path) -> None:
    call("run", open_orders)
    ledger = "SELECT read, dead FROM runs"
    before = call("query", open_orders, ledger, "--format", "csv").out
    assert (
        "would discard 1 record: validate:CHECK 1"
        in call("dlq", "discard", open_orders, "--reason", "check", "--why", "a test", "--dry-run").out
    )
    assert sum(counts(call, open_orders).values()) == 3
    assert "discarded 1 record: validate:CHECK 1" in call("dlq", "discard", open_orders, "--reason", "check", "--why", "a test").out
    assert sum(counts(call, open_orders).values()) == 2
    assert call("query", open_orders, ledger, "--format", "csv").out == before
    call("run", open_orders)
    assert sum(counts(call, open_orders).values()) == 2  # the same record, refused again
    shown = call("dlq", "inspect", open_orders, "--history").out
    assert "discarded  validate  CHECK" in shown
    assert "a test" in shown
    data = open_orders.parent / "orders.csv"
    data.write_text(data.read_text().replace("5,2024-05-02T09:45:00Z,north,-3.00", "5,2024-05-02T09:45:00Z,north,-4.00"))
    call("run", open_orders)
    assert sum(counts(call, open_orders).values()) == 3  # another record in its place
    assert "no open dead letter fits" in call("dlq", "discard", open_orders, "--where", "reason = 'LATE'", "--why", "x").out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["replay", "--where", "reson = 'CHECK'"], '--where: Binder Error: Referenced column "reson" not found'),
        (["replay", "--where", "reason ="], "--where: Parser Error"),
        (["replay", "--where", "TRUE); DROP TABLE rows; --"], "--where: "),
        (["replay", "--reason", "CHEK"], "no open dead letter has the reason 'CHEK'; did you mean 'CHECK'?"),
        (["replay", "--topic", "projects/p/topics/t"], "--topic: is for --into stream."),
        (["replay", "--into", "stream", "--ignore-stream"], "--ignore-stream: is for --into batch."),
        (["discard", "--why", "x"], "dlq discard: which letters? Say --where or --reason; --where TRUE means all."),
        (["discard", "--where", "TRUE", "--why", " "], "--why: is empty"),
        (["discard", "--where", "TRUE"], "Missing option '--why'"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_changes_nothing(call: Call, open_letters: Path, words: list[str], says: str) -> None:
    verb, *rest = words
    assert says in call("dlq", verb, open_letters, *rest, code=2).err
    resolutions = open_letters.parent / ".beam_pipelines" / "orders" / "resolutions"
    assert [path.name for path in resolutions.iterdir()] == ["none.parquet"]


def test_nothing_that_fits_is_no_error(call: Call, open_orders: Path) -> None:
    assert "nothing has been committed to 'dead_letters' yet" in call("dlq", "replay", open_orders, code=2).err
    call("run", open_orders)
    assert "no open dead letter fits" in call("dlq", "replay", open_orders, "--where", "reason = 'LATE'").out
    assert json.loads(call("dlq", "replay", open_orders, "--where", "FALSE", "--json").out) == {"letters": 0}


def test_limit_takes_the_first_records(call: Call, open_letters: Path) -> None:
    assert json.loads(call("dlq", "replay", open_letters, "--limit", "2", "--dry-run", "--json").out)["letters"] == 2


def test_letters_of_files_are_not_for_the_stream(call: Call, open_letters: Path) -> None:
    done = call("dlq", "replay", open_letters, "--into", "stream")
    assert "3 are records of files: use --into batch" in done.out
    assert done.out.endswith("nothing was sent\n")


@pytest.mark.slow
def test_a_run_that_fails_leaves_letters_open_and_exits_with_1(call: Call, open_orders: Path) -> None:
    call("run", open_orders)
    repair(open_orders)
    done = call("dlq", "replay", open_orders, "--set", "least=100", code=1)
    assert "failed: check 'enough_rows' failed" in done.out
    assert "0 letters resolved; 1 letter of those replayed still open" in done.out
    assert sum(counts(call, open_orders).values()) == 3
    call("dlq", "replay", open_orders)
    assert sum(counts(call, open_orders).values()) == 2


def test_letters_of_a_run_that_passed_its_threshold_are_inspected_by_its_id(call: Call, open_orders: Path) -> None:
    open_orders.write_text(open_orders.read_text() + "thresholds: {dead_letters: 0.01}\n")
    out = call("run", open_orders, "--run-id", "bad", code=1).out
    assert f"Its 3 dead letters are kept in {open_orders.parent}/lake/dead_letters/.failed: beam-pipelines dlq inspect" in out
    assert "Batch bad failed; its 3 letters are apart: say --run bad." in call("dlq", "inspect", open_orders, code=2).err
    told = call("dlq", "inspect", open_orders, "--run", "bad").out
    assert "3 records refused" in told
    assert "| 2,2024-05-01T10:30:00Z,north,abc," in told
    assert "1 record refused" in call("dlq", "inspect", open_orders, "--run", "bad", "--reason", "cast").out

    open_orders.write_text(open_orders.read_text().replace("thresholds: {dead_letters: 0.01}\n", ""))
    call("run", open_orders, "--run-id", "good")
    assert sum(counts(call, open_orders).values()) == 3, "those of the failed run are not among the committed ones"
    assert "3 records refused" in call("dlq", "inspect", open_orders, "--run", "good", "--where", "TRUE -- all").out
    assert "3 records refused" in call("dlq", "inspect", open_orders, "--run", "bad").out
    assert "run 'none': no such run" in call("dlq", "inspect", open_orders, "--run", "none", code=1).err


def test_batches_that_failed_are_named_whatever_ran_since_until_one_over_the_same_range_succeeds(call: Call, open_orders: Path) -> None:
    open_orders.write_text(open_orders.read_text() + "thresholds: {dead_letters: 0.01}\n")
    for run_id in ("b1", "b2"):
        call("run", open_orders, "--run-id", run_id, code=1)
    state = str(open_orders.parent / ".beam_pipelines" / "orders")
    bad = read_run(state, "b1")

    def ran(run_id: str, **how: Any) -> None:
        about = replace(bad.metadata, run_id=run_id, started_at="2999-01-01T00:00:00Z", **how)
        write_run(state, replace(bad, metadata=about, status="success", kept_letters=None))

    def told() -> str:
        return call("dlq", "inspect", open_orders, code=2).err

    both = "Batch b2 failed; its 3 letters are apart: say --run b2. Batch b1 failed; its 3 letters are apart: say --run b1."
    assert both in told()
    ran("a_stream", mode="stream")
    ran("another_day", range=("2024-05-01T00:00:00Z", "2024-05-02T00:00:00Z"))
    assert both in told()
    ran("all")
    assert "Batch" not in told()


def test_letters_of_a_run_without_a_record_and_starts_that_were_killed_are_inspected_by_their_id(call: Call, open_orders: Path) -> None:
    assert "run 'good': no such run" in call("dlq", "inspect", open_orders, "--run", "good", code=1).err
    call("run", open_orders, "--run-id", "good")
    state = open_orders.parent / ".beam_pipelines" / "orders"
    (state / "runs" / "good.json").unlink()
    assert "3 records refused" in call("dlq", "inspect", open_orders, "--run", "good").out
    assert "run 's1': no such run" in call("dlq", "inspect", open_orders, "--run", "s1", code=1).err
    take_epoch(str(state), "s1")
    assert "no dead letters fit in" in call("dlq", "inspect", open_orders, "--run", "s1").out
    call("dlq", "discard", open_orders, "--where", "TRUE", "--why", "x")
    assert "no dead letters fit in" in call("dlq", "inspect", open_orders, "--run", "good").out


def test_letters_in_a_csv_file_are_inspected_and_replayed(call: Call, open_orders: Path) -> None:
    open_orders.write_text(open_orders.read_text().replace('parquet: {path: "${lake}/dead_letters"}', 'csv: {path: "${lake}/dead.csv"}'))
    call("run", open_orders)
    assert sum(counts(call, open_orders).values()) == 3
    repair(open_orders)
    assert call("dlq", "replay", open_orders).out.endswith("1 letter resolved\n")


def test_sealed_letters_need_the_key_and_their_records_are_replayed(call: Call, orders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders.write_text(orders.read_text().replace("transform:", "dead_letters: {raw_key: env:RAW_KEY}\ntransform:", 1))
    monkeypatch.setenv("RAW_KEY", KEY)
    call("run", orders)
    repair(orders)
    monkeypatch.delenv("RAW_KEY")
    assert "dead_letters.raw_key: secret env:RAW_KEY: the environment variable is not set" in call("dlq", "replay", orders, code=2).err
    monkeypatch.setenv("RAW_KEY", KEY)
    assert call("dlq", "replay", orders).out.endswith("1 letter resolved\n")
    assert "5" in call("query", orders, "SELECT id FROM rows", "--format", "csv").out.split()


def test_letters_without_their_bytes_are_replayed_from_the_file(call: Call, orders: Path) -> None:
    call("run", orders)  # a sensitive column and no key: raw bytes are left out
    repair(orders)
    assert call("dlq", "replay", orders).out.endswith("1 letter resolved\n")
