"""`doctor`: what it finds on this machine, in a spec, at its places and services; that it changes nothing and waits for nobody. A real cluster is in tests/flink."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.errors import SpecError
from beam_pipelines.runners import findings, writable
from beam_pipelines.runners.doctor import PYTHON, _state
from beam_pipelines.runners.options import BEAM
from beam_pipelines.runners.prism_binary import VARIABLE
from beam_pipelines.runners.writable import expect_writable
from beam_pipelines.sinks.claims import claim, release
from beam_pipelines.sinks.epochs import take_epoch
from beam_pipelines.sinks.owners import this_process
from beam_pipelines.sinks.plan import outputs_of
from beam_pipelines.sinks.results import RunResults, metadata, write_run
from beam_pipelines.sinks.run import RunInfo, utc_now
from beam_pipelines.spec.load import load_spec
from tests.cli.conftest import SPEC, Call
from tests.conftest import ROOT
from tests.pubsub_servers import PubsubServer
from tests.runners.built_once import program
from tests.server_process import bound_port

STREAM = SPEC.replace(
    "batch: [{files: orders.csv, format: csv}]", "stream: [{pubsub: projects/demo-project/subscriptions/SUBSCRIPTION, format: json}]"
)


@pytest.fixture(autouse=True)
def prism(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that can be started, so that the machine does not matter."""
    program = tmp_path_factory.mktemp("prism") / "prism"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(program))


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where somebody takes connections and never says a word."""
    with bound_port() as (port, server):
        server.listen()
        yield port


def seen(call: Call, *words: object, code: int = 0) -> dict[str, dict[str, Any]]:
    """The findings by what was looked at, of a call that ends with this code."""
    found = json.loads(call("doctor", "--json", *words, code=code).out)
    states = [check["state"] for check in found["checks"]]
    assert [found[s.replace(" ", "_")] for s in ("good", "warning", "bad", "not looked at")] == [
        states.count(s) for s in ("good", "warning", "bad", "not looked at")
    ]
    return {check["check"]: check for check in found["checks"]}


def below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_spec_whose_places_are_there_is_good_and_nothing_is_left_behind(call: Call, orders: Path) -> None:
    before = below(orders.parent)
    found = seen(call, orders)
    assert found.pop("note")["state"] == "warning"
    assert {name: check["state"] for name, check in found.items()} == dict.fromkeys(found, "good")
    assert found["sources.batch[0]"]["found"].startswith("1 file, 0.0 MB: ")
    assert {"Python", "Beam", "spec", "state", "output rows, batch", "output by_hour, batch", "output dead_letters, batch"} <= found.keys()
    assert below(orders.parent) == before


def test_where_something_is_bad_what_to_do_is_below_it_and_the_exit_code_is_1(call: Call, orders: Path) -> None:
    (orders.parent / "orders.csv").unlink()
    lines = call("doctor", orders, code=1).out.splitlines()
    [at] = [n for n, line in enumerate(lines) if line.startswith("sources.batch[0] ")]
    assert "bad" in lines[at]
    assert "orders.csv: matches no file." in lines[at]
    assert lines[at + 1].strip() == "→ Check the path; relative paths start at the spec's folder."
    assert lines[-1].endswith(" 1 bad")


def test_places_that_refuse_files_are_bad_each_by_its_name(call: Call, orders: Path) -> None:
    (orders.parent / "lake").write_text("a file where a folder is to be")
    (orders.parent / ".beam_pipelines").write_text("")
    found = seen(call, orders, code=1)
    assert {name for name, check in found.items() if check["state"] == "bad"} == {
        "state", "output rows, batch", "output by_hour, batch", "output dead_letters, batch",
    }  # fmt: skip


def test_what_is_at_work_is_a_warning(call: Call, orders: Path) -> None:
    loaded = load_spec(orders)
    run = RunInfo("night", "orders", loaded.state)
    [rows, *_] = outputs_of(loaded.spec, run)
    claim([rows], run)
    found = [check for check in json.loads(call("doctor", orders, "--json").out)["checks"] if check["check"] == "output rows, batch"]
    assert [(check["state"], check["do"]) for check in found] == [("warning", "Wait until it has ended."), ("good", "")]
    release([rows], run)
    take_epoch(loaded.state, "stream-1")
    orders.write_text(
        STREAM.replace("{type: string, sensitive: redact}", "{type: string}").replace("deduplicate: {}", "deduplicate: {within: 1d}")
    )
    found = [check for check in json.loads(call("doctor", orders, "--json", code=1).out)["checks"] if check["check"] == "state"]
    assert [(check["state"], check["do"]) for check in found] == [("good", ""), ("warning", "A new start takes the stream over.")]


def test_a_stream_of_another_machine_is_a_warning_until_its_record_is_there(call: Call, tmp_path: Path) -> None:
    spec = with_subscription(tmp_path, "projects/demo-project/subscriptions/s")
    loaded = load_spec(spec)
    epoch = take_epoch(loaded.state, "stream-1")
    path = next(Path(loaded.state).rglob("000001.json"))
    path.write_text(
        path.read_text().replace(this_process().machine, "far/boot/ns").replace(f'"host":"{socket.gethostname()}"', '"host":"far"')
    )
    said = [finding.found for finding in _state(loaded.state, ["stream"]) if finding.state == "warning"]
    assert [sentence.partition(",")[0] for sentence in said] == [f"start {epoch} of the stream ran on far"]
    assert [finding.state for finding in _state(loaded.state, ["batch"])] == ["good"]
    run = RunInfo("stream-1", "orders", loaded.state, mode="stream", epoch=epoch)
    write_run(loaded.state, RunResults(metadata(run, finished_at=utc_now()), "success"))
    assert [finding.state for finding in _state(loaded.state, ["stream"])] == ["good"]


def test_an_output_laid_out_in_another_way_is_bad_before_a_run_refuses_it(call: Call, orders: Path) -> None:
    call("run", orders)
    orders.write_text(orders.read_text().replace("day(placed_at)", "shop"))
    found = seen(call, orders, code=1)["output rows, batch"]
    call("run", orders, code=1)
    assert (found["state"], "the spec now says" in found["found"]) == ("bad", True)


def test_a_spec_that_is_wrong_is_a_finding_and_a_wrong_call_is_not(call: Call, orders: Path, tmp_path: Path) -> None:
    assert "declares no stream sources" in call("doctor", orders, "--mode", "stream", code=2).err
    assert "does nothing with --runner direct" in call("doctor", orders, "--flink-master", "h:1", code=2).err
    assert "unknown runner" in call("doctor", orders, "--runner", "spark", code=2).err
    assert "unknown runner" in call("doctor", "--runner", "spark", code=2).err
    assert "this is a batch" in call("doctor", orders, "--runner", "prism", code=2).err
    assert "does nothing with --runner direct" in call("doctor", orders, "--project", "p", code=2).err
    assert "none is named" in call("doctor", "--set", "lake=x", code=2).err
    assert "there is no such file" in call("doctor", tmp_path / "none.yaml", code=2).err
    orders.write_text(orders.read_text().replace("deduplicate: {}", "deduplicate: {with: 3d}"))
    found = seen(call, orders, code=1)
    assert found["spec"]["state"] == "bad"
    assert "within" in found["spec"]["found"]


def test_without_a_spec_it_looks_at_the_machine(call: Call) -> None:
    assert seen(call).keys() == {"Python", "Beam", "Java", "space for temporary files", "Prism"}
    assert seen(call, "--runner", "prism").keys() == seen(call).keys()


def test_a_place_leaves_no_folder_behind_and_takes_none_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "here" / "empty").mkdir(parents=True)
    before = below(tmp_path)
    for folder in ("here/empty", "here/empty/a/b", "new", "new/er"):
        expect_writable(f"{tmp_path}/{folder}")
        expect_writable(f"file://{tmp_path}/{folder}")
        assert below(tmp_path) == before


def test_a_mount_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    other = writable._by_device.setdefault(os.stat("/proc").st_dev, threading.Lock())
    with ThreadPoolExecutor() as pool, other:
        pool.submit(expect_writable, str(tmp_path / "new")).result(10)


def test_a_prism_that_is_not_here_is_a_warning_and_is_not_made(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = seen(call)["Prism"]
    assert (found["state"], "fetches it from GitHub" in found["found"]) == ("warning", True)
    program(tmp_path / "go", "#!/bin/sh\nexit 1\n")
    assert "builds it with Go" in seen(call)["Prism"]["found"]
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    assert seen(call, code=1)["Prism"]["found"].startswith(f"{VARIABLE}: {tmp_path / 'none'} does not exist")


def test_an_option_that_beam_does_not_know_is_a_warning(call: Call) -> None:
    found = seen(call, "--", "--parallelizm=3")
    assert found["Beam options"]["state"] == "warning"


def test_a_lookup_that_cannot_be_read_is_bad_and_the_steps_wait_for_it(
    call: Call, tmp_path: Path, broker: PubsubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.address)
    spec = with_subscription(tmp_path, broker.pair()[1])
    lookup = "lookups:\n  shops: {files: shops.csv, format: csv, key: name}\ntransform:\n  - lookup: {from: shops, on: shop, take: {town: town}}\n"
    spec.write_text(spec.read_text().replace("transform:\n", lookup))
    found = seen(call, spec, code=1)
    assert (found["lookups.shops"]["state"], found["steps"]["state"]) == ("bad", "not looked at")
    (tmp_path / "shops.csv").write_text("name,town\nnorth,Ulm\nsouth,Rom\n")
    found = seen(call, spec)
    assert (found["lookups.shops"]["found"], found["steps"]["state"]) == ("2 rows by name", "good")


def test_a_subscription_and_a_topic_are_looked_at_and_what_is_missing_is_named(
    call: Call, tmp_path: Path, broker: PubsubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", broker.address)
    topic, subscription = broker.pair(ack_deadline_seconds=25)
    spec = with_subscription(tmp_path, subscription)
    spec.write_text(spec.read_text() + f'  - {{from: dead_letters, pubsub: {{topic: "{topic}"}}}}\n')
    found = seen(call, spec)
    assert found["sources.stream[0]"]["found"].endswith("ack deadline 25 s; the stream leases messages for 60 s at a time")
    assert found["output dead_letters_pubsub"]["found"] == topic
    assert found["output rows, stream"]["state"] == found["archive of sources.stream[0]"]["state"] == "good"
    assert seen(call, spec, "--runner", "prism").keys() == found.keys()
    broker.publisher.delete_topic(topic=topic)
    broker.subscriber.delete_subscription(subscription=subscription)
    found = seen(call, spec, code=1)
    assert {name: check["do"].partition(",")[0] for name, check in found.items() if check["state"] == "bad"} == {
        "sources.stream[0]": "Create it",
        "output dead_letters_pubsub": "Create the topic",
    }


@pytest.mark.slow
def test_services_that_do_not_answer_are_bad_and_waited_for_some_seconds_only(
    call: Call, tmp_path: Path, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{silent_port}")
    spec = with_subscription(tmp_path, "projects/demo-project/subscriptions/s")
    found = seen(call, spec, "--runner", "flink", "--flink-master", f"127.0.0.1:{silent_port}", code=1)
    assert "does not answer" in found["Flink"]["found"]
    assert found["sources.stream[0]"]["state"] == "bad"
    assert found["state"]["state"] == "good"


def test_a_cluster_that_is_not_there_is_bad_and_what_it_would_have_told_is_not_looked_at(call: Call, orders: Path) -> None:
    with bound_port() as (port, _):
        found = seen(call, orders, "--runner", "flink", "--flink-master", f"127.0.0.1:{port}", code=1)
    assert found["Flink"]["state"] == "bad"
    assert {name for name, check in found.items() if check["state"] == "not looked at"} == {"job server", "slots", "workers"}


def test_a_check_that_hangs_or_breaks_ends_no_other(silent_port: int) -> None:
    def hangs() -> Iterator[findings.Finding]:
        yield findings.Finding("first", "good", "seen")
        socket.create_connection(("127.0.0.1", silent_port)).recv(1)

    def breaks() -> Iterator[findings.Finding]:
        yield findings.Finding("third", "good", f"{1 // 0}")

    checks = [
        findings.DoctorCheck("second", hangs, late="not looked at"),
        findings.DoctorCheck("third", breaks),
        findings.DoctorCheck("fourth", lambda: ()),
    ]
    assert findings.look_at(checks, patience_s=0.2) == [
        findings.Finding("first", "good", "seen"),
        findings.Finding("second", "not looked at", "not done within 0.2 s", findings.LATE["not looked at"]),
        findings.Finding("third", "bad", "ZeroDivisionError: integer division or modulo by zero"),
    ]


def test_checks_that_cannot_be_made_are_a_finding() -> None:
    def breaks() -> Iterator[findings.DoctorCheck]:
        yield findings.DoctorCheck("first", lambda: [findings.Finding("first", "good", "")])
        raise SpecError("no such thing.", hint="Name another.")

    assert findings.look_at(findings.checks_of("outputs", breaks)) == [
        findings.Finding("outputs", "bad", "no such thing.", "Name another.")
    ]


def test_a_check_left_behind_ends_with_the_process_and_its_exit_code_stays() -> None:
    code = """
