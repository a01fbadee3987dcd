"""How far the sources of this process have come on the arrival clock: a hint for stages that set timers.

A runner fires one timer of a key after the other, each with its fixed cost, and a callback never learns how far the watermark is. Where
time runs fast (a backlog, a replay) a stage would fire for every window on its own; knowing that the sources are past all of them, it
sets one timer for all. Only a hint: without it, or on other processes than the sources', timers are set one by one.
"""

from __future__ import annotations

import threading

_lock = threading.Lock()
_watermarks: dict[str, int] = {}


def tell(source: str, watermark_micros: int) -> None:
    """A source says its watermark, in microseconds."""
    with _lock:
        _watermarks[source] = watermark_micros


def now() -> int | None:
    """The earliest watermark of the sources of this process, in microseconds; None where there are none."""
    with _lock:
        return min(_watermarks.values(), default=None)


def reset() -> None:
    """Forgets all sources; a job begins with this."""
    with _lock:
        _watermarks.clear()
