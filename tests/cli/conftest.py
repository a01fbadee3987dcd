"""A small pipeline on disk, and the command called in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from beam_pipelines.cli.main import command, run_command

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
