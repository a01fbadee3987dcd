"""A read session of BigQuery: a table, or the answer of a query, as it was at one moment, in streams that can be read again. Loads no Beam.

    query ─▶ query job, its id made of run and text ─▶ its table ┐
    table ───────────────────────────────────────────────────────┴▶ session ─▶ stream 0, 1, 2, … ─▶ Arrow batches

A session shows one version of the table, whatever is written meanwhile, for six hours. Within it a row has one place, (stream, offset), however often it is
read; another session may lay the same rows out otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa

from beam_pipelines.bigquery_service import broken_off, channel, client, patiently, said, storage_types, where, where_grpc
from beam_pipelines.errors import RunError, SourceError, SpecError, TransientError, nearest
from beam_pipelines.pubsub_service import back_off_s
from beam_pipelines.spec.sources import BigQuerySource, BigQueryTable

PREFIX = "bigquery:"
"""What the `_source` of rows from BigQuery begins with."""
PATIENCE_S = 120.0  # how long BigQuery may fail without a row in between
_CALL_S = 300.0  # a stream that is silent for so long is asked for again at its offset
_JOB_TRIES = 5  # of a query that BigQuery itself broke off
_SERVICE = "/google.cloud.bigquery.storage.v1.BigQueryRead/"
_TRANSIENT = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED"})
_OVER = frozenset({"NOT_FOUND", "FAILED_PRECONDITION"})
_DROPPED = ("rst_stream", "rst stream", "eos on data frame", "no status received", "stream removed", "goaway")
"""In the text of INTERNAL and UNKNOWN: the connection broke, the service did not."""
_ROLES = (
    "This account needs roles/bigquery.dataViewer on the table, and roles/bigquery.readSessionUser and jobUser on the project that pays."
)


@dataclass(frozen=True)
class Session:
    """What is read: `table` (a resource name) in `streams`, whose batches have the Arrow `schema`. `opened` is when, by this machine's clock."""

    who: str
    grpc: str
    table: str
    schema: pa.Schema
    streams: tuple[str, ...]
    opened: datetime


class Asked(NamedTuple):
    """What of a table a session shows: `columns` (none: all), rows for which all `conditions` hold, in at most so many `streams` (0: BigQuery's choice)."""

    columns: Sequence[str] = ()
    conditions: Sequence[str] = ()
    streams: int = 0


def open_session(
    source: BigQueryTable, asked: Callable[[pa.Schema], Asked] | Asked, *, who: str, job: str, patience_s: float = PATIENCE_S
) -> Session:
    """A session over the table, or over the answer of the query, which is run under an id made of `job` and its text: the same `job` gets the same answer.

    `asked` may depend on the schema of the whole table, which is then looked up first. `who` begins the sentences of errors. Raises SpecError where BigQuery does
    not understand the query or condition, SourceError where there is no such table or no permission, TransientError where it does not answer for `patience_s`.
    """
    at = f"{who}: {source.name}"
    storage_types(at)
    table = source.bigquery if source.query is None else _answer(source, at, job, patience_s)
    project, dataset, name = table.rsplit(".", 2)
    resource = f"projects/{project}/datasets/{dataset}/tables/{name}"
    grpc_endpoint = where_grpc(source.grpc_endpoint)
    with channel(grpc_endpoint, who=at, error=SourceError) as connection:
        given = [source.where] if source.where is not None else []

        def opened(wanted: Asked) -> Session:
            conditions = [*given, *wanted.conditions]
            made = _created(connection, source.payer, resource, wanted._replace(conditions=conditions), at, patience_s)
            schema = pa.ipc.read_schema(pa.py_buffer(made.arrow_schema.serialized_schema))
            return Session(at, grpc_endpoint, resource, schema, tuple(stream.name for stream in made.streams), datetime.now(UTC))

        return opened(asked if isinstance(asked, Asked) else asked(opened(Asked(streams=1)).schema))


