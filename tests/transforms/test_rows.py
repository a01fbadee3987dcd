"""Rows in, rows out: the stages inside somebody's own row-wise Beam job."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.coders import registry
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_pipeline
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, GlobalWindow, Sessions, SlidingWindows, TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp

from beam_pipelines.arrow.contract import Column, Contract
from beam_pipelines.arrow.message_positions import message_positions
from beam_pipelines.arrow.schema import ARRIVAL, CHANGE, POSITION, SOURCE, UTC_MICROS
from beam_pipelines.arrow.validate import Check
from beam_pipelines.errors import SpecError
from beam_pipelines.transforms import Conform, Decode, Deduplicate, Enrich, FromRows, ToRows, Transform, Validate
from beam_pipelines.transforms.rows import _Batch
from beam_pipelines.transforms.stage import TARGET_BYTES
from tests.formats.archived import NOON, messages

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


@dataclass
class Order:
    """A row as a dataclass."""

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
    [
        ROWS,
        as_bytes(),
        [r.decode() for r in as_bytes()],
        [pa.RecordBatch.from_pylist(ROWS)],
        [pa.concat_tables([pa.Table.from_pylist([r], pa.RecordBatch.from_pylist(ROWS).schema) for r in ROWS])],
        [PubsubMessage(r, {}, message_id=str(n)) for n, r in enumerate(as_bytes())],
        [ROWS[0], as_bytes()[1]],
    ],
    ids=["dicts", "bytes", "texts", "record batches", "tables", "messages", "mixed"],
)
@pytest.mark.parametrize("runner", [None, *(pytest.param(name, marks=pytest.mark.slow) for name in ("DirectRunner", "FnApiRunner"))])
def test_every_kind_of_row_gives_the_same_rows(rows: list[Any], runner: str | None) -> None:
    with TestPipeline(runner=runner) if runner else TestPipeline() as pipeline:
        assert_that(through(pipeline, rows).valid | ToRows(), equal_to(EXPECTED))


@pytest.mark.parametrize("runner", ["DirectRunner", "FnApiRunner"])
def test_mixed_rows_on_the_other_runners(runner: str) -> None:
    with TestPipeline(runner=runner) as pipeline:
        assert_that(through(pipeline, [ROWS[0], as_bytes()[1]]).valid | ToRows(), equal_to(EXPECTED))


@pytest.mark.parametrize("row", [beam.Row(id=1, name="a"), Pair(1, "a"), Order(1, "a")], ids=["beam.Row", "NamedTuple", "dataclass"])
def test_rows_of_other_types_with_names(row: Any) -> None:
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


def test_what_is_no_row_is_a_dead_letter_and_the_others_go_on() -> None:
    given = [None, ("k", {"id": 1}), 3, {"id": 2}, {"id": 3, "paid": float("nan")}, {"id": 4, "name": b"a"}, {"id": 5, "name": object}]
    with TestPipeline() as pipeline:
        validated = through(pipeline, given)
        letters = validated.dead | ToRows()
        assert_that(validated.valid | "Kept" >> ToRows() | beam.Map(key), equal_to([2]), label="Rows")
        assert_that(letters | beam.Map(lambda d: (d["stage"], d["reason"])), equal_to([("decode", "DECODE")] * 6), label="Reasons")
        said = letters | "Raw" >> beam.Map(lambda d: (d["raw"][:8], "nan is no number" in d["message"]))
        expected = [(b"None", False), (b"('k', {'", False), (b"3", False), (b"{'id': 3", True), (b"{'id': 4", False), (b"{'id': 5", False)]
        assert_that(said, equal_to(expected), label="Said")


def test_raw_batches_are_decoded_by_their_format() -> None:
    records = [(n, NOON) for n in range(3)]
    contract = Contract(columns={"n": Column(type="int64")}, unknown_columns="drop")
    batch = messages(records).set_column(3, "_raw", pa.array([b'{"n": 0}', b"{", b'{"n": 2}']))
    with TestPipeline() as pipeline:
        given = pipeline | beam.Create([batch])
        conformed = given | FromRows(contract) | Conform(contract)
        picked = given | Decode(contract, "parquet")
        assert_that(conformed.rows | ToRows(), equal_to([{"n": 0}, {"n": 2}]), label="Rows")
        assert_that(
            conformed.dead | beam.Map(lambda b: b["position"].to_pylist()), equal_to([batch[POSITION].to_pylist()[1:2]]), label="Dead"
        )
        assert_that(picked.rows, equal_to([]), label="Picked")
        raw = picked.dead | "Raw" >> beam.FlatMap(lambda b: b["raw"].to_pylist())
        assert_that(raw, equal_to(batch["_raw"].to_pylist()), label="Refused")


def test_a_batch_without_any_of_the_columns_is_dead_letters() -> None:
    with TestPipeline() as pipeline:
        validated = through(pipeline, [pa.RecordBatch.from_pydict({"other": [1, 2]}), {"id": 3}])
        assert_that(validated.valid | ToRows() | beam.Map(key), equal_to([3]), label="Rows")
        raw = validated.dead | beam.FlatMap(lambda batch: batch["raw"].to_pylist())
        assert_that(raw, equal_to([b'{"other":1}', b'{"other":2}']), label="Dead")


@pytest.mark.parametrize("format", ["parquet", "orc"])
def test_a_format_of_columns_is_refused(format: str) -> None:  # noqa: A002
    with pytest.raises(SpecError, match=f"format '{format}' is one of files; expected that of one record"):
        FromRows(CONTRACT, format=format)


def test_objects_are_read_as_objects_whatever_the_format_of_records() -> None:
    given = [{"id": 1, "name": "\u00e9"}, "2,\u00e9", b"3,\xe9", "4,\u20ac"]
    with TestPipeline() as pipeline:
        rows = (
            pipeline
            | beam.Create(given, reshuffle=False)
            | FromRows(CONTRACT, format={"type": "csv", "encoding": "latin-1", "columns": ["id", "name"]})
            | Conform(CONTRACT)
        )
        assert_that(rows.rows | ToRows() | beam.Map(lambda r: (r["id"], r["name"])), equal_to([(n, "\u00e9") for n in (1, 2, 3)]))
        assert_that(
            rows.dead | "Letters" >> ToRows() | "Raw" >> beam.Map(lambda letter: letter["raw"]),
            equal_to(["4,\u20ac".encode()]),
            label="Dead",
        )


def with_provenance(row: dict[str, Any]) -> tuple[Any, ...]:
    return row[SOURCE], row[POSITION], row[ARRIVAL], row["id"]


def test_a_message_is_the_same_row_when_it_is_delivered_again() -> None:
    published = dt.datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=dt.UTC)
    micros = int(published.timestamp() * 1_000_000)
    given = [PubsubMessage(b'{"id": 1}', {}, message_id=name, publish_time=published) for name in ("7", "7", str(2**40 + 5))]
    positions = message_positions(pa.array(["7", "7", str(2**40 + 5)]), pa.array([micros] * 3).to_numpy()).tolist()
    assert positions[0] != positions[2] == 2**40 + 5
    with TestPipeline() as pipeline:
        decoded = pipeline | beam.Create(given) | FromRows(CONTRACT, source="projects/p/subscriptions/s")
        rows = decoded.rows | ToRows(provenance=True) | beam.Map(lambda r: {**r, "id": int(r["id"])}) | beam.Map(with_provenance)
        assert_that(rows, equal_to([("projects/p/subscriptions/s", position, published, 1) for position in positions]))


def test_a_batch_with_an_identity_keeps_it_and_arrives_with_its_element() -> None:
    batch = pa.RecordBatch.from_pydict({"_source": ["s", "s"], "_position": [5, 6], "id": [1, 2]})
    with TestPipeline() as pipeline:
        decoded = pipeline | beam.Create([TimestampedValue(batch, 100)]) | FromRows(CONTRACT)
        rows = decoded.rows | ToRows(provenance=True) | beam.Map(with_provenance)
        at = dt.datetime.fromtimestamp(100, dt.UTC)
        assert_that(rows, equal_to([("s", 5, at, 1), ("s", 6, at, 2)]))


def test_every_row_is_counted_as_read() -> None:
    given = [
        {"id": 1},
        None,
        b"{",
        PubsubMessage(b"{}", {}, message_id="1"),
        pa.RecordBatch.from_pydict({"id": [1, 2]}),
        pa.table({"no": [1]}),
    ]
    with TestPipeline() as pipeline:
        counts = (pipeline | beam.Create(given) | FromRows(CONTRACT)).counts
        sums = (
            counts
            | beam.Filter(lambda count: count[2] != "failed")
            | beam.Map(lambda count: (count[2], count[4]))
            | beam.CombinePerKey(sum)
        )
        assert_that(sums, equal_to([("read", 7), ("dead", 3)]))


class Wordless:
    """An element that cannot even be shown."""

    def __repr__(self) -> str:
        raise ZeroDivisionError


class Nameless:
    """An element that has names, but does not give them."""

    def _asdict(self) -> dict[str, Any]:
        raise KeyError

    def __repr__(self) -> str:
        return "nameless"


def deep(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("row", "raw"),
    [({"id": 10**5000}, "<dict>"), ({"x": deep(5000)}, "<dict>"), (Pair, repr(Pair)), (Wordless(), "<Wordless>"), (Nameless(), "nameless")],
    ids=["too many digits", "too deep", "a class", "not to be shown", "not to be read"],
)
def test_an_element_that_cannot_be_shown_is_a_dead_letter(row: Any, raw: str) -> None:
    batch = _Batch("test", CONTRACT)
    batch.setup()
    batch.start_bundle()
    assert not list(batch.process(row, Timestamp(5), GlobalWindow()))
    letters, *counts = [out.value.value for out in batch.finish_bundle()]
    assert (letters["reason"].to_pylist(), letters["raw"].to_pylist()) == (["DECODE"], [raw.encode()])
    assert [count[2:] for count in counts] == [("dead", "decode:DECODE", 1), ("failed", "decode", 1), ("read", "", 1)]


def per_window(rows: beam.PCollection, label: str) -> beam.PCollection:
    """How many rows lie in each window."""

    def stated(count: int, window: Any = beam.DoFn.WindowParam) -> tuple[int, int, int]:
        return int(window.start), int(window.end), count

    counted = rows | f"Count{label}" >> beam.CombineGlobally(beam.combiners.CountCombineFn()).without_defaults()
    return counted | f"Window{label}" >> beam.Map(stated)


def test_rows_come_back_in_the_windows_they_lay_in() -> None:
    rows = [TimestampedValue({"id": n}, 5 * n) for n in range(3)]
    with TestPipeline() as pipeline:
        sliding = pipeline | beam.Create(rows) | beam.WindowInto(SlidingWindows(10, 5))
        back = sliding | FromRows(CONTRACT) | Conform(CONTRACT) | ToRows()
        expected = [(-5, 5, 1), (0, 10, 2), (5, 15, 2), (10, 20, 1)]
        assert_that(per_window(sliding, "Given"), equal_to(expected), label="Plain")
        assert_that(per_window(back, "Back"), equal_to(expected), label="Sliding")


def test_merged_sessions_stay_merged() -> None:
    rows = [TimestampedValue({"id": n}, 5 * n) for n in range(3)]
    with TestPipeline() as pipeline:
        keyed = pipeline | beam.Create(rows) | beam.WindowInto(Sessions(10)) | beam.WithKeys(0)
        merged = keyed | beam.GroupByKey() | beam.FlatMap(lambda kv: list(kv[1]))
        back = merged | FromRows(CONTRACT) | Conform(CONTRACT) | ToRows()
        assert_that(back | beam.Map(lambda row, w=beam.DoFn.WindowParam: (int(w.start), int(w.end))), equal_to([(0, 20)] * 3))


class AtItsTime(beam.DoFn):  # type: ignore[misc]
    """Gives each row its own time as timestamp, as jobs do before they window."""

    def process(self, row: dict[str, Any]) -> Any:
        yield TimestampedValue(row, row["id"])


@pytest.mark.parametrize("runner", ["BundleBasedDirectRunner", "FnApiRunner"])
def test_rows_without_timestamps_can_be_windowed_later(runner: str) -> None:
    with TestPipeline(runner=runner, options=PipelineOptions(streaming=runner != "FnApiRunner")) as pipeline:
        rows = pipeline | beam.Create([{"id": n} for n in (1, 2, 61)]) | FromRows(CONTRACT) | Conform(CONTRACT) | ToRows()
        windowed = rows | beam.ParDo(AtItsTime()) | beam.WindowInto(FixedWindows(60))
        assert_that(per_window(windowed, "Rows"), equal_to([(0, 60, 2), (60, 120, 1)]))


@pytest.mark.parametrize("timestamps", [[MIN_TIMESTAMP], [Timestamp(5), MIN_TIMESTAMP], [GlobalWindow().max_timestamp()]])
def test_a_timestamp_that_says_nothing_is_no_arrival(timestamps: list[Timestamp]) -> None:
    batch = _Batch("test", CONTRACT, counted=False)
    batch.setup()
    batch.start_bundle()
    assert not [out for time in timestamps for out in batch.process({"id": 1}, time, GlobalWindow())]
    (made,) = batch.finish_bundle()
    assert made.timestamp == min(timestamps)
    assert made.value[ARRIVAL] == pa.array([5_000_000 if time == Timestamp(5) else None for time in timestamps], UTC_MICROS)


def test_wide_rows_make_small_batches() -> None:
    batch = _Batch("test", CONTRACT, counted=False)
    batch.setup()
    batch.start_bundle()
    wide = b"x" * (TARGET_BYTES // 4)
    made = [out for _ in range(9) for out in batch.process(wide, MIN_TIMESTAMP, GlobalWindow())]
    assert [out.value.num_rows for out in [*made, *batch.finish_bundle()]] == [4, 4, 1]


NESTED = Contract(
    columns={n: Column(type=t) for n, t in {"id": "int64", "at": "timestamp", "tags": "list<string>", "addr": "struct<zip: int32>", "day": "date"}.items()},
    unknown_columns="drop",
)  # fmt: skip


def test_beam_rows_of_a_contract_have_its_schema() -> None:
    at, day = dt.datetime(2026, 1, 2, tzinfo=dt.UTC), dt.date(2026, 1, 2)
    given = [{"id": 1, "at": at, "tags": ["a"], "addr": {"zip": 3}, "day": day}, {"id": 1, "at": None}, {"id": 2}]
    with TestPipeline() as pipeline:
        conformed = pipeline | beam.Create(given) | FromRows(NESTED) | Conform(NESTED)
        rows = conformed | ToRows(NESTED, as_rows=True)
        coder = registry.get_coder(rows.element_type)
        again = (
            rows
            | beam.Map(lambda row: coder.decode(coder.encode(row)))
            | beam.Map(lambda r: (r.id, r.at, r.tags, r.addr and r.addr.zip, r.day))
        )
        assert_that(again, equal_to([(1, Timestamp.of(at.timestamp()), ["a"], 3, day), (1, *[None] * 4), (2, *[None] * 4)]), label="Coded")
        grouped = rows | beam.GroupBy("id").aggregate_field("id", sum, "total") | beam.Map(lambda r: (r.id, r.total))
        assert_that(grouped, equal_to([(1, 2), (2, 2)]), label="Grouped")


def test_rows_of_a_schema_have_its_columns_alone() -> None:
    with TestPipeline() as pipeline:
        rows = through(pipeline, ROWS).valid | ToRows(pa.schema([("name", pa.string()), ("id", pa.int64())]))
        assert_that(rows | beam.Map(lambda row: list(row.items())), equal_to([[("name", "a"), ("id", 1)], [("name", None), ("id", 2)]]))


@pytest.mark.parametrize("as_rows", [False, True])
def test_a_schema_without_the_sign_of_a_row_is_refused(as_rows: bool) -> None:
    told = pa.record_batch({"id": [1, 1], CHANGE: pa.array([1, -1], pa.int8())})
    narrow, whole = (pa.schema([told.schema.field(name) for name in names]) for names in (["id"], ["id", CHANGE]))
    with pytest.raises(Exception, match=r"ToRows: the rows have _change.*Deduplicate\(changes=False\)"), TestPipeline() as pipeline:
        pipeline | beam.Create([told]) | ToRows(narrow, as_rows=as_rows)
    with TestPipeline() as pipeline:
        rows = pipeline | beam.Create([told]) | ToRows(whole) | beam.Map(lambda row: row[CHANGE])
        assert_that(rows, equal_to([1, -1]))


def test_a_schema_of_other_columns_is_refused() -> None:
    with pytest.raises(Exception, match=r"ToRows: the rows have no column 'nam'. did you mean 'name'"), TestPipeline() as pipeline:
        through(pipeline, ROWS).valid | ToRows(pa.schema([("nam", pa.string())]))
    with pytest.raises(SpecError, match=r"got dict; expected a Contract or a pyarrow\.Schema"):
        ToRows({"columns": {}})  # type: ignore[arg-type]