import atexit, sys, threading
from beam_pipelines.cli.main import leave
from beam_pipelines.runners.findings import DoctorCheck, look_at
atexit.register(print, "Python ended")
hangs = DoctorCheck("hangs", lambda: threading.Event().wait() or ())
print(look_at([hangs] if sys.argv[1] == "hangs" else [], patience_s=0.0)[:0])
leave(1)
"""
    ends = {how: subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True) for how in ("hangs", "is done")}
    assert {how: (ended.returncode, ended.stdout) for how, ended in ends.items()} == {
        "hangs": (1, "[]\n"),
        "is done": (1, "[]\nPython ended\n"),
    }


def test_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    first, after = (".".join(map(str, version)) for version in PYTHON)
    assert project["requires-python"] == f">={first},<{after}"
    assert any(dependency.startswith(f"apache-beam>={BEAM}") for dependency in project["dependencies"])


def with_subscription(folder: Path, subscription: str) -> Path:
    """A spec of a stream; it does without checks over many rows and windows that only a batch has."""
    spec = folder / "orders.yaml"
    text = STREAM.replace("projects/demo-project/subscriptions/SUBSCRIPTION", subscription)
    text = text.replace("deduplicate: {}", "deduplicate: {within: 1d}").replace(", sensitive: redact", "")
    spec.write_text(text)
    return spec
