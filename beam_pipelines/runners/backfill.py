"""Many runs over ranges, one after the other or a few at once, that can be killed at any moment and called again.

    {state}/backfills/{id}/000001.json    the steps of the first attempt, written down before the first of them runs
    {state}/runs/{id}-1-0003.json         the record of its third step, like that of any run: `success` says that the step is done

The id is made of what was asked and of what decides the answer, so the same call finds its own steps again. A step's run has an id of its own, under
which it commits once: a step that was killed before its commit has changed nothing and runs again, one that was killed after it is found done.
A step is a process, so its memory goes with it. It reads a pipe whose other end the backfill holds, and ends when that is closed: when the
backfill dies, however it does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

import msgspec

from beam_pipelines.arrow.ranges import show_range
from beam_pipelines.errors import RunError
from beam_pipelines.places import create_new, join, list_files, locked, read_bytes
from beam_pipelines.runners.backfill_steps import Step
from beam_pipelines.sinks.results import RunResults, find_run
from beam_pipelines.sinks.run import utc_now
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.spec.placing import placing
from beam_pipelines.spec.sinks import ROWS

_LOOK_EVERY_S = 0.05
_GRACE_S = 60.0
"""So long a step that was asked to end may take: one that commits carries its commit to the end."""
_LONGEST_SAID = 2000


class BackfillPlan(msgspec.Struct, frozen=True):
    """The steps of one attempt. `asked` is what was asked for, as people read it; `until`, where not None, how far a stream let the steps reach."""

    id: str
    attempt: int
    pipeline: str
    asked: str
    step: str
    created_at: str
    steps: tuple[Step, ...]
    until: int | None = None

    def run_id(self, number: int) -> str:
        """The id of the run of a step; steps are numbered from 1."""
        return f"{self.id}-{self.attempt}-{number:04d}"


@dataclass(frozen=True)
class Ended:
    """A step that has ended: its record if it is done, else why it is not; `warnings` are sentences of the run."""

    number: int
    record: RunResults | None
    why: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


def backfill_id(spec: PipelineSpec, *asked: object) -> str:
    """The id of what was asked under this spec: 10 hex digits over the call and all of the spec that decides what is written, and where."""
    checks = [c.model_dump(mode="json", by_alias=True) for c in spec.checks if c.severity == "dead_letter"]
    parts = spec.model_dump(
        mode="json", by_alias=True, include={"pipeline", "sources", "lookups", "deduplicate", "aggregates", "sinks", "provenance"}
    )
    content = msgspec.json.encode([*map(str, asked), placing(spec), checks, parts], order="sorted")
    return f"backfill-{hashlib.sha256(content).hexdigest()[:10]}"


def newest_plan(state: str, id_: str) -> BackfillPlan | None:
    """The plan of the newest attempt; None before the first."""
    numbers = _attempts(state, id_)
    content = read_bytes(_path(state, id_, numbers[-1])) if numbers else None
    return None if content is None else msgspec.json.decode(content, type=BackfillPlan)


def done_steps(state: str, plan: BackfillPlan) -> dict[int, RunResults]:
    """The records of the steps that are done, by number."""
    there = set(list_files(join(state, "runs")))
    found = {n: find_run(state, plan.run_id(n)) for n in range(1, len(plan.steps) + 1) if f"{plan.run_id(n)}.json" in there}
    return {n: record for n, record in found.items() if record is not None and record.status == "success"}


def begin(
    state: str, id_: str, steps: Sequence[Step], *, pipeline: str, asked: str, step: str, until: int | None = None
) -> BackfillPlan:  # fmt: skip
    """A new attempt with these steps, written down. Raises RunError where another process begins one at the same moment."""
    attempt = max(_attempts(state, id_), default=0) + 1
    plan = BackfillPlan(id_, attempt, pipeline, asked, step, utc_now(), tuple(steps), until)
    if not create_new(_path(state, id_, attempt), msgspec.json.format(msgspec.json.encode(plan), indent=2)):
        raise _at_work(state, id_)
    return plan


@contextlib.contextmanager
def alone(state: str, id_: str) -> Iterator[None]:
    """Keeps other processes of this machine from working on the same backfill meanwhile. Raises RunError where one does."""
    with locked(_folder(state, id_), wait=False) as mine:
        if not mine:
            raise _at_work(state, id_)
        yield


def _at_work(state: str, id_: str) -> RunError:
    return RunError(
        f"{_folder(state, id_)}: another process works on this backfill.", hint="Wait until it has ended, or end it: then call again."
    )


def run_steps(
    state: str,
    plan: BackfillPlan,
    todo: Sequence[int],
    command: Callable[[BackfillPlan, int], Sequence[str]],
    told: Callable[[Ended], None],
    *,
    jobs: int = 1,
    keep_going: bool = False,
) -> list[Ended]:
    """Runs the steps `todo`, at most `jobs` at once, tells of each as it ends, and gives those that failed.

    `command` is what to start for a step: a process that ends when its standard input does, and says what is wrong on stderr. After a failure no more
    are started, unless it is to `keep_going`. Interrupted, it ends the steps at work, which leave their outputs as they were, and raises on.
    """
    waiting, working, failed = list(todo), list[_Working](), list[Ended]()
    try:
        while waiting or working:
            while waiting and len(working) < jobs and (keep_going or not failed):
                number = waiting.pop(0)
                working.append(_Working.start(number, command(plan, number)))
            for one in [w for w in working if w.process.poll() is not None]:
                working.remove(one)
                ended = one.ended(find_run(state, plan.run_id(one.number)))
                told(ended)
                if ended.record is None:
                    failed.append(ended)
            if not working and failed and not keep_going:
                break
            time.sleep(_LOOK_EVERY_S)
    except BaseException:
        _end(working)
        raise
    return failed


@dataclass(eq=False)
class _Working:
    """A step at work."""

    number: int
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    begun: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, number: int, command: Sequence[str]) -> _Working:
        said = tempfile.TemporaryFile()  # noqa: SIM115  (closed when the step has ended)
        # A session of its own: Ctrl-C in a terminal reaches the backfill alone, which decides what to do.
        process = subprocess.Popen(list(command), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)  # noqa: S603  (ourselves)
        return cls(number, process, said)

    def ended(self, record: RunResults | None) -> Ended:
        """What became of it. Done is what its record says: one that was killed after its commit is."""
        seconds = time.monotonic() - self.begun
        lines = self._close().splitlines()
        warnings = tuple(line.removeprefix("warning: ") for line in lines if line.startswith("warning: "))
        if record is not None and record.status == "success":
            return Ended(self.number, record, "", seconds, warnings)
        return Ended(self.number, None, _why(lines, self.process.returncode, record), seconds, warnings)

    def _close(self) -> str:
        if self.process.stdin is not None:
            self.process.stdin.close()
        with self.said:
            self.said.seek(0)
            return self.said.read().decode("utf-8", "replace")


def _why(lines: Sequence[str], code: int, record: RunResults | None) -> str:
    first = next((n for n, line in enumerate(lines) if line.startswith("error: ")), None)
    if first is not None:
        return "\n".join(lines[first:]).removeprefix("error: ")[:_LONGEST_SAID]
    if code < 0:
        return f"its process was ended by signal {-code} ({_name(-code)})" + (
            ": the machine may be short of memory" if -code == signal.SIGKILL else ""
        )
    if record is not None and record.failures:
        return "; ".join(record.failures)
    return f"its process ended with code {code}" + (f": {lines[-1][:_LONGEST_SAID]}" if lines else "")


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _end(working: Sequence[_Working]) -> None:
    """Ends the steps at work: asked first, killed after a while, or when somebody is impatient."""
    for one in working:
        one.process.terminate()
    until = time.monotonic() + _GRACE_S
    try:
        for one in working:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(timeout=max(0.0, until - time.monotonic()))
    except KeyboardInterrupt:  # once more: now
        pass
    finally:
        for one in working:
            if one.process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()
            one._close()


def failed_sentence(plan: BackfillPlan, failed: Sequence[Ended]) -> str:
    """What went wrong, a line for each step."""
    return "\n".join(f"step {e.number} of {len(plan.steps)}, {show_range(plan.steps[e.number - 1].range)}: {e.why}" for e in failed)


def counted(record: RunResults) -> Mapping[str, int]:
    """What a step wrote and refused, in rows."""
    lines = record.ledger
    return {
        "rows": max((o.rows for o in record.outputs if o.of == ROWS), default=0), "dead": sum(line.dead for line in lines),
        "duplicates": sum(line.duplicate for line in lines),
    }  # fmt: skip


def _attempts(state: str, id_: str) -> list[int]:
    return sorted(int(name[:-5]) for name in list_files(_folder(state, id_)) if name.endswith(".json") and name[:-5].isdigit())


def _folder(state: str, id_: str) -> str:
    return join(state, "backfills", id_)


def _path(state: str, id_: str, attempt: int) -> str:
    return join(_folder(state, id_), f"{attempt:06d}.json")
