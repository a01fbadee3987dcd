"""The local BigQuery server is as strict as the cloud tests rely on: what BigQuery refuses, it refuses."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pyarrow as pa
import pytest
from google.api_core import exceptions

from tests.cloud.bigquery_server import BigQueryServer, installed
from tests.cloud.installer import installed_again

pytestmark = pytest.mark.cloud

SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False), ("day", pa.date32()), ("at", pa.timestamp("us", "UTC"))])


def rows_of(day: int | None, ids: range) -> pa.Table:
    date = None if day is None else dt.date(2026, 11, day)
    at = None if day is None else dt.datetime(2026, 11, day, 1, tzinfo=dt.UTC)
    return pa.table({"id": list(ids), "day": [date] * len(ids), "at": [at] * len(ids)}, SCHEMA)


def make(bigquery: BigQueryServer, **layout: Any) -> str:
    """A new empty table, partitioned by `day` where nothing else is said."""
    from google.cloud import bigquery as google

    table = google.Table(f"{bigquery.dataset()}.rows", schema=_fields())
    layout = layout or {"time_partitioning": google.TimePartitioning(type_="DAY", field="day")}
    for name, value in layout.items():
        setattr(table, name, value)
    bigquery.client().create_table(table)
    return f"{table.project}.{table.dataset_id}.{table.table_id}"


def load(bigquery: BigQueryServer, table: str, rows: pa.Table, *, write: str = "WRITE_APPEND", job_id: str | None = None) -> Any:
    return bigquery.load(table, rows, _fields(), write=write, job_id=job_id)


def _fields() -> list[Any]:
    from google.cloud import bigquery as google

    return [google.SchemaField("id", "INT64", mode="REQUIRED"), google.SchemaField("day", "DATE"), google.SchemaField("at", "TIMESTAMP")]


def counts(bigquery: BigQueryServer, table: str) -> dict[Any, int]:
    return {row["day"]: row["n"] for row in bigquery.rows(f"SELECT day, count(*) AS n FROM `{table}` GROUP BY day ORDER BY day")}


DAY_2, DAY_3 = dt.date(2026, 11, 2), dt.date(2026, 11, 3)


def test_a_job_id_is_taken_once_and_can_be_found_again(bigquery: BigQueryServer) -> None:
    table, job_id = make(bigquery), uuid.uuid4().hex
    load(bigquery, table, rows_of(2, range(5)), job_id=job_id)
    with pytest.raises(exceptions.Conflict):
        load(bigquery, table, rows_of(2, range(5)), job_id=job_id)
    assert counts(bigquery, table) == {DAY_2: 5}
    found = bigquery.client().get_job(job_id)
    assert (found.state, found.output_rows) == ("DONE", 5)


def test_truncate_by_decorator_replaces_that_partition_only(bigquery: BigQueryServer) -> None:
    table = make(bigquery)
    for day in (2, 3):
        load(bigquery, table, rows_of(day, range(5)))
    load(bigquery, f"{table}$20261102", rows_of(2, range(7, 9)), write="WRITE_TRUNCATE")
    assert counts(bigquery, table) == {DAY_2: 2, DAY_3: 5}
    load(bigquery, f"{table}$20261102", rows_of(2, range(0)), write="WRITE_TRUNCATE")
    assert counts(bigquery, table) == {DAY_3: 5}


def test_a_partition_refuses_rows_of_another_and_stays_as_it_was(bigquery: BigQueryServer) -> None:
    table = make(bigquery)
    load(bigquery, table, rows_of(2, range(5)))
    mixed = pa.concat_tables([rows_of(2, range(5)), rows_of(3, range(1))])
    for wrong in (mixed, rows_of(None, range(1))):
        with pytest.raises(exceptions.BadRequest, match="different partitions"):
            load(bigquery, f"{table}$20261102", wrong, write="WRITE_TRUNCATE")
    assert counts(bigquery, table) == {DAY_2: 5}


def test_null_has_a_partition_of_its_own(bigquery: BigQueryServer) -> None:
    table = make(bigquery)
    load(bigquery, table, pa.concat_tables([rows_of(2, range(5)), rows_of(None, range(3))]))
    load(bigquery, f"{table}$__NULL__", rows_of(None, range(1)), write="WRITE_TRUNCATE")
    assert counts(bigquery, table) == {None: 1, DAY_2: 5}
    with pytest.raises(exceptions.BadRequest, match="different partitions"):
        load(bigquery, f"{table}$__NULL__", rows_of(2, range(1)))


def test_write_empty_fills_an_empty_partition_once(bigquery: BigQueryServer) -> None:
    table = make(bigquery)
    load(bigquery, table, rows_of(3, range(5)))
    load(bigquery, f"{table}$20261102", rows_of(2, range(5)), write="WRITE_EMPTY")
    with pytest.raises(exceptions.Conflict):
        load(bigquery, f"{table}$20261102", rows_of(2, range(5)), write="WRITE_EMPTY")
    assert counts(bigquery, table) == {DAY_2: 5, DAY_3: 5}


def test_hours_months_and_integer_ranges_have_decorators(bigquery: BigQueryServer) -> None:
    from google.cloud import bigquery as google

    for unit, field, good, wrong in (("HOUR", "at", "2026110201", "2026110202"), ("MONTH", "day", "202611", "202612")):
        table = make(bigquery, time_partitioning=google.TimePartitioning(type_=unit, field=field))
        load(bigquery, f"{table}${good}", rows_of(2, range(5)), write="WRITE_TRUNCATE")
        with pytest.raises(exceptions.BadRequest, match="different partitions"):
            load(bigquery, f"{table}${wrong}", rows_of(2, range(5)), write="WRITE_TRUNCATE")
        assert counts(bigquery, table) == {DAY_2: 5}
    ranges = google.RangePartitioning(field="id", range_=google.PartitionRange(start=0, end=100, interval=10))
    table = make(bigquery, range_partitioning=ranges)
    load(bigquery, table, rows_of(2, range(30)))
    load(bigquery, f"{table}$10", rows_of(2, range(10, 12)), write="WRITE_TRUNCATE")
    assert counts(bigquery, table) == {DAY_2: 22}
    with pytest.raises(exceptions.BadRequest, match="different partitions"):
        load(bigquery, f"{table}$10", rows_of(2, range(20, 21)))


def test_what_no_partition_takes_has_one_of_its_own(bigquery: BigQueryServer) -> None:
    from google.cloud import bigquery as google

    ranges = google.RangePartitioning(field="id", range_=google.PartitionRange(start=0, end=10, interval=5))
    table = make(bigquery, range_partitioning=ranges)
    load(bigquery, table, rows_of(2, range(15)))
    load(bigquery, f"{table}$__UNPARTITIONED__", rows_of(2, range(10, 11)), write="WRITE_TRUNCATE")
    assert counts(bigquery, table) == {DAY_2: 11}
    with pytest.raises(exceptions.BadRequest, match="different partitions"):
        load(bigquery, f"{table}$__UNPARTITIONED__", rows_of(2, range(9, 11)))
    days = make(bigquery)
    early = rows_of(2, range(3)).set_column(1, "day", pa.array([dt.date(1959, 12, 31)] * 3, pa.date32()))
    load(bigquery, f"{days}$__UNPARTITIONED__", early, write="WRITE_TRUNCATE")
    with pytest.raises(exceptions.BadRequest, match="Invalid DAY partition id"):
        load(bigquery, f"{days}$19591231", early)
    assert counts(bigquery, days) == {dt.date(1959, 12, 31): 3}


@pytest.mark.parametrize("partition", ["202611", "20261399", "12", "2026110201"])
def test_a_partition_id_of_another_unit_is_refused(bigquery: BigQueryServer, partition: str) -> None:
    with pytest.raises(exceptions.BadRequest, match="Invalid DAY partition id"):
        load(bigquery, f"{make(bigquery)}${partition}", rows_of(2, range(5)))


def test_a_query_and_a_copy_write_to_a_partition_and_read_whole_tables_only(bigquery: BigQueryServer) -> None:
    from google.cloud import bigquery as google

    table, source = make(bigquery), make(bigquery)
    load(bigquery, table, pa.concat_tables([rows_of(2, range(5)), rows_of(3, range(5))]))
    load(bigquery, source, rows_of(2, range(2)))
    config = google.QueryJobConfig(destination=f"{table}$20261102", write_disposition="WRITE_TRUNCATE")
    bigquery.client().query(f"SELECT * FROM `{source}` WHERE id = 1", job_config=config).result(timeout=60)
    assert counts(bigquery, table) == {DAY_2: 1, DAY_3: 5}
    truncate = google.CopyJobConfig(write_disposition="WRITE_TRUNCATE")
    bigquery.client().copy_table(source, f"{table}$20261102", job_config=truncate).result(timeout=60)
    assert counts(bigquery, table) == {DAY_2: 2, DAY_3: 5}
    with pytest.raises(Exception, match="reads no single partition"):
        bigquery.client().copy_table(f"{table}$20261102", f"{source}_copy").result(timeout=60, retry=None)


def test_a_missing_required_column_and_a_wrong_type_are_refused(bigquery: BigQueryServer) -> None:
    table = make(bigquery)
    for wrong in (rows_of(2, range(5)).drop_columns(["id"]), rows_of(2, range(5)).set_column(0, "id", pa.array(["x"] * 5))):
        with pytest.raises(exceptions.BadRequest):
            load(bigquery, table, wrong)
    assert counts(bigquery, table) == {}


class Writing:
    """A stream of the Storage Write API, with requests made by hand."""

    def __init__(self, bigquery: BigQueryServer, table: str, kind: str) -> None:
        import grpc
        from google.cloud import bigquery_storage_v1 as storage

        transport = storage.BigQueryWriteClient.get_transport_class("grpc")(channel=grpc.insecure_channel(bigquery.grpc))
        self.client, self.types = storage.BigQueryWriteClient(transport=transport), storage.types
        project, dataset, name = table.split(".")
        self.parent = f"projects/{project}/datasets/{dataset}/tables/{name}"
        made = self.types.WriteStream(type_=kind)
        self.name = self.client.create_write_stream(parent=self.parent, write_stream=made).name

    def append(self, rows: pa.Table, offset: int) -> int:
        """The error's code, 0 for none."""
        [batch] = rows.combine_chunks().to_batches()
        arrow = self.types.AppendRowsRequest.ArrowData(
            writer_schema=self.types.ArrowSchema(serialized_schema=rows.schema.serialize().to_pybytes()),
            rows=self.types.ArrowRecordBatch(serialized_record_batch=batch.serialize().to_pybytes()),
        )
        request = self.types.AppendRowsRequest(write_stream=self.name, offset=offset, arrow_rows=arrow)
        try:
            [response] = self.client.append_rows(iter([request]), timeout=30)
        except exceptions.GoogleAPICallError as error:
            return int(error.grpc_status_code.value[0])  # type: ignore[union-attr]
        return int(response.error.code)

    def commit(self) -> list[Any]:
        request = self.types.BatchCommitWriteStreamsRequest(parent=self.parent, write_streams=[self.name])
        return list(self.client.batch_commit_write_streams(request).stream_errors)


