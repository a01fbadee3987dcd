"""The end of a local stream: who asks for it, and at which watermark the sources ended.

    request() ──▶ sources hand out what they hold ──▶ end(watermark) ──▶ watermark +∞ ──▶ every timer fires ──▶ the job is done

Timers that fire later than the watermark at which the sources ended belong to windows that never closed: `cut_short` tells them apart.
Process-wide: where sources run in several processes, `sources.pubsub_reports` lets each of these know. A cluster's own drain is the cluster's business.
"""

from __future__ import annotations

import threading
import time

_SLICE_S = 0.1  # of a wait
_requests: list[bool] = []  # no Event: its lock may be held by the very thread that a signal interrupts
_lock = threading.Lock()
_ends: list[int] = []


def request() -> None:
    """Asks all sources to end. Safe in a signal handler."""
    _requests.append(True)


def requested() -> bool:
    """Whether the sources should end."""
    return bool(_requests)


def end(watermark_micros: int) -> None:
    """A source ended at this watermark (microseconds of the arrival clock); of several sources the earliest counts."""
    with _lock:
        _ends.append(watermark_micros)


def ended_at() -> int | None:
    """The watermark at which the sources ended, in microseconds; None while they run."""
    with _lock:
        return min(_ends, default=None)


def cut_short(timer_micros: int) -> bool:
    """Whether a timer set for this time fires only because the stream was drained."""
    ended = ended_at()
    return ended is not None and timer_micros > ended


def wait(timeout_s: float) -> bool:
    """Whether the sources should end, within `timeout_s`."""
    until = time.monotonic() + timeout_s
    while not requested() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _SLICE_S))
    return requested()


def forget_ends() -> None:
    """Forgets at which watermarks sources ended: of a job that begins anew."""
    with _lock:
        _ends.clear()


def reset() -> None:
    """Forgets requests and ends; a job begins with this."""
    _requests.clear()
    forget_ends()
