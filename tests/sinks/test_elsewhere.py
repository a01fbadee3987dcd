"""Runs of one pipeline to several places: each place is an output of its own, whatever the others hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_pipelines.errors import SpecError
from beam_pipelines.serving.tables import ask, elsewhere, open_tables
from beam_pipelines.sinks.committing import KEPT_PLACES, prepare
from beam_pipelines.sinks.manifest import latest, snapshots
from beam_pipelines.sinks.run import Output
from beam_pipelines.sinks.views import select_sql
from tests.laws import share
from tests.sinks.lake import Lake, rows

A, B = rows((1, "a"), (2, "b")), rows((3, "b"), (4, "c"))


def at(lake: Lake, place: str) -> Output:
    return replace(lake.output(), path=str(lake.folder / place / "out"))


def view(lake: Lake, place: str) -> list[tuple[int, str]]:
    found = snapshots(lake.state, {"out": at(lake, place).path}).get("out")
    return [] if found is None else sorted(duckdb.connect().execute(f"SELECT n, k FROM ({select_sql(found)})").fetchall())


def test_each_place_keeps_its_own_partitions(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.go("r1", at(lake, "one"), A)
    lake.go("r2", at(lake, "two"), B)
    assert (view(lake, "one"), view(lake, "two"), view(lake, "three")) == ([(1, "a"), (2, "b")], [(3, "b"), (4, "c")], [])
    lake.go("r3", at(lake, "one"), B)
    assert (view(lake, "one"), view(lake, "two")) == ([(1, "a"), (3, "b"), (4, "c")], [(3, "b"), (4, "c")])


@share(12)
@given(st.lists(st.tuples(st.sampled_from(["one", "two", "three"]), st.sampled_from([0, 1])), min_size=1, max_size=6))
def test_places_do_not_see_each_other(tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[str, int]]) -> None:
    """What a place holds is what the runs to it alone would have made."""
    lake = Lake(tmp_path_factory.mktemp("lake"))
    expected: dict[str, dict[str, int]] = {}
    for i, (place, which) in enumerate(runs):
        lake.go(f"r{i}", at(lake, place), (A, B)[which])
        expected.setdefault(place, {}).update({k: n for n, k in ((1, "a"), (2, "b"))} if which == 0 else {"b": 3, "c": 4})
    for place, held in expected.items():
        assert view(lake, place) == sorted((n, k) for k, n in held.items())


def test_a_text_file_may_be_written_again_after_a_run_to_another_place(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    one, two = (Output("out", "rows", str(tmp_path / f"{name}.csv"), "csv") for name in ("one", "two"))
    for i, output in enumerate((one, two, one)):
        prepare([output], lake.run(f"r{i}"))
        lake.go(f"r{i}", output, A)
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text().replace(",r1,", ",r2,")


def test_a_query_of_another_place_says_where_the_newest_run_wrote(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.go("r1", at(lake, "one"), A)
    here, there = ({"out": at(lake, place).path} for place in ("one", "two"))
    assert ask(open_tables(lake.state, here), "SELECT count(*) AS n FROM out")["n"].to_pylist() == [2]
    assert (elsewhere(lake.state, here), elsewhere(lake.state, there)) == ({}, here)
    with pytest.raises(
        SpecError, match=r"nothing has been committed to 'out' with these parameters yet; the newest run wrote it to .*one/out"
    ):
        ask(open_tables(lake.state, there), "SELECT * FROM out", expected=["out"], elsewhere=elsewhere(lake.state, there))


def test_a_state_remembers_a_bounded_number_of_places(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for i in range(KEPT_PLACES + 3):
        lake.go(f"r{i}", at(lake, f"p{i}"), A)
    newest = latest(lake.state)
    assert newest is not None
    assert len(newest.elsewhere) == KEPT_PLACES
    assert {Path(s.path).parent.name for s in newest.elsewhere} == {f"p{i}" for i in range(2, KEPT_PLACES + 2)}
