"""Why an upgrade refuses what it refuses: what really becomes of what is stored, and of what is read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from beam_pipelines.arrow.aggregate import AggregateSpec, Trigger
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.sinks.epochs import take_epoch
from beam_pipelines.sinks.outputs import SpeedOutput, StreamOutputs, write_outputs
from tests.arrow.test_open_windows import HOUR, MINUTE, Event, Stream
from tests.sinks.speed_lake import Speed, letters, panes, rows


def test_two_copies_of_which_each_rule_takes_back_the_other_are_both_gone(tmp_path: Path) -> None:
    """`keep` or `order_by`: start 1 keeps the newer copy, start 2 reads both again and keeps the older."""
    speed = Speed(tmp_path)
    writing = speed.writing()
    speed.store(writing, rows([1, 2]), rows([1], change=-1))
    assert numbers(speed) == [2]
    speed.restart("r2")
    speed.store(speed.writing(), rows([1, 2]), rows([2], change=-1))
    assert numbers(speed) == []


def test_a_duplicate_of_the_old_key_is_hidden_although_the_new_key_tells_the_copies_apart(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.store(speed.writing(), rows([1, 2]), rows([1], change=-1))
    speed.restart("r2")
    speed.store(speed.writing(), rows([1, 2]))
    assert numbers(speed) == [2]


@pytest.mark.parametrize(("group_by", "shown"), [(("g",), 2), ((), 1)])
def test_a_pane_of_a_closed_window_is_hidden_by_another_one_once_a_group_is_gone(
    tmp_path: Path, group_by: tuple[str, ...], shown: int
) -> None:
    speed = Speed(tmp_path)
    speed.store(speed.writing("hourly", of="hourly"), panes(("a", 1, 10, "on_time", 1, 0), ("b", 1, 20, "on_time", 1, 0)))
    output = speed.known["hourly"]
    write_outputs(speed.state, StreamOutputs((SpeedOutput("hourly", "hourly", output.folder, group_by),)))
    assert len(speed.ask("SELECT total FROM hourly")) == shown


def test_windows_cut_both_ways_count_a_row_twice(tmp_path: Path) -> None:
    """An hour that is closed, and two hours that are open and hold it: all of one group."""
    speed = Speed(tmp_path)
    speed.store(speed.writing("hourly", of="hourly"), panes(("a", 0, 10, "on_time", 1, 0)))
    speed.restart("r2")
    longer = panes(("a", 0, 15, "on_time", 2, 0))
    at = longer.schema.get_field_index("_window_end")
    longer = longer.set_column(at, "_window_end", pa.array([2 * HOUR], longer.schema.field(at).type))
    speed.store(speed.writing("hourly", of="hourly"), longer)
    assert speed.ask("SELECT sum(total)::INT AS total FROM hourly") == [{"total": 25}]


@pytest.mark.parametrize(("delay", "lateness", "shown"), [("1h", "0s", 1), ("0s", "1h", 1), ("0s", "0s", 0)])
def test_a_window_that_was_not_shown_is_never_shown_once_its_time_is_shorter(delay: str, lateness: str, shown: int) -> None:
    """It ends at 1:00 and was to be shown at 2:00; the new start begins at 1:30 and reads its row again."""
    spec = AggregateSpec(
        windowing=WindowSpec(size="1h", watermark_delay=delay, allowed_lateness=lateness), group_by=("g",), measures={"n": "count()"}
    )
    stream = Stream(spec, closed_before=90 * MINUTE)
    stream.add([Event(1, "a", 30 * MINUTE, 1, 30 * MINUTE)])
    stream.advance(10 * HOUR)
    assert len(stream.panes) == shown


def test_late_rows_that_are_shown_once_at_the_end_are_lost_when_the_end_comes_sooner() -> None:
    def shown(lateness: str) -> list[dict[str, Any]]:
        windowing, late = WindowSpec(size="1h", allowed_lateness=lateness), Trigger(late="never")
        stream = Stream(
            AggregateSpec(windowing=windowing, trigger=late, group_by=("g",), measures={"n": "count()"}), closed_before=90 * MINUTE
        )
        stream.add([Event(1, "a", 30 * MINUTE, 1, 30 * MINUTE), Event(2, "a", 30 * MINUTE, 1, 80 * MINUTE)])
        stream.advance(10 * HOUR)
        return stream.panes

    assert [pane["n"] for pane in shown("1h")][-1] == 2
    assert shown("0s") == []


def test_what_lies_in_another_place_is_not_shown_and_its_letters_hide_no_rows(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.store(speed.writing("old"), rows([1]))
    moved = speed.known.pop("old")
    speed.store(speed.writing("new"), rows([2]))
    assert [row["n"] for row in speed.ask("FROM new")] == [2]
    with pytest.raises(SpecError, match="there is no table 'old'"):
        speed.ask("FROM old")
    speed.restart("r2")
    assert [take_epoch(speed.state, name) for name in ("r1", "r2")] == [1, 2]
    speed.letter(letters([2]))
    assert speed.ask("FROM new") == []
    refused = speed.known.pop("dead_letters")
    write_outputs(speed.state, speed.outputs)
    assert [row["n"] for row in speed.ask("FROM new")] == [2]
    assert moved.folder != refused.folder


def test_a_stream_with_another_state_shows_what_the_other_has_hidden(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.store(speed.writing(), rows([1, 2]), rows([1], change=-1))
    speed.store(speed.writing("hourly", of="hourly"), panes(("a", 1, 10, "on_time", 7, 0)))
    outputs = speed.outputs
    other = Speed(tmp_path)
    other.known = dict(speed.known)
    (tmp_path / "state").rename(tmp_path / "elsewhere")
    write_outputs(other.state, outputs)
    assert numbers(other) == [1, 2]
    other.store(other.writing("hourly", of="hourly"), panes(("a", 1, 11, "on_time", 1, 0)))
    assert [row["total"] for row in other.ask("FROM hourly")] == [10]  # the newer start has the smaller number


def test_names_of_folders_that_are_none_of_the_new_type_cannot_be_read(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.store(speed.writing(by=("k",)), rows([1]))
    speed.restart("r2")
    number = rows([2])
    number = number.set_column(number.schema.get_field_index("k"), "k", pa.array([7], pa.int8()))
    speed.store(speed.writing(by=("k",)), rows([3], more={"k": pa.array(["xx"])}))
    speed.store(speed.writing(by=("k",)), number)
    with pytest.raises((SpecError, RunError), match="xx"):
        speed.ask("SELECT * FROM rows")


def test_a_column_that_is_new_or_gone_is_null_elsewhere(tmp_path: Path) -> None:
    speed = Speed(tmp_path)
    speed.store(speed.writing(), rows([1], more={"gone": pa.array(["x"])}))
    speed.restart("r2")
    speed.store(speed.writing(), rows([2], more={"new": pa.array(["y"])}))
    assert speed.ask("SELECT n, gone, new FROM rows ORDER BY n") == [{"n": 1, "gone": "x", "new": None}, {"n": 2, "gone": None, "new": "y"}]


def numbers(speed: Speed) -> list[int]:
    return [row["n"] for row in speed.ask("SELECT n FROM rows ORDER BY n")]
