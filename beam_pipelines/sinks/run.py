"""What a run is and what it writes: the two values every sink and the commit share. Loads no Beam."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from beam_pipelines.arrow.ranges import Range
from beam_pipelines.errors import SpecError
from beam_pipelines.places import join, parent
from beam_pipelines.sinks.loads import Table

_LONGEST_ID = 128
_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_LONGEST_ID - 1}}}")
STAGING = ".staging"
TOMBSTONES = "tombstones"
"""Name of the output in which a run over a range says which rows of other partitions are duplicates (see `tombstones`)."""
TEXT_ENDINGS = (".csv", ".jsonl", ".csv.gz", ".jsonl.gz")


def utc_now() -> str:
    """Now, as ISO 8601 in UTC with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def new_run_id() -> str:
    """A run id that sorts by start: `20130101T120000Z-1f2e3d4c`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def later_id(run_id: str) -> str:
    """A run id of its own for what is started again under `run_id`: it sorts after it."""
    own = new_run_id()
    return f"{run_id[: _LONGEST_ID - len(own) - 1]}.{own}"


@dataclass(frozen=True)
class RunInfo:
    """One run of one pipeline. `run_id` is its identity: a second commit under the same id changes nothing.

    `attempt` tells two launches under one id apart. `state` is the folder of runs and commits, `contract` the contract's fingerprint,
    `started_at` ISO 8601 in UTC. `epoch` counts the starts of a stream (see `epochs`); 0 in a batch. A batch reads its batch sources or the
    archive of the stream (`input`), and writes all of it or what lies in `range`, whole partitions of every output. `lookups`: name and version
    of each lookup when the run began.
    """

    run_id: str
    pipeline: str
    state: str
    pipeline_version: str = "0"
    contract: str = ""
    started_at: str = field(default_factory=utc_now)
    mode: str = "batch"
    engine: str = ""
    spec: str = ""
    attempt: str = field(default_factory=lambda: secrets.token_hex(6))
    epoch: int = 0
    range: Range | None = None
    input: Literal["batch", "archive"] = "batch"
    lookups: tuple[tuple[str, str], ...] = ()

    @property
    def as_of(self) -> int:
        """When the run began to look for its input, in microseconds since 1970."""
        return round(datetime.fromisoformat(self.started_at).timestamp() * 1_000_000)

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.run_id):
            raise SpecError(
                f"run id {self.run_id!r}: expected letters, digits, '.', '_' and '-', at most {_LONGEST_ID}, the first a letter or digit."
            )


@dataclass(frozen=True)
class Clock:
    """How an output is partitioned by time: its directories of level `partition` are a `unit` (hour, day, month, year) each of `column`."""

    column: str
    partition: str
    unit: str


@dataclass(frozen=True)
class Output:
    """One destination of a run. `name` is its label, `of` what is written there: rows, dead_letters, or an aggregate's name.

    `replace`: what a run replaces. partitions: those it wrote; all: everything; runs (dead letters): letters of sources it read again. An
    output without partitions is replaced whole. `clock`: by which time it is partitioned, None if by none. `table`: what its files are loaded into.
    """

    name: str
    of: str
    path: str
    format: Literal["parquet", "csv", "jsonl"] = "parquet"
    partitions: tuple[str, ...] = ()
    replace: Literal["partitions", "all", "runs"] = "partitions"
    gzip: bool = False
    clock: Clock | None = None
    table: Table | None = None

    @property
    def single(self) -> bool:
        """Whether `path` is one file rather than a folder of files."""
        return self.format != "parquet" and self.path.endswith(TEXT_ENDINGS)

    @property
    def folder(self) -> str:
        """The folder the output's files lie in."""
        return parent(self.path) if self.single else self.path

    @property
    def staging(self) -> str:
        """Where runs stage files of this output; on the same file system, so that a move is a rename."""
        name = self.path.rpartition("/")[2]
        return join(self.folder, f"{STAGING}-{name}" if self.single else STAGING)

    @property
    def speed(self) -> str:
        """The folder of the output's speed layer, beside `path`, which is the batch's: Parquet whatever `format` says."""
        return self.path.rstrip("/") + ".speed"

    @property
    def ending(self) -> str:
        return f".{self.format}" + (".gz" if self.gzip else "")


def staging_of(output: Output, run: RunInfo) -> str:
    """The folder where this attempt of the run stages files of the output."""
    return join(output.staging, f"{run.run_id}.{run.attempt}")


def check_outputs(outputs: Sequence[Output]) -> None:
    """Raises SpecError where two outputs share a name or one's place lies in another's."""
    for i, one in enumerate(outputs):
        for other in outputs[i + 1 :]:
            if one.name == other.name:
                raise SpecError(f"outputs: two are called '{one.name}'.", hint="Give each sink its own label.")
            if _overlap(one, other):
                raise SpecError(
                    f"outputs '{one.name}' and '{other.name}' overlap: {one.path} and {other.path}.",
                    hint="Give each output its own folder.",
                )


def _overlap(one: Output, other: Output) -> bool:
    if one.single and other.single:
        return one.path == other.path
    paths = sorted((p.path.rstrip("/") + "/" for p in (one, other)), key=len)
    return paths[1].startswith(paths[0])
