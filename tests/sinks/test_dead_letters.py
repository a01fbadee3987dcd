"""Dead letters: none lost, each complete and masked; a run's letters replace those of the sources it read again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import duckdb
import pyarrow as pa
import pytest

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.masking import SEALED, open_sealed
from beam_pipelines.arrow.quiet import HIDDEN
from beam_pipelines.arrow.schema import DEAD_LETTERS, RAW_BATCH, Failure, Rejected, dead_letters, provenance
from beam_pipelines.errors import RunError, SinkError, SpecError, TransientError
from beam_pipelines.serving.dead_letters import failed_letters as letters_of
from beam_pipelines.sinks import commit, failed_letters
from beam_pipelines.sinks.commit import Commit
from beam_pipelines.sinks.dead_letters import WriteDeadLetters
from beam_pipelines.sinks.failed_letters import kept_sql, kept_there
from beam_pipelines.sinks.manifest import snapshots
from beam_pipelines.sinks.results import KeptLetters, find_run
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sinks.views import select_sql
from beam_pipelines.spec.models import Thresholds
from beam_pipelines.spec.sinks import ParquetSink, TextSink
from tests.runs import read_run

PLAIN = Contract(columns={"id": Column(type="string"), "n": Column(type="int32")})
SECRET = Contract(columns={"id": Column(type="string", sensitive="hmac"), "n": Column(type="int32")})
KEY = "0123456789abcdef" * 4


def key() -> str:
    return KEY


def letters(source: str, *positions: int) -> pa.RecordBatch:
    raw = pa.array([f"line {p}".encode() for p in positions], pa.binary())
    rows = pa.RecordBatch.from_arrays([*provenance(source, pa.array(positions, pa.int64())), raw], schema=RAW_BATCH)
    verdict = Rejected("conform", "CAST", (Failure("cast", "n", "'x' is no int32"), Failure("cast", "id", "'Ann' is too long")))
    return dead_letters(rows, [verdict] * len(positions), raw_format="csv")


def job(
    state: Path,
    run_id: str,
    by_source: Mapping[str, tuple[int, ...]],
    *,
    contract: Contract = PLAIN,
    thresholds: Thresholds | None = None,
    **more: Any,
) -> WriteDeadLetters:
    """A run that reads each source and rejects the rows at the given positions."""
    run = RunInfo(run_id, "p", str(state), pipeline_version="7", contract="c0ffee")
    write = WriteDeadLetters(run=run, contract=contract, **more)
    counts = [(s, s, "read", "", len(p)) for s, p in by_source.items()] + [
        (s, s, "dead", "conform:CAST", len(p)) for s, p in by_source.items()
    ]
    with beam.Pipeline("FnApiRunner") as pipeline:
        rejected = pipeline | "Letters" >> beam.Create([letters(s, *p) for s, p in by_source.items() if p], reshuffle=False)
        written = rejected | "Write" >> write
        [written.files, written.counts, pipeline | "Counts" >> beam.Create(counts)] | Commit(run, [write.output], thresholds=thresholds)
    return write


def view(state: Path) -> list[dict[str, Any]]:
    sql = f"SELECT * FROM ({select_sql(snapshots(str(state))['dead_letters'])}) ORDER BY source, position"
    found: list[dict[str, Any]] = duckdb.connect().sql(sql).to_arrow_table().to_pylist()
    return found


def placed(state: Path) -> list[tuple[str, int, str]]:
    return [(r["source"], r["position"], r["run_id"]) for r in view(state)]


def test_without_a_sink_letters_lie_complete_in_the_state_folder(tmp_path: Path) -> None:
    job(tmp_path, "r1", {"a": (1,)})
    (letter,) = view(tmp_path)
    assert (letter["run_id"], letter["pipeline"], letter["pipeline_version"], letter["contract"]) == ("r1", "p", "7", "c0ffee")
    assert (letter["raw"], letter["raw_format"]) == (b"line 1", "csv")
    assert [f["column"] for f in letter["failures"]] == ["n", "id"]
    assert [p.name for p in (tmp_path / "dead_letters").iterdir()] == ["run_id=r1"]


def test_a_run_replaces_the_letters_of_the_sources_it_read_again(tmp_path: Path) -> None:
    job(tmp_path, "r1", {"a": (1, 2), "b": (3,)})
    job(tmp_path, "r2", {"b": (4,), "c": ()})
    assert placed(tmp_path) == [("a", 1, "r1"), ("a", 2, "r1"), ("b", 4, "r2")]
    job(tmp_path, "r3", {"a": ()})  # repaired
    assert placed(tmp_path) == [("b", 4, "r2")]
    assert [p.name for p in (tmp_path / "dead_letters").iterdir()] == ["run_id=r2"]


def test_running_twice_gives_the_same_letters_and_no_orphan_file(tmp_path: Path) -> None:
    job(tmp_path, "r1", {"a": (1, 2), "b": ()})
    job(tmp_path, "r2", {"a": (1, 2), "b": ()})
    assert placed(tmp_path) == [("a", 1, "r2"), ("a", 2, "r2")]
    assert len([p for p in (tmp_path / "dead_letters").rglob("*") if p.is_file()]) == 1


def test_a_failed_run_commits_no_letters(tmp_path: Path) -> None:
    job(tmp_path, "r1", {"a": (1,)})
    with pytest.raises(RuntimeError, match=r"run 'r2' failed: dead_letters: 100\.00%"):
        job(tmp_path, "r2", {"a": (1, 2)}, thresholds=Thresholds(dead_letters=0.1))
    assert placed(tmp_path) == [("a", 1, "r1")]
    assert read_run(str(tmp_path), "r2").failures == ("dead_letters: 100.00% of the rows read; at most 10.00% allowed",)


def fail(state: Path, run_id: str, positions: tuple[int, ...], **more: Any) -> KeptLetters:
    with pytest.raises(RuntimeError, match=f"run '{run_id}' failed"):
        job(state, run_id, {"a": positions}, thresholds=Thresholds(dead_letters=0.1), **more)
    kept = read_run(str(state), run_id).kept_letters
    assert kept is not None
    return kept


@pytest.mark.parametrize("name", ["dead", "dead.csv", "dead.csv.gz", "dead.jsonl", "dead.jsonl.gz", "folder_of_lines"])
def test_letters_of_a_failed_run_are_kept_whole_and_in_no_output(tmp_path: Path, name: str) -> None:
    path, kind = str(tmp_path / name), "csv" if ".csv" in name else "jsonl"
    sink = {"sink": ParquetSink(path=path)} if name == "dead" else {"sink": TextSink(path=path), "text_format": kind}
    kept = fail(tmp_path / "state", "r1", (1, 2), **sink)
    found = duckdb.connect().sql(f"SELECT * FROM ({kept_sql(kept)}) ORDER BY position").to_arrow_table().cast(DEAD_LETTERS)
    assert [(r["position"], r["run_id"], r["raw"]) for r in found.to_pylist()] == [(1, "r1", b"line 1"), (2, "r1", b"line 2")]
    assert [f["column"] for f in found["failures"][0].as_py()] == ["n", "id"]
    assert (kept.rows, kept.output) == (2, "dead_letters")
    assert list(tmp_path.rglob("*.inprogress")) == [], "nothing is left in the staging folder"
    assert duckdb.connect().sql(f"SELECT count(*) FROM glob('{tmp_path}/**/*.{name.partition('.')[2] or 'parquet'}')").fetchall() == [(0,)]


def test_letters_of_the_newest_five_failed_runs_are_kept(tmp_path: Path) -> None:
    for number in (3, 9, 1, 2, 8, 7, 4):  # ids do not sort by time
        kept = fail(tmp_path, f"r{number}", (1,))
    assert kept_runs(kept) == {f"run_id=r{n}" for n in (1, 2, 8, 7, 4)}


def kept_runs(kept: KeptLetters) -> set[str]:
    return {p.name for p in Path(kept.folder).glob("*/*")}


def test_letters_of_a_run_whose_record_is_not_there_yet_stay_and_go_when_five_have_failed_since(tmp_path: Path) -> None:
    for number in range(5):
        fail(tmp_path, f"r{number}", (1,))
    (tmp_path / "runs" / "r4.json").unlink()  # it fails at the same time, or was killed
    for number in range(5, 9):
        kept = fail(tmp_path, f"r{number}", (1,))
        assert "run_id=r4" in kept_runs(kept)
    assert "run_id=r4" not in kept_runs(fail(tmp_path, "r9", (1,)))


def test_letters_just_kept_stay_where_another_clock_is_ahead(tmp_path: Path) -> None:
    ahead = [f"29991231T00000{n}000000Z.a{n}" for n in range(6)]
    for name in ahead:
        (tmp_path / "dead_letters" / ".failed" / name).mkdir(parents=True)
    kept = fail(tmp_path, "r1", (1,))
    assert kept_there(kept)
    assert [p.name for p in sorted(Path(kept.folder).iterdir())][1:] == ahead[2:]


@pytest.mark.parametrize("name", ["dead", "dead.csv"])
def test_a_run_that_fails_again_under_its_id_keeps_its_new_letters_and_one_that_succeeds_none(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    sink = {"sink": ParquetSink(path=path)} if name == "dead" else {"sink": TextSink(path=path), "text_format": "csv"}
    fail(tmp_path / "state", "r1", (1, 2), **sink)
    kept = fail(tmp_path / "state", "r1", (3,), **sink)
    assert duckdb.connect().sql(f"SELECT position, run_id FROM ({kept_sql(kept)})").fetchall() == [(3, "r1")]
    assert len(list(tmp_path.rglob("*.failed*/**/*.failed*"))) == 1
    job(tmp_path / "state", "r1", {"a": (4,)}, **sink)
    assert read_run(str(tmp_path / "state"), "r1").status == "success"
    assert list(tmp_path.rglob("*.failed*/**/*.failed*")) == []


def test_a_run_whose_letters_cannot_be_kept_has_a_record_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead" / ".failed").write_text("no folder")
    with pytest.raises(RuntimeError, match=r"run 'r1' failed: dead_letters: 100\.00%.*its dead letters could not be kept: .*/\.failed/"):
        job(tmp_path / "state", "r1", {"a": (1,)}, thresholds=Thresholds(dead_letters=0.1), sink=ParquetSink(path=str(tmp_path / "dead")))
    record = read_run(str(tmp_path / "state"), "r1")
    assert (record.status, record.kept_letters, len(record.failures)) == ("failed", None, 2)
    with pytest.raises(SpecError, match=r"no letters of run 'r1' were kept\. It failed: dead_letters: 100"):
        letters_of(record)


@pytest.mark.parametrize("kind", [SinkError, TransientError])
@pytest.mark.parametrize("broken", ["move", "merge_parts", "delete_tree"])
def test_no_error_about_letters_loses_the_record_of_a_run_or_what_an_older_one_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[RunError], broken: str
) -> None:
    path = str(tmp_path / ("dead.csv" if broken == "merge_parts" else "dead"))
    sink = {"sink": TextSink(path=path), "text_format": "csv"} if broken == "merge_parts" else {"sink": ParquetSink(path=path)}
    old = [fail(tmp_path, f"r{n}", (1,), **sink) for n in range(5 if broken == "delete_tree" else 1)]

    def refuses(*given: Any, **named: Any) -> None:
        if broken == "delete_tree":
            assert find_run(str(tmp_path), "r5") is not None, "its record comes first"
        raise kind("a: no.")

    monkeypatch.setattr(failed_letters, broken, refuses)
    with pytest.raises(RuntimeError, match="run 'r5' failed: dead_letters: 100"):
        job(tmp_path, "r5", {"a": (1,)}, thresholds=Thresholds(dead_letters=0.1), **sink)
    record = read_run(str(tmp_path), "r5")
    assert (record.status, record.kept_letters is not None) == ("failed", broken == "delete_tree")
    assert all(map(kept_there, old))


def test_a_run_whose_commit_is_refused_leaves_the_letters_that_its_record_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = fail(tmp_path, "r1", (1,))

    def refuses(work: Any) -> None:
        raise SinkError("a: no.")

    monkeypatch.setattr(commit, "commit", refuses)
    with pytest.raises(RuntimeError, match="a: no"):
        job(tmp_path, "r1", {"a": (2,)})
    assert read_run(str(tmp_path), "r1").kept_letters == kept
    assert kept_there(kept)


def test_with_sensitive_columns_bytes_are_left_out_and_quotes_hidden(tmp_path: Path) -> None:
    job(tmp_path, "r1", {"a": (1,)}, contract=SECRET)
    (letter,) = view(tmp_path)
    assert letter["raw"] is None
    assert letter["message"] == f"'x' is no int32; id: the value is no string {HIDDEN}"
    content = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert b"Ann" not in content
    assert b"line 1" not in content


def test_with_a_key_bytes_are_sealed(tmp_path: Path) -> None:
    job(tmp_path, "r1", {"a": (1, 2)}, contract=SECRET, raw_key=key)
    found = view(tmp_path)
    assert {r["raw_format"] for r in found} == {"csv" + SEALED}
    assert open_sealed(pa.array([r["raw"] for r in found], pa.binary()), bytes.fromhex(KEY)).to_pylist() == [b"line 1", b"line 2"]


def test_letters_for_people_as_json_lines(tmp_path: Path) -> None:
    write = job(tmp_path / "state", "r1", {"a": (1,)}, sink=TextSink(path=str(tmp_path / "dead.jsonl")), text_format="jsonl")
    assert write.output.single
    (letter,) = view(tmp_path / "state")
    assert (letter["source"], letter["reason"]) == ("a", "CAST")
    assert '"raw":"line 1"' in (tmp_path / "dead.jsonl").read_text()


def test_letters_are_partitioned_by_run_only(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="partitioned by run_id"):
        WriteDeadLetters(ParquetSink(path="/x", partition_by=("reason",)), run=RunInfo("r", "p", str(tmp_path)), contract=PLAIN)
