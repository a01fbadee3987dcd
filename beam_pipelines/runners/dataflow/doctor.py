"""What a job on Dataflow needs, looked at from here before one is handed in: the checks that `doctor` makes besides those of all runners. Nothing is started.

What only workers meet (whether their image is there, what their account may do) is not looked at, and said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from apache_beam.options.pipeline_options import GoogleCloudOptions, SetupOptions, WorkerOptions
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator

from beam_pipelines.errors import SpecError
from beam_pipelines.places import exists
from beam_pipelines.runners.beam_options import Options
from beam_pipelines.runners.dataflow.checks import problems_of
from beam_pipelines.runners.dataflow.service import Found, HandedIn, jobs_of, running
from beam_pipelines.runners.dataflow.settings import DATAFLOW, Dataflow, beam_flags, check_labels, refuse_ours
from beam_pipelines.runners.dataflow.subscriptions import KEEP, kept_s
from beam_pipelines.runners.findings import DoctorCheck, Finding
from beam_pipelines.runners.writable import expect_writable
from beam_pipelines.sinks.run import new_run_id
from beam_pipelines.sources.pubsub import check_subscription
from beam_pipelines.spec.horizon import horizon
from beam_pipelines.spec.load import LoadedSpec
from beam_pipelines.spec.secrets import passwords_of, secrets_of
from beam_pipelines.spec.sources import PubsubSource

_IMAGE = re.compile(r"[\w.-]+(:\d+)?(/[\w.-]+)*?(?P<tag>:[\w.-]{1,128})?(?P<digest>@sha256:[0-9a-f]{64})?")
_ACCOUNT = re.compile(r"[^@\s]+@[^@\s]+\.gserviceaccount\.com")


@dataclass(frozen=True)
class _Asked:
    settings: Dataflow
    flags: tuple[str, ...]
    modes: tuple[str, ...]
    loaded: LoadedSpec | None

    @property
    def options(self) -> Options:
        """Beam's, of the stream where there is one; a label that is refused is told elsewhere."""
        pipeline = "doctor" if self.loaded is None else self.loaded.spec.pipeline
        mode = "stream" if "stream" in self.modes else "batch"
        flags = beam_flags(replace(self.settings, labels=()), self.flags, pipeline=pipeline, mode=mode, run_id=new_run_id())
        return Options(flags, runner=DATAFLOW)

    @property
    def cloud(self) -> GoogleCloudOptions:
        return self.options.view_as(GoogleCloudOptions)


def dataflow_checks(loaded: LoadedSpec | None, settings: Dataflow, flags: Sequence[str], modes: Sequence[str]) -> list[DoctorCheck]:
    """The checks of a job there: what was asked for, the service, the places on the way, image and account of the workers; of a spec also its keys and subscriptions."""
    asked = _Asked(settings, tuple(flags), tuple(modes), loaded)
    cloud = asked.cloud
    places = {"temp location": cloud.temp_location, "staging location": cloud.staging_location}
    checks = [
        DoctorCheck("Dataflow", partial(_asked_for, asked)),
        DoctorCheck("service", partial(_service, asked)),
        *(DoctorCheck(name, partial(_place, name, str(place))) for name, place in places.items() if place),
        DoctorCheck("image", partial(_image, asked)),
        DoctorCheck("workers", partial(_workers, str(cloud.service_account_email or ""))),
    ]
    if loaded is None:
        return checks
    subscriptions = enumerate(loaded.spec.sources.stream) if "stream" in modes else ()
    return [
        *checks,
        DoctorCheck("keys", partial(_keys, loaded)),
        *(
            DoctorCheck(f"sources.stream[{n}]", partial(_subscription, f"sources.stream[{n}]", source, loaded))
            for n, source in subscriptions
        ),
    ]


def _asked_for(asked: _Asked) -> Iterator[Finding]:
    """What `run` refuses, and what Beam's client does."""
    of_streams = "stream" in asked.modes and (asked.settings.update or asked.settings.at_least_once)
    modes = ("stream",) if of_streams else asked.modes
    found = [problem for mode in modes for problem in problems_of(asked.loaded, asked.settings, asked.flags, mode=mode)]
    for check in (partial(refuse_ours, asked.flags), partial(check_labels, asked.settings.labels)):
        try:
            check()
        except SpecError as error:
            found.append(str(error))
    if _named(asked):
        found += _beams(asked)
    yield from (Finding("Dataflow", "bad", problem) for problem in dict.fromkeys(found))
    if not found:
        cloud = asked.cloud
        job = "" if asked.loaded is None else f", job {cloud.job_name}"
        yield Finding("Dataflow", "good", f"project {cloud.project}, region {cloud.region}{job}")


def _named(asked: _Asked) -> bool:
    """Whether all is said without which there is no job."""
    return all((asked.cloud.project, asked.cloud.region, asked.cloud.temp_location))


