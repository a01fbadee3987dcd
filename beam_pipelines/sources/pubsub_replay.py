"""The archive's tail, read ahead by a thread while live messages are pulled already."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

import pyarrow as pa

_READ_AHEAD = 4  # batches

Replay = Callable[[], Iterator[pa.RecordBatch]]


class ReadAhead:
    """Batches of `replay` in order, a few of them read before they are asked for. `read` runs in a thread of the caller's."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._lock = threading.Condition()
        self._batches: deque[pa.RecordBatch] = deque()
        self._ended = False
        self._closed = False

    def read(self) -> None:
        """Reads to the end, or until `close`. What `replay` raises is raised here, and then there is no end."""
        for batch in self._replay():
            with self._lock:
                self._lock.wait_for(lambda: len(self._batches) < _READ_AHEAD or self._closed)
                if self._closed:
                    return
                if batch.num_rows:
                    self._batches.append(batch)
        with self._lock:
            self._ended = True

    def take(self) -> pa.RecordBatch | None:
        """The next batch, None if none is read yet or none is left."""
        with self._lock:
            self._lock.notify_all()
            return self._batches.popleft() if self._batches else None

    def done(self) -> bool:
        """Whether everything was taken."""
        with self._lock:
            return self._ended and not self._batches

    def close(self) -> None:
        """Ends the reading thread at its next batch."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