def _created(connection: Any, payer: str, table: str, asked: Asked, at: str, patience_s: float) -> Any:
    from google.cloud.bigquery_storage_v1.types import CreateReadSessionRequest, DataFormat, ReadSession

    restriction = " AND ".join(f"({condition})" for condition in asked.conditions)
    request = CreateReadSessionRequest(
        parent=f"projects/{payer}",
        read_session=ReadSession(
            table=table,
            data_format=DataFormat.ARROW,
            read_options=ReadSession.TableReadOptions(selected_fields=list(asked.columns), row_restriction=restriction),
        ),
        max_stream_count=asked.streams,
    )
    call = connection.unary_unary(
        f"{_SERVICE}CreateReadSession",
        request_serializer=CreateReadSessionRequest.serialize,
        response_deserializer=ReadSession.deserialize,
    )
    trouble = _Trouble(at, patience_s)
    while True:
        try:
            return call(request, timeout=60.0, metadata=_routing("read_session.table", table))
        except Exception as error:
            trouble.pass_or_raise(error)


@dataclass(frozen=True)
class Reader:
    """Reads streams of a session by one connection; closes it when it is left."""

    session: Session
    connection: Any
    patience_s: float = PATIENCE_S

    def read(self, stream: str) -> Iterator[pa.RecordBatch]:
        """All rows of the stream, from its first one on, each once: where the connection breaks, the stream is asked for again at its offset."""
        from google.cloud.bigquery_storage_v1.types import ReadRowsRequest, ReadRowsResponse

        message = ReadRowsRequest.pb()  # protobuf's own classes: the wrappers copy every field they are asked for
        call = self.connection.unary_stream(
            f"{_SERVICE}ReadRows",
            request_serializer=message.SerializeToString,
            response_deserializer=ReadRowsResponse.pb().FromString,
        )
        trouble = _Trouble(self.session.who, self.patience_s, reading=True)
        offset = 0
        while True:
            responses = call(message(read_stream=stream, offset=offset), timeout=_CALL_S, metadata=_routing("read_stream", stream))
            try:
                for response in responses:
                    batch = pa.ipc.read_record_batch(pa.py_buffer(response.arrow_record_batch.serialized_record_batch), self.session.schema)
                    offset += batch.num_rows
                    trouble.over()
                    yield batch
                return
            except _rpc_error() as error:
                trouble.pass_or_raise(error)
            finally:
                responses.cancel()


def changed(source: BigQueryTable, *, who: str) -> str | None:
    """What differs when the table was written to; None for a query, of which only its answer tells. Raises as `open_session`."""
    if source.query is not None:
        return None
    at = f"{who}: {source.name}"
    service = client(source.payer, where(source.endpoint), who=at, error=SourceError)
    found = _patiently(lambda: service.get_table(source.bigquery, retry=None, timeout=60), at, PATIENCE_S)
    return f"{found.modified} {found.num_rows} {found.num_bytes}"


def read_table(source: BigQueryTable, *, who: str, job: str, patience_s: float = PATIENCE_S) -> pa.Table:
    """All rows of the table or answer, with its own columns. Raises what `open_session` raises."""
    session = open_session(source, Asked(), who=who, job=job, patience_s=patience_s)
    read = reader(session, patience_s=patience_s)
    try:
        batches = [as_read(batch) for stream in session.streams for batch in read.read(stream)]
    finally:
        read.connection.close()
    return pa.Table.from_batches(batches, batches[0].schema if batches else session.schema)


def reader(session: Session, *, patience_s: float = PATIENCE_S) -> Reader:
    """What reads the session's streams, in whatever process; `reader.connection.close()` ends it."""
    return Reader(session, channel(session.grpc, who=session.who, error=SourceError), patience_s)


