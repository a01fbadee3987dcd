"""A gate before the local server's Storage API: it passes calls on as they are, and answers some itself as BigQuery does when something is wrong.

gate.refuse("ReadRows", "UNAVAILABLE", after=3)     # the next such call breaks after three messages
gate.refuse("CreateReadSession", "RESOURCE_EXHAUSTED", times=2)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.cloud.bigquery_server import HOST


@dataclass(frozen=True)
class Refusal:
    """A status in place of an answer, after so many messages of a stream."""

    code: str
    said: str
    after: int = 0


@dataclass(eq=False)
class Gate:
    """`requests` are the serialized requests of each method, in order, that came; refused ones too."""

    address: str
    requests: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    _refusals: dict[str, list[Refusal]] = field(default_factory=lambda: defaultdict(list))

    def refuse(self, method: str, code: str, said: str = "said so", *, times: int = 1, after: int = 0) -> None:
        self._refusals[method] += [Refusal(code, said, after)] * times

    def next(self, method: str) -> Refusal | None:
        return self._refusals[method].pop(0) if self._refusals[method] else None


@contextmanager
def running_gate(target: str) -> Iterator[Gate]:
    """A gate before the server at `target` ("host:port")."""
    import grpc

    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(8), options=unlimited)
    gate = Gate(f"{HOST}:{server.add_insecure_port(f'{HOST}:0')}")
    with grpc.insecure_channel(target, options=unlimited) as behind:
        server.add_generic_rpc_handlers([_handler(gate, behind)])
        server.start()
        try:
            yield gate
        finally:
            server.stop(None).wait()


def _handler(gate: Gate, behind: Any) -> Any:
    import grpc

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            method = details.method.rpartition("/")[2]
            if method == "ReadRows":
                return grpc.unary_stream_rpc_method_handler(_streaming(gate, behind.unary_stream(details.method), method))
            return grpc.unary_unary_rpc_method_handler(_unary(gate, behind.unary_unary(details.method), method))

    return Handler()


def _streaming(gate: Gate, call: Any, method: str) -> Callable[[bytes, Any], Iterator[bytes]]:
    def answer(request: bytes, context: Any) -> Iterator[bytes]:
        gate.requests[method].append(request)
        refusal = gate.next(method)
        for number, message in enumerate(_passed(call, request, context)):
            if refusal is not None and number == refusal.after:
                break
            yield message
        if refusal is not None:
            _abort(context, refusal.code, refusal.said)

    return answer


def _passed(call: Any, request: bytes, context: Any) -> Iterator[bytes]:
    import grpc

    try:
        yield from call(request, metadata=context.invocation_metadata())
    except grpc.RpcError as error:
        _abort(context, error.code().name, error.details())


def _unary(gate: Gate, call: Any, method: str) -> Callable[[bytes, Any], bytes]:
    import grpc

    def answer(request: bytes, context: Any) -> bytes:
        gate.requests[method].append(request)
        refusal = gate.next(method)
        if refusal is not None:
            _abort(context, refusal.code, refusal.said)
        try:
            found: bytes = call(request)
        except grpc.RpcError as error:
            _abort(context, error.code().name, error.details())
            raise
        return found

    return answer


def _abort(context: Any, code: str, said: str) -> None:
    import grpc

    context.abort(grpc.StatusCode[code], said)
