"""A stream and a batch into BigQuery, lake and state in Cloud Storage: the views that `serve --bigquery` writes show what `query` shows, row for row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.runners.stream import StreamCall, run_stream
from beam_pipelines.serving.bigquery_views import bigquery_script
from beam_pipelines.serving.tables import ask, open_tables
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.cloud.bigquery_server import BigQueryServer, running_bigquery
from tests.cloud.gcs_server import GcsServer
from tests.pubsub_servers import PubsubServer

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.usefixtures("without_prism")]

START = datetime(2026, 1, 1, tzinfo=UTC)
ZERO, DAY = round(START.timestamp() * 1e6), 86_400_000_000
SPEC = """spec: 1
pipeline: clicks
state: gs://{bucket}/state
contract:
  key: [id]
  event_time: at
  columns:
    id: {{type: int64, required: true}}
    at: {{type: timestamp}}
    v: {{type: int64}}
    shop: {{type: string}}
sources:
  stream: [{{pubsub: "{subscription}", format: json, arrival: {{attribute: came}}, ack_deadline: 10s}}]
checks: [{{name: plausible, expr: "v >= 0"}}]
deduplicate: {{within: 2d, keep: newest, order_by: _arrival_time}}
aggregates:
  daily:
    windowing: {{type: fixed, size: 1d, allowed_lateness: 6h}}
    trigger: {{late: every_batch}}
    group_by: [shop]
    measures: {{n: count(), total: sum(v)}}
sinks:
  - {{from: rows, bigquery: {{table: {dataset}.clicks, partition_by: day(at), mode: {mode}}}}}
  - {{from: daily, bigquery: {{table: {dataset}.daily, partition_by: day(_window_start), mode: {mode}}}}}
  - {{from: dead_letters, bigquery: {{table: {dataset}.dead}}}}
