"""A record that crashes the process is found by trying, after it was in work twice; one that merely was in work is not."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.schema import MESSAGES, POSITION, of_source, provenance
from beam_pipelines.formats.archive import write_messages
from beam_pipelines.places import write_bytes
from beam_pipelines.runners import crashes
from beam_pipelines.runners.crashes import Positions, journal_folder, look_back, of_positions
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.sinks.epochs import stream_folder
from beam_pipelines.spec.load import load_spec
from beam_pipelines.transforms.guard import Guard, GuardedProgram, guarded, in_work
from beam_pipelines.transforms.prepare import row_program

SOURCE = "projects/demo-project/subscriptions/s"
SPEC = f"""
spec: 1
pipeline: p
contract: {{key: [id], columns: {{id: {{type: int64, required: true}}, word: {{type: string}}}}}}
sources: {{stream: [{{pubsub: {SOURCE}, format: json}}]}}
transform: [{{apply: {{function: "tests.runners.crashing:fatal", columns: {{seen: boolean}}}}}}]
sinks: [{{from: rows, parquet: {{path: lake}}}}, {{from: dead_letters, parquet: {{path: letters}}}}]
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The row stages of a spec whose `apply` kills its process on some words."""
    path = tmp_path_factory.mktemp("spec") / "p.yaml"
    path.write_text(SPEC)
    spec = load_spec(path).spec
    return row_program(spec, spec.sources.stream[0], {})


def messages(words: Sequence[str]) -> pa.RecordBatch:
    numbers = pa.array(range(len(words)), pa.int64())
    raw = pa.array([json.dumps({"id": n, "word": word}).encode() for n, word in enumerate(words)], pa.binary())
    arrival = pa.array([0] * len(words), pa.timestamp("us", "UTC"))
    return of_source(
        pa.RecordBatch.from_arrays([*provenance(SOURCE, numbers, arrival), raw], names=["_source", "_position", "_arrival_time", "_raw"]), 0
    )


FORKING = multiprocessing.get_context("forkserver")
"""A fork of this process would die of its other threads: gRPC's, of tests before."""
FORKING.set_forkserver_preload([__name__])


def work(folder: str, epoch: int, program: Any, batch: pa.RecordBatch, poison: Sequence[int] = ()) -> tuple[int, list[int], list[int]]:
    """How a process ends that works on the batch behind a guard, and positions of its rows and letters."""
    ours, theirs = FORKING.Pipe(duplex=False)
    guard = Guard(folder, epoch, ((SOURCE, tuple(poison)),))
    process = FORKING.Process(target=_work, args=(program, guard, batch, theirs))
    process.start()
    theirs.close()
    try:
        rows, dead = ours.recv()
    except EOFError:
        rows, dead = [], []
    process.join()
    assert process.exitcode is not None
    return process.exitcode, rows, dead


def _work(program: Any, guard: Guard, batch: pa.RecordBatch, said: Connection) -> None:
    split = GuardedProgram(program, guard, "json")(batch)
    said.send((split.rows.column(POSITION).to_pylist(), split.dead.column("position").to_pylist()))


def killed(rows: pa.RecordBatch, engine: Any) -> Any:
    """A program that somebody kills."""
    os.kill(os.getpid(), signal.SIGKILL)


def stream(folder: Path, program: Any, batch: pa.RecordBatch) -> tuple[Any, list[str]]:
    """What a start needs: its records, and what it says."""

    def records(source: str, positions: Positions) -> Iterator[tuple[pa.RecordBatch, Any]]:
        assert source == SOURCE
        for found in of_positions([batch], positions):
            yield found, program

    said: list[str] = []
    return (lambda epoch: look_back(str(folder), epoch, records=records, say=said.append)), said


def test_a_crashing_record_is_found_at_the_second_crash_and_kept_out_from_then_on(tmp_path: Path, program: Any) -> None:
    batch = messages(["a", "b", "crash", "d", "exit"])
    start, said = stream(tmp_path, program, batch)
    journal = journal_folder(str(tmp_path))
    for epoch in (1, 2):
        guard = start(epoch)
        assert guard == Guard(journal, epoch)
        assert work(journal, epoch, program, batch)[0] in (-signal.SIGSEGV, 3)
    guard = start(3)
    assert guard.poison == ((SOURCE, (2, 4)),)
    assert [sentence.partition(":")[0] for sentence in said] == [
        f"5 records of {SOURCE} were in work when the last two processes ended", "found 2 records that crash the process",
    ]  # fmt: skip
    assert work(journal, 3, program, batch, guard.poison[0][1]) == (0, [0, 1, 3], [2, 4])
    assert start(4).poison == guard.poison
    assert in_work(journal, 9) == []


def test_what_was_in_work_at_one_crash_only_is_not_tried(tmp_path: Path, program: Any) -> None:
    batch = messages(["a", "crash", "c", "crash"])
    start, said = stream(tmp_path, program, batch)
    for epoch, part in ((1, batch.slice(0, 2)), (2, batch.slice(2, 2))):
        assert start(epoch).poison == ()
        assert work(journal_folder(str(tmp_path)), epoch, program, part)[0] == -signal.SIGSEGV
    assert start(3).poison == ()
    assert said == []


