"""The record of a run, as `run_results.json` and in `{state}/runs/{run_id}.json`: a versioned schema, shaped like dbt's.

    metadata     which program, pipeline, run, when, how long
    status       success | failed, and `failures`: one sentence each
    outputs      what was committed where: rows, files, bytes, partitions
    ledger       per source: read, and by which door each row left
    dead_letters rows by `stage:REASON`;  checks, thresholds: what was judged, what was found
    kept_letters of a batch that failed: where its letters are

`schema_version` rises when a field changes its meaning or goes; new fields may come without it, so readers ignore what they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import msgspec

from beam_pipelines.arrow.ranges import show_instant
from beam_pipelines.errors import RunError, SpecError
from beam_pipelines.places import join, list_files, read_bytes, write_bytes
from beam_pipelines.sinks.ledger import Ledger, Line
from beam_pipelines.sinks.run import RunInfo

VERSION = 1


@dataclass(frozen=True)
class Metadata:
    """Which run this was. `range`: over which event times [start, end), None over all; `input`: what a batch read, its batch sources or the archive;
    `lookups`: a hash of what each lookup held when the run began."""

    run_id: str
    pipeline: str
    pipeline_version: str
    contract: str
    mode: str
    engine: str
    spec: str
    started_at: str
    finished_at: str
    elapsed_s: float
    beam_pipelines_version: str
    range: tuple[str, str] | None = None
    input: str = "batch"
    lookups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputResult:
    """What a run committed to one output. `replaced_files` were there before and are gone.

    `stored`: what all starts of a stream have stored in the output's speed layer, in rows that readers see.
    """

    name: str
    of: str
    path: str
    format: str
    rows: int
    files: int
    bytes: int
    partitions: tuple[str, ...]
    replaced_files: int = 0
    status: Literal["committed", "untouched", "stored"] = "committed"


@dataclass(frozen=True)
class CheckResult:
    """One check judged over the run. `failing` rows of `rows`; `observed` and `expected` as people read them."""

    name: str
    status: Literal["pass", "warn", "fail"]
    severity: str = "warn"
    failing: int = 0
    rows: int = 0
    observed: str = ""
    expected: str = ""
    message: str = ""


@dataclass(frozen=True)
class ThresholdResult:
    """One threshold: the `share` of the rows read, against the `most` allowed."""

    name: str
    share: float
    most: float
    status: Literal["pass", "fail"]


@dataclass(frozen=True)
class KeptLetters:
    """Dead letters of a run that failed, which are in no output: `rows` in `files` below `folder`. They go with those of older runs (see `failed_letters`)."""

    output: str
    folder: str
    format: Literal["parquet", "csv", "jsonl"]
    files: tuple[str, ...]
    rows: int
    bytes: int


@dataclass(frozen=True)
class RunResults:
    """Everything a run says about itself."""

    metadata: Metadata
    status: Literal["success", "failed"]
    failures: tuple[str, ...] = ()
    args: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[OutputResult, ...] = ()
    ledger: tuple[Line, ...] = ()
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    failing_rows: Mapping[str, int] = field(default_factory=dict)
    checks: tuple[CheckResult, ...] = ()
    thresholds: tuple[ThresholdResult, ...] = ()
    kept_letters: KeptLetters | None = None
    schema_version: int = VERSION


def schema() -> dict[str, Any]:
    """The JSON Schema of `run_results.json`."""
    return msgspec.json.schema(RunResults)


def to_json(results: RunResults) -> bytes:
    """`results` as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n"


def from_json(content: bytes) -> RunResults:
    """The results that `to_json` wrote, also by a later version that added fields."""
    return msgspec.json.decode(content, type=RunResults)


def record_path(state: str, run_id: str) -> str:
    """Where the record of a run is kept."""
    return join(state, "runs", f"{run_id}.json")


def write_run(state: str, results: RunResults) -> None:
    """Writes or replaces the record of a run."""
    write_bytes(record_path(state, results.metadata.run_id), to_json(results))


def no_such_run(state: str, run_id: str) -> RunError:
    """What to say of an id that no run has."""
    return RunError(f"run '{run_id}': no such run in {join(state, 'runs')}.", hint="`query 'SELECT * FROM runs'` lists the runs.")


def find_run(state: str, run_id: str) -> RunResults | None:
    """The record of a run, or None if it has not ended."""
    content = read_bytes(record_path(state, run_id))
    return None if content is None else from_json(content)


def expect_id(state: str, run_id: str | None, *, mode: str, anew: bool = False) -> RunResults | None:
    """The record under this id: of a batch that is run again, or of a stream whose next start gets an id of its own (`anew`). Raises SpecError where another run has left one: it would
    go, or a batch would be taken for done."""
    found = find_run(state, run_id) if run_id is not None else None
    if found is not None and (found.metadata.mode != mode or (mode == "stream" and not anew)):
        about = found.metadata
        raise SpecError(
            f"--run-id {run_id}: is taken by a {about.mode} run that began {about.started_at} ({record_path(state, about.run_id)}).",
            hint="Choose another, or leave it out: each start then has its own.",
        )
    return found


def list_runs(state: str) -> list[RunResults]:
    """All runs that ended, the latest start first."""
    names = [n for n in list_files(join(state, "runs")) if n.endswith(".json")]
    found = [find_run(state, n.removesuffix(".json")) for n in names]
    return sorted((r for r in found if r is not None), key=lambda r: (r.metadata.started_at, r.metadata.run_id), reverse=True)


def metadata(run: RunInfo, *, finished_at: str) -> Metadata:
    """The metadata of a run that ends now."""

    def moment(text: str) -> datetime:
        return datetime.fromisoformat(text)

    elapsed = (moment(finished_at) - moment(run.started_at)).total_seconds()
    return Metadata(
        run.run_id,
        run.pipeline,
        run.pipeline_version,
        run.contract,
        run.mode,
        run.engine,
        run.spec,
        run.started_at,
        finished_at,
        round(elapsed, 3),
        _package_version(),
        None if run.range is None else (show_instant(run.range.start), show_instant(run.range.end)),
        run.input,
        dict(run.lookups),
    )


def _package_version() -> str:
    try:
        return version("beam-pipelines")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0"


def judge_thresholds(ledger: Ledger, *, dead_letters: float | None, per_check: Mapping[str, float]) -> tuple[ThresholdResult, ...]:
    """The thresholds a user set, judged: shares of the rows read, of a run over a range of those in it (0 of 0 rows is 0)."""
    read = ledger.read - ledger.outside

    def judged(name: str, rows: int, most: float) -> ThresholdResult:
        share = rows / read if read else 0.0
        return ThresholdResult(name, share, most, "fail" if share > most else "pass")

    found = [] if dead_letters is None else [judged("dead_letters", ledger.dead, dead_letters)]
    return tuple(found + [judged(f"check {name}", ledger.failing.get(name, 0), most) for name, most in per_check.items()])


def failures_of(ledger: Ledger, checks: Sequence[CheckResult], thresholds: Sequence[ThresholdResult]) -> tuple[str, ...]:
    """Why the run fails, one sentence each; empty if it does not."""
    found = [] if ledger.balanced else [f"the ledger does not balance: {ledger.explain()}"]
    found += [f"check '{c.name}' failed: {_found(c)}" for c in checks if c.status == "fail"]
    found += [f"{t.name}: {t.share:.2%} of the rows read; at most {t.most:.2%} allowed" for t in thresholds if t.status == "fail"]
    return tuple(found)


def _found(check: CheckResult) -> str:
    return check.message or f"found {check.observed or f'{check.failing:,} failing rows'}; expected {check.expected or 'none'}"
