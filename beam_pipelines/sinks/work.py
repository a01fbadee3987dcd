"""What a run brings to its commit. Loads no Beam."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from beam_pipelines.commit_elements import Staged
from beam_pipelines.sinks.inventory import Stock
from beam_pipelines.sinks.results import RunResults
from beam_pipelines.sinks.run import Output, RunInfo


@dataclass(frozen=True)
class Work:
    """`sources` are those the run read; `letters` those it has dead letters of; `schemas` names and SQL types of the columns of each output;
    `headers` the first line of merged text files. `since`: arrivals before it were not read. `stock`: which files were."""

    run: RunInfo
    outputs: tuple[Output, ...]
    staged: tuple[Staged, ...]
    record: RunResults
    sources: Collection[str] = ()
    letters: Collection[str] = ()
    schemas: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    headers: Mapping[str, bytes] = field(default_factory=dict)
    since: int | None = None
    stock: Stock | None = None

    def staged_of(self, output: Output) -> tuple[Staged, ...]:
        """The closed files of an output."""
        return tuple(staged for staged in self.staged if staged.output == output.name)
