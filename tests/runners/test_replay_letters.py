"""Replay into the batch: a letter's record ends where a run over everything would have put it, once; what is still bad stays, and a kill loses nothing."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow.schema import DEAD_LETTERS
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.runners.replay_letters import LetterReplayPlan, carry_out, plan_batch, resolved
from beam_pipelines.runners.trial import tried
from beam_pipelines.serving.dead_letters import open_letters, past_letters, select_letters
from beam_pipelines.sinks.labels import places_of
from beam_pipelines.sinks.replays import resolve_replayed
from beam_pipelines.spec.load import LoadedSpec
from tests.test_ranged_runs import DAYS, SPEC, TWO_OUTPUTS, content, day_range, go, make, near_midnight, row

pytestmark = pytest.mark.slow

STRICT_WHOLE = SPEC.replace("min: 0}", "min: 3}")
REPAIRED = TWO_OUTPUTS
STRICT = REPAIRED.replace("min: 0}", "min: 3}")
_SINKS = [line for line in SPEC[SPEC.index("sinks:") :].splitlines() if "sinks" in line or "rows" in line or "dead" in line]
SIMPLE = SPEC[: SPEC.index("deduplicate:")] + "\n".join(_SINKS)  # rows and letters alone: a letter touches its own day


def again(folder: Path, spec: str = REPAIRED) -> LoadedSpec:
    return make(folder, [], spec)


def letters(loaded: LoadedSpec, **chosen: Any) -> pa.Table:
    return select_letters(open_letters(loaded.state, places_of(loaded.spec)), **chosen)


def replayed(loaded: LoadedSpec, **chosen: Any) -> LetterReplayPlan:
    """All open letters replayed, to the end."""
    plan = plan_batch(loaded, letters(loaded, **chosen))
    for record in carry_out(loaded, plan):
        assert record.status == "success", record.failures
    return plan


def fates(plan: LetterReplayPlan) -> list[str]:
    return sorted(fate.why for fate in plan.fates)


def ask(loaded: LoadedSpec, sql: str) -> list[tuple[Any, ...]]:
    return open_letters(loaded.state, places_of(loaded.spec)).execute(sql).fetchall()


def test_repaired_records_are_rows_once_and_their_letters_resolved_by_the_run(tmp_path: Path) -> None:
    loaded = make(tmp_path, [[row(1, 60, 5), row(2, 120, 1), row(3, 2 * 1440, 2), "nonsense"]], STRICT_WHOLE)
    go(loaded)
    assert ask(loaded, "SELECT id FROM rows") == [(1,)]
    loaded = again(tmp_path, SPEC)
    plan = replayed(loaded)
    assert fates(plan) == ["replay", "replay", "still refused"]
    assert sorted(ask(loaded, "SELECT id FROM rows")) == [(1,), (2,), (3,)]
    assert ask(loaded, "SELECT sum(n) FROM hourly") == [(3,)]
    assert ask(loaded, "SELECT stage, reason FROM open_dead_letters") == [("decode", "DECODE")]
    history = ask(loaded, "SELECT raw[:9]::VARCHAR, how, resolved_by FROM dead_letter_history ORDER BY position")
    runs = {record for record, *_ in ask(loaded, "SELECT run_id FROM runs WHERE status = 'success'")}
    assert [how for _, how, _ in history] == ["replayed", "replayed"]
    assert {by for *_, by in history} == {run.run_id for run in plan.runs} <= runs
    assert resolved(loaded, plan) == 2

    before, files = content(loaded), sorted(p.name for p in (Path(loaded.state) / "resolutions").iterdir())
    assert fates(replayed(loaded)) == ["still refused"]
    assert content(loaded) == before
    assert sorted(p.name for p in (Path(loaded.state) / "resolutions").iterdir()) == files


lines = st.fixed_dictionaries({"id": st.integers(0, 6), "at": near_midnight, "v": st.integers(-1, 6)}) | st.just("nonsense")


@settings(max_examples=4, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(lines, min_size=1, max_size=25), min_size=1, max_size=3))
def test_after_a_replay_of_all_the_outputs_are_those_of_a_new_run(tmp_path_factory: pytest.TempPathFactory, files: list[list[Any]]) -> None:
    whole, mended = make(tmp_path_factory.mktemp("whole"), files, SPEC), tmp_path_factory.mktemp("mended")
    go(whole)
    go(make(mended, files, STRICT_WHOLE))
    loaded = again(mended, SPEC)
    replayed(loaded)
    found, expected = content(loaded), content(whole)
    for name in ("rows", "hourly", "sliding", "bursts", "daily"):
        assert list(map(_unnamed, found[name])) == list(map(_unnamed, expected[name])), name
    which = "SELECT parse_filename(source), position, reason FROM open_dead_letters ORDER BY ALL"  # those still refused say what they said
    assert ask(loaded, which) == ask(whole, which)


def _unnamed(text: str) -> str:
    return re.sub(r"'_contract': '\w+'", "", text)  # what a replay need not touch stays as the old contract made it


def test_a_repair_that_moves_the_event_time_puts_the_row_there(tmp_path: Path) -> None:
    loaded = make(tmp_path, [[row(1, 60, 5), row(2, 120, 1)]], STRICT)
    go(loaded)
    moved = REPAIRED.replace(
        "deduplicate:", 'transform: [{set: {at: \'CASE WHEN v < 3 THEN "at" + INTERVAL 2 DAY ELSE "at" END\'}}]\ndeduplicate:'
    )
    loaded = again(tmp_path, moved)
    assert fates(replayed(loaded)) == ["replay"]
    assert ask(loaded, "SELECT id, at_day::VARCHAR FROM rows ORDER BY id") == [(1, "2013-12-01"), (2, "2013-12-03")]
    assert ask(loaded, "SELECT count(*) FROM open_dead_letters") == [(0,)]


def test_a_row_that_meanwhile_came_by_itself_is_there_once(tmp_path: Path) -> None:
    loaded = make(tmp_path, [[row(1, 60, 1)]], STRICT)
    go(loaded)
    loaded = make(tmp_path, [[row(1, 60, 1)], [row(1, 60, 7)]], STRICT)  # the producer has sent a better one
    go(loaded)
    loaded = again(tmp_path)
    replayed(loaded)
    assert ask(loaded, "SELECT id, v FROM rows") == [(1, 7)]
    assert ask(loaded, "SELECT how FROM dead_letter_history") == [("replayed",)]


LATE = TWO_OUTPUTS.replace("v:  {type: int32, min: 0}", "v:  {type: int32, min: 0}\n    came: {type: timestamp}").replace(
    "format: json}]", "format: json, arrival: {column: came}}]"
)


def test_a_late_letter_ends_in_its_aggregates_alone(tmp_path: Path) -> None:
    late = {**row(2, 70), "came": "2013-12-09T00:00:00Z"}
    loaded = make(tmp_path, [[{**row(1, 60), "came": "2013-12-01T01:00:00Z"}, late]], LATE)
    go(loaded, apply_lateness=True)
    rows = "SELECT id, v, _position FROM rows ORDER BY id"
    before = ask(loaded, rows)
    assert len(before) == 2
    assert ask(loaded, "SELECT sum(n) FROM hourly") == [(1,)]
    assert {reason for (reason,) in ask(loaded, "SELECT reason FROM open_dead_letters")} == {"LATE"}
    plan = replayed(loaded, where="failures[1].name = 'hourly'")
    assert fates(plan) == ["replay"]
    assert ask(loaded, rows) == before
    assert ask(loaded, "SELECT sum(n) FROM hourly") == [(2,)]
    assert ask(loaded, "SELECT failures[1].name FROM dead_letter_history") == [("hourly",)]


def test_a_replay_that_is_killed_between_two_runs_loses_nothing_and_is_finished_by_the_next(tmp_path: Path) -> None:
    """The first run has read both records, and has left the second to the run that never came."""
    broken = [json.dumps(row(n, minutes, 5)).replace("}", ', "note": 1}') for n, minutes in ((1, 60), (2, 3 * 1440 + 60))]
    loaded = make(tmp_path, [broken], SIMPLE.replace("event_time: at", "event_time: at\n  unknown_columns: dead_letter"))
    go(loaded)
    assert ask(loaded, "SELECT event_time FROM open_dead_letters") == [(None,), (None,)]
    loaded = again(tmp_path, SIMPLE)
    plan = plan_batch(loaded, letters(loaded))
    assert len(plan.runs) == 2
    steps = carry_out(loaded, plan)
    next(steps)
    steps.close()
    assert ask(loaded, "SELECT id FROM rows") == [(1,)]
    assert ask(loaded, "SELECT count(*) FROM dead_letters_batch") == [(0,)]  # read again, and good
    assert ask(loaded, "SELECT count(*) FROM open_dead_letters") == [(1,)]
    replayed(loaded)
    assert ask(loaded, "SELECT id FROM rows ORDER BY id") == [(1,), (2,)]
    assert ask(loaded, "SELECT count(*) FROM open_dead_letters") == [(0,)]
    assert ask(loaded, "SELECT count(*), count(DISTINCT position) FROM dead_letter_history") == [(2, 2)]


def test_a_replay_that_is_killed_after_its_commit_is_seen_to_be_through(tmp_path: Path) -> None:
    from beam_pipelines.sinks.resolutions import take_up

    loaded = make(tmp_path, [[row(1, 60, 1)]], STRICT)
    go(loaded)
    loaded = again(tmp_path)
    plan = plan_batch(loaded, letters(loaded))
    take_up(loaded.state, plan.replay, plan.taken)
    resolve_replayed(loaded.state)
    assert ask(loaded, "SELECT count(*) FROM open_dead_letters") == [(1,)]  # killed before the run
    (run,) = plan.runs
    run_batch(loaded, Call(run_id=run.run_id, range=run.range, input=run.input))
    resolve_replayed(loaded.state)
    resolve_replayed(loaded.state)
    assert ask(loaded, "SELECT how, resolved_by FROM dead_letter_history") == [("replayed", run.run_id)]


def test_an_ordinary_run_over_its_time_resolves_what_a_replay_took_up(tmp_path: Path) -> None:
    from beam_pipelines.sinks.resolutions import take_up

    loaded = make(tmp_path, [[row(1, 60, 1), row(2, 61, -1)]], STRICT)
    go(loaded)
    loaded = again(tmp_path)
    plan = plan_batch(loaded, letters(loaded))
    take_up(loaded.state, plan.replay, plan.taken)
    done = go(loaded, day_range(-3, 3))
    resolve_replayed(loaded.state)
    assert ask(loaded, "SELECT resolved_by FROM dead_letter_history") == [(done.metadata.run_id,)]
    assert ask(loaded, "SELECT reason FROM open_dead_letters") == [("CHECK",)]


def test_where_input_is_gone_nothing_is_computed_that_would_lose_its_rows(tmp_path: Path) -> None:
    loaded = make(tmp_path, [[row(1, 60, 5), row(2, 61, 1)], [row(3, 62, 1)]], STRICT)
    go(loaded)
    (tmp_path / "in" / "0.jsonl").unlink()
    loaded = again(tmp_path)
    before = content(loaded)
    plan = replayed(loaded)
    assert [(fate.why, Path(fate.detail).name) for fate in plan.fates] == [("gone", "0.jsonl"), ("input gone", "0.jsonl")]
    assert content(loaded) == before
    assert ask(loaded, "SELECT count(*) FROM open_dead_letters") == [(2,)]


def test_a_spec_that_cannot_be_replaced_in_part_is_run_whole(tmp_path: Path) -> None:
    plain = SPEC.replace(", partition_by: [day(at)]", "").replace(", partition_by: [day(_window_start)]", "")
    loaded = make(tmp_path, [[row(1, 60, 5), row(2, 61, 1)]], plain.replace("min: 0}", "min: 3}"))
    go(loaded)
    loaded = again(tmp_path, plain)
    plan = replayed(loaded)
    assert [run.range for run in plan.runs] == [None]
    assert ask(loaded, "SELECT id FROM rows ORDER BY id") == [(1,), (2,)]
    assert ask(loaded, "SELECT how FROM dead_letter_history") == [("replayed",)]


def test_records_without_an_event_time_and_those_that_are_filtered(tmp_path: Path) -> None:
    loaded = make(tmp_path, [[{"id": 1, "v": 1}, row(2, 60, 1), row(3, 60, 5)]], STRICT)
    go(loaded)
    loaded = again(tmp_path, REPAIRED.replace("deduplicate:", 'transform: [{filter: "id <> 2"}]\ndeduplicate:'))
    plan = replayed(loaded)
    assert fates(plan) == ["no event time", "replay"]
    assert ask(loaded, "SELECT id FROM rows") == [(3,)]
    assert len(ask(loaded, "SELECT * FROM dead_letter_history")) == 1


def test_letters_of_a_columnar_file_are_found_by_their_ordinal(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    spec = STRICT.replace("in/*.jsonl", "in/*.parquet").replace("format: json", "format: parquet")
    loaded = make(tmp_path, [], spec)
    times = pa.array([1_385_859_600_000_000 + n for n in range(3)], pa.timestamp("us", "UTC"))
    table = pa.table({"id": pa.array([1, 2, 3], pa.int32()), "at": times, "v": pa.array([5, 1, 1], pa.int32())})
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    go(loaded)
    loaded = again(tmp_path, spec.replace("min: 3}", "min: 0}"))
    assert fates(replayed(loaded)) == ["replay", "replay"]
    assert ask(loaded, "SELECT id FROM rows ORDER BY id") == [(1,), (2,), (3,)]


def test_a_csv_is_read_with_its_header(tmp_path: Path) -> None:
    spec = STRICT.replace("in/*.jsonl", "in/*.csv").replace("format: json", "format: csv")
    loaded = make(tmp_path, [], spec)
    (tmp_path / "in" / "a.csv").write_text("v,id,at\n5,1,2013-12-01T01:00:00Z\n1,2,2013-12-01T02:00:00Z\n")
    go(loaded)
    loaded = again(tmp_path, spec.replace("min: 3}", "min: 0}"))
    assert fates(replayed(loaded)) == ["replay"]
    assert ask(loaded, "SELECT id FROM rows ORDER BY id") == [(1,), (2,)]


class Killing:
    """A row program that dies of some positions, as a fault in a library would."""

    event_time = ""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad

    def __call__(self, batch: pa.RecordBatch) -> Any:
        import os

        from beam_pipelines.arrow.program import Split

        if self.bad & set(batch.column("_position").to_pylist()):
            os.kill(os.getpid(), signal.SIGSEGV)
        return Split(batch, pa.RecordBatch.from_pylist([], schema=DEAD_LETTERS), 0, {})


def test_a_record_that_crashes_is_found_and_costs_no_other() -> None:
    rows = pa.record_batch({"_source": ["s"] * 40, "_position": pa.array(range(40), pa.int64())})
    found = tried([(rows, Killing({7, 31}))])
    assert {position for (_, position), one in found.items() if one.outcome == "crash"} == {7, 31}
    assert sum(one.outcome == "good" for one in found.values()) == 38


def test_letters_of_several_days_take_as_few_runs_as_there_are_stretches(tmp_path: Path) -> None:
    loaded = make(tmp_path, [[row(n, day * 1440 + 60, 1) for n, day in enumerate((0, 1, 3, 3))]], SIMPLE.replace("min: 0}", "min: 3}"))
    go(loaded)
    plan = plan_batch(again(tmp_path, SIMPLE), letters(loaded))
    assert [(run.range, run.letters) for run in plan.runs] == [(day_range(0, 2), 2), (day_range(3, DAYS), 2)]
    assert past_letters(open_letters(loaded.state)) == ()
