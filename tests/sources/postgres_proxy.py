"""A TCP proxy in front of a server, which cuts connections."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import threading
from collections.abc import Iterator

from tests.server_process import HOST


class Proxy(socketserver.ThreadingTCPServer):
    """Passes all bytes on to the port `to`. While `cuts` is not 0, a connection whose client says `word` is cut there, and `cuts` is one less."""

    daemon_threads = True

    def __init__(self, to: int, word: bytes) -> None:
        super().__init__((HOST, 0), _Passed)
        self.to, self.word, self.cuts = to, word, 0

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Passed(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError), socket.create_connection((HOST, self.server.to)) as there:
            other = {self.request: there, there: self.request}
            while True:
                for one in select.select(list(other), [], [])[0]:
                    said = one.recv(1 << 16)
                    if one is self.request and self.server.cuts and self.server.word in said:
                        self.server.cuts -= 1
                        return
                    if not said:
                        return
                    other[one].sendall(said)


@contextlib.contextmanager
def running_proxy(to: int, word: bytes) -> Iterator[Proxy]:
    with Proxy(to, word) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
