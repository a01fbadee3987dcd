"""Which messages this process has stored durably, and which of these are still on their way to the sinks.

The archive registers what it stored, the source asks before it acknowledges.

A message may be acknowledged only once the process that acknowledges has itself stored it: so nothing that was acknowledged can be lost,
whatever a runner keeps in memory.

What is stored is under way until the watermark behind the sinks has passed it: `archiving` and `all_through` keep count, by the clock of this
machine, because a message may be stored hours after it arrived. Where sources run in several processes, each tells the others what it has `under_way`.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import numpy.typing as npt

_lock = threading.Lock()
_stored: dict[str, set[int]] = {}
_owed: list[tuple[int, int]] = []  # timer, and what it is late for (micros)
_under_way: list[tuple[int, int]] = []  # what holds the watermark back (micros), and when storing began (ms of the day)


def register(source: str, positions: npt.NDArray[np.int64]) -> None:
    """Says that the messages of `source` at `positions` are stored; call it after the file is on disk and this process is not fenced."""
    with _lock:
        _stored.setdefault(source, set()).update(positions.tolist())


def take_stored(source: str, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """True for each position that is registered; these are forgotten: whoever asks must acknowledge them, again on failure."""
    with _lock:
        stored = _stored.get(source, set())
        found = np.fromiter((p in stored for p in positions.tolist()), np.bool_, len(positions))
        stored.difference_update(positions[found].tolist())
    return found


def archiving(timestamp_micros: int) -> None:
    """Says, before it is done, that messages are stored and go on as an element of this timestamp."""
    with _lock:
        _under_way.append((timestamp_micros, _now_ms()))


def all_through(watermark_micros: int) -> int:
    """The moment (ms since 1970) before which everything that was stored is in the sinks too, now that the watermark behind them is this one."""
    with _lock:
        _under_way[:] = [(timestamp, at) for timestamp, at in _under_way if timestamp >= watermark_micros]
        return min((at for _, at in _under_way), default=_now_ms())


def under_way() -> tuple[int, tuple[tuple[int, int], ...]]:
    """The moment (ms since 1970), and what is under way then: timestamps (micros) and when storing began (ms). What comes later begins later."""
    with _lock:
        return _now_ms(), tuple(_under_way)


def owe(timer_micros: int, due_micros: int) -> None:
    """Says that what was due at one time of the arrival clock is shown only by a timer of a later one (see `arrival_clock`)."""
    with _lock:
        _owed.append((timer_micros, due_micros))


def all_shown(watermark_micros: int) -> int:
    """The time of the arrival clock before which everything that was due is in the sinks, now that the watermark behind them is this one."""
    with _lock:
        _owed[:] = [(timer, due) for timer, due in _owed if timer >= watermark_micros]
        return min([watermark_micros, *(due for _, due in _owed)])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def reset() -> None:
    """Forgets everything; a job begins with this."""
    with _lock:
        _stored.clear()
        _under_way.clear()
        _owed.clear()
