"""The graph: every stage in order. It does not know which runner runs it, nor whether its input ends.

source ─▶ decode, conform, transform, enrich, validate ─▶ deduplicate ─▶ rows to sinks
                                                                   └──▶ aggregate per window ─▶ panes to sinks
every reject, from every stage ─▶ dead letters     every outcome, counted ─▶ ledger     what is stored ─▶ commit or progress
"""

from __future__ import annotations

import apache_beam as beam

from beam_pipelines.edges import Batch, Job, Resume, Stream
from beam_pipelines.sinks.plan import writes_of
from beam_pipelines.sinks.pubsub import Publish
from beam_pipelines.sinks.write import Write
from beam_pipelines.sources.lookups import lookups_of
from beam_pipelines.spec.sinks import ROWS
from beam_pipelines.transforms.prepare import Prepare

__all__ = ["Job", "Resume", "build"]


def build(pipeline: beam.Pipeline, job: Job) -> beam.PCollection:
    """Adds the whole graph to `pipeline`. A bounded job gives the run's record, one `RunResults`; a stream gives nothing, for ever."""
    spec, edges = job.spec, Batch(job) if job.resume is None else Stream(job)

    raw = edges.read(pipeline)
    dead = dict(raw.dead)  # by the stage that rejects
    lookups = job.lookups if job.lookups is not None else lookups_of(spec, endless=job.resume is not None)
    prepared = raw.rows | Prepare(spec, edges.sources, lookups, guard=edges.guard)
    edges.left(prepared)
    rows, dead["prepare"] = edges.near(prepared), prepared.dead

    deduplicate = edges.deduplicate()
    if deduplicate is not None:
        unique = rows | deduplicate
        edges.left(unique)
        rows = (
            unique if isinstance(unique, beam.PCollection) else unique.rows
        )  # redelivered messages leave by no door: they are the same rows

    outputs = {ROWS: edges.asked(rows, ROWS)}
    edges.observe(outputs[ROWS])
    for name in spec.aggregates:
        made = rows | f"Aggregate-{name}" >> edges.aggregate(name)
        edges.left(made)
        outputs[name], dead[f"aggregate-{name}"] = edges.asked(made.panes, name), made.dead

    writes: list[Write | Publish] = [*writes_of(spec, job.run), *edges.publishes()]
    for write in writes:
        name = write.output.name
        dead[f"write-{name}"] = edges.store(write, outputs[write.output.of], f"Write-{name}")
    return edges.conclude(dead)