def test_a_kill_from_outside_makes_no_record_guilty(tmp_path: Path, program: Any) -> None:
    batch = messages(["a", "b", "c"])
    start, said = stream(tmp_path, program, batch)
    for epoch in (1, 2):
        start(epoch)
        assert work(journal_folder(str(tmp_path)), epoch, killed, batch)[0] == -signal.SIGKILL
    assert start(3).poison == ()
    assert said[-1] == "found no record that crashes"


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(st.lists(st.sampled_from(["a", "a", "a", "crash", "exit", "raise"]), min_size=1, max_size=12))
def test_exactly_the_records_that_crash_are_found(program: Any, words: list[str]) -> None:
    guilty = [n for n, word in enumerate(words) if word in ("crash", "exit")]
    assert sorted(crashes._tried(messages(words), program)) == guilty


@pytest.mark.slow
def test_a_record_that_never_ends_does_not_hold_up_the_start(program: Any) -> None:
    assert crashes._tried(messages(["a", "hang"]), program, timeout_s=5) == []


def test_a_journal_cut_short_says_nothing(tmp_path: Path, program: Any) -> None:
    batch = messages(["a", "crash"])
    work(str(tmp_path), 1, program, batch)
    (journal,) = tmp_path.glob("000001-*.work")
    assert [(s, p.tolist()) for s, p in in_work(str(tmp_path), 2)] == [(SOURCE, [0, 1])]
    journal.write_bytes(journal.read_bytes()[:-3])
    assert [len(p) for _, p in in_work(str(tmp_path), 2)] == [0]
    assert look_back(str(tmp_path / "none"), 2, records=lambda *_: [], say=pytest.fail).poison == ()


def test_an_exception_leaves_nothing_in_work(tmp_path: Path) -> None:
    def raises(rows: pa.RecordBatch, engine: Any) -> Any:
        raise ValueError

    guard = Guard(str(tmp_path), 1)
    with pytest.raises(ValueError):
        GuardedProgram(raises, guard)(messages(["a"] * 50))
    assert in_work(str(tmp_path), 2) == []


def open_journals(folder: Path) -> int:
    """How many descriptors of this process are journals in the folder."""
    found = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    return sum(path.startswith(os.path.realpath(folder)) for path in found)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux shows the descriptors of a process there")
def test_a_thread_holds_one_journal_open_and_none_when_it_has_ended(tmp_path: Path) -> None:
    def passed(rows: pa.RecordBatch, engine: Any) -> Any:
        return rows

    def starts(ended: list[int]) -> None:
        for epoch in range(1, 6):
            GuardedProgram(passed, Guard(str(tmp_path), epoch))(messages(["a"]))
        ended.append(open_journals(tmp_path))

    seen: list[int] = []
    threads = [threading.Thread(target=starts, args=(seen,)) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert (seen, open_journals(tmp_path)) == ([1, 1, 1], 0)


def test_letters_of_crashing_records_keep_them_whole(tmp_path: Path, program: Any) -> None:
    batch = messages(["a", "crash", "c"])
    (behind,) = guarded([program], Guard(str(tmp_path), 1, ((SOURCE, (1,)), ("another", (0, 2)))), ["json"])
    split = behind(batch)
    assert split.rows.column(POSITION).to_pylist() == [0, 2]
    (letter,) = split.dead.to_pylist()
    assert (letter["source"], letter["position"], letter["stage"], letter["reason"]) == (SOURCE, 1, "prepare", "CRASH")
    assert (letter["raw"], letter["raw_format"]) == (b'{"id": 1, "word": "crash"}', "json")
    assert "brought down the process" in letter["message"]
    assert guarded([program], None, ["json"]) == (program,)


def test_only_journals_of_earlier_starts_count(tmp_path: Path, program: Any) -> None:
    work(str(tmp_path), 2, program, messages(["crash"]))
    assert in_work(str(tmp_path), 2) == []
    assert [p.tolist() for _, p in in_work(str(tmp_path), 3)] == [[0]]


def test_rows_at_positions_are_all_found() -> None:
    batch = messages(["a"] * 10)
    found = list(of_positions([batch.slice(0, 5), batch.slice(5)], np.array([2, 7, 99])))
    assert [b.column(POSITION).to_pylist() for b in found] == [[2], [7]]


@pytest.mark.slow
def test_a_batch_over_the_archive_keeps_out_what_the_stream_has_found_to_crash_unless_a_repair_has_helped(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(SPEC)
    loaded = load_spec(path)
    write_messages(archived(["a", "crash", "c"]), f"{loaded.state}/archive", epoch=1)
    write_bytes(f"{stream_folder(loaded.state)}/crashes.json", json.dumps({"poison": {SOURCE: [1, 2], "another": [0]}}).encode())
    said: list[str] = []
    done = run_batch(loaded, Call(input="archive", say=said.append))
    assert (done.status, done.dead_letters) == ("success", {"prepare:CRASH": 1})
    assert [(line.read, line.dead, line.written) for line in done.ledger if line.source] == [(3, 1, {"rows": 2})]
    assert [sentence for sentence in said if "CRASH" in sentence] == [
        "dead letters (CRASH): 1 record of the archive, of which the stream has found that they crash the process"
    ]


def archived(words: Sequence[str]) -> pa.RecordBatch:
    """The messages as a stream archives them."""
    batch = messages(words)
    names = [f.name for f in MESSAGES]
    return pa.RecordBatch.from_arrays(
        [batch.column(n) if n in batch.schema.names else pa.nulls(batch.num_rows, MESSAGES.field(n).type) for n in names], schema=MESSAGES
    )
