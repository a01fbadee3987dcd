"""A local server as a process of this test run: on free loopback ports, waited for until they answer, with a log that is kept, ended by its own pid.

process = ServerProcess("the local server", free_ports(1), folder / "server.log")
process.start(["server", "--port", str(process.ports[0])])
process.kill(); process.start([...])                        # the same ports, the same log
process.stop()
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

HOST = "127.0.0.1"
START_S = 60.0
END_S = 10.0


class ServerDidNotStart(Exception):
    """Often another process took one of its ports; the message ends with its log."""


@dataclass(eq=False)
class ServerProcess:
    """A server that can be started, stopped and killed; its ports and its log stay the same."""

    name: str
    ports: tuple[int, ...]
    log: Path
    _process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def start(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Starts it and waits until all ports answer. Raises ServerDidNotStart, with the end of its log, where they do not."""
        assert self._process is None, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not all(map(_listens, self.ports)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServerDidNotStart(f"{self.name} did not start:\n{self.log.read_text('utf-8', 'replace')[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends it in good order, if it runs."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it as a crash would (kill -9), if it runs."""
        self._end(signal.SIGKILL)

    def _end(self, by: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(by)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(END_S)


class Startable(Protocol):
    def start(self) -> None: ...


S = TypeVar("S", bound=Startable)


def started(make: Callable[[], S]) -> S:
    """The server that `make` gives, started. Another process may take a port between our look and its start: then it is made anew."""
    for last in (False, False, True):
        server = make()
        try:
            server.start()
            break
        except ServerDidNotStart as error:
            if last:
                pytest.fail(str(error))
    return server


def free_ports(count: int) -> tuple[int, ...]:
    """Ports that nobody listens on now, all different."""
    with ExitStack() as held:
        return tuple(held.enter_context(bound_port())[0] for _ in range(count))


@contextmanager
def bound_port() -> Iterator[tuple[int, socket.socket]]:
    """A port that nobody listens on, and nobody else can, and the socket that holds it, which may."""
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        yield holder.getsockname()[1], holder


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0
