"""What an upgrade finds in a state folder: the newest start and what it runs, what would be read again, what can be computed anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.formats.archive import source_folder, write_messages
from beam_pipelines.runners.upgrade import upgrade_of
from beam_pipelines.runners.versions import versions_here
from beam_pipelines.sinks.deletions import Account, Deleted, write_account
from beam_pipelines.sinks.epochs import Ran, newest_start, take_epoch, what_ran
from beam_pipelines.sinks.outputs import StreamOutputs, write_outputs
from beam_pipelines.sinks.reached import Reached, begin, write_progress
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.conftest import ROOT
from tests.formats.archived import HOUR, NOON, SOURCE, messages

SPEC = f"""
spec: 1
pipeline: flights
contract:
  key: [id]
  event_time: at
  allowed_skew: 0s
  columns: {{id: {{type: int64}}, at: {{type: timestamp}}}}
sources: {{stream: [{{pubsub: {SOURCE}, format: json}}]}}
deduplicate: {{within: 1h}}
sinks: [{{from: rows, parquet: {{path: lake/rows, partition_by: [day(at)]}}}}]
"""
DAY = 24 * HOUR


@pytest.fixture
def found(tmp_path: Path) -> LoadedSpec:
    return with_text(tmp_path)


def with_text(folder: Path, before: str = "", after: str = "") -> LoadedSpec:
    assert before in SPEC
    (folder / "spec.yaml").write_text(SPEC.replace(before, after))
    return load_spec(folder / "spec.yaml")


def started(loaded: LoadedSpec, *, watermark: int | None = None, ran: bool = True) -> int:
    """A start that has come so far."""
    epoch = take_epoch(loaded.state, f"r{watermark or 0}", ran=Ran.of(loaded) if ran else None, versions=versions_here())
    begin(loaded.state, epoch)
    write_progress(loaded.state, epoch, Reached(watermark))
    write_outputs(loaded.state, StreamOutputs(()))
    return epoch


def archived(loaded: LoadedSpec, *arrivals: int) -> str:
    write_messages(messages(list(enumerate(arrivals))), f"{loaded.state}/archive", epoch=1)
    return source_folder(f"{loaded.state}/archive", SOURCE)


def sizes(folder: str, *hours: str) -> int:
    return sum(path.stat().st_size for hour in hours for path in (Path(folder) / f"arrival_hour={hour}").iterdir())


def test_a_first_start_differs_from_nothing(found: LoadedSpec) -> None:
    seen = upgrade_of(found)
    assert (seen.changes, seen.epoch, seen.start) == ((), 0, None)
    assert not os.path.exists(found.state)


def test_files_of_a_stream_whose_state_is_elsewhere_are_refused(found: LoadedSpec, tmp_path: Path) -> None:
    (tmp_path / "lake" / "rows.speed" / "at_day=2013-12-01").mkdir(parents=True)
    assert upgrade_of(found).changes == ()
    (tmp_path / "lake" / "rows.speed" / "at_day=2013-12-01" / "a.parquet").write_bytes(b"")
    assert [(c.name, c.effect) for c in upgrade_of(found).changes] == [("state", "refused")]


def test_the_newest_start_is_compared(found: LoadedSpec, tmp_path: Path) -> None:
    started(found)
    started(with_text(tmp_path, "within: 1h", "within: 2h"))
    newer = with_text(tmp_path, "within: 1h", "within: 3h")
    seen = upgrade_of(newer)
    assert [(c.name, c.before, c.after, c.effect) for c in seen.changes] == [("deduplicate.within", "2h", "3h", "from now on")]
    assert seen.epoch == 2
    assert seen.start is not None
    assert seen.start.versions == versions_here()
    assert what_ran(newer.state, seen.start) == Ran.of(with_text(tmp_path, "within: 1h", "within: 2h"))


def test_starts_that_run_the_same_keep_one_copy_of_it(found: LoadedSpec) -> None:
    for _ in range(3):
        started(found)
    assert len(list(Path(found.state, "stream", "specs").iterdir())) == 1


def test_a_start_that_did_not_say_what_it_runs_cannot_be_compared(found: LoadedSpec) -> None:
    started(found, ran=False)
    (change,) = upgrade_of(found).changes
    assert (change.name, change.effect) == ("unknown", "refused")
    record = Path(found.state, "stream", "epochs", "000001.json")
    old = {name: value for name, value in json.loads(record.read_text()).items() if name not in ("ran", "versions")}
    record.write_text(json.dumps(old))
    assert upgrade_of(found).changes == (change,)
    newest = newest_start(found.state)
    assert newest is not None
    assert (newest[1].ran, newest[1].versions) == ("", {})


def test_a_spec_that_this_version_does_not_understand_cannot_be_compared(found: LoadedSpec) -> None:
    started(found)
    (written,) = Path(found.state, "stream", "specs").iterdir()
    ran = json.loads(written.read_text())
    ran["spec"]["deduplicate"]["somehow"] = 1
    written.write_text(json.dumps(ran))
    (change,) = upgrade_of(found).changes
    assert (change.name, change.effect) == ("unknown", "refused")
    assert "deduplicate.somehow" in change.why


def test_what_is_read_again_reaches_back_to_what_the_new_spec_needs(found: LoadedSpec, tmp_path: Path) -> None:
    folder = archived(found, NOON - 5 * HOUR, NOON - 3 * HOUR, NOON - 2 * HOUR, NOON)
    assert upgrade_of(found).bytes == 0
    started(found, watermark=NOON)
    seen = upgrade_of(found)
    assert seen.since == NOON - 2 * HOUR  # copies within an hour, each up to an hour late
    assert seen.bytes == sizes(folder, "2013-12-01-10", "2013-12-01-12")
    assert upgrade_of(with_text(tmp_path, "within: 1h", "within: 2h")).bytes == sizes(
        folder, *(f"2013-12-01-{h}" for h in ("09", "10", "12"))
    )
    started(found)
    assert (upgrade_of(found).since, upgrade_of(found).bytes) == (
        None,
        sizes(folder, *(f"2013-12-01-{h}" for h in ("07", "09", "10", "12"))),
    )


def test_what_retention_has_deleted_is_refused_where_it_would_be_read_again(found: LoadedSpec, tmp_path: Path) -> None:
    archived(found, NOON)
    started(found, watermark=NOON)
    write_account(found.state, Account((Deleted("archive", "archive", 1, 1, 1, NOON - 3 * HOUR, "2013-12-01T12:00:00Z"),)))
    assert upgrade_of(found).changes == ()
    longer = upgrade_of(with_text(tmp_path, "within: 1h", "within: 2h")).changes
    assert [(c.name, c.effect) for c in longer] == [("horizon", "refused"), ("deduplicate.within", "from now on")]


def test_what_is_closed_can_be_computed_anew_by_whole_partitions(found: LoadedSpec, tmp_path: Path) -> None:
    archived(found, NOON - 2 * DAY, NOON)
    started(found, watermark=NOON)
    assert upgrade_of(found).anew == Range(NOON - 2 * DAY - DAY // 2, NOON - DAY // 2)
    started(found, watermark=NOON - 2 * DAY)
    assert (upgrade_of(found).anew, upgrade_of(found).whole) == (None, False)
    started(found, watermark=NOON)
    plain = with_text(tmp_path, ", partition_by: [day(at)]", "")
    assert (upgrade_of(plain).anew, upgrade_of(plain).whole) == (None, True)


def test_comparing_loads_no_beam() -> None:
    script = "import beam_pipelines.runners.upgrade, beam_pipelines.runners.versions, sys; print('apache_beam' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
