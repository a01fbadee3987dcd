"""Beam's job server for Flink: the process that turns a pipeline into a Flink job, hands it to the cluster, and follows it."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from beam_pipelines.runners.owned_process import OwnedProcess, endpoint_of, owned_process

_NAME = "Beam's job server for Flink"
_START_TIMEOUT_S = 60.0
_LONGEST_ERROR = 500
_SERVING = re.compile(r"JobService started on (?:\S+?):(\d+)")
_ERROR = re.compile(r"^(?:Exception in thread|Caused by:|\S*(?:Error|Exception)\b|.*\bERROR\b)")


@dataclass(frozen=True)
class JobServer(OwnedProcess):
    """A running job server: where jobs are handed in (`host:port`), its process and its log."""

    endpoint: str

    @property
    def name(self) -> str:
        """As it is called in messages."""
        return _NAME

    def last_errors(self, count: int = 3) -> str:
        """The last errors in its log in one line; empty where there are none."""
        return _last_errors(self.log, count)


@contextlib.contextmanager
def job_server(java: Path, opens: Sequence[str], jar: Path, master: str, *, keep_logs: bool = False) -> Iterator[JobServer]:
    """A job server on a free port, for jobs on the Flink cluster at `master` (`host:port`), for as long as the block lasts.

    Its end does not end jobs that run on the cluster. Raises RunError where it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="beam-pipelines-artifacts-", ignore_cleanup_errors=True) as artifacts:
        command = [
            str(java), "-Xmx512m", *opens, "-Dorg.slf4j.simpleLogger.defaultLogLevel=info", "-jar", str(jar), "--flink-master", master,
            "--job-host", "127.0.0.1", "--job-port", "0", "--artifact-port", "0", "--expansion-port", "0", "--artifacts-dir", artifacts,
        ]  # fmt: skip
        with owned_process(command, name="flink-job-server", keep_log=keep_logs) as owned:
            endpoint = endpoint_of(owned, _endpoint, what=_NAME, errors=_last_errors, timeout_s=_START_TIMEOUT_S)
            yield JobServer(owned.process, owned.log, endpoint)


def _endpoint(log: Path) -> str | None:
    found = _SERVING.search(log.read_text("utf-8", errors="replace"))
    return f"127.0.0.1:{found[1]}" if found else None


def _last_errors(log: Path, count: int = 3) -> str:
    with open(log, encoding="utf-8", errors="replace") as lines:
        return " | ".join(deque((line.strip()[:_LONGEST_ERROR] for line in lines if _ERROR.match(line)), maxlen=count))
