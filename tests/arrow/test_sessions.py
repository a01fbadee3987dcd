"""Sessions: runs of rows whose pauses are shorter than the gap, cut on a fixed grid where they grow too long."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipelines.arrow import sessions
from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.engine import local_engine
from beam_pipelines.arrow.panes import aggregate_batch, merge_partials, partials, plan, present
from beam_pipelines.arrow.windowing import instants
from beam_pipelines.arrow.windows import WindowSpec
from tests.arrow.slow_aggregate import panes_of

SECOND = 1_000_000


def spec_of(gap: int, max_length: int | None = None) -> AggregateSpec:
    fields: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
    return AggregateSpec(windowing=WindowSpec(type="sessions", gap=gap, **fields), group_by=["g"], measures={"n": "count()", "s": "sum(x)"})


def batch_of(rows: list[tuple[str, int]]) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "g": pa.array([g for g, _ in rows], pa.string()),
            "t": instants(np.array([t for _, t in rows], np.int64)),
            "x": pa.array(range(len(rows)), pa.int64()),
        }
    )


def windows(times: list[int], gap: int, max_length: int | None = None) -> list[tuple[int, int, int]]:
    panes = aggregate_batch(batch_of([("a", t) for t in times]), spec_of(gap, max_length), time="t").panes
    columns = [panes.column(n).cast(pa.int64()).to_pylist() for n in ("_window_start", "_window_end", "n")]
    return list(zip(*columns, strict=True))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(-60, 60)), max_size=30), st.integers(1, 12), st.integers(0, 20), st.data())
def test_any_split_and_order_gives_the_sessions_of_the_whole(rows: list[tuple[str, int]], gap: int, more: int, data: st.DataObject) -> None:
    spec = spec_of(gap, gap + more)
    batch = batch_of(rows).take(pa.array(data.draw(st.permutations(range(len(rows)))), pa.int64()))
    made_by = plan(spec, batch.schema, time="t")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    made = [partials(batch.slice(a, b - a), made_by).partials for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    while len(made) > 1:
        some = data.draw(st.integers(2, len(made)))
        made = [*made[some:], merge_partials(made[:some], spec)]
    panes = present(made[0], spec).panes
    got = {
        (r["g"], s, e): (r["n"], r["s"])
        for r, s, e in zip(
            panes.to_pylist(), *(panes.column(n).cast(pa.int64()).to_pylist() for n in ("_window_start", "_window_end")), strict=True
        )
    }
    expected = panes_of([{"g": g, "t": t, "x": i} for i, (g, t) in enumerate(rows)], spec.windowing, ["g"])
    assert got == {k: (len(m), sum(r["x"] for r in m)) for k, m in expected.items()}
    assert len(got) == panes.num_rows


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-60, 60), st.integers(0, 5)), max_size=30), st.integers(1, 12), st.integers(0, 20))
def test_a_stream_finds_the_sessions_that_sql_finds(runs: list[tuple[int, int, int]], gap: int, more: int) -> None:
    spec = WindowSpec(type="sessions", gap=gap, max_length=gap + more)
    first = np.array([t for _, t, _ in runs], np.int64)
    key, last = np.array([k for k, _, _ in runs], np.int64), first + [n for _, _, n in runs]
    last = np.minimum(last, (first // spec.longest + 1) * spec.longest - 1).astype(np.int64)  # a run lies in one cell
    slot = pa.record_batch({"n": pa.array(np.arange(len(key))), "k": key, "w": first, "e": last})
    sql = f"SELECT n, min(w) OVER piece AS s, max(_end) OVER piece AS e FROM ({sessions.windows('SELECT * FROM $slot', ['k'], spec)}) "
    told = local_engine().select(sql + "WINDOW piece AS (PARTITION BY k, _run, _piece) ORDER BY n", slot.schema)(slot)
    found = sessions.found(key, first, last, spec)
    back = np.argsort(found.order)
    assert found.start[back].tolist() == told.column("s").to_pylist()
    assert found.end[back].tolist() == told.column("e").to_pylist()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-100, 100), max_size=40), st.integers(1, 10), st.integers(0, 30))
def test_sessions_hold_every_row_once_and_do_not_overlap(times: list[int], gap: int, more: int) -> None:
    got = windows(times, gap, gap + more)
    assert sum(n for _, _, n in got) == len(times)
    assert all(a[1] <= b[0] for a, b in zip(got, got[1:], strict=False))
    assert all(sum(s <= t < e for t in times) == n for s, e, n in got)


def test_a_pause_of_exactly_the_gap_ends_the_session() -> None:
    assert windows([0, 9, 19, 40], 10) == [(0, 19, 2), (19, 29, 1), (40, 50, 1)]


def test_a_long_session_is_cut_on_the_grid_and_a_shorter_one_across_the_grid_is_not() -> None:
    assert windows([95, 99, 104], 10, 100) == [(95, 114, 3)]
    assert windows(list(range(-95, 110, 5)), 10, 100) == [(-95, 0, 19), (0, 100, 20), (100, 115, 2)]


def test_a_late_row_moves_no_cut_but_its_own() -> None:
    """The grid stands still: an earlier row lengthens the session but leaves the pieces after it as they were."""
    times = list(range(3, 260, 5))
    before, after = windows(times, 10, 100), windows([-4, *times], 10, 100)
    assert after[-2:] == before[-2:]


def test_a_late_row_joins_two_sessions() -> None:
    assert windows([0, 15], 10) == [(0, 10, 1), (15, 25, 1)]
    assert windows([0, 15, 8], 10) == [(0, 25, 3)]


def test_the_longest_session_is_a_day_unless_said_otherwise() -> None:
    hour = 3600 * SECOND
    assert len(windows([h * hour for h in range(24)], 2 * hour)) == 1
    assert [n for _, _, n in windows([h * hour for h in range(60)], 2 * hour)] == [24, 24, 12]


@pytest.mark.parametrize("order", ["up", "down"])
def test_partials_hold_runs_not_rows(order: str) -> None:
    times = np.arange(5000) * SECOND
    batch = batch_of([("a", int(t)) for t in (times if order == "up" else times[::-1])])
    made = partials(batch, plan(spec_of(2 * SECOND), batch.schema, time="t")).partials
    assert made.num_rows == 1
    assert present(made, spec_of(2 * SECOND)).panes.column("n").to_pylist() == [5000]


def test_a_row_is_judged_late_by_the_session_it_would_be_alone() -> None:
    spec = AggregateSpec(windowing=WindowSpec(type="sessions", gap=10, allowed_lateness=5), measures={"n": "count()"})
    batch = batch_of([("a", 0), ("a", 1)]).append_column("_arrival_time", instants(np.array([15, 17])))
    out = aggregate_batch(batch, spec, time="t", apply_lateness=True)
    assert out.panes.column("n").to_pylist() == [1]
    assert out.dead.column("reason").to_pylist() == ["LATE"]
