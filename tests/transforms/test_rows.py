"""Rows in, rows out: the stages inside somebody's own row-wise Beam job."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing import test_pipeline
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.validate import Check
from beam_pipelines.transforms import Conform, Deduplicate, Enrich, FromRows, ToRows, Transform, Validate

TestPipeline = test_pipeline.TestPipeline
TestPipeline.__test__ = False  # pytest takes it for a test class
CONTRACT = Contract(
    key=("id",),
    columns={"id": Column(type="int64", required=True), "name": Column(type="string"), "paid": Column(type="decimal(8,2)", min=0)},
)
ROWS: list[dict[str, Any]] = [{"id": 1, "name": "a", "paid": 2.5}, {"id": 2, "name": None, "paid": None}]
EXPECTED = [{"id": 1, "name": "a", "paid": Decimal("2.50"), "_unknown": None}, {"id": 2, "name": None, "paid": None, "_unknown": None}]


class Pair(NamedTuple):
    """A row as a NamedTuple."""

    id: int
    name: str


def key(row: dict[str, Any]) -> int:
    return int(row["id"])


def through(pipeline: beam.Pipeline, rows: list[Any], contract: Contract = CONTRACT) -> Any:
    return pipeline | "Given" >> beam.Create(rows) | FromRows(contract) | Conform(contract) | Validate(contract)


def as_bytes() -> list[bytes]:
    return [b'{"id": 1, "name": "a", "paid": 2.5}', b'{"id": 2}']


@pytest.mark.parametrize(
    "rows",
    [ROWS, as_bytes(), [r.decode() for r in as_bytes()], [pa.RecordBatch.from_pylist(ROWS)], [ROWS[0], as_bytes()[1]]],
    ids=["dicts", "bytes", "texts", "record batches", "mixed"],
)
@pytest.mark.parametrize("runner", [None, *(pytest.param(name, marks=pytest.mark.slow) for name in ("DirectRunner", "FnApiRunner"))])
def test_every_kind_of_row_gives_the_same_rows(rows: list[Any], runner: str | None) -> None:
    with TestPipeline(runner=runner) if runner else TestPipeline() as pipeline:
        assert_that(through(pipeline, rows).valid | ToRows(), equal_to(EXPECTED))


@pytest.mark.parametrize("runner", ["DirectRunner", "FnApiRunner"])
def test_mixed_rows_on_the_other_runners(runner: str) -> None:
    with TestPipeline(runner=runner) as pipeline:
        assert_that(through(pipeline, [ROWS[0], as_bytes()[1]]).valid | ToRows(), equal_to(EXPECTED))


@pytest.mark.parametrize("row", [beam.Row(id=1, name="a"), Pair(1, "a")], ids=["beam.Row", "NamedTuple"])
def test_beam_rows_and_named_tuples(row: Any) -> None:
    with TestPipeline() as pipeline:
        assert_that(through(pipeline, [row]).valid | ToRows() | beam.Map(lambda r: (r["id"], r["name"])), equal_to([(1, "a")]))


def test_every_row_leaves_by_one_door() -> None:
    rows = [{"id": 1}, {"id": "x"}, {"id": None}, {"id": 3, "paid": -1}, b"{broken", {"id": 3}, {"id": 3}]
    with TestPipeline() as pipeline:
        validated = through(pipeline, rows)
        kept = validated | Deduplicate(contract=CONTRACT)
        reasons = validated.dead | beam.FlatMap(lambda batch: batch.column("reason").to_pylist())
        assert_that(kept.rows | ToRows() | beam.Map(key), equal_to([1, 3]), label="Rows")
        assert_that(reasons, equal_to(["TYPE", "REQUIRED", "CHECK", "DECODE"]), label="Dead")


def test_element_timestamps_come_back() -> None:
    def stamped(row: dict[str, Any], time: Any = beam.DoFn.TimestampParam) -> tuple[int, int]:
        return row["id"], int(time)

    with TestPipeline() as pipeline:
        given = pipeline | beam.Create([TimestampedValue({"id": n}, 100 * n) for n in (1, 2, 3)])
        valid = (given | FromRows(CONTRACT) | Conform(CONTRACT) | Validate(CONTRACT)).valid
        assert_that(valid | ToRows() | beam.Map(stamped), equal_to([(1, 100), (2, 200), (3, 300)]))


def test_rows_of_different_windows_stay_apart() -> None:
    def windowed(row: dict[str, Any], window: Any = beam.DoFn.WindowParam) -> tuple[int, int]:
        return row["id"], int(window.start)

    with TestPipeline() as pipeline:
        given = pipeline | beam.Create([TimestampedValue({"id": n}, 10 * n) for n in range(4)]) | beam.WindowInto(FixedWindows(20))
        valid = (given | FromRows(CONTRACT) | Conform(CONTRACT) | Validate(CONTRACT)).valid
        assert_that(valid | ToRows() | beam.Map(windowed), equal_to([(0, 0), (1, 0), (2, 20), (3, 20)]))


def test_python_values_keep_their_meaning() -> None:
    contract = Contract(
        columns={n: Column(type=t) for n, t in {"at": "timestamp", "day": "date", "paid": "decimal(8,2)", "raw": "binary"}.items()}
    )
    row = {"at": dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC), "day": dt.date(2026, 1, 2), "paid": Decimal("1.10"), "raw": b"\x00\xff"}
    with TestPipeline() as pipeline:
        assert_that(through(pipeline, [row], contract).valid | ToRows(), equal_to([{**row, "_unknown": None}]))


def test_transform_and_enrich_between_the_stages() -> None:
    from beam_pipelines.arrow.enrich import lookup_table

    names = lookup_table(pa.table({"id": [1], "word": ["one"]}), name="names", key="id")
    with TestPipeline() as pipeline:
        conformed = pipeline | beam.Create([{"id": n} for n in (1, 2, 3)]) | FromRows(CONTRACT) | Conform(CONTRACT)
        changed = conformed | Transform({"filter": "id < 3"}, {"set": {"twice": "id * 2"}}) | Enrich(names, on="id", take={"word": "word"})
        found = (changed | Validate(CONTRACT, [Check(name="small", expr="twice < 4")])).valid
        assert_that(found | ToRows() | beam.Map(lambda r: (r["id"], r["twice"], r["word"])), equal_to([(1, 2, "one")]))


def test_checks_over_many_rows_are_refused_inside_a_job() -> None:
    with pytest.raises(ValueError, match="looks at many rows"):
        Validate(CONTRACT, [Check(name="ids", unique=("id",))])


def test_rows_come_back_as_beam_rows_on_request() -> None:
    with TestPipeline() as pipeline:
        found = through(pipeline, [{"id": 1}]).valid | ToRows(as_rows=True) | beam.Map(lambda r: r.id)
        assert_that(found, equal_to([1]))