class _Trouble:
    """Failures in a row: waits after one that passes, raises what is to be said of another, or after too long."""

    def __init__(self, at: str, patience_s: float, *, reading: bool = False) -> None:
        self._at, self._patience_s, self._reading = at, patience_s, reading
        self.over()

    def over(self) -> None:
        self._failures, self._since_s = 0, 0.0

    def pass_or_raise(self, error: Exception) -> None:
        code, said = _status(error)
        if not _passes(code, said):
            raise (_lost if self._reading and code in _OVER else _refused)(self._at, code, said) from error
        now = time.monotonic()
        self._since_s = self._since_s if self._failures else now
        self._failures += 1
        if now - self._since_s >= self._patience_s:
            raise TransientError(
                f"{self._at}: BigQuery has not answered for {self._patience_s:.0f} s: {code}: {said}.", hint="Run again later."
            ) from error
        time.sleep(back_off_s(self._failures))


def _status(error: Exception) -> tuple[str, str]:
    if not isinstance(error, _rpc_error()):
        raise error
    told: Any = error
    return str(told.code().name), str(told.details() or "").strip().split("\n", 1)[0].rstrip(".")


def _rpc_error() -> type[Exception]:
    import grpc

    kind: type[Exception] = grpc.RpcError
    return kind


def _passes(code: str, said: str) -> bool:
    return code in _TRANSIENT or (code in ("INTERNAL", "UNKNOWN") and any(sign in said.lower() for sign in _DROPPED))


def _refused(at: str, code: str, said: str) -> RunError | SpecError:
    if code == "INVALID_ARGUMENT":
        return SpecError(
            f"{at}: BigQuery refuses: {said}.",
            hint="Check 'where', 'columns' and 'query'. Views are read by a query: SELECT * FROM the view.",
        )
    if code == "NOT_FOUND":
        return SourceError(f"{at}: there is no such table: {said}.", hint="Check the name PROJECT.DATASET.TABLE.")
    if code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return SourceError(f"{at}: no permission: {said}.", hint=_ROLES)
    return SourceError(f"{at}: BigQuery refuses: {code}: {said}.")


def _lost(at: str, code: str, said: str) -> RunError:
    return TransientError(f"{at}: the read session is over: {said}.", hint="It lasts six hours, and as long as its table. Run again.")


def _routing(field: str, value: str) -> list[tuple[str, str]]:
    """The service finds the region of a request by this header."""
    return [("x-goog-request-params", f"{field}={quote(value, safe='')}")]


def _answer(source: BigQueryTable, at: str, job: str, patience_s: float) -> str:
    """The table that holds the answer of the query: PROJECT.DATASET.TABLE."""
    service = client(source.payer, where(source.endpoint), who=at, error=SourceError, location=source.location)
    planned = check_query(source, at, service=service, patience_s=patience_s)
    location = source.location or planned.location  # outside of the US and the EU, a job is only found where it is
    said = ""
    for attempt in range(_JOB_TRIES):
        text = "\n".join((job, source.bigquery, source.query or "", str(attempt)))
        job_id = f"beam_pipelines_query_{hashlib.sha256(text.encode()).hexdigest()[:40]}"
        asked = _patiently(partial(_begun, service, source.query or "", job_id, location), at, patience_s)
        looks = 0
        while not _patiently(partial(asked.done, retry=None, timeout=60), at, patience_s):
            looks += 1
            time.sleep(back_off_s(looks, longest_s=2.0))
        if not asked.error_result:
            found = asked.destination
            return f"{found.project}.{found.dataset_id}.{found.table_id}"
        said = str(asked.error_result.get("message", "")).split("\n", 1)[0].rstrip(".")
        if not broken_off(asked.error_result):
            raise _refused_job(at, str(asked.error_result.get("reason")), said)
        time.sleep(back_off_s(attempt + 1))
    raise TransientError(f"{at}: BigQuery broke the query off {_JOB_TRIES} times: {said}.", hint="Run again later.")


def check_query(source: BigQueryTable, at: str, *, service: Any = None, patience_s: float = PATIENCE_S) -> Any:
    """The query as a job that is not run. Raises SpecError where BigQuery does not understand it or it is no SELECT, else as `open_session`."""
    asked = service or client(source.payer, where(source.endpoint), who=at, error=SourceError, location=source.location)
    planned = _patiently(partial(_planned, asked, source), at, patience_s)
    if planned.statement_type not in (None, "SELECT"):
        raise SpecError(f"{at}: got a statement of kind {planned.statement_type}; expected one SELECT.", hint="Nothing was run.")
    return planned


