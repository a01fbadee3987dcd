"""`run --new-files`: after it the outputs are what a run over all files makes, whatever came, changed or went; and only what is touched is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.intake import known_files
from beam_pipelines.runners.direct import Call
from beam_pipelines.runners.new_files import run_new_files
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.spec.load import LoadedSpec
from tests.test_ranged_runs import SPEC, TWO_OUTPUTS, content, day_range, go, make, row

pytestmark = pytest.mark.slow


def bring_up_to_date(loaded: LoadedSpec) -> list[RunResults]:
    done = list(run_new_files(loaded, Call()))
    assert all(run.status == "success" for run in done)
    return done


def like_a_run_over_everything(tmp_path: Path, files: list[list[Any]], loaded: LoadedSpec, spec: str = TWO_OUTPUTS) -> None:
    other = make(tmp_path / "whole", files, spec)
    go(other)
    assert content(loaded) == content(other)


def read(done: list[RunResults]) -> set[str]:
    return {Path(line.source).name for run in done for line in run.ledger if line.source}


def test_a_new_file_costs_the_partitions_it_touches(tmp_path: Path) -> None:
    files = [[row(1, 60), row(2, 90)], [row(3, 20 * 1440)], [row(4, 40 * 1440)]]
    loaded = make(tmp_path / "parts", files)
    (first,) = bring_up_to_date(loaded)
    assert first.metadata.range is None
    assert bring_up_to_date(loaded) == []
    files.append(
        [row(1, 100, 5), row(7, 20 * 1440 + 5, -1), "nonsense"]
    )  # a better copy of the first file's row, a letter, and no record at all
    make(tmp_path / "parts", files)
    done = bring_up_to_date(loaded)
    assert read(done) == {"0.jsonl", "1.jsonl", "2.jsonl", "3.jsonl"}
    (second,) = (run for run in done if run.metadata.range is not None and run.metadata.range[0] < "2013-12-10")
    assert read([second]) == {"0.jsonl", "3.jsonl"}  # the others have nothing near
    like_a_run_over_everything(tmp_path, files, loaded, SPEC)
    assert bring_up_to_date(loaded) == []


def test_a_changed_file_is_read_whole_and_its_old_rows_are_gone(tmp_path: Path) -> None:
    files = [[row(1, 60), row(2, 3 * 1440)], [row(3, 60), row(9, 70, -1)]]
    loaded = make(tmp_path / "parts", files, TWO_OUTPUTS)
    bring_up_to_date(loaded)
    files[0] = [row(1, 8 * 1440)]
    files[1] = [row(3, 60), row(9, 70, 1)]
    make(tmp_path / "parts", files, TWO_OUTPUTS)
    os.utime(tmp_path / "parts/in/0.jsonl", (1, 1))  # an older time is another time too
    bring_up_to_date(loaded)
    like_a_run_over_everything(tmp_path, files, loaded)


def test_a_file_that_is_gone_takes_its_rows_and_letters_along(tmp_path: Path) -> None:
    files = [[row(1, 60), row(2, 3 * 1440, -1), "nonsense"], [row(3, 60)]]
    loaded = make(tmp_path / "parts", files, TWO_OUTPUTS)
    bring_up_to_date(loaded)
    (tmp_path / "parts/in/0.jsonl").unlink()
    bring_up_to_date(loaded)
    other = make(tmp_path / "whole", [[], files[1]], TWO_OUTPUTS)
    go(other)
    assert content(loaded) == content(other)


def test_a_series_that_stopped_in_the_middle_goes_on(tmp_path: Path) -> None:
    files = [[row(1, 60)], [row(2, 30 * 1440)]]
    loaded = make(tmp_path / "parts", files, TWO_OUTPUTS)
    bring_up_to_date(loaded)
    files.append([row(5, 120), row(6, 10 * 1440), row(7, 20 * 1440)])
    make(tmp_path / "parts", files, TWO_OUTPUTS)
    series = run_new_files(loaded, Call())
    next(series)
    next(series)
    series.close()  # killed here: what is owed is in the commit
    known = known_files(loaded.state)
    assert known is not None
    assert known.owed
    bring_up_to_date(loaded)
    like_a_run_over_everything(tmp_path, files, loaded)


def test_a_run_over_a_range_reads_no_file_that_has_nothing_near(tmp_path: Path) -> None:
    files = [[row(1, 60)], [row(2, 30 * 1440)]]
    loaded = make(tmp_path, files, TWO_OUTPUTS)
    go(loaded)
    assert read([go(loaded, day_range(0, 1))]) == {"0.jsonl"}
    before = content(loaded)
    go(loaded, day_range(30, 31))
    assert content(loaded) == before


@pytest.mark.parametrize(
    "change",
    [("v:  {type: int32, min: 0}", "v:  {type: int32, min: -9}"), ("total: sum(v)", "total: max(v)"), ("within: 6h", "within: 5h"),
     ("pipeline: ranged", "pipeline: ranged\ntransform: [{filter: 'id > 1'}]"), ("path: lake/rows,", "path: lake/other,")],
)  # fmt: skip
def test_other_code_reads_everything(tmp_path: Path, change: tuple[str, str]) -> None:
    files = [[row(1, 60)]]
    bring_up_to_date(make(tmp_path, files, TWO_OUTPUTS))
    (done,) = bring_up_to_date(make(tmp_path, files, TWO_OUTPUTS.replace(*change)))
    assert done.metadata.range is None


def test_rows_without_an_event_time_read_everything(tmp_path: Path) -> None:
    files: list[list[Any]] = [[row(1, 60)]]
    loaded = make(tmp_path / "parts", files, TWO_OUTPUTS)
    bring_up_to_date(loaded)
    files.append([{"id": 4, "v": 1}])
    make(tmp_path / "parts", files, TWO_OUTPUTS)
    done = bring_up_to_date(loaded)
    assert done[-1].metadata.range is None
    like_a_run_over_everything(tmp_path, files, loaded)


def test_a_failed_run_leaves_it_all_to_be_done(tmp_path: Path) -> None:
    files = [[row(1, 60)] * 1]
    spec = TWO_OUTPUTS.replace("pipeline: ranged", "pipeline: ranged\nthresholds: {dead_letters: 0.5}")
    loaded = make(tmp_path, files, spec)
    bring_up_to_date(loaded)
    make(tmp_path, [*files, ["nonsense"] * 9], spec)
    assert [run.status for run in run_new_files(loaded, Call())] == ["failed"]
    make(tmp_path, [*files, [row(2, 60)]], spec)
    assert [run.status for run in run_new_files(loaded, Call())][-1] == "success"
