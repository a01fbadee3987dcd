"""What a worker has for Flink: kept by the worker until Flink takes it, which Beam 2.77 bounds, and on this runner would wait for for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apache_beam.runners.worker import data_plane
from apache_beam.runners.worker.data_plane import ClosableOutputStream, SizeBasedBufferingClosableOutputStream

MESSAGE_BYTES = 1 << 20
"""Near which messages to Flink are sent; a task manager holds up to a hundred of them for each stage at work. Beam's own: 10 MB."""
_UNBOUNDED = 1 << 62

Give = Callable[[bytes], None]


def install() -> None:
    """A bundle of this process ends also where it gives more than Beam's queues hold. Twice is the same as once.

        worker ─▶ queue, 200 MB ─▶ task manager: a hundred messages, taken when the bundle has ended
                                   which it cannot, for the worker waits until there is room in the queue

    Beam's runner (2.70) reads what a bundle gives when the worker has said that the bundle is done, and in a batch all that a stage reads in a slot is one bundle. Python
    workers kept their output in memory without a bound, until apache/beam#38407 gave the queue one. So the job stands still for ever, or, with messages of 10 MB, the task
    manager runs out of memory first. Here the queue has no bound, as it was, and messages are small. `tests/flink/test_large_bundles.py` fails without it.

    It must run in each process that works for Flink, before its first bundle.
    """
    data_plane._DEFAULT_SEND_QUEUE_MAX_BYTES = data_plane._DEFAULT_SEND_QUEUE_MAX_ELEMENTS = _UNBOUNDED
    data_plane._DEFAULT_SIZE_FLUSH_THRESHOLD = MESSAGE_BYTES  # of messages that are joined
    ClosableOutputStream.create = staticmethod(_stream)


def _stream(close: Give, flush: Give, _: int) -> Any:
    """Without flushing by time, which loses bytes (see `options.check_flags`)."""
    return SizeBasedBufferingClosableOutputStream(close, flush_callback=flush, size_flush_threshold=MESSAGE_BYTES)
