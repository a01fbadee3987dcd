"""What a stream appends to BigQuery arrives: on a server that speaks as BigQuery does."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that

from beam_pipelines.arrow.schema import CHANGE
from beam_pipelines.errors import SinkError, SpecError, TransientError
from beam_pipelines.sinks.bigquery_append import AppendDeadLettersToBigQuery, AppendToBigQuery, _Append, _table_of, close_appenders
from beam_pipelines.sinks.bigquery_appender import Appender, ArrowRows
from beam_pipelines.sinks.bigquery_calls import Writing
from beam_pipelines.sinks.bigquery_limits import ROW_BYTES
from beam_pipelines.sinks.bigquery_schema import Field, fields_of, read_fields
from beam_pipelines.sinks.bigquery_tables import ensure_table
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sinks.write import Masking
from beam_pipelines.spec.sinks import BigQuerySink
from tests.cloud.bigquery_server import BigQueryServer, client_at
from tests.cloud.http_gate import Gate
from tests.server_process import HOST

pytestmark = pytest.mark.cloud
UTC = dt.UTC
AT = dt.datetime(2026, 11, 1, 12, tzinfo=UTC)
RUN = RunInfo("run-1", "flights", "/nowhere", contract="c1")
BOTH = pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])


def fields_there(client: Any, table: str) -> Any:
    return read_fields(client.get_table(table).to_api_repr()["schema"]["fields"])


@pytest.fixture(autouse=True)
def on_the_server(bigquery: BigQueryServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in bigquery.environment.items():
        monkeypatch.setenv(name, value)
    yield
    close_appenders()


def rows_of(ids: range | list[int], **columns: pa.Array) -> pa.RecordBatch:
    n = len(ids)
    own = {
        "id": pa.array(list(ids), pa.int64()),
        "at": pa.array([AT] * n, pa.timestamp("us", "UTC")),
        **columns,
        "_source": pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), ["s"]),
        "_position": pa.array(list(ids), pa.int64()),
        "_arrival_time": pa.array([AT] * n, pa.timestamp("us", "UTC")),
    }
    return pa.RecordBatch.from_pydict(own)


class Stage:
    """The DoFn as a runner drives it."""

    def __init__(self, sink: BigQuerySink, **options: Any) -> None:
        self.fn = _Append(AppendToBigQuery(sink, label="rows", run=RUN, event_time="at", **{"key": ("id",), **options}).settings)
        self.fn.setup()

    def bundle(self, *batches: pa.RecordBatch, finish: bool = True) -> list[pa.RecordBatch]:
        """Dead letters of one bundle."""
        self.fn.start_bundle()
        for batch in batches:
            self.fn.process(batch, timestamp=beam.utils.timestamp.Timestamp(5))
        found = list(self.fn.finish_bundle()) if finish else []
        tagged = [(one.tag, one.value.value) for one in found if isinstance(one, beam.pvalue.TaggedOutput)]
        self.taken = [value for tag, value in tagged if tag == "taken"]
        return [value for tag, value in tagged if tag == "dead"]


def sink_of(bigquery: BigQueryServer, mode: str, **options: Any) -> BigQuerySink:
    return BigQuerySink(table=f"{bigquery.dataset()}.rows", mode=mode, **options)


def stored(bigquery: BigQueryServer, sink: BigQuerySink, columns: str = "id", *, table: str = "_speed") -> list[Any]:
    return [
        tuple(r.values()) if "," in columns else r[columns]
        for r in bigquery.rows(f"SELECT {columns} FROM `{sink.table}{table}` ORDER BY id")
    ]


@BOTH
def test_every_type_arrives_as_it_is(bigquery: BigQueryServer, mode: str) -> None:
    values: dict[str, tuple[pa.DataType, list[Any]]] = {
        "small": (pa.int8(), [-128, None]),
        "huge": (pa.uint64(), [2**64 - 1, None]),
        "single": (pa.float32(), [1.5, None]),
        "double": (pa.float64(), [-0.1, None]),
        "money": (pa.decimal128(12, 2), [Decimal("-1234567890.12"), None]),
        "fine": (
            pa.decimal128(38, 12),
            [Decimal("12345678901234567890.123456789012"), None],
        ),  # the local server keeps 18 digits behind the point
        "text": (pa.string(), ["größe\n\"'", None]),
        "bytes": (pa.binary(), [b"\x00\xff", None]),
        "truth": (pa.bool_(), [True, None]),
        "day": (pa.date32(), [dt.date(1, 1, 1), dt.date(9999, 12, 31)]),
        "clock": (pa.time64("us"), [dt.time(23, 59, 59, 999_999), None]),
        "moment": (pa.timestamp("us", "UTC"), [dt.datetime(1, 1, 1, tzinfo=UTC), dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)]),
        "civil": (pa.timestamp("us"), [dt.datetime(2026, 3, 8, 2, 30, 0, 1), None]),
        "tags": (pa.list_(pa.string()), [["a", ""], []]),
        "place": (pa.struct([("zip", pa.string()), ("n", pa.int16())]), [{"zip": "1", "n": None}, None]),
        "stops": (pa.list_(pa.struct([("at", pa.date32())])), [[{"at": dt.date(2026, 1, 1)}], []]),
    }
    sink = sink_of(bigquery, mode)
    columns = {name: pa.array(found, kind) for name, (kind, found) in values.items()}
    assert Stage(sink).bundle(rows_of(range(2), **columns)) == []
    found = bigquery.rows(f"SELECT * FROM `{sink.table}_speed` ORDER BY id")
    for name, (_, expected) in values.items():
        assert [row[name] for row in found] == expected, name
    assert {row["_run_id"] for row in found} == {"run-1"}
    assert {row["_contract"] for row in found} == {"c1"}
    assert all(row["_stored_at"] is not None for row in found)


@BOTH
def test_all_rows_of_many_bundles_are_stored_once(bigquery: BigQueryServer, mode: str) -> None:
    sink = sink_of(bigquery, mode, partition_by="day(at)", cluster_by=("id",))
    stage = Stage(sink)
    for first in range(0, 300, 100):
        assert stage.bundle(rows_of(range(first, first + 60)), rows_of(range(first + 60, first + 100))) == []
    assert stored(bigquery, sink) == list(range(300))


@BOTH
def test_bundles_at_once_share_the_table(bigquery: BigQueryServer, mode: str) -> None:
    sink = sink_of(bigquery, mode)

    def worker(number: int) -> None:
        stage = Stage(sink)
        for bundle in range(3):
            first = number * 1000 + bundle * 50
            stage.bundle(rows_of(range(first, first + 50)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(worker, range(4)))
    assert stored(bigquery, sink) == sorted(n * 1000 + r for n in range(4) for r in range(150))


def test_of_a_bundle_that_failed_nothing_is_ever_seen(bigquery: BigQueryServer) -> None:
    sink = sink_of(bigquery, "exactly_once")
    stage = Stage(sink)
    stage.bundle(rows_of(range(10)), finish=False)
    assert stored(bigquery, sink) == []
    stage.bundle(rows_of(range(10)))
    stage.bundle(rows_of(range(10, 20)))
    assert stored(bigquery, sink) == list(range(20))


@BOTH
def test_rows_outside_bigquerys_ranges_are_dead_letters_and_the_others_stored(bigquery: BigQueryServer, mode: str) -> None:
    days = pa.array([0, 3_000_000, 1], pa.int32()).cast(pa.date32())
    sink = sink_of(bigquery, mode)
    stage = Stage(sink)
    [letters] = stage.bundle(rows_of(range(3), day=days))
    assert letters.column("position").to_pylist() == [1]
    assert letters.column("reason").to_pylist() == ["SINK"]
    assert "'day'" in letters.column("message")[0].as_py()
    assert [batch.column("id").to_pylist() for batch in stage.taken] == [[0, 2]]
    assert stored(bigquery, sink) == [0, 2]


def appender_of(bigquery: BigQueryServer, table: str, **options: Any) -> Appender:
    return Appender(table, Writing(table, f"http://{bigquery.grpc}", who="test"), **options)


def test_rows_that_the_service_refuses_come_back_with_its_reason_and_the_others_are_stored(bigquery: BigQueryServer) -> None:
    table = f"{bigquery.dataset()}.t"
    ensure_table(bigquery.client(), table, (Field("id", "INTEGER"), Field("name", "STRING", "REQUIRED")))
    appender = appender_of(bigquery, table)
    bundle = appender.bundle()
    names = pa.array(["a", None, "c", None, "e"])
    numbers = [bundle.add(ArrowRows(pa.RecordBatch.from_pydict({"id": list(range(n, n + 5)), "name": names}))) for n in (0, 5)]
    refused = bundle.finish()
    appender.close()
    assert [(r.batch, r.row) for r in refused] == [(numbers[0], 1), (numbers[0], 3), (numbers[1], 1), (numbers[1], 3)]
    assert all("Missing required field: name" in r.why for r in refused)
    assert [r["id"] for r in bigquery.rows(f"SELECT id FROM `{table}` ORDER BY id")] == [0, 2, 4, 5, 7, 9]


def test_a_row_larger_than_a_request_is_a_dead_letter_and_large_ones_are_cut(bigquery: BigQueryServer) -> None:
    sink = sink_of(bigquery, "exactly_once")
    sizes = [4_000_000, ROW_BYTES + 1, 4_000_000, 4_000_000, 10]
    [letters] = Stage(sink).bundle(rows_of(range(5), text=pa.array(["x" * n for n in sizes])))
    assert letters.column("position").to_pylist() == [1]
    found = bigquery.rows(f"SELECT id, length(text) AS n FROM `{sink.table}_speed` ORDER BY id")
    assert [row["n"] for row in found] == [4_000_000, 4_000_000, 4_000_000, 10]


def test_masked_columns_never_leave(bigquery: BigQueryServer) -> None:
    sink = sink_of(bigquery, "at_least_once")
    stage = Stage(sink, masking=Masking({"mail": "hmac", "note": "redact", "pin": "drop"}, key=lambda: b"k" * 32))
    stage.bundle(rows_of(range(1), mail=pa.array(["a@b"]), note=pa.array(["secret"]), pin=pa.array([7])))
    [row] = bigquery.rows(f"SELECT * FROM `{sink.table}_speed`")
    assert (len(row["mail"]), row["note"]) == (64, "***")
    assert "pin" not in row


def test_retractions_are_not_appended_and_go_on(bigquery: BigQueryServer) -> None:
    batch = rows_of(range(3)).append_column(CHANGE, pa.array([1, 1, -1], pa.int8()))
    sink = sink_of(bigquery, "at_least_once")
    stage = Stage(sink)
    stage.bundle(batch)
    assert stored(bigquery, sink) == [0, 1]
    assert [batch.num_rows for batch in stage.taken] == [3]


@BOTH
def test_a_column_that_is_new_in_the_contract_is_added_to_the_table(bigquery: BigQueryServer, mode: str) -> None:
    sink = sink_of(bigquery, mode)
    stage = Stage(sink)
    stage.bundle(rows_of(range(2)))
    stage.bundle(rows_of(range(2, 4), dest=pa.array(["BOS", None])))
    stage.bundle(rows_of(range(4, 5)))
    assert stored(bigquery, sink, "id, dest") == [(0, None), (1, None), (2, "BOS"), (3, None), (4, None)]


def test_a_column_that_somebody_dropped_meanwhile_comes_back(bigquery: BigQueryServer) -> None:
    """Not by `exactly_once`: the local server looks at such rows when they are flushed, and drops what does not fit. BigQuery looks at the append."""
    sink = sink_of(bigquery, "at_least_once")
    stage = Stage(sink)
    stage.bundle(rows_of(range(2), dest=pa.array(["BOS", "JFK"])))
    bigquery.rows(f"ALTER TABLE `{sink.table}_speed` DROP COLUMN dest")
    assert stage.bundle(rows_of(range(2, 4), dest=pa.array(["LGA", None]))) == []
    assert stored(bigquery, sink, "id, dest") == [(0, None), (1, None), (2, "LGA"), (3, None)]


@BOTH
def test_a_missing_dataset_and_another_type_are_errors_that_say_what_to_do(bigquery: BigQueryServer, mode: str) -> None:
    nowhere = BigQuerySink(table=f"{bigquery.project}.no_such_dataset.rows", mode=mode)
    with pytest.raises(SinkError, match=r"no dataset test-project.no_such_dataset.*bq mk"):
        Stage(nowhere).bundle(rows_of(range(1)))
    sink = sink_of(bigquery, mode)
    Stage(sink).bundle(rows_of(range(1), dest=pa.array(["BOS"])))
    with pytest.raises(SinkError, match=r"column 'dest' is STRING; the rows have INTEGER"):
        Stage(sink).bundle(rows_of(range(1), dest=pa.array([1])))


@BOTH
def test_a_table_that_was_deleted_meanwhile_is_one_clear_error(bigquery: BigQueryServer, mode: str) -> None:
    sink = sink_of(bigquery, mode)
    first = Stage(sink)
    first.bundle(rows_of(range(1)))
    first.fn._table.appender.new = False  # as of a table that is older than this process
    bigquery.client().delete_table(f"{sink.table}_speed")
    with pytest.raises(SinkError, match=r"no such table|Not found"):
        first.bundle(rows_of(range(1)))


def test_the_transform_gives_an_element_per_bundle_and_letters(bigquery: BigQueryServer) -> None:
    sink = sink_of(bigquery, "exactly_once")
    days = pa.array([0, 3_000_000], pa.int32()).cast(pa.date32())

    def told(elements: list[Any]) -> None:
        assert set(elements) == {("appended", "rows")}

    def dead(letters: list[pa.RecordBatch]) -> None:
        assert [p for batch in letters for p in batch.column("position").to_pylist()] == [1]

    options = PipelineOptions(["--runner=FnApiRunner"])
    with beam.Pipeline("FnApiRunner", options=options) as pipeline:
        rows = pipeline | beam.Create([rows_of(range(2), day=days)])
        done = rows | "Rows" >> AppendToBigQuery(sink, label="rows", run=RUN, event_time="at")
        assert_that(done.files, told, label="Files")
        assert_that(done.dead, dead, label="Dead")
        assert_that(done.taken, lambda found: _same([batch.column("id").to_pylist() for batch in found], [[0]]), label="Taken")
        letters = BigQuerySink(table=f"{sink.table}_letters", mode="upsert")
        done.dead | "Letters" >> AppendDeadLettersToBigQuery(letters, run=RUN, contract=_contract())
    assert stored(bigquery, sink) == [0]
    [letter] = bigquery.rows(f"SELECT * FROM `{letters.table}_speed`")
    assert (letter["position"], letter["reason"], letter["run_id"]) == (1, "SINK", "run-1")
    assert [f["name"] for f in letter["failures"]] == ["rows"]


def _same(found: Any, expected: Any) -> None:
    assert found == expected


def _contract() -> Any:
    from beam_pipelines.arrow.contract import Contract

    return Contract.model_validate({"columns": {"id": {"type": "int64"}}})


def test_an_upsert_without_a_key_is_refused_before_the_run(bigquery: BigQueryServer) -> None:
    sink = sink_of(bigquery, "upsert")
    with pytest.raises(SpecError, match="needs a key"):
        AppendToBigQuery(sink, label="rows", run=RUN)
    with pytest.raises(SpecError, match="'id' is `sensitive: drop`"):
        AppendToBigQuery(sink, label="rows", run=RUN, key=("id",), masking=Masking({"id": "drop"}))


# Tables

FIELDS = fields_of([("id", "BIGINT"), ("at", "TIMESTAMP WITH TIME ZONE"), ("name", "VARCHAR")], required=["id"])


def test_a_table_is_made_once_and_grows(bigquery: BigQueryServer) -> None:
    table, client = f"{bigquery.dataset()}.t", bigquery.client()
    layout: dict[str, Any] = {"partition_by": "day(at)", "cluster_by": ["name"]}
    made = ensure_table(client, table, FIELDS, **layout)
    assert (made.made, made.fields) == (True, FIELDS)
    assert ensure_table(client, table, FIELDS, **layout)._replace(fields=()) == ((), False, False)
    more = (*FIELDS[1:], Field("dest", "STRING", "REQUIRED"))
    grown = ensure_table(client, table, more, **layout)
    assert grown.grown
    assert [(f.name, f.mode) for f in grown.fields] == [("id", "NULLABLE"), ("at", "NULLABLE"), ("name", "NULLABLE"), ("dest", "NULLABLE")]
    assert fields_there(client, table) == grown.fields
    found = client.get_table(table)
    assert (found.time_partitioning.field, found.clustering_fields) == ("at", ["name"])


def test_how_stale_a_table_may_be_is_set_and_changed_and_else_left_alone(bigquery: BigQueryServer) -> None:
    table, client = f"{bigquery.dataset()}.t", bigquery.client()

    def staleness() -> Any:
        return client.get_table(table).max_staleness

    ensure_table(client, table, FIELDS, primary_key=["id"], max_staleness=600_000_000)
    assert staleness() == "0-0 0 0:10:0"
    more = (*FIELDS, Field("dest", "STRING"))
    for micros, expected in ((None, "0-0 0 0:10:0"), (3_600_000_000, "0-0 0 1:0:0")):
        assert not ensure_table(client, table, FIELDS, primary_key=["id"], max_staleness=micros).grown
        assert staleness() == expected
    changed = client.get_table(table).etag
    ensure_table(client, table, FIELDS, primary_key=["id"], max_staleness=3_600_000_000)
    assert client.get_table(table).etag == changed, "the same again changes nothing"
    assert ensure_table(client, table, more, primary_key=["id"], max_staleness=60_000_000).grown
    assert staleness() == "0-0 0 0:1:0"
    assert fields_there(client, table) == more


def test_the_table_of_upserts_says_how_stale_it_may_be(bigquery: BigQueryServer) -> None:
    sink = sink_of(bigquery, "upsert", max_staleness="10m")
    _table_of(AppendToBigQuery(sink, label="rows", run=RUN, key=("id",)).settings).fields(rows_of(range(1)).schema)
    assert bigquery.client().get_table(f"{sink.table}_speed").max_staleness == "0-0 0 0:10:0"


@pytest.mark.parametrize("by", ["range(id, 0, 20, 10)", "day()"])
def test_a_stream_appends_to_tables_by_ranges_and_by_the_time_of_ingestion(bigquery: BigQueryServer, by: str) -> None:
    sink = sink_of(bigquery, "at_least_once", partition_by=by)
    assert Stage(sink).bundle(rows_of(range(30))) == []
    assert stored(bigquery, sink) == list(range(30))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"partition_by": "month(at)"}, r"partitioned by day\(at\); the spec says month\(at\)"),
        ({"partition_by": None}, r"partitioned by day\(at\); the spec says nothing"),
        ({"cluster_by": ["id"]}, r"clustered by name; the spec says id"),
    ],
)
def test_another_layout_of_a_table_that_is_there_is_an_error_that_says_both(
    bigquery: BigQueryServer, other: dict[str, Any], said: str
) -> None:
    table, client = f"{bigquery.dataset()}.t", bigquery.client()
    layout: dict[str, Any] = {"partition_by": "day(at)", "cluster_by": ["name"]}
    ensure_table(client, table, FIELDS, **layout)
    with pytest.raises(SinkError, match=said):
        ensure_table(client, table, FIELDS, **{**layout, **other})


def test_whoever_makes_or_grows_a_table_at_the_same_time_all_succeed(bigquery: BigQueryServer) -> None:
    table = f"{bigquery.dataset()}.t"
    client, start = bigquery.client(), threading.Barrier(4)

    def ensure(number: int) -> bool:
        start.wait()
        return ensure_table(client, table, (*FIELDS, Field(f"c{number}", "STRING"))).made

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(ensure, range(4))) == 1
    assert {f.name for f in fields_there(client, table)} == {"id", "at", "name", "c0", "c1", "c2", "c3"}


def test_a_table_that_another_changes_meanwhile_is_grown_also_where_its_columns_stay(bigquery: BigQueryServer) -> None:
    table, others, gate = f"{bigquery.dataset()}.t", iter(("a", "b")), Gate(bigquery.port)
    ensure_table(bigquery.client(), table, FIELDS)

    def quicker(method: str, target: str) -> None:
        if method in ("PATCH", "PUT") and (text := next(others, None)) is not None:
            there = bigquery.client().get_table(table)
            there.description = text
            bigquery.client().update_table(there, ["description"])

    gate.before = quicker
    try:
        assert ensure_table(client_at(f"http://{HOST}:{gate.port}", bigquery.project), table, (*FIELDS, Field("c", "STRING"))).grown
    finally:
        gate.away()
    assert next(others, None) is None, "the server was asked three times"
    assert {f.name for f in fields_there(bigquery.client(), table)} == {"id", "at", "name", "c"}


def test_a_server_that_does_not_answer_is_waited_for_and_then_an_error(bigquery: BigQueryServer) -> None:
    nobody = client_at("http://127.0.0.1:9", "p-1")
    waited: list[float] = []
    with pytest.raises(TransientError, match="does not answer"):
        ensure_table(nobody, "p-1.d.t", FIELDS, patience_s=2.0, wait=waited.append)
    assert len(waited) > 2
