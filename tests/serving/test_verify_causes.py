"""Each cause is given where exactly its difference was planted, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.serving.verify import CAUSES, Verification
from beam_pipelines.serving.verify.rows import lookups_of_columns
from beam_pipelines.sinks.deletions import Account, Deleted, read_account, write_account
from tests.serving.two_layers import DAY, HOUR, NOW, SPEC, ZERO, Pane, Row, Twin

MINUTE = HOUR // 60


@pytest.fixture
def twin(tmp_path: Path) -> Twin:
    made = Twin(tmp_path)
    made.know()
    return made


def causes(done: Verification, output: str = "rows") -> dict[str, int]:
    (each,) = [each for each in done.outputs if each.output == output]
    assert sum(each.causes.values()) == sum(each.kinds.values())
    assert set(each.causes) <= set(CAUSES)
    return each.causes


def details(done: Verification, output: str = "rows") -> set[str]:
    return {sample.detail for each in done.outputs if each.output == output for sample in each.samples}


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_open_the_stream_is_not_through_with_a_message(twin: Twin) -> None:
    twin.commit(Row(1, 1, 0), Row(2, 2, DAY), arrival=2 * DAY)
    twin.reached(3 * DAY, ended=False)
    assert causes(twin.verify()) == {"unexplained": 2}  # it came past them
    twin.reached(DAY, ended=True)
    assert causes(twin.verify()) == {"unexplained": 2}  # it is through
    twin.reached(DAY, ended=False)
    assert causes(twin.verify()) == {"open": 2}
    twin.reached(None, ended=False)
    assert causes(twin.verify()) == {"open": 2}


def test_dead_letter_of_the_stream_by_identity(twin: Twin) -> None:
    twin.commit(Row(1, 1, 0), Row(2, 2, HOUR), Row(3, 3, HOUR))
    twin.letter(2, None, stage="decode", reason="MALFORMED")
    done = twin.verify()
    assert causes(done) == {"dead letter": 1, "unexplained": 2}
    assert "stream decode:MALFORMED" in details(done)


def test_dead_letter_of_the_batch_by_identity(twin: Twin) -> None:
    twin.stream(Row(1, 1, 0), Row(2, 2, HOUR))
    twin.archive((1, {}), (2, {}))
    twin.commit(letters=[{**twin.letter(2, HOUR, layer="batch"), "source": "projects/p/subscriptions/s"}])
    done = twin.verify()
    assert causes(done) == {"dead letter": 1, "unexplained": 1}
    assert "batch validate:CHECK" in details(done)


def test_dead_letter_by_key_and_time_where_the_batch_read_files(twin: Twin) -> None:
    """The bytes of the letter must hold the key as a word."""
    twin.commit(Row(1, 12, 0), Row(2, 2, 0), Row(3, 3, 0), Row(4, 4, HOUR), read="batch")
    twin.letter(90, 0, raw={"id": 12})
    twin.letter(91, 0, raw={"id": 33})
    twin.letter(92, 0, raw={"id": 4})
    done = twin.verify()
    assert causes(done) == {"dead letter": 1, "unexplained": 3}
    twin = Twin(twin.folder / "other")
    twin.know()
    twin.stream(Row(1, 12, 0), Row(2, 2, 0))
    twin.archive((1, {"id": 0}), (2, {"id": 0}))
    twin.commit(read="batch", letters=[twin.letter(5, 0, raw={"id": 12}, layer="batch")])
    assert causes(twin.verify()) == {"dead letter": 1, "unexplained": 1}


def test_duplicate_that_the_stream_told(twin: Twin) -> None:
    twin.stream(Row(1, 1, 0), Row(2, 2, 0))
    twin.commit(Row(1, 1, 0), Row(2, 2, 0))
    assert twin.verify().differ == 0
    twin.duplicate(2)
    assert causes(twin.verify()) == {"duplicate": 1}


def test_duplicate_of_a_copy_that_both_layers_have(twin: Twin) -> None:
    """The stream did not compare them: too late for it."""
    twin.stream(Row(1, 1, 0), Row(2, 1, MINUTE), Row(3, 1, 3 * HOUR))
    twin.archive((1, {}), (2, {}), (3, {}))
    twin.commit(Row(2, 1, MINUTE))
    done = twin.verify()
    assert causes(done) == {"duplicate": 1, "unexplained": 1}  # the third is farther away than `within`
    assert "a better copy is in the batch" in details(done)


def test_superseded_another_message_won(twin: Twin) -> None:
    twin.stream(Row(1, 1, 0, v=1), Row(2, 2, 0, v=1))
    twin.commit(Row(9, 1, 0, v=2), Row(2, 2, 0, v=2))
    done = twin.verify()
    assert causes(done) == {"superseded": 1, "unexplained": 1}  # the other is the same message
    assert "batch: message 9, stream: message 1" in details(done)


def test_superseded_by_a_copy_at_another_time(twin: Twin) -> None:
    twin.stream(Row(1, 1, 0), Row(2, 2, 0), Row(3, 3, 0))
    twin.archive((1, {}), (2, {}), (3, {}))
    twin.commit(Row(8, 1, MINUTE), Row(2, 2, MINUTE), Row(9, 3, 2 * HOUR))
    assert causes(twin.verify()) == {"superseded": 2, "unexplained": 4}  # the second is one message with two times, the third too far


def test_superseded_by_a_copy_that_the_stream_has_elsewhere(twin: Twin) -> None:
    """The batch read files, and its row is one that the stream has, too, and not the better; the better lies outside the range."""
    twin.stream(Row(1, 1, DAY - MINUTE), Row(2, 1, DAY + MINUTE))
    twin.duplicate(1)
    twin.commit(Row(5, 1, DAY - MINUTE), Row(6, 2, DAY - MINUTE), where=(0, 1), read="batch")
    done = twin.verify()
    assert causes(done) == {"superseded": 1, "unexplained": 1}
    assert "the stream has another copy of its key" in details(done)


def test_without_a_rule_nothing_is_a_copy(tmp_path: Path) -> None:
    twin = Twin(tmp_path, SPEC.replace("deduplicate: {within: 1h}\n", ""))
    twin.know()
    twin.stream(Row(1, 1, 0), Row(2, 2, 0))
    twin.archive(*[(n, {"id": n}) for n in (1, 2)])
    twin.commit(Row(8, 1, MINUTE), Row(9, 2, 0, v=7))
    assert causes(twin.verify()) == {"unexplained": 3}


def test_stale_stored_after_the_run_had_listed_its_input(twin: Twin) -> None:
    rows = [Row(n, n, 0) for n in range(4)]
    twin.stream(rows[0], stored=NOW - 3 * HOUR)
    twin.stream(rows[1], stored=NOW - MINUTE)  # its message may not have been archived yet
    twin.stream(rows[2], stored=NOW + 1)
    twin.stream(rows[3], stored=NOW + 1)
    twin.archive(*[(n, {"id": n}) for n in range(4)])
    twin.commit(rows[3]._replace(v=7))
    done = twin.verify()
    assert causes(done) == {"stale": 2, "unexplained": 2}  # rows[3] is in the answer, with another value
    assert any(detail.endswith(", after run b1 began") for detail in details(done))


def test_stale_beside_a_batch_over_files(twin: Twin) -> None:
    twin.stream(Row(0, 0, 0), stored=NOW - MINUTE)
    twin.stream(Row(1, 1, 0), Row(2, 2, 0, v=7), stored=NOW + 1)
    twin.commit(Row(2, 2, 0), read="batch")
    assert causes(twin.verify()) == {"stale": 2, "unexplained": 1}


def deleted(twin: Twin, output: str, of: Any, until: int) -> None:
    """Retention has deleted what arrived (panes: ended) before `until`, after ZERO."""
    account = read_account(twin.state)
    one = Deleted(output, of, 1, 1, 1, ZERO + until, "2026-01-01T00:00:00Z")
    write_account(twin.state, Account((*account.deleted, one)))


def test_deleted_by_retention_what_arrived_before_it(twin: Twin) -> None:
    """By arrival where the batch read the archive, by event time where it read files; of this output, and not of the archive."""
    twin.commit(Row(1, 1, 0), Row(2, 2, DAY), arrival=2 * DAY)
    deleted(twin, "rows", "archive", 3 * DAY)
    deleted(twin, "rows", "rows", 2 * DAY)
    assert causes(twin.verify()) == {"unexplained": 2}
    deleted(twin, "rows", "rows", 2 * DAY + 1)
    assert causes(twin.verify()) == {"deleted by retention": 2}
    twin.letter(2, None)
    assert causes(twin.verify()) == {"dead letter": 1, "deleted by retention": 1}  # what is known of the row itself comes first
    twin.commit(Row(1, 1, 0), Row(2, 2, 3 * DAY), read="batch", run_id="b2")
    assert causes(twin.verify()) == {"deleted by retention": 1, "unexplained": 1}


def test_deleted_by_retention_explains_no_row_that_the_stream_has(twin: Twin) -> None:
    twin.stream(Row(1, 1, 0, v=7), Row(2, 2, 0))
    twin.archive((1, {}), (2, {}))
    twin.commit(Row(1, 1, 0))
    deleted(twin, "rows", "rows", 9 * DAY)
    assert causes(twin.verify()) == {"unexplained": 2}


def test_deleted_by_retention_a_pane_that_ended_before_it(twin: Twin) -> None:
    twin.commit(Row(1, 1, 0), Pane(0), Pane(5))
    deleted(twin, "rows", "rows", 9 * DAY)
    assert causes(twin.verify(), "hourly") == {"unexplained": 2}  # its rows are gone: a pane stays as it was made
    deleted(twin, "hourly", "panes", HOUR + 1)
    assert causes(twin.verify(), "hourly") == {"deleted by retention": 1, "unexplained": 1}


def test_not_read_the_archive_has_lost_the_message(twin: Twin) -> None:
    twin.stream(Row(1, 1, 0), Row(2, 2, 0))
    twin.archive((2, {"id": 2}))
    twin.commit()
    done = twin.verify()
    assert causes(done) == {"not read": 1, "unexplained": 1}
    assert "its message is not in the archive that the batch read" in details(done)


def test_not_read_files_and_messages_are_of_other_things(twin: Twin) -> None:
    """No message has the key; the batch's files do not have it. A row whose message says another key is not explained."""
    twin.stream(Row(1, 1, 0), Row(2, 2, 0), Row(3, 3, 0))
    twin.archive((1, {"id": 1}), (2, {"id": 2}), (3, {"id": 33}), (4, {"id": 4}), (5, "nonsense"))
    twin.commit(Row(10, 1, 0), Row(11, 4, 0), Row(12, 5, 0), read="batch")
    done = twin.verify()
    assert causes(done) == {"not read": 2, "unexplained": 2}
    assert details(done) == {"", "no message of the archive has its key", "the stream read it; batch run b1 read files"}


