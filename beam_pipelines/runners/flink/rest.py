"""Flink's REST service: what a cluster and its jobs are doing, cancelling a job, and stopping it with a savepoint.

Paths and fields: https://nightlies.apache.org/flink/flink-docs-release-1.19/docs/ops/rest_api/
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from beam_pipelines.errors import RunError, SpecError, TransientError

ENDED = frozenset({"FINISHED", "CANCELED", "FAILED"})
"""States of a job that no longer runs and will not again."""
_POLL_S = 0.2
_LONGEST_ERROR = 500
_ADDRESS = re.compile(r"(?:[\w.-]+|\[[\da-fA-F:]+\]):\d{1,5}|https?://[^\s/]+(?:/\S*)?")
_FRAME = re.compile(r"\s+(at [\w.$/<>@ ]+\(|\.\.\. \d+ more|Suppressed: )")


@dataclass(frozen=True)
class Overview:
    """A cluster at a glance."""

    version: str
    commit: str
    task_managers: int
    slots: int
    slots_free: int
    jobs_running: int


@dataclass(frozen=True)
class Job:
    """A job as the cluster lists it; `began_ms` since the epoch, `duration_ms` until now or its end."""

    id: str
    name: str
    state: str
    began_ms: int
    duration_ms: int

    @property
    def ended(self) -> bool:
        """Whether it has ended for good."""
        return self.state in ENDED


@dataclass(frozen=True)
class Failure:
    """Why tasks of a job failed: `cause` is the innermost cause in one line, `trace` all of it."""

    at_ms: int
    task: str
    cause: str
    trace: str


@dataclass(frozen=True)
class Checkpoint:
    """A completed checkpoint: where it lies, its bytes of state, how long it took and when it was triggered."""

    id: int
    path: str
    state_bytes: int
    duration_ms: int
    at_ms: int
    is_savepoint: bool

    @property
    def done_ms(self) -> int:
        """When it was complete, since the epoch."""
        return self.at_ms + self.duration_ms


@dataclass(frozen=True)
class Checkpoints:
    """What a job's checkpoints came to since it was started. `failure` says why the latest failed one did, whose number is `failed_id`."""

    completed: int
    failed: int
    in_progress: int
    restored: int
    latest: Checkpoint | None
    failure: str | None
    failed_id: int | None = None

    @property
    def failing(self) -> bool:
        """Whether one has failed since the latest that was completed."""
        return self.failed_id is not None and (self.latest is None or self.failed_id > self.latest.id)


