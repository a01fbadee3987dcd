"""Counters: Beam's own metrics, and the same numbers readable inside this process while a local job runs.

Exact accounting is the ledger's (a job's own output); these are for watching. Runners may lose or repeat them.
"""

from __future__ import annotations

import threading

from apache_beam.metrics import Metrics

NAMESPACE = "beam_pipelines"
_lock = threading.Lock()
_local: dict[str, int] = {}


def count(name: str, amount: int = 1) -> None:
    """Adds `amount` to the counter `name` (names: `rows_read`, `bytes_read`, `files_read`, `rows_dead`, `rows_written`, ...)."""
    if amount:
        Metrics.counter(NAMESPACE, name).inc(amount)
        with _lock:
            _local[name] = _local.get(name, 0) + amount


def snapshot() -> dict[str, int]:
    """The counters of this process since `reset`."""
    with _lock:
        return dict(_local)


def reset() -> None:
    """Sets the counters of this process to zero; a run begins with this."""
    with _lock:
        _local.clear()