def test_keys_are_not_read_out_of_messages_where_a_step_makes_them(tmp_path: Path) -> None:
    twin = Twin(tmp_path, SPEC.replace("transform:\n", 'transform:\n  - {set: {id: "id + 1"}}\n'))
    twin.know()
    twin.stream(Row(1, 2, 0))
    twin.archive((1, {"id": 1}))
    twin.commit(Row(11, 4, 0), read="batch")
    assert causes(twin.verify()) == {"unexplained": 2}


def test_lookup_only_its_columns_differ(twin: Twin) -> None:
    twin.stream(Row(1, 1, 0), Row(2, 2, 0))
    twin.commit(Row(1, 1, 0, town="Bonn"), Row(2, 2, 0, town="Bonn", v=2))
    assert causes(twin.verify()) == {"lookup": 1, "unexplained": 1}
    assert lookups_of_columns(twin.loaded.spec) == {"town": {"places"}, "label": {"places"}}


@pytest.mark.parametrize("ended", [True, False])
def test_lookup_versions_that_are_on_record_say_whether_it_was_that(twin: Twin, ended: bool) -> None:
    twin.started("s1", lookups={"places": "old"}, ended=ended)
    twin.started("s2", lookups={"places": "new"}, ended=ended)
    twin.stream(Row(1, 1, 0))
    twin.stream(Row(2, 2, 0), run_id="s2")
    twin.stream(Row(3, 3, 0), run_id="killed before versions were on record")
    twin.commit(*(Row(n, n, 0, town="Bonn") for n in (1, 2, 3)), lookups={"places": "new"})
    done = twin.verify()
    assert causes(done) == {"lookup": 2, "unexplained": 1}
    assert details(done) == {"lookup places: batch new, stream old", "only columns that come from lookups differ", ""}


