"""A process that lasts: beyond its starter, until it is ended with all that it started, and no other in its place."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beam_pipelines.runners.flink import lasting_process
from beam_pipelines.runners.flink.lasting_process import LastingProcess, alive, end, kill, members

SLEEP = ["/bin/sh", "-c", "exec sleep 600"]
Start = Callable[..., LastingProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    begun: list[LastingProcess] = []

    def call(command: list[str] = SLEEP, mark: str = "") -> LastingProcess:
        one = lasting_process.start(command, folder=tmp_path, log=tmp_path / "log", mark=mark or f"{tmp_path}/{len(begun)}")
        begun.append(one)
        return one

    yield call
    for one in begun:
        end(one, grace_s=1.0)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_outlives_its_starter_and_is_ended_by_what_that_wrote_down(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from beam_pipelines.runners.flink import lasting_process
one = lasting_process.start({SLEEP!r}, folder=Path({str(tmp_path)!r}), log=Path({str(tmp_path / "log")!r}), mark="m")
print(one.pid, one.began, sep="|")"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60)
    pid, began = done.stdout.strip().split("|")
    one = LastingProcess(int(pid), began, "m")
    assert alive(one)
    end(one)
    assert not alive(one)


def test_it_runs_in_the_folder_given_in_a_session_of_its_own_and_its_output_is_added_to_the_log(start: Start, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    one = start(["/bin/sh", "-c", "pwd; echo wrong >&2; exec sleep 600"])
    until(lambda: (tmp_path / "log").read_text() == f"before\n{tmp_path}\nwrong\n")
    assert os.getsid(one.pid) == one.pid


@pytest.mark.skipif(sys.platform != "linux", reason="what a process started is known on Linux only")
def test_its_end_is_that_of_all_that_it_started_even_when_it_is_gone_itself(start: Start, tmp_path: Path) -> None:
    one = start(["/bin/sh", "-c", f"sleep 601 & setsid sleep 602 & touch {tmp_path}/ready; wait"])
    until((tmp_path / "ready").exists)
    until(lambda: len(members(one)) == 3)
    kill(one)
    assert not alive(one)
    assert len(members(one)) == 2
    end(one)
    assert members(one) == []


def test_a_process_that_will_not_end_is_killed(start: Start, tmp_path: Path) -> None:
    one = start(["/bin/sh", "-c", f"trap '' TERM; touch {tmp_path}/ready; while :; do sleep 0.1; done"])
    until((tmp_path / "ready").exists)
    end(one, grace_s=0.3)
    assert not alive(one)


def test_another_process_with_its_number_is_neither_it_nor_ended(start: Start) -> None:
    other = start()
    taken = dataclasses.replace(other, began="some other time", mark="another mark")
    assert not alive(taken)
    kill(taken)
    end(taken)
    assert members(taken) == []
    assert alive(other)


def test_one_that_ended_and_was_gathered_by_nobody_is_not_alive(start: Start) -> None:
    one = start(["/bin/true"])
    until(lambda: not alive(one))
    end(one)  # says nothing
