"""A gate before a local HTTP server: it can refuse connections, answer in the server's place, or lose the server's answers.

gate = Gate(port); gate.port                 # clients connect here
gate.away(); gate.back()                     # connections are refused, then taken again
gate.answer(503, when=uploads, times=2)      # instead of the server
gate.lose(when=uploads, times=1)             # the server gets the request and acts; the client sees the connection end
gate.before = gate.after = wait              # called with each request before it is passed on, and before its answer is given; who raises breaks the connection
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.server_process import HOST

When = Callable[[str, str], bool]
"""Of method and target (path and query) of a request."""
_HOP = {"connection", "transfer-encoding", "keep-alive", "host", "content-length"}


@dataclass
class _Rule:
    when: When
    times: int
    status: int | None  # None: the answer is lost
    hits: int = 0


class Gate:
    """An open gate to a port of this machine."""

    def __init__(self, to_port: int) -> None:
        self.to_port = to_port
        self.port = 0
        self.seen: list[tuple[str, str]] = []
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self.connections: set[socket.socket] = set()
        self.before: Callable[[str, str], object] = lambda method, target: None
        self.after = self.before
        self.back()

    def back(self) -> None:
        """Connections are taken, at the same port as before."""
        if self._server is None:
            self._server = _Server((HOST, self.port), _Handler)
            self._server.gate = self
            self.port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def away(self) -> None:
        """Connections are refused, and those that are open end."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def answer(self, status: int, *, when: When, times: int = 1 << 30) -> _Rule:
        """The next `times` requests that match get this status, with Google's kind of error body."""
        return self._rule(_Rule(when, times, status))

    def lose(self, *, when: When, times: int = 1) -> _Rule:
        """The next `times` requests that match are carried out, and their answers lost."""
        return self._rule(_Rule(when, times, None))

    def _rule(self, rule: _Rule) -> _Rule:
        with self._lock:
            self._rules.append(rule)
        return rule

    def matching(self, method: str, target: str) -> _Rule | None:
        """The rule for a request, which is used up by one."""
        with self._lock:
            self.seen.append((method, target))
            for rule in self._rules:
                if rule.times > rule.hits and rule.when(method, target):
                    rule.hits += 1
                    return rule
        return None


class _Server(ThreadingHTTPServer):
    gate: Gate
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that ended is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.gate.connections.add(self.connection)

    def finish(self) -> None:
        self.server.gate.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: Any) -> None:
        return

    def _serve(self) -> None:
        body = self._body()
        self.server.gate.before(self.command, self.path)
        rule = self.server.gate.matching(self.command, self.path)
        if rule is not None and rule.status is not None:
            said = b'{"error": {"code": %d, "message": "from the gate"}}' % rule.status
            self._send(rule.status, [("Content-Type", "application/json")], said)
            return
        status, headers, answer = self._ask(body)
        self.server.gate.after(self.command, self.path)
        if rule is not None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._send(status, headers, answer)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        asked = http.client.HTTPConnection(HOST, self.server.gate.to_port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        asked.request(self.command, self.path, body, {**headers, "Host": f"{HOST}:{self.server.gate.to_port}"})
        answer = asked.getresponse()
        content = answer.read()
        asked.close()
        return answer.status, [(k, self._hither(v)) for k, v in answer.getheaders() if k.lower() not in _HOP], content

    def _hither(self, header: str) -> str:
        """The place that an upload goes on at is the gate's too."""
        return header.replace(f"{HOST}:{self.server.gate.to_port}", f"{HOST}:{self.server.gate.port}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve
