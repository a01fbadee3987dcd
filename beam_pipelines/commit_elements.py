"""What a commit is told, element by element: by the sinks, by the stages before them, and by the sources.

Count        rows by door     of sources, stages and sinks    a plain tuple, so that Beam's own tuple coder carries it: there is one for each batch
Staged       a closed file    of sinks                        ┐
Columns      of an output     of sinks                        │ told apart by type; Beam pickles them. There are few: one or so for each
CheckState   of rows seen     of `Observe`                    │ file or bundle
SourceSpans  of rows read     of `Spans`                      ┘
"""

from __future__ import annotations

from dataclasses import dataclass

from beam_pipelines.arrow.counts import Count


@dataclass(frozen=True, slots=True)
class Staged:
    """A closed file that waits for the commit; `path` is full, `partition` its directory in the output."""

    output: str
    partition: str
    path: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Columns:
    """Names and SQL types of the columns that are in an output's files."""

    output: str
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class CheckState:
    """What the checks over many rows have seen of a bundle, as Arrow IPC."""

    state: bytes


@dataclass(frozen=True, slots=True)
class SourceSpans:
    """The event times that a source has rows of, as [start, end) in microseconds; `undated`: it has rows without one."""

    source: str
    spans: tuple[tuple[int, int], ...]
    undated: bool


CommitElement = Count | Staged | Columns | CheckState | SourceSpans
"""What `Commit` takes."""
