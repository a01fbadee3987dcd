"""A line to the local server that can be cut, as a cable can."""

from __future__ import annotations

import contextlib
import select
import socket
import threading

from tests.cloud.bigquery_server import HOST


class Line:
    """A connection to the server that can be cut: what is under way breaks, and nobody gets through until `mend`. With `after`, it cuts itself after so many bytes."""

    def __init__(self, target: int) -> None:
        self._target, self._live, self._cut = target, set[socket.socket](), False
        self.after: int | None = None
        self.passed = 0
        self._listener = socket.create_server((HOST, 0))
        self.address = f"{HOST}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut = True
        for one in list(self._live):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._cut = False

    def close(self) -> None:
        self.cut()
        self._listener.close()

    @property
    def is_cut(self) -> bool:
        return self._cut

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._cut:
                    near.close()
                    continue
                far = socket.create_connection((HOST, self._target))
                threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        both = {near: far, far: near}
        self._live |= both.keys()
        with near, far, contextlib.suppress(OSError):
            while not self._cut:
                for ready in select.select(list(both), [], [], 0.5)[0]:
                    content = ready.recv(65_536)
                    if not content:
                        return
                    both[ready].sendall(content)
                    self.passed += len(content) if ready is far else 0
                    if self.after is not None and self.passed > self.after:
                        self.after = None
                        self.cut()
                        return
        self._live -= both.keys()
