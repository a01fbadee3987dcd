"""Partitions that a run left as they were although all that they hold came from files which it read again. Loads no Beam.

A run replaces the partitions it writes. Where a corrected file no longer has a row for a partition, what it had there before stays: only
its user knows whether that is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from beam_pipelines.sinks import manifest
from beam_pipelines.sinks.results import RunResults, find_run
from beam_pipelines.spec.sinks import LETTERS

_RUNS = 200  # whose records are read


@dataclass(frozen=True)
class Leftover:
    """An output, partitions of it that the run did not write, and the newest run whose rows they hold."""

    output: str
    partitions: tuple[str, ...]
    run_id: str

    def __str__(self) -> str:
        several = len(self.partitions) > 1
        listed = ", ".join(self.partitions[:3]) + (f" and {len(self.partitions) - 3:,} more" if len(self.partitions) > 3 else "")
        return (
            f"{self.output}: {len(self.partitions):,} partition{'s' * several} ({listed}) still hold{'s' * (not several)} rows of run {self.run_id}, "
            f"which read no other files than this run; this run has no row for {'them' if several else 'it'}. If the files were corrected, "
            "`replace: all` for one run removes what is left of the old ones."
        )


def leftovers(state: str, record: RunResults) -> tuple[Leftover, ...]:
    """What a good run left of runs that were called with the same parameters and read nothing that it did not read as well."""
    sources = {line.source for line in record.ledger}
    written = {o.name: o for o in record.outputs}
    old: dict[str, bool] = {}
    found = []
    for name, snapshot in manifest.snapshots(state, {n: o.path for n, o in written.items()}).items():
        if name not in written or snapshot.of == LETTERS or not snapshot.partitions:
            continue
        mine = set(written[name].partitions)
        left = {f.partition: f.run_id for f in snapshot.files if f.run_id != record.metadata.run_id and f.partition not in mine}
        for run_id in sorted(set(left.values()) - old.keys())[-_RUNS:]:
            old[run_id] = _covered(find_run(state, run_id), sources, record.args)
        stale = tuple(sorted(partition for partition, run_id in left.items() if old.get(run_id)))
        if stale:
            found.append(Leftover(name, stale, max(left[partition] for partition in stale)))
    return tuple(found)


def _covered(run: RunResults | None, sources: set[str], args: Mapping[str, object]) -> bool:
    """Whether all that the earlier run read was read again, in the same way."""
    read = set() if run is None else {line.source for line in run.ledger}
    return run is not None and bool(read) and read <= sources and run.args.get("parameters") == args.get("parameters")
