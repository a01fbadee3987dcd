"""The whole graph on real files: every row accounted for, a second run changes nothing, whatever the input and the workers."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_pipelines.errors import RunError, SinkError, SourceError
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.laws import share

SPEC = """
spec: 1
pipeline: orders
contract:
  key: [id]
  event_time: at
  columns:
    id:    {type: int64, required: true}
    at:    {type: timestamp, required: true}
    kind:  {type: string, in: [a, b]}
    price: {type: "decimal(10,2)"}
    code:  {type: string}
sources:
  batch:
    - {files: in/*.jsonl, format: json}
lookups:
  codes: {files: codes.csv, format: csv, key: code}
transform:
  - filter: "kind IS DISTINCT FROM 'b' OR id % 2 = 0"
  - lookup: {from: codes, on: code, take: {code_name: name}}
  - set: {share: "1000 // CAST(price AS INTEGER)"}
checks:
  - {name: cheap, expr: "price < 1000"}
  - {name: known, expr: "code_name IS NOT NULL", severity: warn}
deduplicate: {within: 1d}
aggregates:
  hourly: {windowing: {type: fixed, size: 1h}, group_by: [kind], measures: {n: count(), total: sum(price)}}
  bursts: {windowing: {type: sessions, gap: 10m}, measures: {n: count()}}
sinks:
  - {from: rows, parquet: {path: out/rows, partition_by: [day(at)]}}
  - {from: hourly, parquet: {path: out/hourly}}
  - {from: bursts, jsonl: {path: out/bursts.jsonl}}
  - {from: dead_letters, parquet: {path: out/dead_letters}}
"""
GOOD = {"id": 1, "at": "2026-01-01T10:00:00Z", "kind": "a", "price": 5, "code": "x"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path)


def make(folder: Path, spec: str = SPEC) -> Path:
    (folder / "in").mkdir(exist_ok=True)
    (folder / "pipeline.yaml").write_text(spec)
    (folder / "codes.csv").write_text("code,name\nx,Ex\ny,Why\n")
    return folder


def put(folder: Path, name: str, rows: list[dict[str, Any] | str]) -> None:
    (folder / "in" / name).write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))


def run(folder: Path, **call: Any) -> RunResults:
    return run_batch(load(folder), Call(**call))


def load(folder: Path) -> LoadedSpec:
    return load_spec(folder / "pipeline.yaml")


def table(folder: Path, sql: str) -> list[dict[str, Any]]:
    return ask(open_tables(load(folder).state), sql).to_pylist()


def content(folder: Path) -> dict[str, list[str]]:
    """Everything committed, without what names the run."""
    queries = {
        "rows": "_run_id", "hourly": "", "bursts": "", "dead_letters": "run_id",
    }  # fmt: skip
    return {
        name: sorted(str({k: v for k, v in row.items() if k != run}) for row in table(folder, f"FROM {name}"))
        for name, run in queries.items()
    }


def balances(results: RunResults) -> bool:
    return all(
        line.read == line.written.get("rows", 0) + line.dead + line.duplicate + line.filtered + sum(line.refused.values())
        for line in results.ledger
    )


values = st.fixed_dictionaries(
    {"id": st.integers(0, 5) | st.sampled_from(["1", None, 2.5])},
    optional={
        "at": st.sampled_from(["2026-01-01T10:00:00Z", "2026-01-01T10:05:00Z", "2026-01-02T00:00:00Z", "2026-02-31", "x", None]),
        "kind": st.sampled_from(["a", "b", "c", None, 1]), "price": st.sampled_from([0, 1, 2.5, 2.555, 5000, -1, None, "1"]),
        "code": st.sampled_from(["x", "z", None]), "extra": st.just({"deep": [1]}),
    },
)  # fmt: skip
records = values | st.sampled_from(['{"id": 1', "", "[]", "nonsense", '{"id": 1, "id": 2}', '{"id": NaN}', '{"id": 1,}'])


@settings(share(4), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.lists(records, max_size=12), min_size=1, max_size=3))
def test_every_row_leaves_by_exactly_one_door(tmp_path_factory: pytest.TempPathFactory, files: list[list[Any]]) -> None:
    folder = make(tmp_path_factory.mktemp("law"))
    for number, rows in enumerate(files):
        put(folder, f"{number}.jsonl", rows)
    results = run(folder)
    assert results.status == "success", results.failures
    assert sum(line.read for line in results.ledger) == sum(1 for rows in files for r in rows if r != "")
    assert balances(results)
    written = table(folder, "SELECT count(*) AS n FROM rows")[0]["n"]
    letters = table(folder, "SELECT count(*) AS n FROM dead_letters")[0]["n"]
    assert written == sum(line.written.get("rows", 0) for line in results.ledger)
    assert letters == sum(results.dead_letters.values())
    assert sum(row["n"] for row in table(folder, "FROM hourly")) == written


def test_the_second_run_changes_nothing_but_the_run(folder: Path) -> None:
    put(folder, "a.jsonl", [{**GOOD, "id": n % 7, "price": n} for n in range(40)] + ["broken"])
    run(folder)
    first = content(folder)
    files = sorted(p.name for p in (folder / "out").rglob("*") if p.is_file())
    run(folder)
    assert content(folder) == first
    assert len(sorted(p.name for p in (folder / "out").rglob("*") if p.is_file())) == len(files)
    assert len(table(folder, "SELECT * FROM runs")) == 2


def test_files_and_their_order_do_not_matter(tmp_path: Path) -> None:
    rows: list[dict[str, Any] | str] = [
        {**GOOD, "id": n % 5, "price": n % 3 + 1, "at": f"2026-01-01T{n % 24:02}:00:00Z"} for n in range(60)
    ]
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    one, many = make(tmp_path / "one"), make(tmp_path / "many")
    put(one, "a.jsonl", rows)
    for n in range(6):
        put(many, f"{n}.jsonl", rows[n::6][::-1])
    run(one)
    run(many)

    def seen(folder: Path) -> Counter[str]:
        return Counter(str(sorted(r.items())) for r in table(folder, 'SELECT id, "at", kind, price, code FROM rows'))

    assert seen(one) == seen(many)
    assert table(one, "SELECT * FROM hourly ORDER BY ALL") == table(many, "SELECT * FROM hourly ORDER BY ALL")


def test_an_expression_that_fails_on_a_row_costs_that_row(folder: Path) -> None:
    put(folder, "a.jsonl", [GOOD, {**GOOD, "id": 2, "price": 0}])
    results = run(folder)
    assert dict(results.dead_letters) == {"transform:EXPRESSION": 1}
    letter = table(folder, "SELECT * FROM dead_letters")[0]
    assert "share" in letter["message"]
    assert json.loads(letter["raw"])["id"] == 2


@pytest.mark.slow
def test_worker_processes_give_the_same_ledger_and_leave_nothing_behind(folder: Path, tmp_path: Path) -> None:
    for n in range(3):
        put(folder, f"{n}.jsonl", [{**GOOD, "id": i % 20, "price": n + 1} for i in range(100)])
    alone = run(folder)
    shared = tmp_path / "shared"
    results = run(
        folder,
        flags=("--direct_running_mode=multi_processing", "--direct_num_workers=2", f"--temp_location={shared}"),
    )
    assert results.status == "success"
    assert results.ledger == alone.ledger
    assert not list(shared.rglob("*.arrow"))  # rows laid aside are gone when the run is committed


def test_empty_files_and_header_only_are_a_good_run(folder: Path) -> None:
    put(folder, "a.jsonl", [])
    results = run(folder)
    assert results.status == "success"
    assert table(folder, "SELECT count(*) AS n FROM dead_letters") == [{"n": 0}]


def test_a_directory_without_match_is_an_error_and_leaves_outputs_alone(folder: Path) -> None:
    put(folder, "a.jsonl", [GOOD])
    run(folder)
    before = content(folder)
    os.unlink(folder / "in" / "a.jsonl")
    with pytest.raises(SourceError, match="matches no file"):
        run(folder)
    assert content(folder) == before


def test_a_lookup_with_duplicate_keys_fails_the_run_and_leaves_outputs_alone(folder: Path) -> None:
    put(folder, "a.jsonl", [GOOD])
    run(folder)
    before = content(folder)
    (folder / "codes.csv").write_text("code,name\nx,Ex\nx,Again\n")
    with pytest.raises(RunError, match="must be unique"):
        run(folder)
    assert content(folder) == before


def test_thresholds_fail_the_run_and_commit_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path, SPEC + "thresholds: {dead_letters: 0.1, per_check: {cheap: 0.05}}\n")
    put(folder, "a.jsonl", [{**GOOD, "id": n, "price": 2000 if n < 2 else 1} for n in range(10)])
    results = run(folder)
    assert results.status == "failed"
    assert [t.name for t in results.thresholds if t.status == "fail"] == ["dead_letters", "check cheap"]
    assert not list((folder / "out").rglob("*.parquet"))


def test_checks_of_severity_fail_and_checks_over_many_rows(tmp_path: Path) -> None:
    checks = """  - {name: ids, unique: [id], severity: fail}
  - {name: enough, row_count: {min: 5}, severity: warn}
  - {name: named, expr: "code = 'x'", severity: fail}
"""
    folder = make(tmp_path, SPEC.replace("deduplicate: {within: 1d}\n", "").replace("  - {name: cheap", checks + "  - {name: cheap"))
    put(folder, "a.jsonl", [GOOD, GOOD, {**GOOD, "id": 3, "code": "y"}])
    results = run(folder)
    assert results.status == "failed"
    assert {c.name: c.status for c in results.checks} == {
        "ids": "fail",
        "enough": "warn",
        "named": "fail",
        "cheap": "pass",
        "known": "pass",
    }


def test_an_output_that_cannot_be_written_is_one_clear_error(folder: Path) -> None:
    put(folder, "a.jsonl", [GOOD])
    (folder / "out").write_text("a file where a folder should be")
    with pytest.raises(SinkError, match=r"out"):
        run(folder)


def test_an_overflowing_sum_is_a_letter_and_the_ledger_still_balances(tmp_path: Path) -> None:
    spec = (
        SPEC.replace('price: {type: "decimal(10,2)"}', "price: {type: int64}")
        .replace('"price < 1000"', '"price > 0"')
        .replace("1000 // CAST(price AS INTEGER)", "price % 7")
    )
    folder = make(tmp_path, spec)
    put(folder, "a.jsonl", [{**GOOD, "id": n, "price": 9_000_000_000_000_000_000} for n in range(2)])
    results = run(folder)
    assert results.status == "success", results.failures
    assert dict(results.dead_letters) == {"aggregate:EXPRESSION": 1}
    assert table(folder, "SELECT n, total FROM hourly") == [{"n": 2, "total": None}]


def test_the_graph_has_no_generated_labels(folder: Path) -> None:
    from beam_pipelines.pipeline import Job, build
    from beam_pipelines.sinks.run import RunInfo

    put(folder, "a.jsonl", [GOOD])
    loaded = load(folder)
    pipeline = beam.Pipeline(runner="FnApiRunner")
    build(pipeline, Job(loaded.spec, RunInfo("r1", "orders", loaded.state), str(folder / "tmp")))
    labels: list[str] = []

    class Visitor(beam.pipeline.PipelineVisitor):  # type: ignore[misc]
        def visit_transform(self, node: Any) -> None:
            labels.append(node.full_label)

    pipeline.visit(Visitor())
    ours = {"/".join(label.split("/")[:2]) for label in labels}
    assert not [label for label in ours if "(" in label or ".py" in label]
    assert {"ReadFiles/Read", "Prepare/Run", "Aggregate-hourly/PartialAggregate", "Write-rows/Stage", "Commit/Conclude"} <= ours


@pytest.mark.parametrize("sink", ["jsonl: {path: out/dead.jsonl}", "csv: {path: out/dead.csv}", "parquet: {path: out/dead_letters}"])
def test_dead_letters_give_back_the_bytes_as_they_were(tmp_path: Path, sink: str) -> None:
    folder = make(tmp_path, SPEC.replace("parquet: {path: out/dead_letters}", sink))
    lines = [b"\\x41", "caf\u00e9".encode(), b"abc\xff", b"base64:AAAA", b'"quoted, text"', b"plain"]
    (folder / "in" / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    run(folder)
    assert [row["raw"] for row in table(folder, "SELECT raw FROM dead_letters ORDER BY position")] == lines


def test_panes_can_be_partitioned_by_their_window(tmp_path: Path) -> None:
    spec = SPEC.replace("parquet: {path: out/hourly}", 'parquet: {path: out/hourly, partition_by: ["day(_window_start)"]}')
    folder = make(tmp_path, spec)
    put(folder, "a.jsonl", [GOOD, {**GOOD, "id": 2, "at": "2026-01-02T10:00:00Z"}])
    assert run(folder).status == "success"
    assert sorted(p.name for p in (folder / "out" / "hourly").glob("*=*")) == ["window_start_day=2026-01-01", "window_start_day=2026-01-02"]
    assert table(folder, "SELECT sum(n)::BIGINT AS n, min(window_start_day)::VARCHAR AS first FROM hourly") == [
        {"n": 2, "first": "2026-01-01"}
    ]