def _beams(asked: _Asked) -> Iterator[str]:
    """Those of Beam's own checks that ask nobody: as a whole they would make a bucket. Whether an endpoint of one's own is there shows when it is asked."""
    options = replace(asked, flags=tuple(flag for flag in asked.flags if not flag.startswith("--dataflow_endpoint="))).options
    validator, cloud, worker = PipelineOptionsValidator(options, None), options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    yield from validator.validate_cloud_options(cloud)
    yield from validator.validate_gcs_path(cloud, "temp_location")
    yield from validator.validate_num_workers(worker)
    yield from validator.validate_worker_region_zone(worker)


def _service(asked: _Asked) -> Iterator[Finding]:
    options, cloud = asked.options, asked.cloud
    if not _named(asked):
        yield Finding("service", "not looked at", "project, region or the place for temporary files is not named")
        return
    named = HandedIn("", "", str(cloud.project), str(cloud.region), str(cloud.job_name))
    found = [job for job in jobs_of(options, named) if not job.ended]
    yield Finding("service", "good", f"Dataflow answers for project {named.project} in {named.region}")
    own: list[Found] = []
    if "stream" in asked.modes and asked.loaded is not None:
        own = [job for _, job in running(options, asked.loaded.state)]
        yield from _replaced(own, update=bool(cloud.update))
    for job in found:
        if job.id not in {known.id for known in own}:
            seen = f"{_shown(job)} runs, and is not of this state; of two jobs of one name Dataflow runs one"
            yield Finding("job", "bad", seen, "Choose another --job-name, or cancel it.")


def _replaced(own: Sequence[Found], *, update: bool) -> Iterator[Finding]:
    if update and not own:
        yield Finding("job", "bad", "--update: no job of this stream runs; expected one to replace.", "Leave --update out.")
    for job in own:
        if update:
            yield Finding("job", "good", f"{_shown(job)} runs this stream, and is to be replaced")
        else:
            do = "Replace it by --update, after `upgrade --dry-run` has said what that changes; or cancel it first."
            yield Finding("job", "bad", f"{_shown(job)} runs this stream; expected none", do)


def _shown(job: Found) -> str:
    return f"job {job.name} ({job.id}, {job.state})"


def _place(name: str, place: str) -> Iterator[Finding]:
    if not place.startswith("gs://"):
        yield Finding(name, "bad", f"{place}: workers see no disk of this machine; expected gs://BUCKET/FOLDER.")
        return
    expect_writable(place)
    yield Finding(name, "good", f"{place}: can be written")


def _image(asked: _Asked) -> Iterator[Finding]:
    options = asked.options
    image = options.view_as(WorkerOptions).sdk_container_image
    if image is None:
        yield from _shipped(options.view_as(SetupOptions))
        return
    said = _IMAGE.fullmatch(image)
    if said is None:
        yield Finding("image", "bad", f"{image}: is no image; expected for example europe-docker.pkg.dev/PROJECT/REPOSITORY/NAME:1.")
    elif said["digest"] is None and said["tag"] in (None, ":latest"):
        yield Finding(
            "image", "warning", f"{image}: workers that start later may get another one", "Name a version: NAME:1, or NAME@sha256:…"
        )
    else:
        yield Finding("image", "good", f"{image}: is named; whether it is there, and holds this package, its workers find out")


def _shipped(setup: SetupOptions) -> Iterator[Finding]:
    files = [*(setup.extra_packages or ()), *(path for path in (setup.setup_file, setup.requirements_file) if path)]
    for path in files:
        there = exists(path)
        yield Finding("packages", "good" if there else "bad", path if there else f"{path}: there is no such file")
    if not files:
        yield Finding("image", "not looked at", "none is named")


def _workers(account: str) -> Iterator[Finding]:
    if not account:
        found = "no account is named: workers run as the project's default Compute Engine account, if there is one, with all its rights"
        yield Finding("workers", "warning", found, "Name one: --service-account.")
    elif _ACCOUNT.fullmatch(account) is None:
        yield Finding("workers", "bad", f"{account}: is no service account; expected NAME@PROJECT.iam.gserviceaccount.com.")
    else:
        yield Finding("workers", "good", f"{account}: is named; what it may do shows there")


def _keys(loaded: LoadedSpec) -> Iterator[Finding]:
    references = dict.fromkeys((secrets_of(loaded.spec) | passwords_of(loaded.spec)).values())
    if references:
        found = f"{', '.join(references)}: workers read them, with their own account"
        yield Finding("keys", "not looked at", found, "It needs roles/secretmanager.secretAccessor on each.")


def _subscription(name: str, source: PubsubSource, loaded: LoadedSpec) -> Iterator[Finding]:
    """It is there, and keeps acknowledged messages as long as a next start may go back: see `starts`."""
    if check_subscription(source, patience_s=5.0) is None:
        yield Finding(name, "good", f"{source.pubsub}: may be pulled, not looked at")
        return
    kept, needed = kept_s(source.pubsub, patience_s=5.0), 2 * horizon(loaded.spec) / 1e6
    keeps = f"keeps acknowledged messages for {kept / 3600:g} hours" if kept else "keeps no acknowledged messages"
    if kept < needed:
        found = f"{source.pubsub}: {keeps}, and a start after this one needs those of at least {needed / 3600:g} hours again"
        yield Finding(name, "warning", found, KEEP)
    else:
        yield Finding(name, "good", f"{source.pubsub}: {keeps}")