def _planned(service: Any, source: BigQueryTable) -> Any:
    """BigQuery tells what kind of statement the query is, and where it would run."""
    from google.cloud.bigquery import QueryJobConfig

    config = QueryJobConfig(dry_run=True)
    return service.query(source.query, job_config=config, location=source.location, retry=None, job_retry=None, timeout=60)


def _begun(service: Any, query: str, job_id: str, location: str | None) -> Any:
    """The job of that id, begun now or before."""
    from google.api_core.exceptions import Conflict, NotFound

    known = {"location": location, "retry": None, "timeout": 60}
    with contextlib.suppress(NotFound):
        return service.get_job(job_id, **known)
    try:
        return service.query(query, job_id=job_id, job_retry=None, **known)
    except Conflict:  # the answer to the first request was lost
        return service.get_job(job_id, **known)


def _patiently(do: Callable[[], Any], at: str, patience_s: float) -> Any:
    def refused(error: Exception) -> Exception:
        return _refused_job(at, str(getattr(error, "code", type(error).__name__)), said(error))

    return patiently(do, at, refused, patience_s=patience_s, hint="Run again later.")


def _refused_job(at: str, reason: str, said: str) -> RunError | SpecError:
    if reason in ("400", "invalid", "invalidQuery"):
        return SpecError(f"{at}: BigQuery does not understand the query: {said}.")
    if reason in ("404", "notFound"):
        return SourceError(f"{at}: there is no such table: {said}.", hint="Check the name PROJECT.DATASET.TABLE.")
    if reason in ("403", "401", "accessDenied"):
        return SourceError(f"{at}: no permission: {said}.", hint=_ROLES)
    return SourceError(f"{at}: the query failed: {reason}: {said}.")


def named(source: BigQuerySource, opened: datetime) -> str:
    """The `_source` of its rows: with `row_id` the table, else the table and when the session was opened, in which alone a position says anything.

    >>> named(BigQuerySource(bigquery="project.lake.orders"), datetime(2026, 11, 29, 15, tzinfo=UTC))
    'bigquery:project.lake.orders@2026-11-29T15:00:00.000000Z'
    """
    if source.row_id is not None:
        return lasting_name(source)
    return f"{PREFIX}{source.name}@{opened.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%S.%fZ')}"


def lasting_name(source: BigQueryTable) -> str:
    """The `_source` of rows that have a `row_id`."""
    return f"{PREFIX}{source.name}"


def as_read(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch as BigQuery sends it with BIGNUMERIC inside of lists and structs as texts, as `plain` has it at the top: DuckDB takes none of 256 bits.

    >>> kind = pa.list_(pa.decimal256(76, 38))
    >>> as_read(pa.RecordBatch.from_arrays([pa.array([[2]], kind)], names=["n"])).schema.field("n").type
    ListType(list<item: string>)
    """
    kinds = [_in_text(field.type) for field in batch.schema]
    if kinds == batch.schema.types:
        return batch
    columns = [column.cast(kind) for column, kind in zip(batch.columns, kinds, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _in_text(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_decimal256(kind):
        return pa.string()
    if pa.types.is_list(kind):
        inner = _in_text(kind.value_type)
        return kind if inner == kind.value_type else pa.list_(kind.value_field.with_type(inner))
    if pa.types.is_struct(kind):
        inner_fields = [kind.field(i).with_type(_in_text(kind.field(i).type)) for i in range(kind.num_fields)]
        return pa.struct(inner_fields)
    return kind


def check_columns(schema: pa.Schema, names: Sequence[str], at: str) -> None:
    """Raises SpecError where the table has no such column: a server may leave it out in silence."""
    for name in names:
        if name.split(".", 1)[0] not in schema.names:
            raise SpecError(f"{at}: unknown column {name!r}; {nearest(name, schema.names)}")
