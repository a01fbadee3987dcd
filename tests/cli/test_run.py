"""`run` and the door: exit codes, what is printed where, and that nobody who interrupts finds half a partition."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from beam_pipelines.cli.door import translate
from beam_pipelines.errors import SpecError
from beam_pipelines.sinks.claims import claim
from beam_pipelines.sinks.run import Output, RunInfo
from tests.cli.conftest import Call

MODULE = [sys.executable, "-m", "beam_pipelines"]


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_good_run_accounts_for_every_row_and_exits_with_0(call: Call, orders: Path) -> None:
    done = call("run", orders)
    assert "8 read = 3 good + 3 dead + 1 duplicate + 1 filtered   (balances)" in done.out
    assert "1 conform:CAST" in done.out
    assert done.err == "engine: Beam's FnApiRunner in this process (--runner direct)\n"


def test_json_is_the_only_output_on_stdout(call: Call, orders: Path, tmp_path: Path) -> None:
    done = call("run", orders, "--json", "--run-id", "mine", "--results", tmp_path / "r.json")
    record = json.loads(done.out)
    assert (record["status"], record["metadata"]["run_id"]) == ("success", "mine")
    assert json.loads((tmp_path / "r.json").read_text()) == record
    assert done.err == ""


def test_a_failed_check_exits_with_1_says_why_and_commits_nothing(call: Call, orders: Path) -> None:
    done = call("run", orders, "--set", "least=1000", code=1)
    assert "check 'enough_rows' failed" in done.out
    assert "Nothing was committed" in done.out
    assert json.loads(call("run", orders, "--set", "least=1000", "--json", code=1).out)["status"] == "failed"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nosuch.yaml"], 2, "nosuch.yaml: there is no such file"),
        (["SPEC", "--set", "lak=x"], 2, "did you mean 'lake'?"),
        (["SPEC", "--set", "lake"], 2, "expected name=value"),
        (["SPEC", "--mode", "stream"], 2, "declares no stream sources"),
        (["SPEC", "--runner", "dataflow"], 2, "--project is missing"),
        (["SPEC", "--flink-master", "localhost:8081"], 2, "--flink-master: is for --runner flink and does nothing with --runner direct"),
        (["SPEC", "--runner", "Direct"], 0, "FnApiRunner"),
        (["SPEC", "--aply-lateness"], 2, "--apply-lateness"),
        (["SPEC", "extra"], 2, "unexpected argument 'extra'"),
        (["SPEC", "--run-id", "a/b"], 2, "run id 'a/b'"),
        (["SPEC", "--results", "no/such/folder/r.json"], 2, "cannot be written"),
        (["SPEC", "--", "--direct_running_mode=sideways"], 2, "invalid choice: 'sideways'"),
        (["SPEC", "--", "--direct_running_mode=multi_threading"], 2, "loses rows"),
        (["SPEC", "--", "--direct_runing_mode=in_memory"], 0, "Did you mean --direct_running_mode?"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_an_exit_code(call: Call, orders: Path, words: list[str], code: int, says: str) -> None:
    done = call("run", *(orders if w == "SPEC" else w for w in words), code=code)
    assert says in done.err
    if code:
        assert done.out == ""
        assert not (orders.parent / "lake").exists()


def test_where_batch_and_stream_are_declared_the_mode_must_be_said(call: Call, orders: Path) -> None:
    text = orders.read_text().replace("sources:\n", "sources:\n  stream: [{pubsub: projects/p/subscriptions/s, format: json}]\n")
    orders.write_text(text.replace("deduplicate: {}", "deduplicate: {within: 1d}"))
    assert "--mode batch or --mode stream" in call("run", orders, code=2).err
    call("run", orders, "--mode", "batch")


def test_a_directory_without_match_is_named(call: Call, orders: Path) -> None:
    (orders.parent / "orders.csv").unlink()
    assert "orders.csv: matches no file" in call("run", orders, code=1).err


def test_an_output_that_is_a_file_is_one_sentence(call: Call, orders: Path) -> None:
    (orders.parent / "taken").write_text("")
    assert "a part of the path is a file" in call("run", orders, "--set", "lake=taken/lake", code=1).err


def test_an_output_that_another_run_writes_is_refused_and_says_who_holds_it(call: Call, orders: Path) -> None:
    claim([Output("rows", "rows", str(orders.parent / "lake" / "orders"))], RunInfo("other", "orders", str(orders.parent / "state")))
    done = call("run", orders, code=1)
    assert "run 'other' writes it" in done.err


@pytest.mark.slow
def test_what_a_worker_process_reports_is_our_own_error(call: Call, orders: Path) -> None:
    (orders.parent / "twice.csv").write_text("k,v\n1,a\n1,b\n")
    lookup = "lookups: {l: {files: twice.csv, format: csv, key: k}}\ntransform:\n  - lookup: {from: l, on: id, take: {v: v}}\n"
    orders.write_text(orders.read_text().replace("transform:\n", lookup))
    expected = "error: lookup 'l': its key must be unique"
    assert expected in call("run", orders, code=1).err
    assert expected in call("run", orders, "--", "--direct_running_mode=multi_processing", "--direct_num_workers=2", code=1).err


def test_beam_options_reach_beam(call: Call, orders: Path) -> None:
    (orders.parent / "file").write_text("")
    temp = orders.parent / "file" / "temp"
    assert f"{temp}" in call("run", orders, "--", f"--temp_location={temp}", code=1).err


@pytest.mark.slow
def test_worker_processes_give_what_one_process_gives(call: Call, orders: Path) -> None:
    one = json.loads(call("run", orders, "--json").out)
    two = json.loads(call("run", orders, "--json", "--", "--direct_running_mode=multi_processing", "--direct_num_workers=2").out)
    assert one["ledger"] == two["ledger"]
    assert two["args"]["beam_options"] == ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


def test_logs_are_json_on_request(call: Call, orders: Path) -> None:
    done = call("run", orders, "--log-level", "info", "--log-format", "json")
    entries = [json.loads(line) for line in done.err.splitlines() if line.startswith("{")]
    assert entries
    assert {"time", "severity", "logger", "message"} <= set(entries[0])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_who_interrupts_finds_the_outputs_as_they_were(
    call: Call, orders: Path, environment: dict[str, str], number: int, code: int, word: str
) -> None:
    call("run", orders, "--run-id", "before")
    lake = orders.parent / "lake"
    before = files(lake)
    # The job stops at an `apply` that says it is there, and then waits to be interrupted.
    (orders.parent / "waits.py").write_text(
        "import os, sys, time\ndef here(batch):\n    os.write(1, b'here')\n    while True:\n        time.sleep(0.01)\n"
    )
    slow = orders.parent / "slow.yaml"
    slow.write_text(orders.read_text().replace("transform:\n", "transform:\n  - apply: {function: waits:here, columns: {}}\n"))
    process = subprocess.Popen([*MODULE, "run", str(slow)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.read(4) == "here"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert err.splitlines()[1:] == [f"{word}: the outputs are as they were."]
    assert files(lake) == before
    call("run", orders)  # nobody holds the outputs


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_change_the_exit_code(orders: Path, environment: dict[str, str]) -> None:
    for least, code in (("1", 0), ("1000", 1)):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [*MODULE, "run", str(orders), "--set", f"least={least}"],
            env=environment,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        os.close(writing)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr


@pytest.mark.slow
def test_the_door_takes_plain_flags_as_beam_launchers_give_them(orders: Path, environment: dict[str, str], tmp_path: Path) -> None:
    flags = [
        f"--spec={orders}",
        "--runner=DirectRunner",
        f"--lake={tmp_path}/airflow",
        "--run_id=airflow-1",
        "--json",
        "--job_name=x",
        "--labels",
        "a=b",
    ]
    done = subprocess.run([*MODULE, *flags], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["metadata"]["run_id"] == "airflow-1"
    assert record["outputs"][0]["path"] == f"{tmp_path}/airflow/orders"
    assert record["args"]["beam_options"] == ["--job_name=x", "--labels", "a=b"]
    assert done.stderr == ""


def test_the_door_tells_parameters_from_beam_options(orders: Path) -> None:
    words = translate(["--spec", str(orders), "--lake", "a=b", "--least=3", "--streaming", "--temp_location", "t", "--apply_lateness"])
    assert words == ["--apply-lateness", "--set=lake=a=b", "--set=least=3", str(orders), "--", "--streaming", "--temp_location", "t"]


def test_the_door_takes_a_range_unless_the_spec_has_parameters_of_these_names(orders: Path, tmp_path: Path) -> None:
    asked = ["--from=2024-05-01", "--to", "2024-05-02", "--input=archive", "--ignore_stream", "--new-files=false"]
    words = translate([f"--spec={orders}", *asked])
    assert words == ["--from=2024-05-01", "--to=2024-05-02", "--input=archive", "--ignore-stream", str(orders), "--"]
    own = tmp_path / "own.yaml"
    own.write_text("parameters: {input: {type: path}, to: {type: string}}\n")
    words = translate([f"--spec={own}", *asked])
    assert words == ["--from=2024-05-01", "--ignore-stream", "--set=to=2024-05-02", "--set=input=archive", str(own), "--"]


@pytest.mark.parametrize("flags", [[], ["--runner=DirectRunner"], ["--spec=x", "--json=maybe"]])
def test_the_door_says_how_it_is_called(flags: list[str]) -> None:
    with pytest.raises(SpecError, match=r"--spec|expected true or false"):
        translate(flags)