class FlinkRest:
    """The REST service of a job manager at `host:port`, or a URL with http:// or https://. Raises SpecError for anything else.

    Every call ends within `timeout_s` and raises TransientError where nobody answers (a job manager may be on its way back),
    RunError where Flink says no.
    """

    def __init__(self, address: str, *, timeout_s: float = 10.0) -> None:
        if not _ADDRESS.fullmatch(address):
            raise SpecError(
                f"Flink's address '{address}' is none; expected host:port.",
                hint="It is that of Flink's web page, for example 127.0.0.1:8081.",
            )
        self.address = address
        self._timeout_s = timeout_s
        self._url = (address if "://" in address else f"http://{address}").rstrip("/")

    def overview(self) -> Overview:
        """The cluster at a glance; also the check that somebody is there."""
        found = self._get("/overview")
        return Overview(
            found["flink-version"], found.get("flink-commit", ""), found["taskmanagers"], found["slots-total"],
            found["slots-available"], found["jobs-running"],
        )  # fmt: skip

    def configuration(self) -> dict[str, str]:
        """What the job manager was started with; of secrets Flink shows stars."""
        return {str(entry["key"]): str(entry["value"]) for entry in self._get("/jobmanager/config")}

    def jobs(self) -> list[Job]:
        """The jobs the cluster still knows, the newest first."""
        found = [_job(job) for job in self._get("/jobs/overview")["jobs"]]
        return sorted(found, key=lambda job: job.began_ms, reverse=True)

    def job(self, job: str) -> Job:
        """One job. Raises RunError where the cluster does not know it."""
        return _job(self._get(f"/jobs/{job}"))

    def restarts(self, job: str) -> int:
        """How often the job was started anew after a failure, as far as this job manager knows."""
        found = self._get(f"/jobs/{job}/metrics?get=numRestarts")
        return int(float(found[0]["value"])) if found else 0

    def failures(self, job: str) -> list[Failure]:
        """Why its tasks failed, the newest first; at most the 16 that Flink keeps."""
        found = self._get(f"/jobs/{job}/exceptions").get("exceptionHistory", {}).get("entries", [])
        failures = [_failure(entry) for entry in found]
        return sorted(failures, key=lambda failure: failure.at_ms, reverse=True)

    def checkpoints(self, job: str) -> Checkpoints:
        """Counts, and the latest completed checkpoint or savepoint."""
        found = self._get(f"/jobs/{job}/checkpoints")
        counts, latest = found["counts"], found["latest"]
        done = [_checkpoint(one) for one in (latest.get("completed"), latest.get("savepoint")) if one]
        failed = latest.get("failed") or {}
        return Checkpoints(
            counts["completed"], counts["failed"], counts["in_progress"], counts["restored"],
            max(done, key=lambda one: one.id, default=None), failed.get("failure_message"),
            failed.get("id"),
        )  # fmt: skip

    def state_bytes(self, job: str) -> dict[str, int]:
        """Bytes of state in the latest completed checkpoint, by task; empty before the first."""
        latest = self._get(f"/jobs/{job}/checkpoints")["latest"].get("completed")
        if latest is None:
            return {}
        found = self._get(f"/jobs/{job}/checkpoints/details/{latest['id']}")["tasks"]
        names = {task["id"]: task["name"] for task in self._get(f"/jobs/{job}")["vertices"]}
        return {names[task]: int(about["state_size"]) for task, about in found.items() if task in names}

    def checkpoint_interval_ms(self, job: str) -> int | None:
        """Milliseconds between checkpoints; None where the job makes none."""
        interval = self._get(f"/jobs/{job}/checkpoints/config").get("interval")
        return None if interval is None or interval >= 2**63 - 1 else int(interval)

    def cancel(self, job: str, *, wait_s: float = 30.0) -> None:
        """Cancels a job and waits until it has ended; one that has ended already stays as it is.

        Raises RunError where it has not ended after `wait_s`.
        """
        if not self.job(job).ended:
            self._call("PATCH", f"/jobs/{job}?mode=cancel")
            self.wait_until_ended(job, wait_s)

    def wait_until_ended(self, job: str, wait_s: float) -> Job:
        """The job once it has ended. Raises RunError where it has not after `wait_s`."""
        deadline = time.monotonic() + wait_s
        while not (found := self.job(job)).ended:
            if time.monotonic() > deadline:
                raise RunError(f"Flink at {self.address}: job {job} is still {found.state} after {wait_s:.0f} s; expected its end.")
            time.sleep(_POLL_S)
        return found

    def savepoint(self, job: str, *, folder: str | None = None, wait_s: float = 120.0) -> str:
        """Makes a savepoint of a job that goes on, in `folder` or where the cluster keeps them; gives its path."""
        asked = self._call("POST", f"/jobs/{job}/savepoints", {"target-directory": folder, "cancel-job": False})
        return self._savepoint(job, asked["request-id"], wait_s)

    def stop_with_savepoint(self, job: str, *, folder: str | None = None, drain: bool = False, wait_s: float = 120.0) -> str:
        """Stops a job with a savepoint, in `folder` or where the cluster keeps them; gives its path once it is complete and the job ended.

        `drain` sends the watermark to its maximum first, which closes all windows: for a stream that will not be started again.
        Raises RunError where the savepoint fails (the job then goes on) or is not there after `wait_s`.
        """
        asked = self._call("POST", f"/jobs/{job}/stop", {"targetDirectory": folder, "drain": drain})
        path = self._savepoint(job, asked["request-id"], wait_s)
        self.wait_until_ended(job, wait_s)
        return path

    def _savepoint(self, job: str, request: str, wait_s: float) -> str:
        deadline = time.monotonic() + wait_s
        while (found := self._get(f"/jobs/{job}/savepoints/{request}"))["status"]["id"] != "COMPLETED":
            if time.monotonic() > deadline:
                raise RunError(
                    f"Flink at {self.address}: no savepoint of job {job} after {wait_s:.0f} s.",
                    hint="The job may still stop: look at its checkpoints before you start it anew.",
                )
            time.sleep(_POLL_S)
        operation = found["operation"]
        if "location" not in operation:
            why = root_cause(operation.get("failure-cause", {}).get("stack-trace", "it gave no reason"))
            raise RunError(f"Flink at {self.address}: no savepoint of job {job}: {why}", hint="The job goes on.")
        return str(operation["location"])

    def _get(self, path: str) -> Any:
        return self._call("GET", path)

    def _call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        content = None if body is None else json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        try:
            request = urllib.request.Request(  # noqa: S310  (the user's own cluster)
                self._url + path, data=content, method=method, headers={"Content-Type": "application/json"}
            )
            with _OPENER.open(request, timeout=self._timeout_s) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise self._refused(path, error.code, error.read()) from None
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            raise self._silent(error) from None
        return self._decoded(path, text)

    def _decoded(self, path: str, text: bytes) -> Any:
        try:
            return json.loads(text or b"{}")
        except ValueError:
            raise RunError(
                f"{self.address} is no Flink: it answers {path} with no JSON; expected the REST service of a job manager.",
                hint="Correct the address: the port is that of Flink's web page, 8081 by default.",
            ) from None

    def _refused(self, path: str, code: int, text: bytes) -> RunError:
        """Flink's own errors are JSON with a list of traces; 503 says that it is choosing a leader."""
        try:
            errors = json.loads(text)["errors"]
        except (ValueError, KeyError, TypeError):
            return RunError(
                f"{self.address} is no Flink, or one behind a proxy that refuses: {path} is answered with HTTP {code}.",
                hint="Expected the REST service of a job manager: its port is that of Flink's web page, 8081 by default.",
            )
        why = root_cause(str(errors[-1])) if errors else f"HTTP {code}"
        kind = TransientError if code == http.client.SERVICE_UNAVAILABLE else RunError
        return kind(f"Flink at {self.address}: {path}: {why}")

    def _silent(self, error: Exception) -> TransientError:
        reason = getattr(error, "reason", error)
        what = (
            f"no answer within {self._timeout_s:.0f} s" if isinstance(reason, TimeoutError) else getattr(reason, "strerror", None) or reason
        )
        return TransientError(
            f"Flink at {self.address} does not answer: {str(what).lower() or type(error).__name__}; expected the REST service of a job manager.",
            hint="Start one here with `beam-pipelines cluster up`, or correct the address: the port is that of Flink's web page, 8081 by default.",
        )


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Past any proxy of the environment: a cluster is asked directly, or not at all."""


def root_cause(trace: str) -> str:
    """The innermost cause of a Java trace in one line, without the packages of the exception's name.

    Where Python code failed under Beam, that is the last line of Python's trace.

    >>> root_cause("org.apache.flink.JobException: Recovery is suppressed\\n\\tat a.b(C.java:1)\\nCaused by: java.io.IOException: disk is full\\n\\tat d")
    'IOException: disk is full'
    """
    lines = [line for line in trace.strip().splitlines() if line.strip()]
    causes = [n for n, line in enumerate(lines) if line.startswith("Caused by: ")]
    begin = causes[-1] if causes else 0
    message = []
    for line in lines[begin:]:
        if _FRAME.match(line):
            break
        message.append(line)
    if any(line.startswith("Traceback (most recent call last)") or ": Traceback (most recent call last)" in line for line in message):
        return _python_cause(message)[:_LONGEST_ERROR]
    first = (message[0] if message else "").removeprefix("Caused by: ").strip()
    name, colon, rest = first.partition(": ")
    return (name.rpartition(".")[2] + colon + rest)[:_LONGEST_ERROR] if colon and " " not in name else first[:_LONGEST_ERROR]


def _python_cause(lines: list[str]) -> str:
    """The last line of Python's trace that is no place in the code."""
    return next(line.strip() for line in reversed(lines) if not line.startswith((" ", "\t")))


def _job(found: Mapping[str, Any]) -> Job:
    return Job(found["jid"], found["name"], found["state"], found["start-time"], found["duration"])


def _failure(entry: Mapping[str, Any]) -> Failure:
    trace = str(entry.get("stacktrace") or entry.get("exceptionName") or "")
    return Failure(entry["timestamp"], entry.get("taskName") or "", root_cause(trace), trace)


def _checkpoint(found: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(
        found["id"], found.get("external_path", ""), found["state_size"], found["end_to_end_duration"], found["trigger_timestamp"],
        bool(found.get("is_savepoint")),
    )  # fmt: skip