"""


def message(number: int, at_min: int, came_min: int, v: int) -> dict[str, Any]:
    at, came = ((START + timedelta(minutes=m)).isoformat() for m in (at_min, came_min))
    record = {"id": number, "at": at, "v": v, "shop": "north" if number % 2 else "south"}
    return {"data": json.dumps(record).encode(), "attributes": {"came": came}}


@pytest.fixture(scope="module")
def bigquery(gcs: GcsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BigQueryServer]:
    """One that reads files of the Cloud Storage server."""
    with running_bigquery(tmp_path_factory.mktemp("bigquery"), storage=gcs.url) as server:
        yield server


@pytest.fixture(params=["at_least_once", "exactly_once"])
def loaded(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    broker: PubsubServer,
    gcs: GcsServer,
    bigquery: BigQueryServer,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[LoadedSpec, str]:
    """A stream that has ended and was started again: three days of clicks, repeated, corrected, late, broken ones among them."""

    for name, value in {**broker.environment, **gcs.environment, **bigquery.environment}.items():
        monkeypatch.setenv(name, value)
    topic, subscription = broker.pair(ack_deadline_seconds=10)
    dataset = bigquery.dataset()
    (tmp_path / "spec.yaml").write_text(
        SPEC.format(bucket=gcs.bucket(), subscription=subscription, dataset=dataset, mode=request.param), "utf-8"
    )
    found = load_spec(tmp_path / "spec.yaml")
    clicks = [message(hour, hour * 60 + 5, hour * 60 + 5, hour) for hour in range(72)]
    late, wrong, again, newer = message(1000, 60, 33 * 60, 7), message(1002, 31 * 60, 31 * 60, -1), clicks[3], message(6, 370, 380, 60)
    for part in (  # `newer` comes after a restart, from before the point that the stream had reached
        [*clicks[:40], late, wrong, again, {"data": b"nonsense", "attributes": {"came": START.isoformat()}}],
        [newer, *clicks[40:]],
    ):
        broker.publish_all(topic, part)
        done = run_stream(found, StreamCall(until_idle_s=1.0))
        assert done.status == "success", done.failures
    return found, dataset


TABLES = {
    "rows": "SELECT id, {at} AS at_micros, v, shop, _source, _position FROM {rows} ORDER BY id, _position",
    "daily": "SELECT shop, {start} AS start_micros, n, total FROM {daily} ORDER BY 1, 2",
    "dead_letters": "SELECT source, position, stage, reason, message FROM {dead_letters} ORDER BY 1, 2, 3",
}


def load_instead(statement: str, bigquery: BigQueryServer, gcs: GcsServer) -> None:
    """The local server has no external tables: a native one of the same files, and of the values in names of folders."""
    from google.cloud import bigquery as api

    name, *_ = re.findall(r"EXTERNAL TABLE `([^`]+)`", statement)
    ((bucket, folder),) = re.findall(r"uris = \['gs://([^/]+)/([^']+)/\*\.parquet'\]", statement)
    config = api.LoadJobConfig(source_format="PARQUET", write_disposition="WRITE_TRUNCATE")
    columns = re.findall(r"WITH PARTITION COLUMNS \((.*)\)", statement)
    if columns:
        config.hive_partitioning = api.HivePartitioningOptions()
        config.hive_partitioning.mode = "CUSTOM"
        keys = "/".join("{{{}:{}}}".format(*pair) for pair in re.findall(r"`([^`]+)` (\w+)", columns[0]))
        config.hive_partitioning.source_uri_prefix = f"gs://{bucket}/{folder}/{keys}"
    names = [blob.name for blob in gcs.client().list_blobs(bucket, prefix=f"{folder}/")]
    files = [f"gs://{bucket}/{n}" for n in names if n.endswith(".parquet")]
    bigquery.client().load_table_from_uri(files, name, job_config=config).result(timeout=60)


def shown(loaded: LoadedSpec, dataset: str, bigquery: BigQueryServer, gcs: GcsServer) -> dict[str, tuple[list[Any], list[Any]]]:
    """What each table shows, in `query` and in BigQuery's views."""
    views = bigquery.dataset("views")
    for statement in filter(str.strip, bigquery_script(loaded.state, None, views).split(";\n")):
        if "EXTERNAL TABLE" in statement:
            load_instead(statement, bigquery, gcs)
        elif not all(line.startswith("--") for line in statement.strip().splitlines()):
            words = statement.replace(
                "FULL OUTER UNION", "UNION"
            )  # the local server has no words for it, and by name is full and outer there
            bigquery.client().query(words).result(timeout=60)
    names = {name: f"`{views}.{name}`" for name in TABLES}
    there = {n: bigquery.rows(sql.format(at="UNIX_MICROS(`at`)", start="UNIX_MICROS(_window_start)", **names)) for n, sql in TABLES.items()}
    with open_tables(loaded.state) as connection:
        plain = {name: name for name in TABLES}
        here = {
            n: ask(connection, sql.format(at='epoch_us("at")', start="epoch_us(_window_start)", **plain)).to_pylist()
            for n, sql in TABLES.items()
        }
    return {name: (here[name], there[name]) for name in TABLES}


def test_the_views_show_what_query_shows(loaded: tuple[LoadedSpec, str], bigquery: BigQueryServer, gcs: GcsServer) -> None:
    """Of the stream alone; then with a day that a batch over the archive has computed; then with all of them."""
    spec, dataset = loaded
    for days in ([], [(1, 2)], [(0, 3)]):
        for first, last in days:
            done = run_batch(spec, Call(range=Range(ZERO + first * DAY, ZERO + last * DAY), input="archive"))
            assert done.status == "success", done.failures
        for name, (here, there) in shown(spec, dataset, bigquery, gcs).items():
            assert there == here, f"{name} after {days}"
            assert here
    assert bigquery.rows(f"SELECT COUNT(*) AS n FROM `{dataset}.clicks`") == [{"n": 73}]
