"""A cluster before a job is handed in: whether it answers, fits, has room, and keeps checkpoints. The functions are those with which a job starts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions, PortableOptions
from apache_beam.version import __version__ as BEAM_VERSION  # noqa: N812  (a constant)

from beam_pipelines.errors import BeamPipelinesError
from beam_pipelines.places import is_local, local
from beam_pipelines.runners.dataflow.checks import paths_of
from beam_pipelines.runners.findings import Finding
from beam_pipelines.runners.flink.cluster import listens
from beam_pipelines.runners.flink.jars import FLINK_VERSION, RUNNER_VERSION, builder, jar_versions
from beam_pipelines.runners.flink.job import Target, jar_at_hand, options_for, target
from beam_pipelines.runners.flink.options import FlinkJobOptions
from beam_pipelines.runners.options import BEAM, LOOPBACK, Flink
from beam_pipelines.runners.writable import expect_writable
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.sources import PubsubSource

_REST_S = 4.0
_HERE = frozenset({"127.0.0.1", "localhost", "::1"})
_CHECKPOINTS = ("execution.checkpointing.dir", "state.checkpoints.dir")  # of Flink 1.20 and later, and before
_SAVEPOINTS = ("execution.checkpointing.savepoint-dir", "state.savepoints.dir")


def look_at_flink(flink: Flink, flags: Sequence[str], modes: Sequence[str], loaded: LoadedSpec | None) -> Iterator[Finding]:
    """The cluster, the job server, and what a job of each mode would find there."""
    try:
        where = target(flink, patience_s=_REST_S)
    except BeamPipelinesError as error:
        yield Finding("Flink", "bad", error.message, error.hint)
        names = ("job server", "slots", "workers", *(("checkpoints", "acknowledgements") if "stream" in modes else ()))
        yield from (Finding(name, "not looked at", "there is no cluster to ask") for name in names)
        return
    managers = f"{where.task_managers} task manager{'s' * (where.task_managers != 1)}"
    yield Finding("Flink", "good", f"{where.version} at {where.rest.address}, {managers}, {where.slots_free} of {where.slots} slots free")
    yield from _told("job server", _job_server(flink, where))
    for mode in modes:
        yield from _told(f"slots, {mode}", _slots(where, flags, mode))
    yield from _workers(where)
    if "stream" in modes:
        yield from _told("checkpoints", _checkpoints(where))
        yield from _told("acknowledgements", _acknowledgements(where, flags, () if loaded is None else loaded.spec.sources.stream))
    if loaded is not None and not _is_here(where):
        yield from _folders(loaded)


def _told(check: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """What a check raises is a finding, and the next is made."""
    try:
        yield from findings
    except BeamPipelinesError as error:
        yield Finding(check, "bad", error.message, error.hint)


def _job_server(flink: Flink, where: Target) -> Iterator[Finding]:
    jar = jar_at_hand(flink, where.version)
    if jar is None:
        ours = where.version.startswith(f"{FLINK_VERSION}.")
        if ours and builder() is not None:
            yield Finding(
                "job server",
                "warning",
                "not here yet; the first job builds it with Maven",
                "Let it, or build it now: beam-pipelines cluster up.",
            )
        else:
            yield Finding(
                "job server", "warning", f"not here; the first job fetches Beam's for Flink {where.version} from Maven Central",
                "Without a way there, name a jar: --flink-job-server-jar.",
            )  # fmt: skip
        return
    of = jar_versions(jar)
    found = f"Beam's Flink runner {of.beam or 'of an unknown version'} for Flink {of.flink or 'of an unknown version'}, Python SDK {BEAM_VERSION}"
    if of.beam == RUNNER_VERSION and where.version.startswith(f"{FLINK_VERSION}.") and BEAM_VERSION.startswith(f"{BEAM}."):
        yield Finding("job server", "good", f"{found}: these are tested together")
    else:
        tested = f"runner {RUNNER_VERSION}, Flink {FLINK_VERSION}, SDK {BEAM}"
        yield Finding("job server", "warning", f"{found}: not tested together", f"Try it, or take what is tested: {tested}.")


def _options(where: Target, flags: Sequence[str], mode: str) -> PipelineOptions:
    return options_for(where, flags, endpoint="", streaming=mode == "stream")


def _slots(where: Target, flags: Sequence[str], mode: str) -> Iterator[Finding]:
    options = _options(where, flags, mode)
    wanted = options.view_as(FlinkRunnerOptions).parallelism
    found = f"it takes {wanted}, {where.slots_free} of {where.slots} are free"
    each = int(options.view_as(PortableOptions).sdk_worker_parallelism)
    if mode == "stream" and wanted > 1 and each > 0:
        processes = 1 if where.workers == LOOPBACK else min(wanted, where.task_managers * each)
        found += f"; {processes} Python process{'es' * (processes != 1)} read and compute"
    if wanted <= where.slots_free:
        yield Finding(f"slots, {mode}", "good", found)
    else:
        yield Finding(f"slots, {mode}", "warning", found, "The job waits until others have ended. Ask for less: -- --parallelism=N.")


def _workers(where: Target) -> Iterator[Finding]:
    if where.workers == LOOPBACK:
        found = "the command does the work"
        if _is_here(where):
            yield Finding("workers", "good", found)
        else:
            yield Finding(
                "workers", "warning", f"{found}, and the task managers must reach this machine",
                "Where they do not, put a pool beside each and name it: --flink-workers.",
            )  # fmt: skip
    elif listens(where.workers):
        yield Finding("workers", "good", f"a pool listens at {where.workers}")
    elif _host(where.workers) in _HERE and not _is_here(where):
        yield Finding("workers", "not looked at", f"{where.workers} is beside each task manager, and cannot be seen from here")
    else:
        yield Finding(
            "workers", "bad", f"nothing listens at {where.workers}",
            f"Start a pool there: python -m beam_pipelines.runners.worker_pool --host {_host(where.workers)} --port {where.workers.rpartition(':')[2]}.",
        )  # fmt: skip


def _checkpoints(where: Target) -> Iterator[Finding]:
    settings = where.rest.configuration()
    place, saved = (next((settings[key] for key in keys if settings.get(key)), None) for keys in (_CHECKPOINTS, _SAVEPOINTS))
    if place is None:
        yield Finding(
            "checkpoints", "warning", "the cluster names no folder for them: they lie in the job manager's memory",
            f"Set {_CHECKPOINTS[1]} to a folder that job manager and task managers reach.",
        )  # fmt: skip
    else:
        yield _proved(where, place) or _writable(where, place)
    if saved is None:
        yield Finding(
            "savepoints", "warning", "the cluster names no folder for them: a stream that is drained ends with one, and cannot",
            f"Set {_SAVEPOINTS[1]}.",
        )  # fmt: skip


def _proved(where: Target, place: str) -> Finding | None:
    """What became of the newest checkpoint of the jobs that run and keep theirs there; None where there is none."""
    running = [(job, where.rest.checkpoints(job.id)) for job in where.rest.jobs() if job.state == "RUNNING"]
    there = [(kept.latest, kept, job) for job, kept in running if kept.latest is not None and _below(place, kept.latest.path)]
    if not there:
        return None
    latest, kept, job = max(there, key=lambda one: one[0].done_ms)
    ago_s, size_mb, took_s = max(0.0, time.time() - latest.done_ms / 1000), latest.state_bytes / 1e6, latest.duration_ms / 1000
    found = f"in {place}; the last of job {job.name} came {ago_s:.0f} s ago, of {size_mb:.1f} MB in {took_s:.1f} s"
    if kept.failing:
        return Finding(
            "checkpoints", "warning", f"{found}; a later one failed: {kept.failure}", "See the job manager's log, and docs/flink.md."
        )
    return Finding("checkpoints", "good", found)


def _writable(where: Target, place: str) -> Finding:
    """Whether this machine can write there, which says much of a cluster on it, and little of another."""
    folder = _path(place)
    if is_local(folder) and not os.path.isdir(local(folder)) and not _is_here(where):
        return Finding(
            "checkpoints", "not looked at", f"in {place}, which is no folder of this machine; job manager and task managers must share it"
        )
    if not is_local(folder) and not where.ours:
        return Finding("checkpoints", "not looked at", f"in {place}; the managers write there with their own rights, and no job has yet")
    expect_writable(folder)
    return Finding("checkpoints", "good", f"in {place}, which can be written")


def _below(place: str, path: str) -> bool:
    """Whether a checkpoint lies in a folder, which Flink writes as file:/folder here and as file:///folder there."""
    return f"{_path(path)}/".startswith(f"{_path(place).rstrip('/')}/")


