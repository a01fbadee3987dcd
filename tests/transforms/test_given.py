"""What users give the stages in Python: taken as it is meant, or refused at once with a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.test_pipeline import TestPipeline as BarePipeline
from apache_beam.testing.util import assert_that, equal_to

from beam_pipelines.arrow.aggregate import AggregateSpec
from beam_pipelines.arrow.contract import Contract
from beam_pipelines.arrow.enrich import lookup_table
from beam_pipelines.arrow.keys import DeduplicateRule
from beam_pipelines.arrow.schema import PROVENANCE, provenance
from beam_pipelines.arrow.windows import WindowSpec
from beam_pipelines.errors import SpecError
from beam_pipelines.transforms import Aggregate, Conform, Deduplicate, Enrich, FromRows, Mask, ToRows, Transform, Validate

WRITTEN: dict[str, Any] = {
    "key": ["id"],
    "event_time": "day",
    "unknown_columns": "drop",
    "columns": {
        "id": {"type": "int64", "required": True},
        "day": {"type": "timestamp"},
        "mail": {"type": "string", "sensitive": "redact"},
    },
}
CONTRACT = Contract.model_validate(WRITTEN)
ROWS = [{"id": 1, "day": "2024-05-01T00:00:00Z", "mail": "a@b"}, {"id": 2, "day": "2024-05-01T00:00:00Z", "mail": None}]


def cents(batch: pa.RecordBatch) -> pa.RecordBatch:
    """100 x id."""
    return pa.record_batch({"cents": [100 * x for x in batch["id"].to_pylist()]})


def conformed(pipeline: beam.Pipeline) -> Any:
    return pipeline | beam.Create(ROWS) | FromRows(CONTRACT) | Conform(CONTRACT)


def test_contracts_and_checks_may_be_what_a_spec_has() -> None:
    with BarePipeline() as pipeline:
        rows = pipeline | beam.Create(ROWS) | FromRows(CONTRACT) | Conform(WRITTEN)
        valid = rows | Validate(WRITTEN, [{"name": "first", "expr": "id < 2"}]) | Deduplicate("id", contract=WRITTEN)
        assert_that(valid.rows | ToRows() | beam.Map(lambda row: row["id"]), equal_to([1]))


def test_functions_travel_with_the_job() -> None:
    bonus = 7
    with BarePipeline() as pipeline:
        rows = conformed(pipeline) | Transform(
            {"apply": {"function": cents, "columns": {"cents": "int64"}}},
            {"apply": {"function": lambda b: pa.record_batch({"more": [bonus] * b.num_rows}), "columns": {"more": "int8"}}},
            {"drop": ["day", "mail"]},
        )
        assert_that(rows.rows | ToRows(), equal_to([{"id": 1, "cents": 100, "more": 7}, {"id": 2, "cents": 200, "more": 7}]))


def fails(batch: pa.RecordBatch) -> pa.RecordBatch:
    raise ValueError("no")


def test_letters_name_the_function() -> None:
    with BarePipeline() as pipeline:
        dead = (conformed(pipeline) | Transform({"apply": fails})).dead
        messages = dead | ToRows() | beam.Map(lambda letter: letter["message"])
        assert_that(messages, equal_to([f"{__name__}:fails: ValueError: no"] * 2))


@pytest.mark.parametrize(
    "table",
    [
        lambda: (pa.table({"k": [1], "v": ["one"]}), "k"),
        lambda: (pa.record_batch({"k": [1], "v": ["one"]}), ["k"]),
        lambda: (lookup_table(pa.table({"k": [1], "v": ["one"]}), name="t", key="k"), None),
        lambda: (lambda: lookup_table(pa.table({"k": [1], "v": ["one"]}), name="t", key="k"), None),
    ],
    ids=["Table", "RecordBatch", "LookupTable", "function"],
)
def test_tables_to_enrich_with(table: Callable[[], tuple[Any, Any]]) -> None:
    given, key = table()
    with BarePipeline() as pipeline:
        rows = conformed(pipeline) | Enrich(given, key=key, on="id", take={"name": "v"})
        assert_that(rows.rows | ToRows() | beam.Map(lambda row: row["name"]), equal_to(["one", None]))


def test_mask_hides_values_in_rows_and_letters() -> None:
    steps = [{"set": {"copy": "mail", "fails": "1 // (id - 2)"}}]
    with BarePipeline() as pipeline:
        masked = conformed(pipeline) | Transform(*steps) | Mask(CONTRACT, steps=steps)
        assert_that(masked.rows | ToRows() | beam.Map(lambda r: (r["mail"], r["copy"])), equal_to([("***", "***")]), "Rows")
        assert_that(
            masked.dead | "Letters" >> ToRows() | beam.Map(lambda r: (r["reason"], r["raw"])), equal_to([("EXPRESSION", None)]), "Dead"
        )


def test_mask_hashes_under_a_key_that_the_worker_asks_for() -> None:
    hashed = Contract.model_validate({"columns": {"mail": {"type": "string", "sensitive": "hmac"}}})
    batch = pa.record_batch({"mail": ["a", "a", None]})
    with pytest.raises(SpecError, match="'mail' is `sensitive: hmac`, and there is no key"):
        Mask(hashed)
    with BarePipeline() as pipeline:
        masked = pipeline | beam.Create([batch]) | Mask(hashed, key=lambda: b"secret")
        seen = masked | beam.FlatMap(lambda b: [(len(b["mail"][0].as_py()), b["mail"][0] == b["mail"][1], b["mail"][2].as_py())])
        assert_that(seen, equal_to([(64, True, None)]))


def test_mask_hides_values_in_the_duplicates_that_are_told() -> None:
    with BarePipeline() as pipeline:
        batch = pa.record_batch({"id": [1, 1], "mail": ["a", "b"]})
        masked = pipeline | beam.Create([batch]) | Deduplicate("id", tell=True) | Mask(CONTRACT)
        assert masked._fields == ("rows", "duplicates", "counts")
        for name in ("rows", "duplicates"):
            mails = getattr(masked, name) | f"Mails of {name}" >> beam.FlatMap(lambda b: b["mail"].to_pylist())
            assert_that(mails, equal_to(["***"]), name)


LAST = AggregateSpec(group_by=["id"], measures={"mail_of": "max(mail)", "n": "count()"})


def test_mask_hides_values_that_panes_show() -> None:
    with BarePipeline() as pipeline:
        masked = conformed(pipeline) | Aggregate(LAST, name="last") | Mask(CONTRACT, aggregate=LAST)
        panes = masked.panes | beam.FlatMap(lambda b: b.select(["id", "mail_of", "n"]).to_pylist())
        assert_that(panes, equal_to([{"id": 1, "mail_of": "***", "n": 1}, {"id": 2, "mail_of": None, "n": 1}]))


def test_panes_are_not_masked_by_the_contract_alone() -> None:
    message = r"Mask: got panes of an aggregate; .* Give its spec: Mask\(contract, aggregate=spec\)"
    with pytest.raises(SpecError, match=message):
        _ = conformed(BarePipeline()) | Aggregate(LAST, name="last") | Mask(CONTRACT)
    with pytest.raises(Exception, match=message), BarePipeline() as pipeline:
        _ = (conformed(pipeline) | Aggregate(LAST, name="last")).panes | Mask(CONTRACT)


def test_rows_are_not_masked_as_panes() -> None:
    with pytest.raises(Exception, match=r"Mask: got rows that are no panes; .* Mask panes and rows apart"), BarePipeline() as pipeline:
        _ = conformed(pipeline) | Mask(CONTRACT, aggregate=LAST)


def test_duplicates_that_are_told_are_no_dead_letters() -> None:
    with BarePipeline() as pipeline:
        batch = pa.record_batch({"id": [1, 1]})
        after = pipeline | beam.Create([batch]) | Deduplicate("id", tell=True) | Transform({"set": {"bad": "1 // 0"}})
        assert_that(after.dead | beam.FlatMap(lambda b: b["reason"].to_pylist()), equal_to(["EXPRESSION"]), "Dead")
        counted = [["", "duplicate", "", 1], ["", "dead", "transform:EXPRESSION", 1], ["", "failed", "bad", 1]]
        assert_that(after.counts | beam.Map(lambda count: [*count][1:]), equal_to(counted), "Counts")


def test_a_column_may_have_any_name() -> None:
    with BarePipeline() as pipeline:
        rows = pipeline | beam.Create([pa.record_batch({"a'; b": [1]})]) | Transform({"set": {"x": '"a\'; b" + 1'}})
        assert_that(rows.rows | ToRows() | beam.Map(lambda row: row["x"]), equal_to([2]))


HOURLY = WindowSpec(size="1h")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Transform({"filter": "id >"}), r"transform\[0\]: expression 'id >'"),
        (lambda: Transform({"drop": ["id"]}, {"set": {"x": "rank() OVER ()"}}), r"transform\[1\]: .*window function"),
        (lambda: Transform({"set": {"x": "random()"}}), "random"),
        (lambda: Transform({"apply": "no_such_package:f"}), "cannot be imported"),
        (lambda: Transform({"lookup": {"from": "t", "on": "id", "take": {"x": "v"}}}), "no lookup 't'"),
        (lambda: Transform({"set": {"_x": "1"}}), "'_x' is reserved"),
        (lambda: Transform({"filter": "idd > 1"}, contract=WRITTEN), "unknown column 'idd'; did you mean 'id'"),
        (lambda: Transform({"drop": ["day"]}, {"rename": {"d": "day"}}, contract=CONTRACT), r"transform\[1\]: no column 'day'"),
        (lambda: Conform("contract.yaml"), "Conform: contract is a str; expected a Contract, or a mapping"),
        (lambda: Validate(CONTRACT, [{"name": "x", "expr": "id >"}]), "check 'x': expression 'id >'"),
        (lambda: Validate(CONTRACT, [{"name": "x"}]), "check 0: .*needs exactly one of expr"),
        (lambda: Validate(CONTRACT, ["id > 1"]), "check 0 is a str; expected a Check or a mapping"),
        (lambda: Deduplicate("idd", contract=CONTRACT), "key column 'idd' is not in the contract; did you mean 'id'"),
        (lambda: Deduplicate(DeduplicateRule(keep="newest"), contract=CONTRACT, changes=False), "keeps the first copy that arrives; got keep: newest"),
        (lambda: Deduplicate(DeduplicateRule(order_by="day"), contract=CONTRACT, changes=False), "order_by: day"),
        (lambda: Aggregate(AggregateSpec(group_by=["nope"], measures={"n": "count()"}), name="a", contract=CONTRACT), "a: group_by 'nope'"),
        (lambda: Aggregate(AggregateSpec(measures={"n": "sum(nope)"}), name="a", contract=CONTRACT), "nope"),
        (lambda: Aggregate(AggregateSpec(measures={"n": "sum(mail)"}), name="a", contract=CONTRACT), "sum"),
        (lambda: Enrich({1: "one"}, on="id", take={"x": "v"}), r"table is a dict; .* pa.Table.from_pylist\(rows\)"),
        (lambda: Enrich(pa.table({"k": [1]}), on="id", take={"x": "v"}), "needs `key`"),
        (lambda: Enrich(pa.table({"k": [1]}), key="k", on="id", take={"x": "v"}), "no column 'v' to take"),
        (lambda: Enrich(pa.table({"k": [1]}), key="k", on=("id", "day"), take={"x": "k"}), "'on' does not match its key"),
        (lambda: Mask({"columns": {"m": {"type": "string", "sensitive": "redact"}}}, key=b"secret"), "a key is a bytes; expected a function"),
    ],
)  # fmt: skip
def test_mistakes_are_told_when_a_stage_is_made(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()


def test_the_time_of_an_aggregate_is_that_of_the_contract() -> None:
    Aggregate(AggregateSpec(windowing=HOURLY, measures={"n": "count()"}), name="a", contract=CONTRACT)
    with pytest.raises(SpecError, match="windows need a time column"):
        Aggregate(AggregateSpec(windowing=HOURLY, measures={"n": "count()"}), name="a")


@pytest.mark.parametrize("stage", [Conform(CONTRACT), Validate(CONTRACT), Transform(), Deduplicate("id"), Mask(CONTRACT)])
def test_rows_that_are_no_batches_are_refused(stage: beam.PTransform) -> None:
    with pytest.raises(SpecError, match=r"got a PCollection of .*; expected one of RecordBatch. Put FromRows\(contract\) before it"):
        _ = BarePipeline() | beam.Create(ROWS) | stage


def test_a_side_input_is_no_table() -> None:
    rows = BarePipeline() | beam.Create(ROWS)
    with pytest.raises(SpecError, match="side inputs are not supported"):
        Enrich(beam.pvalue.AsList(rows), on="id", take={"x": "v"})


@pytest.mark.parametrize("transform", [beam.Map(print), "Filter" >> beam.Filter(bool), beam.GroupByKey()])
def test_a_result_is_not_one_pcollection(transform: beam.PTransform) -> None:
    with pytest.raises(
        SpecError, match=r"Conformed \| .*: a stage's result has several PCollections \(.rows, .dead, .counts\).*`result.rows"
    ):
        _ = conformed(BarePipeline()) | transform


class OfAResult(beam.PTransform):  # type: ignore[misc]
    """A transform of a user's own over a stage's result."""

    def expand(self, result: Any) -> beam.PCollection:
        return result.dead


def test_a_transform_of_ones_own_takes_a_result() -> None:
    assert isinstance(conformed(BarePipeline()) | OfAResult(), beam.PCollection)


NESTED = {"tags": {"type": "list<int64>"}, "at": {"type": "struct<n: int32>"}}
OF_LISTS = Contract.model_validate({**WRITTEN, "columns": {**WRITTEN["columns"], **NESTED}})


def rows(columns: Mapping[str, Any]) -> pa.RecordBatch:
    some = dict(zip(PROVENANCE.names, provenance("s", pa.array(range(1), pa.int64())), strict=True))
    return pa.record_batch({**some, **columns})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["1"], "day": pa.nulls(1), "mail": ["x"]}, "validate: column 'id' is string; expected int64. Put Conform"),
        ({"id": [1], "day": pa.nulls(1), "mail": ["x"], "tags": [["1"]]}, "column 'tags' is list<.*string>; expected list<.*int64>"),
        ({"id": [1], "day": pa.nulls(1), "mail": ["x"], "tags": [[]], "at": [{"n": "1"}]}, "column 'at' is struct<n: string>; expected"),
        ({"idd": [1], "day": pa.nulls(1), "mail": ["x"]}, "validate: no column 'id' in the rows; did you mean 'idd'"),
    ],
)
def test_validate_says_what_rows_are_not_conformed(columns: Mapping[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message), BarePipeline() as pipeline:
        _ = pipeline | beam.Create([rows(columns)]) | Validate(CONTRACT if "tags" not in columns else OF_LISTS)


def test_lists_and_structs_without_values_fit() -> None:
    with BarePipeline() as pipeline:
        batch = rows({"id": [1], "day": pa.nulls(1), "mail": ["x"], "tags": [[]], "at": [{"n": None}]})
        valid = pipeline | beam.Create([batch]) | Validate(OF_LISTS)
        assert_that(valid.valid | ToRows() | beam.Map(lambda row: (row["tags"], row["at"])), equal_to([([], {"n": None})]))


def test_a_check_of_a_column_that_a_step_added() -> None:
    with BarePipeline() as pipeline:
        steps = conformed(pipeline) | Transform({"set": {"twice": "2 * id"}})
        valid = steps | Validate(CONTRACT, [{"name": "small", "expr": "twice < 3"}])
        assert_that(
            valid.dead | ToRows() | beam.Map(lambda letter: letter["message"]), equal_to(["small: got twice='4'; expected twice < 3"])
        )
