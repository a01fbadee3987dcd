"""A server between the product and the local BigQuery server, which passes everything on but what a test tells it to spoil.

with faulty(bigquery) as faults:
    faults.lose("AppendRows")                                    # the next one is done, and its answer never comes
    faults.refuse("FlushRows", grpc.StatusCode.ABORTED, times=2)   # the next two are not passed on
    faults.answer(response)                                      # the next append is not passed on, and gets this answer
    faults.seen                                                  # the names of all calls, in order
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from tests.cloud.bigquery_server import HOST, BigQueryServer

SERVICE = "google.cloud.bigquery.storage.v1.BigQueryWrite"
UNARY = ("CreateWriteStream", "GetWriteStream", "FinalizeWriteStream", "BatchCommitWriteStreams", "FlushRows")


@dataclass
class Faults:
    """What to spoil next, by the name of the call; `before` is called with the name of each call before it is passed on."""

    address: str = ""
    seen: list[str] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    before: Callable[[str], None] = lambda _: None
    rule: Callable[[bytes], Any] = lambda _: None  # of an append: the answer it gets, None to pass it on
    _plans: dict[str, list[Any]] = field(default_factory=dict)

    def lose(self, name: str, *, after: int = 0) -> None:
        """The call after so many good ones is done, and its answer is lost."""
        self._plans.setdefault(name, []).extend([None] * after + ["lose"])

    def refuse(self, name: str, code: grpc.StatusCode, *, times: int = 1) -> None:
        self._plans.setdefault(name, []).extend([code] * times)

    def answer(self, response: Any) -> None:
        """What the next append gets in place of being done; an AppendRowsResponse."""
        self._plans.setdefault("AppendRows", []).append(response)

    def next(self, name: str) -> Any:
        self.seen.append(name)
        self.before(name)
        plan = self._plans.get(name)
        return plan.pop(0) if plan else None


@contextmanager
def faulty(bigquery: BigQueryServer) -> Iterator[Faults]:
    """Such a server in this process; `faults.address` is where it listens."""
    with ThreadPoolExecutor(16) as pool, grpc.insecure_channel(bigquery.grpc, options=[("grpc.max_receive_message_length", -1)]) as channel:
        server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1)])
        faults = Faults()
        handlers = {name: grpc.unary_unary_rpc_method_handler(_unary(channel, name, faults)) for name in UNARY}
        handlers["AppendRows"] = grpc.stream_stream_rpc_method_handler(_appends(channel, faults))
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        faults.address = f"{HOST}:{server.add_insecure_port(f'{HOST}:0')}"
        server.start()
        try:
            yield faults
        finally:
            server.stop(None).wait(5)


def _unary(channel: grpc.Channel, name: str, faults: Faults) -> Any:
    call = channel.unary_unary(f"/{SERVICE}/{name}")

    def passed_on(request: bytes, context: grpc.ServicerContext) -> Any:
        fault = faults.next(name)
        if isinstance(fault, grpc.StatusCode):
            context.abort(fault, "a fault of the test")
        try:
            answer = call(request, timeout=30)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        if fault == "lose":
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return answer

    return passed_on


def _appends(channel: grpc.Channel, faults: Faults) -> Any:
    call = channel.stream_stream(f"/{SERVICE}/AppendRows")

    def passed_on(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        first: bytes = b""  # holds the schema: whoever follows a request that was not passed on needs it
        for request in requests:
            first = first or request
            faults.requests.append(request)
            planned = faults.next("AppendRows")
            fault = faults.rule(request) if planned is None else planned  # an answer that says nothing is false
            if isinstance(fault, grpc.StatusCode):
                context.abort(fault, "a fault of the test")
            if fault is not None and fault != "lose":
                yield fault if isinstance(fault, bytes) else type(fault).serialize(fault)
                continue
            try:
                [answer] = call(iter([_whole(request, first)]), timeout=30)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
            if fault == "lose":
                context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
            yield answer

    return passed_on


def _whole(request: bytes, first: bytes) -> bytes:
    """A request with what only the connection's first one says: the stream and the schema."""
    from google.cloud.bigquery_storage_v1 import types

    make = types.AppendRowsRequest.pb()
    mine, theirs = make.FromString(request), make.FromString(first)
    if not mine.write_stream:
        mine.write_stream = theirs.write_stream
        mine.arrow_rows.writer_schema.CopyFrom(theirs.arrow_rows.writer_schema)
    return bytes(mine.SerializeToString())
