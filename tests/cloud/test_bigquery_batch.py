"""Batch runs into BigQuery: what the table holds is what the committed files hold, whatever is repeated, killed or refused on the way."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.errors import SinkError
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.serving.tables import open_tables
from beam_pipelines.sinks import manifest
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.cloud.bigquery_server import BigQueryServer, running_bigquery
from tests.cloud.gcs_server import GcsServer
from tests.cloud.http_gate import Gate
from tests.server_process import HOST

pytestmark = pytest.mark.cloud

DAY0 = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = """spec: 1
pipeline: orders
contract:
  key: [id]
  event_time: at
  columns:
    id: {{type: int64, required: true, description: The order's number.}}
    at: {{type: timestamp}}
    price: {{type: "decimal(12,2)"}}
    big: {{type: uint64}}
    tags: {{type: list<string>}}
    place: {{type: "struct<town: string, zip: int32>"}}
    civil: {{type: datetime}}
    raw: {{type: binary}}
    doc: {{type: json}}
sources:
  batch: [{{files: "data/*.jsonl", format: json}}]
aggregates:
  daily:
    windowing: {{type: fixed, size: 1d}}
    measures: {{n: count(), total: sum(price)}}
sinks:
  - {{from: rows, bigquery: {{table: {dataset}.orders, partition_by: day(at), cluster_by: [id]}}}}
  - {{from: daily, bigquery: {{table: {dataset}.daily}}}}
  - {{from: dead_letters, bigquery: {{table: {dataset}.orders_dead}}}}
"""


def order(number: int, *, day: int | None = None, **over: Any) -> dict[str, Any]:
    at = None if day is None else (DAY0 + timedelta(days=day, minutes=number)).isoformat()
    return {"id": number, "at": at, "price": number + 0.25, "big": 2**63 + number, "tags": ["a", str(number)],
            "place": {"town": "Köln", "zip": number}, "civil": "2026-01-01T12:00:00", "raw": "AAEC", "doc": {"n": number}} | over  # fmt: skip


def written(folder: Path, name: str, orders: list[Any]) -> None:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / name).write_text("".join(json.dumps(o) + "\n" for o in orders), "utf-8")


@pytest.fixture
def dataset(bigquery: BigQueryServer, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in bigquery.environment.items():
        monkeypatch.setenv(name, value)
    return bigquery.dataset()


@pytest.fixture
def loaded(dataset: str, tmp_path: Path) -> LoadedSpec:
    (tmp_path / "spec.yaml").write_text(SPEC.format(dataset=dataset), "utf-8")
    written(tmp_path, "a.jsonl", [*(order(n, day=n % 3) for n in range(30)), order(100), order(7, id="seven")])
    return load_spec(tmp_path / "spec.yaml")


def run(loaded: LoadedSpec, **call: Any) -> Any:
    done = run_batch(loaded, Call(**call))
    assert done.status == "success", done.failures
    return done


def test_the_tables_hold_what_the_lake_holds(loaded: LoadedSpec, dataset: str, bigquery: BigQueryServer) -> None:
    run(loaded)
    table = bigquery.client().get_table(f"{dataset}.orders")
    assert (table.time_partitioning.type_, table.time_partitioning.field, table.clustering_fields) == ("DAY", "at", ["id"])
    fields = {f.name: (f.field_type, f.mode) for f in table.schema}
    assert fields["id"] == ("INTEGER", "REQUIRED")
    assert next(f.description for f in table.schema if f.name == "id") == "The order's number."
    assert fields["price"][0] == fields["big"][0] == "NUMERIC"
    assert (fields["tags"], fields["place"], fields["civil"][0], fields["raw"][0]) == (
        ("STRING", "REPEATED"),
        ("RECORD", "NULLABLE"),
        "DATETIME",
        "BYTES",
    )
    assert {"_source", "_position", "_arrival_time", "_run_id", "_contract"} <= set(fields)
    assert "at_day" not in fields

    there = bigquery.rows(f"SELECT id, at, price, big, tags, place.town, civil, raw, doc FROM `{dataset}.orders` ORDER BY id")
    with open_tables(loaded.state) as here:
        lake = (
            here.sql('SELECT id, "at", price, big, tags, place.town AS town, civil, raw, doc FROM rows ORDER BY id')
            .to_arrow_table()
            .to_pylist()
        )
        dead = here.sql("SELECT source, position, reason, run_id FROM dead_letters ORDER BY position, reason").to_arrow_table().to_pylist()
        daily = here.sql("SELECT _window_start, n, total FROM daily ORDER BY 1").to_arrow_table().to_pylist()
    assert len(there) == 31
    assert [{**r, "at": r["at"] and r["at"].replace(tzinfo=None)} for r in there] == [
        {**r, "at": r["at"] and r["at"].replace(tzinfo=None)} for r in lake
    ]
    assert bigquery.rows(f"SELECT source, position, reason, run_id FROM `{dataset}.orders_dead` ORDER BY position, reason") == dead
    assert len(dead) == 2, "one is no order, one has no time for an aggregate"
    shown = bigquery.rows(f"SELECT _window_start, n, total FROM `{dataset}.daily` ORDER BY 1")
    assert [(r["n"], r["total"]) for r in shown] == [(r["n"], r["total"]) for r in daily]


def counts(bigquery: BigQueryServer, dataset: str) -> dict[str | None, int]:
    found = bigquery.rows(f"SELECT CAST(DATE(at) AS STRING) AS day, COUNT(*) AS n FROM `{dataset}.orders` GROUP BY 1")
    return {r["day"]: r["n"] for r in found}


def test_a_run_over_a_range_replaces_its_partitions_and_no_other(
    loaded: LoadedSpec, dataset: str, bigquery: BigQueryServer, tmp_path: Path
) -> None:
    run(loaded)
    first = {r["_run_id"] for r in bigquery.rows(f"SELECT DISTINCT _run_id FROM `{dataset}.orders`")}
    (tmp_path / "data" / "a.jsonl").unlink()
    written(tmp_path, "b.jsonl", [order(n, day=1) for n in range(5)])  # the third day has no rows any more
    day = 86_400_000_000
    zero = round(DAY0.timestamp() * 1e6)
    without_daily = load_spec(tmp_path / "spec.yaml")
    spec = without_daily.spec.model_copy(
        update={"sinks": tuple(s for s in without_daily.spec.sinks if s.from_ != "daily"), "aggregates": {}}
    )
    run(replace(without_daily, spec=spec), range=Range(zero + day, zero + 3 * day))
    assert counts(bigquery, dataset) == {"2026-01-01": 10, "2026-01-02": 5, None: 1}
    kept = {r["_run_id"] for r in bigquery.rows(f"SELECT DISTINCT _run_id FROM `{dataset}.orders` WHERE DATE(at) = '2026-01-01'")}
    assert kept == first


def test_a_second_run_changes_no_row_and_a_repeated_id_does_nothing(loaded: LoadedSpec, dataset: str, bigquery: BigQueryServer) -> None:
    run(loaded, run_id="one")
    run(loaded, run_id="two")
    assert counts(bigquery, dataset) == {"2026-01-01": 10, "2026-01-02": 10, "2026-01-03": 10, None: 1}
    before = len(list(bigquery.client().list_jobs()))
    run(loaded, run_id="two")
    assert len(list(bigquery.client().list_jobs())) == before


def test_a_table_that_was_dropped_comes_back_whole(loaded: LoadedSpec, dataset: str, bigquery: BigQueryServer, tmp_path: Path) -> None:
    """Also the partitions that the next run does not write."""
    run(loaded)
    bigquery.client().delete_table(f"{dataset}.orders")
    written(tmp_path, "a.jsonl", [order(n, day=1) for n in range(5)])
    run(loaded)
    assert counts(bigquery, dataset) == {"2026-01-01": 10, "2026-01-02": 5, "2026-01-03": 10, None: 1}


def test_a_newer_contract_adds_columns_and_drops_none(loaded: LoadedSpec, dataset: str, bigquery: BigQueryServer, tmp_path: Path) -> None:
    run(loaded)
    text = (tmp_path / "spec.yaml").read_text("utf-8")
    text = text.replace("    doc: {type: json}\n", "    colour: {type: string}\n").replace("required: true, ", "")
    (tmp_path / "spec.yaml").write_text(text, "utf-8")
    written(tmp_path, "a.jsonl", [order(n, day=0, colour="red", doc=None) for n in range(3)])
    run(load_spec(tmp_path / "spec.yaml"))
    fields = {f.name: f.mode for f in bigquery.client().get_table(f"{dataset}.orders").schema}
    assert {"doc", "colour"} <= set(fields)
    assert fields["id"] == "NULLABLE"
    assert bigquery.rows(f"SELECT DISTINCT colour FROM `{dataset}.orders` WHERE DATE(at) = '2026-01-01'") == [{"colour": "red"}]
    assert counts(bigquery, dataset)["2026-01-02"] == 10, "partitions that the run did not write stay"


def test_a_column_of_another_type_is_refused_before_anything_is_committed(
    loaded: LoadedSpec, dataset: str, bigquery: BigQueryServer, tmp_path: Path
) -> None:
    run(loaded)
    text = (tmp_path / "spec.yaml").read_text("utf-8")
    (tmp_path / "spec.yaml").write_text(text.replace("doc: {type: json}", "doc: {type: int64}"), "utf-8")
    written(tmp_path, "a.jsonl", [order(1, day=0, doc=3)])
    with pytest.raises(SinkError, match="column 'doc' is STRING; the rows have INTEGER"):
        run_batch(load_spec(tmp_path / "spec.yaml"), Call())
    assert counts(bigquery, dataset)["2026-01-01"] == 10
    assert not list(manifest.unfinished(loaded.state))


def test_a_dataset_that_is_missing_is_said_before_the_job(loaded: LoadedSpec, tmp_path: Path, dataset: str) -> None:
    text = (tmp_path / "spec.yaml").read_text("utf-8").replace(dataset, "test-project.nowhere")
    (tmp_path / "spec.yaml").write_text(text, "utf-8")
    with pytest.raises(SinkError, match=r"test-project\.nowhere\.orders: the dataset cannot be reached: .*"):
        run_batch(load_spec(tmp_path / "spec.yaml"), Call())


def test_a_row_that_bigquery_does_not_take_is_a_dead_letter(
    loaded: LoadedSpec, dataset: str, bigquery: BigQueryServer, tmp_path: Path
) -> None:
    """It is in neither the lake nor the table, and the others are in both."""
    written(
        tmp_path,
        "a.jsonl",
        [order(1, day=0), order(2, day=0, tags=["a", None]), order(4, day=0)],
    )
    run(loaded)
    assert [r["id"] for r in bigquery.rows(f"SELECT id FROM `{dataset}.orders` ORDER BY id")] == [1, 4]
    told = [r["message"] for r in bigquery.rows(f"SELECT message FROM `{dataset}.orders_dead` WHERE stage = 'write' ORDER BY position")]
    assert told == [f"{dataset}.orders: column 'tags': NULL in a list; BigQuery's lists have none"]


def test_a_letter_is_never_refused(loaded: LoadedSpec, dataset: str, bigquery: BigQueryServer, tmp_path: Path) -> None:
    """A row of a year that BigQuery does not know, and one of more bytes than it appends, are letters in the lake and in the table."""
    (tmp_path / "spec.yaml").write_text(
        (tmp_path / "spec.yaml").read_text("utf-8").replace("id: {type: int64,", "id: {type: int64, max: 50,"), "utf-8"
    )
    large = order(60, day=0, doc={"text": "x" * 10_000_000})
    written(
        tmp_path,
        "a.jsonl",
        [order(1, day=0), order(61) | {"at": "+12000-01-01T00:00:00Z"}, order(62) | {"at": "9999-12-31T23:59:59Z"}, large],
    )
    run(load_spec(tmp_path / "spec.yaml"))
    told = bigquery.rows(
        f"SELECT stage, reason, LENGTH(raw) AS bytes FROM `{dataset}.orders_dead` WHERE stage <> 'aggregate' ORDER BY position"
    )
    with open_tables(loaded.state) as here:
        lake = here.sql("SELECT stage, reason, octet_length(raw) AS bytes FROM dead_letters WHERE stage <> 'aggregate' ORDER BY position")
        assert told == lake.to_arrow_table().to_pylist()
    assert len(told) == 3
    assert max(letter["bytes"] for letter in told) > 10_000_000


RUN = """
import sys
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.spec.load import load_spec
run_batch(load_spec(sys.argv[1]), Call(run_id="one"))
"""


@pytest.mark.parametrize("begins", [2, 3], ids=["job", "answer"])
def test_a_process_that_dies_among_its_load_jobs_is_carried_to_its_end_by_the_next(
    loaded: LoadedSpec, dataset: str, bigquery: BigQueryServer, environment: dict[str, str], begins: int
) -> None:
    """It dies after the second job of several, or before it hears that the third is done; the next run begins with what was decided, and loads nothing twice."""
    gate, done, dead = Gate(bigquery.port), threading.Semaphore(0), threading.Event()
    came, went = itertools.count(1), itertools.count(1)

    def before(method: str, target: str) -> None:
        if method == "PUT" and next(came) > begins:
            dead.wait(120)

    def after(method: str, target: str) -> None:
        if method == "PUT":
            third = next(went) == 3
            done.release()
            dead.wait(120 if third else 0)

    gate.before, gate.after = before, after
    gated = {**environment, **bigquery.environment, "BIGQUERY_EMULATOR_HOST": f"http://{HOST}:{gate.port}"}
    child = subprocess.Popen([sys.executable, "-c", RUN, loaded.path], env=gated)
    try:
        assert all(done.acquire(timeout=120) for _ in range(begins))
        assert child.poll() is None
    finally:
        child.kill()
        child.wait(10)
        gate.away()
        dead.set()
    assert [c.run_id for c in manifest.unfinished(loaded.state)] == ["one"]
    begun = {job.job_id for job in bigquery.client().list_jobs(state_filter="done") if job.job_type == "load"}
    written(Path(loaded.directory), "a.jsonl", [])
    run(loaded, run_id="two")
    assert counts(bigquery, dataset) == {"2026-01-01": 10, "2026-01-02": 10, "2026-01-03": 10, None: 1}, (
        "the second run read nothing, and replaces no partition"
    )
    assert {r["_run_id"] for r in bigquery.rows(f"SELECT DISTINCT _run_id FROM `{dataset}.orders`")} == {"one"}
    every = [job.job_id for job in bigquery.client().list_jobs() if job.job_type == "load"]
    assert begun <= set(every)
    assert len(every) == len(set(every))


@pytest.mark.parametrize(("files", "begins"), [("named", "POST"), ("uploaded", "PUT")])
def test_a_server_that_is_away_for_a_while_is_waited_for(
    gcs: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: str, begins: str
) -> None:
    """It is killed before a job is begun, and before it is heard that one was, and comes back: every row is there once."""
    with running_bigquery(tmp_path / "bigquery", storage=gcs.url) as server:
        gate, killed = Gate(server.port), list[str]()
        for name, value in {**gcs.environment, **server.environment, "BIGQUERY_EMULATOR_HOST": f"http://{HOST}:{gate.port}"}.items():
            monkeypatch.setenv(name, value)
        dataset = server.dataset()
        state = f"state: gs://{gcs.bucket()}/state\n" if files == "named" else ""
        (tmp_path / "spec.yaml").write_text(SPEC.format(dataset=dataset) + state, "utf-8")
        written(tmp_path, "a.jsonl", [order(n, day=0) for n in range(30)])  # one job: no other is under way when the server dies

        def die(at: str, method: str, target: str) -> None:
            if at not in killed and target.partition("?")[0].endswith("/jobs") and method == (begins if killed else "POST"):
                killed.append(at)
                # One that it was killed in would run for ever on the local server.
                while any(job.state != "DONE" for job in server.client().list_jobs()):
                    time.sleep(0.05)
                server.kill()
                threading.Timer(2.0, server.start).start()
                raise ConnectionResetError

        gate.before = partial(die, "before")
        gate.after = partial(die, "after")
        try:
            run(load_spec(tmp_path / "spec.yaml"))
        finally:
            gate.away()
        assert killed == ["before", "after"]
        assert counts(server, dataset) == {"2026-01-01": 30}
