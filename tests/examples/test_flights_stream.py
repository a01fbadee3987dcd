"""The flights of December 2013 through Pub/Sub, and once more by the batch path from the archive of that stream: the same rows, the same
final aggregates, the same dead letters."""

from __future__ import annotations

import csv
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from beam_pipelines.runners.direct import Call, run_batch
from beam_pipelines.runners.stream import StreamCall, run_stream
from beam_pipelines.serving.tables import open_tables
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.spec.load import LoadedSpec, load_spec
from tests.conftest import ROOT
from tests.prism import prism_program
from tests.pubsub_servers import PubsubServer

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "flights"
TEXTS = {"carrier", "tailnum", "origin", "dest", "time_hour"}
BROKEN = [b"", b"not json", b'{"year": 2013', b"[1, 2]", b"\xff\xfe", b'{"year": "2013", "month": true}']
PANES = {"delays_by_hour": ["origin"], "airline_days": ["carrier", "airline"]}


def messages(path: Path, chance: random.Random) -> Iterator[dict[str, Any]]:
    """A message per flight in the order of departure; some twice, some broken."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["departed_at"])
    for row in rows:
        at = row.pop("departed_at")
        record = {k: None if v == "NA" else v if k in TEXTS else int(float(v)) for k, v in row.items()}
        attributes = {"departed_at": at}
        message = {"data": json.dumps(record).encode(), "attributes": attributes}
        yield message
        if chance.random() < 0.02:
            yield message  # the producer's own retry: another message with the same content
        if chance.random() < 0.005:
            yield {"data": chance.choice(BROKEN) or b" ", "attributes": attributes}


def loaded(folder: Path, subscription: str, *, batch: str) -> LoadedSpec:
    """The example's spec in a folder of its own, with `batch` as its batch sources."""
    text = (EXAMPLE / "pipeline.yaml").read_text("utf-8")
    files = '[{files: "${data}/flights*.csv", format: csv}]'
    assert files in text
    folder.mkdir()
    (folder / "pipeline.yaml").write_text(text.replace(files, batch), "utf-8")
    return load_spec(
        folder / "pipeline.yaml", set_={"data": str(folder.parent / "data"), "lake": str(folder / "lake"), "subscription": subscription}
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flights") / "data"
    subprocess.run([sys.executable, str(EXAMPLE / "prepare.py"), str(folder)], check=True)
    return folder


def test_batch_and_stream_agree_on_a_month(broker: PubsubServer, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEAM_PIPELINES_PRISM", str(prism_program()))
    for name, value in broker.environment.items():
        monkeypatch.setenv(name, value)
    shutil.copytree(data, tmp_path / "data")
    topic, subscription = broker.pair()
    sent = list(messages(data / "departures-2013-12.csv", random.Random(12)))
    broker.publish_all(topic, sent)

    live = loaded(tmp_path / "stream", subscription, batch='[{files: "${data}/flights*.csv", format: csv}]')
    streamed = run_stream(live, StreamCall(until_idle_s=3.0))
    assert streamed.status == "success", streamed.failures
    assert sum(line.read for line in streamed.ledger) == len(sent)

    archive = json.dumps(f"{live.state}/archive")
    again = loaded(tmp_path / "batch", subscription, batch=f"[{{archive: {archive}, format: json}}]")
    batch = run_batch(again, Call(apply_lateness=True))
    by_stream, by_batch = open_tables(live.state), open_tables(again.state)

    assert contents(by_stream, "rows", "* EXCLUDE (_run_id)") == contents(by_batch, "rows", "* EXCLUDE (_run_id)")
    for name, groups in PANES.items():
        measures = f"* EXCLUDE (_pane, _pane_index, _epoch) REPLACE ({rounded(name)})"
        assert contents(by_stream, name, measures) == contents(by_batch, name, measures), name
        once = by_stream.sql(f"SELECT count(*), count(DISTINCT ({', '.join(groups)}, _window_start)) FROM {name}").fetchall()
        assert once[0][0] == once[0][1] > 0
    letters = "source, position, stage, reason, message, raw"
    assert contents(by_stream, "dead_letters", letters) == contents(by_batch, "dead_letters", letters)
    assert doors(streamed) == doors(batch)


def rounded(name: str) -> str:
    """Averages add up in another order: compared to nine digits."""
    return ", ".join(f"round({m}, 9) AS {m}" for m in {"delays_by_hour": ["mean_delay"], "airline_days": ["mean_delay"]}[name])


def contents(connection: duckdb.DuckDBPyConnection, table: str, columns: str) -> list[tuple[Any, ...]]:
    found = connection.sql(f"SELECT {columns} FROM {table} ORDER BY ALL").fetchall()
    assert found, f"{table} is empty"
    return found


def doors(record: RunResults) -> list[tuple[int, ...]]:
    return [(line.read, line.dead, line.duplicate, line.filtered, sum(line.written.values())) for line in record.ledger if line.read]
