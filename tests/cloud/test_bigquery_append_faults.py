"""Faults while a stream appends: lost answers, refusals, a server that goes away, a process that dies. What is told to be stored is; nothing is stored that no one told."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pyarrow as pa
import pytest

from beam_pipelines.errors import SinkError, TransientError
from beam_pipelines.sinks.bigquery_appender import ALONE, Appender, ArrowRows
from beam_pipelines.sinks.bigquery_calls import Writing
from beam_pipelines.sinks.bigquery_rows import PSEUDO, changes, message_class, proto_rows, sequence_numbers
from beam_pipelines.sinks.bigquery_schema import Field
from beam_pipelines.sinks.bigquery_tables import ensure_table
from tests.cloud.bigquery_server import BigQueryServer
from tests.cloud.grpc_gate import Gate, running_gate

pytestmark = pytest.mark.cloud
FIELDS = (Field("id", "INTEGER"), Field("text", "STRING"))
Code = grpc.StatusCode
BOTH = pytest.mark.parametrize("exactly_once", [False, True], ids=["at_least_once", "exactly_once"])


@pytest.fixture
def gate(bigquery: BigQueryServer) -> Iterator[Gate]:
    with running_gate(bigquery.grpc) as found:
        yield found


class Destination:
    """A new table, and who appends to it at `address`."""

    def __init__(self, bigquery: BigQueryServer, address: str, *, exactly_once: bool, **options: Any) -> None:
        self.bigquery, self.table = bigquery, f"{bigquery.dataset()}.t"
        ensure_table(bigquery.client(), self.table, FIELDS)
        self.appender = Appender(self.table, Writing(self.table, f"http://{address}", who="test", answer_s=20.0), exactly_once, **options)

    def append(self, *batches: range, each: int = 5) -> list[Any]:
        """One bundle, in requests of `each` rows."""
        bundle = self.appender.bundle()
        for ids in batches:
            pieces = [(first, min(each, len(ids) - first)) for first in range(0, len(ids), each)]
            bundle.add(rows(ids), sizes=pieces)
        return bundle.finish()

    def stored(self) -> list[int]:
        return [r["id"] for r in self.bigquery.rows(f"SELECT id FROM `{self.table}` ORDER BY id")]


def rows(ids: range) -> ArrowRows:
    return ArrowRows(pa.RecordBatch.from_pydict({"id": list(ids), "text": [f"row {n}" for n in ids]}))


def types() -> Any:
    from google.cloud.bigquery_storage_v1 import types as found

    return found


def error(code: grpc.StatusCode, message: str, *, rows: dict[int, str] | None = None, storage: str = "") -> Any:
    """An answer in the stream, as the service gives it."""
    from google.protobuf import any_pb2
    from google.rpc import status_pb2

    details = []
    if storage:
        told = types().StorageError(code=types().StorageError.StorageErrorCode[storage])
        told_bytes = types().StorageError.serialize(told)
        details = [any_pb2.Any(type_url="type.googleapis.com/google.cloud.bigquery.storage.v1.StorageError", value=told_bytes)]
    answer = types().AppendRowsResponse(error=status_pb2.Status(code=code.value[0], message=message, details=details))
    answer.row_errors = [types().RowError(index=i, code=1, message=m) for i, m in (rows or {}).items()]
    return answer


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_request_whose_answer_is_lost_adds_its_rows_once(bigquery: BigQueryServer, gate: Gate, after: int) -> None:
    to = Destination(bigquery, gate.address, exactly_once=True)
    gate.lose("AppendRows", after=after)
    assert to.append(range(20)) == []
    assert to.append(range(20, 30)) == []
    assert to.stored() == list(range(30))
    assert len(gate.requests["CreateWriteStream"]) == 1


def test_of_the_default_stream_a_lost_answer_adds_rows_again_and_loses_none(bigquery: BigQueryServer, gate: Gate) -> None:
    to = Destination(bigquery, gate.address, exactly_once=False)
    gate.lose("AppendRows", after=1)
    assert to.append(range(20)) == []
    assert to.stored() == sorted([*range(20), *range(5, 10)])


@pytest.mark.parametrize("name", ["FlushRows", "CreateWriteStream"])
def test_a_flush_or_a_stream_whose_answer_is_lost_adds_nothing_twice(bigquery: BigQueryServer, gate: Gate, name: str) -> None:
    to = Destination(bigquery, gate.address, exactly_once=True)
    gate.lose(name)
    assert to.append(range(20)) == []
    assert to.append(range(20, 22)) == []
    assert to.stored() == list(range(22))
    assert len(gate.requests[name]) == (3 if name == "FlushRows" else 2)


@BOTH
@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.ABORTED, Code.INTERNAL, Code.DEADLINE_EXCEEDED])
def test_quotas_and_outages_are_waited_for(bigquery: BigQueryServer, gate: Gate, code: grpc.StatusCode, exactly_once: bool) -> None:
    waited: list[float] = []
    to = Destination(bigquery, gate.address, exactly_once=exactly_once, wait=waited.append)
    gate.refuse("AppendRows", code, times=4)
    gate.refuse("FlushRows", code, times=2)
    assert to.append(range(20)) == []
    assert to.stored() == list(range(20))
    assert len(waited) == (6 if exactly_once else 4)


@BOTH
def test_a_quota_in_an_answer_of_the_stream_is_waited_for(bigquery: BigQueryServer, gate: Gate, exactly_once: bool) -> None:
    to = Destination(bigquery, gate.address, exactly_once=exactly_once, wait=lambda _: None)
    for _ in range(3):
        gate.answer(error(Code.RESOURCE_EXHAUSTED, "Exceeds quota"))
    assert to.append(range(20)) == []
    assert to.stored() == list(range(20))


@BOTH
def test_rows_with_reasons_are_refused_and_all_others_stored_once_in_place(
    bigquery: BigQueryServer, gate: Gate, exactly_once: bool
) -> None:
    to = Destination(bigquery, gate.address, exactly_once=exactly_once)
    gate.answer(error(Code.INVALID_ARGUMENT, "Errors found while processing rows", rows={1: "no number", 4: "no date"}))
    refused = to.append(range(10), range(10, 20))
    assert [(r.batch, r.row, r.why.rsplit(": ")[-1]) for r in refused] == [(0, 1, "no number"), (0, 4, "no date")]
    assert to.stored() == [n for n in range(20) if n not in (1, 4)]


@BOTH
def test_a_request_that_is_refused_without_reasons_is_halved_until_the_row_is_alone(
    bigquery: BigQueryServer, gate: Gate, exactly_once: bool
) -> None:
    to = Destination(bigquery, gate.address, exactly_once=exactly_once)
    gate.rule = lambda request: error(Code.INVALID_ARGUMENT, "bad row") if {3, 12} & set(ids_of(request)) else None
    refused = to.append(range(8), range(8, 16), each=8)
    assert [(r.batch, r.row, r.why) for r in refused] == [(n, r, f"{to.table} refuses it: bad row") for n, r in ((0, 3), (1, 4))]
    assert to.stored() == [n for n in range(16) if n not in (3, 12)]


def ids_of(request: bytes) -> list[int]:
    found = types().AppendRowsRequest.deserialize(request).arrow_rows.rows.serialized_record_batch
    return list(
        pa.ipc.read_record_batch(pa.py_buffer(found), pa.schema([("id", pa.int64()), ("text", pa.string())])).column("id").to_pylist()
    )


def test_a_table_that_refuses_every_row_is_an_error_and_not_a_flood_of_letters(bigquery: BigQueryServer, gate: Gate) -> None:
    to = Destination(bigquery, gate.address, exactly_once=False)
    for _ in range(2 * ALONE + 20):
        gate.answer(error(Code.INVALID_ARGUMENT, "nothing is good enough"))
    with pytest.raises(SinkError, match=r"100 rows in a row.*nothing is good enough.*columns"):
        to.append(range(500), each=500)


@BOTH
@pytest.mark.parametrize(("code", "said"), [(Code.PERMISSION_DENIED, "roles/bigquery.dataEditor"), (Code.NOT_FOUND, "there is no such table"), (Code.FAILED_PRECONDITION, "FAILED_PRECONDITION")])  # fmt: skip
def test_errors_that_do_not_pass_are_told_at_once(
    bigquery: BigQueryServer, gate: Gate, code: grpc.StatusCode, said: str, exactly_once: bool
) -> None:
    to = Destination(bigquery, gate.address, exactly_once=exactly_once)
    gate.refuse("AppendRows", code)
    with pytest.raises(SinkError, match=said):
        to.append(range(5))
    assert len(gate.requests["AppendRows"]) == 1
    assert to.append(range(5, 10)) == []  # the next bundle begins anew
    assert to.stored() == list(range(5, 10))


def test_a_table_that_was_just_made_may_be_unknown_for_a_moment(bigquery: BigQueryServer, gate: Gate) -> None:
    to = Destination(bigquery, gate.address, exactly_once=True, new=True, wait=lambda _: None)
    gate.refuse("CreateWriteStream", Code.NOT_FOUND, times=2)
    gate.refuse("AppendRows", Code.NOT_FOUND)
    assert to.append(range(5)) == []
    assert to.stored() == list(range(5))


@BOTH
def test_columns_that_the_table_has_not_are_added_once_and_waited_for(bigquery: BigQueryServer, gate: Gate, exactly_once: bool) -> None:
    grown: list[bool] = []
    to = Destination(bigquery, gate.address, exactly_once=exactly_once, wait=lambda _: None, grow=lambda: not grown.append(True))  # type: ignore[func-returns-value]
    for _ in range(3):  # the service takes a moment to see them
        gate.answer(
            error(Code.INVALID_ARGUMENT, "Input schema has more fields than BigQuery schema", storage="SCHEMA_MISMATCH_EXTRA_FIELDS")
        )
    assert to.append(range(10)) == []
    assert to.stored() == list(range(10))
    assert grown == [True]


@BOTH
def test_a_schema_that_changed_meanwhile_is_picked_up_on_a_new_connection(bigquery: BigQueryServer, gate: Gate, exactly_once: bool) -> None:
    seen: list[tuple[Field, ...]] = []
    to = Destination(bigquery, gate.address, exactly_once=exactly_once, seen=seen.append)
    schema = types().TableSchema(fields=[types().TableFieldSchema(name="id", type_="INT64", mode="NULLABLE"), types().TableFieldSchema(name="tags", type_="STRING", mode="REPEATED")])  # fmt: skip
    answer = error(Code.RESOURCE_EXHAUSTED, "once more")
    answer.updated_schema = schema
    gate.answer(answer)
    assert to.append(range(10)) == []
    assert seen == [(Field("id", "INTEGER"), Field("tags", "STRING", "REPEATED"))]
    assert to.stored() == list(range(10))
    named = [types().AppendRowsRequest.deserialize(r) for r in gate.requests["AppendRows"]]
    assert sum(bool(r.write_stream) for r in named) == 2


def test_a_stream_that_is_lost_before_its_rows_were_seen_is_replaced(bigquery: BigQueryServer, gate: Gate) -> None:
    to = Destination(bigquery, gate.address, exactly_once=True)
    to.append(range(5))
    gate.answer(error(Code.INVALID_ARGUMENT, "finalized", storage="STREAM_FINALIZED"))
    assert to.append(range(5, 15)) == []
    gate.answer(error(Code.OUT_OF_RANGE, "offset", storage="OFFSET_OUT_OF_RANGE"))
    assert to.append(range(15, 25)) == []
    assert to.stored() == list(range(25))
    assert len(gate.requests["CreateWriteStream"]) == 3


def test_streams_that_are_lost_again_and_again_are_an_error(bigquery: BigQueryServer, gate: Gate) -> None:
    to = Destination(bigquery, gate.address, exactly_once=True)
    for _ in range(3):
        gate.answer(error(Code.NOT_FOUND, "gone", storage="STREAM_NOT_FOUND"))
    with pytest.raises(TransientError, match="streams were lost"):
        to.append(range(5))


@BOTH
@pytest.mark.slow
def test_a_server_that_is_down_in_mid_append_is_waited_for(own_bigquery: BigQueryServer, exactly_once: bool) -> None:
    with running_gate(own_bigquery.grpc) as gate:
        to = Destination(own_bigquery, gate.address, exactly_once=exactly_once)
        down, calls = threading.Event(), iter(range(1000))

        def before(name: str) -> None:
            if name == "AppendRows" and next(calls) == 2:
                own_bigquery.kill()
                down.set()

        gate.before = before
        failed: list[BaseException] = []

        def append() -> None:
            try:
                to.append(range(40))
            except BaseException as found:
                failed.append(found)

        thread = threading.Thread(target=append)
        thread.start()
        assert down.wait(60)
        own_bigquery.start()
        thread.join(120)
        assert not failed
        assert to.stored() == list(range(40)) if exactly_once else sorted(set(to.stored())) == list(range(40))


def test_a_server_that_stays_down_is_an_error_that_may_pass(bigquery: BigQueryServer) -> None:
    to = Destination(bigquery, "127.0.0.1:9", exactly_once=True, patience_s=1.0, wait=lambda _: None)
    with pytest.raises(TransientError, match="does not take rows"):
        to.append(range(5))


CHILD = """
import sys
import pyarrow as pa
from beam_pipelines.sinks.bigquery_appender import Appender, ArrowRows
from beam_pipelines.sinks.bigquery_calls import Writing
table, address = sys.argv[1:]
bundle = Appender(table, Writing(table, f"http://{address}", who="test"), True).bundle()
bundle.add(ArrowRows(pa.RecordBatch.from_pydict({"id": list(range(10)), "text": ["x"] * 10})))
bundle.finish()
"""


@pytest.mark.parametrize(("when", "seen"), [("before", 0), ("after", 10)])
def test_a_process_that_is_killed_leaves_its_bundle_whole_or_not_at_all(
    bigquery: BigQueryServer, gate: Gate, environment: dict[str, str], when: str, seen: int
) -> None:
    """It dies while its flush is on the way to the server, or the answer on the way back."""
    to = Destination(bigquery, bigquery.grpc, exactly_once=True)
    under_way, dead = threading.Event(), threading.Event()

    def hold(name: str) -> None:
        if name == "FlushRows":
            under_way.set()
            dead.wait(60)

    setattr(gate, when, hold)
    if when == "before":
        gate.refuse("FlushRows", Code.ABORTED)  # it never gets there
    child = subprocess.Popen([sys.executable, "-c", CHILD, to.table, gate.address], env=environment)
    try:
        assert under_way.wait(60)
    finally:
        child.kill()
        child.wait(10)
        dead.set()
    assert len(to.stored()) == seen
    assert to.append(range(10, 12)) == []
    assert to.stored()[seen:] == [10, 11]


# Upserts: the local server knows no change types, so the requests are compared with Google's documentation.


def upserts(ids: list[int], versions: list[int], gone: list[bool]) -> Any:
    batch = pa.RecordBatch.from_pydict({"id": pa.array(ids, pa.int64()), "text": [f"v{v}" for v in versions]})
    changed = changes(batch, pa.array(gone), sequence_numbers([pa.array(versions, pa.int64()), pa.array(gone).cast(pa.int64())]))
    return proto_rows(changed, (*FIELDS, *PSEUDO))


def test_upserts_go_to_the_default_stream_as_protobuf_with_both_pseudo_columns(bigquery: BigQueryServer, gate: Gate) -> None:
    to = Destination(bigquery, gate.address, exactly_once=False)
    gate.answer(types().AppendRowsResponse(append_result=types().AppendRowsResponse.AppendResult()))
    bundle = to.appender.bundle()
    bundle.add(upserts([1, 2], [5, 6], [False, True]))
    assert bundle.finish() == []
    [request] = [types().AppendRowsRequest.deserialize(r) for r in gate.requests["AppendRows"]]
    assert request.write_stream.endswith("/tables/t/streams/_default")
    assert "offset" not in request
    described = request.proto_rows.writer_schema.proto_descriptor
    assert [f.name for f in described.field] == ["id", "text", "_CHANGE_TYPE", "_CHANGE_SEQUENCE_NUMBER"]
    found = [message_class((*FIELDS, *PSEUDO)).FromString(m) for m in request.proto_rows.rows.serialized_rows]
    assert [(m.id, m._CHANGE_TYPE, m._CHANGE_SEQUENCE_NUMBER) for m in found] == [
        (1, "UPSERT", "8000000000000005/8000000000000000"),
        (2, "DELETE", "8000000000000006/8000000000000001"),
    ]


def test_the_local_server_has_no_upserts(bigquery: BigQueryServer) -> None:
    """When this fails, it has: then test upserts on it."""
    to = Destination(bigquery, bigquery.grpc, exactly_once=False)
    bundle = to.appender.bundle()
    bundle.add(upserts([1], [5], [False]))
    [refused] = bundle.finish()
    assert "no such field: _CHANGE_TYPE" in refused.why
