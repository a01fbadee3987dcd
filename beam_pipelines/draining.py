"""The end of a local stream: who asks for it, and at which watermark the sources ended.

    request() ──▶ sources hand out what they hold ──▶ end(watermark) ──▶ watermark +∞ ──▶ every timer fires ──▶ the job is done

Timers that fire later than the watermark at which the sources ended belong to windows that never closed: `cut_short` tells them apart.
Process-wide: it is for runners that run the source and all stages in this process. A cluster's own drain is the cluster's business.
"""

from __future__ import annotations

import threading

_requested = threading.Event()
_lock = threading.Lock()
_ends: list[int] = []


def request() -> None:
    """Asks all sources to end. Safe in a signal handler."""
    _requested.set()


def requested() -> bool:
    """Whether the sources should end."""
    return _requested.is_set()


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
    return _requested.wait(timeout_s)


def forget_ends() -> None:
    """Forgets at which watermarks sources ended: of a job that begins anew."""
    with _lock:
        _ends.clear()


def reset() -> None:
    """Forgets requests and ends; a job begins with this."""
    _requested.clear()
    forget_ends()
