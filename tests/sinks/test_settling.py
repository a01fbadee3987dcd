"""Settled partitions: read as plain files, they show what readers who tell each row apart see, at every moment."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.errors import SinkError
from beam_pipelines.formats import compaction
from beam_pipelines.formats.compaction import GRACE_S, QUIET_S, Merge
from beam_pipelines.formats.named_files import unreplaced
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.sinks.epochs import take_epoch
from beam_pipelines.sinks.outputs import read_outputs
from beam_pipelines.sinks.settling import Settling, plain_files
from beam_pipelines.sinks.speed_compaction import FAN_IN, compact_steps, speed_kind
from beam_pipelines.sinks.speed_files import folders_of, replaces
from beam_pipelines.sinks.speed_views import PlainFiles
from beam_pipelines.sinks.write import WriteSettings
from tests.formats.archived import Clock
from tests.laws import share
from tests.sinks.speed_lake import Speed, letters, rows

DAY_S = 86_400.0
POSITIONS = st.lists(st.integers(0, 12), min_size=1, max_size=5)
ACTS = st.one_of(
    st.tuples(st.just("store"), POSITIONS),
    st.tuples(st.just("take out"), POSITIONS),
    st.tuples(st.just("refuse"), POSITIONS),
    st.tuples(st.just("wait"), st.sampled_from([GRACE_S, QUIET_S, DAY_S])),
    st.tuples(st.just("compact, killed after"), st.integers(0, 9)),
    st.tuples(st.just("restart"), st.none()),
)


def places(speed: Speed) -> PlainFiles:
    outputs = read_outputs(speed.state)
    assert outputs is not None
    return plain_files(speed.state, next(o for o in outputs.outputs if o.of == "rows"))


def seen(speed: Speed, *, at_once: bool) -> Counter[tuple[Any, ...]]:
    found = ask(open_tables(speed.state, at_once=at_once), "SELECT n, k, _run_id FROM rows").to_pylist()
    return Counter(tuple(row.values()) for row in found)


def all_copies(speed: Speed) -> Counter[tuple[Any, ...]]:
    """Whatever lies in live files, as often as it does, whether readers see it or not."""
    tables = [pq.read_table(path) for path in (*places(speed).others, *places(speed).settled, *hidden(speed))]
    return Counter(tuple(row.values()) for table in tables for row in table.select(["n", "_run_id", "_stored_at"]).to_pylist())


def hidden(speed: Speed) -> list[str]:
    folders = {path.rpartition("/")[0] for path in places(speed).settled}
    return [file.path for folder in folders for file in unreplaced(folder, replaces) if file.path not in places(speed).settled]


def passes(speed: Speed, writing: WriteSettings, clock: Clock, *, quiet_s: float = QUIET_S, at_rest: dict[str, int] | None = None) -> None:
    """Until the files that were replaced are gone too."""
    for _ in range(2):
        list(compact_steps(writing, epoch=speed.epoch, now=clock, quiet_s=quiet_s, state=speed.state, at_rest=at_rest))
        clock.at += GRACE_S


@share(3)
@given(st.lists(ACTS, min_size=2, max_size=10), st.booleans())
def test_plain_files_show_what_readers_who_tell_rows_apart_see(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, Any]], end_settled: bool
) -> None:
    speed, clock = Speed(tmp_path_factory.mktemp("speed")), Clock(time.time())
    speed.epoch = [take_epoch(speed.state, speed.run_id) for _ in range(2)][-1]  # in a first start no row is stored and refused
    writing = speed.writing(by=["k"])
    speed.store(writing, rows([0], change=1))
    for act, given_ in acts:
        if act == "store":
            speed.store(writing, rows(given_, change=1))
        elif act == "take out":
            speed.store(writing, rows(given_, change=-1))
        elif act == "refuse":
            speed.letter(letters(given_))
        elif act == "wait":
            clock.at += given_
        elif act == "restart":
            speed.restart(f"r{speed.epoch + 1}")
            assert take_epoch(speed.state, speed.run_id) == speed.epoch
            writing = speed.writing(by=["k"])
        else:
            steps = compact_steps(writing, epoch=speed.epoch, now=clock, fan_in=(3, 2), state=speed.state)
            list(islice(steps, given_))
            steps.close()
        assert seen(speed, at_once=True) == seen(speed, at_once=False), act
    if end_settled:
        before, copies = seen(speed, at_once=False), all_copies(speed)
        passes(speed, writing, clock, quiet_s=0)
        assert seen(speed, at_once=True) == seen(speed, at_once=False) == before
        assert places(speed).others == ()
        assert sum(pq.read_metadata(path).num_rows for path in places(speed).settled) == before.total()
        assert all_copies(speed) == copies


def test_a_quiet_partition_is_settled_and_a_busy_one_is_not(tmp_path: Path) -> None:
    speed, clock = Speed(tmp_path), Clock(time.time())
    writing = speed.writing(by=["k"])
    speed.store(writing, rows([0, 3, 6], change=1), rows([3], change=-1))
    clock.at += QUIET_S
    passes(speed, writing, clock)
    assert [Path(path).parent.name for path in places(speed).settled] == ["k=00"]

    speed.store(writing, rows([1, 9], change=1))
    assert places(speed).settled == ()
    assert [Path(path).parent.name for path in places(speed).others] == ["k=00", "k=00", "k=00", "k=01"]  # parts, the rest, the new one


def test_a_settled_partition_of_which_a_row_goes_is_told_apart_until_it_is_settled_anew(tmp_path: Path) -> None:
    speed, clock = Speed(tmp_path), Clock(time.time())
    writing = speed.writing(by=["k"])
    speed.store(writing, rows([*range(3), 30, 31, 32], change=1))
    passes(speed, writing, clock, quiet_s=0)
    assert len(places(speed).settled) == 3

    speed.door([90], "duplicate")  # arrived after all rows there
    speed.door([2], "filtered")  # as the first of two doors
    assert len(places(speed).settled) == 3
    speed.door([30], "duplicate")  # arrived between the first and the last of each
    assert len(places(speed).settled) == 0
    assert sorted(n for n, _, _ in seen(speed, at_once=True)) == [0, 1, 2, 31, 32]
    passes(speed, writing, clock, quiet_s=0)
    assert len(places(speed).settled) == 3
    assert sorted(n for n, _, _ in seen(speed, at_once=True)) == [0, 1, 2, 31, 32]


def settle(speed: Speed, writing: WriteSettings, clock: Clock, write: Callable[[Callable[[Merge], str], Merge], str]) -> None:
    """One pass in which files are written by `write`, of what would write them and what they are to hold."""
    kind = speed_kind(writing, state=speed.state)
    assert isinstance(kind.settling, Settling)
    kind.settling.write = partial(write, kind.settling.write)
    clock.at += GRACE_S
    list(compaction.compact_steps(folders_of(writing.layout.folder, 1), kind, epoch=speed.epoch, now=clock, quiet_s=0))


def test_a_large_partition_is_settled_in_parts_and_killed_among_them_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "GROUP_ROWS", 10)
    speed, clock = Speed(tmp_path), Clock(time.time())
    writing = speed.writing(by=["k"], target_file_bytes=1024)
    for first in range(0, 240, 60):
        speed.store(writing, rows(range(first, first + 60, 3)))
    before, written = seen(speed, at_once=False), list[str]()

    def killed(write: Callable[[Merge], str], merge: Merge) -> str:
        if written:
            raise KeyboardInterrupt
        written.append(write(merge))
        return written[-1]

    with pytest.raises(KeyboardInterrupt):
        settle(speed, writing, clock, killed)
    assert written
    assert places(speed).settled == ()
    assert seen(speed, at_once=True) == before

    passes(speed, writing, clock, quiet_s=0)
    assert len(places(speed).settled) > 1
    assert places(speed).others == ()
    assert seen(speed, at_once=True) == before
    assert not {*written} & {*places(speed).settled}


def test_what_is_stored_while_a_partition_is_settled_stays(tmp_path: Path) -> None:
    speed, clock = Speed(tmp_path), Clock(time.time())
    writing = speed.writing(by=["k"])
    speed.store(writing, rows([0, 3, 6], change=1))

    def interrupted(write: Callable[[Merge], str], merge: Merge) -> str:
        speed.store(writing, rows([9], change=1), rows([6], change=-1))
        return write(merge)

    settle(speed, writing, clock, interrupted)
    assert places(speed).settled == ()
    for at_once in (True, False):
        assert sorted(n for n, _, _ in seen(speed, at_once=at_once)) == [0, 3, 9]
    passes(speed, writing, clock, quiet_s=0)
    assert places(speed).others == ()
    assert sorted(n for n, _, _ in seen(speed, at_once=True)) == [0, 3, 9]


def test_many_parts_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "GROUP_ROWS", 10)
    speed, clock = Speed(tmp_path), Clock(time.time())
    writing = speed.writing(by=["k"], target_file_bytes=1024)
    for first in range(0, 900, 60):
        speed.store(writing, rows(range(first, first + 60, 3)))
    passes(speed, writing, clock, quiet_s=0)
    before = places(speed).settled
    assert len(before) >= FAN_IN[-1]
    clock.at += QUIET_S
    passes(speed, writing, clock)
    assert places(speed).settled == before


def test_a_trickle_of_late_rows_does_not_write_a_partition_anew_each_hour(tmp_path: Path) -> None:
    speed, clock = Speed(tmp_path), Clock(time.time())
    writing = speed.writing(by=["k"])
    speed.store(writing, rows(range(0, 60_000, 3)))
    passes(speed, writing, clock, quiet_s=0)
    (before,) = places(speed).settled
    speed.store(writing, rows([60_000]))
    clock.at += QUIET_S
    at_rest: dict[str, int] = {}
    passes(speed, writing, clock, at_rest=at_rest)
    assert before in places(speed).others
    clock.at += DAY_S
    passes(speed, writing, clock, at_rest=at_rest)
    assert len(places(speed).settled) == 1
    assert places(speed).settled != (before,)


def test_a_partition_with_a_broken_file_stays_as_it_is_and_others_do_not(tmp_path: Path) -> None:
    speed, clock = Speed(tmp_path), Clock(time.time())
    writing = speed.writing(by=["k"])
    paths = [*speed.store(writing, rows([0])), *speed.store(writing, rows([3])), *speed.store(writing, rows([1]))]
    content = bytearray(Path(paths[0]).read_bytes())
    content[4:40] = b"\0" * 36
    Path(paths[0]).write_bytes(content)
    passes(speed, writing, clock, quiet_s=0)
    folder = paths[0].rpartition("/")[0]
    assert paths[0] in [file.path for file in unreplaced(folder, replaces)]
    assert not [*Path(folder).glob("*.9.parquet")]
    assert [Path(path).parent.name for path in places(speed).settled] == ["k=01"]


def test_beside_a_stream_a_pass_settles_one_partition_and_leaves_the_others_for_the_next(tmp_path: Path) -> None:
    speed, clock = Speed(tmp_path), Clock(time.time())
    writing = speed.writing(by=["k"])
    for _ in range(2):
        speed.store(writing, rows([0, 1, 2]))
    clock.at = time.time() + QUIET_S
    at_rest: dict[str, int] = {}
    for settled in (1, 2, 3):
        acts = [step.act for step in compact_steps(writing, epoch=1, now=clock, state=speed.state, at_rest=at_rest)]
        assert [act for act in acts if act != "deleted"] == ["settled"]
        assert len(places(speed).settled) == settled
    assert seen(speed, at_once=True) == seen(speed, at_once=False)


def test_a_place_that_refuses_is_asked_again(tmp_path: Path) -> None:
    speed, clock = Speed(tmp_path), Clock(time.time())
    writing = speed.writing(by=["k"])
    speed.store(writing, rows([0, 3]))

    def refused(write: Callable[[Merge], str], merge: Merge) -> str:
        raise SinkError("no space left")

    settle(speed, writing, clock, refused)
    assert places(speed).settled == ()
    passes(speed, writing, clock, quiet_s=0)
    assert len(places(speed).settled) == 1


def test_what_settled_partitions_cost_a_query(tmp_path: Path) -> None:
    """Neither doors nor letters are looked at, and no row is compared with another."""
    speed, clock = Speed(tmp_path), Clock(time.time())
    writing = speed.writing(by=["k"])
    speed.store(writing, rows(range(9), change=1), rows([3], change=-1))
    passes(speed, writing, clock, quiet_s=0)
    plan = open_tables(speed.state, at_once=True).execute("EXPLAIN SELECT n FROM rows WHERE k = '00'").fetchall()[0][1].upper()
    assert not any(word in plan for word in ("WINDOW", "AGGREGATE", "JOIN", "DOORS"))
    general = open_tables(speed.state).execute("EXPLAIN SELECT n FROM rows WHERE k = '00'").fetchall()[0][1].upper()
    assert "JOIN" in general
