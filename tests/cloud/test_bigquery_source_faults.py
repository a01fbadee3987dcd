"""The read of BigQuery when something breaks: no row is lost, none comes twice, and what does not pass is said."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest

from beam_pipelines.errors import SourceError, SpecError, TransientError
from beam_pipelines.runners.direct import run_batch
from beam_pipelines.sources.bigquery import pieces
from beam_pipelines.sources.bigquery_session import reader
from tests.cloud.bigquery_line import Line
from tests.cloud.bigquery_orders import ROWS, ids_by_position, narrow, read_by_source, rows, spec
from tests.cloud.bigquery_server import BigQueryServer
from tests.cloud.grpc_gate import Gate, running_gate

pytestmark = [pytest.mark.cloud, pytest.mark.usefixtures("google_here")]
Code = grpc.StatusCode


@pytest.fixture
def line(bigquery: BigQueryServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """The product reaches the Storage API by this line."""
    made = Line(bigquery.grpc_port)
    monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", made.address)
    yield made
    made.close()


def later(do: Callable[[], Any], when: Callable[[], bool]) -> threading.Thread:
    """Does something in another thread when a condition holds; joined by the test."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while not when() and time.monotonic() < deadline:
            time.sleep(0.01)
        do()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_connection_that_breaks_in_the_middle_costs_no_row_and_doubles_none(line: Line, wide_table: str) -> None:
    part = narrow(wide_table)
    whole = ids_by_position(part, 0)
    size, line.passed = line.passed, 0
    line.after = size // 2
    mending = later(line.mend, lambda: line.is_cut)
    assert ids_by_position(part, 0) == whole
    assert line.after is None, "the line was never cut"
    mending.join()
    assert line.passed < 1.4 * size, "the stream was read again from its beginning"


@pytest.fixture
def gate(bigquery: BigQueryServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The product reaches the Storage API through this gate."""
    with running_gate(bigquery.grpc) as made:
        monkeypatch.setenv("BIGQUERY_STORAGE_EMULATOR_HOST", made.address)
        yield made


def offsets(gate: Gate) -> list[int]:
    from google.cloud.bigquery_storage_v1.types import ReadRowsRequest

    return [ReadRowsRequest.deserialize(request).offset for request in gate.requests["ReadRows"]]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (Code.UNAVAILABLE, "going away"),
        (Code.RESOURCE_EXHAUSTED, "quota"),
        (Code.INTERNAL, "Received RST_STREAM with error code 2"),
        (Code.UNKNOWN, "None No status received"),
        (Code.ABORTED, "again"),
    ],
)
def test_a_stream_goes_on_at_its_offset_after_what_passes(gate: Gate, wide_table: str, code: grpc.StatusCode, said: str) -> None:
    part = narrow(wide_table)
    whole = ids_by_position(part, 0)
    gate.requests.clear()
    for after in (3, 0, 2):
        gate.refuse("ReadRows", code, said, after=after)
    assert ids_by_position(part, 0) == whole
    assert offsets(gate) == [0, 30_000, 30_000, 50_000]


def test_a_stream_whose_answer_is_lost_is_asked_for_again(gate: Gate, wide_table: str) -> None:
    part = narrow(wide_table)
    whole = ids_by_position(part, 0)
    gate.requests.clear()
    gate.lose("ReadRows")
    assert ids_by_position(part, 0) == whole
    assert offsets(gate) == [0, 0]


def test_a_whole_run_through_breaking_streams_and_quotas_is_the_same(gate: Gate, orders_table: str, tmp_path: Path) -> None:
    gate.refuse("CreateReadSession", Code.RESOURCE_EXHAUSTED, "Quota exceeded: CreateReadSession requests", times=3)
    gate.refuse("ReadRows", Code.UNAVAILABLE, times=6, after=4)
    loaded = spec(tmp_path, f"{{bigquery: {orders_table}}}")
    record = run_batch(loaded)
    assert (record.status, sum(read_by_source(record).values())) == ("success", ROWS)
    assert rows(loaded, "id") == [(i,) for i in range(10, ROWS)]
    assert len(offsets(gate)) == 3 + 6


@pytest.mark.parametrize(
    ("method", "code", "said", "error", "expected"),
    [
        (
            "CreateReadSession",
            Code.PERMISSION_DENIED,
            "no bigquery.tables.getData",
            SourceError,
            r"no permission: no bigquery.tables.getData. .*roles/bigquery.dataViewer",
        ),
        ("CreateReadSession", Code.UNAUTHENTICATED, "bad token", SourceError, "no permission: bad token"),
        (
            "CreateReadSession",
            Code.INVALID_ARGUMENT,
            "non-table entities cannot be read",
            SpecError,
            "non-table entities cannot be read. .*Views are read by a query",
        ),
        ("CreateReadSession", Code.INTERNAL, "a bug", SourceError, "INTERNAL: a bug"),
        ("ReadRows", Code.NOT_FOUND, "session expired", TransientError, "the read session is over: session expired"),
        ("ReadRows", Code.FAILED_PRECONDITION, "session expired", TransientError, "the read session is over"),
        ("ReadRows", Code.PERMISSION_DENIED, "revoked", SourceError, "no permission: revoked"),
    ],
)
def test_what_does_not_pass_stops_at_once(
    gate: Gate, wide_table: str, method: str, code: grpc.StatusCode, said: str, error: type[Exception], expected: str
) -> None:
    gate.refuse(method, code, said)
    with pytest.raises(error, match=expected):
        ids_by_position(narrow(wide_table), 0)
    assert len(gate.requests[method]) == 1


def test_a_failed_stream_fails_the_run_and_leaves_the_outputs_as_they_were(gate: Gate, orders_table: str, tmp_path: Path) -> None:
    loaded = spec(tmp_path, f"{{bigquery: {orders_table}, where: 'id < 5000'}}")
    run_batch(loaded)
    before = rows(loaded)
    gate.refuse("ReadRows", Code.PERMISSION_DENIED, "revoked", times=20)
    with pytest.raises(SourceError, match="no permission: revoked"):
        run_batch(loaded)
    assert rows(loaded) == before


def test_who_is_not_answered_gives_up_after_its_patience(line: Line, wide_table: str) -> None:
    part = narrow(wide_table)
    line.cut()
    with pytest.raises(TransientError, match=r"BigQuery has not answered for 1 s: UNAVAILABLE"):
        ids_by_position(part, 0, patience_s=1.0)


def test_a_server_that_dies_takes_its_sessions_with_it(own_bigquery: BigQueryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in own_bigquery.environment.items():
        monkeypatch.setenv(name, value)
    table = f"{own_bigquery.dataset()}.rows"
    own_bigquery.load(table, pa.table({"id": range(50_000)}))
    part = narrow(table)
    read = reader(part.session)
    found = pieces(read, part, 0)
    assert isinstance(next(found), pa.RecordBatch)
    own_bigquery.kill()
    mending = later(own_bigquery.start, lambda: True)
    with pytest.raises(TransientError, match="the read session is over: Not found: Stream"):
        list(pieces(read, part, 0))
    mending.join()
    assert len(ids_by_position(narrow(table), 0)) == 50_000
    read.connection.close()
