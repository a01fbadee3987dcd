"""BigQuery as a sink: what a spec may say about its table, and where it is told what it may not."""

from __future__ import annotations

import re

import pytest

from beam_pipelines.errors import SpecError
from beam_pipelines.sinks.plan import writes_of
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.spec.load import parse_spec
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.ranges import cuts_of

SPEC = """spec: 1
pipeline: p
contract:
  key: [id]
  event_time: at
  columns: {{id: {{type: int64}}, at: {{type: timestamp}}, name: {{type: string}}, big: {{type: uint64}}}}
sources: {{batch: [{{files: a.csv, format: csv}}]}}
sinks:
  - from: {of}
    bigquery:
      table: my-project.shop.orders
      {option}
"""


def load(option: str, of: str = "rows") -> PipelineSpec:
    return parse_spec(SPEC.format(option=option, of=of), path="p.yaml").spec


@pytest.mark.parametrize(
    ("by", "folders", "unit"),
    [
        ("day(at)", ("at_day",), "day"),
        ("range(id, -10, 100, 10)", ("id_range_m10_100_10",), "range"),
        ("day()", (), "day"),
        ("month( )", (), "month"),
    ],
)
def test_files_are_placed_so_that_each_partition_of_the_table_has_its_own(by: str, folders: tuple[str, ...], unit: str) -> None:
    spec = load(f"partition_by: {by}")
    output = writes_of(spec, RunInfo("r", "p", "/state"))[0].output
    assert output.partitions == folders
    assert output.table is not None
    assert output.table.unit == unit
    assert (output.table.partition_by or "").replace(" ", "") == by.replace(" ", "")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            "partition_by: id",
            "p.yaml:12:21: sinks[0].bigquery.partition_by: got 'id'; expected day(c), hour(c), month(c) or year(c), or range(",
        ),
        (
            "partition_by: day(name)",
            "p.yaml:12:21: sinks[0].bigquery.partition_by: column 'name' has type VARCHAR; expected TIMESTAMP or DATE",
        ),
        (
            "partition_by: range(id, 0, 10)",
            "p.yaml:12:21: sinks[0].bigquery.partition_by: partition_by 'range(id, 0, 10)': expected range(column, start,",
        ),
        ("partition_by: range(id, 0, 10, 0)", "start < end and step > 0"),
        ("partition_by: range(id, 0, 9223372036854775808, 1000000000000000)", "expected numbers of 64 bits that are less than 2^63 apart"),
        ("partition_by: range(id, -9223372036854775808, 0, 1000000000000000)", "less than 2^63 apart"),
        ("partition_by: range(ident, 0, 10, 1)", "unknown column 'ident'; did you mean 'id'?"),
        ("partition_by: range(at, 0, 10, 1)", "column 'at' has type TIMESTAMP"),
        ("partition_by: range(big, 0, 10, 1)", "column 'big' has type UBIGINT; expected an integer of at most 63 bits"),
        ("partition_by: range(id, 0, 100001, 10)", "makes 10,001 partitions; a BigQuery table takes 10,000. Choose a wider step"),
        ("partition_by: range(id, 0, 9, 3)\n      partition_expiration: 30d", "partitions of numbers have no age"),
        ("max_staleness: 10m", "sinks[0].bigquery.max_staleness: is of tables that changes are applied to, and the mode is at_least_once"),
        ("partition_expiration: 30d", "the table has no partitions; write partition_by"),
    ],
)
def test_what_no_table_has_is_said_with_its_place(option: str, said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)):
        load(option)


def test_dead_letters_have_no_partitions() -> None:
    with pytest.raises(SpecError, match="dead letters are kept by run"):
        load("partition_by: day()", of="dead_letters")


@pytest.mark.parametrize("by", ["range(id, 0, 10, 1)", "day()"])
def test_a_run_over_a_range_of_time_needs_partitions_of_the_event_time(by: str) -> None:
    with pytest.raises(SpecError, match=r"is not partitioned by at: a run over a range cannot replace a part of it"):
        cuts_of(load(f"partition_by: {by}"))
