"""The calls of the Storage Write API, and what its answers mean. No Beam.

Calls are made on the bare gRPC stubs and messages: Google's client wraps every message in Python objects.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote

import grpc

from beam_pipelines.bigquery_service import channel, storage_types
from beam_pipelines.errors import RunError, SinkError
from beam_pipelines.pubsub_service import LOG_IN
from beam_pipelines.sinks.bigquery_schema import Field

ANSWER_S = 60.0
TRANSIENT = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED", "UNKNOWN", "CANCELLED"})
EXTRA_FIELDS = "SCHEMA_MISMATCH_EXTRA_FIELDS"
_LOST = frozenset({"STREAM_NOT_FOUND", "STREAM_FINALIZED", "INVALID_STREAM_STATE", "STREAM_ALREADY_COMMITTED"})
_LOST_WORDS = ("invalid stream name", "stream is finalized", "stream not found")  # of servers that give no storage code
_DO = {
    "NOT_FOUND": "It was deleted while the stream ran, or the endpoint is another project's; a restart makes it again.",
    "PERMISSION_DENIED": "Give this account the role roles/bigquery.dataEditor on the dataset.",
    "UNAUTHENTICATED": LOG_IN,
}
_DEFAULT = "_default"
_NO_MORE = object()


class Answer(NamedTuple):
    """What came back for a request: `code` is the name of a gRPC status, `OK` for none; `storage` BigQuery's own; `rows` the refused rows' reasons.

    `broken`: no answer came; whether the rows are stored is not known. `schema`: the table has new columns.
    """

    code: str = "OK"
    message: str = ""
    storage: str = ""
    rows: dict[int, str] = {}
    broken: bool = False
    schema: tuple[Field, ...] = ()

    @property
    def stored(self) -> bool:
        return self.code == "OK"

    @property
    def lost(self) -> bool:
        """Whether the stream that was written to is no more."""
        return self.storage in _LOST or any(word in self.message.lower() for word in _LOST_WORDS)


def refusal(table: str, answer: Answer) -> SinkError:
    """What to tell the user about an error that does not pass."""
    what = "there is no such table" if answer.code == "NOT_FOUND" else f"{answer.code}: {answer.message.rstrip('.')}"
    return SinkError(f"{table}: {what}; expected a table to append to.", hint=_DO.get(answer.code, ""))


class Writing:
    """The calls for one table. Errors of calls are `grpc.RpcError`; `answer_of` reads them.

    Raises SpecError where google-cloud-bigquery-storage is not installed, `error` where there are no credentials.
    """

    def __init__(self, table: str, endpoint: str, *, who: str, error: type[RunError] = SinkError, answer_s: float = ANSWER_S) -> None:
        project, dataset, name = table.rsplit(".", 2)
        self.path = f"projects/{project}/datasets/{dataset}/tables/{name}"
        self.endpoint, self.types, self._answer_s = endpoint, storage_types(who), answer_s
        self._channel = channel(endpoint, who=who, error=error)
        self.request = self.types.AppendRowsRequest.pb()
        self._append = self._stub("stream_stream", "AppendRows", self.types.AppendRowsResponse)
        self._calls = {
            name: self._stub("unary_unary", name, answer)
            for name, answer in (
                ("CreateWriteStream", self.types.WriteStream), ("FlushRows", self.types.FlushRowsResponse),
                ("FinalizeWriteStream", self.types.FinalizeWriteStreamResponse),
            )
        }  # fmt: skip

    @property
    def default(self) -> str:
        """The table's default stream: rows are visible at once, and have no offsets."""
        return f"{self.path}/streams/{_DEFAULT}"

    def create(self) -> str:
        """A new stream whose rows have offsets and become visible by `flush`."""
        stream = self.types.WriteStream.pb()(type_=self.types.WriteStream.Type.BUFFERED)
        made = self._call(
            "CreateWriteStream", self.types.CreateWriteStreamRequest.pb()(parent=self.path, write_stream=stream), "parent", self.path
        )
        return str(made.name)

    def flush(self, stream: str, last: int) -> None:
        """Makes the rows of a stream visible, up to and with offset `last`; all or none."""
        request = self.types.FlushRowsRequest.pb()(write_stream=stream)
        request.offset.value = last
        self._call("FlushRows", request, "write_stream", stream)

    def finalize(self, stream: str) -> None:
        """Ends a stream; what of it was not flushed is never seen."""
        self._call("FinalizeWriteStream", self.types.FinalizeWriteStreamRequest.pb()(name=stream), "name", stream, timeout_s=5.0)

    def open(self, stream: str) -> Connection:
        """A connection to a stream, made by its first request."""
        return Connection(self._append, self._routed("write_stream", stream), self.types, self._answer_s)

    def close(self) -> None:
        """Ends all connections and calls under way."""
        self._channel.close()

    def _call(self, name: str, request: Any, key: str, value: str, timeout_s: float | None = None) -> Any:
        return self._calls[name](request, timeout=timeout_s or self._answer_s, metadata=self._routed(key, value))

    def _stub(self, kind: str, name: str, answer: Any) -> Any:
        make: Callable[..., Any] = getattr(self._channel, kind)
        return make(
            f"/google.cloud.bigquery.storage.v1.BigQueryWrite/{name}",
            request_serializer=_serialized,
            response_deserializer=answer.pb().FromString,
        )

    def _routed(self, key: str, value: str) -> tuple[tuple[str, str], ...]:
        return (("x-goog-request-params", f"{key}={quote(value, safe='')}"),)


