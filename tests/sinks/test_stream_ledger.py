"""The stream's ledger: every row by exactly one door balances; a lost or doubled row is found and named."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from beam_pipelines.arrow.doors import DUPLICATE, FILTERED
from beam_pipelines.cli.show import show_run
from beam_pipelines.serving.dead_letters import open_letters
from beam_pipelines.serving.tables import runs_table
from beam_pipelines.sinks import stream_ledger as stream_ledger_module
from beam_pipelines.sinks.epochs import take_epoch
from beam_pipelines.sinks.ledger import Line
from beam_pipelines.sinks.outputs import StreamOutputs, write_outputs
from beam_pipelines.sinks.resolutions import TAKEN_UP, stored_sql, take_up
from beam_pipelines.sinks.results import RunResults, from_json, metadata, to_json
from beam_pipelines.sinks.run import utc_now
from beam_pipelines.sinks.stream_ledger import Misplaced, StreamLedger, stored_outputs, stream_ledger
from tests.formats.pubsub_files import Message, write_file
from tests.laws import share
from tests.sinks.speed_lake import SOURCE, UTC, Speed, letters, panes, rows

DOORS = ("written", "dead", "duplicate", "taken back", "filtered")


def leave(speed: Speed, positions: list[int], door: str) -> None:
    """Stores rows as they leave by a door. `taken back`: written first, a duplicate later."""
    if not positions:
        return
    if door == "written":
        speed.store(speed.writing(), rows(positions, change=1))
    elif door == "dead":
        speed.letter(letters(positions))
    elif door == "filtered":
        speed.door(positions, FILTERED)
    else:
        speed.store(speed.writing(), rows(positions, change=1)) if door == "taken back" else None
        speed.store(speed.writing(), rows(positions, change=-1))


def ledger(speed: Speed) -> StreamLedger:
    return stream_ledger(speed.state, speed.outputs)


@share(8)
@given(st.lists(st.sampled_from(DOORS), min_size=1, max_size=12), st.integers(0, 3), st.data())
def test_every_row_by_one_door_balances_however_often_it_is_stored(
    tmp_path_factory: pytest.TempPathFactory, doors: list[str], again: int, data: st.DataObject
) -> None:
    speed = Speed(tmp_path_factory.mktemp("speed"))
    speed.writing()
    speed.read(range(len(doors)))
    for repeat in range(again + 1):
        for door in DOORS:
            mine = [n for n, d in enumerate(doors) if d == door]
            leave(speed, mine if not repeat else data.draw(st.lists(st.sampled_from(mine), max_size=3)) if mine else [], door)
        speed.restart(f"r{repeat + 2}")
    found = ledger(speed)
    assert found.balanced, found.explain()
    assert found.explain() == ""
    (line,) = found.lines
    counts = {door: doors.count(door) for door in DOORS}
    assert line == Line(
        SOURCE, len(doors), counts["dead"], counts["duplicate"] + counts["taken back"], counts["filtered"], {"rows": counts["written"]}
    )  # fmt: skip
    assert found.reasons == ({"prepare:TYPE": counts["dead"]} if counts["dead"] else {})


@share(6)
@given(st.lists(st.sampled_from(DOORS), min_size=2, max_size=8), st.data())
def test_a_lost_or_doubled_row_is_found_and_named(tmp_path_factory: pytest.TempPathFactory, doors: list[str], data: st.DataObject) -> None:
    speed = Speed(tmp_path_factory.mktemp("speed"))
    speed.writing()
    speed.read(range(len(doors)))
    lost, twice = data.draw(st.permutations(range(len(doors))))[:2]
    exits = ["taken back", "duplicate"]
    second = data.draw(st.sampled_from([d for d in ("written", "dead", "duplicate", "filtered") if {d, doors[twice]} - set(exits) and d != doors[twice]
                                        and not {d, doors[twice]} <= {"written", *exits}]))  # fmt: skip
    for door in DOORS:
        leave(speed, [n for n, d in enumerate(doors) if d == door and n != lost], door)
    leave(speed, [twice], second)
    found = ledger(speed)
    assert not found.balanced
    assert found.open == {SOURCE: 1}
    assert found.lost == (Misplaced(SOURCE, lost, (), ("rows",)),)
    assert [(t.source, t.position, len(t.doors)) for t in found.twice] == [(SOURCE, twice, 2)]
    said = found.explain()
    assert f"{SOURCE}: " in said
    assert f"position {lost} (not in rows)" in said
    assert f"{SOURCE}, position {twice} left by {', '.join(found.twice[0].doors)}" in said


def test_a_row_that_is_in_one_of_two_outputs_only_is_missing_in_the_other(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.read([1, 2])
    speed.store(speed.writing(), rows([1, 2]))
    speed.store(speed.writing("rows_csv"), rows([1]))
    found = ledger(speed)
    assert found.open == {SOURCE: 1}
    assert found.lost == (Misplaced(SOURCE, 2, ("written",), ("rows_csv",)),)
    assert found.lines[0].written == {"rows": 2, "rows_csv": 1}
    speed.store(speed.writing("rows_csv"), rows([2]))
    assert ledger(speed).balanced


def test_what_one_output_refused_others_may_have_written(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.read([1, 2, 3])
    speed.store(speed.writing(), rows([1, 2, 3]))
    speed.store(speed.writing("rows_csv"), rows([1]))
    speed.letter(letters([2, 3], "write", "SINK", "rows_csv"))
    found = ledger(speed)
    assert found.balanced, found.explain()
    assert (found.lines[0].written, found.lines[0].refused, found.lines[0].dead) == ({"rows": 3, "rows_csv": 1}, {"rows_csv": 2}, 0)


def test_a_row_that_an_output_wrote_and_refused_left_twice(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.read([1])
    speed.store(speed.writing(), rows([1]))
    speed.letter(letters([1], "write", "SINK", "rows"))
    assert ledger(speed).twice == (Misplaced(SOURCE, 1, ("written", "written to and refused by rows")),)


def test_a_refused_row_that_turns_out_to_be_a_duplicate_is_one(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.read([1])
    speed.letter(letters([1], "write", "SINK", "rows"))
    speed.store(speed.writing(), rows([1], change=-1))
    found = ledger(speed)
    assert found.balanced, found.explain()
    assert (found.lines[0].duplicate, found.lines[0].refused) == (1, {})


def test_letters_of_aggregates_are_counted_by_aggregate_and_take_no_row_away(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    for name in ("by.hour", "by"):
        speed.writing(name, of=name)
    speed.read(range(5))
    speed.store(speed.writing(), rows(range(5)))
    speed.letter(letters([0, 1], "aggregate", "LATE", "by.hour"))
    speed.letter(letters([1, 2, 3], "aggregate", "LATE", "by"))
    speed.letter(letters([3, 4], "aggregate", "EXPRESSION", "by.total"))
    speed.letter(letters([4], "aggregate", "TIME", "unstored.total"))
    speed.letter(letters([4], "aggregate", "EXPRESSION", "by.total", source="aggregate:by"))  # of a pane, which is no row
    found = ledger(speed)
    assert found.balanced, found.explain()
    assert [line.source for line in found.lines] == [SOURCE]
    assert found.lines[0].late == {"by": 4, "by.hour": 2, "unstored": 1}
    assert found.reasons == {"aggregate:EXPRESSION": 3, "aggregate:LATE": 4, "aggregate:TIME": 1}


def test_a_duplicate_is_late_for_no_aggregate(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.writing("hourly", of="hourly")
    speed.read([1, 2])
    speed.store(speed.writing(), rows([1, 2], change=1))
    speed.letter(letters([1, 2], "aggregate", "LATE", "hourly"))
    speed.store(speed.writing(), rows([2], change=-1))
    found = ledger(speed)
    assert found.balanced
    assert found.lines[0].late == {"hourly": 1}
    assert found.reasons == {"aggregate:LATE": 1}
    assert speed.ask("SELECT position FROM dead_letters") == [{"position": 1}]


def test_letters_in_two_outputs_are_counted_once(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.writing()
    speed.read([1])
    for name in ("dead_letters", "dead_letters_csv"):
        speed.letter(letters([1]), name)
    found = ledger(speed)
    assert found.balanced
    assert found.reasons == {"prepare:TYPE": 1}


def test_without_an_output_of_rows_nothing_is_open(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.writing("hourly", of="hourly")
    speed.read([1, 2])
    speed.letter(letters([2]))
    found = ledger(speed)
    assert found.balanced
    assert (found.lines[0].read, found.lines[0].dead, found.lines[0].written) == (2, 1, {})


def test_a_stream_that_has_read_nothing_has_an_empty_ledger(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.writing()
    assert ledger(speed) == StreamLedger((), {}, (), (), {})


def record(speed: Speed) -> RunResults:
    found = ledger(speed)
    failures = tuple(found.explain().splitlines())
    about = metadata(speed.run, finished_at=utc_now())
    stored = stored_outputs(speed.state, speed.outputs, found)
    return RunResults(about, "failed" if failures else "success", failures, outputs=stored, ledger=found.lines, dead_letters=found.reasons)


def test_the_record_tells_what_is_stored(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.read(range(6))
    for _ in range(2):
        speed.store(speed.writing(by=["k"]), rows([0, 1, 2, 3], change=1), rows([3], change=-1))
        speed.store(speed.writing("hourly", of="hourly"), panes(("x", 0, 1, "early", 1, 0), ("x", 0, 2, "on_time", 1, 1)))
        speed.letter(letters([4]))
    speed.door([5], FILTERED)
    made = record(speed)
    assert [(o.name, o.rows, o.status) for o in made.outputs] == [
        ("rows", 3, "stored"),
        ("hourly", 1, "stored"),
        ("dead_letters", 1, "stored"),
    ]
    assert (made.outputs[0].files, made.outputs[0].partitions) == (6, ("k=00", "k=01", "k=02"))
    assert all(o.bytes > 0 for o in made.outputs)
    assert from_json(to_json(made)) == made
    assert runs_table([made]).select(["mode", "read", "written", "dead", "duplicate", "filtered"]).to_pylist() == [
        {"mode": "stream", "read": 6, "written": 3, "dead": 1, "duplicate": 1, "filtered": 1}
    ]


def shown(made: RunResults) -> str:
    out = io.StringIO()
    show_run(made, state="s", out=out)
    return out.getvalue()


def test_a_streams_record_is_shown_with_its_outputs_and_its_ledger(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.read(range(3))
    speed.store(speed.writing(), rows([0, 1]))
    speed.door([2], DUPLICATE)
    text = shown(record(speed))
    assert "ledger   3 read = 2 good + 0 dead + 1 duplicate + 0 filtered   (balances)" in text
    assert str(tmp_path / "rows.speed") in text


def test_a_stream_that_does_not_balance_says_so_and_that_what_is_stored_stays(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.read(range(3))
    speed.store(speed.writing(), rows([0, 1]))
    text = shown(record(speed))
    assert "1 row is stored in the archive and not yet through, for example position 2 (not in rows)" in text
    assert "ledger   3 read = 2 good + 0 dead + 0 duplicate + 0 filtered + 1 open   (DOES NOT BALANCE)" in text
    assert "Nothing was committed" not in text
    assert "What is stored stays" in text


@pytest.mark.slow
def test_a_million_rows_are_accounted_for_in_about_a_second(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    writing, n = speed.writing(), 1_000_000
    for start in range(0, n, 100_000):
        numbers = range(start, start + 100_000)
        speed.read(numbers)
        speed.store(writing, rows(numbers))
    speed.store(writing, rows(range(0, n, 100), change=-1))
    begun = time.process_time(), time.perf_counter()
    found = ledger(speed)
    took = time.process_time() - begun[0], time.perf_counter() - begun[1]
    print(f"ledger of a million rows: {took[0]:.2f} s CPU, {took[1]:.2f} s")
    assert found.balanced
    assert found.lines[0].written == {"rows": n - len(np.arange(0, n, 100))}
    assert took[0] < 3


def started(speed: Speed, run_id: str) -> None:
    """The next start of the stream, with a number of its own."""
    take_epoch(speed.state, run_id)
    if speed.run_id != run_id:
        speed.restart(run_id)
    time.sleep(0.002)  # what it stores is stored later


@share(6)
@given(
    st.lists(st.tuples(st.sampled_from(DOORS), st.sampled_from([None, *DOORS]), st.sampled_from([None, *DOORS])), min_size=1, max_size=8)
)
def test_of_a_row_that_later_starts_read_again_the_newest_pass_counts(
    tmp_path_factory: pytest.TempPathFactory, passes: list[tuple[str | None, ...]]
) -> None:
    """A row may have left by another door in each start, as under a spec that changed; views show it as a duplicate once it ever was one, and else
    what its newest pass says."""
    speed = Speed(tmp_path_factory.mktemp("speed"))
    speed.writing()
    write_outputs(speed.state, StreamOutputs((replace(speed.known["rows"], placings=("one", "another")),)))
    speed.read(range(len(passes)))
    for number in range(3):
        started(speed, f"r{number + 1}")
        for door in DOORS:
            leave(speed, [n for n, doors in enumerate(passes) if doors[number] == door], door)
    found = ledger(speed)
    assert found.balanced, found.explain()
    (line,) = found.lines
    ends = [_end([door for door in doors if door is not None]) for doors in passes]
    assert line == Line(
        SOURCE, len(passes), ends.count("dead"), ends.count("duplicate"), ends.count("filtered"), {"rows": ends.count("written")}
    )
    assert found.reasons == ({"prepare:TYPE": ends.count("dead")} if "dead" in ends else {})
    seen = speed.ask("SELECT n FROM rows ORDER BY n") if any({"written", "taken back"} & set(doors) for doors in passes) else []
    assert [row["n"] for row in seen] == [n for n, end in enumerate(ends) if end == "written"]


def _end(doors: list[str]) -> str:
    last = "duplicate" if doors[-1] == "taken back" else doors[-1]
    return "duplicate" if last == "written" and {"duplicate", "taken back"} & set(doors) else last


def test_a_letter_that_was_sent_again_counts_by_what_came_of_it_and_only_then(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    started(speed, "r1")
    speed.writing()
    speed.read([1, 2, 3])
    speed.letter(letters([1, 2, 3]))
    sent_again(speed, [1, 2])
    speed.store(speed.writing(), rows([1, 3], change=1))
    speed.letter(letters([2], reason="CAST"))
    found = ledger(speed)
    assert found.lines[0].dead == 2
    assert found.lines[0].written == {"rows": 2}
    assert found.twice == (Misplaced(SOURCE, 3, ("dead", "written")),)  # nobody sent that one: a fault
    assert found.reasons == {"prepare:CAST": 1, "prepare:TYPE": 2}


def sent_again(speed: Speed, positions: list[int]) -> None:
    """As `dlq replay --into stream` writes it down."""
    with duckdb.connect() as connection:
        stored = connection.sql(f"SELECT * FROM ({stored_sql(speed.state)})").to_arrow_table()
    said = dict(zip(stored.column("position").to_pylist(), stored.column("said_at").cast(pa.int64()).to_pylist(), strict=True))
    batch = pa.Table.from_batches([letters(positions)])
    more = {name: pa.nulls(len(positions), TAKEN_UP.field(name).type) for name in TAKEN_UP.names if name not in batch.column_names}
    more |= {"into": pa.array(["stream"] * len(positions)), "said_at": pa.array([said[p] for p in positions]).cast(UTC)}
    take_up(speed.state, "replay-1", pa.table({**dict(zip(batch.column_names, batch.columns, strict=True)), **more}))
    time.sleep(0.002)


def test_open_letters_are_those_whose_record_has_not_left_otherwise_since(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    started(speed, "r1")
    speed.writing()
    speed.letter(letters([1, 2, 3, 4]))
    speed.letter(letters([1], "aggregate", "LATE", "by"))
    sent_again(speed, [1])
    started(speed, "r2")
    speed.store(speed.writing(), rows([1, 2], change=1))
    speed.door([3], FILTERED)
    connection = open_letters(speed.state)
    assert connection.execute("SELECT position, reason FROM open_dead_letters ORDER BY ALL").fetchall() == [(1, "LATE"), (4, "TYPE")]
    history = "SELECT position, how, resolved_by FROM dead_letter_history ORDER BY ALL"
    assert connection.execute(history).fetchall() == [(1, "replayed", "r2"), (2, "read again", "r2"), (3, "read again", None)]
    started(speed, "r3")
    speed.letter(letters([2]))  # refused again, by yet another spec
    assert open_letters(speed.state).execute("SELECT position FROM open_dead_letters ORDER BY ALL").fetchall() == [(1,), (2,), (4,)]


def archived(speed: Speed, name: str, positions: range) -> None:
    """A file as a Cloud Storage subscription writes it."""
    write_file(Path(speed.outputs.archive[0]) / "2024-05-01" / name, [Message(str(n), 1_714_557_600_000_000, b"{}") for n in positions])


def test_messages_that_a_subscription_archived_are_counted(tmp_path: Path) -> None:
    """A file comes minutes after its messages, and what left has been read whatever the files hold."""
    speed = Speed(tmp_path)
    leave(speed, [0, 1, 2], "written")
    leave(speed, [3], "dead")
    assert ledger(speed).lines[0].read == 0, "nobody archives"
    archived(speed, "10_00_00Z_a.avro", range(2))
    assert ledger(speed).lines[0].read == 4
    archived(speed, "10_05_00Z_b.avro", range(1, 5))
    found = ledger(speed)
    assert (found.lines[0].read, found.lines[0].written, found.lines[0].dead) == (6, {"rows": 3}, 1), "one was written twice"
    assert found.balanced
    assert found.explain() == ""


def test_a_source_of_which_no_row_left_yet_is_counted(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.writing()
    archived(speed, "10_00_00Z_a.avro", range(3))
    assert ledger(speed).lines == (Line(SOURCE, 3, written={"rows": 0}),)


def test_outputs_are_counted_while_files_of_them_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file goes after the query over it was made, and one after it was listed."""
    speed = Speed(tmp_path)
    writing = speed.writing("by_hour", of="by_hour")
    first, second, third = (path for hour in range(3) for path in speed.store(writing, panes(("a", hour, 1, "on_time", 1, 0))))
    doomed, sql_of, files_of = [first], stream_ledger_module.speed_sql, stream_ledger_module._files

    def merged_meanwhile(*arguments: Any) -> str:
        made = sql_of(*arguments)
        for path in doomed:
            Path(path).unlink(missing_ok=True)
        return made

    def listed(folder: str, ending: str) -> list[str]:
        found = list(files_of(folder, ending))
        Path(second).unlink()
        return found

    monkeypatch.setattr(stream_ledger_module, "speed_sql", merged_meanwhile)
    monkeypatch.setattr(stream_ledger_module, "_files", listed)
    (stored,) = stored_outputs(speed.state, speed.outputs, ledger(speed))
    assert (stored.rows, stored.files, stored.bytes) == (2, 2, Path(third).stat().st_size)
