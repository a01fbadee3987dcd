"""Logs: quiet by default, one JSON object per line on request, always on stderr."""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings
from datetime import UTC, datetime


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = {"time": time, "severity": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _NoTraces(logging.Filter):
    """Engines log the traceback of what they also raise, and we say it in one sentence: only `debug` wants to see it."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.exc_info = record.exc_text = None
        return record.name != "apache_beam.runners.common" and "Traceback (most recent call last)" not in record.getMessage()


def _log_thread(died: threading.ExceptHookArgs) -> None:
    logging.getLogger(__name__).debug("thread %s died", died.thread.name if died.thread else "?", exc_info=died.exc_value)


def set_up(level: str, style: str) -> None:
    """Sends logs of `level` and above to stderr, as text or as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    if level != "debug":
        handler.addFilter(_NoTraces())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    threading.excepthook = _log_thread  # an engine's threads fall when it is interrupted; what matters is raised in ours
    if level in ("error", "warning"):
        warnings.filterwarnings("ignore")  # libraries' advice to developers
