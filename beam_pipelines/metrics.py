"""Counters: Beam's own metrics, and the same numbers readable inside this process while a local job runs.

Exact accounting is the ledger's (a job's own output); these are for watching. Runners may lose or repeat them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from apache_beam.metrics import Metrics

NAMESPACE = "beam_pipelines"
_lock = threading.Lock()
_local: dict[str, int] = {}
_elsewhere: dict[str, dict[str, int]] = {}


def count(name: str, amount: int = 1) -> None:
    """Adds `amount` to the counter `name` (names: `rows_read`, `bytes_read`, `files_read`, `rows_dead`, `rows_written`, ...)."""
    if amount:
        Metrics.counter(NAMESPACE, name).inc(amount)
        with _lock:
            _local[name] = _local.get(name, 0) + amount


def snapshot() -> dict[str, int]:
    """The counters of this process, and of those it has heard of, since `reset`."""
    with _lock:
        total = Counter(_local)
        for counts in _elsewhere.values():
            total.update(counts)
        return dict(total)


def heard(counts: Mapping[str, dict[str, int]]) -> None:
    """What other processes of the same job have counted, by process."""
    with _lock:
        _elsewhere.update(counts)


def reset() -> None:
    """Sets the counters of this process to zero; a run begins with this."""
    with _lock:
        _local.clear()
        _elsewhere.clear()
