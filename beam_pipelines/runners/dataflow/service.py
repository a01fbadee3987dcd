"""What the Dataflow service knows of jobs, and what we remember of those that we handed in.

{state}/dataflow/{run id}.json      which job a run is: a flex template's job may be called anything
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from beam_pipelines.errors import RunError, TransientError
from beam_pipelines.places import read_bytes, write_bytes
from beam_pipelines.runners.dataflow.settings import SPEC_LABEL
from beam_pipelines.sinks.claims import busy, holders, overlap, release, stale
from beam_pipelines.sinks.epochs import Start, all_starts, handed_in
from beam_pipelines.sinks.run import Output, RunInfo

_ENDED = {"JOB_STATE_DONE", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_UPDATED", "JOB_STATE_DRAINED", "JOB_STATE_STOPPED"}

_ENDING = {"JOB_STATE_DRAINING", "JOB_STATE_CANCELLING"}

_LAUNCHED = re.compile(r"template_launches/([^/]+)/")


class HandedIn(msgspec.Struct, frozen=True):
    """A job that a run is, or, as long as nobody has `taken` it, is to be; `url`: its page, where it is known."""

    run_id: str
    mode: str
    project: str
    region: str
    name: str
    taken: bool = False
    url: str = ""


class Found(NamedTuple):
    """A job as the service lists it."""

    id: str
    name: str
    state: str

    @property
    def ended(self) -> bool:
        return self.state in _ENDED

    @property
    def ending(self) -> bool:
        return self.state in _ENDING


def link(project: str, region: str, job_id: str) -> str:
    """The job's page in Google's console."""
    return f"https://console.cloud.google.com/dataflow/jobs/{region}/{job_id}?project={project}"


def remember(state: str, job: HandedIn) -> None:
    """Writes down which job a run is; before it is handed in, so that no job is unknown."""
    write_bytes(handed_in(state, job.run_id), msgspec.json.encode(job))


def remembered(state: str, run_ids: Iterable[str]) -> dict[str, HandedIn]:
    """Those of these runs that were handed in, by run id."""
    contents = [read_bytes(handed_in(state, run_id)) for run_id in dict.fromkeys(run_ids)]
    return {job.run_id: job for content in contents if content for job in [msgspec.json.decode(content, type=HandedIn)]}


def taken_starts(state: str) -> dict[int, Start]:
    """The starts of a stream, by epoch, without those whose job the service did not take: these never ran."""
    started = all_starts(state)
    known = remembered(state, (start.run_id for start in started.values()))
    return {epoch: start for epoch, start in started.items() if start.run_id not in known or known[start.run_id].taken}


def jobs_of(options: PipelineOptions, job: HandedIn) -> list[Found]:
    """The jobs of that name, the newest first, without the one that a template's launcher is at work on: the service makes it, queued, before it starts the launcher.

    Raises TransientError where the service does not answer, RunError where it refuses.
    """
    from google.cloud import dataflow_v1beta3 as dataflow

    request = dataflow.ListJobsRequest(project_id=job.project, location=job.region, name=job.name)
    own = _LAUNCHED.search(str(options.view_as(GoogleCloudOptions).template_location or ""))
    with _asking(f"the jobs of {job.project} in {job.region} cannot be listed"):
        return [
            Found(found.id, found.name, found.current_state.name)
            for found in _client(options).list_jobs(request)
            if found.name == job.name and (own is None or found.id != own[1])
        ]


def ran_by(options: PipelineOptions, job: HandedIn, found: Found) -> str:
    """The name of what a job runs, as in `epochs.Start`, by its label; "" for one of an earlier version of this package. Raises as `jobs_of` does."""
    from google.cloud import dataflow_v1beta3 as dataflow

    view = dataflow.JobView.JOB_VIEW_DESCRIPTION  # the first that has labels
    request = dataflow.GetJobRequest(project_id=job.project, location=job.region, job_id=found.id, view=view)
    with _asking(f"job {found.id} of {job.project} in {job.region} cannot be looked at"):
        return str(_client(options).get_job(request).labels.get(SPEC_LABEL, ""))


@contextlib.contextmanager
def _asking(what: str) -> Iterator[None]:
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.auth.exceptions import GoogleAuthError, TransportError

    try:
        yield
    except (GoogleAPICallError, RetryError, GoogleAuthError) as error:
        status = getattr(error, "code", None)
        passes = isinstance(error, RetryError | TransportError) or (status is not None and (int(status) >= 500 or int(status) == 429))
        raise (TransientError if passes else RunError)(
            f"Dataflow: {what}: {error}.",
            hint="Run again later." if passes else "The account needs roles/dataflow.viewer.",
        ) from error


def _client(options: PipelineOptions) -> Any:
    from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient

    return DataflowApplicationClient(options)._jobs_client  # it knows endpoint and credentials of these options


def running(options: PipelineOptions, state: str) -> Iterator[tuple[HandedIn, Found]]:
    """The jobs of this state's stream that have not ended."""
    asked: set[tuple[str, str, str]] = set()
    for job in remembered(state, (start.run_id for start in all_starts(state).values())).values():
        if (job.project, job.region, job.name) not in asked:
            asked.add((job.project, job.region, job.name))
            yield from ((job, found) for found in jobs_of(options, job) if not found.ended)


def release_dead(outputs: list[Output], run: RunInfo, options: PipelineOptions) -> list[str]:
    """Gives back the claims of runs whose job has ended without a commit; gives their run ids. Nobody was there to do it when it ended.

    Raises SinkError where a job still runs whose launcher has gone: its claim looks stale, and is not.
    """
    known = remembered(run.state, (held.run_id for output in outputs for held in holders(output)))
    dead = []
    for output in outputs:
        for held in holders(output):
            job = known.get(held.run_id)
            if job is None or held.attempt == run.attempt:
                continue
            found = jobs_of(options, job)
            if stale(held):
                if overlap(held, output, run) and not all(one.ended for one in found):
                    raise busy(output, held)
            elif found and all(one.ended for one in found):
                release([output], replace(run, run_id=held.run_id, attempt=held.attempt, range=held.range))
                dead.append(held.run_id)
    return sorted(set(dead))


def project_and_region(options: PipelineOptions) -> tuple[str, str]:
    """Where the options say that the job runs."""
    cloud = options.view_as(GoogleCloudOptions)
    return str(cloud.project), str(cloud.region)