def test_lookup_of_equal_versions_may_have_been_refreshed_since(tmp_path: Path) -> None:
    twin = Twin(tmp_path, SPEC.replace("files: places.csv,", "files: places.csv, refresh: 1h,"))
    twin.know()
    twin.started(lookups={"places": "new"})
    twin.stream(Row(1, 1, 0))
    twin.commit(Row(1, 1, 0, town="Bonn"), lookups={"places": "new"})
    assert causes(twin.verify()) == {"lookup": 1}


def test_contract_of_the_row_or_of_the_runs(twin: Twin) -> None:
    twin.started(contract="old")
    twin.stream(Row(1, 1, 0), Row(2, 2, 0), contract="old")
    twin.stream(Row(4, 4, 0))
    twin.archive((1, {}), (2, {}), (4, {}))
    twin.commit(Row(1, 1, 0, v=7), Row(3, 3, 0), Row(4, 4, 0, v=7))
    done = twin.verify()
    assert causes(done) == {"contract": 3, "unexplained": 1}
    assert any(detail.startswith("batch ") and detail.endswith(", stream old") for detail in details(done))


def test_code_versions_of_run_and_start(twin: Twin) -> None:
    twin.started("s1", version="1")
    twin.started("s2", version="2")
    twin.stream(Row(1, 1, 0), Row(2, 2, 0))
    twin.stream(Row(3, 3, 0), run_id="s2")
    twin.archive((1, {}), (2, {}), (3, {}))
    twin.commit(Row(1, 1, 0, v=7), Row(3, 3, 0, v=7), Row(4, 4, 0), version="2")
    done = twin.verify()
    assert causes(done) == {"code": 2, "unexplained": 2}
    assert any("batch 2 (beam-pipelines " in detail and "stream 1 (" in detail for detail in details(done))
    twin.commit(Row(4, 4, 0), version="3", run_id="b2")
    assert causes(twin.verify()) == {"code": 4}


