"""A Pub/Sub in this process: the real protocol on a port of this machine, without Java, gcloud or an account.

    with Broker() as broker:
        os.environ.update(broker.environment)          # now google-cloud-pubsub talks to it, unmodified
        topic = pubsub_v1.PublisherClient().create_topic(name="projects/demo-project/topics/flights")

`python -m beam_pipelines.testing.broker --port 8085` runs it alone. What it does, what it does not, and where it differs from the
official emulator: docs/pubsub-testing.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from beam_pipelines.errors import RunError, SpecError, nearest

try:
    import grpc

    from beam_pipelines.testing.broker_delivery import Delivery
    from beam_pipelines.testing.broker_pool import DaemonPool
    from beam_pipelines.testing.broker_protocol import METHODS, Call, handlers
    from beam_pipelines.testing.broker_rules import Refused, status_code
    from beam_pipelines.testing.broker_schemas import Schemas
    from beam_pipelines.testing.broker_topics import Topics
except ImportError as missing:
    absent = SpecError(
        f"beam_pipelines.testing.broker: needs google-cloud-pubsub: {missing}.", hint="Run: pip install 'beam-pipelines[gcp]'"
    )
    if __name__ != "__main__":
        raise absent from missing
    sys.stderr.write(f"error: {absent}\n")
    sys.exit(2)

_HOST = "127.0.0.1"


class Fault(NamedTuple):
    """A call that is to fail: before it does anything, or (`done`) after it did everything."""

    code: Any  # grpc.StatusCode
    done: bool


class Broker:
    """A Pub/Sub server on 127.0.0.1, started by `with` or `start()`; its messages live as long as the object, through `restart()`.

    `port` 0 takes a free one and keeps it. `clock` gives the time in seconds that publish times and lease deadlines are in; call `wake()`
    after you turned it. A pull that finds nothing waits `pull_wait_s`; a response holds at most `max_pull` messages (the emulator: 100).
    All methods may be called from any thread.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        project: str = "demo-project",
        clock: Callable[[], float] = time.time,
        pull_wait_s: float = 0.5,
        max_pull: int = 1_000,
    ) -> None:
        self.project = project
        self.calls: Counter[str] = Counter()
        self._port = port
        self._server: Any = None
        self._faults: dict[str, deque[Fault]] = {}
        self._called = threading.Condition()
        schemas = Schemas(clock)
        self._topics = Topics(clock, check_schema=schemas.check_settings, validate=schemas.validate)
        self._delivery = Delivery(self._topics, pull_wait_s=pull_wait_s, max_pull=max_pull)
        self._parts = (self._topics, self._delivery, schemas)

    @property
    def address(self) -> str:
        """`127.0.0.1:port`. Raises RunError if it was never started."""
        if not self._port:
            raise RunError("The broker has no address yet.", hint="Use it as `with Broker() as broker:` or call start().")
        return f"{_HOST}:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes google-cloud-pubsub talk to this broker."""
        return {"PUBSUB_EMULATOR_HOST": self.address, "PUBSUB_PROJECT_ID": self.project}

    def start(self) -> Broker:
        """Serves; also again, on the same port, after `stop()`. Raises RunError if the port is taken."""
        if self._server is None:
            # Without the first option two brokers could share a port and get half of the calls each.
            options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            self._pool = DaemonPool("pubsub-broker")
            server = grpc.server(self._pool, options=options)
            server.add_generic_rpc_handlers(handlers(self._parts, self._watch))
            try:
                self._port = server.add_insecure_port(f"{_HOST}:{self._port}")
            except RuntimeError as error:
                raise RunError(f"Port {self._port} of {_HOST} is taken.", hint="Choose another; 0 takes a free one.") from error
            server.start()
            self._server = server
        return self

    def stop(self) -> None:
        """Breaks off all calls and closes the port. Messages, leases and acks stay for the next `start()`."""
        if self._server is not None:
            self._server.stop(grace=None).wait()
            self._delivery.wake()  # pulls that wait see that they were broken off
            self._pool.shutdown()
            self._server = None

    def restart(self) -> None:
        """Stops and starts on the same port: clients see UNAVAILABLE and come back; nothing stored is lost."""
        self.stop()
        self.start()

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def fail(self, method: str, code: grpc.StatusCode | str, *, times: int = 1, done: bool = False) -> None:
        """Makes the next `times` calls of a method (`Pull`, `Acknowledge`, ...) fail with a gRPC status.

        With `done` the call takes effect first and only its answer is lost. Raises ValueError for a method or status there is not.
        """
        if method not in METHODS:
            raise ValueError(f"method: unknown method {method!r}; {nearest(method, METHODS)}")
        if done and METHODS[method].streams:
            raise ValueError(f"done: {method} has no single answer that could be lost")
        with self._called:
            self._faults.setdefault(method, deque()).extend([Fault(status_code(code), done)] * times)

    def expire(self, subscription: str) -> int:
        """Ends all leases of a subscription now, as if nobody had extended them: the messages are delivered again. Says how many."""
        return self._delivery.expire(subscription)

    def wake(self) -> None:
        """Makes waiting calls look at the clock again."""
        self._delivery.wake()

    def unacked(self, subscription: str) -> int:
        """How many messages of a subscription are not acked: those waiting and those out."""
        with self._topics.lock:
            return len(self._topics.find(subscription).backlog)

    def leased(self, subscription: str) -> int:
        """How many messages of a subscription are out: delivered, neither acked nor expired."""
        with self._topics.lock:
            return self._topics.find(subscription).backlog.leased

    def acked(self, subscription: str) -> int:
        """How many acks have taken effect in a subscription."""
        with self._topics.lock:
            return self._topics.find(subscription).backlog.acked

    def wait_acked(self, subscription: str, *, timeout_s: float) -> bool:
        """Waits until a subscription holds nothing unacked, and says whether that came within `timeout_s`."""
        return self._delivery.wait_acked(subscription, timeout_s=timeout_s)

    def wait_called(self, method: str, *, times: int = 1, timeout_s: float) -> bool:
        """Waits until a method has been called `times` times since the broker was made, and says whether that came within `timeout_s`."""
        with self._called:
            return self._called.wait_for(lambda: self.calls[method] >= times, timeout_s)

    def _watch(self, name: str, call: Call) -> Call:
        def watched(request: Any, context: Any) -> Any:
            fault = self._next_fault(name)
            if fault is not None and not fault.done:
                raise Refused(fault.code, f"{name} was told to fail")
            response = call(request, context)
            if fault is not None:
                raise Refused(fault.code, f"{name} was done and told to fail")
            return response

        return watched

    def _next_fault(self, name: str) -> Fault | None:
        with self._called:
            self.calls[name] += 1
            self._called.notify_all()
            planned = self._faults.get(name)
            return planned.popleft() if planned else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a broker until SIGTERM or Ctrl-C; its first line of output is its address."""
    parser = argparse.ArgumentParser(prog="python -m beam_pipelines.testing.broker", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="port of 127.0.0.1; 0 takes a free one (default)")
    parser.add_argument("--project", default="demo-project", help="project id that PUBSUB_PROJECT_ID is to have")
    chosen = parser.parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        with Broker(port=chosen.port, project=chosen.project) as broker:
            sys.stdout.write(f"{broker.address}\n")
            sys.stdout.flush()
            ended.wait()
    except RunError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
