"""The flights of the example into BigQuery, a month by the batch and the first days of December by the stream: the tables hold what the Parquet lake holds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.runners.stream import StreamCall, run_stream
from beam_pipelines.serving.tables import open_tables
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.cloud.bigquery_server import BigQueryServer
from tests.examples.test_flights_stream import data, loaded, messages
from tests.prism import prism_program
from tests.pubsub_servers import PubsubServer

__all__ = ["data"]
pytestmark = [pytest.mark.cloud, pytest.mark.slow]

MONTH = '[{files: "${data}/flights-2013-02.csv", format: csv}]'
PLACES = {
    'parquet: {path: "${lake}/flights", partition_by: [day(scheduled_departure)]}': (
        "flights", 'path: "${lake}/flights", partition_by: day(scheduled_departure), cluster_by: [origin, carrier]'
    ),
    'parquet: {path: "${lake}/delays_by_hour", partition_by: [day(_window_start)]}': (
        "delays_by_hour", 'path: "${lake}/delays_by_hour", partition_by: day(_window_start)'
    ),
    'parquet: {path: "${lake}/airline_days", partition_by: [day(_window_start)]}': (
        "airline_days", 'path: "${lake}/airline_days", partition_by: month(_window_start)'
    ),
    'parquet: {path: "${lake}/dead_letters"}': ("dead_letters", 'path: "${lake}/dead_letters"'),
}  # fmt: skip


def into_bigquery(spec: LoadedSpec, dataset: str, subscription: str) -> LoadedSpec:
    """The same spec with tables for sinks."""
    path = Path(spec.path)
    text = path.read_text("utf-8")
    for parquet, (table, how) in PLACES.items():
        assert parquet in text
        text = text.replace(parquet, f"bigquery: {{table: {dataset}.{table}, mode: exactly_once, {how}}}")
    path.write_text(text, "utf-8")
    given = {"data": str(path.parent.parent / "data"), "lake": str(path.parent / "lake"), "subscription": subscription}
    return load_spec(path, set_=given)


def of_lake(spec: LoadedSpec, sql: str) -> list[tuple[Any, ...]]:
    with open_tables(spec.state) as connection:
        return connection.sql(sql).fetchall()


def of_table(bigquery: BigQueryServer, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in bigquery.client().query(sql).result(timeout=120)]


ROW = "carrier, flight, origin, dest, tailnum, dep_delay, distance, {time}(scheduled_departure) AS moment, _source, _position"


def test_batch_and_stream_land_as_in_the_lake(
    bigquery: BigQueryServer, broker: PubsubServer, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEAM_PIPELINES_PRISM", str(prism_program()))
    for name, value in {**broker.environment, **bigquery.environment}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "data").symlink_to(data)
    topic, subscription = broker.pair()
    dataset = bigquery.dataset()
    spec = into_bigquery(loaded(tmp_path / "flights", subscription, batch=MONTH), dataset, subscription)

    done = run_batch(spec, Call())
    assert done.status == "success", done.failures
    lake = of_lake(spec, f"SELECT {ROW.format(time='epoch_us')} FROM rows ORDER BY _source, _position")
    assert len(lake) > 20_000
    assert of_table(bigquery, f"SELECT {ROW.format(time='UNIX_MICROS')} FROM `{dataset}.flights` ORDER BY _source, _position") == lake
    for table, count in (("delays_by_hour", "flights"), ("airline_days", "flights")):
        sql = f"SELECT count(*), CAST(sum({count}) AS {{integer}}) FROM {{table}}"
        there = of_table(bigquery, sql.format(integer="INT64", table=f"`{dataset}.{table}`"))
        assert there == of_lake(spec, sql.format(integer="BIGINT", table=table)), table
    reasons = "SELECT stage, reason, count(*) FROM {} GROUP BY 1, 2 ORDER BY 1, 2"
    assert of_table(bigquery, reasons.format(f"`{dataset}.dead_letters`")) == of_lake(spec, reasons.format("dead_letters"))

    sent = list(messages(data / "departures-2013-12.csv", random.Random(12)))[:4_000]
    broker.publish_all(topic, sent)
    streamed = run_stream(spec, StreamCall(until_idle_s=3.0))
    assert streamed.status == "success", streamed.failures
    lake = of_lake(spec, f"SELECT {ROW.format(time='epoch_us')} FROM rows_speed ORDER BY _source, _position")
    assert len(lake) > 3_000
    there = of_table(bigquery, f"SELECT {ROW.format(time='UNIX_MICROS')} FROM `{dataset}.flights_speed` ORDER BY _source, _position")
    assert set(lake) <= set(there)
    retracted = len(there) - len(lake)
    assert 0 <= retracted <= streamed.ledger[-1].duplicate, "what was taken back later stays in the table, and the views leave it out"
    letters = "SELECT count(*) FROM (SELECT DISTINCT source, position, stage FROM {})"
    assert of_table(bigquery, letters.format(f"`{dataset}.dead_letters_speed`")) == of_lake(spec, letters.format("dead_letters_speed"))
