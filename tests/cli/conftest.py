"""A small pipeline on disk, the command called in this process, and streams' verbs in processes of their own, with a broker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from beam_pipelines.cli.main import command, run_command
from beam_pipelines.runners.prism_binary import VARIABLE
from tests.postgres_server import database, postgres  # noqa: F401  (fixtures)
from tests.prism import prism_program
from tests.pubsub_servers import PubsubServer, broker_process

ORDERS = """id,placed_at,shop,amount,note
1,2024-05-01T10:00:00Z,north,9.50,first
2,2024-05-01T10:30:00Z,north,abc,
3,2024-05-01T11:15:00Z,south,12.25,
3,2024-05-01T11:15:00Z,south,12.25,
4,2024-05-02T09:00:00Z,south
5,2024-05-02T09:45:00Z,north,-3.00,secret
6,2024-05-02T10:05:00Z,north,40.00,
7,2024-05-02T10:06:00Z,closed,1.00,
"""
SPEC = """spec: 1
pipeline: orders
parameters:
  lake: {type: path, default: lake}
  least: {type: int, default: 1}
contract:
  key: [id]
  event_time: placed_at
  columns:
    id:        {type: int64, required: true}
    placed_at: {type: timestamp, required: true}
    shop:      {type: string, required: true, in: [north, south, closed]}
    amount:    {type: "decimal(12,2)", required: true, min: 0}
    note:      {type: string, sensitive: redact}
sources:
  batch: [{files: orders.csv, format: csv}]
transform:
  - filter: "shop <> 'closed'"
  - set: {cents: "(amount * 100)::BIGINT"}
checks:
  - {name: small, expr: "amount < 1000"}
  - {name: enough_rows, row_count: {min: "${least}"}}
deduplicate: {}
aggregates:
  by_hour:
    windowing: {type: fixed, size: 1h}
    group_by: [shop]
    measures: {orders: count(), turnover: sum(amount)}
sinks:
  - {from: rows, parquet: {path: "${lake}/orders", partition_by: [day(placed_at)]}}
  - {from: by_hour, csv: {path: "${lake}/by_hour.csv"}}
  - {from: dead_letters, parquet: {path: "${lake}/dead_letters"}}
"""


class Done(NamedTuple):
    """How a call ended."""

    code: int
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """`call("run", spec, code=0)`: the command in this process."""

    def run(*words: object, code: int | None = 0) -> Done:
        capsys.readouterr()
        ended = run_command(command, [str(w) for w in words])
        done = Done(ended, *capsys.readouterr())
        if code is not None:
            assert done.code == code, done
        assert "Traceback" not in done.err, done.err
        return done

    return run


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def server() -> Iterator[PubsubServer]:
    """The embedded broker in a process of its own."""
    with broker_process() as found:
        yield found


@pytest.fixture
def start(server: PubsubServer, environment: dict[str, str]) -> Iterator[Start]:
    """`start("run", spec, "--mode", "stream")`: the command in a process of its own, with the broker and Prism; what has not ended is killed after the test."""
    here = {**environment, **server.environment, VARIABLE: str(prism_program())}
    with ExitStack() as ends:

        def begin(verb: str, spec: Path, *words: str) -> subprocess.Popen[str]:
            line = [sys.executable, "-m", "beam_pipelines.cli", verb, spec.name, *words]
            pipe = subprocess.PIPE
            process = subprocess.Popen(line, cwd=spec.parent, env=here, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
            ends.callback(process.wait)
            ends.callback(process.kill)
            return process

        yield begin


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """A spec beside its data."""
    return written_orders(tmp_path)


@pytest.fixture(scope="module")
def ran_orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, run once: for tests that only look."""
    spec = written_orders(tmp_path_factory.mktemp("ran"))
    assert run_command(command, ["run", str(spec)]) == 0
    return spec


def written_orders(folder: Path) -> Path:
    (folder / "orders.csv").write_text(ORDERS)
    spec = folder / "orders.yaml"
    spec.write_text(SPEC)
    return spec
