"""A gate before a local gRPC server: it passes calls on as they are, but those that a test tells it to spoil.

gate.refuse("FlushRows", StatusCode.ABORTED, times=2)     # the next two are not passed on
gate.refuse("ReadRows", StatusCode.UNAVAILABLE, after=3)  # the next such stream breaks after three messages
gate.lose("AppendRows")                                   # the next one is done, and its answer never comes; of a stream that is read, no message
gate.answer(response)                                     # the next append is not passed on, and gets this answer
gate.requests["AppendRows"]                               # what came, as bytes, in order
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NoReturn

import grpc

from tests.server_process import HOST

_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_ANSWER_S = 60.0


@dataclass(frozen=True)
class Refusal:
    """A status in place of an answer; of a stream that is read, after so many messages."""

    code: grpc.StatusCode
    said: str
    after: int = 0


@dataclass(frozen=True)
class Lost:
    """A call that is done, and whose answer is lost."""


@dataclass(eq=False)
class Gate:
    """What to spoil next, by the name of the call, which counts each append of a stream as one.

    `requests` are all that came, refused ones too. `before` is called with the name of each call before it is passed on or spoiled, `after` when it was done and before
    its answer is given. `rule` gives the answer that an append gets, None to pass it on; what was planned goes before it.
    """

    address: str
    requests: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    before: Callable[[str], object] = lambda name: None
    after: Callable[[str], object] = lambda name: None
    rule: Callable[[bytes], Any] = lambda request: None
    _plans: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def refuse(self, name: str, code: grpc.StatusCode, said: str = "said so", *, times: int = 1, after: int = 0) -> None:
        self._plans[name] += [Refusal(code, said, after)] * times

    def lose(self, name: str, *, after: int = 0) -> None:
        """The call after so many good ones is done, and its answer is lost."""
        self._plans[name] += [None] * after + [Lost()]

    def answer(self, response: Any) -> None:
        """What the next append gets in place of being done; an AppendRowsResponse."""
        self._plans["AppendRows"].append(response)

    def next(self, name: str, request: bytes) -> Any:
        """What becomes of a call that came: a Refusal, Lost, an answer, None where it is passed on."""
        self.requests[name].append(request)
        self.before(name)
        with self._lock:  # calls come in several threads
            return self._plans[name].pop(0) if self._plans[name] else None


@contextmanager
def running_gate(target: str) -> Iterator[Gate]:
    """A gate in this process before the server at `target` ("host:port")."""
    with ThreadPoolExecutor(16) as pool, grpc.insecure_channel(target, options=_UNLIMITED) as behind:
        server = grpc.server(pool, options=_UNLIMITED)
        gate = Gate(f"{HOST}:{server.add_insecure_port(f'{HOST}:0')}")
        server.add_generic_rpc_handlers([_Handler(gate, behind)])
        server.start()
        try:
            yield gate
        finally:
            server.stop(None).wait(5)


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, gate: Gate, behind: grpc.Channel) -> None:
        self._gate, self._behind = gate, behind

    def service(self, details: Any) -> Any:
        path, name = details.method, details.method.rpartition("/")[2]
        if name == "ReadRows":
            return grpc.unary_stream_rpc_method_handler(_read(self._gate, self._behind.unary_stream(path), name))
        if name == "AppendRows":
            return grpc.stream_stream_rpc_method_handler(_appended(self._gate, self._behind.stream_stream(path), name))
        return grpc.unary_unary_rpc_method_handler(_answered(self._gate, self._behind.unary_unary(path), name))


def _answered(gate: Gate, call: Any, name: str) -> Callable[[bytes, Any], bytes]:
    def answer(request: bytes, context: Any) -> bytes:
        plan = gate.next(name, request)
        if isinstance(plan, Refusal):
            _refuse(context, plan)
        with _errors_of(context):
            found: bytes = call(request, timeout=_ANSWER_S, metadata=context.invocation_metadata())
        gate.after(name)
        if isinstance(plan, Lost):
            _lose(context)
        return found

    return answer


def _read(gate: Gate, call: Any, name: str) -> Callable[[bytes, Any], Iterator[bytes]]:
    def messages(request: bytes, context: Any) -> Iterator[bytes]:
        plan = gate.next(name, request)
        with _errors_of(context):
            found = call(request, metadata=context.invocation_metadata())
            if isinstance(plan, Lost):
                deque(found, maxlen=0)
            else:
                yield from islice(found, plan.after if plan else None)
        if isinstance(plan, Lost):
            _lose(context)
        if plan:
            _refuse(context, plan)

    return messages


def _appended(gate: Gate, call: Any, name: str) -> Callable[[Iterator[bytes], Any], Iterator[bytes]]:
    def answers(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        first = b""  # holds the schema: whoever follows a request that was not passed on needs it
        for request in requests:
            first = first or request
            planned = gate.next(name, request)
            plan = gate.rule(request) if planned is None else planned  # an answer that says nothing is false
            if isinstance(plan, Refusal):
                _refuse(context, plan)
            if plan is not None and not isinstance(plan, Lost):
                yield type(plan).serialize(plan)
                continue
            with _errors_of(context):
                [found] = call(iter([_whole(request, first)]), timeout=_ANSWER_S)
            gate.after(name)
            if isinstance(plan, Lost):
                _lose(context)
            yield found

    return answers


@contextmanager
def _errors_of(context: Any) -> Iterator[None]:
    """The server's errors are the gate's."""
    try:
        yield
    except grpc.RpcError as error:
        context.abort(error.code(), error.details())


def _refuse(context: Any, plan: Refusal) -> NoReturn:
    context.abort(plan.code, plan.said)
    raise AssertionError


def _lose(context: Any) -> NoReturn:
    _refuse(context, Refusal(grpc.StatusCode.UNAVAILABLE, "the answer was lost"))


def _whole(request: bytes, first: bytes) -> bytes:
    """A request with what only the connection's first one says: the stream and the schema."""
    from google.cloud.bigquery_storage_v1 import types

    make = types.AppendRowsRequest.pb()
    mine, theirs = make.FromString(request), make.FromString(first)
    if not mine.write_stream:
        mine.write_stream = theirs.write_stream
        mine.arrow_rows.writer_schema.CopyFrom(theirs.arrow_rows.writer_schema)
    return bytes(mine.SerializeToString())