def test_the_first_cause_counts(twin: Twin) -> None:
    """A dead letter, told a duplicate, of another contract: a dead letter."""
    twin.started(contract="old", version="7")
    twin.commit(Row(1, 1, 0))
    twin.letter(1, 0)
    twin.duplicate(1)
    assert causes(twin.verify()) == {"dead letter": 1}


# ── windows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_open_an_early_or_drained_pane(twin: Twin) -> None:
    twin.panes(Pane(0, pane="early"), Pane(1, pane="drained"), Pane(2, pane="late"))
    twin.commit(Pane(0, n=2), Pane(1, n=2), Pane(2, n=2))
    assert causes(twin.verify(), "hourly") == {"open": 2, "unexplained": 1}


def test_open_a_window_that_the_stream_has_not_closed(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.know(open_micros=HOUR)
    twin.panes(Pane(2))
    twin.commit(Pane(0), Pane(1), Pane(2, n=2))
    twin.reached(2 * HOUR, ended=False)  # windows close an hour after their end
    assert causes(twin.verify(), "hourly") == {"open": 2, "unexplained": 1}
    twin.reached(2 * HOUR, ended=True)
    assert causes(twin.verify(), "hourly") == {"unexplained": 3}


def both(twin: Twin, *rows: Row, **batch: Any) -> None:
    twin.stream(*rows)
    twin.commit(*rows, **batch)


def test_late_a_letter_that_only_the_stream_has(twin: Twin) -> None:
    twin.panes(Pane(0), Pane(0, "b"), Pane(1), Pane(5))
    rows = [Row(1, 1, 0), Row(2, 2, MINUTE), Row(3, 3, HOUR, "b"), Row(5, 5, 5 * HOUR)]
    twin.stream(*rows)
    twin.commit(*rows, Pane(0, n=2), Pane(0, "b", n=2), Pane(1, "b"), Pane(1, n=2), Pane(5, n=2))
    twin.letter(2, MINUTE, stage="aggregate", reason="LATE", name="hourly")
    twin.letter(3, HOUR, stage="aggregate", reason="LATE", name="hourly")
    twin.letter(5, 5 * HOUR, stage="aggregate", reason="LATE", name="another")
    done = twin.verify()
    assert causes(done, "hourly") == {"late": 2, "unexplained": 3}  # of the group b of the second window, and a of the first
    assert {(s.key["g"], s.cause) for s in done.outputs[1].samples if s.cause == "late"} == {("a", "late"), ("b", "late")}


def test_a_letter_that_both_layers_have_explains_nothing(twin: Twin) -> None:
    twin.panes(Pane(0))
    letter = twin.letter(2, MINUTE, stage="aggregate", reason="LATE", name="hourly")
    twin.stream(Row(2, 2, MINUTE))
    twin.commit(Row(2, 2, MINUTE), Pane(0, n=2), letters=[letter])
    assert causes(twin.verify(), "hourly") == {"unexplained": 1}


def test_dead_letter_of_a_measure(twin: Twin) -> None:
    twin.panes(Pane(0))
    twin.letter(2, MINUTE, stage="aggregate", reason="EXPRESSION", name="hourly.total")
    twin.commit(Pane(0, n=2))
    done = twin.verify()
    assert causes(done, "hourly") == {"dead letter": 1}
    assert details(done, "hourly") == {"aggregate:EXPRESSION"}


def test_a_window_has_the_cause_of_its_rows(twin: Twin) -> None:
    """One row is a dead letter, one was told a duplicate; a window with a row that nothing explains is not explained either."""
    rows = [
        Row(1, 1, 0),
        Row(2, 2, HOUR),
        Row(3, 3, HOUR),
        Row(4, 4, 2 * HOUR),
        Row(5, 5, 2 * HOUR, "b"),
        Row(6, 6, 3 * HOUR),
        Row(7, 7, 3 * HOUR),
    ]
    twin.commit(*rows, Pane(0), Pane(1, n=2), Pane(2), Pane(2, "b"), Pane(3, n=2))
    twin.letter(1, 0)
    twin.letter(2, HOUR)
    twin.stream(rows[2])
    twin.duplicate(3, 5)
    twin.letter(6, 3 * HOUR)
    done = twin.verify()
    assert causes(done) == {"dead letter": 3, "duplicate": 2, "unexplained": 2}
    assert causes(done, "hourly") == {"dead letter": 2, "duplicate": 1, "unexplained": 2}
    assert "1 row of it is dead letter" in details(done, "hourly")


def test_duplicate_told_when_the_window_had_closed(tmp_path: Path) -> None:
    """Both layers have the same rows; the pane counts the duplicate still."""
    twin = Twin(tmp_path)
    twin.know(open_micros=HOUR)
    twin.stream(Row(1, 1, 0), Row(2, 2, MINUTE), Row(3, 3, 10 * MINUTE, "b"), stored=NOW - 9 * HOUR)
    twin.stream(Row(9, 9, 5 * HOUR), stored=NOW - 8 * HOUR)  # its arrival is past the close
    twin.duplicate(2, stored=NOW - 7 * HOUR)
    twin.duplicate(3, stored=NOW - 8 * HOUR - 1)
    twin.panes(Pane(0, n=2), Pane(0, "b"), Pane(5))
    twin.commit(Row(1, 1, 0), Row(9, 9, 5 * HOUR), Pane(0, n=1), Pane(5))
    done = twin.verify()
    assert done.outputs[0].differ == 0
    assert causes(done, "hourly") == {"duplicate": 1, "unexplained": 1}  # the other was told in time


def test_stale_a_row_that_came_behind_the_watermark(tmp_path: Path) -> None:
    twin = Twin(tmp_path)
    twin.know(open_micros=HOUR)
    rows = [Row(1, 1, 0), Row(2, 2, 8 * HOUR), Row(3, 3, MINUTE), Row(4, 4, MINUTE, "b")]
    for hours, row in enumerate([rows[3], *rows[:3]]):
        twin.stream(row, stored=NOW - 9 * HOUR + hours * HOUR)
    twin.panes(Pane(0, n=1), Pane(8))
    twin.commit(*rows, Pane(0, n=2), Pane(0, "b"), Pane(8))
    done = twin.verify()
    assert done.outputs[0].differ == 0
    assert causes(done, "hourly") == {"stale": 1, "unexplained": 1}
    assert "a row of it came when the window had closed" in details(done, "hourly")


def test_stale_a_row_outside_the_range_that_its_window_reaches_into(tmp_path: Path) -> None:
    twin = Twin(tmp_path, SPEC.replace("{type: fixed, size: 1h}", "{type: fixed, size: 1h, offset: 30m}"))
    twin.know()
    twin.stream(Row(1, 1, DAY + MINUTE), stored=NOW + 1)
    start = ZERO + DAY - 30 * MINUTE
    pane = {**Pane(23).columns(), "_window_start": start, "_window_end": start + HOUR}
    from tests.serving import two_layers

    twin.put("hourly.speed", "window_start_day=2024-10-04", {n: two_layers.pa.array([v], two_layers.KINDS[n]) for n, v in pane.items()})
    twin.commit(where=(0, 1))
    assert causes(twin.verify(0, 1), "hourly") == {"stale": 1}


def test_contract_and_code_of_a_window_are_those_of_its_start(twin: Twin) -> None:
    twin.started("s1", contract="old")
    twin.started("s2", version="2")
    twin.panes(Pane(0), epoch=1)
    twin.panes(Pane(1), epoch=2)
    twin.commit(Pane(0, n=2), Pane(1, n=2), Pane(2), version="2")
    assert causes(twin.verify(), "hourly") == {"contract": 1, "unexplained": 2}
    twin.commit(Pane(0, n=2), Pane(1, n=2), Pane(2), version="3", run_id="b2")
    assert causes(twin.verify(), "hourly") == {"contract": 1, "code": 2}


def test_sessions_are_explained_by_rows_that_would_join_them(tmp_path: Path) -> None:
    twin = Twin(tmp_path, SPEC.replace("{type: fixed, size: 1h}", "{type: sessions, gap: 30m}"))
    twin.know()
    from tests.serving import two_layers

    def session(first: int, last: int, n: int) -> dict[str, Any]:
        return {**Pane(0, n=n).columns(), "_window_start": ZERO + first * MINUTE, "_window_end": ZERO + (last + 30) * MINUTE}

    for one in (session(0, 10, 2), session(60, 70, 2), session(300, 300, 1)):
        twin.put("hourly.speed", "window_start_day=2024-10-04", {n: two_layers.pa.array([v], two_layers.KINDS[n]) for n, v in one.items()})
    twin.letter(7, 35 * MINUTE, stage="aggregate", reason="LATE", name="hourly")
    twin.commit()
    assert causes(twin.verify(), "hourly") == {"late": 2, "unexplained": 1}
