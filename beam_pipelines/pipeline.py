"""The graph: every stage in order. It does not know which runner runs it, nor whether its input ends.

source ─▶ decode, conform, transform, enrich, validate ─▶ deduplicate ─▶ rows to sinks
                                                                   └──▶ aggregate per window ─▶ panes to sinks
every reject, from every stage ─▶ dead letters     every outcome, counted ─▶ ledger     commit: the last transform
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apache_beam as beam

from beam_pipelines.sinks.commit import Commit
from beam_pipelines.sinks.judge import JudgeRun
from beam_pipelines.sinks.plan import letter_writes_of, outputs_of, writes_of
from beam_pipelines.sinks.run import RunInfo
from beam_pipelines.sources.files import ReadFiles
from beam_pipelines.sources.lookups import lookups_of
from beam_pipelines.spec.models import PipelineSpec
from beam_pipelines.transforms import Aggregate, Deduplicate
from beam_pipelines.transforms.observe import Observe
from beam_pipelines.transforms.prepare import Prepare


@dataclass(frozen=True)
class Job:
    """One run of one spec. `temp_location` is a folder that all workers share; `args` are kept in the run's record."""

    spec: PipelineSpec
    run: RunInfo
    temp_location: str
    apply_lateness: bool = False
    args: tuple[tuple[str, Any], ...] = ()


def build(pipeline: beam.Pipeline, job: Job) -> beam.PCollection:
    """Adds the whole graph to `pipeline`; gives the run's record, one `RunResults`."""
    spec, run = job.spec, job.run
    raw = pipeline | ReadFiles(spec.sources.batch, spec.contract)
    prepared = raw.rows | Prepare(spec, spec.sources.batch, lookups_of(spec))
    rows = prepared.rows
    dead = {"read": raw.dead, "prepare": prepared.dead}  # by the stage that rejects
    done = [raw.counts, prepared.counts]  # what the commit must hear of: ledger counts, staged files, states of checks

    if spec.deduplicate is not None:
        unique = rows | Deduplicate(spec.deduplicate, contract=spec.contract, temp_location=job.temp_location, run_id=run.run_id)
        rows = unique.rows
        done.append(unique.counts)
    if any(not check.per_row for check in spec.checks):
        done.append(rows | Observe(spec.checks))

    outputs = {"rows": rows}
    for name, aggregate in spec.aggregates.items():
        time, zone = spec.contract.event_time, spec.time_zone
        made = rows | f"Aggregate-{name}" >> Aggregate(aggregate, name=name, time=time, time_zone=zone, apply_lateness=job.apply_lateness)
        outputs[name] = made.panes
        dead[f"aggregate-{name}"] = made.dead
        done.append(made.counts)

    for write in writes_of(spec, run):
        written = outputs[write.output.of] | f"Write-{write.output.name}" >> write
        dead[f"write-{write.output.name}"] = written.dead
        done += [written.files, written.counts]
    for stage, letters in dead.items():  # stage by stage: one PCollection of all would be held in memory between two stages
        for letter_write in letter_writes_of(spec, run):
            stored = letters | f"Write-{letter_write.output.name}-of-{stage}" >> letter_write
            done += [stored.files, stored.counts]

    judge = JudgeRun(spec.checks, run.started_at)
    return tuple(done) | Commit(
        run, outputs_of(spec, run), thresholds=spec.thresholds, judge=judge, args=dict(job.args), raise_on_failure=False
    )