ALREADY_EXISTS, OUT_OF_RANGE = 6, 11


def test_an_offset_that_was_written_and_one_that_leaves_a_gap_are_refused(bigquery: BigQueryServer) -> None:
    table = make(bigquery)
    stream = Writing(bigquery, table, "COMMITTED")
    sent = [stream.append(rows_of(2, range(5)), offset) for offset in (0, 0, 9, 5)]
    assert sent == [0, ALREADY_EXISTS, OUT_OF_RANGE, 0]
    assert counts(bigquery, table) == {DAY_2: 10}


def test_a_pending_stream_shows_nothing_until_it_is_finalized_and_committed_once(bigquery: BigQueryServer) -> None:
    table = make(bigquery)
    stream = Writing(bigquery, table, "PENDING")
    assert stream.append(rows_of(2, range(5)), 0) == 0
    assert stream.commit(), "a stream that was not finalized was committed"
    assert counts(bigquery, table) == {}
    stream.client.finalize_write_stream(name=stream.name)
    assert stream.append(rows_of(2, range(5)), 5) != 0
    assert stream.commit() == []
    assert counts(bigquery, table) == {DAY_2: 5}
    assert stream.commit(), "a stream was committed twice"
    assert counts(bigquery, table) == {DAY_2: 5}


def test_after_kill_the_same_ports_serve_the_same_tables(own_bigquery: BigQueryServer) -> None:
    table, job_id = make(own_bigquery), uuid.uuid4().hex
    load(own_bigquery, table, rows_of(2, range(5)), job_id=job_id)
    own_bigquery.kill()
    with pytest.raises(Exception, match=r"(?i)refused|max retries"):
        own_bigquery.client().get_job(job_id, retry=None, timeout=1)
    own_bigquery.start()
    assert counts(own_bigquery, table) == {DAY_2: 5}
    assert own_bigquery.client().get_job(job_id).output_rows == 5


def test_a_second_installation_changes_nothing_and_asks_nobody() -> None:
    assert installed_again("install_bigquery.sh", installed()) == installed()
