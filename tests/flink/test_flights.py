"""The flights of the example on a Flink cluster, in batch and in stream: the same content as on the local runners."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.runners.flink.cluster import Cluster
from beam_pipelines.runners.options import LOOPBACK, Flink
from beam_pipelines.runners.stream import StreamCall, run_stream
from beam_pipelines.serving.tables import open_tables
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.spec.load import LoadedSpec
from tests.examples.test_flights_stream import PANES, contents, data, doors, loaded, messages, rounded
from tests.prism import prism_program
from tests.pubsub_servers import PubsubServer

__all__ = ["data"]
pytestmark = pytest.mark.flink

MONTH = '[{files: "${data}/flights-2013-02.csv", format: csv}]'
OWN = "COLUMNS(lambda c: c NOT IN ('run_id', '_run_id', '_source', '_position'))"  # without what a run or a subscription gives


def same(one: LoadedSpec, other: LoadedSpec, tables: list[str]) -> None:
    by_flink, by_us = open_tables(one.state), open_tables(other.state)
    for table in tables:
        columns = f"* EXCLUDE (_pane, _pane_index, _epoch) REPLACE ({rounded(table)})" if table in PANES else OWN
        assert contents(by_flink, table, columns) == contents(by_us, table, columns), table


@pytest.mark.parametrize("workers", [LOOPBACK, "pool"])
def test_a_batch_on_flink_is_the_batch_of_the_local_runner(workers: str, flink_cluster: Cluster, tmp_path: Path, data: Path) -> None:
    (tmp_path / "data").symlink_to(data)
    flink = Flink(flink_cluster.rest, LOOPBACK if workers == LOOPBACK else flink_cluster.workers)
    said: list[str] = []
    there, here = (loaded(tmp_path / name, "projects/demo-project/subscriptions/none", batch=MONTH) for name in ("flink", "local"))
    on_flink = run_batch(there, Call("flink", flink=flink, say=said.append))
    local = run_batch(here, Call())
    assert on_flink.status == local.status == "success", (on_flink.failures, local.failures)
    assert on_flink.metadata.engine == "FlinkRunner"
    assert flink_cluster.rest in said[0]
    assert doors(on_flink) == doors(local)
    same(there, here, ["rows", *PANES, "dead_letters"])


def test_a_stream_on_flink_is_the_stream_of_prism(
    flink_cluster: Cluster, broker: PubsubServer, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEAM_PIPELINES_PRISM", str(prism_program()))
    for name, value in broker.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "data").symlink_to(data)
    sent = list(messages(data / "departures-2013-12.csv", random.Random(12)))[:8_000]

    def streamed(name: str, flink: Flink | None, *flags: str) -> tuple[LoadedSpec, RunResults]:
        topic, subscription = broker.pair()
        broker.publish_all(topic, sent)
        live = loaded(tmp_path / name, subscription, batch=MONTH)
        return live, run_stream(live, StreamCall(until_idle_s=3.0, flink=flink, flags=flags))

    there, on_flink = streamed("flink", Flink(flink_cluster.rest, LOOPBACK), "--checkpointing_interval=1000")
    here, local = streamed("prism", None)
    assert on_flink.status == local.status == "success", (on_flink.failures, local.failures)
    assert sum(line.read for line in on_flink.ledger) == len(sent)
    same(there, here, ["rows", *PANES])
    letters = "stage, reason, message, raw"
    assert contents(open_tables(there.state), "dead_letters", letters) == contents(open_tables(here.state), "dead_letters", letters)