def _acknowledgements(where: Target, flags: Sequence[str], sources: Sequence[PubsubSource]) -> Iterator[Finding]:
    """A message is acknowledged by the second checkpoint after it at the latest; until then it is held, and leased again and again."""
    interval_s = _options(where, flags, "stream").view_as(FlinkJobOptions).checkpointing_interval / 1000
    if not sources:
        yield Finding("acknowledgements", "good", f"a checkpoint every {interval_s:g} s")
    for source in sources:
        lease_s, most = source.ack_deadline / 1e6, source.max_outstanding_messages / interval_s
        found = f"a checkpoint every {interval_s:g} s, leases of {lease_s:g} s; at most {most:,.0f} messages a second"
        if 2 * interval_s < lease_s:
            yield Finding("acknowledgements", "good", found)
        else:
            yield Finding(
                "acknowledgements", "warning", f"{found}. A lease ends before the second checkpoint: messages come again wherever it is not extended in time",
                f"Say ack_deadline: {min(600, int(2 * interval_s) + 10)}s in the source, or -- --checkpointing_interval={int(lease_s * 250)}.",
            )  # fmt: skip


def _folders(loaded: LoadedSpec) -> Iterator[Finding]:
    here = {path: at for at, path in paths_of(loaded) if is_local(path)}
    if here:
        path, at = next(iter(here.items()))
        more = f" and {len(here) - 1} more" if len(here) > 1 else ""
        yield Finding(
            "folders", "warning", f"{at}: {path}{more}: local, and the cluster is elsewhere",
            "This machine, workers and task managers must share them under the same paths; else use an object store.",
        )  # fmt: skip


def _is_here(where: Target) -> bool:
    return _host(where.rest.address) in _HERE


def _host(address: str) -> str:
    return urlsplit(address if "://" in address else f"//{address}").hostname or ""


def _path(place: str) -> str:
    """A folder as Flink writes it, file:/folder, as we do."""
    return urlsplit(place).path if place.startswith("file:") else place