class Connection:
    """Requests in one direction, answers in the same order in the other. Not for several threads."""

    def __init__(self, append: Any, metadata: Any, types: Any, answer_s: float) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers = append(_sent(self._requests), metadata=metadata)
        weakref.finalize(self, self._requests.put, _NO_MORE)  # of a bundle that failed nobody closes it: gRPC's thread would wait for ever
        self._types, self._answer_s = types, answer_s

    def send(self, request: bytes) -> None:
        """Sends a serialized AppendRowsRequest, soon."""
        self._requests.put(request)

    def receive(self) -> Answer:
        """The answer to the oldest request that has none yet."""
        late = threading.Timer(self._answer_s, self._answers.cancel)  # a deadline of the call would end a connection that is merely idle
        late.daemon = True
        late.start()
        try:
            return _read(next(self._answers), self._types)
        except StopIteration:
            return Answer("UNAVAILABLE", "the server ended the connection", broken=True)
        except grpc.RpcError as error:
            return answer_of(error, self._types)
        finally:
            late.cancel()

    def close(self) -> None:
        """Ends the connection; safe to call twice."""
        self._requests.put(_NO_MORE)
        with suppress(Exception):
            self._answers.cancel()


def _sent(requests: queue.SimpleQueue[Any]) -> Iterator[bytes]:
    while (request := requests.get()) is not _NO_MORE:
        yield request


def answer_of(error: grpc.RpcError, types: Any) -> Answer:
    """A failed call as an answer. Whether the service did what was asked is not known."""
    details = ""
    with suppress(Exception):
        from google.rpc import status_pb2

        packed = next((value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"), None)
        details = _storage_code(status_pb2.Status.FromString(packed).details, types) if packed else ""
    return Answer(str(error.code().name), str(error.details() or ""), details, broken=True)


def _read(response: Any, types: Any) -> Answer:
    schema = _schema(response.updated_schema, types) if response.HasField("updated_schema") else ()
    if not response.HasField("error") or not response.error.code:
        return Answer(schema=schema)
    name = next((c.name for c in grpc.StatusCode if c.value[0] == response.error.code), "UNKNOWN")
    rows = {int(e.index): e.message for e in response.row_errors}
    return Answer(name, response.error.message, _storage_code(response.error.details, types), rows, schema=schema)


def _storage_code(details: Any, types: Any) -> str:
    for packed in details:
        if packed.type_url.endswith("google.cloud.bigquery.storage.v1.StorageError"):
            return str(types.StorageError.StorageErrorCode(types.StorageError.pb().FromString(packed.value).code).name)
    return ""


def _schema(found: Any, types: Any) -> tuple[Field, ...]:
    """Columns in the words of the REST API; the Storage API has some of its own."""
    kinds, modes = types.TableFieldSchema.Type, types.TableFieldSchema.Mode
    words = {"INT64": "INTEGER", "DOUBLE": "FLOAT", "BOOL": "BOOLEAN", "STRUCT": "RECORD"}

    def field(one: Any) -> Field:
        name = kinds(one.type_).name
        mode = modes(one.mode).name if one.mode else "NULLABLE"
        return Field(
            one.name, words.get(name, name), mode, tuple(field(f) for f in one.fields), int(one.precision), int(one.scale), one.description
        )

    return tuple(field(one) for one in found.fields)


def _serialized(message: Any) -> bytes:
    return message if isinstance(message, bytes) else bytes(message.SerializeToString())
