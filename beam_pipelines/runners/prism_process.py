"""The Prism process: started for one launcher, found again by nobody else, and gone when the launcher is, however that dies."""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from beam_pipelines.runners.owned_process import OwnedProcess, endpoint_of, owned_process

_NAME = "Prism"
_START_TIMEOUT_S = 30.0
_LONGEST_ERROR = 500
# Prism runs up to 8 bundles at once and spins while it waits for each one's answer. With a Go thread per core (its default) two of
# them keep a small machine's threads busy, and what reads the answer waits for Go's 10 ms pre-emption: 30 ms of CPU per bundle, not 6.
_GO_THREADS = str((os.cpu_count() or 1) + 8)


@dataclass(frozen=True)
class PrismServer(OwnedProcess):
    """A running Prism: where jobs are handed in (`host:port`), its process and its log."""

    endpoint: str

    @property
    def name(self) -> str:
        """As it is called in messages."""
        return _NAME

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def last_errors(self, count: int = 3) -> str:
        """The last errors in Prism's log in one line; empty where there are none."""
        return last_errors(self.log, count)


@contextlib.contextmanager
def prism_server(program: Path, *, keep_logs: bool = False, debug: bool = False) -> Iterator[PrismServer]:
    """Prism on a free port for as long as the block lasts.

    The process ends with the block, and also when this process is killed. Its log goes to a file that is removed unless `keep_logs`
    or unless the exception that ends the block names it. Raises RunError where Prism does not start.
    """
    # Port 0: the kernel chooses one that is free, and there is no moment in which another process could take it.
    arguments = ["--job_port=0", "--serve_http=false", "--log_kind=json", f"--log_level={'debug' if debug else 'info'}"]
    environment = {"GOMAXPROCS": _GO_THREADS}
    with owned_process([str(program), *arguments], name="prism", environment=environment, keep_log=keep_logs) as owned:
        endpoint = endpoint_of(owned, _endpoint, what=_NAME, errors=last_errors, timeout_s=_START_TIMEOUT_S)
        yield PrismServer(owned.process, owned.log, endpoint)


def _endpoint(log: Path) -> str | None:
    for entry in _entries(log):
        if entry.get("msg") == "Serving JobManagement":
            return str(entry["endpoint"]).replace("localhost", "127.0.0.1")
    return None


def last_errors(log: Path, count: int = 3) -> str:
    """The last errors in a log of Prism in one line; empty where there are none."""
    errors = (entry for entry in _entries(log) if str(entry.get("level", "")).startswith("ERROR"))
    return " | ".join(_sentence(entry) for entry in deque(errors, maxlen=count))


def _sentence(entry: dict[str, object]) -> str:
    rest = [f"{k}={v}" for k, v in entry.items() if k not in ("time", "level", "source", "msg", "worker")]
    return " ".join([str(entry.get("msg", "")), *rest]).strip()[:_LONGEST_ERROR]


def _entries(log: Path) -> Iterator[dict[str, object]]:
    """What the log says, line by line; what is no JSON (a panic of Go) as a message of its own."""
    with open(log, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"msg": line.rstrip(), "level": "ERROR"}
            if isinstance(entry, dict):
                yield entry
