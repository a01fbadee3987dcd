"""`compact` as people and programs call it."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from beam_pipelines.cli.main import command
from beam_pipelines.sinks.reached import Reached, write_progress
from tests.serving.test_upkeep import KEEP, twin, write
from tests.serving.two_layers import DAY, ZERO, Twin


def called(made: Twin, *more: str) -> str:
    done = CliRunner().invoke(command, ["compact", str(made.folder / "pipeline.yaml"), *more])
    assert done.exit_code == 0, done.output
    return done.output


def past(folder: Path, retention: str) -> Twin:
    """As a Twin is, by the clock on the wall."""
    made = twin(folder, retention)
    for path in [*folder.rglob("0*.parquet")]:
        path.rename(path.with_name(f"000001-00{path.name[9:]}"))
    write_progress(made.state, 1, Reached(ZERO + 6 * DAY, None, 2**62, ended=True))
    return made


def test_the_table_says_what_was_there_what_is_and_what_is_on_record(tmp_path: Path) -> None:
    made = past(tmp_path, KEEP)
    lines = called(made).splitlines()
    assert lines[0].split() == ["layer", "of", "folders", "files", "bytes", "rows"]
    rows = next(line.split() for line in lines if line.startswith("rows "))
    assert (rows[:5], rows[-3:]) == (["rows", "rows", "6", "12", "→"], ["12", "→", "6"])
    assert any(line.startswith("deleted: rows: 6 rows in 6 files, ") and line.endswith(" before 2024-10-06T01:00:01Z") for line in lines)
    assert any(line.startswith("deleted: s, archive: 7 rows in 7 files, ") for line in lines)
    assert any(line.startswith("kept, though older than retention says: rows: 1 rows: no batch run") for line in lines)
    assert any("were merged are there for readers" in line for line in lines)


def test_a_dry_run_says_would_and_the_json_is_the_report(tmp_path: Path) -> None:
    made = past(tmp_path, KEEP)
    assert "would be deleted: rows: 6 rows" in called(made, "--dry-run")
    planned, done = (json.loads(called(made, "--json", *more)) for more in (["--dry-run"], []))
    assert planned["dry_run"]
    assert not done["dry_run"]
    assert {(d["layer"], d["rows"]) for d in planned["deleted"]} == {(d["layer"], d["rows"]) for d in done["deleted"]}
    assert [(row["layer"], row["after"]["files"]) for row in planned["layers"]] == [
        (row["layer"], row["after"]["files"]) for row in done["layers"]
    ]
    assert set(done["before"]) == {"archive", "speed"}


def test_a_pipeline_that_has_never_run_has_nothing_to_compact(tmp_path: Path) -> None:
    made = Twin(tmp_path)
    assert all(row["before"]["files"] == 0 for row in json.loads(called(made, "--json"))["layers"])
    write(made, (1, 0))
    assert json.loads(called(made, "--json"))["layers"][0]["before"]["rows"] == 1
